//! Synthetic cases with ground truth: a curved structure of two parts in a noisy, biased MR-like crop.
//!
//! A case is a pure function of its seed. Pose, size, bend, contrast, texture, bias, noise and voxel size
//! vary. Used by `cdal phantom`, by training without patient data, and by the demo.

use ndarray::{Array3, Array4, Zip};

use crate::{
    domain::{Geometry, Volume},
    sampler::{Draw, Noise, Philox},
};

/// A case and the truth about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Phantom {
    /// [1, D, H, W], whole numbers from 0 to 4095.
    pub volume: Volume,
    /// [D, H, W]: 0 background, 1 anterior part, 2 posterior part.
    pub truth: Array3<u8>,
}

/// Field of view along x, y, z, mm.
const FIELD: [f64; 3] = [42.0, 48.0, 38.0];
const CENTRELINE_POINTS: usize = 48;

/// The phantom of a seed.
#[must_use]
pub fn phantom(seed: u64) -> Phantom {
    let noise = Philox::new(seed, 0x7068_616e_746f_6d00);
    let mut dice = Dice::new(noise);
    let geometry = geometry(&mut dice);
    let shape = [2, 1, 0].map(|axis| (FIELD[axis] / geometry.spacing[axis]) as usize);
    let structure = Structure::draw(&mut dice);
    let tissue = Tissue::draw(&mut dice);

    let mut truth = Array3::zeros(shape);
    let mut signal = Array3::<f32>::zeros(shape);
    let centre = [1.0, 1.0, 1.0].map(|one: f64| one * 0.5);
    Zip::indexed(&mut signal).and(&mut truth).for_each(|(k, j, i), signal, truth| {
        // mm from the middle of the field, in the crop's own axes
        let at = [i, j, k].map(|n| n as f64 + centre[0]);
        let at: [f64; 3] =
            std::array::from_fn(|a| at[a] * geometry.spacing[a] - FIELD[a] * centre[a]);
        let (depth, part) = structure.depth(at);
        if depth < 0.0 {
            *truth = part;
        }
        *signal = tissue.signal(at, depth, part) as f32;
    });
    let mut samples = Array4::zeros((1, shape[0], shape[1], shape[2]));
    let mut grain = vec![0.0_f32; 2 * signal.len()];
    noise.fill(1, 0, Draw::Start, &mut grain);
    for ((to, &clean), pair) in samples.iter_mut().zip(&signal).zip(grain.chunks_exact(2)) {
        let sigma = tissue.noise as f32;
        let rician = (clean + sigma * pair[0]).hypot(sigma * pair[1]);
        *to = (rician * tissue.gain as f32).round().clamp(0.0, 4095.0);
    }
    let volume = Volume { samples, geometry: Some(geometry), nominal_range: Some((0.0, 4095.0)) };
    Phantom { volume, truth }
}

/// Reads one random number after another out of a fixed stream.
struct Dice {
    normals: std::vec::IntoIter<f32>,
}

impl Dice {
    fn new(noise: Philox) -> Self {
        let mut normals = vec![0.0; 128];
        noise.fill(0, 0, Draw::Start, &mut normals);
        Self { normals: normals.into_iter() }
    }

    /// `mean` ± `spread`, within two spreads.
    fn around(&mut self, mean: f64, spread: f64) -> f64 {
        let normal = self.normals.next().expect("the stream is longer than any phantom needs");
        mean + spread * f64::from(normal).clamp(-2.0, 2.0)
    }
}

fn geometry(dice: &mut Dice) -> Geometry {
    let in_plane = dice.around(1.1, 0.06);
    let between = dice.around(1.6, 0.15);
    let tilt = dice.around(0.0, 0.06);
    let (sine, cosine) = libm::sincos(tilt);
    Geometry {
        origin: [dice.around(-30.0, 4.0), dice.around(-25.0, 4.0), dice.around(-20.0, 4.0)],
        direction: [[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]],
        spacing: [in_plane, in_plane, between],
    }
}

/// A tube along a bent centreline, thick in front and thin behind.
struct Structure {
    /// Points (mm) with their radius; in order from the anterior end.
    centreline: Vec<([f64; 3], f64)>,
    /// First point of the posterior part.
    split: usize,
}

impl Structure {
    fn draw(dice: &mut Dice) -> Self {
        let turn = [dice.around(0.0, 0.12), dice.around(0.0, 0.12), dice.around(0.0, 0.15)];
        let shift = [dice.around(0.0, 1.5), dice.around(0.0, 1.5), dice.around(0.0, 1.5)];
        let half_length = dice.around(14.0, 1.2);
        let bend = dice.around(6.0, 1.5);
        let rise = dice.around(3.0, 1.0);
        let (head, tail) = (dice.around(5.6, 0.4), dice.around(3.8, 0.3));
        let split = dice.around(-0.1, 0.06);
        let parameter = |n: usize| 2.0 * n as f64 / (CENTRELINE_POINTS - 1) as f64 - 1.0;
        let centreline = (0..CENTRELINE_POINTS)
            .map(|n| {
                let s = parameter(n);
                let point = [bend * (s * s - 0.4), half_length * s, rise * s];
                let thickness = head + (tail - head) * (s + 1.0) / 2.0;
                let turned = rotate(point, turn);
                (std::array::from_fn(|axis| turned[axis] + shift[axis]), thickness)
            })
            .collect();
        let split = (0..CENTRELINE_POINTS).find(|&n| parameter(n) > split).unwrap_or(0);
        Self { centreline, split }
    }

    /// Signed distance to the surface, mm (inside negative), and the part that is nearest.
    fn depth(&self, at: [f64; 3]) -> (f64, u8) {
        let mut nearest = (f64::INFINITY, 0);
        for (n, (point, radius)) in self.centreline.iter().enumerate() {
            let distance = (0..3).map(|a| (at[a] - point[a]).powi(2)).sum::<f64>().sqrt() - radius;
            if distance < nearest.0 {
                nearest = (distance, n);
            }
        }
        (nearest.0, if nearest.1 < self.split { 1 } else { 2 })
    }
}

fn rotate(point: [f64; 3], angles: [f64; 3]) -> [f64; 3] {
    let mut p = point;
    for (axis, angle) in angles.into_iter().enumerate() {
        let (sine, cosine) = libm::sincos(angle);
        let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
        (p[a], p[b]) = (cosine * p[a] - sine * p[b], sine * p[a] + cosine * p[b]);
    }
    p
}

/// What the scanner sees: signal of each part, texture around it, coil bias, noise, gain.
struct Tissue {
    background: f64,
    parts: [f64; 2],
    blobs: Vec<([f64; 3], f64, f64)>,
    bias: [f64; 4],
    noise: f64,
    gain: f64,
}

impl Tissue {
    fn draw(dice: &mut Dice) -> Self {
        let background = dice.around(0.38, 0.03);
        Self {
            background,
            parts: [background + dice.around(0.36, 0.03), background + dice.around(0.20, 0.02)],
            blobs: (0..8)
                .map(|_| {
                    let at =
                        [dice.around(0.0, 14.0), dice.around(0.0, 16.0), dice.around(0.0, 12.0)];
                    (at, dice.around(5.0, 1.2), dice.around(-0.02, 0.08))
                })
                .collect(),
            bias: std::array::from_fn(|_| dice.around(0.0, 0.09)),
            noise: dice.around(0.035, 0.008),
            gain: dice.around(1200.0, 350.0),
        }
    }

    fn signal(&self, at: [f64; 3], depth: f64, part: u8) -> f64 {
        let texture: f64 = self
            .blobs
            .iter()
            .map(|(centre, width, height)| {
                let square: f64 = (0..3).map(|a| (at[a] - centre[a]).powi(2)).sum();
                height * libm::exp(-0.5 * square / (width * width))
            })
            .sum();
        let around = self.background + texture;
        let inside = 1.0 / (1.0 + libm::exp(depth / 0.4)); // partial volume at the surface
        let tissue = around + (self.parts[usize::from(part) - 1] - around) * inside;
        let unit: [f64; 3] = std::array::from_fn(|a| 2.0 * at[a] / FIELD[a]);
        let bias = self.bias[0] * unit[0]
            + self.bias[1] * unit[1]
            + self.bias[2] * unit[2]
            + self.bias[3] * unit[0] * unit[1];
        tissue * libm::exp(bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_case_and_cases_differ() {
        assert_eq!(phantom(3), phantom(3));
        assert_ne!(phantom(3).volume.samples.shape(), [0; 4]);
        assert_ne!(phantom(3).truth, phantom(4).truth);
    }

    #[test]
    fn both_parts_are_present_whole_and_of_plausible_size() {
        for seed in 0..20 {
            let Phantom { volume, truth } = phantom(seed);
            let voxel: f64 = volume.geometry.unwrap().spacing.iter().product();
            for part in [1, 2] {
                let count = truth.iter().filter(|&&v| v == part).count();
                let millilitres = count as f64 * voxel / 1000.0;
                assert!(
                    (0.3..3.0).contains(&millilitres),
                    "seed {seed} part {part}: {millilitres}"
                );
            }
            assert!(volume.samples.iter().all(|v| (0.0..=4095.0).contains(v)));
        }
    }
}
