//! [`Plan`]: which kernels run a problem, on how many blocks, and in how much workspace. Pure.

use std::fmt;

use super::problem::Problem;
use crate::abi::Dtype;
use crate::abi::ssd::{CARRY_THREADS, CARRY_VECTOR, Gradient, Walk, chunk, slice};
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

/// How often the blocks of gradients, of which one runs at a time, should fill the device: uneven ends
/// are then short.
const ROUNDS: usize = 4;

/// Chunks of a sequence, or of packed ones, whose gradients a launch computes: blocks along y of a grid.
const MAX_CHUNKS: usize = 65_535;

/// Alignment in the workspace: a line of the L2 cache.
const ALIGNMENT: usize = 128;

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
    /// Bytes of the states of all slots, and of their decays.
    pub(super) workspace: [usize; 2],
}

impl Plan {
    /// Plans `problem` with the first of `rows` that can run it.
    pub(super) fn new(problem: &Problem, rows: &[Walk], device: &Device) -> Result<Self> {
        let row = first_fit(problem, rows.iter().map(|row| (row.dtype, row.size)))?;
        let heads_per_group = problem.heads.checked_div(problem.groups).unwrap_or(0);
        let slices = heads_per_group * problem.headdim.div_ceil(slice(problem.dtype));
        // at most 2^30: heads are slices of at least 32 of 2^15 channels
        let blocks = problem.groups * slices.div_ceil(rows[row].slices());
        let chunk = chunk(problem.dtype);
        let segment = match problem.segment {
            Some(steps) => steps.min(problem.steps).div_ceil(chunk).max(1),
            None => {
                let chunks = problem.chunks();
                let parallel = BLOCKS * device.multiprocessors;
                chunks
                    .div_ceil(segments(
                        chunks,
                        blocks.saturating_mul(problem.sequences),
                        parallel,
                    ))
                    .max(1)
            }
        } * chunk;
        let segments = problem.steps.div_ceil(segment).max(1);
        let slots = match segments {
            1 => 0,
            _ => problem.slots(segment),
        };
        let numbers = [problem.head_size(), 1];
        Ok(Self {
            row,
            kernel: rows[row].forward().name,
            segment,
            grid: [blocks, segments, problem.sequences],
            workspace: numbers.map(|numbers| product([4, slots, problem.heads, numbers])),
        })
    }

    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        sum(self.workspace)
    }

    /// Steps of a segment; those of the longest sequence, or more, if none is cut.
    pub fn segment(&self) -> usize {
        self.segment
    }

    /// Parts of a head's state, heads, sequences: the blocks that pass states on.
    pub(super) fn grid_of_carry(&self, problem: &Problem) -> [usize; 3] {
        let parts = problem.head_size().div_ceil(CARRY_VECTOR * CARRY_THREADS);
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

/// A product of sizes, of which a batch without elements may be of any size.
fn product<const N: usize>(sizes: [usize; N]) -> usize {
    sizes.into_iter().fold(1, usize::saturating_mul)
}

fn sum<const N: usize>(sizes: [usize; N]) -> usize {
    sizes.into_iter().fold(0, usize::saturating_add)
}

/// The first of the rows, of a dtype and a size each, that can run a problem.
fn first_fit(
    problem: &Problem,
    rows: impl Iterator<Item = (Dtype, usize)> + Clone,
) -> Result<usize> {
    let of_dtype = |&(dtype, _): &(Dtype, usize)| dtype == problem.dtype;
    let mut all = rows.clone();
    let fits = |row: (Dtype, usize)| of_dtype(&row) && row.1 >= problem.dstate;
    all.position(fits).ok_or_else(|| Error::Unsupported {
        op: problem.op,
        request: format!("{} dstate {}", problem.dtype.name(), problem.dstate),
        available: match rows.filter(of_dtype).map(|(_, size)| size).max() {
            Some(largest) => format!("dstate up to {largest} on this GPU"),
            None => "no kernel of this type that fits this GPU".into(),
        },
    })
}

/// How [`Ssd::backward`](super::Ssd::backward) runs.
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardPlan {
    /// Of the walks that compute states and their gradients.
    pub(super) walk: Plan,
    /// Index in the rows that were given.
    pub(super) row: usize,
    /// Name of the kernel that computes the gradients of chunks.
    pub(super) kernel: String,
    /// Heads of a group that one block takes, and how many blocks share a group.
    pub(super) heads_per_part: usize,
    pub(super) parts: usize,
    /// Parts of groups, chunks, sequences.
    pub(super) grid: [usize; 3],
    /// Chunks that the workspace has room for.
    pub(super) chunk_slots: usize,
    /// Sums of dA, ddt_bias and dD of one head.
    pub(super) sums_of_head: usize,
    /// Where everything lies in the workspace, in bytes.
    pub(super) memory: Memory,
}

/// Where what the kernels tell each other lies, in bytes from the start of the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Memory {
    pub(super) segments: usize,
    pub(super) decays: usize,
    pub(super) states: usize,
    pub(super) state_units: usize,
    pub(super) gradients: usize,
    pub(super) gradient_units: usize,
    pub(super) dots: usize,
    pub(super) coefficients: usize,
    pub(super) sums: usize,
    /// All of it.
    pub(super) bytes: usize,
}

impl BackwardPlan {
    /// Plans `problem`, whose D is per channel or not, with the first rows that can run it.
    pub(super) fn new(
        problem: &Problem,
        per_channel: bool,
        walks: &[Walk],
        rows: &[Gradient],
        device: &Device,
    ) -> Result<Self> {
        let walk = Plan::new(problem, walks, device)?;
        let row = first_fit(problem, rows.iter().map(|row| (row.dtype, row.size)))?;
        let chunk = chunk(problem.dtype);
        let chunks = problem.steps.div_ceil(chunk);
        if chunks > MAX_CHUNKS {
            return Err(Error::Unsupported {
                op: problem.op,
                request: format!("{} steps", problem.steps),
                available: format!("up to {}", MAX_CHUNKS * chunk),
            });
        }
        let heads_per_group = problem.heads.checked_div(problem.groups).unwrap_or(0);
        // chunks of all sequences; those of packed ones are not known here, but hardly more
        let rows_of_batch = if problem.packed { 1 } else { problem.sequences };
        let of_all = product([rows_of_batch, chunks]);
        let columns = rows[row].column_parts();
        let blocks = product([problem.groups, of_all, columns]);
        let wanted = (ROUNDS * device.multiprocessors).div_ceil(blocks.max(1));
        let heads_per_part = heads_per_group.div_ceil(wanted.max(1)).max(1);
        let parts = heads_per_group.div_ceil(heads_per_part);
        let chunk_slots = problem.slots(chunk);
        let sums_of_head = 2 + if per_channel { problem.headdim } else { 1 };

        let heads = product([chunk_slots, problem.heads]);
        let slices = product([heads, problem.headdim.div_ceil(slice(problem.dtype))]);
        let states = product([heads, problem.head_size(), problem.dtype.bytes()]);
        let mut memory = Memory::default();
        let mut take = |bytes: usize| {
            let at = memory.bytes;
            let lines = bytes.div_ceil(ALIGNMENT);
            memory.bytes = at.saturating_add(lines.saturating_mul(ALIGNMENT));
            at
        };
        let [segments, decays] = walk.workspace.map(&mut take);
        let [states, gradients] = [take(states), take(states)];
        let [state_units, gradient_units] = [0, 1].map(|_| take(product([4, slices])));
        let dots = take(product([16, slices]));
        let tiles = product([2, parts, chunk_slots, problem.groups]);
        let coefficients = take(product([tiles, 4 * chunk * problem.dstate]));
        let sums = take(product([4, heads, sums_of_head]));
        memory = Memory {
            segments,
            decays,
            states,
            state_units,
            gradients,
            gradient_units,
            dots,
            coefficients,
            sums,
            ..memory
        };
        Ok(Self {
            walk,
            row,
            kernel: rows[row].entry().name,
            heads_per_part,
            parts,
            grid: [problem.groups * parts * columns, chunks, problem.sequences],
            chunk_slots,
            sums_of_head,
            memory,
        })
    }

    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Steps of a segment of the walks; those of the longest sequence, or more, if none is cut.
    pub fn segment(&self) -> usize {
        self.walk.segment
    }
}

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, segments, _] = self.walk.grid;
        let [blocks, chunks, sequences] = self.grid;
        write!(
            f,
            "{segments} segments of {} steps; {}, {blocks} parts of groups x {chunks} chunks x {sequences}, \
             {} bytes of workspace",
            self.walk.segment, self.kernel, self.memory.bytes
        )
    }
}

/// Into how many segments to cut sequences of so many chunks, of which `blocks` could run at once
/// without cutting and `parallel` do. A model for choosing, no prediction of a time.
fn segments(chunks: usize, blocks: usize, parallel: usize) -> usize {
    let time = |segments: usize| {
        let rounds = blocks.saturating_mul(segments).div_ceil(parallel) as f64;
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
