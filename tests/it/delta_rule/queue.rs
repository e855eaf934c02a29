//! How calls are queued: the same bits every time.

use half::bf16;

use super::gradients::{self, Given};
use super::{CASE, Case, Problem};
use crate::support::device;

#[test]
fn ten_runs_give_the_same_bits() {
    let device = device();
    let stream = device.stream();
    let case = Case {
        dk: 128,
        dv: 136,
        ..CASE
    };
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
