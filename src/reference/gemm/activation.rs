//! [`Activation`]: functions of one number and their derivatives.

use std::f64::consts::{FRAC_2_SQRT_PI, PI, SQRT_2};

use crate::reference::pointwise::{relu, relu_derivative, silu, silu_derivative};

/// What is applied to each element of a product, or to each element that gates another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`; a NaN stays.
    Relu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`: Hendrycks and Gimpel, "Gaussian Error Linear Units",
    /// 2016.
    GeluTanh,
    /// `x / 2 (1 + erf(x / sqrt(2)))`: the same, exactly.
    GeluErf,
    /// `x / (1 + exp(-x))`
    Silu,
}

/// The factor of `x^3` in [`Activation::GeluTanh`].
const CUBIC: f64 = 0.044715;

impl Activation {
    /// The function's value.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Relu => relu(x),
            Self::GeluTanh => {
                let u = (2.0 / PI).sqrt() * (x + CUBIC * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            }
            Self::GeluErf => 0.5 * x * (1.0 + erf(x / SQRT_2)),
            Self::Silu => silu(x),
        }
    }

    /// The function's slope:
    ///
    /// ```text
    /// None      1
    /// Relu      1 if x > 0, else 0, also at 0; a NaN stays
    /// GeluTanh  (1 + t) / 2 + x / 2 (1 - t^2) u'   with  t = tanh(u),  u' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
    /// GeluErf   (1 + erf(x / sqrt(2))) / 2 + x exp(-x^2 / 2) / sqrt(2 pi)
    /// Silu      s (1 + x (1 - s))                  with  s = 1 / (1 + exp(-x))
    /// ```
    pub fn derivative(self, x: f64) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Relu => relu_derivative(x),
            Self::GeluTanh => {
                let t = ((2.0 / PI).sqrt() * (x + CUBIC * x * x * x)).tanh();
                let du = (2.0 / PI).sqrt() * (1.0 + 3.0 * CUBIC * x * x);
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du
            }
            Self::GeluErf => {
                let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
                0.5 * (1.0 + erf(x / SQRT_2)) + x * density
            }
            Self::Silu => silu_derivative(x),
        }
    }
}

/// The error function, to about 15 digits: `2 / sqrt(pi) exp(-x^2) sum over i of 2^i x^(2 i + 1) / (1 3 .. (2 i + 1))`,
/// whose terms all have the sign of `x`.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, 0.0);
    for i in 1..200 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * i + 1);
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Activation; 5] = [
        Activation::None,
        Activation::Relu,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::Silu,
    ];

    /// Values of tables, 15 digits.
    #[test]
    fn the_error_function_has_its_known_values() {
        let known = [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_285),
            (0.5, 0.520_499_877_813_047),
            (1.0, 0.842_700_792_949_715),
            (2.0, 0.995_322_265_018_953),
            (3.0, 0.999_977_909_503_001),
            (5.0, 0.999_999_999_998_463),
            (7.0, 1.0),
        ];
        for (x, value) in known {
            assert!((erf(x) - value).abs() < 1e-14, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + value).abs() < 1e-14, "erf({}) = {}", -x, erf(-x));
        }
    }

    #[test]
    fn activations_have_their_known_values() {
        let at_one = [
            (Activation::None, 1.0),
            (Activation::Relu, 1.0),
            (Activation::GeluTanh, 0.841_191_990_608_276),
            (Activation::GeluErf, 0.841_344_746_068_543),
            (Activation::Silu, 0.731_058_578_630_005),
        ];
        for (activation, value) in at_one {
            let found = activation.apply(1.0);
            assert!((found - value).abs() < 1e-12, "{activation:?}: {found}");
            // all but the first: f(x) - f(-x) = x
            let difference = found - activation.apply(-1.0);
            let expected = if activation == Activation::None {
                2.0
            } else {
                1.0
            };
            assert!((difference - expected).abs() < 1e-12, "{activation:?}");
        }
    }

    #[test]
    fn derivatives_have_their_known_values() {
        // at 0, and at 1: gelu' is Phi(1) + phi(1), silu' is s(1) (2 - s(1))
        let known = [
            (Activation::None, 1.0, 1.0),
            (Activation::Relu, 0.0, 1.0),
            (
                Activation::GeluErf,
                0.5,
                0.841_344_746_068_543 + 0.241_970_724_519_143,
            ),
            (
                Activation::Silu,
                0.5,
                0.731_058_578_630_005 * 1.268_941_421_369_995,
            ),
        ];
        for (activation, at_zero, at_one) in known {
            assert_eq!(activation.derivative(0.0), at_zero, "{activation:?}");
            let found = activation.derivative(1.0);
            assert!((found - at_one).abs() < 1e-12, "{activation:?}: {found}");
        }
        assert_eq!(Activation::GeluTanh.derivative(0.0), 0.5);
    }

    #[test]
    fn derivatives_are_the_slopes_of_their_functions() {
        let step = 1e-5;
        for activation in ALL {
            // not at the corner of relu
            for x in [-30.0, -8.0, -3.3, -1.7, -0.4, -0.01, 0.02, 0.6, 2.9, 20.0] {
                let rise = activation.apply(x + step) - activation.apply(x - step);
                let (slope, found) = (rise / (2.0 * step), activation.derivative(x));
                assert!(
                    (slope - found).abs() < 1e-9,
                    "{activation:?} at {x}: {found}, by differences {slope}"
                );
            }
        }
    }

    #[test]
    fn functions_end_in_the_line_that_they_approach() {
        for activation in ALL.into_iter().skip(1) {
            for (x, value, slope) in [(1e3, 1e3, 1.0), (-1e3, 0.0, 0.0)] {
                assert_eq!(activation.apply(x), value, "{activation:?} at {x}");
                assert_eq!(activation.derivative(x), slope, "{activation:?} at {x}");
            }
            assert!(activation.apply(f64::NAN).is_nan(), "{activation:?}");
            assert!(activation.derivative(f64::NAN).is_nan(), "{activation:?}");
        }
    }
}
