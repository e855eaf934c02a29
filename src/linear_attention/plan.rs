//! [`Plan`]: which kernels run a problem, on how many blocks, and in how much workspace. Pure.

use std::fmt;

use super::delta_segments::transitions;
use super::problem::Problem;
use crate::abi::linear_attention::{CARRY_THREADS, Walk};
use crate::driver::Device;
use crate::error::{Error, Result};

/// Blocks that run side by side on a multiprocessor: their registers allow two.
pub(super) const BLOCKS: usize = 2;

/// Steps that times are counted in.
pub(super) const UNIT: usize = 64;

/// The end states of segments take half of the multiplications and three quarters of the memory traffic of
/// the outputs.
pub(super) const SEGMENTED: f64 = 1.6;

/// By the delta rule these states take three quarters of the outputs' time, as do the matrices that segments multiply
/// states by.
const SEGMENTED_DELTA: f64 = 2.5;

/// Of the six walks of a backward pass by the delta rule, two have to find states first.
pub(super) const SEGMENTED_DELTA_GRADIENTS: f64 = 1.5;

/// What two more launches and the passing of states take, in the time of [`UNIT`] steps: a few
/// microseconds each.
const LAUNCHES: f64 = 4.0;

/// The shortest segment, in [`UNIT`] steps: a state in f32 is as large as the inputs of one to two.
const SHORTEST: usize = 4;

/// Alignment in the workspace: a line of the L2 cache.
const ALIGNMENT: usize = 128;

/// How a call runs: its kernel, and how sequences are cut.
///
/// ```text
/// linear_attention_walk_step_f16_n128, 40 blocks of slices x 8 segments of 512 steps x 1, 10506240 bytes of workspace
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Index in the rows that were given.
    pub(super) row: usize,
    /// Name of the kernel.
    pub(super) kernel: String,
    /// Steps of a segment.
    pub(super) segment: usize,
    /// Slices, segments, sequences.
    pub(super) grid: [usize; 3],
    /// Where everything lies in the workspace.
    pub(super) memory: Memory,
}

/// Where what the kernels tell each other lies, in bytes from the start of the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// `[slot, head, dk, dv]`: states of segments.
    pub(super) states: usize,
    /// `[slot, head]` or `[slot, head, dk]`: their decays.
    pub(super) decays: usize,
    /// `[slot, head, dk]`: those of the normaliser.
    pub(super) zs: usize,
    /// `[slot, head, dk, dk]`: by the delta rule, what segments multiply states by.
    pub(super) transitions: usize,
    /// All of it.
    pub(super) bytes: usize,
}

impl Plan {
    /// Plans `problem` with the first of `rows` that can run it.
    pub(super) fn new(problem: &Problem, rows: &[Walk], device: &Device) -> Result<Self> {
        let row = first_fit(problem, rows)?;
        let Walk { count, .. } = rows[row];
        // at most 2^30: heads are at most 2^15, as are slices
        let blocks = problem.heads * problem.dv.div_ceil(rows[row].width());
        let tiles = match problem.config.segment {
            Some(steps) => steps.min(problem.steps).div_ceil(count),
            None => {
                let units = problem.steps_of_sequence().div_ceil(UNIT);
                let blocks = blocks.saturating_mul(problem.sequences);
                let cost = match problem.beta {
                    Some(_) => SEGMENTED_DELTA,
                    None => SEGMENTED,
                };
                let segments = segments(units, blocks, BLOCKS * device.multiprocessors, cost);
                (units * UNIT).div_ceil(segments).div_ceil(count)
            }
        };
        let segment = tiles.max(1) * count;
        let segments = problem.steps.div_ceil(segment).max(1);
        // outputs that read the last state take it from there
        let slots = match segments {
            1 if problem.config.causal => 0,
            _ => problem.slots(segment),
        };
        Ok(Self {
            row,
            kernel: match problem.beta {
                Some(_) => rows[row].delta().name,
                None => rows[row].entry().name,
            },
            segment,
            grid: [blocks, segments, problem.sequences],
            memory: Memory::new(problem, slots),
        })
    }

    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Steps of a segment; those of the longest sequence, or more, if none is cut.
    pub fn segment(&self) -> usize {
        self.segment
    }

    /// Parts of a head's states, `numbers` of them, heads, sequences: the blocks that pass states on.
    pub(super) fn grid_of_carry(problem: &Problem, numbers: usize) -> [usize; 3] {
        let parts = numbers.div_ceil(CARRY_THREADS);
        [parts, problem.heads, problem.sequences]
    }
}

impl Memory {
    fn new(problem: &Problem, slots: usize) -> Self {
        let heads = slots.saturating_mul(problem.heads);
        let mut memory = Self::default();
        let mut take = |numbers: usize| {
            let at = memory.bytes;
            let lines = numbers.saturating_mul(4).div_ceil(ALIGNMENT);
            memory.bytes = at.saturating_add(lines.saturating_mul(ALIGNMENT));
            at
        };
        let states = take(heads.saturating_mul(problem.head_size()));
        let decays = take(heads.saturating_mul(problem.decays_of_head()));
        let zs = match problem.config.normalize {
            Some(_) => take(heads.saturating_mul(problem.dk)),
            None => 0,
        };
        let transitions = match problem.beta {
            Some(_) => take(transitions(problem, slots)),
            None => 0,
        };
        Self {
            states,
            decays,
            zs,
            transitions,
            ..memory
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [blocks, segments, sequences] = self.grid;
        write!(
            f,
            "{}, {blocks} blocks of slices x {segments} segments of {} steps x {sequences}, \
             {} bytes of workspace",
            self.kernel, self.segment, self.memory.bytes
        )
    }
}

/// The first of the rows that can run a problem.
pub(super) fn first_fit(problem: &Problem, rows: &[Walk]) -> Result<usize> {
    let of_kind = |row: &Walk| row.dtype == problem.dtype && row.gate == problem.gate();
    let of_dtype = || rows.iter().filter(|row| of_kind(row));
    let fits = |row: &Walk| of_kind(row) && row.size >= problem.dk;
    rows.iter()
        .position(fits)
        .ok_or_else(|| Error::Unsupported {
            op: problem.op,
            request: format!("{} dk {}", problem.dtype.name(), problem.dk),
            available: match of_dtype().map(|row| row.size).max() {
                Some(largest) => format!("dk up to {largest} on this GPU"),
                None => "no kernel of this type that fits this GPU".into(),
            },
        })
}

/// Into how many segments to cut sequences of so many units, of which `blocks` could run at once
/// without cutting and `parallel` do; cut, all walks take `cost` times the work. A model for choosing, no prediction of
/// a time.
pub(super) fn segments(units: usize, blocks: usize, parallel: usize, cost: f64) -> usize {
    let time = |segments: usize| {
        let rounds = blocks.saturating_mul(segments).div_ceil(parallel) as f64;
        let walk = rounds * units.div_ceil(segments) as f64;
        match segments {
            1 => walk,
            // each state is read and written once for each segment
            _ => cost * walk + LAUNCHES + segments as f64 / 8.0,
        }
    };
    let most = (parallel / blocks.max(1)).min(units / SHORTEST).max(1);
    (1..=most)
        .min_by(|&a, &b| time(a).total_cmp(&time(b)))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::{SEGMENTED, segments};

    #[test]
    fn sequences_are_cut_where_blocks_are_too_few() {
        // units, blocks, blocks at once; segments
        let cases = [
            (0, 1, 216, 1),
            (1, 1, 216, 1),
            (8, 1, 216, 1),
            (64, 1, 216, 16),
            (64, 216, 216, 1),
            (64, 109, 216, 1),
            (64, 40, 216, 5),
        ];
        for (units, blocks, parallel, expected) in cases {
            let found = segments(units, blocks, parallel, SEGMENTED);
            assert_eq!(found, expected, "{units} units, {blocks} blocks");
        }
    }
}
