//! Sequences of different lengths in one row.

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seqmix::Workspace;
use seqmix::causal_conv1d::{Backward, Forward};

use super::{
    ALONG, Along, BACKWARD, Case, Dim, FORWARD, GUARD, Host, Problem, check_backward,
    check_forward, check_types,
};
use crate::naive::Number;
use crate::support::{Place, Placed, device};

const LENGTHS: [&[usize]; 9] = [
    &[5],
    &[7, 64, 1, 65],
    &[129, 1000, 3],
    // Shorter than what taps reach back.
    &[1, 2, 3, 1, 1, 2, 3, 4, 5, 6, 7, 8, 1],
    // Without steps: at the start, in the middle, at the end, at the edge of a tile, all.
    &[0, 3, 0, 0, 17, 0],
    &[3, 0, 0, 61, 0, 64, 0, 128, 0, 0],
    &[0, 0],
    &[0],
    &[],
];

#[test]
fn sequences_do_not_see_each_other() {
    for lengths in LENGTHS {
        for along in ALONG {
            check_types(FORWARD, Case::packed(40, lengths, along));
        }
    }
}

#[test]
fn gradients_stay_in_their_sequence() {
    for lengths in LENGTHS {
        for along in ALONG {
            check_types(BACKWARD, Case::packed(40, lengths, along));
        }
    }
}

#[test]
fn every_width() {
    for width in 2..=8 {
        for along in ALONG {
            for states in [false, true] {
                let case = Case {
                    width,
                    states,
                    padding: 1,
                    ..Case::packed(33, LENGTHS[3], along)
                };
                check_types(FORWARD, case);
                check_types(BACKWARD, case);
            }
        }
    }
}

/// As many sequences as steps, or more: as when each adds one step.
#[test]
fn many_short_sequences() {
    let ones: &[usize] = &[1; 300];
    let few: &[usize] = &[0, 1, 0, 0, 2].repeat(60).leak()[..];
    for lengths in [ones, few] {
        for along in ALONG {
            check_forward::<f16, f16>(Case::packed(70, lengths, along));
            check_backward::<f16, f32>(Case::packed(70, lengths, along));
        }
    }
}

/// Problems that no one chose.
#[test]
fn random_problems() {
    let mut random = StdRng::seed_from_u64(9);
    let mut below = |limit: usize| random.random_range(0..limit);
    for _ in 0..40 {
        let longest = [4, 20, 300][below(3)];
        let lengths: Vec<usize> = (0..1 + below(12)).map(|_| below(longest)).collect();
        let case = Case {
            width: 2 + below(7),
            padding: [0, 0, 1, 8][below(4)],
            shift: [0, 0, 0, 3][below(4)],
            silu: below(2) == 0,
            bias: below(2) == 0,
            states: below(2) == 0,
            turned: below(2) == 0,
            ..Case::packed(1 + below(80), lengths.leak(), ALONG[below(2)])
        };
        match below(3) {
            0 => {
                check_forward::<f16, f16>(case);
                check_backward::<f16, f16>(case);
            }
            1 => {
                check_forward::<bf16, f32>(case);
                check_backward::<bf16, f32>(case);
            }
            _ => {
                check_forward::<f32, f32>(case);
                check_backward::<f32, f32>(case);
            }
        }
    }
}

/// Steps before the first sequence and after the last are left as they are, whatever is in x there.
#[test]
fn steps_outside_all_sequences_stay() {
    let device = device();
    let stream = device.stream();
    let (dim, seqlen, first, end) = (24, 300, 13, 270);
    for along in ALONG {
        let outer = Case::of(dim, seqlen, along);
        // the same steps on their own
        let inner = Case {
            seqlen: end - first,
            states: false,
            ..outer
        };
        let host = Host::<f32, f32>::new(inner);
        let outside = |at: usize| !(first..end).contains(&(at % seqlen));
        let widen = |inner: &[f32]| -> Vec<f32> {
            let mut inner = inner.iter();
            let place = |at| match outside(at) {
                true => f32::NAN,
                false => *inner.next().unwrap(),
            };
            (0..dim * seqlen).map(place).collect()
        };
        let input = |data: &[f32]| Placed::input(&stream, outer.signal(), &widen(data), f32::NAN);
        let (x, dout) = (input(&host.x), input(&host.dout));
        let weight = Placed::input(&stream, outer.weight(), &host.weight, f32::NAN);
        let bias = Placed::input(&stream, Place::contiguous([dim]), &host.bias, f32::NAN);
        let cu_seqlens = seqmix::Tensor::from_host(&stream, &[first as i32, end as i32], [2]);
        let cu_seqlens = cu_seqlens.unwrap();
        let output = || Placed::output(&stream, outer.signal(), 7.0, GUARD as f32);
        let (mut out, mut dx) = (output(), output());
        let mut dweight = Placed::output(&stream, outer.weight(), f32::NAN, GUARD as f32);
        let forward = Forward {
            x: x.view(),
            weight: weight.view(),
            bias: Some(bias.view()),
            initial_states: None,
            cu_seqlens: Some(cu_seqlens.view()),
            out: out.view_mut(),
            final_states: None,
        };
        let op = &device.causal_conv1d;
        op.forward(&stream, outer.config(), forward).unwrap();
        let backward = Backward {
            x: x.view(),
            weight: weight.view(),
            bias: Some(bias.view()),
            initial_states: None,
            cu_seqlens: Some(cu_seqlens.view()),
            dout: dout.view(),
            dfinal_states: None,
            dx: Some(dx.view_mut()),
            dweight: Some(dweight.view_mut()),
            dbias: None,
            dinitial_states: None,
        };
        let mut workspace = Workspace::new(&stream);
        let bytes = op.backward_workspace_bytes(&backward).unwrap();
        workspace.reserve(bytes).unwrap();
        let queued = op.backward(&stream, outer.config(), backward, &mut workspace);
        queued.unwrap();

        let [expected, _] = host.forward(inner, <f32 as Number>::round);
        let [gradients, _] = host.backward(inner, <f32 as Number>::round);
        let close = |found: &[f32], expected: &[f64]| {
            let mut expected = expected.iter();
            for (at, &found) in found.iter().enumerate() {
                let expected = match outside(at) {
                    true => 7.0,
                    false => *expected.next().unwrap(),
                };
                let error = (f64::from(found) - expected).abs();
                assert!(error < 1e-5, "{along:?} {at}: {found}, expected {expected}");
            }
        };
        close(&out.fetch(&stream, "out"), &expected.out);
        close(&dx.fetch(&stream, "dx"), &gradients.dx);
        let dweight = dweight.fetch(&stream, "dweight");
        for (found, expected) in dweight.iter().zip(&gradients.dweight) {
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{along:?}");
        }
    }
}

/// Offsets that lie outside the tensor, or fall: no access leaves the tensors.
#[test]
fn offsets_are_clamped() {
    fn run<T: Number>(along: Along, width: usize, offsets: &[i32]) {
        let device = device();
        let stream = device.stream();
        let lengths: &[usize] = &[40, 60, 100, 100];
        let case = Case {
            width,
            ..Case::packed(20, lengths, along)
        };
        let mut problem = Problem::<T, f32>::new(case, &stream);
        let offsets = seqmix::Tensor::from_host(&stream, offsets, [offsets.len()]).unwrap();
        problem.cu_seqlens = Some(offsets);
        let mut workspace = Workspace::new(&stream);
        problem.queue_forward(&stream).unwrap();
        problem.queue_backward(&stream, &mut workspace).unwrap();
        // what is around the outputs must not have changed
        problem.out.fetch(&stream, "out");
        problem.final_states.fetch(&stream, "final_states");
        problem.dx.fetch(&stream, "dx");
        problem.dinitial_states.fetch(&stream, "dinitial_states");
    }
    for along in ALONG {
        for width in [4, 8] {
            for offsets in [
                [0, 40, 100, 200, i32::MAX],
                [i32::MIN, -1, 100, 200, 301],
                [0, 200, 40, 100, 300],
                [300, 200, 100, 40, 0],
                [i32::MAX, i32::MIN, i32::MAX, i32::MIN, i32::MAX],
                [129, 128, 127, 3, 2],
            ] {
                run::<f16>(along, width, &offsets);
                run::<f32>(along, width, &offsets);
            }
        }
    }
    // a row without sequences
    let stream = device().stream();
    let case = Case {
        states: false,
        ..Case::of(8, 20, Dim)
    };
    let mut problem = Problem::<f32, f32>::new(case, &stream);
    problem.cu_seqlens = Some(seqmix::Tensor::from_host(&stream, &[0], [1]).unwrap());
    problem.queue_forward(&stream).unwrap();
    let out = problem.out.fetch(&stream, "out");
    assert!(out.iter().all(|x| x.is_nan()));
}
