//! Gradients: those that are not asked for, and ones of decays that thousands of steps lie between.

use half::f16;
use seqmix::Workspace;

use super::{Case, Decays, Host, Problem, check_backward_of};
use crate::support::device;

/// Without the gradient of the initial state, the others have the same bits.
#[test]
fn gradients_that_are_not_asked_for() {
    let device = device();
    let stream = device.stream();
    let case = Case::of(1, 20, 2, 32);
    let mut workspace = Workspace::new(&stream);
    let mut run = |all: bool| {
        let mut problem = Problem::<f16>::new(case, &stream);
        problem.queue_forward(&stream).unwrap();
        let mut tensors = problem.backward();
        if !all {
            tensors.dinitial_state = None;
        }
        let plan = device.rwkv7.backward_plan(&tensors).unwrap();
        workspace.reserve(plan.workspace_bytes()).unwrap();
        device
            .rwkv7
            .backward(&stream, tensors, &mut workspace)
            .unwrap();
        let dinitial = problem.dinitial.fetch(&stream, "dinitial_state");
        assert!(dinitial.iter().all(|x| x.is_nan() != all));
        let Problem {
            dr, dk, dv, da, db, ..
        } = &problem;
        let halves = [dr, dk, dv, da, db].map(|x| x.fetch(&stream, "gradient"));
        (halves, problem.ddecay.fetch(&stream, "ddecay"))
    };
    assert!(run(true) == run(false));
}

/// States that grow where nothing fades, and keys that all look alike: what is left of a decay's gradient is a small
/// part of what it is a difference of.
#[test]
fn gradients_of_decays_do_not_drift() {
    let stream = device().stream();
    let case = Case {
        decays: Decays::All(-1e-3),
        states: false,
        ..Case::of(1, 400, 1, 8)
    };
    let mut host = Host::<f32>::new(case);
    for x in host.v.iter_mut().chain(&mut host.dout).chain(&mut host.k) {
        *x = x.abs();
    }
    check_backward_of(Problem::of(case, host, &stream), &stream);
}
