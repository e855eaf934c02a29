//! The selective scan of a Mamba layer, its gradients, and one step of a Mamba-2 layer.

mod backward;
mod forward;
mod step;

use std::error::Error;
use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::selective_scan as reference;
use seqmix::selective_scan::{Coefficient, Config, Direction, Inputs, Numbers, Weight};
use seqmix::{Dtype, Tensor, TensorMut, TensorRef};

use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};
use crate::support::numbers;

pub(crate) use backward::BackwardShape;
pub(crate) use forward::ForwardShape;
pub(crate) use step::StepShape;

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

/// A layer with D, delta_bias, softplus and gate.
#[derive(Clone, Copy)]
struct Shape {
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

    fn name(&self) -> String {
        let along = match self.along {
            Along::Dim => "dim",
            Along::Seqlen => "seqlen",
        };
        format!("{along}_b{}_d{}_t{}", self.batch, self.dim, self.seqlen)
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
            host,
            weights,
        })
    }

    fn inputs(&self) -> Inputs<'_, T> {
        let along = self.shape.along;
        Inputs {
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
        }
    }

    /// What one channel in one row of the batch reads.
    fn numbers(&self, row: usize, channel: usize) -> Channel {
        let Shape { dim, seqlen, .. } = self.shape;
        let [u, delta, z, b, c] = &self.host;
        let [u, delta, z] = [u, delta, z].map(|x| self.channel(x, row, channel));
        let of_row = |x: &[T]| {
            let own = &x[row * STATES * seqlen..][..STATES * seqlen];
            own.iter().map(|&x| x.into()).collect()
        };
        let (b, c) = (of_row(b), of_row(c));
        let weights = self.weights.each_ref().map(|weights| {
            let each = weights.len() / dim;
            let own = &weights[channel * each..][..each];
            own.iter().map(|&x| x.into()).collect()
        });
        Channel {
            seqlen,
            u,
            delta,
            z,
            b,
            c,
            weights,
        }
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

/// The same to write.
fn signal_mut<T: Number>(tensor: &mut Tensor<T, 3>, along: Along) -> TensorMut<'_, T, 3> {
    match along {
        Along::Dim => tensor.view_mut().transposed(),
        Along::Seqlen => tensor.view_mut(),
    }
}

/// What a channel reads, for the reference.
struct Channel {
    seqlen: usize,
    u: Vec<f64>,
    delta: Vec<f64>,
    z: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
    /// A, D and delta_bias.
    weights: [Vec<f64>; 3],
}

impl Channel {
    fn forward(&self) -> reference::Forward<'_> {
        let [a, d, delta_bias] = &self.weights;
        reference::Forward {
            batch: 1,
            dim: 1,
            seqlen: self.seqlen,
            dstate: STATES,
            groups: 1,
            u: &self.u,
            delta: &self.delta,
            a,
            b: reference::Coefficient::Variable(&self.b),
            c: reference::Coefficient::Variable(&self.c),
            d: Some(d),
            z: Some(&self.z),
            delta_bias: Some(delta_bias),
            delta_softplus: true,
            initial_state: None,
            cu_seqlens: None,
            direction: reference::Direction::Forward,
        }
    }
}

/// What states, step sizes and exponentials in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 1e-4;

/// Says what differs, if more does than twice what a naive run loses.
fn judge<T: Number>(
    what: &str,
    found: &[f64],
    expected: &[f64],
    naive: &[f64],
) -> Result<(), Box<dyn Error>> {
    let bound = bound::<T>(expected, naive, expected.len())?;
    let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let within = Bound {
        max_abs: bound.max_abs + ARITHMETIC * largest,
        rel_l2: None,
        row_rel_l2: None,
    };
    let verdict = Verdict::of(found, expected, expected.len(), within);
    match verdict.pass() {
        true => Ok(()),
        false => Err(format!("{what}: {verdict}").into()),
    }
}
