//! RWKV-7's recurrence: both passes, and in a file of its own one step.

mod step;

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::rwkv7 as reference;
use seqmix::rwkv7::{Backward, Config, Forward, Inputs, Rwkv7};
use seqmix::{Dtype, Tensor, Workspace};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::Number;
use crate::support::numbers;

pub(crate) use step::StepShape;

/// What sums in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 1e-5;

/// Channels of a head of all models.
const SIZE: usize = 64;

/// Tensors of keys in the elements' type: r, k, a and b.
const KEYS: usize = 4;

#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    dtype: Dtype,
    batch: usize,
    seqlen: usize,
    heads: usize,
}

impl Sizes {
    /// Of the models with 0.19, 1.5 and 2.9 billion parameters.
    fn timed() -> Vec<Self> {
        let sizes = [(1, 4096, 12), (8, 4096, 12), (1, 4096, 32), (8, 4096, 40)];
        let of = |dtype| {
            sizes.map(|(batch, seqlen, heads)| Self {
                dtype,
                batch,
                seqlen,
                heads,
            })
        };
        [Dtype::F16, Dtype::BF16].into_iter().flat_map(of).collect()
    }

    fn counted() -> Vec<Self> {
        let dtypes = [Dtype::F16, Dtype::BF16, Dtype::F32];
        dtypes
            .map(|dtype| Self {
                dtype,
                batch: 1,
                seqlen: 64,
                heads: 2,
            })
            .into()
    }

    fn name(&self) -> String {
        format!("b{}_t{}_h{}", self.batch, self.seqlen, self.heads)
    }

    fn shape(&self) -> [usize; 4] {
        [self.batch, self.seqlen, self.heads, SIZE]
    }

    fn elements(&self) -> usize {
        self.shape().into_iter().product()
    }

    /// The work for so many tensors of elements and of floats, and multiplications with each number of a state.
    fn work(&self, tensors: usize, floats: usize, multiplications: usize) -> Work {
        let bytes = tensors * self.dtype.bytes() + floats * size_of::<f32>();
        Work {
            operations: (2 * multiplications * SIZE * self.elements()) as u64,
            bytes: (bytes * self.elements()) as u64,
        }
    }
}

fn widen<T: Number>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// What a layer reads, in row-major order: r, k, v, dout; a and b of keys of length 1; logarithms of decays.
struct Host<T> {
    r: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    a: Vec<T>,
    b: Vec<T>,
    dout: Vec<T>,
    decay: Vec<f32>,
}

impl<T: Number> Host<T> {
    fn new(count: usize) -> Self {
        let [r, k, v, dout] = [1, 2, 3, 4].map(|seed| numbers::<T>(seed, count));
        let removal = numbers::<f32>(5, count);
        let units = removal.chunks(SIZE).flat_map(|key| {
            let length = key.iter().map(|x| x * x).sum::<f32>().sqrt();
            key.iter().map(move |x| f64::from(x / length))
        });
        let units: Vec<f64> = units.collect();
        let decay = numbers::<f32>(6, count).into_iter();
        Self {
            r,
            k,
            v,
            a: units.iter().map(|x| T::narrow(-x)).collect(),
            b: units.iter().map(|x| T::narrow(0.5 * x)).collect(),
            dout,
            decay: decay.map(|x| -0.6 / (1.0 + x.exp())).collect(),
        }
    }
}

/// A layer on the device, and the same numbers here.
struct Layer<T> {
    sizes: Sizes,
    r: Tensor<T, 4>,
    k: Tensor<T, 4>,
    v: Tensor<T, 4>,
    a: Tensor<T, 4>,
    b: Tensor<T, 4>,
    decay: Tensor<f32, 4>,
    host: Host<T>,
}

impl<T: Number> Layer<T> {
    fn new(sizes: Sizes, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let host = Host::<T>::new(sizes.elements());
        let upload = |x: &[T]| Tensor::from_host(stream, x, sizes.shape());
        Ok(Self {
            sizes,
            r: upload(&host.r)?,
            k: upload(&host.k)?,
            v: upload(&host.v)?,
            a: upload(&host.a)?,
            b: upload(&host.b)?,
            decay: Tensor::from_host(stream, &host.decay, sizes.shape())?,
            host,
        })
    }

    fn inputs(&self) -> Inputs<'_, T> {
        Inputs {
            r: self.r.view(),
            decay: self.decay.view(),
            k: self.k.view(),
            v: self.v.view(),
            a: self.a.view(),
            b: self.b.view(),
            initial_state: None,
            cu_seqlens: None,
        }
    }

    /// The elements of one head in a row of the batch.
    fn head<E: Copy>(&self, x: &[E], row: usize, head: usize) -> Vec<E> {
        let Sizes { seqlen, heads, .. } = self.sizes;
        let steps = (0..seqlen).map(|step| ((row * seqlen + step) * heads + head) * SIZE);
        steps.flat_map(|at| x[at..at + SIZE].to_vec()).collect()
    }

    /// Judges the first head and the last one by what `of` makes of the reference of each.
    fn judge(
        &self,
        found: &[T],
        of: impl Fn(reference::Forward<'_>, [usize; 2]) -> Result<Vec<f64>, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let Sizes {
            batch,
            seqlen,
            heads,
            ..
        } = self.sizes;
        for (row, head) in [(0, 0), (batch - 1, heads - 1)] {
            let Host { r, k, v, a, b, .. } = &self.host;
            let [r, k, v, a, b] = [r, k, v, a, b].map(|x| widen(&self.head(x, row, head)));
            let decay = widen(&self.head(&self.host.decay, row, head));
            let forward = reference::Forward {
                batch: 1,
                seqlen,
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
            let expected = of(forward, [row, head])?;
            let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            let within = Bound {
                max_abs: (T::UNIT + ARITHMETIC) * largest,
                rel_l2: None,
                row_rel_l2: None,
            };
            let found = widen(&self.head(found, row, head));
            let verdict = Verdict::of(&found, &expected, SIZE, within);
            if !verdict.pass() {
                return Err(format!("head {head} of row {row}: {verdict}").into());
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
pub(crate) struct ForwardShape(Sizes);

impl bench::Shape for ForwardShape {
    type Op = Rwkv7;
    const CALL: &'static str = "rwkv7/forward";

    fn timed() -> Vec<Self> {
        Sizes::timed().into_iter().map(Self).collect()
    }

    fn counted() -> Vec<Self> {
        Sizes::counted().into_iter().map(Self).collect()
    }

    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn name(&self) -> String {
        self.0.name()
    }

    /// Keys, v and out; decays.
    fn work(&self) -> Work {
        self.0.work(KEYS + 2, 1, 5)
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Rwkv7>>, Box<dyn Error>> {
        Ok(match self.0.dtype {
            Dtype::F16 => Box::new(ForwardProblem::<f16>::new(self.0, stream)?),
            Dtype::BF16 => Box::new(ForwardProblem::<bf16>::new(self.0, stream)?),
            _ => Box::new(ForwardProblem::<f32>::new(self.0, stream)?),
        })
    }
}

struct ForwardProblem<T> {
    layer: Layer<T>,
    out: Tensor<T, 4>,
    plan: String,
}

impl<T: Number> ForwardProblem<T> {
    fn new(sizes: Sizes, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        Ok(Self {
            layer: Layer::new(sizes, stream)?,
            out: Tensor::zeros(stream, sizes.shape())?,
            plan: String::new(),
        })
    }
}

impl<T: Number> bench::Problem for ForwardProblem<T> {
    type Op = Rwkv7;

    fn queue(&mut self, op: &Rwkv7, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let tensors = Forward {
            inputs: self.layer.inputs(),
            out: self.out.view_mut(),
            lookups: None,
            final_state: None,
        };
        if self.plan.is_empty() {
            self.plan = op.plan(Config::default(), &tensors)?.to_string();
        }
        Ok(op.forward(stream, Config::default(), tensors)?)
    }

    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let out = self.out.to_host(stream)?;
        self.layer.judge(&out, |forward, _| Ok(forward.run()?.out))
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct BackwardShape(Sizes);

impl bench::Shape for BackwardShape {
    type Op = Rwkv7;
    const CALL: &'static str = "rwkv7/backward";

    fn timed() -> Vec<Self> {
        Sizes::timed().into_iter().map(Self).collect()
    }

    fn counted() -> Vec<Self> {
        Sizes::counted().into_iter().map(Self).collect()
    }

    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn name(&self) -> String {
        self.0.name()
    }

    /// Keys, v and their gradients, and dout; decays, their gradients and lookups.
    fn work(&self) -> Work {
        self.0.work(2 * (KEYS + 1) + 1, 3, 7 + 5)
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Rwkv7>>, Box<dyn Error>> {
        Ok(match self.0.dtype {
            Dtype::F16 => Box::new(BackwardProblem::<f16>::new(self.0, stream)?),
            Dtype::BF16 => Box::new(BackwardProblem::<bf16>::new(self.0, stream)?),
            _ => Box::new(BackwardProblem::<f32>::new(self.0, stream)?),
        })
    }
}

struct BackwardProblem<T> {
    layer: Layer<T>,
    out: Tensor<T, 4>,
    dout: Tensor<T, 4>,
    /// Of r, k, v, a and b.
    gradients: [Tensor<T, 4>; 5],
    ddecay: Tensor<f32, 4>,
    lookups: Tensor<f32, 4>,
    /// Whether lookups are there.
    found: bool,
    workspace: Workspace,
    plan: String,
}

impl<T: Number> BackwardProblem<T> {
    fn new(sizes: Sizes, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let layer = Layer::new(sizes, stream)?;
        let shape = sizes.shape();
        let zeros = || Tensor::zeros(stream, shape);
        Ok(Self {
            out: zeros()?,
            dout: Tensor::from_host(stream, &layer.host.dout, shape)?,
            gradients: [zeros()?, zeros()?, zeros()?, zeros()?, zeros()?],
            ddecay: Tensor::zeros(stream, shape)?,
            lookups: Tensor::zeros(stream, shape)?,
            found: false,
            layer,
            workspace: Workspace::new(stream),
            plan: String::new(),
        })
    }
}

impl<T: Number> bench::Problem for BackwardProblem<T> {
    type Op = Rwkv7;

    /// What steps look up is found by the first call, which is not timed.
    fn queue(&mut self, op: &Rwkv7, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        if !self.found {
            let forward = Forward {
                inputs: self.layer.inputs(),
                out: self.out.view_mut(),
                lookups: Some(self.lookups.view_mut()),
                final_state: None,
            };
            op.forward(stream, Config::default(), forward)?;
            self.found = true;
        }
        let [dr, dk, dv, da, db] = self.gradients.each_mut().map(Tensor::view_mut);
        let tensors = Backward {
            inputs: self.layer.inputs(),
            lookups: self.lookups.view(),
            dout: self.dout.view(),
            dfinal_state: None,
            dr,
            ddecay: self.ddecay.view_mut(),
            dk,
            dv,
            da,
            db,
            dinitial_state: None,
        };
        if self.plan.is_empty() {
            let plan = op.backward_plan(&tensors)?;
            self.workspace.reserve(plan.workspace_bytes())?;
            self.plan = plan.to_string();
        }
        Ok(op.backward(stream, tensors, &mut self.workspace)?)
    }

    /// `da`, which all that is carried goes into.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let [_, _, _, da, _] = &self.gradients;
        let da = da.to_host(stream)?;
        self.layer.judge(&da, |forward, [row, head]| {
            let dout = widen(&self.layer.head(&self.layer.host.dout, row, head));
            let backward = reference::Backward {
                forward,
                dout: &dout,
                dfinal_state: None,
            };
            Ok(backward.run()?.da)
        })
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
