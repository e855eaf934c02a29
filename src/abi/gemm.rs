//! The kernels of matrix multiplication: parameters and table.

use super::{Dtype, Dtype::BF16, Dtype::F16, Entry, Unit, params};

params! {
    /// Parameters of the kernels. Strides count elements.
    pub struct MultiplyParams as "seqmix::gemm::MultiplyParams" {
        /// Address of `[batch, m, k]`.
        pub a: u64,
        /// Address of `[batch, k, n]`.
        pub b: u64,
        /// Address of `[batch, m, n]`; 0 for none.
        pub c: u64,
        /// Address of `[n]`; 0 for none.
        pub bias: u64,
        /// Address of `[batch, m, n]`; 0 for none.
        pub residual: u64,
        /// Address of `[batch, m, n]`, written.
        pub d: u64,
        /// From one matrix of `a` to the next; 0 repeats it.
        pub a_batch_stride: i64,
        /// Along the axis of `a` that does not lie contiguously.
        pub a_stride: i64,
        /// From one matrix of `b` to the next; 0 repeats it.
        pub b_batch_stride: i64,
        /// Along the axis of `b` that does not lie contiguously.
        pub b_stride: i64,
        /// From one matrix of `c` to the next.
        pub c_batch_stride: i64,
        /// From one row of `c` to the next.
        pub c_row_stride: i64,
        /// From one matrix of `residual` to the next.
        pub residual_batch_stride: i64,
        /// From one row of `residual` to the next.
        pub residual_row_stride: i64,
        /// From one matrix of `d` to the next.
        pub d_batch_stride: i64,
        /// From one row of `d` to the next.
        pub d_row_stride: i64,
        /// Rows of `a` and `d`.
        pub m: i32,
        /// Columns of `b` and `d`.
        pub n: i32,
        /// Columns of `a`, rows of `b`.
        pub k: i32,
        /// 1: address and strides of `a` are multiples of 16 bytes; 0: they are not.
        pub a_vector: i32,
        /// The same for `b`.
        pub b_vector: i32,
        /// The same for `c`.
        pub c_vector: i32,
        /// The same for `bias`.
        pub bias_vector: i32,
        /// The same for `residual`.
        pub residual_vector: i32,
        /// The same for `d`.
        pub d_vector: i32,
        /// Type of `d`: 0 f16, 1 bf16, 2 f32.
        pub d_type: i32,
        /// 0 none, 1 relu, 2 gelu by tanh, 3 gelu by erf, 4 silu.
        pub activation: i32,
        /// What multiplies the product.
        pub alpha: f32,
        /// What multiplies `c`.
        pub beta: f32,
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
    const ALL: [Self; 2] = [Self::K, Self::Outer];

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

/// A tuned tile. Each row stands for four kernels: a and b each lie along k or along the other axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multiply {
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

const fn multiply(
    dtype: Dtype,
    tile: (usize, usize, usize),
    warp: (usize, usize),
    stages: usize,
    access: Access,
) -> Multiply {
    Multiply {
        dtype,
        tile,
        warp,
        stages,
        access,
    }
}

/// No kernel exists that is not in a row here, and no row without kernels. The plan's cost model
/// chooses among the rows that fit a problem; between equals the first.
///
/// Layouts are template parameters, because they change how operands are loaded. The type of d, the
/// activation and the optional tensors are not: they are out of the loop.
#[rustfmt::skip]
pub const MULTIPLY: &[Multiply] = &[
    // A warp of 64x64 reads 4 KiB of shared memory for 16 products of 64x64: half of what the memory
    // delivers while an A100 multiplies. Its sums take 128 registers of a lane.
    //             (  m,   n,  k)  warp   stages
    multiply(F16,  (128, 256, 32), (64, 64), 4, Access::Vector), // 96 KiB: every GPU since 8.0 has 99
    multiply(F16,  (128, 128, 32), (64, 64), 4, Access::Vector), // 64 KiB: two blocks run side by side
    multiply(F16,  ( 64,  64, 64), (32, 32), 3, Access::Any), // 48 KiB, more blocks for small problems
    multiply(F16,  ( 32,  64, 64), (16, 32), 4, Access::Any), // few rows: what counts is bytes in flight,
                                                             // 36 KiB a block and 3 to 4 blocks
    multiply(BF16, (128, 256, 32), (64, 64), 4, Access::Vector),
    multiply(BF16, (128, 128, 32), (64, 64), 4, Access::Vector),
    multiply(BF16, ( 64,  64, 64), (32, 32), 3, Access::Any),
    multiply(BF16, ( 32,  64, 64), (16, 32), 4, Access::Any),
];

impl Multiply {
    /// Threads of a block.
    pub const fn threads(&self) -> usize {
        32 * (self.tile.0 / self.warp.0) * (self.tile.1 / self.warp.1)
    }

    /// Shared memory of a block: the ring of tiles.
    pub const fn shared_bytes(&self) -> usize {
        let (m, n, k) = self.tile;
        self.stages * (m + n) * k * self.dtype.bytes()
    }

    /// The image that holds this row's kernels.
    pub fn unit(&self) -> String {
        let (m, n, _) = self.tile;
        format!("gemm_{}_{m}x{n}", self.dtype.name())
    }

    /// The kernel of this row for these layouts of a and b.
    ///
    /// The letters in its name are those of BLAS: `n` where rows lie contiguously, `t` where columns do.
    pub fn entry(&self, a: Axis, b: Axis) -> Entry {
        let ((m, n, k), (warp_m, warp_n), stages) = (self.tile, self.warp, self.stages);
        let letter_a = if a == Axis::K { 'n' } else { 't' };
        let letter_b = if b == Axis::K { 't' } else { 'n' };
        Entry {
            name: format!("{}_{letter_a}{letter_b}", self.unit()),
            instance: format!(
                "seqmix::gemm::Multiply<{}, {}, {}, {m}, {n}, {k}, {warp_m}, {warp_n}, {stages}, {}>",
                self.dtype.cpp(),
                a.cpp(),
                b.cpp(),
                self.access.cpp(),
            ),
            params: MultiplyParams::PARAMS,
            threads: self.threads() as u32,
            shared_bytes: self.shared_bytes(),
        }
    }

    /// Layouts of a and b, in the order of a row's kernels.
    pub fn layouts() -> impl Iterator<Item = (Axis, Axis)> {
        Axis::ALL
            .into_iter()
            .flat_map(|a| Axis::ALL.map(|b| (a, b)))
    }
}

/// One unit a row, so that they compile in parallel.
pub fn units() -> Vec<Unit> {
    MULTIPLY
        .iter()
        .map(|row| Unit {
            name: row.unit(),
            header: "gemm/multiply.cuh",
            entries: Multiply::layouts().map(|(a, b)| row.entry(a, b)).collect(),
        })
        .collect()
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
            assert_eq!(k % 32, 0, "{name}: an even number of steps");
        }
    }

    #[test]
    fn each_dtype_has_the_same_tiles() {
        let tiles = |dtype| -> Vec<_> {
            let rows = MULTIPLY.iter().filter(|row| row.dtype == dtype);
            rows.map(|row| (row.tile, row.access)).collect()
        };
        assert_eq!(tiles(F16), tiles(BF16));
        assert!(tiles(F16).iter().any(|(_, access)| *access == Access::Any));
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
        let names: Vec<String> = Multiply::layouts()
            .map(|(a, b)| row.entry(a, b).name.replace("gemm_f16_128x256_", ""))
            .collect();
        assert_eq!(names, ["nt", "nn", "tt", "tn"]);
    }
}
