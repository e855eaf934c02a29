//! Units by size, layout and range, against the reference.

use half::{bf16, f16};
use seqmix::linear_attention as linear;
use seqmix::reference::linear_attention;
use seqmix::{Tensor, Workspace};

use super::{CASE, Case, check, compare, run, widen_f32};
use crate::support::device;

/// Sizes around that of a tile, with and without a chunk that they do not fill.
#[test]
fn lengths_around_a_tile() {
    for seqlen in [1, 7, 63, 64, 65, 129, 300] {
        let case = Case {
            seqlen,
            dv: 40,
            ..CASE
        };
        check::<f16>(case);
        let chunk = Some(if seqlen > 200 { 128 } else { 64 });
        check::<bf16>(Case { chunk, ..case });
    }
}

/// Who sees whom, with and without bias and chunks.
#[test]
fn masks_biases_and_chunks() {
    for causal in [true, false] {
        for bias in [true, false] {
            for chunk in [None, Some(64)] {
                let case = Case {
                    batch: 2,
                    seqlen: 150,
                    causal,
                    bias,
                    chunk,
                    ..CASE
                };
                check::<f16>(case);
            }
        }
    }
}

/// Channels of z and values that fill no tile, and kernels for each size.
#[test]
fn channels() {
    for (dz, dv) in [(40, 72), (128, 136), (136, 264), (256, 8)] {
        for chunk in [None, Some(64)] {
            let case = Case {
                seqlen: 70,
                dz,
                dv,
                chunk,
                scale: 1.0 / dz as f32,
                ..CASE
            };
            check::<f16>(case);
            check::<bf16>(case);
        }
    }
}

/// f32 is multiplied with all its bits.
#[test]
fn single_precision() {
    for (seqlen, dz, dv, chunk, causal) in [
        (1, 128, 8, None, true),
        (70, 40, 40, None, false),
        (70, 136, 136, Some(64), true),
        (70, 64, 264, Some(64), false),
    ] {
        check::<f32>(Case {
            seqlen,
            dz,
            dv,
            chunk,
            causal,
            ..CASE
        });
    }
}

/// Blocks of 512 channels, which few blocks would not choose.
#[test]
fn wide_blocks() {
    for chunk in [None, Some(64)] {
        let case = Case {
            seqlen: 100,
            dz: 128,
            dv: 520,
            chunk,
            channels: Some(512),
            ..CASE
        };
        check::<f16>(case);
        check::<bf16>(case);
    }
}

#[test]
fn parts_of_a_projection() {
    for chunk in [None, Some(64)] {
        let case = Case {
            batch: 2,
            seqlen: 100,
            projection: true,
            chunk,
            ..CASE
        };
        check::<f16>(case);
    }
}

/// Packed sequences, of which some are empty.
#[test]
fn packed_sequences() {
    for causal in [true, false] {
        for chunk in [None, Some(64)] {
            let case = Case {
                lengths: Some(&[0, 5, 130, 0, 64, 1, 0]),
                causal,
                chunk,
                ..CASE
            };
            check::<bf16>(case);
        }
    }
}

/// Without steps or sequences nothing is queued.
#[test]
fn nothing_to_do() {
    for (batch, seqlen, lengths) in [
        (2, 0, None),
        (0, 70, None),
        (1, 0, Some(&[][..])),
        (1, 0, Some(&[0, 0])),
    ] {
        let case = Case {
            batch,
            seqlen,
            lengths,
            ..CASE
        };
        let inputs = case.inputs::<f16>();
        assert!(run("nothing", case, &inputs).is_empty());
    }
}

/// Squares of scores that f16 cannot hold, and others that it would hold with few bits.
#[test]
fn scores_of_any_size() {
    for (scale, v, u) in [(30.0, 1e-4, 0.1), (3e-5, 3e2, 1e3)] {
        for chunk in [None, Some(64)] {
            let case = Case {
                seqlen: 200,
                scale,
                bias: false,
                deviations: [u, v, 1.0],
                chunk,
                ..CASE
            };
            let inputs = case.inputs::<f16>();
            let name = format!("{case:?}");
            let out = run(&name, case, &inputs);
            assert!(out.iter().all(|x| x.is_finite()), "{name}");
            compare(&name, case, &inputs, &out);
        }
    }
}

/// States that f16 cannot hold.
#[test]
fn states_of_any_size() {
    let case = Case {
        seqlen: 200,
        chunk: Some(64),
        deviations: [1e-3, 1e4, 1.0],
        scale: 1e-3,
        bias: false,
        ..CASE
    };
    let inputs = case.inputs::<f16>();
    let out = run("large states", case, &inputs);
    assert!(out.iter().all(|x| x.is_finite()));
    compare("large states", case, &inputs, &out);
}

/// One chunk that holds a whole causal sequence is the quadratic unit, to the bit.
#[test]
fn one_chunk_is_all_quadratic() {
    let quadratic = Case {
        seqlen: 150,
        bias: false,
        ..CASE
    };
    let mixed = Case {
        chunk: Some(192),
        ..quadratic
    };
    let inputs = quadratic.inputs::<f16>();
    assert_eq!(
        run("quadratic", quadratic, &inputs),
        run("mixed", mixed, &inputs)
    );
}

/// Without scores, what is left is linear attention whose state is that before a chunk; if not causal, that of all steps.
#[test]
fn without_scores_it_is_linear_attention() {
    for causal in [true, false] {
        let case = Case {
            seqlen: 150,
            causal,
            chunk: Some(64),
            ..CASE
        };
        let mut inputs = case.inputs::<f32>();
        inputs.bias.fill(-1e6); // no score is above 0
        let out = run("linear", case, &inputs);
        let Case { dz, dv, .. } = case;
        let [z, u, v] = [&inputs.z, &inputs.u, &inputs.v].map(|x| widen_f32(x));
        let apply = |at: usize| -> Vec<f64> {
            let [gamma, beta] = [at, at + 1].map(|at| widen_f32(&inputs.vectors[at]));
            let channels = z.iter().enumerate();
            channels
                .map(|(i, z)| gamma[i % dz] * z + beta[i % dz])
                .collect()
        };
        let (q, k) = (apply(4), apply(6));
        for i in 0..case.seqlen {
            let met = if causal { i / 64 * 64 } else { case.seqlen };
            let layer = linear_attention::Forward {
                batch: 1,
                seqlen: met,
                heads: 1,
                heads_q: 1,
                heads_k: 1,
                heads_v: 1,
                dk: dz,
                dv,
                q: &q[..met * dz],
                k: &k[..met * dz],
                v: &v[..met * dv],
                ..linear_attention::Forward::default()
            };
            if i % 50 != 0 && i % 64 != 63 {
                continue; // the reference is slow
            }
            let state = layer.run().unwrap().final_state;
            for e in 0..dv {
                let sum: f64 = (0..dz).map(|c| q[i * dz + c] * state[c * dv + e]).sum();
                let (found, wanted) =
                    (out[i * dv + e], f64::from(case.scale) * sum * u[i * dv + e]);
                assert!(
                    (found - wanted).abs() < 1e-4 * (1.0 + wanted.abs()),
                    "step {i}, channel {e}: {found}, not {wanted}"
                );
            }
        }
    }
}

/// The kernels of linear attention return the same.
#[test]
fn without_scores_it_is_what_linear_attention_returns() {
    let case = Case {
        seqlen: 100,
        causal: false,
        chunk: Some(64),
        ..CASE
    };
    let mut inputs = case.inputs::<f16>();
    inputs.bias.fill(-1e6); // no score is above 0
    inputs.u.fill(f16::ONE);
    let found = run("linear", case, &inputs);
    let device = device();
    let stream = device.stream();
    let apply = |at: usize| -> Vec<f16> {
        let [gamma, beta] = [at, at + 1].map(|at| &inputs.vectors[at]);
        let channels = inputs.z.iter().enumerate();
        channels
            .map(|(i, z)| f16::from_f32(gamma[i % case.dz] * z.to_f32() + beta[i % case.dz]))
            .collect()
    };
    let rows = |numbers: &[f16], channels| {
        Tensor::from_host(&stream, numbers, [1, case.seqlen, 1, channels]).unwrap()
    };
    let (q, k) = (rows(&apply(4), case.dz), rows(&apply(6), case.dz));
    let v = rows(&inputs.v, case.dv);
    let mut out = Tensor::<f16, 4>::zeros(&stream, v.shape()).unwrap();
    let tensors = linear::Forward {
        layer: linear::Layer::new(q.view(), k.view(), v.view()),
        out: out.view_mut(),
        final_state: None,
        final_z: None,
        normalizer: None,
    };
    let config = linear::Config {
        scale: Some(case.scale),
        causal: false,
        ..linear::Config::default()
    };
    let attention = &device.linear_attention;
    let mut workspace = Workspace::new(&stream);
    let plan = attention.plan(config, &tensors).unwrap();
    workspace.reserve(plan.workspace_bytes()).unwrap();
    attention
        .forward(&stream, config, tensors, &mut workspace)
        .unwrap();
    let expected = out.to_host(&stream).unwrap();
    let largest = found.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected.to_f64()).abs();
        assert!(difference < 2e-3 * largest, "{i}: {found}, not {expected}");
    }
}
