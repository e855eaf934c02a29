//! Decays that models fix for each head: natural logarithms, for [`Decay::PerHead`](super::Decay::PerHead).

/// RetNet's: `gamma = 1 - 2^(-5 - h)` for head `h`. Sun et al., "Retentive Network: A Successor to Transformer for Large
/// Language Models", 2023.
///
/// ```
/// use seqmix::linear_attention::retnet_decays;
///
/// let decays = retnet_decays(2);
/// assert_eq!(decays, [(31.0_f32 / 32.0).ln(), (63.0_f32 / 64.0).ln()]);
/// ```
pub fn retnet_decays(heads: usize) -> Vec<f32> {
    let gamma = |h: usize| -(-5.0 - h as f64).exp2();
    (0..heads).map(|h| gamma(h).ln_1p() as f32).collect()
}

/// Lightning Attention-2's: the slopes of ALiBi with the opposite sign, `-2^(-8 (h + 1) / heads)` for head `h`. Of a
/// number of heads that is no power of 2, the largest such number below it has these slopes, and the others take the
/// places halfway between, from the steepest on. Qin et al., "Lightning Attention-2", 2024; Press et al., "Train
/// Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", 2022.
///
/// Models multiply them by a factor of each layer, so that later layers forget less.
///
/// ```
/// use seqmix::linear_attention::lightning_decays;
///
/// assert_eq!(lightning_decays(8)[..3], [-0.5, -0.25, -0.125]);
/// ```
pub fn lightning_decays(heads: usize) -> Vec<f32> {
    let Some(bits) = heads.checked_ilog2() else {
        return Vec::new();
    };
    let whole = 1_usize << bits;
    let slope = |place: f64| -(-8.0 * place / whole as f64).exp2() as f32;
    let halfway = (0..heads - whole).map(|i| i as f64 + 0.5);
    let places = (1..=whole).map(|h| h as f64).chain(halfway);
    places.map(slope).collect()
}

#[cfg(test)]
mod tests {
    use super::{lightning_decays, retnet_decays};

    #[test]
    fn decays_of_retnet() {
        assert!(retnet_decays(0).is_empty());
        let decays = retnet_decays(60);
        assert_eq!(
            decays[..3],
            [0.968_75_f64, 0.984_375, 0.992_187_5].map(|x| x.ln() as f32)
        );
        // also where 1 - 2^(-5 - h) is 1 in f32
        assert_eq!(decays[40], -(2.0_f32.powi(-45)));
    }

    /// As the list that ALiBi's authors build by recursion.
    #[test]
    fn decays_of_lightning_attention() {
        assert!(lightning_decays(0).is_empty());
        assert_eq!(lightning_decays(1), [-(2.0_f32.powi(-8))]);
        assert_eq!(
            lightning_decays(4),
            [-0.25, -0.0625, -0.015_625, -0.003_906_25]
        );
        let six = [0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125];
        assert_eq!(lightning_decays(6), six.map(|x: f32| -x));
    }
}
