//! A layer by the linear rule, with a decay for each head, each step or each channel: what the forward pass and the
//! gradients have in common.

use std::ops::Range;
use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{Decay, Layer};
use seqmix::reference::linear_attention as reference;
use seqmix::{Dtype, Tensor};

use crate::naive::Number;
use crate::support::numbers;

/// What decays depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Gates {
    /// The head: RetNet.
    Head,
    /// The head and the step: simple GLA.
    Step,
    /// The head, the step and the channel of the keys: GLA.
    Channel,
}

/// A layer without states, whose heads have keys and values of their own.
#[derive(Clone, Copy)]
pub(super) struct Dims {
    pub(super) dtype: Dtype,
    pub(super) gates: Gates,
    pub(super) batch: usize,
    pub(super) seqlen: usize,
    pub(super) heads: usize,
    pub(super) dk: usize,
    pub(super) dv: usize,
}

impl Dims {
    /// Models of 2048 channels: 32 heads of 64, 16 of 128, and 4 of 256 keys and 512 values, as RetNet and GLA have
    /// them.
    pub(super) fn timed() -> Vec<Self> {
        let mut all = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for gates in [Gates::Head, Gates::Step, Gates::Channel] {
                for (heads, dk, dv) in [(32, 64, 64), (16, 128, 128), (4, 256, 512)] {
                    for (batch, seqlen) in [(1, 2048), (1, 8192), (1, 32_768), (8, 2048)] {
                        all.push(Self {
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
        all
    }

    /// One head of each size with as many values as `dv` says of its keys.
    pub(super) fn counted(dv: impl Fn(usize) -> usize) -> Vec<Self> {
        let mut all = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for gates in [Gates::Step, Gates::Channel] {
                for dk in [64, 128, 256] {
                    all.push(Self {
                        dtype,
                        gates,
                        batch: 1,
                        seqlen: 128,
                        heads: 1,
                        dk,
                        dv: dv(dk),
                    });
                }
            }
        }
        all
    }

    pub(super) fn name(&self) -> String {
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

    pub(super) fn k_shape(&self) -> [usize; 4] {
        [self.batch, self.seqlen, self.heads, self.dk]
    }

    pub(super) fn v_shape(&self) -> [usize; 4] {
        [self.batch, self.seqlen, self.heads, self.dv]
    }

    /// Steps of all heads.
    pub(super) fn steps(&self) -> usize {
        self.batch * self.seqlen * self.heads
    }

    /// Numbers of all decays.
    pub(super) fn decays(&self) -> usize {
        match self.gates {
            Gates::Head => self.heads,
            Gates::Step => self.steps(),
            Gates::Channel => self.steps() * self.dk,
        }
    }

    /// Those steps of the first row of the batch, of numbers that have a row for each.
    pub(super) fn part<'a, X>(&self, numbers: &'a [X], steps: &Range<usize>) -> &'a [X] {
        let step = numbers.len() / (self.batch * self.seqlen);
        &numbers[steps.start * step..steps.end * step]
    }
}

/// Decays in one of their forms.
enum Logarithms {
    Head(Tensor<f32, 1>),
    Step(Tensor<f32, 3>),
    Channel(Tensor<f32, 4>),
}

/// A layer, on the host and on the device.
pub(super) struct Tensors<T> {
    dims: Dims,
    host: [Vec<T>; 3],
    host_decay: Vec<f32>,
    q: Tensor<T, 4>,
    k: Tensor<T, 4>,
    v: Tensor<T, 4>,
    decay: Logarithms,
}

impl<T: Number> Tensors<T> {
    pub(super) fn new(dims: Dims, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let Dims {
            batch,
            seqlen,
            heads,
            ..
        } = dims;
        let (k_shape, v_shape) = (dims.k_shape(), dims.v_shape());
        let count = |shape: [usize; 4]| shape.iter().product();
        let host = [
            numbers::<T>(1, count(k_shape)),
            numbers::<T>(2, count(k_shape)),
            numbers::<T>(3, count(v_shape)),
        ];
        let decays = numbers::<f32>(4, dims.decays());
        let host_decay: Vec<f32> = decays.iter().map(|x| -0.05 * x.abs()).collect();
        let rows = |numbers: &[T], shape| Tensor::from_host(stream, numbers, shape);
        let steps = [batch, seqlen, heads];
        Ok(Self {
            dims,
            q: rows(&host[0], k_shape)?,
            k: rows(&host[1], k_shape)?,
            v: rows(&host[2], v_shape)?,
            decay: match dims.gates {
                Gates::Head => Logarithms::Head(Tensor::from_host(stream, &host_decay, [heads])?),
                Gates::Step => Logarithms::Step(Tensor::from_host(stream, &host_decay, steps)?),
                Gates::Channel => {
                    Logarithms::Channel(Tensor::from_host(stream, &host_decay, k_shape)?)
                }
            },
            host,
            host_decay,
        })
    }

    pub(super) fn view(&self) -> Layer<'_, T> {
        Layer {
            decay: match &self.decay {
                Logarithms::Head(decay) => Decay::PerHead(decay.view()),
                Logarithms::Step(decay) => Decay::PerStep(decay.view()),
                Logarithms::Channel(decay) => Decay::PerChannel(decay.view()),
            },
            ..Layer::new(self.q.view(), self.k.view(), self.v.view())
        }
    }

    /// Those steps of the first row of the batch, for the reference.
    pub(super) fn widened(&self, steps: &Range<usize>) -> Widened {
        let [q, k, v] = self
            .host
            .each_ref()
            .map(|x| widen(self.dims.part(x, steps)));
        Widened {
            dims: Dims {
                batch: 1,
                seqlen: steps.len(),
                ..self.dims
            },
            q,
            k,
            v,
            decay: match self.dims.gates {
                Gates::Head => widen(&self.host_decay),
                _ => widen(self.dims.part(&self.host_decay, steps)),
            },
        }
    }
}

pub(super) fn widen<T: Number>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

/// Some steps of a row, as the reference takes them.
pub(super) struct Widened {
    dims: Dims,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    decay: Vec<f64>,
}

impl Widened {
    pub(super) fn forward(&self) -> reference::Forward<'_> {
        let Dims { heads, .. } = self.dims;
        reference::Forward {
            batch: 1,
            seqlen: self.dims.seqlen,
            heads,
            heads_q: heads,
            heads_k: heads,
            heads_v: heads,
            dk: self.dims.dk,
            dv: self.dims.dv,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            decay: match self.dims.gates {
                Gates::Head => reference::Decay::PerHead(&self.decay),
                Gates::Step => reference::Decay::PerStep(&self.decay),
                Gates::Channel => reference::Decay::PerChannel(&self.decay),
            },
            ..reference::Forward::default()
        }
    }
}
