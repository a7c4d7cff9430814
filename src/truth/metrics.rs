//! Overlap and surface distance of two label masks, as MONAI defines them.
//!
//! - Dice `2|A∩B|/(|A|+|B|)` and IoU `|A∩B|/|A∪B|` are undefined (`None`) where the truth does not hold the label,
//!   whatever the prediction holds (`compute_dice`, `compute_iou` with `ignore_empty=True`, NaN left out of means).
//! - HD95 follows `compute_hausdorff_distance(percentile=95)`: surface voxels are those that an erosion with the
//!   6-neighbourhood takes away, outside the grid being background; from each surface voxel of one mask the exact
//!   Euclidean distance to the nearest of the other; of each direction the 95th percentile with linear
//!   interpolation; of both the larger. Undefined where either mask is empty (MONAI: NaN or infinite).
//! - A grid of one slice is a 2-D image: 4-neighbourhood, no surface towards the absent slices.
//!
//! Masks are [D, H, W] label values; both of one size, which the caller checks. All in f64.

use ndarray::{Array3, ArrayView3, Axis, Zip, s};

/// Voxels of a label in the prediction, in the truth and in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    pub predicted: usize,
    pub truth: usize,
    pub both: usize,
}

impl Overlap {
    #[must_use]
    pub fn count(prediction: ArrayView3<'_, u8>, truth: ArrayView3<'_, u8>, label: u8) -> Self {
        let mut overlap = Self { predicted: 0, truth: 0, both: 0 };
        Zip::from(prediction).and(truth).for_each(|&p, &t| {
            overlap.predicted += usize::from(p == label);
            overlap.truth += usize::from(t == label);
            overlap.both += usize::from(p == label && t == label);
        });
        overlap
    }

    /// In [0, 1]; `None` where the truth is empty.
    #[must_use]
    pub fn dice(&self) -> Option<f64> {
        (self.truth > 0).then(|| 2.0 * self.both as f64 / (self.predicted + self.truth) as f64)
    }

    /// In [0, 1]; `None` where the truth is empty.
    #[must_use]
    pub fn iou(&self) -> Option<f64> {
        let union = self.predicted + self.truth - self.both;
        (self.truth > 0).then(|| self.both as f64 / union as f64)
    }
}

/// 95th percentile of the symmetric surface distance, in the unit of `spacing` (slice, row, column); `None`
/// where either mask does not hold the label.
#[must_use]
pub fn hd95(
    prediction: ArrayView3<'_, u8>,
    truth: ArrayView3<'_, u8>,
    label: u8,
    spacing: [f64; 3],
) -> Option<f64> {
    let flat = prediction.dim().0 == 1;
    let crop = bounds(prediction, truth, label)?;
    let surface = |mask: ArrayView3<'_, u8>| {
        let [k, j, i] = crop.map(|(first, last)| first..=last);
        surface(mask.slice(s![k, j, i]).mapv(|value| value == label).view(), flat)
    };
    let (predicted, truth) = (surface(prediction), surface(truth));
    let forth = directed(&predicted, &truth, spacing)?;
    let back = directed(&truth, &predicted, spacing)?;
    Some(forth.max(back))
}

/// First and last slice, row and column that hold the label in either mask: outside there is only background,
/// so that nothing is lost by leaving it out.
fn bounds(a: ArrayView3<'_, u8>, b: ArrayView3<'_, u8>, label: u8) -> Option<[(usize, usize); 3]> {
    let mut bounds: Option<[(usize, usize); 3]> = None;
    Zip::indexed(a).and(b).for_each(|(k, j, i), &a, &b| {
        if a == label || b == label {
            let at = [k, j, i];
            let so_far = bounds.get_or_insert(at.map(|n| (n, n)));
            for (axis, (first, last)) in so_far.iter_mut().enumerate() {
                (*first, *last) = ((*first).min(at[axis]), (*last).max(at[axis]));
            }
        }
    });
    bounds
}

/// The mask less its erosion.
fn surface(mask: ArrayView3<'_, bool>, flat: bool) -> Array3<bool> {
    let inside = |k: usize, j: usize, i: usize| mask.get([k, j, i]) == Some(&true);
    Array3::from_shape_fn(mask.dim(), |(k, j, i)| {
        // A wrapped index is out of the grid, which is background.
        let in_plane = || {
            inside(k, j.wrapping_sub(1), i)
                && inside(k, j + 1, i)
                && inside(k, j, i.wrapping_sub(1))
                && inside(k, j, i + 1)
        };
        let across = || flat || (inside(k.wrapping_sub(1), j, i) && inside(k + 1, j, i));
        mask[[k, j, i]] && !(in_plane() && across())
    })
}

/// 95th percentile of the distances from the voxels of `from` to the nearest of `to`.
fn directed(from: &Array3<bool>, to: &Array3<bool>, spacing: [f64; 3]) -> Option<f64> {
    if !to.iter().any(|&at| at) {
        return None;
    }
    let squares = squared_distance(to, spacing);
    let mut distances: Vec<f64> =
        from.iter().zip(&squares).filter(|(at, _)| **at).map(|(_, square)| square.sqrt()).collect();
    distances.sort_by(f64::total_cmp);
    percentile(&distances, 0.95)
}

/// Of sorted values, with linear interpolation between neighbours; `None` of none.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = share * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(below + (above - below) * at.fract())
}

/// Squared distance of every voxel to the nearest one that is set, exact on an anisotropic grid: one pass of
/// lower envelopes of parabolas along each axis (Felzenszwalb and Huttenlocher, Theory of Computing 8, 2012).
fn squared_distance(set: &Array3<bool>, spacing: [f64; 3]) -> Array3<f64> {
    let mut squares = set.mapv(|at| if at { 0.0 } else { f64::INFINITY });
    let mut envelope = Envelope::default();
    for (axis, step) in spacing.into_iter().enumerate().rev() {
        for mut line in squares.lanes_mut(Axis(axis)) {
            envelope.clear();
            for (index, &height) in line.iter().enumerate() {
                if height.is_finite() {
                    envelope.add(index as f64 * step, height);
                }
            }
            envelope.evaluate(step, |index, value| line[index] = value, set.len_of(Axis(axis)));
        }
    }
    squares
}

/// Lower envelope of the parabolas `height + (x - at)²`, whose `at` come in rising order.
#[derive(Default)]
struct Envelope {
    /// (`at`, `height`, where this parabola becomes the lowest).
    parabolas: Vec<(f64, f64, f64)>,
}

impl Envelope {
    fn clear(&mut self) {
        self.parabolas.clear();
    }

    fn add(&mut self, at: f64, height: f64) {
        let mut from = f64::NEG_INFINITY;
        while let Some(&(other, other_height, other_from)) = self.parabolas.last() {
            from = ((height + at * at) - (other_height + other * other)) / (2.0 * (at - other));
            if from > other_from {
                break;
            }
            self.parabolas.pop();
            from = f64::NEG_INFINITY;
        }
        self.parabolas.push((at, height, from));
    }

    /// Gives the envelope at `count` places, `step` apart from 0; nothing where there is no parabola.
    fn evaluate(&self, step: f64, mut give: impl FnMut(usize, f64), count: usize) {
        let mut lowest = 0;
        for index in 0..count {
            let x = index as f64 * step;
            while self.parabolas.get(lowest + 1).is_some_and(|&(_, _, from)| from < x) {
                lowest += 1;
            }
            if let Some(&(at, height, _)) = self.parabolas.get(lowest) {
                give(index, height + (x - at) * (x - at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn overlap_of_a_hand_counted_case() {
        let prediction = array![[[1, 1, 0, 2], [1, 1, 0, 0]]];
        let truth = array![[[0, 1, 1, 0], [0, 1, 1, 0]]];
        let overlap = Overlap::count(prediction.view(), truth.view(), 1);
        assert_eq!(overlap, Overlap { predicted: 4, truth: 4, both: 2 });
        assert_eq!(overlap.dice(), Some(0.5));
        assert_eq!(overlap.iou(), Some(2.0 / 6.0));
        let absent = Overlap::count(prediction.view(), truth.view(), 2);
        assert_eq!((absent.predicted, absent.dice(), absent.iou()), (1, None, None));
        let missed = Overlap::count(truth.view(), prediction.view(), 2);
        assert_eq!((missed.dice(), missed.iou()), (Some(0.0), Some(0.0)));
    }

    #[test]
    fn distance_between_two_voxels_is_that_of_their_centres() {
        let mut a = Array3::zeros([4, 5, 6]);
        let mut b = a.clone();
        a[[0, 0, 0]] = 1;
        b[[3, 4, 5]] = 1;
        let expected = (9.0_f64 + 4.0 * 16.0 + 9.0 * 25.0).sqrt();
        assert_eq!(hd95(a.view(), b.view(), 1, [1.0, 2.0, 3.0]), Some(expected));
        assert_eq!(hd95(a.view(), a.view(), 1, [1.0, 2.0, 3.0]), Some(0.0));
        assert_eq!(hd95(a.view(), Array3::zeros([4, 5, 6]).view(), 1, [1.0; 3]), None);
        assert_eq!(hd95(a.view(), b.view(), 2, [1.0; 3]), None);
    }

    #[test]
    fn the_percentile_leaves_the_farthest_voxels_out_by_interpolation() {
        // A line of 21 surface voxels against one of 20: all but the last coincide, the last is 1 step away.
        let mut long = Array3::zeros([1, 1, 21]);
        long.fill(1);
        let mut short = long.clone();
        short[[0, 0, 20]] = 0;
        // Sorted: twenty times 0, then 1; 0.95 · 20 = 19 falls on the last 0.
        assert_eq!(hd95(long.view(), short.view(), 1, [1.0; 3]), Some(0.0));
        short[[0, 0, 19]] = 0;
        // Nineteen times 0, then 1 and 2; at 19 stands the 1.
        assert_eq!(hd95(long.view(), short.view(), 1, [1.0, 1.0, 0.5]), Some(0.5));
        assert_eq!(percentile(&[0.0, 1.0, 3.0], 0.75), Some(2.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_single_slice_has_its_outline_as_surface_and_a_slab_all_of_itself() {
        let square = Array3::from_elem([1, 5, 5], true);
        let count = |mask: &Array3<bool>| mask.iter().filter(|&&at| at).count();
        assert_eq!(count(&surface(square.view(), true)), 16);
        assert_eq!(count(&surface(square.view(), false)), 25);
        assert_eq!(count(&surface(Array3::from_elem([3, 3, 3], true).view(), false)), 26);
    }

    #[test]
    fn squared_distances_are_those_of_a_search_over_all_voxels() {
        let spacing = [2.5, 0.7, 1.3];
        let mut state = 1_u32;
        let set = Array3::from_shape_fn([5, 9, 7], |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 28 == 0
        });
        let fast = squared_distance(&set, spacing);
        for ((k, j, i), &found) in fast.indexed_iter() {
            let nearest = set
                .indexed_iter()
                .filter(|(_, at)| **at)
                .map(|((c, b, a), _)| {
                    let steps = [k as f64 - c as f64, j as f64 - b as f64, i as f64 - a as f64];
                    (0..3).map(|axis| (steps[axis] * spacing[axis]).powi(2)).sum::<f64>()
                })
                .fold(f64::INFINITY, f64::min);
            assert!((found - nearest).abs() < 1e-9, "{found} {nearest} at {k} {j} {i}");
        }
    }
}
