//! Tiny synthetic DICOM files.

use std::path::{Path, PathBuf};

use cdal::codec::part10;
use cdal::domain::Uid;

pub const MR_IMAGE_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.4";
pub const SEGMENTATION_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.66.4";
pub const EXPLICIT_VR_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";

pub fn uid(text: &str) -> Uid {
    Uid::parse(text).expect("the test's UID is valid")
}

/// Explicit VR Little Endian, elements in order.
#[derive(Default)]
pub struct Dataset(Vec<u8>);

impl Dataset {
    pub fn text(mut self, group: u16, element: u16, vr: &str, value: &str) -> Self {
        let pad = if vr == "UI" { '\0' } else { ' ' };
        let mut value = value.to_owned();
        if value.len() % 2 == 1 {
            value.push(pad);
        }
        self.head(group, element, vr);
        self.0.extend((value.len() as u16).to_le_bytes());
        self.0.extend(value.bytes());
        self
    }

    pub fn number(mut self, group: u16, element: u16, value: u16) -> Self {
        self.head(group, element, "US");
        self.0.extend([2, 0]);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn words(mut self, group: u16, element: u16, values: &[u16]) -> Self {
        self.head(group, element, "OW");
        self.0.extend([0, 0]);
        self.0.extend((2 * values.len() as u32).to_le_bytes());
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn head(&mut self, group: u16, element: u16, vr: &str) {
        self.0.extend(group.to_le_bytes());
        self.0.extend(element.to_le_bytes());
        self.0.extend(vr.bytes());
    }
}

impl From<Dataset> for Vec<u8> {
    fn from(dataset: Dataset) -> Self {
        dataset.0
    }
}

/// A Part-10 file with `size` x `size` pixels.
pub fn image(class: &str, sop: &Uid, series: &Uid, instance: u16, size: u16) -> Vec<u8> {
    let pixels: Vec<u16> = (0..size * size).map(|n| n.wrapping_mul(instance + 1) % 4096).collect();
    let dataset = Dataset::default()
        .text(0x0008, 0x0016, "UI", class)
        .text(0x0008, 0x0018, "UI", sop.as_str())
        .text(0x0008, 0x0020, "DA", "20260101")
        .text(0x0008, 0x0030, "TM", "120000")
        .text(0x0008, 0x0050, "SH", "")
        .text(0x0008, 0x0060, "CS", "MR")
        .text(0x0010, 0x0010, "PN", "Phantom^Test")
        .text(0x0010, 0x0020, "LO", "PHANTOM-1")
        .text(0x0020, 0x000D, "UI", "2.25.1")
        .text(0x0020, 0x000E, "UI", series.as_str())
        .text(0x0020, 0x0010, "SH", "1")
        .text(0x0020, 0x0013, "IS", &instance.to_string())
        .text(0x0020, 0x0032, "DS", &format!("0\\0\\{instance}"))
        .text(0x0020, 0x0037, "DS", "1\\0\\0\\0\\1\\0")
        .number(0x0028, 0x0002, 1)
        .text(0x0028, 0x0004, "CS", "MONOCHROME2")
        .number(0x0028, 0x0010, size)
        .number(0x0028, 0x0011, size)
        .text(0x0028, 0x0030, "DS", "1\\1")
        .number(0x0028, 0x0100, 16)
        .number(0x0028, 0x0101, 12)
        .number(0x0028, 0x0102, 11)
        .number(0x0028, 0x0103, 0)
        .words(0x7FE0, 0x0010, &pixels);
    let mut file = part10::header(&uid(class), sop, &uid(EXPLICIT_VR_LITTLE_ENDIAN));
    file.extend(dataset.0);
    file
}

/// `slices` MR files of one series.
pub fn series(folder: &Path, name: &str, slices: u16) -> Vec<PathBuf> {
    let series = Uid::derived(&["series", name]);
    (0..slices)
        .map(|slice| {
            let sop = Uid::derived(&["slice", name, &slice.to_string()]);
            let path = folder.join(format!("{name}-{slice}.dcm"));
            std::fs::write(&path, image(MR_IMAGE_STORAGE, &sop, &series, slice, 16))
                .expect("the test's folder is writable");
            path
        })
        .collect()
}

/// What is behind the File Meta Information.
pub fn dataset(file: &Path) -> Vec<u8> {
    let bytes = std::fs::read(file).expect("the file is there");
    part10::dataset(&bytes).expect("it is a DICOM file").to_vec()
}

/// The files in `folder` that hold DICOM, in order of name.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    // A half-written file may hold a whole object just before it gets its name.
    files.retain(|path: &PathBuf| path.extension().is_none_or(|extension| extension != "part"));
    files.retain(|path: &PathBuf| {
        std::fs::read(path).is_ok_and(|bytes| part10::dataset(&bytes).is_ok_and(|d| !d.is_empty()))
    });
    files.sort();
    files
}
