//! The recurrence against the delta rule, and its gradients against finite differences.

use super::{Backward, Forward};
use crate::reference::differences::{assert_gradient, noise};
use crate::reference::linear_attention::{self, Decay, Rule};
use crate::reference::matrix::Matrix;

const STEPS: usize = 5;
const HEADS: usize = 2;
const DK: usize = 3;
const DV: usize = 2;

/// What a problem of packed sequences borrows: 2, 0 and 3 steps.
struct Inputs {
    r: Vec<f64>,
    decay: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    initial_state: Vec<f64>,
}

impl Inputs {
    fn new() -> Self {
        let keys = |seed| noise(seed, STEPS * HEADS * DK);
        Self {
            r: keys(1),
            decay: keys(2).iter().map(|x| 0.5 * x - 0.8).collect(),
            k: keys(3),
            v: noise(4, STEPS * HEADS * DV),
            a: keys(5),
            b: keys(6),
            initial_state: noise(7, 3 * HEADS * DK * DV),
        }
    }

    fn forward(&self) -> Forward<'_> {
        Forward {
            batch: 1,
            seqlen: STEPS,
            heads: HEADS,
            dk: DK,
            dv: DV,
            r: &self.r,
            decay: &self.decay,
            k: &self.k,
            v: &self.v,
            a: &self.a,
            b: &self.b,
            initial_state: Some(&self.initial_state),
            cu_seqlens: Some(&[0, 2, 2, 5]),
        }
    }
}

/// `(I - beta k k^T) diag(w) S + beta k v^T` has `b = -beta k`, `a = w k`, and `beta k` for `k`.
#[test]
fn the_gated_delta_rule_is_a_special_case() {
    let inputs = Inputs::new();
    let beta = noise(8, STEPS * HEADS);
    let problem = inputs.forward();
    let delta = linear_attention::Forward {
        batch: 1,
        seqlen: STEPS,
        heads: HEADS,
        heads_q: HEADS,
        heads_k: HEADS,
        heads_v: HEADS,
        dk: DK,
        dv: DV,
        q: &inputs.r,
        k: &inputs.k,
        v: &inputs.v,
        scale: Some(1.0),
        decay: Decay::PerChannel(&inputs.decay),
        rule: Rule::Delta { beta: &beta },
        initial_state: problem.initial_state,
        cu_seqlens: problem.cu_seqlens,
        ..linear_attention::Forward::default()
    };
    let times = |factor: f64| -> Vec<f64> {
        let keys = inputs.k.iter().enumerate();
        keys.map(|(at, k)| factor * beta[at / DK] * k).collect()
    };
    let keys = inputs.k.iter().zip(&inputs.decay);
    let general = Forward {
        k: &times(1.0),
        a: &keys.map(|(k, decay)| decay.exp() * k).collect::<Vec<_>>(),
        b: &times(-1.0),
        ..problem
    };
    let (found, expected) = (general.run().unwrap(), delta.run().unwrap());
    let found = found.out.iter().chain(&found.final_state);
    let expected = expected.out.iter().chain(&expected.final_state);
    for (found, expected) in found.zip(expected) {
        assert!(
            (found - expected).abs() < 1e-13,
            "{found} is not {expected}"
        );
    }
}

/// One chunk of all steps, by matrices: what each step looks up are the unknowns of a triangular system.
#[test]
fn a_chunk_is_a_system_of_linear_equations() {
    let inputs = Inputs::new();
    let problem = Forward {
        heads: 1,
        r: &inputs.r[..STEPS * DK],
        decay: &inputs.decay[..STEPS * DK],
        k: &inputs.k[..STEPS * DK],
        v: &inputs.v[..STEPS * DV],
        a: &inputs.a[..STEPS * DK],
        b: &inputs.b[..STEPS * DK],
        initial_state: Some(&inputs.initial_state[..DK * DV]),
        cu_seqlens: None,
        ..inputs.forward()
    };
    let decay = |steps: std::ops::Range<usize>, c: usize| {
        steps.map(|t| problem.decay[t * DK + c]).sum::<f64>().exp()
    };
    let rows = |values: &[f64], width| Matrix::of(STEPS, width, values);
    let keys = |values: &[f64]| rows(values, DK);
    let [r, k, a, b] = [problem.r, problem.k, problem.a, problem.b].map(keys);
    let v = rows(problem.v, DV);
    let state = Matrix::of(DK, DV, &inputs.initial_state);
    // products of rows with the keys before `end(i)`, decayed by the steps in between that lie before `until(i)`
    let scores = |x: &Matrix, y: &Matrix, end: usize, until: usize| {
        let channel = |i: usize, j: usize, c| x.at(i, c) * y.at(j, c) * decay(j + 1..i + until, c);
        Matrix::new(STEPS, STEPS, |i, j| match j < i + end {
            true => (0..DK).map(|c| channel(i, j, c)).sum(),
            false => 0.0,
        })
    };
    let before =
        |x: &Matrix, until| Matrix::new(STEPS, DK, |i, c| x.at(i, c) * decay(0..i + until, c));
    let after = |x: &Matrix| Matrix::new(STEPS, DK, |i, c| x.at(i, c) * decay(i + 1..STEPS, c));

    let mut y = before(&a, 0)
        .times(&state)
        .plus(&scores(&a, &k, 0, 0).times(&v));
    let lookups = scores(&a, &b, 0, 0);
    for i in 0..STEPS {
        for j in 0..i {
            for e in 0..DV {
                *y.at_mut(i, e) += lookups.at(i, j) * y.at(j, e);
            }
        }
    }
    let out = before(&r, 1)
        .times(&state)
        .plus(&scores(&r, &b, 1, 1).times(&y))
        .plus(&scores(&r, &k, 1, 1).times(&v));
    let last = Matrix::new(DK, DV, |c, e| decay(0..STEPS, c) * state.at(c, e))
        .plus(&after(&b).transposed().times(&y))
        .plus(&after(&k).transposed().times(&v));
    let expected = problem.run().unwrap();
    let found = out.values.iter().chain(&last.values);
    for (found, expected) in found.zip(expected.out.iter().chain(&expected.final_state)) {
        assert!(
            (found - expected).abs() < 1e-13,
            "{found} is not {expected}"
        );
    }
}

#[test]
fn gradients_are_finite_differences() {
    let inputs = Inputs::new();
    let forward = inputs.forward();
    let dout = noise(9, inputs.v.len());
    let dfinal_state = noise(10, inputs.initial_state.len());
    let backward = Backward {
        forward,
        dout: &dout,
        dfinal_state: Some(&dfinal_state),
    };
    let gradients = backward.run().unwrap();
    let loss = |forward: Forward<'_>| {
        let result = forward.run().unwrap();
        let outs = result.out.iter().zip(&dout);
        let finals = result.final_state.iter().zip(&dfinal_state);
        outs.chain(finals).map(|(x, dx)| x * dx).sum::<f64>()
    };
    assert_gradient("r", &inputs.r, &gradients.dr, |r| {
        loss(Forward { r, ..forward })
    });
    assert_gradient("decay", &inputs.decay, &gradients.ddecay, |decay| {
        loss(Forward { decay, ..forward })
    });
    assert_gradient("k", &inputs.k, &gradients.dk, |k| {
        loss(Forward { k, ..forward })
    });
    assert_gradient("v", &inputs.v, &gradients.dv, |v| {
        loss(Forward { v, ..forward })
    });
    assert_gradient("a", &inputs.a, &gradients.da, |a| {
        loss(Forward { a, ..forward })
    });
    assert_gradient("b", &inputs.b, &gradients.db, |b| {
        loss(Forward { b, ..forward })
    });
    let found = &gradients.dinitial_state;
    assert_gradient("initial_state", &inputs.initial_state, found, |state| {
        let initial_state = Some(state);
        loss(Forward {
            initial_state,
            ..forward
        })
    });
}

#[test]
fn rounding_applies_to_products_and_to_results() {
    let coarse = |x: f64| (x * 4.0).round() / 4.0;
    let problem = Forward {
        batch: 1,
        seqlen: 1,
        heads: 1,
        dk: 1,
        dv: 1,
        r: &[1.0],
        decay: &[0.0],
        k: &[0.5],
        v: &[0.7],
        a: &[-0.6],
        b: &[0.6],
        initial_state: Some(&[0.9]),
        cu_seqlens: None,
    };
    // the state is looked up as 1: -0.6 -> -0.5; 0.9 - 0.3 + 0.35 = 0.95 is read as 1
    let result = problem.run_rounded(coarse).unwrap();
    assert_eq!(result.out, [1.0]);
    assert!((result.final_state[0] - 0.95).abs() < 1e-15);
    let backward = Backward {
        forward: problem,
        dout: &[1.1],
        dfinal_state: None,
    };
    let gradients = backward.run_rounded(coarse).unwrap();
    // G = 1.1 is multiplied as 1, and G^T b = 0.6 becomes 0.5
    assert_eq!(gradients.dk, [0.75]); // 0.7
    assert_eq!(gradients.dv, [0.5]);
    assert_eq!(gradients.da, [0.5]);
    assert_eq!(gradients.db, [-0.5]);
    assert!((gradients.ddecay[0] - 0.99).abs() < 1e-15);
    assert!((gradients.dinitial_state[0] - (1.1 - 0.3)).abs() < 1e-15);
}

#[test]
fn sizes_that_disagree_are_named() {
    let inputs = Inputs::new();
    let problem = Forward {
        a: &[],
        ..inputs.forward()
    };
    let error = problem.run().unwrap_err().to_string();
    assert_eq!(error, "length of a: expected 30, found 0");
    let backward = Backward {
        forward: inputs.forward(),
        dout: &[],
        dfinal_state: None,
    };
    let error = backward.run().unwrap_err().to_string();
    assert_eq!(error, "length of dout: expected 20, found 0");
}
