//! The threat table names tests that there are.

use std::fs;

use crate::project::root;

/// `theme::test` or `src/room/file.rs::test`: the file it must be in, and its function.
fn named(text: &str) -> Vec<(String, &str)> {
    let code = text.split('`').skip(1).step_by(2);
    code.filter_map(|code| {
        let (place, test) = code.rsplit_once("::")?;
        let file =
            if place.starts_with("src/") { place.into() } else { format!("tests/it/{place}.rs") };
        Some((file, test))
    })
    .collect()
}

fn is_test(source: &str, name: &str) -> bool {
    let Some(at) = source.find(&format!("fn {name}(")) else { return false };
    let before = source[..at].trim_end();
    let own = before.rfind("\n\n").map_or(before, |start| &before[start..]);
    own.contains("#[test]") || source.contains("proptest! {") && !own.contains("#[ignore")
}

#[test]
fn every_threat_has_a_test_that_is_there() {
    let text = fs::read_to_string(root().join("docs/threats.md")).unwrap();
    let mut missing = Vec::new();
    for (file, test) in named(&text) {
        let source = fs::read_to_string(root().join(&file)).unwrap_or_default();
        if !is_test(&source, test) {
            missing.push(format!("{file}: {test}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    for row in
        text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what comes"))
    {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        assert!(!named(last).is_empty(), "no test in: {row}");
    }
}
