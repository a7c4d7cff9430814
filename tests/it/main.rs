//! The one integration binary; each file is a theme.

mod codec_damage;
mod codec_dicom;
mod codec_nifti;
mod codec_samples;
mod codec_seg;
mod support;
mod synthetic;
