//! Gradients of normalised outputs, and of attention that is not causal, where decays are numbers of channels or queries
//! have a bonus, as tables.

use half::{bf16, f16};
use seqmix::linear_attention::FeatureMap;

use super::gradients::{CASE, Case, Fades, Inputs, Problem, check, compare, expected};
use crate::naive::Number;
use crate::support::device;

/// A small layer with positive features, whose sums are divided by.
const NORMALIZED: Case = Case {
    seqlen: 37,
    dk: 16,
    dv: 24,
    feature_map: FeatureMap::EluPlusOne,
    normalize: Some(1e-3),
    decay: Fades::PerChannel,
    ..CASE
};

/// The same whose queries read the state before their step, and a bonus.
const BONUS: Case = Case {
    bonus: true,
    ..NORMALIZED
};

/// A small layer whose queries all read the last state.
const LAST: Case = Case {
    feature_map: FeatureMap::Identity,
    normalize: None,
    causal: false,
    ..NORMALIZED
};

/// The same, normalised.
const BOTH: Case = Case {
    causal: false,
    ..NORMALIZED
};

const LAYERS: [Case; 4] = [NORMALIZED, BONUS, LAST, BOTH];

/// The first two of them, and the others.
const CAUSAL: [Case; 2] = [NORMALIZED, BONUS];
const NOT_CAUSAL: [Case; 2] = [LAST, BOTH];

#[test]
fn lengths_around_chunks_and_spans() {
    for (i, seqlen) in [1, 15, 16, 17, 63, 64, 65, 129].into_iter().enumerate() {
        let case = |layer: Case| Case {
            seqlen,
            heads: 1,
            shared: [1; 3],
            dk: 40,
            ..layer
        };
        for layers in [CAUSAL, NOT_CAUSAL] {
            check::<f16>(case(layers[i % 2]));
            check::<bf16>(case(layers[(i + 1) % 2]));
        }
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

/// Rows that are copied by 16, 4 or 2 bytes.
#[test]
fn sizes_that_end_within_a_copy() {
    for (i, (dk, dv)) in [(7, 20), (20, 6), (16, 24), (100, 100)]
        .into_iter()
        .enumerate()
    {
        let case = |layer: Case| Case {
            seqlen: 20,
            dk,
            dv,
            shifted: i == 2,
            projection: i == 1,
            ..layer
        };
        for layers in [CAUSAL, NOT_CAUSAL] {
            check::<f16>(case(layers[i % 2]));
            check::<bf16>(case(layers[(i + 1) % 2]));
            if i < 3 {
                check::<f32>(case(layers[i % 2]));
            }
        }
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
        for layers in [CAUSAL, NOT_CAUSAL] {
            check::<f16>(case(layers[i % 2]));
            check::<bf16>(case(layers[(i + 1) % 2]));
            if i % 3 == 2 {
                check::<f32>(Case {
                    seqlen: 17,
                    ..case(layers[i % 2])
                });
            }
        }
    }
}

#[test]
fn every_form_of_decays_with_and_without_what_may_be_absent() {
    let forms = [
        (NORMALIZED, Fades::PerChannel),
        (BONUS, Fades::None),
        (BONUS, Fades::PerHead),
        (BONUS, Fades::PerStep),
        (BONUS, Fades::PerChannel),
        (LAST, Fades::PerChannel),
        (BOTH, Fades::PerChannel),
    ];
    for (layer, decay) in forms {
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
                ddecay: false,
                ..case
            });
        }
    }
}

#[test]
fn every_positive_feature_map() {
    for (i, map) in [
        FeatureMap::Relu,
        FeatureMap::ReluSquared,
        FeatureMap::Exp,
        FeatureMap::EluPlusOne,
    ]
    .into_iter()
    .enumerate()
    {
        let case = |layer: Case| Case {
            feature_map: map,
            scale: Some(0.3),
            ..layer
        };
        check::<f16>(case(CAUSAL[i % 2]));
        check::<bf16>(case(CAUSAL[(i + 1) % 2]));
        check::<f16>(case(BOTH));
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
                check::<bf16>(case);
            }
        }
    }
}

#[test]
fn segments_of_every_length() {
    for (segment, layer) in [
        (1, NORMALIZED),
        (65, BONUS),
        (128, NORMALIZED),
        (64, BONUS),
        (1, LAST),
        (65, BOTH),
        (128, LAST),
        (64, BOTH),
    ] {
        let case = Case {
            seqlen: 200,
            segment: Some(segment),
            heads: 1,
            shared: [1; 3],
            ..layer
        };
        check::<f16>(case);
        check::<bf16>(Case {
            dk: 72,
            states: false,
            ..case
        });
    }
}

#[test]
fn sequences_of_different_lengths() {
    let lengths: [&[usize]; 4] = [&[7, 64, 1, 65], &[0, 3, 0, 17], &[0, 0], &[]];
    for lengths in lengths {
        for layer in LAYERS {
            for segment in [None, Some(64)] {
                check::<f16>(Case {
                    lengths: Some(lengths),
                    shared: [1, 2, 1],
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
        for layer in LAYERS {
            check::<f16>(Case {
                batch,
                seqlen,
                heads,
                shared: [heads; 3],
                ..layer
            });
        }
    }
}

/// Sums that outputs are divided by that are far from 1, and far from those that scores are multiplied by: half
/// precision has the range for neither their inverses nor keys, queries or gradients times these.
#[test]
fn large_and_small_normalizers() {
    for (scale, eps, deviation) in [(1e4, 1e-3, 1.0), (1e-7, 1e-9, 1.0), (1.0, 1e6, 300.0)] {
        for layer in [NORMALIZED, BONUS, BOTH] {
            check::<f16>(Case {
                scale: Some(scale),
                normalize: Some(eps),
                deviation,
                states: false,
                ..layer
            });
        }
    }
}

/// Queries and keys that are so large that gradients of outputs times their factors are below the range of f16, and
/// those of values, which meet queries and keys again, are not. Those of keys and queries are, and not compared.
#[test]
fn factors_below_the_range_of_f16() {
    let case = Case {
        seqlen: 100,
        feature_map: FeatureMap::Exp,
        states: false,
        ddecay: false,
        ..NORMALIZED
    };
    let mut inputs = Inputs::<f16>::new(case);
    for x in inputs.q.iter_mut().chain(&mut inputs.k) {
        *x = f16::from_f32(f32::from(*x) / 4.0 + 5.0); // mapped, about 150
    }
    let stream = device().stream();
    let mut problem = Problem::new(case, &inputs, &stream);
    problem.queue(&stream).unwrap();
    let mut found = problem.fetch(&stream);
    found.retain(|(name, ..)| *name == "dv");
    compare::<f16>(&format!("{case:?}"), &found, &expected(case, &inputs));
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
    let case = |layer: Case| Case {
        heads: 4,
        shared: [2, 1, 4],
        seqlen: 130,
        segment: Some(64),
        ..layer
    };
    same::<bf16>(case(NORMALIZED));
    same::<f16>(Case {
        decay: Fades::PerHead,
        ..case(BONUS)
    });
    same::<f16>(case(BOTH));
}
