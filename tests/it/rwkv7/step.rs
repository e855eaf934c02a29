//! Single steps: sizes, layouts, and states found by an index. A step has the bits of a sequence of one.

use half::{bf16, f16};
use seqmix::Tensor;
use seqmix::rwkv7::Step;

use super::{Case, GUARD, Host, Layout, Problem};
use crate::naive::Number;
use crate::support::{Place, Placed, device};

/// Rows, sizes of heads, and the entries of each row, of so many that there are.
#[derive(Clone, Copy, Debug)]
struct Rows {
    batch: usize,
    dk: usize,
    dv: usize,
    indices: Option<(&'static [i32], usize)>,
    layout: Layout,
}

impl Rows {
    fn of(batch: usize, size: usize) -> Self {
        Self {
            batch,
            dk: size,
            dv: size,
            indices: None,
            layout: Layout::Contiguous,
        }
    }
}

const HEADS: usize = 2;

/// What is in `out` and `state` where no step is.
const UNTOUCHED: f64 = 7.0;

fn check<T: Number>(rows: Rows) {
    let device = device();
    let stream = device.stream();
    let Rows {
        batch,
        dk,
        dv,
        indices,
        layout,
    } = rows;
    let name = format!("{:?} {rows:?}", T::DTYPE);
    let case = Case {
        dk,
        dv,
        layout,
        ..Case::of(batch, 1, HEADS, 1)
    };
    let host = Host::<T>::new(case);
    let entries = indices.map_or(batch, |(_, entries)| entries);
    let entry = |row: usize| indices.map_or(row as i32, |(indices, _)| indices[row]);
    let own: Vec<(usize, usize)> = (0..batch)
        .filter(|&row| (0..entries as i32).contains(&entry(row)))
        .map(|row| (row, entry(row) as usize))
        .collect();

    // states of entries: those that a row has are the problem's own
    let size = HEADS * dk * dv;
    let mut before = vec![UNTOUCHED as f32; entries * size];
    for &(row, entry) in &own {
        before[entry * size..][..size].copy_from_slice(&host.initial[row * size..][..size]);
    }
    let place = case.place([entries, HEADS, dk, dv], [2, 1, 0, 3]);
    let mut state = Placed::input(&stream, place, &before, GUARD as f32);
    let mut problem = Problem::<T>::of(case, host, &stream);
    let values = case.place3([batch, HEADS, dv]);
    let untouched = T::narrow(UNTOUCHED);
    let mut out = Placed::output(&stream, values, untouched, T::narrow(GUARD));
    let keys = case.place3([batch, HEADS, dk]);
    let host = &problem.host;
    let row = |place, data: &[T]| Placed::input(&stream, place, data, T::narrow(f64::NAN));
    let [r, k, a, b] = [&host.r, &host.k, &host.a, &host.b].map(|x| row(keys, x));
    let v = row(values, &host.v);
    let decay = Placed::input(&stream, keys, &host.decay, f32::NAN);
    let on_device_indices = indices
        .map(|(indices, _)| Placed::input(&stream, Place::contiguous([batch]), indices, i32::MAX));
    let tensors = Step {
        r: r.view(),
        decay: decay.view(),
        k: k.view(),
        v: v.view(),
        a: a.view(),
        b: b.view(),
        state: state.view_mut(),
        state_batch_indices: on_device_indices.as_ref().map(Placed::view),
        out: out.view_mut(),
    };
    let queued = device.rwkv7.step(&stream, tensors);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));

    problem.queue_forward(&stream).unwrap();
    let whole = problem.out.fetch(&stream, "out");
    let last = problem.last.fetch(&stream, "final_state");
    let mut expected_out = vec![untouched; batch * HEADS * dv];
    for &(row, entry) in &own {
        let at = row * HEADS * dv;
        expected_out[at..][..HEADS * dv].copy_from_slice(&whole[at..][..HEADS * dv]);
        before[entry * size..][..size].copy_from_slice(&last[row * size..][..size]);
    }
    assert!(
        out.fetch(&stream, "out") == expected_out,
        "{name}: out differs"
    );
    assert!(
        state.fetch(&stream, "state") == before,
        "{name}: the state differs"
    );
}

impl Case {
    /// A tensor of one step.
    fn place3(&self, shape: [usize; 3]) -> Place<3> {
        let [batch, heads, channels] = shape;
        let Place {
            strides,
            offset,
            total,
            ..
        } = self.place([batch, 1, heads, channels], [2, 0, 1, 3]);
        let [batch_stride, _, head_stride, channel_stride] = strides;
        Place {
            shape,
            strides: [batch_stride, head_stride, channel_stride],
            offset,
            total,
        }
    }
}

fn check_all(rows: Rows) {
    check::<f16>(rows);
    check::<bf16>(rows);
    check::<f32>(rows);
}

#[test]
fn any_size() {
    for (batch, dk, dv) in [
        (1, 64, 64),
        (3, 32, 32),
        (2, 128, 128),
        (2, 9, 50),
        (0, 8, 8),
    ] {
        for layout in [Layout::Contiguous, Layout::Strided, Layout::Shifted] {
            check_all(Rows {
                dk,
                dv,
                layout,
                ..Rows::of(batch, 1)
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
            indices: Some((indices, 6)),
            ..Rows::of(3, 20)
        });
    }
    check_all(Rows {
        indices: Some((&[0, 1], 0)),
        ..Rows::of(2, 8)
    });
}

/// Step by step, a sequence has the same bits: the state passes through memory unchanged.
#[test]
fn steps_are_a_sequence() {
    let device = device();
    let stream = device.stream();
    let (steps, size) = (20, 32);
    let case = Case {
        states: false,
        ..Case::of(1, steps, HEADS, size)
    };
    let mut whole = Problem::<f32>::new(case, &stream);
    whole.queue_forward(&stream).unwrap();
    let expected = whole.out.fetch(&stream, "out");
    let host = &whole.host;
    let width = HEADS * size;
    let mut state = Tensor::<f32, 4>::zeros(&stream, [1, HEADS, size, size]).unwrap();
    for step in 0..steps {
        let upload = |x: &[f32]| {
            let row = &x[step * width..][..width];
            Tensor::from_host(&stream, row, [1, HEADS, size]).unwrap()
        };
        let [r, k, v, a, b] = [&host.r, &host.k, &host.v, &host.a, &host.b].map(|x| upload(x));
        let decay = upload(&host.decay);
        let mut out = Tensor::<f32, 3>::zeros(&stream, [1, HEADS, size]).unwrap();
        let tensors = Step {
            r: r.view(),
            decay: decay.view(),
            k: k.view(),
            v: v.view(),
            a: a.view(),
            b: b.view(),
            state: state.view_mut(),
            state_batch_indices: None,
            out: out.view_mut(),
        };
        device.rwkv7.step(&stream, tensors).unwrap();
        let found = out.to_host(&stream).unwrap();
        assert!(found == expected[step * width..][..width], "step {step}");
    }
}
