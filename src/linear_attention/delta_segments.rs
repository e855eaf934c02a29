//! How states pass from segment to segment by the delta rule: each multiplies the state before it by a matrix.

use cudarc::driver::DeviceRepr;

use super::delta::Delta;
use super::problem::Problem;
use crate::abi::linear_attention::{
    DELTA_CARRY_COLUMNS, DeltaCarryParams, Layer, Mode, Rows, States, WalkParams,
};
use crate::error::Result;
use crate::launch::{Kernel, Launch};

/// A walk whose segments begin with states that are not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut<'a> {
    /// With the address of `[slot, head, dk, dv]` in f32 in `segments`.
    pub(super) walk: &'a WalkParams,
    /// Address of `[slot, head, dk, dk]` in f32, for what segments multiply states by.
    pub(super) transitions: u64,
    /// Channels of the values of one block.
    pub(super) width: usize,
    /// Segments of the longest sequence.
    pub(super) count: usize,
}

/// Numbers of the matrices that segments multiply states by.
pub(super) fn transitions(problem: &Problem, slots: usize) -> usize {
    let sizes = [problem.heads, problem.dk, problem.dk];
    sizes.iter().fold(slots, |n: usize, &x| n.saturating_mul(x))
}

impl Delta {
    /// Queues what finds the states that the segments of a walk begin with. `params` makes parameters of `kernel` from
    /// those of a walk, and from whether it begins with the identity.
    ///
    /// # Safety
    /// The tensors of the walk must be as it says, and the workspace have room for a slot for each segment.
    pub(super) unsafe fn find_starts<P: DeviceRepr>(
        &self,
        launch: &Launch<'_>,
        problem: &Problem,
        kernel: &Kernel<P>,
        cut: Cut<'_>,
        params: impl Fn(WalkParams, bool) -> P,
    ) -> Result<()> {
        let Problem {
            heads,
            sequences,
            dk,
            dv,
            ..
        } = *problem;
        let layer = cut.walk.layer;
        let local = WalkParams {
            out: Rows::default(),
            initial: States::default(),
            last: States::default(),
            mode: Mode::States as i32,
            ..*cut.walk
        };
        // as many values as keys, whose rows are there
        let alone = WalkParams {
            layer: Layer {
                v: layer.k,
                dv: layer.dk,
                ..layer
            },
            segments: cut.transitions,
            ..local
        };
        for (walk, channels, identity) in [(local, dv, false), (alone, dk, true)] {
            let grid = [heads * channels.div_ceil(cut.width), cut.count, sequences];
            // SAFETY: this function's own condition.
            unsafe { launch.run(kernel, grid, &params(walk, identity)) }?;
        }
        let carry = DeltaCarryParams {
            initial: cut.walk.initial,
            cu_seqlens: layer.cu_seqlens,
            segments: cut.walk.segments,
            transitions: cut.transitions,
            steps: layer.steps,
            heads: layer.heads,
            dk: layer.dk,
            dv: layer.dv,
            segment: layer.segment,
            padding: 0,
        };
        let grid = [dv.div_ceil(DELTA_CARRY_COLUMNS), heads, sequences];
        // SAFETY: as above; it reads what the kernels before it wrote.
        unsafe { launch.run(&self.carry, grid, &carry) }
    }
}
