//! A picture of a result as a Secondary Capture image (PS3.3 A.8.1), for viewers that know no segmentation.
//!
//! For people to look at, not to measure on: scaled, labels drawn over it, without geometry. The same source, mask and
//! provenance give the same bytes.

use dicom_core::{PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use sha2::{Digest, Sha256};

use super::seg::copied::{Copied, put_where_present};
use super::seg::element::{put, put_text, write};
use super::seg::segments::parameters;
use super::seg::{put_equipment, put_lossy_history, put_moment, put_series_number};
use super::{CodecError, DicomSource, overlay};
use crate::domain::{Label, Provenance, Segmentation, Uid, Volume};

const FORMAT: &str = "DICOM secondary capture";

/// A Secondary Capture object as the bytes of a DICOM file (PS3.10, Explicit VR Little Endian).
#[derive(Debug, Clone)]
pub struct Capture {
    pub sop_instance_uid: Uid,
    pub bytes: Vec<u8>,
}

/// Draws `segmentation` over `volume`, read from `source`, as [`overlay::png`] does. `revision` as in `seg::Form`.
///
/// # Errors
/// If the mask is not the size of the volume, or the source lacks its study or series UID.
pub fn encode(
    revision: u32,
    source: &DicomSource,
    volume: &Volume,
    segmentation: &Segmentation,
    labels: &[Label],
    provenance: &Provenance,
) -> Result<Capture, CodecError> {
    let picture = overlay::picture(volume, &segmentation.mask, labels)?;
    let (rows, columns, _) = picture.dim();
    let (Ok(rows), Ok(columns)) = (u16::try_from(rows), u16::try_from(columns)) else {
        return Err(CodecError::encode(FORMAT, "the picture has more than 65535 rows or columns"));
    };
    let mut pixels: Vec<u8> = picture.into_iter().collect();
    let required = |tag, name: &str| {
        source
            .text(tag)?
            .ok_or_else(|| CodecError::encode(FORMAT, format!("no {name} in the source")))
    };
    let study = required(tags::STUDY_INSTANCE_UID, "StudyInstanceUID")?;
    let source_series = required(tags::SERIES_INSTANCE_UID, "SeriesInstanceUID")?;
    let digest = Uid::derived(&[&format!("{:?}", Sha256::digest(&pixels))]);
    let instance = Uid::derived(&[
        "capture",
        &source_series,
        &parameters(provenance),
        digest.as_str(),
        &revision.to_string(),
        &source.part.to_string(),
    ]);
    let series = Uid::derived(&["capture series", &source_series, &provenance.model_digest]);

    let mut object = InMemDicomObject::new_empty();
    let copied = Copied::new(source, labels, provenance);
    copied.put_patient_and_study(&mut object);
    put(&mut object, tags::STUDY_INSTANCE_UID, VR::UI, study);
    put(&mut object, tags::SERIES_INSTANCE_UID, VR::UI, series.as_str());
    put_text(&mut object, tags::MODALITY, VR::CS, "OT");
    put_series_number(&mut object, source, 3);
    put_body_part(&mut object, source);
    let description = format!("Overlay {}", provenance.model);
    put_text(&mut object, tags::SERIES_DESCRIPTION, VR::LO, &description);
    put_equipment(&mut object, provenance);
    put_text(&mut object, tags::CONVERSION_TYPE, VR::CS, "WSD");

    put(&mut object, tags::SOP_CLASS_UID, VR::UI, uids::SECONDARY_CAPTURE_IMAGE_STORAGE);
    put(&mut object, tags::SOP_INSTANCE_UID, VR::UI, instance.as_str());
    put(&mut object, tags::IMAGE_TYPE, VR::CS, "DERIVED\\SECONDARY");
    put(&mut object, tags::INSTANCE_NUMBER, VR::IS, revision.to_string());
    put(&mut object, tags::PATIENT_ORIENTATION, VR::CS, "");
    put_text(&mut object, tags::BURNED_IN_ANNOTATION, VR::CS, "NO");
    put_text(
        &mut object,
        tags::DERIVATION_DESCRIPTION,
        VR::ST,
        "Labels of an automatic segmentation drawn over its images; not for measurement",
    );
    put_moment(&mut object, source);
    put_lossy_history(&mut object, source);

    put(&mut object, tags::SAMPLES_PER_PIXEL, VR::US, 3_u16);
    put_text(&mut object, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB");
    put(&mut object, tags::PLANAR_CONFIGURATION, VR::US, 0_u16);
    put(&mut object, tags::ROWS, VR::US, rows);
    put(&mut object, tags::COLUMNS, VR::US, columns);
    put(&mut object, tags::BITS_ALLOCATED, VR::US, 8_u16);
    put(&mut object, tags::BITS_STORED, VR::US, 8_u16);
    put(&mut object, tags::HIGH_BIT, VR::US, 7_u16);
    put(&mut object, tags::PIXEL_REPRESENTATION, VR::US, 0_u16);
    pixels.resize(pixels.len().next_multiple_of(2), 0);
    put(&mut object, tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(pixels));
    Ok(Capture { sop_instance_uid: instance, bytes: write(copied.finish(object), FORMAT)? })
}

/// Laterality is of type 2C: as in the source, and unknown, therefore empty, where that names not even the body part.
fn put_body_part(object: &mut InMemDicomObject, source: &DicomSource) {
    const SAID: [Tag; 3] = [tags::BODY_PART_EXAMINED, tags::LATERALITY, tags::IMAGE_LATERALITY];
    for tag in SAID {
        put_where_present(object, source, tag, VR::CS);
    }
    if SAID.iter().all(|tag| source.bytes(*tag).is_none()) {
        put(object, tags::LATERALITY, VR::CS, "");
    }
}
