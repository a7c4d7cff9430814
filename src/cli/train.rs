use std::{io::IsTerminal, path::PathBuf};

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
    let mut screen = Screen { is_live: std::io::stderr().is_terminal(), ..Screen::default() };
    let bundle = train(&config, &runtime, arguments.resume, |progress| screen.show(progress))?;
    out!("{}", bundle.display())?;
    Ok(ExitStatus::Done)
}

/// The run on the terminal: plain lines, and on a live one a curve of the loss that is drawn anew below them.
#[derive(Debug, Default)]
struct Screen {
    is_live: bool,
    losses: Vec<f32>,
    /// Lines of the last drawing, which the next one takes the place of.
    drawn: usize,
}

impl Screen {
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
