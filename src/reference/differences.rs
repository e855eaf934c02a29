//! Central finite differences, which confirm gradients in the tests.

/// Numbers of mean 0 that look random, from a linear congruential generator; of order 1.
pub(super) fn noise(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut draw = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| 1.5 * draw()).collect()
}

/// The slope of `f` at `x`: the error is of the order of the fourth power of the step.
pub(super) fn slope(f: impl Fn(f64) -> f64, x: f64) -> f64 {
    let step = 1e-3;
    let difference = |step: f64| (f(x + step) - f(x - step)) / (2.0 * step);
    // Richardson: the errors of both have the ratio 4, so this combination has none of second order.
    (4.0 * difference(step / 2.0) - difference(step)) / 3.0
}

/// Fails unless `gradient` is that of `loss` with respect to each element of `input`.
pub(super) fn assert_gradient(
    name: &str,
    input: &[f64],
    gradient: &[f64],
    loss: impl Fn(&[f64]) -> f64,
) {
    assert_eq!(input.len(), gradient.len(), "{name}");
    let largest = gradient.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
    for (at, &found) in gradient.iter().enumerate() {
        let along = |x: f64| {
            let mut moved = input.to_vec();
            moved[at] = x;
            loss(&moved)
        };
        let expected = slope(along, input[at]);
        assert!(
            (found - expected).abs() < 1e-8 * largest,
            "{name}[{at}]: {found}, by finite differences {expected}"
        );
    }
}
