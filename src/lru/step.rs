//! One step of the recurrence, with states that are kept between calls.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::problem::{limits, parameters, rows};
use super::tensors::Step;
use super::{Lru, NUMBER, index, refuse};
use crate::abi::lru::{Signal, StepParams, THREADS};
use crate::check::Check;
use crate::error::Result;
use crate::launch::Launch;
use crate::tensor::{Float, TensorRef};

const CHECK: Check = Check { op: "lru::step" };

impl Lru {
    /// Queues one step on `stream`: what [`Self::forward`] does for a sequence of one step whose initial state is
    /// `state`, which the final state replaces. Needs no workspace.
    ///
    /// # Errors
    /// Shapes or layouts that do not fit, see [`Error`](crate::Error); nothing is queued then.
    pub fn step<T: Float>(&self, stream: &Arc<CudaStream>, mut tensors: Step<'_, T>) -> Result<()> {
        let mut params = describe(&tensors)?;
        let [batch, ..] = tensors.x.shape();
        let kernel = self.step.get(index(T::DTYPE));
        let kernel = kernel.ok_or_else(|| refuse(CHECK.op, T::DTYPE))?;
        let Step {
            x,
            a,
            gamma,
            state,
            state_batch_indices,
            out,
        } = &mut tensors;
        let mut launch = Launch::new(CHECK.op, stream);
        let number = 2 * size_of::<T>() as u64;
        params.x.at = launch.read("x", x, number)?;
        params.a = launch.read("a", a, NUMBER)?;
        if let Some(gamma) = gamma {
            params.gamma = launch.read("gamma", gamma, 4)?;
        }
        params.state.at = launch.write("state", state, NUMBER)?;
        if let Some(indices) = state_batch_indices {
            params.entries_of_rows = launch.read("state_batch_indices", indices, 4)?;
        }
        params.out.at = launch.write("out", out, number)?;
        launch.same_context("the operation", &self.ctx)?;
        let blocks = batch.saturating_mul(params.tiles as usize);
        if blocks == 0 {
            return launch.check();
        }
        // SAFETY: `describe` checked that the tensors have the sizes and strides that the parameters tell the kernel,
        // which skips rows of no entry and accesses no index beyond them.
        unsafe { launch.run(kernel, [blocks, 1, 1], &params) }
    }
}

/// The parameters of a call, without addresses.
fn describe<T: Float>(tensors: &Step<'_, T>) -> Result<StepParams> {
    let [batch, states, _] = tensors.x.shape();
    let entries = match &tensors.state_batch_indices {
        Some(indices) => {
            CHECK.sizes("state_batch_indices", [batch], indices.shape())?;
            CHECK.contiguous("state_batch_indices", &indices.layout())?;
            tensors.state.shape()[0]
        }
        None => batch,
    };
    limits(CHECK, "x", batch, states)?;
    limits(CHECK, "state", entries, states)?;
    let gamma = tensors.gamma.as_ref().map(TensorRef::layout);
    parameters(CHECK, &tensors.a.layout(), gamma.as_ref(), states)?;
    let signal = |name, layout| -> Result<Signal> {
        Ok(Signal {
            at: 0,
            batch_stride: rows(CHECK, name, &layout, [batch, states])?.row_stride,
            step_stride: 0,
        })
    };
    Ok(StepParams {
        x: signal("x", tensors.x.layout())?,
        out: signal("out", tensors.out.layout())?,
        state: rows(CHECK, "state", &tensors.state.layout(), [entries, states])?,
        // limited above
        entries: entries as i32,
        states: states as i32,
        tiles: states.div_ceil(THREADS) as i32,
        ..StepParams::default()
    })
}
