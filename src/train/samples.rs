//! What the pictures in `samples/` show: a page with all of them, and a legend.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::{
    TrainError,
    tools::{file, write_whole},
};
use crate::domain::Label;
use crate::page::{escape, page, swatch};

/// Writes `index.html` beside the pictures of `folder`, the latest step first.
pub(super) fn describe(folder: &Path, labels: &[Label]) -> Result<(), TrainError> {
    let entries = fs::read_dir(folder).map_err(|e| file(folder, &e))?;
    let is_picture = |path: &Path| path.extension().is_some_and(|extension| extension == "png");
    let mut pictures: Vec<String> = entries
        .flatten()
        .filter(|entry| is_picture(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    pictures.sort_by(|a, b| b.cmp(a));
    write_whole(&folder.join("index.html"), body(&pictures, labels).as_bytes())
}

fn body(pictures: &[String], labels: &[Label]) -> String {
    let mut html = String::from(
        "<p>A row for each of a few slices of a validation case. Columns, from the left: the image; the truth on it; the \
         mask at that step on it; where the votes for that mask disagree, the brighter the more.</p><p>",
    );
    for Label { value, name, colour: [red, green, blue], .. } in labels {
        let box_of = swatch(&format!("rgb({red},{green},{blue})"));
        // Writing to a string does not fail.
        let _ = write!(html, "{box_of}{value} {} &nbsp; ", escape(name));
    }
    html.push_str("</p>");
    for name in pictures {
        let name = escape(name);
        let _ = write!(
            html,
            "<h2>{name}</h2><img src=\"{name}\" alt=\"image, truth, mask, disagreement\">"
        );
    }
    page("Samples of validation cases", &html)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Code;

    #[test]
    fn the_page_names_columns_and_labels_and_shows_the_latest_step_first() {
        let code = Code { value: "1".into(), scheme: "99X".into(), meaning: "x".into() };
        let label = Label {
            value: 1,
            name: "left <lung>".into(),
            colour: [1, 2, 3],
            category: code.clone(),
            kind: code,
        };
        let folder = tempfile::tempdir().unwrap();
        for name in ["step-000100-a.png", "step-000200-a.png", "notes.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        describe(folder.path(), &[label]).unwrap();
        let html = fs::read_to_string(folder.path().join("index.html")).unwrap();
        assert!(html.contains("the truth") && html.contains("rgb(1,2,3)"), "{html}");
        assert!(html.contains("1 left &lt;lung&gt;"), "{html}");
        assert!(html.find("step-000200").unwrap() < html.find("step-000100").unwrap());
        assert!(!html.contains("notes.txt"));
    }
}
