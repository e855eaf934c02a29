//! The recurrence of the linear recurrent unit (LRU): Orvieto et al., "Resurrecting Recurrent Neural Networks for Long
//! Sequences", 2023.
//!
//! Complex states that do not mix, each with an eigenvalue of its own that is the same at all steps:
//!
//! ```text
//! h[t] = exp(a) h[t-1] + gamma x[t]
//! ```
//!
//! The unit computes `y[t] = Re(C h[t]) + D u[t]` with `x[t] = B u[t]`: both are products of matrices, which
//! [`gemm`](crate::gemm) multiplies as real ones, with parts side by side. [`state_space::Ring`](crate::state_space::Ring)
//! draws what the parameters begin with.
//!
//! A unit whose B and C are diagonal, one input and one output for each state, is a
//! [`selective_scan`](crate::selective_scan) with complex numbers, step sizes of 1, `gamma` for B and half of C.

mod backward;
mod plan;
mod problem;
mod step;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::lru::{
    self as abi, BackwardParams, DTYPES, ForwardParams, Layer, Purpose, Rows, StepParams,
    SumsParams,
};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Dtype, Float, TensorRef};
use crate::workspace::Workspace;
use problem::{Layouts, Problem};

pub use plan::Plan;
pub use tensors::{Backward, Config, Forward, Inputs, Step};

/// The kernels of the linear recurrent unit, loaded into one context.
///
/// ```no_run
/// use seqmix::lru::{Config, Forward, Inputs, Lru};
/// use seqmix::{Tensor, Workspace};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let lru = Lru::new(&context)?;
///
/// // one state that halves and takes a quarter turn with each step
/// let a = [-std::f32::consts::LN_2, std::f32::consts::FRAC_PI_2];
/// let a = Tensor::from_host(&stream, &a, [1, 2])?;
/// let x = Tensor::from_host(&stream, &[1.0_f32, 0.0, 0.0, 0.0, 0.0, 0.0], [1, 3, 1, 2])?;
/// let mut states = Tensor::<f32, 4>::zeros(&stream, x.shape())?;
/// let tensors = Forward {
///     inputs: Inputs {
///         x: x.view(),
///         a: a.view(),
///         gamma: None,
///         initial_state: None,
///         cu_seqlens: None,
///     },
///     states: states.view_mut(),
///     final_state: None,
/// };
/// let mut workspace = Workspace::new(&stream);
/// workspace.reserve(lru.plan(Config::default(), &tensors)?.workspace_bytes())?;
/// lru.forward(&stream, Config::default(), tensors, &mut workspace)?; // queued
/// let states = states.to_host(&stream)?;
/// assert!((states[4] + 0.25).abs() < 1e-6 && states[5].abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lru {
    /// By type, in the order of `DTYPES`, and then by purpose, in that of `Purpose::ALL`.
    forward: Vec<[Kernel<ForwardParams>; 4]>,
    backward: Vec<Kernel<BackwardParams>>,
    step: Vec<Kernel<StepParams>>,
    sums: Kernel<SumsParams>,
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order, for all four; the stub that build.rs writes for each kernel asserts that
// the struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for ForwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for BackwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SumsParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for StepParams {}

const FORWARD_OP: &str = "lru::forward";

/// Bytes of a complex number of f32.
const NUMBER: u64 = 8;

impl Lru {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`] if the crate was built without nvcc; [`Error::Unsupported`] if the device is older
    /// than compute capability 8.0; [`Error::Load`] and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("lru", ctx)?;
        let [forward, backward, sums, step] = [
            abi::FORWARD_UNIT,
            abi::BACKWARD_UNIT,
            abi::SUMS_UNIT,
            abi::STEP_UNIT,
        ]
        .map(|unit| images::load(ctx, unit));
        let (forward, backward, step) = (forward?, backward?, step?);
        let passes = |dtype| -> Result<_> {
            let load = |purpose| Kernel::load(&forward, &abi::forward(dtype, purpose));
            let [ends, out, states, turns] = Purpose::ALL.map(load);
            Ok([ends?, out?, states?, turns?])
        };
        let backward = DTYPES.map(|dtype| Kernel::load(&backward, &abi::backward(dtype)));
        let step = DTYPES.map(|dtype| Kernel::load(&step, &abi::step(dtype)));
        Ok(Self {
            forward: DTYPES.into_iter().map(passes).collect::<Result<_>>()?,
            backward: backward.into_iter().collect::<Result<_>>()?,
            step: step.into_iter().collect::<Result<_>>()?,
            sums: Kernel::load(&sums?, &abi::sums())?,
            device,
            ctx: ctx.clone(),
        })
    }

    /// How [`Self::forward`] would run.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, as the call itself.
    pub fn plan<T: Float>(&self, config: Config, tensors: &Forward<'_, T>) -> Result<Plan> {
        let problem = Problem::new(FORWARD_OP, config, &layouts(&tensors.inputs))?;
        Ok(Plan::forward(&problem, &self.device))
    }

    /// Queues the recurrence on `stream`.
    ///
    /// All is computed in `f32`, and `states` are rounded once. The same inputs give the same bits. Without steps the
    /// final state is the initial one.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`]; [`Error::Workspace`] if fewer bytes are reserved than
    /// [`Plan::workspace_bytes`]. Nothing is queued then.
    pub fn forward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Forward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let Forward {
            inputs,
            mut states,
            mut final_state,
        } = tensors;
        let problem = Problem::new(FORWARD_OP, config, &layouts(&inputs))?;
        let plan = Plan::forward(&problem, &self.device);
        let mut params = ForwardParams {
            out: problem.signal("states", &states.layout())?,
            last: match &final_state {
                Some(state) => problem.rows("final_state", &state.layout())?,
                None => Rows::default(),
            },
            ..ForwardParams::default()
        };
        let kernels = self.forward_of(FORWARD_OP, problem.dtype)?;
        let mut scratch = workspace.scratch();
        let mut memory = scratch.take(plan.workspace_bytes())?;
        let mut launch = Launch::new(FORWARD_OP, stream);
        params.layer = read_inputs(&mut launch, &inputs, problem.layer)?;
        params.out.at = launch.write("states", &mut states, 2 * size_of::<T>() as u64)?;
        if let Some(state) = &mut final_state {
            params.last.at = launch.write("final_state", state, NUMBER)?;
        }
        if let Some(memory) = &mut memory {
            params.layer.ends = launch.write("workspace", memory, 16)?;
        }
        launch.same_context("the operation", &self.ctx)?;
        if problem.is_empty() {
            return launch.check();
        }
        params.layer.segments = plan.segments as i32; // at most 64
        if plan.segments > 1 {
            // SAFETY: as below; this kernel reads the inputs and writes to the workspace.
            unsafe { launch.run(&kernels[0], [plan.blocks, plan.segments - 1, 1], &params) }?;
        }
        // SAFETY: `Problem` checked that the tensors have the sizes and strides that the parameters tell the kernel,
        // which clamps `cu_seqlens` and accesses no index beyond them; `Plan::rows` counted the workspace.
        unsafe { launch.run(&kernels[1], [plan.blocks, plan.segments, 1], &params) }
    }

    /// The kernels of the passes from the first step to the last.
    fn forward_of(&self, op: &'static str, dtype: Dtype) -> Result<&[Kernel<ForwardParams>; 4]> {
        let kernels = self.forward.get(index(dtype));
        kernels.ok_or_else(|| refuse(op, dtype))
    }
}

/// The place of a type in `DTYPES`.
fn index(dtype: Dtype) -> usize {
    let place = DTYPES.iter().position(|&other| other == dtype);
    place.unwrap_or(DTYPES.len())
}

fn refuse(op: &'static str, dtype: Dtype) -> Error {
    Error::Unsupported {
        op,
        request: dtype.name().into(),
        available: "f16, bf16 and f32".into(),
    }
}

/// The layouts of what both passes read.
fn layouts<T: Float>(inputs: &Inputs<'_, T>) -> Layouts {
    Layouts {
        dtype: T::DTYPE,
        x: inputs.x.layout(),
        a: inputs.a.layout(),
        gamma: inputs.gamma.as_ref().map(TensorRef::layout),
        initial_state: inputs.initial_state.as_ref().map(TensorRef::layout),
        cu_seqlens: inputs.cu_seqlens.as_ref().map(TensorRef::layout),
    }
}

/// The layer with the addresses of what it reads.
fn read_inputs<'a, T: Float>(
    launch: &mut Launch<'a>,
    inputs: &'a Inputs<'_, T>,
    mut layer: Layer,
) -> Result<Layer> {
    layer.x.at = launch.read("x", &inputs.x, 2 * size_of::<T>() as u64)?;
    layer.a = launch.read("a", &inputs.a, NUMBER)?;
    if let Some(gamma) = &inputs.gamma {
        layer.gamma = launch.read("gamma", gamma, 4)?;
    }
    if let Some(state) = &inputs.initial_state {
        layer.initial.at = launch.read("initial_state", state, NUMBER)?;
    }
    if let Some(cu_seqlens) = &inputs.cu_seqlens {
        layer.cu_seqlens = launch.read("cu_seqlens", cu_seqlens, 4)?;
    }
    Ok(layer)
}
