use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use super::output::OutputError;
use super::{ExitStatus, Misconfigured};
use crate::config;
use crate::domain::duration;
use crate::spool::shared::{Means, Shared};
use crate::spool::{
    Count, DeliveryState, Desk, Identity, Item, JobId, JobReport, JobState, Letter, Queue,
    SpoolError, Statement, now_ms,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// What waits for a person, and each destination's account
    List {
        #[command(flatten)]
        at: At,
        /// Also what goes its way and what is done
        #[arg(long)]
        all: bool,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// One job with its deliveries
    Show {
        #[command(flatten)]
        at: At,
        /// Job
        id: String,
        /// With the UIDs of its series, objects and results
        #[arg(long)]
        uids: bool,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Run failed and quarantined jobs again, send dead letters again
    Retry {
        #[command(flatten)]
        at: At,
        /// Jobs and deliveries
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// Everything that failed; what is in quarantine has to be named
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Give up jobs and deliveries for good
    Drop {
        #[command(flatten)]
        at: At,
        /// Jobs and deliveries
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct At {
    /// The daemon's configuration file; a later one wins over an earlier one
    #[arg(long, required = true)]
    config: Vec<PathBuf>,
    /// Of the queue that devices share, not of this device's spool
    #[arg(long)]
    shared: bool,
}

impl At {
    fn desk(&self) -> anyhow::Result<Counter> {
        let files: Vec<_> = self.config.iter().map(PathBuf::as_path).collect();
        let settings = config::load(&files)?.settings;
        if !self.shared {
            return Ok(Counter::Own(Box::new(Desk::open(settings.spool)?)));
        }
        let absent = Misconfigured("the configuration has no section [shared]");
        let shared = settings.shared.ok_or_else(|| anyhow!("add it, or leave --shared out"));
        let shared = shared.context(absent)?;
        let shared = Shared::open(shared, settings.spool, Means::default())?;
        Ok(Counter::Shared(Box::new(shared)))
    }
}

/// What an operator looks at: the spool of this device, or the queue that several share.
enum Counter {
    Own(Box<Desk>),
    Shared(Box<Shared>),
}

impl Counter {
    fn count(&self) -> Result<Count, SpoolError> {
        match self {
            Self::Own(desk) => desk.count(),
            Self::Shared(shared) => shared.count(),
        }
    }

    fn statements(&self) -> Result<Vec<Statement>, SpoolError> {
        match self {
            Self::Own(desk) => desk.statements(),
            Self::Shared(shared) => shared.statements(),
        }
    }

    fn job(&self, id: &JobId) -> Result<Option<JobReport>, SpoolError> {
        match self {
            Self::Own(desk) => desk.job(id),
            Self::Shared(shared) => shared.job(id),
        }
    }

    fn jobs(&self, states: &[JobState]) -> Result<Vec<JobReport>, SpoolError> {
        match self {
            Self::Own(desk) => desk.jobs(states),
            Self::Shared(shared) => shared.jobs(states),
        }
    }

    fn letters(
        &self,
        states: &[DeliveryState],
        job: Option<&JobId>,
    ) -> Result<Vec<Letter>, SpoolError> {
        match self {
            Self::Own(desk) => desk.letters(states, job),
            Self::Shared(shared) => shared.letters(states, job),
        }
    }

    fn identity(&self, job: &JobId) -> Result<Identity, SpoolError> {
        match self {
            Self::Own(desk) => desk.identity(job),
            Self::Shared(shared) => shared.identity(job),
        }
    }

    fn retry(&self, item: &Item) -> Result<(), SpoolError> {
        match self {
            Self::Own(desk) => desk.retry(item),
            Self::Shared(shared) => shared.retry_item(item),
        }
    }

    fn drop(&self, item: &Item) -> Result<(), SpoolError> {
        match self {
            Self::Own(desk) => Desk::drop(desk, item),
            Self::Shared(shared) => shared.drop_item(item),
        }
    }
}

const FOR_A_PERSON: [JobState; 2] = [JobState::Failed, JobState::Quarantined];
const ANY_JOB: [JobState; 9] = [
    JobState::Received,
    JobState::Ready,
    JobState::Running,
    JobState::Done,
    JobState::Failed,
    JobState::Quarantined,
    JobState::Superseded,
    JobState::Dropped,
    JobState::Shared,
];
const ANY_DELIVERY: [DeliveryState; 4] =
    [DeliveryState::Pending, DeliveryState::Sent, DeliveryState::Dead, DeliveryState::Dropped];

/// # Errors
/// If there is no spool, or an id names nothing that can be retried or dropped. Ids before it are done.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    match args.action {
        Action::List { at, all, json } => list(&at.desk()?, all, json)?,
        Action::Show { at, id, uids, json } => show(&at.desk()?, &id, uids, json)?,
        Action::Retry { at, ids, all } => {
            let desk = at.desk()?;
            let items = if all { what_failed(&desk)? } else { parse(&ids)? };
            each(&items, "will be tried again", |item| desk.retry(item))?;
        }
        Action::Drop { at, ids } => {
            let desk = at.desk()?;
            each(&parse(&ids)?, "given up", |item| desk.drop(item))?;
        }
    }
    Ok(ExitStatus::Done)
}

fn parse(ids: &[String]) -> anyhow::Result<Vec<Item>> {
    ids.iter().map(|id| Ok(Item::parse(id)?)).collect()
}

fn what_failed(desk: &Counter) -> anyhow::Result<Vec<Item>> {
    let jobs = desk.jobs(&[JobState::Failed])?.into_iter().map(|job| Item::Job(job.id));
    let letters = desk.letters(&[DeliveryState::Dead], None)?;
    Ok(jobs.chain(letters.into_iter().map(|letter| Item::Delivery(letter.id))).collect())
}

fn each(
    items: &[Item],
    done: &str,
    act: impl Fn(&Item) -> Result<(), SpoolError>,
) -> anyhow::Result<()> {
    for item in items {
        act(item).with_context(|| item.to_string())?;
        say!("{item}: {done}");
    }
    if items.is_empty() {
        say!("nothing to do");
    }
    Ok(())
}

fn list(desk: &Counter, all: bool, json: bool) -> anyhow::Result<()> {
    let (usage, unreplicated_bytes) = match desk {
        Counter::Own(desk) => (Some(desk.usage()?), Some(desk.unreplicated_bytes()?)),
        Counter::Shared(_) => (None, None),
    };
    let count = desk.count()?;
    let jobs = desk.jobs(if all { &ANY_JOB } else { &FOR_A_PERSON })?;
    let letters = desk.letters(if all { &ANY_DELIVERY } else { &[DeliveryState::Dead] }, None)?;
    let statements = desk.statements()?;
    if json {
        let report = json!({
            "usage": usage,
            "unreplicated_bytes": unreplicated_bytes,
            "count": {
                "received": count.received, "ready": count.ready, "running": count.running,
                "failed": count.failed, "quarantined": count.quarantined,
                "pending_deliveries": count.pending_deliveries, "dead_deliveries": count.dead_deliveries,
            },
            "jobs": jobs.iter().map(job_json).collect::<Vec<_>>(),
            "deliveries": letters.iter().map(letter_json).collect::<Vec<_>>(),
            "destinations": statements,
        });
        out!("{report}")?;
        return Ok(());
    }
    if let Some(usage) = usage {
        out!("{} bytes used, {} bytes free", usage.used_bytes, usage.free_bytes)?;
    }
    out!(
        "jobs: {} received, {} ready, {} running, {} failed, {} in quarantine",
        count.received,
        count.ready,
        count.running,
        count.failed,
        count.quarantined
    )?;
    jobs.iter().try_for_each(print_job)?;
    out!("deliveries: {} pending, {} dead", count.pending_deliveries, count.dead_deliveries)?;
    letters.iter().try_for_each(print_letter)?;
    for account in statements {
        out!(
            "destination {}: {} sent ({} bytes) in {} attempts, {} pending ({} bytes), {} dead, {} given up",
            account.destination,
            account.sent,
            account.sent_bytes,
            account.attempts,
            account.pending,
            account.pending_bytes,
            account.dead,
            account.dropped
        )?;
    }
    Ok(())
}

fn show(desk: &Counter, id: &str, uids: bool, json: bool) -> anyhow::Result<()> {
    let Item::Job(job) = Item::parse(id)? else {
        bail!("{id}: give a job; `cdal spool list --all` shows them");
    };
    let report = desk.job(&job)?.ok_or_else(|| SpoolError::Unknown { id: id.to_owned() })?;
    let letters = desk.letters(&ANY_DELIVERY, Some(&job))?;
    let identity = uids.then(|| desk.identity(&job)).transpose()?;
    if json {
        let mut value = job_json(&report);
        value["deliveries"] = letters.iter().map(letter_json).collect();
        if let Some(identity) = identity {
            value["uids"] = serde_json::to_value(identity)?;
        }
        out!("{value}")?;
        return Ok(());
    }
    print_job(&report)?;
    letters.iter().try_for_each(print_letter)?;
    if let Some(identity) = identity {
        out!("  series {}", identity.series)?;
        identity.instances.iter().try_for_each(|uid| out!("  object {uid}"))?;
        identity.products.iter().try_for_each(|uid| out!("  result {uid}"))?;
    }
    Ok(())
}

fn job_json(job: &JobReport) -> Value {
    json!({
        "id": job.id.as_str(), "state": job.state.as_str(), "revision": job.revision,
        "attempts": job.attempts, "objects": job.objects, "reason": job.reason,
        "last_received_ms": job.last_received_ms, "finished_ms": job.finished_ms,
        "queue_ms": job.queue_ms, "compute_ms": job.compute_ms,
    })
}

fn letter_json(letter: &Letter) -> Value {
    json!({
        "id": letter.id, "job": letter.job.as_str(), "destination": letter.destination,
        "state": letter.state.as_str(), "bytes": letter.bytes, "attempts": letter.attempts,
        "created_ms": letter.created_ms, "reason": letter.reason,
    })
}

fn print_job(job: &JobReport) -> Result<(), OutputError> {
    out!(
        "  job {}: {}, revision {}, {} objects, last one {} ago{}",
        job.id,
        job.state.as_str(),
        job.revision,
        job.objects,
        age(job.last_received_ms),
        because(job.reason.as_deref())
    )
}

fn print_letter(letter: &Letter) -> Result<(), OutputError> {
    out!(
        "  delivery {} of job {} to {}: {}, {} bytes, {} attempts, made {} ago{}",
        letter.id,
        letter.job,
        letter.destination,
        letter.state.as_str(),
        letter.bytes,
        letter.attempts,
        age(letter.created_ms),
        because(letter.reason.as_deref())
    )
}

fn because(reason: Option<&str>) -> String {
    reason.map(|reason| format!(": {reason}")).unwrap_or_default()
}

fn age(since_ms: i64) -> String {
    let seconds = now_ms().saturating_sub(since_ms).max(0).cast_unsigned() / 1000;
    // One unit is enough to see which is older.
    let rounded = match seconds {
        0..120 => seconds,
        120..7200 => seconds / 60 * 60,
        7200..172_800 => seconds / 3600 * 3600,
        _ => seconds / 86_400 * 86_400,
    };
    duration::format(Duration::from_secs(rounded))
}
