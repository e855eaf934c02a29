//! How calls are queued: the same bits every time, captured into graphs.

use half::f16;
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use seqmix::linear_attention::{Config, LinearAttention};

use super::layer::{CASE, Case, Fades, NORMALIZED, Problem, attention, compare, run};
use crate::support::device;

/// Segments make four kernels, each of which reads what the one before it wrote.
const SEGMENTED: Case = Case {
    seqlen: 150,
    decay: Fades::PerChannel,
    config: Config {
        segment: Some(64),
        ..NORMALIZED
    },
    ..CASE
};

#[test]
fn ten_runs_give_the_same_bits() {
    for case in [CASE, SEGMENTED] {
        let inputs = case.inputs::<f16>();
        let first = run("the first run", case, &inputs);
        for repeat in 1..10 {
            let again = run("again", case, &inputs);
            // case.last and normalize decide which of them stay NaN
            let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<u64>>();
            assert_eq!(bits(&first.out), bits(&again.out), "run {repeat}");
            assert_eq!(bits(&first.last), bits(&again.last), "run {repeat}");
            assert_eq!(bits(&first.last_z), bits(&again.last_z), "run {repeat}");
        }
    }
}

#[test]
fn a_captured_call_runs_when_its_graph_does() {
    // A context of one's own: event tracking, which capture cannot hold, is switched for all its tensors.
    attention();
    let context = seqmix::context(0).unwrap();
    let _ = device();
    // SAFETY: every tensor of this context is used on the one stream below.
    unsafe { context.disable_event_tracking() };
    let attention = LinearAttention::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let inputs = SEGMENTED.inputs::<f16>();
    let mut problem = Problem::new(SEGMENTED, &inputs, &stream);
    problem.reserve(&attention).unwrap();
    stream.synchronize().unwrap();

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    problem.queue(&attention, &stream).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream
        .end_capture(flags)
        .unwrap()
        .expect("the call queued nothing");
    let unset = problem.fetch(&stream).out.iter().all(|x| x.is_nan());
    assert!(unset, "the kernels ran while they were captured");

    graph.launch().unwrap();
    compare("captured", SEGMENTED, &inputs, &problem.fetch(&stream));
}
