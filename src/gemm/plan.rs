//! [`Plan`]: which kernel runs a problem, and on how many blocks. Pure.

use super::problem::Problem;
use crate::abi::gemm::{Access, Multiply};
use crate::driver::Device;
use crate::error::{Error, Result};

/// A kernel and its grid, and why it was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    /// Index in the rows that were given.
    pub(super) row: usize,
    /// Index of the row's kernel for the problem's layouts.
    pub(super) layout: usize,
    /// Tiles, 1, matrices.
    pub(super) grid: [usize; 3],
    /// What the model expects of the row.
    pub(super) cost: Cost,
}

/// What a row would take for a problem, in clocks of the busiest multiprocessor. A model for choosing
/// between rows, no prediction of a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    /// Multiplications on tensor cores.
    pub(super) tensor: f64,
    /// Operands written to and read from shared memory.
    pub(super) shared: f64,
    /// Operands read through L2.
    pub(super) l2: f64,
    /// Every tensor moved once, by all multiprocessors together.
    pub(super) memory: f64,
    /// Tiles on their way to shared memory, as many at a time as there are stages.
    pub(super) latency: f64,
    /// Starting blocks, and storing results.
    pub(super) ends: f64,
}

impl Cost {
    /// What goes on side by side counts as its slowest part.
    pub(super) fn total(&self) -> f64 {
        let parts = [self.shared, self.l2, self.memory, self.latency];
        parts.into_iter().fold(self.tensor, f64::max) + self.ends
    }
}

/// Bytes a clock that shared memory delivers.
const SHARED_BYTES: f64 = 128.0;
/// Bytes a clock that L2 delivers to a multiprocessor.
const L2_BYTES: f64 = 64.0;
/// Bytes a clock that memory delivers, for each multiprocessor: 10 on an A100, 13 on an H100.
const MEMORY_BYTES: f64 = 12.0;
/// Clocks from a request to memory until its bytes arrive.
const MEMORY_CLOCKS: f64 = 800.0;
/// Clocks from the start of a block to its first multiplication.
const START_CLOCKS: f64 = 1500.0;
/// Registers of a multiprocessor.
const REGISTERS: usize = 65_536;
/// Registers of a lane beside sums and operands.
const OTHER_REGISTERS: usize = 48;
/// Shared memory that the system takes of each block.
const RESERVED_BYTES: usize = 1024;

impl Plan {
    /// Plans `problem` with the cheapest of `rows` that can run it.
    pub(super) fn new(
        op: &'static str,
        problem: &Problem,
        rows: &[Multiply],
        device: &Device,
    ) -> Result<Self> {
        let layout = Multiply::layouts().position(|axes| axes == problem.axes);
        let plans = rows.iter().enumerate().filter_map(|(row, multiply)| {
            let (m, n, _) = multiply.tile;
            let asked = problem.config.tile.is_none_or(|tile| tile == (m, n));
            (asked && runs(problem, multiply)).then_some(Self {
                row,
                layout: layout?,
                grid: [tiles(problem, multiply), 1, problem.batch],
                cost: cost(problem, multiply, device),
            })
        });
        plans
            .min_by(|one, other| one.cost.total().total_cmp(&other.cost.total()))
            .ok_or_else(|| refuse(op, problem, rows))
    }
}

/// Whether the row's kernels can copy the problem's operands.
fn runs(problem: &Problem, row: &Multiply) -> bool {
    let vector = problem.a.vector && problem.b.vector;
    row.dtype == problem.dtype && (vector || row.access == Access::Any)
}

fn refuse(op: &'static str, problem: &Problem, rows: &[Multiply]) -> Error {
    let name = |(m, n): (usize, usize)| format!("{m}x{n}");
    let tile = problem.config.tile.map_or("of any size".into(), name);
    let others = rows.iter().filter(|row| runs(problem, row));
    let others: Vec<String> = others.map(|row| name((row.tile.0, row.tile.1))).collect();
    Error::Unsupported {
        op,
        request: format!("tile {tile} and these operands in {}", problem.dtype.name()),
        available: format!("tile {}", others.join(", ")),
    }
}

/// Tiles of one matrix.
fn tiles(problem: &Problem, row: &Multiply) -> usize {
    let (m, n, _) = row.tile;
    problem.m.div_ceil(m) * problem.n.div_ceil(n)
}

/// Multiply-adds of 16-bit numbers that a multiprocessor's tensor cores do a clock by mma.sync. From 9.0
/// on that is less than the hardware has: about 60 % on an H100.
fn multiply_adds(capability: u32) -> f64 {
    match capability {
        80 => 1024.0,
        81..=89 => 512.0,
        90..=119 => 1280.0,
        _ => 512.0,
    }
}

fn cost(problem: &Problem, row: &Multiply, device: &Device) -> Cost {
    let ((tile_m, tile_n, tile_k), (warp_m, warp_n)) = (row.tile, row.warp);
    let multiprocessors = device.multiprocessors.max(1);
    // tiles that the busiest multiprocessor gets, and how many of them run side by side
    let blocks = (tiles(problem, row).saturating_mul(problem.batch)).div_ceil(multiprocessors);
    let registers = warp_m * warp_n / 32 + (warp_m + warp_n) / 2 + OTHER_REGISTERS;
    let room = device.shared_bytes_of_all / (row.shared_bytes() + RESERVED_BYTES);
    let resident = room.min(REGISTERS / (registers * row.threads())).max(1);
    let side_by_side = blocks.min(resident).max(1) as f64;
    let rounds = blocks.div_ceil(resident) as f64;

    let bytes = row.dtype.bytes() as f64;
    let blocks = blocks as f64;
    let steps = problem.k.div_ceil(tile_k) as f64;
    let depth = steps * tile_k as f64;
    let (m, n, k) = (problem.m as f64, problem.n as f64, problem.k as f64);
    let edges = (tile_m + tile_n) as f64;
    // each warp reads its own rows of a and columns of b
    let reads = (row.threads() / 32 * (warp_m + warp_n)) as f64;
    let out = problem.out.bytes() as f64;
    let a = if problem.a.batch == 0 {
        1
    } else {
        problem.batch
    } as f64
        * m
        * k;
    let b = if problem.b.batch == 0 {
        1
    } else {
        problem.batch
    } as f64
        * k
        * n;
    let d = problem.batch as f64 * m * n;
    Cost {
        tensor: blocks * depth * (tile_m * tile_n) as f64 / multiply_adds(device.capability),
        shared: blocks * depth * bytes * (edges + reads) / SHARED_BYTES,
        l2: blocks * depth * bytes * edges / L2_BYTES,
        memory: (bytes * (a + b) + out * d) / (MEMORY_BYTES * multiprocessors as f64),
        latency: blocks * steps * MEMORY_CLOCKS / (side_by_side * (row.stages - 1) as f64),
        ends: rounds * START_CLOCKS + blocks * (tile_m * tile_n) as f64 * out / L2_BYTES,
    }
}
