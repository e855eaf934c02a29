//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::Config;
use crate::abi::Dtype;
use crate::abi::ssd::{Layer, Rows, States, WALK, chunk};
use crate::check::Check;
use crate::error::Result;
use crate::tensor::Layout;

/// Steps that a tensor may have: the kernels add a segment to them in 32 bits.
const MAX_STEPS: usize = 1 << 30;

/// Heads, channels of a head: the kernels multiply their numbers of slices in 32 bits.
const MAX_HEADS: usize = 1 << 15;

/// What `headdim` and `dstate` are multiples of: products take eight columns at a time.
const COLUMNS: usize = 8;

/// Bytes of a copy.
const COPY: usize = 16;

/// Numbers of a 16-byte copy of states.
const STATE_COPY: usize = 4;

/// Shapes and strides of the inputs of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layouts {
    pub(super) x: Layout<4>,
    pub(super) dt: Layout<3>,
    pub(super) a: Layout<1>,
    pub(super) b: Layout<4>,
    pub(super) c: Layout<4>,
    pub(super) d: Option<SkipLayout>,
    pub(super) z: Option<Layout<4>>,
    pub(super) dt_bias: Option<Layout<1>>,
    pub(super) initial_states: Option<Layout<4>>,
    pub(super) cu_seqlens: Option<Layout<1>>,
}

/// D, per head or per channel.
#[derive(Clone, Copy, Debug)]
pub(super) enum SkipLayout {
    PerHead(Layout<1>),
    PerChannel(Layout<2>),
}

/// A checked layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) op: &'static str,
    pub(super) dtype: Dtype,
    pub(super) batch: usize,
    pub(super) sequences: usize,
    pub(super) heads: usize,
    pub(super) groups: usize,
    pub(super) headdim: usize,
    pub(super) dstate: usize,
    /// Steps of each sequence, or of all together if the lengths vary.
    pub(super) steps: usize,
    /// Whether sequences lie one after the other in one row of the batch.
    pub(super) packed: bool,
    /// Steps of a segment that were asked for.
    pub(super) segment: Option<usize>,
    /// For the kernels, without addresses and the length of segments.
    pub(super) layer: Layer,
    pub(super) initial: States,
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
        let Layouts { x, dt, b, c, .. } = layouts;
        let ([batch, steps, heads, headdim], [_, _, groups, dstate]) = (x.shape, b.shape);
        let alone = "a batch of 1 with cu_seqlens";
        let sequences = check.sequences(("x", batch), layouts.cu_seqlens.as_ref(), alone)?;
        let heads_per_group = check.heads_per(("b", groups, "groups"), ("x", heads))?;
        let largest = WALK.iter().map(|row| row.size).max().unwrap_or(0);
        check.multiple("headdim", headdim, COLUMNS, MAX_HEADS)?;
        check.multiple("dstate", dstate, COLUMNS, largest)?;
        check.at_most("x", steps, MAX_STEPS, "steps")?;
        check.at_most("x", heads, MAX_HEADS, "heads")?;
        checked(check, config)?;
        let mut problem = Self {
            op,
            dtype,
            batch,
            sequences,
            heads,
            groups,
            headdim,
            dstate,
            steps,
            packed: layouts.cu_seqlens.is_some(),
            segment: config.segment,
            layer: Layer {
                // checked above: all are below 2^31
                steps: steps as i32,
                heads: heads as i32,
                heads_per_group: heads_per_group as i32,
                headdim: headdim as i32,
                dstate: dstate as i32,
                softplus: config.dt_softplus.into(),
                dt_min: config.dt_limit.0,
                dt_max: config.dt_limit.1,
                ..Layer::default()
            },
            initial: States::default(),
        };
        problem.layer.x = problem.like_x("x", *x)?;
        problem.layer.dt = problem.like_dt("dt", *dt)?;
        problem.like_a("a", layouts.a)?;
        problem.layer.b = problem.like_b("b", *b)?;
        problem.layer.c = problem.like_b("c", *c)?;
        if let Some(z) = layouts.z {
            problem.layer.z = problem.like_x("z", z)?;
        }
        if let Some(dt_bias) = layouts.dt_bias {
            problem.like_a("dt_bias", dt_bias)?;
        }
        if let Some(d) = layouts.d {
            let [head, channel] = problem.like_d("d", d)?;
            problem.layer.d_head_stride = head;
            problem.layer.d_channel_stride = channel;
        }
        if let Some(states) = layouts.initial_states {
            problem.initial = problem.states("initial_states", states)?;
        }
        if let Some(cu_seqlens) = layouts.cu_seqlens {
            check.row_strides("cu_seqlens", &cu_seqlens, 1)?;
        }
        Ok(problem)
    }

    /// Checks that name the operation.
    fn check(&self) -> Check {
        Check { op: self.op }
    }

    /// How a tensor of the shape of x lies.
    pub(super) fn like_x(&self, name: &'static str, layout: Layout<4>) -> Result<Rows> {
        self.rows(name, layout, [self.heads, self.headdim])
    }

    /// How a tensor of the shape of B lies.
    pub(super) fn like_b(&self, name: &'static str, layout: Layout<4>) -> Result<Rows> {
        self.rows(name, layout, [self.groups, self.dstate])
    }

    fn rows(&self, name: &'static str, layout: Layout<4>, row: [usize; 2]) -> Result<Rows> {
        let check = self.check();
        let shape = [self.batch, self.steps, row[0], row[1]];
        check.sizes(name, shape, layout.shape)?;
        let [batch, step, head, _] = check.row_strides(name, &layout, COPY / self.dtype.bytes())?;
        Ok(self.in_batch(batch, step, head))
    }

    /// How a tensor of the shape of dt lies.
    pub(super) fn like_dt(&self, name: &'static str, layout: Layout<3>) -> Result<Rows> {
        let check = self.check();
        check.sizes(name, [self.batch, self.steps, self.heads], layout.shape)?;
        let [batch, step, head] = check.strides(name, &layout)?;
        Ok(self.in_batch(batch, step, head))
    }

    fn in_batch(&self, batch_stride: i64, step_stride: i64, head_stride: i64) -> Rows {
        Rows {
            at: 0,
            // all sequences lie in one row of the batch
            batch_stride: if self.packed { 0 } else { batch_stride },
            step_stride,
            head_stride,
        }
    }

    /// Checks a contiguous tensor of the shape of A.
    pub(super) fn like_a(&self, name: &'static str, layout: Layout<1>) -> Result<()> {
        let check = self.check();
        check.sizes(name, [self.heads], layout.shape)?;
        check.row_strides(name, &layout, 1)?;
        Ok(())
    }

    /// The strides of D: from one head to the next, and from one channel to the next.
    pub(super) fn like_d(&self, name: &'static str, layout: SkipLayout) -> Result<[i64; 2]> {
        let check = self.check();
        match layout {
            SkipLayout::PerHead(d) => {
                check.sizes(name, [self.heads], d.shape)?;
                let [head] = check.strides(name, &d)?;
                Ok([head, 0])
            }
            SkipLayout::PerChannel(d) => {
                check.sizes(name, [self.heads, self.headdim], d.shape)?;
                check.strides(name, &d)
            }
        }
    }

    /// How states lie.
    pub(super) fn states(&self, name: &'static str, layout: Layout<4>) -> Result<States> {
        let check = self.check();
        let shape = [self.sequences, self.heads, self.headdim, self.dstate];
        check.sizes(name, shape, layout.shape)?;
        let [sequence, head, channel, _] = check.row_strides(name, &layout, STATE_COPY)?;
        Ok(States {
            at: 0,
            sequence_stride: sequence,
            head_stride: head,
            channel_stride: channel,
        })
    }

    /// Whether there is neither an output nor a state.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences == 0 || self.heads == 0
    }

    /// Numbers of a head's state.
    pub(super) fn head_size(&self) -> usize {
        self.headdim * self.dstate
    }

    /// Slots of a workspace for parts of so many steps: as `sequence_of` in kernels/ssd/place.cuh counts
    /// them.
    pub(super) fn slots(&self, part: usize) -> usize {
        let rows = if self.packed { 1 } else { self.sequences };
        let steps = rows.saturating_mul(self.steps);
        (steps / part).saturating_add(self.sequences)
    }

    /// Chunks of the longest sequence; if lengths vary, which the host does not know, of an average
    /// one.
    pub(super) fn chunks(&self) -> usize {
        let steps = match self.packed {
            true => self.steps.div_ceil(self.sequences.max(1)),
            false => self.steps,
        };
        steps.div_ceil(chunk(self.dtype))
    }
}

fn checked(check: Check, config: Config) -> Result<()> {
    let (low, high) = config.dt_limit;
    // a NaN is in no order
    if !(low >= 0.0 && low <= high) {
        let expected = "two numbers in order, neither negative";
        return Err(check.argument("dt_limit", expected, format!("({low}, {high})")));
    }
    if config.segment == Some(0) {
        return Err(check.argument("segment", "at least one step", "0"));
    }
    Ok(())
}
