//! What this machine is: what a latency depends on beside the program.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor or, where it has no name, of the board.
    pub processor: String,
    /// That this process may use.
    pub cores: usize,
    pub memory_bytes: u64,
    /// How the processor's frequency is chosen; null where the kernel does not show it.
    pub governor: Option<String>,
    pub gpus: Vec<String>,
    /// Release of the kernel.
    pub kernel: String,
}

impl Machine {
    /// Reads `/proc` and `/sys`; what is not there stays empty.
    #[must_use]
    pub fn read() -> Self {
        let model =
            field("/proc/cpuinfo", "model name").or_else(|| text("/proc/device-tree/model"));
        let memory = field("/proc/meminfo", "MemTotal").and_then(|text| kibibytes(&text));
        let gpus = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
        Self {
            processor: model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory.unwrap_or_default(),
            governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            gpus: gpus.filter_map(|gpu| field(gpu.path().join("information"), "Model")).collect(),
            kernel: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        }
    }
}

/// Most memory that this process has held at once (VmHWM).
#[must_use]
pub fn peak_memory_bytes() -> Option<u64> {
    kibibytes(&field("/proc/self/status", "VmHWM")?)
}

/// Such as `8040 kB`.
fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|count| count << 10)
}

/// The first `name : value` of a file.
fn field(path: impl AsRef<Path>, name: &str) -> Option<String> {
    text(path)?.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim_end_matches(['\0', '\n']).to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::read();
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 20, "{machine:?}");
        assert!(!machine.processor.is_empty() && !machine.kernel.is_empty(), "{machine:?}");
        let held = vec![1_u8; 8 << 20];
        let peak = peak_memory_bytes().expect("Linux shows it");
        assert!(peak > std::hint::black_box(held).len() as u64 && peak < machine.memory_bytes);
    }

    #[test]
    fn memory_is_read_with_its_unit() {
        assert_eq!(kibibytes("8040 kB"), Some(8040 << 10));
        assert_eq!(kibibytes("8040"), None);
    }
}
