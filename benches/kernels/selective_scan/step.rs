//! One step of a Mamba-2 layer, whose states are nearly all that is moved.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::ssd as reference;
use seqmix::selective_scan::{SelectiveScan, Step, StepConfig};
use seqmix::{Dtype, Tensor};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::Number;
use crate::support::numbers;

/// Channels of a head and their states, as Mamba-2 has them.
const HEADDIM: usize = 64;
const STATES: usize = 128;

const CONFIG: StepConfig = StepConfig {
    numbers: seqmix::selective_scan::Numbers::Real,
    dt_softplus: true,
    dt_limit: (0.0, f32::INFINITY),
};

/// What states, step sizes and exponentials in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 1e-4;

#[derive(Clone, Copy)]
pub(crate) struct StepShape {
    dtype: Dtype,
    batch: usize,
    heads: usize,
}

impl StepShape {
    fn dim(&self) -> usize {
        self.heads * HEADDIM
    }
}

impl bench::Shape for StepShape {
    type Op = SelectiveScan;
    const CALL: &'static str = "selective_scan/step";

    /// The heads of Mamba-2 1.3B and 2.7B, for one sequence and for many.
    fn timed() -> Vec<Self> {
        let sizes = [(1, 64), (1, 80), (16, 64), (64, 80), (128, 64)];
        let of = |dtype| {
            sizes.map(|(batch, heads)| Self {
                dtype,
                batch,
                heads,
            })
        };
        [Dtype::F16, Dtype::BF16].into_iter().flat_map(of).collect()
    }

    fn counted() -> Vec<Self> {
        let (batch, heads) = (2, 8);
        let dtypes = [Dtype::F16, Dtype::BF16, Dtype::F32];
        dtypes
            .map(|dtype| Self {
                dtype,
                batch,
                heads,
            })
            .into()
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        format!("b{}_h{}_p{HEADDIM}_n{STATES}", self.batch, self.heads)
    }

    /// For each state the decay, the input's share and y.
    fn work(&self) -> Work {
        let Self {
            batch,
            heads,
            dtype,
        } = *self;
        let channels = batch * self.dim();
        let of_rows = 3 * channels + batch * heads + 2 * batch * STATES;
        Work {
            operations: (6 * channels * STATES) as u64,
            bytes: (2 * 4 * channels * STATES + dtype.bytes() * of_rows + 3 * 4 * heads) as u64,
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

/// A layer on the device, and the same numbers here. Each call goes a step further with the same input.
struct Layer<T> {
    shape: StepShape,
    steps: usize,
    state: Tensor<f32, 4>,
    x: Tensor<T, 3>,
    z: Tensor<T, 3>,
    dt: Tensor<T, 2>,
    b: Tensor<T, 3>,
    c: Tensor<T, 3>,
    /// A, D and dt_bias.
    weights: [Tensor<f32, 1>; 3],
    out: Tensor<T, 3>,
    /// x, z, dt, B and C.
    host: [Vec<f64>; 5],
    host_weights: [Vec<f64>; 3],
}

impl<T: Number> Layer<T> {
    fn new(shape: StepShape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let StepShape { batch, heads, .. } = shape;
        let rows = [batch, heads, HEADDIM];
        let counts = [batch * shape.dim(), batch * heads, batch * STATES];
        let [x, z] = [1, 2].map(|seed| numbers::<T>(seed, counts[0]));
        let dt = numbers::<T>(3, counts[1]);
        let [b, c] = [4, 5].map(|seed| numbers::<T>(seed, counts[2]));
        let a = numbers::<f32>(6, heads).into_iter().map(|x| -x.exp());
        let weights = [
            a.collect(),
            numbers::<f32>(7, heads),
            numbers::<f32>(8, heads),
        ];
        let vector = |x: &Vec<f32>| Tensor::from_host(stream, x, [heads]);
        let widen = |x: &[T]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        Ok(Self {
            shape,
            steps: 0,
            state: Tensor::zeros(stream, [batch, heads, HEADDIM, STATES])?,
            x: Tensor::from_host(stream, &x, rows)?,
            z: Tensor::from_host(stream, &z, rows)?,
            dt: Tensor::from_host(stream, &dt, [batch, heads])?,
            b: Tensor::from_host(stream, &b, [batch, 1, STATES])?,
            c: Tensor::from_host(stream, &c, [batch, 1, STATES])?,
            weights: [
                vector(&weights[0])?,
                vector(&weights[1])?,
                vector(&weights[2])?,
            ],
            out: Tensor::zeros(stream, rows)?,
            host: [widen(&x), widen(&z), widen(&dt), widen(&b), widen(&c)],
            host_weights: weights.map(|x: Vec<f32>| x.into_iter().map(Into::into).collect()),
        })
    }
}

impl<T: Number> bench::Problem for Layer<T> {
    type Op = SelectiveScan;

    fn queue(
        &mut self,
        op: &SelectiveScan,
        stream: &Arc<CudaStream>,
    ) -> Result<(), Box<dyn Error>> {
        let StepShape { batch, heads, .. } = self.shape;
        let [a, d, dt_bias] = &self.weights;
        // one number for all channels of a head
        let (channels, shared) = ([heads, HEADDIM], [1, 0]);
        let step = Step {
            d: Some(d.view().as_strided(channels, shared)?.into()),
            z: Some(self.z.view()),
            dt_bias: Some(dt_bias.view().as_strided(channels, shared)?.into()),
            ..Step::new(
                self.state.view_mut(),
                (
                    self.x.view(),
                    self.dt
                        .view()
                        .as_strided([batch, heads, HEADDIM], [heads, 1, 0])?,
                ),
                a.view().as_strided([heads, HEADDIM, STATES], [1, 0, 0])?,
                (self.b.view(), self.c.view()),
                self.out.view_mut(),
            )
        };
        self.steps += 1;
        Ok(op.step(stream, CONFIG, step)?)
    }

    /// Compares a few heads with the reference after as many steps.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let StepShape { batch, heads, .. } = self.shape;
        let out = self.out.to_host(stream)?;
        for (row, head) in [(0, 0), (batch / 2, heads / 3), (batch - 1, heads - 1)] {
            let [x, z, dt, b, c] = &self.host;
            let at = row * heads + head;
            let of_head = |x: &'_ [f64]| x[at * HEADDIM..][..HEADDIM].to_vec();
            let of_row = |x: &'_ [f64]| x[row * STATES..][..STATES].to_vec();
            let (x, z, b, c) = (of_head(x), of_head(z), of_row(b), of_row(c));
            let [a, d, dt_bias] = self.host_weights.each_ref().map(|x| [x[head]]);
            let mut state = vec![0.0; HEADDIM * STATES];
            let mut expected = Vec::new();
            for _ in 0..self.steps {
                let step = reference::Step {
                    batch: 1,
                    nheads: 1,
                    headdim: HEADDIM,
                    groups: 1,
                    dstate: STATES,
                    state: &state,
                    x: &x,
                    dt: &dt[at..=at],
                    a: &a,
                    b: &b,
                    c: &c,
                    d: Some(reference::Skip::PerHead(&d)),
                    z: Some(&z),
                    dt_bias: Some(&dt_bias),
                    dt_softplus: true,
                    dt_limit: (0.0, f64::INFINITY),
                };
                let moved = step.run()?;
                (state, expected) = (moved.final_states, moved.out);
            }
            let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            let within = Bound {
                max_abs: (T::UNIT + ARITHMETIC) * largest,
                rel_l2: None,
                row_rel_l2: None,
            };
            let found: Vec<f64> = out[at * HEADDIM..][..HEADDIM]
                .iter()
                .map(|&x| x.into())
                .collect();
            let verdict = Verdict::of(&found, &expected, HEADDIM, within);
            if !verdict.pass() {
                return Err(format!("head {head} of row {row}: {verdict}").into());
            }
        }
        Ok(())
    }
}
