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

/// Whether there is a training build of ONNX Runtime for this processor.
pub fn can_train() -> bool {
    if cfg!(not(target_arch = "x86_64")) {
        println!("left out: no training build of ONNX Runtime is published for this processor");
    }
    cfg!(target_arch = "x86_64")
}
