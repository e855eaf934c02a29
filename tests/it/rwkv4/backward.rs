//! Gradients: those that are not asked for, and sums over many steps.

use half::f16;
use seqmix::Workspace;

use super::{Case, Host, Problem, check_backward_of};
use crate::support::device;

/// The gradients of decay, bonus and initial state alone have the same bits as all together.
#[test]
fn gradients_that_are_not_asked_for() {
    let device = device();
    let stream = device.stream();
    let case = Case::of(2, 30, 20).cut(2);
    let mut workspace = Workspace::new(&stream);
    let mut all = Problem::<f16>::new(case, &stream);
    all.queue_backward(&stream, &mut workspace).unwrap();
    let fetch = |problem: &Problem<f16>| {
        let [numerator, denominator] = &problem.dinitial;
        [&problem.ddecay, &problem.dbonus]
            .map(|x| x.fetch(&stream, "sums"))
            .into_iter()
            .chain([numerator, denominator].map(|x| x.fetch(&stream, "dinitial")))
            .map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    let expected = fetch(&all);
    for which in 0..8 {
        let asked = [1, 2, 4].map(|bit| which & bit != 0);
        let mut some = Problem::<f16>::new(case, &stream);
        let mut tensors = some.backward();
        if !asked[0] {
            tensors.ddecay = None;
        }
        if !asked[1] {
            tensors.dbonus = None;
        }
        if !asked[2] {
            tensors.dinitial_state = None;
        }
        let op = &device.rwkv4;
        let queued = op.backward(&stream, case.config(), tensors, &mut workspace);
        queued.unwrap();
        let found = fetch(&some);
        let asked = [asked[0], asked[1], asked[2], asked[2]];
        for ((found, expected), asked) in found.iter().zip(&expected).zip(asked) {
            match asked {
                true => assert_eq!(found, expected, "{which:03b}"),
                false => assert!(found.iter().all(|&x| f32::from_bits(x).is_nan())),
            }
        }
        assert_eq!(
            some.dk.fetch(&stream, "dk"),
            all.dk.fetch(&stream, "dk"),
            "{which:03b}"
        );
    }
}

/// Every step adds to the gradients of decay and bonus with the same sign.
#[test]
fn sums_over_many_steps() {
    let stream = device().stream();
    for segments in [1, 16] {
        let case = Case::of(3, 400, 2).cut(segments);
        let mut host = Host::<f32>::new(case);
        for x in host.v.iter_mut().chain(&mut host.dout) {
            *x = x.abs();
        }
        host.decay = vec![-0.01, -0.5];
        check_backward_of(Problem::of(case, host, &stream), &stream);
    }
}
