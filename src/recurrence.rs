//! What recurrences have in common: into how many segments sequences are cut whose channels have a thread each, and
//! the parts of a workspace. Pure.

use crate::driver::Device;

/// Parts of a workspace begin at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// Clocks from the end of one kernel to the start of the next.
const LAUNCH_CLOCKS: f64 = 2500.0;

/// What the passes of a recurrence take: a model for choosing, no prediction of a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    /// Clocks of a step for each warp of a multiprocessor that is busy: what memory takes.
    pub(crate) clocks_of_warp: f64,
    /// Clocks from one step of a thread to its next, if nothing else holds it up.
    pub(crate) clocks_of_step: f64,
    /// Clocks in which a thread passes through a segment before its own.
    pub(crate) clocks_of_segment: f64,
    /// A pass that only reads, as a share of one that also writes.
    pub(crate) reading: f64,
    /// Threads of a block.
    pub(crate) threads: usize,
    /// Steps of a segment, at least.
    pub(crate) least_steps: usize,
    /// Segments of a sequence, at most.
    pub(crate) most_segments: usize,
}

impl Model {
    /// Segments of sequences of so many steps, for which `blocks` run side by side without cutting, and passes that
    /// take `passes` times as long as one forward.
    pub(crate) fn segments(
        &self,
        steps: usize,
        blocks: usize,
        passes: f64,
        device: &Device,
    ) -> usize {
        let cost = |segments: usize| {
            let warps = (self.threads / 32)
                .saturating_mul(blocks)
                .saturating_mul(segments);
            let warps = warps.div_ceil(device.multiprocessors.max(1)) as f64;
            let step = (self.clocks_of_warp * warps).max(self.clocks_of_step);
            let pass = steps.div_ceil(segments) as f64 * step;
            if segments == 1 {
                return passes * pass;
            }
            let joining = segments as f64 * self.clocks_of_segment;
            (passes + self.reading) * pass + LAUNCH_CLOCKS + joining
        };
        let candidates = std::iter::successors(Some(1), |segments| Some(2 * segments));
        let candidates = candidates
            .take_while(|&segments| segments <= self.most_segments)
            .take_while(|&segments| segments == 1 || steps >= segments * self.least_steps);
        // the fewest among equals
        let best = candidates.min_by(|&one, &other| cost(one).total_cmp(&cost(other)));
        best.unwrap_or(1)
    }
}

/// Bytes of the parts of a workspace, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// What segments leave behind.
    pub(crate) ends: usize,
    /// What they give to the gradients of those before.
    pub(crate) turns: usize,
    /// What enters each group of steps.
    pub(crate) kept: usize,
    /// Sums over the steps of a segment.
    pub(crate) sums: usize,
}

impl Parts {
    pub(crate) fn total(self) -> usize {
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

/// Bytes of so many floats, up to where the next part may begin.
pub(crate) fn aligned_bytes(floats: usize) -> usize {
    let bytes = floats.saturating_mul(size_of::<f32>());
    bytes
        .checked_next_multiple_of(ALIGNMENT)
        .unwrap_or(usize::MAX)
}
