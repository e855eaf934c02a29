//! The kernels of attention: parameters and table.

use super::{Dtype, Dtype::BF16, Dtype::F16, Entry, Unit, params};

params! {
    /// Parameters of the forward kernel. Strides count elements.
    pub struct ForwardParams as "seqmix::attention::ForwardParams" {
        /// Address of `[batch, rows_q, heads, head_dim]`.
        pub q: u64,
        /// Address of `[batch, rows_k, heads_kv, head_dim]`.
        pub k: u64,
        /// As `k`.
        pub v: u64,
        /// As `q`, written.
        pub out: u64,
        /// Address of `[batch, heads, rows_q]` in f32, written; 0 for none.
        pub lse: u64,
        /// Address of `[batch + 1]` in i32; 0 if all sequences have `rows_q` queries.
        pub cu_seqlens_q: u64,
        /// As `cu_seqlens_q`, for keys and values.
        pub cu_seqlens_k: u64,
        /// From one sequence of `q` to the next; 0 with `cu_seqlens_q`.
        pub q_batch_stride: i64,
        /// From one row of `q` to the next.
        pub q_row_stride: i64,
        /// From one head of `q` to the next.
        pub q_head_stride: i64,
        /// From one sequence of `k` to the next; 0 with `cu_seqlens_q`.
        pub k_batch_stride: i64,
        /// From one row of `k` to the next.
        pub k_row_stride: i64,
        /// From one head of `k` to the next.
        pub k_head_stride: i64,
        /// From one sequence of `v` to the next; 0 with `cu_seqlens_q`.
        pub v_batch_stride: i64,
        /// From one row of `v` to the next.
        pub v_row_stride: i64,
        /// From one head of `v` to the next.
        pub v_head_stride: i64,
        /// From one sequence of `out` to the next; 0 with `cu_seqlens_q`.
        pub out_batch_stride: i64,
        /// From one row of `out` to the next.
        pub out_row_stride: i64,
        /// From one head of `out` to the next.
        pub out_head_stride: i64,
        /// From one sequence of `lse` to the next; 0 with `cu_seqlens_q`.
        pub lse_batch_stride: i64,
        /// From one head of `lse` to the next.
        pub lse_head_stride: i64,
        /// Queries of each sequence, or of all together with `cu_seqlens_q`.
        pub rows_q: i32,
        /// Keys of each sequence, or of all together with `cu_seqlens_k`.
        pub rows_k: i32,
        /// Elements of a row, a multiple of 8.
        pub head_dim: i32,
        /// Query heads that share a head of `k` and `v`.
        pub heads_per_kv: i32,
        /// 1: query `i` sees the keys up to `i + seq_k - seq_q`; 0: all keys.
        pub causal: i32,
        /// What multiplies the scores, times log2(e).
        pub scale_log2: f32,
    }
}

/// A tuned variant of the forward kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forward {
    /// Type of q, k, v and out.
    pub dtype: Dtype,
    /// Columns of the tiles: serves every head_dim up to it.
    pub dim: usize,
    /// Query rows and keys of one step of one block.
    pub tile: (usize, usize),
    /// Warps of a block; each owns `tile.0 / warps` query rows.
    pub warps: usize,
}

const fn forward(dtype: Dtype, dim: usize, tile: (usize, usize), warps: usize) -> Forward {
    Forward {
        dtype,
        dim,
        tile,
        warps,
    }
}

/// No kernel exists that is not a row here, and no row without a kernel. Of the rows that fit a
/// problem the first is used.
///
/// The mask is no column: a kernel runs its code for the blocks of keys at the edge only, so a
/// causal kernel and a full one would have the same inner loop.
#[rustfmt::skip]
pub const FORWARD: &[Forward] = &[
    // A warp of 32 rows uses each fragment of k and v twice. With 16 rows shared memory, at 128
    // bytes a cycle, would only just feed the tensor cores of an A100, and not those of an H100.
    // 255 registers of 128 threads and at most 80 KiB leave room for two blocks on a multiprocessor.
    // Tiles up to 160 are those that FlashAttention-2 found best on A100 and H100.
    //      dtype dim   (q,   k) warps
    forward(F16,   32, (128, 128), 4),
    forward(F16,   64, (128, 128), 4), // outputs and scores take 192 registers of a lane
    forward(F16,   96, (128,  64), 4), // (128, 128) would take 224
    forward(F16,  128, (128,  64), 4), // 192 again
    forward(F16,  160, (128,  32), 4), // 192 again
    forward(F16,  192, (128,  64), 8), // 16 rows a warp: outputs of 32 would take 192 alone
    forward(F16,  256, ( 64,  64), 4), // (128, 64) would take 128 KiB: some GPUs have 99, and on
                                       // an H100 two blocks of 96 KiB run side by side
    forward(BF16,  32, (128, 128), 4),
    forward(BF16,  64, (128, 128), 4),
    forward(BF16,  96, (128,  64), 4),
    forward(BF16, 128, (128,  64), 4),
    forward(BF16, 160, (128,  32), 4),
    forward(BF16, 192, (128,  64), 8),
    forward(BF16, 256, ( 64,  64), 4),
];

impl Forward {
    /// Shared memory of a block: the tiles of q, k and v.
    pub const fn shared_bytes(&self) -> usize {
        (self.tile.0 + 2 * self.tile.1) * self.dim * self.dtype.bytes()
    }

    /// The kernel of this row.
    pub fn entry(&self) -> Entry {
        let (dtype, dim, (tile_q, tile_k), warps) = (self.dtype, self.dim, self.tile, self.warps);
        Entry {
            name: format!("attention_forward_{}_d{dim}", dtype.name()),
            instance: format!(
                "seqmix::attention::Forward<{}, {dim}, {tile_q}, {tile_k}, {warps}>",
                dtype.cpp()
            ),
            params: ForwardParams::PARAMS,
            threads: 32 * warps as u32,
            blocks: 1,
            shared_bytes: self.shared_bytes(),
        }
    }
}

/// One unit a row, so that they compile in parallel.
pub fn units() -> Vec<Unit> {
    FORWARD
        .iter()
        .map(|row| {
            let entry = row.entry();
            Unit {
                name: entry.name.clone(),
                header: "attention/forward.cuh",
                entries: vec![entry],
            }
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
        for row in FORWARD {
            let Entry { name, threads, .. } = row.entry();
            assert!(row.shared_bytes() <= SHARED_BYTES, "{name}");
            assert!(threads <= 1024, "{name}");
            assert_eq!(
                row.tile.0 % (16 * row.warps),
                0,
                "{name}: a warp owns tiles of 16 rows"
            );
        }
    }

    #[test]
    fn each_dtype_has_each_head_dim_once_and_in_order() {
        for dtype in [F16, BF16] {
            let dims: Vec<usize> = FORWARD
                .iter()
                .filter(|row| row.dtype == dtype)
                .map(|row| row.dim)
                .collect();
            assert_eq!(dims, [32, 64, 96, 128, 160, 192, 256], "{dtype:?}");
        }
    }

    #[test]
    fn a_row_spells_its_kernel() {
        let row = FORWARD
            .iter()
            .find(|row| row.dtype == BF16 && row.dim == 192);
        let entry = row.unwrap().entry();
        assert_eq!(entry.name, "attention_forward_bf16_d192");
        assert_eq!(
            entry.instance,
            "seqmix::attention::Forward<__nv_bfloat16, 192, 128, 64, 8>"
        );
        assert_eq!((entry.threads, entry.shared_bytes), (256, 98_304));
    }
}
