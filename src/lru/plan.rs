//! [`Plan`]: in how many segments a problem runs, and in how much workspace. Pure.

use std::fmt;

use super::problem::{MAX_SEGMENTS, Problem};
use crate::abi::lru::{GROUP, STRETCH, THREADS};
use crate::driver::Device;
use crate::recurrence::{Model, Parts, aligned_bytes};

/// Memory moves two tensors in 16 bits, on a GPU of this decade; the pass that comes first only reads x.
const MODEL: Model = Model {
    clocks_of_warp: 17.0,
    clocks_of_step: 10.0,
    clocks_of_segment: 60.0,
    reading: 0.5,
    threads: THREADS,
    least_steps: 4 * GROUP,
    most_segments: MAX_SEGMENTS,
};

/// How a call runs: in how many segments, and how many bytes of workspace it needs.
///
/// ```text
/// 24 blocks of 128 states x 8 segments, 393216 bytes of workspace
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Blocks along the states of all sequences.
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
            plan.parts.ends = plan.rows(problem, STRETCH);
        }
        plan
    }

    pub(super) fn backward(problem: &Problem, device: &Device) -> Self {
        // the states are computed again, and one more tensor moves
        let mut plan = Self::of(problem, device, 0.5 + 1.5);
        if plan.segments > 1 {
            plan.parts.ends = plan.rows(problem, STRETCH);
            plan.parts.turns = plan.rows(problem, STRETCH);
        }
        // a slot for each whole group of steps, and one for each segment, which may end within one
        let groups = problem.batch.saturating_mul(problem.seqlen / GROUP);
        let slots = groups.saturating_add(problem.sequences.saturating_mul(plan.segments));
        let numbers = slots.saturating_mul(problem.states);
        plan.parts.kept = aligned_bytes(numbers.saturating_mul(2));
        plan.parts.sums = plan.rows(problem, STRETCH);
        plan
    }

    /// Passes that take `passes` times as long as the forward one.
    fn of(problem: &Problem, device: &Device, passes: f64) -> Self {
        let tiles = problem.states.div_ceil(THREADS);
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

    /// Bytes of so many complex numbers for each state of each segment.
    fn rows(&self, problem: &Problem, numbers: usize) -> usize {
        let rows = problem.sequences.saturating_mul(self.segments);
        let numbers = rows.saturating_mul(problem.states).saturating_mul(numbers);
        aligned_bytes(numbers.saturating_mul(2))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} blocks of {THREADS} states x {} segments, {} bytes of workspace",
            self.blocks,
            self.segments,
            self.workspace_bytes()
        )
    }
}
