//! One step, with a state that each call moves on.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::rwkv7 as reference;
use seqmix::rwkv7::{Rwkv7, Step};
use seqmix::{Dtype, Tensor};

use super::{ARITHMETIC, Host, KEYS, SIZE, Sizes, widen};
use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::Number;

#[derive(Clone, Copy)]
pub(crate) struct StepShape {
    dtype: Dtype,
    batch: usize,
    heads: usize,
}

impl StepShape {
    fn sizes(self) -> Sizes {
        let Self {
            dtype,
            batch,
            heads,
        } = self;
        Sizes {
            dtype,
            batch,
            seqlen: 1,
            heads,
        }
    }
}

impl bench::Shape for StepShape {
    type Op = Rwkv7;
    const CALL: &'static str = "rwkv7/step";

    fn timed() -> Vec<Self> {
        let sizes = [(1, 32), (1, 40), (64, 32), (256, 40)];
        let of = |(batch, heads)| Self {
            dtype: Dtype::F16,
            batch,
            heads,
        };
        sizes.map(of).into()
    }

    fn counted() -> Vec<Self> {
        let dtypes = [Dtype::F16, Dtype::BF16, Dtype::F32];
        dtypes
            .map(|dtype| Self {
                dtype,
                batch: 2,
                heads: 4,
            })
            .into()
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        format!("b{}_h{}", self.batch, self.heads)
    }

    /// A state is read and written.
    fn work(&self) -> Work {
        self.sizes().work(KEYS + 2, 1 + 2 * SIZE, 5)
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Rwkv7>>, Box<dyn Error>> {
        Ok(match self.dtype {
            Dtype::F16 => Box::new(StepProblem::<f16>::new(self, stream)?),
            Dtype::BF16 => Box::new(StepProblem::<bf16>::new(self, stream)?),
            _ => Box::new(StepProblem::<f32>::new(self, stream)?),
        })
    }
}

/// Each call goes a step further with the same numbers, which the state soon stops to change by.
struct StepProblem<T> {
    shape: StepShape,
    r: Tensor<T, 3>,
    k: Tensor<T, 3>,
    v: Tensor<T, 3>,
    a: Tensor<T, 3>,
    b: Tensor<T, 3>,
    decay: Tensor<f32, 3>,
    state: Tensor<f32, 4>,
    out: Tensor<T, 3>,
    host: Host<T>,
    steps: usize,
}

impl<T: Number> StepProblem<T> {
    fn new(shape: StepShape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let StepShape { batch, heads, .. } = shape;
        let host = Host::<T>::new(shape.sizes().elements());
        let rows = [batch, heads, SIZE];
        let upload = |x: &[T]| Tensor::from_host(stream, x, rows);
        Ok(Self {
            shape,
            r: upload(&host.r)?,
            k: upload(&host.k)?,
            v: upload(&host.v)?,
            a: upload(&host.a)?,
            b: upload(&host.b)?,
            decay: Tensor::from_host(stream, &host.decay, rows)?,
            state: Tensor::zeros(stream, [batch, heads, SIZE, SIZE])?,
            out: Tensor::zeros(stream, rows)?,
            host,
            steps: 0,
        })
    }
}

impl<T: Number> bench::Problem for StepProblem<T> {
    type Op = Rwkv7;

    fn queue(&mut self, op: &Rwkv7, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let tensors = Step {
            r: self.r.view(),
            decay: self.decay.view(),
            k: self.k.view(),
            v: self.v.view(),
            a: self.a.view(),
            b: self.b.view(),
            state: self.state.view_mut(),
            state_batch_indices: None,
            out: self.out.view_mut(),
        };
        self.steps += 1;
        Ok(op.step(stream, tensors)?)
    }

    /// The first head, after as many steps as there were; thousands change nothing.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let steps = self.steps.min(2000);
        let first = |x: &[f64]| x[..SIZE].repeat(steps);
        let Host { r, k, v, a, b, .. } = &self.host;
        let [r, k, v, a, b] = [r, k, v, a, b].map(|x| first(&widen(x)));
        let decay = first(&widen(&self.host.decay));
        let forward = reference::Forward {
            batch: 1,
            seqlen: steps,
            heads: 1,
            dk: SIZE,
            dv: SIZE,
            r: &r,
            decay: &decay,
            k: &k,
            v: &v,
            a: &a,
            b: &b,
            ..reference::Forward::default()
        };
        let expected = forward.run()?.out;
        let expected = &expected[expected.len() - SIZE..];
        let out = widen(&self.out.to_host(stream)?);
        let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        let within = Bound {
            max_abs: (T::UNIT + ARITHMETIC) * largest,
            rel_l2: None,
            row_rel_l2: None,
        };
        let verdict = Verdict::of(&out[..SIZE], expected, SIZE, within);
        match verdict.pass() {
            true => Ok(()),
            false => Err(format!("{}: {verdict}", self.shape.sizes().name()).into()),
        }
    }
}
