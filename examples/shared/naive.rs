//! The yardstick of the kernel tests: what a naive implementation in the kernel's dtype loses.

use bytemuck::Pod;
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seqmix::{Float, Half};

use crate::measure::{Bound, Difference};

/// A dtype that numbers round to.
pub(crate) trait Number: Float + Pod + Into<f64> {
    /// Largest relative error of one rounding.
    const UNIT: f64;
    /// The nearest number of this type.
    fn narrow(x: f64) -> Self;
    /// The nearest number of this type, widened again.
    fn round(x: f64) -> f64 {
        Self::narrow(x).into()
    }
}

/// One of 16 bits.
pub(crate) trait Narrow: Number + Half {}
impl<T: Number + Half> Narrow for T {}

impl Number for f16 {
    const UNIT: f64 = 1.0 / 2048.0;
    fn narrow(x: f64) -> Self {
        Self::from_f64(x)
    }
}

impl Number for bf16 {
    const UNIT: f64 = 1.0 / 256.0;
    fn narrow(x: f64) -> Self {
        Self::from_f64(x)
    }
}

impl Number for f32 {
    const UNIT: f64 = 1.0 / 16_777_216.0;
    fn narrow(x: f64) -> Self {
        x as f32
    }
}

/// `count` numbers of mean 0 and standard deviation `deviation`, the same ones for the same `seed`.
pub(crate) fn normal<T: Number>(seed: u64, count: usize, deviation: f64) -> Vec<T> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut uniform = || 1.0 - random.random::<f64>();
    // Box and Muller: two uniform numbers make a normal one.
    let mut draw = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..count).map(|_| T::narrow(deviation * draw())).collect()
}

/// The bound of an output of dtype `T` whose last axis has `row` elements: twice what the naive run loses, plus
/// one rounding.
pub(crate) fn bound<T: Number>(
    expected: &[f64],
    naive: &[f64],
    row: usize,
) -> Result<Bound, String> {
    let lost = Difference::measure(naive, expected, row)?;
    let largest = expected
        .iter()
        .fold(0.0_f64, |largest, x| largest.max(x.abs()));
    Ok(Bound {
        max_abs: 2.0 * lost.max_abs + T::UNIT * largest,
        rel_l2: Some(2.0 * lost.rel_l2 + T::UNIT),
        row_rel_l2: Some(2.0 * lost.row_rel_l2 + T::UNIT),
    })
}

/// The bound of log-sum-exps, which kernels compute in `f32` from `f32` scores: 1e-5 of the largest, and of 1.
pub(crate) fn lse_bound(expected: &[f64]) -> Bound {
    let finite = expected.iter().filter(|x| x.is_finite());
    let largest = finite.fold(1.0_f64, |largest, x| largest.max(x.abs()));
    Bound {
        max_abs: 1e-5 * largest,
        rel_l2: None,
        row_rel_l2: None,
    }
}
