//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::Config;
use crate::abi::Dtype;
use crate::abi::gated_attention_unit::{Layer, ROWS, Rows, SLICE, TILES};
use crate::check::Check;
use crate::error::Result;
use crate::tensor::Layout;

/// Steps that a tensor or a chunk may have: the kernels add both in 32 bits.
const MAX_STEPS: usize = 1 << 30;

/// Value channels: the kernels count them in 32 bits.
const MAX_CHANNELS: usize = 1 << 20;

/// What `dz` and `dv` are multiples of: products take eight columns at a time.
const COLUMNS: usize = 8;

/// Bytes of a copy.
const COPY: usize = 16;

/// Shapes and strides of the inputs of a unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layouts {
    pub(super) u: Layout<3>,
    pub(super) v: Layout<3>,
    pub(super) z: Layout<3>,
    pub(super) quadratic: PairLayout,
    pub(super) bias: Option<Layout<1>>,
    pub(super) mixed: Option<MixedLayout>,
    pub(super) cu_seqlens: Option<Layout<1>>,
}

/// gamma and beta of queries, gamma and beta of keys.
pub(super) type PairLayout = [Layout<1>; 4];

/// A linear part.
#[derive(Clone, Copy, Debug)]
pub(super) struct MixedLayout {
    pub(super) chunk: usize,
    pub(super) scale: f32,
    pub(super) linear: PairLayout,
}

/// The names of a [`PairLayout`], or of its gradients.
pub(super) const QUADRATIC: [&str; 4] = [
    "quadratic.q.gamma",
    "quadratic.q.beta",
    "quadratic.k.gamma",
    "quadratic.k.beta",
];
pub(super) const LINEAR: [&str; 4] = [
    "linear.q.gamma",
    "linear.q.beta",
    "linear.k.gamma",
    "linear.k.beta",
];

/// A checked unit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) op: &'static str,
    pub(super) dtype: Dtype,
    pub(super) batch: usize,
    pub(super) sequences: usize,
    /// Steps of each sequence, or of all together if the lengths vary.
    pub(super) steps: usize,
    pub(super) dz: usize,
    pub(super) dv: usize,
    /// Steps of a chunk; those of the longest possible sequence if all is quadratic.
    pub(super) chunk: usize,
    /// Numbers of `bias` to one side, with that of distance 0.
    pub(super) distances: usize,
    pub(super) causal: bool,
    /// Whether there is a linear part, and with it gradients of what makes its queries and keys.
    pub(super) mixed: bool,
    /// Whether sequences lie one after the other in one row of the batch.
    pub(super) packed: bool,
    /// Value channels of a block that were asked for.
    pub(super) channels: Option<usize>,
    /// For the kernels, without addresses.
    pub(super) layer: Layer,
    pub(super) u: Rows,
    pub(super) v: Rows,
}

impl Problem {
    /// The problem of these inputs.
    pub(super) fn new(
        op: &'static str,
        dtype: Dtype,
        config: Config,
        layouts: &Layouts,
    ) -> Result<Self> {
        let check = Check { op };
        let ([batch, steps, dv], [_, _, dz]) = (layouts.v.shape, layouts.z.shape);
        let alone = "a batch of 1 with cu_seqlens";
        let sequences = check.sequences(("v", batch), layouts.cu_seqlens.as_ref(), alone)?;
        let largest = TILES.iter().map(|row| row.size).max().unwrap_or(0);
        check.multiple("dz", dz, COLUMNS, largest)?;
        check.multiple("dv", dv, COLUMNS, MAX_CHANNELS)?;
        check.at_most("v", steps, MAX_STEPS, "steps")?;
        check.at_most("cu_seqlens", sequences, MAX_STEPS, "sequences")?;
        let (chunk, linear_scale) = match &layouts.mixed {
            Some(mixed) => (checked_chunk(check, mixed.chunk)?, mixed.scale),
            None => (MAX_STEPS, 0.0),
        };
        let distances = match layouts.mixed {
            Some(_) => chunk,
            None => steps,
        };
        let mut problem = Self {
            op,
            dtype,
            batch,
            sequences,
            steps,
            dz,
            dv,
            chunk,
            distances,
            causal: config.causal,
            mixed: layouts.mixed.is_some(),
            packed: layouts.cu_seqlens.is_some(),
            channels: config.channels,
            layer: Layer {
                // checked above: all are at most 2^30
                sequences: sequences as i32,
                steps: steps as i32,
                dz: dz as i32,
                dv: dv as i32,
                chunk: chunk as i32,
                distances: distances as i32,
                causal: config.causal.into(),
                scale: config.scale,
                linear_scale,
                ..Layer::default()
            },
            u: Rows::default(),
            v: Rows::default(),
        };
        problem.u = problem.like_v("u", layouts.u)?;
        problem.v = problem.like_v("v", layouts.v)?;
        problem.layer.z = problem.like_z("z", layouts.z)?;
        problem.pair(QUADRATIC, layouts.quadratic)?;
        if let Some(mixed) = layouts.mixed {
            problem.pair(LINEAR, mixed.linear)?;
        }
        if let Some(bias) = layouts.bias {
            problem.like_bias("bias", bias)?;
        }
        if let Some(cu_seqlens) = layouts.cu_seqlens {
            check.contiguous("cu_seqlens", &cu_seqlens)?;
        }
        Ok(problem)
    }

    /// How a tensor of the shape of v lies.
    pub(super) fn like_v(&self, name: &'static str, layout: Layout<3>) -> Result<Rows> {
        self.rows(name, layout, self.dv)
    }

    /// How a tensor of the shape of z lies.
    pub(super) fn like_z(&self, name: &'static str, layout: Layout<3>) -> Result<Rows> {
        self.rows(name, layout, self.dz)
    }

    fn rows(&self, name: &'static str, layout: Layout<3>, channels: usize) -> Result<Rows> {
        let check = self.check();
        check.sizes(name, [self.batch, self.steps, channels], layout.shape)?;
        let [batch, step, _] = check.row_strides(name, &layout, COPY / self.dtype.bytes())?;
        Ok(Rows {
            at: 0,
            // all sequences lie in one row of the batch
            batch_stride: if self.packed { 0 } else { batch },
            step_stride: step,
        })
    }

    /// How a contiguous tensor of the shape of v lies.
    pub(super) fn contiguous_like_v(&self) -> Rows {
        let stride = self.dv as i64; // at most MAX_CHANNELS
        Rows {
            at: 0,
            batch_stride: if self.packed {
                0
            } else {
                stride * i64::from(self.layer.steps)
            },
            step_stride: stride,
        }
    }

    /// Checks the vectors of a pair, or their gradients.
    pub(super) fn pair(&self, names: [&'static str; 4], layouts: PairLayout) -> Result<()> {
        for (name, layout) in names.into_iter().zip(layouts) {
            self.check().sizes(name, [self.dz], layout.shape)?;
            self.check().contiguous(name, &layout)?;
        }
        Ok(())
    }

    /// Checks a contiguous tensor of the shape of bias.
    pub(super) fn like_bias(&self, name: &'static str, layout: Layout<1>) -> Result<()> {
        self.check().sizes(name, [self.biases()], layout.shape)?;
        self.check().contiguous(name, &layout)
    }

    /// Numbers of a bias.
    pub(super) fn biases(&self) -> usize {
        (2 * self.distances).saturating_sub(1)
    }

    pub(super) fn check(&self) -> Check {
        Check { op: self.op }
    }

    /// Whether there is no output.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences == 0 || self.steps == 0
    }

    /// Whether any step may see more than its own chunk, or if not causal that one twice.
    pub(super) fn has_states(&self) -> bool {
        self.mixed && !(self.causal && self.steps <= self.chunk)
    }

    /// Steps of the call.
    pub(super) fn all_steps(&self) -> usize {
        let rows = if self.packed { 1 } else { self.sequences };
        rows.saturating_mul(self.steps)
    }

    /// Slots of a workspace for parts of so many steps: as `Sequence::slot` in
    /// kernels/gated_attention_unit/place.cuh counts them.
    pub(super) fn slots(&self, part: usize) -> usize {
        (self.all_steps() / part).saturating_add(self.sequences)
    }

    /// Units of a chunk's states.
    pub(super) fn slices(&self) -> usize {
        self.dv.div_ceil(SLICE)
    }
}

fn checked_chunk(check: Check, chunk: usize) -> Result<usize> {
    if chunk > 0 && chunk.is_multiple_of(ROWS) && chunk <= MAX_STEPS {
        return Ok(chunk);
    }
    let expected = format!("a multiple of {ROWS} up to {MAX_STEPS}");
    Err(check.argument("mixed.chunk", expected, chunk.to_string()))
}
