//! The forward pass by the linear rule.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{Config, Forward, LinearAttention};
use seqmix::{Dtype, Tensor, Workspace};

use super::layer::{Dims, Tensors, widen};
use super::{STEPS, judge};
use crate::bench::{self, Work};
use crate::naive::Number;

/// A layer whose outputs are computed.
#[derive(Clone, Copy)]
pub(crate) struct ForwardShape(Dims);

impl bench::Shape for ForwardShape {
    type Op = LinearAttention;
    const CALL: &'static str = "linear_attention/forward";

    fn timed() -> Vec<Self> {
        Dims::timed().into_iter().map(Self).collect()
    }

    fn counted() -> Vec<Self> {
        Dims::counted(|_| 128).into_iter().map(Self).collect()
    }

    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn name(&self) -> String {
        self.0.name()
    }

    /// Each step adds a product to a state and reads one from it.
    fn work(&self) -> Work {
        let Dims { dtype, dk, dv, .. } = self.0;
        let steps = self.0.steps();
        Work {
            operations: (4 * steps * dk * dv) as u64,
            bytes: (dtype.bytes() * steps * (2 * dk + 2 * dv) + 4 * self.0.decays()) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = LinearAttention>>, Box<dyn Error>> {
        Ok(match self.0.dtype {
            Dtype::F16 => Box::new(Problem::<f16>::new(self.0, stream)?),
            Dtype::BF16 => Box::new(Problem::<bf16>::new(self.0, stream)?),
            _ => Box::new(Problem::<f32>::new(self.0, stream)?),
        })
    }
}

struct Problem<T> {
    dims: Dims,
    layer: Tensors<T>,
    out: Tensor<T, 4>,
    workspace: Workspace,
    plan: String,
}

impl<T: Number> Problem<T> {
    fn new(dims: Dims, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        Ok(Self {
            dims,
            layer: Tensors::new(dims, stream)?,
            out: Tensor::zeros(stream, dims.v_shape())?,
            workspace: Workspace::new(stream),
            plan: String::new(),
        })
    }
}

impl<T: Number> bench::Problem for Problem<T> {
    type Op = LinearAttention;

    fn queue(
        &mut self,
        op: &LinearAttention,
        stream: &Arc<CudaStream>,
    ) -> Result<(), Box<dyn Error>> {
        let tensors = Forward {
            layer: self.layer.view(),
            out: self.out.view_mut(),
            final_state: None,
            final_z: None,
            normalizer: None,
        };
        let config = Config::default();
        let plan = op.plan(config, &tensors)?;
        self.plan = plan.to_string();
        self.workspace.reserve(plan.workspace_bytes())?;
        Ok(op.forward(stream, config, tensors, &mut self.workspace)?)
    }

    /// Compares the first steps of a row with the reference, which would take hours for all.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let steps = 0..self.dims.seqlen.min(STEPS);
        let part = self.layer.widened(&steps);
        let problem = part.forward();
        let (exact, naive) = (problem.run()?.out, problem.run_rounded(T::round)?.out);
        let out = self.out.to_host(stream)?;
        judge::<T>("out", &widen(self.dims.part(&out, &steps)), &exact, &naive)
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
