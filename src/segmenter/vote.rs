//! The vote on one case: rounds of samples until all are drawn or the rule says that the rest does not matter.

use std::time::{Duration, Instant};

use ndarray::{Array3, ArrayView4, Axis, Zip};

use super::{
    Conditioned, Ending, Outcome, Preview, SegmenterError, Stages, forecast::Forecast, interface,
};
use crate::{
    bundle::{Assembly, Crop, Decision, Manifest, Prepared, Rounding},
    engine::Generator,
    sampler::{Ballot, Noise, Sampler, Schedule, Shape, Stopping, Tally, reachable},
};

/// Values of condition features that are held at once (256 MiB); at least one crop's.
const HELD_FEATURES: usize = 64 << 20;

/// All that the mask of a case depends on, but the generator.
pub(super) struct Election<'a> {
    pub manifest: &'a Manifest,
    pub schedule: Schedule,
    pub prepared: &'a Prepared,
    pub noise: &'a dyn Noise,
    pub votes: usize,
    pub stopping: Stopping,
    /// When the mask must be there, as well as it can be by then.
    pub deadline: Option<Instant>,
    pub preview: Option<&'a Preview>,
}

/// What is known of the case so far: its means, and the least and the most they can still become.
#[derive(Clone)]
struct Standing {
    now: Assembly,
    /// `None` where every vote is drawn.
    reach: Option<[Assembly; 2]>,
}

/// The vote on one sample: an image of one crop.
pub(super) struct Booth {
    /// Position in the case's list of samples.
    pub image: usize,
    pub crop: Crop,
    pub tally: Tally,
}

/// What draws the votes.
struct Machine<'a, 'g> {
    conditioned: Conditioned<'g>,
    sampler: &'a mut Sampler,
    /// Votes that are drawn at once.
    batch: usize,
}

impl Election<'_> {
    pub fn run(&self, generator: &mut Generator) -> Result<Outcome, SegmenterError> {
        let Self { manifest, prepared, .. } = self;
        let shape = self.shape();
        let pixels = shape.label[1] * shape.label[2];
        let batch = generator.batch();
        // One vote more where little is left to decide would be a waste.
        let least = generator.least_batch();
        let least_for = |open: usize| (least / open.max(1)).max(1);
        let held = (HELD_FEATURES / (manifest.network.features * pixels)).max(1);
        let mut stages =
            Stages { steps: vec![Duration::ZERO; self.schedule.steps()], ..Stages::default() };
        let mut standing = Standing::new(self);
        let mut sampler = Sampler::new(shape);
        let (mut drawn, mut is_cut) = (0, false);
        let mut forecast = Forecast::default();

        let mut samples_of = vec![Vec::new(); prepared.crops.len()];
        for (number, sample) in prepared.samples.iter().enumerate() {
            samples_of[sample.crop].push(number);
        }
        let precision = generator.precision();
        for (chunk, crops) in prepared.crops.chunks(held).enumerate() {
            let first = chunk * held;
            let started = Instant::now();
            let conditioned = Conditioned::encode(generator, prepared, first, crops, batch)?;
            let mut machine = Machine { conditioned, sampler: &mut sampler, batch };
            stages.condition += started.elapsed();

            let started = Instant::now();
            let mut booths: Vec<Booth> = (first..first + crops.len())
                .flat_map(|crop| samples_of[crop].iter().map(move |&image| (image, crop)))
                .map(|(image, crop)| {
                    let crop = prepared.crops[crop];
                    Booth { image, crop, tally: Tally::new(shape.label) }
                })
                .collect();
            let mut open: Vec<usize> = (0..booths.len()).collect();
            let due = self.due(first, crops.len());
            let mut more = match due {
                Some(_) => 1,
                None => self.stopping.first_votes(self.votes).max(least_for(booths.len())),
            };
            let mut preview = self.preview;
            // With a deadline, rounds are small as it is.
            if let (Some(shown), None) = (preview, due) {
                let steps = &mut stages.steps;
                if !self.draw_in_sight(shown, &mut machine, &mut booths, more, &standing, steps)? {
                    preview = None;
                }
                open = self.still_open(&booths, &standing, &mut forecast);
                more = least_for(open.len());
            }
            while !open.is_empty() {
                let round = Instant::now();
                let steps = &mut stages.steps;
                self.round(&mut machine, &mut booths, &open, more, steps)?;
                open = self.still_open(&booths, &standing, &mut forecast);
                // Another round takes as long as this one did.
                if !open.is_empty() && due.is_some_and(|due| Instant::now() + round.elapsed() > due)
                {
                    is_cut = true;
                    break;
                }
                more = least_for(open.len());
                if let Some(preview) = preview.filter(|_| !open.is_empty()) {
                    self.show(preview, &standing, &booths);
                }
            }
            stages.denoise += started.elapsed();

            let started = Instant::now();
            drawn += booths.iter().map(|booth| booth.tally.votes()).sum::<usize>();
            standing.add(&booths, self.votes);
            forecast.close();
            stages.assemble += started.elapsed();
        }
        let started = Instant::now();
        let segmentation = standing.now.finish(manifest, &prepared.grid);
        let ending = Ending {
            rule: self.stopping,
            votes_drawn: drawn as f64 / prepared.samples.len() as f64,
            is_cut,
            dice: match self.stopping {
                Stopping::Adaptive { .. } => forecast.dice(),
                _ => standing.certain_dice(self),
            },
        };
        stages.assemble += started.elapsed();
        let steps = self.schedule.steps() - self.schedule.end;
        Ok(Outcome { segmentation, votes: self.votes, ending, precision, steps, stages })
    }

    /// When the crops from `first` on must be done so that the last of the case are done in time.
    fn due(&self, first: usize, crops: usize) -> Option<Instant> {
        let deadline = self.deadline?;
        let now = Instant::now();
        let share = crops as f64 / (self.prepared.crops.len() - first) as f64;
        Some(now + deadline.saturating_duration_since(now).mul_f64(share))
    }

    pub fn shape(&self) -> Shape {
        let label = interface(self.manifest).label();
        Shape { label, latent: self.manifest.network.latent }
    }

    /// Draws up to `more` further votes at each open booth, and adds to `steps` what each time-step took. However many votes
    /// and steps these are, memory is allocated for the list of ballots alone.
    fn round(
        &self,
        machine: &mut Machine<'_, '_>,
        booths: &mut [Booth],
        open: &[usize],
        more: usize,
        steps: &mut [Duration],
    ) -> Result<(), SegmenterError> {
        let Machine { conditioned, sampler, batch } = machine;
        let most = open.len() * more.min(self.votes);
        let (mut numbers, mut ballots) = (Vec::with_capacity(most), Vec::with_capacity(most));
        for &number in open {
            let Booth { image, tally, .. } = &booths[number];
            let next = tally.votes();
            for vote in next..(next + more).min(self.votes) {
                numbers.push(number);
                ballots.push(Ballot { image: *image, vote });
            }
        }
        for (numbers, ballots) in numbers.chunks(*batch).zip(ballots.chunks(*batch)) {
            let mut started = Instant::now();
            let clock = |step: usize, _: ArrayView4<'_, f32>, _: ArrayView4<'_, f32>| {
                steps[step] += started.elapsed();
                started = Instant::now();
            };
            let drawn = sampler.sample(conditioned, &self.schedule, self.noise, ballots, clock)?;
            for (&number, x0) in numbers.iter().zip(drawn.axis_iter(Axis(0))) {
                booths[number].tally.add(x0);
            }
        }
        Ok(())
    }

    /// Draws the first `votes` at every booth, and shows the mask after one of them, or as many as go into a batch, and
    /// whenever they have doubled; `false` if the rest takes too little time for that.
    fn draw_in_sight(
        &self,
        preview: &Preview,
        machine: &mut Machine<'_, '_>,
        booths: &mut [Booth],
        votes: usize,
        standing: &Standing,
        steps: &mut [Duration],
    ) -> Result<bool, SegmenterError> {
        let open: Vec<usize> = (0..booths.len()).collect();
        let votes = votes.min(self.votes);
        let first = (machine.batch / open.len().max(1)).clamp(1, votes.max(1));
        let (started, mut drawn) = (Instant::now(), 0);
        while drawn < votes {
            let more = if drawn == 0 { first } else { drawn.min(votes - drawn) };
            self.round(machine, booths, &open, more, steps)?;
            drawn += more;
            let rest = started.elapsed() / drawn as u32 * (self.votes - drawn) as u32;
            if drawn == first && rest < preview.worth {
                self.round(machine, booths, &open, votes - drawn, steps)?;
                return Ok(false);
            }
            if drawn < self.votes {
                self.show(preview, standing, booths);
            }
        }
        Ok(true)
    }

    /// Shows what is known so far: of a case that is sampled in parts, the parts before and this one.
    fn show(&self, preview: &Preview, standing: &Standing, booths: &[Booth]) {
        let mut now = standing.now.clone();
        for Booth { crop, tally, .. } in booths {
            now.add(*crop, tally.mean().view(), tally.mask().view());
        }
        let votes = booths.iter().map(|booth| booth.tally.votes()).min().unwrap_or(0);
        preview.show(now.finish(self.manifest, &self.prepared.grid), votes);
    }

    /// The booths whose further votes could matter.
    fn still_open(
        &self,
        booths: &[Booth],
        before: &Standing,
        forecast: &mut Forecast,
    ) -> Vec<usize> {
        let unfinished: Vec<usize> =
            (0..booths.len()).filter(|&n| booths[n].tally.votes() < self.votes).collect();
        if let Stopping::Adaptive { error } = self.stopping {
            return forecast.update(booths, self, error, &unfinished);
        }
        if unfinished.is_empty() || self.stopping == Stopping::Never {
            return unfinished;
        }
        let mut standing = before.clone();
        standing.add(booths, self.votes);
        let enough = match self.stopping {
            Stopping::Certified { dice } => dice,
            _ => 1.0,
        };
        if standing.certain_dice(self) >= enough {
            return Vec::new();
        }
        // Where the mean is decided on the image's grid, decided pixels can still move an outline between them.
        let at_image = self.prepared.grid.is_resampled()
            || matches!(
                self.manifest.decision,
                Decision::Threshold { rounded: Rounding::Image, .. }
            );
        let is_open = |&number: &usize| {
            let [low, high] = reachable(&booths[number].tally, self.votes);
            at_image || round(&low) != round(&high)
        };
        unfinished.into_iter().filter(is_open).collect()
    }
}

fn round(mean: &Array3<f32>) -> Array3<f32> {
    mean.mapv(f32::round_ties_even)
}

impl Standing {
    fn new(election: &Election<'_>) -> Self {
        let label_channels = election.manifest.network.label_channels;
        let empty = Assembly::new(label_channels, &election.prepared.grid);
        let stops = election.stopping != Stopping::Never || election.deadline.is_some();
        Self { reach: stops.then(|| [empty.clone(), empty.clone()]), now: empty }
    }

    fn add(&mut self, booths: &[Booth], votes: usize) {
        for Booth { crop, tally, .. } in booths {
            self.now.add(*crop, tally.mean().view(), tally.mask().view());
            if let Some(reach) = &mut self.reach {
                for (assembly, mean) in reach.iter_mut().zip(reachable(tally, votes)) {
                    assembly.add(*crop, mean.view(), round(&mean).view());
                }
            }
        }
    }

    /// The least Dice that any label of the mask can have against that of the full vote.
    fn certain_dice(&self, election: &Election<'_>) -> f64 {
        let Some([lowest, highest]) = &self.reach else { return 1.0 };
        let (manifest, grid) = (election.manifest, &election.prepared.grid);
        let (mask, open) = self.now.open_voxels([lowest, highest], manifest, grid);
        manifest
            .labels
            .iter()
            .map(|label| least_dice(&mask, &open, label.value))
            .fold(1.0, f64::min)
    }
}

/// Dice of a label if every open voxel turns over: 2(a - u)/(2a - u + v) for a voxels of the label, u of them and
/// v others open. No other outcome has less, as both grow the difference.
fn least_dice(mask: &Array3<u8>, open: &Array3<bool>, label: u8) -> f64 {
    let (mut size, mut leaving, mut joining) = (0_u64, 0_u64, 0_u64);
    Zip::from(mask).and(open).for_each(|&value, &open| {
        size += u64::from(value == label);
        leaving += u64::from(open && value == label);
        joining += u64::from(open && value != label);
    });
    let whole = 2 * size - leaving + joining;
    if whole == 0 { 1.0 } else { 2.0 * (size - leaving) as f64 / whole as f64 }
}
