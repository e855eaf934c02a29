//! The gradients of a unit.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::problem::{PairLayout, Problem};
use super::{
    AffineMut, AttendParams, Backward, BackwardPlan, COPY_BYTES, Config, GatedAttentionUnit,
    GradientParams, Inputs, PairMut, Rows, SumsParams, Unit, layouts,
};
use crate::abi::gated_attention_unit::AffineGradient;
use crate::error::Result;
use crate::launch::Launch;
use crate::tensor::{Float, TensorMut};
use crate::workspace::{Scratch, Workspace};

const OP: &str = "gated_attention_unit::backward";

/// The names of gradients of a pair.
pub(super) const QUADRATIC: [&str; 4] = [
    "quadratic.q.dgamma",
    "quadratic.q.dbeta",
    "quadratic.k.dgamma",
    "quadratic.k.dbeta",
];
pub(super) const LINEAR: [&str; 4] = [
    "linear.q.dgamma",
    "linear.q.dbeta",
    "linear.k.dgamma",
    "linear.k.dbeta",
];

impl GatedAttentionUnit {
    /// How [`GatedAttentionUnit::backward`] would run: how many bytes of workspace it needs.
    ///
    /// Nothing is queued.
    ///
    /// # Errors
    /// As [`GatedAttentionUnit::backward`], for what can be known without a stream.
    pub fn backward_plan<T: Float>(
        &self,
        config: Config,
        tensors: &Backward<'_, T>,
    ) -> Result<BackwardPlan> {
        let (problem, _) = describe(config, tensors)?;
        self.plan_backward(&problem, tensors.dbias.is_some())
    }

    /// The plan of a unit's gradients, before there are tensors for them.
    pub(super) fn backward_plan_unit<T: Float>(
        &self,
        config: Config,
        unit: &Unit<'_, T>,
        with_bias: bool,
    ) -> Result<BackwardPlan> {
        let problem = Problem::new(OP, T::DTYPE, config, &layouts(unit))?;
        self.plan_backward(&problem, with_bias)
    }

    fn plan_backward(&self, problem: &Problem, with_bias: bool) -> Result<BackwardPlan> {
        BackwardPlan::new(
            problem,
            with_bias,
            &self.attend_rows,
            &self.tiles,
            &self.device,
        )
    }

    /// Queues the gradients of a unit on `stream`. Nothing of the forward call is needed but its inputs: scores are
    /// computed again.
    ///
    /// Sums are `f32`; what enters a product of tensor cores (queries, keys, squares of scores and their gradients,
    /// states and theirs, the gradient of the sum that is gated) is rounded to `T`, and `f32` is multiplied with its 24
    /// bits. Sums over steps and sequences are added in an order that depends on the shapes alone: the same inputs give
    /// the same bits. Without steps the gradients of what makes queries and keys, and that of `bias`, are 0.
    ///
    /// # Errors
    /// As [`GatedAttentionUnit::forward`]; [`Error::Workspace`](crate::Error::Workspace) if fewer bytes are reserved
    /// than [`BackwardPlan::workspace_bytes`]. Nothing is queued then.
    pub fn backward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Backward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.backward_with(stream, config, tensors, &mut workspace.scratch())
    }

    /// [`GatedAttentionUnit::backward`] in a part of a workspace.
    pub(super) fn backward_with<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Backward<'_, T>,
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let (problem, outputs) = describe(config, &tensors)?;
        let plan = self.plan_backward(&problem, tensors.dbias.is_some())?;
        let mut memory;
        let mut launch = Launch::new(OP, stream);
        launch.same_context("the operation", &self.ctx)?;
        let inputs = Inputs::read(&mut launch, &problem, &tensors.unit)?;
        let rows = |at, rows: Rows| Rows { at, ..rows };
        let dout = launch.read("dout", &tensors.dout, COPY_BYTES)?;
        let dout = rows(dout, outputs.dout);
        let du = launch.write("du", &mut tensors.du, COPY_BYTES)?;
        let dv = launch.write("dv", &mut tensors.dv, COPY_BYTES)?;
        let dz = launch.write("dz", &mut tensors.dz, COPY_BYTES)?;
        let [quadratic_q, quadratic_k] = tensors.quadratic.write(&mut launch, QUADRATIC)?;
        let [linear_q, linear_k] = match &mut tensors.linear {
            Some(linear) => linear.write(&mut launch, LINEAR)?,
            None => Default::default(),
        };
        let dbias = match &mut tensors.dbias {
            Some(dbias) => launch.write("dbias", dbias, 4)?,
            None => 0,
        };
        memory = scratch.take(plan.workspace_bytes())?;
        let start = match &mut memory {
            Some(memory) => launch.write("workspace", memory, COPY_BYTES)?,
            None => 0,
        };
        launch.check()?;
        let at = |offset: usize| start + offset as u64;
        let (queries, keys) = (inputs.queries(), inputs.keys());
        if !problem.is_empty() {
            let attend = &self.attend[plan.forward.attend];
            let grid = plan.forward.grid;
            let states = plan.forward.states.as_ref();
            let states_met = states.map(|states| states.met);
            let da = rows(at(plan.da), problem.contiguous_like_v());

            if let Some(states) = states {
                // SAFETY: `Problem` and `describe` checked that the tensors have the sizes and strides that the
                // parameters tell the kernels; the workspace has room for all that the plan counted.
                unsafe {
                    let states = (states, start);
                    let met = states.0.met;
                    self.add_states::<T>(&launch, &plan.forward, &queries, inputs.v, states, met)
                }?;
            }
            let params = AttendParams {
                values: inputs.v,
                gate: dout,
                out: rows(du, outputs.du),
                other: inputs.u,
                product: da,
                ..queries.attend(states_met, start)
            };
            // SAFETY: as above; the kernels clamp what they read from cu_seqlens to the steps.
            unsafe { launch.run(attend, grid, &params) }?;

            if let (Some(states), Some(met)) = (states, plan.met) {
                // SAFETY: as above; it reads what the kernel before it wrote, here and below.
                unsafe {
                    let states = (states, start);
                    self.add_states::<T>(&launch, &plan.forward, &keys, da, states, met)
                }?;
            }
            let params = AttendParams {
                values: da,
                out: rows(dv, outputs.dv),
                ..keys.attend(plan.met, start)
            };
            // SAFETY: as above.
            unsafe { launch.run(attend, grid, &params) }?;

            let sides = [
                (&keys, inputs.v, da, plan.met, Rows::default(), true),
                (
                    &queries,
                    da,
                    inputs.v,
                    states_met,
                    rows(dz, outputs.dz),
                    false,
                ),
            ];
            for (side, left, right, met, dz, first) in sides {
                let params = GradientParams {
                    layer: side.layer,
                    rows: side.rows,
                    columns: side.columns,
                    linear: side.linear_rows,
                    left,
                    right,
                    states: met.map_or(0, |met| at(met.states)),
                    units: met.map_or(0, |met| at(met.units)),
                    part: at(plan.part),
                    dz,
                    sums: at(plan.sums),
                    sums_of_tile: plan.sums_of_tile as i64, // below 2^32
                    first: first.into(),
                    with_bias: (dbias != 0).into(),
                };
                let kernel = &self.gradients[plan.forward.tiles];
                // SAFETY: as above.
                unsafe { launch.run(kernel, plan.grid, &params) }?;
            }
        }
        let params = SumsParams {
            layer: inputs.layer,
            sums: at(plan.sums),
            sums_of_tile: plan.sums_of_tile as i64,
            quadratic_q,
            quadratic_k,
            linear_q,
            linear_k,
            dbias,
            affines: plan.affines as i64, // 4 or 8
        };
        // SAFETY: as above; where no tile was computed it reads no sum.
        unsafe { launch.run(&self.sums, plan.sums_grid, &params) }
    }
}

impl AffineMut<'_> {
    fn reborrow(&mut self) -> AffineMut<'_> {
        AffineMut {
            dgamma: self.dgamma.reborrow(),
            dbeta: self.dbeta.reborrow(),
        }
    }
}

impl PairMut<'_> {
    /// The same vectors, to write for a while.
    pub(super) fn reborrow(&mut self) -> PairMut<'_> {
        PairMut {
            q: self.q.reborrow(),
            k: self.k.reborrow(),
        }
    }

    /// The addresses of gradients of queries' and of keys' vectors, which a call writes.
    pub(super) fn write<'a>(
        &'a mut self,
        launch: &mut Launch<'a>,
        names: [&'static str; 4],
    ) -> Result<[AffineGradient; 2]> {
        let mut affine = |name: [&'static str; 2], by: &'a mut AffineMut<'_>| -> Result<_> {
            Ok(AffineGradient {
                dgamma: launch.write(name[0], &mut by.dgamma, 4)?,
                dbeta: launch.write(name[1], &mut by.dbeta, 4)?,
            })
        };
        Ok([
            affine([names[0], names[1]], &mut self.q)?,
            affine([names[2], names[3]], &mut self.k)?,
        ])
    }
}

/// How the gradients lie.
struct Outputs {
    dout: Rows,
    du: Rows,
    dv: Rows,
    dz: Rows,
}

fn describe<T: Float>(config: Config, tensors: &Backward<'_, T>) -> Result<(Problem, Outputs)> {
    let problem = Problem::new(OP, T::DTYPE, config, &layouts(&tensors.unit))?;
    let check = problem.check();
    match (problem.mixed, tensors.linear.is_some()) {
        (true, false) => return Err(check.argument("linear", "gradients, as mixed", "absent")),
        (false, true) => return Err(check.argument("linear", "none, as mixed", "gradients")),
        _ => {}
    }
    problem.pair(QUADRATIC, pair_layout(&tensors.quadratic))?;
    if let Some(linear) = &tensors.linear {
        problem.pair(LINEAR, pair_layout(linear))?;
    }
    if let Some(dbias) = &tensors.dbias {
        if tensors.unit.bias.is_none() {
            return Err(check.argument("dbias", "none, as bias", "a tensor"));
        }
        problem.like_bias("dbias", dbias.layout())?;
    }
    let outputs = Outputs {
        dout: problem.like_v("dout", tensors.dout.layout())?,
        du: problem.like_v("du", tensors.du.layout())?,
        dv: problem.like_v("dv", tensors.dv.layout())?,
        dz: problem.like_z("dz", tensors.dz.layout())?,
    };
    Ok((problem, outputs))
}

fn pair_layout(pair: &PairMut<'_>) -> PairLayout {
    [&pair.q.dgamma, &pair.q.dbeta, &pair.k.dgamma, &pair.k.dbeta].map(TensorMut::layout)
}
