//! [`Plan`]: which kernels run a problem, in how many segments, and in how much workspace. Pure.

use std::fmt;

use super::problem::Problem;
use crate::abi::selective_scan::{Backward, Forward, Numbers, Source};
use crate::driver::Device;
use crate::error::{Error, Result};

/// The most segments: they count along y of the grid.
const MAX_SEGMENTS: usize = 65_535;

/// Parts of a workspace begin at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// Instructions that a multiprocessor's lanes do in a clock: those of the special function unit, and all.
const SPECIAL_LANES: f64 = 16.0;
const LANES: f64 = 128.0;
/// Special functions of an element for softplus and gate, and instructions for these and for moving it.
const SPECIAL_OF_ELEMENT: f64 = 3.0;
const INSTRUCTIONS_OF_ELEMENT: f64 = 120.0;
/// Instructions for each special function of a state, itself among them.
const INSTRUCTIONS_OF_SPECIAL: f64 = 6.5;
/// Instructions of an element's gradients for each number of its state: fewer than the 44 to 56 of PTX that the
/// emulator counts, many of which are moves.
const GRADIENT_INSTRUCTIONS: f64 = 40.0;
/// Clocks from the first instruction of a tile to the last one, for each of its steps: what a block takes
/// that is alone on a multiprocessor.
const CLOCKS_OF_STEP: f64 = 60.0;
const CLOCKS_OF_GRADIENT_STEP: f64 = 300.0;
/// The same for copying a tile and for its results.
const CLOCKS_OF_TILE: f64 = 1200.0;
/// Clocks from the end of one kernel to the start of the next.
const LAUNCH_CLOCKS: f64 = 2500.0;
/// Shared memory that the driver keeps of each block.
const RESERVED_BYTES: usize = 1024;

/// How a scan or its gradients run: the kernel, its grid, and the workspace.
///
/// ```text
/// selective_scan_forward_real_16, 32 blocks of 64 channels x 4 segments, 1081344 bytes of workspace
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Index in the rows that were given.
    pub(super) row: usize,
    /// Name of the kernel.
    pub(super) kernel: String,
    /// Channels of a block.
    pub(super) channels: usize,
    /// Blocks along the channels of all sequences: a block's channels belong to one group.
    pub(super) blocks: usize,
    /// Parts of each sequence.
    pub(super) segments: usize,
    /// Bytes.
    pub(super) workspace: usize,
}

impl Plan {
    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.workspace
    }

    /// Parts of each sequence that are scanned side by side.
    pub fn segments(&self) -> usize {
        self.segments
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            channels,
            blocks,
            segments,
            workspace,
            ..
        } = self;
        write!(
            f,
            "{kernel}, {blocks} blocks of {channels} channels x {segments} segments, \
             {workspace} bytes of workspace"
        )
    }
}

impl Plan {
    /// Plans `problem` with the first of `rows` that can run it.
    pub(super) fn forward(problem: &Problem, rows: &[Forward], device: &Device) -> Result<Self> {
        let fits = |row: &Forward| runs(problem, row.numbers, row.states, row.source);
        let mut indexed = rows.iter().enumerate();
        let row = indexed.find(|(_, row)| fits(row));
        let (index, row) = row.ok_or_else(|| refuse(problem))?;
        let numbers = row.states / row.numbers.floats();
        let room = room_of(device, row.shared_bytes());
        let pass = Pass {
            channels: row.channels,
            steps: row.row_bytes / problem.dtype.bytes(),
            resident: room.min(row.blocks as usize),
            clocks_of_element: clocks_of_element(numbers * row.numbers.exponentials()),
            clocks_of_step: CLOCKS_OF_STEP,
        };
        let blocks = blocks(problem, row.channels);
        let segments = segments(problem, |segments| {
            cost(problem, [pass, pass], blocks, segments, device)
        })?;
        Ok(Self {
            row: index,
            kernel: row.entry().name,
            channels: row.channels,
            blocks,
            segments,
            workspace: total(segment_bytes(problem, segments)),
        })
    }

    /// Plans the gradients of `problem` with the first of `rows` that can run them; the workspace is that
    /// of the segments.
    pub(super) fn backward(problem: &Problem, rows: &[Backward], device: &Device) -> Result<Self> {
        let (index, row) = backward_row(problem, rows)?;
        let numbers = row.states / row.numbers.floats();
        let specials = numbers * row.numbers.exponentials();
        let main = Pass {
            channels: row.channels,
            steps: row.row_bytes / problem.dtype.bytes(),
            resident: room_of(device, row.shared_bytes()).min(row.blocks as usize),
            clocks_of_element: numbers as f64 * GRADIENT_INSTRUCTIONS / LANES,
            clocks_of_step: CLOCKS_OF_GRADIENT_STEP,
        };
        let ends = Pass {
            clocks_of_element: clocks_of_element(specials),
            clocks_of_step: CLOCKS_OF_STEP,
            ..main
        };
        let blocks = blocks(problem, row.channels);
        let segments = segments(problem, |segments| {
            cost(problem, [ends, main], blocks, segments, device)
        })?;
        Ok(Self {
            row: index,
            kernel: row.entry().name,
            channels: row.channels,
            blocks,
            segments,
            workspace: total(segment_bytes(problem, segments)),
        })
    }
}

/// The row of the table that computes the gradients of `problem`.
pub(super) fn backward_row<'a>(
    problem: &Problem,
    rows: &'a [Backward],
) -> Result<(usize, &'a Backward)> {
    let fits = |row: &Backward| runs(problem, row.numbers, row.states, row.source);
    let mut rows = rows.iter().enumerate();
    rows.find(|(_, row)| fits(row))
        .ok_or_else(|| refuse(problem))
}

/// Steps between the states that the gradients begin at.
pub(super) fn interval(problem: &Problem, rows: &[Backward]) -> Result<usize> {
    let (_, row) = backward_row(problem, rows)?;
    Ok(row.row_bytes / problem.dtype.bytes())
}

fn runs(problem: &Problem, numbers: Numbers, states: usize, source: Source) -> bool {
    numbers == problem.config.numbers
        && states >= problem.states
        && (source == problem.source || source == Source::Any)
}

fn refuse(problem: &Problem) -> Error {
    let numbers = format!("{:?}", problem.config.numbers).to_lowercase();
    Error::Unsupported {
        op: problem.op,
        request: format!(
            "states of {} floats, {numbers} numbers, on this GPU",
            problem.states
        ),
        available: "a kernel for GPUs with 99 KiB of shared memory for a block".into(),
    }
}

/// Refuses more blocks than a grid has room for.
pub(super) fn room_for(problem: &Problem, blocks: usize) -> Result<()> {
    if blocks <= i32::MAX as usize {
        return Ok(());
    }
    Err(Error::Unsupported {
        op: problem.op,
        request: format!("{blocks} blocks of one kernel"),
        available: format!("room for {}", i32::MAX),
    })
}

/// Blocks along the channels of all sequences.
fn blocks(problem: &Problem, channels: usize) -> usize {
    blocks_of_group(problem, channels) * problem.groups * problem.sequences
}

/// Blocks along the channels of a group.
pub(super) fn blocks_of_group(problem: &Problem, channels: usize) -> usize {
    (problem.dim / problem.groups).div_ceil(channels)
}

/// Bytes of the states and of the sums of step sizes of segments; the most there can be if they are more.
pub(super) fn segment_bytes(problem: &Problem, segments: usize) -> [usize; 2] {
    if segments == 1 {
        return [0, 0];
    }
    let rows = (problem.sequences * problem.dim).saturating_mul(segments);
    [rows.saturating_mul(problem.states), rows].map(aligned_bytes)
}

/// Bytes of so many floats, up to where the next part of a workspace may begin.
pub(super) fn aligned_bytes(floats: usize) -> usize {
    let bytes = floats.saturating_mul(size_of::<f32>());
    bytes
        .checked_next_multiple_of(ALIGNMENT)
        .unwrap_or(usize::MAX)
}

/// Bytes of all parts.
pub(super) fn total(parts: impl IntoIterator<Item = usize>) -> usize {
    parts.into_iter().fold(0, usize::saturating_add)
}

/// The number of segments that was asked for, or the best one.
fn segments(problem: &Problem, cost: impl Fn(usize) -> f64) -> Result<usize> {
    const CANDIDATES: [usize; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
    match problem.config.segments {
        Some(segments) if (1..=MAX_SEGMENTS).contains(&segments) => Ok(segments),
        Some(segments) => Err(Error::Argument {
            op: problem.op,
            argument: "segments",
            expected: format!("1 to {MAX_SEGMENTS}"),
            found: segments.to_string(),
        }),
        // the fewest among equals
        None => Ok(CANDIDATES
            .into_iter()
            .min_by(|&one, &other| cost(one).total_cmp(&cost(other)))
            .unwrap_or(1)),
    }
}

/// What a kernel takes, for a model of its time.
#[derive(Clone, Copy)]
struct Pass {
    /// Channels of a block.
    channels: usize,
    /// Steps of a tile.
    steps: usize,
    /// Blocks that run side by side on a multiprocessor.
    resident: usize,
    /// Clocks of a multiprocessor that is busy.
    clocks_of_element: f64,
    /// Clocks of a block that is alone.
    clocks_of_step: f64,
}

/// Blocks that shared memory has room for on a multiprocessor.
fn room_of(device: &Device, shared: usize) -> usize {
    (device.shared_bytes_of_all / (shared + RESERVED_BYTES)).max(1)
}

/// Clocks of an element whose states take so many special functions.
fn clocks_of_element(specials: usize) -> f64 {
    let specials = specials as f64;
    let instructions = specials * INSTRUCTIONS_OF_SPECIAL + INSTRUCTIONS_OF_ELEMENT;
    ((specials + SPECIAL_OF_ELEMENT) / SPECIAL_LANES).max(instructions / LANES)
}

/// Clocks of the busiest multiprocessor: of the pass that computes what segments leave behind, if there are
/// several, and of the one that follows. A model for choosing, no prediction of a time.
fn cost(
    problem: &Problem,
    [ends, main]: [Pass; 2],
    blocks: usize,
    segments: usize,
    device: &Device,
) -> f64 {
    // those of `cu_seqlens` are not known here: as if they were equally long
    let steps = (problem.batch * problem.seqlen).div_ceil(problem.sequences.max(1));
    let of_pass = |pass: Pass, segments_of_pass: usize| {
        let blocks = blocks.saturating_mul(segments_of_pass);
        let blocks = blocks.div_ceil(device.multiprocessors.max(1));
        let tiles = steps.div_ceil(pass.steps).div_ceil(segments) as f64;
        let elements = (pass.channels * pass.steps) as f64;
        let busy = blocks as f64 * elements * pass.clocks_of_element;
        let rounds = blocks.div_ceil(pass.resident) as f64;
        let waiting = rounds * (pass.steps as f64 * pass.clocks_of_step + CLOCKS_OF_TILE);
        tiles * busy.max(waiting) + LAUNCH_CLOCKS
    };
    match segments {
        1 => of_pass(main, 1),
        // the last segment has no successor that needs to know what it leaves behind
        _ => of_pass(ends, segments - 1) + LAUNCH_CLOCKS + of_pass(main, segments),
    }
}
