//! The published "majority vote": the mean of clamped samples, rounded. It is not a count of binary votes.

use ndarray::{Array3, ArrayView3, Zip};

/// Running mean of the votes on one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Tally {
    /// [L, H, W]: sum of clamp((x + 1)/2, 0, 1).
    sum: Array3<f32>,
    votes: usize,
}

impl Tally {
    #[must_use]
    pub fn new(shape: [usize; 3]) -> Self {
        Self { sum: Array3::zeros(shape), votes: 0 }
    }

    /// Adds one sample [L, H, W] in [-1, 1].
    pub fn add(&mut self, sample: ArrayView3<'_, f32>) {
        Zip::from(&mut self.sum)
            .and(sample)
            .for_each(|sum, &x| *sum += f32::midpoint(x, 1.0).clamp(0.0, 1.0));
        self.votes += 1;
    }

    #[must_use]
    pub fn votes(&self) -> usize {
        self.votes
    }

    /// Sum of the clamped samples [L, H, W].
    #[must_use]
    pub fn sum(&self) -> &Array3<f32> {
        &self.sum
    }

    /// Mean of the clamped samples [L, H, W], in [0, 1].
    #[must_use]
    pub fn mean(&self) -> Array3<f32> {
        &self.sum / self.votes.max(1) as f32
    }

    /// The mean rounded half to even [L, H, W]: 0 or 1, with 0.5 → 0.
    #[must_use]
    pub fn mask(&self) -> Array3<f32> {
        self.mean().mapv(f32::round_ties_even)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_half_rounds_to_zero_and_samples_are_clamped_first() {
        let mut tally = Tally::new([1, 1, 3]);
        for x in [[3.0, 1.0, -0.9], [-1.0, -1.0, -0.8]] {
            tally.add(ndarray::arr3(&[[x]]).view());
        }
        assert_eq!(tally.mask().as_slice().unwrap(), [0.0, 0.0, 0.0]);
        tally.add(ndarray::arr3(&[[[1.0, 1.0, -1.0]]]).view());
        assert_eq!(tally.mask().as_slice().unwrap(), [1.0, 1.0, 0.0]);
    }
}
