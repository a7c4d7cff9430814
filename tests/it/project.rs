//! What several tests need: the project's own interpreter, binary, runtime and reference vectors.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, OnceLock},
};

use cdal::engine::{Purpose, Runtime};
use ndarray::{ArrayD, IxDyn};
use safetensors::SafeTensors;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The interpreter that `make python` sets up.
pub fn python() -> PathBuf {
    std::env::var_os("CDAL_PYTHON").map_or_else(|| root().join(".venv/bin/python"), Into::into)
}

/// Runs `python -m cdal_onnx …`.
fn run_cdal_onnx(arguments: &[&str]) -> Output {
    Command::new(python())
        .args(["-m", "cdal_onnx"])
        .args(arguments)
        .env("PYTHONPATH", root().join("onnx"))
        .output()
        .expect("the project's Python starts; run `make python`")
}

/// Runs `python -m cdal_onnx …` and expects it to succeed.
pub fn cdal_onnx(arguments: &[&str]) {
    let output = run_cdal_onnx(arguments);
    assert!(output.status.success(), "cdal_onnx {arguments:?}: {}", said(&output));
}

/// Runs `python -m cdal_onnx …` and expects it to refuse with these words.
pub fn cdal_onnx_refuses(arguments: &[&str], words: &str) {
    let output = run_cdal_onnx(arguments);
    assert!(!output.status.success() && said(&output).contains(words), "{}", said(&output));
}

/// Runs the binary under test.
pub fn cdal(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cdal"))
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("the binary starts")
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// One runtime library serves the whole test process.
pub fn runtime() -> Arc<Runtime> {
    static RUNTIME: OnceLock<Arc<Runtime>> = OnceLock::new();
    Arc::clone(RUNTIME.get_or_init(|| {
        Arc::new(Runtime::load(Purpose::Inference, None).expect("run `make runtime` first"))
    }))
}

/// A reference model's folder: in the tests, or beside the checkout if it is there.
pub fn reference(model: &str, file: &str) -> Option<PathBuf> {
    let own = root().join("tests/reference").join(model).join(file);
    let beside = root().join("../shared/reference").join(model).join(file);
    let found = [own, beside].into_iter().find(|path| path.exists());
    if found.is_none() {
        println!(
            "left out: {model}/{file} is neither in tests/reference nor in ../shared/reference"
        );
    }
    found
}

/// All float32 tensors of a safetensors file.
pub fn tensors(path: &Path) -> BTreeMap<String, ArrayD<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .filter(|(_, view)| view.dtype() == safetensors::Dtype::F32)
        .map(|(name, view)| {
            let values = view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            (name, ArrayD::from_shape_vec(IxDyn(view.shape()), values).unwrap())
        })
        .collect()
}

/// The bundle of a reference model, exported afresh.
pub fn reference_bundle(model: &str, preset: &str, out: &Path) -> Option<PathBuf> {
    let checkpoint = reference(model, "generator.safetensors")?;
    let parameters = reference(model, "parameters.json")?;
    let bundle = out.join(preset);
    cdal_onnx(&[
        "export",
        "--checkpoint",
        checkpoint.to_str().unwrap(),
        "--parameters",
        parameters.to_str().unwrap(),
        "--preset",
        preset,
        "--out",
        bundle.to_str().unwrap(),
    ]);
    Some(bundle)
}

pub fn largest_difference<'a>(
    a: impl IntoIterator<Item = &'a f32>,
    b: impl IntoIterator<Item = &'a f32>,
) -> f32 {
    a.into_iter().zip(b).fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}
