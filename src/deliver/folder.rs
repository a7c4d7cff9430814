use std::path::Path;

use super::{FolderConfig, Outcome};
use crate::durable;
use crate::spool::Delivery;

/// Puts the file into the folder, whole or not at all. Blocks.
pub(super) fn send(config: &FolderConfig, delivery: &Delivery, bytes: &[u8]) -> Outcome {
    let write = |folder: &Path| {
        durable::create_directory(folder)?;
        durable::write(folder, bytes)?.persist_beside(folder, &delivery.name)
    };
    if !durable::is_file_name(&delivery.name) {
        return Outcome::Never("the product's name is not a file name".to_owned());
    }
    match write(&config.path) {
        Ok(_) => Outcome::Sent,
        Err(error) => Outcome::Unreachable(error.to_string()),
    }
}
