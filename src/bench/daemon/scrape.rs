//! What the daemon says of itself at `/metrics`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::bench::BenchError;

const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks for a case that is not counted yet.
const PAUSE: Duration = Duration::from_millis(1);
/// A name, its labels and its value.
const STAGE: &str = "cdal_stage_seconds_";

/// One moment's figures.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Scrape {
    /// Seconds and cases of each stage so far.
    stages: BTreeMap<String, (f64, u64)>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) model_digest: Option<String>,
}

/// Where the figures are read, such as `127.0.0.1:8080`.
#[derive(Debug, Clone)]
pub(super) struct Metrics(pub(super) String);

impl Metrics {
    /// # Errors
    /// If there is no answer, or another one.
    pub(super) fn read(&self) -> Result<Scrape, BenchError> {
        let fault =
            |problem: String| BenchError::Daemon(format!("metrics at {}: {problem}", self.0));
        let get = || {
            let mut stream = TcpStream::connect(&self.0)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            // 1.0: the answer ends with the connection.
            write!(stream, "GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.0)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = get().map_err(|error| fault(error.to_string()))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(fault(format!("it answered {status:?}")));
        }
        Ok(Scrape::parse(body))
    }

    /// Reads when `delivered` cases have been counted as delivered.
    ///
    /// # Errors
    /// As `read`, or if they are not in time.
    pub(super) fn read_after(&self, delivered: u64) -> Result<Scrape, BenchError> {
        let started = Instant::now();
        loop {
            let scrape = self.read()?;
            if scrape.delivered() >= delivered {
                return Ok(scrape);
            }
            if started.elapsed() > PATIENCE {
                return Err(BenchError::Daemon("it does not count a case that arrived".to_owned()));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Scrape {
    fn parse(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            if let Some(rest) = name.strip_prefix(STAGE) {
                let Some(stage) = label(rest, "stage") else { continue };
                let entry = scrape.stages.entry(stage.to_lowercase()).or_default();
                if rest.starts_with("sum{") {
                    entry.0 = value.parse().unwrap_or_default();
                } else if rest.starts_with("count{") {
                    entry.1 = value.parse().unwrap_or_default();
                }
            } else if name == "cdal_resident_bytes" {
                scrape.resident_bytes = value.parse().ok();
            } else if name.starts_with("cdal_build_info{") {
                scrape.model_digest = label(name, "model_digest").map(str::to_owned);
            }
        }
        scrape
    }

    /// Cases that every destination has.
    pub(super) fn delivered(&self) -> u64 {
        self.stages.get("deliver").map_or(0, |(_, count)| *count)
    }

    /// Mean ms of a stage over the cases since `before`.
    pub(super) fn since(&self, before: &Self, stage: &str) -> Option<f64> {
        let (sum, count) = self.stages.get(stage)?;
        let (sum_before, count_before) = before.stages.get(stage).copied().unwrap_or_default();
        let cases = count.checked_sub(count_before).filter(|cases| *cases > 0)?;
        Some((sum - sum_before) * 1e3 / cases as f64)
    }
}

fn label<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_taken_apart_by_case() {
        let before = "cdal_stage_seconds_sum{stage=\"Queue\"} 0.5\ncdal_stage_seconds_count{stage=\"Queue\"} 10\n";
        let after = "# TYPE cdal_stage_seconds histogram\ncdal_stage_seconds_sum{stage=\"Queue\"} 0.56\n\
                     cdal_stage_seconds_count{stage=\"Queue\"} 12\n\
                     cdal_stage_seconds_bucket{le=\"0.001\",stage=\"Queue\"} 3\n\
                     cdal_stage_seconds_count{stage=\"Deliver\"} 7\n\
                     cdal_build_info{version=\"1\",model=\"m\",model_digest=\"abc\"} 1\n\
                     cdal_resident_bytes 4096\n# EOF\n";
        let (before, after) = (Scrape::parse(before), Scrape::parse(after));
        assert!((after.since(&before, "queue").unwrap() - 30.0).abs() < 1e-9);
        assert_eq!(after.since(&after, "queue"), None);
        assert_eq!((after.delivered(), after.resident_bytes), (7, Some(4096)));
        assert_eq!(after.model_digest.as_deref(), Some("abc"));
    }
}
