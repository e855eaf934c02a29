//! The selective scan of a Mamba layer.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::selective_scan as reference;
use seqmix::selective_scan::{
    Coefficient, Config, Direction, Forward, Inputs, Numbers, SelectiveScan, Weight,
};
use seqmix::{Dtype, Tensor, TensorRef, Workspace};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};
use crate::support::numbers;

/// States of a channel, as Mamba has them.
const STATES: usize = 16;

/// What mamba-ssm does by default.
const MAMBA: Config = Config {
    numbers: Numbers::Real,
    delta_softplus: true,
    direction: Direction::Forward,
    segments: None,
};

/// Which axis of u, delta, z and out lies contiguously.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Along {
    Dim,
    Seqlen,
}

/// A scan with D, delta_bias, softplus and gate, from a state of zeros.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    along: Along,
    dtype: Dtype,
    batch: usize,
    dim: usize,
    seqlen: usize,
}

impl Shape {
    fn elements(&self) -> usize {
        self.batch * self.dim * self.seqlen
    }

    /// The shape of u, with its axes in the order of memory.
    fn in_memory(&self) -> [usize; 3] {
        match self.along {
            Along::Dim => [self.batch, self.seqlen, self.dim],
            Along::Seqlen => [self.batch, self.dim, self.seqlen],
        }
    }

    /// Of B and C.
    fn coefficients(&self) -> [usize; 4] {
        [self.batch, 1, STATES, self.seqlen]
    }
}

impl bench::Shape for Shape {
    type Op = SelectiveScan;
    const CALL: &'static str = "selective_scan/forward";

    /// The inner widths of Mamba 370M and 2.8B, for one sequence and for eight.
    fn timed() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for dim in [2048, 5120] {
                for (batch, seqlen) in [(1, 2048), (1, 8192), (1, 32_768), (8, 2048), (8, 8192)] {
                    shapes.extend([Along::Dim, Along::Seqlen].map(|along| Self {
                        along,
                        dtype,
                        batch,
                        dim,
                        seqlen,
                    }));
                }
            }
        }
        shapes
    }

    fn counted() -> Vec<Self> {
        let alongs = [Along::Dim, Along::Seqlen].into_iter();
        let dtypes = [Dtype::F16, Dtype::BF16, Dtype::F32];
        alongs
            .flat_map(|along| {
                dtypes.map(|dtype| Self {
                    along,
                    dtype,
                    batch: 1,
                    dim: 128,
                    seqlen: 512,
                })
            })
            .collect()
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        let along = match self.along {
            Along::Dim => "dim",
            Along::Seqlen => "seqlen",
        };
        format!("{along}_b{}_d{}_t{}", self.batch, self.dim, self.seqlen)
    }

    /// For each state the exponent, its exponential, and a multiplication and an addition for each of x and y, besides
    /// the input's share.
    fn work(&self) -> Work {
        let Self { batch, seqlen, .. } = *self;
        let of_b = batch * STATES * seqlen;
        let of_channels = 4 * self.dim * (STATES + 2);
        Work {
            operations: (7 * STATES * self.elements()) as u64,
            bytes: (self.dtype.bytes() * (4 * self.elements() + 2 * of_b) + of_channels) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = SelectiveScan>>, Box<dyn Error>> {
        Ok(match self.dtype {
            Dtype::F16 => Box::new(Layer::<f16>::new(self, stream)?),
            Dtype::BF16 => Box::new(Layer::<bf16>::new(self, stream)?),
            _ => Box::new(Layer::<f32>::new(self, stream)?),
        })
    }
}

/// A Mamba layer on the device, and the same numbers here.
struct Layer<T> {
    shape: Shape,
    u: Tensor<T, 3>,
    delta: Tensor<T, 3>,
    z: Tensor<T, 3>,
    b: Tensor<T, 4>,
    c: Tensor<T, 4>,
    a: Tensor<f32, 2>,
    d: Tensor<f32, 1>,
    delta_bias: Tensor<f32, 1>,
    out: Tensor<T, 3>,
    workspace: Workspace,
    plan: String,
    /// u, delta, z, B and C.
    host: [Vec<T>; 5],
    /// A, D and delta_bias.
    weights: [Vec<f32>; 3],
}

impl<T: Number> Layer<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let elements = shape.elements();
        let coefficients = shape.coefficients();
        let of_b = coefficients.iter().product();
        let counts = [elements, elements, elements, of_b, of_b];
        let mut seeds = 1..;
        let host = counts.map(|count| numbers::<T>(seeds.next().unwrap_or_default(), count));
        let dim = shape.dim;
        // A from -1 to -16, as Mamba begins
        let a = (0..dim * STATES).map(|at| -((at % STATES + 1) as f32));
        let weights = [a.collect(), numbers::<f32>(6, dim), numbers::<f32>(7, dim)];
        let in_memory = shape.in_memory();
        Ok(Self {
            shape,
            u: Tensor::from_host(stream, &host[0], in_memory)?,
            delta: Tensor::from_host(stream, &host[1], in_memory)?,
            z: Tensor::from_host(stream, &host[2], in_memory)?,
            b: Tensor::from_host(stream, &host[3], coefficients)?,
            c: Tensor::from_host(stream, &host[4], coefficients)?,
            a: Tensor::from_host(stream, &weights[0], [dim, STATES])?,
            d: Tensor::from_host(stream, &weights[1], [dim])?,
            delta_bias: Tensor::from_host(stream, &weights[2], [dim])?,
            out: Tensor::zeros(stream, in_memory)?,
            workspace: Workspace::new(stream),
            plan: String::new(),
            host,
            weights,
        })
    }

    /// The numbers of one channel in one row of the batch.
    fn channel(&self, numbers: &[T], row: usize, channel: usize) -> Vec<f64> {
        let Shape { dim, seqlen, .. } = self.shape;
        let at = |step| match self.shape.along {
            Along::Dim => (row * seqlen + step) * dim + channel,
            Along::Seqlen => (row * dim + channel) * seqlen + step,
        };
        (0..seqlen).map(|step| numbers[at(step)].into()).collect()
    }
}

/// `[batch, dim, seqlen]` of a tensor that may lie as `[batch, seqlen, dim]`.
fn signal<T: Number>(tensor: &Tensor<T, 3>, along: Along) -> TensorRef<'_, T, 3> {
    match along {
        Along::Dim => tensor.view().transposed(),
        Along::Seqlen => tensor.view(),
    }
}

/// What states, step sizes and exponentials in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 1e-4;

impl<T: Number> bench::Problem for Layer<T> {
    type Op = SelectiveScan;

    fn queue(
        &mut self,
        op: &SelectiveScan,
        stream: &Arc<CudaStream>,
    ) -> Result<(), Box<dyn Error>> {
        let along = self.shape.along;
        let inputs = Inputs {
            d: Some(Weight::F32(self.d.view())),
            z: Some(signal(&self.z, along)),
            delta_bias: Some(Weight::F32(self.delta_bias.view())),
            ..Inputs::new(
                signal(&self.u, along),
                signal(&self.delta, along),
                self.a.view(),
                Coefficient::Variable(self.b.view()),
                Coefficient::Variable(self.c.view()),
            )
        };
        let out = match along {
            Along::Dim => self.out.view_mut().transposed(),
            Along::Seqlen => self.out.view_mut(),
        };
        let mut tensors = Forward::new(inputs, out);
        if self.plan.is_empty() {
            let plan = op.plan(stream, MAMBA, &mut tensors)?;
            self.workspace.reserve(plan.workspace_bytes())?;
            self.plan = plan.to_string();
        }
        Ok(op.forward(stream, MAMBA, tensors, &mut self.workspace)?)
    }

    /// Compares a few channels with the reference, which would take minutes for all.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let Shape {
            batch, dim, seqlen, ..
        } = self.shape;
        let out = self.out.to_host(stream)?;
        let widen = |x: &[T]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        for (row, channel) in [(0, 0), (batch / 2, dim / 3), (batch - 1, dim - 1)] {
            let [u, delta, z, b, c] = &self.host;
            let [u, delta, z] = [u, delta, z].map(|x| self.channel(x, row, channel));
            let of_row = |x: &[T]| widen(&x[row * STATES * seqlen..][..STATES * seqlen]);
            let (b, c) = (of_row(b), of_row(c));
            let [a, d, delta_bias] = self.weights.each_ref().map(|weights| {
                let each = weights.len() / dim;
                let own = &weights[channel * each..][..each];
                own.iter().map(|&x| x.into()).collect::<Vec<f64>>()
            });
            let forward = reference::Forward {
                batch: 1,
                dim: 1,
                seqlen,
                dstate: STATES,
                groups: 1,
                u: &u,
                delta: &delta,
                a: &a,
                b: reference::Coefficient::Variable(&b),
                c: reference::Coefficient::Variable(&c),
                d: Some(&d),
                z: Some(&z),
                delta_bias: Some(&delta_bias),
                delta_softplus: true,
                initial_state: None,
                cu_seqlens: None,
                direction: reference::Direction::Forward,
            };
            let (expected, naive) = (forward.run()?.out, forward.run_rounded(T::round)?.out);
            let bound = bound::<T>(&expected, &naive, seqlen)?;
            let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            let within = Bound {
                max_abs: bound.max_abs + ARITHMETIC * largest,
                rel_l2: None,
                row_rel_l2: None,
            };
            let found = self.channel(&out, row, channel);
            let verdict = Verdict::of(&found, &expected, seqlen, within);
            if !verdict.pass() {
                return Err(format!("channel {channel} of row {row}: {verdict}").into());
            }
        }
        Ok(())
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
