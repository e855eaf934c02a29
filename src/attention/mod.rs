//! Softmax attention: `out = softmax(scale * q k^T) v`, without storing the scores.

mod plan;
mod problem;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::attention::{FORWARD, Forward as Row, ForwardParams};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Half, TensorMut, TensorRef};
use plan::Plan;
use problem::{Layouts, Problem};

/// Alignment of what the kernels copy 16 bytes at a time.
const COPY_BYTES: u64 = 16;

/// Which keys a query sees. `i` counts queries, `j` keys; the last query is aligned with the last
/// key: `offset = seq_k - seq_q`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mask {
    /// All keys.
    #[default]
    Full,
    /// Keys up to its own position: `j <= i + offset`.
    Causal,
    /// Keys near its own position: `i + offset - left <= j <= i + offset + right`; `None` means no
    /// limit on that side.
    Window {
        /// Keys before its own position.
        left: Option<usize>,
        /// Keys after its own position.
        right: Option<usize>,
    },
}

/// Options of attention.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Config {
    /// Which keys a query sees.
    pub mask: Mask,
    /// What multiplies the scores; `None`: `1 / sqrt(head_dim)`. Positive.
    pub scale: Option<f32>,
    /// Limits scores smoothly to ±softcap: `s = softcap * tanh(s / softcap)`. Not supported yet.
    pub softcap: Option<f32>,
}

/// What is added to the scores of [`Attention::forward`] before the softmax. Not supported yet.
#[derive(Clone, Debug, Default)]
pub struct Bias<'a> {
    /// `[batch, heads]`, or `[1, heads]` for all sequences: ALiBi adds
    /// `-slope * |i + seq_k - seq_q - j|`.
    pub alibi_slopes: Option<TensorRef<'a, f32, 2>>,
    /// `[batch, seq_q, seq_k]`: a query sees a key where this is not 0. One mask for all heads.
    pub attn_mask: Option<TensorRef<'a, u8, 3>>,
}

/// Tensors of [`Attention::forward`]. `heads` is a multiple of `heads_kv`; query head `h` uses key
/// and value head `h / (heads / heads_kv)`.
#[derive(Debug)]
pub struct Forward<'a, T> {
    /// `[batch, seq_q, heads, head_dim]`
    pub q: TensorRef<'a, T, 4>,
    /// `[batch, seq_k, heads_kv, head_dim]`
    pub k: TensorRef<'a, T, 4>,
    /// As `k`.
    pub v: TensorRef<'a, T, 4>,
    /// As `q`. A row that sees no key becomes 0.
    pub out: TensorMut<'a, T, 4>,
    /// `[batch, heads, seq_q]`: natural logarithm of the sum of the exponentials of each row of
    /// scores; -inf for a row that sees no key.
    pub lse: Option<TensorMut<'a, f32, 3>>,
    /// What is added to the scores; `Bias::default()` for nothing.
    pub bias: Bias<'a>,
}

/// Tensors of [`Attention::forward_varlen`]: sequences of different lengths, one after the other
/// without padding.
#[derive(Debug)]
pub struct ForwardVarlen<'a, T> {
    /// `[total_q, heads, head_dim]`
    pub q: TensorRef<'a, T, 3>,
    /// `[total_k, heads_kv, head_dim]`
    pub k: TensorRef<'a, T, 3>,
    /// As `k`.
    pub v: TensorRef<'a, T, 3>,
    /// `[batch + 1]`: queries `cu_seqlens_q[b] .. cu_seqlens_q[b + 1]` belong to sequence `b`.
    /// Values on the device: the kernel clamps them to `0 ..= total_q`.
    pub cu_seqlens_q: TensorRef<'a, i32, 1>,
    /// `[batch + 1]`: the same for keys and values.
    pub cu_seqlens_k: TensorRef<'a, i32, 1>,
    /// At least the number of queries of the longest sequence; queries beyond it are not computed.
    pub max_seqlen_q: usize,
    /// As `q`. A row that sees no key becomes 0; rows of no sequence are left as they are.
    pub out: TensorMut<'a, T, 3>,
    /// `[heads, total_q]`: as in [`Forward`].
    pub lse: Option<TensorMut<'a, f32, 2>>,
    /// `[batch, heads]`, or `[1, heads]`: as in [`Bias`]. Not supported yet.
    pub alibi_slopes: Option<TensorRef<'a, f32, 2>>,
}

/// The attention kernels, loaded into one context.
#[derive(Debug)]
pub struct Attention {
    /// The rows of the table that the device can run, and their kernels.
    rows: Vec<Row>,
    kernels: Vec<Kernel<ForwardParams>>,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for ForwardParams {}

impl Attention {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`] if the crate was built without nvcc; [`Error::Unsupported`] if
    /// the device is older than compute capability 8.0; [`Error::Load`] and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("attention", ctx)?;
        let rows: Vec<Row> = FORWARD
            .iter()
            .filter(|row| row.shared_bytes() <= device.shared_bytes)
            .copied()
            .collect();
        let mut kernels = Vec::with_capacity(rows.len());
        for row in &rows {
            let entry = row.entry();
            let module = images::load(ctx, &entry.name)?;
            kernels.push(Kernel::load(&module, &entry)?);
        }
        Ok(Self {
            rows,
            kernels,
            ctx: ctx.clone(),
        })
    }

    /// Queues attention on `stream`.
    ///
    /// Rows that see no key, which exist under [`Mask::Causal`] if `seq_k < seq_q` and everywhere if
    /// `seq_k` is 0, get an output of 0.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`]; nothing is queued then.
    pub fn forward<T: Half>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Forward<'_, T>,
    ) -> Result<()> {
        let op = "attention::forward";
        let Forward {
            q,
            k,
            v,
            mut out,
            mut lse,
            bias,
        } = tensors;
        refuse(op, "alibi_slopes", bias.alibi_slopes.is_some())?;
        refuse(op, "attn_mask", bias.attn_mask.is_some())?;
        let layouts = Layouts {
            q: q.layout(),
            k: k.layout(),
            v: v.layout(),
            out: out.layout(),
            lse: lse.as_ref().map(TensorMut::layout),
        };
        let problem = Problem::dense(T::DTYPE, config, &layouts)?;
        let mut launch = Launch::new(op, stream);
        let params = ForwardParams {
            q: launch.read("q", &q, COPY_BYTES)?,
            k: launch.read("k", &k, COPY_BYTES)?,
            v: launch.read("v", &v, COPY_BYTES)?,
            out: launch.write("out", &mut out, COPY_BYTES)?,
            lse: match &mut lse {
                Some(lse) => launch.write("lse", lse, 4)?,
                None => 0,
            },
            cu_seqlens_q: 0,
            cu_seqlens_k: 0,
            ..problem.params()
        };
        self.launch(launch, &problem, &params)
    }

    /// Queues attention over sequences of different lengths on `stream`.
    ///
    /// The mask is aligned within each sequence. Sequences may have no queries or no keys.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`]; nothing is queued then.
    pub fn forward_varlen<T: Half>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: ForwardVarlen<'_, T>,
    ) -> Result<()> {
        let op = "attention::forward_varlen";
        let ForwardVarlen {
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            max_seqlen_q,
            mut out,
            mut lse,
            alibi_slopes,
        } = tensors;
        refuse(op, "alibi_slopes", alibi_slopes.is_some())?;
        let layouts = Layouts {
            q: q.layout(),
            k: k.layout(),
            v: v.layout(),
            out: out.layout(),
            lse: lse.as_ref().map(TensorMut::layout),
        };
        let cu_seqlens = [cu_seqlens_q.layout(), cu_seqlens_k.layout()];
        let problem = Problem::varlen(T::DTYPE, config, &layouts, cu_seqlens, max_seqlen_q)?;
        let mut launch = Launch::new(op, stream);
        let params = ForwardParams {
            q: launch.read("q", &q, COPY_BYTES)?,
            k: launch.read("k", &k, COPY_BYTES)?,
            v: launch.read("v", &v, COPY_BYTES)?,
            out: launch.write("out", &mut out, COPY_BYTES)?,
            lse: match &mut lse {
                Some(lse) => launch.write("lse", lse, 4)?,
                None => 0,
            },
            cu_seqlens_q: launch.read("cu_seqlens_q", &cu_seqlens_q, 4)?,
            cu_seqlens_k: launch.read("cu_seqlens_k", &cu_seqlens_k, 4)?,
            ..problem.params()
        };
        self.launch(launch, &problem, &params)
    }

    fn launch(&self, launch: Launch<'_>, problem: &Problem, params: &ForwardParams) -> Result<()> {
        launch.same_context("the operation", &self.ctx)?;
        if problem.is_empty() {
            return launch.check();
        }
        let plan = Plan::forward(launch.op(), problem, &self.rows)?;
        // SAFETY: `Problem::dense` and `Problem::varlen` checked that the tensors have the sizes
        // and strides that `params` tells the kernel, which accesses no index beyond them: it
        // clamps what it reads from cu_seqlens to the rows of the tensors.
        unsafe { launch.run(&self.kernels[plan.row], plan.grid, params) }
    }
}

/// Refuses a tensor for which there is no kernel.
fn refuse(op: &'static str, tensor: &str, given: bool) -> Result<()> {
    if given {
        return Err(Error::Unsupported {
            op,
            request: tensor.into(),
            available: format!("attention without {tensor}"),
        });
    }
    Ok(())
}
