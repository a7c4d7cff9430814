//! Real files from elsewhere: each becomes a case or is refused with one clear line; none panics.

use std::path::{Path, PathBuf};

use cdal::codec;

/// Files of the kinds that pydicom ships for its own tests, and of the folders in `CDAL_SAMPLES`.
fn samples() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::var_os("CDAL_SAMPLES")
        .map(|paths| std::env::split_paths(&paths).collect())
        .unwrap_or_default();
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/lib");
    if let Ok(versions) = std::fs::read_dir(environment) {
        let data = "site-packages/pydicom/data/test_files";
        folders.extend(versions.flatten().map(|version| version.path().join(data)));
    }
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

#[test]
fn real_files_become_a_case_or_a_reason() {
    let files = samples();
    if files.is_empty() {
        println!("skipped: no .venv with pydicom and no CDAL_SAMPLES");
    }
    for file in files {
        let name = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&file).display();
        match codec::read(&file) {
            Ok(cases) => {
                for case in cases {
                    let v = &case.volume;
                    println!("{name}: {:?} range {:?}", v.samples.shape(), v.nominal_range);
                    assert!(v.samples.iter().all(|value| value.is_finite()));
                }
            }
            Err(error) => {
                let line = error.to_string();
                println!("{name}: REFUSED {line}");
                assert!(line.len() < 600 && !line.contains('\n'), "one clear line: {line}");
            }
        }
    }
}
