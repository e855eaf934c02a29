//! Initial step sizes.

use super::random::Uniform;
use crate::{Error, Result};

/// The distribution of initial step sizes: log-uniform, as mamba-ssm draws them. The defaults are that package's.
///
/// ```
/// use seqmix::state_space::StepSizes;
///
/// // softplus of these biases is between 0.001 and 0.1
/// let biases = StepSizes::default().biases(3, 42)?;
/// for bias in biases {
///     let dt = bias.exp().ln_1p();
///     assert!(dt > 0.00099 && dt < 0.1001);
/// }
/// # Ok::<(), seqmix::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSizes {
    /// The least step size that is drawn; above 0.
    pub dt_min: f64,
    /// The largest one.
    pub dt_max: f64,
    /// What smaller ones are raised to.
    pub dt_init_floor: f64,
}

impl Default for StepSizes {
    fn default() -> Self {
        Self {
            dt_min: 1e-3,
            dt_max: 0.1,
            dt_init_floor: 1e-4,
        }
    }
}

impl StepSizes {
    /// `count` step sizes, the same ones for the same `seed`: `exp` of uniform numbers between `ln dt_min` and
    /// `ln dt_max`, not below the floor.
    ///
    /// # Errors
    /// [`Error::Argument`] if not `0 < dt_min <= dt_max`, with both finite, or if the floor is negative or not finite.
    pub fn sample(self, count: usize, seed: u64) -> Result<Vec<f64>> {
        let Self {
            dt_min,
            dt_max,
            dt_init_floor,
        } = self;
        let check = |argument, value: f64, holds, expected: &str| match holds {
            true => Ok(()),
            false => Err(Error::Argument {
                op: "state_space::StepSizes",
                argument,
                expected: expected.into(),
                found: value.to_string(),
            }),
        };
        let positive = dt_min > 0.0 && dt_min.is_finite();
        check("dt_min", dt_min, positive, "a finite number above 0")?;
        let above = dt_max >= dt_min && dt_max.is_finite();
        check("dt_max", dt_max, above, "a finite number not below dt_min")?;
        let floor = dt_init_floor >= 0.0 && dt_init_floor.is_finite();
        check(
            "dt_init_floor",
            dt_init_floor,
            floor,
            "a finite number, at least 0",
        )?;
        let (from, to) = (dt_min.ln(), dt_max.ln());
        let mut uniform = Uniform::new(seed);
        let draw = |_| {
            (from + (to - from) * uniform.draw())
                .exp()
                .max(dt_init_floor)
        };
        Ok((0..count).map(draw).collect())
    }

    /// `count` biases that softplus makes such step sizes of: `delta_bias` of a scan, `dt_bias` of SSD.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn biases(self, count: usize, seed: u64) -> Result<Vec<f64>> {
        let sizes = self.sample(count, seed)?;
        Ok(sizes.into_iter().map(inverse_softplus).collect())
    }
}

/// The number whose softplus, `ln(1 + exp(x))`, is `y`. Negative infinity for 0, and no number below.
///
/// ```text
/// x = ln(exp(y) - 1) = y + ln(1 - exp(-y))
/// ```
pub fn inverse_softplus(y: f64) -> f64 {
    y + (-(-y).exp_m1()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_undoes_softplus() {
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        for x in [-700.0, -30.0, -2.0, 0.0, 0.5, 3.0, 40.0, 1e6] {
            let found = inverse_softplus(softplus(x));
            assert!((found - x).abs() < 1e-12 * x.abs().max(1.0), "{x}: {found}");
        }
        // softplus(0) = ln 2, and ln(e - 1) to 15 digits
        assert!((inverse_softplus(1.0) - 0.541_324_854_612_918).abs() < 1e-14);
        assert_eq!(inverse_softplus(0.0), f64::NEG_INFINITY);
        assert!(inverse_softplus(-1.0).is_nan());
    }

    /// Of numbers that are uniform in their logarithm, each factor of ten gets its share.
    #[test]
    fn sizes_are_uniform_in_their_logarithm() {
        let sizes = StepSizes::default().sample(10_000, 3).unwrap();
        assert!(sizes.iter().all(|&dt| (1e-3..=0.1).contains(&dt)));
        let small = sizes.iter().filter(|&&dt| dt < 0.01).count();
        // five standard deviations
        assert!(small.abs_diff(5_000) < 250, "{small}");
        assert_eq!(sizes, StepSizes::default().sample(10_000, 3).unwrap());
        assert_ne!(sizes, StepSizes::default().sample(10_000, 4).unwrap());
    }

    #[test]
    fn the_floor_holds() {
        let floor = StepSizes {
            dt_init_floor: 0.05,
            ..StepSizes::default()
        };
        let sizes = floor.sample(100, 1).unwrap();
        assert!(sizes.iter().all(|&dt| dt >= 0.05));
        assert!(sizes.contains(&0.05));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        let text = |sizes: StepSizes| sizes.biases(1, 1).unwrap_err().to_string();
        let zero = StepSizes {
            dt_min: 0.0,
            ..StepSizes::default()
        };
        assert_eq!(
            text(zero),
            "state_space::StepSizes: dt_min is 0, expected a finite number above 0"
        );
        let swapped = StepSizes {
            dt_max: 1e-4,
            ..StepSizes::default()
        };
        assert_eq!(
            text(swapped),
            "state_space::StepSizes: dt_max is 0.0001, expected a finite number not below dt_min"
        );
        let nan = StepSizes {
            dt_init_floor: f64::NAN,
            ..StepSizes::default()
        };
        assert_eq!(
            text(nan),
            "state_space::StepSizes: dt_init_floor is NaN, expected a finite number, at least 0"
        );
    }
}
