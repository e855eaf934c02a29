//! Causal convolution: forward, backward, one step.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::causal_conv1d::{Activation, Backward, CausalConv1d, Config, Forward, Update};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::causal_conv1d as reference;
use seqmix::{Dtype, Tensor, TensorRef, Workspace};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};
use crate::support::numbers;

/// Taps of a channel, as models have them.
const WIDTH: usize = 4;

const SILU: Config = Config {
    activation: Activation::Silu,
};

/// What is called, and along which axis the tensors are contiguous.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    ForwardDim,
    ForwardSeqlen,
    BackwardDim,
    BackwardSeqlen,
    Update,
}
use Call::{BackwardDim, BackwardSeqlen, ForwardDim, ForwardSeqlen};

const CALLS: [Call; 4] = [ForwardDim, ForwardSeqlen, BackwardDim, BackwardSeqlen];

/// A convolution with bias and silu, without states.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    call: Call,
    dtype: Dtype,
    batch: usize,
    dim: usize,
    seqlen: usize,
}

impl Shape {
    fn elements(&self) -> usize {
        self.batch * self.dim * self.seqlen
    }

    fn along_dim(&self) -> bool {
        matches!(self.call, ForwardDim | BackwardDim)
    }

    /// The shape of a signal, with its axes in the order of memory.
    fn in_memory(&self) -> [usize; 3] {
        match self.along_dim() {
            true => [self.batch, self.seqlen, self.dim],
            false => [self.batch, self.dim, self.seqlen],
        }
    }
}

impl bench::Shape for Shape {
    type Op = CausalConv1d;
    const CALL: &'static str = "causal_conv1d";

    /// The inner widths of Mamba 370M and 2.8B, for one sequence and for eight.
    fn timed() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for dim in [2048, 5120] {
                for (batch, seqlen) in [(1, 2048), (1, 8192), (1, 32_768), (8, 2048), (8, 8192)] {
                    shapes.extend(CALLS.map(|call| Self {
                        call,
                        dtype,
                        batch,
                        dim,
                        seqlen,
                    }));
                }
                for batch in [1, 8, 64, 256] {
                    shapes.push(Self {
                        call: Call::Update,
                        dtype,
                        batch,
                        dim,
                        seqlen: 1,
                    });
                }
            }
        }
        shapes
    }

    fn counted() -> Vec<Self> {
        let calls = CALLS.map(|call| (call, 2048));
        let calls = calls.into_iter().chain([(Call::Update, 1)]);
        let dtypes = [Dtype::F16, Dtype::BF16, Dtype::F32];
        calls
            .flat_map(|(call, seqlen)| {
                dtypes.map(|dtype| Self {
                    call,
                    dtype,
                    batch: 1,
                    dim: 256,
                    seqlen,
                })
            })
            .collect()
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        let call = match self.call {
            ForwardDim => "forward_dim",
            ForwardSeqlen => "forward_seqlen",
            BackwardDim => "backward_dim",
            BackwardSeqlen => "backward_seqlen",
            Call::Update => "update",
        };
        format!("{call}_b{}_d{}_t{}", self.batch, self.dim, self.seqlen)
    }

    /// A multiplication and an addition for each tap, three times in the backward pass.
    fn work(&self) -> Work {
        let elements = self.elements();
        let (signals, passes) = match self.call {
            ForwardDim | ForwardSeqlen => (2, 1),
            BackwardDim | BackwardSeqlen => (3, 3),
            Call::Update => (2 + 2 * (WIDTH - 1), 1),
        };
        Work {
            operations: (2 * WIDTH * passes * elements) as u64,
            bytes: (self.dtype.bytes() * (signals * elements + self.dim * (WIDTH + 1))) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = CausalConv1d>>, Box<dyn Error>> {
        Ok(match (self.call, self.dtype) {
            (Call::Update, Dtype::F16) => Box::new(Step::<f16>::new(self, stream)?),
            (Call::Update, Dtype::BF16) => Box::new(Step::<bf16>::new(self, stream)?),
            (Call::Update, _) => Box::new(Step::<f32>::new(self, stream)?),
            (_, Dtype::F16) => Box::new(Sequences::<f16>::new(self, stream)?),
            (_, Dtype::BF16) => Box::new(Sequences::<bf16>::new(self, stream)?),
            (_, _) => Box::new(Sequences::<f32>::new(self, stream)?),
        })
    }
}

/// Weights and biases on the device, and the same numbers here.
struct Filter<T> {
    weight: Tensor<T, 2>,
    bias: Tensor<T, 1>,
    host: (Vec<T>, Vec<T>),
}

impl<T: Number> Filter<T> {
    fn new(dim: usize, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let (weight, bias) = (numbers::<T>(3, dim * WIDTH), numbers::<T>(4, dim));
        Ok(Self {
            weight: Tensor::from_host(stream, &weight, [dim, WIDTH])?,
            bias: Tensor::from_host(stream, &bias, [dim])?,
            host: (weight, bias),
        })
    }

    /// Those of one channel.
    fn channel(&self, channel: usize) -> (Vec<f64>, [f64; 1]) {
        let weight = &self.host.0[channel * WIDTH..(channel + 1) * WIDTH];
        (widen(weight), [self.host.1[channel].into()])
    }
}

fn widen<T: Number>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

/// What kernels may lose that add in `f32` and approximate exponentials: some roundings, more of them in sums over
/// hundreds of thousands of steps.
const ROUNDINGS: f64 = 256.0;

/// Says what differs, if more does than twice what a naive run loses.
fn judge<T: Number>(
    what: &str,
    found: &[f64],
    expected: &[f64],
    naive: &[f64],
) -> Result<(), Box<dyn Error>> {
    let bound = bound::<T>(expected, naive, 1)?;
    let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let within = Bound {
        max_abs: bound.max_abs + ROUNDINGS * <f32 as Number>::UNIT * largest,
        rel_l2: None,
        row_rel_l2: None,
    };
    let verdict = Verdict::of(found, expected, 1, within);
    match verdict.pass() {
        true => Ok(()),
        false => Err(format!("{what}: {verdict}").into()),
    }
}

/// A forward or backward problem on the device.
struct Sequences<T> {
    shape: Shape,
    filter: Filter<T>,
    x: Tensor<T, 3>,
    dout: Tensor<T, 3>,
    /// out, or dx.
    out: Tensor<T, 3>,
    dweight: Tensor<T, 2>,
    dbias: Tensor<T, 1>,
    workspace: Workspace,
    host: [Vec<T>; 2],
}

impl<T: Number> Sequences<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let host = [1, 2].map(|seed| numbers::<T>(seed, shape.elements()));
        let (in_memory, dim) = (shape.in_memory(), shape.dim);
        Ok(Self {
            shape,
            filter: Filter::new(dim, stream)?,
            x: Tensor::from_host(stream, &host[0], in_memory)?,
            dout: Tensor::from_host(stream, &host[1], in_memory)?,
            out: Tensor::zeros(stream, in_memory)?,
            dweight: Tensor::zeros(stream, [dim, WIDTH])?,
            dbias: Tensor::zeros(stream, [dim])?,
            workspace: Workspace::new(stream),
            host,
        })
    }

    /// The numbers of one channel, one row of the batch after the other.
    fn channel(&self, numbers: &[T], channel: usize) -> Vec<f64> {
        let Shape {
            batch, dim, seqlen, ..
        } = self.shape;
        let steps = (0..batch).flat_map(|row| (0..seqlen).map(move |step| (row, step)));
        let at = |(row, step)| match self.shape.along_dim() {
            true => (row * seqlen + step) * dim + channel,
            false => (row * dim + channel) * seqlen + step,
        };
        steps.map(|step| numbers[at(step)].into()).collect()
    }
}

/// `[batch, dim, seqlen]` of a tensor that may lie as `[batch, seqlen, dim]`.
fn signal<T: Number>(tensor: &Tensor<T, 3>, along_dim: bool) -> TensorRef<'_, T, 3> {
    match along_dim {
        true => tensor.view().transposed(),
        false => tensor.view(),
    }
}

impl<T: Number> bench::Problem for Sequences<T> {
    type Op = CausalConv1d;

    fn queue(&mut self, op: &CausalConv1d, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let along_dim = self.shape.along_dim();
        let out = match along_dim {
            true => self.out.view_mut().transposed(),
            false => self.out.view_mut(),
        };
        if matches!(self.shape.call, ForwardDim | ForwardSeqlen) {
            let tensors = Forward {
                x: signal(&self.x, along_dim),
                weight: self.filter.weight.view(),
                bias: Some(self.filter.bias.view()),
                initial_states: None,
                cu_seqlens: None,
                out,
                final_states: None,
            };
            return Ok(op.forward(stream, SILU, tensors)?);
        }
        let tensors = Backward {
            x: signal(&self.x, along_dim),
            weight: self.filter.weight.view(),
            bias: Some(self.filter.bias.view()),
            initial_states: None,
            cu_seqlens: None,
            dout: signal(&self.dout, along_dim),
            dfinal_states: None,
            dx: Some(out),
            dweight: Some(self.dweight.view_mut()),
            dbias: Some(self.dbias.view_mut()),
            dinitial_states: None,
        };
        let bytes = op.backward_workspace_bytes(&tensors)?;
        self.workspace.reserve(bytes)?;
        Ok(op.backward(stream, SILU, tensors, &mut self.workspace)?)
    }

    /// Compares a few channels with the reference, which would take minutes for all.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let out = self.out.to_host(stream)?;
        let (dweight, dbias) = (self.dweight.to_host(stream)?, self.dbias.to_host(stream)?);
        for channel in [0, self.shape.dim / 3, self.shape.dim - 1] {
            let (weight, bias) = self.filter.channel(channel);
            let x = self.channel(&self.host[0], channel);
            let forward = reference::Forward {
                batch: self.shape.batch,
                dim: 1,
                seqlen: self.shape.seqlen,
                width: WIDTH,
                x: &x,
                weight: &weight,
                bias: Some(&bias),
                activation: reference::Activation::Silu,
                ..reference::Forward::default()
            };
            let found = self.channel(&out, channel);
            if matches!(self.shape.call, ForwardDim | ForwardSeqlen) {
                let (expected, naive) = (forward.run()?, forward.run_rounded(T::round)?);
                judge::<T>("out", &found, &expected.out, &naive.out)?;
                continue;
            }
            let dout = self.channel(&self.host[1], channel);
            let backward = reference::Backward {
                forward,
                dout: &dout,
                dfinal_states: None,
            };
            let (expected, naive) = (backward.run()?, backward.run_rounded(T::round)?);
            judge::<T>("dx", &found, &expected.dx, &naive.dx)?;
            let found = widen(&dweight[channel * WIDTH..(channel + 1) * WIDTH]);
            judge::<T>("dweight", &found, &expected.dweight, &naive.dweight)?;
            let found = widen(&dbias[channel..=channel]);
            judge::<T>("dbias", &found, &expected.dbias, &naive.dbias)?;
        }
        Ok(())
    }
}

/// A step of sequences on the device. Its states move on with each call; their time does not depend on them.
struct Step<T> {
    shape: Shape,
    filter: Filter<T>,
    x: Tensor<T, 2>,
    out: Tensor<T, 2>,
    conv_state: Tensor<T, 3>,
    host: [Vec<T>; 2],
}

impl<T: Number> Step<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let Shape { batch, dim, .. } = shape;
        let x = numbers::<T>(1, batch * dim);
        let states = numbers::<T>(2, batch * dim * (WIDTH - 1));
        Ok(Self {
            shape,
            filter: Filter::new(dim, stream)?,
            x: Tensor::from_host(stream, &x, [batch, dim])?,
            out: Tensor::zeros(stream, [batch, dim])?,
            conv_state: Tensor::from_host(stream, &states, [batch, dim, WIDTH - 1])?,
            host: [x, states],
        })
    }
}

impl<T: Number> bench::Problem for Step<T> {
    type Op = CausalConv1d;

    fn queue(&mut self, op: &CausalConv1d, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let tensors = Update {
            x: self.x.view(),
            conv_state: self.conv_state.view_mut(),
            weight: self.filter.weight.view(),
            bias: Some(self.filter.bias.view()),
            conv_state_indices: None,
            out: self.out.view_mut(),
        };
        Ok(op.update(stream, SILU, tensors)?)
    }

    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let Shape { batch, dim, .. } = self.shape;
        let [x, states] = self.host.each_ref().map(|numbers| widen(numbers));
        let (weight, bias) = (widen(&self.filter.host.0), widen(&self.filter.host.1));
        let step = reference::Step {
            batch,
            dim,
            width: WIDTH,
            x: &x,
            conv_state: &states,
            weight: &weight,
            bias: Some(&bias),
            activation: reference::Activation::Silu,
        };
        let (expected, naive) = (step.run()?, step.run_rounded(T::round)?);
        let out = widen(&self.out.to_host(stream)?);
        judge::<T>("out", &out, &expected.out, &naive.out)?;
        let moved = widen(&self.conv_state.to_host(stream)?);
        match moved == expected.final_states {
            true => Ok(()),
            false => Err("the states did not move on".into()),
        }
    }
}
