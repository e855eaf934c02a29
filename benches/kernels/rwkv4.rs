//! RWKV-4's average: both passes and one step, all of which only move memory.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::rwkv4 as reference;
use seqmix::rwkv4::{Backward, Config, Forward, Inputs, Rwkv4, StateMut, Step};
use seqmix::{Dtype, Tensor, Workspace};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::Number;
use crate::support::numbers;

/// What averages and exponentials in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 1e-5;

/// Floats of a channel's state.
const STATE: usize = 3;

#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    dtype: Dtype,
    batch: usize,
    seqlen: usize,
    dim: usize,
}

impl Sizes {
    /// Of the models with 169 million, 1.5 and 14 billion parameters: few channels, which are cut, and many.
    fn timed() -> Vec<Self> {
        let sizes = [
            (1, 4096, 768),
            (8, 2048, 768),
            (8, 2048, 2048),
            (8, 2048, 5120),
        ];
        let of = |dtype| {
            sizes.map(|(batch, seqlen, dim)| Self {
                dtype,
                batch,
                seqlen,
                dim,
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
                seqlen: 512,
                dim: 256,
            })
            .into()
    }

    fn name(&self) -> String {
        format!("b{}_t{}_d{}", self.batch, self.seqlen, self.dim)
    }

    fn elements(&self) -> usize {
        self.batch * self.seqlen * self.dim
    }

    /// The work for so many tensors, and operations of an element.
    fn work(&self, tensors: usize, operations: usize) -> Work {
        Work {
            operations: (operations * self.elements()) as u64,
            bytes: (tensors * self.dtype.bytes() * self.elements()) as u64,
        }
    }
}

/// A layer on the device, and the same numbers here.
struct Layer<T> {
    sizes: Sizes,
    k: Tensor<T, 3>,
    v: Tensor<T, 3>,
    /// Decay and bonus.
    parameters: [Tensor<f32, 1>; 2],
    host: [Vec<f64>; 2],
    host_parameters: [Vec<f64>; 2],
}

fn widen<T: Number>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

impl<T: Number> Layer<T> {
    fn new(sizes: Sizes, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let Sizes {
            batch, seqlen, dim, ..
        } = sizes;
        let shape = [batch, seqlen, dim];
        let [k, v] = [1, 2].map(|seed| numbers::<T>(seed, sizes.elements()));
        let decay = numbers::<f32>(3, dim).into_iter().map(|x| -x.exp());
        let parameters = [decay.collect(), numbers::<f32>(4, dim)];
        let vector = |x: &Vec<f32>| Tensor::from_host(stream, x, [dim]);
        Ok(Self {
            sizes,
            k: Tensor::from_host(stream, &k, shape)?,
            v: Tensor::from_host(stream, &v, shape)?,
            parameters: [vector(&parameters[0])?, vector(&parameters[1])?],
            host: [widen(&k), widen(&v)],
            host_parameters: parameters.map(|x| widen(&x)),
        })
    }

    fn inputs(&self) -> Inputs<'_, T> {
        let [decay, bonus] = &self.parameters;
        Inputs {
            k: self.k.view(),
            v: self.v.view(),
            decay: decay.view(),
            bonus: bonus.view(),
            initial_state: None,
            cu_seqlens: None,
        }
    }

    /// The elements of one channel in a row of the batch.
    fn channel<E: Copy>(&self, x: &[E], row: usize, channel: usize) -> Vec<E> {
        let Sizes { seqlen, dim, .. } = self.sizes;
        let at = |step| (row * seqlen + step) * dim + channel;
        (0..seqlen).map(|step| x[at(step)]).collect()
    }

    /// Judges a few channels by what `of` makes of the reference of each.
    fn judge(
        &self,
        found: &[T],
        of: impl Fn(reference::Forward<'_>, [usize; 2]) -> Result<Vec<f64>, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let Sizes {
            batch, seqlen, dim, ..
        } = self.sizes;
        let channels = [(0, 0), (batch / 2, dim / 3), (batch - 1, dim - 1)];
        for (row, channel) in channels {
            let [k, v] = self.host.each_ref().map(|x| self.channel(x, row, channel));
            let [decay, bonus] = self.host_parameters.each_ref().map(|x| [x[channel]]);
            let forward = reference::Forward {
                batch: 1,
                seqlen,
                dim: 1,
                decay: &decay,
                bonus: &bonus,
                k: &k,
                v: &v,
                ..reference::Forward::default()
            };
            let expected = of(forward, [row, channel])?;
            let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            let within = Bound {
                max_abs: (T::UNIT + ARITHMETIC) * largest,
                rel_l2: None,
                row_rel_l2: None,
            };
            let found = widen(&self.channel(found, row, channel));
            let verdict = Verdict::of(&found, &expected, seqlen, within);
            if !verdict.pass() {
                return Err(format!("channel {channel} of row {row}: {verdict}").into());
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
pub(crate) struct ForwardShape(Sizes);

impl bench::Shape for ForwardShape {
    type Op = Rwkv4;
    const CALL: &'static str = "rwkv4/forward";

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

    /// k, v and out; of an element two pairs of factors and two sums each.
    fn work(&self) -> Work {
        self.0.work(3, 16)
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Rwkv4>>, Box<dyn Error>> {
        Ok(match self.0.dtype {
            Dtype::F16 => Box::new(ForwardProblem::<f16>::new(self.0, stream)?),
            Dtype::BF16 => Box::new(ForwardProblem::<bf16>::new(self.0, stream)?),
            _ => Box::new(ForwardProblem::<f32>::new(self.0, stream)?),
        })
    }
}

struct ForwardProblem<T> {
    layer: Layer<T>,
    out: Tensor<T, 3>,
    workspace: Workspace,
    plan: String,
}

impl<T: Number> ForwardProblem<T> {
    fn new(sizes: Sizes, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let layer = Layer::new(sizes, stream)?;
        Ok(Self {
            out: Tensor::zeros(stream, layer.k.shape())?,
            layer,
            workspace: Workspace::new(stream),
            plan: String::new(),
        })
    }
}

impl<T: Number> bench::Problem for ForwardProblem<T> {
    type Op = Rwkv4;

    fn queue(&mut self, op: &Rwkv4, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let tensors = Forward {
            inputs: self.layer.inputs(),
            out: self.out.view_mut(),
            final_state: None,
        };
        if self.plan.is_empty() {
            let plan = op.plan(Config::default(), &tensors)?;
            self.workspace.reserve(plan.workspace_bytes())?;
            self.plan = plan.to_string();
        }
        Ok(op.forward(stream, Config::default(), tensors, &mut self.workspace)?)
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
    type Op = Rwkv4;
    const CALL: &'static str = "rwkv4/backward";

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

    /// k, v, dout, dk and dv.
    fn work(&self) -> Work {
        self.0.work(5, 40)
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Rwkv4>>, Box<dyn Error>> {
        Ok(match self.0.dtype {
            Dtype::F16 => Box::new(BackwardProblem::<f16>::new(self.0, stream)?),
            Dtype::BF16 => Box::new(BackwardProblem::<bf16>::new(self.0, stream)?),
            _ => Box::new(BackwardProblem::<f32>::new(self.0, stream)?),
        })
    }
}

struct BackwardProblem<T> {
    layer: Layer<T>,
    dout: Tensor<T, 3>,
    host_dout: Vec<f64>,
    dk: Tensor<T, 3>,
    dv: Tensor<T, 3>,
    ddecay: Tensor<f32, 1>,
    dbonus: Tensor<f32, 1>,
    workspace: Workspace,
    plan: String,
}

impl<T: Number> BackwardProblem<T> {
    fn new(sizes: Sizes, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let layer = Layer::new(sizes, stream)?;
        let (shape, dim) = (layer.k.shape(), [sizes.dim]);
        let dout = numbers::<T>(5, sizes.elements());
        Ok(Self {
            dout: Tensor::from_host(stream, &dout, shape)?,
            host_dout: widen(&dout),
            dk: Tensor::zeros(stream, shape)?,
            dv: Tensor::zeros(stream, shape)?,
            ddecay: Tensor::zeros(stream, dim)?,
            dbonus: Tensor::zeros(stream, dim)?,
            layer,
            workspace: Workspace::new(stream),
            plan: String::new(),
        })
    }
}

impl<T: Number> bench::Problem for BackwardProblem<T> {
    type Op = Rwkv4;

    fn queue(&mut self, op: &Rwkv4, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let tensors = Backward {
            inputs: self.layer.inputs(),
            dout: self.dout.view(),
            dfinal_state: None,
            dk: self.dk.view_mut(),
            dv: self.dv.view_mut(),
            ddecay: Some(self.ddecay.view_mut()),
            dbonus: Some(self.dbonus.view_mut()),
            dinitial_state: None,
        };
        if self.plan.is_empty() {
            let plan = op.backward_plan(Config::default(), &tensors)?;
            self.workspace.reserve(plan.workspace_bytes())?;
            self.plan = plan.to_string();
        }
        Ok(op.backward(stream, Config::default(), tensors, &mut self.workspace)?)
    }

    /// `dk`, which all that is carried goes into.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let dk = self.dk.to_host(stream)?;
        self.layer.judge(&dk, |forward, [row, channel]| {
            let dout = self.layer.channel(&self.host_dout, row, channel);
            let backward = reference::Backward {
                forward,
                dout: &dout,
                dfinal_state: None,
            };
            Ok(backward.run()?.dk)
        })
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct StepShape {
    dtype: Dtype,
    batch: usize,
    dim: usize,
}

impl bench::Shape for StepShape {
    type Op = Rwkv4;
    const CALL: &'static str = "rwkv4/step";

    fn timed() -> Vec<Self> {
        let sizes = [(1, 2048), (1, 5120), (64, 2048), (256, 5120)];
        let of = |(batch, dim)| Self {
            dtype: Dtype::F16,
            batch,
            dim,
        };
        sizes.map(of).into()
    }

    fn counted() -> Vec<Self> {
        let dtypes = [Dtype::F16, Dtype::BF16, Dtype::F32];
        dtypes
            .map(|dtype| Self {
                dtype,
                batch: 2,
                dim: 768,
            })
            .into()
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        format!("b{}_d{}", self.batch, self.dim)
    }

    fn work(&self) -> Work {
        let channels = self.batch * self.dim;
        Work {
            operations: (16 * channels) as u64,
            bytes: ((3 * self.dtype.bytes() + 2 * 4 * STATE) * channels) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Rwkv4>>, Box<dyn Error>> {
        Ok(match self.dtype {
            Dtype::F16 => Box::new(StepProblem::<f16>::new(self, stream)?),
            Dtype::BF16 => Box::new(StepProblem::<bf16>::new(self, stream)?),
            _ => Box::new(StepProblem::<f32>::new(self, stream)?),
        })
    }
}

/// Each call goes a step further with the same key and value, which then stay the average.
struct StepProblem<T> {
    shape: StepShape,
    k: Tensor<T, 2>,
    v: Tensor<T, 2>,
    parameters: [Tensor<f32, 1>; 2],
    /// Numerator, denominator, exponent.
    state: [Tensor<f32, 2>; STATE],
    out: Tensor<T, 2>,
    host_v: Vec<f64>,
}

impl<T: Number> StepProblem<T> {
    fn new(shape: StepShape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let StepShape { batch, dim, .. } = shape;
        let rows = [batch, dim];
        let [k, v] = [1, 2].map(|seed| numbers::<T>(seed, batch * dim));
        let decay: Vec<f32> = numbers::<f32>(3, dim).iter().map(|x| -x.exp()).collect();
        let nothing = vec![f32::NEG_INFINITY; batch * dim];
        Ok(Self {
            shape,
            k: Tensor::from_host(stream, &k, rows)?,
            v: Tensor::from_host(stream, &v, rows)?,
            parameters: [
                Tensor::from_host(stream, &decay, [dim])?,
                Tensor::from_host(stream, &numbers::<f32>(4, dim), [dim])?,
            ],
            state: [
                Tensor::zeros(stream, rows)?,
                Tensor::zeros(stream, rows)?,
                Tensor::from_host(stream, &nothing, rows)?,
            ],
            out: Tensor::zeros(stream, rows)?,
            host_v: widen(&v),
        })
    }
}

impl<T: Number> bench::Problem for StepProblem<T> {
    type Op = Rwkv4;

    fn queue(&mut self, op: &Rwkv4, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let [decay, bonus] = &self.parameters;
        let [numerator, denominator, exponent] = self.state.each_mut().map(Tensor::view_mut);
        let tensors = Step {
            k: self.k.view(),
            v: self.v.view(),
            decay: decay.view(),
            bonus: bonus.view(),
            state: StateMut {
                numerator,
                denominator,
                exponent,
            },
            state_batch_indices: None,
            out: self.out.view_mut(),
        };
        Ok(op.step(stream, tensors)?)
    }

    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let out = widen(&self.out.to_host(stream)?);
        let largest = self
            .host_v
            .iter()
            .fold(0.0_f64, |most, x| most.max(x.abs()));
        let within = Bound {
            max_abs: (T::UNIT + ARITHMETIC) * largest,
            rel_l2: None,
            row_rel_l2: None,
        };
        let verdict = Verdict::of(&out, &self.host_v, self.shape.dim, within);
        match verdict.pass() {
            true => Ok(()),
            false => Err(verdict.to_string().into()),
        }
    }
}
