//! Gradients of linear attention as tables: every size and option against the reference.

use half::{bf16, f16};
use seqmix::linear_attention::FeatureMap;

use super::gradients::{CASE, Case, Fades, Inputs, Problem, check};
use crate::naive::Number;
use crate::support::device;

/// A small layer: f32 takes six times the work.
const SMALL: Case = Case {
    seqlen: 37,
    dk: 16,
    dv: 24,
    decay: Fades::PerStep,
    ..CASE
};

#[test]
fn lengths_around_chunks_and_spans() {
    for (i, seqlen) in [1, 7, 15, 16, 17, 63, 64, 65, 129].into_iter().enumerate() {
        let case = Case {
            seqlen,
            heads: 1,
            shared: [1; 3],
            dk: 40,
            decay: Fades::PerStep,
            ..CASE
        };
        [check::<f16>, check::<bf16>][i % 2](case);
        [check::<bf16>, check::<f16>][i % 2](Case {
            decay: Fades::PerChannel,
            bonus: i % 3 == 1,
            ..case
        });
    }
    for seqlen in [1, 16, 81] {
        check::<f32>(Case { seqlen, ..SMALL });
        check::<f32>(Case {
            seqlen,
            decay: Fades::PerChannel,
            ..SMALL
        });
    }
}

#[test]
fn every_size_of_heads() {
    for (i, (dk, dv)) in [(8, 8), (40, 128), (128, 40), (72, 16), (256, 8), (8, 256)]
        .into_iter()
        .enumerate()
    {
        let case = Case {
            seqlen: 33,
            heads: 1,
            shared: [1; 3],
            dk,
            dv,
            decay: Fades::PerStep,
            ..CASE
        };
        check::<f16>(case);
        check::<bf16>(case);
        let gated = Case {
            decay: Fades::PerChannel,
            ..case
        };
        [check::<f16>, check::<bf16>][i % 2](gated);
        if i % 2 == 0 {
            check::<f32>(Case { seqlen: 17, ..case });
            check::<f32>(Case {
                seqlen: 17,
                ..gated
            });
        }
    }
}

/// Rows that are copied by 16, 4 or 2 bytes, and feature maps that do not map 0 to 0.
#[test]
fn sizes_that_end_within_a_copy() {
    for (i, (dk, dv)) in [(1, 3), (7, 20), (100, 100), (20, 1), (16, 24)]
        .into_iter()
        .enumerate()
    {
        let case = Case {
            seqlen: 35,
            dk,
            dv,
            shared: [[2, 2, 2], [1, 2, 1]][i % 2],
            feature_map: [FeatureMap::Exp, FeatureMap::EluPlusOne][i % 2],
            decay: [Fades::PerStep, Fades::None][i / 3],
            projection: i == 1,
            shifted: i == 4,
            segment: (i == 2).then_some(32),
            ..CASE
        };
        let gated = Case {
            decay: [Fades::PerChannel, Fades::PerStep][i / 4],
            bonus: i == 1 || i == 4,
            ..case
        };
        for case in [case, gated] {
            check::<f16>(case);
            check::<bf16>(case);
            if i != 2 {
                check::<f32>(Case { seqlen: 17, ..case });
            }
        }
    }
}

#[test]
fn every_form_of_decays_with_and_without_what_may_be_absent() {
    let forms = [
        (Fades::None, false),
        (Fades::PerHead, false),
        (Fades::PerStep, false),
        (Fades::PerChannel, false),
        (Fades::None, true),
        (Fades::PerHead, true),
        (Fades::PerStep, true),
        (Fades::PerChannel, true),
    ];
    for (decay, bonus) in forms {
        for option in 0..4 {
            let case = Case {
                batch: 2,
                decay,
                bonus,
                ddecay: option % 2 == 0,
                states: option / 2 == 0,
                projection: option == 1,
                ..SMALL
            };
            check::<f16>(case);
            check::<bf16>(case);
            if option == 0 {
                check::<f32>(case);
            }
        }
    }
}

#[test]
fn heads_share_queries_keys_and_values() {
    for (heads, shared) in [(4, [4, 2, 1]), (6, [2, 3, 6]), (3, [1, 1, 1])] {
        for decay in [Fades::None, Fades::PerStep, Fades::PerChannel] {
            let case = Case {
                batch: 2,
                heads,
                shared,
                decay,
                bonus: decay == Fades::PerChannel && heads == 4,
                ..SMALL
            };
            check::<f16>(case);
            check::<bf16>(case);
        }
        check::<f32>(Case {
            heads,
            shared,
            ..SMALL
        });
    }
}

#[test]
fn every_feature_map() {
    for map in [
        FeatureMap::EluPlusOne,
        FeatureMap::Relu,
        FeatureMap::ReluSquared,
        FeatureMap::Silu,
        FeatureMap::Exp,
    ] {
        let case = Case {
            feature_map: map,
            scale: Some(0.3),
            ..SMALL
        };
        check::<f16>(case);
        check::<bf16>(Case {
            decay: Fades::None,
            ..case
        });
        check::<bf16>(Case {
            decay: Fades::PerChannel,
            bonus: true,
            ..case
        });
        check::<f32>(case);
    }
}

/// Decays from none to total, step by step in turn: what follows a strong one is not lost.
#[test]
fn strong_and_weak_decays() {
    for mean in [-1e-3, -0.3, -3.0, -10.0, -40.0] {
        for lost in [false, true] {
            let case = Case {
                seqlen: 100,
                mean,
                lost,
                ..SMALL
            };
            check::<f16>(case);
            check::<bf16>(case);
            if lost {
                check::<f32>(case);
            }
            for bonus in [false, true] {
                [check::<f16>, check::<bf16>][usize::from(lost != bonus)](Case {
                    decay: Fades::PerHead,
                    lost: false,
                    bonus,
                    ..case
                });
            }
            let gated = Case {
                decay: Fades::PerChannel,
                ..case
            };
            check::<f16>(gated);
            check::<bf16>(Case {
                bonus: true,
                ..gated
            });
        }
    }
}

#[test]
fn segments_of_every_length() {
    for segment in [1, 65, 128, 1000] {
        for decay in [
            Fades::None,
            Fades::PerHead,
            Fades::PerStep,
            Fades::PerChannel,
        ] {
            let case = Case {
                seqlen: 200,
                segment: Some(segment),
                decay,
                ..SMALL
            };
            check::<f16>(case);
            check::<bf16>(Case {
                dk: 72,
                heads: 1,
                shared: [1; 3],
                states: false,
                ..case
            });
        }
    }
    check::<f32>(Case {
        seqlen: 130,
        segment: Some(64),
        ..SMALL
    });
}

#[test]
fn sequences_of_different_lengths() {
    let lengths: [&[usize]; 6] = [
        &[5],
        &[7, 64, 1, 65],
        &[0, 3, 0, 0, 17, 0],
        &[130, 0, 66],
        &[0, 0],
        &[],
    ];
    for lengths in lengths {
        for (segment, decay) in [
            (None, Fades::PerStep),
            (Some(64), Fades::PerHead),
            (Some(64), Fades::PerChannel),
        ] {
            let case = Case {
                lengths: Some(lengths),
                decay,
                segment,
                ..SMALL
            };
            check::<f16>(case);
            check::<bf16>(Case {
                shared: [1, 2, 1],
                ..case
            });
        }
    }
}

/// Without a step the sums are zeros, and gradients of states pass through.
#[test]
fn nothing_to_compute() {
    for (batch, seqlen, heads) in [(0, 5, 2), (2, 0, 2), (2, 5, 0), (0, 0, 0)] {
        for decay in [Fades::PerHead, Fades::PerStep, Fades::PerChannel] {
            let case = Case {
                bonus: decay == Fades::PerChannel,
                batch,
                seqlen,
                heads,
                shared: [heads; 3],
                decay,
                ..SMALL
            };
            check::<f16>(case);
            check::<f32>(case);
        }
    }
}

/// Numbers near the end of half precision, wherever what comes out can be represented.
#[test]
fn large_numbers() {
    for (scale, deviation) in [(1e-4, 1e4), (1.0, 1e-4), (30.0, 1.0)] {
        for decay in [Fades::None, Fades::PerStep, Fades::PerChannel] {
            let case = Case {
                scale: Some(scale),
                deviation,
                decay,
                states: false,
                ..SMALL
            };
            check::<f16>(case);
            check::<bf16>(case);
        }
    }
}

/// Every sum has its order: ten runs give the same bits.
#[test]
fn runs_give_the_same_bits() {
    fn same<T: Number>(case: Case) {
        let stream = device().stream();
        let inputs = Inputs::<T>::new(case);
        let mut first = None;
        for _ in 0..10 {
            let mut problem = Problem::new(case, &inputs, &stream);
            problem.queue(&stream).unwrap();
            let bits = problem.fetch(&stream).into_iter().map(|(name, found, _)| {
                let bits: Vec<u64> = found.iter().map(|x| x.to_bits()).collect();
                (name, bits)
            });
            let bits: Vec<_> = bits.collect();
            assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{case:?}");
        }
    }
    let case = Case {
        heads: 4,
        shared: [2, 1, 4],
        seqlen: 130,
        segment: Some(64),
        decay: Fades::PerHead,
        ..SMALL
    };
    same::<bf16>(case);
    same::<f16>(Case {
        decay: Fades::PerStep,
        ..case
    });
    same::<bf16>(Case {
        decay: Fades::PerChannel,
        bonus: true,
        ..case
    });
}
