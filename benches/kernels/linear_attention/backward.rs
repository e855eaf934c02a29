//! The gradients by the linear rule.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{Backward, Config, DecayMut, LinearAttention};
use seqmix::reference::linear_attention as reference;
use seqmix::{Dtype, Tensor, Workspace};

use super::layer::{Dims, Gates, Tensors, widen};
use super::{STEPS, judge};
use crate::bench::{self, Work};
use crate::naive::Number;
use crate::support::numbers;

/// A layer whose gradients are computed, those of decays included.
#[derive(Clone, Copy)]
pub(crate) struct BackwardShape(Dims);

impl bench::Shape for BackwardShape {
    type Op = LinearAttention;
    const CALL: &'static str = "linear_attention/backward";

    fn timed() -> Vec<Self> {
        let all = Dims::timed().into_iter();
        // a walk's queries are values of the layer: at most 256 channels
        all.filter(|dims| dims.dv <= 256).map(Self).collect()
    }

    fn counted() -> Vec<Self> {
        Dims::counted(|dk| dk).into_iter().map(Self).collect()
    }

    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn name(&self) -> String {
        self.0.name()
    }

    /// Each of the three gradients takes what the output does.
    fn work(&self) -> Work {
        let Dims { dtype, dk, dv, .. } = self.0;
        let steps = self.0.steps();
        Work {
            operations: (3 * 4 * steps * dk * dv) as u64,
            bytes: (dtype.bytes() * steps * (4 * dk + 3 * dv) + 2 * 4 * self.0.decays()) as u64,
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

/// The gradient of decays in one of their forms.
enum DecayGradient {
    Head(Tensor<f32, 1>),
    Step(Tensor<f32, 3>),
    Channel(Tensor<f32, 4>),
}

struct Problem<T> {
    dims: Dims,
    layer: Tensors<T>,
    host_dout: Vec<T>,
    dout: Tensor<T, 4>,
    dq: Tensor<T, 4>,
    dk: Tensor<T, 4>,
    dv: Tensor<T, 4>,
    ddecay: DecayGradient,
    workspace: Workspace,
    plan: String,
}

impl<T: Number> Problem<T> {
    fn new(dims: Dims, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let Dims {
            batch,
            seqlen,
            heads,
            ..
        } = dims;
        let (k_shape, v_shape) = (dims.k_shape(), dims.v_shape());
        let host_dout = numbers::<T>(5, v_shape.iter().product());
        Ok(Self {
            dims,
            layer: Tensors::new(dims, stream)?,
            dout: Tensor::from_host(stream, &host_dout, v_shape)?,
            host_dout,
            dq: Tensor::zeros(stream, k_shape)?,
            dk: Tensor::zeros(stream, k_shape)?,
            dv: Tensor::zeros(stream, v_shape)?,
            ddecay: match dims.gates {
                Gates::Head => DecayGradient::Head(Tensor::zeros(stream, [heads])?),
                Gates::Step => DecayGradient::Step(Tensor::zeros(stream, [batch, seqlen, heads])?),
                Gates::Channel => DecayGradient::Channel(Tensor::zeros(stream, k_shape)?),
            },
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
        let gradients = [self.dq.view_mut(), self.dk.view_mut(), self.dv.view_mut()];
        let tensors = Backward {
            ddecay: Some(match &mut self.ddecay {
                DecayGradient::Head(ddecay) => DecayMut::PerHead(ddecay.view_mut()),
                DecayGradient::Step(ddecay) => DecayMut::PerStep(ddecay.view_mut()),
                DecayGradient::Channel(ddecay) => DecayMut::PerChannel(ddecay.view_mut()),
            }),
            ..Backward::new(self.layer.view(), self.dout.view(), gradients)
        };
        let config = Config::default();
        let plan = op.backward_plan(config, &tensors)?;
        self.plan = plan.to_string();
        self.workspace.reserve(plan.workspace_bytes())?;
        Ok(op.backward(stream, config, tensors, &mut self.workspace)?)
    }

    /// Compares the first steps of a row where gradients depend on earlier ones, and the last where they depend on later
    /// ones, with the reference, which would take hours for all. Those of decays depend on both.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let seqlen = self.dims.seqlen;
        let (first, last) = (0..seqlen.min(STEPS), seqlen.saturating_sub(STEPS)..seqlen);
        let found = |tensor: &Tensor<T, 4>, steps: &Range<usize>| {
            let all = tensor.to_host(stream)?;
            Ok::<_, seqmix::Error>(widen(self.dims.part(&all, steps)))
        };
        for (steps, of_first) in [(first, true), (last, false)] {
            let part = self.layer.widened(&steps);
            let dout = widen(self.dims.part(&self.host_dout, &steps));
            let problem = reference::Backward {
                forward: part.forward(),
                dout: &dout,
                ..reference::Backward::default()
            };
            let (exact, naive) = (problem.run()?, problem.run_rounded(T::round)?);
            if of_first {
                judge::<T>("dq", &found(&self.dq, &steps)?, &exact.dq, &naive.dq)?;
            } else {
                judge::<T>("dk", &found(&self.dk, &steps)?, &exact.dk, &naive.dk)?;
                judge::<T>("dv", &found(&self.dv, &steps)?, &exact.dv, &naive.dv)?;
            }
        }
        Ok(())
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
