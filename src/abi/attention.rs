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

/// No kernel exists that is not a row here, and no row without a kernel.
/// Of the rows that fit a problem the first is used.
#[rustfmt::skip]
pub const FORWARD: &[Forward] = &[
    //      dtype dim   (q,   k) warps
    forward(F16,   32, (128, 128), 4),
    forward(F16,   64, (128, 128), 4),
    forward(F16,   96, (128,  64), 4),
    forward(F16,  128, (128,  64), 4),
    forward(F16,  160, (128,  32), 4),
    forward(F16,  192, (128,  64), 8),
    forward(F16,  256, ( 64,  64), 4),
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
