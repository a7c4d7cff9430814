use std::{
    io::IsTerminal,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::output::ProgressLine;
use super::{ExitStatus, signals};
use crate::{
    engine::{Purpose, Runtime},
    train::{Config, Event, Orders, Outcome, Progress, train},
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

/// # Errors
/// If something cannot be read or the training fails; the last checkpoint stays.
pub fn run(arguments: &Args) -> anyhow::Result<ExitStatus> {
    let config = Config::read(&arguments.config)?;
    let runtime = Runtime::load(Purpose::Training, arguments.runtime.as_deref())?;
    let stop = signals::raise(|| {
        say!(
            "stopping after this step, with a checkpoint; a second signal ends at once, without one"
        );
    });
    let stop = stop.context("listen for signals")?;
    let mut screen = Screen::new();
    let orders = Orders { resume: arguments.resume, stop: &stop };
    let outcome = train(&config, &runtime, orders, |event| screen.tell(event))?;
    drop(screen);
    match outcome {
        Outcome::Finished(bundle) => {
            out!("{}", bundle.display())?;
            Ok(ExitStatus::Done)
        }
        Outcome::Stopped { step: Some(step) } => {
            say!(
                "stopped; the checkpoint of step {step} of {} is in {}; go on with: cdal train --config {} --resume",
                config.optimiser.steps,
                config.run_folder.join("last").display(),
                arguments.config.display()
            );
            Ok(ExitStatus::JobFailed)
        }
        Outcome::Stopped { step: None } => {
            say!(
                "stopped before the first step; there is nothing to resume, start again without --resume"
            );
            Ok(ExitStatus::JobFailed)
        }
    }
}

/// Between two lines about steps where nothing is drawn over.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// The run on the terminal: plain lines, and on a live one a curve of the loss that is drawn anew below them.
#[derive(Debug)]
struct Screen {
    is_live: bool,
    losses: Vec<f32>,
    /// Lines of the last drawing, which the next one takes the place of.
    drawn: usize,
    /// Below the curve: the step under way.
    now: ProgressLine,
    /// When something was last said.
    said: Option<Instant>,
}

impl Screen {
    fn new() -> Self {
        let is_live = std::io::stderr().is_terminal();
        Self { is_live, losses: Vec::new(), drawn: 0, now: ProgressLine::new(), said: None }
    }

    fn tell(&mut self, event: &Event<'_>) {
        match event {
            Event::Stage(what) if self.is_live => self.now.draw(format_args!("{what} ...")),
            // Validation comes with every checkpoint, whose line follows.
            Event::Stage("validating") => {}
            Event::Stage(what) => {
                say!("{what}");
                self.said = None;
            }
            Event::Step { step, steps, remaining } => self.step(*step, *steps, *remaining),
            Event::Progress(progress) => {
                self.now.clear();
                self.show(progress);
                self.said = Some(Instant::now());
            }
        }
    }

    /// The first step, and then one in a while: a step of a large network takes seconds, and lines of progress come with
    /// every twentieth.
    fn step(&mut self, step: u64, steps: u64, remaining: Duration) {
        let left = clock(remaining.as_secs());
        if self.is_live {
            return self.now.draw(format_args!("step {step}/{steps}  {left} left"));
        }
        if self.said.is_none_or(|said| said.elapsed() > PLAIN_EVERY) {
            say!("step {step}/{steps}  {left} left");
            self.said = Some(Instant::now());
        }
    }

    fn show(&mut self, progress: &Progress) {
        self.losses.push(progress.loss);
        let line = line(progress);
        if !self.is_live {
            say!("{line}");
            return;
        }
        let erase = "\x1b[A\x1b[2K".repeat(self.drawn); // up and empty, for each line
        let curve = curve(&self.losses);
        if progress.validation_dice.is_some() {
            // What a checkpoint reached stays above the curve.
            say!("{erase}{line}\n{curve}");
            self.drawn = 1;
        } else {
            say!("{erase}{curve}\n{line}");
            self.drawn = 2;
        }
    }
}

fn line(progress: &Progress) -> String {
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
    let left = match progress.remaining.as_secs() {
        0 => String::new(),
        seconds => format!("  {} left", clock(seconds)),
    };
    format!(
        "step {step}/{steps}  loss {loss:.4}{adversary}  rate {learning_rate:.1e}  {slices_per_second:.1} slices/s{left}{dice}"
    )
}

fn clock(seconds: u64) -> String {
    match seconds {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min", s.div_ceil(60)),
        s => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// The whole run in one line, on a logarithmic scale from the lowest to the highest loss.
fn curve(losses: &[f32]) -> String {
    const WIDTH: usize = 60;
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let share = losses.len().div_ceil(WIDTH).max(1);
    let means: Vec<f32> = losses
        .chunks(share)
        .map(|some| (some.iter().sum::<f32>() / some.len() as f32).max(1e-9).ln())
        .collect();
    let (low, high) = means
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
    let span = (high - low).max(1e-6);
    let block = |v: &f32| BLOCKS[((v - low) / span * 7.0).round().clamp(0.0, 7.0) as usize];
    let line: String = means.iter().map(block).collect();
    format!("{line}  loss {:.4} to {:.4}", high.exp(), low.exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_falls_with_the_loss_and_keeps_its_width() {
        let losses: Vec<f32> = (0..500).map(|n| (-0.01 * n as f32).exp()).collect();
        let drawn = curve(&losses);
        let bars: Vec<char> = drawn.chars().take_while(|c| *c != ' ').collect();
        assert_eq!(bars.len(), 56, "nine losses a bar");
        assert_eq!((bars[0], bars[55]), ('█', '▁'));
        assert!(bars.windows(2).all(|two| two[0] >= two[1]), "{drawn}");
        assert!(curve(&[0.5]).starts_with('▁'), "one loss has no span");
    }

    #[test]
    fn time_is_told_in_the_unit_that_matters() {
        assert_eq!([59, 61, 3725].map(clock), ["59 s", "2 min", "1 h 02 min"]);
    }
}
