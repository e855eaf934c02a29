//! Functions of one number that several ops apply, with their derivatives.

/// `1 / (1 + exp(-x))`
pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + exp(x))`, whose derivative is [`sigmoid`].
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `max(x, 0)`; a NaN stays.
pub(super) fn relu(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// The derivative of [`relu`]: 0 at 0; a NaN stays.
pub(super) fn relu_derivative(x: f64) -> f64 {
    if x.is_nan() { x } else { f64::from(x > 0.0) }
}

/// `x sigmoid(x)`
pub(super) fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// The derivative of [`silu`].
pub(super) fn silu_derivative(x: f64) -> f64 {
    sigmoid(x) * (1.0 + x * sigmoid(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::differences::slope;

    #[test]
    fn derivatives_are_slopes() {
        for x in [-30.0, -3.0, -0.5, 0.0, 0.7, 4.0, 30.0] {
            for (expected, found) in [
                (slope(silu, x), silu_derivative(x)),
                (slope(softplus, x), sigmoid(x)),
            ] {
                assert!((found - expected).abs() < 1e-9, "{x}: {found} {expected}");
            }
        }
    }

    #[test]
    fn relu_has_a_corner() {
        for (x, value, slope) in [(-2.0, 0.0, 0.0), (0.0, 0.0, 0.0), (3.0, 3.0, 1.0)] {
            assert_eq!((relu(x), relu_derivative(x)), (value, slope), "{x}");
        }
        assert!(relu(f64::NAN).is_nan() && relu_derivative(f64::NAN).is_nan());
    }

    #[test]
    fn far_arguments_stay_finite() {
        assert_eq!((softplus(-1e4), sigmoid(-1e4)), (0.0, 0.0));
        assert_eq!((softplus(1e4), sigmoid(1e4)), (1e4, 1.0));
        // ln(1 + e^-30) = e^-30 to 13 digits
        assert!((softplus(-30.0) / (-30.0_f64).exp() - 1.0).abs() < 1e-12);
        assert_eq!((silu(-1e4), silu_derivative(-1e4)), (0.0, 0.0));
        assert_eq!((silu(1e4), silu_derivative(1e4)), (1e4, 1.0));
    }
}
