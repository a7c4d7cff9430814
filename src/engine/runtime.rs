use std::{
    env,
    path::{Path, PathBuf},
};

use ort::environment::Environment;

use super::EngineError;

/// What the library is for: the training build is another library than the inference one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Inference,
    Training,
}

/// The loaded runtime library. Loading another one in the same process is not possible.
pub struct Runtime {
    pub(crate) environment: Environment,
    /// Where the library was found.
    pub path: PathBuf,
    /// What the library says of its own build.
    pub build: &'static str,
    /// Where what is built for this machine is kept from start to start, if anywhere: engines of TensorRT.
    pub cache: Option<PathBuf>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("path", &self.path)
            .field("build", &self.build)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// Loads the first library found in: the configuration, the environment variable, beside the executable,
    /// in `../lib/cdal` of its folder, the project's folder `.runtime/` (of the executable's or the current folder's parents), the system.
    ///
    /// A library that was asked for (configuration, variable) must be fit; the search does not go past it.
    ///
    /// # Errors
    /// One message that tells where was looked, what was found there and what to do.
    pub fn load(purpose: Purpose, configured: Option<&Path>) -> Result<Self, EngineError> {
        let mut looked = Vec::new();
        for Candidate { origin, path, is_asked_for } in candidates(purpose, configured) {
            // A bare name is for the system's loader to find.
            if path.components().count() > 1 && !path.exists() {
                looked.push(format!("{} ({origin}): not there", path.display()));
                if is_asked_for {
                    break;
                }
                continue;
            }
            match ort::init_from(&path) {
                Ok(builder) => return Self::start(builder, path, purpose, &looked),
                Err(reason) => {
                    let reason = reason.to_string().replace('\n', " ");
                    looked.push(format!("{} ({origin}): {reason}", path.display()));
                }
            }
            if is_asked_for {
                break;
            }
        }
        Err(no_library(purpose, &looked))
    }

    /// With another folder for what is built for this machine.
    #[must_use]
    pub fn with_cache(self, cache: Option<PathBuf>) -> Self {
        Self { cache: cache.or(self.cache), ..self }
    }

    /// Whether the library was built with an execution provider; its own libraries may still be missing.
    #[must_use]
    pub fn has(&self, provider: super::Provider) -> bool {
        use ort::ep;
        match provider {
            super::Provider::Cpu => Ok(true),
            super::Provider::Cuda => <ep::CUDA as ep::ExecutionProvider>::is_available(),
            super::Provider::TensorRt => <ep::TensorRT as ep::ExecutionProvider>::is_available(),
        }
        .unwrap_or(false)
    }

    fn start(
        builder: ort::environment::EnvironmentBuilder,
        path: PathBuf,
        purpose: Purpose,
        looked: &[String],
    ) -> Result<Self, EngineError> {
        let environment = builder.with_name("cdal").with_telemetry(false).build().map_err(|e| {
            EngineError::Start {
                version: env!("CARGO_PKG_VERSION").into(),
                path: path.display().to_string(),
                reason: e.to_string(),
            }
        })?;
        // ONNX Runtime warns about every initializer that it folds, and calls it an error that cuDNN has no kernel for
        // something when it then takes another way; what matters comes back as an error.
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        if purpose == Purpose::Training && ort::training::training_api().is_err() {
            let mut looked = looked.to_vec();
            looked.push(format!("{}: a build without the training API", path.display()));
            return Err(no_library(purpose, &looked));
        }
        Ok(Self { environment, path, build: ort::info(), cache: default_cache() })
    }
}

/// The folder that the service manager gives (`CacheDirectory=`), else the user's own.
fn default_cache() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("CACHE_DIRECTORY")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("cdal")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/cdal")))
}

fn no_library(purpose: Purpose, looked: &[String]) -> EngineError {
    let (purpose, remedy) = match purpose {
        Purpose::Inference => (
            "inference",
            "run `make runtime`, or point ORT_DYLIB_PATH to libonnxruntime.so of version 1.19 or later",
        ),
        Purpose::Training => (
            "training",
            "run `make runtime`, or point ORT_TRAINING_DYLIB_PATH to a training build of libonnxruntime.so",
        ),
    };
    EngineError::NoLibrary { purpose, looked: looked.join("; "), remedy }
}

struct Candidate {
    origin: &'static str,
    path: PathBuf,
    is_asked_for: bool,
}

fn candidates(purpose: Purpose, configured: Option<&Path>) -> Vec<Candidate> {
    let (variable, folder) = match purpose {
        Purpose::Inference => ("ORT_DYLIB_PATH", ""),
        Purpose::Training => ("ORT_TRAINING_DYLIB_PATH", "training"),
    };
    let asked = |origin, path| Candidate { origin, path, is_asked_for: true };
    if let Some(path) = configured {
        return vec![asked("configuration", path.to_owned())];
    }
    if let Some(path) = env::var_os(variable).filter(|value| !value.is_empty()) {
        return vec![asked(variable, path.into())];
    }
    let found = |origin, path| Candidate { origin, path, is_asked_for: false };
    let mut list = Vec::new();
    let executable = env::current_exe().ok();
    if let Some(beside) = executable.as_deref().and_then(Path::parent) {
        list.push(found("beside the executable", newest_library(&beside.join(folder))));
        let installed = beside.join("../lib/cdal").join(folder);
        list.push(found("the package's folder", newest_library(&installed)));
    }
    let starts =
        [executable.as_deref().and_then(Path::parent).map(Path::to_owned), env::current_dir().ok()];
    let mut project: Vec<PathBuf> = starts
        .iter()
        .flatten()
        .flat_map(|start| start.ancestors())
        .map(|parent| parent.join(".runtime"))
        .filter(|runtime| runtime.is_dir())
        .map(|runtime| newest_library(&runtime.join(folder)))
        .collect();
    project.dedup();
    list.extend(project.into_iter().map(|path| found("the project's folder", path)));
    if purpose == Purpose::Inference {
        list.push(found("the system", "libonnxruntime.so".into()));
    }
    list
}

/// `libonnxruntime.so*` in a folder, the last by name; the plain name where there is none.
fn newest_library(folder: &Path) -> PathBuf {
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.")
    };
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(is_library)
        .max()
        .unwrap_or_else(|| folder.join("libonnxruntime.so"))
}
