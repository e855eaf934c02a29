//! One step of the recurrence, with a state that is kept between calls.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::Rwkv7;
use super::problem::{limits, row, states};
use super::tensors::Step;
use crate::abi::rwkv7::{ForwardParams, Layer, Rows, SIZES, States};
use crate::check::Check;
use crate::error::Result;
use crate::launch::Launch;
use crate::tensor::Float;

const CHECK: Check = Check { op: "rwkv7::step" };

impl Rwkv7 {
    /// Queues one step on `stream`: what [`Self::forward`] does for a sequence of one step whose initial state is
    /// `state`, which the final state replaces; it has the same bits. Needs no workspace.
    ///
    /// # Errors
    /// Shapes or layouts that do not fit, see [`Error`](crate::Error); nothing is queued then.
    pub fn step<T: Float>(&self, stream: &Arc<CudaStream>, mut tensors: Step<'_, T>) -> Result<()> {
        let mut params = describe(&tensors)?;
        let [batch, heads, dk] = tensors.r.shape();
        let dv = tensors.v.shape()[2];
        let size = SIZES.iter().position(|&size| dk.max(dv) <= size);
        let kernel = self.forward_of(size.unwrap_or(SIZES.len()), 1)?;
        let Step {
            r,
            decay,
            k,
            v,
            a,
            b,
            state,
            state_batch_indices,
            out,
        } = &mut tensors;
        let mut launch = Launch::new(CHECK.op, stream);
        let element = size_of::<T>();
        let mut at = |rows: Rows, name, tensor| -> Result<Rows> {
            Ok(rows.at(launch.read(name, tensor, element as u64)?))
        };
        let layer = params.layer;
        let mut layer = Layer {
            r: at(layer.r, "r", r)?,
            k: at(layer.k, "k", k)?,
            v: at(layer.v, "v", v)?,
            a: at(layer.a, "a", a)?,
            b: at(layer.b, "b", b)?,
            ..layer
        };
        layer.decay.at = launch.read("decay", decay, 4)?;
        let state = params.initial_state.at(launch.write("state", state, 4)?);
        if let Some(indices) = state_batch_indices {
            params.entries_of_rows = launch.read("state_batch_indices", indices, 4)?;
        }
        params.out.at = launch.write("out", out, element as u64)?;
        layer.ragged = layer
            .is_ragged(element, &[(params.out, layer.dv, element)])
            .into();
        layer.ragged_states = state.is_ragged(layer.dv).into();
        let params = ForwardParams {
            layer,
            initial_state: state,
            final_state: state,
            ..params
        };
        launch.same_context("the operation", &self.ctx)?;
        let blocks = batch.saturating_mul(heads);
        if blocks == 0 {
            return launch.check();
        }
        // SAFETY: `describe` checked that the tensors have the sizes and strides that the parameters tell the kernel,
        // which skips rows of no entry and accesses no index beyond them.
        unsafe { launch.run(kernel, [blocks, 1, 1], &params) }
    }
}

/// The parameters of a call, without addresses.
fn describe<T: Float>(tensors: &Step<'_, T>) -> Result<ForwardParams> {
    let keys @ [batch, heads, dk] = tensors.r.shape();
    let [_, _, dv] = tensors.v.shape();
    let values = [batch, heads, dv];
    let largest = SIZES.into_iter().max().unwrap_or(0);
    CHECK.within("dk", dk, largest)?;
    CHECK.within("dv", dv, largest)?;
    let entries = match &tensors.state_batch_indices {
        Some(indices) => {
            CHECK.sizes("state_batch_indices", [batch], indices.shape())?;
            CHECK.contiguous("state_batch_indices", &indices.layout())?;
            tensors.state.shape()[0]
        }
        None => batch,
    };
    limits(CHECK, batch, entries, heads)?;
    let state = tensors.state.layout();
    Ok(ForwardParams {
        layer: Layer {
            r: row(CHECK, "r", &tensors.r.layout(), keys)?,
            k: row(CHECK, "k", &tensors.k.layout(), keys)?,
            a: row(CHECK, "a", &tensors.a.layout(), keys)?,
            b: row(CHECK, "b", &tensors.b.layout(), keys)?,
            decay: row(CHECK, "decay", &tensors.decay.layout(), keys)?,
            v: row(CHECK, "v", &tensors.v.layout(), values)?,
            seqlen: 1,
            // limited above
            heads: heads as i32,
            dk: dk as i32,
            dv: dv as i32,
            dtype: T::DTYPE.number(),
            slices: 1,
            ..Layer::default()
        },
        out: row(CHECK, "out", &tensors.out.layout(), values)?,
        initial_state: states(CHECK, "state", &state, [entries, heads, dk, dv])?,
        final_state: States::default(),
        entries: entries as i64, // limited above
        ..ForwardParams::default()
    })
}
