//! Linear attention: attention without the softmax, so that a matrix of fixed size stands for all keys and values so
//! far. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", 2020;
//! with the decays and gates of RetNet, Lightning Attention, GLA and RWKV-6, and the delta rule of DeltaNet, Gated
//! DeltaNet and Kimi Delta Attention, see [`Decay`] and [`Rule`].
//!
//! With `f` the feature map, `q' = scale f(q)`, `k' = f(k)`, and `g[t]` the logarithm of the decay, each head has a
//! state `S`, a matrix `[dk, dv]`:
//!
//! ```text
//! S'[t]  = diag(exp(g[t])) S[t-1]
//! u[t]   = v[t]                     or, by the delta rule, beta[t] (v[t] - S'[t]^T k'[t])
//! S[t]   = S'[t] + k'[t] u[t]^T
//! out[t] = S[t]^T q'[t]             or (S[t-1] + diag(bonus) k'[t] u[t]^T)^T q'[t]
//! ```
//!
//! Tensor cores compute it chunk by chunk, and the state stays on the chip from chunk to chunk.
//!
//! # Models
//!
//! | model | decay | else |
//! | --- | --- | --- |
//! | RetNet | [`Decay::PerHead`] of [`retnet_decays`] | |
//! | Lightning Attention-2 | [`Decay::PerHead`] of [`lightning_decays`], times the layer's factor | a scale of 1 |
//! | Mamba-2, simple gated linear attention | [`Decay::PerStep`] | |
//! | gated linear attention | [`Decay::PerChannel`] of logarithms of sigmoids | |
//! | RWKV-6 | [`Decay::PerChannel`] of `-exp(w)` | [`Layer::rwkv6`]: the receptance as `q`, a bonus; [`Config::rwkv6`]: a scale of 1 |
//! | DeltaNet, gated DeltaNet | none, [`Decay::PerStep`] | [`Rule::Delta`], keys of length 1 |
//! | Kimi Delta Attention | [`Decay::PerChannel`] | [`Rule::Delta`], keys of length 1 |
//!
//! In RWKV-6 (Peng et al., "Eagle and Finch", 2024) a step and channel have the parameter `w`, which a small network
//! makes of the input, and decay by `exp(-exp(w))`: between 0 and 1 whatever `w` is. [`Decay`] takes logarithms, so that
//! `-exp(w)` is what it wants; the bonus is the model's `u`, called `time_faaaa` in its weights. Of a sequence the state
//! is `[dk, dv]`, keys first, which some implementations keep transposed.
//!
//! RWKV-7 multiplies the state by `diag(exp(g)) + b a^T`, with vectors `a` and `b` of its own; the delta rule is what is
//! left of that if `a` and `b` are multiples of the key. It is [`rwkv7`](crate::rwkv7), and RWKV-4 is
//! [`rwkv4`](crate::rwkv4).

mod backward;
mod backward_channels;
mod backward_decays;
mod backward_ends;
mod backward_plan;
mod backward_walks;
mod decays;
mod delta;
mod delta_segments;
mod forward;
mod last;
mod last_channels;
mod plan;
mod problem;
mod ragged;
mod step;
mod tensors;

use std::sync::Arc;

use cudarc::driver::{CudaContext, DeviceRepr};

use crate::abi::linear_attention::{
    self as abi, CarryParams, STEP_SIZES, States, StepParams, WALK, Walk, WalkParams,
};
use crate::driver::Device;
use crate::error::Result;
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Float, Layout, TensorRef};
use backward::Gradients;
use delta::Delta;
use problem::{DecayLayout, Layouts, Problem};

pub use backward_plan::BackwardPlan;
pub use decays::{lightning_decays, retnet_decays};
pub use plan::Plan;
pub use tensors::{Backward, Config, Decay, DecayMut, FeatureMap, Forward, Layer, Rule, Step};

/// The kernels of linear attention, loaded into one context.
///
/// ```no_run
/// use half::bf16;
/// use seqmix::linear_attention::{Config, Decay, Forward, Layer, LinearAttention};
/// use seqmix::{Tensor, Workspace};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let attention = LinearAttention::new(&context)?;
///
/// // Retention: two heads of 64 channels over 300 steps, whose states halve with each step.
/// let ones = Tensor::from_host(&stream, &[bf16::ONE; 300 * 2 * 64], [1, 300, 2, 64])?;
/// let decay = Tensor::from_host(&stream, &[-std::f32::consts::LN_2; 2], [2])?;
/// let mut out = Tensor::<bf16, 4>::zeros(&stream, ones.shape())?;
/// let mut state = Tensor::<f32, 4>::zeros(&stream, [1, 2, 64, 64])?;
/// let tensors = Forward {
///     layer: Layer {
///         decay: Decay::PerHead(decay.view()),
///         ..Layer::new(ones.view(), ones.view(), ones.view())
///     },
///     out: out.view_mut(),
///     final_state: Some(state.view_mut()),
///     final_z: None,
///     normalizer: None,
/// };
/// let config = Config::default();
/// let mut workspace = Workspace::new(&stream);
/// workspace.reserve(attention.plan(config, &tensors)?.workspace_bytes())?;
/// attention.forward(&stream, config, tensors, &mut workspace)?; // queued
///
/// // Each number of a state is the sum of all powers of 1/2.
/// assert!((state.to_host(&stream)?[0] - 2.0).abs() < 0.01);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LinearAttention {
    /// The rows of the table that the device can run, and their kernels.
    rows: Vec<Walk>,
    walk: Vec<Kernel<WalkParams>>,
    carry: Kernel<CarryParams>,
    /// In the order of `STEP_SIZES`.
    step: Vec<Kernel<StepParams>>,
    delta: Delta,
    gradients: Gradients,
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for WalkParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for CarryParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for StepParams {}

/// Loads one kernel, which has an image of its own.
fn load<P: DeviceRepr>(ctx: &Arc<CudaContext>, entry: &crate::abi::Entry) -> Result<Kernel<P>> {
    Kernel::load(&images::load(ctx, &entry.name)?, entry)
}

impl LinearAttention {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`](crate::Error::KernelsNotBuilt) if the crate was built without nvcc;
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the device is older than compute capability
    /// 8.0; [`Error::Load`](crate::Error::Load) and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("linear_attention", ctx)?;
        let rows = WALK.iter().copied();
        let rows: Vec<Walk> = rows
            .filter(|row| row.shared_bytes() <= device.shared_bytes)
            .collect();
        let walk: Result<_> = rows.iter().map(|row| load(ctx, &row.entry())).collect();
        let steps = images::load(ctx, abi::STEP_UNIT)?;
        let step = STEP_SIZES.map(|size| Kernel::load(&steps, &abi::step(size)));
        Ok(Self {
            walk: walk?,
            step: step.into_iter().collect::<Result<_>>()?,
            carry: load(ctx, &abi::carry())?,
            gradients: Gradients::load(ctx, &device)?,
            rows,
            delta: Delta::load(ctx, &device)?,
            device,
            ctx: ctx.clone(),
        })
    }
}

/// The layouts of a layer's tensors, and of its output or the gradient of that.
fn layouts<T: Float>(layer: &Layer<'_, T>, out: Layout<4>) -> Layouts {
    Layouts {
        q: layer.q.layout(),
        k: layer.k.layout(),
        v: layer.v.layout(),
        decay: match &layer.decay {
            Decay::None => DecayLayout::None,
            Decay::PerHead(decay) => DecayLayout::PerHead(decay.layout()),
            Decay::PerStep(decay) => DecayLayout::PerStep(decay.layout()),
            Decay::PerChannel(decay) => DecayLayout::PerChannel(decay.layout()),
        },
        beta: match &layer.rule {
            Rule::Linear => None,
            Rule::Delta { beta } => Some(beta.layout()),
        },
        bonus: layer.bonus.as_ref().map(TensorRef::layout),
        initial_state: layer.initial_state.as_ref().map(TensorRef::layout),
        initial_z: layer.initial_z.as_ref().map(TensorRef::layout),
        cu_seqlens: layer.cu_seqlens.as_ref().map(TensorRef::layout),
        out,
    }
}

/// The layer with addresses, but for what the rule takes, and its initial states.
fn read_layer<'a, T: Float>(
    launch: &mut Launch<'a>,
    problem: &Problem,
    tensors: &'a Layer<'_, T>,
) -> Result<(abi::Layer, States)> {
    let mut layer = problem.layer;
    let element = size_of::<T>() as u64;
    layer.q.at = launch.read("q", &tensors.q, element)?;
    layer.k.at = launch.read("k", &tensors.k, element)?;
    layer.v.at = launch.read("v", &tensors.v, element)?;
    layer.decays.at = match &tensors.decay {
        Decay::None => 0,
        Decay::PerHead(decay) => launch.read("decay", decay, 4)?,
        Decay::PerStep(decay) => launch.read("decay", decay, 4)?,
        Decay::PerChannel(decay) => launch.read("decay", decay, 4)?,
    };
    if let Some(bonus) = &tensors.bonus {
        layer.bonus = launch.read("bonus", bonus, 4)?;
    }
    if let Some(cu_seqlens) = &tensors.cu_seqlens {
        layer.cu_seqlens = launch.read("cu_seqlens", cu_seqlens, 4)?;
    }
    let mut initial = problem.initial;
    if let Some(states) = &tensors.initial_state {
        initial.at = launch.read("initial_state", states, 4)?;
    }
    Ok((layer, initial))
}

/// The initial states of the normaliser, with their address.
fn read_z<'a, T: Float>(
    launch: &mut Launch<'a>,
    problem: &Problem,
    tensors: &'a Layer<'_, T>,
) -> Result<States> {
    let mut initial = problem.initial_z;
    if let Some(z) = &tensors.initial_z {
        initial.at = launch.read("initial_z", z, 4)?;
    }
    Ok(initial)
}
