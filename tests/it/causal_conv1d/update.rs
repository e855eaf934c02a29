//! One step: sizes, layouts, options, and states found by an index.

use half::{bf16, f16};
use seqmix::causal_conv1d::{Activation, Config, Update};
use seqmix::reference::causal_conv1d::{self as reference, Step};

use super::{GUARD, widen, within};
use crate::naive::{Number, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one step.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    dim: usize,
    width: usize,
    /// The order of the state's axes in memory, outermost first.
    order: [usize; 3],
    /// The entries of each row, of `entries` that there are.
    indices: Option<&'static [i32]>,
    entries: usize,
    silu: bool,
    bias: bool,
}

impl Case {
    fn of(batch: usize, dim: usize) -> Self {
        Self {
            batch,
            dim,
            width: 4,
            order: [0, 1, 2],
            indices: None,
            entries: batch,
            silu: true,
            bias: true,
        }
    }
}

fn check<T: Number, W: Number>(case: Case) {
    let device = device();
    let stream = device.stream();
    let Case {
        batch,
        dim,
        width,
        order,
        indices,
        entries,
        silu,
        bias: with_bias,
    } = case;
    let name = format!("{:?} by {:?} {case:?}", T::DTYPE, W::DTYPE);
    let state_elements = entries * dim * (width - 1);
    let (x, states) = (
        normal::<T>(1, batch * dim, 1.0),
        normal::<T>(2, state_elements, 1.0),
    );
    let (weight, bias) = (normal::<W>(3, dim * width, 0.5), normal::<W>(4, dim, 0.5));
    let (nan, guard) = (T::narrow(f64::NAN), T::narrow(GUARD));

    let shape = [entries, dim, width - 1];
    let mut conv_state = Placed::input(&stream, Place::in_order(shape, order), &states, guard);
    // rows of x and out have other elements between them
    let place = Place::packed([batch, dim], 1, 1, 3);
    let on_device = Placed::input(&stream, place, &x, nan);
    let mut out = Placed::output(&stream, place, T::narrow(7.0), guard);
    let vector = Place::contiguous([dim]);
    let on_device_weight = Placed::input(
        &stream,
        Place::contiguous([dim, width]),
        &weight,
        W::narrow(f64::NAN),
    );
    let on_device_bias = Placed::input(&stream, vector, &bias, W::narrow(f64::NAN));
    let on_device_indices = indices
        .map(|indices| Placed::input(&stream, Place::contiguous([batch]), indices, i32::MAX));
    let tensors = Update {
        x: on_device.view(),
        conv_state: conv_state.view_mut(),
        weight: on_device_weight.view(),
        bias: with_bias.then(|| on_device_bias.view()),
        conv_state_indices: on_device_indices.as_ref().map(Placed::view),
        out: out.view_mut(),
    };
    let config = Config {
        activation: if silu {
            Activation::Silu
        } else {
            Activation::None
        },
    };
    let queued = device.causal_conv1d.update(&stream, config, tensors);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let out = widen(&out.fetch(&stream, "out"));
    let found_states = widen(&conv_state.fetch(&stream, "conv_state"));

    // The rows that are no padding, each with its entry.
    let entry = |row: usize| indices.map_or(row as i32, |indices| indices[row]);
    let rows: Vec<usize> = (0..batch)
        .filter(|&row| (0..entries as i32).contains(&entry(row)))
        .collect();
    let each = |all: &[T], of: &dyn Fn(usize) -> usize, elements: usize| -> Vec<f64> {
        let rows = rows.iter().map(|&row| of(row) * elements);
        rows.flat_map(|at| widen(&all[at..at + elements])).collect()
    };
    let state = dim * (width - 1);
    let at = |row: usize| entry(row) as usize;
    let wide_bias = widen(&bias);
    let step = Step {
        batch: rows.len(),
        dim,
        width,
        x: &each(&x, &|row| row, dim),
        conv_state: &each(&states, &at, state),
        weight: &widen(&weight),
        bias: with_bias.then_some(&wide_bias),
        activation: if silu {
            reference::Activation::Silu
        } else {
            reference::Activation::None
        },
    };
    let [expected, naive] = [step.run().unwrap(), step.run_rounded(T::round).unwrap()];
    let mut expected_out = vec![7.0; batch * dim];
    let mut expected_states = widen(&states);
    for (i, &row) in rows.iter().enumerate() {
        expected_out[row * dim..][..dim].copy_from_slice(&expected.out[i * dim..][..dim]);
        let moved = &expected.final_states[i * state..][..state];
        expected_states[at(row) * state..][..state].copy_from_slice(moved);
    }
    let bound = within::<T>(&expected.out, &naive.out);
    assert_close(&name, &out, &expected_out, 1, bound);
    assert_eq!(found_states, expected_states, "{name}: conv_state");
}

fn check_all(case: Case) {
    check::<f16, f16>(case);
    check::<bf16, bf16>(case);
    check::<bf16, f32>(case);
    check::<f32, f32>(case);
}

#[test]
fn any_size() {
    for dim in [1, 2, 31, 255, 256, 257, 600] {
        check_all(Case::of(3, dim));
    }
    for batch in [1, 2, 40] {
        check_all(Case::of(batch, 100));
    }
}

#[test]
fn every_width_in_every_layout() {
    for width in 2..=8 {
        for order in [[0, 1, 2], [0, 2, 1], [2, 0, 1], [1, 2, 0]] {
            check_all(Case {
                width,
                order,
                ..Case::of(3, 300)
            });
        }
    }
}

#[test]
fn every_option() {
    for (silu, bias) in [(false, false), (false, true), (true, false)] {
        check_all(Case {
            silu,
            bias,
            ..Case::of(2, 70)
        });
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
        check_all(Case {
            indices: Some(indices),
            entries: 6,
            ..Case::of(3, 70)
        });
    }
}

#[test]
fn empty_problems() {
    check_all(Case::of(0, 8));
    check_all(Case::of(2, 0));
    check_all(Case {
        indices: Some(&[0, 1]),
        entries: 0,
        ..Case::of(2, 8)
    });
}
