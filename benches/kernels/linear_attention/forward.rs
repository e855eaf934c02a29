//! The forward pass by the linear rule, with a decay for each head, each step or each channel.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{Config, Decay, Forward, Layer, LinearAttention};
use seqmix::reference::linear_attention as reference;
use seqmix::{Dtype, Tensor, Workspace};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};
use crate::support::numbers;

/// What decays depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gates {
    /// The head: RetNet.
    Head,
    /// The head and the step: simple GLA.
    Step,
    /// The head, the step and the channel of the keys: GLA.
    Channel,
}

/// A layer without states, whose heads have keys and values of their own.
#[derive(Clone, Copy)]
pub(crate) struct ForwardShape {
    dtype: Dtype,
    gates: Gates,
    batch: usize,
    seqlen: usize,
    heads: usize,
    dk: usize,
    dv: usize,
}

impl ForwardShape {
    fn k_shape(&self) -> [usize; 4] {
        [self.batch, self.seqlen, self.heads, self.dk]
    }

    fn v_shape(&self) -> [usize; 4] {
        [self.batch, self.seqlen, self.heads, self.dv]
    }

    /// Numbers of all decays.
    fn decays(&self) -> usize {
        let steps = self.batch * self.seqlen * self.heads;
        match self.gates {
            Gates::Head => self.heads,
            Gates::Step => steps,
            Gates::Channel => steps * self.dk,
        }
    }
}

impl bench::Shape for ForwardShape {
    type Op = LinearAttention;
    const CALL: &'static str = "linear_attention/forward";

    /// Models of 2048 channels: 16 heads of 128, and 4 of 256 keys and 512 values, as RetNet and GLA have them.
    fn timed() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for gates in [Gates::Head, Gates::Step, Gates::Channel] {
                for (heads, dk, dv) in [(32, 64, 64), (16, 128, 128), (4, 256, 512)] {
                    for (batch, seqlen) in [(1, 2048), (1, 8192), (1, 32_768), (8, 2048)] {
                        shapes.push(Self {
                            dtype,
                            gates,
                            batch,
                            seqlen,
                            heads,
                            dk,
                            dv,
                        });
                    }
                }
            }
        }
        shapes
    }

    fn counted() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for gates in [Gates::Step, Gates::Channel] {
                for dk in [64, 128, 256] {
                    shapes.push(Self {
                        dtype,
                        gates,
                        batch: 1,
                        seqlen: 128,
                        heads: 1,
                        dk,
                        dv: 128,
                    });
                }
            }
        }
        shapes
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        let gates = match self.gates {
            Gates::Head => "head",
            Gates::Step => "step",
            Gates::Channel => "channel",
        };
        let Self {
            batch,
            seqlen,
            heads,
            dk,
            dv,
            ..
        } = self;
        format!("{gates}_b{batch}_t{seqlen}_h{heads}_k{dk}_v{dv}")
    }

    /// Each step adds a product to a state and reads one from it.
    fn work(&self) -> Work {
        let steps = self.batch * self.seqlen * self.heads;
        let rows = steps * (2 * self.dk + 2 * self.dv);
        Work {
            operations: (4 * steps * self.dk * self.dv) as u64,
            bytes: (self.dtype.bytes() * rows + 4 * self.decays()) as u64,
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

/// Decays in one of their forms.
enum Logarithms {
    Head(Tensor<f32, 1>),
    Step(Tensor<f32, 3>),
    Channel(Tensor<f32, 4>),
}

/// A layer, on the host and on the device.
struct Problem<T> {
    shape: ForwardShape,
    host: [Vec<T>; 3],
    host_decay: Vec<f32>,
    q: Tensor<T, 4>,
    k: Tensor<T, 4>,
    v: Tensor<T, 4>,
    decay: Logarithms,
    out: Tensor<T, 4>,
    workspace: Workspace,
    plan: String,
}

impl<T: Number> Problem<T> {
    fn new(shape: ForwardShape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let ForwardShape {
            batch,
            seqlen,
            heads,
            ..
        } = shape;
        let (k_shape, v_shape) = (shape.k_shape(), shape.v_shape());
        let count = |shape: [usize; 4]| shape.iter().product();
        let host = [
            numbers::<T>(1, count(k_shape)),
            numbers::<T>(2, count(k_shape)),
            numbers::<T>(3, count(v_shape)),
        ];
        let decays = numbers::<f32>(4, shape.decays());
        let host_decay: Vec<f32> = decays.iter().map(|x| -0.05 * x.abs()).collect();
        let rows = |numbers: &[T], shape| Tensor::from_host(stream, numbers, shape);
        let steps = [batch, seqlen, heads];
        Ok(Self {
            shape,
            q: rows(&host[0], k_shape)?,
            k: rows(&host[1], k_shape)?,
            v: rows(&host[2], v_shape)?,
            decay: match shape.gates {
                Gates::Head => Logarithms::Head(Tensor::from_host(stream, &host_decay, [heads])?),
                Gates::Step => Logarithms::Step(Tensor::from_host(stream, &host_decay, steps)?),
                Gates::Channel => {
                    Logarithms::Channel(Tensor::from_host(stream, &host_decay, k_shape)?)
                }
            },
            out: Tensor::zeros(stream, v_shape)?,
            workspace: Workspace::new(stream),
            plan: String::new(),
            host,
            host_decay,
        })
    }

    /// Those steps of the first row of the batch.
    fn part<'a, X>(&self, numbers: &'a [X], steps: &Range<usize>) -> &'a [X] {
        let step = numbers.len() / (self.shape.batch * self.shape.seqlen);
        &numbers[steps.start * step..steps.end * step]
    }
}

fn widen<T: Number>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

/// What the kernels lose where a naive run in `f32` loses nothing, in roundings of `f32`.
const ROUNDINGS: f64 = 256.0;

impl<T: Number> bench::Problem for Problem<T> {
    type Op = LinearAttention;

    fn queue(
        &mut self,
        op: &LinearAttention,
        stream: &Arc<CudaStream>,
    ) -> Result<(), Box<dyn Error>> {
        let tensors = Forward {
            layer: Layer {
                decay: match &self.decay {
                    Logarithms::Head(decay) => Decay::PerHead(decay.view()),
                    Logarithms::Step(decay) => Decay::PerStep(decay.view()),
                    Logarithms::Channel(decay) => Decay::PerChannel(decay.view()),
                },
                ..Layer::new(self.q.view(), self.k.view(), self.v.view())
            },
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
        let ForwardShape {
            seqlen,
            heads,
            dk,
            dv,
            gates,
            ..
        } = self.shape;
        let steps = 0..seqlen.min(65);
        let [q, k, v] = self.host.each_ref().map(|x| widen(self.part(x, &steps)));
        let decay = match gates {
            Gates::Head => widen(&self.host_decay),
            _ => widen(self.part(&self.host_decay, &steps)),
        };
        let problem = reference::Forward {
            batch: 1,
            seqlen: steps.len(),
            heads,
            heads_q: heads,
            heads_k: heads,
            heads_v: heads,
            dk,
            dv,
            q: &q,
            k: &k,
            v: &v,
            decay: match gates {
                Gates::Head => reference::Decay::PerHead(&decay),
                Gates::Step => reference::Decay::PerStep(&decay),
                Gates::Channel => reference::Decay::PerChannel(&decay),
            },
            ..reference::Forward::default()
        };
        let (exact, naive) = (problem.run()?.out, problem.run_rounded(T::round)?.out);
        let bound = bound::<T>(&exact, &naive, 1)?;
        let largest = exact.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        let within = Bound {
            max_abs: 1.5 * bound.max_abs + ROUNDINGS * <f32 as Number>::UNIT * largest,
            rel_l2: None,
            row_rel_l2: None,
        };
        let out = self.out.to_host(stream)?;
        let verdict = Verdict::of(&widen(self.part(&out, &steps)), &exact, 1, within);
        match verdict.pass() {
            true => Ok(()),
            false => Err(format!("out: {verdict}").into()),
        }
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
