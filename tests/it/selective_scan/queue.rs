//! How scans are queued: captured into graphs, on streams that follow each other, and with what is asked for alone.

use half::f16;
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use seqmix::selective_scan::SelectiveScan;
use seqmix::{Error, Workspace};

use super::Case;
use super::problem::Problem;
use crate::support::device;

/// Segments make three kernels, each of which reads what the one before it wrote.
fn segmented() -> Case {
    Case::of(2, 24, 70, 16).segments(3)
}

#[test]
fn a_captured_call_runs_when_its_graph_does() {
    // A context of one's own: event tracking, which capture cannot hold, is switched for all its tensors.
    device();
    let context = seqmix::context(0).unwrap();
    // SAFETY: every tensor of this context is used on the one stream below.
    unsafe { context.disable_event_tracking() };
    let op = SelectiveScan::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let problem = Problem::<f16>::new(segmented(), &stream);
    let mut outputs = problem.outputs();
    let mut workspace = problem.workspace(&op).unwrap();
    stream.synchronize().unwrap();

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    problem.queue(&op, &mut outputs, &mut workspace).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("nothing queued");
    let [out, ..] = problem.fetch(&outputs);
    assert!(out.iter().all(|x| x.is_nan()), "it ran when captured");

    for run in 1..=2 {
        graph.launch().unwrap();
        let found = problem.fetch(&outputs);
        problem.judge(&format!("launch {run}: "), Ok(found));
    }
}

/// A workspace serves one call after the other.
#[test]
fn a_workspace_is_used_again() {
    let op = &device().selective_scan;
    let stream = device().stream();
    let large = Problem::<f16>::new(segmented(), &stream);
    let small = Problem::<f16>::new(Case::of(1, 9, 40, 7).segments(2), &stream);
    let mut workspace = large.workspace(op).unwrap();
    for problem in [&large, &small, &large] {
        let mut outputs = problem.outputs();
        problem.queue(op, &mut outputs, &mut workspace).unwrap();
        problem.judge("", Ok(problem.fetch(&outputs)));
    }
}

/// One byte less than the plan says is refused, and nothing is written.
#[test]
fn a_workspace_that_is_too_small() {
    let op = &device().selective_scan;
    let stream = device().stream();
    let problem = Problem::<f16>::new(segmented(), &stream);
    let needed = problem.workspace(op).unwrap().bytes();
    let mut outputs = problem.outputs();
    let mut workspace = Workspace::new(&stream);
    workspace.reserve(needed - 1).unwrap();
    let refused = problem.queue(op, &mut outputs, &mut workspace);
    let expected = Error::Workspace {
        needed,
        reserved: needed - 1,
    };
    assert_eq!(refused, Err(expected));
    let found = problem.fetch(&outputs).concat();
    assert!(found.iter().all(|x| x.is_nan()), "something was written");
}
