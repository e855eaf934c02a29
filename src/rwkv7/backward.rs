//! The gradients of the recurrence.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::problem::Problem;
use super::tensors::Backward;
use super::{Config, Plan, Rwkv7, layouts, read_inputs, refuse};
use crate::abi::rwkv7::{BackwardParams, Rows};
use crate::error::Result;
use crate::launch::Launch;
use crate::tensor::{Float, TensorMut, TensorRef};
use crate::workspace::Workspace;

const OP: &str = "rwkv7::backward";

impl Rwkv7 {
    /// How [`Self::backward`] would run.
    ///
    /// # Errors
    /// Shapes or layouts that do not fit, as the call itself.
    pub fn backward_plan<T: Float>(&self, tensors: &Backward<'_, T>) -> Result<Plan> {
        let problem = Problem::new(OP, Config::default(), &layouts(&tensors.inputs))?;
        Ok(Plan::backward(&problem))
    }

    /// Queues the gradients of [`Self::forward`] on `stream`.
    ///
    /// All is computed in `f32`, and each gradient is rounded once. No decay is divided by. Every sum has an order that
    /// sizes alone decide, so that the same inputs give the same bits.
    ///
    /// A gradient of a decay is what is left of larger numbers, the gradients of a channel's state times that state: it
    /// is exact to about 1e-6 of those, and so not to many digits where the decay itself is below that.
    ///
    /// # Errors
    /// As [`Self::forward`]; [`Error::Workspace`](crate::Error::Workspace) if fewer bytes are reserved than
    /// [`Plan::workspace_bytes`] of [`Self::backward_plan`].
    pub fn backward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        mut tensors: Backward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let problem = Problem::new(OP, Config::default(), &layouts(&tensors.inputs))?;
        let plan = Plan::backward(&problem);
        let mut params = describe(&problem, &tensors)?;
        let kernels = self.backward.get(problem.size);
        let kernels = kernels.zip(self.replay.get(problem.size));
        let (backward, replay) = kernels.ok_or_else(|| refuse(OP))?;
        let mut scratch = workspace.scratch();
        let mut memory = scratch.take(plan.workspace_bytes())?;
        let mut launch = Launch::new(OP, stream);
        addresses(&mut launch, &mut tensors, &mut params)?;
        if let Some(memory) = &mut memory {
            params.dlookups.at = launch.write("workspace", memory, 16)?;
            params.spans = params.dlookups.at + plan.lookups as u64;
        }
        launch.same_context("the operation", &self.ctx)?;
        if plan.blocks() == 0 {
            return launch.check();
        }
        params.layer.ragged = is_ragged(&params, size_of::<T>()).into();
        let BackwardParams {
            initial_state,
            dfinal_state,
            dinitial_state,
            ..
        } = params;
        let mut states = [initial_state, dfinal_state, dinitial_state].into_iter();
        params.layer.ragged_states = states.any(|state| state.is_ragged(params.layer.dv)).into();
        let grid = [plan.blocks(), 1, 1];
        // SAFETY: `Problem` and `describe` checked that the tensors have the sizes and strides that the parameters tell
        // the kernels, which clamp `cu_seqlens` and access no index beyond them; `Plan::backward` counted what they
        // write to the workspace.
        unsafe {
            launch.run(backward, grid, &params)?;
            launch.run(replay, grid, &params)
        }
    }
}

/// The parameters of a call, without addresses.
fn describe<T: Float>(problem: &Problem, tensors: &Backward<'_, T>) -> Result<BackwardParams> {
    let dfinal_state = tensors.dfinal_state.as_ref().map(TensorRef::layout);
    let dinitial_state = tensors.dinitial_state.as_ref().map(TensorMut::layout);
    // limited by `Problem`, as all of its sizes
    let [heads, dv] = [problem.heads, problem.dv].map(|size| size as i64);
    let step_stride = heads.saturating_mul(dv);
    Ok(BackwardParams {
        layer: problem.layer,
        dout: problem.values("dout", tensors.dout.layout())?,
        lookups: problem.values("lookups", tensors.lookups.layout())?,
        dlookups: Rows {
            at: 0,
            batch_stride: step_stride.saturating_mul(problem.seqlen as i64),
            step_stride,
            head_stride: dv,
        },
        dr: problem.keys("dr", tensors.dr.layout())?,
        dk: problem.keys("dk", tensors.dk.layout())?,
        dv: problem.values("dv", tensors.dv.layout())?,
        da: problem.keys("da", tensors.da.layout())?,
        db: problem.keys("db", tensors.db.layout())?,
        ddecay: problem.keys("ddecay", tensors.ddecay.layout())?,
        initial_state: problem.initial_state,
        dfinal_state: problem.states("dfinal_state", dfinal_state)?,
        dinitial_state: problem.states("dinitial_state", dinitial_state)?,
        spans: 0,
    })
}

/// Takes the addresses of a call's tensors.
fn addresses<'a, T: Float>(
    launch: &mut Launch<'a>,
    tensors: &'a mut Backward<'_, T>,
    params: &mut BackwardParams,
) -> Result<()> {
    let Backward {
        inputs,
        lookups,
        dout,
        dfinal_state,
        dr,
        ddecay,
        dk,
        dv,
        da,
        db,
        dinitial_state,
    } = tensors;
    let element = size_of::<T>() as u64;
    params.layer = read_inputs(launch, inputs, params.layer)?;
    params.lookups.at = launch.read("lookups", lookups, 4)?;
    params.dout.at = launch.read("dout", dout, element)?;
    if let Some(state) = &inputs.initial_state {
        params.initial_state.at = launch.read("initial_state", state, 4)?;
    }
    if let Some(state) = dfinal_state {
        params.dfinal_state.at = launch.read("dfinal_state", state, 4)?;
    }
    params.dr.at = launch.write("dr", dr, element)?;
    params.ddecay.at = launch.write("ddecay", ddecay, 4)?;
    params.dk.at = launch.write("dk", dk, element)?;
    params.dv.at = launch.write("dv", dv, element)?;
    params.da.at = launch.write("da", da, element)?;
    params.db.at = launch.write("db", db, element)?;
    if let Some(state) = dinitial_state {
        params.dinitial_state.at = launch.write("dinitial_state", state, 4)?;
    }
    Ok(())
}

/// Whether some row cannot be accessed by whole pieces.
fn is_ragged(params: &BackwardParams, bytes: usize) -> bool {
    let (dk, dv) = (params.layer.dk, params.layer.dv);
    let others = [
        (params.dout, dv, bytes),
        (params.lookups, dv, 4),
        (params.dlookups, dv, 4),
        (params.dr, dk, bytes),
        (params.dk, dk, bytes),
        (params.dv, dv, bytes),
        (params.da, dk, bytes),
        (params.db, dk, bytes),
        (params.ddecay, dk, 4),
    ];
    params.layer.is_ragged(bytes, &others)
}
