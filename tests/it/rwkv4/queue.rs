//! How calls are queued: the same bits every time, and captured into graphs.

use half::bf16;
use seqmix::Workspace;
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use seqmix::rwkv4::Rwkv4;

use super::{Case, Problem};
use crate::support::device;

/// Sums cross sequences and segments.
fn case() -> Case {
    Case::of(2, 50, 40).cut(3)
}

#[test]
fn runs_give_the_same_bits() {
    let stream = device().stream();
    let run = || {
        let mut problem = Problem::<bf16>::new(case(), &stream);
        let mut workspace = Workspace::new(&stream);
        problem.queue_forward(&stream, &mut workspace).unwrap();
        problem.queue_backward(&stream, &mut workspace).unwrap();
        let halves = [&problem.out, &problem.dk, &problem.dv].map(|x| x.fetch(&stream, "halves"));
        let sums = [&problem.ddecay, &problem.dbonus].map(|x| x.fetch(&stream, "sums"));
        let halves = halves.into_iter().flatten().map(|x| u32::from(x.to_bits()));
        let sums = sums.into_iter().flatten().map(f32::to_bits);
        halves.chain(sums).collect::<Vec<_>>()
    };
    let first = run();
    for repeat in 1..4 {
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
    let op = Rwkv4::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let mut problem = Problem::<bf16>::new(case(), &stream);
    let tensors = problem.backward();
    let mut workspace = Workspace::new(&stream);
    let plan = op.backward_plan(case().config(), &tensors).unwrap();
    workspace.reserve(plan.workspace_bytes()).unwrap();
    stream.synchronize().unwrap();

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    op.backward(&stream, case().config(), tensors, &mut workspace)
        .unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("nothing queued");
    let dbonus = problem.dbonus.fetch(&stream, "dbonus");
    assert!(dbonus.iter().all(|x| x.is_nan()), "it ran when captured");

    graph.launch().unwrap();
    let found = problem.dbonus.fetch(&stream, "dbonus");
    let [expected, _] = problem.host.backward(case(), |x| x);
    for (found, expected) in found.into_iter().zip(expected.dbonus) {
        let error = (f64::from(found) - expected).abs();
        assert!(error < 1e-3, "{found}, expected {expected}");
    }
}
