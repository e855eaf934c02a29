//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::Config;
use crate::abi::Dtype;
use crate::abi::rwkv7::{Layer, Rows, SIZES, SLICES, States};
use crate::check::Check;
use crate::error::Result;
use crate::tensor::Layout;

/// The most steps, sequences, entries and heads: kernels add a tile to them in 32 bits.
const MAX_SIZE: usize = 1 << 30;

/// Channels that a thread accesses at once, if rows allow it.
const PIECE: usize = 4;

/// [`super::Inputs`] without addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layouts {
    pub(super) dtype: Dtype,
    pub(super) r: Layout<4>,
    pub(super) decay: Layout<4>,
    pub(super) k: Layout<4>,
    pub(super) v: Layout<4>,
    pub(super) a: Layout<4>,
    pub(super) b: Layout<4>,
    pub(super) initial_state: Option<Layout<4>>,
    pub(super) cu_seqlens: Option<Layout<1>>,
}

/// Checked sizes and options.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) check: Check,
    pub(super) batch: usize,
    pub(super) sequences: usize,
    pub(super) seqlen: usize,
    pub(super) heads: usize,
    pub(super) dk: usize,
    pub(super) dv: usize,
    /// The place in [`SIZES`] of the size to which heads are filled up.
    pub(super) size: usize,
    /// What was asked for.
    pub(super) slices: Option<usize>,
    /// Sizes and strides; without addresses, and for one slice.
    pub(super) layer: Layer,
    pub(super) initial_state: States,
}

impl Problem {
    /// The problem of these inputs, for the messages of the call `op`.
    pub(super) fn new(op: &'static str, config: Config, layouts: &Layouts) -> Result<Self> {
        let check = Check { op };
        let [batch, seqlen, heads, dk] = layouts.r.shape;
        let dv = layouts.v.shape[3];
        let largest = SIZES.into_iter().max().unwrap_or(0);
        check.within("dk", dk, largest)?;
        check.within("dv", dv, largest)?;
        let size = SIZES.iter().position(|&size| dk.max(dv) <= size);
        let alone = "a batch of 1, whose steps cu_seqlens divides";
        let sequences = check.sequences(("r", batch), layouts.cu_seqlens.as_ref(), alone)?;
        if let Some(cu_seqlens) = &layouts.cu_seqlens {
            check.contiguous("cu_seqlens", cu_seqlens)?;
        }
        check.at_most("r", sequences, MAX_SIZE, "sequences")?;
        check.at_most("r", seqlen, MAX_SIZE, "steps")?;
        check.at_most("r", heads, MAX_SIZE, "heads")?;
        if let Some(slices) = config.slices
            && !SLICES.contains(&slices)
        {
            return Err(check.argument("slices", "1 or 4", slices.to_string()));
        }
        let mut problem = Self {
            check,
            batch,
            sequences,
            seqlen,
            heads,
            dk,
            dv,
            size: size.unwrap_or(SIZES.len()),
            slices: config.slices,
            layer: Layer::default(),
            initial_state: States::default(),
        };
        problem.initial_state = problem.states("initial_state", layouts.initial_state)?;
        problem.layer = Layer {
            r: problem.keys("r", layouts.r)?,
            k: problem.keys("k", layouts.k)?,
            a: problem.keys("a", layouts.a)?,
            b: problem.keys("b", layouts.b)?,
            decay: problem.keys("decay", layouts.decay)?,
            v: problem.values("v", layouts.v)?,
            cu_seqlens: 0,
            // limited above
            seqlen: seqlen as i32,
            heads: heads as i32,
            dk: dk as i32,
            dv: dv as i32,
            dtype: layouts.dtype.number(),
            ragged: 0,
            ragged_states: 0,
            slices: 1,
        };
        Ok(problem)
    }

    /// Heads of all sequences.
    pub(super) fn heads_of_all(&self) -> usize {
        self.sequences.saturating_mul(self.heads)
    }

    /// `[batch, seqlen, heads, dk]`
    pub(super) fn keys(&self, name: &'static str, layout: Layout<4>) -> Result<Rows> {
        self.rows(name, layout, self.dk)
    }

    /// `[batch, seqlen, heads, dv]`
    pub(super) fn values(&self, name: &'static str, layout: Layout<4>) -> Result<Rows> {
        self.rows(name, layout, self.dv)
    }

    fn rows(&self, name: &'static str, layout: Layout<4>, channels: usize) -> Result<Rows> {
        let shape = [self.batch, self.seqlen, self.heads, channels];
        self.check.sizes(name, shape, layout.shape)?;
        let [batch_stride, step_stride, head_stride, _] =
            self.check.row_strides(name, &layout, 1)?;
        Ok(Rows {
            at: 0,
            batch_stride,
            step_stride,
            head_stride,
        })
    }

    /// A state of each sequence, or none.
    pub(super) fn states(&self, name: &'static str, layout: Option<Layout<4>>) -> Result<States> {
        let sizes = [self.sequences, self.heads, self.dk, self.dv];
        layout.map_or(Ok(States::default()), |layout| {
            states(self.check, name, &layout, sizes)
        })
    }
}

/// A tensor of states.
pub(super) fn states(
    check: Check,
    name: &'static str,
    layout: &Layout<4>,
    sizes: [usize; 4],
) -> Result<States> {
    check.sizes(name, sizes, layout.shape)?;
    let [entry_stride, head_stride, key_stride, _] = check.row_strides(name, layout, 1)?;
    Ok(States {
        at: 0,
        entry_stride,
        head_stride,
        key_stride,
    })
}

/// `[batch, heads, channels]` of one step.
pub(super) fn row(
    check: Check,
    name: &'static str,
    layout: &Layout<3>,
    sizes: [usize; 3],
) -> Result<Rows> {
    check.sizes(name, sizes, layout.shape)?;
    let [batch_stride, head_stride, _] = check.row_strides(name, layout, 1)?;
    Ok(Rows {
        at: 0,
        batch_stride,
        step_stride: 0,
        head_stride,
    })
}

/// Checks that there are not too many rows, entries or heads of one step.
pub(super) fn limits(check: Check, batch: usize, entries: usize, heads: usize) -> Result<()> {
    check.at_most("r", batch, MAX_SIZE, "rows")?;
    check.at_most("state", entries, MAX_SIZE, "entries")?;
    check.at_most("r", heads, MAX_SIZE, "heads")
}

impl Layer {
    /// Whether some of the layer's rows, or of `others` of so many channels and bytes an element, cannot be accessed
    /// by whole pieces.
    pub(super) fn is_ragged(&self, bytes: usize, others: &[(Rows, i32, usize)]) -> bool {
        let keys = [self.r, self.k, self.a, self.b].map(|rows| (rows, self.dk, bytes));
        let own = [(self.decay, self.dk, 4), (self.v, self.dv, bytes)];
        let mut all = keys.iter().chain(&own).chain(others);
        all.any(|&(rows, channels, bytes)| rows.is_ragged(channels, bytes))
    }
}

impl Rows {
    /// The tensor at this address.
    pub(super) fn at(self, at: u64) -> Self {
        Self { at, ..self }
    }

    fn is_ragged(&self, channels: i32, bytes: usize) -> bool {
        let strides = self.batch_stride | self.step_stride | self.head_stride;
        breaks_pieces(self.at, strides | i64::from(channels), bytes)
    }
}

impl States {
    /// The tensor at this address.
    pub(super) fn at(self, at: u64) -> Self {
        Self { at, ..self }
    }

    /// Whether rows of `dv` numbers are no whole pieces.
    pub(super) fn is_ragged(&self, dv: i32) -> bool {
        let strides = self.entry_stride | self.head_stride | self.key_stride;
        breaks_pieces(self.at, strides | i64::from(dv), size_of::<f32>())
    }
}

/// Whether an address, or one of the numbers of elements whose bits are in `elements`, is no multiple of a piece.
fn breaks_pieces(at: u64, elements: i64, bytes: usize) -> bool {
    let of_elements = (elements as u64).is_multiple_of(PIECE as u64);
    !of_elements || !at.is_multiple_of((PIECE * bytes) as u64)
}
