//! Single steps: sizes, layouts, and states found by an index; steps in turn against whole sequences.

use half::{bf16, f16};
use seqmix::reference::rwkv4 as reference;
use seqmix::rwkv4::{StateMut, Step};
use seqmix::{Tensor, Workspace};

use super::{ARITHMETIC, Case, GUARD, Host, Problem, state_mut, widen, within, within_state};
use crate::naive::Number;
use crate::support::{Place, Placed, assert_close, device};

/// Rows, channels and the entries of each row, of so many that there are.
#[derive(Clone, Copy, Debug)]
struct Rows {
    batch: usize,
    dim: usize,
    indices: Option<(&'static [i32], usize)>,
    strided: bool,
}

fn check<T: Number>(rows: Rows) {
    let device = device();
    let stream = device.stream();
    let Rows {
        batch,
        dim,
        indices,
        strided,
    } = rows;
    let name = format!("{:?} {rows:?}", T::DTYPE);
    let entries = indices.map_or(batch, |(_, entries)| entries);
    let case = Case {
        strided,
        ..Case::of(entries.max(batch), 1, dim)
    };
    let host = Host::<T>::new(case);
    let row = Place::packed([batch, dim], 1, 1, 3); // with other elements between rows
    let part = |x: &[T]| x[..batch * dim].to_vec();
    let [k, v] = [&host.k, &host.v].map(|x| part(x));
    let [on_device_k, on_device_v] =
        [&k, &v].map(|x| Placed::input(&stream, row, x, T::narrow(f64::NAN)));
    let mut out = Placed::output(&stream, row, T::narrow(7.0), T::narrow(GUARD));
    let states = host.initial.each_ref().map(|x| x[..entries * dim].to_vec());
    let place = match strided {
        false => Place::contiguous([entries, dim]),
        true => Place::in_order([entries, dim], [1, 0]),
    };
    let mut state = states
        .each_ref()
        .map(|x| Placed::input(&stream, place, x, GUARD as f32));
    let vector = |x: &[f32]| Placed::input(&stream, case.vector(), x, f32::NAN);
    let (decay, bonus) = (vector(&host.decay), vector(&host.bonus));
    let on_device_indices = indices
        .map(|(indices, _)| Placed::input(&stream, Place::contiguous([batch]), indices, i32::MAX));
    let tensors = Step {
        k: on_device_k.view(),
        v: on_device_v.view(),
        decay: decay.view(),
        bonus: bonus.view(),
        state: state_mut(&mut state),
        state_batch_indices: on_device_indices.as_ref().map(Placed::view),
        out: out.view_mut(),
    };
    let queued = device.rwkv4.step(&stream, tensors);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));

    // The rows that are no padding, each with its entry.
    let entry = |row: usize| indices.map_or(row as i32, |(indices, _)| indices[row]);
    let own: Vec<usize> = (0..batch)
        .filter(|&row| (0..entries as i32).contains(&entry(row)))
        .collect();
    let at = |row: usize| entry(row) as usize;
    let each = |all: &[f64], of: &dyn Fn(usize) -> usize| -> Vec<f64> {
        let rows = own.iter().map(|&row| of(row) * dim);
        rows.flat_map(|from| all[from..from + dim].to_vec())
            .collect()
    };
    let wide = states.each_ref().map(|x| widen(x));
    let [numerator, denominator, exponent] = wide.each_ref().map(|x| each(x, &at));
    let forward = reference::Forward {
        batch: own.len(),
        seqlen: 1,
        dim,
        decay: &widen(&host.decay),
        bonus: &widen(&host.bonus),
        k: &each(&widen(&k), &|row| row),
        v: &each(&widen(&v), &|row| row),
        initial_state: Some(reference::State {
            numerator: &numerator,
            denominator: &denominator,
            exponent: &exponent,
        }),
        cu_seqlens: None,
    };
    let expected = forward.run().unwrap();
    let naive = forward.run_rounded(T::round).unwrap();
    let mut expected_out = vec![7.0; batch * dim];
    for (i, &row) in own.iter().enumerate() {
        expected_out[row * dim..][..dim].copy_from_slice(&expected.out[i * dim..][..dim]);
    }
    let found = widen(&out.fetch(&stream, "out"));
    let bound = within::<T>(&expected.out, &naive.out, ARITHMETIC);
    assert_close(&format!("{name}: out"), &found, &expected_out, 1, bound);
    let moved = [expected.numerator, expected.denominator, expected.exponent];
    for ((found, mut all), moved) in state.iter().zip(wide).zip(moved) {
        for (i, &row) in own.iter().enumerate() {
            all[at(row) * dim..][..dim].copy_from_slice(&moved[i * dim..][..dim]);
        }
        let found = widen(&found.fetch(&stream, "state"));
        assert_close(
            &format!("{name}: state"),
            &found,
            &all,
            1,
            within_state(&all),
        );
    }
}

fn check_all(rows: Rows) {
    check::<f16>(rows);
    check::<bf16>(rows);
    check::<f32>(rows);
}

#[test]
fn any_size() {
    for (batch, dim) in [(1, 1), (3, 127), (2, 128), (2, 300), (0, 8), (2, 0)] {
        for strided in [false, true] {
            check_all(Rows {
                batch,
                dim,
                indices: None,
                strided,
            });
        }
    }
}

/// Entries in any order; what names none is padding, and touches neither state nor out.
#[test]
fn states_are_found_by_their_index() {
    for indices in [
        &[4, 0, 2],
        &[1, -1, 5],
        &[6, i32::MAX, 0],
        &[i32::MIN, -1, 3],
    ] {
        check_all(Rows {
            batch: 3,
            dim: 70,
            indices: Some((indices, 6)),
            strided: false,
        });
    }
    check_all(Rows {
        batch: 2,
        dim: 8,
        indices: Some((&[0, 1], 0)),
        strided: false,
    });
}

/// From nothing, step by step: what a whole sequence gives. A first step has the same bits.
#[test]
fn steps_are_a_sequence() {
    let device = device();
    let stream = device.stream();
    let case = Case {
        states: false,
        ..Case::of(2, 30, 40)
    };
    let mut whole = Problem::<f32>::new(case, &stream);
    let mut workspace = Workspace::new(&stream);
    whole.queue_forward(&stream, &mut workspace).unwrap();
    let expected = whole.out.fetch(&stream, "out");
    let zeros = || Tensor::<f32, 2>::zeros(&stream, [2, 40]).unwrap();
    let nothing = vec![f32::NEG_INFINITY; 80];
    let mut exponent = Tensor::from_host(&stream, &nothing, [2, 40]).unwrap();
    let (mut numerator, mut denominator) = (zeros(), zeros());
    for step in 0..30 {
        let row = |x: &[f32]| -> Vec<f32> {
            let rows = (0..2).map(|row| (row * 30 + step) * 40);
            rows.flat_map(|at| x[at..at + 40].to_vec()).collect()
        };
        let upload = |x: &[f32]| Tensor::from_host(&stream, &row(x), [2, 40]).unwrap();
        let (k, v) = (upload(&whole.host.k), upload(&whole.host.v));
        let mut out = zeros();
        let tensors = Step {
            k: k.view(),
            v: v.view(),
            decay: whole.decay.view(),
            bonus: whole.bonus.view(),
            state: StateMut {
                numerator: numerator.view_mut(),
                denominator: denominator.view_mut(),
                exponent: exponent.view_mut(),
            },
            state_batch_indices: None,
            out: out.view_mut(),
        };
        device.rwkv4.step(&stream, tensors).unwrap();
        let (found, expected) = (out.to_host(&stream).unwrap(), row(&expected));
        if step == 0 {
            assert_eq!(found, expected);
        }
        let (found, expected) = (widen(&found), widen(&expected));
        let bound = within::<f32>(&expected, &expected, ARITHMETIC);
        assert_close(&format!("step {step}"), &found, &expected, 1, bound);
    }
}
