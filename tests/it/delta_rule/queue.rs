//! How calls are queued: the same bits every time.

use half::bf16;

use super::gradients::{self, Given};
use super::{CASE, Case, Fades, Problem};
use crate::support::device;

#[test]
fn ten_runs_give_the_same_bits() {
    ten_runs(Case {
        dk: 128,
        dv: 136,
        ..CASE
    });
}

#[test]
fn ten_runs_give_the_same_bits_with_decays_of_channels() {
    ten_runs(Case {
        decay: Fades::PerChannel(-0.1),
        dk: 72,
        shared: [1, 2, 1],
        ..CASE
    });
}

fn ten_runs(case: Case) {
    let device = device();
    let stream = device.stream();
    let inputs = case.inputs::<bf16>();
    let run = || {
        let mut problem = Problem::new(case, &inputs, &stream);
        problem.queue(&device.linear_attention, &stream).unwrap();
        let (out, state) = problem.fetch(&stream);
        let given = Given::new(case);
        let mut problem = gradients::Problem::new(case, &inputs, &given, &stream);
        problem.queue(&device.linear_attention, &stream).unwrap();
        let gradients = problem.fetch(&stream).into_iter();
        let gradients = gradients.flat_map(|(_, gradient, _)| gradient);
        let bits = |x: f64| x.to_bits();
        let all = out.into_iter().chain(state).chain(gradients);
        all.map(bits).collect::<Vec<u64>>()
    };
    let first = run();
    for repeat in 1..10 {
        assert!(run() == first, "run {repeat} differs from the first");
    }
}
