//! The one integration binary; each file is a theme.

mod codec_samples;
mod support;
