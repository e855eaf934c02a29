//! One step on the device, and what it must give.

use std::sync::Arc;

use num_complex::Complex64;
use seqmix::Result;
use seqmix::causal_conv1d::Activation;
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::{causal_conv1d as convolution, selective_scan, ssd};
use seqmix::selective_scan::{SelectiveScan, Step, StepConvolution, Weight};

use super::Case;
use crate::measure::Bound;
use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close};

/// What step sizes, exponentials and states in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 2e-5;

/// Numbers that stay where nothing is to be written.
const GUARD: f64 = -123.0;

/// The tensors of a case, and the same numbers row-major.
pub(super) struct Problem<T> {
    case: Case,
    pub(super) state: Placed<f32, 4>,
    pub(super) x: Placed<T, 3>,
    pub(super) b: Placed<T, 3>,
    pub(super) c: Placed<T, 3>,
    pub(super) dt: Placed<T, 3>,
    pub(super) a: Placed<f32, 3>,
    z: Placed<T, 3>,
    d: (Placed<f32, 2>, Placed<T, 2>),
    dt_bias: (Placed<f32, 2>, Placed<T, 2>),
    indices: Option<Placed<i32, 1>>,
    pub(super) conv_state: Placed<T, 3>,
    cache_seqlens: Placed<i32, 1>,
    pub(super) weight: Placed<T, 2>,
    pub(super) bias: Placed<f32, 1>,
    pub(super) out: Placed<T, 3>,
    host: Host,
}

/// What the tensors hold.
#[derive(Clone)]
struct Host {
    x: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
    dt: Vec<f64>,
    a: Vec<f64>,
    z: Vec<f64>,
    d: Vec<f64>,
    dt_bias: Vec<f64>,
    /// The steps' numbers.
    steps: Vec<i32>,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

/// What a step gives.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) out: Vec<f64>,
    pub(super) state: Vec<f64>,
    pub(super) conv_state: Vec<f64>,
}

fn widen<T: Number>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// Row-major, `shift` elements after an aligned address; the axes of `repeated` have one element that stands for all.
fn place<const N: usize>(shape: [usize; N], repeated: &[usize], shift: usize) -> Place<N> {
    let mut one = shape;
    for &axis in repeated {
        one[axis] = one[axis].min(1);
    }
    let mut place = Place::contiguous(one);
    for &axis in repeated {
        place.strides[axis] = 0;
    }
    Place {
        shape,
        offset: place.offset + shift,
        total: place.total + shift,
        ..place
    }
}

/// Numbers of which the first of each `times` stands for all of them.
fn repeat<T: Copy>(mut numbers: Vec<T>, times: usize) -> Vec<T> {
    for group in numbers.chunks_mut(times.max(1)) {
        let first = group[0];
        group.fill(first);
    }
    numbers
}

impl<T: Number> Problem<T> {
    /// The problem of a case, with its seed.
    pub(super) fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        let (batch, heads, headdim) = (case.batch, case.heads, case.headdim);
        let (dim, floats, shift) = (case.dim(), case.floats(), case.shift);
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(GUARD));
        let rows = [batch, heads, headdim];
        let (shared, times) = match case.per_head {
            true => (headdim, headdim * floats),
            false => (1, 1),
        };
        let axis = |axis: usize| if case.per_head { vec![axis] } else { vec![] };

        let x = normal::<T>(1, batch * dim, 1.0);
        let dt = normal::<T>(2, batch * dim, 1.0).into_iter().map(|x| {
            let x: f64 = x.into();
            // without softplus, step sizes are positive as they come
            T::narrow(if case.config.dt_softplus {
                x - 1.0
            } else {
                0.2 * x.abs()
            })
        });
        let dt = repeat(dt.collect(), shared);
        let a = normal::<f32>(3, dim * floats, 1.0).into_iter().enumerate();
        // decays of all sizes; complex ones that turn up to a few times in a step
        let a = a.map(|(at, x)| match case.is_complex() && at % 2 == 1 {
            true => 4.0 * x,
            false => -x.exp(),
        });
        let a = repeat(a.collect(), times);
        let state = normal::<f32>(4, case.entries * dim * floats, 1.0);
        let z = normal::<T>(5, batch * dim, 1.0);
        let b = normal::<T>(6, batch * case.groups * floats, 1.0);
        let c = normal::<T>(7, batch * case.groups * floats, 1.0);
        let [width, slots] = case.convolution.map_or([4, 4], |(sizes, _)| sizes);
        let first = case.convolution.map_or(0, |(_, first)| first);
        let steps: Vec<i32> = (0..batch as i32)
            .map(|row| first.wrapping_sub(row))
            .collect();
        let conv_state = normal::<T>(8, case.entries * case.conv_dim() * slots, 1.0);
        let weight = normal::<T>(9, case.conv_dim() * width, 0.5);
        let bias = normal::<f32>(10, case.conv_dim(), 0.5);

        let vector = |seed| {
            let numbers = repeat(normal::<T>(seed, dim, 1.0), shared);
            let wide = widen(&numbers);
            let single: Vec<f32> = wide.iter().map(|&x| x as f32).collect();
            let place = place([heads, headdim], &axis(1), 0);
            let placed = (
                Placed::input(stream, place, &single, f32::NAN),
                Placed::input(stream, place, &numbers, nan),
            );
            (placed, wide)
        };
        let (d, host_d) = vector(11);
        let (dt_bias, host_dt_bias) = vector(12);
        let of_groups = place([batch, case.groups, floats], &[], shift);
        let of_rows = place(rows, &[], shift);
        let integers = |x: &[i32]| Placed::input(stream, Place::contiguous([batch]), x, i32::MAX);
        let a_place = match case.per_head {
            true => place([heads, headdim, floats], &[1, 2], 0),
            false => place([heads, headdim, floats], &[], 0),
        };
        let state_place = Place::in_order([case.entries, heads, headdim, floats], case.order);
        Self {
            state: Placed::input(stream, state_place, &state, GUARD as f32),
            x: Placed::input(stream, of_rows, &x, nan),
            b: Placed::input(stream, of_groups, &b, nan),
            c: Placed::input(stream, of_groups, &c, nan),
            dt: Placed::input(stream, place(rows, &axis(2), shift), &dt, nan),
            a: Placed::input(stream, a_place, &a, f32::NAN),
            z: Placed::input(stream, of_rows, &z, nan),
            d,
            dt_bias,
            indices: case.indices.map(integers),
            conv_state: Placed::input(
                stream,
                Place::in_order([case.entries, case.conv_dim(), slots], case.ring_order),
                &conv_state,
                guard,
            ),
            cache_seqlens: integers(&steps),
            weight: Placed::input(
                stream,
                Place::contiguous([case.conv_dim(), width]),
                &weight,
                nan,
            ),
            bias: Placed::input(
                stream,
                Place::contiguous([case.conv_dim()]),
                &bias,
                f32::NAN,
            ),
            out: Placed::output(stream, of_rows, T::narrow(7.0), guard),
            host: Host {
                x: widen(&x),
                b: widen(&b),
                c: widen(&c),
                dt: widen(&dt),
                a: widen(&a),
                z: widen(&z),
                d: host_d,
                dt_bias: host_dt_bias,
                steps,
                weight: widen(&weight),
                bias: widen(&bias),
            },
            case,
        }
    }

    /// Queues the step.
    pub(super) fn queue(&mut self, stream: &Arc<CudaStream>, op: &SelectiveScan) -> Result<()> {
        let case = self.case;
        let tensors = Step {
            state_batch_indices: self.indices.as_ref().map(Placed::view),
            convolution: case.convolution.map(|_| StepConvolution {
                conv_state: self.conv_state.view_mut(),
                cache_seqlens: self.cache_seqlens.view(),
                weight: Weight::Same(self.weight.view()),
                bias: case.bias.then(|| Weight::F32(self.bias.view())),
                activation: case.activation,
            }),
            d: case.d.then(|| of_type(case.same, &self.d)),
            z: case.z.then(|| self.z.view()),
            dt_bias: case.dt_bias.then(|| of_type(case.same, &self.dt_bias)),
            ..Step::new(
                self.state.view_mut(),
                (self.x.view(), self.dt.view()),
                self.a.view(),
                (self.b.view(), self.c.view()),
                self.out.view_mut(),
            )
        };
        op.step(stream, case.config, tensors)
    }

    pub(super) fn fetch(&self, stream: &Arc<CudaStream>) -> Found {
        Found {
            out: widen(&self.out.fetch(stream, "out")),
            state: widen(&self.state.fetch(stream, "state")),
            conv_state: widen(&self.conv_state.fetch(stream, "conv_state")),
        }
    }

    /// What the step must give, computed by rows; what it must leave alone is as in `before`. `round` is applied as a
    /// naive implementation rounds.
    fn expected(&self, before: &Found, round: fn(f64) -> f64) -> Found {
        let (case, host) = (self.case, &self.host);
        let mut result = before.clone();
        for row in 0..case.batch {
            let Some(entry) = case.entry(row) else {
                continue;
            };
            let dim = case.dim();
            let mut of_row = Row {
                x: part(&host.x, row, dim).to_vec(),
                b: part(&host.b, row, case.groups * case.floats()).to_vec(),
                c: part(&host.c, row, case.groups * case.floats()).to_vec(),
            };
            if case.convolution.is_some() {
                let ring = case.conv_dim() * case.slots();
                let ring = &mut result.conv_state[entry * ring..][..ring];
                of_row = self.convolved(of_row, ring, host.steps[row]);
            }
            let states = dim * case.floats();
            let state = &mut result.state[entry * states..][..states];
            let out = self.step(row, &of_row, state, round);
            result.out[row * dim..][..dim].copy_from_slice(&out);
        }
        result
    }

    /// The convolution of a row's inputs, which the ring takes.
    fn convolved(&self, inputs: Row, ring: &mut [f64], step: i32) -> Row {
        let (case, host) = (self.case, &self.host);
        let (slots, width) = (case.slots(), case.width());
        let x: Vec<f64> = [inputs.x, inputs.b, inputs.c].concat();
        let slot = |lag: i64| (i64::from(step) - lag).rem_euclid(slots as i64) as usize;
        let mut conv_state = Vec::new();
        for (channel, &x) in x.iter().enumerate() {
            let ring = &mut ring[channel * slots..][..slots];
            conv_state.extend((1..width as i64).rev().map(|lag| ring[slot(lag)]));
            ring[slot(0)] = x;
        }
        let step = convolution::Step {
            batch: 1,
            dim: x.len(),
            width,
            x: &x,
            conv_state: &conv_state,
            weight: &host.weight,
            bias: case.bias.then_some(&host.bias),
            activation: match case.activation {
                Activation::None => convolution::Activation::None,
                Activation::Silu => convolution::Activation::Silu,
            },
        };
        let out: Vec<f64> = step.run().unwrap().out.into_iter().map(T::round).collect();
        let (x, rest) = out.split_at(case.dim());
        let (b, c) = rest.split_at(rest.len() / 2);
        Row {
            x: x.to_vec(),
            b: b.to_vec(),
            c: c.to_vec(),
        }
    }

    /// The output of a row, and its state moved on.
    fn step(&self, row: usize, inputs: &Row, state: &mut [f64], round: fn(f64) -> f64) -> Vec<f64> {
        let (case, host) = (self.case, &self.host);
        let (dim, floats) = (case.dim(), case.floats());
        let (dt, z) = (part(&host.dt, row, dim), part(&host.z, row, dim));
        if case.per_head {
            let first = |x: &[f64], times: usize| -> Vec<f64> {
                x.iter().step_by(times).copied().collect()
            };
            let dt_bias = first(&host.dt_bias, case.headdim);
            let step = ssd::Step {
                batch: 1,
                nheads: case.heads,
                headdim: case.headdim,
                groups: case.groups,
                dstate: case.dstate,
                state,
                x: &inputs.x,
                dt: &first(dt, case.headdim),
                a: &first(&host.a, case.headdim * floats),
                b: &inputs.b,
                c: &inputs.c,
                d: case.d.then_some(ssd::Skip::PerChannel(&host.d)),
                z: case.z.then_some(z),
                dt_bias: case.dt_bias.then_some(&dt_bias),
                dt_softplus: case.config.dt_softplus,
                dt_limit: (
                    f64::from(case.config.dt_limit.0),
                    f64::from(case.config.dt_limit.1),
                ),
            };
            let moved = step.run_rounded(round).unwrap();
            state.copy_from_slice(&moved.final_states);
            return moved.out;
        }
        if case.is_complex() {
            let numbers = |x: &[f64]| -> Vec<Complex64> {
                x.chunks(2).map(|x| Complex64::new(x[0], x[1])).collect()
            };
            let [state_numbers, a, b, c] = [&*state, &host.a, &inputs.b, &inputs.c].map(numbers);
            let step = self.mamba(dt, z, inputs, [&state_numbers, &a, &b, &c]);
            let moved = step.run_rounded(round).unwrap();
            let floats = moved.last_state.iter().flat_map(|x| [x.re, x.im]);
            state.iter_mut().zip(floats).for_each(|(to, x)| *to = x);
            return moved.out;
        }
        let given = state.to_vec();
        let step = self.mamba(dt, z, inputs, [&given, &host.a, &inputs.b, &inputs.c]);
        let moved = step.run_rounded(round).unwrap();
        state.copy_from_slice(&moved.last_state);
        moved.out
    }

    /// The step of Mamba-1 on a row, of these states, A, B and C.
    fn mamba<'a, S>(
        &'a self,
        dt: &'a [f64],
        z: &'a [f64],
        inputs: &'a Row,
        [state, a, b, c]: [&'a [S]; 4],
    ) -> selective_scan::Step<'a, S> {
        let (case, host) = (self.case, &self.host);
        selective_scan::Step {
            batch: 1,
            dim: case.dim(),
            dstate: case.dstate,
            groups: case.groups,
            state,
            x: &inputs.x,
            dt,
            a,
            b: selective_scan::Coefficient::Variable(b),
            c: selective_scan::Coefficient::Variable(c),
            d: case.d.then_some(&host.d),
            z: case.z.then_some(z),
            dt_bias: case.dt_bias.then_some(&host.dt_bias),
            dt_softplus: case.config.dt_softplus,
        }
    }
}

/// What a row of the batch takes in.
struct Row {
    x: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
}

fn part(x: &[f64], row: usize, count: usize) -> &[f64] {
    &x[row * count..][..count]
}

fn of_type<'a, T: Number>(
    same: bool,
    (single, numbers): &'a (Placed<f32, 2>, Placed<T, 2>),
) -> Weight<'a, T, 2> {
    match same {
        true => Weight::Same(numbers.view()),
        false => Weight::F32(single.view()),
    }
}

/// Steps and compares.
pub(super) fn check<T: Number>(case: Case) {
    let device = crate::support::device();
    let stream = device.stream();
    let name = format!("{:?} {case:?}", T::DTYPE);
    let mut problem = Problem::<T>::new(case, &stream);
    let before = problem.fetch(&stream);
    let queued = problem.queue(&stream, &device.selective_scan);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let found = problem.fetch(&stream);
    let expected = problem.expected(&before, |x| x);
    let naive = problem.expected(&before, T::round);
    let judge = |tensor: &str, found: &[f64], expected: &[f64], bound: Bound| {
        assert_close(&format!("{name}: {tensor}"), found, expected, 1, bound);
    };
    let lost = bound::<T>(&expected.out, &naive.out, 1).unwrap();
    judge("out", &found.out, &expected.out, plus(lost, &expected.out));
    // of f32 as it is: nothing is rounded to T on the way, but for what the convolution gives
    let lost = bound::<f32>(&expected.state, &expected.state, 1).unwrap();
    let unit = if case.convolution.is_some() {
        T::UNIT
    } else {
        0.0
    };
    let mut lost = plus(lost, &expected.state);
    lost.max_abs += 4.0 * unit * largest(&expected.state);
    lost.rel_l2 = lost.rel_l2.map(|x| x + unit);
    judge("state", &found.state, &expected.state, lost);
    assert_eq!(found.conv_state, expected.conv_state, "{name}: conv_state");
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()))
}

/// A bound of the largest difference, with what arithmetic in f32 loses.
fn plus(bound: Bound, expected: &[f64]) -> Bound {
    Bound {
        max_abs: bound.max_abs + ARITHMETIC * largest(expected),
        rel_l2: bound.rel_l2.map(|x| x + ARITHMETIC),
        row_rel_l2: None,
    }
}

/// Large step sizes, steep decays and large inputs: everything stays finite, and as the reference says.
pub(super) fn check_extremes<T: Number>() {
    let device = crate::support::device();
    let stream = device.stream();
    let case = Case {
        z: false,
        dt_bias: false,
        ..Case::mamba(2, 40, 16)
    };
    let mut problem = Problem::<T>::new(case, &stream);
    let host = &mut problem.host;
    // of every order, to the largest
    let spread = |largest: f64, sign: f64| {
        move |(i, x): (usize, &mut f64)| *x = sign * largest * 10.0_f64.powi(-(i as i32 % 7))
    };
    host.dt.iter_mut().enumerate().for_each(spread(100.0, 1.0));
    host.a.iter_mut().enumerate().for_each(spread(1e4, -1.0));
    host.x.iter_mut().for_each(|x| *x = 1e4 * x.signum());
    for (x, limit) in [(&mut host.b, 1e-3), (&mut host.c, 1e-3)] {
        x.iter_mut().for_each(|x| *x *= limit);
    }
    let narrow = |x: &mut Vec<f64>| x.iter_mut().for_each(|x| *x = T::round(*x));
    for x in [&mut host.dt, &mut host.x, &mut host.b, &mut host.c] {
        narrow(x);
    }
    host.a.iter_mut().for_each(|x| *x = f64::from(*x as f32));
    let host = host.clone();
    let numbers = |x: &[f64]| x.iter().map(|&x| T::narrow(x)).collect::<Vec<_>>();
    let nan = T::narrow(f64::NAN);
    let rows = [case.batch, case.heads, case.headdim];
    let groups = [case.batch, case.groups, case.floats()];
    let input =
        |shape, x: &[f64]| Placed::input(&stream, Place::contiguous(shape), &numbers(x), nan);
    problem.dt = input(rows, &host.dt);
    problem.x = input(rows, &host.x);
    problem.b = input(groups, &host.b);
    problem.c = input(groups, &host.c);
    let a: Vec<f32> = host.a.iter().map(|&x| x as f32).collect();
    let place = Place::contiguous([case.heads, case.headdim, case.floats()]);
    problem.a = Placed::input(&stream, place, &a, f32::NAN);

    let before = problem.fetch(&stream);
    problem.queue(&stream, &device.selective_scan).unwrap();
    let found = problem.fetch(&stream);
    let expected = problem.expected(&before, |x| x);
    let name = format!("{:?}", T::DTYPE);
    let bound = |expected: &[f64], unit: f64| Bound {
        max_abs: (unit + ARITHMETIC) * largest(expected),
        rel_l2: None,
        row_rel_l2: None,
    };
    let limit = bound(&expected.out, T::UNIT);
    assert_close(&format!("{name}: out"), &found.out, &expected.out, 1, limit);
    let limit = bound(&expected.state, 0.0);
    assert_close(
        &format!("{name}: state"),
        &found.state,
        &expected.state,
        1,
        limit,
    );
}
