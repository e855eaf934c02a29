//! The scan against other ways to write it.

use std::ops::Range;

use num_complex::Complex64;

use super::{Draw, Inputs, SIZES, Sizes, assert_near};
use crate::reference::selective_scan::{Coefficient, Direction, Forward, Output, Step};

fn assert_same<S: Draw>(found: &Output<S>, expected: &Output<S>) {
    assert_near(&found.out, &expected.out);
    assert_near(
        &S::parts(&found.last_state),
        &S::parts(&expected.last_state),
    );
}

/// The steps of `range` of a tensor whose last axis is time.
fn part<S: Copy>(tensor: &[S], range: &Range<usize>) -> Vec<S> {
    let rows = tensor.chunks(SIZES.seqlen);
    rows.flat_map(|row| row[range.clone()].to_vec()).collect()
}

/// A tensor whose last axis is time, backwards in time.
fn flip<S: Copy>(tensor: &[S]) -> Vec<S> {
    let rows = tensor.chunks(SIZES.seqlen);
    rows.flat_map(|row| row.iter().rev().copied()).collect()
}

/// Puts the steps of `range` into a tensor whose last axis is time.
fn insert(tensor: &mut [f64], range: &Range<usize>, part: &[f64]) {
    let rows = tensor.chunks_mut(SIZES.seqlen);
    for (row, part) in rows.zip(part.chunks(range.len().max(1))) {
        row[range.clone()].copy_from_slice(part);
    }
}

/// Every output as a weighted sum of the inputs before it, with the state nowhere to be seen.
#[test]
fn the_recurrence_is_a_sum_over_earlier_steps() {
    let inputs = Inputs::<f64>::new(SIZES);
    let problem = Forward {
        d: None,
        z: None,
        delta_bias: None,
        initial_state: None,
        ..inputs.problem(SIZES)
    };
    let Sizes {
        batch,
        dim,
        seqlen,
        dstate,
        groups,
        ..
    } = SIZES;
    let mut expected = Vec::new();
    for b in 0..batch {
        for d in 0..dim {
            let at = |t: usize| (b * dim + d) * seqlen + t;
            let size = |t: usize| (1.0 + inputs.delta[at(t)].exp()).ln();
            for t in 0..seqlen {
                let mut y = 0.0;
                for s in 0..=t {
                    let passed: f64 = (s + 1..=t).map(size).sum();
                    for n in 0..dstate {
                        let row = ((b * groups + d / 2) * dstate + n) * seqlen;
                        let decay = (inputs.a[d * dstate + n] * passed).exp();
                        let input = size(s) * inputs.u[at(s)];
                        y += inputs.c[row + t] * decay * inputs.b[row + s] * input;
                    }
                }
                expected.push(y);
            }
        }
    }
    assert_near(&problem.run().unwrap().out, &expected);
}

/// `x' = A x` with `A = -a + i w` decays and turns: twice its real part is `2 exp(-a t) cos(w t)`.
#[test]
fn a_complex_state_stands_for_a_conjugate_pair() {
    let (a, w, delta) = (0.3, 1.1, 0.5);
    let one = [Complex64::new(1.0, 0.0)];
    let problem = Forward {
        batch: 1,
        dim: 1,
        seqlen: 4,
        dstate: 1,
        u: &[1.0, 0.0, 0.0, 0.0],
        delta: &[delta; 4],
        a: &[Complex64::new(-a, w)],
        b: Coefficient::Constant(&one),
        c: Coefficient::Constant(&one),
        ..Forward::default()
    };
    let times = [0.0, delta, 2.0 * delta, 3.0 * delta];
    let expected = times.map(|t| 2.0 * delta * (-a * t).exp() * (w * t).cos());
    assert_near(&problem.run().unwrap().out, &expected);
}

/// Complex numbers without imaginary parts count each state twice.
#[test]
fn real_numbers_are_complex_ones_without_imaginary_parts() {
    for constant in [false, true] {
        let sizes = Sizes { constant, ..SIZES };
        let real = Inputs::<f64>::new(sizes);
        let complex = |values: &[f64], factor: f64| {
            let values = values.iter().map(|x| Complex64::new(factor * x, 0.0));
            values.collect::<Vec<_>>()
        };
        let expected = real.problem(sizes).run().unwrap();
        let inputs = Inputs {
            a: complex(&real.a, 1.0),
            b: complex(&real.b, 1.0),
            c: complex(&real.c, 0.5),
            initial_state: complex(&real.initial_state, 1.0),
            u: real.u,
            delta: real.delta,
            d: real.d,
            z: real.z,
            delta_bias: real.delta_bias,
        };
        let found = inputs.problem(sizes).run().unwrap();
        assert_near(&found.out, &expected.out);
        let last = complex(&expected.last_state, 1.0);
        assert_near(&Draw::parts(&found.last_state), &Draw::parts(&last));
    }
}

#[test]
fn the_gate_the_skip_and_the_bias_are_what_they_say() {
    let problem = Forward {
        batch: 1,
        dim: 1,
        seqlen: 1,
        dstate: 1,
        groups: 1,
        u: &[3.0],
        delta: &[0.25],
        a: &[0.0],
        b: Coefficient::Variable(&[2.0]),
        c: Coefficient::Variable(&[10.0]),
        d: Some(&[100.0]),
        delta_bias: Some(&[0.75]),
        ..Forward::default()
    };
    assert_eq!(problem.run().unwrap().out, [360.0]);
    let gated = Forward {
        z: Some(&[2.0]),
        ..problem
    };
    let silu = 2.0 / (1.0 + (-2.0_f64).exp());
    assert_near(&gated.run().unwrap().out, &[360.0 * silu]);
    let softplus = Forward {
        delta_softplus: true,
        ..problem
    };
    let size = (1.0 + 1.0_f64.exp()).ln();
    assert_near(&softplus.run().unwrap().out, &[300.0 + 60.0 * size]);
}

#[test]
fn a_reverse_scan_is_a_scan_of_the_flipped_sequence() {
    let inputs = Inputs::<Complex64>::new(SIZES);
    let found = Forward {
        direction: Direction::Reverse,
        ..inputs.problem(SIZES)
    };
    let found = found.run().unwrap();
    let flipped = Inputs {
        u: flip(&inputs.u),
        delta: flip(&inputs.delta),
        b: flip(&inputs.b),
        c: flip(&inputs.c),
        z: flip(&inputs.z),
        ..inputs
    };
    let expected = flipped.problem(SIZES).run().unwrap();
    assert_near(&flip(&found.out), &expected.out);
    assert_eq!(found.last_state, expected.last_state);
}

/// A whole sequence is its parts with the state passed on, whether these are steps or stretches of steps.
#[test]
fn parts_make_the_whole() {
    let sizes = Sizes {
        batch: 1,
        sequences: 1,
        ..SIZES
    };
    for direction in [Direction::Forward, Direction::Reverse] {
        let inputs = Inputs::<Complex64>::new(sizes);
        let whole = Forward {
            direction,
            ..inputs.problem(sizes)
        };
        let expected = whole.run().unwrap();
        for cut in 0..=sizes.seqlen {
            let mut ranges = [0..cut, cut..sizes.seqlen];
            if direction == Direction::Reverse {
                ranges.reverse();
            }
            let mut state = inputs.initial_state.clone();
            let mut out = vec![0.0; expected.out.len()];
            for range in ranges {
                let inputs = Inputs {
                    u: part(&inputs.u, &range),
                    delta: part(&inputs.delta, &range),
                    a: inputs.a.clone(),
                    b: part(&inputs.b, &range),
                    c: part(&inputs.c, &range),
                    d: inputs.d.clone(),
                    z: part(&inputs.z, &range),
                    delta_bias: inputs.delta_bias.clone(),
                    initial_state: state,
                };
                let sizes = Sizes {
                    seqlen: range.len(),
                    ..sizes
                };
                let result = Forward {
                    direction,
                    ..inputs.problem(sizes)
                };
                let result = result.run().unwrap();
                insert(&mut out, &range, &result.out);
                state = result.last_state;
            }
            assert_eq!(out, expected.out, "{direction:?}, cut at {cut}");
            assert_eq!(state, expected.last_state, "{direction:?}, cut at {cut}");
        }
    }
}

/// What a stretch of steps does to the state before it is one decay, by the sum of its step sizes; what it adds is
/// what it makes of no state at all.
#[test]
fn a_state_passes_through_as_one_decay() {
    let inputs = Inputs::<Complex64>::new(SIZES);
    let whole = inputs.problem(SIZES);
    let alone = Forward {
        initial_state: None,
        ..whole
    };
    let mut expected = alone.run().unwrap().last_state;
    for (at, x) in expected.iter_mut().enumerate() {
        let (row, channel) = (at / SIZES.dstate, at / SIZES.dstate % SIZES.dim);
        let deltas = &inputs.delta[row * SIZES.seqlen..(row + 1) * SIZES.seqlen];
        let sizes = deltas
            .iter()
            .map(|delta| (1.0 + (delta + inputs.delta_bias[channel]).exp()).ln());
        let a = inputs.a[channel * SIZES.dstate + at % SIZES.dstate];
        *x += (a * sizes.sum::<f64>()).exp() * inputs.initial_state[at];
    }
    let found = whole.run().unwrap().last_state;
    assert_near(&Draw::parts(&found), &Draw::parts(&expected));
}

#[test]
fn steps_make_the_whole() {
    for constant in [false, true] {
        let sizes = Sizes { constant, ..SIZES };
        let inputs = Inputs::<f64>::new(sizes);
        let expected = inputs.problem(sizes).run().unwrap();
        let mut state = inputs.initial_state.clone();
        for t in 0..sizes.seqlen {
            let at = |tensor: &[f64]| part(tensor, &(t..t + 1));
            let (b, c) = match constant {
                true => (inputs.b.clone(), inputs.c.clone()),
                false => (at(&inputs.b), at(&inputs.c)),
            };
            let step = Step {
                batch: sizes.batch,
                dim: sizes.dim,
                dstate: sizes.dstate,
                groups: sizes.groups,
                state: &state,
                x: &at(&inputs.u),
                dt: &at(&inputs.delta),
                a: &inputs.a,
                b: sizes.coefficient(&b),
                c: sizes.coefficient(&c),
                d: Some(&inputs.d),
                z: Some(&at(&inputs.z)),
                dt_bias: Some(&inputs.delta_bias),
                dt_softplus: true,
            };
            let step = step.run().unwrap();
            assert_eq!(step.out, at(&expected.out), "step {t}");
            state = step.last_state;
        }
        assert_eq!(state, expected.last_state);
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let sizes = Sizes {
        batch: 1,
        sequences: 3,
        ..SIZES
    };
    let inputs = Inputs::<f64>::new(sizes);
    let cu_seqlens = [0, 2, 2, 5];
    for direction in [Direction::Forward, Direction::Reverse] {
        let packed = Forward {
            cu_seqlens: Some(&cu_seqlens),
            direction,
            ..inputs.problem(sizes)
        };
        let mut expected = Output {
            out: vec![0.0; inputs.u.len()],
            last_state: Vec::new(),
        };
        let states = sizes.dim * sizes.dstate;
        for (i, ends) in cu_seqlens.windows(2).enumerate() {
            let range = ends[0]..ends[1];
            let alone = Forward {
                seqlen: range.len(),
                u: &part(&inputs.u, &range),
                delta: &part(&inputs.delta, &range),
                b: Coefficient::Variable(&part(&inputs.b, &range)),
                c: Coefficient::Variable(&part(&inputs.c, &range)),
                z: Some(&part(&inputs.z, &range)),
                initial_state: Some(&inputs.initial_state[i * states..(i + 1) * states]),
                cu_seqlens: None,
                ..packed
            };
            let alone = alone.run().unwrap();
            insert(&mut expected.out, &range, &alone.out);
            expected.last_state.extend(alone.last_state);
        }
        assert_same(&packed.run().unwrap(), &expected);
    }
}
