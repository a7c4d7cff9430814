//! A TUF client for any repository, by the command line that TUF's conformance suite asks for.

use std::path::PathBuf;

use super::{ExitStatus, Misconfigured};
use crate::fleet::trust::{Client, Source};

use anyhow::Context;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the metadata that is trusted lies
    #[arg(long, value_name = "DIR")]
    metadata_dir: PathBuf,
    /// Where the repository's metadata lies
    #[arg(long, value_name = "URL")]
    metadata_url: Option<String>,
    /// Name of the target to download, as `targets.json` lists it
    #[arg(long, value_name = "NAME")]
    target_name: Option<String>,
    /// Where the repository's targets lie
    #[arg(long, value_name = "URL")]
    target_base_url: Option<String>,
    /// Folder for what is downloaded
    #[arg(long, value_name = "DIR")]
    target_dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Trust a root that was had from elsewhere
    Init { root: PathBuf },
    /// Bring the metadata up to date
    Refresh,
    /// Bring the metadata up to date, and fetch one target
    Download,
}

/// # Errors
/// If any part of it fails; what was verified before that part stays.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let source = |name: &str, url: Option<&String>| {
        let url = url.context(Misconfigured("an option is missing"));
        let source = url.and_then(|url| Ok(Source::parse(url, None)?));
        source.with_context(|| format!("--{name}"))
    };
    if let Action::Init { root } = &args.action {
        Client::init(&args.metadata_dir, root)?;
        return Ok(ExitStatus::Done);
    }
    let metadata = source("metadata-url", args.metadata_url.as_ref())?;
    let mut client = Client::open(&args.metadata_dir, metadata)?;
    if matches!(args.action, Action::Refresh) {
        client.refresh()?;
        return Ok(ExitStatus::Done);
    }
    let targets = source("target-base-url", args.target_base_url.as_ref())?;
    let missing = || Misconfigured("--target-name and --target-dir are needed");
    let (name, folder) =
        args.target_name.as_ref().zip(args.target_dir.as_ref()).with_context(missing)?;
    let path = client.download(name, &targets, folder)?;
    out!("{}", path.display())?;
    Ok(ExitStatus::Done)
}
