//! Both passes: sizes, layouts, packed sequences, decays. The reference answers for both at once.

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seqmix::rwkv7::Forward;
use seqmix::{Tensor, Workspace};

use super::{Case, Decays, Layout, Problem, check, check_backward, check_forward};
use crate::support::{RacesPass, device};

/// Around tiles of eight steps, and spans of 64.
#[test]
fn any_length() {
    for seqlen in [1, 7, 8, 9, 63, 64, 65, 129] {
        check_forward::<bf16>(Case::of(1, seqlen, 1, 64).cut(1));
        check_forward::<f32>(Case::of(1, seqlen, 1, 32).cut(4));
        check_backward::<f16>(Case::of(1, seqlen, 1, 32));
    }
    check_backward::<f32>(Case::of(1, 300, 1, 64));
}

/// Those of the kernels, and others that are filled up: with whole pieces and without.
#[test]
fn any_size_of_heads() {
    for (dk, dv) in [
        (32, 32),
        (64, 64),
        (128, 128),
        (1, 1),
        (31, 60),
        (72, 8),
        (5, 128),
    ] {
        check(Case {
            dk,
            dv,
            ..Case::of(1, 10, 2, 1).cut(1)
        });
    }
}

/// Narrow blocks, of every size: the last ones may have no channels.
#[test]
fn slices() {
    for (dk, dv) in [(32, 32), (64, 64), (128, 128), (40, 17), (100, 30), (9, 7)] {
        let case = Case {
            dk,
            dv,
            ..Case::of(2, 11, 1, 1).cut(4)
        };
        check_forward::<f16>(case);
        check_forward::<bf16>(case);
        check_forward::<f32>(case);
    }
}

/// How values are divided changes no bit.
#[test]
fn slices_give_the_same_bits() {
    let stream = device().stream();
    let run = |slices| {
        let mut problem = Problem::<f32>::new(Case::of(1, 30, 2, 64).cut(slices), &stream);
        problem.queue_forward(&stream).unwrap();
        let found = [&problem.out, &problem.lookups, &problem.last];
        found.map(|x| x.fetch(&stream, "found"))
    };
    assert!(run(1) == run(4));
}

#[test]
fn without_states() {
    check(Case {
        states: false,
        ..Case::of(2, 20, 1, 33)
    });
}

#[test]
fn strided_and_shifted_tensors() {
    for layout in [Layout::Strided, Layout::Shifted] {
        for slices in [1, 4] {
            let case = Case::of(2, 11, 2, 64).cut(slices);
            check(Case { layout, ..case });
        }
    }
}

/// Sequences of no steps, of one, and of more than a span, that begin anywhere in one.
#[test]
fn packed_sequences() {
    check(Case::packed(&[3, 0, 1, 21, 8, 0], 2, 32));
    check_backward::<f32>(Case::packed(&[60, 70, 0, 1, 64], 1, 32));
    check_backward::<bf16>(Case {
        states: false,
        ..Case::packed(&[5, 9], 1, 64)
    });
}

/// Without lookups, out has the same bits.
#[test]
fn outputs_alone() {
    let device = device();
    let stream = device.stream();
    let case = Case {
        states: false,
        ..Case::of(1, 20, 2, 40)
    };
    let mut all = Problem::<bf16>::new(case, &stream);
    all.queue_forward(&stream).unwrap();
    let mut alone = Problem::<bf16>::new(case, &stream);
    let tensors = Forward {
        lookups: None,
        ..alone.forward()
    };
    device
        .rwkv7
        .forward(&stream, case.config(), tensors)
        .unwrap();
    assert!(alone.out.fetch(&stream, "out") == all.out.fetch(&stream, "out"));
    let lookups = alone.lookups.fetch(&stream, "lookups");
    assert!(lookups.iter().all(|x| x.is_nan()));
}

/// Nothing that fades at once, and nothing that fades for long, makes a number that is none.
#[test]
fn strong_and_weak_decays() {
    for decay in [-20.0, -1e-4, 0.0, f32::NEG_INFINITY] {
        check(Case {
            decays: Decays::All(decay),
            ..Case::of(1, 70, 1, 32)
        });
    }
    check(Case {
        decays: Decays::Mixed,
        ..Case::of(1, 70, 1, 64)
    });
}

/// Offsets that are none of a tensor of 20 steps: sequences overlap or leave gaps, and nothing beyond is touched.
#[test]
fn offsets_are_clamped() {
    let stream = device().stream();
    let case = Case::packed(&[2, 6, 12], 1, 8);
    let _races_pass = RacesPass::new();
    for cu_seqlens in [
        [-7, 3, 1000, 9],
        [4, 4, 2, i32::MAX],
        [20, 20, i32::MIN, 12],
    ] {
        let mut problem = Problem::<f16>::new(case, &stream);
        let offsets = Tensor::from_host(&stream, &cu_seqlens, [4]).unwrap();
        problem.inputs.cu_seqlens = Some(offsets);
        let mut workspace = Workspace::new(&stream);
        problem.queue_forward(&stream).unwrap();
        problem.queue_backward(&stream, &mut workspace).unwrap();
        let out = problem.out.fetch(&stream, "out");
        let dr = problem.dr.fetch(&stream, "dr");
        problem.ddecay.fetch(&stream, "ddecay");
        let mut covered = [false; 20];
        for pair in cu_seqlens.windows(2) {
            let start = pair[0].clamp(0, 20) as usize;
            let end = pair[1].clamp(start as i32, 20) as usize;
            covered[start..end].fill(true);
        }
        for (step, (out, dr)) in out.chunks(8).zip(dr.chunks(8)).enumerate() {
            for written in [out, dr].map(|x| x.iter().all(|x| !x.is_nan())) {
                assert_eq!(written, covered[step], "{cu_seqlens:?}: step {step}");
            }
        }
    }
}

#[test]
fn empty_problems() {
    for (batch, seqlen, heads) in [(0, 8, 2), (2, 0, 2), (2, 8, 0), (0, 0, 0)] {
        check(Case::of(batch, seqlen, heads, 8));
    }
    // with a kernel of every size
    for size in [32, 64, 128] {
        for slices in [1, 4] {
            check_backward::<f16>(Case::of(1, 1, 1, size).cut(slices));
        }
    }
}

/// Problems that no one chose.
#[test]
fn random_problems() {
    let mut random = StdRng::seed_from_u64(7);
    let mut below = |limit: usize| random.random_range(0..limit);
    for _ in 0..8 {
        let case = Case {
            dv: 1 + below(70),
            slices: [None, Some(1), Some(4)][below(3)],
            states: below(2) == 0,
            layout: [Layout::Contiguous, Layout::Strided, Layout::Shifted][below(3)],
            decays: [Decays::Usual, Decays::Mixed][below(2)],
            ..Case::of(1 + below(2), 1 + below(30), 1 + below(2), 1 + below(70))
        };
        check_backward::<bf16>(case);
        check_backward::<f16>(case);
        check_forward::<f32>(case);
    }
}
