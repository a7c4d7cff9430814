use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{ExitStatus, Misconfigured};
use crate::cli::output;
use crate::domain::duration;
use crate::fleet::collect::{ClientConfig, Collector, Fleet};
use crate::fleet::rollout::{Account, Class, Line, StageAccount, utc};
use crate::{durable, tls};

/// Lines of devices on a terminal.
const SHOWN: usize = 30;

/// Columns of a wave's progress.
const BAR: usize = 24;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    at: At,
    /// Counter of the release; the newest by default
    #[arg(long, value_name = "COUNTER")]
    release: Option<u64>,
    /// How often to look
    #[arg(long, default_value = "2s", value_parser = duration::parse)]
    every: Duration,
    /// Look once and end
    #[arg(long)]
    once: bool,
    /// One JSON object for each look on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    at: At,
    /// Counter of the release; the newest by default
    #[arg(long, value_name = "COUNTER")]
    release: Option<u64>,
    /// Why, for those who look
    #[arg(long, default_value = "")]
    words: String,
}

#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    at: At,
    /// Counter of the release; the newest by default
    #[arg(long, value_name = "COUNTER")]
    release: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub struct ForgetArgs {
    #[command(flatten)]
    at: At,
    /// The device's id
    device: String,
}

/// Which collector, and who asks.
#[derive(Debug, clap::Args)]
struct At {
    /// Such as `https://fleet.hospital.example:8443`
    #[arg(long, value_name = "URL")]
    collector: String,
    /// Roots that the collector is trusted by
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// File with an operator's token
    #[arg(long, value_name = "FILE", required_unless_present = "certificate")]
    token: Option<PathBuf>,
    /// An operator's certificate, in place of a token
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Name in the collector's certificate, where it is not the host of the URL
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

impl At {
    fn collector(&self) -> anyhow::Result<Collector> {
        let tls = tls::Client {
            ca: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            server_name: self.server_name.clone(),
        };
        let config = ClientConfig::new(self.collector.as_str(), tls, self.token.clone());
        if let Some(fault) = config.faults().first() {
            let wrong = format!("--collector: {} {}", fault.key, fault.problem);
            return Err(anyhow::anyhow!(wrong).context(Misconfigured("the collector is not named")));
        }
        Ok(Collector::new(config))
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Runtime::new().context("start the async runtime")?.block_on(work)
}

async fn counter(collector: &Collector, asked: Option<u64>) -> anyhow::Result<u64> {
    if let Some(counter) = asked {
        return Ok(counter);
    }
    let newest = collector.fleet(None).await?.releases.first().map(|release| release.counter);
    newest.context("the collector knows no release yet")
}

/// # Errors
/// If the collector does not do it.
pub fn pause(args: &PauseArgs) -> anyhow::Result<ExitStatus> {
    let collector = args.at.collector()?;
    block_on(async {
        let counter = counter(&collector, args.release).await?;
        collector.pause(counter, &args.words).await?;
        say!("release {counter}: paused");
        Ok(ExitStatus::Done)
    })
}

/// # Errors
/// If the collector does not do it.
pub fn resume(args: &ResumeArgs) -> anyhow::Result<ExitStatus> {
    let collector = args.at.collector()?;
    block_on(async {
        let counter = counter(&collector, args.release).await?;
        collector.resume(counter).await?;
        say!("release {counter}: goes on");
        Ok(ExitStatus::Done)
    })
}

/// # Errors
/// If the collector does not do it.
pub fn forget(args: &ForgetArgs) -> anyhow::Result<ExitStatus> {
    let collector = args.at.collector()?;
    if !durable::is_file_name(&args.device) {
        bail!("{:?} is no device's id; `cdal fleet watch --json` shows them", args.device);
    }
    block_on(async {
        collector.forget(&args.device).await?;
        say!("{}: forgotten", args.device);
        Ok(ExitStatus::Done)
    })
}

/// Draws over a terminal; elsewhere prints a line for each thing that changed.
///
/// # Errors
/// If the collector cannot be reached at first, or refuses. Later it is tried again.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let collector = args.at.collector()?;
    if args.every.is_zero() {
        bail!("--every must be longer than 0ms");
    }
    let on_terminal = std::io::stdout().is_terminal() && !args.json && !args.once;
    block_on(async {
        let mut told = Told::default();
        let mut fleet = collector.fleet(args.release).await?;
        loop {
            let text = if args.json {
                serde_json::to_string(&fleet)? + "\n"
            } else if args.once {
                drawn(&fleet)
            } else if on_terminal {
                format!("\x1b[H\x1b[2J{}", drawn(&fleet))
            } else {
                told.news(&fleet)
            };
            output::text_whole(&text)?;
            if args.once {
                return Ok(ExitStatus::Done);
            }
            fleet = loop {
                tokio::time::sleep(args.every).await;
                match collector.fleet(args.release).await {
                    Ok(fleet) => break fleet,
                    Err(error) => say!("{error}"),
                }
            };
        }
    })
}

/// What was printed already.
#[derive(Debug, Default)]
struct Told {
    summary: String,
    lines: BTreeSet<String>,
}

impl Told {
    /// One line for each thing that was not told yet.
    fn news(&mut self, fleet: &Fleet) -> String {
        let mut news = String::new();
        let summary = summary(fleet);
        if summary != self.summary {
            news = format!("{} {summary}\n", utc(fleet.now_ms));
            self.summary = summary;
        }
        let troubles = fleet.account.iter().flat_map(|account| &account.table).filter_map(trouble);
        let alarms =
            fleet.alarms.iter().rev().map(|alarm| {
                format!("ALARM {} {}: {}", utc(alarm.time_ms), alarm.device, alarm.what)
            });
        for line in alarms.chain(troubles).collect::<Vec<_>>() {
            if !self.lines.contains(&line) {
                news.push_str(&line);
                news.push('\n');
                self.lines.insert(line);
            }
        }
        news
    }
}

fn trouble(line: &Line) -> Option<String> {
    let what = match line.class {
        Class::RolledBack => format!("rolled back: {}", line.words.as_deref().unwrap_or("–")),
        Class::Silent => format!("silent since {}, {}", utc(line.heard_ms), line.phase),
        _ => return None,
    };
    Some(format!("{} {what}", line.device))
}

fn summary(fleet: &Fleet) -> String {
    let Some(account) = &fleet.account else {
        return format!("{} devices, no release yet", fleet.devices);
    };
    format!(
        "release {} {}: {}; {} of {} devices",
        account.counter,
        account.name,
        standing(account),
        counts(account),
        account.devices
    )
}

fn standing(account: &Account) -> &str {
    match &account.paused {
        Some(why) => why,
        None if account.gated => "canary groups only, then a person has to resume",
        None => "going on",
    }
}

fn counts(account: &Account) -> String {
    let shown = account.classes.iter().filter(|(_, count)| **count > 0);
    let each: Vec<_> = shown.map(|(c, count)| format!("{count} {}", words(*c))).collect();
    if each.is_empty() { "0".to_owned() } else { each.join(", ") }
}

fn words(class: Class) -> String {
    class.as_str().replace('_', " ")
}

/// The whole picture for a terminal.
fn drawn(fleet: &Fleet) -> String {
    let mut text = format!("{}\n{}\n", utc(fleet.now_ms), summary(fleet));
    let Some(account) = &fleet.account else { return text };
    let mut add = |line: String| writeln!(text, "{line}").expect("writing to a string succeeds");
    if account.late > 0 {
        add(format!("{} came when their turn had passed, and took part", account.late));
    }
    add(format!(
        "\n{:<8} {:<24} {:<BAR$} {:>7} {:>6} {:>6} {:>9} {:>6} {:>6}",
        "stage", "opens", "", "devices", "due", "begun", "committed", "failed", "silent"
    ));
    for stage in &account.stages {
        let StageAccount { name, devices, due, begun, committed, failed, silent, .. } = stage;
        add(format!(
            "{name:<8} {:<24} {} {devices:>7} {due:>6} {begun:>6} {committed:>9} {failed:>6} {silent:>6}",
            utc(stage.opens_ms),
            bar(stage)
        ));
    }
    add(String::new());
    for alarm in fleet.alarms.iter().take(5) {
        add(format!("ALARM {} {}: {}", utc(alarm.time_ms), alarm.device, alarm.what));
    }
    let mut lines: Vec<_> = account.table.iter().collect();
    lines.sort_by_key(|line| (urgency(line), line.start_ms));
    for line in lines.iter().take(SHOWN) {
        let ago = Duration::from_secs(fleet.now_ms.saturating_sub(line.heard_ms) / 1000);
        add(format!(
            "{:<24} {:<8} {:<13} {:<15} heard {:>6} ago  {}",
            line.device,
            line.stage.as_deref().unwrap_or("–"),
            words(line.class),
            line.phase.as_str(),
            duration::format(ago),
            line.words.as_deref().unwrap_or_default()
        ));
    }
    if lines.len() > SHOWN {
        add(format!("and {} more; --json gives them all", lines.len() - SHOWN));
    }
    text
}

/// What needs a person comes first.
fn urgency(line: &Line) -> u8 {
    match line.class {
        _ if line.alarm_ms.is_some() => 0,
        Class::RolledBack => 1,
        Class::Silent => 2,
        Class::OnTrial => 3,
        Class::UnderWay => 4,
        Class::Waiting => 5,
        _ => 6,
    }
}

/// `#` committed, `=` under way, `!` failed or silent.
fn bar(stage: &StageAccount) -> String {
    let columns = |count: usize| (count * BAR).checked_div(stage.devices).unwrap_or(0);
    let troubled = stage.failed + stage.silent;
    let done = columns(stage.committed);
    let open = columns(stage.begun - troubled) - done;
    let bad = columns(stage.begun) - done - open;
    let rest = BAR - done - open - bad;
    format!("{}{}{}{}", "#".repeat(done), "=".repeat(open), "!".repeat(bad), ".".repeat(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_its_width_whatever_the_counts() {
        let empty = StageAccount {
            name: "wave 1".into(),
            opens_ms: 0,
            ends_ms: 0,
            devices: 0,
            due: 0,
            begun: 0,
            committed: 0,
            failed: 0,
            silent: 0,
        };
        assert_eq!(bar(&empty), ".".repeat(BAR));
        for begun in 0..=37 {
            for committed in 0..=begun {
                for failed in 0..=begun - committed {
                    let stage =
                        StageAccount { devices: 37, begun, committed, failed, ..empty.clone() };
                    assert_eq!(bar(&stage).len(), BAR, "{stage:?}");
                }
            }
        }
        let half = StageAccount { devices: 4, begun: 3, committed: 1, failed: 1, ..empty };
        assert_eq!(bar(&half), "######======!!!!!!......");
    }
}
