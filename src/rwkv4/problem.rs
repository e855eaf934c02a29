//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::Config;
use crate::abi::Dtype;
use crate::abi::rwkv4::{Layer, Rows, Signal, THREADS};
use crate::check::Check;
use crate::error::Result;
use crate::tensor::Layout;

/// The most channels, sequences and entries: kernels add a tile to them in 32 bits.
const MAX_SIZE: usize = 1 << 30;

/// The most steps of a tensor: kernels count them in `f32`.
const MAX_STEPS: usize = 1 << 24;

/// The most segments: each thread reads what all those before its own leave behind.
pub(super) const MAX_SEGMENTS: usize = 64;

/// Layouts of a numerator, a denominator and, of a state, an exponent.
pub(super) type StateLayouts<const N: usize> = [Layout<2>; N];

/// [`super::Inputs`] without addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layouts {
    pub(super) dtype: Dtype,
    pub(super) k: Layout<3>,
    pub(super) v: Layout<3>,
    pub(super) decay: Layout<1>,
    pub(super) bonus: Layout<1>,
    pub(super) initial_state: Option<StateLayouts<3>>,
    pub(super) cu_seqlens: Option<Layout<1>>,
}

/// Checked sizes and options.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) check: Check,
    pub(super) dtype: Dtype,
    pub(super) batch: usize,
    pub(super) sequences: usize,
    pub(super) seqlen: usize,
    pub(super) dim: usize,
    /// What was asked for.
    pub(super) segments: Option<usize>,
    /// Sizes and strides; without addresses, and for one segment.
    pub(super) layer: Layer,
}

impl Problem {
    /// The problem of these inputs, for the messages of the call `op`.
    pub(super) fn new(op: &'static str, config: Config, layouts: &Layouts) -> Result<Self> {
        let check = Check { op };
        let [batch, seqlen, dim] = layouts.k.shape;
        let alone = "a batch of 1, whose steps cu_seqlens divides";
        let sequences = check.sequences(("k", batch), layouts.cu_seqlens.as_ref(), alone)?;
        if let Some(cu_seqlens) = &layouts.cu_seqlens {
            check.contiguous("cu_seqlens", cu_seqlens)?;
        }
        limits(check, "k", sequences, dim)?;
        check.at_most("k", seqlen, MAX_STEPS, "steps")?;
        if let Some(segments) = config.segments
            && !(1..=MAX_SEGMENTS).contains(&segments)
        {
            let expected = format!("1 to {MAX_SEGMENTS}");
            return Err(check.argument("segments", expected, segments.to_string()));
        }
        let mut problem = Self {
            check,
            dtype: layouts.dtype,
            batch,
            sequences,
            seqlen,
            dim,
            segments: config.segments,
            layer: Layer::default(),
        };
        let [numerator, denominator, exponent] = match &layouts.initial_state {
            Some(state) => problem.state("initial_state", state)?,
            None => <[Rows; 3]>::default(),
        };
        problem.layer = Layer {
            k: problem.signal("k", &layouts.k)?,
            v: problem.signal("v", &layouts.v)?,
            decay: problem.vector("decay", &layouts.decay)?,
            bonus: problem.vector("bonus", &layouts.bonus)?,
            numerator,
            denominator,
            exponent,
            cu_seqlens: 0,
            ends: 0,
            // limited above
            sequences: sequences as i32,
            seqlen: seqlen as i32,
            dim: dim as i32,
            segments: 1,
            channel_tiles: dim.div_ceil(THREADS) as i32,
        };
        Ok(problem)
    }

    /// Whether there is no channel of any sequence.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences == 0 || self.dim == 0
    }

    /// A tensor like `k`.
    pub(super) fn signal(&self, name: &'static str, layout: &Layout<3>) -> Result<Signal> {
        let shape = [self.batch, self.seqlen, self.dim];
        self.check.sizes(name, shape, layout.shape)?;
        let [batch_stride, step_stride, _] = self.check.row_strides(name, layout, 1)?;
        Ok(Signal {
            at: 0,
            batch_stride,
            step_stride,
        })
    }

    /// The tensors of a state, or of its gradient.
    pub(super) fn state<const N: usize>(
        &self,
        name: &'static str,
        layouts: &StateLayouts<N>,
    ) -> Result<[Rows; N]> {
        state(self.check, name, layouts, [self.sequences, self.dim])
    }

    /// `[dim]`
    pub(super) fn vector(&self, name: &'static str, layout: &Layout<1>) -> Result<Rows> {
        vector(self.check, name, layout, self.dim)
    }
}

/// The tensors of a state, or of its gradient.
pub(super) fn state<const N: usize>(
    check: Check,
    name: &'static str,
    layouts: &StateLayouts<N>,
    sizes: [usize; 2],
) -> Result<[Rows; N]> {
    let mut rows = [Rows::default(); N];
    for (to, layout) in rows.iter_mut().zip(layouts) {
        check.sizes(name, sizes, layout.shape)?;
        [to.row_stride, to.channel_stride] = check.strides(name, layout)?;
    }
    Ok(rows)
}

/// `[dim]`
pub(super) fn vector(
    check: Check,
    name: &'static str,
    layout: &Layout<1>,
    dim: usize,
) -> Result<Rows> {
    check.sizes(name, [dim], layout.shape)?;
    Ok(Rows {
        at: 0,
        row_stride: 0,
        channel_stride: check.stride(name, layout, 0)?,
    })
}

/// `[batch, dim]` of one step.
pub(super) fn row(
    check: Check,
    name: &'static str,
    layout: &Layout<2>,
    sizes: [usize; 2],
) -> Result<Signal> {
    check.sizes(name, sizes, layout.shape)?;
    let [batch_stride, _] = check.row_strides(name, layout, 1)?;
    Ok(Signal {
        at: 0,
        batch_stride,
        step_stride: 0,
    })
}

/// Checks that there are not too many rows or channels.
pub(super) fn limits(check: Check, tensor: &'static str, rows: usize, dim: usize) -> Result<()> {
    check.at_most(tensor, rows, MAX_SIZE, "rows")?;
    check.at_most(tensor, dim, MAX_SIZE, "channels")
}

impl Signal {
    /// The tensor at this address.
    pub(super) fn at(self, at: u64) -> Self {
        Self { at, ..self }
    }
}

impl Rows {
    /// The tensor at this address.
    pub(super) fn at(self, at: u64) -> Self {
        Self { at, ..self }
    }
}
