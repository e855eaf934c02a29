//! The gradients of a layer, from seeded inputs to a verdict by the reference, whose formulas finite differences
//! confirm.

use std::sync::{Arc, OnceLock};

use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{
    Backward, Config, Decay, DecayMut, FeatureMap, Forward, Layer, LinearAttention,
};
use seqmix::reference::linear_attention as reference;
use seqmix::{Result, Workspace};

use crate::measure::{Bound, Difference, Verdict};
use crate::naive::{Number, normal};
use crate::support::{Place, Placed, device};

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
    pub(super) feature_map: FeatureMap,
    pub(super) scale: Option<f32>,
    pub(super) normalize: Option<f32>,
    pub(super) causal: bool,
    pub(super) decay: Fades,
    pub(super) bonus: bool,
    /// The mean of the logarithms of decays, which lie between 0 and twice as much; a seventh of them are minus
    /// infinity if `lost`.
    pub(super) mean: f64,
    pub(super) lost: bool,
    /// Whether gradients of decays are asked for, if there are any.
    pub(super) ddecay: bool,
    /// Whether there are initial states, and gradients of the final ones.
    pub(super) states: bool,
    pub(super) segment: Option<usize>,
    /// Lengths of packed sequences; `batch` and `seqlen` then say nothing.
    pub(super) lengths: Option<&'static [usize]>,
    /// Whether tensors lie as parts of projections, side by side along heads.
    pub(super) projection: bool,
    /// Whether they begin an element further on.
    pub(super) shifted: bool,
    /// Standard deviation of the gradients that are given.
    pub(super) deviation: f64,
}

/// The form of decays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fades {
    None,
    PerHead,
    PerStep,
    PerChannel,
}

pub(super) const CASE: Case = Case {
    batch: 1,
    seqlen: 70,
    heads: 2,
    shared: [2, 2, 2],
    dk: 64,
    dv: 64,
    feature_map: FeatureMap::Identity,
    scale: None,
    normalize: None,
    causal: true,
    decay: Fades::None,
    bonus: false,
    mean: -0.1,
    lost: false,
    ddecay: true,
    states: true,
    segment: None,
    lengths: None,
    projection: false,
    shifted: false,
    deviation: 1.0,
};

impl Case {
    pub(super) fn config(&self) -> Config {
        Config {
            feature_map: self.feature_map,
            scale: self.scale,
            normalize: self.normalize,
            causal: self.causal,
            segment: self.segment,
        }
    }

    /// Rows of the batch and their steps.
    fn rows(&self) -> [usize; 2] {
        match self.lengths {
            None => [self.batch, self.seqlen],
            Some(lengths) => [1, lengths.iter().sum()],
        }
    }

    fn shape(&self, heads: usize, channels: usize) -> [usize; 4] {
        let [batch, steps] = self.rows();
        [batch, steps, heads, channels]
    }

    fn states_shape(&self) -> [usize; 4] {
        let sequences = self.lengths.map_or(self.batch, <[usize]>::len);
        [sequences, self.heads, self.dk, self.dv]
    }

    fn zs_shape(&self) -> [usize; 3] {
        let [sequences, heads, dk, _] = self.states_shape();
        [sequences, heads, dk]
    }

    fn decay_shape(&self) -> [usize; 3] {
        let [batch, steps] = self.rows();
        [batch, steps, self.heads]
    }

    fn cu_seqlens(&self) -> Option<Vec<usize>> {
        let lengths = self.lengths?;
        let mut starts = vec![0];
        for length in lengths {
            starts.push(starts[starts.len() - 1] + length);
        }
        Some(starts)
    }

    fn place<const N: usize>(&self, shape: [usize; N], part: usize) -> Place<N> {
        let place = match self.projection {
            true => Place::packed(shape, 2, part, 3),
            false => Place::contiguous(shape),
        };
        match self.shifted {
            true => place.shifted(),
            false => place,
        }
    }
}

/// The tensors of a layer as numbers, and the gradients of what it returns.
pub(super) struct Inputs<T> {
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    pub(super) decay: Vec<f32>,
    bonus: Vec<f32>,
    initial_state: Vec<f32>,
    initial_z: Vec<f32>,
    pub(super) dout: Vec<T>,
    pub(super) dfinal_state: Vec<f32>,
    dfinal_z: Vec<f32>,
}

impl<T: Number> Inputs<T> {
    pub(super) fn new(case: Case) -> Self {
        let count = |shape: [usize; 4]| shape.iter().product();
        let zs = |seed, deviation| normal::<f32>(seed, case.zs_shape().iter().product(), deviation);
        let [hq, hk, hv] = case.shared;
        let decays = match case.decay {
            Fades::None => 0,
            Fades::PerHead => case.heads,
            Fades::PerStep => case.decay_shape().iter().product(),
            Fades::PerChannel => count(case.shape(case.heads, case.dk)),
        };
        let decay = normal::<f32>(4, decays, 1.0).into_iter().enumerate();
        let decay = decay.map(|(i, x)| match case.lost && i % 7 == 3 {
            true => f32::NEG_INFINITY,
            // between 0 and twice the mean
            false => (2.0 * case.mean) as f32 * (0.5 + x.atan() / std::f32::consts::PI),
        });
        // what outputs are divided by stays away from 0, as by the initial states
        let bonus = normal::<f32>(8, case.heads * case.dk, 1.0).into_iter();
        Self {
            q: normal(1, count(case.shape(hq, case.dk)), 1.0),
            k: normal(2, count(case.shape(hk, case.dk)), 1.0),
            v: normal(3, count(case.shape(hv, case.dv)), 1.0),
            decay: decay.collect(),
            bonus: match case.normalize {
                Some(_) => bonus.map(f32::abs).collect(),
                None => bonus.collect(),
            },
            initial_state: normal(5, count(case.states_shape()), 1.0),
            initial_z: zs(10, 1.0).into_iter().map(f32::abs).collect(),
            dout: normal(6, count(case.shape(case.heads, case.dv)), case.deviation),
            dfinal_state: normal(7, count(case.states_shape()), case.deviation),
            dfinal_z: zs(9, case.deviation),
        }
    }
}

/// The gradients of a layer on the device; outputs are NaN, surrounded by a number that must stay.
pub(super) struct Problem<T> {
    case: Case,
    q: Placed<T, 4>,
    k: Placed<T, 4>,
    v: Placed<T, 4>,
    decay_of_heads: Placed<f32, 1>,
    decay_of_steps: Placed<f32, 3>,
    decay_of_channels: Placed<f32, 4>,
    bonus: Placed<f32, 2>,
    initial_state: Placed<f32, 4>,
    initial_z: Placed<f32, 3>,
    cu_seqlens: Placed<i32, 1>,
    out: Placed<T, 4>,
    normalizer: Placed<f32, 3>,
    dout: Placed<T, 4>,
    dfinal_state: Placed<f32, 4>,
    dfinal_z: Placed<f32, 3>,
    dq: Placed<T, 4>,
    dk: Placed<T, 4>,
    dv: Placed<T, 4>,
    ddecay_of_heads: Placed<f32, 1>,
    ddecay_of_steps: Placed<f32, 3>,
    ddecay_of_channels: Placed<f32, 4>,
    dbonus: Placed<f32, 2>,
    dinitial_state: Placed<f32, 4>,
    dinitial_z: Placed<f32, 3>,
    workspace: Workspace,
}

/// The layer of a problem, whose other tensors are borrowed otherwise.
macro_rules! layer {
    ($problem:ident) => {{
        let case = $problem.case;
        Layer {
            decay: match case.decay {
                Fades::None => Decay::None,
                Fades::PerHead => Decay::PerHead($problem.decay_of_heads.view()),
                Fades::PerStep => Decay::PerStep($problem.decay_of_steps.view()),
                Fades::PerChannel => Decay::PerChannel($problem.decay_of_channels.view()),
            },
            bonus: case.bonus.then(|| $problem.bonus.view()),
            initial_state: case.states.then(|| $problem.initial_state.view()),
            initial_z: (case.states && case.normalize.is_some()).then(|| $problem.initial_z.view()),
            cu_seqlens: case.lengths.map(|_| $problem.cu_seqlens.view()),
            ..Layer::new($problem.q.view(), $problem.k.view(), $problem.v.view())
        }
    }};
}

impl<T: Number> Problem<T> {
    pub(super) fn new(case: Case, inputs: &Inputs<T>, stream: &Arc<CudaStream>) -> Self {
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(-123.0));
        let [hq, hk, hv] = case.shared;
        let rows = |heads, channels, part, data: &[T]| {
            let place = case.place(case.shape(heads, channels), part);
            Placed::input(stream, place, data, nan)
        };
        let gradient = |heads, channels, part| {
            let place = case.place(case.shape(heads, channels), part);
            Placed::output(stream, place, nan, guard)
        };
        let states = Place::contiguous(case.states_shape());
        let given = |data: &[f32]| Placed::input(stream, states, data, f32::NAN);
        let zs = Place::in_order(case.zs_shape(), [1, 2, 0]);
        let given_z = |data: &[f32]| Placed::input(stream, zs, data, f32::NAN);
        let heads = Place::contiguous([case.heads]);
        let steps = case.place(case.decay_shape(), 1);
        let channels = case.place(case.shape(case.heads, case.dk), 1);
        let bonus = Place::contiguous([case.heads, case.dk]);
        let decay = &inputs.decay;
        // those that a case has not are NaN, of any shape
        let absent = |count| vec![f32::NAN; count];
        let of_heads = match case.decay {
            Fades::PerHead => decay.clone(),
            _ => absent(case.heads),
        };
        let of_steps = match case.decay {
            Fades::PerStep => decay.clone(),
            _ => absent(case.decay_shape().iter().product()),
        };
        let of_channels = match case.decay {
            Fades::PerChannel => decay.clone(),
            _ => absent(case.shape(case.heads, case.dk).iter().product()),
        };
        let starts = case.cu_seqlens().unwrap_or_default();
        let starts: Vec<i32> = starts.into_iter().map(|x| x as i32).collect();
        Self {
            case,
            q: rows(hq, case.dk, 0, &inputs.q),
            k: rows(hk, case.dk, 1, &inputs.k),
            v: rows(hv, case.dv, 2, &inputs.v),
            decay_of_heads: Placed::input(stream, heads, &of_heads, f32::NAN),
            decay_of_steps: Placed::input(stream, steps, &of_steps, f32::NAN),
            decay_of_channels: Placed::input(stream, channels, &of_channels, f32::NAN),
            bonus: Placed::input(stream, bonus, &inputs.bonus, f32::NAN),
            initial_state: given(&inputs.initial_state),
            initial_z: given_z(&inputs.initial_z),
            cu_seqlens: Placed::input(stream, Place::contiguous([starts.len()]), &starts, -7),
            out: gradient(case.heads, case.dv, 0),
            normalizer: Placed::output(stream, steps, f32::NAN, -123.0),
            dout: rows(case.heads, case.dv, 1, &inputs.dout),
            dfinal_state: given(&inputs.dfinal_state),
            dfinal_z: given_z(&inputs.dfinal_z),
            dq: gradient(hq, case.dk, 2),
            dk: gradient(hk, case.dk, 0),
            dv: gradient(hv, case.dv, 1),
            ddecay_of_heads: Placed::output(stream, heads, f32::NAN, -123.0),
            ddecay_of_steps: Placed::output(stream, steps, f32::NAN, -123.0),
            ddecay_of_channels: Placed::output(stream, channels, f32::NAN, -123.0),
            dbonus: Placed::output(stream, bonus, f32::NAN, -123.0),
            dinitial_state: Placed::output(stream, states, f32::NAN, -123.0),
            dinitial_z: Placed::output(stream, zs, f32::NAN, -123.0),
            workspace: Workspace::new(stream),
        }
    }

    /// Queues the op, in a workspace of just the size that it asks for; before it, what it needs of the forward pass.
    pub(super) fn queue(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let config = self.case.config();
        if config.normalize.is_some() {
            let (tensors, workspace) = self.forward_tensors();
            let plan = operation().plan(config, &tensors)?;
            workspace.reserve(plan.workspace_bytes())?;
            operation().forward(stream, config, tensors, workspace)?;
        }
        let (tensors, workspace) = self.tensors();
        let plan = operation().backward_plan(config, &tensors)?;
        workspace.reserve(plan.workspace_bytes())?;
        operation().backward(stream, config, tensors, workspace)
    }

    pub(super) fn tensors(&mut self) -> (Backward<'_, T>, &mut Workspace) {
        let case = self.case;
        let ddecay = match (case.ddecay, case.decay) {
            (true, Fades::PerHead) => Some(DecayMut::PerHead(self.ddecay_of_heads.view_mut())),
            (true, Fades::PerStep) => Some(DecayMut::PerStep(self.ddecay_of_steps.view_mut())),
            (true, Fades::PerChannel) => {
                Some(DecayMut::PerChannel(self.ddecay_of_channels.view_mut()))
            }
            _ => None,
        };
        let normalized = case.normalize.is_some();
        let tensors = Backward {
            layer: layer!(self),
            out: normalized.then(|| self.out.view()),
            normalizer: normalized.then(|| self.normalizer.view()),
            dout: self.dout.view(),
            dfinal_state: case.states.then(|| self.dfinal_state.view()),
            dfinal_z: (case.states && normalized).then(|| self.dfinal_z.view()),
            dq: self.dq.view_mut(),
            dk: self.dk.view_mut(),
            dv: self.dv.view_mut(),
            ddecay,
            dbeta: None,
            dinitial_state: case.states.then(|| self.dinitial_state.view_mut()),
            dinitial_z: (case.states && normalized).then(|| self.dinitial_z.view_mut()),
            dbonus: case.bonus.then(|| self.dbonus.view_mut()),
        };
        (tensors, &mut self.workspace)
    }

    fn forward_tensors(&mut self) -> (Forward<'_, T>, &mut Workspace) {
        let tensors = Forward {
            layer: layer!(self),
            out: self.out.view_mut(),
            final_state: None,
            final_z: None,
            normalizer: Some(self.normalizer.view_mut()),
        };
        (tensors, &mut self.workspace)
    }

    /// The gradients by name, each with the length of its last axis, after a check that nothing beside them was
    /// written, and none that was not asked for.
    pub(super) fn fetch(&self, stream: &Arc<CudaStream>) -> Vec<(&'static str, Vec<f64>, usize)> {
        let case = self.case;
        fn widen<T: Into<f64>>(x: Vec<T>) -> Vec<f64> {
            x.into_iter().map(Into::into).collect()
        }
        let of_heads = self.ddecay_of_heads.fetch(stream, "ddecay");
        let of_steps = self.ddecay_of_steps.fetch(stream, "ddecay");
        let of_channels = self.ddecay_of_channels.fetch(stream, "ddecay");
        let asked = |form| case.ddecay && case.decay == form;
        let all = [
            ("dq", widen(self.dq.fetch(stream, "dq")), case.dk, true),
            ("dk", widen(self.dk.fetch(stream, "dk")), case.dk, true),
            ("dv", widen(self.dv.fetch(stream, "dv")), case.dv, true),
            ("ddecay", widen(of_heads), case.heads, asked(Fades::PerHead)),
            ("ddecay", widen(of_steps), case.heads, asked(Fades::PerStep)),
            (
                "ddecay",
                widen(of_channels),
                case.dk,
                asked(Fades::PerChannel),
            ),
            (
                "dbonus",
                widen(self.dbonus.fetch(stream, "dbonus")),
                case.dk,
                case.bonus,
            ),
            (
                "dinitial_state",
                widen(self.dinitial_state.fetch(stream, "dinitial_state")),
                case.dv,
                case.states,
            ),
            (
                "dinitial_z",
                widen(self.dinitial_z.fetch(stream, "dinitial_z")),
                case.dk,
                case.states && case.normalize.is_some(),
            ),
        ];
        let asked = all.into_iter().filter_map(|(name, found, row, asked)| {
            let unset = found.iter().all(|x| x.is_nan());
            assert!(asked || unset, "{name} was written unasked");
            asked.then_some((name, found, row))
        });
        asked.collect()
    }
}

/// The kernels, loaded once for all tests.
pub(super) fn operation() -> &'static LinearAttention {
    static OPERATION: OnceLock<LinearAttention> = OnceLock::new();
    OPERATION.get_or_init(|| LinearAttention::new(&device().context).unwrap())
}

/// Grids that a naive run rounds to: those of the type, moved by factors. Gradients of few elements, each of which
/// sums up many, would be judged by luck if one run alone said what rounding may lose.
const GRIDS: [f64; 2] = [1.0, 1.414];

/// Runs of the reference: exact, and for each grid naive ones step by step and by chunks.
const RUNS: usize = 1 + 2 * GRIDS.len();

/// The nearest number of the type, whatever its range.
fn round_in_any_range<T: Number>(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let power = x.abs().log2().floor().exp2();
    T::round(x / power) * power
}

/// What the reference returns, and what naive runs in `T` return.
pub(super) fn expected<T: Number>(case: Case, inputs: &Inputs<T>) -> [reference::Gradients; RUNS] {
    let widen = |x: &[T]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
    let (q, k, v) = (widen(&inputs.q), widen(&inputs.k), widen(&inputs.v));
    let (decay, initial) = (wide(&inputs.decay), wide(&inputs.initial_state));
    let bonus = wide(&inputs.bonus);
    let (dout, dfinal) = (widen(&inputs.dout), wide(&inputs.dfinal_state));
    let (initial_z, dfinal_z) = (wide(&inputs.initial_z), wide(&inputs.dfinal_z));
    let zs = case.states && case.normalize.is_some();
    let starts = case.cu_seqlens();
    let ([batch, seqlen], [heads_q, heads_k, heads_v]) = (case.rows(), case.shared);
    let backward = reference::Backward {
        forward: reference::Forward {
            batch,
            seqlen,
            heads: case.heads,
            heads_q,
            heads_k,
            heads_v,
            dk: case.dk,
            dv: case.dv,
            q: &q,
            k: &k,
            v: &v,
            feature_map: match case.feature_map {
                FeatureMap::Identity => reference::FeatureMap::Identity,
                FeatureMap::EluPlusOne => reference::FeatureMap::EluPlusOne,
                FeatureMap::Relu => reference::FeatureMap::Relu,
                FeatureMap::ReluSquared => reference::FeatureMap::ReluSquared,
                FeatureMap::Silu => reference::FeatureMap::Silu,
                FeatureMap::Exp => reference::FeatureMap::Exp,
            },
            scale: case.scale.map(f64::from),
            decay: match case.decay {
                Fades::None => reference::Decay::None,
                Fades::PerHead => reference::Decay::PerHead(&decay),
                Fades::PerStep => reference::Decay::PerStep(&decay),
                Fades::PerChannel => reference::Decay::PerChannel(&decay),
            },
            readout: match (case.causal, case.bonus) {
                (false, _) => reference::Readout::Last,
                (true, true) => reference::Readout::Bonus(&bonus),
                (true, false) => reference::Readout::Updated,
            },
            normalize: case.normalize.map(f64::from),
            initial_state: case.states.then_some(&initial[..]),
            initial_z: zs.then_some(&initial_z[..]),
            cu_seqlens: starts.as_deref(),
            ..reference::Forward::default()
        },
        dout: &dout,
        dfinal_state: case.states.then_some(&dfinal[..]),
        dfinal_z: zs.then_some(&dfinal_z[..]),
    };
    std::array::from_fn(|run| {
        let Some(grid) = run.checked_sub(1) else {
            return backward.run().unwrap();
        };
        let scale = GRIDS[grid / 2];
        let round = |x| round_in_any_range::<T>(x * scale) / scale;
        match grid % 2 {
            0 => backward.run_rounded(round).unwrap(),
            _ => {
                let chunks = reference::Chunks::default();
                backward.run_chunked_rounded(chunks, round).unwrap()
            }
        }
    })
}

/// A gradient of the reference by name.
fn named<'a>(gradients: &'a reference::Gradients, name: &str) -> &'a [f64] {
    match name {
        "dq" => &gradients.dq,
        "dk" => &gradients.dk,
        "dv" => &gradients.dv,
        "ddecay" => gradients.ddecay.as_deref().unwrap_or_default(),
        "dbonus" => gradients.dbonus.as_deref().unwrap_or_default(),
        "dinitial_state" => &gradients.dinitial_state,
        "dinitial_z" => gradients.dinitial_z.as_deref().unwrap_or_default(),
        _ => panic!("no gradient {name}"),
    }
}

/// The relative error of one rounding; of f32 that of some of the special function unit's exponentials, which naive
/// runs do not have.
fn unit<T: Number>() -> f64 {
    T::UNIT.max(2.0_f64.powi(-19))
}

/// Three times what the naive runs lose, plus one rounding. Rows are not judged one by one: a row of small gradients
/// has errors of the size of what was summed up in it.
pub(super) fn bound<T: Number>(expected: &[f64], naive: &[&[f64]]) -> Bound {
    let lost = naive
        .iter()
        .map(|naive| Difference::measure(naive, expected, 1).unwrap());
    let (max_abs, rel_l2) = lost.fold((0.0_f64, 0.0_f64), |(max_abs, rel_l2), lost| {
        (max_abs.max(lost.max_abs), rel_l2.max(lost.rel_l2))
    });
    let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    Bound {
        max_abs: 3.0 * max_abs + unit::<T>() * largest,
        rel_l2: Some(3.0 * rel_l2 + unit::<T>()),
        row_rel_l2: None,
    }
}

/// Compares gradients with the reference's.
pub(super) fn compare<T: Number>(
    name: &str,
    found: &[(&'static str, Vec<f64>, usize)],
    runs: &[reference::Gradients],
) {
    for (which, found, row) in found {
        let runs: Vec<&[f64]> = runs.iter().map(|run| named(run, which)).collect();
        let verdict = Verdict::of(found, runs[0], *row, bound::<T>(runs[0], &runs[1..]));
        assert!(verdict.pass(), "{name}: {which}: {verdict}");
    }
}

/// Runs a layer backwards and compares all gradients with the reference.
pub(super) fn check<T: Number>(case: Case) {
    let stream = device().stream();
    let name = format!("{:?} {case:?}", T::DTYPE);
    let inputs = Inputs::<T>::new(case);
    let mut problem = Problem::new(case, &inputs, &stream);
    let queued = problem.queue(&stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    compare::<T>(&name, &problem.fetch(&stream), &expected(case, &inputs));
}
