//! The plan of the house: which room may import which. The table is the plan; the code must follow it.

use std::{collections::BTreeSet, fs, path::Path};

/// (room, what it may import beside `domain` and `telemetry`).
const PLAN: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("telemetry", &[]),
    ("durable", &[]),
    ("tls", &[]),
    ("codec", &[]),
    ("engine", &["durable"]),
    ("spool", &["durable"]),
    ("sampler", &[]),
    ("phantom", &["sampler"]),
    ("bundle", &["sampler"]),
    ("truth", &["codec"]),
    ("segmenter", &["bundle", "engine", "sampler"]),
    ("upper_layer", &["codec"]),
    ("ingest", &["codec", "durable", "spool", "tls", "upper_layer"]),
    ("deliver", &["codec", "durable", "spool", "tls", "upper_layer"]),
    ("http", &["codec", "durable", "ingest", "spool", "tls"]),
    ("train", &["bundle", "codec", "durable", "engine", "page", "phantom", "sampler", "truth"]),
    ("page", &[]),
    ("fleet", &["durable", "http", "tls"]),
    ("eval", &["bundle", "codec", "page", "sampler", "segmenter", "truth"]),
    (
        "bench",
        &[
            "bundle",
            "codec",
            "durable",
            "engine",
            "ingest",
            "page",
            "phantom",
            "sampler",
            "segmenter",
            "upper_layer",
        ],
    ),
    (
        "daemon",
        &[
            "bundle",
            "codec",
            "deliver",
            "durable",
            "engine",
            "http",
            "ingest",
            "segmenter",
            "spool",
            "tls",
        ],
    ),
    (
        "config",
        &["daemon", "deliver", "durable", "engine", "fleet", "http", "ingest", "sampler", "spool"],
    ),
    (
        "cli",
        &[
            "bench",
            "bundle",
            "codec",
            "config",
            "daemon",
            "deliver",
            "durable",
            "engine",
            "eval",
            "fleet",
            "http",
            "ingest",
            "phantom",
            "sampler",
            "segmenter",
            "spool",
            "tls",
            "train",
            "truth",
        ],
    ),
];
const EVERYWHERE: &[&str] = &["domain", "telemetry"];

#[test]
fn rooms_import_only_what_the_plan_allows() {
    let mut trespasses = Vec::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut rooms = BTreeSet::new();
    for entry in fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let room = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some((_, allowed)) = PLAN.iter().find(|(name, _)| *name == room) else {
            trespasses.push(format!("{room}: not in the plan"));
            continue;
        };
        for (file, text) in sources(&path) {
            for import in imports(&text) {
                let fine = import == room
                    || EVERYWHERE.contains(&import.as_str())
                    || allowed.contains(&import.as_str());
                if !fine {
                    trespasses.push(format!("{file}: {room} imports {import}"));
                }
            }
            if text.contains("ort::") && !["engine", "train"].contains(&room.as_str()) {
                let names_ort =
                    text.lines().any(|l| !l.trim_start().starts_with("//") && has_path(l, "ort"));
                if names_ort {
                    trespasses.push(format!("{file}: {room} names ort"));
                }
            }
            if has_path(&text, "anyhow") && room != "cli" {
                trespasses.push(format!("{file}: anyhow outside cli"));
            }
        }
        rooms.insert(room);
    }
    for (room, _) in PLAN {
        assert!(rooms.contains(*room), "the plan names room {room}, which is not there");
    }
    assert!(trespasses.is_empty(), "{}", trespasses.join("\n"));
}

/// Attributes of what came from outside are read through `DataSet` alone, which knows their value representations.
#[test]
fn only_the_accessors_read_attributes() {
    const ACCESSORS: [&str; 3] =
        ["codec/dicom/attributes.rs", "codec/dicom/data_set.rs", "codec/dicom/parse.rs"];
    // Both write an object anew as it is, without asking what its attributes say: a result in another transfer syntax,
    // and the input of a load test under other UIDs.
    const COPIERS: [&str; 2] = ["deliver/dicom.rs", "bench/daemon/peer.rs"];
    const RAW: [&str; 12] = [
        "read_dataset",
        "dicom_object::from_reader",
        "dicom_object::open_file",
        "OpenFileOptions",
        "DicomCollectorOptions",
        "dicom_parser",
        "to_multi_",
        "to_float",
        "element_by_name",
        ".element(tags::",
        ".element(Tag",
        ".get(tags::",
    ];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut trespasses = Vec::new();
    for (file, text) in sources(&source) {
        if ACCESSORS.iter().chain(&COPIERS).any(|name| file.ends_with(&format!("src/{name}"))) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        trespasses
            .extend(RAW.iter().filter(|raw| code.contains(**raw)).map(|raw| (file.clone(), raw)));
    }
    assert!(trespasses.is_empty(), "{trespasses:?}");
}

fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

/// Rooms that follow `crate::`, alone or in a brace list.
fn imports(text: &str) -> Vec<String> {
    let code: String =
        text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut word = String::new();
            let mut heads = Vec::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => heads.push(std::mem::take(&mut word)),
                    c if depth == 1 => word.push(c),
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            heads.push(word);
            found.extend(heads.iter().map(|h| head(h)).filter(|h| !h.is_empty()));
        } else {
            found.push(head(rest));
        }
    }
    found
}

fn head(path: &str) -> String {
    path.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Whether `name::` stands in the text as a path's first segment.
fn has_path(text: &str, name: &str) -> bool {
    text.match_indices(&format!("{name}::")).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn imports_are_found_in_every_spelling() {
    let text = "use crate::codec;\nuse crate::{bundle::{A, B}, engine};\nlet x = crate::spool::Job;\n// crate::cli\n";
    let found = imports(text);
    for room in ["codec", "bundle", "engine", "spool"] {
        assert!(found.contains(&room.to_owned()), "{room} in {found:?}");
    }
    assert!(!found.contains(&"cli".to_owned()));
}
