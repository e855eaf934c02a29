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

mod plan;
mod problem;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::ssd::{
    CarryParams, ForwardParams, Layer, Rows, SegmentParams, States, WALK, Walk, carry,
};
use crate::driver::Device;
use crate::error::Result;
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Half, TensorMut, TensorRef};
use crate::workspace::Workspace;
use problem::{Layouts, Problem, SkipLayout};

pub use plan::Plan;
pub use tensors::{Config, Forward, Skip};

/// Alignment of what the kernels copy 16 bytes at a time.
const COPY_BYTES: u64 = 16;

/// The kernels of state space duality, loaded into one context.
///
/// ```no_run
/// use half::bf16;
/// use seqmix::ssd::{Config, Forward, Ssd};
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
/// let layer = Forward {
///     x: x.view(),
///     dt: dt.view(),
///     a: a.view(),
///     b: b.view(),
///     c: b.view(),
///     d: None,
///     z: None,
///     dt_bias: None,
///     initial_states: None,
///     cu_seqlens: None,
///     out: out.view_mut(),
///     final_states: Some(states.view_mut()),
/// };
/// let config = Config::default();
/// let mut workspace = Workspace::new(&stream);
/// workspace.reserve(ssd.plan(config, &layer)?.workspace_bytes())?;
/// ssd.forward(&stream, config, layer, &mut workspace)?; // queued
///
/// // Each state is the sum of exp(-1)^i over all steps.
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
    segment: Vec<Kernel<SegmentParams>>,
    carry: Kernel<CarryParams>,
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for ForwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SegmentParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for CarryParams {}

impl Ssd {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`](crate::Error::KernelsNotBuilt) if the crate was built without nvcc;
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the device is older than compute capability
    /// 8.0; [`Error::Load`](crate::Error::Load) and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("ssd", ctx)?;
        let fits = |row: &&Walk| {
            row.forward_shared_bytes().max(row.segment_shared_bytes()) <= device.shared_bytes
        };
        let rows: Vec<Walk> = WALK.iter().filter(fits).copied().collect();
        let (mut forward, mut segment) = (Vec::new(), Vec::new());
        for row in &rows {
            let (whole, part) = (row.forward(), row.segment());
            forward.push(Kernel::load(&images::load(ctx, &whole.name)?, &whole)?);
            segment.push(Kernel::load(&images::load(ctx, &part.name)?, &part)?);
        }
        let carry = carry();
        Ok(Self {
            rows,
            forward,
            segment,
            carry: Kernel::load(&images::load(ctx, &carry.name)?, &carry)?,
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
    pub fn plan<T: Half>(&self, config: Config, tensors: &Forward<'_, T>) -> Result<Plan> {
        let op = "ssd::forward";
        let problem = Problem::new(op, T::DTYPE, config, &layouts(tensors))?;
        Plan::new(op, &problem, &self.rows, &self.device)
    }

    /// Queues a layer on `stream`.
    ///
    /// States, decays and sums are `f32`; what enters a product of tensor cores is rounded to `T`. The same inputs
    /// give the same bits. A sequence without steps has its initial state as its final state.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`](crate::Error);
    /// [`Error::Workspace`](crate::Error::Workspace) if fewer bytes are reserved than
    /// [`Plan::workspace_bytes`]. Nothing is queued then.
    pub fn forward<T: Half>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Forward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let op = "ssd::forward";
        let problem = Problem::new(op, T::DTYPE, config, &layouts(&tensors))?;
        let Forward {
            x,
            dt,
            a,
            b,
            c,
            d,
            z,
            dt_bias,
            initial_states,
            cu_seqlens,
            mut out,
            mut final_states,
        } = tensors;
        let plan = Plan::new(op, &problem, &self.rows, &self.device);
        let mut scratch = workspace.scratch();
        let mut memory;
        let mut launch = Launch::new(op, stream);
        launch.same_context("the operation", &self.ctx)?;
        let rows = |at, rows: Rows| Rows { at, ..rows };
        let states = |at, states: States| States { at, ..states };
        let mut layer = Layer {
            x: rows(launch.read("x", &x, COPY_BYTES)?, problem.layer.x),
            dt: rows(launch.read("dt", &dt, 2)?, problem.layer.dt),
            b: rows(launch.read("b", &b, COPY_BYTES)?, problem.layer.b),
            c: rows(launch.read("c", &c, COPY_BYTES)?, problem.layer.c),
            a: launch.read("a", &a, 4)?,
            ..problem.layer
        };
        if let Some(z) = &z {
            layer.z.at = launch.read("z", z, COPY_BYTES)?;
        }
        if let Some(dt_bias) = &dt_bias {
            layer.dt_bias = launch.read("dt_bias", dt_bias, 4)?;
        }
        layer.d = match &d {
            None => 0,
            Some(Skip::PerHead(d)) => launch.read("d", d, 4)?,
            Some(Skip::PerChannel(d)) => launch.read("d", d, 4)?,
        };
        if let Some(cu_seqlens) = &cu_seqlens {
            layer.cu_seqlens = launch.read("cu_seqlens", cu_seqlens, 4)?;
        }
        let initial = match &initial_states {
            Some(initial) => launch.read("initial_states", initial, COPY_BYTES)?,
            None => 0,
        };
        let out = launch.write("out", &mut out, COPY_BYTES)?;
        let last = match &mut final_states {
            Some(last) => launch.write("final_states", last, COPY_BYTES)?,
            None => 0,
        };
        if problem.is_empty() {
            return launch.check();
        }
        let plan = plan?;
        layer.segment = plan.segment as i32; // at most the steps and a chunk, which fit
        memory = scratch.take(plan.workspace_bytes())?;
        let starts = match &mut memory {
            Some(memory) => launch.write("workspace", memory, COPY_BYTES)?,
            None => 0,
        };
        let initial = states(initial, problem.initial);
        if starts != 0 {
            let decays = starts + plan.workspace[0] as u64;
            let params = SegmentParams {
                layer,
                states: starts,
                decays,
            };
            // SAFETY: `Problem::new` checked that the tensors have the sizes and strides that the
            // parameters tell the kernel, which accesses no index beyond them: it clamps what it reads
            // from cu_seqlens to the steps. The workspace has room for each slot, which `sequence_of`
            // in kernels/ssd/place.cuh keeps below the plan's.
            unsafe { launch.run(&self.segment[plan.row], plan.grid, &params) }?;
            let params = CarryParams {
                initial,
                cu_seqlens: layer.cu_seqlens,
                states: starts,
                decays,
                head_size: (problem.headdim * problem.dstate) as i64,
                steps: layer.steps,
                heads: layer.heads,
                dstate: layer.dstate,
                segment: layer.segment,
            };
            // SAFETY: as above; it reads what the kernel before it wrote.
            unsafe { launch.run(&self.carry, plan.grid_of_carry(&problem), &params) }?;
        }
        let params = ForwardParams {
            layer,
            out: rows(out, problem.out),
            initial,
            last: states(last, problem.last),
            starts,
        };
        // SAFETY: as above.
        unsafe { launch.run(&self.forward[plan.row], plan.grid, &params) }
    }
}

/// The layouts of a call's tensors.
fn layouts<T: Half>(tensors: &Forward<'_, T>) -> Layouts {
    Layouts {
        x: tensors.x.layout(),
        dt: tensors.dt.layout(),
        a: tensors.a.layout(),
        b: tensors.b.layout(),
        c: tensors.c.layout(),
        d: tensors.d.as_ref().map(|d| match d {
            Skip::PerHead(d) => SkipLayout::PerHead(d.layout()),
            Skip::PerChannel(d) => SkipLayout::PerChannel(d.layout()),
        }),
        z: tensors.z.as_ref().map(TensorRef::layout),
        dt_bias: tensors.dt_bias.as_ref().map(TensorRef::layout),
        initial_states: tensors.initial_states.as_ref().map(TensorRef::layout),
        cu_seqlens: tensors.cu_seqlens.as_ref().map(TensorRef::layout),
        out: tensors.out.layout(),
        final_states: tensors.final_states.as_ref().map(TensorMut::layout),
    }
}
