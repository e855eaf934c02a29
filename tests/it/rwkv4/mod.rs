//! RWKV-4's average: one problem, from seeded inputs to a verdict. The other files here are tables of problems.

mod backward;
mod counters;
mod errors;
mod forward;
mod queue;
mod step;

use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::rwkv4 as reference;
use seqmix::rwkv4::{
    Backward, Config, Forward, Inputs, Plan, State, StateGradient, StateGradientMut, StateMut,
};
use seqmix::{Result, Tensor, TensorMut, Workspace};

use crate::measure::Bound;
use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    seqlen: usize,
    dim: usize,
    segments: Option<usize>,
    /// Lengths of packed sequences, whose sum is `seqlen`.
    lengths: Option<&'static [usize]>,
    /// Whether there are states: initial and final ones, and their gradients.
    states: bool,
    /// Elements that each step is longer than it need be.
    padding: usize,
    /// Whether parameters and states have other strides than row-major ones.
    strided: bool,
    /// Standard deviation of keys.
    spread: f64,
}

impl Case {
    fn of(batch: usize, seqlen: usize, dim: usize) -> Self {
        Self {
            batch,
            seqlen,
            dim,
            segments: None,
            lengths: None,
            states: true,
            padding: 0,
            strided: false,
            spread: 1.0,
        }
    }

    fn packed(lengths: &'static [usize], dim: usize) -> Self {
        Self {
            lengths: Some(lengths),
            ..Self::of(1, lengths.iter().sum(), dim)
        }
    }

    fn cut(self, segments: usize) -> Self {
        Self {
            segments: Some(segments),
            ..self
        }
    }

    fn sequences(&self) -> usize {
        self.lengths.map_or(self.batch, <[usize]>::len)
    }

    /// First steps of packed sequences, and the end of the last.
    fn cu_seqlens(&self) -> Option<Vec<usize>> {
        let sums = |lengths: &[usize]| {
            let ends = lengths.iter().scan(0, |sum, length| {
                *sum += length;
                Some(*sum)
            });
            std::iter::once(0).chain(ends).collect()
        };
        self.lengths.map(sums)
    }

    fn config(&self) -> Config {
        Config {
            segments: self.segments,
        }
    }

    /// Where k and what is like it lies: with odd addresses and strides if there is padding.
    fn signal(&self) -> Place<3> {
        let line = self.dim + self.padding;
        let all = Place::contiguous([self.batch, self.seqlen, line]);
        Place {
            shape: [self.batch, self.seqlen, self.dim],
            offset: all.offset + self.padding,
            total: all.total + self.padding,
            ..all
        }
    }

    fn vector(&self) -> Place<1> {
        let place = Place::contiguous([self.dim]);
        match self.strided {
            false => place,
            true => Place {
                strides: [2],
                total: place.total + self.dim,
                ..place
            },
        }
    }

    fn state(&self) -> Place<2> {
        let shape = [self.sequences(), self.dim];
        match self.strided {
            false => Place::contiguous(shape),
            true => Place::in_order(shape, [1, 0]),
        }
    }
}

/// What a problem reads, in row-major order.
struct Host<T> {
    k: Vec<T>,
    v: Vec<T>,
    dout: Vec<T>,
    decay: Vec<f32>,
    bonus: Vec<f32>,
    /// Numerator, denominator, exponent.
    initial: [Vec<f32>; 3],
    /// Of the last numerator and denominator.
    dfinal: [Vec<f32>; 2],
}

fn widen<T: Number>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

impl<T: Number> Host<T> {
    fn new(case: Case) -> Self {
        let signal = case.batch * case.seqlen * case.dim;
        let state = case.sequences() * case.dim;
        // decays of all sizes, among them one of 1 and one of 0
        let decay = normal::<f32>(4, case.dim, 2.0).into_iter().enumerate();
        let decay = decay.map(|(at, x)| match at % 16 {
            3 => 0.0,
            7 => f32::NEG_INFINITY,
            _ => -x.exp(),
        });
        let weights = normal::<f32>(7, state, 1.0);
        Self {
            k: normal(1, signal, case.spread),
            v: normal(2, signal, 1.0),
            dout: normal(3, signal, 1.0),
            decay: decay.collect(),
            bonus: normal(5, case.dim, 1.0),
            initial: [
                normal(6, state, 1.0),
                weights.iter().map(|x| 0.5 + x.abs()).collect(),
                normal(8, state, case.spread),
            ],
            dfinal: [9, 10].map(|seed| normal(seed, state, 1.0)),
        }
    }

    /// What the reference returns, and what a naive run that rounds so returns.
    fn forward(&self, case: Case, round: fn(f64) -> f64) -> [reference::Output; 2] {
        self.with_reference(case, |forward| {
            [forward.run().unwrap(), forward.run_rounded(round).unwrap()]
        })
    }

    fn backward(&self, case: Case, round: fn(f64) -> f64) -> [reference::Gradients; 2] {
        let dout = widen(&self.dout);
        let [numerator, denominator] = self.dfinal.each_ref().map(|x| widen(x));
        self.with_reference(case, |forward| {
            let backward = reference::Backward {
                forward,
                dout: &dout,
                dfinal_state: case.states.then_some((&numerator, &denominator)),
            };
            [
                backward.run().unwrap(),
                backward.run_rounded(round).unwrap(),
            ]
        })
    }

    fn with_reference<R>(&self, case: Case, with: impl Fn(reference::Forward<'_>) -> R) -> R {
        let [k, v] = [&self.k, &self.v].map(|x| widen(x));
        let [decay, bonus] = [&self.decay, &self.bonus].map(|x| widen(x));
        let [numerator, denominator, exponent] = self.initial.each_ref().map(|x| widen(x));
        let cu_seqlens = case.cu_seqlens();
        with(reference::Forward {
            batch: case.batch,
            seqlen: case.seqlen,
            dim: case.dim,
            decay: &decay,
            bonus: &bonus,
            k: &k,
            v: &v,
            initial_state: case.states.then_some(reference::State {
                numerator: &numerator,
                denominator: &denominator,
                exponent: &exponent,
            }),
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
    k: Placed<T, 3>,
    v: Placed<T, 3>,
    decay: Placed<f32, 1>,
    bonus: Placed<f32, 1>,
    initial: [Placed<f32, 2>; 3],
    cu_seqlens: Option<Tensor<i32, 1>>,
    dout: Placed<T, 3>,
    dfinal: [Placed<f32, 2>; 2],
    out: Placed<T, 3>,
    finals: [Placed<f32, 2>; 3],
    dk: Placed<T, 3>,
    dv: Placed<T, 3>,
    ddecay: Placed<f32, 1>,
    dbonus: Placed<f32, 1>,
    dinitial: [Placed<f32, 2>; 2],
}

impl<T: Number> Problem<T> {
    fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        Self::of(case, Host::new(case), stream)
    }

    fn of(case: Case, host: Host<T>, stream: &Arc<CudaStream>) -> Self {
        let (signal, vector, state) = (case.signal(), case.vector(), case.state());
        let input = |data: &[T]| Placed::input(stream, signal, data, T::narrow(f64::NAN));
        let output = || Placed::output(stream, signal, T::narrow(UNSET), T::narrow(GUARD));
        let parameter = |data: &[f32]| Placed::input(stream, vector, data, f32::NAN);
        let rows = |data: &Vec<f32>| Placed::input(stream, state, data, f32::NAN);
        let gradient = || Placed::output(stream, vector, UNSET as f32, GUARD as f32);
        let written = |_| Placed::output(stream, state, UNSET as f32, GUARD as f32);
        let upload = |cu_seqlens: Vec<usize>| {
            let values: Vec<i32> = cu_seqlens.into_iter().map(|x| x as i32).collect();
            Tensor::from_host(stream, &values, [values.len()]).unwrap()
        };
        Self {
            case,
            k: input(&host.k),
            v: input(&host.v),
            decay: parameter(&host.decay),
            bonus: parameter(&host.bonus),
            initial: host.initial.each_ref().map(rows),
            cu_seqlens: case.cu_seqlens().map(upload),
            dout: input(&host.dout),
            dfinal: host.dfinal.each_ref().map(rows),
            out: output(),
            finals: [(); 3].map(written),
            dk: output(),
            dv: output(),
            ddecay: gradient(),
            dbonus: gradient(),
            dinitial: [(); 2].map(written),
            host,
        }
    }

    fn queue_forward(
        &mut self,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
    ) -> Result<Plan> {
        let Self {
            case,
            k,
            v,
            decay,
            bonus,
            initial,
            cu_seqlens,
            out,
            finals,
            ..
        } = self;
        let tensors = Forward {
            inputs: Inputs {
                k: k.view(),
                v: v.view(),
                decay: decay.view(),
                bonus: bonus.view(),
                initial_state: case.states.then(|| state(initial)),
                cu_seqlens: cu_seqlens.as_ref().map(Tensor::view),
            },
            out: out.view_mut(),
            final_state: case.states.then(|| state_mut(finals)),
        };
        let op = &device().rwkv4;
        let plan = op.plan(case.config(), &tensors)?;
        workspace.reserve(plan.workspace_bytes())?;
        op.forward(stream, case.config(), tensors, workspace)?;
        Ok(plan)
    }

    /// All gradients, also those of an initial state that there is not.
    fn queue_backward(
        &mut self,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
    ) -> Result<Plan> {
        let case = self.case;
        let tensors = self.backward();
        let op = &device().rwkv4;
        let plan = op.backward_plan(case.config(), &tensors)?;
        workspace.reserve(plan.workspace_bytes())?;
        op.backward(stream, case.config(), tensors, workspace)?;
        Ok(plan)
    }

    fn backward(&mut self) -> Backward<'_, T> {
        let states = self.case.states;
        let [numerator, denominator] = &self.dfinal;
        let [dnumerator, ddenominator] = &mut self.dinitial;
        Backward {
            inputs: Inputs {
                k: self.k.view(),
                v: self.v.view(),
                decay: self.decay.view(),
                bonus: self.bonus.view(),
                initial_state: states.then(|| state(&self.initial)),
                cu_seqlens: self.cu_seqlens.as_ref().map(Tensor::view),
            },
            dout: self.dout.view(),
            dfinal_state: states.then(|| StateGradient {
                numerator: numerator.view(),
                denominator: denominator.view(),
            }),
            dk: self.dk.view_mut(),
            dv: self.dv.view_mut(),
            ddecay: Some(self.ddecay.view_mut()),
            dbonus: Some(self.dbonus.view_mut()),
            dinitial_state: Some(StateGradientMut {
                numerator: dnumerator.view_mut(),
                denominator: ddenominator.view_mut(),
            }),
        }
    }
}

fn state([numerator, denominator, exponent]: &[Placed<f32, 2>; 3]) -> State<'_> {
    State {
        numerator: numerator.view(),
        denominator: denominator.view(),
        exponent: exponent.view(),
    }
}

fn state_mut(tensors: &mut [Placed<f32, 2>; 3]) -> StateMut<'_> {
    let [numerator, denominator, exponent] = tensors
        .each_mut()
        .map(|x| -> TensorMut<'_, f32, 2> { x.view_mut() });
    StateMut {
        numerator,
        denominator,
        exponent,
    }
}

/// What the kernels may lose that add in `f32` and approximate exponentials, as a share of the largest number.
const ARITHMETIC: f64 = 3e-6;

/// The same of sums over steps.
const SUMS: f64 = 1e-5;

/// The bound of an output of dtype `T`: twice what a naive run loses, one rounding, and the kernels' own in `f32`.
fn within<T: Number>(expected: &[f64], naive: &[f64], own: f64) -> Bound {
    let bound = bound::<T>(expected, naive, 1).unwrap();
    let finite = expected.iter().filter(|x| x.is_finite());
    let largest = finite.fold(0.0_f64, |most, x| most.max(x.abs()));
    Bound {
        max_abs: bound.max_abs + own * largest,
        rel_l2: bound.rel_l2.map(|bound| bound + own),
        row_rel_l2: None,
    }
}

/// The bound of states, whose exponents are logarithms: of the largest number, and of 1.
fn within_state(expected: &[f64]) -> Bound {
    let finite = expected.iter().filter(|x| x.is_finite());
    Bound {
        max_abs: ARITHMETIC * finite.fold(1.0_f64, |most, x| most.max(x.abs())),
        rel_l2: None,
        row_rel_l2: None,
    }
}

/// Runs a problem and compares out and the final states with the reference.
fn check_forward<T: Number>(case: Case) {
    let stream = device().stream();
    check_forward_of(Problem::<T>::new(case, &stream), &stream);
}

fn check_forward_of<T: Number>(mut problem: Problem<T>, stream: &Arc<CudaStream>) {
    let case = problem.case;
    let mut workspace = Workspace::new(stream);
    let name = format!("{:?} {case:?}", T::DTYPE);
    let queued = problem.queue_forward(stream, &mut workspace);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let [expected, naive] = problem.host.forward(case, T::round);
    let out = widen(&problem.out.fetch(stream, "out"));
    let bound = within::<T>(&expected.out, &naive.out, ARITHMETIC);
    assert_close(&format!("{name}: out"), &out, &expected.out, 1, bound);
    if !case.states {
        return;
    }
    let finals = [
        ("numerator", &expected.numerator),
        ("denominator", &expected.denominator),
        ("exponent", &expected.exponent),
    ];
    for (found, (tensor, expected)) in problem.finals.iter().zip(finals) {
        let found = widen(&found.fetch(stream, tensor));
        let bound = within_state(expected);
        assert_close(&format!("{name}: {tensor}"), &found, expected, 1, bound);
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
    let queued = problem.queue_backward(stream, &mut workspace);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let [expected, naive] = problem.host.backward(case, T::round);
    for (tensor, found, expected, naive) in [
        ("dk", &problem.dk, &expected.dk, &naive.dk),
        ("dv", &problem.dv, &expected.dv, &naive.dv),
    ] {
        let found = widen(&found.fetch(stream, tensor));
        let bound = within::<T>(expected, naive, ARITHMETIC);
        assert_close(&format!("{name}: {tensor}"), &found, expected, 1, bound);
    }
    let [dnumerator, ddenominator] = problem
        .dinitial
        .each_ref()
        .map(|x| x.fetch(stream, "dinitial"));
    for (tensor, found, expected, own) in [
        (
            "ddecay",
            problem.ddecay.fetch(stream, "ddecay"),
            &expected.ddecay,
            SUMS,
        ),
        (
            "dbonus",
            problem.dbonus.fetch(stream, "dbonus"),
            &expected.dbonus,
            SUMS,
        ),
        ("dnumerator", dnumerator, &expected.dnumerator, ARITHMETIC),
        (
            "ddenominator",
            ddenominator,
            &expected.ddenominator,
            ARITHMETIC,
        ),
    ] {
        let bound = within::<f32>(expected, expected, own);
        assert_close(
            &format!("{name}: {tensor}"),
            &widen(&found),
            expected,
            1,
            bound,
        );
    }
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
