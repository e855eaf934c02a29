//! The call that computes gradients.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::backward_plan::{BackwardPlan, Given, step_sums_blocks};
use super::plan::{self, Plan, blocks_of_group};
use super::problem::{CoefficientLayout, Problem, coefficient_of};
use super::tensors::{Backward, CoefficientMut, Config, Gradients, Numbers};
use super::{
    SelectiveScan, carry_params, layouts, read_inputs, segments_at, write_elements, write_states,
};
use crate::abi::selective_scan::{
    BackwardParams, CarryParams, ChannelSum, ChannelSumsParams, Coefficient, Elements,
    ForwardParams, SMALL_THREADS, Scan, States, StepSumsParams,
};
use crate::error::{Error, Result};
use crate::launch::Launch;
use crate::tensor::{Float, TensorMut};
use crate::workspace::Workspace;

const OP: &str = "selective_scan::backward";

impl SelectiveScan {
    /// How [`SelectiveScan::backward`] would run, and how many bytes of workspace it needs.
    ///
    /// Nothing is queued.
    ///
    /// # Errors
    /// As [`SelectiveScan::backward`].
    pub fn plan_backward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: &mut Backward<'_, T>,
    ) -> Result<BackwardPlan> {
        let call = self.backward_call(stream, config, tensors)?;
        self.plan_gradients(&call)
    }

    /// Queues the gradients of a scan on `stream`.
    ///
    /// States are computed again from those that [`Forward::checkpoints`](super::Forward::checkpoints)
    /// holds. Sums are `f32`, in an order that depends on shapes and plan alone: the same inputs give the
    /// same bits.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`]; [`Error::Workspace`] if fewer bytes are
    /// reserved than [`BackwardPlan::workspace_bytes`]. Nothing is queued then.
    pub fn backward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Backward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let mut scratch = workspace.scratch();
        let mut memory;
        let call = self.backward_call(stream, config, &mut tensors)?;
        let plan = self.plan_gradients(&call)?;
        let Call {
            problem,
            mut launch,
            mut params,
            outputs,
        } = call;
        launch.same_context("the operation", &self.ctx)?;
        memory = scratch.take(plan.workspace_bytes())?;
        let segments = match &mut memory {
            Some(memory) => launch.write("workspace", memory, 16)?,
            None => 0,
        };
        let checkpoints = segments + plan.parts.segments as u64;
        let of_steps = checkpoints + plan.parts.checkpoints as u64;
        params.of_states = of_steps + plan.parts.of_steps as u64;
        params.of_channels = params.of_states + plan.parts.of_states as u64;
        if plan.parts.of_steps > 0 {
            params.of_steps = of_steps;
        }
        if let Some(states) = &plan.states {
            params.checkpoints = checkpoints;
            let mut forward = ForwardParams {
                scan: params.scan,
                checkpoints,
                ..ForwardParams::default()
            };
            // neither gate nor skip have a part in states
            forward.scan.z = Elements::default();
            // SAFETY: `backward_call` made the parameters of a checked problem; the workspace has as many
            // bytes as the plan counted.
            unsafe { self.scan(&launch, &problem, states, segments, &mut forward) }?;
        }
        if !problem.is_empty() {
            // SAFETY: as above; the states are those of the kernel before, or the caller's.
            unsafe { self.differentiate(&launch, &problem, &plan.main, segments, &mut params) }?;
        }
        // SAFETY: as above; the sums are those of the kernel before.
        unsafe { self.add_sums(&launch, &problem, &plan.main, &params, &outputs) }
    }

    fn plan_gradients(&self, call: &Call<'_>) -> Result<BackwardPlan> {
        let given = Given {
            states: call.params.checkpoints != 0,
            of_steps: call.outputs.of_steps(),
        };
        let rows = (&self.rows[..], &self.backward_rows[..]);
        BackwardPlan::new(&call.problem, rows, &self.device, given)
    }

    /// Queues the kernels of the gradients, up to sums.
    ///
    /// # Safety
    /// `params` must describe `problem` and hold the addresses of its tensors and of the workspace, whose
    /// segments begin at `segments`.
    unsafe fn differentiate(
        &self,
        launch: &Launch<'_>,
        problem: &Problem,
        plan: &Plan,
        segments: u64,
        params: &mut BackwardParams,
    ) -> Result<()> {
        let kernel = &self.backward[plan.row];
        params.scan.segments = plan.segments as i32; // `plan::segments` keeps it below 2^16
        if plan.segments > 1 {
            params.segments = segments_at(problem, plan.segments, segments);
            let ends = BackwardParams { pass: 1, ..*params };
            // SAFETY: this function's own condition: the kernel accesses no index beyond the sizes and
            // strides of the problem, which it tells the kernel, and the parts of the workspace.
            unsafe { launch.run(kernel, [plan.blocks, plan.segments, 1], &ends) }?;
            let carried = CarryParams {
                first: params.dlast_state,
                backward: 1,
                ..carry_params(problem, &params.scan, params.segments)
            };
            // SAFETY: as above.
            unsafe { self.carry(launch, problem, &carried) }?;
        }
        // SAFETY: as above.
        unsafe { launch.run(kernel, [plan.blocks, plan.segments, 1], params) }
    }

    /// Queues the last sums of the gradients.
    ///
    /// # Safety
    /// As [`Self::differentiate`], and `outputs` must be of the problem's sizes.
    unsafe fn add_sums(
        &self,
        launch: &Launch<'_>,
        problem: &Problem,
        plan: &Plan,
        params: &BackwardParams,
        outputs: &Outputs,
    ) -> Result<()> {
        let complex = usize::from(problem.config.numbers == Numbers::Complex);
        let rows = problem.sequences * plan.segments;
        let floats = rows * problem.dim * size_of::<f32>();
        let of_states = |index: usize| params.of_states + (index * floats * problem.states) as u64;
        let from = |sum: ChannelSum, from| ChannelSum { from, ..sum };
        let sums = ChannelSumsParams {
            a: from(outputs.a, of_states(0)),
            b: from(outputs.constant_b, of_states(1)),
            c: from(outputs.constant_c, of_states(2)),
            skip: from(outputs.skip, params.of_channels),
            delta_bias: from(outputs.delta_bias, params.of_channels + floats as u64),
            rows: rows as i64,
            dim: problem.dim as i64,
        };
        let threads = problem.dim * problem.states;
        if threads > 0 {
            // SAFETY: this function's own condition.
            unsafe {
                launch.run(
                    &self.channel_sums[complex],
                    [threads.div_ceil(SMALL_THREADS), 5, 1],
                    &sums,
                )
            }?;
        }
        if !outputs.of_steps() || step_sums_blocks(problem) == 0 {
            return Ok(());
        }
        let Scan {
            cu_seqlens,
            sequences,
            seqlen,
            states,
            groups,
            ..
        } = params.scan;
        let sums = StepSumsParams {
            from: params.of_steps,
            b: outputs.b,
            c: outputs.c,
            cu_seqlens,
            sequences,
            seqlen,
            states,
            groups,
            // channels of a group, of which there are fewer than 2^31
            blocks_of_group: blocks_of_group(problem, plan.channels) as i32,
            dtype: params.scan.u.dtype,
        };
        // SAFETY: this function's own condition.
        unsafe {
            launch.run(
                &self.step_sums[complex],
                [step_sums_blocks(problem), 1, 1],
                &sums,
            )
        }
    }

    /// Checks the tensors of a call, and takes their addresses.
    fn backward_call<'a, T: Float>(
        &self,
        stream: &'a Arc<CudaStream>,
        config: Config,
        tensors: &'a mut Backward<'_, T>,
    ) -> Result<Call<'a>> {
        let Backward {
            inputs,
            dout,
            dlast_state,
            checkpoints,
            gradients,
        } = tensors;
        let Gradients {
            du,
            ddelta,
            da,
            db,
            dc,
            dd,
            dz,
            ddelta_bias,
            dinitial_state,
        } = gradients;
        let mut others = vec![
            ("dout", dout.layout()),
            ("du", du.layout()),
            ("ddelta", ddelta.layout()),
        ];
        others.extend(dz.as_ref().map(|x| ("dz", x.layout())));
        let problem = Problem::new(OP, config, &layouts(inputs), &others)?;
        if dz.is_some() && inputs.z.is_none() {
            return Err(Error::Argument {
                op: OP,
                argument: "dz",
                expected: "None without z".into(),
                found: "a tensor".into(),
            });
        }
        let mut launch = Launch::new(OP, stream);
        let mut params = BackwardParams {
            scan: read_inputs(&mut launch, inputs, problem.scan)?,
            ..BackwardParams::default()
        };
        let interval = plan::interval(&problem, &self.backward_rows)?;
        params.scan.checkpoint_bits = interval.ilog2() as i32; // at most 5
        let address = launch.read("dout", dout, size_of::<T>() as u64)?;
        params.dout = problem.elements("dout", &dout.layout())?.at(address);
        if let Some(tensor) = dlast_state {
            let states = problem.states_like("dlast_state", &tensor.layout())?;
            let at = launch.read("dlast_state", tensor, 4)?;
            params.dlast_state = States { at, ..states };
        }
        if let Some(tensor) = checkpoints {
            problem.check_checkpoints(&tensor.layout(), interval)?;
            params.checkpoints = launch.read("checkpoints", tensor, 16)?;
        }
        params.du = write_elements(&mut launch, &problem, "du", du)?;
        params.ddelta = write_elements(&mut launch, &problem, "ddelta", ddelta)?;
        if let Some(tensor) = dz {
            params.dz = write_elements(&mut launch, &problem, "dz", tensor)?;
        }
        if let Some(tensor) = dinitial_state {
            params.dinitial_state = write_states(&mut launch, &problem, "dinitial_state", tensor)?;
        }
        let mut outputs = Outputs::default();
        if let Some(tensor) = da {
            outputs.a = matrix(&mut launch, &problem, "dA", tensor)?;
        }
        if let Some(tensor) = dd {
            outputs.skip = vector(&mut launch, &problem, "dD", tensor)?;
        }
        if let Some(tensor) = ddelta_bias {
            outputs.delta_bias = vector(&mut launch, &problem, "ddelta_bias", tensor)?;
        }
        let layouts = layouts(inputs);
        if let Some(db) = db {
            (outputs.b, outputs.constant_b) =
                coefficient(&mut launch, &problem, "dB", layouts.b, db)?;
        }
        if let Some(dc) = dc {
            (outputs.c, outputs.constant_c) =
                coefficient(&mut launch, &problem, "dC", layouts.c, dc)?;
            outputs.constant_c.readout = 1;
        }
        launch.check()?;
        Ok(Call {
            problem,
            launch,
            params,
            outputs,
        })
    }
}

/// A call whose tensors are checked.
struct Call<'a> {
    problem: Problem,
    launch: Launch<'a>,
    params: BackwardParams,
    outputs: Outputs,
}

/// What the last sums write; what is not wanted has no address.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Outputs {
    a: ChannelSum,
    b: Coefficient,
    c: Coefficient,
    constant_b: ChannelSum,
    constant_c: ChannelSum,
    skip: ChannelSum,
    delta_bias: ChannelSum,
}

impl Outputs {
    /// Whether gradients are wanted that differ from step to step and are sums over channels.
    fn of_steps(&self) -> bool {
        self.b.at != 0 || self.c.at != 0
    }
}

/// A gradient of numbers for each channel.
fn matrix<'a>(
    launch: &mut Launch<'a>,
    problem: &Problem,
    name: &'static str,
    tensor: &'a mut TensorMut<'_, f32, 2>,
) -> Result<ChannelSum> {
    let (check, layout) = (problem.check(), tensor.layout());
    check.sizes(name, [problem.dim, problem.states], layout.shape)?;
    Ok(ChannelSum {
        from: 0,
        channel_stride: check.stride(name, &layout, 0)?,
        state_stride: check.stride(name, &layout, 1)?,
        states: problem.scan.states,
        readout: 0,
        to: launch.write(name, tensor, 4)?,
    })
}

/// A gradient of a number for each channel.
fn vector<'a>(
    launch: &mut Launch<'a>,
    problem: &Problem,
    name: &'static str,
    tensor: &'a mut TensorMut<'_, f32, 1>,
) -> Result<ChannelSum> {
    let (check, layout) = (problem.check(), tensor.layout());
    check.sizes(name, [problem.dim], layout.shape)?;
    Ok(ChannelSum {
        from: 0,
        channel_stride: check.stride(name, &layout, 0)?,
        state_stride: 0,
        states: 1,
        readout: 0,
        to: launch.write(name, tensor, 4)?,
    })
}

/// The gradient of B or C, which lies as `of`: in one of the two forms, of which the other has no address.
fn coefficient<'a, T: Float>(
    launch: &mut Launch<'a>,
    problem: &Problem,
    name: &'static str,
    of: CoefficientLayout,
    tensor: &'a mut CoefficientMut<'_, T>,
) -> Result<(Coefficient, ChannelSum)> {
    match (of, tensor) {
        (CoefficientLayout::Variable(of), CoefficientMut::Variable(tensor)) => {
            let (check, layout) = (problem.check(), tensor.layout());
            check.sizes(name, of.shape, layout.shape)?;
            let layout = CoefficientLayout::Variable(layout);
            let gradient = coefficient_of(check, name, layout, T::DTYPE)?;
            let address = launch.write(name, tensor, size_of::<T>() as u64)?;
            Ok((gradient.at(address), ChannelSum::default()))
        }
        (CoefficientLayout::Constant(_), CoefficientMut::Constant(tensor)) => {
            let sum = matrix(launch, problem, name, tensor)?;
            Ok((Coefficient::default(), sum))
        }
        (of, _) => {
            let (expected, found) = match of {
                CoefficientLayout::Variable(_) => ("variable", "constant"),
                CoefficientLayout::Constant(_) => ("constant", "variable"),
            };
            Err(Error::Argument {
                op: problem.op,
                argument: name,
                expected: format!("{expected}, as what it is the gradient of"),
                found: found.into(),
            })
        }
    }
}
