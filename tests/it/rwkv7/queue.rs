//! How calls are queued: the same bits every time, and captured into graphs.

use half::bf16;
use seqmix::Workspace;
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use seqmix::rwkv7::Rwkv7;

use super::{Case, Problem};
use crate::support::device;

#[test]
fn runs_give_the_same_bits() {
    let stream = device().stream();
    let run = || {
        let mut problem = Problem::<bf16>::new(Case::of(1, 20, 2, 64), &stream);
        let mut workspace = Workspace::new(&stream);
        problem.queue_forward(&stream).unwrap();
        problem.queue_backward(&stream, &mut workspace).unwrap();
        let Problem {
            out,
            dr,
            dk,
            dv,
            da,
            db,
            ..
        } = &problem;
        let halves = [out, dr, dk, dv, da, db].map(|x| x.fetch(&stream, "halves"));
        let floats = [&problem.ddecay, &problem.last, &problem.dinitial];
        let floats = floats.map(|x| x.fetch(&stream, "floats"));
        let halves = halves.into_iter().flatten().map(|x| u32::from(x.to_bits()));
        let floats = floats.into_iter().flatten().map(f32::to_bits);
        halves.chain(floats).collect::<Vec<_>>()
    };
    let first = run();
    for repeat in 1..10 {
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
    let op = Rwkv7::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let case = Case::of(1, 20, 2, 32);
    let mut problem = Problem::<bf16>::new(case, &stream);
    let mut workspace = Workspace::new(&stream);
    let plan = op.backward_plan(&problem.backward()).unwrap();
    workspace.reserve(plan.workspace_bytes()).unwrap();
    stream.synchronize().unwrap();

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    op.forward(&stream, case.config(), problem.forward())
        .unwrap();
    op.backward(&stream, problem.backward(), &mut workspace)
        .unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("nothing queued");
    let ddecay = problem.ddecay.fetch(&stream, "ddecay");
    assert!(ddecay.iter().all(|x| x.is_nan()), "it ran when captured");

    graph.launch().unwrap();
    let found = problem.ddecay.fetch(&stream, "ddecay");
    let [expected, _] = problem.host.backward(case, |x| x);
    for (found, expected) in found.into_iter().zip(expected.ddecay) {
        let error = (f64::from(found) - expected).abs();
        assert!(error < 1e-3, "{found}, expected {expected}");
    }
}
