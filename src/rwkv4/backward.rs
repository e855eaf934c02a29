//! The gradients of the average.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::problem::Problem;
use super::tensors::{Backward, Config, StateGradient, StateGradientMut};
use super::{Plan, Rwkv4, index, layouts, read_inputs, refuse};
use crate::abi::rwkv4::{BackwardParams, ForwardParams, Rows, SUMS_CHANNELS, SumsParams};
use crate::error::Result;
use crate::launch::Launch;
use crate::tensor::{Float, TensorMut, TensorRef};
use crate::workspace::Workspace;

const OP: &str = "rwkv4::backward";

impl Rwkv4 {
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
    /// The averages are computed again. All is computed in `f32`, `dk` and `dv` are rounded once; the gradients of
    /// decay and bonus are summed over steps, segments and sequences in an order that sizes and plan alone decide, so
    /// that the same inputs give the same bits.
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
        let (mut params, mut sums) = describe(&problem, &tensors)?;
        let dtype = problem.dtype;
        let forward = self.forward_of(OP, dtype)?;
        let backward = self.backward.get(index(dtype));
        let backward = backward.ok_or_else(|| refuse(OP, dtype))?;
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
        if problem.dim == 0 {
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
        if sums.ddecay.at == 0 && sums.dbonus.at == 0 {
            return launch.check();
        }
        sums.sums = params.sums;
        sums.rows = (problem.sequences * segments) as i32; // blocks of the kernels before: the launch checked them
        let blocks = problem.dim.div_ceil(SUMS_CHANNELS);
        // SAFETY: the kernel reads as many sums as the one before it writes, and writes the vectors that `describe`
        // checked.
        unsafe { launch.run(&self.sums, [blocks, 2, 1], &sums) }
    }
}

/// The parameters of a call, without addresses.
fn describe<T: Float>(
    problem: &Problem,
    tensors: &Backward<'_, T>,
) -> Result<(BackwardParams, SumsParams)> {
    let [dfinal_numerator, dfinal_denominator] = match &tensors.dfinal_state {
        Some(StateGradient {
            numerator,
            denominator,
        }) => problem.state(
            "dfinal_state",
            &[numerator, denominator].map(TensorRef::layout),
        )?,
        None => <[Rows; 2]>::default(),
    };
    let [dinitial_numerator, dinitial_denominator] = match &tensors.dinitial_state {
        Some(StateGradientMut {
            numerator,
            denominator,
        }) => problem.state(
            "dinitial_state",
            &[numerator, denominator].map(TensorMut::layout),
        )?,
        None => <[Rows; 2]>::default(),
    };
    let vector = |name, tensor: &Option<TensorMut<'_, f32, 1>>| match tensor {
        Some(tensor) => problem.vector(name, &tensor.layout()),
        None => Ok(Rows::default()),
    };
    let params = BackwardParams {
        dout: problem.signal("dout", &tensors.dout.layout())?,
        dk: problem.signal("dk", &tensors.dk.layout())?,
        dv: problem.signal("dv", &tensors.dv.layout())?,
        dfinal_numerator,
        dfinal_denominator,
        dinitial_numerator,
        dinitial_denominator,
        layer: problem.layer,
        ..BackwardParams::default()
    };
    let sums = SumsParams {
        ddecay: vector("ddecay", &tensors.ddecay)?,
        dbonus: vector("dbonus", &tensors.dbonus)?,
        dim: params.layer.dim,
        ..SumsParams::default()
    };
    Ok((params, sums))
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
        dout,
        dfinal_state,
        dk,
        dv,
        ddecay,
        dbonus,
        dinitial_state,
    } = tensors;
    let element = size_of::<T>() as u64;
    params.layer = read_inputs(launch, inputs, params.layer)?;
    params.dout.at = launch.read("dout", dout, element)?;
    if let Some(StateGradient {
        numerator,
        denominator,
    }) = dfinal_state
    {
        params.dfinal_numerator.at = launch.read("dfinal_state", numerator, 4)?;
        params.dfinal_denominator.at = launch.read("dfinal_state", denominator, 4)?;
    }
    params.dk.at = launch.write("dk", dk, element)?;
    params.dv.at = launch.write("dv", dv, element)?;
    if let Some(ddecay) = ddecay {
        sums.ddecay.at = launch.write("ddecay", ddecay, 4)?;
    }
    if let Some(dbonus) = dbonus {
        sums.dbonus.at = launch.write("dbonus", dbonus, 4)?;
    }
    if let Some(StateGradientMut {
        numerator,
        denominator,
    }) = dinitial_state
    {
        params.dinitial_numerator.at = launch.write("dinitial_state", numerator, 4)?;
        params.dinitial_denominator.at = launch.write("dinitial_state", denominator, 4)?;
    }
    Ok(())
}
