//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::Config;
use crate::abi::Dtype;
use crate::abi::rwkv4::{Layer, Rows, Signal, THREADS};
use crate::error::{Error, Result};
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
#[derive(Clone, Debug, PartialEq)]
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
        let sequences = match &layouts.cu_seqlens {
            Some(cu_seqlens) => check.packed(batch, cu_seqlens)?,
            None => batch,
        };
        check.at_most("k", "sequences", sequences, MAX_SIZE)?;
        check.at_most("k", "channels", dim, MAX_SIZE)?;
        check.at_most("k", "steps", seqlen, MAX_STEPS)?;
        if let Some(segments) = config.segments
            && !(1..=MAX_SEGMENTS).contains(&segments)
        {
            return Err(Error::Argument {
                op,
                argument: "segments",
                expected: format!("1 to {MAX_SEGMENTS}"),
                found: segments.to_string(),
            });
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
            decay: check.vector("decay", &layouts.decay, dim)?,
            bonus: check.vector("bonus", &layouts.bonus, dim)?,
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
        self.check.contiguous_channels(name, layout)?;
        Ok(Signal {
            at: 0,
            batch_stride: self.check.stride(name, layout, 0)?,
            step_stride: self.check.stride(name, layout, 1)?,
        })
    }

    /// The tensors of a state, or of its gradient.
    pub(super) fn state<const N: usize>(
        &self,
        name: &'static str,
        layouts: &StateLayouts<N>,
    ) -> Result<[Rows; N]> {
        self.check.state(name, layouts, [self.sequences, self.dim])
    }

    /// `[dim]`
    pub(super) fn vector(&self, name: &'static str, layout: &Layout<1>) -> Result<Rows> {
        self.check.vector(name, layout, self.dim)
    }
}

/// The checks, for the messages of the call of this name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Check {
    pub(super) op: &'static str,
}

impl Check {
    /// How many sequences `cu_seqlens` packs in the one row of the batch.
    fn packed(self, batch: usize, cu_seqlens: &Layout<1>) -> Result<usize> {
        if batch != 1 {
            let expected = "a batch of 1, whose steps cu_seqlens divides";
            return Err(self.shape("k", expected, &format!("a batch of {batch}")));
        }
        self.contiguous("cu_seqlens", cu_seqlens)?;
        let sequences = cu_seqlens.shape[0].checked_sub(1);
        sequences.ok_or_else(|| self.shape("cu_seqlens", "sequences + 1 elements", "no elements"))
    }

    pub(super) fn state<const N: usize>(
        self,
        name: &'static str,
        layouts: &StateLayouts<N>,
        sizes: [usize; 2],
    ) -> Result<[Rows; N]> {
        let mut rows = [Rows::default(); N];
        for (to, layout) in rows.iter_mut().zip(layouts) {
            self.sizes(name, sizes, layout.shape)?;
            to.row_stride = self.stride(name, layout, 0)?;
            to.channel_stride = self.stride(name, layout, 1)?;
        }
        Ok(rows)
    }

    pub(super) fn vector(self, name: &'static str, layout: &Layout<1>, dim: usize) -> Result<Rows> {
        self.sizes(name, [dim], layout.shape)?;
        Ok(Rows {
            at: 0,
            row_stride: 0,
            channel_stride: self.stride(name, layout, 0)?,
        })
    }

    /// `[batch, dim]` of one step.
    pub(super) fn row(
        self,
        name: &'static str,
        layout: &Layout<2>,
        sizes: [usize; 2],
    ) -> Result<Signal> {
        self.sizes(name, sizes, layout.shape)?;
        self.contiguous_channels(name, layout)?;
        Ok(Signal {
            at: 0,
            batch_stride: self.stride(name, layout, 0)?,
            step_stride: 0,
        })
    }

    pub(super) fn limits(self, tensor: &'static str, rows: usize, dim: usize) -> Result<()> {
        self.at_most(tensor, "rows", rows, MAX_SIZE)?;
        self.at_most(tensor, "channels", dim, MAX_SIZE)
    }

    fn at_most(self, tensor: &'static str, what: &str, size: usize, most: usize) -> Result<()> {
        if size > most {
            let expected = format!("at most {most}");
            return Err(self.shape(tensor, &expected, &format!("{size} {what}")));
        }
        Ok(())
    }

    pub(super) fn sizes<const N: usize>(
        self,
        tensor: &'static str,
        expected: [usize; N],
        found: [usize; N],
    ) -> Result<()> {
        if expected != found {
            let expected = format!("shape {expected:?}");
            return Err(self.shape(tensor, &expected, &format!("shape {found:?}")));
        }
        Ok(())
    }

    fn shape(self, tensor: &'static str, expected: &str, found: &str) -> Error {
        Error::Shape {
            op: self.op,
            tensor,
            expected: expected.into(),
            found: found.into(),
        }
    }

    pub(super) fn contiguous(self, tensor: &'static str, layout: &Layout<1>) -> Result<()> {
        if layout.shape[0] > 1 && layout.strides[0] != 1 {
            return Err(self.layout(tensor, "a stride of 1", layout));
        }
        Ok(())
    }

    fn contiguous_channels<const N: usize>(
        self,
        tensor: &'static str,
        layout: &Layout<N>,
    ) -> Result<()> {
        if layout.shape[N - 1] > 1 && layout.strides[N - 1] != 1 {
            return Err(self.layout(tensor, "a stride of 1 along dim", layout));
        }
        Ok(())
    }

    fn layout<const N: usize>(
        self,
        tensor: &'static str,
        expected: &str,
        layout: &Layout<N>,
    ) -> Error {
        Error::Layout {
            op: self.op,
            tensor,
            expected: expected.into(),
            found: format!("strides {:?}", layout.strides),
        }
    }

    /// The stride of an axis in the kernels' type, or 0 where the kernels never step along it.
    fn stride<const N: usize>(
        self,
        tensor: &'static str,
        layout: &Layout<N>,
        axis: usize,
    ) -> Result<i64> {
        if layout.shape[axis] <= 1 {
            return Ok(0);
        }
        let expected = format!("strides of at most {}", i64::MAX);
        i64::try_from(layout.strides[axis]).map_err(|_| self.layout(tensor, &expected, layout))
    }
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
