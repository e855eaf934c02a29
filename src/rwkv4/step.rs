//! One step of the average, with a state that is kept between calls.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::problem::{limits, row, state, vector};
use super::tensors::Step;
use super::{Rwkv4, index, refuse};
use crate::abi::rwkv4::{StepParams, THREADS};
use crate::check::Check;
use crate::error::Result;
use crate::launch::Launch;
use crate::tensor::Float;

const CHECK: Check = Check { op: "rwkv4::step" };

impl Rwkv4 {
    /// Queues one step on `stream`: what [`Self::forward`] does for a sequence of one step whose initial state is
    /// `state`, which the final state replaces. Needs no workspace.
    ///
    /// # Errors
    /// Shapes or layouts that do not fit, see [`Error`](crate::Error); nothing is queued then.
    pub fn step<T: Float>(&self, stream: &Arc<CudaStream>, mut tensors: Step<'_, T>) -> Result<()> {
        let mut params = describe(&tensors)?;
        let [batch, _] = tensors.k.shape();
        let kernel = self.step.get(index(T::DTYPE));
        let kernel = kernel.ok_or_else(|| refuse(CHECK.op, T::DTYPE))?;
        let Step {
            k,
            v,
            decay,
            bonus,
            state,
            state_batch_indices,
            out,
        } = &mut tensors;
        let mut launch = Launch::new(CHECK.op, stream);
        let element = size_of::<T>() as u64;
        params.k.at = launch.read("k", k, element)?;
        params.v.at = launch.read("v", v, element)?;
        params.decay.at = launch.read("decay", decay, 4)?;
        params.bonus.at = launch.read("bonus", bonus, 4)?;
        let rows = [params.numerator, params.denominator, params.exponent];
        [params.numerator, params.denominator, params.exponent] =
            state.write(&mut launch, "state", rows)?;
        if let Some(indices) = state_batch_indices {
            params.entries_of_rows = launch.read("state_batch_indices", indices, 4)?;
        }
        params.out.at = launch.write("out", out, element)?;
        launch.same_context("the operation", &self.ctx)?;
        let blocks = batch.saturating_mul(params.channel_tiles as usize);
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
    let sizes @ [batch, dim] = tensors.k.shape();
    let entries = match &tensors.state_batch_indices {
        Some(indices) => {
            CHECK.sizes("state_batch_indices", [batch], indices.shape())?;
            CHECK.contiguous("state_batch_indices", &indices.layout())?;
            tensors.state.numerator.shape()[0]
        }
        None => batch,
    };
    limits(CHECK, "k", batch, dim)?;
    limits(CHECK, "state", entries, dim)?;
    let rows = state(CHECK, "state", &tensors.state.layouts(), [entries, dim])?;
    let [numerator, denominator, exponent] = rows;
    Ok(StepParams {
        k: row(CHECK, "k", &tensors.k.layout(), sizes)?,
        v: row(CHECK, "v", &tensors.v.layout(), sizes)?,
        decay: vector(CHECK, "decay", &tensors.decay.layout(), dim)?,
        bonus: vector(CHECK, "bonus", &tensors.bonus.layout(), dim)?,
        numerator,
        denominator,
        exponent,
        out: row(CHECK, "out", &tensors.out.layout(), sizes)?,
        entries_of_rows: 0,
        // limited above
        entries: entries as i32,
        dim: dim as i32,
        channel_tiles: dim.div_ceil(THREADS) as i32,
    })
}
