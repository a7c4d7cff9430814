use std::path::Path;

use crate::codec;
use crate::spool::Content;

/// Reads objects for the spool.
#[derive(Debug, Clone, Copy)]
pub struct Reading;

impl Content for Reading {
    fn is_whole(&self, file: &Path) -> bool {
        let format = codec::sniff(file).ok().flatten();
        format.is_none_or(|format| codec::check_whole(file, format).is_ok())
    }

    fn differences(&self, _known: &Path, _other: &Path) -> Vec<String> {
        vec!["content".to_owned()]
    }
}
