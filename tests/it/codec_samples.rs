//! Real files from elsewhere: each becomes a case or is refused with one clear line; none panics.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use cdal::codec::{self, Source};

use crate::scripts::run_python;

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

#[test]
fn single_images_decode_as_pydicom_decodes_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = String::new();
    for (index, file) in samples().into_iter().enumerate() {
        let Ok(cases) = codec::read(&file) else { continue };
        let [case] = cases.as_slice() else { continue };
        let shape = case.volume.samples.shape();
        if !matches!(case.source, Source::Dicom(_)) || shape[1] != 1 {
            continue;
        }
        let values = folder.path().join(index.to_string());
        let bytes: Vec<u8> = case.volume.samples.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(&values, bytes).unwrap();
        let shape = [shape[0], shape[2], shape[3]];
        let entry = serde_json::json!({ "file": file, "shape": shape, "values": values });
        writeln!(manifest, "{entry}").unwrap();
    }
    let list = folder.path().join("manifest");
    std::fs::write(&list, manifest).unwrap();
    if let Some(printed) = run_python("compare_pixels.py", &[&list]) {
        println!("{printed}");
    }
}
