//! The selective scan of Mamba: a diagonal linear recurrence whose coefficients vary from step to step.
//!
//! ```text
//! x[t]   = exp(delta[t] A) x[t-1] + delta[t] B[t] u[t]
//! out[t] = (sum over states of C[t] x[t] + D u[t]) silu(z[t])
//! ```

mod backward;
mod backward_plan;
mod plan;
mod problem;
mod step;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::selective_scan as table;
use crate::abi::selective_scan::{
    BACKWARD, BackwardParams, CARRY_UNIT, CarryParams, ChannelSumsParams, Elements, FORWARD,
    ForwardParams, SMALL_THREADS, STEP_UNIT, SUMS_UNIT, Scan, Segments, States, StepParams,
    StepSumsParams,
};
use crate::abi::{Entry, selective_scan};
use crate::driver::Device;
use crate::error::Result;
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Float, TensorMut, TensorRef};
use crate::workspace::Workspace;
use problem::{CoefficientLayout, Layouts, Problem};

pub use backward_plan::BackwardPlan;
pub use plan::Plan;
pub use tensors::{
    Backward, Coefficient, CoefficientMut, Config, Direction, Forward, Gradients, Inputs, Numbers,
    Step, StepConfig, StepConvolution, Weight,
};

/// The kernels of the selective scan, loaded into one context.
#[derive(Debug)]
pub struct SelectiveScan {
    /// The rows of the tables that the device can run, and their kernels.
    rows: Vec<table::Forward>,
    forward: Vec<Kernel<ForwardParams>>,
    backward_rows: Vec<table::Backward>,
    backward: Vec<Kernel<BackwardParams>>,
    /// Of real and of complex numbers, as the following.
    carry: [Kernel<CarryParams>; 2],
    step_sums: [Kernel<StepSumsParams>; 2],
    channel_sums: [Kernel<ChannelSumsParams>; 2],
    step: [Kernel<StepParams>; 2],
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for ForwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for BackwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for CarryParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for StepSumsParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for ChannelSumsParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for StepParams {}

const FORWARD_OP: &str = "selective_scan::forward";

impl SelectiveScan {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`](crate::Error::KernelsNotBuilt) if the crate was built without nvcc;
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the device is older than compute capability
    /// 8.0; [`Error::Load`](crate::Error::Load) and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("selective_scan", ctx)?;
        let fits = |bytes: usize| bytes <= device.shared_bytes;
        let rows = FORWARD.iter().filter(|row| fits(row.shared_bytes()));
        let rows: Vec<_> = rows.copied().collect();
        let backward_rows = BACKWARD.iter().filter(|row| fits(row.shared_bytes()));
        let backward_rows: Vec<_> = backward_rows.copied().collect();
        let forward = rows.iter().map(|row| load_row(ctx, &row.entry()));
        let forward = forward.collect::<Result<_>>()?;
        let backward = backward_rows.iter().map(|row| load_row(ctx, &row.entry()));
        let backward = backward.collect::<Result<_>>()?;
        Ok(Self {
            rows,
            forward,
            backward_rows,
            backward,
            carry: load_both(ctx, CARRY_UNIT, selective_scan::carry)?,
            step_sums: load_both(ctx, SUMS_UNIT, selective_scan::step_sums)?,
            channel_sums: load_both(ctx, SUMS_UNIT, selective_scan::channel_sums)?,
            step: load_both(ctx, STEP_UNIT, selective_scan::step)?,
            device,
            ctx: ctx.clone(),
        })
    }

    /// The shape of [`Forward::checkpoints`] for these inputs: a state of each channel at the beginning of
    /// each of so many intervals of a sequence.
    ///
    /// # Errors
    /// As [`SelectiveScan::forward`].
    pub fn checkpoint_shape<T: Float>(
        &self,
        config: Config,
        inputs: &Inputs<'_, T>,
    ) -> Result<[usize; 4]> {
        let problem = Problem::new(FORWARD_OP, config, &layouts(inputs), &[])?;
        let interval = plan::interval(&problem, &self.backward_rows)?;
        Ok(problem.checkpoint_shape(interval))
    }

    /// How [`SelectiveScan::forward`] would run: in how many segments, and how many bytes of workspace it
    /// needs.
    ///
    /// Nothing is queued.
    ///
    /// # Errors
    /// As [`SelectiveScan::forward`].
    pub fn plan<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: &mut Forward<'_, T>,
    ) -> Result<Plan> {
        let call = self.call(stream, config, tensors)?;
        Plan::forward(&call.problem, &self.rows, &self.device)
    }

    /// Queues a scan on `stream`.
    ///
    /// Step sizes, decays and states are computed in `f32`, and results are rounded once. The same inputs
    /// give the same bits. Without steps the last state is the initial one.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`](crate::Error);
    /// [`Error::Workspace`](crate::Error::Workspace) if fewer bytes are reserved than
    /// [`Plan::workspace_bytes`]. Nothing is queued then.
    pub fn forward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Forward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let mut scratch = workspace.scratch();
        let mut memory;
        let Call {
            problem,
            mut launch,
            mut params,
        } = self.call(stream, config, &mut tensors)?;
        launch.same_context("the operation", &self.ctx)?;
        let plan = Plan::forward(&problem, &self.rows, &self.device)?;
        if problem.is_empty() || (problem.seqlen == 0 && params.last_state.at == 0) {
            return launch.check();
        }
        memory = scratch.take(plan.workspace)?;
        let at = match &mut memory {
            Some(memory) => launch.write("workspace", memory, 16)?,
            None => 0,
        };
        // SAFETY: `call` made the parameters of a checked problem, and the workspace has as many bytes as
        // the plan counted.
        unsafe { self.scan(&launch, &problem, &plan, at, &mut params) }
    }

    /// Queues the passes of a scan, whose segments are in the workspace `at`.
    ///
    /// # Safety
    /// `params` must describe `problem` and hold the addresses of its tensors, and there must be
    /// `plan.workspace` bytes at `at`.
    unsafe fn scan(
        &self,
        launch: &Launch<'_>,
        problem: &Problem,
        plan: &Plan,
        at: u64,
        params: &mut ForwardParams,
    ) -> Result<()> {
        let kernel = &self.forward[plan.row];
        let segments = plan.segments;
        params.scan.segments = segments as i32; // `plan::segments` keeps it below 2^16
        if segments > 1 {
            params.segments = segments_at(problem, segments, at);
            let ends = ForwardParams { pass: 1, ..*params };
            // SAFETY: this function's own condition: the kernel accesses no index beyond the sizes and
            // strides of the problem, which it tells the kernel; segments are in the workspace.
            unsafe { launch.run(kernel, [plan.blocks, segments - 1, 1], &ends) }?;
            let carried = CarryParams {
                first: params.scan.initial_state,
                ..carry_params(problem, &params.scan, params.segments)
            };
            // SAFETY: as above.
            unsafe { self.carry(launch, problem, &carried) }?;
        }
        // SAFETY: as above.
        unsafe { launch.run(kernel, [plan.blocks, segments, 1], params) }
    }

    /// Queues the kernel that carries states from segment to segment.
    ///
    /// # Safety
    /// `params` must hold the addresses of the problem's states, and of the plan's segments.
    unsafe fn carry(
        &self,
        launch: &Launch<'_>,
        problem: &Problem,
        params: &CarryParams,
    ) -> Result<()> {
        let numbers = problem.config.numbers;
        let count = problem.sequences * problem.dim * (problem.states / numbers.floats());
        let kernel = &self.carry[usize::from(numbers == Numbers::Complex)];
        // SAFETY: this function's own condition.
        unsafe { launch.run(kernel, [count.div_ceil(SMALL_THREADS), 1, 1], params) }
    }

    /// Checks the tensors of a call, and takes their addresses.
    fn call<'a, T: Float>(
        &self,
        stream: &'a Arc<CudaStream>,
        config: Config,
        tensors: &'a mut Forward<'_, T>,
    ) -> Result<Call<'a, ForwardParams>> {
        let Forward {
            inputs,
            out,
            ungated,
            last_state,
            checkpoints,
        } = tensors;
        let mut others = vec![("out", out.layout())];
        others.extend(ungated.as_ref().map(|x| ("ungated", x.layout())));
        let problem = Problem::new(FORWARD_OP, config, &layouts(inputs), &others)?;
        let mut launch = Launch::new(FORWARD_OP, stream);
        let mut params = ForwardParams {
            scan: read_inputs(&mut launch, inputs, problem.scan)?,
            out: write_elements(&mut launch, &problem, "out", out)?,
            ..ForwardParams::default()
        };
        if let Some(tensor) = ungated {
            params.ungated = write_elements(&mut launch, &problem, "ungated", tensor)?;
        }
        if let Some(tensor) = last_state {
            params.last_state = write_states(&mut launch, &problem, "last_state", tensor)?;
        }
        if let Some(tensor) = checkpoints {
            let interval = plan::interval(&problem, &self.backward_rows)?;
            problem.check_checkpoints(&tensor.layout(), interval)?;
            params.scan.checkpoint_bits = interval.ilog2() as i32; // at most 5
            params.checkpoints = launch.write("checkpoints", tensor, 16)?;
        }
        launch.check()?;
        Ok(Call {
            problem,
            launch,
            params,
        })
    }
}

/// A call whose tensors are checked.
struct Call<'a, P> {
    problem: Problem,
    launch: Launch<'a>,
    params: P,
}

/// Where segments lie in a workspace.
fn segments_at(problem: &Problem, segments: usize, at: u64) -> Segments {
    let [states, _] = plan::segment_bytes(problem, segments);
    Segments {
        states: at,
        deltas: at + states as u64,
    }
}

fn carry_params(problem: &Problem, scan: &Scan, segments: Segments) -> CarryParams {
    let floats = problem.config.numbers.floats();
    let numbers = problem.sequences * problem.dim * (problem.states / floats);
    CarryParams {
        a: scan.a,
        first: States::default(),
        segments,
        numbers: numbers as i64, // elements of a tensor
        dim: scan.dim,
        states: scan.states,
        count: scan.segments,
        backward: 0,
    }
}

/// The layouts of what a scan reads.
fn layouts<T: Float>(inputs: &Inputs<'_, T>) -> Layouts {
    let coefficient = |coefficient: &Coefficient<'_, T>| match coefficient {
        Coefficient::Variable(tensor) => CoefficientLayout::Variable(tensor.layout()),
        Coefficient::Constant(tensor) => CoefficientLayout::Constant(tensor.layout()),
    };
    let weight = |weight: &Option<Weight<'_, T, 1>>| weight.as_ref().map(Weight::layout);
    Layouts {
        dtype: T::DTYPE,
        u: inputs.u.layout(),
        delta: inputs.delta.layout(),
        a: inputs.a.layout(),
        b: coefficient(&inputs.b),
        c: coefficient(&inputs.c),
        d: weight(&inputs.d),
        z: inputs.z.as_ref().map(TensorRef::layout),
        delta_bias: weight(&inputs.delta_bias),
        initial_state: inputs.initial_state.as_ref().map(TensorRef::layout),
        cu_seqlens: inputs.cu_seqlens.as_ref().map(TensorRef::layout),
    }
}

/// The kernel of a row, from an image of its own.
fn load_row<P: DeviceRepr>(ctx: &Arc<CudaContext>, entry: &Entry) -> Result<Kernel<P>> {
    Kernel::load(&images::load(ctx, &entry.name)?, entry)
}

/// The kernels of real and of complex numbers.
fn load_both<P: DeviceRepr>(
    ctx: &Arc<CudaContext>,
    unit: &str,
    entry: fn(Numbers) -> Entry,
) -> Result<[Kernel<P>; 2]> {
    let module = images::load(ctx, unit)?;
    Ok([
        Kernel::load(&module, &entry(Numbers::Real))?,
        Kernel::load(&module, &entry(Numbers::Complex))?,
    ])
}

/// The address of a parameter of channels; 0 if there is none.
fn read_weight<'a, T: Float, const N: usize>(
    launch: &mut Launch<'a>,
    name: &'static str,
    weight: &'a Option<Weight<'_, T, N>>,
) -> Result<u64> {
    match weight {
        Some(Weight::F32(tensor)) => launch.read(name, tensor, 4),
        Some(Weight::Same(tensor)) => launch.read(name, tensor, size_of::<T>() as u64),
        None => Ok(0),
    }
}

/// A tensor like `u` that is written.
fn write_elements<'a, T: Float>(
    launch: &mut Launch<'a>,
    problem: &Problem,
    name: &'static str,
    tensor: &'a mut TensorMut<'_, T, 3>,
) -> Result<Elements> {
    let elements = problem.elements(name, &tensor.layout())?;
    Ok(elements.at(launch.write(name, tensor, size_of::<T>() as u64)?))
}

/// A tensor like `initial_state` that is written.
fn write_states<'a>(
    launch: &mut Launch<'a>,
    problem: &Problem,
    name: &'static str,
    tensor: &'a mut TensorMut<'_, f32, 3>,
) -> Result<States> {
    let states = problem.states_like(name, &tensor.layout())?;
    let at = launch.write(name, tensor, 4)?;
    Ok(States { at, ..states })
}

/// The scan with the addresses of what it reads.
fn read_inputs<'a, T: Float>(
    launch: &mut Launch<'a>,
    inputs: &'a Inputs<'_, T>,
    mut scan: Scan,
) -> Result<Scan> {
    let element = size_of::<T>() as u64;
    scan.u = scan.u.at(launch.read("u", &inputs.u, element)?);
    scan.delta = scan.delta.at(launch.read("delta", &inputs.delta, element)?);
    scan.a.at = launch.read("A", &inputs.a, 4)?;
    let mut coefficient = |name, coefficient: &'a Coefficient<'_, T>| match coefficient {
        Coefficient::Variable(tensor) => launch.read(name, tensor, element),
        Coefficient::Constant(tensor) => launch.read(name, tensor, 4),
    };
    scan.b = scan.b.at(coefficient("B", &inputs.b)?);
    scan.c = scan.c.at(coefficient("C", &inputs.c)?);
    scan.skip.at = read_weight(launch, "D", &inputs.d)?;
    scan.delta_bias.at = read_weight(launch, "delta_bias", &inputs.delta_bias)?;
    if let Some(z) = &inputs.z {
        scan.z = scan.z.at(launch.read("z", z, element)?);
    }
    if let Some(state) = &inputs.initial_state {
        scan.initial_state.at = launch.read("initial_state", state, 4)?;
    }
    if let Some(cu_seqlens) = &inputs.cu_seqlens {
        scan.cu_seqlens = launch.read("cu_seqlens", cu_seqlens, 4)?;
    }
    Ok(scan)
}
