//! What several tests share.

pub mod certificates;
pub mod chaos;
pub mod daemon;
pub mod dicom;
pub mod dul;
pub mod http;
pub mod postgres;
pub mod process;
pub mod worker;

use std::time::{Duration, Instant};

/// Longest wait for something that other processes do on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until `found` gives something.
///
/// # Panics
/// If it does not within `PATIENCE`.
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
