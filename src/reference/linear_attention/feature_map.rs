//! [`FeatureMap`]: what queries and keys go through.

use crate::reference::pointwise::{relu, relu_derivative, silu, silu_derivative};

/// A function of one number that is applied to each element of queries and keys before they are multiplied. Maps to
/// positive numbers make scores positive, as the exponential function of softmax does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FeatureMap {
    /// `x`
    #[default]
    Identity,
    /// `elu(x) + 1`, which is `x + 1` above 0 and `exp(x)` elsewhere: Katharopoulos et al., "Transformers are RNNs",
    /// 2020, equation 7.
    EluPlusOne,
    /// `max(x, 0)`; a NaN stays.
    Relu,
    /// `max(x, 0)^2`; a NaN stays.
    ReluSquared,
    /// `x / (1 + exp(-x))`
    Silu,
    /// `exp(x)`
    Exp,
}

impl FeatureMap {
    /// The function's value.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Self::Identity => x,
            Self::EluPlusOne => match x > 0.0 {
                true => x + 1.0,
                false => x.exp(),
            },
            Self::Relu => relu(x),
            Self::ReluSquared => relu(x) * relu(x),
            Self::Silu => silu(x),
            Self::Exp => x.exp(),
        }
    }

    /// The function's slope; that of [`Relu`](Self::Relu) at 0 is 0.
    pub fn derivative(self, x: f64) -> f64 {
        match self {
            Self::Identity => 1.0,
            Self::EluPlusOne => match x > 0.0 {
                true => 1.0,
                false => x.exp(),
            },
            Self::Relu => relu_derivative(x),
            Self::ReluSquared => 2.0 * relu(x),
            Self::Silu => silu_derivative(x),
            Self::Exp => x.exp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FeatureMap;
    use crate::reference::differences::slope;

    const ALL: [FeatureMap; 6] = [
        FeatureMap::Identity,
        FeatureMap::EluPlusOne,
        FeatureMap::Relu,
        FeatureMap::ReluSquared,
        FeatureMap::Silu,
        FeatureMap::Exp,
    ];

    #[test]
    fn maps_have_their_known_values() {
        let e = std::f64::consts::E;
        let known = [
            (FeatureMap::Identity, -1.0, 0.0, 2.0),
            (FeatureMap::EluPlusOne, 1.0 / e, 1.0, 3.0),
            (FeatureMap::Relu, 0.0, 0.0, 2.0),
            (FeatureMap::ReluSquared, 0.0, 0.0, 4.0),
            (FeatureMap::Exp, 1.0 / e, 1.0, e * e),
        ];
        for (map, minus_one, zero, two) in known {
            let found = [-1.0, 0.0, 2.0].map(|x| map.apply(x));
            for (found, expected) in found.into_iter().zip([minus_one, zero, two]) {
                assert!((found - expected).abs() < 1e-14, "{map:?}: {found}");
            }
        }
        assert_eq!(FeatureMap::Silu.apply(1.0), 1.0 / (1.0 + (-1.0_f64).exp()));
    }

    #[test]
    fn derivatives_are_slopes() {
        for map in ALL {
            // not at the corner of relu
            for x in [-9.0, -2.3, -0.4, -0.01, 0.02, 0.6, 3.1] {
                let (expected, found) = (slope(|x| map.apply(x), x), map.derivative(x));
                let difference = (found - expected).abs();
                assert!(
                    difference < 1e-9 * expected.abs().max(1.0),
                    "{map:?} at {x}: {found}, by differences {expected}"
                );
            }
            assert!(map.apply(f64::NAN).is_nan(), "{map:?}");
        }
        // elu + 1 has no corner
        assert_eq!(FeatureMap::EluPlusOne.derivative(0.0), 1.0);
    }
}
