//! Layers as tables: every size and option against the reference.

use half::{bf16, f16};
use seqmix::linear_attention::{Config, FeatureMap};

use super::layer::{CASE, Case, Fades, Found, Inputs, NORMALIZED, Order, check, compare, run};
use crate::naive::Number;

/// A layer in all dtypes.
fn check_all(case: Case) {
    check::<f16>(case);
    check::<bf16>(case);
    check::<f32>(case);
}

const FADES: [Fades; 4] = [
    Fades::None,
    Fades::PerHead,
    Fades::PerStep,
    Fades::PerChannel,
];

#[test]
fn lengths_around_the_chunk_and_the_tile() {
    for seqlen in [1, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 300] {
        for decay in [Fades::PerStep, Fades::PerChannel] {
            check::<bf16>(Case {
                seqlen,
                decay,
                heads: 1,
                shared: [1; 3],
                ..CASE
            });
        }
    }
    for seqlen in [1, 15, 17, 33, 65] {
        for decay in [Fades::PerStep, Fades::PerChannel] {
            check::<f32>(Case {
                seqlen,
                decay,
                heads: 1,
                shared: [1; 3],
                ..CASE
            });
        }
    }
}

#[test]
fn every_size_of_heads() {
    for (dk, dv) in [
        (8, 8),
        (40, 104),
        (64, 64),
        (72, 40),
        (128, 200),
        (136, 8),
        (256, 72),
    ] {
        for decay in [Fades::PerHead, Fades::PerChannel] {
            let case = Case {
                seqlen: 37,
                heads: 1,
                shared: [1; 3],
                dk,
                dv,
                decay,
                config: Config {
                    normalize: Some(1.0),
                    feature_map: FeatureMap::EluPlusOne,
                    ..CASE.config
                },
                ..CASE
            };
            check::<f16>(case);
            check::<bf16>(case);
            if dv <= 72 {
                check::<f32>(case);
            }
        }
    }
}

/// Rows that are copied by 16, 4 or 2 bytes, and feature maps that do not map 0 to 0.
#[test]
fn sizes_that_end_within_a_copy() {
    for (i, (dk, dv)) in [(1, 3), (7, 100), (20, 5), (100, 100), (130, 1)]
        .into_iter()
        .enumerate()
    {
        for decay in [Fades::PerStep, Fades::PerChannel] {
            let case = Case {
                seqlen: 35,
                dk,
                dv,
                decay,
                layout: [Order::Contiguous, Order::Projection][i % 2],
                config: Config {
                    feature_map: [FeatureMap::Exp, FeatureMap::EluPlusOne][i % 2],
                    // a sum of exponentials of a few channels may be as small as any of them
                    normalize: Some(1.0),
                    segment: (i == 1).then_some(32),
                    causal: i != 2,
                    ..CASE.config
                },
                ..CASE
            };
            check::<f16>(case);
            check::<bf16>(case);
            if i < 3 {
                check::<f32>(case);
            }
        }
    }
}

#[test]
fn tensors_at_any_address() {
    for decay in FADES {
        check_all(Case {
            decay,
            seqlen: 20,
            bonus: decay == Fades::PerStep,
            layout: Order::Shifted,
            ..CASE
        });
    }
}

#[test]
fn heads_share_queries_keys_and_values() {
    for (heads, shared) in [
        (4, [2, 4, 1]),
        (4, [1, 2, 4]),
        (6, [6, 3, 2]),
        (3, [1, 1, 1]),
    ] {
        for decay in [Fades::PerStep, Fades::PerChannel] {
            check::<bf16>(Case {
                heads,
                shared,
                decay,
                seqlen: 20,
                ..CASE
            });
        }
    }
}

#[test]
fn every_option_with_every_other() {
    for option in 0..96 {
        let on = |bit: usize| option >> bit & 1 == 1;
        let causal = option % 3 != 0;
        let normalized = on(0);
        [check::<f16>, check::<bf16>, check::<f32>][option % 3](Case {
            seqlen: 35,
            dk: 16,
            dv: 8,
            decay: FADES[option % 4],
            initial: on(2),
            last: on(3),
            bonus: causal && on(4) && !normalized,
            config: Config {
                causal,
                segment: on(5).then_some(32),
                scale: on(1).then_some(0.3),
                ..if normalized { NORMALIZED } else { CASE.config }
            },
            ..CASE
        });
    }
}

#[test]
fn a_bonus_reads_the_state_before() {
    for decay in FADES {
        check_all(Case {
            decay,
            bonus: true,
            seqlen: 40,
            ..CASE
        });
    }
}

#[test]
fn every_feature_map() {
    for feature_map in [
        FeatureMap::Identity,
        FeatureMap::EluPlusOne,
        FeatureMap::Relu,
        FeatureMap::ReluSquared,
        FeatureMap::Silu,
        FeatureMap::Exp,
    ] {
        check_all(Case {
            config: Config {
                feature_map,
                ..CASE.config
            },
            seqlen: 40,
            dk: 24,
            ..CASE
        });
    }
}

#[test]
fn strided_tensors() {
    for layout in [Order::Projection, Order::StepsFirst] {
        for decay in [Fades::PerStep, Fades::PerChannel] {
            let case = Case {
                batch: 2,
                seqlen: 40,
                layout,
                decay,
                config: NORMALIZED,
                ..CASE
            };
            check::<f16>(case);
            check::<f32>(case);
        }
    }
}

#[test]
fn packed_sequences_of_any_length() {
    for lengths in [&[0][..], &[1, 0, 63, 64, 0, 65], &[0, 17, 130, 2, 0]] {
        for (segment, causal) in [(None, true), (Some(32), true), (Some(64), false)] {
            for decay in [Fades::PerStep, Fades::PerChannel] {
                check::<bf16>(Case {
                    lengths: Some(lengths),
                    decay,
                    heads: 1,
                    shared: [1; 3],
                    config: Config {
                        segment,
                        causal,
                        ..NORMALIZED
                    },
                    ..CASE
                });
            }
        }
    }
}

#[test]
fn decays_from_weak_to_all() {
    for mean in [-1e-4, -0.05, -1.0, -5.0, -20.0] {
        for lost in [false, true] {
            for decay in [Fades::PerStep, Fades::PerChannel] {
                let case = Case {
                    mean,
                    lost,
                    decay,
                    seqlen: 50,
                    heads: 1,
                    shared: [1; 3],
                    ..CASE
                };
                check::<f16>(case);
                check::<f32>(case);
            }
        }
    }
}

/// States of f16 exceed what its numbers reach, and so do scores; and all may be tiny.
#[test]
fn numbers_of_any_magnitude() {
    for (deviation, scale) in [(30.0, 1e-3), (1e-2, 100.0)] {
        for decay in [Fades::None, Fades::PerChannel] {
            check::<f16>(Case {
                deviation,
                decay,
                mean: -1e-3,
                seqlen: 150,
                heads: 1,
                shared: [1; 3],
                config: Config {
                    scale: Some(scale),
                    ..CASE.config
                },
                ..CASE
            });
        }
    }
}

/// Steps `from` to `to` of a layer that has decays per step or channel, or none, and one row.
fn part<T: Number>(case: Case, inputs: &Inputs<T>, from: usize, to: usize) -> Inputs<T> {
    let of = |data: &[T], size: usize| data[from * size..to * size].to_vec();
    let decays = inputs.decay.len() / case.seqlen;
    let [heads_q, heads_k, heads_v] = case.shared;
    Inputs {
        q: of(&inputs.q, heads_q * case.dk),
        k: of(&inputs.k, heads_k * case.dk),
        v: of(&inputs.v, heads_v * case.dv),
        decay: inputs.decay[from * decays..to * decays].to_vec(),
        bonus: inputs.bonus.clone(),
        initial: inputs.initial.clone(),
        initial_z: inputs.initial_z.clone(),
    }
}

/// A sequence cut anywhere gives what the whole one gives: calls pass their states on in f32.
#[test]
fn calls_continue_each_other() {
    for decay in [Fades::PerStep, Fades::PerChannel] {
        for cut in [1, 16, 30, 64] {
            let case = Case {
                decay,
                seqlen: 80,
                config: NORMALIZED,
                ..CASE
            };
            let inputs = case.inputs::<bf16>();
            let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
            let first = Case {
                seqlen: cut,
                ..case
            };
            let head = run("the first call", first, &part(case, &inputs, 0, cut));
            let mut rest = part(case, &inputs, cut, case.seqlen);
            rest.initial = narrow(head.last);
            rest.initial_z = narrow(head.last_z);
            let second = Case {
                seqlen: case.seqlen - cut,
                ..case
            };
            let tail = run("the second call", second, &rest);
            let found = Found {
                out: [head.out, tail.out].concat(),
                normalizer: [head.normalizer, tail.normalizer].concat(),
                ..tail
            };
            let name = format!("cut after {cut} steps, {decay:?}");
            compare(&name, case, &inputs, &found);
        }
    }
}

#[test]
fn segments_of_any_length() {
    for decay in [Fades::PerHead, Fades::PerStep, Fades::PerChannel] {
        for (segment, causal) in [(1, true), (64, true), (100, true), (64, false)] {
            check::<f16>(Case {
                decay,
                seqlen: 210,
                heads: 1,
                shared: [1; 3],
                config: Config {
                    segment: Some(segment),
                    causal,
                    ..NORMALIZED
                },
                ..CASE
            });
        }
    }
}
