//! [`Plan`]: which kernel runs a problem, on how many blocks, and in how much workspace. Pure.

use std::fmt;

use super::problem::{CHECK, Ending, Grouping, Problem};
use crate::abi::gemm::{
    Access, COLUMN_SUMS_COLUMNS, Family, MAX_RANK, Multiply, SUM_SPLITS_THREADS,
};
use crate::driver::Device;
use crate::error::{Error, Result};

/// How a multiplication runs: its kernel and grid, and what the choice was made by.
///
/// ```text
/// gemm_f16_16x128_nt, 32 tiles of 16x128 x 4 splits of k x 1, 262144 bytes of workspace; clocks: ...
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Index in the rows that were given, and of the row's kernel for the problem's layouts.
    pub(super) row: usize,
    pub(super) layout: usize,
    /// Name of the kernel.
    pub(super) kernel: String,
    /// Rows and columns of b's products that a block computes.
    pub(super) tile: (usize, usize),
    /// Parts of k.
    pub(super) splits: usize,
    /// Tiles, splits, matrices.
    pub(super) grid: [usize; 3],
    /// Bytes for the parts of a split k, or for the sums of columns of each tile.
    pub(super) workspace: usize,
    /// What the model expects.
    pub(super) cost: Cost,
}

impl Plan {
    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.workspace
    }

    /// Rows and columns of `d` that a block computes.
    pub fn tile(&self) -> (usize, usize) {
        self.tile
    }

    /// Parts of `k` that are summed by different blocks.
    pub fn splits(&self) -> usize {
        self.splits
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            tile: (m, n),
            splits,
            grid: [tiles, _, batch],
            workspace,
            cost,
            ..
        } = self;
        write!(
            f,
            "{kernel}, {tiles} tiles of {m}x{n} x {splits} splits of k x {batch}, \
             {workspace} bytes of workspace; clocks: {cost}"
        )
    }
}

/// What a row would take for a problem, in clocks of the busiest multiprocessor. A model for choosing
/// between rows, no prediction of a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    /// Multiplications.
    pub(super) multiply: f64,
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
    /// Adding the parts of a split k.
    pub(super) splits: f64,
}

impl Cost {
    /// What goes on side by side counts as its slowest part.
    pub(super) fn total(&self) -> f64 {
        let parts = [self.shared, self.l2, self.memory, self.latency];
        parts.into_iter().fold(self.multiply, f64::max) + self.ends + self.splits
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            multiply,
            shared,
            l2,
            memory,
            latency,
            ends,
            splits,
        } = self;
        write!(
            f,
            "the longest of multiply {multiply:.0}, shared memory {shared:.0}, L2 {l2:.0}, memory {memory:.0}, \
             latency {latency:.0}; and ends {ends:.0}, splits {splits:.0}"
        )
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
/// Clocks from the end of one kernel to the start of the next.
const LAUNCH_CLOCKS: f64 = 2500.0;
/// Schedulers of a multiprocessor, each with its own warps.
const SCHEDULERS: f64 = 4.0;
/// Registers of a multiprocessor.
const REGISTERS: usize = 65_536;
/// Registers of a lane beside sums and operands.
const OTHER_REGISTERS: usize = 48;
/// Shared memory that the system takes of each block.
const RESERVED_BYTES: usize = 1024;
/// Parts that k is split into, as far as it has so many tiles.
const SPLITS: [usize; 12] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32];
/// The most parts that a caller can ask for: blocks along y of the grid.
const MAX_SPLITS: usize = 65_535;
/// Elements of a chunk: rows of parts are filled up to whole ones.
pub(super) const CHUNK: usize = 8;

impl Plan {
    /// Plans `problem` with the cheapest of `rows` that can run it.
    pub(super) fn new(problem: &Problem, rows: &[Multiply], device: &Device) -> Result<Self> {
        let splits = splits(problem)?;
        let plans = rows.iter().enumerate().filter_map(|(index, row)| {
            let layout = row
                .layouts()
                .iter()
                .position(|&axes| axes == problem.axes)?;
            let asked = problem
                .request
                .config
                .tile
                .is_none_or(|tile| tile == (row.tile.0, row.tile.1));
            let plan = |&splits: &usize| Self::of(problem, row, (index, layout), splits, device);
            // more parts than tiles along k leave blocks without work
            let steps = problem.k.div_ceil(row.tile.2).max(1);
            let useful = splits
                .iter()
                .filter(|&&count| count <= steps || splits.len() == 1);
            let allowed = |plan: &Self| {
                plan.splits == 1
                    || splits.len() == 1
                    || plan.workspace <= problem.request.config.max_workspace
            };
            let plans = useful.map(plan).filter(allowed);
            (asked && runs(problem, row)).then(|| plans.min_by(cheaper))?
        });
        plans.min_by(cheaper).ok_or_else(|| refuse(problem, rows))
    }

    fn of(
        problem: &Problem,
        row: &Multiply,
        (index, layout): (usize, usize),
        splits: usize,
        device: &Device,
    ) -> Self {
        let (axis_a, axis_b) = problem.axes;
        let tiles = tiles(problem, row);
        // a batch without elements may be of any size
        let product = |sizes: [usize; 4]| sizes.into_iter().fold(1, usize::saturating_mul);
        let (batch, m, n) = (problem.batch, problem.m, problem.n);
        let bytes_of_part = n.next_multiple_of(CHUNK) * size_of::<f32>();
        let workspace = match splits {
            1 if problem.request.column_sums.is_some() => {
                product([batch, m.div_ceil(row.tile.0), n, size_of::<f32>()])
            }
            1 => 0,
            _ => product([splits, batch, m, bytes_of_part]),
        };
        Self {
            row: index,
            layout,
            kernel: row.entry(axis_a, axis_b).name,
            tile: (row.tile.0, columns(problem, row)),
            splits,
            grid: [tiles, splits, problem.batch],
            workspace,
            cost: cost(problem, row, splits, device),
        }
    }

    /// Blocks of the kernel that adds the parts of a split k.
    pub(super) fn grid_of_sum_splits(&self, problem: &Problem) -> [usize; 3] {
        let chunks = problem.m * problem.n.div_ceil(CHUNK);
        [chunks.div_ceil(SUM_SPLITS_THREADS), 1, problem.batch]
    }
}

/// Blocks of the kernel that adds columns, in `parts` parts of the rows.
pub(super) fn grid_of_column_sums(columns: usize, parts: usize) -> [usize; 3] {
    [columns.div_ceil(COLUMN_SUMS_COLUMNS), parts, 1]
}

fn cheaper(one: &Plan, other: &Plan) -> std::cmp::Ordering {
    one.cost.total().total_cmp(&other.cost.total())
}

/// Whether the row's kernels can copy the problem's operands.
fn runs(problem: &Problem, row: &Multiply) -> bool {
    let vector = problem.matrices.a.vector != 0 && problem.matrices.b.vector != 0;
    let family = match row.family {
        Family::Lora => problem.rank > 0,
        Family::Tensor | Family::Simt => problem.rank == 0,
    };
    family && row.dtype == problem.request.dtype && (vector || row.access == Access::Any)
}

/// The numbers of parts that k may be split into.
fn splits(problem: &Problem) -> Result<Vec<usize>> {
    let request = &problem.request;
    let whole = request.ending == Ending::Gate
        || request.column_sums.is_some()
        || request.grouping != Grouping::None
        || problem.rank > 0;
    match request.config.splits {
        None if whole => Ok(vec![1]),
        None => Ok(SPLITS.into()),
        Some(splits) if splits == 0 || splits > MAX_SPLITS => {
            let expected = format!("1 to {MAX_SPLITS}");
            Err(CHECK.argument("splits", expected, splits.to_string()))
        }
        Some(splits) if splits > 1 && whole => {
            let request = format!("{splits} splits with a gate, column_sums, groups or an adapter");
            Err(CHECK.unsupported(request, "1"))
        }
        Some(splits) => Ok(vec![splits]),
    }
}

fn refuse(problem: &Problem, rows: &[Multiply]) -> Error {
    let name = |(m, n): (usize, usize)| format!("{m}x{n}");
    let tile = problem
        .request
        .config
        .tile
        .map_or("of any size".into(), name);
    let others = rows.iter().filter(|row| runs(problem, row));
    let others: Vec<String> = others.map(|row| name((row.tile.0, row.tile.1))).collect();
    let adapter = if problem.rank > 0 {
        ", with an adapter"
    } else {
        ""
    };
    let dtype = problem.request.dtype.name();
    let available = match others.is_empty() {
        true => "none for them at all".into(),
        false => format!("tile {}", others.join(", ")),
    };
    let request = format!("tile {tile} and these operands in {dtype}{adapter}");
    CHECK.unsupported(request, available)
}

/// Columns of d of a tile: with a gate, half of it are the gate's.
fn columns(problem: &Problem, row: &Multiply) -> usize {
    if problem.request.ending == Ending::Gate {
        row.tile.1 / 2
    } else {
        row.tile.1
    }
}

/// Tiles of one matrix, or of all groups of rows: each of these may need one more than its rows fill.
fn tiles(problem: &Problem, row: &Multiply) -> usize {
    let more = match problem.request.grouping {
        Grouping::Rows => problem.weights.saturating_sub(1),
        Grouping::None | Grouping::K => 0,
    };
    (problem.m.div_ceil(row.tile.0) + more) * problem.n.div_ceil(columns(problem, row))
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

/// Clocks of a scheduler that a warp of [`Family::Simt`] takes for one step along k. On 8.0 a multiply-add
/// takes two and leaves room for the rest; later ones take an instruction a clock, whichever it is.
fn clocks_of_step(row: &Multiply, capability: u32) -> f64 {
    let ((tile_m, tile_n, _), (warp_m, warp_n)) = (row.tile, row.warp);
    let multiply_adds = (warp_m * warp_n / 32) as f64;
    let loads = (operands_of_lane(row) / 4) as f64;
    // five instructions an element: its copy, and what that needs
    let copies = 5.0 * (tile_m + tile_n) as f64 / row.threads() as f64;
    match capability {
        80 => 2.0 * multiply_adds,
        _ => multiply_adds + loads + copies,
    }
}

/// Elements that a lane of [`Family::Simt`] loads for one step along k: of its eighth of the warp's rows and
/// its quarter of the columns.
fn operands_of_lane(row: &Multiply) -> usize {
    row.warp.0 / 8 + row.warp.1 / 4
}

fn cost(problem: &Problem, row: &Multiply, splits: usize, device: &Device) -> Cost {
    let ((tile_m, tile_n, tile_k), (warp_m, warp_n)) = (row.tile, row.warp);
    // an adapter's `down` is one more operand of each block
    let rank = if problem.rank > 0 { MAX_RANK } else { 0 };
    let warps = row.threads() / 32;
    let multiprocessors = device.multiprocessors.max(1);
    // blocks that the busiest multiprocessor gets, and how many of them run side by side
    let blocks = tiles(problem, row)
        .saturating_mul(problem.batch)
        .saturating_mul(splits)
        .div_ceil(multiprocessors);
    let registers = warp_m * warp_n / 32 + (warp_m + warp_n) / 2 + OTHER_REGISTERS;
    let room = device.shared_bytes_of_all / (row.shared_bytes() + RESERVED_BYTES);
    let resident = room.min(REGISTERS / (registers * row.threads())).max(1);
    let side_by_side = blocks.min(resident).max(1) as f64;
    let rounds = blocks.div_ceil(resident) as f64;

    let bytes = row.dtype.bytes() as f64;
    let blocks = blocks as f64;
    let depth_of_all = match problem.request.grouping {
        Grouping::K => problem.k.div_ceil(problem.weights.max(1)),
        Grouping::None | Grouping::Rows => problem.k,
    };
    let steps = depth_of_all.div_ceil(tile_k).div_ceil(splits) as f64;
    let depth = steps * tile_k as f64;
    let (m, n, k) = (problem.m as f64, problem.n as f64, problem.k as f64);
    let columns = columns(problem, row) as f64;
    let edges = (tile_m + tile_n + rank) as f64;
    let capability = device.capability;
    // clocks that all of a block's warps together take for one step along k, and elements that they read
    let (step, reads) = match row.family {
        // a warp reads its own rows of a and columns of b
        Family::Tensor | Family::Lora => (
            (tile_m * (tile_n + rank)) as f64 / multiply_adds(capability),
            warps * (warp_m + warp_n) + rank * (tile_m / warp_m),
        ),
        // a lane does, two lanes at once; a scheduler without a warp does nothing
        Family::Simt => (
            warps as f64 * clocks_of_step(row, capability)
                / SCHEDULERS.min(side_by_side * warps as f64),
            warps * 16 * operands_of_lane(row),
        ),
    };
    let out = problem.request.out.bytes() as f64;
    let matrices = |stride: i64, of: usize| if stride == 0 { 1.0 } else { of as f64 };
    let a = matrices(problem.matrices.a.batch_stride, problem.batch) * m * k;
    let b = matrices(problem.matrices.b.batch_stride, problem.weights) * k * n;
    let b = if problem.request.ending == Ending::Gate {
        2.0 * b
    } else {
        b
    };
    let d = problem.batch as f64 * m * n;
    // parts of sums are f32
    let stored = if splits > 1 {
        size_of::<f32>() as f64
    } else {
        out
    };
    let l2 = L2_BYTES * multiprocessors as f64;
    Cost {
        multiply: blocks * depth * step,
        shared: blocks * depth * bytes * (edges + reads as f64) / SHARED_BYTES,
        l2: blocks * depth * bytes * edges / L2_BYTES,
        memory: (bytes * (a + b) + out * d) / (MEMORY_BYTES * multiprocessors as f64),
        latency: blocks * steps * MEMORY_CLOCKS / (side_by_side * (row.stages - 1) as f64),
        ends: rounds * START_CLOCKS + blocks * tile_m as f64 * columns * stored / L2_BYTES,
        splits: if splits > 1 {
            LAUNCH_CLOCKS + MEMORY_CLOCKS + d * (splits as f64 * stored + out) / l2
        } else {
            0.0
        },
    }
}
