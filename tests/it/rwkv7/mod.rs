//! RWKV-7's recurrence: one problem, from seeded inputs to a verdict. The other files here are tables of problems.

mod backward;
mod counters;
mod delta;
mod errors;
mod forward;
mod queue;
mod step;

use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::rwkv7 as reference;
use seqmix::rwkv7::{Backward, Config, Forward, Inputs};
use seqmix::{Result, Tensor, Workspace};

use crate::measure::Bound;
use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    seqlen: usize,
    heads: usize,
    dk: usize,
    dv: usize,
    slices: Option<usize>,
    /// Lengths of packed sequences, whose sum is `seqlen`.
    lengths: Option<&'static [usize]>,
    /// Whether there are states: initial and final ones, and their gradients.
    states: bool,
    layout: Layout,
    decays: Decays,
}

/// How tensors lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Contiguous,
    /// Heads outside of steps, as parts of tensors with more heads, and states the other way around: no whole pieces
    /// are torn.
    Strided,
    /// The same, an element further on.
    Shifted,
}

/// Logarithms of decays.
#[derive(Clone, Copy, Debug)]
enum Decays {
    /// As models have them: down to -0.6.
    Usual,
    /// All the same, of every step and channel.
    All(f32),
    /// Of all sizes side by side, among them 0, -20 and -infinity.
    Mixed,
}

impl Case {
    fn of(batch: usize, seqlen: usize, heads: usize, size: usize) -> Self {
        Self {
            batch,
            seqlen,
            heads,
            dk: size,
            dv: size,
            slices: None,
            lengths: None,
            states: true,
            layout: Layout::Contiguous,
            decays: Decays::Usual,
        }
    }

    fn packed(lengths: &'static [usize], heads: usize, size: usize) -> Self {
        Self {
            lengths: Some(lengths),
            ..Self::of(1, lengths.iter().sum(), heads, size)
        }
    }

    fn cut(self, slices: usize) -> Self {
        Self {
            slices: Some(slices),
            ..self
        }
    }

    fn config(&self) -> Config {
        Config {
            slices: self.slices,
        }
    }

    fn sequences(&self) -> usize {
        self.lengths.map_or(self.batch, <[usize]>::len)
    }

    /// First steps of packed sequences, and the end of the last.
    fn cu_seqlens(&self) -> Option<Vec<usize>> {
        self.lengths.map(|lengths| {
            let ends = lengths.iter().scan(0, |sum, length| {
                *sum += length;
                Some(*sum)
            });
            std::iter::once(0).chain(ends).collect()
        })
    }

    fn rows(&self, channels: usize) -> Place<4> {
        let shape = [self.batch, self.seqlen, self.heads, channels];
        self.place(shape, [2, 0, 1, 3])
    }

    fn state(&self) -> Place<4> {
        let shape = [self.sequences(), self.heads, self.dk, self.dv];
        self.place(shape, [2, 1, 0, 3])
    }

    fn place(&self, shape: [usize; 4], order: [usize; 4]) -> Place<4> {
        let strided = || {
            let mut outer = shape;
            outer[order[1]] += 1;
            Place {
                shape,
                ..Place::in_order(outer, order)
            }
        };
        match self.layout {
            Layout::Contiguous => Place::contiguous(shape),
            Layout::Strided => strided(),
            Layout::Shifted => strided().shifted(),
        }
    }
}

/// What a problem reads, in row-major order.
struct Host<T> {
    r: Vec<T>,
    decay: Vec<f32>,
    k: Vec<T>,
    v: Vec<T>,
    a: Vec<T>,
    b: Vec<T>,
    dout: Vec<T>,
    initial: Vec<f32>,
    dfinal: Vec<f32>,
}

fn widen<T: Number>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

impl<T: Number> Host<T> {
    fn new(case: Case) -> Self {
        let rows = case.batch * case.seqlen * case.heads;
        let (keys, values) = (rows * case.dk, rows * case.dv);
        let states = case.sequences() * case.heads * case.dk * case.dv;
        // as in a layer: a unit vector to look up by, and a part of it to remove along
        let removal = normal::<f32>(1, keys, 1.0);
        let units = removal.chunks(case.dk).flat_map(|key| {
            let length = key.iter().map(|x| x * x).sum::<f32>().sqrt();
            key.iter().map(move |x| x / length)
        });
        let units: Vec<f32> = units.collect();
        let rates = normal::<f32>(2, keys, 1.0).into_iter();
        let rates = rates.map(|x| 1.0 / (1.0 + x.exp()));
        let decay = normal::<f32>(3, keys, 1.0).into_iter().enumerate();
        let decay = decay.map(|(at, x)| match (case.decays, at % 16) {
            (Decays::All(decay), _) => decay,
            (Decays::Mixed, 3) => 0.0,
            (Decays::Mixed, 7) => -20.0,
            (Decays::Mixed, 11) => f32::NEG_INFINITY,
            (Decays::Mixed, _) => -(2.0 * x).exp(),
            (Decays::Usual, _) => -0.6 / (1.0 + x.exp()),
        });
        let narrow = |x: f32| T::narrow(x.into());
        let scale = 1.0 / (case.dk as f64).sqrt();
        Self {
            r: normal(4, keys, scale),
            decay: decay.collect(),
            k: normal(5, keys, 1.0),
            v: normal(6, values, 1.0),
            a: units.iter().map(|&x| narrow(-x)).collect(),
            b: units
                .iter()
                .zip(rates)
                .map(|(&x, rate)| narrow(x * rate))
                .collect(),
            dout: normal(7, values, 1.0),
            initial: normal(8, states, 1.0),
            dfinal: normal(9, states, scale),
        }
    }

    /// What the reference returns, and what a naive run that rounds so returns.
    fn forward(&self, case: Case, round: fn(f64) -> f64) -> [reference::Output; 2] {
        self.with_reference(case, |forward| {
            [forward.run().unwrap(), forward.run_rounded(round).unwrap()]
        })
    }

    fn backward(&self, case: Case, round: fn(f64) -> f64) -> [reference::Gradients; 2] {
        let (dout, dfinal) = (widen(&self.dout), widen(&self.dfinal));
        self.with_reference(case, |forward| {
            let backward = reference::Backward {
                forward,
                dout: &dout,
                dfinal_state: case.states.then_some(&dfinal),
            };
            [
                backward.run().unwrap(),
                backward.run_rounded(round).unwrap(),
            ]
        })
    }

    fn with_reference<R>(&self, case: Case, with: impl Fn(reference::Forward<'_>) -> R) -> R {
        let [r, k, v, a, b] = [&self.r, &self.k, &self.v, &self.a, &self.b].map(|x| widen(x));
        let [decay, initial] = [&self.decay, &self.initial].map(|x| widen(x));
        let cu_seqlens = case.cu_seqlens();
        with(reference::Forward {
            batch: case.batch,
            seqlen: case.seqlen,
            heads: case.heads,
            dk: case.dk,
            dv: case.dv,
            r: &r,
            decay: &decay,
            k: &k,
            v: &v,
            a: &a,
            b: &b,
            initial_state: case.states.then_some(&initial),
            cu_seqlens: cu_seqlens.as_deref(),
        })
    }
}

/// Elements of outputs before the call, and around them.
const UNSET: f64 = f64::NAN;
const GUARD: f64 = -123.0;

/// A problem on the device: inputs surrounded by NaN; outputs are NaN, surrounded by a number that must stay.
struct Problem<T> {
    case: Case,
    host: Host<T>,
    inputs: OnDevice<T>,
    dout: Placed<T, 4>,
    dfinal: Placed<f32, 4>,
    out: Placed<T, 4>,
    lookups: Placed<f32, 4>,
    last: Placed<f32, 4>,
    dr: Placed<T, 4>,
    ddecay: Placed<f32, 4>,
    dk: Placed<T, 4>,
    dv: Placed<T, 4>,
    da: Placed<T, 4>,
    db: Placed<T, 4>,
    dinitial: Placed<f32, 4>,
}

struct OnDevice<T> {
    r: Placed<T, 4>,
    decay: Placed<f32, 4>,
    k: Placed<T, 4>,
    v: Placed<T, 4>,
    a: Placed<T, 4>,
    b: Placed<T, 4>,
    initial: Placed<f32, 4>,
    cu_seqlens: Option<Tensor<i32, 1>>,
}

impl<T: Number> OnDevice<T> {
    fn view(&self, states: bool) -> Inputs<'_, T> {
        Inputs {
            r: self.r.view(),
            decay: self.decay.view(),
            k: self.k.view(),
            v: self.v.view(),
            a: self.a.view(),
            b: self.b.view(),
            initial_state: states.then(|| self.initial.view()),
            cu_seqlens: self.cu_seqlens.as_ref().map(Tensor::view),
        }
    }
}

impl<T: Number> Problem<T> {
    fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        Self::of(case, Host::new(case), stream)
    }

    fn of(case: Case, host: Host<T>, stream: &Arc<CudaStream>) -> Self {
        let (keys, values, state) = (case.rows(case.dk), case.rows(case.dv), case.state());
        let input = |place, data: &[T]| Placed::input(stream, place, data, T::narrow(f64::NAN));
        let floats = |place, data: &[f32]| Placed::input(stream, place, data, f32::NAN);
        let output = |place| Placed::output(stream, place, T::narrow(UNSET), T::narrow(GUARD));
        let written = |place| Placed::output(stream, place, UNSET as f32, GUARD as f32);
        let upload = |cu_seqlens: Vec<usize>| {
            let values: Vec<i32> = cu_seqlens.into_iter().map(|x| x as i32).collect();
            Tensor::from_host(stream, &values, [values.len()]).unwrap()
        };
        Self {
            case,
            inputs: OnDevice {
                r: input(keys, &host.r),
                decay: floats(keys, &host.decay),
                k: input(keys, &host.k),
                v: input(values, &host.v),
                a: input(keys, &host.a),
                b: input(keys, &host.b),
                initial: floats(state, &host.initial),
                cu_seqlens: case.cu_seqlens().map(upload),
            },
            dout: input(values, &host.dout),
            dfinal: floats(state, &host.dfinal),
            out: output(values),
            lookups: written(values),
            last: written(state),
            dr: output(keys),
            ddecay: written(keys),
            dk: output(keys),
            dv: output(values),
            da: output(keys),
            db: output(keys),
            dinitial: written(state),
            host,
        }
    }

    fn queue_forward(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let config = self.case.config();
        device().rwkv7.forward(stream, config, self.forward())
    }

    fn forward(&mut self) -> Forward<'_, T> {
        let states = self.case.states;
        Forward {
            inputs: self.inputs.view(states),
            out: self.out.view_mut(),
            lookups: Some(self.lookups.view_mut()),
            final_state: states.then(|| self.last.view_mut()),
        }
    }

    /// All gradients, also those of an initial state that there is not. The forward pass has to be queued before.
    fn queue_backward(
        &mut self,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let tensors = self.backward();
        let op = &device().rwkv7;
        workspace.reserve(op.backward_plan(&tensors)?.workspace_bytes())?;
        op.backward(stream, tensors, workspace)
    }

    fn backward(&mut self) -> Backward<'_, T> {
        let states = self.case.states;
        Backward {
            inputs: self.inputs.view(states),
            lookups: self.lookups.view(),
            dout: self.dout.view(),
            dfinal_state: states.then(|| self.dfinal.view()),
            dr: self.dr.view_mut(),
            ddecay: self.ddecay.view_mut(),
            dk: self.dk.view_mut(),
            dv: self.dv.view_mut(),
            da: self.da.view_mut(),
            db: self.db.view_mut(),
            dinitial_state: Some(self.dinitial.view_mut()),
        }
    }
}

/// What kernels may lose that add in `f32`, as a share of the largest number: sums of up to 128 products that go on
/// for hundreds of steps.
const ARITHMETIC: f64 = 5e-6;

/// The bound of an output of dtype `T`: twice what a naive run loses, one rounding, and the kernels' own in `f32`.
fn within<T: Number>(expected: &[f64], naive: &[f64]) -> Bound {
    let bound = bound::<T>(expected, naive, 1).unwrap();
    let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    Bound {
        max_abs: bound.max_abs + ARITHMETIC * largest,
        rel_l2: bound.rel_l2.map(|bound| bound + ARITHMETIC),
        row_rel_l2: None,
    }
}

/// The bound of numbers in `f32` that come from ones as large as `largest`.
fn within_largest(largest: f64) -> Bound {
    Bound {
        max_abs: ARITHMETIC * largest,
        rel_l2: None,
        row_rel_l2: None,
    }
}

fn largest(numbers: &[f64]) -> f64 {
    numbers.iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// Runs a problem and compares out, lookups and the final state with the reference.
fn check_forward<T: Number>(case: Case) {
    let stream = device().stream();
    check_forward_of(Problem::<T>::new(case, &stream), &stream);
}

fn check_forward_of<T: Number>(mut problem: Problem<T>, stream: &Arc<CudaStream>) {
    let case = problem.case;
    let name = format!("{:?} {case:?}", T::DTYPE);
    let queued = problem.queue_forward(stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let [expected, naive] = problem.host.forward(case, T::round);
    let out = widen(&problem.out.fetch(stream, "out"));
    let bound = within::<T>(&expected.out, &naive.out);
    assert_close(&format!("{name}: out"), &out, &expected.out, 1, bound);
    let lookups = problem.lookups.fetch(stream, "lookups");
    assert!(lookups.iter().all(|x| x.is_finite()), "{name}: lookups");
    if case.states {
        let found = widen(&problem.last.fetch(stream, "final_state"));
        let expected = expected.final_state;
        let bound = within_largest(largest(&expected));
        let name = format!("{name}: final_state");
        assert_close(&name, &found, &expected, 1, bound);
    }
}

/// The same of all gradients.
fn check_backward<T: Number>(case: Case) {
    let stream = device().stream();
    check_backward_of(Problem::<T>::new(case, &stream), &stream);
}

fn check_backward_of<T: Number>(mut problem: Problem<T>, stream: &Arc<CudaStream>) {
    let case = problem.case;
    let mut workspace = Workspace::new(stream);
    let name = format!("{:?} {case:?}", T::DTYPE);
    let queued = problem.queue_forward(stream);
    let queued = queued.and_then(|()| problem.queue_backward(stream, &mut workspace));
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let [expected, naive] = problem.host.backward(case, T::round);
    for (tensor, found, expected, naive) in [
        ("dr", &problem.dr, &expected.dr, &naive.dr),
        ("dk", &problem.dk, &expected.dk, &naive.dk),
        ("dv", &problem.dv, &expected.dv, &naive.dv),
        ("da", &problem.da, &expected.da, &naive.da),
        ("db", &problem.db, &expected.db, &naive.db),
    ] {
        let found = widen(&found.fetch(stream, tensor));
        let bound = within::<T>(expected, naive);
        assert_close(&format!("{name}: {tensor}"), &found, expected, 1, bound);
    }
    // what gradients of decays are differences of
    let parts = [
        (&problem.host.r, &expected.dr),
        (&problem.host.k, &expected.dk),
        (&problem.host.a, &expected.da),
        (&problem.host.b, &expected.db),
    ];
    let products = parts.map(|(x, dx)| {
        let products = x.iter().zip(dx).map(|(&x, dx)| x.into() * dx);
        largest(&products.collect::<Vec<_>>())
    });
    let found = widen(&problem.ddecay.fetch(stream, "ddecay"));
    let bound = within_largest(largest(&expected.ddecay).max(largest(&products)));
    let ddecay = &expected.ddecay;
    assert_close(&format!("{name}: ddecay"), &found, ddecay, 1, bound);
    let found = widen(&problem.dinitial.fetch(stream, "dinitial_state"));
    let expected = expected.dinitial_state;
    let name = format!("{name}: dinitial_state");
    let bound = within_largest(largest(&expected));
    assert_close(&name, &found, &expected, 1, bound);
}

/// Both passes, in every type.
fn check(case: Case) {
    check_forward::<f16>(case);
    check_forward::<bf16>(case);
    check_forward::<f32>(case);
    check_backward::<f16>(case);
    check_backward::<bf16>(case);
    check_backward::<f32>(case);
}
