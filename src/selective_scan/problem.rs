//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use std::cmp::Ordering;

use super::{Config, Direction, Numbers};
use crate::abi::Dtype;
use crate::abi::selective_scan::{
    CHUNK_BYTES, Coefficient, Elements, MAX_STATES, Scan, Source, States, Vector,
};
use crate::check::Check;
use crate::error::Result;
use crate::tensor::Layout;

/// The most channels, steps and sequences: kernels add tiles to them in 32 bits.
const MAX_SIZE: usize = 1 << 30;

/// How B or C lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum CoefficientLayout {
    Variable(Layout<4>),
    Constant(Layout<2>),
}

/// [`super::Inputs`] without addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layouts {
    pub(super) dtype: Dtype,
    pub(super) u: Layout<3>,
    pub(super) delta: Layout<3>,
    pub(super) a: Layout<2>,
    pub(super) b: CoefficientLayout,
    pub(super) c: CoefficientLayout,
    pub(super) d: Option<(Layout<1>, Dtype)>,
    pub(super) z: Option<Layout<3>>,
    pub(super) delta_bias: Option<(Layout<1>, Dtype)>,
    pub(super) initial_state: Option<Layout<3>>,
    pub(super) cu_seqlens: Option<Layout<1>>,
}

/// A checked scan.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) op: &'static str,
    pub(super) config: Config,
    pub(super) dtype: Dtype,
    pub(super) batch: usize,
    pub(super) sequences: usize,
    pub(super) dim: usize,
    pub(super) seqlen: usize,
    /// Floats of a channel's state.
    pub(super) states: usize,
    pub(super) groups: usize,
    pub(super) source: Source,
    /// Whether chunks are copied along channels; else along steps.
    pub(super) along_channels: bool,
    /// Sizes, strides and options; without addresses, and for one segment.
    pub(super) scan: Scan,
}

impl Problem {
    /// The problem of these inputs and of `others`, tensors like `u` with their names.
    pub(super) fn new(
        op: &'static str,
        config: Config,
        layouts: &Layouts,
        others: &[(&'static str, Layout<3>)],
    ) -> Result<Self> {
        let check = Check { op };
        let [batch, dim, seqlen] = layouts.u.shape;
        let [_, states] = layouts.a.shape;
        state_size(check, config.numbers, states)?;
        let cu_seqlens = layouts.cu_seqlens.as_ref();
        let sequences =
            check.sequences(("u", batch), cu_seqlens, "a batch of 1, with cu_seqlens")?;
        if let Some(cu_seqlens) = cu_seqlens {
            check.contiguous("cu_seqlens", cu_seqlens)?;
        }
        for (what, size) in [("batch", sequences), ("dim", dim), ("seqlen", seqlen)] {
            if size > MAX_SIZE {
                return Err(check.shape(what, format!("at most {MAX_SIZE}"), size.to_string()));
            }
        }
        let all = [
            ("u", Some(layouts.u)),
            ("delta", Some(layouts.delta)),
            ("z", layouts.z),
        ];
        let inputs = all.into_iter().filter_map(|(name, x)| Some((name, x?)));
        let elements: Vec<_> = inputs.chain(others.iter().copied()).collect();
        for (name, layout) in &elements {
            check.sizes(name, [batch, dim, seqlen], layout.shape)?;
        }
        let along_channels = lie_along_channels(&elements);
        check.sizes("A", [dim, states], layouts.a.shape)?;
        let sizes = Sizes {
            batch,
            dim,
            seqlen,
            states,
        };
        let groups = groups_of(check, layouts, sizes)?;
        let (skip, skip_dtype) = weight(check, "D", layouts.d, dim)?;
        let (delta_bias, delta_bias_dtype) = weight(check, "delta_bias", layouts.delta_bias, dim)?;
        let mut problem = Self {
            op,
            config,
            dtype: layouts.dtype,
            batch,
            sequences,
            dim,
            seqlen,
            states,
            groups,
            source: source(layouts),
            along_channels,
            scan: Scan::default(),
        };
        let initial_state = match layouts.initial_state {
            Some(layout) => problem.states_like("initial_state", &layout)?,
            None => States::default(),
        };
        let z = match layouts.z {
            Some(layout) => problem.elements("z", &layout)?,
            None => Elements::default(),
        };
        problem.scan = Scan {
            u: problem.elements("u", &layouts.u)?,
            delta: problem.elements("delta", &layouts.delta)?,
            z,
            a: States {
                at: 0,
                sequence_stride: 0,
                channel_stride: check.stride("A", &layouts.a, 0)?,
                state_stride: check.stride("A", &layouts.a, 1)?,
            },
            b: coefficient_of(check, "B", layouts.b, layouts.dtype)?,
            c: coefficient_of(check, "C", layouts.c, layouts.dtype)?,
            skip,
            delta_bias,
            initial_state,
            cu_seqlens: 0,
            // `MAX_SIZE` keeps these below 2^31
            sequences: sequences as i32,
            dim: dim as i32,
            seqlen: seqlen as i32,
            states: states as i32,
            groups: groups as i32,
            segments: 1,
            skip_dtype,
            delta_bias_dtype,
            softplus: config.delta_softplus.into(),
            reverse: (config.direction == Direction::Reverse).into(),
            along_channels: along_channels.into(),
            checkpoint_bits: 0,
        };
        Ok(problem)
    }

    /// Checks that name the operation.
    pub(super) fn check(&self) -> Check {
        Check { op: self.op }
    }

    /// How a tensor like `u` lies.
    pub(super) fn elements(&self, name: &'static str, layout: &Layout<3>) -> Result<Elements> {
        let check = self.check();
        let stride = |axis| check.stride(name, layout, axis);
        let (along, across) = if self.along_channels { (1, 2) } else { (2, 1) };
        // blocks begin at the first channel of a group
        let first = match self.along_channels && self.groups > 1 {
            true => (self.dim / self.groups) as i64, // below `MAX_SIZE`
            false => 0,
        };
        let chunks = whole_chunks(&[stride(0)?, stride(across)?, first], self.dtype);
        Ok(Elements {
            at: 0,
            batch_stride: stride(0)?,
            channel_stride: stride(1)?,
            step_stride: stride(2)?,
            vector: (layout.is_contiguous_along(along) && chunks).into(),
            dtype: self.dtype.number(),
        })
    }

    /// How a tensor like `initial_state` lies.
    pub(super) fn states_like(&self, name: &'static str, layout: &Layout<3>) -> Result<States> {
        let check = self.check();
        check.sizes(name, [self.sequences, self.dim, self.states], layout.shape)?;
        Ok(States {
            at: 0,
            sequence_stride: check.stride(name, layout, 0)?,
            channel_stride: check.stride(name, layout, 1)?,
            state_stride: check.stride(name, layout, 2)?,
        })
    }

    /// The shape of states that are kept for the backward pass, each `interval` steps.
    pub(super) fn checkpoint_shape(&self, interval: usize) -> [usize; 4] {
        let intervals = self.seqlen.div_ceil(interval);
        [self.batch, intervals, self.dim, self.states]
    }

    /// Checks a tensor of these states.
    pub(super) fn check_checkpoints(&self, layout: &Layout<4>, interval: usize) -> Result<()> {
        let check = self.check();
        let shape = self.checkpoint_shape(interval);
        check.sizes("checkpoints", shape, layout.shape)?;
        if Layout::contiguous(shape).as_ref() != Some(layout) {
            return Err(check.layout("checkpoints", "contiguous elements", layout));
        }
        Ok(())
    }

    /// Whether there is no channel to scan.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences == 0 || self.dim == 0
    }
}

impl Elements {
    /// The tensor at this address.
    pub(super) fn at(self, address: u64) -> Self {
        Self {
            at: address,
            vector: self.vector & i32::from(address.is_multiple_of(CHUNK_BYTES as u64)),
            ..self
        }
    }
}

impl Coefficient {
    /// The tensor at this address.
    pub(super) fn at(self, address: u64) -> Self {
        Self {
            at: address,
            vector: self.vector & i32::from(address.is_multiple_of(CHUNK_BYTES as u64)),
            ..self
        }
    }
}

/// Which coefficients a kernel has to take.
fn source(layouts: &Layouts) -> Source {
    match (layouts.b, layouts.c) {
        (CoefficientLayout::Variable(_), CoefficientLayout::Variable(_)) => Source::Variable,
        _ => Source::Any,
    }
}

/// Whether rows that are so many elements apart begin at multiples of a chunk.
fn whole_chunks(strides: &[i64], dtype: Dtype) -> bool {
    let elements = (CHUNK_BYTES / dtype.bytes()) as i64;
    strides.iter().all(|stride| stride % elements == 0)
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    dim: usize,
    seqlen: usize,
    states: usize,
}

/// Whether chunks of tensors like `u` are best copied along channels, or along steps: whichever more of them
/// allow. The others are copied element by element.
fn lie_along_channels(elements: &[(&'static str, Layout<3>)]) -> bool {
    let along = |axis| {
        elements
            .iter()
            .filter(|(_, x)| x.is_contiguous_along(axis))
            .count()
    };
    // a single step lies either way: along channels there is more to read at a time
    let single = elements.iter().all(|(_, x)| x.shape[2] <= 1);
    match along(1).cmp(&along(2)) {
        Ordering::Less => false,
        Ordering::Equal => single,
        Ordering::Greater => true,
    }
}

pub(super) fn state_size(check: Check, numbers: Numbers, states: usize) -> Result<()> {
    let floats = numbers.floats();
    if states == 0 || states > MAX_STATES || !states.is_multiple_of(floats) {
        let expected = match floats {
            1 => format!("1 to {MAX_STATES} states"),
            _ => format!("2 floats for each of 1 to {} states", MAX_STATES / floats),
        };
        return Err(check.shape("A", expected, format!("{states} floats of a channel")));
    }
    Ok(())
}

/// How a number for each channel lies, and its type.
fn weight(
    check: Check,
    name: &'static str,
    weight: Option<(Layout<1>, Dtype)>,
    dim: usize,
) -> Result<(Vector, i32)> {
    let Some((layout, dtype)) = weight else {
        return Ok((Vector::default(), 0));
    };
    check.sizes(name, [dim], layout.shape)?;
    let stride = check.stride(name, &layout, 0)?;
    Ok((Vector { at: 0, stride }, dtype.number()))
}

/// The groups of channels that share B and C.
fn groups_of(check: Check, layouts: &Layouts, sizes: Sizes) -> Result<usize> {
    let mut groups = None;
    for (name, coefficient) in [("B", layouts.b), ("C", layouts.c)] {
        let Sizes {
            batch,
            dim,
            seqlen,
            states,
        } = sizes;
        match coefficient {
            CoefficientLayout::Constant(layout) => {
                check.sizes(name, [dim, states], layout.shape)?;
            }
            CoefficientLayout::Variable(layout) => {
                let count = *groups.get_or_insert(layout.shape[1]);
                check.sizes(name, [batch, count, states, seqlen], layout.shape)?;
                if dim > 0 && (count == 0 || dim % count != 0) {
                    let expected = format!("a divisor of {dim} channels as groups");
                    return Err(check.shape(name, expected, format!("{count} groups")));
                }
            }
        }
    }
    Ok(groups.unwrap_or(1).max(1))
}

/// How B or C lies, or their gradients.
pub(super) fn coefficient_of(
    check: Check,
    name: &'static str,
    coefficient: CoefficientLayout,
    dtype: Dtype,
) -> Result<Coefficient> {
    let layout = match coefficient {
        CoefficientLayout::Variable(layout) => layout,
        CoefficientLayout::Constant(layout) => {
            return Ok(Coefficient {
                group_stride: check.stride(name, &layout, 0)?,
                state_stride: check.stride(name, &layout, 1)?,
                kind: 2,
                ..Coefficient::default()
            });
        }
    };
    let stride = |axis| check.stride(name, &layout, axis);
    let strides = [stride(0)?, stride(1)?, stride(2)?, stride(3)?];
    let along = |axis: usize, other: usize| {
        layout.is_contiguous_along(axis)
            && whole_chunks(&[strides[0], strides[1], strides[other]], dtype)
    };
    let (steps, states) = (along(3, 2), along(2, 3));
    // not aligned or not contiguous: element by element, best along what is contiguous
    let kind = match (steps, states) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => (!layout.is_contiguous_along(3) && layout.is_contiguous_along(2)).into(),
    };
    Ok(Coefficient {
        at: 0,
        batch_stride: strides[0],
        group_stride: strides[1],
        state_stride: strides[2],
        step_stride: strides[3],
        vector: (steps || states).into(),
        kind,
    })
}
