//! State space duality, the layer of Mamba-2: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient
//! Algorithms Through Structured State Space Duality", 2024.
//!
//! Each head has a state, a matrix `[headdim, dstate]`, which decays by one number a step:
//!
//! ```text
//! dt'[t] = clamp(softplus(dt[t] + dt_bias), dt_limit)      or without softplus
//! S[t]   = exp(dt'[t] A) S[t-1] + (dt'[t] x[t]) B[t]^T
//! out[t] = (S[t] C[t] + D x[t]) silu(z[t])                 or without z
//! ```
//!
//! Tensor cores compute it chunk by chunk, and the state stays on the chip from chunk to chunk.
//! A single step, as in decoding, is [`SelectiveScan::step`](crate::selective_scan::SelectiveScan::step).

mod backward;
mod plan;
mod problem;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::ssd::{
    self as abi, CarryParams, Direction, ForwardParams, GRADIENT, Gradient, GradientParams, Rows,
    SUM_COEFFICIENTS, States, SumCoefficientsParams, SumParametersParams, SweepParams, WALK, Walk,
};
use crate::driver::Device;
use crate::error::Result;
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Float, TensorRef};
use crate::workspace::Workspace;
use problem::{Layouts, Problem, SkipLayout};

pub use plan::{BackwardPlan, Plan};
pub use tensors::{Backward, Config, Forward, Layer, Skip, SkipMut};

/// Alignment of what the kernels copy 16 bytes at a time.
const COPY_BYTES: u64 = 16;

/// The kernels of state space duality, loaded into one context.
///
/// ```no_run
/// use half::bf16;
/// use seqmix::ssd::{Config, Forward, Layer, Ssd};
/// use seqmix::{Tensor, Workspace};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let ssd = Ssd::new(&context)?;
///
/// // Two heads of 64 channels that share B and C of 128 states, over 300 steps.
/// let ones = |count| vec![bf16::ONE; count];
/// let x = Tensor::from_host(&stream, &ones(300 * 2 * 64), [1, 300, 2, 64])?;
/// let dt = Tensor::from_host(&stream, &ones(300 * 2), [1, 300, 2])?;
/// let a = Tensor::from_host(&stream, &[-1.0, -2.0], [2])?;
/// let b = Tensor::from_host(&stream, &ones(300 * 128), [1, 300, 1, 128])?;
/// let mut out = Tensor::<bf16, 4>::zeros(&stream, x.shape())?;
/// let mut states = Tensor::<f32, 4>::zeros(&stream, [1, 2, 64, 128])?;
/// let tensors = Forward {
///     layer: Layer::new(x.view(), dt.view(), a.view(), b.view(), b.view()),
///     out: out.view_mut(),
///     final_states: Some(states.view_mut()),
/// };
/// let config = Config::default();
/// let mut workspace = Workspace::new(&stream);
/// workspace.reserve(ssd.plan(config, &tensors)?.workspace_bytes())?;
/// ssd.forward(&stream, config, tensors, &mut workspace)?; // queued
///
/// // Each number of a state is the sum of exp(-1)^i over all steps.
/// let expected = 1.0 / (1.0 - (-1.0_f32).exp());
/// assert!((states.to_host(&stream)?[0] - expected).abs() < 0.01);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Ssd {
    /// The rows of the table that the device can run, and their kernels.
    rows: Vec<Walk>,
    forward: Vec<Kernel<ForwardParams>>,
    sweep: Vec<Kernel<SweepParams>>,
    sweep_back: Vec<Kernel<SweepParams>>,
    carry: Kernel<CarryParams>,
    /// The same of the table of gradients.
    gradient_rows: Vec<Gradient>,
    gradients: Vec<Kernel<GradientParams>>,
    /// In the order of [`SUM_COEFFICIENTS`].
    sum_coefficients: Vec<Kernel<SumCoefficientsParams>>,
    sum_parameters: Kernel<SumParametersParams>,
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for ForwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SweepParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for CarryParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for GradientParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SumCoefficientsParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SumParametersParams {}

/// Loads one kernel, which has an image of its own.
fn load<P: DeviceRepr>(ctx: &Arc<CudaContext>, entry: &crate::abi::Entry) -> Result<Kernel<P>> {
    Kernel::load(&images::load(ctx, &entry.name)?, entry)
}

impl Ssd {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`](crate::Error::KernelsNotBuilt) if the crate was built without nvcc;
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the device is older than compute capability
    /// 8.0; [`Error::Load`](crate::Error::Load) and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("ssd", ctx)?;
        let shared_bytes = |row: &Walk| {
            let sweep = row.sweep_shared_bytes(Direction::Backward);
            row.forward_shared_bytes().max(sweep)
        };
        let rows = WALK.iter().copied();
        let rows: Vec<Walk> = rows
            .filter(|row| shared_bytes(row) <= device.shared_bytes)
            .collect();
        let gradient_rows = GRADIENT.iter().copied();
        let gradient_rows: Vec<Gradient> = gradient_rows
            .filter(|row| row.shared_bytes() <= device.shared_bytes)
            .collect();
        let sweeps = |way| rows.iter().map(move |row| load(ctx, &row.sweep(way)));
        let forward: Result<_> = rows.iter().map(|row| load(ctx, &row.forward())).collect();
        let sweep: Result<_> = sweeps(Direction::Forward).collect();
        let sweep_back: Result<_> = sweeps(Direction::Backward).collect();
        let gradients = gradient_rows.iter().map(|row| load(ctx, &row.entry()));
        let gradients: Result<_> = gradients.collect();
        let sum_coefficients = SUM_COEFFICIENTS
            .iter()
            .map(|&dtype| load(ctx, &abi::sum_coefficients(dtype)));
        let sum_coefficients: Result<_> = sum_coefficients.collect();
        Ok(Self {
            forward: forward?,
            sweep: sweep?,
            sweep_back: sweep_back?,
            carry: load(ctx, &abi::carry())?,
            gradients: gradients?,
            sum_coefficients: sum_coefficients?,
            sum_parameters: load(ctx, &abi::sum_parameters())?,
            rows,
            gradient_rows,
            device,
            ctx: ctx.clone(),
        })
    }

    /// How [`Ssd::forward`] would run: which kernel, and how many bytes of workspace it needs.
    ///
    /// Nothing is queued.
    ///
    /// # Errors
    /// As [`Ssd::forward`], for what can be known without a stream.
    pub fn plan<T: Float>(&self, config: Config, tensors: &Forward<'_, T>) -> Result<Plan> {
        let (problem, _) = describe_forward(config, tensors)?;
        Plan::new(&problem, &self.rows, &self.device)
    }

    /// Queues a layer on `stream`.
    ///
    /// States, decays and sums are `f32`; what enters a product of tensor cores is rounded to `T`, and `f32` is
    /// multiplied with its 24 bits, in six times the work. The same inputs give the same bits. A sequence without steps has its initial state as its final state.
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
        let (problem, outputs) = describe_forward(config, &tensors)?;
        let mut scratch = workspace.scratch();
        let mut memory;
        let mut launch = Launch::new(problem.op, stream);
        launch.same_context("the operation", &self.ctx)?;
        let (mut layer, initial) = read_layer(&mut launch, &problem, &tensors.layer)?;
        let out = launch.write("out", &mut tensors.out, COPY_BYTES)?;
        let last = match &mut tensors.final_states {
            Some(last) => launch.write("final_states", last, COPY_BYTES)?,
            None => 0,
        };
        if problem.is_empty() {
            return launch.check();
        }
        let plan = Plan::new(&problem, &self.rows, &self.device)?;
        layer.segment = plan.segment as i32; // at most the steps and a chunk, which fit
        memory = scratch.take(plan.workspace_bytes())?;
        let starts = match &mut memory {
            Some(memory) => launch.write("workspace", memory, COPY_BYTES)?,
            None => 0,
        };
        if starts != 0 {
            let params = SweepParams {
                layer,
                before: initial,
                segments: starts,
                decays: starts + plan.workspace[0] as u64,
                phase: 0,
                ..SweepParams::default()
            };
            // SAFETY: `Problem` checked that the tensors have the sizes and strides that the parameters
            // tell the kernels, and the workspace has room for all segments.
            unsafe { self.pass_segments(&launch, &plan, &problem, &params, Direction::Forward) }?;
        }
        let params = ForwardParams {
            layer,
            out: Rows {
                at: out,
                ..outputs.out
            },
            initial,
            last: States {
                at: last,
                ..outputs.last
            },
            starts,
        };
        // SAFETY: `Problem` checked that the tensors have the sizes and strides that the parameters tell
        // the kernel, which accesses no index beyond them: it clamps what it reads from cu_seqlens to the
        // steps.
        unsafe { launch.run(&self.forward[plan.row], plan.grid, &params) }
    }

    /// Queues the kernels that compute the states before segments, or backwards those behind them.
    ///
    /// # Safety
    /// The tensors of `params` must be as it says, and its workspace have a slot for each segment: those
    /// that `Problem::slots` counts.
    unsafe fn pass_segments(
        &self,
        launch: &Launch<'_>,
        plan: &Plan,
        problem: &Problem,
        params: &SweepParams,
        way: Direction,
    ) -> Result<()> {
        let kernels = match way {
            Direction::Forward => &self.sweep,
            Direction::Backward => &self.sweep_back,
        };
        // SAFETY: this function's own condition; the kernel clamps what it reads from cu_seqlens to the
        // steps, so that no slot is beyond those counted.
        unsafe { launch.run(&kernels[plan.row], plan.grid, params) }?;
        let layer = params.layer;
        let params = CarryParams {
            before: params.before,
            cu_seqlens: layer.cu_seqlens,
            segments: params.segments,
            decays: params.decays,
            head_size: problem.head_size() as i64,
            steps: layer.steps,
            heads: layer.heads,
            dstate: layer.dstate,
            segment: layer.segment,
            backward: (way == Direction::Backward).into(),
        };
        // SAFETY: as above; it reads what the kernel before it wrote.
        unsafe { launch.run(&self.carry, plan.grid_of_carry(problem), &params) }
    }
}

/// How the outputs of a forward call lie.
struct Outputs {
    out: Rows,
    last: States,
}

fn describe_forward<T: Float>(
    config: Config,
    tensors: &Forward<'_, T>,
) -> Result<(Problem, Outputs)> {
    let problem = Problem::new("ssd::forward", T::DTYPE, config, &layouts(&tensors.layer))?;
    let outputs = Outputs {
        out: problem.like_x("out", tensors.out.layout())?,
        last: match &tensors.final_states {
            Some(states) => problem.states("final_states", states.layout())?,
            None => States::default(),
        },
    };
    Ok((problem, outputs))
}

/// The layouts of a layer's tensors.
fn layouts<T: Float>(layer: &Layer<'_, T>) -> Layouts {
    Layouts {
        x: layer.x.layout(),
        dt: layer.dt.layout(),
        a: layer.a.layout(),
        b: layer.b.layout(),
        c: layer.c.layout(),
        d: layer.d.as_ref().map(|d| match d {
            Skip::PerHead(d) => SkipLayout::PerHead(d.layout()),
            Skip::PerChannel(d) => SkipLayout::PerChannel(d.layout()),
        }),
        z: layer.z.as_ref().map(TensorRef::layout),
        dt_bias: layer.dt_bias.as_ref().map(TensorRef::layout),
        initial_states: layer.initial_states.as_ref().map(TensorRef::layout),
        cu_seqlens: layer.cu_seqlens.as_ref().map(TensorRef::layout),
    }
}

/// The layer with addresses, and its initial states.
fn read_layer<'a, T: Float>(
    launch: &mut Launch<'a>,
    problem: &Problem,
    tensors: &'a Layer<'_, T>,
) -> Result<(abi::Layer, States)> {
    let element = size_of::<T>() as u64;
    let mut layer = problem.layer;
    layer.x.at = launch.read("x", &tensors.x, COPY_BYTES)?;
    layer.dt.at = launch.read("dt", &tensors.dt, element)?;
    layer.a = launch.read("a", &tensors.a, 4)?;
    layer.b.at = launch.read("b", &tensors.b, COPY_BYTES)?;
    layer.c.at = launch.read("c", &tensors.c, COPY_BYTES)?;
    layer.d = match &tensors.d {
        None => 0,
        Some(Skip::PerHead(d)) => launch.read("d", d, 4)?,
        Some(Skip::PerChannel(d)) => launch.read("d", d, 4)?,
    };
    if let Some(z) = &tensors.z {
        layer.z.at = launch.read("z", z, COPY_BYTES)?;
    }
    if let Some(dt_bias) = &tensors.dt_bias {
        layer.dt_bias = launch.read("dt_bias", dt_bias, 4)?;
    }
    if let Some(cu_seqlens) = &tensors.cu_seqlens {
        layer.cu_seqlens = launch.read("cu_seqlens", cu_seqlens, 4)?;
    }
    let mut initial = problem.initial;
    if let Some(states) = &tensors.initial_states {
        initial.at = launch.read("initial_states", states, COPY_BYTES)?;
    }
    Ok((layer, initial))
}
