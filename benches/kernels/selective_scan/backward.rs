//! Its gradients.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::selective_scan as reference;
use seqmix::selective_scan::{Backward, CoefficientMut, Forward, Gradients, SelectiveScan};
use seqmix::{Dtype, Tensor, Workspace};

use super::{Layer, MAMBA, STATES, Shape, judge, signal, signal_mut};
use crate::bench::{self, Work};
use crate::naive::Number;
use crate::support::numbers;

/// All gradients of a layer, from the states that the scan kept.
#[derive(Clone, Copy)]
pub(crate) struct BackwardShape(Shape);

impl bench::Shape for BackwardShape {
    type Op = SelectiveScan;
    const CALL: &'static str = "selective_scan/backward";

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

    /// For each state what the scan does, once more its decay and input, and two multiplications and additions for
    /// each of its own gradient and those of A, B, C, u and delta.
    fn work(&self) -> Work {
        let Shape {
            dtype,
            batch,
            dim,
            seqlen,
            ..
        } = self.0;
        let (elements, of_b) = (self.0.elements(), batch * STATES * seqlen);
        let of_channels = 2 * 4 * dim * (STATES + 2);
        Work {
            operations: (24 * STATES * elements) as u64,
            bytes: (dtype.bytes() * (7 * elements + 4 * of_b) + of_channels) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = SelectiveScan>>, Box<dyn Error>> {
        Ok(match self.0.dtype {
            Dtype::F16 => Box::new(Differentiated::<f16>::new(self.0, stream)?),
            Dtype::BF16 => Box::new(Differentiated::<bf16>::new(self.0, stream)?),
            _ => Box::new(Differentiated::<f32>::new(self.0, stream)?),
        })
    }
}

/// A layer and its gradients.
struct Differentiated<T> {
    layer: Layer<T>,
    dout: Tensor<T, 3>,
    du: Tensor<T, 3>,
    ddelta: Tensor<T, 3>,
    dz: Tensor<T, 3>,
    da: Tensor<f32, 2>,
    db: Tensor<T, 4>,
    dc: Tensor<T, 4>,
    dd: Tensor<f32, 1>,
    ddelta_bias: Tensor<f32, 1>,
    /// What the scan keeps, once it has run.
    checkpoints: Option<Tensor<f32, 4>>,
    workspace: Workspace,
    plan: String,
    host: Vec<T>,
}

impl<T: Number> Differentiated<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let in_memory = shape.in_memory();
        let like_u = || Tensor::zeros(stream, in_memory);
        let like_b = || Tensor::zeros(stream, shape.coefficients());
        let host = numbers::<T>(8, shape.elements());
        Ok(Self {
            layer: Layer::new(shape, stream)?,
            dout: Tensor::from_host(stream, &host, in_memory)?,
            du: like_u()?,
            ddelta: like_u()?,
            dz: like_u()?,
            da: Tensor::zeros(stream, [shape.dim, STATES])?,
            db: like_b()?,
            dc: like_b()?,
            dd: Tensor::zeros(stream, [shape.dim])?,
            ddelta_bias: Tensor::zeros(stream, [shape.dim])?,
            checkpoints: None,
            workspace: Workspace::new(stream),
            plan: String::new(),
            host,
        })
    }

    /// Scans, to keep the states that the gradients begin at.
    fn scan(&mut self, op: &SelectiveScan, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let shape = op.checkpoint_shape(MAMBA, &self.layer.inputs())?;
        let mut checkpoints = Tensor::<f32, 4>::zeros(stream, shape)?;
        let mut out = Tensor::<T, 3>::zeros(stream, self.layer.shape.in_memory())?;
        let out = signal_mut(&mut out, self.layer.shape.along);
        let mut tensors = Forward::new(self.layer.inputs(), out);
        tensors.checkpoints = Some(checkpoints.view_mut());
        let mut workspace = Workspace::new(stream);
        workspace.reserve(op.plan(stream, MAMBA, &mut tensors)?.workspace_bytes())?;
        op.forward(stream, MAMBA, tensors, &mut workspace)?;
        self.checkpoints = Some(checkpoints);
        Ok(())
    }
}

impl<T: Number> bench::Problem for Differentiated<T> {
    type Op = SelectiveScan;

    fn queue(
        &mut self,
        op: &SelectiveScan,
        stream: &Arc<CudaStream>,
    ) -> Result<(), Box<dyn Error>> {
        if self.checkpoints.is_none() {
            self.scan(op, stream)?;
            cuda_emulator::take_thread_reports(); // of what is not counted here
        }
        let along = self.layer.shape.along;
        let gradients = Gradients {
            da: Some(self.da.view_mut()),
            db: Some(CoefficientMut::Variable(self.db.view_mut())),
            dc: Some(CoefficientMut::Variable(self.dc.view_mut())),
            dd: Some(self.dd.view_mut()),
            dz: Some(signal_mut(&mut self.dz, along)),
            ddelta_bias: Some(self.ddelta_bias.view_mut()),
            ..Gradients::new(
                signal_mut(&mut self.du, along),
                signal_mut(&mut self.ddelta, along),
            )
        };
        let dout = signal(&self.dout, along);
        let mut tensors = Backward {
            checkpoints: self.checkpoints.as_ref().map(Tensor::view),
            ..Backward::new(self.layer.inputs(), dout, gradients)
        };
        if self.plan.is_empty() {
            let plan = op.plan_backward(stream, MAMBA, &mut tensors)?;
            self.workspace.reserve(plan.workspace_bytes())?;
            self.plan = plan.to_string();
        }
        Ok(op.backward(stream, MAMBA, tensors, &mut self.workspace)?)
    }

    /// Compares a few channels with the reference, which would take minutes for all. dA is a sum over the batch: it is
    /// compared where that is one sequence.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let Shape { batch, dim, .. } = self.layer.shape;
        let [du, ddelta, dz] = [&self.du, &self.ddelta, &self.dz].map(|x| x.to_host(stream));
        let (du, ddelta, dz) = (du?, ddelta?, dz?);
        let da = self.da.to_host(stream)?;
        for (row, channel) in [(0, 0), (batch / 2, dim / 3), (batch - 1, dim - 1)] {
            let numbers = self.layer.numbers(row, channel);
            let backward = reference::Backward {
                forward: numbers.forward(),
                dout: &self.layer.channel(&self.host, row, channel),
                dlast_state: None,
            };
            let (expected, naive) = (backward.run()?, backward.run_rounded(T::round)?);
            let (Some(expected_dz), Some(naive_dz)) = (&expected.dz, &naive.dz) else {
                return Err("the reference has no dz".into());
            };
            for (name, found, expected, naive) in [
                ("du", &du, &expected.du, &naive.du),
                ("ddelta", &ddelta, &expected.ddelta, &naive.ddelta),
                ("dz", &dz, expected_dz, naive_dz),
            ] {
                let found = self.layer.channel(found, row, channel);
                let what = format!("{name} of channel {channel} of row {row}");
                judge::<T>(&what, &found, expected, naive)?;
            }
            if batch == 1 {
                let found = da[channel * STATES..][..STATES].iter().map(|&x| x.into());
                let found: Vec<f64> = found.collect();
                let what = format!("dA of channel {channel}");
                judge::<f32>(&what, &found, &expected.da, &naive.da)?;
            }
        }
        Ok(())
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
