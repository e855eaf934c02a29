//! [`Problem`]: what a call of attention asks for, once its tensors are known to agree. Pure.

use super::{Config, Mask};
use crate::abi::Dtype;
use crate::abi::attention::{FORWARD, ForwardParams};
use crate::check::Check;
use crate::error::Result;
use crate::tensor::Layout;

/// Rows that a tensor may have: the kernel adds two row counts and a tile in 32 bits.
const MAX_ROWS: usize = 1 << 30;

/// Elements of a 16-byte copy of the kernel's 16-bit types.
const COPY: usize = 8;

/// Shapes and strides of the tensors of a call, dense or of varying length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layouts<const N: usize, const M: usize> {
    pub(super) q: Layout<N>,
    pub(super) k: Layout<N>,
    pub(super) v: Layout<N>,
    pub(super) out: Layout<N>,
    pub(super) lse: Option<Layout<M>>,
}

/// Elements from one sequence, row or head of a tensor to the next. 0 where there is only one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Strides {
    pub(super) batch: i64,
    pub(super) row: i64,
    pub(super) head: i64,
}

/// A checked call of attention.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) dtype: Dtype,
    pub(super) batch: usize,
    pub(super) heads: usize,
    /// Query heads that share a head of k and v.
    pub(super) heads_per_kv: i32,
    pub(super) head_dim: i32,
    /// Rows of q: of each sequence, or of all together if the lengths vary.
    pub(super) rows_q: i32,
    /// Rows of k and v, likewise.
    pub(super) rows_k: i32,
    /// Queries of the longest sequence.
    pub(super) longest_q: usize,
    pub(super) causal: bool,
    pub(super) scale: f32,
    pub(super) q: Strides,
    pub(super) k: Strides,
    pub(super) v: Strides,
    pub(super) out: Strides,
    pub(super) lse: Strides,
}

impl Problem {
    /// The problem of `[batch, rows, heads, head_dim]` tensors.
    pub(super) fn dense(dtype: Dtype, config: Config, layouts: &Layouts<4, 3>) -> Result<Self> {
        let check = Check {
            op: "attention::forward",
        };
        let Layouts { q, k, v, out, lse } = layouts;
        let ([batch, rows_q, heads, head_dim], [_, rows_k, heads_kv, _]) = (q.shape, k.shape);
        check.sizes("k", [batch, rows_k, heads_kv, head_dim], k.shape)?;
        check.sizes("v", k.shape, v.shape)?;
        check.sizes("out", q.shape, out.shape)?;
        if let Some(lse) = lse {
            check.sizes("lse", [batch, heads, rows_q], lse.shape)?;
        }
        let causal = options(check, config)?;
        let tiles = |name, layout: &Layout<4>| -> Result<Strides> {
            let [batch, row, head, _] = check.row_strides(name, layout, COPY)?;
            Ok(Strides { batch, row, head })
        };
        Ok(Self {
            dtype,
            batch,
            heads,
            heads_per_kv: heads_per_kv(check, heads, heads_kv)?,
            head_dim: checked_head_dim(check, head_dim)?,
            rows_q: rows(check, "q", rows_q)?,
            rows_k: rows(check, "k", rows_k)?,
            longest_q: rows_q,
            causal,
            scale: scale(check, config, head_dim)?,
            q: tiles("q", q)?,
            k: tiles("k", k)?,
            v: tiles("v", v)?,
            out: tiles("out", out)?,
            lse: match lse {
                Some(lse) => {
                    let [batch, head, row] = check.row_strides("lse", lse, 1)?;
                    Strides { batch, row, head }
                }
                None => Strides::default(),
            },
        })
    }

    /// The problem of `[rows of all sequences, heads, head_dim]` tensors with `cu_seqlens` of
    /// `batch + 1` elements each.
    pub(super) fn varlen(
        dtype: Dtype,
        config: Config,
        layouts: &Layouts<3, 2>,
        [cu_seqlens_q, cu_seqlens_k]: [Layout<1>; 2],
        max_seqlen_q: usize,
    ) -> Result<Self> {
        let check = Check {
            op: "attention::forward_varlen",
        };
        let Layouts { q, k, v, out, lse } = layouts;
        let ([rows_q, heads, head_dim], [rows_k, heads_kv, _]) = (q.shape, k.shape);
        check.sizes("k", [rows_k, heads_kv, head_dim], k.shape)?;
        check.sizes("v", k.shape, v.shape)?;
        check.sizes("out", q.shape, out.shape)?;
        if let Some(lse) = lse {
            check.sizes("lse", [heads, rows_q], lse.shape)?;
        }
        let [starts] = cu_seqlens_q.shape;
        let Some(batch) = starts.checked_sub(1) else {
            return Err(check.shape("cu_seqlens_q", "batch + 1 elements", "no elements"));
        };
        check.sizes("cu_seqlens_k", cu_seqlens_q.shape, cu_seqlens_k.shape)?;
        check.row_strides("cu_seqlens_q", &cu_seqlens_q, 1)?;
        check.row_strides("cu_seqlens_k", &cu_seqlens_k, 1)?;
        let causal = options(check, config)?;
        let tiles = |name, layout: &Layout<3>| -> Result<Strides> {
            let [row, head, _] = check.row_strides(name, layout, COPY)?;
            Ok(Strides {
                batch: 0,
                row,
                head,
            })
        };
        Ok(Self {
            dtype,
            batch,
            heads,
            heads_per_kv: heads_per_kv(check, heads, heads_kv)?,
            head_dim: checked_head_dim(check, head_dim)?,
            rows_q: rows(check, "q", rows_q)?,
            rows_k: rows(check, "k", rows_k)?,
            longest_q: max_seqlen_q.min(rows_q),
            causal,
            scale: scale(check, config, head_dim)?,
            q: tiles("q", q)?,
            k: tiles("k", k)?,
            v: tiles("v", v)?,
            out: tiles("out", out)?,
            lse: match lse {
                Some(lse) => {
                    let [head, row] = check.row_strides("lse", lse, 1)?;
                    Strides {
                        batch: 0,
                        row,
                        head,
                    }
                }
                None => Strides::default(),
            },
        })
    }

    /// The kernel's parameters, without the tensors' addresses.
    pub(super) fn params(&self) -> ForwardParams {
        ForwardParams {
            q_batch_stride: self.q.batch,
            q_row_stride: self.q.row,
            q_head_stride: self.q.head,
            k_batch_stride: self.k.batch,
            k_row_stride: self.k.row,
            k_head_stride: self.k.head,
            v_batch_stride: self.v.batch,
            v_row_stride: self.v.row,
            v_head_stride: self.v.head,
            out_batch_stride: self.out.batch,
            out_row_stride: self.out.row,
            out_head_stride: self.out.head,
            lse_batch_stride: self.lse.batch,
            lse_head_stride: self.lse.head,
            rows_q: self.rows_q,
            rows_k: self.rows_k,
            head_dim: self.head_dim,
            heads_per_kv: self.heads_per_kv,
            causal: self.causal.into(),
            scale_log2: (f64::from(self.scale) * std::f64::consts::LOG2_E) as f32,
            ..ForwardParams::default()
        }
    }

    /// Whether there is no row of output at all.
    pub(super) fn is_empty(&self) -> bool {
        self.batch == 0 || self.heads == 0 || self.longest_q == 0
    }
}

fn heads_per_kv(check: Check, heads: usize, heads_kv: usize) -> Result<i32> {
    let ratio = check.heads_per(("k", heads_kv, "heads"), ("q", heads))?;
    i32::try_from(ratio).map_err(|_| {
        let expected = format!("at most {} heads", i32::MAX);
        check.shape("q", expected, format!("{heads} heads"))
    })
}

fn checked_head_dim(check: Check, head_dim: usize) -> Result<i32> {
    let largest = FORWARD.iter().map(|row| row.dim).max().unwrap_or(0);
    check.multiple("head_dim", head_dim, COPY, largest)?;
    Ok(head_dim as i32) // at most `largest`
}

fn rows(check: Check, tensor: &'static str, rows: usize) -> Result<i32> {
    check.at_most(tensor, rows, MAX_ROWS, "rows")?;
    Ok(rows as i32) // at most `MAX_ROWS`
}

/// Refuses options without a kernel; returns whether the mask is causal.
fn options(check: Check, config: Config) -> Result<bool> {
    if let Some(softcap) = config.softcap {
        let request = format!("softcap {softcap}");
        return Err(check.unsupported(request, "attention without softcap"));
    }
    match config.mask {
        Mask::Full
        | Mask::Window {
            left: None,
            right: None,
        } => Ok(false),
        Mask::Causal
        | Mask::Window {
            left: None,
            right: Some(0),
        } => Ok(true),
        Mask::Window { .. } => {
            let request = format!("window: {:?}", config.mask);
            Err(check.unsupported(request, "Mask::Full and Mask::Causal"))
        }
    }
}

fn scale(check: Check, config: Config, head_dim: usize) -> Result<f32> {
    let scale = config
        .scale
        .unwrap_or_else(|| (1.0 / (head_dim as f64).sqrt()) as f32);
    // the kernel takes the largest score before it scales, by this times log2(e)
    let in_log2 = (f64::from(scale) * std::f64::consts::LOG2_E) as f32;
    if !(in_log2.is_finite() && scale > 0.0) {
        let expected = "a positive number up to 2.35e38";
        return Err(check.argument("scale", expected, scale.to_string()));
    }
    Ok(scale)
}
