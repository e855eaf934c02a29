//! The linear recurrent unit: one problem, from seeded inputs to a verdict. The other files here are tables of
//! problems.

mod cases;
mod counters;
mod errors;
mod step;

use std::sync::Arc;

use half::{bf16, f16};
use num_complex::Complex64;
use seqmix::cudarc::driver::CudaStream;
use seqmix::lru::{Backward, Config, Forward, Inputs};
use seqmix::reference::lru as reference;
use seqmix::{Result, Tensor, Workspace};

use crate::measure::Bound;
use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    seqlen: usize,
    states: usize,
    segments: Option<usize>,
    /// Lengths of packed sequences, whose sum is `seqlen`.
    lengths: Option<&'static [usize]>,
    /// Whether there are initial and final states, and their gradients.
    ends: bool,
    gamma: bool,
    /// Complex numbers that each step is longer than it need be.
    padding: usize,
}

impl Case {
    fn of(batch: usize, seqlen: usize, states: usize) -> Self {
        Self {
            batch,
            seqlen,
            states,
            segments: None,
            lengths: None,
            ends: true,
            gamma: true,
            padding: 0,
        }
    }

    fn packed(lengths: &'static [usize], states: usize) -> Self {
        Self {
            lengths: Some(lengths),
            ..Self::of(1, lengths.iter().sum(), states)
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

    /// Where x and what is like it lies.
    fn signal(&self) -> Place<4> {
        let all = Place::contiguous([self.batch, self.seqlen, self.states + self.padding, 2]);
        Place {
            shape: [self.batch, self.seqlen, self.states, 2],
            offset: all.offset + 2 * self.padding,
            total: all.total + 2 * self.padding,
            ..all
        }
    }

    /// Where the states before and after sequences lie.
    fn rows(&self) -> Place<3> {
        let all = Place::contiguous([self.sequences(), self.states + self.padding, 2]);
        Place {
            shape: [self.sequences(), self.states, 2],
            ..all
        }
    }
}

/// What a problem reads: parts of complex numbers side by side.
struct Host<T> {
    x: Vec<T>,
    dstates: Vec<T>,
    a: Vec<f32>,
    gamma: Vec<f32>,
    initial: Vec<f32>,
    dfinal: Vec<f32>,
}

fn widen<T: Number>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

fn complex<T: Number>(parts: &[T]) -> Vec<Complex64> {
    let numbers = parts
        .chunks(2)
        .map(|x| Complex64::new(x[0].into(), x[1].into()));
    numbers.collect()
}

fn parts(numbers: &[Complex64]) -> Vec<f64> {
    numbers.iter().flat_map(|x| [x.re, x.im]).collect()
}

impl<T: Number> Host<T> {
    fn new(case: Case) -> Self {
        let signal = 2 * case.batch * case.seqlen * case.states;
        let rows = 2 * case.sequences() * case.states;
        // absolute values from 1 to about 0, angles of a few turns
        let a = normal::<f32>(3, 2 * case.states, 1.0)
            .into_iter()
            .enumerate();
        let a = a.map(|(at, x)| match (at % 2, at % 14) {
            (0, 6) => 0.0,
            (0, _) => -x.exp() / 2.0,
            _ => 5.0 * x,
        });
        Self {
            x: normal(1, signal, 1.0),
            dstates: normal(2, signal, 1.0),
            a: a.collect(),
            gamma: normal(4, case.states, 1.0),
            initial: normal(5, rows, 1.0),
            dfinal: normal(6, rows, 1.0),
        }
    }

    fn with_reference<R>(&self, case: Case, with: impl Fn(reference::Forward<'_>) -> R) -> R {
        let [a, initial] = [&self.a, &self.initial].map(|x| complex(x));
        let (x, gamma) = (complex(&self.x), widen(&self.gamma));
        let cu_seqlens = case.cu_seqlens();
        with(reference::Forward {
            batch: case.batch,
            seqlen: case.seqlen,
            dstate: case.states,
            a: &a,
            gamma: case.gamma.then_some(&gamma),
            x: &x,
            initial_state: case.ends.then_some(&initial),
            cu_seqlens: cu_seqlens.as_deref(),
        })
    }

    /// What the reference returns, and what a naive run that rounds so returns.
    fn forward(&self, case: Case, round: fn(f64) -> f64) -> [reference::Output; 2] {
        self.with_reference(case, |forward| {
            [forward.run().unwrap(), forward.run_rounded(round).unwrap()]
        })
    }

    fn backward(&self, case: Case, round: fn(f64) -> f64) -> [reference::Gradients; 2] {
        let (dstates, dfinal) = (complex(&self.dstates), complex(&self.dfinal));
        self.with_reference(case, |forward| {
            let backward = reference::Backward {
                forward,
                dstates: &dstates,
                dfinal_state: case.ends.then_some(&dfinal),
            };
            [
                backward.run().unwrap(),
                backward.run_rounded(round).unwrap(),
            ]
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
    x: Placed<T, 4>,
    a: Placed<f32, 2>,
    gamma: Placed<f32, 1>,
    initial: Placed<f32, 3>,
    cu_seqlens: Option<Tensor<i32, 1>>,
    dstates: Placed<T, 4>,
    dfinal: Placed<f32, 3>,
    states: Placed<T, 4>,
    last: Placed<f32, 3>,
    dx: Placed<T, 4>,
    da: Placed<f32, 2>,
    dgamma: Placed<f32, 1>,
    dinitial: Placed<f32, 3>,
}

impl<T: Number> Problem<T> {
    fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        let host = Host::<T>::new(case);
        let (signal, rows) = (case.signal(), case.rows());
        let (of_a, of_gamma) = (
            Place::contiguous([case.states, 2]),
            Place::contiguous([case.states]),
        );
        let input = |data: &[T]| Placed::input(stream, signal, data, T::narrow(f64::NAN));
        let output = || Placed::output(stream, signal, T::narrow(UNSET), T::narrow(GUARD));
        let (unset, guard) = (UNSET as f32, GUARD as f32);
        let upload = |cu_seqlens: Vec<usize>| {
            let values: Vec<i32> = cu_seqlens.into_iter().map(|x| x as i32).collect();
            Tensor::from_host(stream, &values, [values.len()]).unwrap()
        };
        Self {
            case,
            x: input(&host.x),
            a: Placed::input(stream, of_a, &host.a, f32::NAN),
            gamma: Placed::input(stream, of_gamma, &host.gamma, f32::NAN),
            initial: Placed::input(stream, rows, &host.initial, f32::NAN),
            cu_seqlens: case.cu_seqlens().map(upload),
            dstates: input(&host.dstates),
            dfinal: Placed::input(stream, rows, &host.dfinal, f32::NAN),
            states: output(),
            last: Placed::output(stream, rows, unset, guard),
            dx: output(),
            da: Placed::output(stream, of_a, unset, guard),
            dgamma: Placed::output(stream, of_gamma, unset, guard),
            dinitial: Placed::output(stream, rows, unset, guard),
            host,
        }
    }

    fn queue_forward(&mut self, stream: &Arc<CudaStream>, workspace: &mut Workspace) -> Result<()> {
        let Case { ends, gamma, .. } = self.case;
        let tensors = Forward {
            inputs: Inputs {
                x: self.x.view(),
                a: self.a.view(),
                gamma: gamma.then(|| self.gamma.view()),
                initial_state: ends.then(|| self.initial.view()),
                cu_seqlens: self.cu_seqlens.as_ref().map(Tensor::view),
            },
            states: self.states.view_mut(),
            final_state: ends.then(|| self.last.view_mut()),
        };
        let (op, config) = (&device().lru, self.case.config());
        workspace.reserve(op.plan(config, &tensors)?.workspace_bytes())?;
        op.forward(stream, config, tensors, workspace)
    }

    /// All gradients, also those of what there is not.
    fn backward(&mut self) -> Backward<'_, T> {
        let Case { ends, gamma, .. } = self.case;
        Backward {
            inputs: Inputs {
                x: self.x.view(),
                a: self.a.view(),
                gamma: gamma.then(|| self.gamma.view()),
                initial_state: ends.then(|| self.initial.view()),
                cu_seqlens: self.cu_seqlens.as_ref().map(Tensor::view),
            },
            dstates: self.dstates.view(),
            dfinal_state: ends.then(|| self.dfinal.view()),
            dx: self.dx.view_mut(),
            da: Some(self.da.view_mut()),
            dgamma: Some(self.dgamma.view_mut()),
            dinitial_state: Some(self.dinitial.view_mut()),
        }
    }

    fn queue_backward(
        &mut self,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (op, config) = (&device().lru, self.case.config());
        let tensors = self.backward();
        workspace.reserve(op.backward_plan(config, &tensors)?.workspace_bytes())?;
        op.backward(stream, config, tensors, workspace)
    }
}

/// What the kernels may lose that compute in `f32`, as a share of the largest number: eigenvalues of absolute value 1
/// are rounded once, and their powers lose that at each step.
const ARITHMETIC: f64 = 2e-5;

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

fn judge<T: Number>(name: &str, found: &[f64], expected: &[f64], naive: &[f64]) {
    assert_close(name, found, expected, 1, within::<T>(expected, naive));
}

/// Runs both passes of a problem and compares all outputs with the reference.
fn check_type<T: Number>(case: Case) {
    let stream = device().stream();
    let mut problem = Problem::<T>::new(case, &stream);
    let mut workspace = Workspace::new(&stream);
    let name = format!("{:?} {case:?}", T::DTYPE);
    let queued = problem.queue_forward(&stream, &mut workspace);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let queued = problem.queue_backward(&stream, &mut workspace);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));

    let [expected, naive] = problem.host.forward(case, T::round);
    let (states, naive) = (parts(&expected.states), parts(&naive.states));
    let found = widen(&problem.states.fetch(&stream, "states"));
    judge::<T>(&format!("{name}: states"), &found, &states, &naive);
    if case.ends {
        let found = widen(&problem.last.fetch(&stream, "final_state"));
        let last = parts(&expected.final_state);
        judge::<f32>(&format!("{name}: final_state"), &found, &last, &last);
    }
    let [expected, naive] = problem.host.backward(case, T::round);
    let found = widen(&problem.dx.fetch(&stream, "dx"));
    judge::<T>(
        &format!("{name}: dx"),
        &found,
        &parts(&expected.dx),
        &parts(&naive.dx),
    );
    for (tensor, found, expected) in [
        ("da", problem.da.fetch(&stream, "da"), parts(&expected.da)),
        (
            "dgamma",
            problem.dgamma.fetch(&stream, "dgamma"),
            expected.dgamma,
        ),
        (
            "dinitial_state",
            problem.dinitial.fetch(&stream, "dinitial_state"),
            parts(&expected.dinitial_state),
        ),
    ] {
        judge::<f32>(
            &format!("{name}: {tensor}"),
            &widen(&found),
            &expected,
            &expected,
        );
    }
}

fn check(case: Case) {
    check_type::<f16>(case);
    check_type::<bf16>(case);
    check_type::<f32>(case);
}
