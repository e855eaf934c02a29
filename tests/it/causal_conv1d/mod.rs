//! Causal convolution: one problem, from seeded inputs to a verdict. The other files here are tables of problems.

mod backward;
mod counters;
mod errors;
mod forward;
mod packed;
mod parts;
mod queue;
mod update;

use std::sync::Arc;

use half::{bf16, f16};
use seqmix::causal_conv1d::{Activation, Backward, Config, Forward};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::causal_conv1d as reference;
use seqmix::{Result, Tensor, Workspace};

use crate::measure::Bound;
use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    dim: usize,
    seqlen: usize,
    width: usize,
    /// The axis that x, out and their gradients are contiguous along.
    along: Along,
    /// Elements that each line of them is longer than it need be.
    padding: usize,
    /// Elements that each of them begins after a multiple of 16 bytes.
    shift: usize,
    /// Standard deviation of x and the states.
    scale: f64,
    silu: bool,
    bias: bool,
    /// Whether there are states: initial and final ones, and their gradients.
    states: bool,
    /// Whether weights and states have their last axis outside.
    turned: bool,
    /// Lengths of packed sequences, whose sum is `seqlen`.
    lengths: Option<&'static [usize]>,
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Along {
    Dim,
    Seqlen,
}
use Along::{Dim, Seqlen};

const ALONG: [Along; 2] = [Dim, Seqlen];

/// Lengths around those of groups and tiles.
const LENGTHS: [usize; 11] = [1, 2, 3, 7, 8, 63, 64, 65, 127, 129, 1000];

/// Elements of outputs before the call, and around them.
const UNSET: f64 = f64::NAN;
const GUARD: f64 = -123.0;

impl Case {
    /// A problem of one row, and for the rest everything that models have.
    fn of(dim: usize, seqlen: usize, along: Along) -> Self {
        Self {
            batch: 1,
            dim,
            seqlen,
            width: 4,
            along,
            padding: 0,
            shift: 0,
            scale: 1.0,
            silu: true,
            bias: true,
            states: true,
            turned: false,
            lengths: None,
        }
    }

    /// The same of packed sequences.
    fn packed(dim: usize, lengths: &'static [usize], along: Along) -> Self {
        Self {
            lengths: Some(lengths),
            ..Self::of(dim, lengths.iter().sum(), along)
        }
    }

    fn config(&self) -> Config {
        let activation = match self.silu {
            true => Activation::Silu,
            false => Activation::None,
        };
        Config { activation }
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

    /// Where x and what is like it lies.
    fn signal(&self) -> Place<3> {
        let shape = [self.batch, self.dim, self.seqlen];
        let (lines, line) = match self.along {
            Dim => (self.seqlen, self.dim + self.padding),
            Seqlen => (self.dim, self.seqlen + self.padding),
        };
        let row = lines * line;
        let all = Place::contiguous([self.batch, row]);
        Place {
            shape,
            strides: match self.along {
                Dim => [row, 1, line],
                Seqlen => [row, line, 1],
            },
            offset: all.offset + self.shift,
            total: all.total + self.shift,
        }
    }

    fn weight(&self) -> Place<2> {
        let order = if self.turned { [1, 0] } else { [0, 1] };
        Place::in_order([self.dim, self.width], order)
    }

    fn state(&self) -> Place<3> {
        let order = if self.turned { [0, 2, 1] } else { [0, 1, 2] };
        Place::in_order([self.sequences(), self.dim, self.width - 1], order)
    }
}

/// What a problem reads, in row-major order.
struct Host<T, W> {
    x: Vec<T>,
    weight: Vec<W>,
    bias: Vec<W>,
    initial_states: Vec<T>,
    dout: Vec<T>,
    dfinal_states: Vec<T>,
}

fn widen<T: Number>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

impl<T: Number, W: Number> Host<T, W> {
    fn new(case: Case) -> Self {
        let Case {
            batch,
            dim,
            seqlen,
            width,
            ..
        } = case;
        let (signal, state) = (batch * dim * seqlen, case.sequences() * dim * (width - 1));
        Self {
            x: normal(1, signal, case.scale),
            weight: normal(2, dim * width, 1.0 / (width as f64).sqrt()),
            bias: normal(3, dim, 0.5),
            initial_states: normal(4, state, case.scale),
            dout: normal(5, signal, 1.0),
            dfinal_states: normal(6, state, 1.0),
        }
    }

    /// What the reference returns, and what a naive run that rounds so returns.
    fn forward(&self, case: Case, round: fn(f64) -> f64) -> [reference::Output; 2] {
        self.with_reference(case, |forward| {
            [forward.run().unwrap(), forward.run_rounded(round).unwrap()]
        })
    }

    fn backward(&self, case: Case, round: fn(f64) -> f64) -> [reference::Gradients; 2] {
        let (dout, dfinal_states) = (widen(&self.dout), widen(&self.dfinal_states));
        self.with_reference(case, |forward| {
            let backward = reference::Backward {
                forward,
                dout: &dout,
                dfinal_states: case.states.then_some(&dfinal_states),
            };
            [
                backward.run().unwrap(),
                backward.run_rounded(round).unwrap(),
            ]
        })
    }

    fn with_reference<R>(&self, case: Case, with: impl Fn(reference::Forward<'_>) -> R) -> R {
        let (x, weight, bias) = (widen(&self.x), widen(&self.weight), widen(&self.bias));
        let initial_states = widen(&self.initial_states);
        let cu_seqlens = case.cu_seqlens();
        with(reference::Forward {
            batch: case.batch,
            dim: case.dim,
            seqlen: case.seqlen,
            width: case.width,
            x: &x,
            weight: &weight,
            bias: case.bias.then_some(&bias),
            activation: match case.silu {
                true => reference::Activation::Silu,
                false => reference::Activation::None,
            },
            initial_states: case.states.then_some(&initial_states),
            cu_seqlens: cu_seqlens.as_deref(),
        })
    }
}

/// A problem on the device: inputs surrounded by NaN; outputs are NaN, surrounded by a number that must stay.
struct Problem<T, W> {
    case: Case,
    host: Host<T, W>,
    x: Placed<T, 3>,
    weight: Placed<W, 2>,
    bias: Placed<W, 1>,
    initial_states: Placed<T, 3>,
    cu_seqlens: Option<Tensor<i32, 1>>,
    dout: Placed<T, 3>,
    dfinal_states: Placed<T, 3>,
    out: Placed<T, 3>,
    final_states: Placed<T, 3>,
    dx: Placed<T, 3>,
    dweight: Placed<W, 2>,
    dbias: Placed<W, 1>,
    dinitial_states: Placed<T, 3>,
}

impl<T: Number, W: Number> Problem<T, W> {
    fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        let host = Host::<T, W>::new(case);
        let (signal, state, weight) = (case.signal(), case.state(), case.weight());
        let bias = Place::contiguous([case.dim]);
        let input = |place, data: &[T]| Placed::input(stream, place, data, T::narrow(f64::NAN));
        let output = |place| Placed::output(stream, place, T::narrow(UNSET), T::narrow(GUARD));
        let upload = |cu_seqlens: Vec<usize>| {
            let values: Vec<i32> = cu_seqlens.into_iter().map(|x| x as i32).collect();
            Tensor::from_host(stream, &values, [values.len()]).unwrap()
        };
        Self {
            case,
            x: input(signal, &host.x),
            weight: Placed::input(stream, weight, &host.weight, W::narrow(f64::NAN)),
            bias: Placed::input(stream, bias, &host.bias, W::narrow(f64::NAN)),
            initial_states: input(state, &host.initial_states),
            cu_seqlens: case.cu_seqlens().map(upload),
            dout: input(signal, &host.dout),
            dfinal_states: input(state, &host.dfinal_states),
            out: output(signal),
            final_states: output(state),
            dx: output(signal),
            dweight: Placed::output(stream, weight, W::narrow(UNSET), W::narrow(GUARD)),
            dbias: Placed::output(stream, bias, W::narrow(UNSET), W::narrow(GUARD)),
            dinitial_states: output(state),
            host,
        }
    }

    fn queue_forward(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let Case { bias, states, .. } = self.case;
        let tensors = Forward {
            x: self.x.view(),
            weight: self.weight.view(),
            bias: bias.then(|| self.bias.view()),
            initial_states: states.then(|| self.initial_states.view()),
            cu_seqlens: self.cu_seqlens.as_ref().map(Tensor::view),
            out: self.out.view_mut(),
            final_states: states.then(|| self.final_states.view_mut()),
        };
        let op = &device().causal_conv1d;
        op.forward(stream, self.case.config(), tensors)
    }

    /// All gradients, also those of inputs that there are not.
    fn queue_backward(
        &mut self,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let Case { bias, states, .. } = self.case;
        let tensors = Backward {
            x: self.x.view(),
            weight: self.weight.view(),
            bias: bias.then(|| self.bias.view()),
            initial_states: states.then(|| self.initial_states.view()),
            cu_seqlens: self.cu_seqlens.as_ref().map(Tensor::view),
            dout: self.dout.view(),
            dfinal_states: states.then(|| self.dfinal_states.view()),
            dx: Some(self.dx.view_mut()),
            dweight: Some(self.dweight.view_mut()),
            dbias: Some(self.dbias.view_mut()),
            dinitial_states: Some(self.dinitial_states.view_mut()),
        };
        let op = &device().causal_conv1d;
        workspace.reserve(op.backward_workspace_bytes(&tensors)?)?;
        op.backward(stream, self.case.config(), tensors, workspace)
    }
}

/// What kernels may lose that add in `f32` and approximate exponentials and quotients, in roundings of `f32`.
const ROUNDINGS: f64 = 32.0;

/// The bound of an output of dtype `T`: twice what a naive run loses, one rounding, and the kernels' own in `f32`.
fn within<T: Number>(expected: &[f64], naive: &[f64]) -> Bound {
    let bound = bound::<T>(expected, naive, 1).unwrap();
    let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let own = ROUNDINGS * <f32 as Number>::UNIT;
    Bound {
        max_abs: bound.max_abs + own * largest,
        rel_l2: bound.rel_l2.map(|bound| bound + own),
        row_rel_l2: None,
    }
}

/// Runs a problem and compares out and the final states with the reference.
fn check_forward<T: Number, W: Number>(case: Case) {
    let stream = device().stream();
    let mut problem = Problem::<T, W>::new(case, &stream);
    let name = format!("{:?} by {:?} {case:?}", T::DTYPE, W::DTYPE);
    let queued = problem.queue_forward(&stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let out = widen(&problem.out.fetch(&stream, "out"));
    let [expected, naive] = problem.host.forward(case, T::round);
    let bound = within::<T>(&expected.out, &naive.out);
    assert_close(&format!("{name}: out"), &out, &expected.out, 1, bound);
    if case.states {
        let states = problem.final_states.fetch(&stream, "final_states");
        assert_eq!(
            widen(&states),
            expected.final_states,
            "{name}: final states"
        );
    }
}

/// The same of all gradients.
fn check_backward<T: Number, W: Number>(case: Case) {
    let stream = device().stream();
    let mut problem = Problem::<T, W>::new(case, &stream);
    let mut workspace = Workspace::new(&stream);
    let name = format!("{:?} by {:?} {case:?}", T::DTYPE, W::DTYPE);
    let queued = problem.queue_backward(&stream, &mut workspace);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let [expected, naive] = problem.host.backward(case, T::round);
    let dx = widen(&problem.dx.fetch(&stream, "dx"));
    let bound = within::<T>(&expected.dx, &naive.dx);
    assert_close(&format!("{name}: dx"), &dx, &expected.dx, 1, bound);
    let found = problem.dinitial_states.fetch(&stream, "dinitial_states");
    let (states, naive) = (&expected.dinitial_states, &naive.dinitial_states);
    let bound = within::<T>(states, naive);
    assert_close(
        &format!("{name}: dinitial"),
        &widen(&found),
        states,
        1,
        bound,
    );

    // Sums are rounded to the type of the weights only.
    let [expected, naive] = problem.host.backward(case, W::round);
    let found = widen(&problem.dweight.fetch(&stream, "dweight"));
    let bound = within::<W>(&expected.dweight, &naive.dweight);
    assert_close(
        &format!("{name}: dweight"),
        &found,
        &expected.dweight,
        1,
        bound,
    );
    let found = widen(&problem.dbias.fetch(&stream, "dbias"));
    let bound = within::<W>(&expected.dbias, &naive.dbias);
    assert_close(&format!("{name}: dbias"), &found, &expected.dbias, 1, bound);
}

/// Every type of x with weights of its own type.
fn check_types(check: [fn(Case); 3], case: Case) {
    for check in check {
        check(case);
    }
}

const FORWARD: [fn(Case); 3] = [
    check_forward::<f16, f16>,
    check_forward::<bf16, bf16>,
    check_forward::<f32, f32>,
];

const BACKWARD: [fn(Case); 3] = [
    check_backward::<f16, f16>,
    check_backward::<bf16, bf16>,
    check_backward::<f32, f32>,
];
