//! Attention, forward.

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::attention::{Attention, Bias, Config, Forward, Mask};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::attention as reference;
use seqmix::{Dtype, Tensor};

use crate::bench::{self, Work};
use crate::measure::Verdict;
use crate::naive::{Narrow, bound, lse_bound};
use crate::support::numbers;

/// What kernels exist for.
const DTYPES: [Dtype; 2] = [Dtype::F16, Dtype::BF16];

/// A problem with as many keys as queries.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    batch: usize,
    seq: usize,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    mask: Mask,
    dtype: Dtype,
}

impl bench::Shape for Shape {
    type Op = Attention;
    const CALL: &'static str = "attention/forward";

    /// 16 thousand positions of width 2048, and fewer heads of keys than of queries as models have them.
    fn timed() -> Vec<Self> {
        let mut shapes = Vec::new();
        for (head_dim, mask) in [64, 128, 256]
            .into_iter()
            .flat_map(|dim| [(dim, Mask::Full), (dim, Mask::Causal)])
        {
            for seq in [1024, 4096, 16384] {
                let heads = 2048 / head_dim;
                shapes.extend(DTYPES.map(|dtype| Self {
                    batch: 16384 / seq,
                    seq,
                    heads,
                    heads_kv: heads,
                    head_dim,
                    mask,
                    dtype,
                }));
            }
        }
        shapes.extend(DTYPES.map(|dtype| Self {
            batch: 2,
            seq: 4096,
            heads: 32,
            heads_kv: 8,
            head_dim: 128,
            mask: Mask::Causal,
            dtype,
        }));
        shapes
    }

    fn counted() -> Vec<Self> {
        let mut shapes = Vec::new();
        for head_dim in [32, 64, 96, 128, 160, 192, 256] {
            for mask in [Mask::Full, Mask::Causal] {
                shapes.extend(DTYPES.map(|dtype| Self {
                    batch: 1,
                    seq: 256,
                    heads: 2,
                    heads_kv: 1,
                    head_dim,
                    mask,
                    dtype,
                }));
            }
        }
        shapes
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        let Self {
            batch,
            seq,
            heads,
            heads_kv,
            head_dim,
            mask,
            ..
        } = self;
        let mask = format!("{mask:?}").to_lowercase();
        format!("b{batch}_s{seq}_h{heads}_kv{heads_kv}_d{head_dim}_{mask}")
    }

    fn work(&self) -> Work {
        let Self {
            batch,
            seq,
            heads,
            heads_kv,
            head_dim,
            mask,
            ..
        } = *self;
        let scores = (batch * heads * seq * seq) as u64;
        let seen = if mask == Mask::Causal {
            scores / 2
        } else {
            scores
        };
        let elements = 2 * batch * seq * (heads + heads_kv) * head_dim;
        let lse = batch * heads * seq;
        // A multiplication and an addition for each dimension of both products.
        Work {
            operations: 4 * seen * head_dim as u64,
            bytes: (2 * elements + 4 * lse) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Attention>>, Box<dyn Error>> {
        Ok(match self.dtype {
            Dtype::F16 => Box::new(Problem::<f16>::new(self, stream)?),
            _ => Box::new(Problem::<bf16>::new(self, stream)?),
        })
    }
}

/// A problem on the device.
struct Problem<T> {
    shape: Shape,
    q: Tensor<T, 4>,
    k: Tensor<T, 4>,
    v: Tensor<T, 4>,
    out: Tensor<T, 4>,
    lse: Tensor<f32, 3>,
    host: [Vec<T>; 3],
}

impl<T: Narrow> Problem<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> seqmix::Result<Self> {
        let Shape {
            batch,
            seq,
            heads,
            heads_kv,
            head_dim,
            ..
        } = shape;
        let (shape_q, shape_k) = (
            [batch, seq, heads, head_dim],
            [batch, seq, heads_kv, head_dim],
        );
        let host = [
            numbers(1, shape_q.iter().product()),
            numbers(2, shape_k.iter().product()),
            numbers(3, shape_k.iter().product()),
        ];
        Ok(Self {
            shape,
            q: Tensor::from_host(stream, &host[0], shape_q)?,
            k: Tensor::from_host(stream, &host[1], shape_k)?,
            v: Tensor::from_host(stream, &host[2], shape_k)?,
            out: Tensor::zeros(stream, shape_q)?,
            lse: Tensor::zeros(stream, [batch, heads, seq])?,
            host,
        })
    }
}

impl<T: Narrow> bench::Problem for Problem<T> {
    type Op = Attention;

    fn queue(&mut self, op: &Attention, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let tensors = Forward {
            q: self.q.view(),
            k: self.k.view(),
            v: self.v.view(),
            out: self.out.view_mut(),
            lse: Some(self.lse.view_mut()),
            bias: Bias::default(),
        };
        let config = Config {
            mask: self.shape.mask,
            ..Config::default()
        };
        Ok(op.forward(stream, config, tensors)?)
    }

    /// Compares a few rows of the first and the last head with the reference, which would take minutes for all.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let Shape {
            batch,
            seq,
            heads,
            heads_kv,
            head_dim,
            mask,
            ..
        } = self.shape;
        let (out, lse) = (self.out.to_host(stream)?, self.lse.to_host(stream)?);
        for (b, h) in [(0, 0), (batch - 1, heads - 1)] {
            for row in [0, seq / 3, seq - 1] {
                let at = (b * seq + row) * heads + h;
                let keys = if mask == Mask::Causal { row + 1 } else { seq };
                let head = |x: &[T]| -> Vec<f64> {
                    let first = (b * seq * heads_kv + h / (heads / heads_kv)) * head_dim;
                    let rows = x[first..].chunks(heads_kv * head_dim).take(keys);
                    rows.flat_map(|row| row[..head_dim].iter().map(|&x| x.into()))
                        .collect()
                };
                let q: Vec<f64> = self.host[0][at * head_dim..][..head_dim]
                    .iter()
                    .map(|&x| x.into())
                    .collect();
                let (k, v) = (head(&self.host[1]), head(&self.host[2]));
                // One query, which sees all the keys that are left.
                let one = reference::Forward {
                    batch: 1,
                    seq_q: 1,
                    seq_k: keys,
                    heads: 1,
                    heads_kv: 1,
                    head_dim,
                    q: &q,
                    k: &k,
                    v: &v,
                    ..reference::Forward::default()
                };
                let (expected, naive) = (one.run()?, one.run_rounded(T::round)?);
                let found: Vec<f64> = out[at * head_dim..][..head_dim]
                    .iter()
                    .map(|&x| x.into())
                    .collect();
                let found_lse = [f64::from(lse[(b * heads + h) * seq + row])];
                let within = bound::<T>(&expected.out, &naive.out, head_dim)?;
                let verdicts = [
                    Verdict::of(&found, &expected.out, head_dim, within),
                    Verdict::of(&found_lse, &expected.lse, 1, lse_bound(&expected.lse)),
                ];
                if let Some(verdict) = verdicts.iter().find(|verdict| !verdict.pass()) {
                    return Err(format!("batch {b}, head {h}, row {row}: {verdict}").into());
                }
            }
        }
        Ok(())
    }
}
