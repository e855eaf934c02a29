//! A sequence in parts: the states carry all that the next part needs, so parts have the bits of the whole.

use half::{bf16, f16};
use seqmix::Tensor;
use seqmix::causal_conv1d::{Forward, Update};

use super::{ALONG, Case, GUARD, Host, Problem};
use crate::naive::Number;
use crate::support::{Place, Placed, device};

/// Steps `from` to `to` of each channel.
fn steps<T: Copy>(rows: &[T], seqlen: usize, from: usize, to: usize) -> Vec<T> {
    let rows = rows.chunks(seqlen);
    rows.flat_map(|row| &row[from..to]).copied().collect()
}

/// The outputs and final states of a whole problem.
fn whole<T: Number>(case: Case) -> (Host<T, T>, Vec<f64>, Vec<T>) {
    let stream = device().stream();
    let mut problem = Problem::<T, T>::new(case, &stream);
    problem.queue_forward(&stream).unwrap();
    let out = problem.out.fetch(&stream, "out");
    let states = problem.final_states.fetch(&stream, "final_states");
    (problem.host, super::widen(&out), states)
}

fn in_two_parts<T: Number>(case: Case, first: usize) {
    let device = device();
    let stream = device.stream();
    let (host, out, states) = whole::<T>(case);
    let Case {
        batch,
        dim,
        seqlen,
        width,
        ..
    } = case;
    let nan = T::narrow(f64::NAN);
    let weight = Placed::input(&stream, case.weight(), &host.weight, nan);
    let bias = Placed::input(&stream, Place::contiguous([dim]), &host.bias, nan);
    let mut carried = host.initial_states;
    let mut parts = vec![0.0; out.len()];
    for (from, to) in [(0, first), (first, seqlen)] {
        let part = Case {
            seqlen: to - from,
            ..case
        };
        let x = steps(&host.x, seqlen, from, to);
        let x = Placed::input(&stream, part.signal(), &x, nan);
        let initial = Placed::input(&stream, case.state(), &carried, nan);
        let mut out = Placed::output(&stream, part.signal(), nan, T::narrow(1.0));
        let mut last = Placed::output(&stream, case.state(), nan, T::narrow(1.0));
        let tensors = Forward {
            x: x.view(),
            weight: weight.view(),
            bias: Some(bias.view()),
            initial_states: Some(initial.view()),
            cu_seqlens: None,
            out: out.view_mut(),
            final_states: Some(last.view_mut()),
        };
        let op = &device.causal_conv1d;
        op.forward(&stream, case.config(), tensors).unwrap();
        carried = last.fetch(&stream, "final_states");
        let out = super::widen(&out.fetch(&stream, "out"));
        for row in 0..batch * dim {
            let length = to - from;
            parts[row * seqlen + from..row * seqlen + to]
                .copy_from_slice(&out[row * length..(row + 1) * length]);
        }
    }
    let name = format!("{:?} width {width} {case:?} from {first}", T::DTYPE);
    assert_eq!(parts, out, "{name}");
    assert_eq!(carried, states, "{name}: states");
}

#[test]
fn two_parts_have_the_bits_of_the_whole() {
    for along in ALONG {
        for (seqlen, first) in [(150, 75), (150, 1), (150, 2), (150, 149), (150, 0), (9, 4)] {
            for width in [2, 4, 5, 8] {
                let case = Case {
                    batch: 2,
                    width,
                    ..Case::of(40, seqlen, along)
                };
                in_two_parts::<f16>(case, first);
                in_two_parts::<bf16>(case, first);
                in_two_parts::<f32>(case, first);
            }
        }
    }
}

fn step_by_step<T: Number>(case: Case) {
    let device = device();
    let stream = device.stream();
    let (host, out, states) = whole::<T>(case);
    let Case {
        batch, dim, seqlen, ..
    } = case;
    let nan = T::narrow(f64::NAN);
    let weight = Placed::input(&stream, case.weight(), &host.weight, nan);
    let bias = Placed::input(&stream, Place::contiguous([dim]), &host.bias, nan);
    let guard = T::narrow(GUARD);
    let mut conv_state = Placed::input(&stream, case.state(), &host.initial_states, guard);
    let mut found = vec![0.0; out.len()];
    for t in 0..seqlen {
        let x = steps(&host.x, seqlen, t, t + 1);
        let x = Tensor::from_host(&stream, &x, [batch, dim]).unwrap();
        let mut y = Tensor::<T, 2>::zeros(&stream, [batch, dim]).unwrap();
        let tensors = Update {
            x: x.view(),
            conv_state: conv_state.view_mut(),
            weight: weight.view(),
            bias: Some(bias.view()),
            conv_state_indices: None,
            out: y.view_mut(),
        };
        let op = &device.causal_conv1d;
        op.update(&stream, case.config(), tensors).unwrap();
        for (row, y) in y.to_host(&stream).unwrap().into_iter().enumerate() {
            found[row * seqlen + t] = y.into();
        }
    }
    let name = format!("{:?} {case:?}", T::DTYPE);
    assert_eq!(found, out, "{name}");
    let last = conv_state.fetch(&stream, "conv_state");
    assert_eq!(last, states, "{name}: states");
}

#[test]
fn steps_have_the_bits_of_the_whole() {
    for along in ALONG {
        for width in 2..=8 {
            let case = Case {
                batch: 2,
                width,
                turned: width % 2 == 0,
                ..Case::of(300, 10, along)
            };
            step_by_step::<f16>(case);
            step_by_step::<bf16>(case);
            step_by_step::<f32>(case);
        }
    }
}
