//! The instances of one series as one volume, or as single images where they lie nowhere in space.

use std::path::{Path, PathBuf};

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};
use ndarray::{Array4, ArrayView3, Axis};

use super::data_set::DataSet;
use super::frames::{self, Frames};
use super::image::{self, FrameInfo, Image};
use super::part10::Part10;
use super::samples;
use super::source::{DicomSource, SourceInstance, SourceSlice};
use super::stack::{self, Misfit, Plane};
use crate::codec::{Case, CodecError, MAX_SAMPLES, Source, file_stem, first_not_finite};
use crate::domain::{Geometry, Volume};

/// One image file's header, in short.
pub(super) struct Instance {
    path: PathBuf,
    pub(super) series: String,
    sop_class: String,
    pub(super) sop_uid: String,
    /// `SeriesNumber`, if it is one.
    pub(super) number: Option<i32>,
    frame_of_reference: Option<String>,
    localizer: bool,
    image: Image,
    frames: Vec<FrameInfo>,
}

impl Instance {
    /// `None` if the file holds no image to segment.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CodecError> {
        let file = Part10::open(path)?;
        let header = file.data_set();
        if !is_image(header)? {
            return Ok(None);
        }
        frames::check_syntax(path, file.transfer_syntax)?;
        let image = Image::read(path, header)?;
        let required = |tag: Tag, name: &str| {
            header.text(tag)?.ok_or_else(|| {
                CodecError::malformed(path, "DICOM", format!("its {name} is missing"))
            })
        };
        // It orders cases and names them; one that is no number costs no image.
        let number = header.number(tags::SERIES_NUMBER).ok().flatten();
        let image_type = header.text(tags::IMAGE_TYPE)?;
        Ok(Some(Self {
            path: path.to_owned(),
            series: required(tags::SERIES_INSTANCE_UID, "SeriesInstanceUID")?,
            sop_class: required(tags::SOP_CLASS_UID, "SOPClassUID")?,
            sop_uid: required(tags::SOP_INSTANCE_UID, "SOPInstanceUID")?,
            number: number.and_then(series_number),
            frame_of_reference: header.text(tags::FRAME_OF_REFERENCE_UID)?,
            localizer: image_type.is_some_and(|text| text.contains("LOCALIZER")),
            frames: image::read_frames(path, header, image.frames)?,
            image,
        }))
    }

    /// [C, D, H, W] of what this instance holds.
    fn shape(&self) -> [usize; 4] {
        [self.image.channels(), self.image.frames, self.image.rows, self.image.columns]
    }
}

/// What an Integer String can be (PS3.5, 6.2); anything else tells no series from another.
fn series_number(value: f64) -> Option<i32> {
    let is_integer = value.fract() == 0.0;
    let is_in_range = (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value);
    (is_integer && is_in_range).then_some(value as i32)
}

/// Objects with pixels that are no images to segment.
pub(super) const NOT_IMAGES: [&str; 4] = [
    uids::SEGMENTATION_STORAGE,
    uids::LABEL_MAP_SEGMENTATION_STORAGE,
    uids::RT_DOSE_STORAGE,
    uids::PARAMETRIC_MAP_STORAGE,
];

/// Whether the object is an image that can be segmented; a dose grid or a segmentation has pixels too.
fn is_image(header: &DataSet) -> Result<bool, CodecError> {
    let class = header.text(tags::SOP_CLASS_UID)?;
    Ok(header.has(tags::ROWS) && !class.is_some_and(|uid| NOT_IMAGES.contains(&uid.as_str())))
}

pub(super) fn is_localizer(instances: &[Instance]) -> bool {
    instances.iter().all(|instance| instance.localizer)
}

/// `instances` of one series, not empty. `several`: whether other series stand beside it, so that its
/// number must tell them apart.
pub(super) fn read(instances: Vec<Instance>, several: bool) -> Result<Vec<Case>, CodecError> {
    let placed = |instance: &Instance| instance.frames.iter().all(|frame| frame.plane.is_some());
    if !instances.iter().any(placed) {
        return instances.into_iter().map(|one| read_flat(&one)).collect();
    }
    let first = &instances[0];
    for other in &instances {
        let differs = |attribute| {
            let (path, other) = (other.path.clone(), first.path.clone());
            Err(CodecError::MixedAttribute { path, other, attribute })
        };
        if placed(other) != placed(first) {
            return differs("the presence of ImagePositionPatient");
        }
        if other.shape()[2..] != first.shape()[2..] {
            return differs("the size in Rows and Columns");
        }
        if other.shape()[0] != first.shape()[0] {
            return differs("SamplesPerPixel");
        }
        if other.frame_of_reference != first.frame_of_reference {
            return differs("FrameOfReferenceUID");
        }
    }
    let name = if let [only] = instances.as_slice() {
        file_stem(&only.path)
    } else {
        let folder = first.path.parent().and_then(Path::file_name);
        let folder = folder.map_or("series".to_owned(), |n| n.to_string_lossy().into_owned());
        match first.number {
            Some(number) if several => format!("{folder}-{number}"),
            // Without a number the folder's name remains; a second case of one name gets a number of its own.
            _ => folder,
        }
    };
    Ok(vec![read_volume(name, &instances)?])
}

/// A volume from frames that each lie somewhere.
fn read_volume(name: String, instances: &[Instance]) -> Result<Case, CodecError> {
    let mut at = Vec::new();
    let mut planes: Vec<Plane> = Vec::new();
    for (instance, file) in instances.iter().enumerate() {
        for (frame, info) in file.frames.iter().enumerate() {
            at.push((instance, frame));
            planes.extend(info.plane);
        }
    }
    let localizer = instances.iter().any(|instance| instance.localizer);
    let (order, geometry) = stack::arrange(&planes).map_err(|misfit| {
        explain(misfit, |plane| instances[at[plane].0].path.clone(), localizer)
    })?;
    let slices: Vec<(usize, usize)> = order.into_iter().map(|plane| at[plane]).collect();
    decode(name, instances, &slices, Some(geometry))
}

/// A single image without a place in space.
fn read_flat(instance: &Instance) -> Result<Case, CodecError> {
    decode(file_stem(&instance.path), std::slice::from_ref(instance), &[(0, 0)], None)
}

/// `slices`: (instance, frame) of each slice of the volume.
fn decode(
    name: String,
    instances: &[Instance],
    slices: &[(usize, usize)],
    geometry: Option<Geometry>,
) -> Result<Case, CodecError> {
    let (first_instance, first_frame) = slices[0];
    let first = &instances[first_instance];
    let [channels, _, rows, columns] = first.shape();
    let declared = [channels, slices.len(), rows, columns].iter().map(|&n| n as u64).product();
    if declared > MAX_SAMPLES {
        let path = first.path.clone();
        return Err(CodecError::TooLarge { path, declared, limit: MAX_SAMPLES });
    }
    let mut samples = Array4::zeros([channels, slices.len(), rows, columns]);
    let mut header = None;
    for (index, instance) in instances.iter().enumerate() {
        let Instance { path, image, .. } = instance;
        let file = Part10::open(path)?;
        let frames = Frames::new(path, file.data_set(), image, file.transfer_syntax)?;
        let own = slices.iter().enumerate().filter(|(_, slice)| slice.0 == index);
        for (depth, &(_, frame)) in own {
            let raw = frames.get(frame)?;
            let values = samples::decode(path, image, &instance.frames[frame], &raw)?;
            let values = ArrayView3::from_shape([channels, rows, columns], &values)
                .expect("a frame decodes to its declared size");
            if let Some([_, row, column]) = first_not_finite(&values) {
                let path = path.clone();
                return Err(CodecError::NotFinite { path, slice: depth, row, column });
            }
            samples.index_axis_mut(Axis(1), depth).assign(&values);
        }
        drop(frames);
        if index == first_instance {
            header = Some(file.into_data_set().detached());
        }
    }
    let range = samples::nominal_range(&first.image, &first.frames[first_frame]);
    let source = DicomSource {
        header: header.expect("the first slice's instance is among the instances"),
        instances: instances
            .iter()
            .map(|instance| SourceInstance {
                sop_class: instance.sop_class.clone(),
                sop_instance: instance.sop_uid.clone(),
            })
            .collect(),
        slices: slices
            .iter()
            .map(|&(instance, frame)| SourceSlice {
                instance,
                frame: (instances[instance].frames.len() > 1).then_some(frame as u32 + 1),
                position: instances[instance].frames[frame].plane.map(|plane| plane.position),
            })
            .collect(),
    };
    Ok(Case {
        name,
        volume: Volume { samples, geometry, nominal_range: Some(range) },
        source: Source::Dicom(Box::new(source)),
    })
}

fn explain(misfit: Misfit, path_of: impl Fn(usize) -> PathBuf, localizer: bool) -> CodecError {
    match misfit {
        Misfit::NotOrthonormal { plane } => CodecError::malformed(
            &path_of(plane),
            "DICOM",
            "the directions in its ImageOrientationPatient are not perpendicular unit vectors",
        ),
        Misfit::Spacing { plane, other } => CodecError::MixedAttribute {
            path: path_of(plane),
            other: path_of(other),
            attribute: "PixelSpacing",
        },
        Misfit::Orientation { plane, other, degrees } => CodecError::MixedOrientation {
            path: path_of(plane),
            other: path_of(other),
            degrees,
            localizer,
        },
        Misfit::Duplicate { plane, other } => {
            CodecError::DuplicatePosition { path: path_of(plane), other: path_of(other) }
        }
        Misfit::Uneven { plane, other, gap, usual } => {
            CodecError::UnevenSpacing { path: path_of(plane), other: path_of(other), gap, usual }
        }
        Misfit::Sheared { plane, degrees } => CodecError::Sheared { path: path_of(plane), degrees },
    }
}
