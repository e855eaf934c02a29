//! [`Plan`]: which kernel runs a problem, and on how many blocks. Pure.

use super::problem::{Backward, Convolution, Forward, Update};
use crate::abi::causal_conv1d::{
    BackwardParams, Convolve, ForwardParams, Packing, Pass, SumParams, THREADS, Tile, UpdateParams,
};
use crate::driver::Device;
use crate::error::{Error, Result};

/// Blocks for each multiprocessor over which the sums of the backward pass are spread: enough that
/// the last of them to end leave few others waiting.
const BLOCKS: usize = 8;

/// Channels of a block of the kernel that adds the slots' sums.
const SUM_CHANNELS: usize = 32;

/// A kernel and its tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    /// Index in the rows that were given.
    pub(super) row: usize,
    pub(super) tile: Tile,
    /// Tiles along the channels.
    pub(super) channel_tiles: usize,
    /// Tiles along the steps of a row.
    pub(super) step_tiles: usize,
    /// Tiles along the steps of all rows.
    pub(super) tiles: usize,
    /// Of them those that one block walks over: 1 in the forward pass.
    pub(super) slot_tiles: usize,
}

impl Plan {
    /// Plans a forward pass with the first of `rows` that can run it.
    pub(super) fn forward(problem: &Forward, rows: &[Convolve]) -> Result<Self> {
        let op = "causal_conv1d::forward";
        Self::of(op, Pass::Forward, &problem.convolution, rows)
    }

    /// Plans a backward pass likewise.
    pub(super) fn backward(problem: &Backward, rows: &[Convolve], device: &Device) -> Result<Self> {
        let op = "causal_conv1d::backward";
        let mut plan = Self::of(op, Pass::Backward, &problem.convolution, rows)?;
        if problem.sums && plan.tiles > 0 {
            let blocks = BLOCKS * device.multiprocessors.max(1);
            let slots = blocks.div_ceil(plan.channel_tiles.max(1));
            plan.slot_tiles = plan.tiles.div_ceil(slots.min(plan.tiles));
        }
        Ok(plan)
    }

    fn of(op: &'static str, pass: Pass, problem: &Convolution, rows: &[Convolve]) -> Result<Self> {
        let Convolution {
            dtype,
            axis,
            batch,
            dim,
            seqlen,
            width,
            ..
        } = *problem;
        let fits = |row: &Convolve| row.dtype == dtype && row.axis == axis && row.width >= width;
        let Some(row) = rows.iter().position(fits) else {
            return Err(Error::Unsupported {
                op,
                request: format!("{} of width {width}", dtype.name()),
                available: "no kernel of this type that fits this GPU".into(),
            });
        };
        let tile = rows[row].tile(pass, seqlen);
        // states have a tile even where there is no step
        let step_tiles = seqlen.div_ceil(tile.steps).max(1);
        let tiles = if problem.is_empty() {
            0
        } else {
            batch.saturating_mul(step_tiles)
        };
        let most = i32::MAX as usize;
        if tiles > most {
            return Err(Error::Unsupported {
                op,
                request: format!("{tiles} tiles of {} steps", tile.steps),
                available: format!("room for {most}"),
            });
        }
        Ok(Self {
            row,
            tile,
            channel_tiles: dim.div_ceil(tile.channels),
            step_tiles,
            tiles,
            slot_tiles: 1,
        })
    }

    /// Blocks along the steps of all rows.
    pub(super) fn slots(&self) -> usize {
        self.tiles.div_ceil(self.slot_tiles)
    }

    pub(super) fn grid(&self) -> [usize; 3] {
        [self.channel_tiles.saturating_mul(self.slots()), 1, 1]
    }

    /// Bytes of the slots' sums of a backward pass.
    pub(super) fn workspace_bytes(&self, problem: &Backward) -> usize {
        let Convolution { dim, width, .. } = problem.convolution;
        if problem.sums {
            size_of::<f32>() * self.slots() * (width + 1) * dim
        } else {
            0
        }
    }

    // Sizes fit the parameters' types: `Check::size` and `Plan::of` limit them.

    pub(super) fn forward_params(&self, problem: &Forward, cu_seqlens: u64) -> ForwardParams {
        let convolution = &problem.convolution;
        ForwardParams {
            packing: packing(convolution, cu_seqlens),
            dim: convolution.dim as i32,
            channel_tiles: self.channel_tiles as i32,
            step_tiles: self.step_tiles as i32,
            line_chunks: self.tile.line_chunks as i32,
            silu: convolution.silu.into(),
            x: convolution.x,
            filter: convolution.filter,
            initial_states: convolution.initial_states,
            out: problem.out,
            final_states: problem.final_states,
        }
    }

    pub(super) fn backward_params(
        &self,
        problem: &Backward,
        cu_seqlens: u64,
        partial: u64,
    ) -> BackwardParams {
        let convolution = &problem.convolution;
        BackwardParams {
            packing: packing(convolution, cu_seqlens),
            partial,
            dim: convolution.dim as i32,
            channel_tiles: self.channel_tiles as i32,
            step_tiles: self.step_tiles as i32,
            tiles: self.tiles as i32,
            slot_tiles: self.slot_tiles as i32,
            line_chunks: self.tile.line_chunks as i32,
            silu: convolution.silu.into(),
            x: convolution.x,
            filter: convolution.filter,
            initial_states: convolution.initial_states,
            dout: problem.dout,
            dfinal_states: problem.dfinal_states,
            dx: problem.dx,
            dinitial_states: problem.dinitial_states,
        }
    }

    /// Blocks and parameters of the kernel that adds the slots' sums.
    pub(super) fn sum(&self, problem: &Backward, partial: u64) -> ([usize; 3], SumParams) {
        let Convolution { dim, width, .. } = problem.convolution;
        let params = SumParams {
            partial,
            gradient: problem.gradient,
            slots: self.slots() as i32,
            dim: dim as i32,
        };
        ([dim.div_ceil(SUM_CHANNELS), width + 1, 1], params)
    }
}

fn packing(problem: &Convolution, cu_seqlens: u64) -> Packing {
    Packing {
        cu_seqlens,
        sequences: if problem.packed {
            problem.sequences as i32
        } else {
            1
        },
        seqlen: problem.seqlen as i32,
    }
}

/// Blocks and parameters of one step.
pub(super) fn update(problem: &Update, conv_state_indices: u64) -> ([usize; 3], UpdateParams) {
    let channel_tiles = problem.dim.div_ceil(THREADS);
    let params = UpdateParams {
        conv_state_indices,
        // `Check::size` limits them
        entries: problem.entries as i32,
        dim: problem.dim as i32,
        channel_tiles: channel_tiles as i32,
        silu: problem.silu.into(),
        x: problem.x,
        conv_state: problem.conv_state,
        filter: problem.filter,
        out: problem.out,
    };
    ([problem.batch.saturating_mul(channel_tiles), 1, 1], params)
}
