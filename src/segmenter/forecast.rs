//! What votes that are not drawn would change: the rule `adaptive`.

use std::collections::BTreeMap;

use super::vote::{Booth, Election};
use crate::{
    bundle::{Decision, Polarity},
    sampler::{Agreement, Turnovers, Voice, upset},
};

/// Voxels that votes not drawn are expected to turn over, and voxels of the structure.
#[derive(Clone, Copy, Default)]
struct Expected {
    turned: f64,
    structure: f64,
}

impl Expected {
    fn plus(self, other: Self) -> Self {
        Self { turned: self.turned + other.turned, structure: self.structure + other.structure }
    }

    /// Expected against the full vote: 2|A∩B|/(|A| + |B|) where |A| and |B| are nearly the same.
    fn dice(self) -> f64 {
        if self.turned == 0.0 { 1.0 } else { 1.0 - (self.turned / (2.0 * self.structure)).min(1.0) }
    }

    /// Voxels that may turn over so that the Dice stays at 1 - `error`. Where nothing is marked, half a voxel.
    fn allowed(self, error: f64) -> f64 {
        (error * 2.0 * self.structure).max(0.5)
    }
}

/// Of finished chunks and of the present one.
#[derive(Default)]
pub(super) struct Forecast {
    finished: Expected,
    present: Expected,
}

impl Forecast {
    /// The booths that stay open so that the expected Dice is at least 1 - `error`.
    pub fn update(
        &mut self,
        booths: &[Booth],
        election: &Election<'_>,
        error: f64,
        unfinished: &[usize],
    ) -> Vec<usize> {
        let Survey { all, turned_by } = Survey::of(booths, election);
        self.present = all;
        let allowed = all.allowed(error);
        tracing::debug!(open = unfinished.len(), dice = all.dice(), "expected of the votes so far");
        if all.turned <= allowed {
            return Vec::new();
        }
        // Every booth may spend its even share.
        let share = allowed / booths.len() as f64;
        unfinished.iter().copied().filter(|&number| turned_by[number] > share).collect()
    }

    pub fn close(&mut self) {
        self.finished = self.finished.plus(self.present);
        self.present = Expected::default();
    }

    /// Expected of the finished chunks.
    pub fn dice(&self) -> f64 {
        self.finished.dice()
    }
}

/// Every voxel that booths have a voice in.
struct Survey {
    all: Expected,
    /// The part of `all.turned` that each booth is answerable for.
    turned_by: Vec<f64>,
}

impl Survey {
    fn of(booths: &[Booth], election: &Election<'_>) -> Self {
        let channels: Vec<usize> = match election.manifest.decision {
            Decision::Argmax => (1..election.manifest.network.label_channels).collect(),
            Decision::Threshold { .. } => vec![0],
        };
        let model = Agreement::fit(booths.iter().map(|booth| &booth.tally), &channels);
        let mut by_votes = BTreeMap::new();
        let mut on_slice = BTreeMap::<usize, Vec<usize>>::new();
        for (number, Booth { crop, tally, .. }) in booths.iter().enumerate() {
            let of = || model.turnovers(tally.votes(), election.votes);
            by_votes.entry(tally.votes()).or_insert_with(of);
            on_slice.entry(crop.slice).or_default().push(number);
        }
        let turnovers = booths.iter().map(|booth| &by_votes[&booth.tally.votes()]).collect();
        let (decision, label) = (&election.manifest.decision, election.shape().label);
        let mut poll = Poll::new(booths, turnovers, decision, label);
        let mut survey = Self { all: Expected::default(), turned_by: vec![0.0; booths.len()] };
        let grid = &election.prepared.grid;
        let ([_, height, width], [_, top, left]) = (grid.inner(), grid.offset);
        for on_slice in on_slice.values() {
            for row in top..top + height {
                for column in left..left + width {
                    poll.ask(on_slice, [row, column]);
                    survey.count(&poll);
                }
            }
        }
        survey
    }

    fn count(&mut self, poll: &Poll<'_>) {
        self.all.structure += f64::from(u8::from(poll.is_structure));
        let chance = upset(&poll.voices, poll.wins_ties);
        if chance == 0.0 {
            return;
        }
        self.all.turned += chance;
        let sum: f64 = poll.voices.iter().map(|voice| voice.turnover).sum();
        for (&number, voice) in poll.numbers.iter().zip(&poll.voices) {
            self.turned_by[number] += chance * voice.turnover / sum;
        }
    }
}

/// What booths say of one voxel after another.
struct Poll<'a> {
    booths: &'a [Booth],
    /// Of each booth's votes.
    turnovers: Vec<&'a Turnovers>,
    decision: &'a Decision,
    /// [L, H, W] of a booth.
    label: [usize; 3],
    /// The booths that cover the voxel, and their voices.
    numbers: Vec<usize>,
    voices: Vec<Voice>,
    /// Whether the label that has won so far wins a tie as well.
    wins_ties: bool,
    is_structure: bool,
    /// Rounded votes by label.
    sums: Vec<usize>,
}

impl<'a> Poll<'a> {
    fn new(
        booths: &'a [Booth],
        turnovers: Vec<&'a Turnovers>,
        decision: &'a Decision,
        label: [usize; 3],
    ) -> Self {
        let (numbers, voices, sums) = (Vec::new(), Vec::new(), Vec::new());
        let (wins_ties, is_structure) = (false, false);
        Self { booths, turnovers, decision, label, numbers, voices, wins_ties, is_structure, sums }
    }

    fn ask(&mut self, on_slice: &[usize], [row, column]: [usize; 2]) {
        let [labels, height, width] = self.label;
        let covers = |&number: &usize| {
            let crop = self.booths[number].crop;
            (crop.row..crop.row + height).contains(&row)
                && (crop.column..crop.column + width).contains(&column)
        };
        self.numbers.clear();
        self.numbers.extend(on_slice.iter().copied().filter(covers));
        let sum = |number: usize, label: usize| {
            let Booth { crop, tally, .. } = &self.booths[number];
            tally.sum()[[label, row - crop.row, column - crop.column]]
        };
        let says = |number: usize, label: usize| {
            2.0 * sum(number, label) > self.booths[number].tally.votes() as f32
        };
        let turnover = |number: usize, label| self.turnovers[number].at(sum(number, label));
        let count = |label| self.numbers.iter().filter(|&&number| says(number, label)).count();
        self.sums.clear();
        self.sums.extend((0..labels).map(count));
        self.voices.clear();
        match *self.decision {
            Decision::Argmax => {
                let first_but = |other: Option<usize>| {
                    let labels = (0..labels).filter(|&label| Some(label) != other);
                    labels.rev().max_by_key(|&label| self.sums[label]).unwrap_or(0)
                };
                let winner = first_but(None);
                let next = first_but(Some(winner));
                (self.wins_ties, self.is_structure) = (winner < next, winner > 0);
                self.voices.extend(self.numbers.iter().map(|&number| Voice {
                    stand: i8::from(says(number, winner)) - i8::from(says(number, next)),
                    turnover: turnover(number, winner).max(turnover(number, next)),
                }));
            }
            Decision::Threshold { foreground, .. } => {
                let is_one = 2 * self.sums[0] > self.numbers.len();
                (self.wins_ties, self.is_structure) =
                    (!is_one, is_one != (foreground == Polarity::Negative));
                self.voices.extend(self.numbers.iter().map(|&number| Voice {
                    stand: if says(number, 0) == is_one { 1 } else { -1 },
                    turnover: turnover(number, 0),
                }));
            }
        }
    }
}
