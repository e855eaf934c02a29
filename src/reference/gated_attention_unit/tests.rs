//! The unit against other ways to write it, and its gradients against finite differences.

use super::{Affine, AffineGradients, Backward, Forward, Mixed, Pair, PairGradients};
use crate::reference::differences::{assert_gradient, noise};
use crate::reference::linear_attention::{self, Readout};

/// A problem without its numbers.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    seqlen: usize,
    dz: usize,
    dv: usize,
    causal: bool,
    chunk: Option<usize>,
    bias: bool,
    cu_seqlens: Option<&'static [usize]>,
}

const CASE: Case = Case {
    batch: 2,
    seqlen: 7,
    dz: 3,
    dv: 2,
    causal: true,
    chunk: None,
    bias: false,
    cu_seqlens: None,
};

/// What a problem borrows. `numbers` are gamma and beta of q, k, and of q, k of the linear part.
struct Inputs {
    case: Case,
    u: Vec<f64>,
    v: Vec<f64>,
    z: Vec<f64>,
    numbers: [Vec<f64>; 8],
    bias: Vec<f64>,
}

impl Inputs {
    fn new(case: Case) -> Self {
        let steps = case.batch * case.seqlen;
        let distances = 2 * case.chunk.unwrap_or(case.seqlen) - 1;
        Self {
            case,
            u: noise(1, steps * case.dv),
            v: noise(2, steps * case.dv),
            z: noise(3, steps * case.dz),
            numbers: [4, 5, 6, 7, 8, 9, 10, 11].map(|seed| noise(seed, case.dz)),
            bias: noise(12, if case.bias { distances } else { 0 }),
        }
    }

    fn forward(&self) -> Forward<'_> {
        self.with(std::array::from_fn(|at| &self.numbers[at][..]))
    }

    /// The problem with other gammas and betas.
    fn with<'a>(&'a self, numbers: [&'a [f64]; 8]) -> Forward<'a> {
        let affine = |at: usize| Affine {
            gamma: numbers[at],
            beta: numbers[at + 1],
        };
        let pair = |at: usize| Pair {
            q: affine(at),
            k: affine(at + 2),
        };
        let case = self.case;
        Forward {
            batch: case.batch,
            seqlen: case.seqlen,
            dz: case.dz,
            dv: case.dv,
            u: &self.u,
            v: &self.v,
            z: &self.z,
            quadratic: pair(0),
            scale: 0.7,
            bias: case.bias.then_some(&self.bias[..]),
            causal: case.causal,
            mixed: case.chunk.map(|chunk| Mixed {
                chunk,
                linear: pair(4),
                scale: 0.3,
            }),
            cu_seqlens: case.cu_seqlens,
        }
    }
}

fn assert_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(
            difference < 1e-12 * expected.abs().max(1.0),
            "{found} is not {expected}"
        );
    }
}

/// The definition once more, pair by pair.
#[test]
fn each_pair_counts_as_the_authors_say() {
    for causal in [false, true] {
        for chunk in [None, Some(1), Some(3), Some(7), Some(9)] {
            let inputs = Inputs::new(Case {
                causal,
                chunk,
                bias: true,
                ..CASE
            });
            let Case {
                batch,
                seqlen,
                dz,
                dv,
                ..
            } = CASE;
            let reach = chunk.unwrap_or(seqlen);
            let mut expected = Vec::new();
            for i in 0..batch * seqlen {
                let mut sums = vec![0.0; dv];
                for j in (0..batch * seqlen).filter(|j| j / seqlen == i / seqlen) {
                    let made = |row: usize, at: usize, c: usize| {
                        inputs.numbers[at][c] * inputs.z[row * dz + c] + inputs.numbers[at + 1][c]
                    };
                    let score = |at: usize| -> f64 {
                        (0..dz).map(|c| made(i, at, c) * made(j, at + 2, c)).sum()
                    };
                    let (ti, tj) = (i % seqlen, j % seqlen);
                    let mut factor = 0.0;
                    if ti / reach == tj / reach && (!causal || tj <= ti) {
                        let bias = inputs.bias[reach - 1 + ti - tj];
                        factor += (0.7 * score(0) + bias).max(0.0).powi(2);
                    }
                    if chunk.is_some() && (!causal || tj / reach < ti / reach) {
                        factor += 0.3 * score(4);
                    }
                    for (sum, v) in sums.iter_mut().zip(&inputs.v[j * dv..]) {
                        *sum += factor * v;
                    }
                }
                let gates = &inputs.u[i * dv..];
                expected.extend(sums.iter().zip(gates).map(|(sum, u)| sum * u));
            }
            assert_near(&inputs.forward().run().unwrap(), &expected);
        }
    }
}

#[test]
fn one_causal_chunk_is_the_quadratic_form() {
    let inputs = Inputs::new(Case {
        chunk: Some(CASE.seqlen),
        bias: true,
        ..CASE
    });
    let mixed = inputs.forward();
    let quadratic = Forward {
        mixed: None,
        ..mixed
    };
    assert_eq!(mixed.run().unwrap(), quadratic.run().unwrap());
}

/// Without scores, what is left is linear attention: of all steps, or, in chunks of one step, of those before.
#[test]
fn the_linear_part_is_linear_attention() {
    let zeros = vec![0.0; CASE.dz];
    for (causal, chunk, readout) in [(false, 3, Readout::Last), (true, 1, Readout::Bonus(&zeros))] {
        let inputs = Inputs::new(Case {
            causal,
            chunk: Some(chunk),
            ..CASE
        });
        let mut unit = inputs.forward();
        let nothing = Affine {
            gamma: &zeros,
            beta: &zeros,
        };
        unit.quadratic.q = nothing;
        let made = |at: usize| -> Vec<f64> {
            let rows = inputs.z.chunks(CASE.dz);
            let row = |row: &[f64]| -> Vec<f64> {
                let numbers = inputs.numbers[at].iter().zip(&inputs.numbers[at + 1]);
                row.iter()
                    .zip(numbers)
                    .map(|(z, (gamma, beta))| gamma * z + beta)
                    .collect()
            };
            rows.flat_map(row).collect()
        };
        let linear = linear_attention::Forward {
            batch: CASE.batch,
            seqlen: CASE.seqlen,
            heads: 1,
            heads_q: 1,
            heads_k: 1,
            heads_v: 1,
            dk: CASE.dz,
            dv: CASE.dv,
            q: &made(4),
            k: &made(6),
            v: &inputs.v,
            scale: Some(0.3),
            readout,
            ..linear_attention::Forward::default()
        };
        let attended = linear.run().unwrap().out;
        let expected: Vec<f64> = attended.iter().zip(&inputs.u).map(|(a, u)| a * u).collect();
        assert_near(&unit.run().unwrap(), &expected);
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    for chunk in [None, Some(2)] {
        let inputs = Inputs::new(Case {
            batch: 1,
            causal: false,
            chunk,
            cu_seqlens: Some(&[0, 3, 3, 7]),
            ..CASE
        });
        let packed = inputs.forward();
        let mut expected = Vec::new();
        for (from, to) in [(0, 3), (3, 7)] {
            let alone = Forward {
                seqlen: to - from,
                u: &inputs.u[from * 2..to * 2],
                v: &inputs.v[from * 2..to * 2],
                z: &inputs.z[from * 3..to * 3],
                cu_seqlens: None,
                ..packed
            };
            expected.extend(alone.run().unwrap());
        }
        assert_eq!(packed.run().unwrap(), expected);
    }
}

/// Confirms the gradient of every input of a problem.
fn check_gradients(case: Case) {
    let inputs = Inputs::new(case);
    let forward = inputs.forward();
    let dout = noise(13, inputs.u.len());
    let backward = Backward {
        forward,
        dout: &dout,
    };
    let gradients = backward.run().unwrap();
    let loss = |forward: Forward<'_>| {
        let out = forward.run().unwrap();
        out.iter().zip(&dout).map(|(x, dx)| x * dx).sum::<f64>()
    };
    assert_gradient("u", &inputs.u, &gradients.du, |u| {
        loss(Forward { u, ..forward })
    });
    assert_gradient("v", &inputs.v, &gradients.dv, |v| {
        loss(Forward { v, ..forward })
    });
    assert_gradient("z", &inputs.z, &gradients.dz, |z| {
        loss(Forward { z, ..forward })
    });
    assert_eq!(gradients.dbias.is_some(), case.bias);
    assert_gradient(
        "bias",
        &inputs.bias,
        &gradients.dbias.unwrap_or_default(),
        |bias| {
            let bias = Some(bias);
            loss(Forward { bias, ..forward })
        },
    );
    assert_eq!(gradients.linear.is_some(), case.chunk.is_some());
    let pairs = [Some(gradients.quadratic), gradients.linear];
    let numbers = pairs
        .into_iter()
        .flatten()
        .flat_map(|PairGradients { q, k }| {
            [q, k]
                .into_iter()
                .flat_map(|AffineGradients { dgamma, dbeta }| [dgamma, dbeta])
        });
    for (at, gradient) in numbers.enumerate() {
        let name = format!("numbers {at}");
        assert_gradient(&name, &inputs.numbers[at], &gradient, |moved| {
            let mut numbers: [&[f64]; 8] = std::array::from_fn(|at| &inputs.numbers[at][..]);
            numbers[at] = moved;
            loss(inputs.with(numbers))
        });
    }
}

#[test]
fn gradients_are_finite_differences() {
    for causal in [false, true] {
        for chunk in [None, Some(2), Some(5)] {
            for (bias, cu_seqlens) in [(true, None), (false, Some(&[0, 1, 1, 7][..]))] {
                let batch = if cu_seqlens.is_some() { 1 } else { 2 };
                check_gradients(Case {
                    batch,
                    causal,
                    chunk,
                    bias,
                    cu_seqlens,
                    ..CASE
                });
            }
        }
    }
}

#[test]
fn rounding_applies_to_products_and_to_what_is_stored() {
    let coarse = |x: f64| (x * 4.0).round() / 4.0;
    let (one, half, zero) = (&[1.0][..], &[0.5][..], &[0.0][..]);
    let affine = |gamma| Affine { gamma, beta: zero };
    let problem = Forward {
        batch: 1,
        seqlen: 1,
        dz: 1,
        dv: 1,
        u: &[1.3],
        v: &[0.6],
        z: &[1.1],
        quadratic: Pair {
            q: affine(one),
            k: affine(half),
        },
        scale: 1.5,
        ..Forward::default()
    };
    // q: 1; k: 0.55 -> 0.5; the square of 0.75 is 0.5625 -> 0.5; a = 0.3 -> 0.25; 0.325 -> 0.25
    assert_eq!(problem.run_rounded(coarse).unwrap(), [0.25]);
    let backward = Backward {
        forward: problem,
        dout: &[1.3],
    };
    let gradients = backward.run_rounded(coarse).unwrap();
    assert_eq!(gradients.du, [0.25]); // 1.3 * 0.25 = 0.325
    assert_eq!(gradients.dv, [1.0]); // da = 1.69 -> 1.75; 0.5 * 1.75 = 0.875
    // dx: 2 * 0.75 * 1.75 * 0.6 = 1.575 -> 1.5; dq = 1.5 * 1.5 * 0.5, dk = 1.5 * 1.5; dz = 1.125 + 0.5 * 2.25
    assert_eq!(gradients.dz, [2.25]);
    assert_near(&gradients.quadratic.q.dgamma, &[1.1 * 1.125]);
    assert_near(&gradients.quadratic.k.dbeta, &[2.25]);

    let linear = Forward {
        u: &[1.0],
        quadratic: Pair {
            q: affine(zero),
            k: affine(zero),
        },
        mixed: Some(Mixed {
            chunk: 1,
            linear: problem.quadratic,
            scale: 1.3,
        }),
        ..problem
    };
    // the state: 0.5 * 0.6 -> 0.25; 1.3 * 0.25 = 0.325
    assert_eq!(linear.run_rounded(coarse).unwrap(), [0.25]);
    let backward = Backward {
        forward: linear,
        dout: &[1.3],
    };
    let gradients = backward.run_rounded(coarse).unwrap();
    // da = 1.25; the gradient of the state: 1.3 * 1.25 = 1.625 -> 1.75
    assert_eq!(gradients.dv, [1.0]); // 1.75 * 0.5 = 0.875
    // dq = 1.3 * 0.25 * 1.25 = 0.406, dk = 1.75 * 0.6; dz = 0.406 + 0.5 * 1.05 = 0.931
    assert_eq!(gradients.dz, [1.0]);
}

#[test]
fn sizes_that_disagree_are_named() {
    let inputs = Inputs::new(Case {
        chunk: Some(3),
        bias: true,
        ..CASE
    });
    let problem = inputs.forward();
    let text = |problem: Forward<'_>| problem.run().unwrap_err().to_string();
    let mixed = |chunk| problem.mixed.map(|mixed| Mixed { chunk, ..mixed });
    assert_eq!(
        text(Forward {
            mixed: mixed(0),
            ..problem
        }),
        "steps of a chunk: expected 1, found 0"
    );
    assert_eq!(
        text(Forward {
            mixed: mixed(4),
            ..problem
        }),
        "length of bias: expected 7, found 5"
    );
    assert_eq!(
        text(Forward {
            quadratic: Pair::default(),
            ..problem
        }),
        "length of gamma: expected 3, found 0"
    );
    assert_eq!(
        text(Forward { u: &[], ..problem }),
        "length of u: expected 28, found 0"
    );
    let backward = Backward {
        forward: problem,
        dout: &[],
    };
    let error = backward.run().unwrap_err().to_string();
    assert_eq!(error, "length of dout: expected 28, found 0");
}
