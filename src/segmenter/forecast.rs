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
        let mut turnovers = BTreeMap::new();
        let mut on_slice = BTreeMap::<usize, Vec<usize>>::new();
        for (number, Booth { crop, tally, .. }) in booths.iter().enumerate() {
            let of = || model.turnovers(tally.votes(), election.votes);
            turnovers.entry(tally.votes()).or_insert_with(of);
            on_slice.entry(crop.slice).or_default().push(number);
        }
        let mut survey = Self { all: Expected::default(), turned_by: vec![0.0; booths.len()] };
        let grid = &election.prepared.grid;
        let ([_, height, width], [_, top, left]) = (grid.inner(), grid.offset);
        let mut poll = Poll::default();
        for on_slice in on_slice.values() {
            for row in top..top + height {
                for column in left..left + width {
                    poll.ask(booths, on_slice, election, &turnovers, [row, column]);
                    survey.count(&poll);
                }
            }
        }
        survey
    }

    fn count(&mut self, poll: &Poll) {
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

/// What booths say of one voxel.
#[derive(Default)]
struct Poll {
    numbers: Vec<usize>,
    voices: Vec<Voice>,
    /// Whether the label that has won so far wins a tie as well.
    wins_ties: bool,
    is_structure: bool,
    /// Rounded votes by label.
    sums: Vec<usize>,
}

impl Poll {
    fn ask(
        &mut self,
        booths: &[Booth],
        on_slice: &[usize],
        election: &Election<'_>,
        turnovers: &BTreeMap<usize, Turnovers>,
        [row, column]: [usize; 2],
    ) {
        let [labels, height, width] = election.shape().label;
        self.numbers.clear();
        self.voices.clear();
        let covers = |&number: &usize| {
            let crop = booths[number].crop;
            (crop.row..crop.row + height).contains(&row)
                && (crop.column..crop.column + width).contains(&column)
        };
        self.numbers.extend(on_slice.iter().copied().filter(covers));
        let ask = |number: usize, label: usize| {
            let Booth { crop, tally, .. } = &booths[number];
            let sum = tally.sum()[[label, row - crop.row, column - crop.column]];
            let chance = || turnovers[&tally.votes()].at(sum);
            (2.0 * sum > tally.votes() as f32, chance())
        };
        self.sums.clear();
        for label in 0..labels {
            self.sums.push(self.numbers.iter().filter(|&&number| ask(number, label).0).count());
        }
        match election.manifest.decision {
            Decision::Argmax => {
                let first = |others: usize| {
                    let labels = (0..labels).filter(|&label| label != others);
                    labels.rev().max_by_key(|&label| self.sums[label]).unwrap_or(0)
                };
                let winner = first(usize::MAX);
                let next = first(winner);
                (self.wins_ties, self.is_structure) = (winner < next, winner > 0);
                self.voices.extend(self.numbers.iter().map(|&number| {
                    let (own, other) = (ask(number, winner), ask(number, next));
                    let stand = i8::from(own.0) - i8::from(other.0);
                    Voice { stand, turnover: own.1.max(other.1) }
                }));
            }
            Decision::Threshold { foreground, .. } => {
                let is_one = 2 * self.sums[0] > self.numbers.len();
                (self.wins_ties, self.is_structure) =
                    (!is_one, is_one != (foreground == Polarity::Negative));
                self.voices.extend(self.numbers.iter().map(|&number| {
                    let (says_one, turnover) = ask(number, 0);
                    Voice { stand: if says_one == is_one { 1 } else { -1 }, turnover }
                }));
            }
        }
    }
}
