//! The average of RWKV-4, called wkv: Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023.
//!
//! Each channel by itself averages its values, with weights that are exponentials of keys and fade with distance:
//!
//! ```text
//! out[t] = (a[t-1] + exp(bonus + k[t]) v[t]) / (b[t-1] + exp(bonus + k[t]))
//! a[t]   = exp(decay) a[t-1] + exp(k[t]) v[t]
//! b[t]   = exp(decay) b[t-1] + exp(k[t])
//! ```
//!
//! `a` and `b` are carried divided by the largest weight that is in them, so that no key is too large. The receptance,
//! whose sigmoid a model multiplies `out` with, is not part of it.
//!
//! RWKV-6 is linear attention with a gate of each channel and a bonus; RWKV-7 is [`rwkv7`](crate::rwkv7).

mod backward;
mod plan;
mod problem;
mod step;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::rwkv4::{
    self as abi, BackwardParams, DTYPES, ForwardParams, Layer, Purpose, Rows, StepParams,
    SumsParams,
};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Dtype, Float, TensorMut, TensorRef};
use crate::workspace::Workspace;
use problem::{Layouts, Problem};

pub use plan::Plan;
pub use tensors::{
    Backward, Config, Forward, Inputs, State, StateGradient, StateGradientMut, StateMut, Step,
};

/// The kernels of RWKV-4's average, loaded into one context.
///
/// ```no_run
/// use seqmix::rwkv4::{Config, Forward, Inputs, Rwkv4};
/// use seqmix::{Tensor, Workspace};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let rwkv4 = Rwkv4::new(&context)?;
///
/// // [batch, seqlen, dim]: keys of 0, so that all weights are 1
/// let k = Tensor::from_host(&stream, &[0.0_f32; 2 * 64], [1, 2, 64])?;
/// let v = Tensor::from_host(&stream, &[[3.0_f32; 64], [5.0; 64]].concat(), [1, 2, 64])?;
/// let zeros = Tensor::<f32, 1>::zeros(&stream, [64])?;
/// let mut out = Tensor::<f32, 3>::zeros(&stream, [1, 2, 64])?;
/// let tensors = Forward {
///     inputs: Inputs {
///         k: k.view(),
///         v: v.view(),
///         decay: zeros.view(),
///         bonus: zeros.view(),
///         initial_state: None,
///         cu_seqlens: None,
///     },
///     out: out.view_mut(),
///     final_state: None,
/// };
/// let mut workspace = Workspace::new(&stream);
/// workspace.reserve(rwkv4.plan(Config::default(), &tensors)?.workspace_bytes())?;
/// rwkv4.forward(&stream, Config::default(), tensors, &mut workspace)?; // queued
/// let out = out.to_host(&stream)?;
/// assert_eq!((out[0], out[64]), (3.0, 4.0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rwkv4 {
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

const FORWARD_OP: &str = "rwkv4::forward";

impl Rwkv4 {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`] if the crate was built without nvcc; [`Error::Unsupported`] if the device is older
    /// than compute capability 8.0; [`Error::Load`] and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("rwkv4", ctx)?;
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

    /// Queues the average on `stream`.
    ///
    /// All is computed in `f32`, and `out` is rounded once. The same inputs give the same bits. Without steps the
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
            mut out,
            mut final_state,
        } = tensors;
        let problem = Problem::new(FORWARD_OP, config, &layouts(&inputs))?;
        let plan = Plan::forward(&problem, &self.device);
        let mut params = ForwardParams {
            out: problem.signal("out", &out.layout())?,
            ..ForwardParams::default()
        };
        let mut finals = <[Rows; 3]>::default();
        if let Some(state) = &final_state {
            finals = problem.state("final_state", &state.layouts())?;
        }
        let kernels = self.forward_of(problem.check.op, problem.dtype)?;
        let mut scratch = workspace.scratch();
        let mut memory = scratch.take(plan.workspace_bytes())?;
        let mut launch = Launch::new(FORWARD_OP, stream);
        params.layer = read_inputs(&mut launch, &inputs, problem.layer)?;
        params.out.at = launch.write("out", &mut out, size_of::<T>() as u64)?;
        if let Some(state) = &mut final_state {
            finals = state.write(&mut launch, "final_state", finals)?;
        }
        [
            params.final_numerator,
            params.final_denominator,
            params.final_exponent,
        ] = finals;
        if let Some(memory) = &mut memory {
            params.layer.ends = launch.write("workspace", memory, 16)?;
        }
        launch.same_context("the operation", &self.ctx)?;
        if problem.is_empty() {
            return launch.check();
        }
        params.layer.segments = plan.segments as i32; // at most 64
        if plan.segments > 1 {
            // SAFETY: as below; this kernel reads k, v and the parameters, and writes to the workspace.
            unsafe { launch.run(&kernels[0], [plan.blocks, plan.segments - 1, 1], &params) }?;
        }
        // SAFETY: `Problem` checked that the tensors have the sizes and strides that the parameters tell the kernel,
        // which clamps `cu_seqlens` and accesses no index beyond them; `Plan::rows` counted the workspace.
        unsafe { launch.run(&kernels[1], [plan.blocks, plan.segments, 1], &params) }
    }

    /// The kernels of the passes from the first step to the last.
    fn forward_of(&self, op: &'static str, dtype: Dtype) -> Result<&[Kernel<ForwardParams>; 4]> {
        self.forward
            .get(index(dtype))
            .ok_or_else(|| refuse(op, dtype))
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
    let state = inputs.initial_state.as_ref();
    Layouts {
        dtype: T::DTYPE,
        k: inputs.k.layout(),
        v: inputs.v.layout(),
        decay: inputs.decay.layout(),
        bonus: inputs.bonus.layout(),
        initial_state: state.map(|state| {
            let tensors = [&state.numerator, &state.denominator, &state.exponent];
            tensors.map(TensorRef::layout)
        }),
        cu_seqlens: inputs.cu_seqlens.as_ref().map(TensorRef::layout),
    }
}

/// The layer with the addresses of what it reads.
fn read_inputs<'a, T: Float>(
    launch: &mut Launch<'a>,
    inputs: &'a Inputs<'_, T>,
    layer: Layer,
) -> Result<Layer> {
    let element = size_of::<T>() as u64;
    let mut layer = Layer {
        k: layer.k.at(launch.read("k", &inputs.k, element)?),
        v: layer.v.at(launch.read("v", &inputs.v, element)?),
        decay: layer.decay.at(launch.read("decay", &inputs.decay, 4)?),
        bonus: layer.bonus.at(launch.read("bonus", &inputs.bonus, 4)?),
        ..layer
    };
    if let Some(State {
        numerator,
        denominator,
        exponent,
    }) = &inputs.initial_state
    {
        let mut at = |rows: Rows, tensor| -> Result<Rows> {
            Ok(rows.at(launch.read("initial_state", tensor, 4)?))
        };
        layer.numerator = at(layer.numerator, numerator)?;
        layer.denominator = at(layer.denominator, denominator)?;
        layer.exponent = at(layer.exponent, exponent)?;
    }
    if let Some(cu_seqlens) = &inputs.cu_seqlens {
        layer.cu_seqlens = launch.read("cu_seqlens", cu_seqlens, 4)?;
    }
    Ok(layer)
}

impl StateMut<'_> {
    fn layouts(&self) -> problem::StateLayouts<3> {
        [&self.numerator, &self.denominator, &self.exponent].map(TensorMut::layout)
    }

    /// The rows with the addresses of what is written.
    fn write<'a>(
        &'a mut self,
        launch: &mut Launch<'a>,
        name: &'static str,
        rows: [Rows; 3],
    ) -> Result<[Rows; 3]> {
        let [numerator, denominator, exponent] = rows;
        Ok([
            numerator.at(launch.write(name, &mut self.numerator, 4)?),
            denominator.at(launch.write(name, &mut self.denominator, 4)?),
            exponent.at(launch.write(name, &mut self.exponent, 4)?),
        ])
    }
}
