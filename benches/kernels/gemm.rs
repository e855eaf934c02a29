//! Matrix multiplication.

use std::error::Error;
use std::sync::Arc;

use criterion::Criterion;
use half::{bf16, f16};
use seqmix::Tensor;
use seqmix::cudarc::driver::{CudaContext, CudaStream};
use seqmix::gemm::{Config, Gemm, Multiply};
use seqmix::reference::gemm as reference;

use crate::measure::Verdict;
use crate::naive::{Narrow, bound};
use crate::support::{CudaTime, Gpu, Work, numbers, print_counters};

/// A linear layer: `x [m, k]` times the transpose of weights `[n, k]`.
#[derive(Clone, Copy)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    tile: Option<(usize, usize)>,
}

impl Shape {
    fn id<T: Narrow>(&self) -> String {
        let Self { m, n, k, tile } = self;
        let tile = tile.map_or(String::new(), |(m, n)| format!("_tile{m}x{n}"));
        format!("gemm/multiply/{}/m{m}_n{n}_k{k}{tile}", T::DTYPE.name())
    }

    fn work(&self) -> Work {
        let Self { m, n, k, .. } = *self;
        Work {
            operations: 2 * (m * n * k) as u64,
            bytes: 2 * (m * k + k * n + m * n) as u64,
        }
    }
}

/// Squares, and the projections of Llama 3 8B for one token to a long prompt.
fn shapes() -> Vec<Shape> {
    let squares = [1024, 2048, 4096, 8192].map(|size| (size, size, size));
    let projections = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)];
    let tokens = [1, 16, 512, 8192].into_iter();
    let layers = tokens.flat_map(|m| projections.map(|(n, k)| (m, n, k)));
    let shape = |(m, n, k)| Shape {
        m,
        n,
        k,
        tile: None,
    };
    squares.into_iter().chain(layers).map(shape).collect()
}

/// Times every shape.
pub(crate) fn multiply(
    criterion: &mut Criterion<CudaTime>,
    gpu: &Gpu,
) -> Result<(), Box<dyn Error>> {
    let gemm = Gemm::new(&gpu.context)?;
    for shape in shapes() {
        bench::<f16>(criterion, gpu, &gemm, shape)?;
        bench::<bf16>(criterion, gpu, &gemm, shape)?;
    }
    Ok(())
}

fn bench<T: Narrow>(
    criterion: &mut Criterion<CudaTime>,
    gpu: &Gpu,
    gemm: &Gemm,
    shape: Shape,
) -> Result<(), Box<dyn Error>> {
    let id = shape.id::<T>();
    let mut problem = Problem::<T>::new(shape, &gpu.stream)?;
    problem.queue(gemm, &gpu.stream)?;
    problem
        .verify(&gpu.stream)
        .map_err(|why| format!("{id}: {why}"))?;
    gpu.bench(criterion, &id, shape.work(), || {
        Ok(problem.queue(gemm, &gpu.stream)?)
    });
    Ok(())
}

/// Runs each tile on a small shape once on the emulator and prints its counters: those whose id
/// contains `filter`. The difference of the two depths is the main loop.
pub(crate) fn count_multiply(
    context: &Arc<CudaContext>,
    filter: &str,
) -> Result<(), Box<dyn Error>> {
    let gemm = Gemm::new(context)?;
    let stream = context.default_stream();
    for tile in [(128, 256), (128, 128), (64, 64), (32, 64)] {
        for k in [256, 1280] {
            let shape = Shape {
                m: 256,
                n: 512,
                k,
                tile: Some(tile),
            };
            count::<f16>(&gemm, &stream, shape, filter)?;
            count::<bf16>(&gemm, &stream, shape, filter)?;
        }
    }
    Ok(())
}

fn count<T: Narrow>(
    gemm: &Gemm,
    stream: &Arc<CudaStream>,
    shape: Shape,
    filter: &str,
) -> Result<(), Box<dyn Error>> {
    let id = shape.id::<T>();
    if !id.contains(filter) {
        return Ok(());
    }
    let mut problem = Problem::<T>::new(shape, stream)?;
    problem.queue(gemm, stream)?;
    problem
        .verify(stream)
        .map_err(|why| format!("{id}: {why}"))?;
    print_counters(&id);
    Ok(())
}

/// A problem on the device.
struct Problem<T> {
    shape: Shape,
    x: Tensor<T, 3>,
    weight: Tensor<T, 3>,
    y: Tensor<T, 3>,
    host: [Vec<T>; 2],
}

impl<T: Narrow> Problem<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let Shape { m, n, k, .. } = shape;
        let host = [numbers(1, m * k), numbers(2, n * k)];
        Ok(Self {
            shape,
            x: Tensor::from_host(stream, &host[0], [1, m, k])?,
            weight: Tensor::from_host(stream, &host[1], [1, n, k])?,
            y: Tensor::zeros(stream, [1, m, n])?,
            host,
        })
    }

    fn queue(&mut self, gemm: &Gemm, stream: &Arc<CudaStream>) -> Result<(), seqmix::Error> {
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
        gemm.multiply(stream, config, tensors)
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
