//! The kernels that a backward pass queues, in order, and their roles.

use super::backward_ends::{Ends, Normalized};
use super::backward_plan::{BackwardPlan, DecayGradient};
use super::delta::DeltaCall;
use super::problem::Problem;
use super::{FeatureMap, LinearAttention};
use crate::abi::linear_attention::{
    self as abi, CARRY_THREADS, CHUNK, CarryParams, DTYPES, Decays, GradientWalkParams, Mode,
    RowProductsParams, Rows, SPAN, States, SumHeadsParams,
};
use crate::error::Result;
use crate::launch::Launch;

/// The tensor that has `numbers` in f32 of each step and head at `at` in a workspace.
pub(super) fn of_steps(problem: &Problem, at: u64, numbers: usize) -> Rows {
    // their product is the size of a workspace
    let step = problem.heads.saturating_mul(numbers);
    Rows {
        at,
        batch_stride: match problem.packed {
            true => 0,
            false => problem.steps.saturating_mul(step) as i64,
        },
        step_stride: step as i64,
        head_stride: numbers as i64,
        shared: 1,
    }
}

/// The states as a walk sees them whose values are the layer's keys.
pub(super) fn turned(states: States) -> States {
    States {
        key_stride: states.value_stride,
        value_stride: states.key_stride,
        ..states
    }
}

/// The rows from so many steps later on; `bytes` are those of an element.
fn later(rows: Rows, steps: i64, bytes: usize) -> Rows {
    let offset = steps * rows.step_stride * bytes as i64; // within a tensor, or a row outside it
    Rows {
        at: rows.at.wrapping_add_signed(offset),
        ..rows
    }
}

/// The decays from so many steps later on, if there are any.
fn decays_later(decays: Decays, steps: i64) -> Decays {
    match decays.at {
        0 => decays,
        at => Decays {
            at: at.wrapping_add_signed(4 * steps * decays.step_stride), // as for rows
            ..decays
        },
    }
}

/// A call whose tensors are known.
pub(super) struct Call<'a> {
    pub(super) kernels: &'a LinearAttention,
    pub(super) launch: &'a Launch<'a>,
    pub(super) problem: &'a Problem,
    pub(super) plan: &'a BackwardPlan,
    pub(super) layer: abi::Layer,
    /// With a normaliser.
    pub(super) normalized: Option<Normalized>,
    pub(super) dout: Rows,
    pub(super) ends: Ends,
    /// dq, dk and dv.
    pub(super) gradients: [Rows; 3],
    /// By the delta rule.
    pub(super) delta: Option<DeltaCall>,
    pub(super) ddecay: Option<(DecayGradient, Decays)>,
    /// Address of the bonus's gradient, and the stride of its heads.
    pub(super) dbonus: Option<(u64, i64)>,
    /// Address of the workspace.
    pub(super) start: u64,
}

impl Call<'_> {
    pub(super) fn at(&self, offset: usize) -> u64 {
        self.start + offset as u64
    }

    /// Queues all kernels.
    ///
    /// # Safety
    /// The tensors must be as the call says, and the workspace as its plan does.
    pub(super) unsafe fn queue(&self) -> Result<()> {
        if let Some(normalized) = self.normalized {
            // SAFETY: this function's own condition, here and below.
            unsafe { self.normalizer_gradient(&normalized) }?;
        }
        if self.problem.bonus {
            // SAFETY: as above.
            unsafe { self.own_products() }?;
        }
        if let Some(delta) = self.delta.filter(|_| !self.problem.is_empty()) {
            // SAFETY: as above.
            unsafe { self.walk_by_delta(&delta) }?;
        } else if !self.problem.is_empty() {
            let mut walks = self.walks(&self.ends);
            if let Some(last) = &self.plan.last {
                // SAFETY: as above.
                unsafe { self.fade_keys(last) }?;
                walks = self.faded(last, walks);
            }
            let [dq, dk, dv] = walks;
            if !self.problem.config.causal {
                // SAFETY: as above.
                unsafe { self.find_last(&dq, &dk) }?;
            } else if self.plan.is_cut() {
                let Ends {
                    initial,
                    initial_z,
                    dlast,
                    dlast_z,
                    ..
                } = self.ends;
                // SAFETY: as above.
                unsafe { self.pass_segments(0, &dq, initial, initial_z) }?;
                // SAFETY: as above.
                unsafe { self.pass_segments(1, &dk, dlast, dlast_z) }?;
            }
            // those of keys meet states that those of queries store
            for (walk, of_values) in [(dq, 0), (dk, 0), (dv, 1)] {
                if let (1, Some(plan)) = (of_values, &self.plan.values) {
                    // SAFETY: as above.
                    unsafe { self.gradient_of_values(plan, &walk, self.ends.dlast) }?;
                    continue;
                }
                let kernel = &self.kernels.gradients.walks[self.plan.rows[of_values]];
                let walk = self.reading(walk);
                // SAFETY: as above.
                unsafe { self.launch.run(kernel, self.plan.grids[of_values], &walk) }?;
            }
            if let Some(last) = &self.plan.last {
                // SAFETY: as above.
                unsafe { self.fade_gradients(last) }?;
            }
        }
        if self.problem.steps > 0 && self.problem.sequences > 0 {
            for which in 0..3 {
                // SAFETY: as above; it reads what the kernels before it wrote.
                unsafe { self.sum_heads(which) }?;
            }
        }
        // SAFETY: as above.
        unsafe { self.bonus_gradient() }?;
        let Some((form, decays)) = self.ddecay else {
            return Ok(());
        };
        // SAFETY: as above.
        unsafe {
            match (&self.plan.last, self.problem.config.causal, form) {
                (Some(last), ..) => self.last_channel_decays(last, decays),
                (None, false, _) => self.last_decays(form, decays),
                (None, true, DecayGradient::Head) => self.head_decay(decays),
                (None, true, _) => self.decay_gradient(form, decays),
            }
        }
    }

    /// Whether what passes no decay is left out of the walks, and added afterwards.
    pub(super) fn is_strict(&self) -> bool {
        (self.ddecay.is_some() && self.problem.config.causal) || self.problem.bonus
    }

    /// What a normaliser makes of the gradients of outputs; none without one.
    pub(super) fn factors(&self) -> Rows {
        match self.normalized {
            Some(_) => of_steps(self.problem, self.at(self.plan.memory.factors), 2),
            None => Rows::default(),
        }
    }

    /// Whether gradients of decays are asked for that heads have for all steps.
    fn is_of_heads(&self) -> bool {
        matches!(self.ddecay, Some((DecayGradient::Head, _)))
    }

    /// What multiplies queries, but by the factors of a normaliser, which have the scale.
    pub(super) fn scale(&self) -> f32 {
        match self.normalized {
            Some(_) => 1.0,
            None => self.layer.scale,
        }
    }

    /// The walks that compute dq, dk and dv.
    pub(super) fn walks(&self, ends: &Ends) -> [GradientWalkParams; 3] {
        let (layer, memory) = (self.layer, &self.plan.memory);
        let map = self.problem.config.feature_map as i32;
        let identity = FeatureMap::Identity as i32;
        let exists = |exists: bool, offset: usize| if exists { self.at(offset) } else { 0 };
        let bordered = self.ddecay.is_some() && self.problem.config.causal;
        // with a bonus, keys and what belongs to them are those of the step before
        let bonus = self.problem.bonus;
        let element = self.problem.dtype.bytes();
        let of_part = |which: usize| match self.plan.parts[which] {
            true => 4,
            false => element,
        };
        let earlier = |rows: Rows, bytes: usize| match bonus {
            true => later(rows, -1, bytes),
            false => rows,
        };
        let of_heads = bordered && self.is_of_heads();
        let normalizes = self.normalized.is_some();
        let passes = self.plan.passes_states();
        let segments = |which: usize| {
            let head = self.problem.head_size() as i64;
            States {
                at: exists(passes, memory.states[which]),
                sequence_stride: head * self.problem.heads as i64,
                head_stride: head,
                key_stride: self.problem.dv as i64,
                value_stride: 1,
            }
        };
        let out = |which: usize, channels: usize| match self.plan.parts[which] {
            true => of_steps(self.problem, self.at(memory.parts[which]), channels),
            false => self.gradients[which],
        };
        let of_keys = abi::Layer {
            dk: layer.dv,
            dv: layer.dk,
            query_map: identity,
            key_map: identity,
            ..layer
        };
        let of_values = |which: usize| GradientWalkParams {
            span: match self.ddecay {
                Some((form, _)) => form.span(),
                None => SPAN,
            } as i32,
            mode: Mode::Whole as i32,
            parts: self.plan.parts[which].into(),
            weight: 1.0,
            factors: self.factors(),
            factored_keys: 1,
            factor_scale: layer.scale,
            ..GradientWalkParams::default()
        };
        let scale = self.scale();
        let z_segments = |which: usize| exists(passes && normalizes, memory.zs[which]);
        let dq = GradientWalkParams {
            layer: abi::Layer {
                q: self.dout,
                k: earlier(layer.v, element),
                v: earlier(layer.k, element),
                decays: decays_later(layer.decays, -i64::from(bonus)),
                scale,
                ..of_keys
            },
            out: out(0, self.problem.dk),
            own: match (bonus, self.is_strict()) {
                (true, _) => of_steps(self.problem, self.at(memory.near), 1),
                (false, true) => of_steps(self.problem, self.at(memory.own), 1),
                (false, false) => Rows::default(),
            },
            pairs: match of_heads {
                true => of_steps(self.problem, self.at(memory.pairs[0]), CHUNK),
                false => Rows::default(),
            },
            initial: turned(ends.initial),
            initial_z: turned(ends.initial_z),
            segments: turned(segments(0)),
            z_segments: z_segments(0),
            decays: exists(passes, memory.decays[0]),
            spans: exists(bordered, memory.spans),
            span_units: exists(bordered, memory.span_units),
            z_spans: exists(bordered && normalizes, memory.z_spans),
            shift: bonus.into(),
            value_map: map,
            normalize: normalizes.into(),
            factored_keys: 0,
            ..of_values(0)
        };
        let dk = GradientWalkParams {
            layer: abi::Layer {
                q: earlier(layer.v, element),
                k: self.dout,
                v: layer.q,
                decays: decays_later(layer.decays, i64::from(!bonus)),
                reversed: 1,
                scale: 1.0,
                ..of_keys
            },
            out: earlier(out(1, self.problem.dk), of_part(1)),
            pairs: Rows::default(),
            initial: turned(ends.dlast),
            last: turned(ends.dinitial),
            initial_z: turned(ends.dlast_z),
            last_z: turned(ends.dinitial_z),
            segments: turned(segments(1)),
            z_segments: z_segments(1),
            decays: exists(passes, memory.decays[1]),
            dots: exists(bordered, memory.dots),
            across: of_heads.into(),
            factored_keys: 1,
            parts: self.plan.parts[1].into(),
            weight: scale,
            ..dq
        };
        let dv = GradientWalkParams {
            layer: abi::Layer {
                q: layer.k,
                k: layer.q,
                v: self.dout,
                // a kernel of the forward pass does that by itself
                decays: match self.plan.values {
                    Some(_) => layer.decays,
                    None => decays_later(layer.decays, 1),
                },
                reversed: 1,
                scale: 1.0,
                ..layer
            },
            out: out(2, self.problem.dv),
            initial: ends.dlast,
            segments: segments(1),
            value_map: identity,
            weight: scale,
            ..of_values(2)
        };
        [dq, dk, dv]
    }

    /// Queues what finds the states that the segments of the walk for dq (0) or dk (1) begin with, or if attention is not
    /// causal the last ones; `initial` and `initial_z` are those that the walk begins with.
    ///
    /// # Safety
    /// As [`Call::queue`].
    pub(super) unsafe fn pass_segments(
        &self,
        which: usize,
        walk: &GradientWalkParams,
        initial: States,
        initial_z: States,
    ) -> Result<()> {
        let causal = self.problem.config.causal;
        let decays_of_head = match (&self.plan.last, which) {
            (Some(_), 1) => 1, // no decay lies between the last state and a query
            _ => self.problem.decays_of_head(),
        };
        let kernel = &self.kernels.gradients.walks[self.plan.rows[0]];
        let states = GradientWalkParams {
            mode: if causal { Mode::States } else { Mode::All } as i32,
            ..*walk
        };
        // SAFETY: this function's own condition.
        unsafe { self.launch.run(kernel, self.plan.grids[0], &states) }?;
        let carry = CarryParams {
            initial,
            last: States::default(),
            cu_seqlens: self.layer.cu_seqlens,
            segments: walk.segments.at,
            decays: self.at(self.plan.memory.decays[which]),
            head_size: self.problem.head_size() as i64,
            steps: self.layer.steps,
            heads: self.layer.heads,
            dv: self.layer.dv,
            segment: self.layer.segment,
            decays_of_head: decays_of_head as i32, // at most dk
            all: (!causal).into(),
        };
        let grid = |size: usize| {
            let parts = size.div_ceil(CARRY_THREADS);
            [parts, self.problem.heads, self.problem.sequences]
        };
        let kernel = &self.kernels.carry;
        // SAFETY: as above; it reads what the kernel before it wrote.
        unsafe {
            self.launch
                .run(kernel, grid(self.problem.head_size()), &carry)
        }?;
        if walk.z_segments == 0 {
            return Ok(());
        }
        let carry = CarryParams {
            initial: initial_z,
            segments: walk.z_segments,
            head_size: self.problem.dk as i64,
            dv: 1,
            ..carry
        };
        // SAFETY: as above.
        unsafe { self.launch.run(kernel, grid(self.problem.dk), &carry) }
    }

    /// Queues what multiplies two rows of each step.
    ///
    /// # Safety
    /// As [`Call::queue`].
    pub(super) unsafe fn row_products(&self, params: &RowProductsParams) -> Result<()> {
        if self.problem.steps == 0 || self.problem.is_empty() {
            return Ok(());
        }
        let kernel = &self.kernels.gradients.row_products[self.dtype()];
        let grid = self.grid_of_spans(SPAN, self.problem.heads);
        // SAFETY: this function's own condition.
        unsafe { self.launch.run(kernel, grid, params) }
    }

    /// Queues what makes dq, dk or dv of their parts, if they have any.
    ///
    /// # Safety
    /// As [`Call::queue`], after the walks.
    unsafe fn sum_heads(&self, which: usize) -> Result<()> {
        let Problem { heads, dk, dv, .. } = *self.problem;
        let layer = self.layer;
        let (x, other, shared, channels) = match which {
            0 => (layer.q, layer.k, self.problem.heads_q, dk),
            1 => (layer.k, layer.q, self.problem.heads_k, dk),
            _ => (Rows::default(), Rows::default(), self.problem.heads_v, dv),
        };
        if !self.plan.parts[which] || shared == 0 {
            return Ok(());
        }
        let scores = |exists: bool, at: usize| match exists && which < 2 {
            true => of_steps(self.problem, self.at(at), 1),
            false => Rows::default(),
        };
        let alone = |rows: Rows| Rows { shared: 1, ..rows };
        let mapped = self.problem.config.feature_map != FeatureMap::Identity;
        let params = SumHeadsParams {
            parts: of_steps(
                self.problem,
                self.at(self.plan.memory.parts[which]),
                channels,
            ),
            more: match which {
                1 => self.lookups(),
                _ => Rows::default(),
            },
            own: scores(self.is_strict(), self.plan.memory.own),
            near: scores(self.problem.bonus, self.plan.memory.near),
            other,
            x: if mapped { alone(x) } else { Rows::default() },
            out: alone(self.gradients[which]),
            cu_seqlens: layer.cu_seqlens,
            steps: layer.steps,
            heads: heads.checked_div(shared).unwrap_or(0) as i32, // at most all heads, which fit
            shared: shared as i32,
            channels: channels as i32, // as checked with those of a key and a value
            map: self.problem.config.feature_map as i32,
            // rows of an odd number of elements, or an odd address
            single: (layer.ragged as usize == self.problem.dtype.bytes()).into(),
            // of a query the key before it, and of a key the query after it
            neighbour: if which == 0 { -1 } else { 1 },
            scale: self.scale(),
            bonus: layer.bonus,
            bonus_stride: layer.bonus_head_stride,
        };
        let kernel = &self.kernels.gradients.sum_heads[self.dtype()];
        // SAFETY: this function's own condition.
        unsafe {
            self.launch
                .run(kernel, self.grid_of_spans(SPAN, shared), &params)
        }
    }

    /// Blocks that take a span of so many steps of a head each.
    pub(super) fn grid_of_spans(&self, span: usize, heads: usize) -> [usize; 3] {
        let spans = self.problem.steps.div_ceil(span);
        [spans, heads, self.problem.sequences]
    }

    /// The index of the dtype in [`DTYPES`].
    pub(super) fn dtype(&self) -> usize {
        let dtype = |&dtype: &crate::abi::Dtype| dtype == self.problem.dtype;
        DTYPES.iter().position(dtype).unwrap_or(0)
    }
}
