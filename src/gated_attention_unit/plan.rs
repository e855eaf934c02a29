//! [`Plan`] and [`BackwardPlan`]: which kernels run a problem, on how many blocks, and in how much workspace. Pure.

use std::fmt;

use super::problem::Problem;
use crate::abi::gated_attention_unit::{Attend, ROWS, STATES_CHANNELS, SUMS_COLUMNS, Tiles};
use crate::driver::Device;
use crate::error::Result;

/// Blocks along y and z of a grid.
const MAX_BLOCKS: usize = 65_535;

/// Alignment in the workspace: a line of the L2 cache.
const ALIGNMENT: usize = 128;

/// How [`GatedAttentionUnit::forward`](super::GatedAttentionUnit::forward) runs.
///
/// ```text
/// gated_attention_unit_attend_bf16_z128_v512, 3 blocks of channels x 32 of rows x 1, 8 chunks of 256 steps,
/// 10620288 bytes of workspace
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Index in the rows of attention that were given.
    pub(super) attend: usize,
    /// Index in the rows of states and gradients that were given.
    pub(super) tiles: usize,
    /// Name of the kernel of attention.
    pub(super) kernel: String,
    /// Blocks of channels, tiles of rows, sequences.
    pub(super) grid: [usize; 3],
    /// The same of the kernel of states, and of that which adds them up; none where there are no states.
    pub(super) states: Option<States>,
    /// Bytes of workspace.
    pub(super) bytes: usize,
}

/// How states are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct States {
    /// Steps of a chunk.
    pub(super) chunk: usize,
    /// Blocks of channels, chunks, sequences.
    pub(super) grid: [usize; 3],
    /// Slices of channels, 1, sequences.
    pub(super) carry_grid: [usize; 3],
    /// Where each chunk's states lie in the workspace, in bytes.
    pub(super) states: usize,
    /// The same of what the rows of a chunk meet.
    pub(super) met: Met,
}

/// Where sums of states lie in the workspace, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Met {
    pub(super) states: usize,
    pub(super) units: usize,
}

/// Room in a workspace.
#[derive(Debug, Default)]
struct Room {
    bytes: usize,
}

impl Room {
    /// A part of so many elements of so many bytes.
    fn take<const N: usize>(&mut self, sizes: [usize; N]) -> usize {
        let at = self.bytes;
        let bytes = sizes.into_iter().fold(1, usize::saturating_mul);
        let lines = bytes.div_ceil(ALIGNMENT);
        self.bytes = at.saturating_add(lines.saturating_mul(ALIGNMENT));
        at
    }

    fn met(&mut self, problem: &Problem) -> Met {
        let slots = problem.slots(problem.chunk);
        Met {
            states: self.take([slots, problem.dz, problem.dv, problem.dtype.bytes()]),
            units: self.take([slots, problem.slices(), size_of::<f32>()]),
        }
    }
}

impl Plan {
    /// Plans `problem` with the best of the rows that can run it.
    pub(super) fn new(
        problem: &Problem,
        attend: &[Attend],
        tiles: &[Tiles],
        device: &Device,
    ) -> Result<Self> {
        Self::with_room(problem, attend, tiles, device, &mut Room::default())
    }

    fn with_room(
        problem: &Problem,
        attend: &[Attend],
        tiles: &[Tiles],
        device: &Device,
        room: &mut Room,
    ) -> Result<Self> {
        for (what, found, most) in [
            ("steps", problem.steps, MAX_BLOCKS * ROWS),
            ("sequences", problem.sequences, MAX_BLOCKS),
        ] {
            if found > most {
                let (request, available) = (format!("{found} {what}"), format!("up to {most}"));
                return Err(problem.check().unsupported(request, available));
            }
        }
        let row = best(problem, attend, device)?;
        let tiles = first_fit(problem, tiles)?;
        let states = problem.has_states().then(|| {
            let slots = problem.slots(problem.chunk);
            let chunks = problem.steps.div_ceil(problem.chunk);
            let blocks = problem.dv.div_ceil(STATES_CHANNELS);
            States {
                chunk: problem.chunk,
                grid: [blocks, chunks, problem.sequences],
                carry_grid: [problem.slices(), 1, problem.sequences],
                states: room.take([slots, problem.dz, problem.dv, size_of::<f32>()]),
                met: room.met(problem),
            }
        });
        Ok(Self {
            attend: row,
            tiles,
            kernel: attend[row].entry().name,
            grid: grid(problem, &attend[row]),
            states,
            bytes: room.bytes,
        })
    }

    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.bytes
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [blocks, rows, sequences] = self.grid;
        write!(
            f,
            "{}, {blocks} blocks of channels x {rows} of rows x {sequences}, ",
            self.kernel
        )?;
        if let Some(states) = &self.states {
            let [_, chunks, _] = states.grid;
            write!(f, "{chunks} chunks of {} steps, ", states.chunk)?;
        }
        write!(f, "{} bytes of workspace", self.bytes)
    }
}

/// Blocks of attention.
fn grid(problem: &Problem, row: &Attend) -> [usize; 3] {
    let channels = problem.dv.div_ceil(row.channels);
    [channels, problem.steps.div_ceil(ROWS), problem.sequences]
}

/// The row of the least size that serves a problem, and of these the one that is done first. A model for choosing, no
/// prediction of a time: a multiprocessor does a block's products per score, of which those over z do not depend on
/// how many channels it has.
fn best(problem: &Problem, rows: &[Attend], device: &Device) -> Result<usize> {
    let serves = |row: &Attend| row.dtype == problem.dtype && row.size >= problem.dz;
    let size = rows.iter().filter(|row| serves(row)).map(|row| row.size);
    let size = size.min();
    let rows = || rows.iter().enumerate();
    let candidates = || rows().filter(|(_, row)| serves(row) && Some(row.size) == size);
    let time = |row: &Attend| {
        let blocks = grid(problem, row)
            .into_iter()
            .fold(1, usize::saturating_mul);
        let rounds = blocks.div_ceil(device.multiprocessors.max(1));
        rounds.saturating_mul(row.size + row.channels)
    };
    let asked = |row: &Attend| problem.channels.is_none_or(|asked| asked == row.channels);
    let best = candidates()
        .filter(|(_, row)| asked(row))
        .min_by_key(|(_, row)| time(row));
    best.map(|(index, _)| index).ok_or_else(|| {
        let dtype = problem.dtype.name();
        let channels = candidates().map(|(_, row)| row.channels.to_string());
        let channels: Vec<String> = channels.collect();
        match (problem.channels, channels.is_empty()) {
            (Some(asked), false) => problem.check().unsupported(
                format!("{dtype} dz {} in blocks of {asked} channels", problem.dz),
                format!("blocks of {} channels", channels.join(" or ")),
            ),
            _ => unsupported(problem, rows().map(|(_, row)| (row.dtype, row.size))),
        }
    })
}

/// The first of the rows that can run a problem.
fn first_fit(problem: &Problem, rows: &[Tiles]) -> Result<usize> {
    let serves = |row: &Tiles| row.dtype == problem.dtype && row.size >= problem.dz;
    rows.iter()
        .position(serves)
        .ok_or_else(|| unsupported(problem, rows.iter().map(|row| (row.dtype, row.size))))
}

/// No row, of a dtype and a size each, can run a problem.
fn unsupported(
    problem: &Problem,
    rows: impl Iterator<Item = (crate::abi::Dtype, usize)>,
) -> crate::Error {
    let sizes = rows.filter(|&(dtype, _)| dtype == problem.dtype);
    let available = match sizes.map(|(_, size)| size).max() {
        Some(largest) => format!("dz up to {largest} on this GPU"),
        None => "no kernel of this type that fits this GPU".into(),
    };
    let request = format!("{} dz {}", problem.dtype.name(), problem.dz);
    problem.check().unsupported(request, available)
}

/// How [`GatedAttentionUnit::backward`](super::GatedAttentionUnit::backward) runs.
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardPlan {
    /// Of the kernels that it shares with the forward call.
    pub(super) forward: Plan,
    /// Name of the kernel of gradients.
    pub(super) kernel: String,
    /// 1, tiles of rows, sequences: blocks of gradients.
    pub(super) grid: [usize; 3],
    /// Gradients of gamma and beta, of dz numbers each.
    pub(super) affines: usize,
    /// Sums of one tile.
    pub(super) sums_of_tile: usize,
    /// Blocks that add sums.
    pub(super) sums_grid: [usize; 3],
    /// Where everything lies in the workspace, in bytes: sums of the gradients of states that the rows of a chunk
    /// meet, if there are any;
    pub(super) met: Option<Met>,
    /// the gradient of `a`;
    pub(super) da: usize,
    /// the gradient of z on the way;
    pub(super) part: usize,
    /// sums of tiles.
    pub(super) sums: usize,
    /// Bytes of workspace.
    pub(super) bytes: usize,
}

impl BackwardPlan {
    /// Plans `problem`, of which the gradient of bias is wanted or not, with the best of the rows that can run it.
    pub(super) fn new(
        problem: &Problem,
        with_bias: bool,
        attend: &[Attend],
        tiles: &[Tiles],
        device: &Device,
    ) -> Result<Self> {
        let mut room = Room::default();
        let forward = Plan::with_room(problem, attend, tiles, device, &mut room)?;
        let affines = if problem.mixed { 8 } else { 4 };
        let biases = if with_bias { problem.biases() } else { 0 };
        let sums_of_tile = affines * problem.dz + biases;
        let steps = problem.all_steps();
        let [_, rows, sequences] = forward.grid;
        Ok(Self {
            kernel: tiles[forward.tiles].gradients().name,
            grid: [1, rows, sequences],
            affines,
            sums_of_tile,
            sums_grid: [sums_of_tile.div_ceil(SUMS_COLUMNS), 1, 1],
            met: forward.states.map(|_| room.met(problem)),
            da: room.take([steps, problem.dv, problem.dtype.bytes()]),
            part: room.take([steps, problem.dz, size_of::<f32>()]),
            sums: room.take([problem.slots(ROWS), sums_of_tile, size_of::<f32>()]),
            bytes: room.bytes,
            forward,
        })
    }

    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.bytes
    }
}

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, rows, sequences] = self.grid;
        write!(
            f,
            "{}; {}, {rows} blocks of rows x {sequences}, {} bytes of workspace",
            self.forward.kernel, self.kernel, self.bytes
        )
    }
}
