//! Gradients of normalised outputs, and of attention that is not causal, as tables.

use half::{bf16, f16};
use seqmix::linear_attention::{Backward, FeatureMap};

use super::gradients::{CASE, Case, Fades, Inputs, Problem, check, operation};
use crate::support::device;

/// A small layer with positive features, whose sums are divided by.
const NORMALIZED: Case = Case {
    seqlen: 37,
    dk: 16,
    dv: 24,
    feature_map: FeatureMap::EluPlusOne,
    normalize: Some(1e-3),
    decay: Fades::PerStep,
    ..CASE
};

/// A small layer whose queries all read the last state.
const LAST: Case = Case {
    feature_map: FeatureMap::Identity,
    normalize: None,
    causal: false,
    ..NORMALIZED
};

/// Both.
const BOTH: Case = Case {
    causal: false,
    ..NORMALIZED
};

const LAYERS: [Case; 3] = [NORMALIZED, LAST, BOTH];

#[test]
fn lengths_around_chunks_and_spans() {
    for (i, seqlen) in [1, 15, 16, 17, 64, 65, 129].into_iter().enumerate() {
        let case = Case {
            seqlen,
            heads: 1,
            shared: [1; 3],
            ..LAYERS[i % 3]
        };
        check::<f16>(case);
        check::<bf16>(Case {
            seqlen,
            ..LAYERS[(i + 1) % 3]
        });
    }
    for layer in LAYERS {
        check::<f32>(Case {
            seqlen: 33,
            heads: 1,
            shared: [1; 3],
            ..layer
        });
    }
}

/// Rows that are copied by 4 or 2 bytes.
#[test]
fn sizes_that_end_within_a_copy() {
    for (i, (dk, dv)) in [(7, 20), (20, 6), (16, 24)].into_iter().enumerate() {
        let case = |layer: Case| Case {
            seqlen: 20,
            dk,
            dv,
            shifted: i == 2,
            ..layer
        };
        check::<f16>(case(LAYERS[i]));
        check::<bf16>(case(LAYERS[(i + 1) % 3]));
        check::<f32>(case(LAYERS[(i + 2) % 3]));
    }
}

#[test]
fn every_size_of_heads() {
    for (i, (dk, dv)) in [(8, 8), (40, 128), (128, 40), (72, 16), (256, 8), (8, 256)]
        .into_iter()
        .enumerate()
    {
        let case = |layer: Case| Case {
            seqlen: 33,
            heads: 1,
            shared: [1; 3],
            dk,
            dv,
            ..layer
        };
        check::<f16>(case(LAYERS[i % 3]));
        check::<bf16>(case(LAYERS[(i + 1) % 3]));
        if i % 3 == 2 {
            check::<f32>(Case {
                seqlen: 17,
                ..case(NORMALIZED)
            });
        }
    }
}

#[test]
fn every_form_of_decays_with_and_without_what_may_be_absent() {
    for layer in LAYERS {
        for decay in [Fades::None, Fades::PerHead, Fades::PerStep] {
            for option in 0..4 {
                let case = Case {
                    batch: 2,
                    decay,
                    ddecay: option % 2 == 0,
                    states: option / 2 == 0,
                    projection: option == 1,
                    ..layer
                };
                match option % 2 {
                    0 => check::<f16>(case),
                    _ => check::<bf16>(case),
                }
            }
        }
    }
}

#[test]
fn heads_share_queries_keys_and_values() {
    for layer in LAYERS {
        for (heads, shared) in [(4, [4, 2, 1]), (3, [1, 1, 3])] {
            let case = Case {
                heads,
                shared,
                ..layer
            };
            check::<f16>(case);
            check::<bf16>(Case {
                decay: Fades::None,
                ..case
            });
        }
    }
}

#[test]
fn every_positive_feature_map() {
    for map in [
        FeatureMap::Relu,
        FeatureMap::ReluSquared,
        FeatureMap::Exp,
        FeatureMap::EluPlusOne,
    ] {
        for layer in [NORMALIZED, BOTH] {
            check::<f16>(Case {
                feature_map: map,
                scale: Some(0.3),
                ..layer
            });
        }
    }
    check::<bf16>(Case {
        feature_map: FeatureMap::Silu,
        ..LAST
    });
}

/// Not causal, without states where nothing of them passes all decays that f32 has a number for.
#[test]
fn strong_and_weak_decays() {
    for mean in [-1e-3, -0.3, -3.0, -10.0, -40.0] {
        for lost in [false, true] {
            for layer in LAYERS {
                let case = Case {
                    seqlen: 100,
                    mean,
                    lost,
                    states: layer.causal || mean > -1.0,
                    ..layer
                };
                check::<f16>(case);
                check::<bf16>(Case {
                    decay: Fades::PerHead,
                    lost: false,
                    ..case
                });
            }
        }
    }
}

#[test]
fn segments_of_every_length() {
    for (segment, layer) in [(1, LAST), (65, NORMALIZED), (128, BOTH), (64, BOTH)] {
        for decay in [Fades::None, Fades::PerHead, Fades::PerStep] {
            check::<f16>(Case {
                seqlen: 200,
                segment: Some(segment),
                decay,
                heads: 1,
                shared: [1; 3],
                ..layer
            });
        }
        check::<bf16>(Case {
            seqlen: 200,
            segment: Some(segment),
            dk: 72,
            heads: 1,
            shared: [1; 3],
            states: false,
            ..layer
        });
    }
}

#[test]
fn sequences_of_different_lengths() {
    let lengths: [&[usize]; 4] = [&[7, 64, 1, 65], &[0, 3, 0, 17], &[0, 0], &[]];
    for lengths in lengths {
        for layer in LAYERS {
            for (segment, decay) in [(None, Fades::PerStep), (Some(64), Fades::PerHead)] {
                check::<f16>(Case {
                    lengths: Some(lengths),
                    shared: [1, 2, 1],
                    decay,
                    segment,
                    ..layer
                });
            }
        }
    }
}

/// Without a step the sums are zeros, and gradients of states pass through.
#[test]
fn nothing_to_compute() {
    for (batch, seqlen, heads) in [(0, 5, 2), (2, 0, 2), (2, 5, 0)] {
        for decay in [Fades::PerHead, Fades::PerStep] {
            for layer in LAYERS {
                check::<f16>(Case {
                    batch,
                    seqlen,
                    heads,
                    shared: [heads; 3],
                    decay,
                    ..layer
                });
            }
        }
    }
}

/// Sums that outputs are divided by that are far from 1: half precision has the range for neither their inverses
/// nor keys or queries times these.
#[test]
fn large_and_small_normalizers() {
    for (scale, eps) in [(1e4, 1e-3), (1e-7, 1e-9)] {
        for layer in [NORMALIZED, BOTH] {
            check::<f16>(Case {
                scale: Some(scale),
                normalize: Some(eps),
                states: false,
                ..layer
            });
        }
    }
}

/// What the forward pass returned is asked for if it was normalised, and only then.
#[test]
fn what_is_missing_or_too_much_is_named() {
    type Edit = fn(&mut Backward<'_, f16>);
    let refused = |case: Case, edit: Edit| {
        let stream = device().stream();
        let inputs = Inputs::<f16>::new(case);
        let mut problem = Problem::new(case, &inputs, &stream);
        let (mut tensors, _) = problem.tensors();
        edit(&mut tensors);
        let plan = operation().backward_plan(case.config(), &tensors);
        plan.expect_err("a plan").to_string()
    };
    let cases: [(Case, Edit, &str); 3] = [
        (NORMALIZED, |tensors| tensors.out = None, "out"),
        (
            NORMALIZED,
            |tensors| tensors.normalizer = None,
            "normalizer",
        ),
        (
            LAST,
            |tensors| tensors.out = Some(tensors.dout.clone()),
            "out",
        ),
    ];
    for (case, edit, tensor) in cases {
        let message = refused(case, edit);
        let words = ["linear_attention::backward", tensor];
        assert!(
            words.iter().all(|words| message.contains(words)),
            "{tensor}: {message}"
        );
    }
}
