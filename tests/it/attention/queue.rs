//! How calls are queued: the same bits every time, captured into graphs, on several streams.

use half::f16;
use seqmix::attention::{Attention, Bias, Forward};
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::{CAUSAL, Case, Problem, judge};
use crate::naive::Number;
use crate::support::{Place, Placed, device};

const CASE: Case = Case {
    batch: 2,
    seq_q: 150,
    seq_k: 150,
    heads: 4,
    heads_kv: 2,
    head_dim: 64,
    config: CAUSAL,
    layout: super::Layout::Bshd,
    lse: true,
    deviation: 1.0,
};

/// Bits, so that NaN equals NaN and 0 differs from -0.
fn bits((out, lse): &(Vec<f16>, Vec<f32>)) -> (Vec<u16>, Vec<u32>) {
    (
        out.iter().map(|x| x.to_bits()).collect(),
        lse.iter().map(|x| x.to_bits()).collect(),
    )
}

#[test]
fn ten_runs_give_the_same_bits() {
    let device = device();
    let stream = device.stream();
    let run = || {
        let mut problem = Problem::<f16>::new(CASE, &stream);
        problem.queue(&device.attention, &stream).unwrap();
        bits(&problem.fetch(&stream))
    };
    let first = run();
    for repeat in 1..10 {
        assert!(run() == first, "run {repeat} differs from the first");
    }
}

#[test]
fn a_captured_call_runs_when_its_graph_does() {
    // A context of one's own: event tracking, which capture cannot hold, is switched for all its tensors.
    device();
    let context = seqmix::context(0).unwrap();
    // SAFETY: every tensor of this context is used on the one stream below.
    unsafe { context.disable_event_tracking() };
    let attention = Attention::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let mut problem = Problem::<f16>::new(CASE, &stream);
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
    let (out, _) = problem.fetch(&stream);
    assert!(
        out.iter().all(|x| x.is_nan()),
        "the kernel ran while it was captured"
    );

    graph.launch().unwrap();
    let (out, lse) = problem.fetch(&stream);
    let (expected, naive) = problem.expected();
    judge(
        "captured",
        CASE.head_dim,
        &out,
        Some(&lse),
        &expected,
        &naive,
    );
}

/// The second call reads, on its own stream, what the first one writes; nobody waits on the host.
#[test]
fn streams_wait_for_each_other() {
    let device = device();
    let (first, second) = (device.stream(), device.stream());
    let mut inner = Problem::<f16>::new(CASE, &first);
    inner.queue(&device.attention, &first).unwrap();
    let place = Place::contiguous([CASE.batch, CASE.seq_q, CASE.heads, CASE.head_dim]);
    let mut out = Placed::output(&second, place, f16::NAN, f16::narrow(-123.0));
    let tensors = Forward {
        q: inner.out.view(),
        k: inner.k.view(),
        v: inner.v.view(),
        out: out.view_mut(),
        lse: None,
        bias: Bias::default(),
    };
    device.attention.forward(&second, CAUSAL, tensors).unwrap();
    let found = out.fetch(&second, "out");

    let mut again = Problem::<f16>::new(CASE, &second);
    let (q, _) = inner.fetch(&first);
    again.host[0] = q;
    let (expected, naive) = again.expected();
    judge(
        "second call",
        CASE.head_dim,
        &found,
        None,
        &expected,
        &naive,
    );
}

/// A tensor may be dropped as soon as the call is queued.
#[test]
fn dropped_inputs_stay_valid_until_the_kernel_has_run() {
    let device = device();
    let stream = device.stream();
    let mut problem = Problem::<f16>::new(CASE, &stream);
    let (expected, naive) = problem.expected();
    problem.queue(&device.attention, &stream).unwrap();
    let Problem {
        q, k, v, out, lse, ..
    } = problem;
    drop((q, k, v));
    // Memory that the driver may give to the next allocation.
    let other = Problem::<f16>::new(CASE, &stream);
    let (out, lse) = (out.fetch(&stream, "out"), lse.fetch(&stream, "lse"));
    judge(
        "dropped",
        CASE.head_dim,
        &out,
        Some(&lse),
        &expected,
        &naive,
    );
    drop(other);
}
