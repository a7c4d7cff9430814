//! Sixteen numbers side by side: what the convolution's arithmetic is written over.
//!
//! With AVX-512 they are one register. Elsewhere they are an array, which the compiler lays out in what registers there are;
//! `FUSED` says whether the machine multiplies and adds in one instruction. Arithmetic is spelt out, without `map` of arrays or
//! other closures: nothing makes the compiler inline these.

// Inlined into functions that have the instructions, or it would be none of them that computes.
#![allow(clippy::inline_always)]

/// Numbers that are handled together.
pub(super) const LANES: usize = 16;

/// As many numbers, aligned as the widest register loads them best.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [f32; LANES]);

impl Line {
    pub const ZERO: Self = Self([0.0; LANES]);
}

/// Sixteen numbers and what is done with them. The methods are inlined into functions that have the instructions.
///
/// # Safety
/// Whoever calls a method of an implementation that needs instructions must have made sure that the machine has them.
pub(super) trait Lanes: Copy {
    fn splat(value: f32) -> Self;
    fn load(line: &[f32; LANES]) -> Self;
    fn store(self, line: &mut [f32; LANES]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// self x factor + term.
    fn fma(self, factor: Self, term: Self) -> Self;
    /// The last of `before` and all of `self` but the last; zero where `keep` has no bit.
    fn moved_up(self, before: Self, keep: u16) -> Self;
    /// All of `self` but the first and the first of `after`; zero where `keep` has no bit.
    fn moved_down(self, after: Self, keep: u16) -> Self;
    /// Of 64 numbers in a row those at 4i, at 4i + 1, 4i + 2 and 4i + 3.
    fn apart(row: [Self; 4]) -> [Self; 4];
    /// The inverse of `apart`.
    fn together(parts: [Self; 4]) -> [Self; 4];
    /// 1/(1 + e^-x), within a few units in the last place.
    fn logistic(self) -> Self;
    /// Number j of row i becomes number i of row j.
    fn transposed(rows: [Self; LANES]) -> [Self; LANES];

    /// Up to sixteen numbers, and zeros.
    #[inline(always)]
    fn load_some(values: &[f32]) -> Self {
        if let Some(line) = values.first_chunk() {
            return Self::load(line);
        }
        let mut line = [0.0; LANES];
        line[..values.len()].copy_from_slice(values);
        Self::load(&line)
    }

    /// The first of them, up to sixteen.
    #[inline(always)]
    fn store_some(self, values: &mut [f32]) {
        if let Some(line) = values.first_chunk_mut() {
            return self.store(line);
        }
        let mut line = [0.0; LANES];
        self.store(&mut line);
        values.copy_from_slice(&line[..values.len()]);
    }
}

/// For any machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portable<const FUSED: bool>([f32; LANES]);

impl<const FUSED: bool> Portable<FUSED> {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut all = self.0;
        for (a, b) in all.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        Self(all)
    }
}

impl<const FUSED: bool> Lanes for Portable<FUSED> {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(line: &[f32; LANES]) -> Self {
        Self(*line)
    }

    #[inline(always)]
    fn store(self, line: &mut [f32; LANES]) {
        *line = self.0;
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        let mut all = term.0;
        for ((t, a), b) in all.iter_mut().zip(self.0).zip(factor.0) {
            *t = if FUSED { a.mul_add(b, *t) } else { a * b + *t };
        }
        Self(all)
    }

    #[inline(always)]
    fn moved_up(self, before: Self, keep: u16) -> Self {
        let mut all = [0.0; LANES];
        all[0] = before.0[LANES - 1];
        all[1..].copy_from_slice(&self.0[..LANES - 1]);
        Self(kept(all, keep))
    }

    #[inline(always)]
    fn moved_down(self, after: Self, keep: u16) -> Self {
        let mut all = [0.0; LANES];
        all[..LANES - 1].copy_from_slice(&self.0[1..]);
        all[LANES - 1] = after.0[0];
        Self(kept(all, keep))
    }

    #[inline(always)]
    fn apart(row: [Self; 4]) -> [Self; 4] {
        let mut parts = [[0.0; LANES]; 4];
        for (p, part) in parts.iter_mut().enumerate() {
            for (i, value) in part.iter_mut().enumerate() {
                *value = row[i / 4].0[4 * (i % 4) + p];
            }
        }
        parts.map(Self)
    }

    #[inline(always)]
    fn together(parts: [Self; 4]) -> [Self; 4] {
        let mut row = [[0.0; LANES]; 4];
        for (r, line) in row.iter_mut().enumerate() {
            for (i, value) in line.iter_mut().enumerate() {
                *value = parts[i % 4].0[4 * r + i / 4];
            }
        }
        row.map(Self)
    }

    #[inline(always)]
    fn logistic(self) -> Self {
        let mut all = self.0;
        for x in &mut all {
            *x = 1.0 / (1.0 + exp(-*x));
        }
        Self(all)
    }

    #[inline(always)]
    fn transposed(rows: [Self; LANES]) -> [Self; LANES] {
        let mut columns = [[0.0; LANES]; LANES];
        for (i, row) in rows.iter().enumerate() {
            for (column, value) in columns.iter_mut().zip(row.0) {
                column[i] = value;
            }
        }
        columns.map(Self)
    }
}

#[inline(always)]
fn kept(mut all: [f32; LANES], keep: u16) -> [f32; LANES] {
    if keep != u16::MAX {
        for (lane, value) in all.iter_mut().enumerate() {
            if keep >> lane & 1 == 0 {
                *value = 0.0;
            }
        }
    }
    all
}

/// e^x within 2 units in the last place; saturates near the ends of the range of f32 instead of overflowing.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, 2^n by the exponent's bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding and subtracting 1.5 x 2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    // The low bits of `rounded` are n; those of ROUND itself leave at the upper end.
    p * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

#[cfg(target_arch = "x86_64")]
pub(super) use wide::Wide;

#[cfg(target_arch = "x86_64")]
mod wide {
    #[allow(clippy::wildcard_imports)] // Every name begins with _mm512.
    use std::arch::x86_64::*;

    use super::{LANES, Lanes};

    /// One register of AVX-512.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct Wide(__m512);

    // SAFETY of all that follows: the instructions are there, as `Lanes` asks of its callers, and references to sixteen
    // numbers are valid for them.
    impl Lanes for Wide {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        fn load(line: &[f32; LANES]) -> Self {
            Self(unsafe { _mm512_loadu_ps(line.as_ptr()) })
        }

        #[inline(always)]
        fn store(self, line: &mut [f32; LANES]) {
            unsafe { _mm512_storeu_ps(line.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn fma(self, factor: Self, term: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
        }

        #[inline(always)]
        fn moved_up(self, before: Self, keep: u16) -> Self {
            unsafe {
                let (here, before) = (_mm512_castps_si512(self.0), _mm512_castps_si512(before.0));
                Self(_mm512_castsi512_ps(_mm512_maskz_alignr_epi32::<15>(keep, here, before)))
            }
        }

        #[inline(always)]
        fn moved_down(self, after: Self, keep: u16) -> Self {
            unsafe {
                let (here, after) = (_mm512_castps_si512(self.0), _mm512_castps_si512(after.0));
                Self(_mm512_castsi512_ps(_mm512_maskz_alignr_epi32::<1>(keep, after, here)))
            }
        }

        #[inline(always)]
        fn apart(row: [Self; 4]) -> [Self; 4] {
            let [Self(a), Self(b), Self(c), Self(d)] = row;
            unsafe {
                // Places 4i and 4i + 1 of a pair of registers into the halves of one, then 4i + 2 and 4i + 3.
                let low =
                    _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
                let high =
                    _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
                let (ab, cd) =
                    (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(c, low, d));
                let (ef, gh) =
                    (_mm512_permutex2var_ps(a, high, b), _mm512_permutex2var_ps(c, high, d));
                [
                    Self(_mm512_shuffle_f32x4::<0b01_00_01_00>(ab, cd)),
                    Self(_mm512_shuffle_f32x4::<0b11_10_11_10>(ab, cd)),
                    Self(_mm512_shuffle_f32x4::<0b01_00_01_00>(ef, gh)),
                    Self(_mm512_shuffle_f32x4::<0b11_10_11_10>(ef, gh)),
                ]
            }
        }

        #[inline(always)]
        fn together(parts: [Self; 4]) -> [Self; 4] {
            let [Self(a), Self(b), Self(c), Self(d)] = parts;
            unsafe {
                // Pairs of a and b stand beside pairs of c and d.
                let ([ab, ab_high], [cd, cd_high]) = (halves(a, b), halves(c, d));
                let ([first, second], [third, fourth]) = (quads(ab, cd), quads(ab_high, cd_high));
                [Self(first), Self(second), Self(third), Self(fourth)]
            }
        }

        /// e^-x = 2^n e^r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, the reciprocal by a step of
        /// Newton's from 14 bits on.
        #[inline(always)]
        fn logistic(self) -> Self {
            const LN2_HIGH: f32 = 0.693_359_4;
            const LN2_LOW: f32 = -2.121_944_4e-4;
            unsafe {
                // What is not a number stays so, since the second is taken then.
                let x = _mm512_max_ps(_mm512_set1_ps(-80.0), self.0);
                let x = _mm512_min_ps(_mm512_set1_ps(80.0), x);
                let turns = _mm512_mul_ps(x, _mm512_set1_ps(-std::f32::consts::LOG2_E));
                let n = _mm512_roundscale_ps::<0>(turns);
                let r = _mm512_fnmsub_ps(n, _mm512_set1_ps(LN2_HIGH), x);
                let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
                let mut p = _mm512_set1_ps(1.0 / 5040.0);
                for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]
                {
                    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
                }
                let below = _mm512_add_ps(_mm512_set1_ps(1.0), _mm512_scalef_ps(p, n));
                let about = _mm512_rcp14_ps(below);
                let rest = _mm512_fnmadd_ps(below, about, _mm512_set1_ps(2.0));
                Self(_mm512_mul_ps(about, rest))
            }
        }

        #[inline(always)]
        fn transposed(rows: [Self; LANES]) -> [Self; LANES] {
            let mut r = rows;
            unsafe {
                // Pairs of numbers within quarters of a register, pairs of pairs, then the quarters themselves.
                for i in (0..LANES).step_by(2) {
                    let (Self(a), Self(b)) = (r[i], r[i + 1]);
                    r[i] = Self(_mm512_unpacklo_ps(a, b));
                    r[i + 1] = Self(_mm512_unpackhi_ps(a, b));
                }
                for i in (0..LANES).step_by(4) {
                    let ([a, b], [c, d]) =
                        (doubles(r[i].0, r[i + 2].0), doubles(r[i + 1].0, r[i + 3].0));
                    (r[i], r[i + 1], r[i + 2], r[i + 3]) = (Self(a), Self(b), Self(c), Self(d));
                }
                let mut columns = r;
                for j in 0..4 {
                    let [a, b] = quarters(r[j].0, r[j + 4].0);
                    let [c, d] = quarters(r[j + 8].0, r[j + 12].0);
                    let ([first, third], [second, fourth]) = (quarters(a, c), quarters(b, d));
                    columns[j] = Self(first);
                    columns[j + 4] = Self(second);
                    columns[j + 8] = Self(third);
                    columns[j + 12] = Self(fourth);
                }
                columns
            }
        }

        #[inline(always)]
        fn load_some(values: &[f32]) -> Self {
            Self(unsafe { _mm512_maskz_loadu_ps(first(values.len()), values.as_ptr()) })
        }

        #[inline(always)]
        fn store_some(self, values: &mut [f32]) {
            unsafe { _mm512_mask_storeu_ps(values.as_mut_ptr(), first(values.len()), self.0) }
        }
    }

    /// Numbers of two registers by turns: those of the lower halves, and of the upper.
    #[inline(always)]
    unsafe fn halves(x: __m512, y: __m512) -> [__m512; 2] {
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high =
                _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            [_mm512_permutex2var_ps(x, low, y), _mm512_permutex2var_ps(x, high, y)]
        }
    }

    /// Pairs of numbers likewise.
    #[inline(always)]
    unsafe fn quads(x: __m512, y: __m512) -> [__m512; 2] {
        unsafe {
            let low = _mm512_setr_epi32(0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
            let high =
                _mm512_setr_epi32(8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
            [_mm512_permutex2var_ps(x, low, y), _mm512_permutex2var_ps(x, high, y)]
        }
    }

    /// Pairs of two registers by turns within each quarter: the lower, and the upper.
    #[inline(always)]
    unsafe fn doubles(x: __m512, y: __m512) -> [__m512; 2] {
        unsafe {
            let (x, y) = (_mm512_castps_pd(x), _mm512_castps_pd(y));
            let (low, high) = (_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
            [_mm512_castpd_ps(low), _mm512_castpd_ps(high)]
        }
    }

    /// Quarters of two registers: the even ones, and the odd.
    #[inline(always)]
    unsafe fn quarters(x: __m512, y: __m512) -> [__m512; 2] {
        unsafe {
            [
                _mm512_shuffle_f32x4::<0b10_00_10_00>(x, y),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(x, y),
            ]
        }
    }

    /// A bit for each of the first `count` lanes.
    #[inline(always)]
    fn first(count: usize) -> u16 {
        (u32::MAX >> (31 - count.min(LANES) as u32) >> 1) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::machine::{Machine, Work},
        *,
    };

    struct Transposing<'a>(&'a mut [[f32; LANES]; LANES]);

    impl Work for Transposing<'_> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            let mut rows = [L::splat(0.0); LANES];
            for (row, values) in rows.iter_mut().zip(self.0.iter()) {
                *row = L::load(values);
            }
            for (row, values) in L::transposed(rows).into_iter().zip(self.0) {
                row.store(values);
            }
        }
    }

    #[test]
    fn rows_become_columns_on_every_machine() {
        for machine in Machine::all() {
            let mut values = [[0.0; LANES]; LANES];
            for (i, value) in values.as_flattened_mut().iter_mut().enumerate() {
                *value = i as f32;
            }
            // SAFETY: the machine is one that was found.
            unsafe { machine.run(Transposing(&mut values)) };
            for (i, value) in values.as_flattened().iter().enumerate() {
                assert_eq!(*value, (i % LANES * LANES + i / LANES) as f32, "{machine:?}");
            }
        }
    }

    #[test]
    fn the_exponential_is_right_to_two_units_in_the_last_place() {
        for i in -87_000..87_000i32 {
            let x = i as f32 / 1000.0;
            let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / exact - 1.0).abs() < 2.0 * f64::from(f32::EPSILON), "{x}: {found}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) > 0.0 && exp(f32::INFINITY).is_finite());
    }

    struct Logistic<'a>(&'a mut [f32; LANES]);

    impl Work for Logistic<'_> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            L::load(self.0).logistic().store(self.0);
        }
    }

    #[test]
    fn the_logistic_function_is_right_to_four_units_in_the_last_place() {
        for machine in Machine::all() {
            let at = |values: [f32; LANES]| {
                let mut found = values;
                // SAFETY: the machine is one that was found.
                unsafe { machine.run(Logistic(&mut found)) };
                found
            };
            for first in (-80_000..80_000i32).step_by(LANES) {
                let x: [f32; LANES] = std::array::from_fn(|i| (first + i as i32) as f32 / 1000.0);
                for (found, x) in at(x).into_iter().zip(x) {
                    let off = f64::from(found) * (1.0 + (-f64::from(x)).exp()) - 1.0;
                    assert!(off.abs() < 4.0 * f64::from(f32::EPSILON), "{machine:?}, {x}: {found}");
                }
            }
            let [nan, low, high, ..] =
                at(std::array::from_fn(|i| [f32::NAN, f32::NEG_INFINITY, f32::INFINITY][i % 3]));
            assert!(nan.is_nan() && (0.0..1e-30).contains(&low) && high == 1.0, "{machine:?}");
        }
    }
}
