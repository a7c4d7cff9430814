//! The instances of one series as volumes, or as single images where they lie nowhere in space.

use std::path::{Path, PathBuf};

use ndarray::{Array4, ArrayView3, Axis};

use super::composition::{self, Composition, Member, Misfit, Part, Place, Reason};
use super::data_set::DataSet;
use super::frames::Frames;
use super::instance::Instance;
use super::part10::Part10;
use super::samples::{self, View};
use super::source::{DicomSource, SourceInstance, SourceSlice};
use crate::codec::{Case, CodecError, MAX_SAMPLES, Source, file_stem};
use crate::domain::{Geometry, Volume};

pub(super) fn is_localizer(instances: &[Instance]) -> bool {
    instances.iter().all(|instance| instance.is_localizer)
}

/// `instances` of one series, not empty. `several`: whether other series stand beside it, so that its
/// number must tell them apart.
pub(super) fn read(instances: &[Instance], several: bool) -> Result<Vec<Case>, CodecError> {
    let series = Series::new(instances);
    let composition = composition::compose(&series.members).map_err(|m| series.explain(m))?;
    series.check_size(&composition)?;
    let mut cases = Vec::new();
    for &picture in &composition.pictures {
        let (instance, _) = series.at[picture];
        let name = file_stem(&instances[instance].path);
        cases.push(series.decode(name, &[picture], None, Part::default())?);
    }
    for stack in composition.stacks {
        let name = format!("{}{}", series.name(several), stack.part.suffix());
        cases.push(series.decode(name, &stack.order, Some(stack.geometry), stack.part)?);
    }
    let left_out = series.describe(&composition.left_out);
    for case in &mut cases {
        case.warnings.splice(0..0, left_out.iter().cloned());
    }
    Ok(cases)
}

struct Series<'a> {
    instances: &'a [Instance],
    members: Vec<Member>,
    /// Instance and frame of each member.
    at: Vec<(usize, usize)>,
}

impl<'a> Series<'a> {
    fn new(instances: &'a [Instance]) -> Self {
        let at = instances.iter().enumerate().flat_map(|(instance, file)| {
            (0..file.frames.len()).map(move |frame| (instance, frame))
        });
        let members = instances.iter().flat_map(Instance::members).collect();
        Self { instances, members, at: at.collect() }
    }

    fn path(&self, member: usize) -> PathBuf {
        self.instances[self.at[member].0].path.clone()
    }

    fn name(&self, several: bool) -> String {
        let first = &self.instances[0];
        if let [only] = self.instances {
            return file_stem(&only.path);
        }
        let folder = first.path.parent().and_then(Path::file_name);
        let folder = folder.map_or("series".to_owned(), |n| n.to_string_lossy().into_owned());
        match first.number {
            Some(number) if several => format!("{folder}-{number}"),
            // Without a number the folder's name remains; a second case of one name gets a number of its own.
            _ => folder,
        }
    }

    /// All that is decoded together must fit into memory.
    fn check_size(&self, composition: &Composition) -> Result<(), CodecError> {
        let stacked = composition.stacks.iter().flat_map(|stack| &stack.order);
        let mut frames = stacked.clone();
        let samples = |&member: &usize| {
            let [channels, _, rows, columns] = self.instances[self.at[member].0].shape();
            (channels * rows * columns) as u64
        };
        let declared = stacked.map(samples).sum();
        match frames.next() {
            Some(&first) if declared > MAX_SAMPLES => {
                Err(CodecError::TooLarge { path: self.path(first), declared, limit: MAX_SAMPLES })
            }
            _ => Ok(()),
        }
    }

    /// What is left out, a sentence for each reason.
    fn describe(&self, left_out: &[(usize, Reason)]) -> Vec<String> {
        let reasons = [
            (Reason::Localizer, "ImageType says LOCALIZER"),
            (Reason::Across, "lying across the stack as scouts do"),
            (Reason::Unplaced, "without a place among slices that have one"),
        ];
        let sentence = |(reason, words): (Reason, &str)| {
            let of_reason = |(member, why): &(usize, Reason)| (*why == reason).then_some(*member);
            let label = |member: usize| self.instances[self.at[member].0].label();
            left_out_sentence(left_out.iter().filter_map(of_reason).map(label).collect(), words)
        };
        reasons.into_iter().filter_map(sentence).collect()
    }

    /// The volume of `order`, the members that are its slices; without geometry a single picture.
    fn decode(
        &self,
        name: String,
        order: &[usize],
        geometry: Option<Geometry>,
        part: Part,
    ) -> Result<Case, CodecError> {
        let slices: Vec<(usize, usize)> = order.iter().map(|&member| self.at[member]).collect();
        let mut used: Vec<usize> = slices.iter().map(|&(instance, _)| instance).collect();
        used.sort_unstable();
        used.dedup();
        let view = if geometry.is_some() { View::Modality } else { View::Shown };
        let (mut samples, header) = self.read_slices(&slices, &used, view)?;

        let Instance { path, image, frames, .. } = &self.instances[slices[0].0];
        let info = &frames[slices[0].1];
        let mut warnings = Vec::new();
        let mut range = samples::nominal_range(image, info, view);
        let values = samples.iter().copied();
        if let Some((black, white, bits)) = samples::used_range(image, info, values) {
            range = (black, white);
            if geometry.is_none() {
                warnings.push(format!(
                    "BitsStored says 16, the values need {bits} and no window says what is white: taken as {bits} bits"
                ));
            }
        }
        fill_padding(path, &mut samples)?;
        let source = DicomSource {
            header,
            part,
            instances: used.iter().map(|&index| self.source_instance(index)).collect(),
            slices: slices
                .iter()
                .map(|&(instance, frame)| self.source_slice(&used, instance, frame))
                .collect(),
        };
        Ok(Case {
            name,
            volume: Volume { samples, geometry, nominal_range: Some(range) },
            source: Source::Dicom(Box::new(source)),
            warnings,
        })
    }

    /// [C, D, H, W] of `slices` (instance and frame), which lie in the instances `used`, and the header of the first.
    fn read_slices(
        &self,
        slices: &[(usize, usize)],
        used: &[usize],
        view: View,
    ) -> Result<(Array4<f32>, DataSet), CodecError> {
        let [channels, _, rows, columns] = self.instances[slices[0].0].shape();
        let mut samples = Array4::zeros([channels, slices.len(), rows, columns]);
        let mut header = None;
        for &index in used {
            let Instance { path, image, frames, .. } = &self.instances[index];
            let file = Part10::open(path)?;
            let stored = Frames::new(path, file.data_set(), image, file.transfer_syntax)?;
            let own = slices.iter().enumerate().filter(|(_, slice)| slice.0 == index);
            for (depth, &(_, frame)) in own {
                let raw = stored.get(frame)?;
                let values = samples::decode(path, image, &frames[frame], &raw, view)?;
                let values = ArrayView3::from_shape([channels, rows, columns], &values)
                    .expect("a frame decodes to its declared size");
                let beyond = values.indexed_iter().find(|(_, value)| value.is_infinite());
                if let Some(((_, row, column), _)) = beyond {
                    let path = path.clone();
                    return Err(CodecError::NotFinite { path, slice: depth, row, column });
                }
                samples.index_axis_mut(Axis(1), depth).assign(&values);
            }
            drop(stored);
            if index == slices[0].0 {
                header = Some(file.into_data_set().detached());
            }
        }
        Ok((samples, header.expect("the first slice's instance is among the instances")))
    }

    fn source_instance(&self, index: usize) -> SourceInstance {
        let Instance { sop_class, sop_uid, .. } = &self.instances[index];
        SourceInstance { sop_class: sop_class.clone(), sop_instance: sop_uid.clone() }
    }

    fn source_slice(&self, used: &[usize], instance: usize, frame: usize) -> SourceSlice {
        let frames = &self.instances[instance].frames;
        SourceSlice {
            instance: used.binary_search(&instance).expect("a slice's instance is used"),
            frame: (frames.len() > 1).then_some(frame as u32 + 1),
            position: match frames[frame].place {
                Place::At(plane) => Some(plane.position),
                _ => None,
            },
        }
    }

    fn explain(&self, misfit: Misfit) -> CodecError {
        let path = |member: usize| self.path(member);
        match misfit {
            Misfit::Unreadable { member, attribute } => {
                CodecError::NoPlane { path: path(member), attribute }
            }
            Misfit::NotOrthonormal { member } => CodecError::malformed(
                &path(member),
                "DICOM",
                "the directions in its ImageOrientationPatient are not perpendicular unit vectors",
            ),
            Misfit::OutOfReach { member } => CodecError::malformed(
                &path(member),
                "DICOM",
                "its ImagePositionPatient, PixelSpacing or SliceThickness is no size of this world",
            ),
            Misfit::Differs { member, other, attribute } => {
                CodecError::MixedAttribute { path: path(member), other: path(other), attribute }
            }
            Misfit::Orientation { member, other, degrees } => CodecError::MixedOrientation {
                path: path(member),
                other: path(other),
                degrees,
                localizer: self.members[member].is_localizer,
            },
            Misfit::Duplicate { member, other, varying } => {
                CodecError::DuplicatePosition { path: path(member), other: path(other), varying }
            }
            Misfit::Incomplete { member, part, found, expected } => CodecError::IncompleteVolume {
                path: path(member),
                part: part.to_string(),
                found,
                expected,
            },
            Misfit::Uneven { member, other, gap, usual } => {
                CodecError::UnevenSpacing { path: path(member), other: path(other), gap, usual }
            }
            Misfit::Astray { member, other, distance } => {
                CodecError::Astray { path: path(member), other: path(other), distance }
            }
            Misfit::Sheared { member, degrees } => {
                CodecError::Sheared { path: path(member), degrees }
            }
        }
    }
}

/// `None` of no images. Names the first few: the log has no room for hundreds.
pub(super) fn left_out_sentence(mut names: Vec<String>, words: &str) -> Option<String> {
    const NAMED: usize = 4;
    names.dedup();
    let more = if names.len() > NAMED { "; …" } else { "" };
    let count = names.len();
    names.truncate(NAMED);
    let images = if count == 1 { "image" } else { "images" };
    let listed = names.join("; ");
    (count > 0).then(|| format!("{count} {images} left out, {words} ({listed}{more})"))
}

/// Gives padding the lowest value of what was imaged, so that it sets no range.
fn fill_padding(path: &Path, samples: &mut Array4<f32>) -> Result<(), CodecError> {
    if !samples.iter().any(|value| value.is_nan()) {
        return Ok(());
    }
    let lowest = samples.iter().copied().fold(f32::INFINITY, f32::min);
    if lowest.is_infinite() {
        return Err(CodecError::malformed(
            path,
            "DICOM",
            "its PixelPaddingValue and PixelPaddingRangeLimit take every pixel for padding",
        ));
    }
    samples.mapv_inplace(|value| if value.is_nan() { lowest } else { value });
    Ok(())
}
