//! Where the sampler's randomness comes from: counter-based noise, or noise recorded elsewhere.
//!
//! Every draw is addressed by what it is for (case, image, vote, time-step), never by when it is made, so a
//! result has the same bits whatever the batch size, the thread count or the order of the work. The logarithm
//! and the cosine come from `libm`, which gives the same bits on every machine.

use ndarray::{ArrayView2, ArrayView4, ArrayView5};

/// What one draw is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// x_T, where sampling starts: [L, H, W].
    Start,
    /// The latent of time-step i: [nz].
    Latent(usize),
    /// The noise that the posterior draw of time-step i adds: [L, H, W].
    Posterior(usize),
}

/// A source of standard normal numbers.
pub trait Noise: Sync {
    /// Fills `out` with the draw of `vote` on image number `image` of the case.
    fn fill(&self, image: usize, vote: usize, draw: Draw, out: &mut [f32]);
}

/// Philox 4x32-10 (Salmon et al., SC 2011) keyed by seed and case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// `case` identifies the image content, so that two cases never share noise under one seed.
    #[must_use]
    pub fn new(seed: u64, case: u64) -> Self {
        // One Philox block mixes both words; the key of the draws is its first half.
        let [a, b, c, d] = halves(seed, case);
        let mixed = philox([c, d, 0x6364_616c, 0], [a, b]);
        Self { key: [mixed[0], mixed[1]] }
    }

    /// Four uniform words for draws that are not normal, addressed as the caller likes.
    #[must_use]
    pub fn bits(&self, counter: [u32; 4]) -> [u32; 4] {
        philox(counter, self.key)
    }
}

impl Noise for Philox {
    fn fill(&self, image: usize, vote: usize, draw: Draw, out: &mut [f32]) {
        let purpose = match draw {
            Draw::Start => 0,
            Draw::Latent(step) => 1 + 2 * step as u32,
            Draw::Posterior(step) => 2 + 2 * step as u32,
        };
        for (block, four) in out.chunks_mut(4).enumerate() {
            let counter = [block as u32, purpose, vote as u32, image as u32];
            let bits = philox(counter, self.key);
            let first = normal_pair(bits[0], bits[1]);
            let second = normal_pair(bits[2], bits[3]);
            let normals = [first.0, first.1, second.0, second.1];
            four.copy_from_slice(&normals[..four.len()]);
        }
    }
}

/// Noise recorded by another implementation, for inputs of one window. Indexed by time-step, and the same for
/// every image of the case.
#[derive(Debug, Clone, Copy)]
pub struct Recorded<'a> {
    /// [V, L, H, W].
    pub x_init: ArrayView4<'a, f32>,
    /// [T, V, nz].
    pub z: ndarray::ArrayView3<'a, f32>,
    /// [T, V, L, H, W].
    pub noise: ArrayView5<'a, f32>,
}

impl Noise for Recorded<'_> {
    fn fill(&self, _image: usize, vote: usize, draw: Draw, out: &mut [f32]) {
        use ndarray::Axis;
        let copy = |values: ndarray::ArrayViewD<'_, f32>, out: &mut [f32]| {
            for (to, from) in out.iter_mut().zip(values) {
                *to = *from;
            }
        };
        match draw {
            Draw::Start => copy(self.x_init.index_axis(Axis(0), vote).into_dyn(), out),
            Draw::Latent(step) => {
                let latents: ArrayView2<'_, f32> = self.z.index_axis(Axis(0), step);
                copy(latents.index_axis_move(Axis(0), vote).into_dyn(), out);
            }
            Draw::Posterior(step) => {
                let noise = self.noise.index_axis(Axis(0), step);
                copy(noise.index_axis_move(Axis(0), vote).into_dyn(), out);
            }
        }
    }
}

fn halves(a: u64, b: u64) -> [u32; 4] {
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
}

/// Ten rounds of Philox 4x32.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// Box-Muller: two uniform words to two independent standard normal numbers.
fn normal_pair(a: u32, b: u32) -> (f32, f32) {
    const UNIT: f64 = 1.0 / 4_294_967_296.0;
    let radius = libm::sqrt(-2.0 * libm::log((f64::from(a) + 0.5) * UNIT));
    let (sine, cosine) = libm::sincos(std::f64::consts::TAU * (f64::from(b) + 0.5) * UNIT);
    ((radius * cosine) as f32, (radius * sine) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_known_answers() {
        // Random123 kat_vectors, philox4x32 10.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn draws_are_standard_normal_and_independent_of_each_other() {
        let noise = Philox::new(7, 11);
        let draw = |image, vote, what| {
            let mut out = vec![0.0_f32; 40_001];
            noise.fill(image, vote, what, &mut out);
            out
        };
        let moments = |values: &[f32]| {
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let power = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
            (mean, power)
        };
        let base = draw(0, 0, Draw::Start);
        let (mean, power) = moments(&base);
        assert!(mean.abs() < 0.02 && (power - 1.0).abs() < 0.03, "{mean} {power}");
        for other in [
            draw(1, 0, Draw::Start),
            draw(0, 1, Draw::Start),
            draw(0, 0, Draw::Posterior(1)),
            draw(0, 0, Draw::Latent(0)),
        ] {
            let correlation: f32 =
                base.iter().zip(&other).map(|(a, b)| a * b).sum::<f32>() / base.len() as f32;
            assert!(correlation.abs() < 0.02, "{correlation}");
        }
    }

    #[test]
    fn seed_and_case_both_matter() {
        let first = |seed, case| {
            let mut out = [0.0; 1];
            Philox::new(seed, case).fill(0, 0, Draw::Start, &mut out);
            out[0]
        };
        assert_ne!(first(1, 0), first(2, 0));
        assert_ne!(first(1, 0), first(1, 1));
        assert_ne!(first(1, 2), first(2, 1));
    }
}
