//! [`Plan`]: in how many segments a problem runs, and in how much workspace. Pure.

use std::fmt;

use super::problem::{MAX_SEGMENTS, Problem};
use crate::abi::rwkv4::{AVERAGE_FLOATS, GROUP, SUM_FLOATS, THREADS, TURN_FLOATS};
use crate::driver::Device;
use crate::recurrence::{Model, Parts, aligned_bytes};

/// Memory moves three tensors in 16 bits, on a GPU of this decade; the pass that comes first only reads k and v.
const MODEL: Model = Model {
    clocks_of_warp: 13.0,
    clocks_of_step: 25.0,
    clocks_of_segment: 60.0,
    reading: 0.7,
    threads: THREADS,
    least_steps: 4 * GROUP,
    most_segments: MAX_SEGMENTS,
};

/// How a call runs: in how many segments, and how many bytes of workspace it needs.
///
/// ```text
/// 24 blocks of 128 channels x 8 segments, 393216 bytes of workspace
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Blocks along the channels of all sequences.
    pub(super) blocks: usize,
    /// Parts of each sequence.
    pub(super) segments: usize,
    pub(super) parts: Parts,
}

impl Plan {
    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.parts.total()
    }

    /// Parts of each sequence that run side by side.
    pub fn segments(&self) -> usize {
        self.segments
    }

    pub(super) fn forward(problem: &Problem, device: &Device) -> Self {
        let mut plan = Self::of(problem, device, 1.0);
        if plan.segments > 1 {
            plan.parts.ends = plan.rows(problem, AVERAGE_FLOATS);
        }
        plan
    }

    pub(super) fn backward(problem: &Problem, device: &Device) -> Self {
        // the averages are computed again, and twice as many tensors move
        let mut plan = Self::of(problem, device, 1.0 + 2.0);
        if plan.segments > 1 {
            plan.parts.ends = plan.rows(problem, AVERAGE_FLOATS);
            plan.parts.turns = plan.rows(problem, TURN_FLOATS);
        }
        // a slot for each whole group of steps, and one for each segment, which may end within one
        let groups = problem.batch.saturating_mul(problem.seqlen / GROUP);
        let slots = groups.saturating_add(problem.sequences.saturating_mul(plan.segments));
        let floats = slots.saturating_mul(problem.dim);
        plan.parts.kept = aligned_bytes(floats.saturating_mul(AVERAGE_FLOATS));
        plan.parts.sums = plan.rows(problem, SUM_FLOATS);
        plan
    }

    /// Passes that take `passes` times as long as the forward one.
    fn of(problem: &Problem, device: &Device, passes: f64) -> Self {
        let tiles = problem.dim.div_ceil(THREADS);
        let blocks = tiles.saturating_mul(problem.sequences);
        // those of `cu_seqlens` are not known here: as if they were equally long
        let steps = (problem.batch * problem.seqlen).div_ceil(problem.sequences.max(1));
        let best = || MODEL.segments(steps, blocks, passes, device);
        Self {
            blocks,
            segments: problem.segments.unwrap_or_else(best),
            parts: Parts::default(),
        }
    }

    /// Bytes of so many floats for each channel of each segment.
    fn rows(&self, problem: &Problem, floats: usize) -> usize {
        let rows = problem.sequences.saturating_mul(self.segments);
        aligned_bytes(rows.saturating_mul(problem.dim).saturating_mul(floats))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} blocks of {THREADS} channels x {} segments, {} bytes of workspace",
            self.blocks,
            self.segments,
            self.workspace_bytes()
        )
    }
}
