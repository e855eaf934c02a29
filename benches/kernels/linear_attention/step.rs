//! One step, whose states are nearly all that is moved.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{Config, Decay, LinearAttention, Rule, Step};
use seqmix::reference::linear_attention as reference;
use seqmix::{Dtype, Tensor};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::Number;
use crate::support::numbers;

/// What states and decays in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 1e-4;

/// Gated DeltaNet, or with `delta` off simple gated linear attention.
#[derive(Clone, Copy)]
pub(crate) struct StepShape {
    dtype: Dtype,
    batch: usize,
    heads: usize,
    /// Channels of keys and of values.
    dim: usize,
    delta: bool,
}

impl bench::Shape for StepShape {
    type Op = LinearAttention;
    const CALL: &'static str = "linear_attention/step";

    /// Heads of models with one to a few billion parameters, for one sequence and for many.
    fn timed() -> Vec<Self> {
        let sizes = [
            (1, 16, 128),
            (1, 32, 128),
            (1, 8, 256),
            (64, 32, 128),
            (64, 8, 256),
        ];
        let of = |delta| {
            sizes.map(|(batch, heads, dim)| Self {
                dtype: Dtype::BF16,
                batch,
                heads,
                dim,
                delta,
            })
        };
        [false, true].into_iter().flat_map(of).collect()
    }

    fn counted() -> Vec<Self> {
        let sizes = [
            (Dtype::F16, 64, false),
            (Dtype::BF16, 128, true),
            (Dtype::F32, 256, false),
        ];
        let of = |(dtype, dim, delta)| Self {
            dtype,
            batch: 2,
            heads: 2,
            dim,
            delta,
        };
        sizes.map(of).into()
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        let rule = if self.delta { "delta" } else { "linear" };
        format!("{rule}_b{}_h{}_d{}", self.batch, self.heads, self.dim)
    }

    /// For each number of the state its decay, the step's share, and what is read; by the delta rule twice.
    fn work(&self) -> Work {
        let Self {
            batch,
            heads,
            dim,
            dtype,
            delta,
        } = *self;
        let rows = batch * heads;
        let operations = if delta { 7 } else { 5 };
        Work {
            operations: (operations * rows * dim * dim) as u64,
            bytes: (rows * (2 * 4 * dim * dim + dtype.bytes() * 4 * dim)) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = LinearAttention>>, Box<dyn Error>> {
        Ok(match self.dtype {
            Dtype::F16 => Box::new(Layer::<f16>::new(self, stream)?),
            Dtype::BF16 => Box::new(Layer::<bf16>::new(self, stream)?),
            _ => Box::new(Layer::<f32>::new(self, stream)?),
        })
    }
}

/// A layer on the device, and the same numbers here. Each call goes a step further with the same input.
struct Layer<T> {
    shape: StepShape,
    steps: usize,
    q: Tensor<T, 4>,
    k: Tensor<T, 4>,
    v: Tensor<T, 4>,
    beta: Tensor<T, 3>,
    decay: Tensor<f32, 3>,
    state: Tensor<f32, 4>,
    out: Tensor<T, 4>,
    /// q, k, v and beta.
    host: [Vec<f64>; 4],
    host_decay: Vec<f64>,
}

fn widen<T: Number>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

impl<T: Number> Layer<T> {
    fn new(shape: StepShape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let StepShape {
            batch, heads, dim, ..
        } = shape;
        let rows = [batch, 1, heads, dim];
        let (elements, of_heads) = (batch * heads * dim, [batch, 1, heads]);
        let [q, v] = [1, 2].map(|seed| numbers::<T>(seed, elements));
        // of a length of about 1, so that the delta rule does not overshoot
        let k = numbers::<T>(3, elements).into_iter();
        let k: Vec<T> = k
            .map(|x| T::narrow(Into::<f64>::into(x) / (dim as f64).sqrt()))
            .collect();
        let beta = vec![T::narrow(0.5); batch * heads];
        let decay: Vec<f32> = numbers::<f32>(4, batch * heads)
            .iter()
            .map(|x| -0.1 * x.exp())
            .collect();
        Ok(Self {
            shape,
            steps: 0,
            q: Tensor::from_host(stream, &q, rows)?,
            k: Tensor::from_host(stream, &k, rows)?,
            v: Tensor::from_host(stream, &v, rows)?,
            beta: Tensor::from_host(stream, &beta, of_heads)?,
            decay: Tensor::from_host(stream, &decay, of_heads)?,
            state: Tensor::zeros(stream, [batch, heads, dim, dim])?,
            out: Tensor::zeros(stream, rows)?,
            host: [widen(&q), widen(&k), widen(&v), widen(&beta)],
            host_decay: widen(&decay),
        })
    }
}

impl<T: Number> bench::Problem for Layer<T> {
    type Op = LinearAttention;

    fn queue(
        &mut self,
        op: &LinearAttention,
        stream: &Arc<CudaStream>,
    ) -> Result<(), Box<dyn Error>> {
        let step = Step {
            q: self.q.view(),
            k: self.k.view(),
            v: self.v.view(),
            decay: Decay::PerStep(self.decay.view()),
            rule: match self.shape.delta {
                true => Rule::Delta {
                    beta: self.beta.view(),
                },
                false => Rule::Linear,
            },
            bonus: None,
            state: self.state.view_mut(),
            z: None,
            state_batch_indices: None,
            out: self.out.view_mut(),
        };
        self.steps += 1;
        Ok(op.step(stream, Config::default(), step)?)
    }

    /// Compares a few heads with the reference after as many steps.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let StepShape {
            batch, heads, dim, ..
        } = self.shape;
        let out = widen(&self.out.to_host(stream)?);
        for (row, head) in [(0, 0), (batch / 2, heads / 3), (batch - 1, heads - 1)] {
            let at = row * heads + head;
            let of_head = |x: &[f64]| x[at * dim..][..dim].to_vec();
            let [q, k, v, beta] = &self.host;
            let (q, k, v) = (of_head(q), of_head(k), of_head(v));
            let mut state = vec![0.0; dim * dim];
            let mut expected = Vec::new();
            for _ in 0..self.steps {
                let step = reference::Step {
                    batch: 1,
                    heads: 1,
                    heads_q: 1,
                    heads_k: 1,
                    heads_v: 1,
                    dk: dim,
                    dv: dim,
                    q: &q,
                    k: &k,
                    v: &v,
                    decay: reference::Decay::PerStep(&self.host_decay[at..=at]),
                    rule: match self.shape.delta {
                        true => reference::Rule::Delta {
                            beta: &beta[at..=at],
                        },
                        false => reference::Rule::Linear,
                    },
                    state: &state,
                    ..reference::Step::default()
                };
                let moved = step.run()?;
                (state, expected) = (moved.final_state, moved.out);
            }
            let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            let within = Bound {
                max_abs: (T::UNIT + ARITHMETIC) * largest,
                rel_l2: None,
                row_rel_l2: None,
            };
            let verdict = Verdict::of(&of_head(&out), &expected, dim, within);
            if !verdict.pass() {
                return Err(format!("head {head} of row {row}: {verdict}").into());
            }
        }
        Ok(())
    }
}
