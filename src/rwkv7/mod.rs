//! The recurrence of RWKV-7: Peng et al., "RWKV-7 \"Goose\" with Expressive Dynamic State Evolution", 2025.
//!
//! Each head has a state, a matrix `[dk, dv]`. Its channels fade, each by itself; what `a` finds in it is added again
//! along `b`; and a value is written by a key:
//!
//! ```text
//! S[t]   = (diag(exp(decay[t])) + b[t] a[t]^T) S[t-1] + k[t] v[t]^T
//! out[t] = S[t]^T r[t]
//! ```
//!
//! The gated delta rule is the special case of `a = exp(decay) k`, `b = -beta k` and `beta k` for `k`; where all keys
//! are such multiples, [`linear_attention`](crate::linear_attention) multiplies chunks of steps on tensor cores.
//! RWKV-6 is linear attention with a bonus, and RWKV-4 is [`rwkv4`](crate::rwkv4).

mod backward;
mod plan;
mod problem;
mod step;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::rwkv7::{self as abi, BackwardParams, ForwardParams, Layer, Rows, SIZES, SLICES};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Float, TensorMut, TensorRef};
use problem::{Layouts, Problem};

pub use plan::Plan;
pub use tensors::{Backward, Config, Forward, Inputs, Step};

/// The kernels of RWKV-7's recurrence, loaded into one context.
///
/// ```no_run
/// use seqmix::Tensor;
/// use seqmix::rwkv7::{Config, Forward, Inputs, Rwkv7};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let rwkv7 = Rwkv7::new(&context)?;
///
/// // [batch, seqlen, heads, channels]: nothing fades, and the second step removes half of what there was
/// let tensor = |numbers: [f32; 2]| Tensor::from_host(&stream, &numbers, [1, 2, 1, 1]);
/// let (ones, zeros, v) = (tensor([1.0, 1.0])?, tensor([0.0, 0.0])?, tensor([4.0, 6.0])?);
/// let (a, b) = (tensor([-1.0, -1.0])?, tensor([0.0, 0.5])?);
/// let mut out = tensor([0.0, 0.0])?;
/// let tensors = Forward {
///     inputs: Inputs {
///         r: ones.view(),
///         decay: zeros.view(),
///         k: ones.view(),
///         v: v.view(),
///         a: a.view(),
///         b: b.view(),
///         initial_state: None,
///         cu_seqlens: None,
///     },
///     out: out.view_mut(),
///     lookups: None,
///     final_state: None,
/// };
/// rwkv7.forward(&stream, Config::default(), tensors)?; // queued
/// assert_eq!(out.to_host(&stream)?, [4.0, 2.0 + 6.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rwkv7 {
    /// By size, in the order of `SIZES`, and then by slices, in that of `SLICES`.
    forward: Vec<[Kernel<ForwardParams>; 2]>,
    backward: Vec<Kernel<BackwardParams>>,
    replay: Vec<Kernel<BackwardParams>>,
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order, for both; the stub that build.rs writes for each kernel asserts that the struct
// in C++ has the same size and offsets.
unsafe impl DeviceRepr for ForwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for BackwardParams {}

const FORWARD_OP: &str = "rwkv7::forward";

impl Rwkv7 {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`] if the crate was built without nvcc; [`Error::Unsupported`] if the device is older
    /// than compute capability 8.0; [`Error::Load`] and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("rwkv7", ctx)?;
        let units = [abi::FORWARD_UNIT, abi::BACKWARD_UNIT, abi::REPLAY_UNIT];
        let [forward, backward, replay] = units.map(|unit| images::load(ctx, unit));
        let (forward, backward, replay) = (forward?, backward?, replay?);
        let of_size = |size| -> Result<_> {
            let [wide, narrow] =
                SLICES.map(|slices| Kernel::load(&forward, &abi::forward(size, slices)));
            Ok([wide?, narrow?])
        };
        let backward = SIZES.map(|size| Kernel::load(&backward, &abi::backward(size)));
        let replay = SIZES.map(|size| Kernel::load(&replay, &abi::replay(size)));
        Ok(Self {
            forward: SIZES.into_iter().map(of_size).collect::<Result<_>>()?,
            backward: backward.into_iter().collect::<Result<_>>()?,
            replay: replay.into_iter().collect::<Result<_>>()?,
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

    /// Queues the recurrence on `stream`. Needs no workspace.
    ///
    /// All is computed in `f32`, step by step, and `out` is rounded once. The same inputs give the same bits. Without
    /// steps the final state is the initial one.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`]; nothing is queued then.
    pub fn forward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Forward<'_, T>,
    ) -> Result<()> {
        let Forward {
            inputs,
            mut out,
            mut lookups,
            mut final_state,
        } = tensors;
        let problem = Problem::new(FORWARD_OP, config, &layouts(&inputs))?;
        let plan = Plan::forward(&problem, &self.device);
        let kernel = self.forward_of(problem.size, plan.slices)?;
        let final_layout = final_state.as_ref().map(TensorMut::layout);
        let mut params = ForwardParams {
            out: problem.values("out", out.layout())?,
            lookups: match &lookups {
                Some(lookups) => problem.values("lookups", lookups.layout())?,
                None => Rows::default(),
            },
            initial_state: problem.initial_state,
            final_state: problem.states("final_state", final_layout)?,
            entries: problem.sequences as i64, // limited by `Problem`
            ..ForwardParams::default()
        };
        let mut launch = Launch::new(FORWARD_OP, stream);
        let mut layer = read_inputs(&mut launch, &inputs, problem.layer)?;
        params.out.at = launch.write("out", &mut out, size_of::<T>() as u64)?;
        if let Some(lookups) = &mut lookups {
            params.lookups.at = launch.write("lookups", lookups, 4)?;
        }
        if let Some(state) = &inputs.initial_state {
            params.initial_state.at = launch.read("initial_state", state, 4)?;
        }
        if let Some(state) = &mut final_state {
            params.final_state.at = launch.write("final_state", state, 4)?;
        }
        launch.same_context("the operation", &self.ctx)?;
        if plan.blocks() == 0 {
            return launch.check();
        }
        let written = [
            (params.out, layer.dv, size_of::<T>()),
            (params.lookups, layer.dv, 4),
        ];
        let states = [params.initial_state, params.final_state];
        layer.ragged = layer.is_ragged(size_of::<T>(), &written).into();
        layer.ragged_states = states.iter().any(|state| state.is_ragged(layer.dv)).into();
        layer.slices = plan.slices as i32; // 1 or 4
        params.layer = layer;
        // SAFETY: `Problem` checked that the tensors have the sizes and strides that the parameters tell the kernel,
        // which clamps `cu_seqlens` and accesses no index beyond them.
        unsafe { launch.run(kernel, [plan.blocks(), 1, 1], &params) }
    }

    /// The kernel for a place in `SIZES`.
    fn forward_of(&self, size: usize, slices: usize) -> Result<&Kernel<ForwardParams>> {
        let place = SLICES.iter().position(|&other| other == slices);
        let kernels = self.forward.get(size).zip(place);
        let kernel = kernels.and_then(|(kernels, place)| kernels.get(place));
        kernel.ok_or_else(|| refuse(FORWARD_OP))
    }
}

/// For a size that `Problem` has refused already.
fn refuse(op: &'static str) -> Error {
    Error::Unsupported {
        op,
        request: "this size of heads".into(),
        available: format!("sizes up to {SIZES:?}"),
    }
}

/// The layouts of what both passes read.
fn layouts<T: Float>(inputs: &Inputs<'_, T>) -> Layouts {
    Layouts {
        dtype: T::DTYPE,
        r: inputs.r.layout(),
        decay: inputs.decay.layout(),
        k: inputs.k.layout(),
        v: inputs.v.layout(),
        a: inputs.a.layout(),
        b: inputs.b.layout(),
        initial_state: inputs.initial_state.as_ref().map(TensorRef::layout),
        cu_seqlens: inputs.cu_seqlens.as_ref().map(TensorRef::layout),
    }
}

/// The layer with the addresses of what it reads.
fn read_inputs<'a, T: Float>(
    launch: &mut Launch<'a>,
    inputs: &'a Inputs<'_, T>,
    layer: Layer,
) -> Result<Layer> {
    let mut at = |rows: Rows, name, tensor| -> Result<Rows> {
        Ok(rows.at(launch.read(name, tensor, size_of::<T>() as u64)?))
    };
    let mut layer = Layer {
        r: at(layer.r, "r", &inputs.r)?,
        k: at(layer.k, "k", &inputs.k)?,
        v: at(layer.v, "v", &inputs.v)?,
        a: at(layer.a, "a", &inputs.a)?,
        b: at(layer.b, "b", &inputs.b)?,
        ..layer
    };
    layer.decay.at = launch.read("decay", &inputs.decay, 4)?;
    if let Some(cu_seqlens) = &inputs.cu_seqlens {
        layer.cu_seqlens = launch.read("cu_seqlens", cu_seqlens, 4)?;
    }
    Ok(layer)
}
