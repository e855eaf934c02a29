//! Layers as tables: every size and option against the reference.

use half::{bf16, f16};

use super::{
    CASE, Case, Config, Inputs, Layout, SCALE, SOFTPLUS, Scale, SkipKind, check, compare, run,
};
use crate::naive::Number;

/// A layer in all dtypes.
fn check_all(case: Case) {
    check::<f16>(case);
    check::<bf16>(case);
    check::<f32>(case);
}

#[test]
fn lengths_around_the_chunk() {
    for seqlen in [1, 2, 7, 31, 32, 33, 63, 64, 65, 127, 129, 300] {
        check_all(Case {
            batch: 1,
            seqlen,
            heads: 2,
            ..CASE
        });
    }
}

#[test]
fn every_size_of_heads() {
    for headdim in [8, 16, 24, 40, 64, 72, 80, 128, 200] {
        for dstate in [16, 128, 256] {
            check_all(Case {
                batch: 1,
                headdim,
                dstate,
                z: true,
                skip: SkipKind::PerChannel,
                ..CASE
            });
        }
    }
}

#[test]
fn every_size_of_states() {
    for dstate in [8, 16, 24, 64, 72, 120, 128, 136, 192, 248, 256] {
        check_all(Case {
            batch: 1,
            dstate,
            ..CASE
        });
    }
}

#[test]
fn heads_share_groups() {
    for (heads, groups) in [
        (1, 1),
        (2, 1),
        (5, 1),
        (4, 2),
        (6, 2),
        (3, 3),
        (4, 4),
        (12, 3),
    ] {
        for dstate in [64, 256] {
            check_all(Case {
                heads,
                groups,
                dstate,
                headdim: 32,
                ..CASE
            });
        }
    }
}

#[test]
fn every_option_with_every_other() {
    for option in 0..96 {
        let on = |bit: usize| option >> bit & 1 == 1;
        [check::<f16>, check::<bf16>, check::<f32>][option % 3](Case {
            headdim: 24,
            dstate: 16,
            heads: 2,
            z: on(0),
            dt_bias: on(1),
            initial_states: on(2),
            final_states: on(3),
            config: Config {
                dt_softplus: on(4),
                ..SOFTPLUS
            },
            skip: [SkipKind::None, SkipKind::PerHead, SkipKind::PerChannel][option / 32],
            ..CASE
        });
    }
}

#[test]
fn limits_of_step_sizes() {
    for dt_limit in [
        (0.0, f32::INFINITY),
        (0.05, 0.2),
        (0.1, 0.1),
        (0.0, 0.0),
        (0.5, f32::INFINITY),
    ] {
        for dt_softplus in [false, true] {
            check_all(Case {
                config: Config {
                    dt_softplus,
                    dt_limit,
                    segment: None,
                },
                ..CASE
            });
        }
    }
}

#[test]
fn every_layout_in_memory() {
    for layout in [Layout::Contiguous, Layout::Projection, Layout::StepsFirst] {
        for lengths in [None, Some(&[30, 0, 41][..])] {
            check_all(Case {
                layout,
                lengths,
                z: true,
                skip: SkipKind::PerChannel,
                heads: 4,
                groups: 2,
                headdim: 40,
                dstate: 24,
                config: Config {
                    segment: Some(64),
                    ..SOFTPLUS
                },
                ..CASE
            });
        }
    }
}

#[test]
fn segments_of_every_length() {
    for segment in [1, 64, 65, 128, 192, 299, 300, 1000] {
        let case = Case {
            seqlen: 300,
            heads: 2,
            headdim: 16,
            config: Config {
                segment: Some(segment),
                ..SOFTPLUS
            },
            ..CASE
        };
        check_all(case);
        check_all(Case {
            batch: 1,
            headdim: 72,
            dstate: 136,
            z: true,
            initial_states: false,
            ..case
        });
    }
}

#[test]
fn sequences_of_different_lengths() {
    let lengths: [&[usize]; 7] = [
        &[5],
        &[7, 64, 1, 65],
        &[129, 40, 200],
        &[0, 3, 0, 0, 17, 0],
        &[130, 0, 66],
        &[0, 0],
        &[],
    ];
    for lengths in lengths {
        for segment in [None, Some(64), Some(128)] {
            for initial_states in [false, true] {
                check_all(Case {
                    lengths: Some(lengths),
                    initial_states,
                    z: true,
                    heads: 2,
                    headdim: 40,
                    config: Config {
                        segment,
                        ..SOFTPLUS
                    },
                    ..CASE
                });
            }
        }
    }
}

/// A sequence computed in two calls, of which the second begins with the final states of the first, is that of one
/// call, and of the reference.
#[test]
fn calls_that_continue_each_other() {
    fn continued<T: Number>(first: usize, seqlen: usize, headdim: usize, dstate: usize) {
        let whole = Case {
            batch: 1,
            seqlen,
            headdim,
            dstate,
            ..CASE
        };
        let name = format!("{:?} {first} and then to {whole:?}", T::DTYPE);
        let inputs = whole.inputs::<T>();
        let (mut out, mut states) = (Vec::new(), Vec::<f32>::new());
        for steps in [0..first, first..seqlen] {
            let part = Case {
                seqlen: steps.len(),
                ..whole
            };
            let of_part = |tensor: &[T]| {
                let row = tensor.len() / seqlen;
                tensor[steps.start * row..steps.end * row].to_vec()
            };
            let inputs = Inputs {
                x: of_part(&inputs.x),
                dt: of_part(&inputs.dt),
                b: of_part(&inputs.b),
                c: of_part(&inputs.c),
                z: of_part(&inputs.z),
                initial_states: match steps.start {
                    0 => inputs.initial_states.clone(),
                    _ => states,
                },
                ..inputs.clone()
            };
            let result = run(&name, part, &inputs);
            out.extend(result.0);
            states = result.1.into_iter().map(|x| x as f32).collect(); // exact
        }
        let states: Vec<f64> = states.into_iter().map(f64::from).collect();
        compare(&name, whole, &inputs, &out, &states);
    }
    for (first, seqlen) in [(1, 2), (1, 65), (64, 65), (64, 130), (37, 130), (100, 163)] {
        continued::<f16>(first, seqlen, 64, 64);
        continued::<bf16>(first, seqlen, 40, 128);
        continued::<f32>(first, seqlen, 40, 16);
    }
}

/// Without a head, a sequence or a step there is nothing to do but to pass states on.
#[test]
fn nothing_to_compute() {
    for (batch, seqlen, heads) in [(0, 5, 2), (2, 0, 2), (2, 5, 0), (0, 0, 0)] {
        for initial_states in [false, true] {
            let groups = heads.min(1);
            check_all(Case {
                batch,
                seqlen,
                heads,
                groups,
                initial_states,
                ..CASE
            });
        }
    }
}

/// Decays from none to total, step by step in turn: what follows a strong one is not lost.
#[test]
fn strong_and_weak_decays_in_one_chunk() {
    for (a, dt, dt_bias) in [
        (-1e4, 12.0, -8.0),
        (-1.0, 30.0, 0.0),
        (-100.0, 5.0, -6.0),
        (-1e-3, 1.0, 0.0),
    ] {
        for segment in [None, Some(64)] {
            check_all(Case {
                seqlen: 200,
                scale: Scale {
                    a,
                    dt,
                    dt_bias,
                    ..SCALE
                },
                config: Config {
                    segment,
                    ..SOFTPLUS
                },
                ..CASE
            });
        }
    }
}

/// States that grow, which no model means to have, are those of the formula.
#[test]
fn growing_states() {
    check_all(Case {
        scale: Scale { a: 0.05, ..SCALE },
        ..CASE
    });
}

/// Numbers near the end of half precision, wherever what comes out can be represented.
#[test]
fn large_numbers() {
    let scales = [
        // x of magnitude 1e4, and what undoes it
        (1e4, 0.01, 0.1, -2.0),
        (1e4, 1e-3, 1e-2, 3.0),
        (1e-3, 1e4, 1e-2, -2.0),
        (1e-4, 1e-2, 1e4, -2.0),
        (1e-3, 1e3, 1e3, -4.0),
        (3e-5, 1e4, 1e4, -6.0),
        (0.5, 0.05, 0.05, 100.0),
    ];
    for (x, b, c, dt_bias) in scales {
        for segment in [None, Some(64)] {
            check_all(Case {
                seqlen: 130,
                initial_states: false,
                scale: Scale {
                    x,
                    b,
                    c,
                    dt_bias,
                    ..SCALE
                },
                config: Config {
                    segment,
                    ..SOFTPLUS
                },
                ..CASE
            });
        }
    }
}

/// Steps of 100 at rates down to -1e4, for 16 thousand steps: everything stays finite.
#[test]
fn long_sequences_of_large_steps_stay_finite() {
    fn finite<T: Number>(case: Case) {
        let (out, states) = run("long", case, &case.inputs::<T>());
        for (at, x) in out.iter().chain(&states).enumerate() {
            assert!(
                x.is_finite(),
                "{:?} {case:?}: element {at} is {x}",
                T::DTYPE
            );
        }
    }
    for (a, dt_bias) in [(-1e4 / 16.0, 100.0), (-1e-2, 100.0), (-1e4 / 16.0, -5.0)] {
        let case = Case {
            batch: 1,
            seqlen: 16_384,
            heads: 2,
            headdim: 8,
            dstate: 16,
            initial_states: false,
            scale: Scale {
                x: 0.1,
                b: 0.1,
                c: 0.1,
                a,
                dt_bias,
                ..SCALE
            },
            ..CASE
        };
        finite::<f16>(case);
        finite::<bf16>(case);
        finite::<f32>(case);
    }
}
