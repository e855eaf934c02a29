//! Both passes: sizes, layouts, segments, packed sequences. The reference answers for both at once.

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seqmix::Workspace;

use super::{Case, Host, Problem, check, check_backward, check_forward, check_forward_of};
use crate::support::device;

/// Around groups of steps.
#[test]
fn any_length() {
    for seqlen in [1, 2, 7, 8, 9, 16, 41] {
        check(Case::of(2, seqlen, 33));
    }
}

/// Around blocks of channels.
#[test]
fn any_number_of_channels() {
    for dim in [1, 31, 128, 130] {
        check(Case::of(1, 11, dim));
    }
}

#[test]
fn without_states() {
    let case = Case {
        states: false,
        ..Case::of(2, 20, 33)
    };
    check(case);
    check(case.cut(3));
}

#[test]
fn padded_and_strided_tensors() {
    for padding in [0, 3] {
        check(
            Case {
                padding,
                strided: true,
                ..Case::of(2, 19, 37)
            }
            .cut(2),
        );
    }
}

/// More segments than steps too: the last ones have none.
#[test]
fn any_number_of_segments() {
    for segments in [1, 2, 3, 5, 16, 64] {
        check(Case::of(2, 43, 20).cut(segments));
    }
}

/// Sequences of no steps, of one, and of more than a group, that begin anywhere in a group.
#[test]
fn packed_sequences() {
    const LENGTHS: &[usize] = &[3, 0, 1, 21, 8, 7, 0];
    for segments in [None, Some(3)] {
        check(Case {
            segments,
            ..Case::packed(LENGTHS, 34)
        });
        check(Case {
            segments,
            states: false,
            ..Case::packed(&[5, 9], 34)
        });
    }
}

/// Keys whose exponentials `f32` does not have.
#[test]
fn large_keys() {
    for segments in [1, 4] {
        let case = Case {
            spread: 100.0,
            ..Case::of(2, 40, 32)
        };
        check(case.cut(segments));
    }
}

/// The largest weight is of the first step for a thousand steps. Were its logarithm rounded at each of them, its decay
/// would be wrong by a thousandth.
#[test]
fn decays_do_not_add_their_roundings_up() {
    let stream = device().stream();
    for segments in [1, 8] {
        let case = Case {
            states: false,
            ..Case::of(1, 1000, 1)
        };
        let case = case.cut(segments);
        let mut host = Host::<f32>::new(case);
        host.decay = vec![-1.001e-3];
        host.k = vec![19.0; 1000];
        host.k[0] = 20.5;
        host.v[0] = 30.0;
        check_forward_of(Problem::of(case, host, &stream), &stream);
    }
}

/// Offsets that are none of a tensor of 20 steps: sequences overlap or leave gaps, and nothing beyond is touched.
#[test]
fn offsets_are_clamped() {
    let stream = device().stream();
    let case = Case::packed(&[2, 6, 12], 5);
    for cu_seqlens in [
        [-7, 3, 1000, 9],
        [4, 4, 2, i32::MAX],
        [20, 20, i32::MIN, 12],
    ] {
        for segments in [1, 3] {
            let mut problem = Problem::<f16>::new(case.cut(segments), &stream);
            problem.cu_seqlens =
                Some(seqmix::Tensor::from_host(&stream, &cu_seqlens, [4]).unwrap());
            let mut workspace = Workspace::new(&stream);
            problem.queue_forward(&stream, &mut workspace).unwrap();
            problem.queue_backward(&stream, &mut workspace).unwrap();
            let out = problem.out.fetch(&stream, "out");
            problem.dk.fetch(&stream, "dk");
            let mut covered = [false; 20];
            for pair in cu_seqlens.windows(2) {
                let start = pair[0].clamp(0, 20) as usize;
                let end = pair[1].clamp(start as i32, 20) as usize;
                covered[start..end].fill(true);
            }
            for (step, out) in out.chunks(5).enumerate() {
                let written = out.iter().all(|x| !x.is_nan());
                assert_eq!(written, covered[step], "{cu_seqlens:?}: step {step}");
            }
        }
    }
}

#[test]
fn empty_problems() {
    for (batch, seqlen, dim) in [(0, 8, 8), (2, 0, 8), (2, 8, 0), (0, 0, 0)] {
        check(Case::of(batch, seqlen, dim));
        check(Case::of(batch, seqlen, dim).cut(3));
    }
}

/// Problems that no one chose.
#[test]
fn random_problems() {
    let mut random = StdRng::seed_from_u64(11);
    let mut below = |limit: usize| random.random_range(0..limit);
    for _ in 0..12 {
        let case = Case {
            segments: [None, Some(1), Some(2), Some(7)][below(4)],
            states: below(2) == 0,
            padding: below(3),
            strided: below(2) == 0,
            spread: [0.1, 1.0, 10.0][below(3)],
            ..Case::of(1 + below(3), 1 + below(70), 1 + below(80))
        };
        check_forward::<bf16>(case);
        check_backward::<f16>(case);
        check_backward::<f32>(case);
    }
}
