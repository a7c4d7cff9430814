//! What a publisher does with keys: a new repository, missing signatures, other keys, new dates.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tough::schema::RoleType;

use super::ExitStatus;
use crate::durable;
use crate::fleet::repository::{
    Change, Key, Keyring, Repository, RoleSummary, Roles, State, Summary, Validity,
};

/// The repository's folder and the keys at hand.
#[derive(Debug, clap::Args)]
pub(super) struct At {
    /// The repository's folder
    #[arg(long, value_name = "FOLDER")]
    pub(super) repository: PathBuf,
    /// A private key, or a folder of files that end in `.key`; as many as are at hand
    #[arg(long = "key", value_name = "FILE", required = true)]
    pub(super) keys: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) validity: ValidityArgs,
}

/// For how long what is signed is believed.
#[derive(Debug, clap::Args)]
pub(super) struct ValidityArgs {
    /// How long a root signed now is believed
    #[arg(id = "root-days", long, value_name = "DAYS", default_value_t = 730, value_parser = days())]
    root: u16,
    /// How long the list of releases is believed
    #[arg(id = "targets-days", long, value_name = "DAYS", default_value_t = 365, value_parser = days())]
    targets: u16,
    /// How long a device can be kept from news before it notices; `refresh` has to run more often
    #[arg(id = "timestamp-days", long, value_name = "DAYS", default_value_t = 14, value_parser = days())]
    timestamp: u16,
}

fn days() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=3650)
}

impl ValidityArgs {
    pub(super) fn validity(&self) -> Validity {
        let days = |days: u16| std::time::Duration::from_hours(24 * u64::from(days));
        Validity {
            root: days(self.root),
            targets: days(self.targets),
            timestamp: days(self.timestamp),
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// A new folder; any HTTP server can hand it out
    #[arg(long, value_name = "FOLDER")]
    repository: PathBuf,
    /// Folder for the private keys; a key that is there already is used
    #[arg(long, value_name = "FOLDER")]
    keys: PathBuf,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=20))]
    root_keys: u64,
    /// How many of the root keys it takes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=20))]
    root_threshold: u64,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=20))]
    targets_keys: u64,
    /// How many of the targets keys it takes to publish
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=20))]
    targets_threshold: u64,
    #[command(flatten)]
    validity: ValidityArgs,
}

#[derive(Debug, clap::Args)]
pub struct SignArgs {
    #[command(flatten)]
    at: At,
}

#[derive(Debug, clap::Args)]
pub struct RotateArgs {
    #[command(flatten)]
    at: At,
    /// Whose keys change
    #[arg(long, value_parser = ["root", "targets", "snapshot", "timestamp"])]
    role: String,
    /// A further key; a file that is not there yet is made
    #[arg(long, value_name = "FILE")]
    add: Vec<PathBuf>,
    /// A key to be believed no longer: its file, its id or the beginning of it
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
    /// How many of its keys the role takes from now on
    #[arg(long, value_name = "N")]
    threshold: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// The repository's folder
    #[arg(long, value_name = "FOLDER")]
    repository: PathBuf,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct RefreshArgs {
    #[command(flatten)]
    at: At,
}

/// # Errors
/// If the folder is not empty or a key cannot be made.
pub fn init(args: &InitArgs) -> anyhow::Result<ExitStatus> {
    durable::create_directory(&args.keys)?;
    let key = |name: String| made_or_read(&args.keys.join(format!("{name}.key")));
    let several = |role: &str, count| -> anyhow::Result<Vec<Key>> {
        (1..=count).map(|index| key(format!("{role}-{index}"))).collect()
    };
    let roles = Roles {
        root: (several("root", args.root_keys)?, args.root_threshold),
        targets: (several("targets", args.targets_keys)?, args.targets_threshold),
        snapshot: key("snapshot".to_owned())?,
        timestamp: key("timestamp".to_owned())?,
    };
    let repository = Repository::init(&args.repository, roles, args.validity.validity())?;
    say!(
        "a repository without releases; hand {} to each device as fleet.root.\n\
         Keep the root keys apart from each other and off this machine; publish takes the others.",
        repository.root_path().display()
    );
    Ok(ExitStatus::Done)
}

/// # Errors
/// If nothing waits for signatures.
pub fn sign(args: &SignArgs) -> anyhow::Result<ExitStatus> {
    let (mut repository, keys) = args.at.open()?;
    tell(&repository.add_signatures(&keys, args.at.validity.validity())?, "it");
    Ok(ExitStatus::Done)
}

/// # Errors
/// If the change makes no sense.
pub fn rotate(args: &RotateArgs) -> anyhow::Result<ExitStatus> {
    let (mut repository, mut keys) = args.at.open()?;
    let role = match args.role.as_str() {
        "root" => RoleType::Root,
        "targets" => RoleType::Targets,
        "snapshot" => RoleType::Snapshot,
        _ => RoleType::Timestamp,
    };
    let change = Change {
        role,
        remove: args.remove.iter().map(|key| named(key)).collect::<anyhow::Result<_>>()?,
        add: args.add.iter().map(|path| made_or_read(path)).collect::<anyhow::Result<_>>()?,
        threshold: args.threshold,
    };
    let state = repository.rotate(change, &mut keys, args.at.validity.validity())?;
    tell(&state, "the new root");
    Ok(ExitStatus::Done)
}

/// The id of a key that is named by its file; anything else is an id.
fn named(key: &str) -> anyhow::Result<String> {
    let path = Path::new(key);
    Ok(if path.is_file() { Key::read(path)?.id() } else { key.to_owned() })
}

/// # Errors
/// If there is no repository.
pub fn show(args: &ShowArgs) -> anyhow::Result<ExitStatus> {
    let summary = Repository::open(&args.repository)?.summary()?;
    if args.json {
        out!("{}", serde_json::to_string(&summary)?)?;
        return Ok(ExitStatus::Done);
    }
    let Summary { roles, releases, pending } = summary;
    for RoleSummary { role, threshold, keys, expires } in roles {
        say!("{role:9} expires {expires}, takes {threshold} of");
        for id in keys {
            say!("          {id}");
        }
    }
    for (counter, name) in releases {
        say!("release {counter} ({name})");
    }
    if let Some(what) = pending {
        say!("{what} waits for signatures");
    }
    Ok(ExitStatus::Done)
}

/// # Errors
/// If the keys of snapshot and timestamp are not at hand.
pub fn refresh(args: &RefreshArgs) -> anyhow::Result<ExitStatus> {
    let (mut repository, mut keys) = args.at.open()?;
    let renewed = repository.refresh(&mut keys, args.at.validity.validity())?;
    let also = match (renewed.root, renewed.targets) {
        (true, true) => ", targets and root",
        (true, false) => " and root",
        (false, true) => " and targets",
        (false, false) => "",
    };
    let (role, date) = renewed.first_to_expire;
    say!("new dates for timestamp, snapshot{also}; the first to expire is {role}, {date}");
    Ok(ExitStatus::Done)
}

impl At {
    pub(super) fn open(&self) -> anyhow::Result<(Repository, Keyring)> {
        let keys = Keyring::read(&self.keys)?;
        Ok((Repository::open(&self.repository)?, keys))
    }
}

/// What became of something that takes signatures, for the person at the keys.
pub(super) fn tell(state: &State, what: &str) {
    match state {
        State::InForce => say!("{what} is in force; devices see it at their next look"),
        State::Pending { role, have, needed } => say!(
            "{what} waits in pending/: {role} has {have} of {needed} signatures; \
             `cdal fleet sign` with further keys adds them, and devices see nothing of it until then"
        ),
    }
}

/// Says which key is which: metadata names them by id.
fn made_or_read(path: &Path) -> anyhow::Result<Key> {
    let is_new = !path.exists();
    let key = if is_new { Key::generate(path) } else { Key::read(path) };
    let key = key.with_context(|| format!("the key {}", path.display()))?;
    say!("{} {} {}", if is_new { "made" } else { "read" }, path.display(), key.id());
    Ok(key)
}
