//! The gated attention unit, all quadratic and in chunks of mixed forms: forward and backward.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::gated_attention_unit::{
    Affine, AffineMut, Backward, Config, Forward, GatedAttentionUnit, Mixed, Pair, PairMut, Unit,
};
use seqmix::reference::gated_attention_unit as reference;
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

/// A causal unit without bias.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    call: Call,
    dtype: Dtype,
    batch: usize,
    seqlen: usize,
    dz: usize,
    dv: usize,
    /// Steps of a chunk; `None`: all is quadratic.
    chunk: Option<usize>,
}

impl Shape {
    fn v_shape(&self) -> [usize; 3] {
        [self.batch, self.seqlen, self.dv]
    }

    fn z_shape(&self) -> [usize; 3] {
        [self.batch, self.seqlen, self.dz]
    }

    /// Steps that have scores with each other.
    fn reach(&self) -> usize {
        self.chunk.unwrap_or(self.seqlen)
    }

    fn config(&self) -> Config {
        Config {
            scale: 1.0 / self.reach() as f32,
            causal: true,
            channels: None,
        }
    }
}

impl bench::Shape for Shape {
    type Op = GatedAttentionUnit;
    const CALL: &'static str = "gated_attention_unit";

    /// The widths of FLASH's base model, whose chunks have 256 steps.
    fn timed() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for (batch, seqlen, chunk) in [
                (8, 512, None),
                (1, 4096, None),
                (1, 4096, Some(256)),
                (8, 2048, Some(256)),
                (1, 32_768, Some(256)),
            ] {
                shapes.extend([Call::Forward, Call::Backward].map(|call| Self {
                    call,
                    dtype,
                    batch,
                    seqlen,
                    dz: 128,
                    dv: 1536,
                    chunk,
                }));
            }
        }
        shapes
    }

    fn counted() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for (dz, dv) in [(64, 256), (128, 512), (256, 128)] {
                for chunk in [None, Some(64)] {
                    shapes.extend([Call::Forward, Call::Backward].map(|call| Self {
                        call,
                        dtype,
                        batch: 1,
                        seqlen: 192,
                        dz,
                        dv,
                        chunk,
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
            dz,
            dv,
            chunk,
            ..
        } = self;
        let chunk = chunk.map_or(String::new(), |chunk| format!("_c{chunk}"));
        format!("{call}_b{batch}_t{seqlen}_z{dz}_v{dv}{chunk}")
    }

    /// A score takes a product over z and one over values, three times as many backwards; a step of the linear part a
    /// product to its state and one from it, and three times as many backwards.
    fn work(&self) -> Work {
        let Self { dz, dv, .. } = *self;
        let rows = self.batch * self.seqlen;
        let scores = rows * (self.reach() + 1) / 2;
        let linear = if self.chunk.is_some() {
            2 * rows * dz * dv
        } else {
            0
        };
        let (times, bytes) = match self.call {
            Call::Forward => (1, 3 * dv + dz),
            Call::Backward => (3, 5 * dv + 2 * dz),
        };
        Work {
            operations: (2 * times * (scores * (dz + dv) + linear)) as u64,
            bytes: (self.dtype.bytes() * rows * bytes) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = GatedAttentionUnit>>, Box<dyn Error>> {
        Ok(match self.dtype {
            Dtype::F16 => Box::new(Problem::<f16>::new(self, stream)?),
            Dtype::BF16 => Box::new(Problem::<bf16>::new(self, stream)?),
            _ => Box::new(Problem::<f32>::new(self, stream)?),
        })
    }
}

/// A unit on the device, and its inputs as numbers.
struct Problem<T> {
    shape: Shape,
    host: [Vec<T>; 4],
    u: Tensor<T, 3>,
    v: Tensor<T, 3>,
    z: Tensor<T, 3>,
    dout: Tensor<T, 3>,
    gamma: Tensor<f32, 1>,
    beta: Tensor<f32, 1>,
    /// out, or du.
    out: Tensor<T, 3>,
    dv: Tensor<T, 3>,
    dz: Tensor<T, 3>,
    vectors: Vec<Tensor<f32, 1>>,
    workspace: Workspace,
    plan: String,
}

impl<T: Number> Problem<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let (v, z) = (shape.v_shape(), shape.z_shape());
        let count = |shape: [usize; 3]| shape.iter().product();
        let host =
            [(1, v), (2, v), (3, z), (4, v)].map(|(seed, shape)| numbers::<T>(seed, count(shape)));
        let rows = |numbers: &[T], shape| Tensor::from_host(stream, numbers, shape);
        let vectors = (0..8).map(|_| Tensor::zeros(stream, [shape.dz]));
        Ok(Self {
            shape,
            u: rows(&host[0], v)?,
            v: rows(&host[1], v)?,
            z: rows(&host[2], z)?,
            dout: rows(&host[3], v)?,
            gamma: Tensor::from_host(stream, &vec![1.0; shape.dz], [shape.dz])?,
            beta: Tensor::zeros(stream, [shape.dz])?,
            out: Tensor::zeros(stream, v)?,
            dv: Tensor::zeros(stream, v)?,
            dz: Tensor::zeros(stream, z)?,
            vectors: vectors.collect::<Result<_, _>>()?,
            workspace: Workspace::new(stream),
            plan: String::new(),
            host,
        })
    }

    /// The reference on some steps of the last row of the batch.
    fn reference(
        &self,
        steps: &Range<usize>,
        judge: impl Fn(&reference::Backward<'_>) -> Result<(), Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let Shape { dz, dv, .. } = self.shape;
        let [u, v, z, dout] = self.host.each_ref().map(|x| widen(self.part(x, steps)));
        let (gamma, beta) = (vec![1.0; dz], vec![0.0; dz]);
        let affine = reference::Affine {
            gamma: &gamma,
            beta: &beta,
        };
        let pair = reference::Pair {
            q: affine,
            k: affine,
        };
        let scale = self.shape.config().scale.into();
        let forward = reference::Forward {
            batch: 1,
            seqlen: steps.len(),
            dz,
            dv,
            u: &u,
            v: &v,
            z: &z,
            quadratic: pair,
            scale,
            causal: true,
            mixed: self.shape.chunk.map(|chunk| reference::Mixed {
                chunk,
                linear: pair,
                scale,
            }),
            ..reference::Forward::default()
        };
        judge(&reference::Backward {
            forward,
            dout: &dout,
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
    type Op = GatedAttentionUnit;

    fn queue(
        &mut self,
        op: &GatedAttentionUnit,
        stream: &Arc<CudaStream>,
    ) -> Result<(), Box<dyn Error>> {
        let affine = || Affine {
            gamma: self.gamma.view(),
            beta: self.beta.view(),
        };
        let pair = || Pair {
            q: affine(),
            k: affine(),
        };
        let config = self.shape.config();
        let unit = Unit {
            mixed: self.shape.chunk.map(|chunk| Mixed {
                chunk,
                linear: pair(),
                scale: config.scale,
            }),
            ..Unit::new(self.u.view(), self.v.view(), self.z.view(), pair())
        };
        let workspace = &mut self.workspace;
        if self.shape.call == Call::Forward {
            let tensors = Forward {
                unit,
                out: self.out.view_mut(),
            };
            let plan = op.plan(config, &tensors)?;
            self.plan = plan.to_string();
            workspace.reserve(plan.workspace_bytes())?;
            return Ok(op.forward(stream, config, tensors, workspace)?);
        }
        let mut vectors = self.vectors.iter_mut().map(Tensor::view_mut);
        let mut affine = || -> Result<_, Box<dyn Error>> {
            let mut next = || vectors.next().ok_or("eight vectors");
            Ok(AffineMut {
                dgamma: next()?,
                dbeta: next()?,
            })
        };
        let mut pair = || -> Result<_, Box<dyn Error>> {
            Ok(PairMut {
                q: affine()?,
                k: affine()?,
            })
        };
        let tensors = Backward {
            unit,
            dout: self.dout.view(),
            du: self.out.view_mut(),
            dv: self.dv.view_mut(),
            dz: self.dz.view_mut(),
            quadratic: pair()?,
            linear: match self.shape.chunk {
                Some(_) => Some(pair()?),
                None => None,
            },
            dbias: None,
        };
        let plan = op.backward_plan(config, &tensors)?;
        self.plan = plan.to_string();
        workspace.reserve(plan.workspace_bytes())?;
        Ok(op.backward(stream, config, tensors, workspace)?)
    }

    /// Compares the first steps of a row with the reference, which would take hours for all; and the gradient of the
    /// last values, which earlier steps do not know.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let seqlen = self.shape.seqlen;
        // whole chunks, of which the reference computes a state each
        let part = self.shape.chunk.unwrap_or(65).min(seqlen);
        let (first, last) = (0..part, seqlen - part..seqlen);
        let out = self.out.to_host(stream)?;
        if self.shape.call == Call::Forward {
            return self.reference(&first, |problem| {
                let exact = problem.forward.run()?;
                let naive = problem.forward.run_rounded(T::round)?;
                judge("out", self.part(&out, &first), &exact, &naive)
            });
        }
        let dv = self.dv.to_host(stream)?;
        self.reference(&first, |problem| {
            let (exact, naive) = (problem.run()?, problem.run_rounded(T::round)?);
            judge("du", self.part(&out, &first), &exact.du, &naive.du)
        })?;
        self.reference(&last, |problem| {
            let (exact, naive) = (problem.run()?, problem.run_rounded(T::round)?);
            judge("dv", self.part(&dv, &last), &exact.dv, &naive.dv)
        })
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
