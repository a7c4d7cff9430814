//! What a sample of latencies says, and how sure it is of it.
//!
//! Nothing here assumes a distribution: percentiles are order statistics with binomial intervals, differences are
//! judged by ranks and by resampling. What is too few to say is `None`.

use serde::{Deserialize, Serialize};

use crate::sampler::Philox;

/// Of every interval here.
pub const CONFIDENCE: f64 = 0.95;
/// The percentiles that are reported.
pub const SHARES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];
const RESAMPLES: u32 = 2_000;
/// Names the stream of random numbers, so that it is nobody else's.
const STREAM: u64 = 0x6265_6e63_6862_6f6f;

/// Confidence that MLPerf's rules ask of a percentile (Inference rules, appendix "early stopping").
const MLPERF_CONFIDENCE: f64 = 0.99;
/// Queries are counted in blocks of this size there.
const MLPERF_BLOCK: f64 = 8192.0;

/// A percentile of latencies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentile {
    /// 0.99 for the 99th.
    pub share: f64,
    /// ms: the nearest rank; null where there are fewer queries than `needed`.
    pub value: Option<f64>,
    /// 95 % interval, from order statistics; a side is null where no query is far enough out to bound it.
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Least queries for which the percentile is given: MLPerf's early stopping.
    pub needed: u64,
    /// Queries that MLPerf asks for without early stopping.
    pub mlperf_queries: u64,
}

/// An estimate with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

/// Whether latencies drifted while they were measured: the second half against the first. Not steady where the medians
/// are more than [`DRIFT`] apart and the ranks say (Mann-Whitney, p < [`DRIFT_LEVEL`]) that it is no accident.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Steadiness {
    /// Median of the second half by that of the first.
    pub ratio: f64,
    pub p: f64,
    pub steady: bool,
}

/// Medians of two halves that are nearer than this are steady enough.
pub const DRIFT: f64 = 0.05;
pub const DRIFT_LEVEL: f64 = 0.01;
/// Fewer latencies say nothing about drift.
const FEWEST_FOR_DRIFT: usize = 20;

/// Ascending.
#[must_use]
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Mean of the two middle values where they are even in number; `None` of none.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let last = sorted.len().checked_sub(1)?;
    Some(f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]))
}

/// Every percentile of [`SHARES`].
#[must_use]
pub fn percentiles(values: &[f64]) -> Vec<Percentile> {
    let sorted = sorted(values);
    SHARES.into_iter().map(|share| percentile(&sorted, share)).collect()
}

/// Of ascending values.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> Percentile {
    let (count, needed) = (sorted.len(), early_stopping_queries(share));
    let mlperf_queries = mlperf_queries(share);
    if (count as u64) < needed {
        let (value, low, high) = (None, None, None);
        return Percentile { share, value, low, high, needed, mlperf_queries };
    }
    let rank = ((share * count as f64).ceil() as usize).clamp(1, count);
    let [low, high] = rank_interval(count, share).map(|rank| rank.map(|rank| sorted[rank - 1]));
    Percentile { share, value: Some(sorted[rank - 1]), low, high, needed, mlperf_queries }
}

/// The median with its interval.
#[must_use]
pub fn median_estimate(values: &[f64]) -> Option<Estimate> {
    let sorted = sorted(values);
    let [low, high] = rank_interval(sorted.len(), 0.5).map(|rank| rank.map(|r| sorted[r - 1]));
    Some(Estimate { value: median(values)?, low, high })
}

/// Ranks (from 1) of the order statistics between which the quantile `share` lies with at least [`CONFIDENCE`]: the
/// count of values below it is binomial.
fn rank_interval(count: usize, share: f64) -> [Option<usize>; 2] {
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let (mut low, mut high) = (None, None);
    let mut below = 0.0;
    for k in 0..=count {
        below += binomial(count, share, k);
        if below <= tail {
            low = Some(k + 1);
        }
        if high.is_none() && below >= 1.0 - tail {
            high = Some(k + 1).filter(|&rank| rank <= count);
            break;
        }
    }
    [low, high]
}

/// P(B = k) of B ~ Bin(n, p), 0 < p < 1.
fn binomial(n: usize, p: f64, k: usize) -> f64 {
    let (n, k) = (n as f64, k as f64);
    let choose = libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0);
    (choose + k * p.ln() + (n - k) * (-p).ln_1p()).exp()
}

/// Least queries of which MLPerf's early stopping gives a percentile: so many that, with 99 % confidence, one query
/// over it is not too few.
#[must_use]
pub fn early_stopping_queries(share: f64) -> u64 {
    let at_most_one_over = |n: f64| share.powf(n) + n * (1.0 - share) * share.powf(n - 1.0);
    let (mut low, mut high) = (1_u64, 2_u64);
    while at_most_one_over(high as f64) > 1.0 - MLPERF_CONFIDENCE {
        (low, high) = (high, 2 * high);
    }
    while high - low > 1 {
        let middle = u64::midpoint(low, high);
        if at_most_one_over(middle as f64) > 1.0 - MLPERF_CONFIDENCE {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// Queries after which a percentile is known within a twentieth of its distance from 1, with 99 % confidence, in
/// blocks of 8,192 (MLPerf Inference rules).
#[must_use]
pub fn mlperf_queries(share: f64) -> u64 {
    let margin = (1.0 - share) / 20.0;
    let z = normal_quantile((1.0 - MLPERF_CONFIDENCE) / 2.0);
    let queries = z * z * share * (1.0 - share) / (margin * margin);
    ((queries / MLPERF_BLOCK).ceil() * MLPERF_BLOCK) as u64
}

/// `None` of too few.
#[must_use]
pub fn steadiness(in_order: &[f64]) -> Option<Steadiness> {
    if in_order.len() < FEWEST_FOR_DRIFT {
        return None;
    }
    let (first, second) = in_order.split_at(in_order.len() / 2);
    let ratio = median(second)? / median(first)?;
    let p = mann_whitney(first, second);
    let steady = (ratio - 1.0).abs() <= DRIFT || p >= DRIFT_LEVEL;
    Some(Steadiness { ratio, p, steady })
}

/// Two-sided p of the Mann-Whitney U test that neither sample tends to be larger: normal approximation with
/// corrections for ties and continuity. 1 where a sample is empty.
#[must_use]
pub fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|&v| (v, true)).chain(b.iter().map(|&v| (v, false))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (n, m) = (a.len() as f64, b.len() as f64);
    let (mut rank_sum, mut ties, mut before) = (0.0, 0.0, 0.0);
    for tied in all.chunk_by(|x, y| x.0 == y.0) {
        let count = tied.len() as f64;
        let rank = before + f64::midpoint(count, 1.0);
        rank_sum += rank * tied.iter().filter(|(_, of_a)| *of_a).count() as f64;
        ties += count.powi(3) - count;
        before += count;
    }
    let total = n + m;
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    if variance.is_nan() || variance <= 0.0 {
        return 1.0;
    }
    let z = ((u - n * m / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    libm::erfc(z / std::f64::consts::SQRT_2)
}

/// Median of `b` by median of `a`, with the percentile bootstrap's interval at `confidence`. Blocks of neighbours are
/// drawn (length: cube root of the count), because latencies that follow each other are alike. `None` where a sample
/// is empty.
#[must_use]
pub fn ratio_of_medians(a: &[f64], b: &[f64], confidence: f64) -> Option<Estimate> {
    resampled([a, b], confidence, |a, b| b / a)
}

/// Median of `b` less that of `a`, likewise.
#[must_use]
pub fn difference_of_medians(a: &[f64], b: &[f64]) -> Option<Estimate> {
    resampled([a, b], CONFIDENCE, |a, b| b - a)
}

fn resampled(
    samples: [&[f64]; 2],
    confidence: f64,
    statistic: impl Fn(f64, f64) -> f64,
) -> Option<Estimate> {
    let value = statistic(median(samples[0])?, median(samples[1])?);
    let mut drawn: Vec<f64> = (0..RESAMPLES)
        .map(|resample| {
            let [a, b] = [0, 1].map(|which| {
                let blocks = draw_blocks(samples[which], [resample, which as u32]);
                median(&blocks).expect("as many values as before")
            });
            statistic(a, b)
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn[(share * (drawn.len() - 1) as f64).round() as usize];
    let tail = (1.0 - confidence) / 2.0;
    Some(Estimate { value, low: Some(at(tail)), high: Some(at(1.0 - tail)) })
}

/// As many values as there are, in blocks of neighbours that begin anywhere and go on at the start past the end.
fn draw_blocks(values: &[f64], [resample, which]: [u32; 2]) -> Vec<f64> {
    let count = values.len();
    let length = ((count as f64).cbrt().round() as usize).max(1);
    let starts = uniforms(resample, which, count.div_ceil(length));
    let from = |start: f64| {
        let start = (start * count as f64) as usize;
        (start..start + length).map(move |at| values[at % count])
    };
    starts.flat_map(from).take(count).collect()
}

/// Numbers in [0, 1), the same every time for one `stream` and `purpose`.
pub(super) fn uniforms(stream: u32, purpose: u32, count: usize) -> impl Iterator<Item = f64> {
    let philox = Philox::new(0, STREAM);
    (0..count.div_ceil(4) as u32)
        .flat_map(move |block| philox.bits([block, stream, purpose, 0]))
        .map(|word| f64::from(word) / 4_294_967_296.0)
        .take(count)
}

/// Φ⁻¹(p) by bisection of erfc; 0 < p < 1.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-40.0_f64, 40.0);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// Slope of `y` over `x`: the median of the slopes between all pairs (Theil and Sen). `None` of fewer than two.
#[must_use]
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let pairs = points.iter().enumerate().flat_map(|(n, a)| {
        points[n + 1..].iter().filter(|b| b.0 != a.0).map(move |b| (b.1 - a.1) / (b.0 - a.0))
    });
    median(&pairs.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(count: usize) -> Vec<f64> {
        (1..=count).map(|n| n as f64).collect()
    }

    #[test]
    fn intervals_are_those_of_the_tables() {
        // Conover, Practical Nonparametric Statistics: ranks of the 95 % interval of a median.
        assert_eq!(rank_interval(10, 0.5), [Some(2), Some(9)]);
        assert_eq!(rank_interval(20, 0.5), [Some(6), Some(15)]);
        assert_eq!(rank_interval(100, 0.5), [Some(40), Some(61)]);
        // The least count whose largest value bounds p99 with 97.5 %: ln 0.025 / ln 0.99 = 367.04.
        assert_eq!(rank_interval(367, 0.99)[1], None);
        assert_eq!(rank_interval(368, 0.99)[1], Some(368));
        assert_eq!(rank_interval(5, 0.5), [None, None], "2/32 is more than 5 %");
    }

    #[test]
    fn query_counts_are_those_of_mlperf() {
        assert_eq!([0.9, 0.95, 0.99].map(mlperf_queries), [24_576, 57_344, 270_336]);
        assert_eq!([0.9, 0.99].map(early_stopping_queries), [64, 662]);
    }

    #[test]
    fn a_percentile_is_a_nearest_rank_or_too_few() {
        let of = |count, share| percentile(&numbers(count), share);
        assert_eq!(of(100, 0.5).value, Some(50.0));
        assert_eq!((of(100, 0.5).low, of(100, 0.5).high), (Some(40.0), Some(61.0)));
        assert_eq!(of(1000, 0.99).value, Some(990.0));
        let few = of(661, 0.99);
        assert_eq!((few.value, few.low, few.needed), (None, None, 662));
        assert_eq!(of(0, 0.5).value, None);
        assert_eq!(median(&[3.0, 1.0, 2.0, 10.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn mann_whitney_is_that_of_scipy() {
        // scipy.stats.mannwhitneyu(a, b, method="asymptotic")
        let p = mann_whitney(&[1.0, 2.0, 3.0, 4.0, 5.0], &[4.0, 5.0, 6.0, 7.0, 8.0]);
        assert!((p - SCIPY_TIES).abs() < 1e-9, "{p}");
        let p =
            mann_whitney(&numbers(30), &numbers(30).iter().map(|n| n + 8.5).collect::<Vec<_>>());
        assert!((p - SCIPY_SHIFT).abs() < 1e-9, "{p}");
        assert_eq!(mann_whitney(&[1.0; 9], &[1.0; 7]), 1.0);
        assert_eq!(mann_whitney(&[], &[1.0]), 1.0);
    }

    const SCIPY_TIES: f64 = 0.035_578_833_239_594_1;
    const SCIPY_SHIFT: f64 = 0.001_236_184_563_209_011;

    #[test]
    fn a_drift_shows_and_noise_does_not() {
        let noise: Vec<f64> = uniforms(3, 9, 200).map(|u| 100.0 + 10.0 * u).collect();
        assert!(steadiness(&noise).unwrap().steady);
        let heating: Vec<f64> =
            noise.iter().enumerate().map(|(n, v)| v + n as f64 / 10.0).collect();
        let found = steadiness(&heating).unwrap();
        assert!(!found.steady && found.ratio > 1.05, "{found:?}");
        assert_eq!(steadiness(&noise[..19]), None);
    }

    #[test]
    fn a_ratio_of_medians_is_bounded_by_its_interval() {
        let a: Vec<f64> = uniforms(1, 9, 400).map(|u| 10.0 + u).collect();
        let b: Vec<f64> = uniforms(2, 9, 400).map(|u| 1.1 * (10.0 + u)).collect();
        let found = ratio_of_medians(&a, &b, 0.99).unwrap();
        assert!(found.low.unwrap() > 1.08 && found.high.unwrap() < 1.12, "{found:?}");
        let same = ratio_of_medians(&a, &a, 0.99).unwrap();
        assert!(same.low.unwrap() < 1.0 && same.high.unwrap() > 1.0, "{same:?}");
        assert_eq!(ratio_of_medians(&a, &[], 0.99), None);
    }

    #[test]
    fn a_slope_bears_an_outlier() {
        let mut line: Vec<(f64, f64)> =
            (0..20).map(|n| (f64::from(n), 3.0 * f64::from(n))).collect();
        line[7].1 = 1e6;
        assert!((slope(&line).unwrap() - 3.0).abs() < 1e-12);
        assert_eq!(slope(&line[..1]), None);
    }

    proptest! {
        #[test]
        fn a_percentile_lies_in_its_interval(
            values in prop::collection::vec(0.0_f64..1e6, 64..400),
            share in 0.05_f64..0.9,
        ) {
            let found = percentile(&sorted(&values), share);
            if let Some(value) = found.value {
                prop_assert!(found.low.is_none_or(|low| low <= value));
                prop_assert!(found.high.is_none_or(|high| value <= high));
                let below = values.iter().filter(|v| **v < value).count() as f64;
                prop_assert!(below < share * values.len() as f64 + 1.0);
            }
        }

        #[test]
        fn the_test_is_symmetric_and_a_chance(
            a in prop::collection::vec(0_u8..20, 1..40),
            b in prop::collection::vec(0_u8..20, 1..40),
        ) {
            let [a, b] = [a, b].map(|v| v.into_iter().map(f64::from).collect::<Vec<_>>());
            let p = mann_whitney(&a, &b);
            prop_assert!((0.0..=1.0).contains(&p));
            prop_assert!((p - mann_whitney(&b, &a)).abs() < 1e-9);
        }

        #[test]
        fn binomial_chances_sum_to_one(n in 1_usize..3000, p in 0.001_f64..0.999) {
            let sum: f64 = (0..=n).map(|k| binomial(n, p, k)).sum();
            prop_assert!((sum - 1.0).abs() < 1e-8, "{}", sum);
        }
    }
}
