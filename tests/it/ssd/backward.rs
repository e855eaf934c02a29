//! Gradients of layers as tables: every size and option against the reference.

use half::{bf16, f16};

use super::gradients::{Given, Problem, check, check_given};
use super::{CASE, Case, Config, Layout, SCALE, SOFTPLUS, Scale, SkipKind};
use crate::naive::Number;
use crate::support::device;

fn check_all(case: Case) {
    check::<f16>(case);
    check::<bf16>(case);
    check::<f32>(case);
}

#[test]
fn lengths_around_the_chunk() {
    for seqlen in [1, 2, 7, 63, 64, 65, 127, 129, 200] {
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
    for headdim in [8, 16, 40, 64, 72, 128, 136] {
        for dstate in [16, 128] {
            check_all(Case {
                batch: 1,
                heads: 2,
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
    for dstate in [8, 24, 64, 72, 128, 136, 192, 256] {
        check_all(Case {
            batch: 1,
            headdim: 32,
            dstate,
            ..CASE
        });
    }
}

#[test]
fn heads_share_groups() {
    for (heads, groups) in [(1, 1), (2, 1), (5, 1), (4, 2), (3, 3), (12, 3)] {
        check_all(Case {
            heads,
            groups,
            headdim: 16,
            dstate: 24,
            ..CASE
        });
    }
}

#[test]
fn every_option_with_every_other() {
    for option in 0..96 {
        let on = |bit: usize| option >> bit & 1 == 1;
        [check::<f16>, check::<bf16>, check::<f32>][option % 3](Case {
            headdim: 16,
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
    for dt_limit in [(0.05, 0.2), (0.1, 0.1), (0.0, 0.0), (0.5, f32::INFINITY)] {
        for dt_softplus in [false, true] {
            check_all(Case {
                headdim: 16,
                dstate: 16,
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
    for segment in [1, 65, 192, 300, 1000] {
        let case = Case {
            batch: 1,
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
            check_all(Case {
                lengths: Some(lengths),
                initial_states: segment.is_some(),
                z: true,
                heads: 2,
                headdim: 24,
                dstate: 24,
                config: Config {
                    segment,
                    ..SOFTPLUS
                },
                ..CASE
            });
        }
    }
}

/// So many chunks that a block takes several heads of a group, and the last one fewer than the others.
#[test]
fn blocks_of_several_heads() {
    check::<f16>(Case {
        batch: 144,
        seqlen: 2,
        heads: 5,
        headdim: 8,
        dstate: 8,
        ..CASE
    });
}

/// Without a step the sums are zeros, and gradients of states pass through.
#[test]
fn nothing_to_compute() {
    for (batch, seqlen, heads) in [(0, 5, 2), (2, 0, 2), (2, 5, 0), (0, 0, 0)] {
        for initial_states in [false, true] {
            check_all(Case {
                batch,
                seqlen,
                heads,
                groups: heads.min(1),
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
                batch: 1,
                seqlen: 200,
                headdim: 32,
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
        headdim: 32,
        scale: Scale { a: 0.05, ..SCALE },
        ..CASE
    });
}

/// Numbers near the end of half precision, wherever what comes out can be represented.
#[test]
fn large_numbers() {
    // deviations of x, B, C, of gradients, and the mean of dt_bias
    let scales = [
        (1e4, 1e-2, 1e-2, 1e-4, -2.0),
        (1e-3, 1e4, 1e-3, 1e-3, -2.0),
        (1e-4, 1e-3, 1e4, 1e-3, -2.0),
        (1e-4, 1e-2, 1e-2, 1e4, -4.0),
        (3e-4, 1e3, 1e3, 1e-4, -6.0),
        (0.5, 0.05, 0.05, 0.01, 100.0),
    ];
    for (x, b, c, gradient, dt_bias) in scales {
        for segment in [None, Some(64)] {
            let case = Case {
                batch: 1,
                seqlen: 130,
                headdim: 32,
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
            };
            check_given::<f16>(case, gradient);
            check_given::<bf16>(case, gradient);
            check_given::<f32>(case, gradient);
        }
    }
}

/// Steps of 100 at rates down to -1e4, for 16 thousand steps: everything stays finite.
#[test]
fn long_sequences_of_large_steps_stay_finite() {
    fn finite<T: Number>(case: Case) {
        let device = device();
        let stream = device.stream();
        let (inputs, given) = (case.inputs::<T>(), Given::new(case, 1e-4));
        let mut problem = Problem::new(case, &inputs, &given, &stream);
        problem.queue(&device.ssd, &stream).unwrap();
        for (name, found, _) in problem.fetch(&stream) {
            let at = found.iter().position(|x| !x.is_finite());
            assert_eq!(at, None, "{:?} {case:?}: {name}", T::DTYPE);
        }
    }
    for (a, dt_bias) in [(-1e4 / 16.0, 100.0), (-1e-2, 100.0), (-1e4 / 16.0, -5.0)] {
        let case = Case {
            batch: 1,
            seqlen: 16_384,
            heads: 1,
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
