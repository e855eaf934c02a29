//! Both passes: sizes, layouts, segments, packed sequences, and how calls are queued.

use half::bf16;
use seqmix::Workspace;
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use seqmix::lru::Lru;

use super::{Case, Problem, check, widen};
use crate::support::{Place, Placed, device};

/// Around groups of steps.
#[test]
fn any_length() {
    for seqlen in [1, 7, 8, 9, 41] {
        check(Case::of(2, seqlen, 33));
    }
}

/// Around blocks of states.
#[test]
fn any_number_of_states() {
    for states in [1, 128, 130] {
        check(Case::of(1, 11, states));
    }
}

#[test]
fn every_option() {
    for (ends, gamma) in [(false, false), (true, false), (false, true)] {
        let case = Case {
            ends,
            gamma,
            padding: 3,
            ..Case::of(2, 20, 21)
        };
        check(case);
        check(case.cut(3));
    }
}

/// More segments than steps too: the last ones have none.
#[test]
fn any_number_of_segments() {
    for segments in [1, 2, 5, 64] {
        check(Case::of(2, 43, 20).cut(segments));
    }
}

/// Sequences of no steps, of one, and of more than a group, that begin anywhere in a group.
#[test]
fn packed_sequences() {
    for segments in [None, Some(3)] {
        check(Case {
            segments,
            ..Case::packed(&[3, 0, 1, 21, 8, 7, 0], 34)
        });
    }
}

/// Offsets that are none of a tensor of 20 steps: nothing beyond is touched.
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
            let mut problem = Problem::<f32>::new(case.cut(segments), &stream);
            problem.cu_seqlens =
                Some(seqmix::Tensor::from_host(&stream, &cu_seqlens, [4]).unwrap());
            let mut workspace = Workspace::new(&stream);
            problem.queue_forward(&stream, &mut workspace).unwrap();
            problem.queue_backward(&stream, &mut workspace).unwrap();
            let states = problem.states.fetch(&stream, "states");
            problem.dx.fetch(&stream, "dx");
            let mut covered = [false; 20];
            for pair in cu_seqlens.windows(2) {
                let start = pair[0].clamp(0, 20) as usize;
                let end = pair[1].clamp(start as i32, 20) as usize;
                covered[start..end].fill(true);
            }
            for (step, states) in states.chunks(10).enumerate() {
                let written = states.iter().all(|x| !x.is_nan());
                assert_eq!(written, covered[step], "{cu_seqlens:?}: step {step}");
            }
        }
    }
}

#[test]
fn empty_problems() {
    for (batch, seqlen, states) in [(0, 8, 8), (2, 0, 8), (2, 8, 0)] {
        check(Case::of(batch, seqlen, states));
        check(Case::of(batch, seqlen, states).cut(3));
    }
}

/// An eigenvalue of absolute value 1 and a large angle, after hundreds of steps: it was rounded once.
#[test]
fn angles_are_those_of_the_parameter() {
    let stream = device().stream();
    let case = Case {
        ends: false,
        gamma: false,
        ..Case::of(1, 600, 1)
    };
    let mut problem = Problem::<f32>::new(case.cut(1), &stream);
    problem.host.a = vec![0.0, 6.1];
    problem.host.x.fill(0.0);
    problem.host.x[0] = 1.0;
    problem.a = Placed::input(
        &stream,
        Place::contiguous([1, 2]),
        &problem.host.a,
        f32::NAN,
    );
    problem.x = Placed::input(&stream, case.signal(), &problem.host.x, f32::NAN);
    let mut workspace = Workspace::new(&stream);
    problem.queue_forward(&stream, &mut workspace).unwrap();
    let found = widen(&problem.states.fetch(&stream, "states"));
    let angle = 599.0 * f64::from(6.1_f32);
    let error = (found[1198] - angle.cos()).hypot(found[1199] - angle.sin());
    // no more than a rounding of f32 at each step
    assert!(error < 6e-5, "{error}");
}

#[test]
fn runs_give_the_same_bits() {
    let stream = device().stream();
    let run = || {
        let mut problem = Problem::<bf16>::new(Case::of(2, 50, 40).cut(3), &stream);
        let mut workspace = Workspace::new(&stream);
        problem.queue_forward(&stream, &mut workspace).unwrap();
        problem.queue_backward(&stream, &mut workspace).unwrap();
        let halves = [&problem.states, &problem.dx].map(|x| x.fetch(&stream, "halves"));
        let sums = [
            problem.da.fetch(&stream, "da"),
            problem.dgamma.fetch(&stream, "dgamma"),
        ];
        let halves = halves.into_iter().flatten().map(|x| u32::from(x.to_bits()));
        let sums = sums.into_iter().flatten().map(f32::to_bits);
        halves.chain(sums).collect::<Vec<_>>()
    };
    let first = run();
    for repeat in 1..3 {
        assert!(run() == first, "run {repeat} differs");
    }
}

#[test]
fn a_captured_call_runs_when_its_graph_does() {
    // A context of one's own: event tracking, which capture cannot hold, is switched for all its tensors.
    device();
    let context = seqmix::context(0).unwrap();
    // SAFETY: every tensor of this context is used on the one stream below.
    unsafe { context.disable_event_tracking() };
    let op = Lru::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let case = Case::of(2, 50, 40).cut(3);
    let mut problem = Problem::<bf16>::new(case, &stream);
    let tensors = problem.backward();
    let mut workspace = Workspace::new(&stream);
    let plan = op.backward_plan(case.config(), &tensors).unwrap();
    workspace.reserve(plan.workspace_bytes()).unwrap();
    stream.synchronize().unwrap();
    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    op.backward(&stream, case.config(), tensors, &mut workspace)
        .unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("nothing queued");
    let dgamma = problem.dgamma.fetch(&stream, "dgamma");
    assert!(dgamma.iter().all(|x| x.is_nan()), "it ran when captured");
    graph.launch().unwrap();
    let found = problem.dgamma.fetch(&stream, "dgamma");
    let [expected, _] = problem.host.backward(case, |x| x);
    for (found, expected) in found.into_iter().zip(expected.dgamma) {
        let error = (f64::from(found) - expected).abs();
        assert!(error < 1e-2, "{found}, expected {expected}");
    }
}
