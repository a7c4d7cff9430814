//! What belongs together: `images/` and `labels/` of a folder, paired by name, or the part a split names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::TruthError;

const EXTENSIONS: [&str; 7] = [".nii.gz", ".nii", ".png", ".tiff", ".tif", ".dcm", ".seg"];
const LABEL_SUFFIX: &str = "_mask";

/// The part of a split file to take, written FILE:NAME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    pub file: PathBuf,
    pub name: String,
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once(':') {
            Some((file, name)) if !file.is_empty() && !name.is_empty() => {
                Ok(Self { file: file.into(), name: name.into() })
            }
            _ => Err("not FILE:NAME, such as splits.json:val".into()),
        }
    }
}

/// An image and its truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub stem: String,
    pub image: PathBuf,
    pub label: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    pub folder: PathBuf,
    pub split: Option<Split>,
    /// In order of their names, or of the split.
    pub pairs: Vec<Pair>,
}

impl Dataset {
    /// Pairs the images and labels of `folder`; at most the first `limit`.
    ///
    /// # Errors
    /// If a folder or the split cannot be read, an image or label that is wanted has no partner, or there is none.
    pub fn open(
        folder: &Path,
        split: Option<Split>,
        limit: Option<usize>,
    ) -> Result<Self, TruthError> {
        let images = entries(&folder.join("images"))?;
        let labels = entries(&folder.join("labels"))?;
        let stems = match &split {
            Some(split) => read_split(split)?,
            None => images.keys().cloned().collect(),
        };
        let mut unmatched_labels: Vec<String> = Vec::new();
        if split.is_none() {
            let of_image = |name: &String| {
                images.contains_key(name)
                    || name.strip_suffix(LABEL_SUFFIX).is_some_and(|name| images.contains_key(name))
            };
            unmatched_labels.extend(labels.keys().filter(|name| !of_image(name)).cloned());
        }
        let mut unmatched_images = Vec::new();
        let mut pairs = Vec::new();
        for stem in stems {
            let (bare, suffixed) =
                (labels.get(&stem), labels.get(&format!("{stem}{LABEL_SUFFIX}")));
            let label = match (bare, suffixed) {
                (Some(a), Some(b)) if !images.contains_key(&format!("{stem}{LABEL_SUFFIX}")) => {
                    return Err(TruthError::Ambiguous { a: a.clone(), b: b.clone() });
                }
                (Some(label), _) | (None, Some(label)) => Some(label),
                (None, None) => None,
            };
            match (images.get(&stem), label) {
                (Some(image), Some(label)) => {
                    pairs.push(Pair { stem, image: image.clone(), label: label.clone() });
                }
                (Some(_), None) => unmatched_images.push(stem),
                (None, _) => unmatched_labels.push(stem),
            }
        }
        if !unmatched_images.is_empty() || !unmatched_labels.is_empty() {
            return Err(TruthError::Unmatched {
                folder: folder.into(),
                images: unmatched_images,
                labels: unmatched_labels,
            });
        }
        pairs.truncate(limit.unwrap_or(usize::MAX));
        if pairs.is_empty() {
            return Err(TruthError::Empty(folder.into()));
        }
        Ok(Self { folder: folder.into(), split, pairs })
    }
}

/// Images of a folder by their stems: files with an image's extension or none, and folders.
fn entries(folder: &Path) -> Result<BTreeMap<String, PathBuf>, TruthError> {
    let wrong =
        |e: std::io::Error| TruthError::Folder { path: folder.into(), reason: e.to_string() };
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(stem) = stem(&name, path.is_dir()).filter(|_| !name.starts_with('.')) else {
            continue;
        };
        if let Some(other) = found.insert(stem.to_owned(), path.clone()) {
            let (a, b) = if other < path { (other, path) } else { (path, other) };
            return Err(TruthError::Ambiguous { a, b });
        }
    }
    Ok(found)
}

fn stem(name: &str, is_folder: bool) -> Option<&str> {
    if is_folder || !name.contains('.') {
        return Some(name);
    }
    EXTENSIONS.iter().find_map(|extension| {
        let at = name.len().checked_sub(extension.len()).filter(|&at| at > 0)?;
        let end = name.get(at..)?;
        end.eq_ignore_ascii_case(extension).then(|| &name[..at])
    })
}

fn read_split(split: &Split) -> Result<Vec<String>, TruthError> {
    let wrong = |reason: String| TruthError::Split { path: split.file.clone(), reason };
    let text = std::fs::read_to_string(&split.file).map_err(|e| wrong(e.to_string()))?;
    let parts: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let Some(part) = parts.get(&split.name) else {
        let names: Vec<_> = parts.keys().cloned().collect();
        return Err(wrong(format!("holds no {:?}, only {}", split.name, names.join(", "))));
    };
    let stems: Vec<String> = serde_json::from_value(part.clone())
        .map_err(|_| wrong(format!("{:?} is not a list of names", split.name)))?;
    let mut sorted = stems.clone();
    sorted.sort();
    match sorted.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(wrong(format!("{:?} names {} twice", split.name, two[0]))),
        None => Ok(stems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_png(path: &Path, width: u32, pixels: &[u8]) {
        let file = std::fs::File::create(path).unwrap();
        let mut encoder = png::Encoder::new(file, width, pixels.len() as u32 / width);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    }

    fn folder_of(names: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for kind in ["images", "labels"] {
            std::fs::create_dir(folder.path().join(kind)).unwrap();
        }
        for (image, label) in names {
            for (kind, name) in [("images", image), ("labels", label)] {
                if !name.is_empty() {
                    write_png(&folder.path().join(kind).join(name), 3, &[0, 200, 255]);
                }
            }
        }
        folder
    }

    #[test]
    fn names_pair_up_to_extension_and_mask_and_other_files_are_passed_over() {
        let folder =
            folder_of(&[("b.1.png", "b.1.PNG"), ("a.tif", "a_mask.nii.gz"), ("notes.txt", "")]);
        let dataset = Dataset::open(folder.path(), None, None).unwrap();
        let stems: Vec<_> = dataset.pairs.iter().map(|pair| pair.stem.as_str()).collect();
        assert_eq!(stems, ["a", "b.1"]);
        assert_eq!(Dataset::open(folder.path(), None, Some(1)).unwrap().pairs.len(), 1);
    }

    #[test]
    fn what_has_no_partner_is_named_but_only_the_first_few() {
        let folder = folder_of(&[
            ("a.png", ""),
            ("b.png", ""),
            ("c.png", ""),
            ("d.png", ""),
            ("", "z_mask.png"),
            ("e.png", "e.png"),
        ]);
        let error = Dataset::open(folder.path(), None, None).unwrap_err().to_string();
        assert!(error.contains("4 without a label in labels/ (a, b, c, …)"), "{error}");
        assert!(error.contains("1 without an image in images/ (z_mask)"), "{error}");

        let file = folder.path().join("splits.json");
        std::fs::write(&file, r#"{"train": ["a"], "val": ["e"], "twice": ["e", "e"]}"#).unwrap();
        let open = |name: &str| {
            let split = Split { file: file.clone(), name: name.into() };
            Dataset::open(folder.path(), Some(split), None)
        };
        assert_eq!(open("val").unwrap().pairs.len(), 1, "the rest is not asked for");
        assert!(open("train").unwrap_err().to_string().contains("(a)"));
        assert!(open("test").unwrap_err().to_string().contains("only train, twice, val"));
        assert!(open("twice").unwrap_err().to_string().contains("names e twice"));
    }

    #[test]
    fn two_labels_for_one_image_are_refused() {
        let folder = folder_of(&[("a.png", "a.png"), ("", "a_mask.png")]);
        let error = Dataset::open(folder.path(), None, None).unwrap_err();
        assert!(matches!(error, TruthError::Ambiguous { .. }), "{error}");
    }
}
