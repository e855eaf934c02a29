//! The kernels that make the gradients of decays of those of queries and keys, where attention is causal.

use super::backward_plan::DecayGradient;
use super::backward_walks::{Call, of_steps};
use crate::abi::linear_attention::{
    CHUNK, DecayGradientParams, Decays, Gate, HeadDecayParams, Rows, SPAN, SumSpansParams,
};
use crate::error::Result;

impl Call<'_> {
    /// Queues what computes the gradients of decays that are a number a step or a channel.
    ///
    /// # Safety
    /// As [`Call::queue`], after the walks.
    pub(super) unsafe fn decay_gradient(&self, form: DecayGradient, out: Decays) -> Result<()> {
        let (layer, memory) = (self.layer, &self.plan.memory);
        if self.problem.steps == 0 || self.problem.is_empty() {
            return Ok(());
        }
        let shift = i32::from(self.problem.bonus);
        let params = DecayGradientParams {
            q: layer.q,
            k: layer.k,
            dq: self.part_of_keys(0),
            dk: self.part_of_keys(1),
            lookups: self.lookups(),
            decays: layer.decays,
            out,
            dots: self.at(memory.dots),
            cu_seqlens: layer.cu_seqlens,
            steps: layer.steps,
            heads: layer.heads,
            channels: layer.dk,
            query_map: layer.query_map,
            key_map: layer.key_map,
            per_channel: (form == DecayGradient::Channel).into(),
            span: SPAN as i32,
            shift,
        };
        let kernel = &self.kernels.gradients.decay_gradient[self.dtype()];
        let spans = (self.problem.steps + shift as usize).div_ceil(SPAN);
        let grid = [spans, self.problem.heads, self.problem.sequences];
        // SAFETY: this function's own condition.
        unsafe { self.launch.run(kernel, grid, &params) }
    }

    /// Queues what computes the gradients of decays that a head has for all steps.
    ///
    /// # Safety
    /// As [`Call::queue`], after the walks.
    pub(super) unsafe fn head_decay(&self, out: Decays) -> Result<()> {
        let (layer, memory) = (self.layer, &self.plan.memory);
        let heads = self.problem.heads;
        let shift = i32::from(self.problem.bonus);
        if self.problem.steps > 0 && !self.problem.is_empty() {
            let params = HeadDecayParams {
                q: layer.q,
                k: layer.k,
                dq: self.part_of_keys(0),
                dk: self.part_of_keys(1),
                lookups: self.lookups(),
                pairs: of_steps(self.problem, self.at(memory.pairs[0]), CHUNK),
                lookup_pairs: self.lookup_pairs(),
                decays: layer.decays,
                out: self.at(memory.head_sums),
                dots: self.at(memory.dots),
                cu_seqlens: layer.cu_seqlens,
                steps: layer.steps,
                heads: layer.heads,
                channels: layer.dk,
                query_map: layer.query_map,
                key_map: layer.key_map,
                shift,
                faded: (self.problem.gate() == Gate::Step).into(),
            };
            let kernel = &self.kernels.gradients.head_decay[self.dtype()];
            let spans = (self.problem.steps + shift as usize).div_ceil(SPAN);
            let grid = [spans, heads, self.problem.sequences];
            // SAFETY: this function's own condition.
            unsafe { self.launch.run(kernel, grid, &params) }?;
        }
        if heads == 0 {
            return Ok(());
        }
        let params = SumSpansParams {
            parts: self.at(memory.head_sums),
            out: out.at,
            cu_seqlens: layer.cu_seqlens,
            out_stride: out.head_stride,
            steps: layer.steps,
            sequences: self.problem.sequences as i32, // along z of the grid, if there is one
            numbers: layer.heads,
            columns: 1,
            span: CHUNK as i32,
            shift,
            scale: 1.0,
        };
        // SAFETY: as above; where there is no step it reads no sum.
        unsafe {
            self.launch
                .run(&self.kernels.gradients.sum_spans, [heads, 1, 1], &params)
        }
    }

    /// The parts of dq (0) or dk (1), in f32.
    fn part_of_keys(&self, which: usize) -> Rows {
        let at = self.at(self.plan.memory.parts[which]);
        of_steps(self.problem, at, self.problem.dk)
    }
}
