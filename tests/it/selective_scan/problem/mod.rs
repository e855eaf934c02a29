//! One problem on the device: seeded inputs surrounded by NaN, outputs surrounded by a number that must stay.

mod gradients;

use std::ops::Range;
use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::selective_scan::{Coefficient, Forward, Inputs, SelectiveScan, Weight as WeightRef};
use seqmix::{Float, Result, Workspace};

use super::expected::{self, Pair};
use super::{Case, Lie, Steps, Values, Weight};
use crate::measure::Bound;
use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close};

/// What states, step sizes and exponentials in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 2e-5;

/// Numbers that stay where nothing is to be written.
const GUARD: f64 = -123.0;

/// A problem's tensors. `T` is the type of u.
pub(super) struct Problem<T> {
    case: Case,
    inputs: expected::Inputs,
    u: Placed<T, 3>,
    delta: Placed<T, 3>,
    z: Option<Placed<T, 3>>,
    a: Placed<f32, 2>,
    b: Coefficients<T>,
    c: Coefficients<T>,
    d: Option<Weights<T>>,
    delta_bias: Option<Weights<T>>,
    initial_state: Option<Placed<f32, 3>>,
    cu_seqlens: Option<Placed<i32, 1>>,
    dout: Placed<T, 3>,
    dlast_state: Option<Placed<f32, 3>>,
    stream: Arc<CudaStream>,
}

/// What a scan writes.
pub(super) struct Outputs<T> {
    out: Placed<T, 3>,
    ungated: Placed<T, 3>,
    last_state: Placed<f32, 3>,
}

/// B, C or their gradients.
enum Coefficients<T> {
    Variable(Placed<T, 4>),
    Constant(Placed<f32, 2>),
}

/// D or delta_bias.
enum Weights<T> {
    F32(Placed<f32, 1>),
    Same(Placed<T, 1>),
}

/// Row-major with the axes in this order, rows that are `padding` longer, `shift` elements after an aligned address.
fn place<const N: usize>(case: &Case, shape: [usize; N], order: [usize; N]) -> Place<N> {
    let mut strides = [0; N];
    let mut elements = 1;
    for (depth, &axis) in order.iter().rev().enumerate() {
        strides[axis] = elements;
        elements *= shape[axis] + if depth == 0 { case.padding } else { 0 };
    }
    let flat = Place::contiguous([elements]);
    Place {
        shape,
        strides,
        offset: flat.offset + case.shift,
        total: flat.total + case.shift,
    }
}

/// Where u and what is like it lies.
fn elements(case: &Case) -> Place<3> {
    let order = match case.elements {
        Steps => [0, 1, 2],
        Lie::Across => [0, 2, 1],
    };
    place(case, [case.batch, case.dim, case.seqlen], order)
}

fn variable(case: &Case, lie: Lie) -> Place<4> {
    let order = match lie {
        Steps => [0, 1, 2, 3],
        Lie::Across => [0, 3, 1, 2],
    };
    let shape = [case.batch, case.groups, case.floats(), case.seqlen];
    place(case, shape, order)
}

fn widen<T: Number>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

impl<T: Number> Problem<T> {
    /// The problem of a case, with its seed.
    pub(super) fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        let Case {
            batch, dim, seqlen, ..
        } = case;
        let (floats, all) = (case.floats(), batch * dim * seqlen);
        // what belongs to no sequence is NaN
        let held = |step: usize| {
            let ends = case
                .cu_seqlens
                .and_then(|cu| Some((*cu.first()?, *cu.last()?)));
            ends.is_none_or(|(first, last)| (first..last).contains(&(step as i32)))
        };
        let scaled = |seed, count, scale| -> Vec<T> {
            let numbers = normal::<T>(seed, count, scale).into_iter().enumerate();
            let numbers = numbers.map(|(at, x)| match held(at % seqlen.max(1)) {
                true => x,
                false => T::narrow(f64::NAN),
            });
            numbers.collect()
        };
        let numbers = |seed, count| scaled(seed, count, 1.0);
        let singles = |seed, count| normal::<f32>(seed, count, 1.0);
        let map = |x: Vec<T>, f: fn(f64) -> f64| -> Vec<T> {
            x.into_iter().map(|x| T::narrow(f(x.into()))).collect()
        };
        // without softplus, step sizes are positive as they come
        let delta = if case.values.stiff {
            map(numbers(2, all), |x| (50.0 * x.abs()).min(100.0))
        } else if case.config.delta_softplus {
            map(numbers(2, all), |x| x - 1.0)
        } else {
            map(numbers(2, all), |x| 0.2 * x.abs())
        };
        // decays of all sizes; complex ones that turn up to a few times in a step
        let a: Vec<f32> = singles(3, dim * floats)
            .into_iter()
            .enumerate()
            .map(|(at, x)| match case.is_complex() && at % 2 == 1 {
                true => 4.0 * x,
                false if case.values.stiff => -10_f32.powf((2.0 * x).clamp(-4.0, 4.0)),
                false => -x.exp(),
            })
            .collect();
        let Values { u, z, dout, .. } = case.values;
        let (u, z, dout) = (scaled(1, all, u), scaled(4, all, z), scaled(5, all, dout));
        let place = elements(&case);
        let nan = T::narrow(f64::NAN);
        let like_u = |x: &[T]| Placed::input(stream, place, x, nan);
        let of_f32 = |shape, x: &[f32]| {
            let dense = Place::contiguous(shape);
            Placed::<f32, 3>::input(stream, dense, x, f32::NAN)
        };
        let states = [case.sequences(), dim, floats];
        let state = |seed| singles(seed, states.iter().product());
        let coefficient = |seed, lie: Option<Lie>| match lie {
            Some(lie) => {
                let count = batch * case.groups * floats * seqlen;
                let x = scaled(seed, count, case.values.coefficients);
                let placed = Placed::input(stream, variable(&case, lie), &x, nan);
                (widen(&x), Coefficients::Variable(placed))
            }
            None => {
                let x = singles(seed, dim * floats);
                let dense = Place::contiguous([dim, floats]);
                let placed = Placed::input(stream, dense, &x, f32::NAN);
                (widen(&x), Coefficients::Constant(placed))
            }
        };
        let weights = |seed, weight: Option<Weight>| match weight? {
            Weight::F32 => {
                let x = singles(seed, dim);
                let placed = Placed::input(stream, Place::contiguous([dim]), &x, f32::NAN);
                Some((widen(&x), Weights::F32(placed)))
            }
            Weight::Same => {
                let x = normal::<T>(seed, dim, 1.0);
                let placed = Placed::input(stream, Place::contiguous([dim]), &x, nan);
                Some((widen(&x), Weights::Same(placed)))
            }
        };
        let (b_numbers, b) = coefficient(6, case.b);
        let (c_numbers, c) = coefficient(7, case.c);
        let (d_numbers, d) = weights(8, case.d).unzip();
        let (bias_numbers, delta_bias) = weights(9, case.delta_bias).unzip();
        let initial_state = case.states.then(|| state(10));
        let dlast_state = case.states.then(|| state(11));
        let cu_seqlens = case.cu_seqlens.map(|cu| {
            let dense = Place::contiguous([cu.len()]);
            Placed::input(stream, dense, cu, i32::MAX)
        });
        Self {
            inputs: expected::Inputs {
                u: widen(&u),
                delta: widen(&delta),
                a: widen(&a),
                b: b_numbers,
                c: c_numbers,
                d: d_numbers,
                z: case.z.then(|| widen(&z)),
                delta_bias: bias_numbers,
                initial_state: initial_state.as_ref().map(|x| widen(x)),
                dout: widen(&dout),
                dlast_state: dlast_state.as_ref().map(|x| widen(x)),
            },
            u: like_u(&u),
            delta: like_u(&delta),
            z: case.z.then(|| like_u(&z)),
            a: Placed::input(stream, Place::contiguous([dim, floats]), &a, f32::NAN),
            b,
            c,
            d,
            delta_bias,
            initial_state: initial_state.map(|x| of_f32(states, &x)),
            cu_seqlens,
            dout: like_u(&dout),
            dlast_state: dlast_state.map(|x| of_f32(states, &x)),
            stream: stream.clone(),
            case,
        }
    }

    fn views(&self) -> Inputs<'_, T> {
        Inputs {
            d: self.d.as_ref().map(Weights::view),
            z: self.z.as_ref().map(Placed::view),
            delta_bias: self.delta_bias.as_ref().map(Weights::view),
            initial_state: self.initial_state.as_ref().map(Placed::view),
            cu_seqlens: self.cu_seqlens.as_ref().map(Placed::view),
            ..Inputs::new(
                self.u.view(),
                self.delta.view(),
                self.a.view(),
                self.b.view(),
                self.c.view(),
            )
        }
    }

    /// An output like u, unset.
    fn like_u(&self) -> Placed<T, 3> {
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(GUARD));
        Placed::output(&self.stream, elements(&self.case), nan, guard)
    }

    fn of_f32<const N: usize>(&self, shape: [usize; N]) -> Placed<f32, N> {
        let dense = Place::contiguous(shape);
        Placed::output(&self.stream, dense, f32::NAN, GUARD as f32)
    }

    fn states_shape(&self) -> [usize; 3] {
        [self.case.sequences(), self.case.dim, self.case.floats()]
    }

    /// Unset outputs.
    pub(super) fn outputs(&self) -> Outputs<T> {
        Outputs {
            out: self.like_u(),
            ungated: self.like_u(),
            last_state: self.of_f32(self.states_shape()),
        }
    }

    /// The tensors of a scan that writes all these outputs.
    fn forward<'a>(&'a self, outputs: &'a mut Outputs<T>) -> Forward<'a, T> {
        Forward {
            ungated: Some(outputs.ungated.view_mut()),
            last_state: Some(outputs.last_state.view_mut()),
            ..Forward::new(self.views(), outputs.out.view_mut())
        }
    }

    /// As much memory as a scan needs.
    pub(super) fn workspace(&self, op: &SelectiveScan) -> Result<Workspace> {
        let mut workspace = Workspace::new(&self.stream);
        let mut outputs = self.outputs();
        let mut forward = self.forward(&mut outputs);
        let plan = op.plan(&self.stream, self.case.config, &mut forward)?;
        workspace.reserve(plan.workspace_bytes())?;
        Ok(workspace)
    }

    /// Queues a scan.
    pub(super) fn queue(
        &self,
        op: &SelectiveScan,
        outputs: &mut Outputs<T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let forward = self.forward(outputs);
        op.forward(&self.stream, self.case.config, forward, workspace)
    }

    /// Scans: all that a scan writes, in this order: out, ungated, last state.
    pub(super) fn run(&self, op: &SelectiveScan) -> Result<[Vec<f64>; 3]> {
        let mut outputs = self.outputs();
        let mut workspace = self.workspace(op)?;
        self.queue(op, &mut outputs, &mut workspace)?;
        Ok(self.fetch(&outputs))
    }

    pub(super) fn fetch(&self, outputs: &Outputs<T>) -> [Vec<f64>; 3] {
        [
            widen(&outputs.out.fetch(&self.stream, "out")),
            widen(&outputs.ungated.fetch(&self.stream, "ungated")),
            widen(&outputs.last_state.fetch(&self.stream, "last_state")),
        ]
    }

    /// The same in a call for each of these ranges of steps, in the order of the scan: each begins with the state that
    /// the one before left.
    pub(super) fn run_in_parts(
        &self,
        op: &SelectiveScan,
        parts: &[Range<usize>],
    ) -> Result<[Vec<f64>; 3]> {
        let Self { case, stream, .. } = self;
        let (mut out, mut ungated) = (self.like_u(), self.like_u());
        let mut state: Option<Placed<f32, 3>> = None;
        for part in parts {
            let mut last_state = self.of_f32(self.states_shape());
            let inputs = Inputs {
                z: self.z.as_ref().map(|z| z.part(2, part.clone())),
                initial_state: match &state {
                    Some(state) => Some(state.view()),
                    None => self.initial_state.as_ref().map(Placed::view),
                },
                d: self.d.as_ref().map(Weights::view),
                delta_bias: self.delta_bias.as_ref().map(Weights::view),
                ..Inputs::new(
                    self.u.part(2, part.clone()),
                    self.delta.part(2, part.clone()),
                    self.a.view(),
                    self.b.part(part.clone()),
                    self.c.part(part.clone()),
                )
            };
            let mut forward = Forward {
                ungated: Some(ungated.part_mut(2, part.clone())),
                last_state: Some(last_state.view_mut()),
                ..Forward::new(inputs, out.part_mut(2, part.clone()))
            };
            let mut workspace = Workspace::new(stream);
            let plan = op.plan(stream, case.config, &mut forward)?;
            workspace.reserve(plan.workspace_bytes())?;
            op.forward(stream, case.config, forward, &mut workspace)?;
            state = Some(last_state);
        }
        let last_state = state.map(|state| widen(&state.fetch(stream, "last_state")));
        Ok([
            widen(&out.fetch(stream, "out")),
            widen(&ungated.fetch(stream, "ungated")),
            last_state.unwrap_or_default(),
        ])
    }

    /// Scans and compares.
    pub(super) fn check_forward(&self, op: &SelectiveScan) {
        self.judge("", self.run(op));
    }

    /// Scans in parts and compares.
    pub(super) fn check_in_parts(&self, op: &SelectiveScan, parts: &[Range<usize>]) {
        self.judge(&format!("{parts:?} "), self.run_in_parts(op, parts));
    }

    /// Compares what a scan wrote, or fails with its error.
    pub(super) fn judge(&self, how: &str, found: Result<[Vec<f64>; 3]>) {
        let name = format!("{how}{:?} {:?}", T::DTYPE, self.case);
        let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = expected::forward(&self.case, &self.inputs, T::round);
        let row = self.case.seqlen;
        let [out, ungated, last_state] = found;
        judge::<T>(&name, "out", &out, &expected.out, row);
        judge::<T>(&name, "ungated", &ungated, &expected.ungated, row);
        let states = self.case.floats();
        judge::<f32>(
            &name,
            "last_state",
            &last_state,
            &expected.last_state,
            states,
        );
    }
}

impl<T: Number> Coefficients<T> {
    fn view(&self) -> Coefficient<'_, T> {
        match self {
            Self::Variable(x) => Coefficient::Variable(x.view()),
            Self::Constant(x) => Coefficient::Constant(x.view()),
        }
    }

    /// The numbers of these steps.
    fn part(&self, steps: Range<usize>) -> Coefficient<'_, T> {
        match self {
            Self::Variable(x) => Coefficient::Variable(x.part(3, steps)),
            Self::Constant(x) => Coefficient::Constant(x.view()),
        }
    }
}

impl<T: Float> Weights<T> {
    fn view(&self) -> WeightRef<'_, T, 1> {
        match self {
            Self::F32(x) => WeightRef::F32(x.view()),
            Self::Same(x) => WeightRef::Same(x.view()),
        }
    }
}

/// Fails unless a tensor of type `T` is as close to the exact result as a naive run, twice as far, and arithmetic in
/// f32 allow.
fn judge<T: Number>(case: &str, tensor: &str, found: &[f64], expected: &Pair, row: usize) {
    let Pair { exact, naive } = expected;
    let Bound {
        max_abs,
        rel_l2,
        row_rel_l2,
    } = bound::<T>(exact, naive, row).unwrap();
    let largest = exact
        .iter()
        .fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let within = Bound {
        max_abs: max_abs + ARITHMETIC * largest,
        rel_l2: rel_l2.map(|bound| bound + ARITHMETIC),
        // a short row may be what is left of a large sum
        row_rel_l2: row_rel_l2.map(|bound| bound + 20.0 * ARITHMETIC),
    };
    assert_close(&format!("{case}: {tensor}"), found, exact, row, within);
}
