//! Whether two reports differ, or only seem to.
//!
//! A difference of medians counts as real where the interval of their ratio (block bootstrap) leaves out 1, the ranks
//! agree (Mann-Whitney), and it is at least as large as the caller cares for; the level of both is 1 %, divided by the
//! number of points compared. It is a statement about these two runs: what changes from start to start of a process
//! (memory layout, frequency, neighbours) is in neither of them, so that a small real difference deserves a third run.

use serde::Serialize;

use super::report::{Point, Report};
use super::stats::{self, Estimate};
use crate::telemetry::machine::Machine;

/// Chance of a real difference where there is none, over all points.
const LEVEL: f64 = 0.01;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// What is not the same about the two machines; latencies of different machines compare machines.
    pub machines: Vec<String>,
    /// What else is not the same: model, runtime, input, load. One of them may be what is compared.
    pub differences: Vec<String>,
    pub points: Vec<Compared>,
    /// Points of only one report.
    pub unmatched: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    pub name: String,
    /// Medians, ms.
    pub a: f64,
    pub b: f64,
    /// `b` by `a`, with its interval at the level of the comparison.
    pub ratio: Estimate,
    pub p: f64,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// B is really faster than A.
    Faster,
    Slower,
    /// No difference that is real.
    Same,
}

impl Comparison {
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.points.iter().any(|point| point.verdict != Verdict::Same)
    }
}

/// Compares points of equal names; the only points of two reports whatever they are called. `least`: ratios nearer to 1
/// than this are of no interest, such as 0.02.
#[must_use]
pub fn compare(a: &Report, b: &Report, least: f64) -> Comparison {
    let pairs: Vec<(&Point, &Point)> = match (a.points.as_slice(), b.points.as_slice()) {
        ([a], [b]) => vec![(a, b)],
        (a, b) => {
            a.iter().filter_map(|a| b.iter().find(|b| b.name == a.name).map(|b| (a, b))).collect()
        }
    };
    let matched = |point: &&Point| {
        !pairs.iter().any(|(a, b)| std::ptr::eq(*a, *point) || std::ptr::eq(*b, *point))
    };
    let unmatched = a.points.iter().chain(&b.points).filter(matched);
    let level = LEVEL / pairs.len().max(1) as f64;
    Comparison {
        machines: machines(&a.machine, &b.machine),
        differences: differences(a, b, &pairs),
        points: pairs.iter().filter_map(|(a, b)| judge(a, b, level, least)).collect(),
        unmatched: unmatched.map(|point| point.name.clone()).collect(),
    }
}

fn judge(a: &Point, b: &Point, level: f64, least: f64) -> Option<Compared> {
    let ratio = stats::ratio_of_medians(&a.latencies, &b.latencies, 1.0 - level)?;
    let p = stats::mann_whitney(&a.latencies, &b.latencies);
    let is_large = (ratio.value - 1.0).abs() >= least;
    let verdict = match (ratio.low, ratio.high) {
        _ if p >= level || !is_large => Verdict::Same,
        (_, Some(high)) if high < 1.0 => Verdict::Faster,
        (Some(low), _) if low > 1.0 => Verdict::Slower,
        _ => Verdict::Same,
    };
    let name = if a.name.is_empty() { &b.name } else { &a.name };
    Some(Compared { name: name.clone(), a: a.median()?, b: b.median()?, ratio, p, verdict })
}

fn machines(a: &Machine, b: &Machine) -> Vec<String> {
    let governor = |machine: &Machine| machine.governor.clone().unwrap_or_default();
    let mebibytes = |machine: &Machine| (machine.memory_bytes >> 20).to_string();
    [
        ("processor", a.processor.clone(), b.processor.clone()),
        ("cores", a.cores.to_string(), b.cores.to_string()),
        ("memory, MiB", mebibytes(a), mebibytes(b)),
        ("governor", governor(a), governor(b)),
        ("GPUs", a.gpus.join(", "), b.gpus.join(", ")),
        ("kernel", a.kernel.clone(), b.kernel.clone()),
    ]
    .into_iter()
    .filter_map(changed)
    .collect()
}

fn differences(a: &Report, b: &Report, pairs: &[(&Point, &Point)]) -> Vec<String> {
    let whole = |report: &Report| {
        let input = format!(
            "{} ({})",
            report.input.name,
            &report.input.sha256[..12.min(report.input.sha256.len())]
        );
        let what = if report.daemon.is_some() { "daemon" } else { "sampler" };
        [
            ("measured", what.to_owned()),
            ("cdal", report.software_version.clone()),
            ("runtime", report.runtime.clone()),
            ("input", input),
            ("load", report.load.to_string()),
        ]
    };
    let mut found: Vec<String> = whole(a)
        .into_iter()
        .zip(whole(b))
        .filter_map(|((what, a), (_, b))| changed((what, a, b)))
        .collect();
    for (a, b) in pairs {
        let setting = |point: &Point| {
            let of = &point.setting;
            let threads = of.threads.map_or_else(|| "chosen".to_owned(), |count| count.to_string());
            [
                ("model", format!("{} {} ({})", of.model, of.model_version, of.model_digest)),
                ("time-steps", of.steps.to_string()),
                ("votes", of.votes.to_string()),
                ("stop", of.stop.clone()),
                ("provider", of.provider.clone()),
                ("threads", threads),
            ]
        };
        for ((what, a), (_, b)) in setting(a).into_iter().zip(setting(b)) {
            found.extend(changed((what, a, b)).filter(|said| !found.contains(said)));
        }
    }
    found
}

fn changed((what, a, b): (&str, String, String)) -> Option<String> {
    (a != b).then(|| format!("{what}: {a:?} and {b:?}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::report::{Input, Sample, Setting};
    use super::super::stats::uniforms;
    use super::super::{Load, SCHEMA};
    use super::*;

    /// 200 latencies of 100 ms and up to a tenth more, times `factor`.
    pub fn report(stream: u32, factor: f64) -> Report {
        let setting = Setting {
            model: "m".into(),
            model_version: "1".into(),
            model_digest: "00".into(),
            steps: 2,
            votes: 5,
            stop: "never".into(),
            provider: "cpu".into(),
            threads: None,
            precision: None,
            nodes: Vec::new(),
        };
        let sample = |uniform| {
            let latency = factor * (100.0 + 10.0 * uniform);
            let stages = vec![("decode".into(), 0.1 * latency), ("step t=0".into(), 0.9 * latency)];
            Sample { latency, stages }
        };
        let samples: Vec<Sample> = uniforms(stream, 5, 200).map(sample).collect();
        Report {
            schema: SCHEMA,
            machine: Machine {
                processor: "p".into(),
                cores: 2,
                memory_bytes: 8 << 30,
                governor: None,
                gpus: Vec::new(),
                kernel: "6".into(),
            },
            software_version: "1".into(),
            runtime: "r".into(),
            input: Input { name: "<i>".into(), sha256: "ab".into(), shapes: vec![[1, 2, 3]] },
            load: Load::Closed,
            warm_up: 1,
            points: vec![Point::new(String::new(), setting, &samples, 20.0)],
            cold_start: None,
            after_idle: None,
            peak_memory_bytes: None,
            energy: None,
            daemon: None,
        }
    }

    fn verdict(comparison: &Comparison) -> Verdict {
        comparison.points[0].verdict
    }

    #[test]
    fn a_difference_is_real_and_the_same_is_not() {
        let a = report(1, 1.0);
        assert_eq!(verdict(&compare(&a, &report(2, 1.1), 0.01)), Verdict::Slower);
        assert_eq!(verdict(&compare(&a, &report(2, 0.9), 0.01)), Verdict::Faster);
        assert_eq!(verdict(&compare(&a, &report(2, 1.1), 0.2)), Verdict::Same, "of no interest");
        assert!(!compare(&a, &a, 0.0).is_real());
        let real = (2..102).filter(|&stream| compare(&a, &report(stream, 1.0), 0.0).is_real());
        assert!(real.count() <= 5, "about one of a hundred by accident");
    }

    #[test]
    fn what_differs_is_named() {
        let (a, mut b) = (report(1, 1.0), report(2, 1.0));
        assert_eq!(compare(&a, &b, 0.0).machines, Vec::<String>::new());
        b.machine.cores = 8;
        b.points[0].setting.votes = 1;
        b.software_version = "2".into();
        let found = compare(&a, &b, 0.0);
        assert_eq!(found.machines, ["cores: \"2\" and \"8\""]);
        assert_eq!(found.differences, ["cdal: \"1\" and \"2\"", "votes: \"5\" and \"1\""]);
        b.points.push(Point { name: "other".into(), ..b.points[0].clone() });
        assert_eq!(compare(&a, &b, 0.0).unmatched, ["other"]);
    }

    #[test]
    fn a_report_is_read_as_it_is_written() {
        let report = report(1, 1.0);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
