//! A daemon measured from outside: cases sent by C-STORE, masks taken by C-STORE, the bare sampler in turns with it.
//!
//! A case's latency counts from the last byte that left towards the daemon to the destination's Success. The daemon's
//! own metrics tell what of it the model took; the rest is overhead. Both ends are in this process, on one clock.

mod own;
mod peer;
mod scrape;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::peer::{Material, Receiver, Route, Sender};
use self::scrape::{Metrics, Scrape};
use super::direct::Stages;
use super::input::files;
use super::stats::{self, Estimate};
use super::{
    BenchError, Choice, Clock, Daemon, Direct, Inputs, Load, Memory, Monotonic, Point, Report,
    Sample, ms,
};
use crate::engine::Runtime;
use crate::telemetry::energy::Meter;

pub use self::own::Own;

/// Longest wait for one case.
const PATIENCE: Duration = Duration::from_mins(5);
/// How often daemon and bare sampler take turns, at most.
const ROUNDS: usize = 20;
/// Cases of the bare sampler, at most: it is the measure, not what is measured.
const BARE: usize = 200;
/// As the daemon counts them, in the order in which a case passes them.
const STAGES: [&str; 8] =
    ["queue", "decode", "prepare", "condition", "denoise", "assemble", "encode", "deliver"];
const MODEL: [&str; 4] = ["prepare", "condition", "denoise", "assemble"];

/// What [`measure`] does.
#[derive(Debug)]
pub struct Plan {
    /// The model that the daemon serves; the bare sampler runs it too.
    pub choice: Choice,
    pub target: Target,
    pub load: Load,
    pub cases: usize,
    pub warm_up: usize,
    /// Scanners that send at once.
    pub associations: usize,
}

#[derive(Debug)]
pub enum Target {
    /// One that is started for it.
    Own(Own),
    Running {
        /// Host and port.
        address: String,
        ae_title: String,
        /// Host and port of its HTTP, where its metrics are to be read.
        metrics: Option<String>,
        /// Where it sends its masks: this program listens there.
        receive: SocketAddr,
        /// Whether a series ends with its association.
        release_each: bool,
    },
}

/// One case that went through.
struct Through {
    /// From the last byte in (in an open loop: from when that was meant to be) to Success.
    latency: Duration,
    acknowledged: Instant,
    stages: Stages,
}

/// Everything a round needs.
struct Stand<'a> {
    plan: &'a Plan,
    /// Distinguishes the UIDs of this run.
    name: String,
    material: &'a Material,
    receiver: &'a Receiver,
    metrics: Option<Metrics>,
}

/// Measures a daemon and, in turns with it, the bare sampler.
///
/// # Errors
/// If the model does not load, the daemon does not start or take a case, or a mask does not come back.
pub fn measure(
    runtime: &Arc<Runtime>,
    plan: &Plan,
    inputs: Option<Inputs>,
    tell: &mut dyn FnMut(&str),
) -> Result<Report, BenchError> {
    tell("loading");
    let choice = [(String::new(), plan.choice.clone())];
    let bare = Direct::load(runtime, &choice)?.remove(0);
    let inputs = match inputs {
        Some(inputs) => inputs,
        None => Inputs::made_for(&bare.segmenter.bundle().manifest)?,
    };
    let input = inputs.of(0);
    let material = Material::read(&files(input)?)?;
    let receive = match &plan.target {
        Target::Own(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        Target::Running { receive, .. } => *receive,
    };
    let receiver = Receiver::start(receive)?;
    let (own, route, metrics) = target(plan, &material, receiver.address)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let stand = Stand {
        plan,
        name: format!("{} {}", since.as_nanos(), std::process::id()),
        material: &material,
        receiver: &receiver,
        metrics,
    };
    stand.check_model(&bare)?;
    let senders = (0..plan.associations).map(|_| Sender::new(&route, &material));
    let mut senders = senders.collect::<Result<Vec<_>, _>>()?;

    tell(&format!("warming up, {} cases each", plan.warm_up));
    for _ in 0..plan.warm_up {
        bare.run(input)?;
    }
    stand.round(&mut senders, 0, plan.warm_up)?;
    tell(&format!("measuring {} cases, {} at once, {}", plan.cases, plan.associations, plan.load));
    let meter = Meter::start(Path::new("/sys"));
    let rounds = stand.rounds(&mut senders, &bare, input, tell)?;
    let energy = meter.stop();

    let setting = bare.setting(runtime)?;
    let [of_bare, of_daemon] = [
        Point::new("bare sampler".into(), setting.clone(), &rounds.bare, rounds.bare_seconds),
        Point::new("daemon".into(), setting, &rounds.daemon, rounds.daemon_seconds),
    ];
    let alone = plan.associations == 1;
    let daemon = Daemon {
        address: route.address.clone(),
        associations: plan.associations,
        over_model: over_model(&rounds.daemon).filter(|_| alone && stand.metrics.is_some()),
        over_bare: stats::difference_of_medians(&of_bare.latencies, &of_daemon.latencies)
            .filter(|_| alone),
        throughput_share: stats::median_estimate(&rounds.shares).filter(|_| !alone),
        disk_sync: own.as_ref().map(|own| own.disk_sync),
        memory_growth: growth(&rounds.memory),
        memory: rounds.memory,
    };
    let points = vec![of_bare, of_daemon];
    let report = Report::new(runtime, inputs.facts, plan.load, plan.warm_up, points);
    Ok(Report { energy, daemon: Some(daemon), ..report })
}

/// Where cases are sent and figures are read. The daemon of our own lives as long as what is returned first.
fn target(
    plan: &Plan,
    material: &Material,
    receive: SocketAddr,
) -> Result<(Option<own::Running>, Route, Option<Metrics>), BenchError> {
    Ok(match &plan.target {
        Target::Own(own) => {
            let slices = material.count();
            let running = own::start(own, &plan.choice, slices, plan.associations, receive)?;
            let route = Route {
                address: running.dicom.clone(),
                ae_title: own::AE_TITLE.to_owned(),
                patience: PATIENCE,
                release_each: false,
            };
            let metrics = Metrics(running.http.clone());
            (Some(running), route, Some(metrics))
        }
        Target::Running { address, ae_title, metrics, release_each, .. } => {
            let route = Route {
                address: address.clone(),
                ae_title: ae_title.clone(),
                patience: PATIENCE,
                release_each: *release_each,
            };
            (None, route, metrics.clone().map(Metrics))
        }
    })
}

/// What all rounds gave.
#[derive(Default)]
struct Rounds {
    bare: Vec<Sample>,
    bare_seconds: f64,
    daemon: Vec<Sample>,
    daemon_seconds: f64,
    /// Of each round: the daemon's cases a second by the sampler's.
    shares: Vec<f64>,
    memory: Vec<Memory>,
}

impl Stand<'_> {
    /// # Errors
    /// If the daemon says that it serves another model.
    fn check_model(&self, bare: &Direct) -> Result<(), BenchError> {
        let Some(metrics) = &self.metrics else { return Ok(()) };
        let served = metrics.read()?.model_digest;
        let own = &bare.segmenter.bundle().digest;
        if served.is_some_and(|served| served != *own) {
            return Err(BenchError::Daemon(
                "it serves another model than --bundle; give the bundle that it was started with"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn rounds(
        &self,
        senders: &mut [Sender<'_>],
        bare: &Direct,
        input: &Path,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Rounds, BenchError> {
        let Plan { cases, associations, load, warm_up, .. } = *self.plan;
        let count = match load {
            Load::Closed => (cases / (4 * associations)).clamp(1, ROUNDS),
            Load::Open { .. } => 1,
        };
        let mut rounds = Rounds::default();
        for round in 0..count {
            let of = |cases: usize| (round + 1) * cases / count - round * cases / count;
            let mut sampler_ms = 0.0;
            let bare_cases = of(cases.min(BARE)).max(1);
            bare.run(input)?; // the caches are the daemon's
            for _ in 0..bare_cases {
                let started = Instant::now();
                let stages = bare.run(input)?;
                let latency = ms(started.elapsed());
                sampler_ms += stages
                    .iter()
                    .filter(|(name, _)| name != "decode" && name != "encode")
                    .map(|(_, time)| time)
                    .sum::<f64>();
                rounds.bare_seconds += latency / 1e3;
                rounds.bare.push(Sample { latency, stages });
            }
            let first = warm_up + round * cases / count;
            let through = self.round(senders, first, of(cases))?;
            let seconds = match load {
                Load::Closed if associations == 1 => {
                    through.iter().map(|case| case.latency.as_secs_f64()).sum()
                }
                _ => between_acknowledgements(&through),
            };
            rounds.daemon_seconds += seconds;
            rounds
                .shares
                .push((through.len() as f64 / seconds) / (bare_cases as f64 / (sampler_ms / 1e3)));
            rounds.daemon.extend(
                through
                    .into_iter()
                    .map(|case| Sample { latency: ms(case.latency), stages: case.stages }),
            );
            if let Some(metrics) = &self.metrics
                && let Some(resident_bytes) = metrics.read()?.resident_bytes
            {
                let cases = warm_up + rounds.daemon.len();
                rounds.memory.push(Memory { cases, resident_bytes });
                tell(&format!("{cases} cases, the daemon holds {} MiB", resident_bytes >> 20));
            }
        }
        Ok(rounds)
    }

    /// Sends `cases` over all associations and waits for their masks.
    fn round(
        &self,
        senders: &mut [Sender<'_>],
        first: usize,
        cases: usize,
    ) -> Result<Vec<Through>, BenchError> {
        // Writing them takes time that is not the daemon's.
        let made: Vec<_> = (first..first + cases)
            .map(|number| self.material.case(&format!("{} {number}", self.name)))
            .collect::<Result<_, _>>()?;
        senders.iter_mut().try_for_each(Sender::prepare)?;
        let before = self.metrics.as_ref().map(Metrics::read).transpose()?;
        let (alone, next) = (senders.len() == 1, AtomicUsize::new(0));
        let schedule = self.plan.load.schedule(cases);
        let clock = Monotonic::start();
        let send_all = |sender: &mut Sender<'_>| {
            let mut done = Vec::new();
            let mut before = before.clone();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(case) = made.get(number) else { break };
                let late = schedule.as_ref().map_or(Duration::ZERO, |starts| {
                    clock.wait_until(starts[number]);
                    clock.now().saturating_sub(starts[number])
                });
                let last_byte = sender.send(case)?;
                let acknowledged = self.receiver.wait(&case.study, PATIENCE)?;
                let latency = late + acknowledged.saturating_duration_since(last_byte);
                let mut stages = Stages::new();
                if let (true, Some(metrics), Some(known)) = (alone, &self.metrics, &mut before) {
                    let after = metrics.read_after(known.delivered() + 1)?;
                    stages = taken(known, &after, Some(latency));
                    *known = after;
                }
                done.push(Through { latency, acknowledged, stages });
            }
            Ok::<_, BenchError>(done)
        };
        let mut through = std::thread::scope(|scope| {
            let threads: Vec<_> =
                senders.iter_mut().map(|sender| scope.spawn(|| send_all(sender))).collect();
            let all = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            all.collect::<Result<Vec<_>, _>>()
                .map(|of_each| of_each.into_iter().flatten().collect::<Vec<_>>())
        })?;
        senders.iter_mut().for_each(Sender::release); // a daemon breaks off those that are silent
        through.sort_by_key(|case| case.acknowledged);
        if let (false, Some(metrics), Some(before)) = (alone, &self.metrics, &before) {
            // Of several at once only the means are known.
            let after = metrics.read_after(before.delivered() + cases as u64)?;
            let stages = taken(before, &after, None);
            for case in &mut through {
                case.stages.clone_from(&stages);
            }
        }
        Ok(through)
    }
}

/// Mean time of each stage between two looks; with a `latency`, what is left of it too.
fn taken(before: &Scrape, after: &Scrape, latency: Option<Duration>) -> Stages {
    let times = STAGES.into_iter().filter_map(|stage| Some((stage, after.since(before, stage)?)));
    let mut stages: Stages = times.map(|(stage, time)| (stage.to_owned(), time)).collect();
    if let Some(latency) = latency {
        let known: f64 = stages.iter().map(|(_, time)| time).sum();
        stages.push(("other".to_owned(), ms(latency) - known));
    }
    stages
}

/// From the first to the last: filling and draining the daemon left out.
fn between_acknowledgements(through: &[Through]) -> f64 {
    let (Some(first), Some(last)) = (through.first(), through.last()) else { return 0.0 };
    let seconds = (last.acknowledged - first.acknowledged).as_secs_f64();
    // One case less than were acknowledged took this long.
    seconds * through.len() as f64 / (through.len() - 1).max(1) as f64
}

/// Median over the cases of latency less the model's part of it.
fn over_model(samples: &[Sample]) -> Option<Estimate> {
    let rest = |sample: &Sample| {
        let model = sample.stages.iter().filter(|(name, _)| MODEL.contains(&name.as_str()));
        sample.latency - model.map(|(_, time)| time).sum::<f64>()
    };
    stats::median_estimate(&samples.iter().map(rest).collect::<Vec<_>>())
}

/// Bytes in 1,000 cases, without the first quarter: caches fill there.
fn growth(memory: &[Memory]) -> Option<f64> {
    let settled = &memory[memory.len() / 4..];
    let points: Vec<(f64, f64)> = settled
        .iter()
        .map(|memory| (memory.cases as f64 / 1e3, memory.resident_bytes as f64))
        .collect();
    stats::slope(&points)
}
