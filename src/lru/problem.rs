//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::Config;
use crate::abi::Dtype;
use crate::abi::lru::{Layer, Rows, Signal, THREADS};
use crate::check::Check;
use crate::error::Result;
use crate::tensor::Layout;

/// The most states, steps, sequences and entries: kernels add a tile to them in 32 bits.
const MAX_SIZE: usize = 1 << 30;

/// The most segments: each thread reads what all those before its own do.
pub(super) const MAX_SEGMENTS: usize = 64;

/// Parts of a complex number.
const PARTS: usize = 2;

/// [`super::Inputs`] without addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layouts {
    pub(super) dtype: Dtype,
    pub(super) x: Layout<4>,
    pub(super) a: Layout<2>,
    pub(super) gamma: Option<Layout<1>>,
    pub(super) initial_state: Option<Layout<3>>,
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
    pub(super) states: usize,
    /// What was asked for.
    pub(super) segments: Option<usize>,
    /// Sizes and strides; without addresses, and for one segment.
    pub(super) layer: Layer,
}

impl Problem {
    /// The problem of these inputs, for the messages of the call `op`.
    pub(super) fn new(op: &'static str, config: Config, layouts: &Layouts) -> Result<Self> {
        let check = Check { op };
        let [batch, seqlen, states, _] = layouts.x.shape;
        let alone = "a batch of 1, whose steps cu_seqlens divides";
        let sequences = check.sequences(("x", batch), layouts.cu_seqlens.as_ref(), alone)?;
        if let Some(cu_seqlens) = &layouts.cu_seqlens {
            check.contiguous("cu_seqlens", cu_seqlens)?;
        }
        limits(check, "x", sequences, states)?;
        check.at_most("x", seqlen, MAX_SIZE, "steps")?;
        if let Some(segments) = config.segments
            && !(1..=MAX_SEGMENTS).contains(&segments)
        {
            let expected = format!("1 to {MAX_SEGMENTS}");
            return Err(check.argument("segments", expected, segments.to_string()));
        }
        parameters(check, &layouts.a, layouts.gamma.as_ref(), states)?;
        let mut problem = Self {
            check,
            dtype: layouts.dtype,
            batch,
            sequences,
            seqlen,
            states,
            segments: config.segments,
            layer: Layer::default(),
        };
        problem.layer = Layer {
            x: problem.signal("x", &layouts.x)?,
            initial: match &layouts.initial_state {
                Some(state) => problem.rows("initial_state", state)?,
                None => Rows::default(),
            },
            // limited above
            sequences: sequences as i32,
            seqlen: seqlen as i32,
            states: states as i32,
            segments: 1,
            tiles: states.div_ceil(THREADS) as i32,
            ..Layer::default()
        };
        Ok(problem)
    }

    /// Whether there is no state of any sequence.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences == 0 || self.states == 0
    }

    /// A tensor like `x`.
    pub(super) fn signal(&self, name: &'static str, layout: &Layout<4>) -> Result<Signal> {
        let shape = [self.batch, self.seqlen, self.states, PARTS];
        self.check.sizes(name, shape, layout.shape)?;
        let [batch_stride, step_stride] = numbers(self.check, name, layout)?;
        Ok(Signal {
            at: 0,
            batch_stride,
            step_stride,
        })
    }

    /// A tensor of the states before or after each sequence.
    pub(super) fn rows(&self, name: &'static str, layout: &Layout<3>) -> Result<Rows> {
        rows(self.check, name, layout, [self.sequences, self.states])
    }
}

/// Checks `a` or its gradient, and `gamma` or its own.
pub(super) fn parameters(
    check: Check,
    a: &Layout<2>,
    gamma: Option<&Layout<1>>,
    states: usize,
) -> Result<()> {
    complex("a", check, a, states)?;
    match gamma {
        Some(gamma) => real("gamma", check, gamma, states),
        None => Ok(()),
    }
}

/// Checks `[states, 2]`.
pub(super) fn complex(
    name: &'static str,
    check: Check,
    layout: &Layout<2>,
    states: usize,
) -> Result<()> {
    check.sizes(name, [states, PARTS], layout.shape)?;
    numbers::<2, 0>(check, name, layout).map(|_| ())
}

/// Checks `[states]`.
pub(super) fn real(
    name: &'static str,
    check: Check,
    layout: &Layout<1>,
    states: usize,
) -> Result<()> {
    check.sizes(name, [states], layout.shape)?;
    check.contiguous(name, layout)
}

/// `[rows, states, 2]`
pub(super) fn rows(
    check: Check,
    name: &'static str,
    layout: &Layout<3>,
    [rows, states]: [usize; 2],
) -> Result<Rows> {
    check.sizes(name, [rows, states, PARTS], layout.shape)?;
    let [row_stride] = numbers(check, name, layout)?;
    Ok(Rows { at: 0, row_stride })
}

/// Checks that there are not too many rows or states.
pub(super) fn limits(check: Check, tensor: &'static str, rows: usize, states: usize) -> Result<()> {
    check.at_most(tensor, rows, MAX_SIZE, "rows")?;
    check.at_most(tensor, states, MAX_SIZE, "states")
}

/// The strides of all axes but the last two, states and parts, which have to lie contiguously; in complex numbers.
fn numbers<const N: usize, const OUTER: usize>(
    check: Check,
    name: &'static str,
    layout: &Layout<N>,
) -> Result<[i64; OUTER]> {
    let strides = check.row_strides(name, layout, PARTS)?;
    if layout.shape[OUTER] > 1 && layout.strides[OUTER] != PARTS {
        return Err(check.layout(name, "states that lie contiguously", layout));
    }
    Ok(std::array::from_fn(|axis| strides[axis] / PARTS as i64))
}
