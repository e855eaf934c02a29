//! State space duality: one layer, from seeded inputs to a verdict. The other files here are tables of layers.

mod backward;
mod backward_errors;
mod bare;
mod counters;
mod errors;
mod forward;
mod gradients;
mod mutants;
mod queue;
mod random;

use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::ssd as reference;
use seqmix::ssd::{Config, Forward, Layer, Skip, Ssd};
use seqmix::{Dtype, Result, Workspace};

use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one layer.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    seqlen: usize,
    heads: usize,
    headdim: usize,
    groups: usize,
    dstate: usize,
    config: Config,
    skip: SkipKind,
    /// Which optional tensors there are.
    z: bool,
    dt_bias: bool,
    initial_states: bool,
    final_states: bool,
    /// Lengths of packed sequences; `batch` and `seqlen` then say nothing.
    lengths: Option<&'static [usize]>,
    layout: Layout,
    scale: Scale,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum SkipKind {
    None,
    PerHead,
    PerChannel,
}

/// How the tensors of a layer lie in memory.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Each contiguous.
    Contiguous,
    /// x, z, B and C as parts of one projection each, side by side along heads; heads of dt outermost.
    Projection,
    /// `[seqlen, batch, ...]`, and states `[heads, sequences, ...]`.
    StepsFirst,
}

/// Standard deviations of the inputs, and what step sizes and rates are.
#[derive(Clone, Copy, Debug)]
struct Scale {
    x: f64,
    b: f64,
    c: f64,
    dt: f64,
    /// The mean of dt_bias.
    dt_bias: f64,
    /// Rates are between this and 16 times this.
    a: f64,
}

const SCALE: Scale = Scale {
    x: 1.0,
    b: 1.0,
    c: 1.0,
    dt: 1.0,
    dt_bias: -2.0,
    a: -0.25,
};

const SOFTPLUS: Config = Config {
    dt_softplus: true,
    dt_limit: (0.0, f32::INFINITY),
    segment: None,
};

const CASE: Case = Case {
    batch: 2,
    seqlen: 70,
    heads: 3,
    headdim: 64,
    groups: 1,
    dstate: 64,
    config: SOFTPLUS,
    skip: SkipKind::PerHead,
    z: false,
    dt_bias: true,
    initial_states: true,
    final_states: true,
    lengths: None,
    layout: Layout::Contiguous,
    scale: SCALE,
};

/// The tensors of a layer as numbers.
#[derive(Clone)]
struct Inputs<T> {
    x: Vec<T>,
    dt: Vec<T>,
    a: Vec<f32>,
    b: Vec<T>,
    c: Vec<T>,
    d: Vec<f32>,
    z: Vec<T>,
    dt_bias: Vec<f32>,
    initial_states: Vec<f32>,
}

impl Case {
    /// Rows of the batch, and steps of each.
    fn steps(&self) -> [usize; 2] {
        match self.lengths {
            Some(lengths) => [1, lengths.iter().sum()],
            None => [self.batch, self.seqlen],
        }
    }

    fn sequences(&self) -> usize {
        self.lengths.map_or(self.batch, <[usize]>::len)
    }

    fn cu_seqlens(&self) -> Option<Vec<usize>> {
        let lengths = self.lengths?;
        let ends = lengths.iter().scan(0, |sum, length| {
            *sum += length;
            Some(*sum)
        });
        Some(std::iter::once(0).chain(ends).collect())
    }

    fn x_shape(&self) -> [usize; 4] {
        let [batch, steps] = self.steps();
        [batch, steps, self.heads, self.headdim]
    }

    fn b_shape(&self) -> [usize; 4] {
        let [batch, steps] = self.steps();
        [batch, steps, self.groups, self.dstate]
    }

    fn states_shape(&self) -> [usize; 4] {
        [self.sequences(), self.heads, self.headdim, self.dstate]
    }

    fn inputs<T: Number>(&self) -> Inputs<T> {
        let [batch, steps] = self.steps();
        let count = |shape: [usize; 4]| shape.iter().product();
        let (inputs, coefficients) = (count(self.x_shape()), count(self.b_shape()));
        let Scale {
            x,
            b,
            c,
            dt,
            dt_bias,
            a,
        } = self.scale;
        let channels = match self.skip {
            SkipKind::PerChannel => self.headdim,
            _ => 1,
        };
        let bias = normal::<f32>(8, self.heads, 0.5);
        let rate = |h: usize| a * f64::powf(16.0, (h as f64 * 0.37).fract());
        Inputs {
            x: normal(1, inputs, x),
            dt: normal(2, batch * steps * self.heads, dt),
            a: (0..self.heads).map(|h| rate(h) as f32).collect(),
            b: normal(4, coefficients, b),
            c: normal(5, coefficients, c),
            d: normal(6, self.heads * channels, 1.0),
            z: normal(7, inputs, 1.0),
            dt_bias: bias.iter().map(|x| x + dt_bias as f32).collect(),
            initial_states: normal(9, count(self.states_shape()), x),
        }
    }

    /// Where a tensor with a row for each step lies; part 0 of a projection is written.
    fn place(&self, shape: [usize; 4], part: usize) -> Place<4> {
        match self.layout {
            Layout::Contiguous => Place::contiguous(shape),
            Layout::Projection => Place::packed(shape, 2, part, 3),
            Layout::StepsFirst => Place::in_order(shape, [1, 0, 2, 3]),
        }
    }

    fn states_place(&self) -> Place<4> {
        match self.layout {
            Layout::Contiguous => Place::contiguous(self.states_shape()),
            Layout::Projection => Place::packed(self.states_shape(), 3, 1, 2),
            Layout::StepsFirst => Place::in_order(self.states_shape(), [1, 0, 2, 3]),
        }
    }

    fn dt_place(&self) -> Place<3> {
        let [batch, steps] = self.steps();
        let shape = [batch, steps, self.heads];
        match self.layout {
            Layout::Contiguous => Place::contiguous(shape),
            Layout::Projection => Place::in_order(shape, [2, 0, 1]),
            Layout::StepsFirst => Place::in_order(shape, [1, 0, 2]),
        }
    }

    fn d_place(&self) -> Place<2> {
        let channels = match self.skip {
            SkipKind::PerChannel => self.headdim,
            _ => 1,
        };
        let shape = [self.heads, channels];
        match self.layout {
            Layout::Contiguous => Place::contiguous(shape),
            _ => Place::in_order(shape, [1, 0]),
        }
    }

    /// Calls `with` with the layer of the reference on these inputs.
    fn reference<T: Number, R>(
        &self,
        inputs: &Inputs<T>,
        with: impl Fn(&reference::Forward<'_>) -> R,
    ) -> R {
        let [batch, seqlen] = self.steps();
        let widen = |x: &[T]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let widen_f32 = |x: &[f32]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let d = widen_f32(&inputs.d);
        let (low, high) = self.config.dt_limit;
        with(&reference::Forward {
            batch,
            seqlen,
            nheads: self.heads,
            headdim: self.headdim,
            groups: self.groups,
            dstate: self.dstate,
            x: &widen(&inputs.x),
            dt: &widen(&inputs.dt),
            a: &widen_f32(&inputs.a),
            b: &widen(&inputs.b),
            c: &widen(&inputs.c),
            d: match self.skip {
                SkipKind::None => None,
                SkipKind::PerHead => Some(reference::Skip::PerHead(&d)),
                SkipKind::PerChannel => Some(reference::Skip::PerChannel(&d)),
            },
            z: self.z.then(|| widen(&inputs.z)).as_deref(),
            dt_bias: self.dt_bias.then(|| widen_f32(&inputs.dt_bias)).as_deref(),
            dt_softplus: self.config.dt_softplus,
            dt_limit: (low.into(), high.into()),
            initial_states: self
                .initial_states
                .then(|| widen_f32(&inputs.initial_states))
                .as_deref(),
            cu_seqlens: self.cu_seqlens().as_deref(),
        })
    }
}

/// The inputs of a layer on the device, surrounded by NaN.
struct Placement<T> {
    x: Placed<T, 4>,
    dt: Placed<T, 3>,
    a: Placed<f32, 1>,
    b: Placed<T, 4>,
    c: Placed<T, 4>,
    d_per_head: Placed<f32, 1>,
    d_per_channel: Placed<f32, 2>,
    z: Placed<T, 4>,
    dt_bias: Placed<f32, 1>,
    initial_states: Placed<f32, 4>,
    cu_seqlens: Option<Placed<i32, 1>>,
}

impl<T: Number> Placement<T> {
    fn new(case: Case, inputs: &Inputs<T>, stream: &Arc<CudaStream>) -> Self {
        let nan = T::narrow(f64::NAN);
        let (x, b) = (case.x_shape(), case.b_shape());
        let rows =
            |shape, part, data: &[T]| Placed::input(stream, case.place(shape, part), data, nan);
        let heads =
            |data: &[f32]| Placed::input(stream, Place::contiguous([data.len()]), data, f32::NAN);
        let offsets = case.cu_seqlens().map(|starts| {
            let starts: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
            let place = Place::contiguous([starts.len()]);
            Placed::input(stream, place, &starts, i32::MAX)
        });
        let states = &inputs.initial_states;
        Self {
            x: rows(x, 1, &inputs.x),
            dt: Placed::input(stream, case.dt_place(), &inputs.dt, nan),
            a: heads(&inputs.a),
            b: rows(b, 1, &inputs.b),
            c: rows(b, 2, &inputs.c),
            d_per_head: heads(&inputs.d[..case.heads]),
            d_per_channel: Placed::input(stream, case.d_place(), &inputs.d, f32::NAN),
            z: rows(x, 2, &inputs.z),
            dt_bias: heads(&inputs.dt_bias),
            initial_states: Placed::input(stream, case.states_place(), states, f32::NAN),
            cu_seqlens: offsets,
        }
    }

    fn view(&self, case: Case) -> Layer<'_, T> {
        Layer {
            x: self.x.view(),
            dt: self.dt.view(),
            a: self.a.view(),
            b: self.b.view(),
            c: self.c.view(),
            d: match case.skip {
                SkipKind::None => None,
                SkipKind::PerHead => Some(Skip::PerHead(self.d_per_head.view())),
                SkipKind::PerChannel => Some(Skip::PerChannel(self.d_per_channel.view())),
            },
            z: case.z.then(|| self.z.view()),
            dt_bias: case.dt_bias.then(|| self.dt_bias.view()),
            initial_states: case.initial_states.then(|| self.initial_states.view()),
            cu_seqlens: self.cu_seqlens.as_ref().map(Placed::view),
        }
    }
}

/// A layer on the device; outputs are NaN, surrounded by a number that must stay.
struct Problem<T> {
    case: Case,
    layer: Placement<T>,
    out: Placed<T, 4>,
    final_states: Placed<f32, 4>,
    workspace: Workspace,
}

impl<T: Number> Problem<T> {
    fn new(case: Case, inputs: &Inputs<T>, stream: &Arc<CudaStream>) -> Self {
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(-123.0));
        let out = case.place(case.x_shape(), 0);
        Self {
            case,
            layer: Placement::new(case, inputs, stream),
            out: Placed::output(stream, out, nan, guard),
            final_states: Placed::output(stream, case.states_place(), f32::NAN, -123.0),
            workspace: Workspace::new(stream),
        }
    }

    /// Queues the op, in a workspace of just the size that it asks for.
    fn queue(&mut self, ssd: &Ssd, stream: &Arc<CudaStream>) -> Result<()> {
        self.reserve(ssd)?;
        let config = self.case.config;
        let (tensors, workspace) = self.tensors();
        ssd.forward(stream, config, tensors, workspace)
    }

    fn reserve(&mut self, ssd: &Ssd) -> Result<()> {
        let config = self.case.config;
        let (tensors, workspace) = self.tensors();
        workspace.reserve(ssd.plan(config, &tensors)?.workspace_bytes())
    }

    fn tensors(&mut self) -> (Forward<'_, T>, &mut Workspace) {
        let tensors = Forward {
            layer: self.layer.view(self.case),
            out: self.out.view_mut(),
            final_states: self.case.final_states.then(|| self.final_states.view_mut()),
        };
        (tensors, &mut self.workspace)
    }

    /// The outputs, after a check that nothing beside them was written.
    fn fetch(&self, stream: &Arc<CudaStream>) -> (Vec<T>, Vec<f32>) {
        (
            self.out.fetch(stream, "out"),
            self.final_states.fetch(stream, "final_states"),
        )
    }
}

/// Runs a layer and compares outputs and states with the reference.
fn check<T: Number>(case: Case) {
    let name = format!("{:?} {case:?}", T::DTYPE);
    let inputs = case.inputs::<T>();
    let (out, states) = run(&name, case, &inputs);
    compare(&name, case, &inputs, &out, &states);
}

/// Bits that a naive run in `f32` keeps: the kernels approximate exponentials, and exponents are sums in `f32`, so that
/// they lose more than operands of 24 bits would.
const BITS: i32 = 17;

/// One rounding of what the kernels return in `T`; of sums in `f32`, as above.
fn unit<T: Number>() -> f64 {
    match T::DTYPE {
        Dtype::F32 => f64::powi(2.0, -BITS),
        _ => T::UNIT,
    }
}

/// As `T` rounds, but without its largest number: that is no excuse for a kernel.
fn round_in_any_range<T: Number>(x: f64) -> f64 {
    let biased = (x.abs().to_bits() >> 52) as i32; // of a power of two at most |x|, in f64
    if !(256..1792).contains(&biased) {
        return x; // 0, or nothing that rounding could bring into range
    }
    // by arithmetic on the exponent: references round most of what they compute
    let power = |exponent: i32| f64::from_bits((exponent as u64) << 52);
    let exponent = biased - 1023;
    if T::DTYPE == Dtype::F32 {
        let shift = BITS - 1 - exponent;
        return (x * power(1023 + shift)).round_ties_even() * power(1023 - shift);
    }
    let excess = (exponent - 14).max(0);
    T::round(x * power(1023 - excess)) * power(1023 + excess)
}

/// Outputs and states of a layer, as numbers.
fn run<T: Number>(name: &str, case: Case, inputs: &Inputs<T>) -> (Vec<f64>, Vec<f64>) {
    let device = device();
    let stream = device.stream();
    let mut problem = Problem::new(case, inputs, &stream);
    let queued = problem.queue(&device.ssd, &stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let (out, states) = problem.fetch(&stream);
    (
        out.into_iter().map(Into::into).collect(),
        states.into_iter().map(Into::into).collect(),
    )
}

/// Compares outputs and states with the reference's, within the bounds that a naive run sets.
fn compare<T: Number>(name: &str, case: Case, inputs: &Inputs<T>, out: &[f64], states: &[f64]) {
    let (expected, naive) = case.reference(inputs, |layer| {
        let naive = layer.run_rounded(round_in_any_range::<T>);
        (layer.run().unwrap(), naive.unwrap())
    });
    let within = bound::<T>(&expected.out, &naive.out, case.headdim).unwrap();
    let name_out = format!("{name}: out");
    assert_close(&name_out, out, &expected.out, case.headdim, within);
    if case.final_states {
        let (expected, naive) = (&expected.final_states, &naive.final_states);
        let within = bound::<T>(expected, naive, case.dstate).unwrap();
        let name = format!("{name}: final_states");
        assert_close(&name, states, expected, case.dstate, within);
    } else {
        let unset = states.iter().all(|x| x.is_nan());
        assert!(unset, "{name}: final_states were written unasked");
    }
}
