//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::Config;
use crate::abi::Dtype;
use crate::abi::linear_attention::{Decays, Gate, Layer, Rows, States, WALK};
use crate::check::Check;
use crate::error::{Error, Result};
use crate::tensor::Layout;

/// Steps that a tensor may have: the kernels add a segment to them in 32 bits.
const MAX_STEPS: usize = 1 << 30;

/// Heads, channels of a value: the kernels multiply their numbers of slices in 32 bits.
const MAX_HEADS: usize = 1 << 15;

/// What dk and dv are multiples of: products take eight columns at a time.
const COLUMNS: usize = 8;

/// Bytes of a copy.
const COPY: usize = 16;

/// Shapes and strides of the inputs of a layer, and of its output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layouts {
    pub(super) q: Layout<4>,
    pub(super) k: Layout<4>,
    pub(super) v: Layout<4>,
    pub(super) decay: DecayLayout,
    /// By the delta rule.
    pub(super) beta: Option<Layout<3>>,
    pub(super) bonus: Option<Layout<2>>,
    pub(super) initial_state: Option<Layout<4>>,
    pub(super) initial_z: Option<Layout<3>>,
    pub(super) cu_seqlens: Option<Layout<1>>,
    /// Of the output, or of its gradient.
    pub(super) out: Layout<4>,
}

/// Decays, however they are arranged.
#[derive(Clone, Copy, Debug)]
pub(super) enum DecayLayout {
    None,
    PerHead(Layout<1>),
    PerStep(Layout<3>),
    PerChannel(Layout<4>),
}

/// A checked layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) op: &'static str,
    pub(super) dtype: Dtype,
    pub(super) batch: usize,
    pub(super) sequences: usize,
    pub(super) heads: usize,
    pub(super) heads_q: usize,
    pub(super) heads_k: usize,
    pub(super) heads_v: usize,
    pub(super) dk: usize,
    pub(super) dv: usize,
    /// Steps of each sequence, or of all together if the lengths vary.
    pub(super) steps: usize,
    /// Whether sequences lie one after the other in one row of the batch.
    pub(super) packed: bool,
    /// Whether a decay is a number of each channel, or a bonus asks for kernels that take such.
    pub(super) per_channel: bool,
    /// Whether queries read the state before their own step's, and a bonus of it.
    pub(super) bonus: bool,
    /// How beta lies, by the delta rule.
    pub(super) beta: Option<Rows>,
    pub(super) config: Config,
    /// For the kernels, without addresses and the length of segments.
    pub(super) layer: Layer,
    pub(super) initial: States,
    pub(super) initial_z: States,
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
        let [batch, steps, heads_q, dk] = layouts.q.shape;
        let [_, _, heads_v, dv] = layouts.v.shape;
        let ([_, _, heads, _], [_, _, heads_k, _]) = (layouts.out.shape, layouts.k.shape);
        let sequences = {
            let alone = "a batch of 1 with cu_seqlens";
            check.sequences(("q", batch), layouts.cu_seqlens.as_ref(), alone)?
        };
        let shared = |name, of| {
            // at most the heads, which are few
            let ratio = check.heads_per((name, of, "heads"), ("out", heads))?;
            Ok::<_, Error>(ratio as i64)
        };
        let shared = [
            shared("q", heads_q)?,
            shared("k", heads_k)?,
            shared("v", heads_v)?,
        ];
        let largest = WALK.iter().map(|row| row.size).max().unwrap_or(0);
        check.multiple("dk", dk, COLUMNS, largest)?;
        check.multiple("dv", dv, COLUMNS, MAX_HEADS)?;
        check.at_most("q", steps, MAX_STEPS, "steps")?;
        check.at_most("out", heads, MAX_HEADS, "heads")?;
        checked(check, config)?;
        if layouts.bonus.is_some() && !config.causal {
            return Err(check.argument("bonus", "none unless attention is causal", "a tensor"));
        }
        let map = config.feature_map as i32;
        let mut problem = Self {
            op,
            dtype,
            batch,
            sequences,
            heads,
            heads_q,
            heads_k,
            heads_v,
            dk,
            dv,
            steps,
            packed: layouts.cu_seqlens.is_some(),
            per_channel: matches!(layouts.decay, DecayLayout::PerChannel(_))
                || layouts.bonus.is_some(),
            bonus: layouts.bonus.is_some(),
            beta: None,
            config,
            layer: Layer {
                // checked above: all are below 2^31
                steps: steps as i32,
                heads: heads as i32,
                dk: dk as i32,
                dv: dv as i32,
                query_map: map,
                key_map: map,
                scale: config.scale.unwrap_or(1.0 / (dk as f32).sqrt()),
                ..Layer::default()
            },
            initial: States::default(),
            initial_z: States::default(),
        };
        problem.layer.q = problem.rows("q", layouts.q, heads_q, dk, shared[0])?;
        problem.layer.k = problem.rows("k", layouts.k, heads_k, dk, shared[1])?;
        problem.layer.v = problem.rows("v", layouts.v, heads_v, dv, shared[2])?;
        problem.layer.decays = problem.decays("decay", layouts.decay)?;
        problem.like_out("out", layouts.out)?;
        if let Some(beta) = layouts.beta {
            problem.beta = Some(problem.like_beta("beta", beta)?);
        }
        if let Some(bonus) = layouts.bonus {
            problem.layer.bonus_head_stride = problem.like_bonus("bonus", bonus)?;
        }
        if let Some(states) = layouts.initial_state {
            problem.initial = problem.states("initial_state", states)?;
        }
        if let Some(z) = layouts.initial_z {
            problem.initial_z = problem.zs("initial_z", z)?;
        }
        if let Some(cu_seqlens) = layouts.cu_seqlens {
            check.contiguous("cu_seqlens", &cu_seqlens)?;
        }
        Ok(problem)
    }

    /// Checks that name the operation.
    fn check(&self) -> Check {
        Check { op: self.op }
    }

    /// That outputs are normalised, for a tensor that exists only then.
    fn normalized(&self, tensor: &'static str) -> Result<()> {
        match self.config.normalize {
            Some(_) => Ok(()),
            None => {
                let expected = "none without normalize";
                Err(self.check().argument(tensor, expected, "a tensor"))
            }
        }
    }

    /// How a tensor of the shape of the output lies.
    pub(super) fn like_out(&self, name: &'static str, layout: Layout<4>) -> Result<Rows> {
        self.rows(name, layout, self.heads, self.dv, 1)
    }

    /// How a tensor of the shape of q lies.
    pub(super) fn like_q(&self, name: &'static str, layout: Layout<4>) -> Result<Rows> {
        self.rows(name, layout, self.heads_q, self.dk, self.layer.q.shared)
    }

    /// How a tensor of the shape of k lies.
    pub(super) fn like_k(&self, name: &'static str, layout: Layout<4>) -> Result<Rows> {
        self.rows(name, layout, self.heads_k, self.dk, self.layer.k.shared)
    }

    /// How a tensor of the shape of v lies.
    pub(super) fn like_v(&self, name: &'static str, layout: Layout<4>) -> Result<Rows> {
        self.rows(name, layout, self.heads_v, self.dv, self.layer.v.shared)
    }

    fn rows(
        &self,
        name: &'static str,
        layout: Layout<4>,
        heads: usize,
        channels: usize,
        shared: i64,
    ) -> Result<Rows> {
        let check = self.check();
        let shape = [self.batch, self.steps, heads, channels];
        check.sizes(name, shape, layout.shape)?;
        let [batch, step, head, _] = check.row_strides(name, &layout, COPY / self.dtype.bytes())?;
        Ok(Rows {
            at: 0,
            batch_stride: self.of_batch(batch),
            step_stride: step,
            head_stride: head,
            shared,
        })
    }

    /// All packed sequences lie in one row of the batch.
    fn of_batch(&self, stride: i64) -> i64 {
        if self.packed { 0 } else { stride }
    }

    /// How a tensor of a number for each head and step lies, `[batch, steps, heads]`: strides of the batch, the step
    /// and the head.
    pub(super) fn per_step(&self, name: &'static str, layout: Layout<3>) -> Result<[i64; 3]> {
        let check = self.check();
        check.sizes(name, [self.batch, self.steps, self.heads], layout.shape)?;
        let [batch, step, head] = check.strides(name, &layout)?;
        Ok([self.of_batch(batch), step, head])
    }

    /// How a tensor of the shape of beta lies.
    pub(super) fn like_beta(&self, name: &'static str, layout: Layout<3>) -> Result<Rows> {
        let [batch_stride, step_stride, head_stride] = self.per_step(name, layout)?;
        Ok(Rows {
            at: 0,
            batch_stride,
            step_stride,
            head_stride,
            shared: 1,
        })
    }

    /// How decays lie.
    pub(super) fn decays(&self, name: &'static str, layout: DecayLayout) -> Result<Decays> {
        let check = self.check();
        let [batch_stride, step_stride, head_stride, channel_stride] = match layout {
            DecayLayout::None => [0; 4],
            DecayLayout::PerHead(decay) => {
                check.sizes(name, [self.heads], decay.shape)?;
                let [head] = check.strides(name, &decay)?;
                [0, 0, head, 0]
            }
            DecayLayout::PerStep(decay) => {
                let [batch, step, head] = self.per_step(name, decay)?;
                [batch, step, head, 0]
            }
            DecayLayout::PerChannel(decay) => {
                let shape = [self.batch, self.steps, self.heads, self.dk];
                check.sizes(name, shape, decay.shape)?;
                let [batch, step, head, _] = check.row_strides(name, &decay, COPY / 4)?;
                [self.of_batch(batch), step, head, 1]
            }
        };
        Ok(Decays {
            at: 0,
            batch_stride,
            step_stride,
            head_stride,
            channel_stride,
        })
    }

    /// How a tensor of the shape of the bonus lies: the stride of the head.
    pub(super) fn like_bonus(&self, name: &'static str, layout: Layout<2>) -> Result<i64> {
        let check = self.check();
        check.sizes(name, [self.heads, self.dk], layout.shape)?;
        let [head, _] = check.row_strides(name, &layout, 1)?;
        Ok(head)
    }

    /// How states lie.
    pub(super) fn states(&self, name: &'static str, layout: Layout<4>) -> Result<States> {
        let check = self.check();
        let shape = [self.sequences, self.heads, self.dk, self.dv];
        check.sizes(name, shape, layout.shape)?;
        let [sequence, head, key, _] = check.row_strides(name, &layout, 1)?;
        Ok(States {
            at: 0,
            sequence_stride: sequence,
            head_stride: head,
            key_stride: key,
            value_stride: 1,
        })
    }

    /// How the normaliser's states lie: states of one channel of the values.
    pub(super) fn zs(&self, name: &'static str, layout: Layout<3>) -> Result<States> {
        let check = self.check();
        self.normalized(name)?;
        check.sizes(name, [self.sequences, self.heads, self.dk], layout.shape)?;
        let [sequence, head, key] = check.strides(name, &layout)?;
        Ok(States {
            at: 0,
            sequence_stride: sequence,
            head_stride: head,
            key_stride: key,
            value_stride: 0,
        })
    }

    /// Whether there is neither an output nor a state.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences == 0 || self.heads == 0
    }

    /// How the sums lie that outputs are divided by.
    pub(super) fn normalizer(&self, name: &'static str, layout: Layout<3>) -> Result<Rows> {
        self.normalized(name)?;
        let [batch_stride, step_stride, head_stride] = self.per_step(name, layout)?;
        Ok(Rows {
            at: 0,
            batch_stride,
            step_stride,
            head_stride,
            shared: 1,
        })
    }

    /// Numbers of a head's state.
    pub(super) fn head_size(&self) -> usize {
        self.dk * self.dv
    }

    /// What decays of the kernels depend on.
    pub(super) fn gate(&self) -> Gate {
        match self.per_channel {
            true => Gate::Channel,
            false => Gate::Step,
        }
    }

    /// Decays of a head in a step.
    pub(super) fn decays_of_head(&self) -> usize {
        match self.gate() {
            Gate::Step => 1,
            Gate::Channel => self.dk,
        }
    }

    /// Slots of a workspace for parts of so many steps: as `sequence_of` in
    /// kernels/linear_attention/place.cuh counts them.
    pub(super) fn slots(&self, part: usize) -> usize {
        let rows = if self.packed { 1 } else { self.sequences };
        let steps = rows.saturating_mul(self.steps);
        (steps / part).saturating_add(self.sequences)
    }

    /// Steps of the longest sequence; if lengths vary, which the host does not know, of an average one.
    pub(super) fn steps_of_sequence(&self) -> usize {
        match self.packed {
            true => self.steps.div_ceil(self.sequences.max(1)),
            false => self.steps,
        }
    }
}

/// Checks the options.
fn checked(check: Check, config: Config) -> Result<()> {
    if config.segment == Some(0) {
        return Err(check.argument("segment", "at least one step", "0"));
    }
    match config.normalize {
        Some(eps) if eps.is_nan() || eps < 0.0 => {
            let expected = "a number that is not negative";
            Err(check.argument("normalize", expected, eps.to_string()))
        }
        _ => Ok(()),
    }
}
