//! One layer by the linear rule, from seeded inputs to a verdict. The other files here are tables of layers.

use std::sync::{Arc, OnceLock};

use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{Config, Decay, FeatureMap, Forward, Layer, LinearAttention};
use seqmix::reference::linear_attention as reference;
use seqmix::{Dtype, Result, Workspace};

use crate::measure::Bound;
use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) batch: usize,
    pub(super) seqlen: usize,
    pub(super) heads: usize,
    /// Heads of q, k and v.
    pub(super) shared: [usize; 3],
    pub(super) dk: usize,
    pub(super) dv: usize,
    pub(super) config: Config,
    pub(super) decay: Fades,
    pub(super) bonus: bool,
    /// Whether there are initial states, and z if outputs are normalised; and whether final ones are asked for.
    pub(super) initial: bool,
    pub(super) last: bool,
    /// Lengths of packed sequences; `batch` and `seqlen` then say nothing.
    pub(super) lengths: Option<&'static [usize]>,
    pub(super) layout: Order,
    /// Standard deviation of queries, keys and values.
    pub(super) deviation: f64,
    /// The mean of the logarithms of decays, which lie between 0 and twice as much; a seventh of them are minus
    /// infinity if `lost`.
    pub(super) mean: f64,
    pub(super) lost: bool,
}

/// What decays depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fades {
    None,
    PerHead,
    PerStep,
    PerChannel,
}

/// How tensors lie in memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Contiguous,
    /// Parts of projections, side by side along heads.
    Projection,
    /// Steps outermost; states by heads first.
    StepsFirst,
    /// As `Contiguous`, but each tensor begins an element further on.
    Shifted,
}

pub(super) const CASE: Case = Case {
    batch: 1,
    seqlen: 70,
    heads: 2,
    shared: [2; 3],
    dk: 32,
    dv: 48,
    config: Config {
        feature_map: FeatureMap::Identity,
        scale: None,
        normalize: None,
        causal: true,
        segment: None,
    },
    decay: Fades::PerStep,
    bonus: false,
    initial: true,
    last: true,
    lengths: None,
    layout: Order::Contiguous,
    deviation: 1.0,
    mean: -0.3,
    lost: false,
};

/// Positive features, whose sums are divided by.
pub(super) const NORMALIZED: Config = Config {
    feature_map: FeatureMap::EluPlusOne,
    normalize: Some(1e-3),
    ..CASE.config
};

/// The tensors of a layer as numbers.
pub(super) struct Inputs<T> {
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    pub(super) decay: Vec<f32>,
    pub(super) bonus: Vec<f32>,
    pub(super) initial: Vec<f32>,
    pub(super) initial_z: Vec<f32>,
}

impl Case {
    /// Rows of the batch, and steps of each.
    pub(super) fn steps(&self) -> [usize; 2] {
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

    fn states(&self) -> [usize; 4] {
        [self.sequences(), self.heads, self.dk, self.dv]
    }

    fn zs(&self) -> [usize; 3] {
        [self.sequences(), self.heads, self.dk]
    }

    pub(super) fn inputs<T: Number>(&self) -> Inputs<T> {
        let [batch, steps] = self.steps();
        let [heads_q, heads_k, heads_v] = self.shared;
        let numbers = match self.decay {
            Fades::None => 0,
            Fades::PerHead => self.heads,
            Fades::PerStep => batch * steps * self.heads,
            Fades::PerChannel => batch * steps * self.heads * self.dk,
        };
        let tensor =
            |seed, heads, channels| normal(seed, batch * steps * heads * channels, self.deviation);
        let uniform = |i: usize| (i as f64 * 0.618_034).fract();
        let decay = |i: usize| match self.lost && i % 7 == 3 {
            true => f32::NEG_INFINITY,
            false => (2.0 * self.mean * uniform(i + 1)) as f32,
        };
        let states: usize = self.states().iter().product();
        let zs = normal::<f32>(6, self.zs().iter().product(), 1.0);
        Inputs {
            q: tensor(1, heads_q, self.dk),
            k: tensor(2, heads_k, self.dk),
            v: tensor(3, heads_v, self.dv),
            decay: (0..numbers).map(decay).collect(),
            bonus: normal(4, self.heads * self.dk, 1.0),
            initial: normal(5, states, self.deviation),
            // what outputs are divided by stays away from 0
            initial_z: zs.into_iter().map(f32::abs).collect(),
        }
    }

    /// Where a tensor with a row for each step lies; part 0 of a projection is written.
    fn place(&self, shape: [usize; 4], part: usize) -> Place<4> {
        match self.layout {
            Order::Contiguous => Place::contiguous(shape),
            Order::Projection => Place::packed(shape, 2, part, 3),
            Order::StepsFirst => Place::in_order(shape, [1, 0, 2, 3]),
            Order::Shifted => Place::contiguous(shape).shifted(),
        }
    }

    fn states_place(&self) -> Place<4> {
        match self.layout {
            Order::Contiguous => Place::contiguous(self.states()),
            Order::Projection => Place::packed(self.states(), 3, 1, 2),
            Order::StepsFirst => Place::in_order(self.states(), [1, 0, 2, 3]),
            Order::Shifted => Place::contiguous(self.states()).shifted(),
        }
    }

    fn step_place(&self) -> Place<3> {
        let [batch, steps] = self.steps();
        let shape = [batch, steps, self.heads];
        match self.layout {
            Order::Contiguous | Order::Shifted => Place::contiguous(shape),
            Order::Projection => Place::in_order(shape, [2, 0, 1]),
            Order::StepsFirst => Place::in_order(shape, [1, 0, 2]),
        }
    }

    /// Calls `with` with the layer of the reference on these inputs.
    pub(super) fn reference<T: Number, R>(
        &self,
        inputs: &Inputs<T>,
        with: impl Fn(&reference::Forward<'_>) -> R,
    ) -> R {
        let [batch, seqlen] = self.steps();
        let [heads_q, heads_k, heads_v] = self.shared;
        let widen = |x: &[T]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let widen_f32 = |x: &[f32]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let (decay, bonus) = (widen_f32(&inputs.decay), widen_f32(&inputs.bonus));
        let initial = self.initial.then(|| widen_f32(&inputs.initial));
        let z = self.initial && self.config.normalize.is_some();
        let initial_z = z.then(|| widen_f32(&inputs.initial_z));
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
            feature_map: match self.config.feature_map {
                FeatureMap::Identity => reference::FeatureMap::Identity,
                FeatureMap::EluPlusOne => reference::FeatureMap::EluPlusOne,
                FeatureMap::Relu => reference::FeatureMap::Relu,
                FeatureMap::ReluSquared => reference::FeatureMap::ReluSquared,
                FeatureMap::Silu => reference::FeatureMap::Silu,
                FeatureMap::Exp => reference::FeatureMap::Exp,
            },
            scale: self.config.scale.map(f64::from),
            decay: match self.decay {
                Fades::None => reference::Decay::None,
                Fades::PerHead => reference::Decay::PerHead(&decay),
                Fades::PerStep => reference::Decay::PerStep(&decay),
                Fades::PerChannel => reference::Decay::PerChannel(&decay),
            },
            rule: reference::Rule::Linear,
            readout: match (self.config.causal, self.bonus) {
                (false, _) => reference::Readout::Last,
                (true, true) => reference::Readout::Bonus(&bonus),
                (true, false) => reference::Readout::Updated,
            },
            normalize: self.config.normalize.map(f64::from),
            initial_state: initial.as_deref(),
            initial_z: initial_z.as_deref(),
            cu_seqlens: self.cu_seqlens().as_deref(),
        })
    }
}

/// The kernels, loaded once for all tests.
pub(super) fn attention() -> &'static LinearAttention {
    static ATTENTION: OnceLock<LinearAttention> = OnceLock::new();
    ATTENTION.get_or_init(|| LinearAttention::new(&device().context).unwrap())
}

/// A layer on the device, its inputs surrounded by NaN; outputs are NaN, surrounded by a number that must stay.
pub(super) struct Problem<T> {
    case: Case,
    q: Placed<T, 4>,
    k: Placed<T, 4>,
    v: Placed<T, 4>,
    per_head: Placed<f32, 1>,
    per_step: Placed<f32, 3>,
    per_channel: Placed<f32, 4>,
    bonus: Placed<f32, 2>,
    initial: Placed<f32, 4>,
    initial_z: Placed<f32, 3>,
    cu_seqlens: Option<Placed<i32, 1>>,
    out: Placed<T, 4>,
    last: Placed<f32, 4>,
    last_z: Placed<f32, 3>,
    normalizer: Placed<f32, 3>,
    workspace: Workspace,
}

impl<T: Number> Problem<T> {
    pub(super) fn new(case: Case, inputs: &Inputs<T>, stream: &Arc<CudaStream>) -> Self {
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(-123.0));
        let [heads_q, heads_k, heads_v] = case.shared;
        let rows =
            |shape, part, data: &[T]| Placed::input(stream, case.place(shape, part), data, nan);
        // decays of the form that there is; the others are empty
        let of = |form| match case.decay == form {
            true => &inputs.decay[..],
            false => &[],
        };
        let or_empty = |fits: bool, size: usize| if fits { size } else { 0 };
        let [batch, steps] = case.steps();
        let step_place = match case.decay {
            Fades::PerStep => case.step_place(),
            _ => Place::contiguous([0; 3]),
        };
        let channel_place = match case.decay {
            Fades::PerChannel => case.place([batch, steps, case.heads, case.dk], 2),
            _ => Place::contiguous([0; 4]),
        };
        let heads = or_empty(case.decay == Fades::PerHead, case.heads);
        let offsets = case.cu_seqlens().map(|starts| {
            let starts: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
            let place = Place::contiguous([starts.len()]);
            Placed::input(stream, place, &starts, i32::MAX)
        });
        let zs = Place::in_order(case.zs(), [1, 2, 0]);
        let states = case.states_place();
        let f32s = |place: Place<3>, data: &[f32]| Placed::input(stream, place, data, f32::NAN);
        Self {
            case,
            q: rows(case.rows(heads_q, case.dk), 1, &inputs.q),
            k: rows(case.rows(heads_k, case.dk), 2, &inputs.k),
            v: rows(case.rows(heads_v, case.dv), 1, &inputs.v),
            per_head: Placed::input(
                stream,
                Place::contiguous([heads]),
                of(Fades::PerHead),
                f32::NAN,
            ),
            per_step: f32s(step_place, of(Fades::PerStep)),
            per_channel: Placed::input(stream, channel_place, of(Fades::PerChannel), f32::NAN),
            bonus: Placed::input(
                stream,
                Place::packed([case.heads, case.dk], 1, 1, 2),
                &inputs.bonus,
                f32::NAN,
            ),
            initial: Placed::input(stream, states, &inputs.initial, f32::NAN),
            initial_z: f32s(zs, &inputs.initial_z),
            cu_seqlens: offsets,
            out: Placed::output(
                stream,
                case.place(case.rows(case.heads, case.dv), 0),
                nan,
                guard,
            ),
            last: Placed::output(stream, states, f32::NAN, -123.0),
            last_z: Placed::output(stream, zs, f32::NAN, -123.0),
            normalizer: Placed::output(stream, case.step_place(), f32::NAN, -123.0),
            workspace: Workspace::new(stream),
        }
    }

    /// Queues the op, in a workspace of just the size that it asks for.
    pub(super) fn queue(
        &mut self,
        attention: &LinearAttention,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.reserve(attention)?;
        let config = self.case.config;
        let (tensors, workspace) = self.tensors();
        attention.forward(stream, config, tensors, workspace)
    }

    pub(super) fn reserve(&mut self, attention: &LinearAttention) -> Result<()> {
        let config = self.case.config;
        let (tensors, workspace) = self.tensors();
        workspace.reserve(attention.plan(config, &tensors)?.workspace_bytes())
    }

    fn tensors(&mut self) -> (Forward<'_, T>, &mut Workspace) {
        let case = self.case;
        let normalized = case.config.normalize.is_some();
        let tensors = Forward {
            layer: Layer {
                decay: match case.decay {
                    Fades::None => Decay::None,
                    Fades::PerHead => Decay::PerHead(self.per_head.view()),
                    Fades::PerStep => Decay::PerStep(self.per_step.view()),
                    Fades::PerChannel => Decay::PerChannel(self.per_channel.view()),
                },
                bonus: case.bonus.then(|| self.bonus.view()),
                initial_state: case.initial.then(|| self.initial.view()),
                initial_z: (case.initial && normalized).then(|| self.initial_z.view()),
                cu_seqlens: self.cu_seqlens.as_ref().map(Placed::view),
                ..Layer::new(self.q.view(), self.k.view(), self.v.view())
            },
            out: self.out.view_mut(),
            final_state: case.last.then(|| self.last.view_mut()),
            final_z: (case.last && normalized).then(|| self.last_z.view_mut()),
            normalizer: (case.last && normalized).then(|| self.normalizer.view_mut()),
        };
        (tensors, &mut self.workspace)
    }

    /// The outputs, after a check that nothing beside them was written.
    pub(super) fn fetch(&self, stream: &Arc<CudaStream>) -> Found {
        let f32s = |numbers: Vec<f32>| numbers.into_iter().map(f64::from).collect();
        let out = self.out.fetch(stream, "out");
        Found {
            out: out.into_iter().map(Into::into).collect(),
            last: f32s(self.last.fetch(stream, "final_state")),
            last_z: f32s(self.last_z.fetch(stream, "final_z")),
            normalizer: f32s(self.normalizer.fetch(stream, "normalizer")),
        }
    }
}

/// What a layer returned, as numbers.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    pub(super) out: Vec<f64>,
    pub(super) last: Vec<f64>,
    pub(super) last_z: Vec<f64>,
    pub(super) normalizer: Vec<f64>,
}

/// Runs a layer and compares what it returns with the reference.
pub(super) fn check<T: Number>(case: Case) {
    let name = format!("{:?} {case:?}", T::DTYPE);
    let inputs = case.inputs::<T>();
    compare(&name, case, &inputs, &run(&name, case, &inputs));
}

/// What a layer returns.
pub(super) fn run<T: Number>(name: &str, case: Case, inputs: &Inputs<T>) -> Found {
    let stream = device().stream();
    let mut problem = Problem::new(case, inputs, &stream);
    let queued = problem.queue(attention(), &stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    problem.fetch(&stream)
}

/// Bits that a naive run in `f32` keeps: the kernels approximate exponentials, and sums are in `f32`, so that they lose
/// more than operands of 24 bits would.
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
    let power = f64::powi(2.0, (exponent - 14).max(0));
    T::round(x / power) * power
}

/// One rounding of what the kernels return in `T`; of sums in `f32`, as above.
fn widened<T: Number>(bound: Bound, expected: &[f64]) -> Bound {
    if T::DTYPE != Dtype::F32 {
        return bound;
    }
    let unit = f64::powi(2.0, -BITS);
    let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    Bound {
        max_abs: bound.max_abs + unit * largest,
        rel_l2: bound.rel_l2.map(|x| x + unit),
        row_rel_l2: bound.row_rel_l2.map(|x| x + unit),
    }
}

/// The bounds of outputs, states and z that a naive run sets.
pub(super) fn bounds<T: Number>(
    case: Case,
    expected: &reference::Output,
    naive: &reference::Output,
) -> [Bound; 3] {
    let of = |expected: &[f64], naive: &[f64], row| {
        widened::<T>(bound::<T>(expected, naive, row).unwrap(), expected)
    };
    let z = |output: &reference::Output| output.final_z.clone().unwrap_or_default();
    [
        of(&expected.out, &naive.out, case.dv),
        of(&expected.final_state, &naive.final_state, case.dv),
        of(&z(expected), &z(naive), case.dk),
    ]
}

/// Compares what a layer returned with the reference's, within the bounds that a naive run sets.
pub(super) fn compare<T: Number>(name: &str, case: Case, inputs: &Inputs<T>, found: &Found) {
    let chunks = reference::Chunks {
        chunk: 16,
        sub_chunk: 16,
    };
    let (expected, naive) = case.reference(inputs, |layer| {
        let naive = layer.run_chunked_rounded(chunks, round_in_any_range::<T>);
        (layer.run().unwrap(), naive.unwrap())
    });
    let [out, state, z] = bounds::<T>(case, &expected, &naive);
    let close = |what: &str, found: &[f64], expected: &[f64], row, bound| {
        assert_close(&format!("{name}: {what}"), found, expected, row, bound);
    };
    close("out", &found.out, &expected.out, case.dv, out);
    let unset = |numbers: &[f64]| numbers.iter().all(|x| x.is_nan());
    if !case.last {
        let others = [&found.last, &found.last_z, &found.normalizer];
        assert!(
            others.into_iter().all(|numbers| unset(numbers)),
            "{name}: something was written unasked"
        );
        return;
    }
    close(
        "final_state",
        &found.last,
        &expected.final_state,
        case.dv,
        state,
    );
    let Some(expected_z) = &expected.final_z else {
        assert!(unset(&found.last_z), "{name}: final_z was written unasked");
        return;
    };
    close("final_z", &found.last_z, expected_z, case.dk, z);
    check_normalizer(name, case, inputs, found);
}

/// The sums that outputs are divided by: what a single value of 1 would give, without normalisation.
fn check_normalizer<T: Number>(name: &str, case: Case, inputs: &Inputs<T>, found: &Found) {
    let z = case.initial.then(|| {
        let z = inputs.initial_z.iter();
        z.map(|&z| f64::from(z)).collect::<Vec<f64>>()
    });
    let ones = vec![1.0; inputs.v.len() / case.dv];
    let (expected, naive) = case.reference(inputs, |layer| {
        let layer = reference::Forward {
            v: &ones,
            dv: 1,
            normalize: None,
            initial_state: z.as_deref(),
            initial_z: None,
            ..*layer
        };
        let naive = layer.run_rounded(round_in_any_range::<T>);
        (layer.run().unwrap().out, naive.unwrap().out)
    });
    let within = widened::<T>(
        bound::<T>(&expected, &naive, case.heads).unwrap(),
        &expected,
    );
    let name = format!("{name}: normalizer");
    assert_close(&name, &found.normalizer, &expected, case.heads, within);
}
