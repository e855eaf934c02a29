//! The gradients of attention that is not causal, where all steps read the last state: the walks make that state and
//! its gradient first, and then only read them.

use super::backward_ends::Ends;
use super::backward_plan::DecayGradient;
use super::backward_walks::{Call, of_steps};
use crate::abi::linear_attention::{
    Decays, GradientWalkParams, LastDecaysParams, Layer, Mode, RowProductsParams, Rows,
};
use crate::error::Result;

impl Call<'_> {
    /// Queues what makes the last states and their gradients, of the walks for dq and dk.
    ///
    /// # Safety
    /// As [`Call::queue`].
    pub(super) unsafe fn find_last(
        &self,
        dq: &GradientWalkParams,
        dk: &GradientWalkParams,
    ) -> Result<()> {
        let Ends {
            initial,
            initial_z,
            dlast,
            dlast_z,
            ..
        } = self.ends;
        // SAFETY: this function's own condition, here and below.
        unsafe { self.pass_segments(0, dq, initial, initial_z) }?;
        // no decay lies between the last state and a query
        let gradients = GradientWalkParams {
            layer: Layer {
                decays: Decays::default(),
                reversed: 0,
                ..dk.layer
            },
            ..*dk
        };
        // SAFETY: as above.
        unsafe { self.pass_segments(1, &gradients, dlast, dlast_z) }
    }

    /// The walk as it is if attention is not causal and the last states are known; or as it was.
    pub(super) fn reading(&self, walk: GradientWalkParams) -> GradientWalkParams {
        if self.problem.config.causal {
            return walk;
        }
        // queries meet the last state as it is, and keys and values have decayed into it
        let decays = match walk.layer.reversed {
            0 => Decays::default(),
            _ => walk.layer.decays,
        };
        GradientWalkParams {
            layer: Layer {
                decays,
                ..walk.layer
            },
            decays: self.at(self.plan.memory.decays[0]),
            mode: Mode::Read as i32,
            ..walk
        }
    }

    /// Queues what computes the gradients of decays.
    ///
    /// # Safety
    /// As [`Call::queue`], after the walks.
    pub(super) unsafe fn last_decays(&self, form: DecayGradient, out: Decays) -> Result<()> {
        let (problem, layer, memory) = (self.problem, self.layer, &self.plan.memory);
        let per_head = form == DecayGradient::Head;
        // of keys with their gradients
        let products = RowProductsParams {
            left: layer.k,
            right: of_steps(problem, self.at(memory.parts[1]), problem.dk),
            products: of_steps(problem, self.at(memory.own), 1),
            factors: Rows::default(),
            cu_seqlens: layer.cu_seqlens,
            steps: layer.steps,
            channels: layer.dk,
            map: layer.key_map,
            wide: 1,
            factor_scale: 1.0,
            padding: 0,
        };
        // SAFETY: this function's own condition.
        unsafe { self.row_products(&products) }?;
        let params = LastDecaysParams {
            products: products.products,
            out,
            initial: self.ends.initial,
            initial_z: self.ends.initial_z,
            gradients: self.at(memory.states[1]),
            z_gradients: self.at(memory.zs[1]),
            decays: self.at(memory.decays[0]),
            cu_seqlens: layer.cu_seqlens,
            steps: layer.steps,
            sequences: problem.sequences as i32, // along z of the grid
            heads: layer.heads,
            channels: layer.dk,
            values: layer.dv,
            segment: layer.segment,
            per_head: per_head.into(),
        };
        let sequences = match per_head {
            true => 1,
            false => problem.sequences,
        };
        if problem.heads == 0 || sequences == 0 {
            return Ok(());
        }
        let grid = [1, problem.heads, sequences];
        let kernel = &self.kernels.gradients.last_decays;
        // SAFETY: as above; it reads what the kernels before it wrote.
        unsafe { self.launch.run(kernel, grid, &params) }
    }
}
