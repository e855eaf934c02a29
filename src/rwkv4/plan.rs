//! [`Plan`]: in how many segments a problem runs, and in how much workspace. Pure.

use std::fmt;

use super::problem::{MAX_SEGMENTS, Problem};
use crate::abi::rwkv4::{AVERAGE_FLOATS, GROUP, SUM_FLOATS, THREADS, TURN_FLOATS};
use crate::driver::Device;

/// Parts of a workspace begin at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// Clocks of a step for each warp of a multiprocessor that is busy: what memory takes for three tensors in 16 bits,
/// on a GPU of this decade.
const CLOCKS_OF_WARP: f64 = 13.0;
/// Clocks from one step of a thread to its next, if nothing else holds it up.
const CLOCKS_OF_STEP: f64 = 25.0;
/// Clocks from the end of one kernel to the start of the next.
const LAUNCH_CLOCKS: f64 = 2500.0;
/// Clocks in which a thread joins the average of a segment before its own.
const CLOCKS_OF_SEGMENT: f64 = 60.0;
/// A pass that only reads k and v, as a share of one that also writes.
const READING: f64 = 0.7;
/// Steps of a segment, at least: a few groups.
const LEAST_STEPS: usize = 4 * GROUP;

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

/// Bytes of the parts of a workspace, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) ends: usize,
    pub(super) turns: usize,
    pub(super) kept: usize,
    pub(super) sums: usize,
}

impl Parts {
    fn total(self) -> usize {
        let Self {
            ends,
            turns,
            kept,
            sums,
        } = self;
        let parts = [ends, turns, kept, sums].into_iter();
        parts.fold(0, usize::saturating_add)
    }
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
        let cost = |segments: usize| {
            let warps = (THREADS / 32 * blocks).saturating_mul(segments);
            let warps = warps.div_ceil(device.multiprocessors.max(1)) as f64;
            let step = (CLOCKS_OF_WARP * warps).max(CLOCKS_OF_STEP);
            let pass = steps.div_ceil(segments) as f64 * step;
            if segments == 1 {
                return passes * pass;
            }
            (passes + READING) * pass + LAUNCH_CLOCKS + segments as f64 * CLOCKS_OF_SEGMENT
        };
        let candidates = std::iter::successors(Some(1), |segments| Some(2 * segments));
        let candidates = candidates
            .take_while(|&segments| segments <= MAX_SEGMENTS)
            .take_while(|&segments| segments == 1 || steps >= segments * LEAST_STEPS);
        // the fewest among equals
        let best = candidates.min_by(|&one, &other| cost(one).total_cmp(&cost(other)));
        Self {
            blocks,
            segments: problem.segments.or(best).unwrap_or(1),
            parts: Parts::default(),
        }
    }

    /// Bytes of so many floats for each channel of each segment.
    fn rows(&self, problem: &Problem, floats: usize) -> usize {
        let rows = problem.sequences.saturating_mul(self.segments);
        aligned_bytes(rows.saturating_mul(problem.dim).saturating_mul(floats))
    }
}

/// Bytes of so many floats, up to where the next part may begin.
fn aligned_bytes(floats: usize) -> usize {
    let bytes = floats.saturating_mul(size_of::<f32>());
    bytes
        .checked_next_multiple_of(ALIGNMENT)
        .unwrap_or(usize::MAX)
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
