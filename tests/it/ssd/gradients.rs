//! The gradients of a layer, from seeded inputs to a verdict by the reference, whose formulas finite differences
//! confirm.

use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::ssd as reference;
use seqmix::ssd::{Backward, SkipMut, Ssd};
use seqmix::{Result, Workspace};

use super::{Case, Inputs, Placement, SkipKind, round_in_any_range, unit};
use crate::measure::{Bound, Difference, Verdict};
use crate::naive::{Number, normal};
use crate::support::{Place, Placed, device};

/// The gradients of a layer on the device; outputs are NaN, surrounded by a number that must stay.
pub(super) struct Problem<T> {
    case: Case,
    layer: Placement<T>,
    dout: Placed<T, 4>,
    dfinal_states: Placed<f32, 4>,
    dx: Placed<T, 4>,
    ddt: Placed<T, 3>,
    da: Placed<f32, 1>,
    db: Placed<T, 4>,
    dc: Placed<T, 4>,
    dd_per_head: Placed<f32, 1>,
    dd_per_channel: Placed<f32, 2>,
    dz: Placed<T, 4>,
    ddt_bias: Placed<f32, 1>,
    dinitial_states: Placed<f32, 4>,
    workspace: Workspace,
}

/// The gradients of what the layer returns.
#[derive(Clone)]
pub(super) struct Given<T> {
    pub(super) dout: Vec<T>,
    pub(super) dfinal_states: Vec<f32>,
}

impl<T: Number> Given<T> {
    pub(super) fn new(case: Case, deviation: f64) -> Self {
        let count = |shape: [usize; 4]| shape.iter().product();
        Self {
            dout: normal(21, count(case.x_shape()), deviation),
            dfinal_states: normal(22, count(case.states_shape()), deviation),
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
        let rows = |shape| Placed::output(stream, case.place(shape, 0), nan, guard);
        let (x, b) = (case.x_shape(), case.b_shape());
        let heads = || {
            let place = Place::contiguous([case.heads]);
            Placed::output(stream, place, f32::NAN, -123.0)
        };
        let (dout, dfinal) = (&given.dout, &given.dfinal_states);
        Self {
            case,
            layer: Placement::new(case, inputs, stream),
            dout: Placed::input(stream, case.place(x, 1), dout, nan),
            dfinal_states: Placed::input(stream, case.states_place(), dfinal, f32::NAN),
            dx: rows(x),
            ddt: Placed::output(stream, case.dt_place(), nan, guard),
            da: heads(),
            db: rows(b),
            dc: rows(b),
            dd_per_head: heads(),
            dd_per_channel: Placed::output(stream, case.d_place(), f32::NAN, -123.0),
            dz: rows(x),
            ddt_bias: heads(),
            dinitial_states: Placed::output(stream, case.states_place(), f32::NAN, -123.0),
            workspace: Workspace::new(stream),
        }
    }

    /// Queues the op, in a workspace of just the size that it asks for.
    pub(super) fn queue(&mut self, ssd: &Ssd, stream: &Arc<CudaStream>) -> Result<()> {
        self.reserve(ssd)?;
        let config = self.case.config;
        let (tensors, workspace) = self.tensors();
        ssd.backward(stream, config, tensors, workspace)
    }

    pub(super) fn reserve(&mut self, ssd: &Ssd) -> Result<()> {
        let config = self.case.config;
        let (tensors, workspace) = self.tensors();
        workspace.reserve(ssd.backward_plan(config, &tensors)?.workspace_bytes())
    }

    fn tensors(&mut self) -> (Backward<'_, T>, &mut Workspace) {
        let case = self.case;
        let tensors = Backward {
            layer: self.layer.view(case),
            dout: self.dout.view(),
            dfinal_states: case.final_states.then(|| self.dfinal_states.view()),
            dx: self.dx.view_mut(),
            ddt: self.ddt.view_mut(),
            da: self.da.view_mut(),
            db: self.db.view_mut(),
            dc: self.dc.view_mut(),
            dd: match case.skip {
                SkipKind::None => None,
                SkipKind::PerHead => Some(SkipMut::PerHead(self.dd_per_head.view_mut())),
                SkipKind::PerChannel => Some(SkipMut::PerChannel(self.dd_per_channel.view_mut())),
            },
            dz: case.z.then(|| self.dz.view_mut()),
            ddt_bias: case.dt_bias.then(|| self.ddt_bias.view_mut()),
            dinitial_states: case.initial_states.then(|| self.dinitial_states.view_mut()),
        };
        (tensors, &mut self.workspace)
    }

    /// The gradients by name, each with the length of its last axis, after a check that nothing beside them was
    /// written, and none that was not asked for.
    pub(super) fn fetch(&self, stream: &Arc<CudaStream>) -> Vec<(&'static str, Vec<f64>, usize)> {
        let Case {
            headdim,
            dstate,
            heads,
            ..
        } = self.case;
        let case = self.case;
        fn widen<T: Into<f64>>(x: Vec<T>) -> Vec<f64> {
            x.into_iter().map(Into::into).collect()
        }
        let dd = match case.skip {
            SkipKind::PerChannel => self.dd_per_channel.fetch(stream, "dd"),
            _ => self.dd_per_head.fetch(stream, "dd"),
        };
        let dinitial = self.dinitial_states.fetch(stream, "dinitial_states");
        let all = [
            ("dx", widen(self.dx.fetch(stream, "dx")), headdim, true),
            ("ddt", widen(self.ddt.fetch(stream, "ddt")), heads, true),
            ("da", widen(self.da.fetch(stream, "da")), heads, true),
            ("db", widen(self.db.fetch(stream, "db")), dstate, true),
            ("dc", widen(self.dc.fetch(stream, "dc")), dstate, true),
            ("dd", widen(dd), heads, case.skip != SkipKind::None),
            ("dz", widen(self.dz.fetch(stream, "dz")), headdim, case.z),
            (
                "ddt_bias",
                widen(self.ddt_bias.fetch(stream, "ddt_bias")),
                heads,
                case.dt_bias,
            ),
            (
                "dinitial_states",
                widen(dinitial),
                dstate,
                case.initial_states,
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

/// Grids that a naive run rounds to: those of the type, moved by factors. Gradients of few elements, each of which
/// sums up many, would be judged by luck if one run alone said what rounding may lose.
const GRIDS: [f64; 4] = [1.0, 1.189, 1.414, 1.682];

/// What the reference returns, and what naive runs in `T` return.
pub(super) fn expected<T: Number>(
    case: Case,
    inputs: &Inputs<T>,
    given: &Given<T>,
) -> [reference::Gradients; 1 + GRIDS.len()] {
    let dout: Vec<f64> = given.dout.iter().map(|&x| x.into()).collect();
    let dfinal: Vec<f64> = given.dfinal_states.iter().map(|&x| x.into()).collect();
    case.reference(inputs, |layer| {
        let backward = reference::Backward {
            forward: *layer,
            dout: &dout,
            dfinal_states: case.final_states.then_some(&dfinal[..]),
        };
        std::array::from_fn(|run| match run.checked_sub(1) {
            None => backward.run().unwrap(),
            Some(grid) => {
                let scale = GRIDS[grid];
                let round = |x| round_in_any_range::<T>(x * scale) / scale;
                backward.run_rounded(round).unwrap()
            }
        })
    })
}

/// A gradient of the reference by name.
fn named<'a>(gradients: &'a reference::Gradients, name: &str) -> &'a [f64] {
    match name {
        "dx" => &gradients.dx,
        "ddt" => &gradients.ddt,
        "da" => &gradients.da,
        "db" => &gradients.db,
        "dc" => &gradients.dc,
        "dd" => &gradients.dd,
        "dz" => gradients.dz.as_deref().unwrap_or_default(),
        "ddt_bias" => &gradients.ddt_bias,
        "dinitial_states" => &gradients.dinitial_states,
        _ => panic!("no gradient {name}"),
    }
}

/// Three times what the naive runs lose, plus one rounding. Rows are not judged one by one: a row of small gradients
/// has errors of the size of what was summed up in it.
fn bound<T: Number>(expected: &[f64], naive: &[&[f64]]) -> Bound {
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

/// Judges a gradient by those that the reference returned.
pub(super) fn judge<T: Number>(
    which: &str,
    found: &[f64],
    row: usize,
    runs: &[reference::Gradients],
) -> Verdict {
    let runs: Vec<&[f64]> = runs.iter().map(|run| named(run, which)).collect();
    let within = bound::<T>(runs[0], &runs[1..]);
    Verdict::of(found, runs[0], row, within)
}

/// Compares gradients with the reference's.
pub(super) fn compare<T: Number>(
    name: &str,
    found: &[(&'static str, Vec<f64>, usize)],
    runs: &[reference::Gradients],
) {
    for (which, found, row) in found {
        let verdict = judge::<T>(which, found, *row, runs);
        assert!(verdict.pass(), "{name}: {which}: {verdict}");
    }
}

/// Runs a layer backwards and compares all gradients with the reference.
pub(super) fn check<T: Number>(case: Case) {
    check_given::<T>(case, 1.0);
}

/// The same, of gradients of this standard deviation.
pub(super) fn check_given<T: Number>(case: Case, deviation: f64) {
    let device = device();
    let stream = device.stream();
    let name = format!("{:?} {case:?}", T::DTYPE);
    let (inputs, given) = (case.inputs::<T>(), Given::new(case, deviation));
    let mut problem = Problem::new(case, &inputs, &given, &stream);
    let queued = problem.queue(&device.ssd, &stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    compare::<T>(
        &name,
        &problem.fetch(&stream),
        &expected(case, &inputs, &given),
    );
}
