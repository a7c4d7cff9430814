//! What several themes need: the project's Python with the DICOM packages.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter named by `CDAL_PYTHON`, else the one of `.venv`; `None` where there is neither.
pub fn python() -> Option<PathBuf> {
    let named = std::env::var_os("CDAL_PYTHON").map(PathBuf::from);
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    named.or(Some(local)).filter(|path| path.exists())
}

/// Runs a script of `tests/python` and gives what it printed; panics with it if the script fails.
/// `None`, with a line that says so, where there is no Python.
pub fn run_python(script: &str, arguments: &[&Path]) -> Option<String> {
    let Some(python) = python() else {
        println!("skipped {script}: no .venv and no CDAL_PYTHON");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let output = Command::new(python).arg(&script).args(arguments).output().expect("python starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{text}{errors}", script.display());
    Some(text)
}

/// Runs a program of DCMTK, GDCM or dicom3tools and gives what it printed. `None`, with a line that says
/// so, where it is not installed. Its exit status is the caller's to read from the text: some of these
/// tools fail without it.
pub fn run_tool(tool: &str, arguments: &[&Path]) -> Option<String> {
    let Ok(output) = Command::new(tool).args(arguments).output() else {
        println!("skipped {tool}: not installed");
        return None;
    };
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).into_owned())
}
