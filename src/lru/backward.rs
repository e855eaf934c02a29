//! The gradients of the recurrence.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::problem::{Problem, complex, real};
use super::tensors::{Backward, Config};
use super::{Lru, NUMBER, Plan, index, layouts, read_inputs, refuse};
use crate::abi::lru::{BackwardParams, ForwardParams, Rows, SUMS_STATES, SumsParams};
use crate::error::Result;
use crate::launch::Launch;
use crate::tensor::Float;
use crate::workspace::Workspace;

const OP: &str = "lru::backward";

impl Lru {
    /// How [`Self::backward`] would run.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, as the call itself.
    pub fn backward_plan<T: Float>(
        &self,
        config: Config,
        tensors: &Backward<'_, T>,
    ) -> Result<Plan> {
        let problem = Problem::new(OP, config, &layouts(&tensors.inputs))?;
        Ok(Plan::backward(&problem, &self.device))
    }

    /// Queues the gradients of [`Self::forward`] on `stream`.
    ///
    /// The states are computed again. All is computed in `f32`, `dx` is rounded once; `da` and `dgamma` are summed over
    /// steps, segments and sequences in an order that sizes and plan alone decide, so that the same inputs give the
    /// same bits.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn backward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Backward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let problem = Problem::new(OP, config, &layouts(&tensors.inputs))?;
        let plan = Plan::backward(&problem, &self.device);
        let mut params = describe(&problem, &tensors)?;
        let mut sums = SumsParams {
            states: params.layer.states,
            ..SumsParams::default()
        };
        let forward = self.forward_of(OP, problem.dtype)?;
        let backward = self.backward.get(index(problem.dtype));
        let backward = backward.ok_or_else(|| refuse(OP, problem.dtype))?;
        let mut scratch = workspace.scratch();
        let mut memory = scratch.take(plan.workspace_bytes())?;
        let mut launch = Launch::new(OP, stream);
        addresses(&mut launch, &mut tensors, &mut params, &mut sums)?;
        let mut at = match &mut memory {
            Some(memory) => launch.write("workspace", memory, 16)?,
            None => 0,
        };
        let mut take = |bytes: usize| {
            let from = at;
            at += bytes as u64;
            from
        };
        let segments = plan.segments;
        params.layer.ends = take(plan.parts.ends);
        params.turns = take(plan.parts.turns);
        params.kept = take(plan.parts.kept);
        params.sums = take(plan.parts.sums);
        params.layer.segments = segments as i32; // at most 64
        launch.same_context("the operation", &self.ctx)?;
        if problem.states == 0 {
            return launch.check();
        }
        if !problem.is_empty() {
            let states = ForwardParams {
                layer: params.layer,
                dout: params.dout,
                kept: params.kept,
                turns: params.turns,
                ..ForwardParams::default()
            };
            let [ends, _, one_segment, turns] = forward;
            let grid = [plan.blocks, segments, 1];
            // SAFETY: `Problem` and `describe` checked that the tensors have the sizes and strides that the parameters
            // tell the kernels, which clamp `cu_seqlens` and access no index beyond them; `Plan::backward` counted
            // what they write to the workspace.
            unsafe {
                if segments > 1 {
                    launch.run(ends, [plan.blocks, segments - 1, 1], &states)?;
                    launch.run(turns, grid, &states)?;
                } else {
                    launch.run(one_segment, grid, &states)?;
                }
                launch.run(backward, grid, &params)?;
            }
        }
        if sums.da == 0 && sums.dgamma == 0 {
            return launch.check();
        }
        sums.sums = params.sums;
        sums.rows = (problem.sequences * segments) as i32; // blocks of the kernels before: the launch checked them
        let blocks = problem.states.div_ceil(SUMS_STATES);
        // SAFETY: the kernel reads as many sums as the one before it writes, and writes the vectors that `describe`
        // checked.
        unsafe { launch.run(&self.sums, [blocks, 2, 1], &sums) }
    }
}

/// The parameters of a call, without addresses.
fn describe<T: Float>(problem: &Problem, tensors: &Backward<'_, T>) -> Result<BackwardParams> {
    if let Some(da) = &tensors.da {
        complex("da", problem.check, &da.layout(), problem.states)?;
    }
    if let Some(dgamma) = &tensors.dgamma {
        real("dgamma", problem.check, &dgamma.layout(), problem.states)?;
    }
    Ok(BackwardParams {
        layer: problem.layer,
        dout: problem.signal("dstates", &tensors.dstates.layout())?,
        dx: problem.signal("dx", &tensors.dx.layout())?,
        dlast: match &tensors.dfinal_state {
            Some(state) => problem.rows("dfinal_state", &state.layout())?,
            None => Rows::default(),
        },
        dinitial: match &tensors.dinitial_state {
            Some(state) => problem.rows("dinitial_state", &state.layout())?,
            None => Rows::default(),
        },
        ..BackwardParams::default()
    })
}

/// Takes the addresses of a call's tensors.
fn addresses<'a, T: Float>(
    launch: &mut Launch<'a>,
    tensors: &'a mut Backward<'_, T>,
    params: &mut BackwardParams,
    sums: &mut SumsParams,
) -> Result<()> {
    let Backward {
        inputs,
        dstates,
        dfinal_state,
        dx,
        da,
        dgamma,
        dinitial_state,
    } = tensors;
    let number = 2 * size_of::<T>() as u64;
    params.layer = read_inputs(launch, inputs, params.layer)?;
    params.dout.at = launch.read("dstates", dstates, number)?;
    if let Some(state) = dfinal_state {
        params.dlast.at = launch.read("dfinal_state", state, NUMBER)?;
    }
    params.dx.at = launch.write("dx", dx, number)?;
    if let Some(da) = da {
        sums.da = launch.write("da", da, NUMBER)?;
    }
    if let Some(dgamma) = dgamma {
        sums.dgamma = launch.write("dgamma", dgamma, 4)?;
    }
    if let Some(state) = dinitial_state {
        params.dinitial.at = launch.write("dinitial_state", state, NUMBER)?;
    }
    Ok(())
}
