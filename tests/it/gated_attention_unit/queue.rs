//! How calls are queued: the same bits every time, captured into graphs.

use half::f16;
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use seqmix::gated_attention_unit::GatedAttentionUnit;

use super::gradients::{self, dout};
use super::{CASE, Case, Problem, compare};
use crate::support::device;

/// Chunks make three kernels forward and nine backward, each of which reads what those before it wrote.
const MIXED: Case = Case {
    batch: 2,
    seqlen: 150,
    dv: 40,
    chunk: Some(64),
    ..CASE
};

#[test]
fn ten_runs_give_the_same_bits() {
    let device = device();
    let stream = device.stream();
    let gau = &device.gated_attention_unit;
    for case in [
        MIXED,
        Case {
            chunk: None,
            causal: false,
            ..MIXED
        },
    ] {
        let inputs = case.inputs::<f16>();
        let run = || {
            let mut problem = Problem::new(case, &inputs, &stream);
            problem.queue(gau, &stream).unwrap();
            let out: Vec<u16> = problem
                .fetch(&stream)
                .into_iter()
                .map(f16::to_bits)
                .collect();
            let mut problem = gradients::Problem::new(case, &inputs, &dout(case, 1.0), &stream);
            problem.queue(gau, &stream).unwrap();
            let gradients = problem.fetch(&stream).into_iter();
            let bits = |(_, gradient, _): (_, Vec<f64>, _)| gradient.into_iter().map(f64::to_bits);
            let gradients: Vec<u64> = gradients.flat_map(bits).collect();
            (out, gradients)
        };
        let first = run();
        for repeat in 1..10 {
            assert!(run() == first, "run {repeat} differs from the first");
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
    let gau = GatedAttentionUnit::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let inputs = MIXED.inputs::<f16>();
    let mut problem = Problem::new(MIXED, &inputs, &stream);
    problem.reserve(&gau).unwrap();
    let dout = dout(MIXED, 1.0);
    let mut backward = gradients::Problem::new(MIXED, &inputs, &dout, &stream);
    backward.reserve(&gau).unwrap();
    stream.synchronize().unwrap();

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    problem.queue(&gau, &stream).unwrap();
    backward.queue(&gau, &stream).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream
        .end_capture(flags)
        .unwrap()
        .expect("the call queued nothing");
    let unset = problem.fetch(&stream).iter().all(|x| x.is_nan());
    assert!(unset, "the kernels ran while they were captured");
    for (name, gradient, _) in backward.fetch(&stream) {
        let unset = gradient.iter().all(|x| x.is_nan());
        assert!(unset, "{name} was written while it was captured");
    }

    graph.launch().unwrap();
    let out: Vec<f64> = problem.fetch(&stream).into_iter().map(Into::into).collect();
    compare("captured", MIXED, &inputs, &out);
    let expected = gradients::expected(MIXED, &inputs, &dout);
    gradients::compare::<f16>("captured", &backward.fetch(&stream), &expected);
}
