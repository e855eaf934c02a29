//! Matrix multiplication.

use std::error::Error;
use std::sync::Arc;

use seqmix::Tensor;
use seqmix::cudarc::driver::CudaStream;
use seqmix::gemm::{Config, Gemm, Multiply};
use seqmix::reference::gemm as reference;

use crate::bench::{self, Work};
use crate::measure::Verdict;
use crate::naive::{Narrow, bound};
use crate::support::numbers;

/// A linear layer: `x [m, k]` times the transpose of weights `[n, k]`.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    m: usize,
    n: usize,
    k: usize,
    tile: Option<(usize, usize)>,
}

impl bench::Shape for Shape {
    type Op = Gemm;
    type Problem<T: Narrow> = Problem<T>;
    const CALL: &'static str = "gemm/multiply";

    /// Squares, and the projections of Llama 3 8B for one token to a long prompt.
    fn timed() -> Vec<Self> {
        let squares = [1024, 2048, 4096, 8192].map(|size| (size, size, size));
        let projections = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)];
        let tokens = [1, 16, 512, 8192].into_iter();
        let layers = tokens.flat_map(|m| projections.map(|(n, k)| (m, n, k)));
        let shape = |(m, n, k)| Self {
            m,
            n,
            k,
            tile: None,
        };
        squares.into_iter().chain(layers).map(shape).collect()
    }

    /// Each tile. The difference of the two depths is the main loop.
    fn counted() -> Vec<Self> {
        let tiles = [(128, 256), (128, 128), (64, 64), (32, 64)].into_iter();
        tiles
            .flat_map(|tile| {
                [256, 1280].map(|k| Self {
                    m: 256,
                    n: 512,
                    k,
                    tile: Some(tile),
                })
            })
            .collect()
    }

    fn name(&self) -> String {
        let Self { m, n, k, tile } = self;
        let tile = tile.map_or(String::new(), |(m, n)| format!("_tile{m}x{n}"));
        format!("m{m}_n{n}_k{k}{tile}")
    }

    fn work(&self) -> Work {
        let Self { m, n, k, .. } = *self;
        Work {
            operations: 2 * (m * n * k) as u64,
            bytes: 2 * (m * k + k * n + m * n) as u64,
        }
    }

    fn problem<T: Narrow>(self, stream: &Arc<CudaStream>) -> Result<Problem<T>, Box<dyn Error>> {
        let Self { m, n, k, .. } = self;
        let host = [numbers(1, m * k), numbers(2, n * k)];
        Ok(Problem {
            shape: self,
            x: Tensor::from_host(stream, &host[0], [1, m, k])?,
            weight: Tensor::from_host(stream, &host[1], [1, n, k])?,
            y: Tensor::zeros(stream, [1, m, n])?,
            host,
        })
    }
}

/// A problem on the device.
pub(crate) struct Problem<T> {
    shape: Shape,
    x: Tensor<T, 3>,
    weight: Tensor<T, 3>,
    y: Tensor<T, 3>,
    host: [Vec<T>; 2],
}

impl<T: Narrow> bench::Problem for Problem<T> {
    type Op = Gemm;

    fn queue(&mut self, op: &Gemm, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let tensors = Multiply {
            a: self.x.view(),
            b: self.weight.view().transposed(),
            c: None,
            bias: None,
            residual: None,
            d: self.y.view_mut(),
        };
        let config = Config {
            tile: self.shape.tile,
            ..Config::default()
        };
        Ok(op.multiply(stream, config, tensors)?)
    }

    /// Compares some elements of a few rows with the reference, which would take minutes for all.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let Shape { m, n, k, .. } = self.shape;
        let y = self.y.to_host(stream)?;
        let columns = [0, n / 3, n - 1];
        for row in [0, m / 2, m - 1] {
            let line = |x: &[T], at: usize| -> Vec<f64> {
                x[at * k..][..k].iter().map(|&x| x.into()).collect()
            };
            let a = line(&self.host[0], row);
            let weights = columns.map(|column| line(&self.host[1], column));
            let b: Vec<f64> = (0..k)
                .flat_map(|at| weights.each_ref().map(|weight| weight[at]))
                .collect();
            let one = reference::Multiply {
                batch: 1,
                m: 1,
                n: columns.len(),
                k,
                a: &a,
                b: &b,
                ..reference::Multiply::default()
            };
            let (expected, naive) = (one.run()?, one.run_rounded(T::round)?);
            let found = columns.map(|column| y[row * n + column].into());
            let within = bound::<T>(&expected, &naive, columns.len())?;
            let verdict = Verdict::of(&found, &expected, columns.len(), within);
            if !verdict.pass() {
                return Err(format!("row {row}: {verdict}").into());
            }
        }
        Ok(())
    }
}
