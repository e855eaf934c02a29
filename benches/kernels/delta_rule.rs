//! The delta rule of linear attention: forward and backward.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{
    Backward, Config, Decay, DecayMut, Forward, Layer, LinearAttention, Rule,
};
use seqmix::reference::linear_attention as reference;
use seqmix::{Dtype, Tensor, Workspace};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};
use crate::support::numbers;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Forward,
    Backward,
}

/// What a decay is a number of, for each head.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gate {
    Step,
    Channel,
}

/// A layer as Gated DeltaNet or Kimi Delta Attention has it: decays and a beta for each head and step, keys of length
/// 1; no states.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    call: Call,
    gate: Gate,
    dtype: Dtype,
    batch: usize,
    seqlen: usize,
    heads: usize,
    /// Channels of queries, keys and values.
    dim: usize,
}

impl Shape {
    fn rows(&self) -> [usize; 4] {
        [self.batch, self.seqlen, self.heads, self.dim]
    }

    fn steps(&self) -> [usize; 3] {
        [self.batch, self.seqlen, self.heads]
    }

    /// Of the decays; the last axis has one number for all channels, or one for each.
    fn decays(&self) -> [usize; 4] {
        let [batch, seqlen, heads] = self.steps();
        let channels = match self.gate {
            Gate::Step => 1,
            Gate::Channel => self.dim,
        };
        [batch, seqlen, heads, channels]
    }
}

impl bench::Shape for Shape {
    type Op = LinearAttention;
    const CALL: &'static str = "delta_rule";

    /// The widths of models of 0.4 and 1.3 billion parameters, for one sequence and for eight.
    fn timed() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for (heads, dim) in [(8, 128), (16, 128), (8, 256)] {
                for (batch, seqlen) in [(1, 2048), (1, 8192), (8, 2048)] {
                    shapes.extend([Call::Forward, Call::Backward].map(|call| Self {
                        call,
                        gate: Gate::Step,
                        dtype,
                        batch,
                        seqlen,
                        heads,
                        dim,
                    }));
                }
            }
            // heads of Kimi Linear
            for (batch, seqlen) in [(1, 2048), (1, 8192), (8, 2048)] {
                shapes.extend([Call::Forward, Call::Backward].map(|call| Self {
                    call,
                    gate: Gate::Channel,
                    dtype,
                    batch,
                    seqlen,
                    heads: 32,
                    dim: 128,
                }));
            }
        }
        shapes
    }

    fn counted() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for gate in [Gate::Step, Gate::Channel] {
                for dim in [64, 128, 256] {
                    shapes.extend([Call::Forward, Call::Backward].map(|call| Self {
                        call,
                        gate,
                        dtype,
                        batch: 1,
                        seqlen: 128,
                        heads: 2,
                        dim,
                    }));
                }
            }
        }
        shapes
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        let call = match self.call {
            Call::Forward => "forward",
            Call::Backward => "backward",
        };
        let Self {
            batch,
            seqlen,
            heads,
            dim,
            ..
        } = self;
        let gate = match self.gate {
            Gate::Step => "",
            Gate::Channel => "_channels",
        };
        format!("{call}_b{batch}_t{seqlen}_h{heads}_d{dim}{gate}")
    }

    /// A number of the state takes two products to be read, by the query and by the key, and one to be written; and
    /// backwards what it wrote comes anew, its gradient likewise, and three more read either.
    fn work(&self) -> Work {
        let rows = self.batch * self.seqlen * self.heads;
        let states = rows * self.dim * self.dim;
        let (products, tensors) = match self.call {
            Call::Forward => (3, 4),
            Call::Backward => (10, 7),
        };
        // of steps they do not count; backwards their gradients are as large
        let decays = match (self.gate, self.call) {
            (Gate::Step, _) => 0,
            (Gate::Channel, Call::Forward) => 4,
            (Gate::Channel, Call::Backward) => 8,
        };
        Work {
            operations: (2 * products * states) as u64,
            bytes: ((self.dtype.bytes() * tensors + decays) * rows * self.dim) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = LinearAttention>>, Box<dyn Error>> {
        Ok(match self.dtype {
            Dtype::F16 => Box::new(Problem::<f16>::new(self, stream)?),
            Dtype::BF16 => Box::new(Problem::<bf16>::new(self, stream)?),
            _ => Box::new(Problem::<f32>::new(self, stream)?),
        })
    }
}

/// The inputs as numbers.
struct Host<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    decay: Vec<f32>,
    beta: Vec<T>,
    dout: Vec<T>,
}

/// A layer on the device.
struct Problem<T> {
    shape: Shape,
    host: Host<T>,
    q: Tensor<T, 4>,
    k: Tensor<T, 4>,
    v: Tensor<T, 4>,
    decay: Tensor<f32, 4>,
    beta: Tensor<T, 3>,
    dout: Tensor<T, 4>,
    /// out, or dq.
    out: Tensor<T, 4>,
    dk: Tensor<T, 4>,
    dv: Tensor<T, 4>,
    ddecay: Tensor<f32, 4>,
    dbeta: Tensor<T, 3>,
    workspace: Workspace,
    plan: String,
}

impl<T: Number> Problem<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let (rows, steps) = (shape.rows(), shape.steps());
        let (count, heads) = (rows.iter().product(), steps.iter().product());
        let decays = shape.decays();
        let keys = widen(&numbers::<T>(2, count));
        let unit = |key: &[f64]| {
            let length = key.iter().map(|x| x * x).sum::<f64>().sqrt();
            key.iter()
                .map(|x| T::narrow(x / length))
                .collect::<Vec<T>>()
        };
        let sigmoid = |x: &f32| T::narrow(1.0 / (1.0 + f64::from(-x).exp()));
        let host = Host {
            q: numbers::<T>(1, count),
            k: keys.chunks(shape.dim).flat_map(unit).collect(),
            v: numbers::<T>(3, count),
            decay: numbers::<f32>(4, decays.iter().product())
                .iter()
                .map(|x| -0.1 * x.abs())
                .collect(),
            beta: numbers::<f32>(5, heads).iter().map(sigmoid).collect(),
            dout: numbers::<T>(6, count),
        };
        let of_rows = |numbers: &[T]| Tensor::from_host(stream, numbers, rows);
        Ok(Self {
            shape,
            q: of_rows(&host.q)?,
            k: of_rows(&host.k)?,
            v: of_rows(&host.v)?,
            decay: Tensor::from_host(stream, &host.decay, decays)?,
            beta: Tensor::from_host(stream, &host.beta, steps)?,
            dout: of_rows(&host.dout)?,
            out: Tensor::zeros(stream, rows)?,
            dk: Tensor::zeros(stream, rows)?,
            dv: Tensor::zeros(stream, rows)?,
            ddecay: Tensor::zeros(stream, decays)?,
            dbeta: Tensor::zeros(stream, steps)?,
            workspace: Workspace::new(stream),
            plan: String::new(),
            host,
        })
    }

    /// The reference on some steps of the last row of the batch, all of its heads.
    fn reference(
        &self,
        steps: &Range<usize>,
        judge: impl Fn(&reference::Backward<'_>) -> Result<(), Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let Shape { heads, dim, .. } = self.shape;
        let rows = |numbers: &[T]| widen(self.part(numbers, steps));
        let host = &self.host;
        let (q, k, v, beta) = (
            rows(&host.q),
            rows(&host.k),
            rows(&host.v),
            rows(&host.beta),
        );
        let decay = widen(self.part(&host.decay, steps));
        let forward = reference::Forward {
            batch: 1,
            seqlen: steps.len(),
            heads,
            heads_q: heads,
            heads_k: heads,
            heads_v: heads,
            dk: dim,
            dv: dim,
            q: &q,
            k: &k,
            v: &v,
            decay: match self.shape.gate {
                Gate::Step => reference::Decay::PerStep(&decay),
                Gate::Channel => reference::Decay::PerChannel(&decay),
            },
            rule: reference::Rule::Delta { beta: &beta },
            ..reference::Forward::default()
        };
        judge(&reference::Backward {
            forward,
            dout: &rows(&host.dout),
            ..reference::Backward::default()
        })
    }

    /// Those steps of the last row of the batch.
    fn part<'a, X>(&self, numbers: &'a [X], steps: &Range<usize>) -> &'a [X] {
        let Shape { batch, seqlen, .. } = self.shape;
        let step = numbers.len() / (batch * seqlen);
        let row = (batch - 1) * seqlen;
        &numbers[(row + steps.start) * step..(row + steps.end) * step]
    }
}

fn widen<T: Number>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

/// What the kernels lose where a naive run in `f32` loses nothing, in roundings of `f32`.
const ROUNDINGS: f64 = 256.0;

/// Says what differs, if more does than three times what a naive run loses.
fn judge<T: Number>(
    what: &str,
    found: &[T],
    expected: &[f64],
    naive: &[f64],
) -> Result<(), Box<dyn Error>> {
    let bound = bound::<T>(expected, naive, 1)?;
    let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let within = Bound {
        max_abs: 1.5 * bound.max_abs + ROUNDINGS * <f32 as Number>::UNIT * largest,
        rel_l2: None,
        row_rel_l2: None,
    };
    let verdict = Verdict::of(&widen(found), expected, 1, within);
    match verdict.pass() {
        true => Ok(()),
        false => Err(format!("{what}: {verdict}").into()),
    }
}

impl<T: Number> bench::Problem for Problem<T> {
    type Op = LinearAttention;

    fn queue(
        &mut self,
        op: &LinearAttention,
        stream: &Arc<CudaStream>,
    ) -> Result<(), Box<dyn Error>> {
        let config = Config::default();
        let layer = Layer {
            decay: match self.shape.gate {
                Gate::Step => {
                    let steps = self.shape.steps();
                    let strides = [steps[1] * steps[2], steps[2], 1];
                    Decay::PerStep(self.decay.view().as_strided(steps, strides)?)
                }
                Gate::Channel => Decay::PerChannel(self.decay.view()),
            },
            rule: Rule::Delta {
                beta: self.beta.view(),
            },
            ..Layer::new(self.q.view(), self.k.view(), self.v.view())
        };
        let workspace = &mut self.workspace;
        if self.shape.call == Call::Forward {
            let tensors = Forward {
                layer,
                out: self.out.view_mut(),
                final_state: None,
                final_z: None,
                normalizer: None,
            };
            let plan = op.plan(config, &tensors)?;
            self.plan = plan.to_string();
            workspace.reserve(plan.workspace_bytes())?;
            return Ok(op.forward(stream, config, tensors, workspace)?);
        }
        let gradients = [self.out.view_mut(), self.dk.view_mut(), self.dv.view_mut()];
        let tensors = Backward {
            ddecay: Some(match self.shape.gate {
                Gate::Step => {
                    let steps = self.shape.steps();
                    let strides = [steps[1] * steps[2], steps[2], 1];
                    DecayMut::PerStep(self.ddecay.view_mut().as_strided(steps, strides)?)
                }
                Gate::Channel => DecayMut::PerChannel(self.ddecay.view_mut()),
            }),
            dbeta: Some(self.dbeta.view_mut()),
            ..Backward::new(layer, self.dout.view(), gradients)
        };
        let plan = op.backward_plan(config, &tensors)?;
        self.plan = plan.to_string();
        workspace.reserve(plan.workspace_bytes())?;
        Ok(op.backward(stream, config, tensors, workspace)?)
    }

    /// Compares the first and the last steps of a row with the reference, which would take hours for all. What comes
    /// from earlier steps is known of the first ones, what comes from later ones of the last.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let seqlen = self.shape.seqlen;
        let (first, last) = (0..seqlen.min(65), seqlen.saturating_sub(65)..seqlen);
        let out = self.out.to_host(stream)?;
        if self.shape.call == Call::Forward {
            return self.reference(&first, |problem| {
                let exact = problem.forward.run()?;
                let naive = problem.forward.run_rounded(T::round)?;
                judge("out", self.part(&out, &first), &exact.out, &naive.out)
            });
        }
        let dv = self.dv.to_host(stream)?;
        self.reference(&last, |problem| {
            let (exact, naive) = (problem.run()?, problem.run_rounded(T::round)?);
            judge("dv", self.part(&dv, &last), &exact.dv, &naive.dv)
        })?;
        self.reference(&first, |problem| {
            let (exact, naive) = (problem.run()?, problem.run_rounded(T::round)?);
            judge("dq", self.part(&out, &first), &exact.dq, &naive.dq)
        })
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
