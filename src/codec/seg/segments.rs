//! What each segment is and how it was made: `SegmentSequence` and the equipment that took part.

use std::fmt::Write as _;

use dicom_core::{PrimitiveValue, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::element::{code, code_of, put, put_items, put_text};
use crate::domain::{Label, Precision, Provenance};

pub(super) const MANUFACTURER: &str = "cdal";

/// All that is needed to compute the result again, in a form people and programs can read.
pub(in crate::codec) fn parameters(provenance: &Provenance) -> String {
    let mut text = format!(
        "bundle sha256={} steps={} votes={} seed={}",
        provenance.model_digest, provenance.steps, provenance.votes, provenance.seed
    );
    if provenance.precision != Precision::Fp32 {
        let _ = write!(text, " precision={}", provenance.precision.name());
    }
    if !provenance.ending.is_empty() {
        let _ = write!(text, " ending={}", provenance.ending.replace(' ', ","));
    }
    if !provenance.configuration.is_empty() {
        let _ = write!(text, " configuration={}", provenance.configuration);
    }
    text
}

/// One item of `SegmentSequence` (PS3.3 C.8.20.4).
pub(super) fn segment(label: &Label, provenance: &Provenance) -> InMemDicomObject {
    let mut algorithm = InMemDicomObject::new_empty();
    put_items(
        &mut algorithm,
        tags::ALGORITHM_FAMILY_CODE_SEQUENCE,
        [code("123110", "DCM", "Artificial Intelligence")],
    );
    put_text(&mut algorithm, tags::ALGORITHM_NAME, VR::LO, &provenance.model);
    put_text(&mut algorithm, tags::ALGORITHM_VERSION, VR::LO, &provenance.model_version);
    put_text(&mut algorithm, tags::ALGORITHM_PARAMETERS, VR::LT, &parameters(provenance));
    put_text(&mut algorithm, tags::ALGORITHM_SOURCE, VR::LO, MANUFACTURER);

    let mut item = InMemDicomObject::new_empty();
    put(&mut item, tags::SEGMENT_NUMBER, VR::US, u16::from(label.value));
    put_text(&mut item, tags::SEGMENT_LABEL, VR::LO, &label.name);
    put_text(&mut item, tags::SEGMENT_ALGORITHM_TYPE, VR::CS, "AUTOMATIC");
    put_text(&mut item, tags::SEGMENT_ALGORITHM_NAME, VR::LO, &provenance.model);
    put_items(
        &mut item,
        tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE,
        [code_of(&label.category)],
    );
    put_items(&mut item, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, [code_of(&label.kind)]);
    put_items(&mut item, tags::SEGMENTATION_ALGORITHM_IDENTIFICATION_SEQUENCE, [algorithm]);
    put(
        &mut item,
        tags::RECOMMENDED_DISPLAY_CIE_LAB_VALUE,
        VR::US,
        PrimitiveValue::U16(cie_lab(label.colour).into_iter().collect()),
    );
    item
}

/// The item of `ContributingEquipmentSequence` for this program (PS3.3 C.12.1.1.5).
pub(super) fn equipment(provenance: &Provenance) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    put_items(
        &mut item,
        tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE,
        [code("109102", "DCM", "Processing Equipment")],
    );
    put_text(&mut item, tags::MANUFACTURER, VR::LO, MANUFACTURER);
    put_text(&mut item, tags::MANUFACTURER_MODEL_NAME, VR::LO, &provenance.model);
    put_text(&mut item, tags::SOFTWARE_VERSIONS, VR::LO, &provenance.software_version);
    let text = format!(
        "model={} version={} {}",
        provenance.model,
        provenance.model_version,
        parameters(provenance)
    );
    put_text(&mut item, tags::CONTRIBUTION_DESCRIPTION, VR::ST, &text);
    item
}

/// sRGB to CIE L*a*b* (D50), scaled to 16 bits as PS3.3 C.10.7.1.1 wants it.
fn cie_lab(srgb: [u8; 3]) -> [u16; 3] {
    let [r, g, b] = srgb.map(|channel| {
        let v = f64::from(channel) / 255.0;
        if v <= 0.040_45 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
    });
    // sRGB to XYZ adapted to D50 (Bradford), over the D50 white point.
    let x = (0.436_075 * r + 0.385_065 * g + 0.143_080 * b) / 0.964_22;
    let y = 0.222_504 * r + 0.716_879 * g + 0.060_617 * b;
    let z = (0.013_932 * r + 0.097_105 * g + 0.714_173 * b) / 0.825_21;
    let [x, y, z] = [x, y, z].map(|t: f64| {
        if t > 216.0 / 24389.0 { t.cbrt() } else { (24389.0 / 27.0 * t + 16.0) / 116.0 }
    });
    let (l, a, b) = (116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z));
    let scale = |value: f64, low: f64, span: f64| {
        ((value - low) / span * 65535.0).round().clamp(0.0, 65535.0) as u16
    };
    [scale(l, 0.0, 100.0), scale(a, -128.0, 255.0), scale(b, -128.0, 255.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_cie_lab() {
        let lab = |colour| {
            let [l, a, b] = cie_lab(colour).map(f64::from);
            [l / 655.35, a / 257.0 - 128.0, b / 257.0 - 128.0].map(f64::round)
        };
        assert_eq!(lab([255, 255, 255]), [100.0, 0.0, 0.0]);
        assert_eq!(lab([0, 0, 0]), [0.0, 0.0, 0.0]);
        assert_eq!(lab([255, 0, 0]), [54.0, 81.0, 70.0]);
    }
}
