//! [`Plan`]: how many blocks a problem runs in, and in how much workspace. Pure.

use std::fmt;

use super::problem::Problem;
use crate::abi::rwkv7::{SIZES, SLICES, SPAN};
use crate::driver::Device;
use crate::recurrence::aligned_bytes;

/// How a call runs: in how many blocks, and how many bytes of workspace it needs.
///
/// ```text
/// 32 heads in 4 slices of 16 channels, 0 bytes of workspace
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Heads of all sequences.
    heads: usize,
    /// Blocks of each.
    pub(super) slices: usize,
    /// The channels of a block's values.
    width: usize,
    /// Bytes of the gradients of what steps look up.
    pub(super) lookups: usize,
    /// Bytes of the gradients of the states that enter spans of steps.
    spans: usize,
}

impl Plan {
    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.lookups.saturating_add(self.spans)
    }

    /// Among how many blocks the values of a head are divided.
    pub fn slices(&self) -> usize {
        self.slices
    }

    pub(super) fn blocks(&self) -> usize {
        self.heads.saturating_mul(self.slices)
    }

    /// Narrow blocks read as much of a step as wide ones, and so they pay only where each has a multiprocessor of its
    /// own.
    pub(super) fn forward(problem: &Problem, device: &Device) -> Self {
        let [wide, narrow] = SLICES;
        let blocks = problem.heads_of_all().saturating_mul(narrow);
        let best = match blocks <= device.multiprocessors {
            true => narrow,
            false => wide,
        };
        Self::of(problem, problem.slices.unwrap_or(best))
    }

    /// Gradients of keys are sums over all values: a head has one block.
    pub(super) fn backward(problem: &Problem) -> Self {
        let size = SIZES.get(problem.size).copied().unwrap_or(0);
        let rows = problem.batch.saturating_mul(problem.seqlen);
        let lookups = rows
            .saturating_mul(problem.heads)
            .saturating_mul(problem.dv);
        // one for each whole span, and one for each sequence, which may end within one
        let spans = problem.batch.saturating_mul(problem.seqlen / SPAN);
        let spans = spans.saturating_add(problem.sequences);
        let floats = spans.saturating_mul(problem.heads);
        Self {
            lookups: aligned_bytes(lookups),
            spans: aligned_bytes(floats.saturating_mul(size * size)),
            ..Self::of(problem, SLICES[0])
        }
    }

    fn of(problem: &Problem, slices: usize) -> Self {
        let size = SIZES.get(problem.size).copied().unwrap_or(0);
        Self {
            heads: problem.heads_of_all(),
            slices,
            width: size / slices.max(1),
            lookups: 0,
            spans: 0,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} heads in {} slices of {} channels, {} bytes of workspace",
            self.heads,
            self.slices,
            self.width,
            self.workspace_bytes()
        )
    }
}
