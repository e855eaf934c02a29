//! What a backward pass has beside rows of steps: the states at the ends of sequences, and what outputs were divided by.

use super::Backward;
use super::backward_walks::Call;
use super::problem::Problem;
use crate::abi::linear_attention::{NormalizerGradientParams, Rows, SPAN, States};
use crate::error::{Error, Result};
use crate::launch::Launch;
use crate::tensor::{Float, TensorRef};

/// States before and after each sequence, and their gradients; `z` are the normaliser's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Ends {
    pub(super) initial: States,
    pub(super) initial_z: States,
    pub(super) dlast: States,
    pub(super) dlast_z: States,
    pub(super) dinitial: States,
    pub(super) dinitial_z: States,
}

impl Ends {
    /// How the gradients lie.
    pub(super) fn new<T: Float>(problem: &Problem, tensors: &Backward<'_, T>) -> Result<Self> {
        let mut ends = Self::default();
        if let Some(states) = &tensors.dfinal_state {
            ends.dlast = problem.states("dfinal_state", states.layout())?;
        }
        if let Some(z) = &tensors.dfinal_z {
            ends.dlast_z = problem.zs("dfinal_z", z.layout())?;
        }
        if let Some(states) = &tensors.dinitial_state {
            ends.dinitial = problem.states("dinitial_state", states.layout())?;
        }
        if let Some(z) = &tensors.dinitial_z {
            ends.dinitial_z = problem.zs("dinitial_z", z.layout())?;
        }
        Ok(ends)
    }
}

/// What the forward pass with a normaliser returned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Normalized {
    out: Rows,
    normalizer: Rows,
    eps: f32,
}

impl Normalized {
    /// How it lies; none without a normaliser.
    pub(super) fn new<T: Float>(
        problem: &Problem,
        tensors: &Backward<'_, T>,
    ) -> Result<Option<Self>> {
        let argument = |argument, expected: &str, found: &str| {
            Err(Error::Argument {
                op: problem.op,
                argument,
                expected: expected.into(),
                found: found.into(),
            })
        };
        let Some(eps) = problem.config.normalize else {
            let unasked = [
                ("out", tensors.out.is_some()),
                ("normalizer", tensors.normalizer.is_some()),
            ];
            return match unasked.into_iter().find(|(_, given)| *given) {
                Some((name, _)) => argument(name, "none without normalize", "a tensor"),
                None => Ok(None),
            };
        };
        let Some(out) = &tensors.out else {
            return argument("out", "the output, as it was normalised", "none");
        };
        let Some(normalizer) = &tensors.normalizer else {
            return argument("normalizer", "that of the forward pass", "none");
        };
        Ok(Some(Self {
            out: problem.like_out("out", out.layout())?,
            normalizer: problem.normalizer("normalizer", normalizer.layout())?,
            eps,
        }))
    }

    /// The same with addresses.
    pub(super) fn read<'a, T: Float>(
        self,
        launch: &mut Launch<'a>,
        out: &'a Option<TensorRef<'_, T, 4>>,
        normalizer: &'a Option<TensorRef<'_, f32, 3>>,
    ) -> Result<Self> {
        let mut result = self;
        if let Some(out) = out {
            result.out.at = launch.read("out", out, size_of::<T>() as u64)?;
        }
        if let Some(normalizer) = normalizer {
            result.normalizer.at = launch.read("normalizer", normalizer, 4)?;
        }
        Ok(result)
    }
}

impl Call<'_> {
    /// Queues what the normaliser makes of the gradient of the output.
    ///
    /// # Safety
    /// As [`Call::queue`].
    pub(super) unsafe fn normalizer_gradient(&self, normalized: &Normalized) -> Result<()> {
        let (problem, layer) = (self.problem, self.layer);
        if problem.steps == 0 || problem.is_empty() {
            return Ok(());
        }
        let (weighted, balanced) = match &self.plan.values {
            Some(_) => self.weighted(),
            None => Default::default(),
        };
        let params = NormalizerGradientParams {
            out: normalized.out,
            dout: self.dout,
            normalizer: normalized.normalizer,
            factors: self.factors(),
            weighted,
            q: layer.q,
            balanced: balanced.unwrap_or_default(),
            cu_seqlens: layer.cu_seqlens,
            steps: layer.steps,
            channels: layer.dv,
            keys: layer.dk,
            map: layer.query_map,
            eps: normalized.eps,
            scale: layer.scale,
        };
        let kernel = &self.kernels.gradients.normalizer_gradient[self.dtype()];
        let grid = self.grid_of_spans(SPAN, problem.heads);
        // SAFETY: this function's own condition.
        unsafe { self.launch.run(kernel, grid, &params) }
    }
}
