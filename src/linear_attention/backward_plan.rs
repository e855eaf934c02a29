//! [`BackwardPlan`]: which kernels compute gradients, on how many blocks, and in how much workspace. Pure.

use std::fmt;

use super::FeatureMap;
use super::delta::{Delta, DeltaPlan};
use super::last_channels::LastPlan;
use super::plan::{BLOCKS, Plan, SEGMENTED, SEGMENTED_DELTA_GRADIENTS, UNIT, segments};
use super::problem::Problem;
use crate::abi::Dtype;
use crate::abi::linear_attention::{CHUNK, Gate, GradientWalk, SPAN, Walk};
use crate::driver::Device;
use crate::error::{Error, Result};

/// Alignment in the workspace: a line of the L2 cache.
const ALIGNMENT: usize = 128;

/// Warps of a block of a walk, each of which stores its own states.
const WARPS: usize = 4;

/// What the gradient of the decays is, if it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DecayGradient {
    /// Sums over all steps.
    Head,
    /// Sums over channels.
    Step,
    /// A number a channel.
    Channel,
}

impl DecayGradient {
    /// Steps between two borders. At those of steps and channels, sums begin anew; what passes a chunk counts in those of a
    /// head as often as the chunk has steps.
    pub(super) const fn span(self) -> usize {
        match self {
            Self::Head => CHUNK,
            Self::Step | Self::Channel => SPAN,
        }
    }
}

/// The gradients that not every call asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) ddecay: Option<DecayGradient>,
    pub(super) dbonus: bool,
}

/// The rows of the tables that the device can run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub(super) gradients: &'a [GradientWalk],
    pub(super) walks: &'a [Walk],
}

/// How [`LinearAttention::backward`](super::LinearAttention::backward) runs.
///
/// ```text
/// linear_attention_gradient_walk_step_f16_n128, segments of 512 steps, 10506240 bytes of workspace
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardPlan {
    /// Of the walks for dq and dk, and of that for dv: indices in the rows that were given.
    pub(super) rows: [usize; 2],
    /// Name of the kernel of dq and dk.
    pub(super) kernel: String,
    /// Steps of a segment.
    pub(super) segment: usize,
    /// Whether states lie in the workspace: those that segments begin with, or if attention is not causal the last ones.
    passes: bool,
    /// Slices, segments, sequences: of dq and dk, and of dv.
    pub(super) grids: [[usize; 3]; 2],
    /// Whether dq, dk and dv are made of parts in f32: of heads that share them, before feature maps, or
    /// because gradients of decays are made of them as well.
    pub(super) parts: [bool; 3],
    /// Where everything lies in the workspace.
    pub(super) memory: Memory,
    /// What the delta rule has beside that.
    pub(super) delta: Option<DeltaPlan>,
    /// What decays of channels have beside that where attention is not causal.
    pub(super) last: Option<LastPlan>,
    /// How the walk for dv runs, where decays of channels have it run by a kernel of the forward pass.
    pub(super) values: Option<Plan>,
}

/// Where what the kernels tell each other lies, in bytes from the start of the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// `[slot, head, dk, dv]` in f32: of segments, states and their gradients.
    pub(super) states: [usize; 2],
    /// `[slot, head, dk]` in f32: the same of the normaliser.
    pub(super) zs: [usize; 2],
    /// `[slot, head]` in f32, or with decays of channels `[slot, head, dk]`: the decays of segments, for each of these.
    pub(super) decays: [usize; 2],
    /// `[batch, steps, heads, 2]` in f32: what the normaliser makes of the gradient of the output.
    pub(super) factors: usize,
    /// `[batch, steps, heads, dv]` in the tensors' type: the gradient of the output with its factor, where a kernel of the
    /// forward pass computes dv.
    pub(super) weighted: usize,
    /// `[batch, steps, heads, dk]` in f16: queries with half of that factor's exponent; f16 has no range for more.
    pub(super) balanced: usize,
    /// `[batch, steps, heads, dk or dv]` in f32: of dq, dk and dv.
    pub(super) parts: [usize; 3],
    /// `[batch, steps, heads]` in f32: each step's own products; not causal, those of keys with their gradients.
    pub(super) own: usize,
    /// The same of each step and the one before it, with a bonus.
    pub(super) near: usize,
    /// The states at the borders of spans, their units, and the normaliser's.
    pub(super) spans: usize,
    pub(super) span_units: usize,
    pub(super) z_spans: usize,
    /// `[span slot, head, dk]` in f32: their products with their gradients.
    pub(super) dots: usize,
    /// `[batch, steps, heads, 16]` in f32: by what dq's walk multiplies the keys of a chunk, for decays of heads; and the
    /// same of what keys look up.
    pub(super) pairs: [usize; 2],
    /// `[span slot, head]` in f32: sums of gradients of decays of heads.
    pub(super) head_sums: usize,
    /// `[span slot, head, dk]` in f32: sums of gradients of the bonus.
    pub(super) bonus_sums: usize,
    /// What the plan for dv has.
    pub(super) values: usize,
    /// All of it.
    pub(super) bytes: usize,
}

impl BackwardPlan {
    /// Plans `problem` with the first of `rows` that can run it.
    pub(super) fn new(
        problem: &Problem,
        asked: Asked,
        rows: Rows<'_>,
        delta: Option<&Delta>,
        device: &Device,
    ) -> Result<Self> {
        let ddecay = asked.ddecay;
        let of_keys = first_fit(problem, rows.gradients, "dv", problem.dv)?;
        let of_values = first_fit(problem, rows.gradients, "dk", problem.dk)?;
        let width = GradientWalk::WIDTH;
        // at most 2^30: heads are at most 2^15, as are slices
        let blocks =
            [problem.dk, problem.dv].map(|channels| problem.heads * channels.div_ceil(width));
        let spans = match problem.config.segment {
            Some(steps) => steps.min(problem.steps).div_ceil(SPAN),
            None => {
                let units = problem.steps_of_sequence().div_ceil(UNIT);
                // three walks
                let blocks = (2 * blocks[0] + blocks[1]).saturating_mul(problem.sequences);
                let cost = match delta {
                    Some(_) => SEGMENTED_DELTA_GRADIENTS,
                    None => SEGMENTED,
                };
                let parallel = BLOCKS * device.multiprocessors;
                units.div_ceil(segments(units, blocks, parallel, cost))
            }
        };
        let segment = spans.max(1) * SPAN;
        let count = problem.steps.div_ceil(segment).max(1);
        let mapped = problem.config.feature_map != FeatureMap::Identity;
        let strict = ddecay.is_some() || problem.bonus;
        let fades = problem.fades_keys();
        let parts = [
            mapped || strict || problem.heads_q != problem.heads,
            // the delta rule adds to it, and decays may multiply it
            mapped || strict || problem.heads_k != problem.heads || delta.is_some() || fades,
            problem.heads_v != problem.heads,
        ];
        let slots = match count > 1 || !problem.config.causal {
            true => problem.slots(segment),
            false => 0,
        };
        let row = &rows.gradients[of_keys];
        let mut memory = Memory::new(problem, asked, parts, slots, row);
        let delta = delta.map(|delta| DeltaPlan::new(problem, delta, slots, &mut memory.bytes));
        let last = fades.then(|| LastPlan::new(problem, &mut memory.bytes));
        let values = match gate_of_walks(problem) {
            // by the delta rule it is found with what steps wrote
            _ if problem.beta.is_some() => None,
            Gate::Step => None,
            Gate::Channel => Some(Plan::new(problem, rows.walks, device)?),
        };
        if let Some(plan) = &values {
            memory.values = memory.bytes;
            memory.bytes = memory.bytes.saturating_add(plan.workspace_bytes());
        }
        Ok(Self {
            passes: slots > 0,
            rows: [of_keys, of_values],
            kernel: row.entry().name,
            segment,
            grids: blocks.map(|blocks| [blocks, count, problem.sequences]),
            parts,
            memory,
            delta: delta.transpose()?,
            last,
            values,
        })
    }

    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Steps of a segment; those of the longest sequence, or more, if none is cut.
    pub fn segment(&self) -> usize {
        self.segment
    }

    /// Whether sequences are cut.
    pub(super) fn is_cut(&self) -> bool {
        self.grids[0][1] > 1
    }

    /// Whether a launch finds the states that another one begins with.
    pub(super) fn passes_states(&self) -> bool {
        self.passes
    }
}

impl Memory {
    fn new(
        problem: &Problem,
        Asked { ddecay, dbonus }: Asked,
        parts: [bool; 3],
        slots: usize,
        row: &GradientWalk,
    ) -> Self {
        let Problem { dk, dv, heads, .. } = *problem;
        let product = |sizes: &[usize]| sizes.iter().fold(1, |n: usize, &x| n.saturating_mul(x));
        let mut memory = Self::default();
        let mut take = |bytes: usize| {
            let at = memory.bytes;
            let lines = bytes.div_ceil(ALIGNMENT);
            memory.bytes = at.saturating_add(lines.saturating_mul(ALIGNMENT));
            at
        };
        let normalizes = problem.config.normalize.is_some();
        let states = [(); 2].map(|()| take(product(&[4, slots, heads, problem.head_size()])));
        let zs = [(); 2].map(|()| match normalizes {
            true => take(product(&[4, slots, heads, dk])),
            false => 0,
        });
        let of_head = problem.decays_of_head();
        let decays = [(); 2].map(|()| take(product(&[4, slots, heads, of_head])));
        let mut part = |exists: bool, channels: usize| match exists {
            true => take(product(&[4, problem.batch, problem.steps, heads, channels])),
            false => 0,
        };
        let parts = [part(parts[0], dk), part(parts[1], dk), part(parts[2], dv)];
        let of_steps = |numbers| product(&[4, problem.batch, problem.steps, heads, numbers]);
        let factors = if normalizes { take(of_steps(2)) } else { 0 };
        let (mut weighted, mut balanced) = (0, 0);
        if normalizes && gate_of_walks(problem) == Gate::Channel {
            let in_type = |channels| of_steps(channels) / 4 * problem.dtype.bytes();
            weighted = take(in_type(dv));
            if problem.dtype == Dtype::F16 {
                balanced = take(in_type(dk));
            }
        }
        let (mut own, mut near, mut spans, mut span_units) = (0, 0, 0, 0);
        let (mut z_spans, mut dots, mut head_sums, mut bonus_sums) = (0, 0, 0, 0);
        let mut pairs = [0; 2];
        if ddecay.is_some() || problem.bonus {
            own = take(of_steps(1));
        }
        if problem.bonus {
            near = take(of_steps(1));
        }
        if dbonus {
            bonus_sums = take(product(&[4, problem.span_slots(SPAN), heads, dk]));
        }
        if let Some(form) = ddecay.filter(|_| problem.config.causal) {
            let borders = product(&[problem.span_slots(form.span()), heads]);
            let warps = product(&[borders, dk.div_ceil(GradientWalk::WIDTH), WARPS]);
            spans = take(product(&[warps, 16, row.size, problem.dtype.bytes()]));
            span_units = take(product(&[4, warps]));
            if normalizes {
                z_spans = take(product(&[4, borders, dk]));
            }
            dots = take(product(&[4, borders, dk]));
            if form == DecayGradient::Head {
                head_sums = take(product(&[4, borders]));
                pairs[0] = take(of_steps(CHUNK));
                if problem.beta.is_some() {
                    pairs[1] = take(of_steps(CHUNK));
                }
            }
        }
        Self {
            states,
            zs,
            decays,
            factors,
            weighted,
            balanced,
            parts,
            own,
            near,
            spans,
            span_units,
            z_spans,
            dots,
            pairs,
            head_sums,
            bonus_sums,
            ..memory
        }
    }
}

impl Problem {
    /// Borders of spans of so many steps, of all sequences: as `span_slot` in kernels/linear_attention/gradient_place.cuh counts
    /// them.
    fn span_slots(&self, span: usize) -> usize {
        self.slots(span).saturating_add(self.sequences)
    }
}

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, segments of {} steps, {} bytes of workspace",
            self.kernel, self.segment, self.memory.bytes
        )
    }
}

/// What decays of the walks depend on: not causal, those of channels have acted on keys before.
fn gate_of_walks(problem: &Problem) -> Gate {
    match problem.fades_keys() {
        true => Gate::Step,
        false => problem.gate(),
    }
}

/// The first of the rows whose tiles have as many columns.
fn first_fit(
    problem: &Problem,
    rows: &[GradientWalk],
    name: &str,
    columns: usize,
) -> Result<usize> {
    let gate = gate_of_walks(problem);
    let of_kind = |row: &GradientWalk| row.dtype == problem.dtype && row.gate == gate;
    let of_dtype = || rows.iter().filter(|row| of_kind(row));
    let fits = |row: &GradientWalk| of_kind(row) && row.size >= columns;
    rows.iter()
        .position(fits)
        .ok_or_else(|| Error::Unsupported {
            op: problem.op,
            request: format!("{} {name} {columns}", problem.dtype.name()),
            available: match of_dtype().map(|row| row.size).max() {
                Some(largest) => format!("{name} up to {largest} on this GPU"),
                None => "no kernel of this type that fits this GPU".into(),
            },
        })
}
