//! Gradients of units by size, layout and range, against the reference.

use half::{bf16, f16};

use super::gradients::{Problem, check, check_given, dout};
use super::{CASE, Case};
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
        if seqlen < 300 {
            check::<f16>(case);
        }
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
                check::<f16>(Case {
                    batch: 2,
                    seqlen: 140,
                    causal,
                    bias,
                    chunk,
                    ..CASE
                });
            }
        }
    }
}

/// Channels of z and values that fill no tile, and kernels for each size.
#[test]
fn channels() {
    for (dz, dv) in [(40, 136), (128, 72), (136, 40), (256, 8)] {
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
            if chunk.is_some() {
                check::<bf16>(case);
            }
        }
    }
}

/// f32 is multiplied with all its bits.
#[test]
fn single_precision() {
    for (seqlen, dz, dv, chunk, causal) in [
        (1, 128, 8, None, true),
        (70, 40, 40, None, false),
        (70, 136, 40, Some(64), true),
        (70, 64, 72, Some(64), false),
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

#[test]
fn parts_of_a_projection() {
    check::<f16>(Case {
        batch: 2,
        seqlen: 100,
        projection: true,
        chunk: Some(64),
        ..CASE
    });
}

/// Packed sequences, of which some are empty.
#[test]
fn packed_sequences() {
    for causal in [true, false] {
        for chunk in [None, Some(64)] {
            check::<bf16>(Case {
                lengths: Some(&[0, 5, 130, 0, 64, 1, 0]),
                dv: 40,
                causal,
                chunk,
                ..CASE
            });
        }
    }
}

/// Without steps or sequences the gradients of vectors are 0.
#[test]
fn nothing_to_do() {
    let device = device();
    let stream = device.stream();
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
            chunk: Some(64),
            ..CASE
        };
        let inputs = case.inputs::<f16>();
        let mut problem = Problem::new(case, &inputs, &dout(case, 1.0), &stream);
        problem
            .queue(&device.gated_attention_unit, &stream)
            .unwrap();
        for (name, found, _) in problem.fetch(&stream) {
            assert!(found.iter().all(|&x| x == 0.0), "{name} of {case:?}");
        }
    }
}

/// Squares of scores, their gradients and states that f16 cannot hold, or would hold with few bits.
#[test]
fn numbers_of_any_size() {
    for (scale, deviations, dout) in [
        (30.0, [1.0, 1e-3, 1.0], 1e-3),
        (3e-5, [1.0, 1e2, 1.0], 1e2),
        (1e-2, [1.0, 1e4, 1.0], 0.1),
    ] {
        for chunk in [None, Some(64)] {
            let case = Case {
                seqlen: 140,
                scale,
                bias: false,
                deviations,
                chunk,
                ..CASE
            };
            check_given::<f16>(case, dout);
        }
    }
}
