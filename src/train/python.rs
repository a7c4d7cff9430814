//! Where the Python interpreter and the package `cdal_onnx` are, and calls of it.
//!
//! The interpreter is the configuration's `python`, else `.venv/bin/python` of a folder above the configuration file, the
//! working directory or this program, else `python3` of the search path. The package stands in `onnx/` of a folder above
//! one of them, in `../share/cdal/onnx` of this program's folder where that was installed, or in the interpreter itself.

use std::env;
use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Config, TrainError};

/// Between two looks whether the interpreter has ended or the run is to stop.
const LOOK: Duration = Duration::from_millis(50);

const REMEDY: &str = "name an interpreter that has cdal_onnx and its requirements as `python` at the top of the training \
                      configuration, or run `make python` in the project's folder";

#[derive(Debug, Clone, PartialEq, Eq)]
struct Python {
    interpreter: PathBuf,
    /// What goes to `PYTHONPATH`; `None` where the interpreter has the package itself.
    package: Option<PathBuf>,
}

/// Runs `python -m cdal_onnx` with `arguments`, unless `stop` becomes true.
///
/// # Errors
/// [`TrainError::Stopped`] then; otherwise what keeps it from running, or the last line that it said.
pub(super) fn call(
    config: &Config,
    arguments: &[&OsStr],
    stop: &AtomicBool,
) -> Result<(), TrainError> {
    let failed = |reason: String| TrainError::Python {
        command: arguments[0].to_string_lossy().into_owned(),
        reason,
    };
    let executable = env::current_exe().ok();
    let program = executable.as_deref().and_then(Path::parent);
    let here = env::current_dir().ok();
    let starts = [Some(config.folder.as_path()), here.as_deref(), program];
    let python =
        find(config.python.as_deref(), &starts.map(|s| s.unwrap_or(Path::new(""))), program);
    let Python { interpreter, package } = &python;
    let mut command = Command::new(interpreter);
    command.args(["-m", "cdal_onnx"]).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(package) = package {
        command.env("PYTHONPATH", package);
    }
    let log = |error: std::io::Error| failed(format!("make a temporary file: {error}"));
    let mut said = tempfile::tempfile().map_err(log)?;
    command.stderr(said.try_clone().map_err(log)?);
    let child = command
        .spawn()
        .map_err(|e| failed(format!("{} does not start: {e}; {REMEDY}", interpreter.display())))?;
    if wait(child, stop).map_err(|e| failed(e.to_string()))?.success() {
        return Ok(());
    }
    if stop.load(Ordering::Relaxed) {
        return Err(TrainError::Stopped);
    }
    let mut bytes = Vec::new();
    let _ = said.rewind().and_then(|()| said.read_to_end(&mut bytes));
    let said = String::from_utf8_lossy(&bytes);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
    if last.contains("No module named") {
        return Err(failed(format!("{}: {last}; {REMEDY}", interpreter.display())));
    }
    Err(failed(last.to_owned()))
}

/// Ends the child where the run is to stop.
fn wait(mut child: Child, stop: &AtomicBool) -> std::io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stop.load(Ordering::Relaxed) {
            child.kill()?;
            return child.wait();
        }
        std::thread::sleep(LOOK);
    }
}

/// `asked`: of the configuration. `starts`: folders from which to look upwards. `program`: the folder of this program.
fn find(asked: Option<&Path>, starts: &[&Path], program: Option<&Path>) -> Python {
    let above = |what: &str| {
        let mut folders = starts.iter().flat_map(|start| start.ancestors());
        folders.find(|folder| folder.join(what).exists()).map(|folder| folder.join(what))
    };
    let interpreter = match asked {
        Some(asked) => asked.to_owned(),
        None => above(".venv/bin/python").unwrap_or_else(|| "python3".into()),
    };
    // A virtual environment's own project comes first.
    let own = interpreter.ancestors().nth(3).map(|project| project.join("onnx"));
    let installed = program.map(|program| program.join("../share/cdal/onnx"));
    let is_package = |folder: &PathBuf| folder.join("cdal_onnx/__main__.py").exists();
    let package = own
        .filter(is_package)
        .or_else(|| {
            above("onnx/cdal_onnx/__main__.py")
                .and_then(|file| Some(file.ancestors().nth(2)?.to_owned()))
        })
        .or_else(|| installed.filter(is_package));
    Python { interpreter, package }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn interpreter_and_package_are_found_above_any_of_the_folders() {
        let home = tempfile::tempdir().unwrap();
        let at = |path: &str| home.path().join(path);
        for folder in ["project/onnx/cdal_onnx", "project/.venv/bin", "elsewhere/deep", "usr/bin"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("project/onnx/cdal_onnx/__main__.py"), "").unwrap();
        let (project, elsewhere) = (at("project/target/release"), at("elsewhere/deep"));
        let found = find(None, &[&elsewhere, &project], None);
        assert_eq!(found.interpreter, Path::new("python3"), "no virtual environment is there yet");
        assert_eq!(found.package, Some(at("project/onnx")));
        fs::write(at("project/.venv/bin/python"), "").unwrap();
        let found = find(None, &[&elsewhere, &project], None);
        assert_eq!(found.interpreter, at("project/.venv/bin/python"));
        // From another folder, the named interpreter's own project serves.
        let named = find(Some(&at("project/.venv/bin/python")), &[&elsewhere], None);
        assert_eq!(named.package, Some(at("project/onnx")));
        // Installed.
        fs::create_dir_all(at("usr/share/cdal/onnx/cdal_onnx")).unwrap();
        fs::write(at("usr/share/cdal/onnx/cdal_onnx/__main__.py"), "").unwrap();
        let found = find(None, &[&elsewhere], Some(&at("usr/bin")));
        assert_eq!(found.package, Some(at("usr/bin/../share/cdal/onnx")));
        assert_eq!(find(None, &[&elsewhere], None).package, None);
    }
}
