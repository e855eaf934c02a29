//! The scan.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::selective_scan::{Forward, SelectiveScan};
use seqmix::{Dtype, Tensor, Workspace};

use super::{Layer, MAMBA, STATES, Shape, judge, signal_mut};
use crate::bench::{self, Work};
use crate::naive::Number;

/// The scan of a layer, from a state of zeros.
#[derive(Clone, Copy)]
pub(crate) struct ForwardShape(Shape);

impl bench::Shape for ForwardShape {
    type Op = SelectiveScan;
    const CALL: &'static str = "selective_scan/forward";

    fn timed() -> Vec<Self> {
        Shape::timed().into_iter().map(Self).collect()
    }

    fn counted() -> Vec<Self> {
        Shape::counted().into_iter().map(Self).collect()
    }

    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn name(&self) -> String {
        self.0.name()
    }

    /// For each state the exponent, its exponential, and a multiplication and an addition for each of x and y, besides
    /// the input's share.
    fn work(&self) -> Work {
        let Shape {
            dtype,
            batch,
            dim,
            seqlen,
            ..
        } = self.0;
        let (elements, of_b) = (self.0.elements(), batch * STATES * seqlen);
        let of_channels = 4 * dim * (STATES + 2);
        Work {
            operations: (7 * STATES * elements) as u64,
            bytes: (dtype.bytes() * (4 * elements + 2 * of_b) + of_channels) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = SelectiveScan>>, Box<dyn Error>> {
        Ok(match self.0.dtype {
            Dtype::F16 => Box::new(Scan::<f16>::new(self.0, stream)?),
            Dtype::BF16 => Box::new(Scan::<bf16>::new(self.0, stream)?),
            _ => Box::new(Scan::<f32>::new(self.0, stream)?),
        })
    }
}

/// A layer and its output.
struct Scan<T> {
    layer: Layer<T>,
    out: Tensor<T, 3>,
    workspace: Workspace,
    plan: String,
}

impl<T: Number> Scan<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        Ok(Self {
            layer: Layer::new(shape, stream)?,
            out: Tensor::zeros(stream, shape.in_memory())?,
            workspace: Workspace::new(stream),
            plan: String::new(),
        })
    }
}

impl<T: Number> bench::Problem for Scan<T> {
    type Op = SelectiveScan;

    fn queue(
        &mut self,
        op: &SelectiveScan,
        stream: &Arc<CudaStream>,
    ) -> Result<(), Box<dyn Error>> {
        let out = signal_mut(&mut self.out, self.layer.shape.along);
        let mut tensors = Forward::new(self.layer.inputs(), out);
        if self.plan.is_empty() {
            let plan = op.plan(stream, MAMBA, &mut tensors)?;
            self.workspace.reserve(plan.workspace_bytes())?;
            self.plan = plan.to_string();
        }
        Ok(op.forward(stream, MAMBA, tensors, &mut self.workspace)?)
    }

    /// Compares a few channels with the reference, which would take minutes for all.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let Shape { batch, dim, .. } = self.layer.shape;
        let out = self.out.to_host(stream)?;
        for (row, channel) in [(0, 0), (batch / 2, dim / 3), (batch - 1, dim - 1)] {
            let numbers = self.layer.numbers(row, channel);
            let forward = numbers.forward();
            let (expected, naive) = (forward.run()?.out, forward.run_rounded(T::round)?.out);
            let found = self.layer.channel(&out, row, channel);
            judge::<T>(
                &format!("channel {channel} of row {row}"),
                &found,
                &expected,
                &naive,
            )?;
        }
        Ok(())
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
