//! The kernels of matrix multiplication: parameters and tables.

use super::{Dtype, Dtype::BF16, Dtype::F16, Dtype::F32, Entry, Unit, params};

params! {
    /// A matrix, or one for each of a batch. Strides count elements.
    pub struct Matrix as "seqmix::gemm::Matrix" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one matrix to the next; 0 repeats it.
        pub batch_stride: i64,
        /// From one row to the next; of operands: along the axis that does not lie contiguously.
        pub row_stride: i64,
        /// From one column to the next: 1, except for an adapter's matrix that lies the other way.
        pub column_stride: i64,
        /// 1: address and strides are multiples of 16 bytes; 0: they are not.
        pub vector: i32,
        /// 0 f16, 1 bf16, 2 f32.
        pub dtype: i32,
    }
}

params! {
    /// Parameters of the kernels that multiply, and of those that add the parts of a split k.
    pub struct MultiplyParams as "seqmix::gemm::MultiplyParams" with [Matrix] {
        /// `[batch, m, k]`
        pub a: Matrix,
        /// `[batch, k, n]`
        pub b: Matrix,
        /// `[batch, k, n]`: the gate's weights.
        pub gate: Matrix,
        /// `[batch, k, rank]`: of an adapter.
        pub down: Matrix,
        /// `[batch, rank, n]`: of an adapter.
        pub up: Matrix,
        /// `[batch, m, n]`, or none.
        pub c: Matrix,
        /// `[batch, n]`, or none.
        pub bias: Matrix,
        /// `[batch, n]`, or none.
        pub gate_bias: Matrix,
        /// `[batch, m, n]`, or none.
        pub residual: Matrix,
        /// `[batch, m]` of f32, or none.
        pub row_scale: Matrix,
        /// `[batch, n]` of f32, or none.
        pub column_scale: Matrix,
        /// `[batch, m, n]` or `[batch, m, 2 n]`, or none.
        pub preactivation: Matrix,
        /// `[batch, m, n]` or `[batch, m, 2 n]`, written.
        pub d: Matrix,
        /// Address of `[split, batch, m, n up to a multiple of 8]` of f32; 0: k is not split.
        pub partial: u64,
        /// Address of `[batch, tile of rows, n]` of f32; 0 for none.
        pub column_sums: u64,
        /// Address of `[1]` of i32; 0 for none.
        pub non_finite: u64,
        /// Address of `[groups + 1]` of i32; 0 for none.
        pub offsets: u64,
        /// Rows of `a` and `d`.
        pub m: i32,
        /// Columns of `b`.
        pub n: i32,
        /// Columns of `a`, rows of `b`.
        pub k: i32,
        /// Columns of `down`, rows of `up`.
        pub rank: i32,
        /// Parts of k.
        pub splits: i32,
        /// Groups of rows or of k.
        pub groups: i32,
        /// 0 none, 1 of rows, 2 of k.
        pub grouping: i32,
        /// 0 activate, 1 gate, 2 the derivative of 0, 3 the derivatives of 1.
        pub epilogue: i32,
        /// 0 none, 1 relu, 2 gelu by tanh, 3 gelu by erf, 4 silu.
        pub activation: i32,
        /// 1: what is beyond the range of `d` becomes its largest number; 0: infinity.
        pub saturate: i32,
        /// What multiplies the product.
        pub alpha: f32,
        /// What multiplies `c`.
        pub beta: f32,
        /// What multiplies `a down`.
        pub adapter_scale: f32,
    }
}

params! {
    /// Parameters of the sums of columns.
    pub struct ColumnSumsParams as "seqmix::gemm::ColumnSumsParams" with [Matrix] {
        /// `[matrix, row, column]`
        pub x: Matrix,
        /// Address of `[part, column]` of f32, written.
        pub sums: u64,
        /// Rows of all matrices.
        pub rows: i64,
        /// Rows of one.
        pub rows_of_matrix: i64,
        /// Rows that a block adds.
        pub rows_of_part: i64,
        /// Columns of each row.
        pub columns: i32,
    }
}

/// The axis of an operand along which it lies contiguously.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// The axis that is summed over.
    K,
    /// The other one: m of a, n of b.
    Outer,
}

impl Axis {
    const fn cpp(self) -> &'static str {
        match self {
            Self::K => "seqmix::gemm::Axis::K",
            Self::Outer => "seqmix::gemm::Axis::Outer",
        }
    }
}

/// How a kernel copies tiles of a and b.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// 16 bytes at a time: addresses and strides are multiples of that.
    Vector,
    /// So too for operands that allow it, element by element for others.
    Any,
}

impl Access {
    const fn cpp(self) -> &'static str {
        match self {
            Self::Vector => "seqmix::gemm::Access::Vector",
            Self::Any => "seqmix::gemm::Access::Any",
        }
    }
}

/// What a row's kernels do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `a b` on tensor cores.
    Tensor,
    /// `a b + scale (a down) up` on tensor cores.
    Lora,
    /// `a b` of f32 by multiply-adds of f32.
    Simt,
}

/// The largest rank of an adapter.
pub const MAX_RANK: usize = 64;

/// A tuned tile. Each row stands for the kernels of its layouts: a and b each lie along k or along the
/// other axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multiply {
    /// What the kernels do.
    pub family: Family,
    /// Type of a and b.
    pub dtype: Dtype,
    /// Rows and columns of d that a block computes, and how far it goes along k at a time.
    pub tile: (usize, usize, usize),
    /// Rows and columns of the tile that a warp computes.
    pub warp: (usize, usize),
    /// Tiles of a and b in shared memory, of which one is read while the others are on their way.
    pub stages: usize,
    /// How tiles are copied.
    pub access: Access,
}

const fn tensor(
    dtype: Dtype,
    tile: (usize, usize, usize),
    warp: (usize, usize),
    stages: usize,
    access: Access,
) -> Multiply {
    Multiply {
        family: Family::Tensor,
        dtype,
        tile,
        warp,
        stages,
        access,
    }
}

const fn lora(
    dtype: Dtype,
    tile: (usize, usize, usize),
    warp: (usize, usize),
    stages: usize,
) -> Multiply {
    Multiply {
        family: Family::Lora,
        access: Access::Any,
        ..tensor(dtype, tile, warp, stages, Access::Any)
    }
}

const fn simt(tile: (usize, usize, usize), warp: (usize, usize), stages: usize) -> Multiply {
    Multiply {
        family: Family::Simt,
        ..tensor(F32, tile, warp, stages, Access::Any)
    }
}

/// No kernel exists that is not in a row here, and no row without kernels. The plan's cost model
/// chooses among the rows that fit a problem; between equals the first.
///
/// Layouts are template parameters, because they change how operands are loaded. The type of d, the
/// epilogue and the optional tensors are not: they are out of the loop.
#[rustfmt::skip]
pub const MULTIPLY: &[Multiply] = &[
    // A warp of 64x64 reads 4 KiB of shared memory for 16 products of 64x64: half of what the memory
    // delivers while an A100 multiplies. Its sums take 128 registers of a lane.
    //           (  m,   n,  k)  warp   stages
    tensor(F16,  (128, 256, 32), (64, 64), 4, Access::Vector), // 96 KiB: every GPU since 8.0 has 99
    tensor(F16,  (128, 128, 32), (64, 64), 4, Access::Vector), // 64 KiB: two blocks run side by side
    tensor(F16,  ( 64,  64, 64), (32, 32), 3, Access::Any), // 48 KiB, more blocks for small problems
    tensor(F16,  ( 32,  64, 64), (16, 32), 4, Access::Any), // few rows: what counts is bytes in flight,
                                                           // 36 KiB a block and 3 to 4 blocks
    tensor(F16,  ( 16, 128, 64), (16, 32), 4, Access::Any), // up to 16 rows, as a token or a few have:
                                                           // 48 KiB of weights in flight a block
    tensor(BF16, (128, 256, 32), (64, 64), 4, Access::Vector),
    tensor(BF16, (128, 128, 32), (64, 64), 4, Access::Vector),
    tensor(BF16, ( 64,  64, 64), (32, 32), 3, Access::Any),
    tensor(BF16, ( 32,  64, 64), (16, 32), 4, Access::Any),
    tensor(BF16, ( 16, 128, 64), (16, 32), 4, Access::Any),
    // With an adapter: 64 more columns of operands and a fourth more sums, so that warps are half as wide.
    lora(F16,    (128, 128, 32), (64, 32), 4), // 96 KiB
    lora(F16,    ( 32,  64, 64), (16, 32), 3), // 68 KiB
    lora(BF16,   (128, 128, 32), (64, 32), 4),
    lora(BF16,   ( 32,  64, 64), (16, 32), 3),
    // A lane of a warp of 64x64 has 128 sums, and for each step along k loads 24 operands by 6 instructions.
    simt(        (128, 128, 16), (64, 64), 2), // 33 KiB: two blocks run side by side, by their registers too
    simt(        ( 64,  64, 16), (32, 64), 3), // 26 KiB, more blocks for small problems
];

/// Elements that a line of a tile of [`Family::Simt`] is longer than it need be.
const LINE_PADDING: usize = 4;

impl Multiply {
    /// Threads of a block.
    pub const fn threads(&self) -> usize {
        32 * (self.tile.0 / self.warp.0) * (self.tile.1 / self.warp.1)
    }

    /// Shared memory of a block: the ring of tiles, and what belongs to the adapter.
    pub const fn shared_bytes(&self) -> usize {
        let (m, n, k) = self.tile;
        let elements = match self.family {
            Family::Tensor => self.stages * (m + n) * k,
            Family::Lora => self.stages * (m + n + MAX_RANK) * k + MAX_RANK * n,
            Family::Simt => self.stages * (m + n + 2 * LINE_PADDING) * k,
        };
        elements * self.dtype.bytes()
    }

    /// The image that holds this row's kernels.
    pub fn unit(&self) -> String {
        let (m, n, _) = self.tile;
        let family = match self.family {
            Family::Tensor | Family::Simt => "gemm",
            Family::Lora => "gemm_lora",
        };
        format!("{family}_{}_{m}x{n}", self.dtype.name())
    }

    /// The kernel of this row for these layouts of a and b.
    ///
    /// The letters in its name are those of BLAS: `n` where rows lie contiguously, `t` where columns do.
    pub fn entry(&self, a: Axis, b: Axis) -> Entry {
        let ((m, n, k), (warp_m, warp_n), stages) = (self.tile, self.warp, self.stages);
        let (dtype, axis_a, axis_b) = (self.dtype.cpp(), a.cpp(), b.cpp());
        let sizes = format!("{m}, {n}, {k}, {warp_m}, {warp_n}, {stages}");
        let letter_a = if a == Axis::K { 'n' } else { 't' };
        let letter_b = if b == Axis::K { 't' } else { 'n' };
        Entry {
            name: format!("{}_{letter_a}{letter_b}", self.unit()),
            instance: match self.family {
                Family::Tensor => {
                    let access = self.access.cpp();
                    format!(
                        "seqmix::gemm::Multiply<{dtype}, {axis_a}, {axis_b}, {sizes}, {access}>"
                    )
                }
                Family::Lora => format!("seqmix::gemm::Lora<{dtype}, {axis_b}, {sizes}>"),
                Family::Simt => format!(
                    "seqmix::gemm::Simt<{axis_a}, {axis_b}, {m}, {n}, {k}, {warp_m}, {stages}>"
                ),
            },
            params: MultiplyParams::PARAMS,
            threads: self.threads() as u32,
            blocks: 1,
            shared_bytes: self.shared_bytes(),
        }
    }

    /// Layouts of a and b, in the order of a row's kernels. With an adapter, a always counts as lying along
    /// k: if it does not, it is copied element by element.
    pub fn layouts(&self) -> &'static [(Axis, Axis)] {
        const ALL: [(Axis, Axis); 4] = [
            (Axis::K, Axis::K),
            (Axis::K, Axis::Outer),
            (Axis::Outer, Axis::K),
            (Axis::Outer, Axis::Outer),
        ];
        match self.family {
            Family::Tensor | Family::Simt => &ALL,
            Family::Lora => &ALL[..2],
        }
    }
}

/// The kernel that adds the parts of a split k, for operands of `dtype`.
pub fn sum_splits(dtype: Dtype) -> Entry {
    Entry {
        name: format!("gemm_sum_splits_{}", dtype.name()),
        instance: format!("seqmix::gemm::SumSplits<{}>", dtype.cpp()),
        params: MultiplyParams::PARAMS,
        threads: SUM_SPLITS_THREADS as u32,
        blocks: 1,
        shared_bytes: 1, // an empty struct of C++
    }
}

/// Chunks of eight elements that a block of [`sum_splits`] finishes.
pub const SUM_SPLITS_THREADS: usize = 64;

/// Types of operands that [`sum_splits`] exists for.
pub const SUM_SPLITS: [Dtype; 3] = [F16, BF16, F32];

/// The kernel that adds columns.
pub fn column_sums() -> Entry {
    Entry {
        name: "gemm_column_sums".into(),
        instance: "seqmix::gemm::ColumnSums".into(),
        params: ColumnSumsParams::PARAMS,
        threads: 256,
        blocks: 1,
        shared_bytes: 4 * 8 * COLUMN_SUMS_COLUMNS,
    }
}

/// Columns that a block of [`column_sums`] adds.
pub const COLUMN_SUMS_COLUMNS: usize = 256;

/// The image of [`sum_splits`] of all types.
pub const SUM_SPLITS_UNIT: &str = "gemm_sum_splits";

/// The image of [`column_sums`].
pub const COLUMN_SUMS_UNIT: &str = "gemm_column_sums";

/// One unit a row, so that they compile in parallel.
pub fn units() -> Vec<Unit> {
    let row = |row: &Multiply| Unit {
        name: row.unit(),
        header: match row.family {
            Family::Tensor => "gemm/multiply.cuh",
            Family::Lora => "gemm/lora.cuh",
            Family::Simt => "gemm/simt.cuh",
        },
        entries: row
            .layouts()
            .iter()
            .map(|&(a, b)| row.entry(a, b))
            .collect(),
    };
    let sum_splits = Unit {
        name: SUM_SPLITS_UNIT.into(),
        header: "gemm/sum_splits.cuh",
        entries: SUM_SPLITS.map(sum_splits).into(),
    };
    let column_sums = Unit {
        name: COLUMN_SUMS_UNIT.into(),
        header: "gemm/column_sums.cuh",
        entries: vec![column_sums()],
    };
    let rows = MULTIPLY.iter().map(row);
    rows.chain([sum_splits, column_sums]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GPUs of compute capability 8.6, 8.9 and 12.0 give to one block: the least since 8.0.
    const SHARED_BYTES: usize = 99 << 10;

    #[test]
    fn rows_fit_every_gpu_since_ampere() {
        for row in MULTIPLY {
            let name = row.unit();
            assert!(row.shared_bytes() <= SHARED_BYTES, "{name}");
            assert!(row.threads() <= 1024, "{name}");
            let ((m, n, k), (warp_m, warp_n)) = (row.tile, row.warp);
            assert_eq!((m % warp_m, n % warp_n), (0, 0), "{name}: warps divide it");
            let step = if row.family == Family::Simt { 1 } else { 16 };
            assert_eq!(k % (2 * step), 0, "{name}: an even number of steps");
        }
    }

    #[test]
    fn each_dtype_has_the_same_tiles() {
        let tiles = |dtype| -> Vec<_> {
            let rows = MULTIPLY.iter().filter(|row| row.dtype == dtype);
            rows.map(|row| (row.family, row.tile, row.access)).collect()
        };
        assert_eq!(tiles(F16), tiles(BF16));
        assert!(tiles(F16).iter().any(|(.., access)| *access == Access::Any));
    }

    #[test]
    fn a_row_spells_its_kernels() {
        let row = MULTIPLY[0];
        let entry = row.entry(Axis::K, Axis::K);
        assert_eq!(entry.name, "gemm_f16_128x256_nt");
        assert_eq!(
            entry.instance,
            "seqmix::gemm::Multiply<__half, seqmix::gemm::Axis::K, seqmix::gemm::Axis::K, \
             128, 256, 32, 64, 64, 4, seqmix::gemm::Access::Vector>"
        );
        assert_eq!((entry.threads, entry.shared_bytes), (256, 98_304));
        let names: Vec<String> = row
            .layouts()
            .iter()
            .map(|&(a, b)| row.entry(a, b).name.replace("gemm_f16_128x256_", ""))
            .collect();
        assert_eq!(names, ["nt", "nn", "tt", "tn"]);
    }
}
