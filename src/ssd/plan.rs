//! [`Plan`]: which kernels run a problem, on how many blocks, and in how much workspace. Pure.

use std::fmt;

use super::problem::Problem;
use crate::abi::ssd::{CARRY_THREADS, CARRY_VECTOR, CHUNK, SLICE, Walk};
use crate::driver::Device;
use crate::error::{Error, Result};

/// Blocks that run side by side on a multiprocessor: their registers allow two.
const BLOCKS: usize = 2;

/// The end states of segments take a third of the multiplications and half of the memory traffic of
/// the outputs.
const SEGMENTED: f64 = 1.4;

/// What two more launches and the passing of states take, in the time of a chunk: a few
/// microseconds each.
const LAUNCHES: f64 = 4.0;

/// Chunks of the shortest segment: a state is as large as the inputs of a chunk.
const SHORTEST: usize = 4;

/// How a call runs: its kernel, and how sequences are cut.
///
/// ```text
/// ssd_forward_f16_n128, 40 blocks of slices x 8 segments of 512 steps x 1, 10506240 bytes of workspace
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Index in the rows that were given.
    pub(super) row: usize,
    /// Name of the kernel.
    pub(super) kernel: String,
    /// Steps of a segment.
    pub(super) segment: usize,
    /// Blocks of slices, segments, sequences.
    pub(super) grid: [usize; 3],
    /// Segments that the workspace has room for.
    pub(super) slots: usize,
    /// Bytes of the states of all slots, and of their decays.
    pub(super) workspace: [usize; 2],
}

impl Plan {
    /// Plans `problem` with the first of `rows` that can run it.
    pub(super) fn new(
        op: &'static str,
        problem: &Problem,
        rows: &[Walk],
        device: &Device,
    ) -> Result<Self> {
        let fits = |row: &Walk| row.dtype == problem.dtype && row.size >= problem.dstate;
        let Some(row) = rows.iter().position(fits) else {
            let sizes = rows.iter().filter(|row| row.dtype == problem.dtype);
            let available = match sizes.map(|row| row.size).max() {
                Some(largest) => format!("dstate up to {largest} on this GPU"),
                None => "no kernel of this type that fits this GPU".into(),
            };
            return Err(Error::Unsupported {
                op,
                request: format!("{} dstate {}", problem.dtype.name(), problem.dstate),
                available,
            });
        };
        let heads_per_group = problem.heads.checked_div(problem.groups).unwrap_or(0);
        let slices = heads_per_group * problem.headdim.div_ceil(SLICE);
        let blocks = problem.groups * slices.div_ceil(rows[row].slices());
        let segment = match problem.segment {
            Some(steps) => steps.min(problem.steps).div_ceil(CHUNK).max(1),
            None => {
                let chunks = problem.chunks();
                let parallel = BLOCKS * device.multiprocessors;
                chunks
                    .div_ceil(segments(chunks, blocks * problem.sequences, parallel))
                    .max(1)
            }
        } * CHUNK;
        let segments = problem.steps.div_ceil(segment).max(1);
        let slots = match segments {
            1 => 0,
            _ if problem.packed => problem.steps / segment + problem.sequences,
            _ => problem.sequences * problem.steps / segment + problem.sequences,
        };
        let numbers = [problem.headdim * problem.dstate, 1];
        Ok(Self {
            row,
            kernel: rows[row].forward().name,
            segment,
            grid: [blocks, segments, problem.sequences],
            slots,
            workspace: numbers.map(|numbers| 4 * slots * problem.heads * numbers),
        })
    }

    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.iter().sum()
    }

    /// Steps of a segment; those of the longest sequence, or more, if none is cut.
    pub fn segment(&self) -> usize {
        self.segment
    }

    /// Parts of a head's state, heads, sequences: the blocks that pass states on.
    pub(super) fn grid_of_carry(&self, problem: &Problem) -> [usize; 3] {
        let numbers = problem.headdim * problem.dstate;
        let parts = numbers.div_ceil(CARRY_VECTOR * CARRY_THREADS);
        [parts, problem.heads, problem.sequences]
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [blocks, segments, sequences] = self.grid;
        write!(
            f,
            "{}, {blocks} blocks of slices x {segments} segments of {} steps x {sequences}, \
             {} bytes of workspace",
            self.kernel,
            self.segment,
            self.workspace_bytes()
        )
    }
}

/// Into how many segments to cut sequences of so many chunks, of which `blocks` could run at once
/// without cutting and `parallel` do. A model for choosing, no prediction of a time.
fn segments(chunks: usize, blocks: usize, parallel: usize) -> usize {
    let time = |segments: usize| {
        let rounds = (blocks * segments).div_ceil(parallel) as f64;
        let walk = rounds * chunks.div_ceil(segments) as f64;
        match segments {
            1 => walk,
            // each state is read and written once for each segment
            _ => SEGMENTED * walk + LAUNCHES + segments as f64 / 8.0,
        }
    };
    let most = (parallel / blocks.max(1)).min(chunks / SHORTEST).max(1);
    (1..=most)
        .min_by(|&a, &b| time(a).total_cmp(&time(b)))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::segments;

    #[test]
    fn sequences_are_cut_where_blocks_are_too_few() {
        // chunks, blocks, blocks at once; segments
        let cases = [
            (0, 1, 216, 1),
            (1, 1, 216, 1),
            (8, 1, 216, 1),
            (64, 1, 216, 16),
            (64, 216, 216, 1),
            (64, 109, 216, 1),
            (64, 108, 216, 2),
            (64, 40, 216, 5),
            (256, 1, 216, 52),
        ];
        for (chunks, blocks, parallel, expected) in cases {
            let found = segments(chunks, blocks, parallel);
            assert_eq!(found, expected, "{chunks} chunks, {blocks} blocks");
        }
    }
}
