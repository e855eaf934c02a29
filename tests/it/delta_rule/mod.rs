//! The delta rule of linear attention: one layer, from seeded inputs to a verdict. The other files here are tables of
//! layers.

mod backward;
mod bare;
mod channel_gradients;
mod channels;
mod counters;
mod errors;
mod forward;
mod gradients;
mod mutants;
mod queue;

use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{Config, Decay, FeatureMap, Forward, Layer, LinearAttention, Rule};
use seqmix::reference::linear_attention as reference;
use seqmix::{Dtype, Result, Workspace};

use crate::measure::{Bound, Difference};
use crate::naive::{Number, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one layer.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    seqlen: usize,
    heads: usize,
    /// Heads of q, k and v.
    shared: [usize; 3],
    dk: usize,
    dv: usize,
    decay: Fades,
    beta: Beta,
    /// How alike keys are: the cosine between two of them, about.
    alike: f64,
    /// Standard deviations of values and of initial states.
    values: f64,
    initial: f64,
    scale: Option<f32>,
    feature_map: FeatureMap,
    /// Whether there is an initial state, and whether the last one is asked for.
    states: bool,
    /// Steps of a segment.
    segment: Option<usize>,
    /// Lengths of packed sequences; `batch` and `seqlen` then say nothing.
    lengths: Option<&'static [usize]>,
    layout: Layout,
}

/// How states fade.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fades {
    No,
    /// With logarithms of about this.
    PerHead(f64),
    PerStep(f64),
    PerChannel(f64),
    /// One step in four forgets everything.
    Forgets,
    /// One channel in four does so at a step.
    ChannelsForget,
}

impl Fades {
    /// Whether a decay is a number of each step, and not of its channels.
    fn of_steps(self) -> bool {
        matches!(self, Self::PerStep(_) | Self::Forgets)
    }

    /// Whether it is one of each channel.
    fn of_channels(self) -> bool {
        matches!(self, Self::PerChannel(_) | Self::ChannelsForget)
    }
}

#[derive(Clone, Copy, Debug)]
enum Beta {
    /// Between 0 and 1.
    Random,
    Always(f64),
}

/// How tensors lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Contiguous,
    /// q, k, v and the output as parts of one projection each, side by side along heads; heads of beta and decays
    /// outermost.
    Projection,
    /// `[seqlen, batch, ...]`, and states `[heads, sequences, ...]`.
    StepsFirst,
    /// As `Contiguous`, but each tensor begins an element further on.
    Shifted,
}

const CASE: Case = Case {
    batch: 1,
    seqlen: 70,
    heads: 2,
    shared: [2; 3],
    dk: 64,
    dv: 64,
    decay: Fades::PerStep(-0.1),
    beta: Beta::Random,
    alike: 0.0,
    values: 1.0,
    initial: 0.3,
    scale: None,
    feature_map: FeatureMap::Identity,
    states: true,
    segment: None,
    lengths: None,
    layout: Layout::Contiguous,
};

/// The tensors of a layer as numbers.
#[derive(Clone)]
struct Inputs<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    decay: Vec<f32>,
    beta: Vec<T>,
    initial_state: Vec<f32>,
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

    fn rows(&self, heads: usize, channels: usize) -> [usize; 4] {
        let [batch, steps] = self.steps();
        [batch, steps, heads, channels]
    }

    fn states_shape(&self) -> [usize; 4] {
        [self.sequences(), self.heads, self.dk, self.dv]
    }

    fn inputs<T: Number>(&self) -> Inputs<T> {
        let [batch, steps] = self.steps();
        let numbers = batch * steps * self.heads;
        let [heads_q, heads_k, heads_v] = self.shared;
        let of_size = |mean: f64, numbers: usize| -> Vec<f32> {
            let sizes = normal::<f32>(5, numbers, 1.0);
            sizes.iter().map(|x| mean as f32 * x.abs()).collect()
        };
        // of each four numbers one that forgets
        let forgetting = |mut decays: Vec<f32>| {
            let some = decays.iter_mut().skip(1).step_by(4);
            some.for_each(|x| *x = f32::NEG_INFINITY);
            decays
        };
        Inputs {
            q: normal(1, batch * steps * heads_q * self.dk, 1.0),
            k: self.keys(batch * steps * heads_k),
            v: normal(3, batch * steps * heads_v * self.dv, self.values),
            decay: match self.decay {
                Fades::No => Vec::new(),
                Fades::PerHead(mean) => (0..self.heads)
                    .map(|h| (mean * (1.0 + h as f64)) as f32)
                    .collect(),
                Fades::PerStep(mean) => of_size(mean, numbers),
                Fades::PerChannel(mean) => of_size(mean, numbers * self.dk),
                Fades::Forgets => forgetting(of_size(-0.5, numbers)),
                Fades::ChannelsForget => forgetting(of_size(-0.5, numbers * self.dk)),
            },
            beta: match self.beta {
                Beta::Random => {
                    let logits = normal::<f32>(6, numbers, 1.5);
                    let sigmoid = |x: &f32| T::narrow(1.0 / (1.0 + f64::from(-x).exp()));
                    logits.iter().map(sigmoid).collect()
                }
                Beta::Always(beta) => vec![T::narrow(beta); numbers],
            },
            initial_state: normal(7, self.states_shape().iter().product(), self.initial),
        }
    }

    /// Keys of length 1, which share a direction.
    fn keys<T: Number>(&self, count: usize) -> Vec<T> {
        let unit = |key: &[f64]| {
            let length = key.iter().map(|x| x * x).sum::<f64>().sqrt();
            key.iter().map(|x| x / length).collect::<Vec<f64>>()
        };
        let widen = |key: &[f32]| unit(&key.iter().map(|&x| x.into()).collect::<Vec<f64>>());
        let common = widen(&normal::<f32>(8, self.dk, 1.0));
        let (along, across) = (self.alike.sqrt(), (1.0 - self.alike).sqrt());
        let own = normal::<f32>(2, count * self.dk, 1.0);
        let keys = own.chunks(self.dk).flat_map(|own| {
            let own = widen(own);
            let both = common.iter().zip(&own);
            unit(
                &both
                    .map(|(x, y)| along * x + across * y)
                    .collect::<Vec<f64>>(),
            )
        });
        keys.map(T::narrow).collect()
    }

    /// Where a tensor with a row for each step lies; part 0 of a projection is written.
    fn place(&self, shape: [usize; 4], part: usize) -> Place<4> {
        match self.layout {
            Layout::Contiguous => Place::contiguous(shape),
            Layout::Projection => Place::packed(shape, 2, part, 3),
            Layout::StepsFirst => Place::in_order(shape, [1, 0, 2, 3]),
            Layout::Shifted => Place::contiguous(shape).shifted(),
        }
    }

    fn states_place(&self) -> Place<4> {
        match self.layout {
            Layout::Contiguous => Place::contiguous(self.states_shape()),
            Layout::Projection => Place::packed(self.states_shape(), 3, 1, 2),
            Layout::StepsFirst => Place::in_order(self.states_shape(), [1, 0, 2, 3]),
            Layout::Shifted => Place::contiguous(self.states_shape()).shifted(),
        }
    }

    fn steps_place(&self) -> Place<3> {
        let [batch, steps] = self.steps();
        let shape = [batch, steps, self.heads];
        match self.layout {
            Layout::Contiguous | Layout::Shifted => Place::contiguous(shape),
            Layout::Projection => Place::in_order(shape, [2, 0, 1]),
            Layout::StepsFirst => Place::in_order(shape, [1, 0, 2]),
        }
    }

    fn config(&self) -> Config {
        Config {
            scale: self.scale,
            feature_map: self.feature_map,
            segment: self.segment,
            ..Config::default()
        }
    }

    /// Calls `with` with the layer of the reference on these inputs.
    fn reference<T: Number, R>(
        &self,
        inputs: &Inputs<T>,
        with: impl Fn(&reference::Forward<'_>) -> R,
    ) -> R {
        let [batch, seqlen] = self.steps();
        let [heads_q, heads_k, heads_v] = self.shared;
        let widen = |x: &[T]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let widen_f32 = |x: &[f32]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let decay = widen_f32(&inputs.decay);
        with(&reference::Forward {
            batch,
            seqlen,
            heads: self.heads,
            heads_q,
            heads_k,
            heads_v,
            dk: self.dk,
            dv: self.dv,
            q: &widen(&inputs.q),
            k: &widen(&inputs.k),
            v: &widen(&inputs.v),
            scale: self.scale.map(f64::from),
            feature_map: match self.feature_map {
                FeatureMap::Relu => reference::FeatureMap::Relu,
                FeatureMap::Silu => reference::FeatureMap::Silu,
                _ => reference::FeatureMap::Identity,
            },
            decay: match self.decay {
                Fades::No => reference::Decay::None,
                Fades::PerHead(_) => reference::Decay::PerHead(&decay),
                Fades::PerStep(_) | Fades::Forgets => reference::Decay::PerStep(&decay),
                Fades::PerChannel(_) | Fades::ChannelsForget => {
                    reference::Decay::PerChannel(&decay)
                }
            },
            rule: reference::Rule::Delta {
                beta: &widen(&inputs.beta),
            },
            initial_state: self
                .states
                .then(|| widen_f32(&inputs.initial_state))
                .as_deref(),
            cu_seqlens: self.cu_seqlens().as_deref(),
            ..reference::Forward::default()
        })
    }
}

/// The inputs of a layer on the device, surrounded by NaN.
struct Placement<T> {
    q: Placed<T, 4>,
    k: Placed<T, 4>,
    v: Placed<T, 4>,
    decay_per_head: Placed<f32, 1>,
    decay_per_step: Option<Placed<f32, 3>>,
    decay_per_channel: Option<Placed<f32, 4>>,
    beta: Placed<T, 3>,
    initial_state: Placed<f32, 4>,
    cu_seqlens: Option<Placed<i32, 1>>,
}

impl<T: Number> Placement<T> {
    fn new(case: Case, inputs: &Inputs<T>, stream: &Arc<CudaStream>) -> Self {
        let nan = T::narrow(f64::NAN);
        let [heads_q, heads_k, heads_v] = case.shared;
        let rows =
            |shape, part, data: &[T]| Placed::input(stream, case.place(shape, part), data, nan);
        let offsets = case.cu_seqlens().map(|starts| {
            let starts: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
            let place = Place::contiguous([starts.len()]);
            Placed::input(stream, place, &starts, i32::MAX)
        });
        let decay = &inputs.decay[..];
        let heads = match case.decay {
            Fades::PerHead(_) => decay,
            _ => &[],
        };
        let per_channel = case.decay.of_channels().then(|| {
            let place = case.place(case.rows(case.heads, case.dk), 1);
            Placed::input(stream, place, decay, f32::NAN)
        });
        Self {
            q: rows(case.rows(heads_q, case.dk), 0, &inputs.q),
            k: rows(case.rows(heads_k, case.dk), 1, &inputs.k),
            v: rows(case.rows(heads_v, case.dv), 2, &inputs.v),
            decay_per_head: Placed::input(
                stream,
                Place::contiguous([heads.len()]),
                heads,
                f32::NAN,
            ),
            decay_per_step: case
                .decay
                .of_steps()
                .then(|| Placed::input(stream, case.steps_place(), decay, f32::NAN)),
            decay_per_channel: per_channel,
            beta: Placed::input(stream, case.steps_place(), &inputs.beta, nan),
            initial_state: Placed::input(
                stream,
                case.states_place(),
                &inputs.initial_state,
                f32::NAN,
            ),
            cu_seqlens: offsets,
        }
    }

    fn view(&self, case: Case) -> Layer<'_, T> {
        Layer {
            decay: match (&self.decay_per_step, &self.decay_per_channel) {
                (Some(decay), _) => Decay::PerStep(decay.view()),
                (_, Some(decay)) => Decay::PerChannel(decay.view()),
                (None, None) if case.decay == Fades::No => Decay::None,
                _ => Decay::PerHead(self.decay_per_head.view()),
            },
            rule: Rule::Delta {
                beta: self.beta.view(),
            },
            initial_state: case.states.then(|| self.initial_state.view()),
            cu_seqlens: self.cu_seqlens.as_ref().map(Placed::view),
            ..Layer::new(self.q.view(), self.k.view(), self.v.view())
        }
    }
}

/// A layer on the device; outputs are NaN, surrounded by a number that must stay.
struct Problem<T> {
    case: Case,
    layer: Placement<T>,
    out: Placed<T, 4>,
    final_state: Placed<f32, 4>,
    workspace: Workspace,
}

impl<T: Number> Problem<T> {
    fn new(case: Case, inputs: &Inputs<T>, stream: &Arc<CudaStream>) -> Self {
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(-123.0));
        let out = case.place(case.rows(case.heads, case.dv), 0);
        Self {
            case,
            layer: Placement::new(case, inputs, stream),
            out: Placed::output(stream, out, nan, guard),
            final_state: Placed::output(stream, case.states_place(), f32::NAN, -123.0),
            workspace: Workspace::new(stream),
        }
    }

    /// Queues the op, in a workspace of just the size that it asks for.
    fn queue(&mut self, op: &LinearAttention, stream: &Arc<CudaStream>) -> Result<()> {
        let config = self.case.config();
        let tensors = Forward {
            layer: self.layer.view(self.case),
            out: self.out.view_mut(),
            final_state: self.case.states.then(|| self.final_state.view_mut()),
            final_z: None,
            normalizer: None,
        };
        let bytes = op.plan(config, &tensors)?.workspace_bytes();
        self.workspace.reserve(bytes)?;
        op.forward(stream, config, tensors, &mut self.workspace)
    }

    /// The outputs, after a check that nothing beside them was written.
    fn fetch(&self, stream: &Arc<CudaStream>) -> (Vec<f64>, Vec<f64>) {
        let out = self.out.fetch(stream, "out");
        let states = self.final_state.fetch(stream, "final_state");
        (
            out.into_iter().map(Into::into).collect(),
            states.into_iter().map(Into::into).collect(),
        )
    }
}

/// Runs a layer and compares outputs and states with the reference.
fn check<T: Number>(case: Case) {
    let device = device();
    let stream = device.stream();
    let name = format!("{:?} {case:?}", T::DTYPE);
    let inputs = case.inputs::<T>();
    let mut problem = Problem::new(case, &inputs, &stream);
    let queued = problem.queue(&device.linear_attention, &stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let (out, state) = problem.fetch(&stream);
    let [expected, step, chunk] = case.reference(&inputs, |layer| {
        let chunks = reference::Chunks {
            chunk: 16,
            sub_chunk: 16,
        };
        [
            layer.run(),
            layer.run_rounded(round_in_any_range::<T>),
            layer.run_chunked_rounded(chunks, round_in_any_range::<T>),
        ]
        .map(Result::unwrap)
    });
    let within = bound::<T>(&expected.out, &[&step.out, &chunk.out], 2.0);
    assert_close(
        &format!("{name}: out"),
        &out,
        &expected.out,
        case.dv,
        within,
    );
    if case.states {
        let naive = [&step.final_state[..], &chunk.final_state[..]];
        let within = bound::<T>(&expected.final_state, &naive, 2.0);
        let name = format!("{name}: final_state");
        assert_close(&name, &state, &expected.final_state, case.dv, within);
    } else {
        let unset = state.iter().all(|x| x.is_nan());
        assert!(unset, "{name}: final_state was written unasked");
    }
}

/// Bits that a naive run in `f32` keeps: the kernels approximate exponentials, and exponents are sums in `f32`, so that
/// they lose more than operands of 24 bits would.
const BITS: i32 = 17;

/// As `T` rounds, but without its largest number: that is no excuse for a kernel.
fn round_in_any_range<T: Number>(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = x.abs().log2().floor() as i32;
    if T::DTYPE == Dtype::F32 {
        let unit = f64::powi(2.0, exponent + 1 - BITS);
        return (x / unit).round() * unit;
    }
    let power = f64::powi(2.0, exponent.saturating_sub(14).max(0));
    T::round(x / power) * power
}

/// `times` what the naive runs lose at most, plus one rounding.
fn bound<T: Number>(expected: &[f64], naive: &[&[f64]], times: f64) -> Bound {
    let unit = match T::DTYPE {
        Dtype::F32 => f64::powi(2.0, -BITS),
        _ => T::UNIT,
    };
    let lost = naive
        .iter()
        .map(|naive| Difference::measure(naive, expected, 1).unwrap());
    let lost: Vec<Difference> = lost.collect();
    let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    let most = |of: fn(&Difference) -> f64| lost.iter().map(of).fold(0.0, f64::max);
    Bound {
        max_abs: times * most(|lost| lost.max_abs) + unit * largest,
        rel_l2: Some(times * most(|lost| lost.rel_l2) + unit),
        row_rel_l2: None,
    }
}
