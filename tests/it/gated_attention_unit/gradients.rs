//! The gradients of a unit, from seeded inputs to a verdict by the reference, whose formulas finite differences
//! confirm.

use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::gated_attention_unit::{AffineMut, Backward, GatedAttentionUnit, PairMut};
use seqmix::reference::gated_attention_unit as reference;
use seqmix::{Dtype, Result, Workspace};

use super::{BITS, Case, Inputs, Placement, round_in_any_range};
use crate::measure::{Bound, Difference, Verdict};
use crate::naive::{Number, normal};
use crate::support::{Place, Placed, device};

/// The gradients of vectors, in the order of [`Inputs`].
const VECTORS: [&str; 8] = [
    "quadratic.q.dgamma",
    "quadratic.q.dbeta",
    "quadratic.k.dgamma",
    "quadratic.k.dbeta",
    "linear.q.dgamma",
    "linear.q.dbeta",
    "linear.k.dgamma",
    "linear.k.dbeta",
];

/// The gradients of a unit on the device; outputs are NaN, surrounded by a number that must stay.
pub(super) struct Problem<T> {
    case: Case,
    unit: Placement<T>,
    dout: Placed<T, 3>,
    du: Placed<T, 3>,
    dv: Placed<T, 3>,
    dz: Placed<T, 3>,
    vectors: [Placed<f32, 1>; 8],
    dbias: Placed<f32, 1>,
    workspace: Workspace,
}

/// The gradient of the output.
pub(super) fn dout<T: Number>(case: Case, deviation: f64) -> Vec<T> {
    normal(21, case.v_shape().iter().product(), deviation)
}

impl<T: Number> Problem<T> {
    pub(super) fn new(
        case: Case,
        inputs: &Inputs<T>,
        dout: &[T],
        stream: &Arc<CudaStream>,
    ) -> Self {
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(-123.0));
        let rows = |shape| Placed::output(stream, case.place(shape, 0), nan, guard);
        let vector = |count| {
            let place = Place::contiguous([count]);
            Placed::output(stream, place, f32::NAN, -123.0)
        };
        let (v, z) = (case.v_shape(), case.z_shape());
        Self {
            case,
            unit: Placement::new(case, inputs, stream),
            dout: Placed::input(stream, case.place(v, 2), dout, nan),
            du: rows(v),
            dv: rows(v),
            dz: rows(z),
            vectors: std::array::from_fn(|_| vector(case.dz)),
            dbias: vector(case.biases()),
            workspace: Workspace::new(stream),
        }
    }

    /// Queues the op, in a workspace of just the size that it asks for.
    pub(super) fn queue(
        &mut self,
        gau: &GatedAttentionUnit,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.reserve(gau)?;
        let config = self.case.config();
        let (tensors, workspace) = self.tensors();
        gau.backward(stream, config, tensors, workspace)
    }

    pub(super) fn reserve(&mut self, gau: &GatedAttentionUnit) -> Result<()> {
        let config = self.case.config();
        let (tensors, workspace) = self.tensors();
        workspace.reserve(gau.backward_plan(config, &tensors)?.workspace_bytes())
    }

    fn tensors(&mut self) -> (Backward<'_, T>, &mut Workspace) {
        let case = self.case;
        let mut vectors = self.vectors.each_mut().map(|x| x.view_mut()).into_iter();
        let mut affine = || {
            let mut next = || vectors.next().expect("eight vectors");
            AffineMut {
                dgamma: next(),
                dbeta: next(),
            }
        };
        let mut pair = || PairMut {
            q: affine(),
            k: affine(),
        };
        let tensors = Backward {
            unit: self.unit.view(case),
            dout: self.dout.view(),
            du: self.du.view_mut(),
            dv: self.dv.view_mut(),
            dz: self.dz.view_mut(),
            quadratic: pair(),
            linear: case.chunk.map(|_| pair()),
            dbias: case.bias.then(|| self.dbias.view_mut()),
        };
        (tensors, &mut self.workspace)
    }

    /// The gradients by name, each with the length of its last axis, after a check that nothing beside them was
    /// written, and none that was not asked for.
    pub(super) fn fetch(&self, stream: &Arc<CudaStream>) -> Vec<(&'static str, Vec<f64>, usize)> {
        let Case { dz, dv, .. } = self.case;
        fn widen<T: Into<f64>>(x: Vec<T>) -> Vec<f64> {
            x.into_iter().map(Into::into).collect()
        }
        let mut all = vec![
            ("du", widen(self.du.fetch(stream, "du")), dv, true),
            ("dv", widen(self.dv.fetch(stream, "dv")), dv, true),
            ("dz", widen(self.dz.fetch(stream, "dz")), dz, true),
        ];
        for (i, (name, vector)) in VECTORS.into_iter().zip(&self.vectors).enumerate() {
            let asked = i < 4 || self.case.chunk.is_some();
            all.push((name, widen(vector.fetch(stream, name)), dz, asked));
        }
        let dbias = widen(self.dbias.fetch(stream, "dbias"));
        let row = dbias.len();
        all.push(("dbias", dbias, row, self.case.bias));
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
const GRIDS: [f64; 3] = [1.0, 1.26, 1.587];

/// What the reference returns, and what naive runs in `T` return.
pub(super) fn expected<T: Number>(
    case: Case,
    inputs: &Inputs<T>,
    dout: &[T],
) -> [reference::Gradients; 1 + GRIDS.len()] {
    let dout: Vec<f64> = dout.iter().map(|&x| x.into()).collect();
    case.reference(inputs, |unit| {
        let backward = reference::Backward {
            forward: *unit,
            dout: &dout,
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
    if let Some(at) = VECTORS.iter().position(|vector| *vector == name) {
        let pair = match at < 4 {
            true => &gradients.quadratic,
            false => gradients.linear.as_ref().expect("a linear part"),
        };
        let affine = if at % 4 < 2 { &pair.q } else { &pair.k };
        return if at % 2 == 0 {
            &affine.dgamma
        } else {
            &affine.dbeta
        };
    }
    match name {
        "du" => &gradients.du,
        "dv" => &gradients.dv,
        "dz" => &gradients.dz,
        "dbias" => gradients.dbias.as_deref().unwrap_or_default(),
        _ => panic!("no gradient {name}"),
    }
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
    let unit = match T::DTYPE {
        Dtype::F32 => f64::powi(2.0, -BITS),
        _ => T::UNIT,
    };
    Bound {
        max_abs: 3.0 * max_abs + unit * largest,
        rel_l2: Some(3.0 * rel_l2 + unit),
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
    Verdict::of(found, runs[0], row, bound::<T>(runs[0], &runs[1..]))
}

/// Compares gradients with the reference's.
pub(super) fn compare<T: Number>(
    name: &str,
    found: &[(&'static str, Vec<f64>, usize)],
    runs: &[reference::Gradients],
) {
    let verdicts = found
        .iter()
        .map(|(which, found, row)| (which, judge::<T>(which, found, *row, runs)));
    let failed = verdicts.filter(|(_, verdict)| !verdict.pass());
    let failed: Vec<String> = failed
        .map(|(which, verdict)| format!("{which}: {verdict}"))
        .collect();
    assert!(failed.is_empty(), "{name}:\n{}", failed.join("\n"));
}

/// Runs a unit backwards and compares all gradients with the reference.
pub(super) fn check<T: Number>(case: Case) {
    check_given::<T>(case, 1.0);
}

/// The same, of a gradient of the output of this standard deviation.
pub(super) fn check_given<T: Number>(case: Case, deviation: f64) {
    let device = device();
    let stream = device.stream();
    let name = format!("{:?} {case:?}", T::DTYPE);
    let (inputs, dout) = (case.inputs::<T>(), dout(case, deviation));
    let mut problem = Problem::new(case, &inputs, &dout, &stream);
    let queued = problem.queue(&device.gated_attention_unit, &stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    compare::<T>(
        &name,
        &problem.fetch(&stream),
        &expected(case, &inputs, &dout),
    );
}
