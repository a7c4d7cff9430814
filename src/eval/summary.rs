//! Means over cases and how sure they are.
//!
//! The 95 % interval is the percentile bootstrap over cases: the cases are drawn again with replacement,
//! [`RESAMPLES`] times from a fixed seed, and the 2.5th and 97.5th percentile of the means are reported. It needs no
//! normal distribution, which Dice near 1 and distances do not have, and never leaves their range. Drawing whole
//! cases keeps the labels of a case together. One case has no interval.

use serde::Serialize;

use crate::{sampler::Philox, truth::metrics::percentile};

pub const RESAMPLES: u32 = 10_000;
/// Names the stream, so that it is nobody else's.
const STREAM: u64 = 0x626f_6f74_7374_7261;

/// A mean over cases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Statistic {
    /// `None` where no case has a value.
    pub mean: Option<f64>,
    /// 95 % interval of the mean.
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// How many values the mean is of.
    pub values: usize,
    /// How many were left out because they are not defined.
    pub undefined: usize,
}

/// `table`: for each label the value of every case. Returns the mean of each label, then the mean of those means.
#[must_use]
pub fn summarise(table: &[Vec<Option<f64>>]) -> (Vec<Statistic>, Statistic) {
    let cases = table.first().map_or(0, Vec::len);
    let mut of_labels = vec![Vec::new(); table.len()];
    let mut of_all = Vec::new();
    if cases > 1 {
        for resample in 0..RESAMPLES {
            let drawn = draw(resample, cases);
            let means = means(table, &drawn);
            for (label, mean) in means.iter().enumerate() {
                of_labels[label].extend(*mean);
            }
            of_all.extend(mean(means));
        }
    }
    let every: Vec<usize> = (0..cases).collect();
    let observed = means(table, &every);
    let counted = |values: &mut dyn Iterator<Item = &Option<f64>>| {
        values.fold((0, 0), |(there, not), value| match value {
            Some(_) => (there + 1, not),
            None => (there, not + 1),
        })
    };
    let labels = table
        .iter()
        .zip(&observed)
        .zip(of_labels)
        .map(|((column, &mean), resampled)| statistic(mean, resampled, counted(&mut column.iter())))
        .collect();
    let all = statistic(mean(observed), of_all, counted(&mut table.iter().flatten()));
    (labels, all)
}

fn statistic(
    mean: Option<f64>,
    mut resampled: Vec<f64>,
    (values, undefined): (usize, usize),
) -> Statistic {
    resampled.sort_by(f64::total_cmp);
    let bound = |share| percentile(&resampled, share).filter(|_| values > 1);
    Statistic { mean, low: bound(0.025), high: bound(0.975), values, undefined }
}

fn means(table: &[Vec<Option<f64>>], cases: &[usize]) -> Vec<Option<f64>> {
    table.iter().map(|column| mean(cases.iter().map(|&case| column[case]))).collect()
}

/// Of the values that are defined.
pub(super) fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) =
        values.into_iter().flatten().fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// As many case numbers as there are cases, with replacement.
fn draw(resample: u32, cases: usize) -> Vec<usize> {
    let philox = Philox::new(0, STREAM);
    (0..cases.div_ceil(4) as u32)
        .flat_map(|block| philox.bits([block, resample, 0, 0]))
        .take(cases)
        .map(|word| ((u64::from(word) * cases as u64) >> 32) as usize)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undefined_values_stay_out_of_means_and_are_counted() {
        let table = [vec![Some(0.8), None, Some(0.6)], vec![Some(1.0), Some(0.9), Some(0.8)]];
        let (labels, all) = summarise(&table);
        assert!((labels[0].mean.unwrap() - 0.7).abs() < 1e-12);
        assert_eq!((labels[0].values, labels[0].undefined), (2, 1));
        assert!((all.mean.unwrap() - 0.8).abs() < 1e-12, "the mean of 0.7 and 0.9");
        assert_eq!((all.values, all.undefined), (5, 1));
    }

    #[test]
    fn the_interval_is_about_two_standard_errors_and_the_same_every_time() {
        let column: Vec<Option<f64>> = (0..100).map(|n| Some(f64::from(n) / 99.0)).collect();
        let (first, _) = summarise(std::slice::from_ref(&column));
        let standard_error = (101.0_f64 / 99.0 / 12.0).sqrt() / 10.0;
        for (bound, side) in [(first[0].low, -1.96), (first[0].high, 1.96)] {
            let expected = 0.5 + side * standard_error;
            assert!((bound.unwrap() - expected).abs() < 0.003, "{bound:?} {expected}");
        }
        assert_eq!(first, summarise(&[column]).0);
    }

    #[test]
    fn one_case_has_a_mean_without_an_interval_and_none_has_neither() {
        let (labels, _) = summarise(&[vec![Some(0.5)]]);
        assert_eq!((labels[0].mean, labels[0].low, labels[0].high), (Some(0.5), None, None));
        let (labels, all) = summarise(&[vec![None, None]]);
        assert_eq!((labels[0].mean, all.mean, all.low), (None, None, None));
    }
}
