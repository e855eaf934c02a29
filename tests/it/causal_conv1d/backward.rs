//! Gradients: sizes, layouts and options.

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seqmix::Workspace;
use seqmix::causal_conv1d::Backward;

use super::{ALONG, BACKWARD, Case, Dim, LENGTHS, Problem, Seqlen, check_backward, check_types};
use crate::naive::Number;
use crate::support::device;

#[test]
fn any_length() {
    for seqlen in LENGTHS {
        for along in ALONG {
            check_types(BACKWARD, Case::of(40, seqlen, along));
        }
    }
}

#[test]
fn any_number_of_channels() {
    for dim in [1, 2, 3, 31, 33, 63, 65, 129] {
        for along in ALONG {
            check_types(BACKWARD, Case::of(dim, 70, along));
        }
    }
}

#[test]
fn every_width() {
    for width in 2..=8 {
        for along in ALONG {
            for seqlen in [3, 150] {
                let case = Case {
                    width,
                    ..Case::of(72, seqlen, along)
                };
                let plain = Case {
                    states: false,
                    silu: false,
                    ..case
                };
                check_types(BACKWARD, case);
                check_types(BACKWARD, plain);
            }
        }
    }
}

#[test]
fn every_option() {
    for along in ALONG {
        for which in 0..16 {
            let case = Case {
                silu: which & 1 != 0,
                bias: which & 2 != 0,
                states: which & 4 != 0,
                turned: which & 8 != 0,
                batch: 2,
                ..Case::of(24, 40, along)
            };
            check_backward::<f16, f16>(case);
            check_backward::<f32, f32>(case);
        }
    }
}

/// Sums are rounded to the type of the weights, the rest to that of x.
#[test]
fn every_type_of_weights() {
    for along in ALONG {
        let case = Case::of(40, 100, along);
        check_backward::<f16, f32>(case);
        check_backward::<bf16, f32>(case);
        check_backward::<bf16, f16>(case);
        check_backward::<f32, bf16>(case);
    }
}

#[test]
fn padded_and_unaligned_tensors() {
    for along in ALONG {
        for (size, padding, shift) in [
            (60, 4, 0),
            (61, 3, 0),
            (64, 8, 8),
            (64, 0, 1),
            (64, 1, 3),
            (300, 1, 1),
        ] {
            let (dim, seqlen) = match along {
                Dim => (size, 150),
                Seqlen => (20, size),
            };
            let case = Case {
                batch: 2,
                padding,
                shift,
                ..Case::of(dim, seqlen, along)
            };
            let wide = Case { width: 7, ..case };
            check_types(BACKWARD, case);
            check_types(BACKWARD, wide);
        }
    }
}

/// More tiles than one along both axes, so that sums cross them.
#[test]
fn many_tiles() {
    for along in ALONG {
        check_backward::<f16, f16>(Case::of(136, 2100, along));
        check_backward::<bf16, f32>(Case {
            batch: 3,
            ..Case::of(72, 1100, along)
        });
        check_backward::<f32, f32>(Case::of(70, 1100, along));
    }
}

/// So many tiles that a block walks over several of them, whatever the device.
#[test]
fn more_tiles_than_slots() {
    check_backward::<f16, f32>(Case {
        batch: 1100,
        ..Case::of(3, 5, Dim)
    });
    check_backward::<f32, f32>(Case {
        batch: 1100,
        ..Case::of(3, 5, Seqlen)
    });
}

/// Sums over nothing are 0; gradients of states pass through sequences of no steps.
#[test]
fn empty_problems() {
    for along in ALONG {
        for (batch, dim, seqlen) in [(0, 8, 8), (2, 0, 8), (2, 8, 0), (0, 0, 0)] {
            for states in [false, true] {
                let case = Case {
                    batch,
                    states,
                    ..Case::of(dim, seqlen, along)
                };
                check_types(BACKWARD, case);
            }
        }
    }
}

/// Each gradient alone has the same bits as all together; without sums no workspace is needed.
#[test]
fn gradients_that_are_not_asked_for() {
    let device = device();
    let stream = device.stream();
    let bits = |numbers: Vec<f32>| -> Vec<u32> { numbers.into_iter().map(f32::to_bits).collect() };
    for along in ALONG {
        let case = Case::of(40, 150, along);
        let mut all = Problem::<f32, f32>::new(case, &stream);
        let mut workspace = Workspace::new(&stream);
        all.queue_backward(&stream, &mut workspace).unwrap();
        for which in 0..16 {
            let mut some = Problem::<f32, f32>::new(case, &stream);
            let asked = [1, 2, 4, 8].map(|bit| which & bit != 0);
            let tensors = Backward {
                x: some.x.view(),
                weight: some.weight.view(),
                bias: Some(some.bias.view()),
                initial_states: Some(some.initial_states.view()),
                cu_seqlens: None,
                dout: some.dout.view(),
                dfinal_states: Some(some.dfinal_states.view()),
                dx: asked[0].then(|| some.dx.view_mut()),
                dweight: asked[1].then(|| some.dweight.view_mut()),
                dbias: asked[2].then(|| some.dbias.view_mut()),
                dinitial_states: asked[3].then(|| some.dinitial_states.view_mut()),
            };
            let op = &device.causal_conv1d;
            let mut workspace = Workspace::new(&stream);
            let bytes = op.backward_workspace_bytes(&tensors).unwrap();
            assert_eq!(bytes > 0, asked[1] || asked[2]);
            workspace.reserve(bytes).unwrap();
            let queued = op.backward(&stream, case.config(), tensors, &mut workspace);
            queued.unwrap();
            let found = [
                some.dx.fetch(&stream, "dx"),
                some.dweight.fetch(&stream, "dweight"),
                some.dbias.fetch(&stream, "dbias"),
                some.dinitial_states.fetch(&stream, "dinitial_states"),
            ];
            let expected = [
                all.dx.fetch(&stream, "dx"),
                all.dweight.fetch(&stream, "dweight"),
                all.dbias.fetch(&stream, "dbias"),
                all.dinitial_states.fetch(&stream, "dinitial_states"),
            ];
            for ((found, expected), asked) in found.into_iter().zip(expected).zip(asked) {
                if asked {
                    assert_eq!(bits(found), bits(expected), "{along:?} {which:04b}");
                } else {
                    assert!(found.iter().all(|x| x.is_nan()), "{along:?} {which:04b}");
                }
            }
        }
    }
}

/// Large inputs, with sums far out on both sides of the activation.
#[test]
fn far_sums_stay_finite() {
    fn finite<T: Number>(case: Case) {
        let stream = device().stream();
        let mut problem = Problem::<T, f32>::new(case, &stream);
        let mut workspace = Workspace::new(&stream);
        problem.queue_backward(&stream, &mut workspace).unwrap();
        problem.queue_forward(&stream).unwrap();
        let tensors = [
            problem.out.fetch(&stream, "out"),
            problem.dx.fetch(&stream, "dx"),
        ];
        for x in tensors.iter().flatten() {
            let x: f64 = (*x).into();
            assert!(x.is_finite(), "{case:?}: {x}");
        }
    }
    for along in ALONG {
        let case = Case {
            scale: 1e4,
            ..Case::of(40, 100, along)
        };
        finite::<f16>(case);
        finite::<bf16>(case);
        finite::<f32>(Case {
            scale: 1e30,
            ..case
        });
    }
}

/// Problems that no one chose.
#[test]
fn random_problems() {
    let mut random = StdRng::seed_from_u64(8);
    let mut below = |limit: usize| random.random_range(0..limit);
    for _ in 0..60 {
        let case = Case {
            batch: 1 + below(3),
            width: 2 + below(7),
            padding: [0, 0, 1, 8][below(4)],
            shift: [0, 0, 0, 3][below(4)],
            silu: below(2) == 0,
            bias: below(2) == 0,
            states: below(2) == 0,
            turned: below(2) == 0,
            ..Case::of(1 + below(100), 1 + below(300), ALONG[below(2)])
        };
        match below(4) {
            0 => check_backward::<f16, f16>(case),
            1 => check_backward::<bf16, bf16>(case),
            2 => check_backward::<bf16, f32>(case),
            _ => check_backward::<f32, f32>(case),
        }
    }
}
