use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{Fault, duration};
use crate::durable::is_file_name;
use crate::fleet::collect::{ClientConfig, WithoutCollector};

/// Section `[fleet]`: the update agent. Without it the daemon runs what its own files say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `https://…`, or the folder of a repository, on a stick say.
    pub repository: String,
    /// Roots that an `https` repository is trusted by; the system's own without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The root of trust that was handed to this device: a `root.json`.
    pub root: PathBuf,
    /// Bundles, the agent's database and the repository's metadata.
    pub directory: PathBuf,
    /// Name of this device; letters, digits, `.`, `-` and `_`.
    pub device: String,
    /// A release names the groups that it is for.
    pub group: String,
    /// Such as `jetson-orin` or `x86-64-cpu`; a release names the classes that may run it.
    pub hardware: String,
    /// Between two looks into the repository.
    #[serde(default = "poll", with = "duration")]
    #[schemars(with = "duration::Text")]
    pub poll: Duration,
    /// From and to, `HH:MM-HH:MM` in UTC: inside, a swap does not wait for an idle moment; a job under way is finished
    /// first in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_utc: Option<String>,
    /// Who is told how this device is, and may hold a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collector: Option<ClientConfig>,
    /// Whether updates begin while the collector cannot be reached.
    #[serde(default)]
    pub without_collector: WithoutCollector,
    /// Longest time between two reports to the collector.
    #[serde(default = "report", with = "duration")]
    #[schemars(with = "duration::Text")]
    pub report: Duration,
    #[serde(default)]
    pub download: Limits,
    #[serde(default)]
    pub validation: Bounds,
}

/// Section `[fleet.download]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Of everything in the folder together.
    pub max_bytes: u64,
    /// A download that is slower over a minute is given up, to be resumed later.
    pub min_bytes_per_second: u64,
}

/// Section `[fleet.validation]`: of the process that tries a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// Address space; GPU libraries reserve far more than they use.
    pub memory_bytes: u64,
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub time: Duration,
}

fn poll() -> Duration {
    Duration::from_mins(15)
}

fn report() -> Duration {
    Duration::from_secs(30)
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 20 << 30, min_bytes_per_second: 1 << 10 }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self { memory_bytes: 16 << 30, time: Duration::from_mins(5) }
    }
}

impl Config {
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, key: &str, problem: &str| {
            if !holds {
                faults.push(Fault::new(key, problem));
            }
        };
        let name = "is not a name: 1 to 128 letters, digits, `.`, `-` and `_`";
        check(is_file_name(&self.device), "device", name);
        check(is_file_name(&self.group), "group", name);
        check(is_file_name(&self.hardware), "hardware", name);
        check(self.poll >= Duration::from_millis(100), "poll", "must be at least 100ms");
        let window = self.window_utc.as_deref().is_none_or(|text| window(text).is_some());
        check(window, "window_utc", "is not of the form \"02:00-04:30\"");
        let memory = self.validation.memory_bytes >= 1 << 28;
        check(memory, "validation.memory_bytes", "must be at least 268435456");
        let time = self.validation.time >= Duration::from_secs(1);
        check(time, "validation.time", "must be at least 1s");
        check(self.report >= Duration::from_secs(1), "report", "must be at least 1s");
        for fault in self.collector.iter().flat_map(ClientConfig::faults) {
            faults.push(Fault::new(format!("collector.{}", fault.key), fault.problem));
        }
        faults
    }

    /// Whether `now_ms`, since 1970, lies in the window.
    #[must_use]
    pub fn is_in_window(&self, now_ms: u64) -> bool {
        let minute = now_ms / 60_000 % (24 * 60);
        self.window_utc.as_deref().and_then(window).is_some_and(|(from, to)| {
            if from <= to { (from..to).contains(&minute) } else { minute >= from || minute < to }
        })
    }
}

/// Minutes of the day.
fn window(text: &str) -> Option<(u64, u64)> {
    let minute = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let number = |text: &str, below: u64| {
            let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|number: &u64| digits && *number < below)
        };
        Some(number(hour, 24)? * 60 + number(minute, 60)?)
    };
    let (from, to) = text.split_once('-')?;
    Some((minute(from)?, minute(to)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_may_pass_midnight() {
        assert_eq!(window("02:00-04:30"), Some((120, 270)));
        for bad in ["", "2:00-4:00", "02:00", "24:00-01:00", "02:60-03:00", "+2:00-03:00"] {
            assert_eq!(window(bad), None, "{bad}");
        }
        let config: Config = toml::from_str(
            "repository = 'r'\nroot = 'r'\ndirectory = 'd'\ndevice = 'a'\ngroup = 'b'\nhardware = 'c'\n\
             window_utc = '23:00-01:00'",
        )
        .unwrap();
        assert!(config.faults().is_empty());
        for (minute, inside) in [(22 * 60 + 59, false), (23 * 60, true), (30, true), (60, false)] {
            assert_eq!(config.is_in_window(minute * 60_000), inside, "{minute}");
        }
    }
}
