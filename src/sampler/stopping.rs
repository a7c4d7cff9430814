//! Votes that end early ([`Stopping`]), and how sure the result is.

use std::{fmt, str::FromStr};

use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::Tally;

/// When the vote on an image may end before its last sample.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Stopping {
    /// All votes are drawn.
    #[default]
    Never,
    /// Once no further vote can change a pixel: the mask is that of the full vote, bit for bit.
    Exact,
    /// Once the pixels that further votes could change bound every label's Dice against the mask of the full
    /// vote to at least this much.
    Certified { dice: f64 },
    /// Once the Dice against the mask of the full vote is expected to be at least 1 - `error`: by the beta-binomial
    /// model of [`Agreement`] for a window's pixel, and by [`upset`] for a voxel that several windows cover.
    Adaptive { error: f64 },
}

impl Stopping {
    /// Votes of `planned` before which ending is out of the question.
    #[must_use]
    pub fn first_votes(self, planned: usize) -> usize {
        match self {
            Self::Never => planned,
            // Until half of the votes are in, the other half could outvote them.
            Self::Exact | Self::Certified { .. } => planned.div_ceil(2),
            // One sample says nothing about how much samples disagree, and of two that do, the mean is a tie.
            Self::Adaptive { .. } => planned.min(3),
        }
    }
}

impl fmt::Display for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Exact => f.write_str("exact"),
            Self::Certified { dice } => write!(f, "certified:{dice}"),
            Self::Adaptive { error } => write!(f, "adaptive:{error}"),
        }
    }
}

impl FromStr for Stopping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, level) = text.split_once(':').map_or((text, None), |(k, l)| (k, Some(l)));
        let level = level.map(|level| {
            level
                .parse::<f64>()
                .ok()
                .filter(|level| (0.0..=1.0).contains(level))
                .ok_or_else(|| format!("{level:?} in {text:?} is not a number from 0 to 1"))
        });
        match (kind, level.transpose()?) {
            ("never", None) => Ok(Self::Never),
            ("exact", None) => Ok(Self::Exact),
            ("certified", level) => Ok(Self::Certified { dice: level.unwrap_or(0.995) }),
            ("adaptive", level) => Ok(Self::Adaptive { error: level.unwrap_or(0.005) }),
            _ => Err(format!(
                "{text:?} is not never, exact, certified[:DICE] or adaptive[:ERROR], such as certified:0.995"
            )),
        }
    }
}

impl TryFrom<String> for Stopping {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Stopping> for String {
    fn from(stopping: Stopping) -> Self {
        stopping.to_string()
    }
}

/// Smallest and largest mean [L, H, W] that the full vote can still come to. The bounds hold in the arithmetic
/// of the vote itself, which rounds monotonically.
#[must_use]
pub fn reachable(tally: &Tally, planned: usize) -> [Array3<f32>; 2] {
    let left = planned.saturating_sub(tally.votes());
    let all = planned.max(tally.votes()).max(1) as f32;
    let lowest = tally.sum().mapv(|sum| sum / all);
    let highest = tally.sum().mapv(|sum| (0..left).fold(sum, |sum, _| sum + 1.0) / all);
    [lowest, highest]
}

/// How much the samples of a case agree: pixel by pixel a vote of one is a coin whose bias differs between pixels
/// as a beta distribution, fitted to the case's own votes (method of moments). It foretells the pixels that the
/// rest of the vote will turn over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Of the beta distribution.
    alpha: f64,
    beta: f64,
}

/// Least weight of the prior, in votes: where all samples agree everywhere, a pixel is still never quite certain.
const LEAST_PRIOR: f64 = 0.02;

impl Agreement {
    /// Fits the model to the sums of votes of each image; at least two votes each.
    pub fn fit<'a>(tallies: impl IntoIterator<Item = &'a Tally>, channels: &[usize]) -> Self {
        let (mut pixels, mut mean, mut pairs) = (0.0, 0.0, 0.0);
        for tally in tallies {
            let votes = tally.votes() as f64;
            if votes < 2.0 {
                continue;
            }
            for &channel in channels {
                for &sum in tally.sum().index_axis(ndarray::Axis(0), channel) {
                    let ones = f64::from(sum);
                    pixels += 1.0;
                    mean += ones / votes;
                    // Share of the ordered pairs of different votes that are both one; soft votes count in parts.
                    pairs += (ones * (ones - 1.0)).max(0.0) / (votes * (votes - 1.0));
                }
            }
        }
        if pixels == 0.0 {
            return Self { alpha: 0.5, beta: 0.5 };
        }
        let mean = (mean / pixels).clamp(1e-6, 1.0 - 1e-6);
        let together = pairs / pixels;
        // Correlation of two votes on one pixel: 1/(α + β + 1).
        let correlation = (together - mean * mean) / (mean * (1.0 - mean));
        let weight = (1.0 / correlation.clamp(1e-3, 1.0) - 1.0).max(LEAST_PRIOR);
        Self { alpha: mean * weight, beta: (1.0 - mean) * weight }
    }

    /// Chance that the mean of `planned` votes rounds otherwise than that of the `votes` so far, whose sum is `ones`.
    #[must_use]
    pub fn turnover(self, ones: f64, votes: usize, planned: usize) -> f64 {
        let left = planned.saturating_sub(votes);
        let is_one = ones > 0.5 * votes as f64;
        let (a, b) = (self.alpha + ones, self.beta + (votes as f64 - ones).max(0.0));
        // Beta-binomial distribution of the ones among the votes left.
        let mut chance = (ln_beta(a, b + left as f64) - ln_beta(a, b)).exp();
        let mut turned = 0.0;
        for more in 0..=left {
            let will_be_one = ones + more as f64 > 0.5 * planned as f64;
            if will_be_one != is_one {
                turned += chance;
            }
            let (n, k) = (left as f64, more as f64);
            if more < left {
                chance *= (n - k) / (k + 1.0) * (a + k) / (b + n - k - 1.0);
            }
        }
        turned.clamp(0.0, 1.0)
    }

    /// The same for every sum that `votes` samples can have.
    #[must_use]
    pub fn turnovers(self, votes: usize, planned: usize) -> Turnovers {
        let steps = votes * Turnovers::FINE as usize;
        let of = |step| self.turnover(f64::from(step) / Turnovers::FINE, votes, planned);
        Turnovers { chances: (0..=steps as u32).map(of).collect() }
    }
}

/// [`Agreement::turnover`] by the sum of the votes so far.
#[derive(Debug, Clone)]
pub struct Turnovers {
    chances: Vec<f64>,
}

impl Turnovers {
    /// Steps of a vote: soft votes are few, and the chance changes slowly.
    const FINE: f64 = 16.0;

    /// `sum`: of the votes so far.
    #[must_use]
    pub fn at(&self, sum: f32) -> f64 {
        let step = (f64::from(sum) * Self::FINE).round() as usize;
        self.chances[step.min(self.chances.len() - 1)]
    }
}

/// One image's voice in the decision on a voxel that several images cover.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Voice {
    /// 1 for the label that has won so far, -1 for the one that comes next, 0 for neither.
    pub stand: i8,
    /// Chance that the rest of its votes turns it over.
    pub turnover: f64,
}

/// Voices that may turn over; more count as they stand.
const MOST_VOICES: usize = 64;
/// A chance that is not worth its computation.
const NEGLIGIBLE: f64 = 1e-6;

/// Chance that a voxel's label changes when each of its `voices` may turn over, independently of the others and to the
/// winner's disadvantage wherever it does not stand against it: the least that is left of the margin decides.
#[must_use]
pub fn upset(voices: &[Voice], wins_ties: bool) -> f64 {
    if let [only] = voices {
        return only.turnover;
    }
    let margin: i32 = voices.iter().map(|voice| i32::from(voice.stand)).sum();
    let margin = margin.clamp(-(MOST_VOICES as i32), MOST_VOICES as i32);
    // Voices that must turn over at least, and a bound on the chance that so many do.
    let fewest = u32::try_from(margin + i32::from(wins_ties)).unwrap_or(0).div_ceil(2);
    let sum: f64 = voices.iter().map(|voice| voice.turnover).sum();
    if (1..=fewest).map(|n| sum / f64::from(n)).product::<f64>() < NEGLIGIBLE {
        return 0.0;
    }
    let mut chances = [0.0; 4 * MOST_VOICES + 1];
    let middle = 2 * MOST_VOICES as i32;
    let at = |margin: i32| (margin + middle) as usize;
    chances[at(margin)] = 1.0;
    let (mut low, mut high) = (margin, margin);
    for voice in voices.iter().take(MOST_VOICES) {
        let change = match voice.stand {
            1 => -2,
            0 => -1,
            _ => 2,
        };
        let (q, mut next) = (voice.turnover, [0.0; 4 * MOST_VOICES + 1]);
        for margin in low..=high {
            next[at(margin)] += (1.0 - q) * chances[at(margin)];
            next[at(margin + change)] += q * chances[at(margin)];
        }
        (low, high) = (low + change.min(0), high + change.max(0));
        chances = next;
    }
    let is_lost = |margin: &i32| *margin < 0 || (*margin == 0 && !wins_ties);
    (low..=high).filter(is_lost).map(|margin| chances[at(margin)]).sum()
}

fn ln_beta(a: f64, b: f64) -> f64 {
    libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b)
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;
    use proptest::prelude::*;

    use super::*;

    fn tally(votes: &[f32]) -> Tally {
        let mut tally = Tally::new([1, 1, 1]);
        for vote in votes {
            tally.add(Array3::from_elem((1, 1, 1), 2.0 * vote - 1.0).view());
        }
        tally
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        for text in ["never", "exact", "certified:0.995", "adaptive:0.005"] {
            assert_eq!(text.parse::<Stopping>().unwrap().to_string(), text);
        }
        assert_eq!("certified".parse(), Ok(Stopping::Certified { dice: 0.995 }));
        for wrong in ["", "exact:1", "certified:2", "adaptive:x", "soon"] {
            assert!(wrong.parse::<Stopping>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn the_full_vote_stays_within_reach(votes in prop::collection::vec(0.0_f32..=1.0, 1..40), drawn in 0_usize..40) {
            let drawn = drawn.min(votes.len());
            let [low, high] = reachable(&tally(&votes[..drawn]), votes.len());
            let full = tally(&votes).mean()[[0, 0, 0]];
            prop_assert!(low[[0, 0, 0]] <= full && full <= high[[0, 0, 0]]);
        }

        #[test]
        fn turnover_is_a_chance(ones in 0.0_f64..=4.0, left in 0_usize..30, a in 0.01_f64..3.0, b in 0.01_f64..3.0) {
            let chance = Agreement { alpha: a, beta: b }.turnover(ones, 4, 4 + left);
            prop_assert!((0.0..=1.0).contains(&chance));
            prop_assert!(left > 0 || chance == 0.0);
        }
    }

    proptest! {
        #[test]
        fn an_upset_is_the_sum_over_all_ways_to_turn_over(
            voices in prop::collection::vec((-1_i8..=1, 0.0_f64..=1.0), 2..9),
            wins_ties in any::<bool>(),
        ) {
            let voices: Vec<_> = voices.into_iter().map(|(stand, turnover)| Voice { stand, turnover }).collect();
            let mut lost = 0.0;
            for turned in 0_u32..1 << voices.len() {
                let (mut chance, mut margin) = (1.0, 0);
                for (bit, voice) in voices.iter().enumerate() {
                    let is_turned = turned >> bit & 1 == 1;
                    chance *= if is_turned { voice.turnover } else { 1.0 - voice.turnover };
                    margin += match (is_turned, voice.stand) {
                        (true, 0) => -1,
                        (true, stand) => -stand,
                        (false, stand) => stand,
                    };
                }
                if margin < 0 || margin == 0 && !wins_ties {
                    lost += chance;
                }
            }
            prop_assert!((upset(&voices, wins_ties) - lost).abs() < 1e-5, "{lost}");
        }
    }

    #[test]
    fn windows_that_agree_outvote_one_that_wavers() {
        let voice = |stand, turnover| Voice { stand, turnover };
        assert_eq!(upset(&[voice(1, 0.3)], false), 0.3, "alone it decides");
        let sure = voice(1, 0.001);
        assert!(upset(&[voice(1, 0.3), sure, sure, sure], false) < 1e-3);
        assert!(upset(&[voice(1, 0.3), sure, voice(-1, 0.001)], false) > 0.29);
    }

    #[test]
    fn turnover_is_the_beta_binomial_tail() {
        // Uniform prior, 2 of 2 votes, 1 left: mean of 3 stays above a half whatever comes.
        let uniform = Agreement { alpha: 1.0, beta: 1.0 };
        assert_eq!(uniform.turnover(2.0, 2, 3), 0.0);
        // 1 of 1, 2 left: turned over only by two zeros; Beta(2, 1): 1/3 · 2/4 = 1/6.
        assert!((uniform.turnover(1.0, 1, 3) - 1.0 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn the_fit_finds_the_distribution_that_votes_came_from() {
        // Every pixel agrees with itself: nearly no prior. Half of the pixels at odds: much.
        let sure = [tally(&[1.0, 1.0]), tally(&[0.0, 0.0])];
        let torn = [tally(&[1.0, 0.0]), tally(&[0.0, 1.0])];
        let sure = Agreement::fit(&sure, &[0]);
        let torn = Agreement::fit(&torn, &[0]);
        assert!(sure.turnover(2.0, 2, 30) < 0.02, "{sure:?}");
        assert!(torn.turnover(2.0, 2, 30) > 0.2, "{torn:?}");
    }
}
