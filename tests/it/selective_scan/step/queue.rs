//! How steps are queued: the same bits every time, and captured into a graph that is launched for each token.

use half::f16;
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use seqmix::selective_scan::SelectiveScan;

use super::Case;
use super::problem::Problem;
use crate::support::device;

fn case() -> Case {
    Case {
        convolution: Some(([4, 4], 7)),
        ..Case::mamba2(2, 3, 40, 64)
    }
}

#[test]
fn ten_runs_give_the_same_bits() {
    let device = device();
    let stream = device.stream();
    let run = || {
        let mut problem = Problem::<f16>::new(case(), &stream);
        problem.queue(&stream, &device.selective_scan).unwrap();
        problem.fetch(&stream)
    };
    let first = run();
    for repeat in 1..10 {
        assert!(run() == first, "run {repeat} differs");
    }
}

#[test]
fn a_captured_step_runs_when_its_graph_does() {
    // A context of one's own: event tracking, which capture cannot hold, is switched for all its tensors.
    device();
    let context = seqmix::context(0).unwrap();
    // SAFETY: every tensor of this context is used on the one stream below.
    unsafe { context.disable_event_tracking() };
    let op = SelectiveScan::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let [mut captured, mut called] = [(); 2].map(|()| Problem::<f16>::new(case(), &stream));
    stream.synchronize().unwrap();

    let before = captured.fetch(&stream);
    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    captured.queue(&stream, &op).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("nothing queued");
    assert!(captured.fetch(&stream) == before, "it ran when captured");
    for token in 0..3 {
        graph.launch().unwrap();
        called.queue(&stream, &op).unwrap();
        assert!(
            captured.fetch(&stream) == called.fetch(&stream),
            "token {token}"
        );
    }
}
