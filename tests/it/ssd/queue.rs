//! How calls are queued: the same bits every time, captured into graphs.

use half::f16;
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use seqmix::ssd::{Config, Ssd};

use super::gradients::{self, Given};
use super::{CASE, Case, Problem, SOFTPLUS, compare};
use crate::support::device;

/// Segments make three kernels, each of which reads what the one before it wrote; backwards there are nine.
const SEGMENTED: Case = Case {
    seqlen: 200,
    z: true,
    config: Config {
        segment: Some(64),
        ..SOFTPLUS
    },
    ..CASE
};

#[test]
fn ten_runs_give_the_same_bits() {
    let device = device();
    let stream = device.stream();
    for case in [CASE, SEGMENTED] {
        let inputs = case.inputs::<f16>();
        let run = || {
            let mut problem = Problem::new(case, &inputs, &stream);
            problem.queue(&device.ssd, &stream).unwrap();
            let (out, states) = problem.fetch(&stream);
            let out: Vec<u16> = out.into_iter().map(f16::to_bits).collect();
            let states: Vec<u32> = states.into_iter().map(f32::to_bits).collect();
            let given = Given::new(case, 1.0);
            let mut problem = gradients::Problem::new(case, &inputs, &given, &stream);
            problem.queue(&device.ssd, &stream).unwrap();
            let gradients = problem.fetch(&stream).into_iter();
            let bits = |(_, gradient, _): (_, Vec<f64>, _)| gradient.into_iter().map(f64::to_bits);
            let gradients: Vec<u64> = gradients.flat_map(bits).collect();
            (out, states, gradients)
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
    let ssd = Ssd::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let inputs = SEGMENTED.inputs::<f16>();
    let mut problem = Problem::new(SEGMENTED, &inputs, &stream);
    problem.reserve(&ssd).unwrap();
    let given = Given::new(SEGMENTED, 1.0);
    let mut backward = gradients::Problem::new(SEGMENTED, &inputs, &given, &stream);
    backward.reserve(&ssd).unwrap();
    stream.synchronize().unwrap();

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    problem.queue(&ssd, &stream).unwrap();
    backward.queue(&ssd, &stream).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream
        .end_capture(flags)
        .unwrap()
        .expect("the call queued nothing");
    let (out, _) = problem.fetch(&stream);
    let unset = out.iter().all(|x| x.is_nan());
    assert!(unset, "the kernels ran while they were captured");
    for (name, gradient, _) in backward.fetch(&stream) {
        let unset = gradient.iter().all(|x| x.is_nan());
        assert!(unset, "{name} was written while it was captured");
    }

    graph.launch().unwrap();
    let (out, states) = problem.fetch(&stream);
    let out: Vec<f64> = out.into_iter().map(Into::into).collect();
    let states: Vec<f64> = states.into_iter().map(Into::into).collect();
    compare("captured", SEGMENTED, &inputs, &out, &states);
    let expected = gradients::expected(SEGMENTED, &inputs, &given);
    gradients::compare::<f16>("captured", &backward.fetch(&stream), &expected);
}
