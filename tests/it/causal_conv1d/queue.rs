//! How calls are queued: the same bits every time, captured into graphs, and refused as a whole.

use half::f16;
use seqmix::Workspace;
use seqmix::causal_conv1d::{Backward, CausalConv1d};
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::{ALONG, Case, Problem};
use crate::support::device;

/// A problem whose sums cross tiles and slots.
fn case(along: super::Along) -> Case {
    Case {
        batch: 2,
        ..Case::of(40, 300, along)
    }
}

#[test]
fn ten_runs_give_the_same_bits() {
    let stream = device().stream();
    for along in ALONG {
        let run = || {
            let mut problem = Problem::<f16, f32>::new(case(along), &stream);
            let mut workspace = Workspace::new(&stream);
            problem.queue_forward(&stream).unwrap();
            problem.queue_backward(&stream, &mut workspace).unwrap();
            let halves = [
                problem.out.fetch(&stream, "out"),
                problem.dx.fetch(&stream, "dx"),
                problem.dinitial_states.fetch(&stream, "dinitial_states"),
            ];
            let sums = [
                problem.dweight.fetch(&stream, "dweight"),
                problem.dbias.fetch(&stream, "dbias"),
            ];
            let halves = halves.into_iter().flatten().map(|x| u32::from(x.to_bits()));
            let sums = sums.into_iter().flatten().map(f32::to_bits);
            halves.chain(sums).collect::<Vec<_>>()
        };
        let first = run();
        for repeat in 1..10 {
            assert!(run() == first, "{along:?}: run {repeat} differs");
        }
    }
}

#[test]
fn a_captured_call_runs_when_its_graph_does() {
    // A context of one's own: event tracking, which capture cannot hold, is switched for all its tensors.
    device();
    let context = seqmix::context(0).unwrap();
    // SAFETY: every tensor of this context is used on the one stream below.
    unsafe { context.disable_event_tracking() };
    let op = CausalConv1d::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let case = case(super::Dim);
    let mut problem = Problem::<f16, f32>::new(case, &stream);
    let tensors = Backward {
        x: problem.x.view(),
        weight: problem.weight.view(),
        bias: Some(problem.bias.view()),
        initial_states: None,
        cu_seqlens: None,
        dout: problem.dout.view(),
        dfinal_states: None,
        dx: Some(problem.dx.view_mut()),
        dweight: Some(problem.dweight.view_mut()),
        dbias: None,
        dinitial_states: None,
    };
    let mut workspace = Workspace::new(&stream);
    let bytes = op.backward_workspace_bytes(&tensors).unwrap();
    workspace.reserve(bytes).unwrap();
    stream.synchronize().unwrap();

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    op.backward(&stream, case.config(), tensors, &mut workspace)
        .unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("nothing queued");
    let dweight = problem.dweight.fetch(&stream, "dweight");
    assert!(dweight.iter().all(|x| x.is_nan()), "it ran when captured");

    graph.launch().unwrap();
    let found = problem.dweight.fetch(&stream, "dweight");
    let alone = Case {
        states: false,
        ..case
    };
    let [expected, _] = problem.host.backward(alone, |x| x);
    for (found, expected) in found.into_iter().zip(expected.dweight) {
        let error = (f64::from(found) - expected).abs();
        assert!(error < 1e-3, "{found}, expected {expected}");
    }
}
