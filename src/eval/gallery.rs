use ndarray::Array3;

use super::{CaseReport, EvalError};
use crate::{codec::overlay, domain::Label, domain::Volume};

/// Pictures kept of the worst and of the best cases, each.
const KEPT: usize = 3;

/// A case with its result and its truth drawn over the image, both PNG.
#[derive(Debug)]
pub struct Picture {
    pub case: String,
    /// Dice, mean over the labels of the case.
    pub score: f64,
    pub result: Vec<u8>,
    pub truth: Vec<u8>,
}

/// The best and worst cases so far. Cases come one after the other, and only pictures of a few are kept.
#[derive(Debug, Default)]
pub struct Gallery {
    /// From the worst to the best.
    pictures: Vec<Picture>,
}

impl Gallery {
    /// From the worst on; with few cases the best begin where the worst end.
    #[must_use]
    pub fn worst(&self) -> &[Picture] {
        &self.pictures[..self.pictures.len().div_ceil(2)]
    }

    /// From the worse to the best.
    #[must_use]
    pub fn best(&self) -> &[Picture] {
        &self.pictures[self.pictures.len().div_ceil(2)..]
    }

    pub(super) fn offer(
        &mut self,
        case: &CaseReport,
        volume: &Volume,
        mask: &Array3<u8>,
        truth: &Array3<u8>,
        labels: &[Label],
    ) -> Result<(), EvalError> {
        let Some(score) = case.score else { return Ok(()) };
        let place = self.pictures.partition_point(|picture| picture.score <= score);
        let full = self.pictures.len() == 2 * KEPT;
        if full && place == KEPT {
            return Ok(());
        }
        let [result, truth] = overlay::pair(volume, [mask, truth], labels)?;
        self.pictures.insert(place, Picture { case: case.case.clone(), score, result, truth });
        if full {
            // The middle one is neither among the worst nor among the best.
            self.pictures.remove(KEPT);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;

    #[test]
    fn the_ends_are_kept_in_order() {
        let volume =
            Volume { samples: Array4::zeros((1, 1, 2, 2)), geometry: None, nominal_range: None };
        let mask = Array3::zeros((1, 2, 2));
        let mut gallery = Gallery::default();
        let mut offer = |score: f64| {
            let mut case = CaseReport::new(score.to_string(), (1, 2, 2), None, 0.0, Vec::new());
            case.score = Some(score);
            gallery.offer(&case, &volume, &mask, &mask, &[]).unwrap();
        };
        for n in [5, 1, 9, 3, 7, 2, 8, 6, 4, 0] {
            offer(f64::from(n) / 10.0);
        }
        let scores = |pictures: &[Picture]| pictures.iter().map(|p| p.score).collect::<Vec<_>>();
        assert_eq!(scores(gallery.worst()), [0.0, 0.1, 0.2]);
        assert_eq!(scores(gallery.best()), [0.7, 0.8, 0.9]);
    }
}
