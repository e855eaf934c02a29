//! The average against linear attention, and its gradients against finite differences.

use super::{Backward, Forward, Output, State};
use crate::reference::differences::{assert_gradient, noise};
use crate::reference::linear_attention::{self, Decay, FeatureMap, Readout};

const STEPS: usize = 7;
const DIM: usize = 3;

/// What a problem of packed sequences borrows: 3, 0 and 4 steps.
struct Inputs {
    decay: Vec<f64>,
    bonus: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// numerator, denominator, exponent
    state: [Vec<f64>; 3],
}

impl Inputs {
    fn new() -> Self {
        let positive = |values: Vec<f64>| values.iter().map(|x| x + 2.0).collect();
        Self {
            decay: noise(1, DIM).iter().map(|x| 0.3 * x - 0.5).collect(),
            bonus: noise(2, DIM),
            k: noise(3, STEPS * DIM),
            v: noise(4, STEPS * DIM),
            state: [
                noise(5, 3 * DIM),
                positive(noise(6, 3 * DIM)),
                noise(7, 3 * DIM),
            ],
        }
    }

    fn state(&self) -> State<'_> {
        let [numerator, denominator, exponent] = &self.state;
        State {
            numerator,
            denominator,
            exponent,
        }
    }

    fn forward(&self) -> Forward<'_> {
        Forward {
            batch: 1,
            seqlen: STEPS,
            dim: DIM,
            decay: &self.decay,
            bonus: &self.bonus,
            k: &self.k,
            v: &self.v,
            initial_state: Some(self.state()),
            cu_seqlens: Some(&[0, 3, 3, 7]),
        }
    }
}

fn assert_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-13,
            "{found} is not {expected}"
        );
    }
}

/// A head for each channel, keys and values of one channel, queries of `exp(0)`.
#[test]
fn it_is_linear_attention_of_exponentials() {
    let inputs = Inputs::new();
    let found = inputs.forward().run().unwrap();
    let exp = |values: &[f64]| values.iter().map(|x| x.exp()).collect::<Vec<_>>();
    let grown = |values: &[f64]| -> Vec<f64> {
        let exponents = inputs.state[2].iter();
        values
            .iter()
            .zip(exponents)
            .map(|(x, p)| x * p.exp())
            .collect()
    };
    let attention = linear_attention::Forward {
        batch: 1,
        seqlen: STEPS,
        heads: DIM,
        heads_q: DIM,
        heads_k: DIM,
        heads_v: DIM,
        dk: 1,
        dv: 1,
        q: &[0.0; STEPS * DIM],
        k: &inputs.k,
        v: &inputs.v,
        feature_map: FeatureMap::Exp,
        scale: Some(1.0),
        decay: Decay::PerHead(&inputs.decay),
        readout: Readout::Bonus(&exp(&inputs.bonus)),
        normalize: Some(0.0),
        initial_state: Some(&grown(&inputs.state[0])),
        initial_z: Some(&grown(&inputs.state[1])),
        cu_seqlens: Some(&[0, 3, 3, 7]),
        ..linear_attention::Forward::default()
    };
    let expected = attention.run().unwrap();
    assert_near(&found.out, &expected.out);
    let ends = |values: &[f64]| -> Vec<f64> {
        let exponents = found.exponent.iter();
        values
            .iter()
            .zip(exponents)
            .map(|(x, p)| x * p.exp())
            .collect()
    };
    assert_near(&ends(&found.numerator), &expected.final_state);
    assert_near(&ends(&found.denominator), &expected.final_z.unwrap());
}

#[test]
fn large_keys_do_not_overflow() {
    let problem = Forward {
        batch: 1,
        seqlen: 3,
        dim: 1,
        decay: &[-1.0],
        bonus: &[0.0],
        k: &[5e3, 5e3 - 1.0, -5e3],
        v: &[2.0, 4.0, 1.0],
        ..Forward::default()
    };
    let Output { out, exponent, .. } = problem.run().unwrap();
    let small = (-1.0_f64).exp();
    let second = (2.0 + small * 4.0) / (1.0 + small);
    // the sums have decayed alike, and the last key is nothing beside them
    assert_near(&out, &[2.0, second, 3.0]);
    assert_near(&exponent, &[5e3 - 2.0]);
    let backward = Backward {
        forward: problem,
        dout: &[1.0; 3],
        dfinal_state: None,
    };
    let gradients = backward.run().unwrap();
    // outputs are averages: their gradients add up to 1
    assert_near(&[gradients.dv.iter().sum()], &[3.0]);
}

#[test]
fn gradients_are_finite_differences() {
    let inputs = Inputs::new();
    let forward = inputs.forward();
    let dout = noise(8, STEPS * DIM);
    let [da, db] = [noise(9, 3 * DIM), noise(10, 3 * DIM)];
    let backward = Backward {
        forward,
        dout: &dout,
        dfinal_state: Some((&da, &db)),
    };
    let gradients = backward.run().unwrap();
    let exponents = forward.run().unwrap().exponent;
    let loss = |forward: Forward<'_>| {
        let result = forward.run().unwrap();
        let mut sum: f64 = result.out.iter().zip(&dout).map(|(x, dx)| x * dx).sum();
        for (at, exponent) in exponents.iter().enumerate() {
            // as divided by the exponential of the exponent that does not vary
            let factor = (result.exponent[at] - exponent).exp();
            let (a, b) = (result.numerator[at], result.denominator[at]);
            sum += factor * (da[at] * a + db[at] * b);
        }
        sum
    };
    assert_gradient("decay", &inputs.decay, &gradients.ddecay, |decay| {
        loss(Forward { decay, ..forward })
    });
    assert_gradient("bonus", &inputs.bonus, &gradients.dbonus, |bonus| {
        loss(Forward { bonus, ..forward })
    });
    assert_gradient("k", &inputs.k, &gradients.dk, |k| {
        loss(Forward { k, ..forward })
    });
    assert_gradient("v", &inputs.v, &gradients.dv, |v| {
        loss(Forward { v, ..forward })
    });
    let state = inputs.state();
    let with = |state: State<'_>| {
        loss(Forward {
            initial_state: Some(state),
            ..forward
        })
    };
    let found = &gradients.dnumerator;
    assert_gradient("numerator", &inputs.state[0], found, |numerator| {
        with(State { numerator, ..state })
    });
    let found = &gradients.ddenominator;
    assert_gradient("denominator", &inputs.state[1], found, |denominator| {
        with(State {
            denominator,
            ..state
        })
    });
}

#[test]
fn nothing_before_a_sequence_has_no_gradient() {
    let inputs = Inputs::new();
    let backward = Backward {
        forward: Forward {
            initial_state: None,
            ..inputs.forward()
        },
        dout: &inputs.v,
        dfinal_state: None,
    };
    let gradients = backward.run_rounded(f64::round).unwrap();
    assert_eq!(gradients.dnumerator, [0.0; 3 * DIM]);
    assert_eq!(gradients.ddenominator, [0.0; 3 * DIM]);
    assert!(
        gradients
            .dk
            .iter()
            .chain(&gradients.dv)
            .all(|x| x.fract() == 0.0)
    );
}

#[test]
fn sizes_that_disagree_are_named() {
    let inputs = Inputs::new();
    let problem = inputs.forward();
    let text = |problem: Forward<'_>| problem.run().unwrap_err().to_string();
    let bonus = Forward {
        bonus: &[],
        ..problem
    };
    assert_eq!(text(bonus), "length of bonus: expected 3, found 0");
    let state = Forward {
        initial_state: Some(State::default()),
        ..problem
    };
    assert_eq!(text(state), "length of numerator: expected 9, found 0");
    let backward = Backward {
        forward: problem,
        dout: &[],
        dfinal_state: None,
    };
    let error = backward.run().unwrap_err().to_string();
    assert_eq!(error, "length of dout: expected 21, found 0");
}
