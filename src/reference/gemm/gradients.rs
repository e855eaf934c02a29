//! Tests of every backward formula: against central differences of the forward one.

use super::*;

/// `count` numbers between -1 and 1, others for another `seed`, none of them 0.
fn numbers(seed: usize, count: usize) -> Vec<f64> {
    let at = |index: usize| ((seed * 37 + index * 11 + 5) as f64 * 0.61).sin();
    (0..count).map(at).collect()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Half the rise of `loss` over a step of 1e-5 to each side, for each element of `x`: its gradient.
fn differences(x: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    let at = |index: usize, by: f64| {
        let mut moved = x.to_vec();
        moved[index] += by;
        loss(&moved)
    };
    (0..x.len())
        .map(|index| (at(index, step) - at(index, -step)) / (2.0 * step))
        .collect()
}

#[track_caller]
fn assert_near(name: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() < 1e-8,
            "{name}: element {at} is {found}, by differences {expected}"
        );
    }
}

const ACTIVATIONS: [Activation; 5] = [
    Activation::None,
    Activation::Relu,
    Activation::GeluTanh,
    Activation::GeluErf,
    Activation::Silu,
];

/// A layer `h = f(x w1 + bias)` under a layer `y = h w2`: from the gradient of y, that of what f got.
#[test]
fn activate_backward_is_the_gradient_of_activate() {
    let (batch, m, inner, n) = (2, 3, 4, 5);
    let (x, w1) = (numbers(1, batch * m * 2), numbers(2, batch * 2 * inner));
    let (w2, dy) = (numbers(4, batch * inner * n), numbers(5, batch * m * n));
    let w2_transposed: Vec<f64> = (0..batch * n * inner)
        .map(|at| w2[(at / (n * inner) * inner + at % inner) * n + at / inner % n])
        .collect();
    for activation in ACTIVATIONS {
        let first = Multiply {
            batch,
            m,
            n: inner,
            k: 2,
            a: &x,
            b: &w1,
            epilogue: Epilogue::Activate { activation },
            ..Multiply::default()
        };
        // a step of c is a step of what f gets
        let loss = |c: &[f64]| {
            let h = Multiply {
                c: Some(c),
                ..first
            };
            let h = h.run().unwrap().d;
            let second = Multiply {
                batch,
                m,
                n,
                k: inner,
                a: &h,
                b: &w2,
                ..Multiply::default()
            };
            dot(&second.run().unwrap().d, &dy)
        };
        let backward = Multiply {
            batch,
            m,
            n: inner,
            k: n,
            a: &dy,
            b: &w2_transposed,
            epilogue: Epilogue::ActivateBackward {
                activation,
                preactivation: &first.run().unwrap().preactivation,
            },
            ..Multiply::default()
        };
        let found = backward.run().unwrap();
        let name = format!("{activation:?}");
        let expected = differences(&vec![0.0; batch * m * inner], loss);
        assert_near(&name, &found.d, &expected);
        // and the sums are the gradient of a bias that all matrices share
        let loss = |bias: &[f64]| loss(&bias.repeat(batch * m));
        let expected = differences(&vec![0.0; inner], loss);
        assert_near(&name, &found.column_sums, &expected);
    }
}

/// `h = f(x weights) (x b)` under `y = h w`: from the gradient of y, those of both factors.
#[test]
fn gate_backward_is_the_gradient_of_gate() {
    let (m, inner, n) = (3, 4, 5);
    let (x, weights, b) = (
        numbers(1, m * 2),
        numbers(2, 2 * inner),
        numbers(3, 2 * inner),
    );
    let (w, dy) = (numbers(4, inner * n), numbers(5, m * n));
    let w_transposed: Vec<f64> = (0..n * inner)
        .map(|at| w[at % inner * n + at / inner])
        .collect();
    for activation in ACTIVATIONS {
        let forward = |weights: &[f64], b: &[f64]| {
            let problem = Multiply {
                batch: 1,
                m,
                n: inner,
                k: 2,
                a: &x,
                b,
                epilogue: Epilogue::Gate {
                    activation,
                    weights,
                    bias: None,
                },
                ..Multiply::default()
            };
            problem.run().unwrap()
        };
        let loss = |weights: &[f64], b: &[f64]| {
            let second = Multiply {
                batch: 1,
                m,
                n,
                k: inner,
                a: &forward(weights, b).d,
                b: &w,
                ..Multiply::default()
            };
            dot(&second.run().unwrap().d, &dy)
        };
        let backward = Multiply {
            batch: 1,
            m,
            n: inner,
            k: n,
            a: &dy,
            b: &w_transposed,
            epilogue: Epilogue::GateBackward {
                activation,
                preactivation: &forward(&weights, &b).preactivation,
            },
            ..Multiply::default()
        };
        let found = backward.run().unwrap().d;
        // the gradients of weights and of b are x^T times those of g and u
        let gradients = |part: usize| -> Vec<f64> {
            let of = |l: usize, j: usize| {
                (0..m)
                    .map(|i| x[i * 2 + l] * found[i * 2 * inner + part * inner + j])
                    .sum()
            };
            (0..2 * inner)
                .map(|at| of(at / inner, at % inner))
                .collect()
        };
        let name = format!("{activation:?}");
        let expected = differences(&weights, |weights| loss(weights, &b));
        assert_near(&name, &gradients(0), &expected);
        let expected = differences(&b, |b| loss(&weights, b));
        assert_near(&name, &gradients(1), &expected);
    }
}

#[test]
fn lora_gradients_are_those_of_the_adapter() {
    let (batch, m, n, k, rank, scale) = (2, 3, 4, 5, 2, 0.7);
    let (a, b) = (numbers(1, batch * m * k), numbers(2, batch * k * n));
    let (down, up) = (numbers(3, batch * k * rank), numbers(4, batch * rank * n));
    let dd = numbers(5, batch * m * n);
    let loss = |a: &[f64], down: &[f64], up: &[f64]| {
        let forward = Multiply {
            batch,
            m,
            n,
            k,
            a,
            b: &b,
            adapter: Some(Adapter {
                rank,
                down,
                up,
                scale,
            }),
            ..Multiply::default()
        };
        dot(&forward.run().unwrap().d, &dd)
    };
    let problem = LoraBackward {
        batch,
        m,
        n,
        k,
        rank,
        a: &a,
        b: &b,
        down: &down,
        up: &up,
        scale,
        dd: &dd,
    };
    let LoraGradients { da, ddown, dup } = problem.run().unwrap();
    assert_near("da", &da, &differences(&a, |a| loss(a, &down, &up)));
    assert_near(
        "ddown",
        &ddown,
        &differences(&down, |down| loss(&a, down, &up)),
    );
    assert_near("dup", &dup, &differences(&up, |up| loss(&a, &down, up)));
}
