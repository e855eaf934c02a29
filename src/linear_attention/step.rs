//! One step of a layer, with a state that is kept between calls.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::LinearAttention;
use super::tensors::{Config, Decay, Rule, Step};
use crate::abi::linear_attention::{Decays, Rows, STEP_SIZES, STEP_WIDTH, States, StepParams};
use crate::check::Check;
use crate::error::Result;
use crate::launch::Launch;
use crate::tensor::{Float, Layout, TensorRef};

const CHECK: Check = Check {
    op: "linear_attention::step",
};

/// The most rows and entries: the kernels multiply them with strides in 64 bits, and count blocks in 32.
const MAX_ROWS: usize = 1 << 30;

/// The most heads, and channels of a value.
const MAX_HEADS: usize = 1 << 15;

/// Bytes of a state that a thread reads at once, if rows allow it.
const PIECE: u64 = 16;

impl LinearAttention {
    /// Queues one step on `stream`: what [`LinearAttention::forward`] does for a sequence of one step whose initial
    /// states are `state` and `z`, which the final ones replace. Needs no workspace.
    ///
    /// All is computed in `f32`: mapped queries and keys are not rounded on the way. [`Config::causal`] and
    /// [`Config::segment`] make no difference to one step.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`](crate::Error); nothing is queued then.
    pub fn step<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Step<'_, T>,
    ) -> Result<()> {
        let mut params = describe(config, &tensors)?;
        let [batch, _, heads, _] = tensors.out.shape();
        let Step {
            q,
            k,
            v,
            decay,
            rule,
            bonus,
            state,
            z,
            state_batch_indices,
            out,
        } = &mut tensors;
        let mut launch = Launch::new(CHECK.op, stream);
        let element = size_of::<T>() as u64;
        params.q.at = launch.read("q", q, element)?;
        params.k.at = launch.read("k", k, element)?;
        params.v.at = launch.read("v", v, element)?;
        params.decays.at = match decay {
            Decay::None => 0,
            Decay::PerHead(decay) => launch.read("decay", decay, 4)?,
            Decay::PerStep(decay) => launch.read("decay", decay, 4)?,
            Decay::PerChannel(decay) => launch.read("decay", decay, 4)?,
        };
        if let Rule::Delta { beta } = rule {
            params.beta.at = launch.read("beta", beta, element)?;
        }
        if let Some(bonus) = bonus {
            params.bonus = launch.read("bonus", bonus, 4)?;
        }
        if let Some(indices) = state_batch_indices {
            params.entries_of_rows = launch.read("state_batch_indices", indices, 4)?;
        }
        params.state.at = launch.write("state", state, 4)?;
        params.ragged = ragged(&params.state, params.dv).into();
        if let Some(z) = z {
            params.z.at = launch.write("z", z, 4)?;
        }
        params.out.at = launch.write("out", out, element)?;
        launch.same_context("the operation", &self.ctx)?;
        let blocks = [heads, params.blocks_of_head as usize].into_iter();
        let blocks = blocks.fold(batch, usize::saturating_mul);
        let size = STEP_SIZES
            .iter()
            .position(|&size| params.dk as usize <= size);
        let kernel = size.and_then(|size| self.step.get(size));
        let (Some(kernel), 1..) = (kernel, blocks) else {
            return launch.check();
        };
        // SAFETY: `describe` checked that the tensors have the sizes and strides that the parameters tell the kernel,
        // which skips rows of no entry and accesses no index beyond them.
        unsafe { launch.run(kernel, [blocks, 1, 1], &params) }
    }
}

/// The parameters of a call, without addresses.
fn describe<T: Float>(config: Config, tensors: &Step<'_, T>) -> Result<StepParams> {
    let [batch, _, heads_q, dk] = tensors.q.shape();
    let ([_, _, heads_k, _], [_, _, heads_v, dv]) = (tensors.k.shape(), tensors.v.shape());
    let [_, _, heads, _] = tensors.out.shape();
    let largest = STEP_SIZES.into_iter().max().unwrap_or(0);
    CHECK.within("dk", dk, largest)?;
    CHECK.within("dv", dv, MAX_HEADS)?;
    let entries = match &tensors.state_batch_indices {
        Some(indices) => {
            CHECK.sizes("state_batch_indices", [batch], indices.shape())?;
            CHECK.contiguous("state_batch_indices", &indices.layout())?;
            tensors.state.shape()[0]
        }
        None => batch,
    };
    CHECK.at_most("q", batch, MAX_ROWS, "rows")?;
    CHECK.at_most("state", entries, MAX_ROWS, "entries")?;
    CHECK.at_most("out", heads, MAX_HEADS, "heads")?;
    let rows = |name, layout: Layout<4>, of: usize, channels| -> Result<Rows> {
        CHECK.sizes(name, [batch, 1, of, channels], layout.shape)?;
        let shared = CHECK.heads_per((name, of, "heads"), ("out", heads))?;
        let [batch_stride, step_stride, head_stride, _] = CHECK.row_strides(name, &layout, 1)?;
        Ok(Rows {
            at: 0,
            batch_stride,
            step_stride,
            head_stride,
            shared: shared as i64, // at most the heads
        })
    };
    let (slices, blocks_of_head) = match config.normalize {
        // one block moves z on, which all of a head read
        Some(_) => (dv.div_ceil(STEP_WIDTH), 1),
        None => (1, dv.div_ceil(STEP_WIDTH)),
    };
    let state = tensors.state.layout();
    CHECK.sizes("state", [entries, heads, dk, dv], state.shape)?;
    let [sequence_stride, head_stride, key_stride, _] = CHECK.row_strides("state", &state, 1)?;
    Ok(StepParams {
        q: rows("q", tensors.q.layout(), heads_q, dk)?,
        k: rows("k", tensors.k.layout(), heads_k, dk)?,
        v: rows("v", tensors.v.layout(), heads_v, dv)?,
        out: rows("out", tensors.out.layout(), heads, dv)?,
        beta: match &tensors.rule {
            Rule::Linear => Rows::default(),
            Rule::Delta { beta } => beta_of(&beta.layout(), [batch, 1, heads])?,
        },
        decays: decays_of(&tensors.decay, [batch, 1, heads, dk])?,
        state: States {
            at: 0,
            sequence_stride,
            head_stride,
            key_stride,
            value_stride: 1,
        },
        z: z_of(config, tensors, [entries, heads, dk])?,
        bonus: 0,
        bonus_stride: match &tensors.bonus {
            Some(bonus) => bonus_of(bonus, [heads, dk])?,
            None => 0,
        },
        entries_of_rows: 0,
        // all limited above
        entries: entries as i32,
        heads: heads as i32,
        dk: dk as i32,
        dv: dv as i32,
        slices: slices as i32,
        blocks_of_head: blocks_of_head as i32,
        feature_map: config.feature_map as i32,
        dtype: T::DTYPE.number(),
        ragged: 0,
        scale: config.scale.unwrap_or(1.0 / (dk as f32).sqrt()),
        eps: config.normalize.unwrap_or(0.0),
    })
}

/// Whether rows of these states, which have `dv` numbers, are no whole pieces.
fn ragged(states: &States, dv: i32) -> bool {
    let strides = states.sequence_stride | states.head_stride | states.key_stride;
    let bytes = (i64::from(dv) | strides) as u64 * size_of::<f32>() as u64;
    !(states.at | bytes).is_multiple_of(PIECE)
}

fn beta_of(layout: &Layout<3>, sizes: [usize; 3]) -> Result<Rows> {
    CHECK.sizes("beta", sizes, layout.shape)?;
    let [batch_stride, step_stride, head_stride] = CHECK.strides("beta", layout)?;
    Ok(Rows {
        at: 0,
        batch_stride,
        step_stride,
        head_stride,
        shared: 1,
    })
}

fn decays_of(decay: &Decay<'_>, sizes: [usize; 4]) -> Result<Decays> {
    let name = "decay";
    let [batch, one, heads, _] = sizes;
    let [batch_stride, step_stride, head_stride, channel_stride] = match decay {
        Decay::None => [0; 4],
        Decay::PerHead(decay) => {
            CHECK.sizes(name, [heads], decay.shape())?;
            [0, 0, CHECK.stride(name, &decay.layout(), 0)?, 0]
        }
        Decay::PerStep(decay) => {
            CHECK.sizes(name, [batch, one, heads], decay.shape())?;
            let [batch, step, head] = CHECK.strides(name, &decay.layout())?;
            [batch, step, head, 0]
        }
        Decay::PerChannel(decay) => {
            CHECK.sizes(name, sizes, decay.shape())?;
            CHECK.strides(name, &decay.layout())?
        }
    };
    Ok(Decays {
        at: 0,
        batch_stride,
        step_stride,
        head_stride,
        channel_stride,
    })
}

/// From one head of the bonus to the next.
fn bonus_of(bonus: &TensorRef<'_, f32, 2>, sizes: [usize; 2]) -> Result<i64> {
    CHECK.sizes("bonus", sizes, bonus.shape())?;
    let [head_stride, _] = CHECK.row_strides("bonus", &bonus.layout(), 1)?;
    Ok(head_stride)
}

/// The normaliser's state, which there is if outputs are normalised.
fn z_of<T: Float>(config: Config, tensors: &Step<'_, T>, sizes: [usize; 3]) -> Result<States> {
    match (config.normalize, &tensors.z) {
        (None, None) => Ok(States::default()),
        (Some(_), Some(z)) => {
            CHECK.sizes("z", sizes, z.shape())?;
            let [sequence_stride, head_stride, key_stride] = CHECK.strides("z", &z.layout())?;
            Ok(States {
                at: 0,
                sequence_stride,
                head_stride,
                key_stride,
                value_stride: 0,
            })
        }
        (Some(_), None) => Err(CHECK.argument("z", "a tensor with normalize", "none")),
        (None, Some(_)) => Err(CHECK.argument("z", "none without normalize", "a tensor")),
    }
}
