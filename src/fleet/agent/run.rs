use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{
    Checked, Config, Content, Duty, Event, Examined, Examiner, FetchError, Load, Note, Refusal,
    Shelf, Standing, Status, Store, StoreError, Supply, Timing, Trouble, Verdict, shelf,
};
use crate::durable::failpoint;
use crate::fleet::collect::{self, Collector, Reporter};
use crate::fleet::rollout::{Failure, Named, Plan, Proof, Report};
use crate::fleet::{Release, SCHEMA};

/// How often the agent looks up.
const TICK: Duration = Duration::from_millis(250);

/// Golden runs on trial are measured so often; the best counts.
const RUNS: usize = 3;

/// Until it says something.
const NOT_ASKED: &str = "the collector has not said yet that this device may go on";

/// What is run: the device's own files with those of a release laid over them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blueprint {
    pub configuration: Option<PathBuf>,
    /// Folders by the name under which the configuration may refer to them.
    pub bundles: BTreeMap<String, PathBuf>,
}

/// The generation of the daemon that serves.
pub trait Served: Send + Sync {
    /// Takes images in and gets on with its jobs.
    fn is_healthy(&self) -> bool;

    /// Whether a job is under way or waits.
    fn is_busy(&self) -> bool;

    /// Runs the golden case on the loaded model.
    ///
    /// # Errors
    /// If it comes out wrong.
    fn golden(&self) -> Result<Duration, String>;
}

/// What came of handing over to another generation.
pub enum Swap {
    Serves(Arc<dyn Served>),
    /// It could not be made; the one before serves on.
    Stands {
        reason: String,
    },
    /// It was made and cannot serve; nothing serves now.
    Fell {
        reason: String,
    },
    /// The daemon stops.
    Stopping,
}

/// The agent of this process.
#[derive(Clone)]
pub struct Agent(Arc<Shared>);

struct Shared {
    store: Mutex<Store>,
    shelf: Shelf,
    config: Config,
    examiner: Examiner,
    /// The daemon's audit trail, which is shown to the collector.
    trail: Option<PathBuf>,
    stopped: AtomicBool,
}

impl Agent {
    /// Opens the agent's folder and counts this start, durably, before anything may be loaded.
    ///
    /// `trail`: the daemon's audit trail, where it keeps one.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn open(
        config: Config,
        examiner: Examiner,
        trail: Option<PathBuf>,
    ) -> Result<Self, StoreError> {
        let mut store = Store::open(&config.directory)?;
        let shelf = Shelf::open(&config.directory)?;
        tell(store.apply(Event::Boot, now_ms())?.as_ref());
        if config.collector.is_some() {
            store.apply(Event::Hold(Some(NOT_ASKED.to_owned())), now_ms())?;
        } else {
            store.apply(Event::Hold(None), now_ms())?;
        }
        let removed = shelf.tidy(&store.needed()?)?;
        if removed > 0 {
            tracing::info!(removed, "left-overs of releases removed");
        }
        let stopped = AtomicBool::new(false);
        let store = Mutex::new(store);
        Ok(Self(Arc::new(Shared { store, shelf, config, examiner, trail, stopped })))
    }

    /// How this device stands now.
    ///
    /// # Errors
    /// If the agent's folder cannot be read.
    pub fn status(&self) -> Result<Status, StoreError> {
        Status::of(&self.0.store(), now_ms())
    }

    /// A model is on trial: what became of one of its jobs. Of another content nothing is taken.
    pub fn job(&self, content: &Content, event: Event) {
        let mut store = self.0.store();
        let on_trial = store.machine().trial().map(|trial| &trial.candidate.named);
        if content.named().is_some()
            && content.named() == on_trial
            && let Err(error) = apply(&mut store, event)
        {
            tracing::error!(%error, "a job on trial is not counted");
        }
    }

    /// Runs on a thread of its own until [`Agent::stop`]. `swap` makes the generation of a content and hands over to it;
    /// the first call makes the first.
    ///
    /// # Errors
    /// If there is no thread.
    pub fn start(
        &self,
        supply: Box<dyn Supply>,
        swap: impl FnMut(&Load, &Blueprint) -> Swap + Send + 'static,
    ) -> std::io::Result<()> {
        let driver = Driver {
            shared: Arc::clone(&self.0),
            supply,
            swap,
            serves: None,
            ask_at: Instant::now(),
            seen: Instant::now(),
            told: None,
        };
        if let Some(collector) = self.0.config.collector.clone() {
            let reporter = Reporter::new(
                Collector::new(collector),
                self.0.config.without_collector,
                self.0.trail.clone(),
            );
            let shared = Arc::clone(&self.0);
            let name = "fleet-report".to_owned();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new()
                .name(name)
                .spawn(move || runtime.block_on(report(&shared, reporter)))?;
        }
        std::thread::Builder::new().name("fleet".to_owned()).spawn(move || driver.run()).map(drop)
    }

    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

fn apply(store: &mut Store, event: Event) -> Result<(), StoreError> {
    tell(store.apply(event, now_ms())?.as_ref());
    Ok(())
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn happened(&self, event: Event) -> Result<(), StoreError> {
        apply(&mut self.store(), event)
    }

    fn blueprint(&self, release: &Release) -> Blueprint {
        let bundle = |(name, bundle)| (String::clone(name), self.shelf.bundle(bundle));
        Blueprint {
            configuration: release.configuration.as_ref().map(|blob| self.shelf.blob(blob)),
            bundles: release.bundles.iter().map(bundle).collect(),
        }
    }

    /// Of what is loaded; in safe mode the device's own.
    fn blueprint_of(&self, load: &Load) -> Result<Blueprint, StoreError> {
        let Load::Run(Content::Release(named)) = load else { return Ok(Blueprint::default()) };
        Ok(self.blueprint(&self.manifest(named)?))
    }

    fn report(&self) -> Report {
        let store = self.store();
        let machine = store.machine();
        let Config { device, group, hardware, .. } = &self.config;
        let cut = |text: String| text.chars().filter(|c| !c.is_control()).take(200).collect();
        Report {
            device: device.clone(),
            group: group.clone(),
            hardware: hardware.clone(),
            cdal: env!("CARGO_PKG_VERSION").to_owned(),
            running: machine.last_good().named().cloned(),
            target: machine.candidate().map(|candidate| candidate.named.clone()),
            phase: machine.phase(),
            waits_for: machine.waits_for(now_ms()).map(cut),
            failed: machine
                .failure()
                .map(|failure| Failure { reason: cut(failure.reason), release: failure.release }),
            counters: BTreeMap::new(),
            audit: Proof::default(),
        }
    }

    fn manifest(&self, named: &Named) -> Result<Release, StoreError> {
        let store = self.store();
        store.release(&named.digest)?.ok_or_else(|| StoreError::Unreadable {
            directory: store.directory().to_owned(),
            problem: format!("the manifest of release {} is gone", named.counter),
        })
    }

    /// Offers a release to the machine. Why it is not taken up, if it is not.
    fn offer(
        &self,
        store: &mut Store,
        (release, digest): (&Release, &str),
        floors: &str,
        offer: Offer,
    ) -> Result<Option<String>, StoreError> {
        if let Some(problem) = self.passed_over(release, digest) {
            return Ok(Some(problem));
        }
        match offer(store, release, digest, floors, now_ms())? {
            Ok(Some(note)) => {
                tell(Some(&note));
                // What the collector said was about another release.
                if self.config.collector.is_some() {
                    apply(store, Event::Hold(Some(NOT_ASKED.to_owned())))?;
                }
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(refusal) => Ok(Some(refusal.to_string())),
        }
    }

    /// Why a release is nothing for this device; nothing changes then.
    fn passed_over(&self, release: &Release, digest: &str) -> Option<String> {
        let Config { group, hardware, .. } = &self.config;
        let counter = release.counter;
        let version = semver::Version::parse(env!("CARGO_PKG_VERSION")).expect("cargo checks it");
        let problem = if release.schema != SCHEMA {
            format!("is of schema {}, this program reads {SCHEMA}", release.schema)
        } else if !release.cdal.matches(&version) {
            format!("needs cdal {}, this is {version}", release.cdal)
        } else if !release.hardware.contains(hardware) {
            let list = release.hardware.join(", ");
            format!("is for the hardware {list}; fleet.hardware of this device is {hardware}")
        } else if !release.groups.contains(group) {
            let list = release.groups.join(", ");
            format!("is for the groups {list}; fleet.group of this device is {group}")
        } else if let Err(problem) = shelf::check(release) {
            problem
        } else if let Err(error) = Plan::new(release.rollout.clone(), digest) {
            error.to_string()
        } else {
            return None;
        };
        Some(format!("release {counter} {problem}"))
    }
}

/// [`Store::offer`] or [`Store::offer_instead`].
type Offer =
    fn(&mut Store, &Release, &str, &str, u64) -> Result<Result<Option<Note>, Refusal>, StoreError>;

/// The agent's thread.
struct Driver<S> {
    shared: Arc<Shared>,
    supply: Box<dyn Supply>,
    swap: S,
    serves: Option<(Load, Arc<dyn Served>)>,
    ask_at: Instant,
    /// When health was looked at last.
    seen: Instant,
    /// What was logged last of a release that is not taken: once is enough.
    told: Option<String>,
}

impl<S: FnMut(&Load, &Blueprint) -> Swap> Driver<S> {
    fn run(mut self) {
        while !self.shared.is_stopped() {
            match self.step() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::error!(%error, "the update agent is held up"),
            }
            std::thread::sleep(TICK);
        }
    }

    /// One look at everything. `false` when the daemon stops.
    fn step(&mut self) -> Result<bool, StoreError> {
        if !self.reconcile()? {
            return Ok(false);
        }
        if self.ask_at <= Instant::now() {
            self.ask()?;
            self.ask_at = Instant::now() + self.shared.config.poll;
        }
        self.shared.happened(Event::Clock)?;
        let duty = self.shared.store().machine().duty(now_ms());
        match duty {
            Duty::Place(named) => {
                let rollout = self.shared.manifest(&named)?.rollout;
                let Config { device, group, .. } = &self.shared.config;
                // A plan that cannot be followed was passed over.
                if let Ok(plan) = Plan::new(rollout, named.digest) {
                    let start_ms = plan.place(device, group).start_ms;
                    self.shared.happened(Event::Placed { start_ms })?;
                }
            }
            Duty::Download(named) => self.download(&named)?,
            Duty::Validate(named) => self.validate(&named)?,
            Duty::Swap(_) if self.is_safe() => {
                // The trial and its first start are on the disk before anything of the candidate is loaded.
                let both = [Event::SafePoint, Event::Boot];
                let note = self.shared.store().apply_all(both, now_ms())?;
                tell(note.as_ref());
                return self.reconcile();
            }
            Duty::Rest | Duty::Wait { .. } | Duty::Swap(_) => {}
            Duty::Watch(_) => self.watch()?,
        }
        Ok(true)
    }

    /// Makes what serves be what should. `false` when the daemon stops.
    fn reconcile(&mut self) -> Result<bool, StoreError> {
        loop {
            let wanted = self.shared.store().machine().load();
            if self.serves.as_ref().is_some_and(|(load, _)| *load == wanted) {
                return Ok(true);
            }
            let blueprint = self.shared.blueprint_of(&wanted)?;
            if self.shared.store().machine().trial().is_some() {
                failpoint::reach("fleet.swapping");
            }
            let (reason, stands) = match (self.swap)(&wanted, &blueprint) {
                Swap::Serves(served) => {
                    self.serves = Some((wanted.clone(), served));
                    self.seen = Instant::now();
                    if let Load::Run(content) = wanted {
                        self.shared.happened(Event::Loaded(content))?;
                    }
                    continue;
                }
                Swap::Stopping => return Ok(false),
                Swap::Stands { reason } => (reason, true),
                Swap::Fell { reason } => (reason, false),
            };
            if !stands {
                self.serves = None;
            }
            if let Load::Run(content) = wanted {
                self.shared.happened(Event::LoadFailed { content, reason })?;
            } else {
                tracing::error!(reason, "not even safe mode");
                return Ok(true);
            }
        }
    }

    fn ask(&mut self) -> Result<(), StoreError> {
        let floors = self.shared.store().fact("floors")?;
        let (standing, checked) = match self.supply.check(floors.as_deref()) {
            Ok(checked) => (Standing::Fine, Some(checked)),
            Err(Trouble::TimeUntrusted(reason)) => (Standing::TimeUntrusted(reason), None),
            Err(Trouble::Refused(reason)) => (Standing::Refused(reason), None),
            Err(Trouble::Unreachable(reason)) => (Standing::Unreachable(reason), None),
        };
        let mut passed_over = None;
        match checked {
            Some(checked) => passed_over = self.take_up(checked)?,
            None => {
                if let Some(floors) = self.supply.floors() {
                    self.shared.store().set_fact("floors", Some(&floors))?;
                }
            }
        }
        let trouble = match &standing {
            Standing::TimeUntrusted(reason)
            | Standing::Refused(reason)
            | Standing::Unreachable(reason) => Some(reason.clone()),
            Standing::Fine | Standing::NotAsked => passed_over,
        };
        self.shared.happened(Event::Asked(standing))?;
        if trouble != self.told {
            if let Some(reason) = &trouble {
                tracing::warn!("no update is taken: {reason}");
            }
            self.told = trouble;
        }
        Ok(())
    }

    /// Takes up the newest release; where that was given up here, the newest of the others that was not and is above
    /// what runs. Why the newest is not taken, if it is not.
    fn take_up(&mut self, checked: Checked) -> Result<Option<String>, StoreError> {
        let Checked { newest, older, floors } = checked;
        let mut store = self.shared.store();
        store.set_fact("floors", Some(&floors))?;
        let mut passed_over = None;
        if let Some((release, digest)) = newest {
            let is_given_up =
                |store: &Store, digest: &str| store.machine().quarantine().contains_key(digest);
            passed_over =
                self.shared.offer(&mut store, (&release, &digest), &floors, Store::offer)?;
            if is_given_up(&store, &digest) {
                let floor = store.machine().last_good().named().map_or(0, |named| named.counter);
                let way_back = older.iter().find(|(release, digest)| {
                    release.counter > floor && !is_given_up(&store, digest)
                });
                if let Some((release, digest)) = way_back {
                    let problem = self.shared.offer(
                        &mut store,
                        (release, digest),
                        &floors,
                        Store::offer_instead,
                    )?;
                    passed_over = problem.or(passed_over);
                }
            }
        }
        store.set_fact("passed_over", passed_over.as_deref())?;
        Ok(passed_over)
    }

    fn download(&mut self, named: &Named) -> Result<(), StoreError> {
        let release = self.shared.manifest(named)?;
        let shared = Arc::clone(&self.shared);
        let is_stopped = || shared.is_stopped();
        let limits = &self.shared.config.download;
        match self.shared.shelf.stage(&release, self.supply.as_mut(), limits, &is_stopped) {
            Ok(()) => self.shared.happened(Event::Downloaded),
            Err(FetchError::Stopped) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the release is not here yet");
                self.shared.happened(Event::DownloadFailed { reason: error.to_string() })
            }
        }
    }

    fn validate(&mut self, named: &Named) -> Result<(), StoreError> {
        let is_stopped = || self.shared.is_stopped();
        let examine = |blueprint: &Blueprint| self.shared.examiner.examine(blueprint, &is_stopped);
        let candidate = self.shared.blueprint(&self.shared.manifest(named)?);
        let verdict = match examine(&candidate) {
            Examined::Stopped => return Ok(()),
            Examined::Fault(reason) => Verdict::Deterministic(reason),
            Examined::TimedOut(reason) => Verdict::TimedOut(reason),
            Examined::Transient(reason) => Verdict::Transient(reason),
            Examined::Sound { golden_ms: candidate_ms } => {
                let last_good = Load::Run(self.shared.store().machine().last_good().clone());
                // The one that runs now, measured the same way; if it cannot run, it is no measure.
                let last_good_ms = match examine(&self.shared.blueprint_of(&last_good)?) {
                    Examined::Stopped => return Ok(()),
                    Examined::Sound { golden_ms } => Some(golden_ms),
                    _ => None,
                };
                Verdict::Sound(Timing { candidate_ms, last_good_ms })
            }
        };
        if let Verdict::Transient(reason) | Verdict::TimedOut(reason) = &verdict {
            tracing::warn!(reason, "the release could not be examined; will try again");
        }
        self.shared.happened(Event::Validation(verdict))
    }

    fn is_safe(&self) -> bool {
        let is_busy = self.serves.as_ref().is_some_and(|(_, served)| served.is_busy());
        !is_busy || self.shared.config.is_in_window(now_ms())
    }

    /// Counts time in good health, and runs the golden case where no jobs come in.
    fn watch(&mut self) -> Result<(), StoreError> {
        let Some((_, served)) = &self.serves else { return Ok(()) };
        let passed = self.seen.elapsed();
        if passed < 2 * TICK {
            return Ok(());
        }
        self.seen = Instant::now();
        if served.is_healthy() {
            self.shared.happened(Event::Healthy(passed))?;
        }
        let lacks_jobs = |store: &Store| {
            store.machine().trial().is_some_and(|trial| trial.jobs < trial.candidate.probation.jobs)
        };
        let is_wanted = lacks_jobs(&self.shared.store());
        if !is_wanted || served.is_busy() {
            return Ok(());
        }
        let mut best: Option<Duration> = None;
        for _ in 0..RUNS {
            match served.golden() {
                Ok(time) => best = Some(best.map_or(time, |best| best.min(time))),
                Err(reason) => return self.shared.happened(Event::Golden(Err(reason))),
            }
        }
        // Beside a job that came in meanwhile the time says nothing.
        match best {
            Some(time) if !served.is_busy() => self.shared.happened(Event::Golden(Ok(time))),
            _ => Ok(()),
        }
    }
}

/// Tells the collector how this device is, now and then and when that changes, no faster than it takes reports, and hears whether it may go on.
async fn report(shared: &Shared, mut reporter: Reporter) {
    let mut told: Option<(Report, Instant)> = None;
    while !shared.is_stopped() {
        let report = shared.report();
        let is_due = told.as_ref().is_none_or(|(before, at)| {
            let is_same = before.phase == report.phase && before.target == report.target;
            let is_wanted =
                !is_same || reporter.is_refused() || at.elapsed() >= shared.config.report;
            is_wanted && at.elapsed() >= reporter.gap()
        });
        if is_due {
            told = Some((report.clone(), Instant::now()));
            let target = report.target.clone();
            let hold = match reporter.report(report).await {
                collect::Standing::Go => None,
                collect::Standing::Hold(reason) => Some(reason),
            };
            let mut store = shared.store();
            let aims_at = store.machine().candidate().map(|candidate| &candidate.named);
            if aims_at == target.as_ref()
                && let Err(error) = apply(&mut store, Event::Hold(hold))
            {
                tracing::error!(%error, "the collector's word is not kept");
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

fn tell(note: Option<&Note>) {
    match note {
        None => {}
        Some(Note::Accepted { release }) => {
            tracing::info!(release = release.counter, "a new release is verified");
        }
        Some(Note::Trial { from, to }) => {
            tracing::info!(release = to.counter, before = %from, "the release goes on trial");
        }
        Some(Note::Committed { release, .. }) => {
            tracing::info!(release = release.counter, "the release has passed its trial");
        }
        Some(Note::GivenUp { release, to, reason, swapped: true }) => {
            tracing::error!(release = release.counter, to = %to, "rolled back: {reason}");
        }
        Some(Note::GivenUp { release, reason, swapped: false, .. }) => {
            tracing::error!(release = release.counter, "the release is not taken: {reason}");
        }
        Some(Note::SafeMode { reason }) => {
            tracing::error!("nothing can be loaded; images are taken in and wait: {reason}");
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
