//! What holds of scans beyond single problems: the same result in however many segments or calls, and the same bits
//! every time; finite numbers for extreme inputs; nothing read or written that is not theirs.

use std::ops::Range;

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::problem::Problem;
use super::{Across, Case, Steps, USUAL, Values, Weight};
use crate::naive::Number;
use crate::support::{RacesPass, device};

fn check<T: Number>(case: Case) {
    let stream = device().stream();
    Problem::<T>::new(case, &stream).check_forward(&device().selective_scan);
}

fn check_in_parts<T: Number>(case: Case, parts: &[Range<usize>]) {
    let stream = device().stream();
    Problem::<T>::new(case, &stream).check_in_parts(&device().selective_scan, parts);
}

fn bits<T: Number>(case: Case) -> Vec<u64> {
    let stream = device().stream();
    let problem = Problem::<T>::new(case, &stream);
    let found = problem.run(&device().selective_scan);
    let found = found.unwrap_or_else(|error| panic!("{case:?}: {error}"));
    found.concat().into_iter().map(f64::to_bits).collect()
}

/// Problems that no one chose, whole and in calls of any lengths.
#[test]
fn random_problems() {
    let mut random = StdRng::seed_from_u64(5);
    let mut below = |limit: usize| random.random_range(0..limit);
    for _ in 0..120 {
        let groups = [1, 1, 2, 3][below(4)];
        let dim = groups * (1 + below(80 / groups));
        let dstate = [1 + below(16), 1 + below(70), 1 + below(128)][below(3)];
        let seqlen = [1 + below(40), 1 + below(200)][below(2)];
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
            ..Case::of(1 + below(2), dim, seqlen, dstate)
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
        let mut cuts: Vec<usize> = (0..below(4)).map(|_| below(seqlen + 1)).collect();
        cuts.extend([0, seqlen]);
        cuts.sort_unstable();
        let parts: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
        let parts = in_order(case, parts);
        match below(3) {
            0 => check::<f16>(case),
            1 => check::<bf16>(case),
            _ => check::<f32>(case),
        }
        match below(3) {
            0 => check_in_parts::<f16>(case, &parts),
            1 => check_in_parts::<bf16>(case, &parts),
            _ => check_in_parts::<f32>(case, &parts),
        }
    }
}

/// Parts of a sequence, the first of the scan first.
fn in_order(case: Case, mut parts: Vec<Range<usize>>) -> Vec<Range<usize>> {
    if case.is_reversed() {
        parts.reverse();
    }
    parts
}

/// A call for each step.
#[test]
fn step_by_step() {
    for case in [
        Case::of(2, 20, 9, 16),
        Case::of(1, 20, 9, 16).across().reversed(),
        Case::of(1, 9, 5, 7).complex(),
    ] {
        let steps = (0..case.seqlen).map(|step| step..step + 1).collect();
        let steps: Vec<Range<usize>> = in_order(case, steps);
        check_in_parts::<f16>(case, &steps);
        check_in_parts::<f32>(case, &steps);
    }
}

/// Blocks, tiles and segments, real and complex.
#[test]
fn ten_runs_give_the_same_bits() {
    for case in [
        Case::of(2, 100, 70, 16).segments(3),
        Case::of(1, 40, 40, 64).across(),
        Case::of(1, 20, 40, 16).complex().segments(2),
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

/// Step sizes up to 100, and A down to -1e4: decays of 0, and of nearly 1.
#[test]
fn stiff_problems() {
    let values = Values {
        stiff: true,
        ..USUAL
    };
    for segments in [1, 3] {
        for softplus in [true, false] {
            let mut case = Case {
                values,
                ..Case::of(2, 20, 70, 16)
            };
            case.config.delta_softplus = softplus;
            if !softplus {
                case.delta_bias = None; // step sizes are not negative
            }
            let case = case.segments(segments);
            check::<f16>(case);
            check::<f32>(case.reversed());
            check::<f16>(Case {
                b: None,
                c: None,
                ..case
            });
            // states that turn a hundred times in a step: step sizes in f32 say how often, not how far
            let turning = Problem::<bf16>::new(case.complex(), &device().stream());
            let found = turning.run(&device().selective_scan).unwrap().concat();
            assert!(found.iter().all(|x| x.is_finite()), "{case:?}");
        }
    }
}

/// Inputs of magnitude 1e4 in f16, whose results it can hold.
#[test]
fn large_inputs() {
    let values = Values {
        u: 1e4,
        coefficients: 0.05,
        ..USUAL
    };
    for case in [
        Case::of(2, 20, 70, 16),
        Case::bare(1, 20, 70, 16).segments(2),
    ] {
        check::<f16>(Case { values, ..case });
        check::<f16>(Case {
            values: Values {
                stiff: true,
                coefficients: 0.002,
                ..values
            },
            d: None,
            ..case
        });
        // a gate that is shut, or as large
        check::<bf16>(Case {
            values: Values { z: 1e4, ..values },
            ..case
        });
    }
}

/// As many steps as states must survive, in one walk and in segments.
#[test]
fn long_sequences() {
    let long = Case::of(1, 3, 16_384, 4);
    check::<f16>(long);
    check::<f32>(long.segments(24).reversed());
    check::<f16>(Case {
        values: Values {
            stiff: true,
            ..USUAL
        },
        ..long.segments(5)
    });
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
        let [found, expected] = [some, all].map(|case| {
            let [out, ungated, _] = Problem::<f16>::new(case, &stream).run(op).unwrap();
            [out, ungated].concat()
        });
        for (at, (found, expected)) in found.into_iter().zip(expected).enumerate() {
            match (3..33).contains(&(at % 40)) {
                true => assert_eq!(found, expected, "{some:?}: step {}", at % 40),
                false => assert!(found.is_nan(), "{some:?}: step {}", at % 40),
            }
        }
    }
}

/// Offsets that are no offsets of this tensor are clamped to it: what is read and written stays within.
#[test]
fn wrong_offsets_stay_within() {
    let op = &device().selective_scan;
    let _sequences_overlap = RacesPass::new();
    let stream = device().stream();
    for cu_seqlens in [
        &[-5, 1000] as &[i32],
        &[30, 10, 50],
        &[i32::MIN, i32::MAX, 0, 20],
    ] {
        let case = Case {
            cu_seqlens: Some(cu_seqlens),
            ..Case::of(1, 20, 40, 16)
        };
        for case in [case, case.across().reversed(), case.segments(3)] {
            let found = Problem::<f16>::new(case, &stream).run(op);
            found.unwrap_or_else(|error| panic!("{case:?}: {error}"));
        }
    }
    let [all, clamped] = [&[0, 40], &[-5, 1000]].map(|cu_seqlens| {
        let case = Case {
            cu_seqlens: Some(cu_seqlens),
            ..Case::of(1, 20, 40, 16)
        };
        bits::<f16>(case)
    });
    assert!(all == clamped, "clamped offsets are those of the tensor");
}
