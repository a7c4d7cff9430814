//! Functional groups and dimensions: where each frame lies and what it was made from (PS3.3 C.7.6.16).

use dicom_core::{PrimitiveValue, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::element::{code, decimal, decimals, put, put_items, put_text};
use crate::codec::CodecError;
use crate::codec::dicom::{DicomSource, SourceSlice};
use crate::domain::{Geometry, Label, Uid};

/// Groups that hold for all frames.
pub(super) fn shared(
    source: &DicomSource,
    geometry: Option<&Geometry>,
) -> Result<InMemDicomObject, CodecError> {
    let mut groups = InMemDicomObject::new_empty();
    if let Some(geometry) = geometry {
        let mut measures = InMemDicomObject::new_empty();
        let thickness = source.number(tags::SLICE_THICKNESS)?.filter(|t| *t > 0.0);
        let thickness = thickness.unwrap_or(geometry.spacing[2]);
        put(&mut measures, tags::SLICE_THICKNESS, VR::DS, decimal(thickness));
        put(&mut measures, tags::SPACING_BETWEEN_SLICES, VR::DS, decimal(geometry.spacing[2]));
        let spacing = decimals(&[geometry.spacing[1], geometry.spacing[0]]);
        put(&mut measures, tags::PIXEL_SPACING, VR::DS, spacing);
        put_items(&mut groups, tags::PIXEL_MEASURES_SEQUENCE, [measures]);

        let mut orientation = InMemDicomObject::new_empty();
        let directions = decimals(&geometry.direction[..2].concat());
        put(&mut orientation, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, directions);
        put_items(&mut groups, tags::PLANE_ORIENTATION_SEQUENCE, [orientation]);
    }
    Ok(groups)
}

/// Groups of the frame that shows `label` in slice `index`.
pub(super) fn per_frame(
    source: &DicomSource,
    placed: bool,
    label: &Label,
    index: usize,
) -> InMemDicomObject {
    let slice = &source.slices[index];
    let mut groups = InMemDicomObject::new_empty();

    let mut content = InMemDicomObject::new_empty();
    let mut indices = vec![u32::from(label.value)];
    if placed {
        indices.push(index as u32 + 1);
    }
    let indices = PrimitiveValue::U32(indices.into_iter().collect());
    put(&mut content, tags::DIMENSION_INDEX_VALUES, VR::UL, indices);
    put_items(&mut groups, tags::FRAME_CONTENT_SEQUENCE, [content]);

    if let (true, Some(position)) = (placed, slice.position) {
        let mut plane = InMemDicomObject::new_empty();
        put(&mut plane, tags::IMAGE_POSITION_PATIENT, VR::DS, decimals(&position));
        put_items(&mut groups, tags::PLANE_POSITION_SEQUENCE, [plane]);
    }

    let mut segment = InMemDicomObject::new_empty();
    put(&mut segment, tags::REFERENCED_SEGMENT_NUMBER, VR::US, u16::from(label.value));
    put_items(&mut groups, tags::SEGMENT_IDENTIFICATION_SEQUENCE, [segment]);

    let mut derivation = InMemDicomObject::new_empty();
    put_items(
        &mut derivation,
        tags::DERIVATION_CODE_SEQUENCE,
        [code("113076", "DCM", "Segmentation")],
    );
    put_items(&mut derivation, tags::SOURCE_IMAGE_SEQUENCE, [source_image(source, slice)]);
    put_items(&mut groups, tags::DERIVATION_IMAGE_SEQUENCE, [derivation]);
    groups
}

fn source_image(source: &DicomSource, slice: &SourceSlice) -> InMemDicomObject {
    let mut image = reference(source, slice.instance);
    if let Some(frame) = slice.frame {
        put(&mut image, tags::REFERENCED_FRAME_NUMBER, VR::IS, frame.to_string());
    }
    put_text(&mut image, tags::SPATIAL_LOCATIONS_PRESERVED, VR::CS, "YES");
    put_items(
        &mut image,
        tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE,
        [code("121322", "DCM", "Source image for image processing operation")],
    );
    image
}

/// Class and instance UID of a source instance.
pub(super) fn reference(source: &DicomSource, instance: usize) -> InMemDicomObject {
    let instance = &source.instances[instance];
    let mut item = InMemDicomObject::new_empty();
    put(&mut item, tags::REFERENCED_SOP_CLASS_UID, VR::UI, instance.sop_class.as_str());
    put(&mut item, tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, instance.sop_instance.as_str());
    item
}

/// The Multi-frame Dimension module: by segment, then by place.
pub(super) fn put_dimensions(object: &mut InMemDicomObject, organization: &Uid, placed: bool) {
    let mut owner = InMemDicomObject::new_empty();
    put(&mut owner, tags::DIMENSION_ORGANIZATION_UID, VR::UI, organization.as_str());
    put_items(object, tags::DIMENSION_ORGANIZATION_SEQUENCE, [owner]);

    let dimension = |pointer: Tag, group: Tag, label: &str| {
        let mut item = InMemDicomObject::new_empty();
        put(&mut item, tags::DIMENSION_ORGANIZATION_UID, VR::UI, organization.as_str());
        put(&mut item, tags::DIMENSION_INDEX_POINTER, VR::AT, pointer);
        put(&mut item, tags::FUNCTIONAL_GROUP_POINTER, VR::AT, group);
        put_text(&mut item, tags::DIMENSION_DESCRIPTION_LABEL, VR::LO, label);
        item
    };
    let mut dimensions = vec![dimension(
        tags::REFERENCED_SEGMENT_NUMBER,
        tags::SEGMENT_IDENTIFICATION_SEQUENCE,
        "Segment",
    )];
    if placed {
        dimensions.push(dimension(
            tags::IMAGE_POSITION_PATIENT,
            tags::PLANE_POSITION_SEQUENCE,
            "Position",
        ));
    }
    put_items(object, tags::DIMENSION_INDEX_SEQUENCE, dimensions);
}
