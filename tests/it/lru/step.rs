//! Single steps: sizes, and states found by an index; steps in turn against a whole sequence.

use half::{bf16, f16};
use seqmix::lru::Step;

use super::{Case, GUARD, Host, complex, judge, parts, widen};
use crate::naive::Number;
use crate::support::{Place, Placed, device};

/// Takes the steps of a problem one by one, of rows that have these entries among so many.
fn check_type<T: Number>(case: Case, indices: Option<(&'static [i32], usize)>) {
    let device = device();
    let stream = device.stream();
    let name = format!("{:?} {case:?} {indices:?}", T::DTYPE);
    let Case {
        batch,
        seqlen,
        states,
        ..
    } = case;
    let entries = indices.map_or(batch, |(_, entries)| entries);
    let host = Host::<T>::new(case);
    let before = Host::<T>::new(Case::of(entries, 0, states)).initial;
    let place = Place::contiguous([entries, states, 2]);
    let mut state = Placed::input(&stream, place, &before, GUARD as f32);
    let a = Placed::input(&stream, Place::contiguous([states, 2]), &host.a, f32::NAN);
    let gamma = Placed::input(&stream, Place::contiguous([states]), &host.gamma, f32::NAN);
    let on_device = indices
        .map(|(indices, _)| Placed::input(&stream, Place::contiguous([batch]), indices, i32::MAX));
    let entry = |row: usize| indices.map_or(row as i32, |(indices, _)| indices[row]);
    let own: Vec<usize> = (0..batch)
        .filter(|&row| (0..entries as i32).contains(&entry(row)))
        .collect();
    let at = |row: usize| entry(row) as usize;

    // the reference, of the rows that are no padding
    let number = 2 * states;
    let rows = own
        .iter()
        .map(|&row| &host.x[row * seqlen * number..][..seqlen * number]);
    let x: Vec<T> = rows.flatten().copied().collect();
    let initial = own.iter().map(|&row| &before[at(row) * number..][..number]);
    let initial: Vec<f32> = initial.flatten().copied().collect();
    let reference = Case {
        batch: own.len(),
        ..case
    };
    let reference_host = Host {
        x,
        initial,
        ..Host::<T>::new(case)
    };
    let [expected, naive] = reference_host.forward(reference, T::round);
    assert_eq!(complex(&reference_host.x).len(), expected.states.len());

    let row = Place::packed([batch, states, 2], 1, 1, 3); // with other numbers between rows
    for t in 0..seqlen {
        let rows = (0..batch).map(|row| &host.x[(row * seqlen + t) * number..][..number]);
        let now: Vec<T> = rows.flatten().copied().collect();
        let x = Placed::input(&stream, row, &now, T::narrow(f64::NAN));
        let mut out = Placed::output(&stream, row, T::narrow(7.0), T::narrow(GUARD));
        let tensors = Step {
            x: x.view(),
            a: a.view(),
            gamma: case.gamma.then(|| gamma.view()),
            state: state.view_mut(),
            state_batch_indices: on_device.as_ref().map(Placed::view),
            out: out.view_mut(),
        };
        let queued = device.lru.step(&stream, tensors);
        queued.unwrap_or_else(|error| panic!("{name}: {error}"));
        let step = |all: &[seqmix::num_complex::Complex64]| {
            let mut row_major = vec![7.0; batch * number];
            for (i, &row) in own.iter().enumerate() {
                let numbers = &all[(i * seqlen + t) * states..][..states];
                row_major[row * number..][..number].copy_from_slice(&parts(numbers));
            }
            row_major
        };
        let found = widen(&out.fetch(&stream, "out"));
        judge::<T>(
            &format!("{name}: step {t}"),
            &found,
            &step(&expected.states),
            &step(&naive.states),
        );
    }
    let mut after = widen(&before);
    for (i, &row) in own.iter().enumerate() {
        let numbers = &expected.final_state[i * states..][..states];
        after[at(row) * number..][..number].copy_from_slice(&parts(numbers));
    }
    let found = widen(&state.fetch(&stream, "state"));
    judge::<f32>(&format!("{name}: state"), &found, &after, &after);
}

fn check(case: Case, indices: Option<(&'static [i32], usize)>) {
    check_type::<f16>(case, indices);
    check_type::<bf16>(case, indices);
    check_type::<f32>(case, indices);
}

#[test]
fn any_size() {
    for (batch, states) in [(1, 1), (3, 127), (2, 130), (0, 8), (2, 0)] {
        check(Case::of(batch, 1, states), None);
    }
}

#[test]
fn steps_are_a_sequence() {
    check(Case::of(2, 12, 20), None);
    let case = Case {
        gamma: false,
        ..Case::of(2, 12, 20)
    };
    check(case, None);
}

/// Entries in any order; what names none is padding, and touches neither states nor out.
#[test]
fn states_are_found_by_their_index() {
    for indices in [
        &[4, 0, 2],
        &[1, -1, 5],
        &[6, i32::MAX, 0],
        &[i32::MIN, -1, 3],
    ] {
        check(Case::of(3, 2, 30), Some((indices, 6)));
    }
}
