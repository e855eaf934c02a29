//! What holds of gradients beyond single problems: the same bits every time, whatever else is asked for, in however
//! many segments; finite numbers for extreme inputs; nothing written that is not theirs.

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Across, Case, Problem, Steps, USUAL, Values, Weight, check};
use crate::naive::Number;
use crate::support::device;

fn bits<T: Number>(case: Case) -> Vec<u64> {
    let stream = device().stream();
    let problem = Problem::<T>::new(case, &stream);
    let found = problem.run_backward(&device().selective_scan);
    let found = found.unwrap_or_else(|error| panic!("{case:?}: {error}"));
    let numbers = found.into_iter().flat_map(|(_, _, numbers)| numbers);
    numbers.map(f64::to_bits).collect()
}

/// Problems that no one chose.
#[test]
fn random_problems() {
    let mut random = StdRng::seed_from_u64(4);
    let mut below = |limit: usize| random.random_range(0..limit);
    for _ in 0..60 {
        let groups = [1, 1, 2, 3][below(4)];
        let dim = groups * (1 + below(80 / groups));
        let dstate = [1 + below(16), 1 + below(70), 1 + below(128)][below(3)];
        let lies = [Some(Steps), Some(Steps), Some(Across), None];
        let weights = [None, Some(Weight::F32), Some(Weight::Same)];
        let mut case = Case {
            groups,
            elements: [Steps, Across][below(2)],
            b: lies[below(4)],
            c: lies[below(4)],
            padding: [0, 0, 1, 8][below(4)],
            shift: [0, 0, 0, 3][below(4)],
            d: weights[below(3)],
            delta_bias: weights[below(3)],
            z: below(2) == 0,
            states: below(2) == 0,
            checkpoints: below(2) == 0,
            ..Case::of(1 + below(2), dim, 1 + below(90), dstate)
        };
        if case.b.is_none() && case.c.is_none() {
            case.groups = 1;
        }
        if below(3) == 0 {
            case = case.reversed();
        }
        if below(3) == 0 {
            case = case.complex();
        }
        if below(2) == 0 {
            case = case.segments(1 + below(6));
        }
        match below(3) {
            0 => check::<f16>(case),
            1 => check::<bf16>(case),
            _ => check::<f32>(case),
        }
    }
}

/// Sums cross lanes, warps, blocks, tiles and segments.
#[test]
fn ten_runs_give_the_same_bits() {
    for case in [
        Case::of(2, 100, 70, 16).segments(3),
        Case::of(1, 40, 40, 64).across(),
        Case::of(1, 20, 40, 16).complex(),
    ] {
        let first = bits::<bf16>(case);
        for repeat in 1..10 {
            assert!(
                bits::<bf16>(case) == first,
                "{case:?}: run {repeat} differs"
            );
        }
    }
}

/// Each gradient alone has the same bits as all together, and the others are not written.
#[test]
fn gradients_that_are_not_asked_for() {
    let op = &device().selective_scan;
    for case in [
        Case::of(2, 20, 40, 16).segments(2),
        Case {
            b: None,
            ..Case::of(2, 20, 40, 16)
        },
        Case {
            b: None,
            c: None,
            ..Case::of(2, 20, 40, 16).complex()
        },
    ] {
        let stream = device().stream();
        let problem = Problem::<f16>::new(case, &stream);
        let all = problem.run_backward(op).unwrap();
        for (asked, ..) in &all {
            let some = problem.run_some(op, |name| name == *asked).unwrap();
            for ((name, _, found), (_, _, expected)) in some.into_iter().zip(&all) {
                if name == *asked || name == "du" || name == "ddelta" {
                    assert!(found == *expected, "{case:?}: {asked} alone: {name}");
                } else {
                    let unset = found.iter().all(|x| x.is_nan());
                    assert!(unset, "{case:?}: {asked} alone: {name} is written");
                }
            }
        }
    }
}

/// Steps of no sequence keep what they had, and change nothing.
#[test]
fn steps_of_no_sequence() {
    let op = &device().selective_scan;
    let stream = device().stream();
    let all = Case {
        states: false,
        cu_seqlens: Some(&[0, 3, 20, 33, 40]),
        ..Case::of(1, 20, 40, 16)
    };
    for all in [all, all.across().reversed(), all.segments(3)] {
        let some = Case {
            cu_seqlens: Some(&[3, 20, 33]),
            ..all
        };
        let run = |case| {
            let found = Problem::<f16>::new(case, &stream).run_backward(op);
            let found = found.unwrap_or_else(|error| panic!("{case:?}: {error}"));
            found.into_iter().filter(|&(_, of_steps, _)| of_steps)
        };
        for ((name, _, found), (_, _, expected)) in run(some).zip(run(all)) {
            for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                match (3..33).contains(&(at % 40)) {
                    true => assert_eq!(*found, expected, "{some:?}: {name}, step {}", at % 40),
                    false => assert!(found.is_nan(), "{some:?}: {name}, step {}", at % 40),
                }
            }
        }
    }
}

/// The device's offsets of sequences are clamped to the steps that there are.
#[test]
fn offsets_beyond_the_steps() {
    let of = |cu_seqlens| Case {
        cu_seqlens: Some(cu_seqlens),
        ..Case::of(1, 20, 40, 16)
    };
    let far = bits::<f16>(of(&[i32::MIN, 16, i32::MAX]));
    assert!(far == bits::<f16>(of(&[0, 16, 40])));
}

/// States that the forward pass kept, and those computed again, are the same.
#[test]
fn kept_states_change_no_bit() {
    for case in [
        Case::of(2, 70, 70, 16),
        Case::of(1, 20, 50, 100).across().reversed(),
        Case::of(1, 20, 50, 16).complex(),
    ] {
        let kept = Case {
            checkpoints: true,
            ..case
        };
        assert!(bits::<f16>(case) == bits::<f16>(kept), "{case:?}");
    }
}

/// Decays from 1 to 0 within a step: what is left of a state is no difference of large numbers.
#[test]
fn stiff_problems() {
    let stiff = |case| Case {
        values: Values {
            stiff: true,
            ..USUAL
        },
        ..case
    };
    check::<f16>(stiff(Case::of(1, 20, 100, 16)));
    check::<bf16>(stiff(Case::of(1, 20, 100, 16).across()));
    check::<f32>(stiff(Case::of(1, 20, 100, 16)));
    check::<f32>(stiff(Case::of(1, 20, 100, 16).segments(4).reversed()));
    check::<f32>(stiff(Case::of(1, 20, 100, 128)));
}

/// Gradients are as large as the type can hold.
#[test]
fn large_inputs() {
    let all = Values {
        u: 1e4,
        z: 1e4,
        coefficients: 1e4,
        dout: 1e4,
        ..USUAL
    };
    // in f16 little is left above 1e4
    let inputs = Values {
        u: 1e4,
        coefficients: 0.25,
        dout: 1e-3,
        ..USUAL
    };
    let case = Case::of(1, 20, 60, 16);
    for case in [case, case.across().segments(3), case.complex()] {
        check::<f16>(Case {
            values: inputs,
            states: false,
            ..case
        });
        check::<bf16>(Case {
            values: all,
            ..case
        });
        check::<f32>(Case {
            values: all,
            ..case
        });
    }
}

/// Sums over many steps, in one segment and in several.
#[test]
fn a_long_sequence() {
    check::<bf16>(Case::of(1, 2, 16_384, 16));
    check::<f32>(Case::of(1, 2, 4_000, 16).segments(16));
}
