//! Energy that a piece of work takes, where the board reports it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::sensors::{self, Reading};

/// How often a power is read.
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    pub joules: f64,
    /// `RAPL` where the processor counts it (package domains), else the sensors whose powers were added up over time.
    pub source: String,
}

/// Runs from `start` to `stop`.
#[derive(Debug)]
pub enum Meter {
    /// Counters of the processor's packages, with what they showed at the start.
    Counters(Vec<(PathBuf, f64)>),
    /// A thread adds up powers.
    Powers {
        stop: Arc<AtomicBool>,
        sum: JoinHandle<Energy>,
    },
    Absent,
}

impl Meter {
    /// `sys` is `/sys` but in tests.
    #[must_use]
    pub fn start(sys: &Path) -> Self {
        let counters = packages(sys);
        if !counters.is_empty() {
            return Self::Counters(counters);
        }
        if watts(sys).is_none() {
            return Self::Absent;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, sys) = (Arc::clone(&stop), sys.to_owned());
        let sum = std::thread::spawn(move || add_up(&sys, &stopped));
        Self::Powers { stop, sum }
    }

    /// `None` where the board reports nothing.
    #[must_use]
    pub fn stop(self) -> Option<Energy> {
        match self {
            Self::Counters(before) => {
                let joules = before.iter().map(|(zone, before)| {
                    let now = number(&zone.join("energy_uj"))?;
                    // The counter begins anew when it is full.
                    let full = if now < *before {
                        number(&zone.join("max_energy_range_uj"))?
                    } else {
                        0.0
                    };
                    Some((now - before + full) / 1e6)
                });
                Some(Energy { joules: joules.sum::<Option<f64>>()?, source: "RAPL".to_owned() })
            }
            Self::Powers { stop, sum } => {
                stop.store(true, Ordering::Relaxed);
                sum.thread().unpark();
                sum.join().ok()
            }
            Self::Absent => None,
        }
    }
}

/// Packages alone: the domains below them are parts of them.
fn packages(sys: &Path) -> Vec<(PathBuf, f64)> {
    let zones = fs::read_dir(sys.join("class/powercap")).into_iter().flatten().flatten();
    let is_package = |path: &PathBuf| {
        fs::read_to_string(path.join("name")).is_ok_and(|name| name.starts_with("package-"))
    };
    let mut found: Vec<(PathBuf, f64)> = zones
        .map(|zone| zone.path())
        .filter(is_package)
        .filter_map(|path| number(&path.join("energy_uj")).map(|energy| (path, energy)))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Of the whole board where a sensor says so (`VDD_IN` of a Jetson), else of all sensors together.
fn watts(sys: &Path) -> Option<(f64, String)> {
    let powers: Vec<(String, f64)> = sensors::read(sys)
        .into_iter()
        .filter_map(|sensor| match sensor.reading {
            Reading::Watts(watts) => Some((sensor.name, watts)),
            Reading::Celsius(_) => None,
        })
        .collect();
    if let Some((name, watts)) = powers.iter().find(|(name, _)| name.ends_with("VDD_IN")) {
        return Some((*watts, name.clone()));
    }
    let names: Vec<&str> = powers.iter().map(|(name, _)| name.as_str()).collect();
    (!powers.is_empty()).then(|| (powers.iter().map(|(_, watts)| watts).sum(), names.join(", ")))
}

fn add_up(sys: &Path, stop: &AtomicBool) -> Energy {
    let mut energy = Energy { joules: 0.0, source: String::new() };
    let mut since = Instant::now();
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        if let Some((watts, source)) = watts(sys) {
            energy.joules += watts * since.elapsed().as_secs_f64();
            energy.source = source;
        }
        since = Instant::now();
        if is_last {
            return energy;
        }
        std::thread::park_timeout(INTERVAL);
    }
}

fn number(path: &Path) -> Option<f64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(sys: &Path, path: &str, text: &str) {
        let path = sys.join("class").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn packages_are_counted_over_the_end_of_their_range() {
        let sys = tempfile::tempdir().unwrap();
        let energy = |zone: &str, value: &str| {
            write(sys.path(), &format!("powercap/{zone}/energy_uj"), value);
        };
        for (zone, name) in [
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:1", "package-1"),
        ] {
            write(sys.path(), &format!("powercap/{zone}/name"), &format!("{name}\n"));
            write(sys.path(), &format!("powercap/{zone}/max_energy_range_uj"), "10000000\n");
            energy(zone, "9000000\n");
        }
        let meter = Meter::start(sys.path());
        energy("intel-rapl:0", "9500000\n");
        energy("intel-rapl:0:0", "9400000\n");
        energy("intel-rapl:1", "1000000\n");
        let expected = Energy { joules: 2.5, source: "RAPL".to_owned() };
        assert_eq!(meter.stop(), Some(expected));
    }

    #[test]
    fn a_board_with_sensors_is_added_up_and_a_bare_one_says_nothing() {
        let sys = tempfile::tempdir().unwrap();
        assert_eq!(Meter::start(sys.path()).stop(), None);
        write(sys.path(), "hwmon/hwmon0/name", "ina3221\n");
        for (index, label, milliampere) in [("1", "VDD_IN", "2000"), ("2", "VDD_SOC", "900")] {
            write(sys.path(), &format!("hwmon/hwmon0/in{index}_label"), label);
            write(sys.path(), &format!("hwmon/hwmon0/in{index}_input"), "5000");
            write(sys.path(), &format!("hwmon/hwmon0/curr{index}_input"), milliampere);
        }
        let started = Instant::now();
        let meter = Meter::start(sys.path());
        std::thread::sleep(Duration::from_millis(30));
        let energy = meter.stop().unwrap();
        let most = 10.0 * started.elapsed().as_secs_f64();
        assert_eq!(energy.source, "ina3221 VDD_IN");
        assert!(energy.joules > 0.0 && energy.joules <= most, "{energy:?} of {most}");
    }
}
