//! What gradients have beside the walks where decays are numbers of channels: dv by a kernel of the forward pass, and
//! the gradient of the bonus.

use super::FeatureMap;
use super::backward_walks::{Call, of_steps};
use super::plan::Plan;
use crate::abi::Dtype;
use crate::abi::linear_attention::{
    self as abi, BonusGradientParams, GradientWalkParams, Mode, RowProductsParams, Rows, SPAN,
    States, SumSpansParams, WalkParams,
};
use crate::error::Result;

impl Call<'_> {
    /// The rows that a walk of the forward pass for dv has for values and, if they are not those of the queries, for
    /// keys: it takes no factors of a normaliser.
    pub(super) fn weighted(&self) -> (Rows, Option<Rows>) {
        let (problem, memory) = (self.problem, &self.plan.memory);
        let rows = |at, channels| of_steps(problem, self.at(at), channels);
        match (self.normalized, problem.dtype) {
            (None, _) => (self.dout, None),
            (Some(_), Dtype::F16) => (
                rows(memory.weighted, problem.dv),
                Some(rows(memory.balanced, problem.dk)),
            ),
            (Some(_), _) => (rows(memory.weighted, problem.dv), None),
        }
    }

    /// Queues the walk that computes dv: its decays belong to the channels of its keys, as in the forward pass, whose
    /// kernels serve. `walk` are its roles, and `initial` what it begins with.
    ///
    /// # Safety
    /// As [`Call::queue`].
    pub(super) unsafe fn gradient_of_values(
        &self,
        plan: &Plan,
        walk: &GradientWalkParams,
        initial: States,
    ) -> Result<()> {
        let (v, keys) = self.weighted();
        let params = WalkParams {
            layer: abi::Layer {
                v,
                k: keys.unwrap_or(walk.layer.k),
                // they were mapped when they were written
                key_map: match keys {
                    Some(_) => FeatureMap::Identity as i32,
                    None => walk.layer.key_map,
                },
                segment: plan.segment as i32, // at most the steps and a tile, which fit
                ..walk.layer
            },
            out: walk.out,
            initial,
            mode: Mode::Whole as i32,
            parts: walk.parts,
            weight: walk.weight,
            ..WalkParams::default()
        };
        let at = match plan.workspace_bytes() {
            0 => 0,
            _ => self.at(self.plan.memory.values),
        };
        // SAFETY: this function's own condition.
        unsafe {
            self.kernels
                .pass_over(self.launch, self.problem, plan, &params, at)
        }
    }

    /// Queues the products of each step's value with the gradient of its output, which the bonus multiplies.
    ///
    /// # Safety
    /// As [`Call::queue`].
    pub(super) unsafe fn own_products(&self) -> Result<()> {
        let (problem, layer) = (self.problem, self.layer);
        let params = RowProductsParams {
            left: self.dout,
            right: layer.v,
            products: of_steps(problem, self.at(self.plan.memory.own), 1),
            factors: self.factors(),
            cu_seqlens: layer.cu_seqlens,
            steps: layer.steps,
            channels: layer.dv,
            map: FeatureMap::Identity as i32,
            wide: 0,
            factor_scale: layer.scale,
            padding: 0,
        };
        // SAFETY: this function's own condition.
        unsafe { self.row_products(&params) }
    }

    /// Queues what computes the gradient of the bonus, if it is asked for.
    ///
    /// # Safety
    /// As [`Call::queue`], after the walks.
    pub(super) unsafe fn bonus_gradient(&self) -> Result<()> {
        let Some((out, out_stride)) = self.dbonus else {
            return Ok(());
        };
        let (problem, layer, memory) = (self.problem, self.layer, &self.plan.memory);
        let kernels = &self.kernels.gradients;
        let parts = self.at(memory.bonus_sums);
        if problem.steps > 0 && !problem.is_empty() {
            let params = BonusGradientParams {
                q: layer.q,
                k: layer.k,
                own: of_steps(problem, self.at(memory.own), 1),
                parts,
                cu_seqlens: layer.cu_seqlens,
                steps: layer.steps,
                heads: layer.heads,
                channels: layer.dk,
                map: layer.query_map,
            };
            let kernel = &kernels.bonus_gradient[self.dtype()];
            let grid = self.grid_of_spans(SPAN, problem.heads);
            // SAFETY: this function's own condition.
            unsafe { self.launch.run(kernel, grid, &params) }?;
        }
        let numbers = problem.heads * problem.dk; // of few heads and channels
        if numbers == 0 {
            return Ok(());
        }
        let params = SumSpansParams {
            parts,
            out,
            cu_seqlens: layer.cu_seqlens,
            out_stride,
            steps: layer.steps,
            sequences: problem.sequences as i32, // along z of the grid, if there is one
            numbers: numbers as i32,
            columns: layer.dk,
            span: SPAN as i32,
            shift: 0,
            scale: self.scale(),
        };
        // SAFETY: as above; where there is no step it reads no sum.
        unsafe {
            self.launch
                .run(&kernels.sum_spans, [numbers, 1, 1], &params)
        }
    }
}
