//! Matrix multiplication.

use std::error::Error;
use std::sync::Arc;

use half::bf16;
use seqmix::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use seqmix::gemm::{Config, Gemm, Multiply};
use seqmix::reference::gemm as reference;
use seqmix::{TensorMut, TensorRef};

use crate::bench::{self, Problem as _, Shape as _, Spread, Work};
use crate::cublas::Cublas;
use crate::measure::{Bound, Verdict};
use crate::naive::{Narrow, bound};
use crate::support::{Gpu, numbers};

/// What multiplies: this crate, and cuBLAS where there is one.
pub(crate) struct Ops {
    gemm: Gemm,
    cublas: Option<Cublas>,
}

/// Runs of the large product, of which the median counts.
const RUNS: usize = 50;

impl Ops {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            gemm: Gemm::new(context)?,
            cublas: None,
        })
    }

    /// Compares with cuBLAS from now on, if it was found; a line that says so.
    pub(crate) fn compare_with(&mut self, found: Result<Cublas, Box<dyn Error>>) -> String {
        match found {
            Ok(cublas) => {
                let line = format!("products are compared with {}", cublas.name);
                self.cublas = Some(cublas);
                line
            }
            Err(why) => format!("products are compared with nothing: {why}"),
        }
    }

    /// Operations per second of a product that fills every GPU: by cuBLAS, or else by this crate.
    pub(crate) fn roofline(&self, gpu: &Gpu) -> Result<f64, Box<dyn Error>> {
        let shape = Shape {
            m: 8192,
            n: 8192,
            k: 8192,
            tile: None,
        };
        let mut problem = shape.problem::<bf16>(&gpu.stream)?;
        let mut run = |_| {
            gpu.time(|| match self.cublas {
                Some(_) => problem.queue_rival(self, &gpu.stream).map(drop),
                None => problem.queue(self, &gpu.stream),
            })
        };
        let seconds = (0..RUNS).map(&mut run).collect::<Result<_, _>>()?;
        let spread = Spread::of(seconds).ok_or("no run")?;
        Ok(shape.work().operations as f64 / spread.median)
    }
}

/// A linear layer: `x [m, k]` times the transpose of weights `[n, k]`.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    m: usize,
    n: usize,
    k: usize,
    tile: Option<(usize, usize)>,
}

impl bench::Shape for Shape {
    type Op = Ops;
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
            x: stream.clone_htod(&host[0])?,
            weight: stream.clone_htod(&host[1])?,
            y: stream.alloc_zeros(m * n)?,
            y_rival: None,
            host,
        })
    }
}

/// A problem on the device.
pub(crate) struct Problem<T> {
    shape: Shape,
    x: CudaSlice<T>,
    weight: CudaSlice<T>,
    y: CudaSlice<T>,
    /// What cuBLAS returns.
    y_rival: Option<CudaSlice<T>>,
    host: [Vec<T>; 2],
}

impl<T: Narrow> Problem<T> {
    /// The one place that knows how a call of this crate looks.
    fn multiply(&mut self, op: &Ops, stream: &Arc<CudaStream>) -> seqmix::Result<()> {
        let Shape { m, n, k, tile } = self.shape;
        let tensors = Multiply {
            a: TensorRef::contiguous(self.x.as_view(), [1, m, k])?,
            b: TensorRef::contiguous(self.weight.as_view(), [1, n, k])?.transposed(),
            c: None,
            bias: None,
            residual: None,
            d: TensorMut::contiguous(self.y.as_view_mut(), [1, m, n])?,
        };
        let config = Config {
            tile,
            ..Config::default()
        };
        op.gemm.multiply(stream, config, tensors)
    }
}

impl<T: Narrow> bench::Problem for Problem<T> {
    type Op = Ops;

    fn queue(&mut self, op: &Ops, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        Ok(self.multiply(op, stream)?)
    }

    fn queue_rival(
        &mut self,
        op: &Ops,
        stream: &Arc<CudaStream>,
    ) -> Result<Option<&'static str>, Box<dyn Error>> {
        let Some(cublas) = &op.cublas else {
            return Ok(None);
        };
        let Shape { m, n, k, .. } = self.shape;
        let y = match &mut self.y_rival {
            Some(y) => y,
            none => none.insert(stream.alloc_zeros(m * n)?),
        };
        cublas.linear([m, n, k], &self.x, &self.weight, y)?;
        Ok(Some("cuBLAS"))
    }

    /// The two round the same sums, added in different orders: each is off by one rounding at most.
    fn verify_rival(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let ours = stream.clone_dtoh(&self.y)?;
        let theirs = stream.clone_dtoh(self.y_rival.as_ref().ok_or("cuBLAS did not run")?)?;
        let n = self.shape.n;
        // a row at a time: widened, the largest results would take gigabytes
        for (row, (ours, theirs)) in ours.chunks(n).zip(theirs.chunks(n)).enumerate() {
            let widen = |x: &[T]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
            let (ours, theirs) = (widen(ours), widen(theirs));
            let largest = theirs
                .iter()
                .fold(0.0_f64, |largest, x| largest.max(x.abs()));
            let within = Bound {
                max_abs: 2.0 * T::UNIT * largest,
                rel_l2: Some(2.0 * T::UNIT),
                row_rel_l2: None,
            };
            let verdict = Verdict::of(&ours, &theirs, n, within);
            if !verdict.pass() {
                return Err(format!("row {row}: {verdict}").into());
            }
        }
        Ok(())
    }

    /// Compares some elements of a few rows with the reference, which would take minutes for all.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let Shape { m, n, k, .. } = self.shape;
        let y = stream.clone_dtoh(&self.y)?;
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
            let (expected, naive) = (one.run()?.d, one.run_rounded(T::round)?.d);
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
