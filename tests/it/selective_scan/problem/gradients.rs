//! The gradients of a problem.

use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::selective_scan::{Backward, CoefficientMut, Forward, Gradients, SelectiveScan};
use seqmix::{Result, Workspace};

use super::{Coefficients, GUARD, Problem, judge, variable, widen};
use crate::naive::Number;
use crate::selective_scan::{Lie, expected};
use crate::support::Placed;

/// A gradient with its name, and whether it is of the type of u.
pub(in super::super) type Gradient = (&'static str, bool, Vec<f64>);

impl<T: Number> Problem<T> {
    /// The states that the forward pass keeps.
    fn checkpoints(&self, op: &SelectiveScan) -> Result<Placed<f32, 4>> {
        let config = self.case.config;
        let shape = op.checkpoint_shape(config, &self.views())?;
        let mut kept = self.of_f32(shape);
        let mut out = self.like_u();
        let mut forward = Forward {
            checkpoints: Some(kept.view_mut()),
            ..Forward::new(self.views(), out.view_mut())
        };
        let mut workspace = Workspace::new(&self.stream);
        let plan = op.plan(&self.stream, config, &mut forward)?;
        workspace.reserve(plan.workspace_bytes())?;
        op.forward(&self.stream, config, forward, &mut workspace)?;
        Ok(kept)
    }

    /// All gradients.
    pub(in super::super) fn run_backward(&self, op: &SelectiveScan) -> Result<Vec<Gradient>> {
        self.run_some(op, |_| true)
    }

    /// The same with those alone that are asked for; du and ddelta always are.
    pub(in super::super) fn run_some(
        &self,
        op: &SelectiveScan,
        asked: impl Fn(&str) -> bool,
    ) -> Result<Vec<Gradient>> {
        let Self { case, stream, .. } = self;
        let kept = match case.checkpoints {
            true => Some(self.checkpoints(op)?),
            false => None,
        };
        let (mut du, mut ddelta, mut dz) = (self.like_u(), self.like_u(), self.like_u());
        let mut da = self.of_f32([case.dim, case.floats()]);
        let mut db = self.unset(case.b);
        let mut dc = self.unset(case.c);
        let (mut dd, mut ddelta_bias) = (self.of_f32([case.dim]), self.of_f32([case.dim]));
        let mut dinitial_state = self.of_f32(self.states_shape());
        let gradients = Gradients {
            da: asked("dA").then(|| da.view_mut()),
            db: asked("dB").then(|| db.view_mut()),
            dc: asked("dC").then(|| dc.view_mut()),
            dd: asked("dD").then(|| dd.view_mut()),
            dz: (case.z && asked("dz")).then(|| dz.view_mut()),
            ddelta_bias: asked("ddelta_bias").then(|| ddelta_bias.view_mut()),
            dinitial_state: asked("dinitial_state").then(|| dinitial_state.view_mut()),
            ..Gradients::new(du.view_mut(), ddelta.view_mut())
        };
        let mut backward = Backward {
            dlast_state: self.dlast_state.as_ref().map(Placed::view),
            checkpoints: kept.as_ref().map(Placed::view),
            ..Backward::new(self.views(), self.dout.view(), gradients)
        };
        let mut workspace = Workspace::new(stream);
        let plan = op.plan_backward(stream, case.config, &mut backward)?;
        workspace.reserve(plan.workspace_bytes())?;
        op.backward(stream, case.config, backward, &mut workspace)?;
        let mut found = vec![
            ("du", true, widen(&du.fetch(stream, "du"))),
            ("ddelta", true, widen(&ddelta.fetch(stream, "ddelta"))),
            ("dA", false, widen(&da.fetch(stream, "dA"))),
            ("dB", case.b.is_some(), db.fetch(stream, "dB")),
            ("dC", case.c.is_some(), dc.fetch(stream, "dC")),
            ("dD", false, widen(&dd.fetch(stream, "dD"))),
            (
                "ddelta_bias",
                false,
                widen(&ddelta_bias.fetch(stream, "ddelta_bias")),
            ),
            (
                "dinitial_state",
                false,
                widen(&dinitial_state.fetch(stream, "dinitial_state")),
            ),
        ];
        if case.z {
            found.push(("dz", true, widen(&dz.fetch(stream, "dz"))));
        }
        Ok(found)
    }

    /// Computes all gradients and compares them.
    pub(in super::super) fn check_backward(&self, op: &SelectiveScan) {
        let name = format!("{:?} {:?}", T::DTYPE, self.case);
        let found = self
            .run_backward(op)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = expected::backward(&self.case, &self.inputs, T::round);
        let (steps, floats) = (self.case.seqlen, self.case.floats());
        let row_of = |variable: bool| if variable { steps } else { floats };
        for (tensor, narrow, found) in found {
            let (expected, row) = match tensor {
                "du" => (&expected.du, steps),
                "ddelta" => (&expected.ddelta, steps),
                "dA" => (&expected.da, floats),
                "dB" => (&expected.db, row_of(narrow)),
                "dC" => (&expected.dc, row_of(narrow)),
                "dD" => (&expected.dd, self.case.dim),
                "dz" => (expected.dz.as_ref().unwrap(), steps),
                "ddelta_bias" => (&expected.ddelta_bias, self.case.dim),
                _ => (&expected.dinitial_state, floats),
            };
            if narrow {
                judge::<T>(&name, tensor, &found, expected, row);
            } else {
                judge::<f32>(&name, tensor, &found, expected, row);
            }
        }
    }

    /// An output like B or C.
    fn unset(&self, lie: Option<Lie>) -> Coefficients<T> {
        match lie {
            Some(lie) => Coefficients::Variable(Placed::output(
                &self.stream,
                variable(&self.case, lie),
                T::narrow(f64::NAN),
                T::narrow(GUARD),
            )),
            None => Coefficients::Constant(self.of_f32([self.case.dim, self.case.floats()])),
        }
    }
}

impl<T: Number> Coefficients<T> {
    fn view_mut(&mut self) -> CoefficientMut<'_, T> {
        match self {
            Self::Variable(x) => CoefficientMut::Variable(x.view_mut()),
            Self::Constant(x) => CoefficientMut::Constant(x.view_mut()),
        }
    }

    fn fetch(&self, stream: &Arc<CudaStream>, name: &str) -> Vec<f64> {
        match self {
            Self::Variable(x) => widen(&x.fetch(stream, name)),
            Self::Constant(x) => widen(&x.fetch(stream, name)),
        }
    }
}
