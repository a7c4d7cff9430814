use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tracing::debug;

use super::{Case, CodecError, dicom, nifti, raster};

/// How deep folders of nothing but folders are searched: patient, study, series and some to spare.
const MAX_FOLDER_DEPTH: usize = 8;
/// Enough of a file to tell what it is: a NIfTI-1 header.
const HEAD: usize = 348;

/// What a file is, by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Dicom,
    Nifti,
    /// Known, but not read.
    Nifti2,
    /// The header of ANALYZE 7.5 or of a `NIfTI` pair (.hdr beside .img). Known, but not read.
    Analyze,
    Png,
    Tiff,
}

/// Reads one path: a DICOM, `NIfTI` (.nii, .nii.gz), PNG or TIFF file, or a folder: every series and
/// every image in it is a case. A folder that holds only folders is searched below. What a file is
/// decides its content, not its name.
///
/// # Errors
/// If there is no image, or one of them is damaged, unsupported or forms no regular grid; then none is
/// returned, so that nothing goes missing unnoticed.
pub fn read(path: &Path) -> Result<Vec<Case>, CodecError> {
    let metadata = fs::metadata(path).map_err(|source| failed(path, source))?;
    let no_image = || CodecError::NoImage { path: path.to_owned() };
    let files = if metadata.is_dir() {
        files_in(path, MAX_FOLDER_DEPTH)?
    } else {
        match sniff(path)? {
            Some(format) => vec![(path.to_owned(), format)],
            None if is_named_as_image(path) => return Err(misnamed(path)),
            None => return Err(no_image()),
        }
    };
    let cases = read_all(files)?;
    if cases.is_empty() {
        return Err(no_image());
    }
    Ok(cases)
}

/// Reads files, whatever they are called: the DICOM files among them by series, each other one as a case.
///
/// # Errors
/// As [`read`].
pub fn read_files(files: &[PathBuf]) -> Result<Vec<Case>, CodecError> {
    let files = files.iter().map(|path| match sniff(path)? {
        Some(format) => Ok((path.clone(), format)),
        None => Err(CodecError::NoImage { path: path.clone() }),
    });
    read_all(files.collect::<Result<_, _>>()?)
}

fn read_all(files: Vec<(PathBuf, Format)>) -> Result<Vec<Case>, CodecError> {
    let mut cases = Vec::new();
    let series: Vec<PathBuf> =
        files.iter().filter(|(_, f)| *f == Format::Dicom).map(|(path, _)| path.clone()).collect();
    if !series.is_empty() {
        cases.extend(dicom::read_files(&series)?);
    }
    for (path, format) in files {
        match format {
            Format::Dicom => {}
            Format::Nifti => cases.push(nifti::read(&path)?),
            Format::Png => cases.push(raster::read_png(&path)?),
            Format::Tiff => cases.push(raster::read_tiff(&path)?),
            Format::Nifti2 => {
                return Err(CodecError::unsupported(&path, "NIfTI-2", "convert it to NIfTI-1"));
            }
            Format::Analyze => {
                let what = "ANALYZE 7.5 or a NIfTI pair (.hdr and .img)";
                return Err(CodecError::unsupported(&path, what, "convert it to one .nii file"));
            }
        }
    }
    make_names_unique(&mut cases);
    Ok(cases)
}

fn failed(path: &Path, source: std::io::Error) -> CodecError {
    CodecError::Read { path: path.to_owned(), source }
}

/// Image files of a folder in order of their names, or, where it has none, of the folders in it.
fn files_in(folder: &Path, depth: usize) -> Result<Vec<(PathBuf, Format)>, CodecError> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|source| failed(folder, source))?;
    entries.retain(|path| !file_name(path).starts_with('.'));
    entries.sort();
    let mut files = Vec::new();
    let mut folders = Vec::new();
    for path in entries {
        if path.is_dir() {
            folders.push(path);
            continue;
        }
        if let Some(format) = format_in_folder(&path)? {
            files.push((path, format));
        } else {
            debug!("a file that is no image is passed over");
        }
    }
    if files.is_empty() && depth > 0 {
        for folder in folders {
            files.extend(files_in(&folder, depth - 1)?);
        }
    }
    Ok(files)
}

/// What a file beside others is; `None` for what is passed over.
fn format_in_folder(path: &Path) -> Result<Option<Format>, CodecError> {
    match sniff(path)? {
        _ if file_name(path) == "DICOMDIR" => Ok(None),
        None if is_named_as_image(path) => Err(misnamed(path)),
        found => Ok(found),
    }
}

/// Whether a file in a folder is an image, and not one of the things that [`read`] passes over there.
///
/// # Errors
/// If it cannot be read, or is damaged.
pub fn is_image(path: &Path) -> Result<bool, CodecError> {
    match format_in_folder(path)? {
        None => Ok(false),
        Some(Format::Dicom) => dicom::is_image(path),
        Some(_) => Ok(true),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn misnamed(path: &Path) -> CodecError {
    CodecError::malformed(path, "image", "its content is not what its name says")
}

/// A damaged image among others must not drop out silently.
pub(super) fn is_named_as_image(path: &Path) -> bool {
    let name = file_name(path).to_lowercase();
    [".dcm", ".nii", ".nii.gz", ".png", ".tif", ".tiff"].iter().any(|end| name.ends_with(end))
}

/// What the file at `path` is; `None` if it is no image that is known here.
///
/// # Errors
/// If it cannot be read.
pub fn sniff(path: &Path) -> Result<Option<Format>, CodecError> {
    let head = |reader: &mut dyn Read| {
        let mut head = Vec::new();
        reader.take(HEAD as u64).read_to_end(&mut head).map(|_| head)
    };
    let mut file = File::open(path).map_err(|source| failed(path, source))?;
    let mut bytes = head(&mut file).map_err(|source| failed(path, source))?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let file = File::open(path).map_err(|source| failed(path, source))?;
        // Only a volume in gzip is an image; damaged gzip is left to its name.
        bytes = head(&mut MultiGzDecoder::new(file)).unwrap_or_default();
        return Ok(format_of(&bytes).filter(|f| matches!(f, Format::Nifti | Format::Nifti2)));
    }
    Ok(format_of(&bytes))
}

fn format_of(head: &[u8]) -> Option<Format> {
    // DICOM first: its preamble may hold a TIFF header (PS3.10 section 7.1).
    if dicom::is_dicom(head) {
        return Some(Format::Dicom);
    }
    let size = head.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)?;
    match size {
        _ if head.starts_with(b"\x89PNG\r\n\x1a\n") => Some(Format::Png),
        _ if head.starts_with(b"II*\0") || head.starts_with(b"MM\0*") => Some(Format::Tiff),
        348 | 0x5c01_0000 if head.get(344..348) == Some(b"n+1\0") => Some(Format::Nifti),
        348 | 0x5c01_0000 if is_analyze(head) => Some(Format::Analyze),
        540 | 0x1c02_0000 if head.get(4..7) == Some(b"n+2") => Some(Format::Nifti2),
        _ => None,
    }
}

/// Whether a header of 348 bytes counts its dimensions as ANALYZE 7.5 does, in either byte order.
fn is_analyze(head: &[u8]) -> bool {
    let pair = head.get(344..348) == Some(b"ni1\0");
    let count = head.get(40..42).map(|bytes| [bytes[0], bytes[1]]);
    pair || count.is_some_and(|count| matches!(count, [1..=7, 0] | [0, 1..=7]))
}

fn make_names_unique(cases: &mut [Case]) {
    let mut taken = HashSet::new();
    for case in cases {
        let base = case.name.clone();
        let mut number = 2;
        while !taken.insert(case.name.clone()) {
            case.name = format!("{base}-{number}");
            number += 1;
        }
    }
}
