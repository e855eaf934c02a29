//! The gradients of a layer, from seeded inputs to a verdict by the reference, whose formulas finite differences
//! confirm.

use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{Backward, DecayMut, LinearAttention};
use seqmix::reference::linear_attention as reference;
use seqmix::{Result, Workspace};

use super::{Case, Fades, Inputs, Placement, bound, round_in_any_range};
use crate::naive::{Number, normal};
use crate::support::{Place, Placed, assert_close, device};

/// The gradients of a layer on the device; outputs are NaN, surrounded by a number that must stay.
pub(super) struct Problem<T> {
    case: Case,
    layer: Placement<T>,
    dout: Placed<T, 4>,
    dfinal_state: Placed<f32, 4>,
    dq: Placed<T, 4>,
    dk: Placed<T, 4>,
    dv: Placed<T, 4>,
    ddecay_per_head: Placed<f32, 1>,
    ddecay_per_step: Placed<f32, 3>,
    ddecay_per_channel: Placed<f32, 4>,
    dbeta: Placed<T, 3>,
    dinitial_state: Placed<f32, 4>,
    workspace: Workspace,
}

/// The gradients of what the layer returns.
pub(super) struct Given<T> {
    dout: Vec<T>,
    dfinal_state: Vec<f32>,
}

impl<T: Number> Given<T> {
    pub(super) fn new(case: Case) -> Self {
        let count = |shape: [usize; 4]| shape.iter().product();
        Self {
            dout: normal(21, count(case.rows(case.heads, case.dv)), 1.0),
            dfinal_state: normal(22, count(case.states_shape()), 0.3),
        }
    }
}

impl<T: Number> Problem<T> {
    pub(super) fn new(
        case: Case,
        inputs: &Inputs<T>,
        given: &Given<T>,
        stream: &Arc<CudaStream>,
    ) -> Self {
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(-123.0));
        let [heads_q, heads_k, heads_v] = case.shared;
        let rows = |heads, channels| {
            let place = case.place(case.rows(heads, channels), 0);
            Placed::output(stream, place, nan, guard)
        };
        let dout = case.place(case.rows(case.heads, case.dv), 1);
        let heads = Place::contiguous([case.heads]);
        Self {
            case,
            layer: Placement::new(case, inputs, stream),
            dout: Placed::input(stream, dout, &given.dout, nan),
            dfinal_state: Placed::input(stream, case.states_place(), &given.dfinal_state, f32::NAN),
            dq: rows(heads_q, case.dk),
            dk: rows(heads_k, case.dk),
            dv: rows(heads_v, case.dv),
            ddecay_per_head: Placed::output(stream, heads, f32::NAN, -123.0),
            ddecay_per_step: Placed::output(stream, case.steps_place(), f32::NAN, -123.0),
            ddecay_per_channel: Placed::output(
                stream,
                case.place(case.rows(case.heads, case.dk), 0),
                f32::NAN,
                -123.0,
            ),
            dbeta: Placed::output(stream, case.steps_place(), nan, guard),
            dinitial_state: Placed::output(stream, case.states_place(), f32::NAN, -123.0),
            workspace: Workspace::new(stream),
        }
    }

    /// Queues the op, in a workspace of just the size that it asks for.
    pub(super) fn queue(&mut self, op: &LinearAttention, stream: &Arc<CudaStream>) -> Result<()> {
        let case = self.case;
        let tensors = Backward {
            layer: self.layer.view(case),
            out: None,
            normalizer: None,
            dout: self.dout.view(),
            dfinal_state: case.states.then(|| self.dfinal_state.view()),
            dfinal_z: None,
            dq: self.dq.view_mut(),
            dk: self.dk.view_mut(),
            dv: self.dv.view_mut(),
            ddecay: match case.decay {
                Fades::No => None,
                Fades::PerHead(_) => Some(DecayMut::PerHead(self.ddecay_per_head.view_mut())),
                decay if decay.of_channels() => {
                    Some(DecayMut::PerChannel(self.ddecay_per_channel.view_mut()))
                }
                _ => Some(DecayMut::PerStep(self.ddecay_per_step.view_mut())),
            },
            dbeta: Some(self.dbeta.view_mut()),
            dinitial_state: case.states.then(|| self.dinitial_state.view_mut()),
            dinitial_z: None,
            dbonus: None,
        };
        let bytes = op.backward_plan(case.config(), &tensors)?.workspace_bytes();
        self.workspace.reserve(bytes)?;
        op.backward(stream, case.config(), tensors, &mut self.workspace)
    }

    /// The gradients by name, each with the length of its last axis, after a check that nothing beside them was
    /// written, and none that was not asked for.
    pub(super) fn fetch(&self, stream: &Arc<CudaStream>) -> Vec<(&'static str, Vec<f64>, usize)> {
        let Case { dk, dv, heads, .. } = self.case;
        fn widen<T: Into<f64>>(x: Vec<T>) -> Vec<f64> {
            x.into_iter().map(Into::into).collect()
        }
        let per_head = matches!(self.case.decay, Fades::PerHead(_));
        let (per_step, per_channel) = (self.case.decay.of_steps(), self.case.decay.of_channels());
        let states = self.case.states;
        let heads_of_decay = self.ddecay_per_head.fetch(stream, "ddecay");
        let steps_of_decay = self.ddecay_per_step.fetch(stream, "ddecay");
        let channels_of_decay = self.ddecay_per_channel.fetch(stream, "ddecay");
        let dinitial = self.dinitial_state.fetch(stream, "dinitial_state");
        let all = [
            ("dq", widen(self.dq.fetch(stream, "dq")), dk, true),
            ("dk", widen(self.dk.fetch(stream, "dk")), dk, true),
            ("dv", widen(self.dv.fetch(stream, "dv")), dv, true),
            ("ddecay", widen(heads_of_decay), heads, per_head),
            ("ddecay", widen(steps_of_decay), heads, per_step),
            ("ddecay", widen(channels_of_decay), dk, per_channel),
            (
                "dbeta",
                widen(self.dbeta.fetch(stream, "dbeta")),
                heads,
                true,
            ),
            ("dinitial_state", widen(dinitial), dv, states),
        ];
        let asked = all.into_iter().filter_map(|(name, found, row, asked)| {
            let unset = found.iter().all(|x| x.is_nan());
            assert!(asked || unset, "{name} was written unasked");
            asked.then_some((name, found, row))
        });
        asked.collect()
    }
}

/// A gradient of the reference by name.
fn named<'a>(gradients: &'a reference::Gradients, name: &str) -> &'a [f64] {
    match name {
        "dq" => &gradients.dq,
        "dk" => &gradients.dk,
        "dv" => &gradients.dv,
        "ddecay" => gradients.ddecay.as_deref().unwrap_or_default(),
        "dbeta" => gradients.dbeta.as_deref().unwrap_or_default(),
        "dinitial_state" => &gradients.dinitial_state,
        _ => panic!("no gradient {name}"),
    }
}

/// Grids that a naive run rounds to: those of the type, moved by factors. Gradients of few elements, each of which
/// sums up many, would be judged by luck if one run alone said what rounding may lose.
const GRIDS: [f64; 2] = [1.0, 1.414];

/// Runs a layer backwards and compares all gradients with the reference.
pub(super) fn check<T: Number>(case: Case) {
    let device = device();
    let stream = device.stream();
    let name = format!("{:?} {case:?}", T::DTYPE);
    let (inputs, given) = (case.inputs::<T>(), Given::new(case));
    let mut problem = Problem::new(case, &inputs, &given, &stream);
    let queued = problem.queue(&device.linear_attention, &stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let dout: Vec<f64> = given.dout.iter().map(|&x| x.into()).collect();
    let dfinal: Vec<f64> = given.dfinal_state.iter().map(|&x| x.into()).collect();
    let (expected, naive) = case.reference(&inputs, |layer| {
        let backward = reference::Backward {
            forward: *layer,
            dout: &dout,
            dfinal_state: case.states.then_some(&dfinal[..]),
            ..reference::Backward::default()
        };
        let chunks = reference::Chunks {
            chunk: 16,
            sub_chunk: 16,
        };
        let naive = GRIDS.iter().flat_map(|grid| {
            let round = |x: f64| round_in_any_range::<T>(x * grid) / grid;
            [
                backward.run_rounded(round).unwrap(),
                backward.run_chunked_rounded(chunks, round).unwrap(),
            ]
        });
        (backward.run().unwrap(), naive.collect::<Vec<_>>())
    });
    for (which, found, row) in problem.fetch(&stream) {
        let expected = named(&expected, which);
        let naive: Vec<&[f64]> = naive.iter().map(|run| named(run, which)).collect();
        let within = bound::<T>(expected, &naive, 3.0);
        let name = format!("{name}: {which}");
        assert_close(&name, &found, expected, row, within);
    }
}
