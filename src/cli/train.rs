use std::path::PathBuf;

use super::ExitStatus;

use crate::{
    engine::{Purpose, Runtime},
    train::{Config, Progress, train},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Training configuration, such as configs/train-phantom.toml
    #[arg(long)]
    config: PathBuf,
    /// Go on from the run's last checkpoint
    #[arg(long)]
    resume: bool,
    /// A training build of ONNX Runtime, in place of the project's own
    #[arg(long, value_name = "FILE")]
    runtime: Option<PathBuf>,
}

pub fn run(arguments: &Args) -> anyhow::Result<ExitStatus> {
    let config = Config::read(&arguments.config)?;
    let runtime = Runtime::load(Purpose::Training, arguments.runtime.as_deref())?;
    let bundle = train(&config, &runtime, arguments.resume, show)?;
    println!("{}", bundle.display());
    Ok(ExitStatus::Done)
}

fn show(progress: &Progress) {
    let Progress { step, steps, loss, learning_rate, slices_per_second, .. } = progress;
    let dice = progress.validation_dice.as_ref().map_or(String::new(), |dice| {
        let each: Vec<_> =
            dice.iter().map(|d| d.map_or("-".into(), |d| format!("{d:.4}"))).collect();
        format!("  Dice {}", each.join(" "))
    });
    let adversary = progress.adversary.map_or(String::new(), |found| {
        let named = |name: &str, value: Option<f32>| {
            value.map_or(String::new(), |value| format!("  {name} {value:.4}"))
        };
        let (r1, term) = (named("R1", found.r1), named("adversarial", found.adversarial));
        format!("  D real {:.4}  fake {:.4}{r1}{term}", found.real, found.fake)
    });
    eprintln!(
        "step {step}/{steps}  loss {loss:.4}{adversary}  rate {learning_rate:.1e}  {slices_per_second:.1} slices/s{dice}"
    );
}
