//! The gradients with decays of channels where attention is not causal: keys are multiplied by the decays behind them
//! first, walks over these keys have no decays, and what they find is multiplied likewise.

use super::FeatureMap;
use super::backward_walks::{Call, of_steps};
use super::problem::Problem;
use crate::abi::linear_attention::{
    Decays, GradientWalkParams, LAST_STATES_CHANNELS, LastChannelsParams, LastPass,
    LastStatesParams, Layer, SPAN, States,
};
use crate::error::Result;

/// Alignment in the workspace: a line of the L2 cache.
const ALIGNMENT: usize = 128;

/// Where what these kernels tell each other lies, in bytes from the start of the workspace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LastPlan {
    /// `[batch, steps, heads, dk]` in the tensors' type: keys as the last state has them.
    faded: usize,
    /// `[span slot, head, dk]` in f32: exponents of decays behind each span.
    exponents: usize,
    /// `[span slot, head, dk]` in f32: products of keys and their gradients before each span.
    sums: usize,
    /// `[sequence, head, dk]` in f32: those of initial states and their gradients.
    products: usize,
}

impl LastPlan {
    /// Takes its part of a workspace, of which `bytes` are taken so far.
    pub(super) fn new(problem: &Problem, bytes: &mut usize) -> Self {
        let numbers = problem.heads.saturating_mul(problem.dk);
        let mut take = |of: usize, size: usize| {
            let at = *bytes;
            let taken = of.saturating_mul(numbers).saturating_mul(size);
            let lines = taken.div_ceil(ALIGNMENT);
            *bytes = at.saturating_add(lines.saturating_mul(ALIGNMENT));
            at
        };
        let steps = problem.batch.saturating_mul(problem.steps);
        let spans = problem.slots(SPAN);
        Self {
            faded: take(steps, problem.dtype.bytes()),
            exponents: take(spans, 4),
            sums: take(spans, 4),
            products: take(problem.sequences, 4),
        }
    }
}

impl Problem {
    /// Whether keys are multiplied by decays of channels before the walks of gradients.
    pub(super) fn fades_keys(&self) -> bool {
        self.per_channel && !self.config.causal
    }
}

impl Call<'_> {
    /// The walks as they are over these keys.
    pub(super) fn faded(
        &self,
        plan: &LastPlan,
        walks: [GradientWalkParams; 3],
    ) -> [GradientWalkParams; 3] {
        let keys = of_steps(self.problem, self.at(plan.faded), self.problem.dk);
        let identity = FeatureMap::Identity as i32;
        let [dq, dk, dv] = walks.map(|walk| GradientWalkParams {
            layer: Layer {
                decays: Decays::default(),
                ..walk.layer
            },
            // where the walks leave decays of segments, of which there are none
            decays: self.at(self.plan.memory.decays[1]),
            ..walk
        });
        let dq = GradientWalkParams {
            layer: Layer {
                v: keys,
                ..dq.layer
            },
            value_map: identity,
            ..dq
        };
        let dk = GradientWalkParams {
            last: States::default(),
            last_z: States::default(),
            ..dk
        };
        let dv = GradientWalkParams {
            layer: Layer {
                q: keys,
                query_map: identity,
                ..dv.layer
            },
            ..dv
        };
        [dq, dk, dv]
    }

    /// Queues what multiplies keys by the decays behind them.
    ///
    /// # Safety
    /// As [`Call::queue`].
    pub(super) unsafe fn fade_keys(&self, plan: &LastPlan) -> Result<()> {
        for pass in [LastPass::Exponents, LastPass::Behind, LastPass::Keys] {
            // SAFETY: this function's own condition.
            unsafe { self.last_pass(plan, Decays::default(), pass) }?;
        }
        Ok(())
    }

    /// Queues what completes the gradients of keys and of initial states.
    ///
    /// # Safety
    /// As [`Call::queue`], after the walks.
    pub(super) unsafe fn fade_gradients(&self, plan: &LastPlan) -> Result<()> {
        // SAFETY: this function's own condition, here and below.
        unsafe { self.last_pass(plan, Decays::default(), LastPass::Gradients) }?;
        let (problem, layer, memory) = (self.problem, self.layer, &self.plan.memory);
        let exists = |exists: bool, at: usize| if exists { self.at(at) } else { 0 };
        let params = LastStatesParams {
            initial: self.ends.initial,
            initial_z: self.ends.initial_z,
            out: self.ends.dinitial,
            out_z: self.ends.dinitial_z,
            gradients: self.at(memory.states[1]),
            z_gradients: exists(self.normalized.is_some(), memory.zs[1]),
            passed: self.at(memory.decays[0]),
            products: exists(self.ddecay.is_some(), plan.products),
            cu_seqlens: layer.cu_seqlens,
            steps: layer.steps,
            heads: layer.heads,
            channels: layer.dk,
            values: layer.dv,
            segment: layer.segment,
            padding: 0,
        };
        let kernel = &self.kernels.gradients.last_states;
        let parts = problem.dk.div_ceil(LAST_STATES_CHANNELS);
        let grid = [parts, problem.heads, problem.sequences];
        // SAFETY: as above; it reads what the kernels before it wrote.
        unsafe { self.launch.run(kernel, grid, &params) }
    }

    /// Queues what computes the gradients of decays.
    ///
    /// # Safety
    /// As [`Call::queue`], after the gradients of keys and of initial states.
    pub(super) unsafe fn last_channel_decays(&self, plan: &LastPlan, out: Decays) -> Result<()> {
        for pass in [LastPass::Before, LastPass::Decays] {
            // SAFETY: this function's own condition.
            unsafe { self.last_pass(plan, out, pass) }?;
        }
        Ok(())
    }

    /// Queues a pass over keys and their gradients; `out` are the gradients of decays.
    ///
    /// # Safety
    /// As [`Call::queue`], after the passes before it.
    unsafe fn last_pass(&self, plan: &LastPlan, out: Decays, pass: LastPass) -> Result<()> {
        let (problem, layer, memory) = (self.problem, self.layer, &self.plan.memory);
        let over_spans = matches!(pass, LastPass::Behind | LastPass::Before);
        if problem.is_empty() || (problem.steps == 0 && !over_spans) {
            return Ok(());
        }
        let params = LastChannelsParams {
            k: layer.k,
            faded: of_steps(problem, self.at(plan.faded), problem.dk),
            dk: of_steps(problem, self.at(memory.parts[1]), problem.dk),
            decays: layer.decays,
            out,
            exponents: self.at(plan.exponents),
            sums: match self.ddecay {
                Some(_) => self.at(plan.sums),
                None => 0,
            },
            passed: self.at(memory.decays[0]),
            products: self.at(plan.products),
            cu_seqlens: layer.cu_seqlens,
            steps: layer.steps,
            heads: layer.heads,
            channels: layer.dk,
            segment: layer.segment,
            map: layer.key_map,
            pass: pass as i32,
        };
        let kernel = &self.kernels.gradients.last_channels[self.dtype()];
        let grid = match over_spans {
            true => [1, problem.heads, problem.sequences],
            false => self.grid_of_spans(SPAN, problem.heads),
        };
        // SAFETY: this function's own condition; it reads what the kernels before it wrote.
        unsafe { self.launch.run(kernel, grid, &params) }
    }
}
