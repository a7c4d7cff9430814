use std::path::Path;

use super::{Received, Refusal};
use crate::codec::dicom::identify;
use crate::domain::Uid;

/// Reads the `SeriesInstanceUID` from the head of a file, and checks that the data set is the object that was
/// announced.
pub(super) fn series_of(received: &Received, file: &Path) -> Result<Uid, Refusal> {
    let identity = identify(file).map_err(|_| {
        Refusal::NotUnderstood("SOPClassUID, SOPInstanceUID or SeriesInstanceUID is missing")
    })?;
    if identity.sop_instance != received.sop_instance_uid {
        return Err(Refusal::Mismatch("SOPInstanceUID"));
    }
    if identity.sop_class != received.sop_class_uid {
        return Err(Refusal::Mismatch("SOPClassUID"));
    }
    Ok(identity.series)
}
