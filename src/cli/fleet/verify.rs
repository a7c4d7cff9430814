//! A repository as a device that never saw it would judge it.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::{ExitStatus, Misconfigured};
use crate::durable::sha256_of;
use crate::fleet::Blob;
use crate::fleet::trust::{Checked, Device, Floors, Source, Trust};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// `https://…` or a folder
    #[arg(long, value_name = "URL")]
    repository: String,
    /// Roots that the server's certificate is trusted by; the system's by default
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The root of trust that devices were handed
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// Of the device that is asked for
    #[arg(long)]
    group: String,
    /// Of the device that is asked for
    #[arg(long)]
    hardware: String,
    /// Read every file of the release as well
    #[arg(long)]
    content: bool,
    /// The release's manifest on stdout
    #[arg(long)]
    json: bool,
}

/// # Errors
/// If the repository is not believed, or holds no release for such a device.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let place = tempfile::tempdir().context("make a temporary folder")?;
    let source = Source::parse(&args.repository, args.ca.clone())
        .context(Misconfigured("the repository cannot be looked at"))?;
    let device = Device::new(&args.group, &args.hardware);
    let mut trust = Trust::open(device.clone(), source, &args.root, place.path())?;
    let Checked { newest, .. } = trust.check(&Floors::default())?;
    let Some((release, digest)) = newest else { bail!("the repository holds no release") };
    if let Some(unmet) = device.unmet(&release) {
        bail!("release {} ({}): {unmet}", release.counter, release.name);
    }
    if args.content {
        for blob in release.blobs() {
            let read = checked(&trust, blob);
            read.with_context(|| format!("release {}: {}", release.counter, blob.target()))?;
        }
    }
    let read = if args.content { ", its files are whole" } else { "" };
    say!("release {} ({}), manifest {digest}: signed{read}", release.counter, release.name);
    if args.json {
        out!("{}", serde_json::to_string_pretty(&release)?)?;
    }
    Ok(ExitStatus::Done)
}

fn checked(trust: &Trust, blob: &Blob) -> anyhow::Result<()> {
    let bytes = trust.open_blob(blob, 0).map_err(anyhow::Error::msg)?;
    let (sha256, length) = sha256_of(bytes.take(blob.length.saturating_add(1)))?;
    if (&sha256, length) != (&blob.sha256, blob.length) {
        bail!("is not what the release names");
    }
    Ok(())
}
