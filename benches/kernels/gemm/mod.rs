//! Matrix multiplication: what multiplies, and the table of problems.

mod problem;

use std::error::Error;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::Dtype;
use seqmix::abi::gemm::{Family, MULTIPLY};
use seqmix::cudarc::driver::{CudaContext, CudaStream};
use seqmix::gemm::Gemm;

use crate::bench::{self, Shape as _, Spread, Work};
use crate::cublas::Cublas;
use crate::support::Gpu;
use problem::Problem;

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
        let shape = Shape::of(8192, 8192, 8192, Dtype::BF16);
        let mut problem = shape.problem(&gpu.stream)?;
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
    dtype: Dtype,
    kind: Kind,
    /// What the plan must not choose.
    tile: Option<(usize, usize)>,
    splits: Option<usize>,
}

/// What a call does beside the product.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Nothing.
    Product,
    /// `gelu(x w^T + bias)`
    BiasGelu,
    /// `silu(x gate^T) (x w^T)`
    Swiglu,
    /// Each row belongs to one of as many experts, who have different numbers of them.
    Experts(usize),
    /// An adapter of this rank.
    Lora(usize),
}
use Kind::{BiasGelu, Experts, Lora, Product, Swiglu};

impl Shape {
    fn of(m: usize, n: usize, k: usize, dtype: Dtype) -> Self {
        Self {
            m,
            n,
            k,
            dtype,
            kind: Product,
            tile: None,
            splits: None,
        }
    }

    fn with(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// Matrices of weights.
    fn weights(&self) -> usize {
        match self.kind {
            Swiglu => 2,
            Experts(count) => count,
            Product | BiasGelu | Lora(_) => 1,
        }
    }

    /// Columns of the product alone.
    fn columns_of_product(&self) -> usize {
        if self.kind == Swiglu {
            2 * self.n
        } else {
            self.n
        }
    }

    /// The product alone, written to memory.
    fn work_of_product(&self) -> Work {
        let Self { m, k, .. } = *self;
        let columns = self.columns_of_product();
        let weights = self.weights() * self.n * k;
        Work {
            operations: 2 * (m * columns * k) as u64,
            bytes: (self.dtype.bytes() * (m * k + weights + m * columns)) as u64,
        }
    }
}

impl bench::Shape for Shape {
    type Op = Ops;
    const CALL: &'static str = "gemm/multiply";

    fn timed() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16] {
            let of = |(m, n, k)| Self::of(m, n, k, dtype);
            shapes.extend([1024, 2048, 4096, 8192].map(|size| of((size, size, size))));
            for m in [1, 16, 512, 8192] {
                // of Llama 3 8B: q, k and v; out; gate and up; down
                let projections = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)];
                shapes.extend(projections.map(|(n, k)| of((m, n, k))));
            }
            // gradients of weights are small and deep: k is split
            shapes.extend([(256, 256, 65536), (1024, 1024, 16384)].map(of));
            shapes.extend([512, 8192].map(|m| of((m, 16384, 4096)).with(BiasGelu)));
            shapes.extend([1, 16, 512, 8192].map(|m| of((m, 14336, 4096)).with(Swiglu)));
            shapes.extend([16, 512, 8192].map(|m| of((m, 14336, 4096)).with(Experts(8))));
            for rank in [16, 64] {
                shapes.extend([16, 8192].map(|m| of((m, 4096, 4096)).with(Lora(rank))));
            }
        }
        let squares = [1024, 2048, 4096];
        shapes.extend(squares.map(|size| Self::of(size, size, size, Dtype::F32)));
        shapes
    }

    /// Each tile, at two depths: their difference is the main loop. Then what else a call can do.
    fn counted() -> Vec<Self> {
        let tiles = MULTIPLY.iter().flat_map(|row| {
            let (m, n, _) = row.tile;
            let kind = match row.family {
                Family::Tensor | Family::Simt => Product,
                Family::Lora => Lora(64),
            };
            [256, 1280].map(|k| Self {
                tile: Some((m, n)),
                splits: Some(1),
                ..Self::of(256, 512, k, row.dtype).with(kind)
            })
        });
        let mut shapes: Vec<Self> = tiles.collect();
        for dtype in [Dtype::F16, Dtype::BF16] {
            let small = Self::of(128, 128, 256, dtype);
            shapes.push(Self {
                splits: Some(4),
                ..small
            });
            shapes.extend([BiasGelu, Swiglu, Experts(8), Lora(16)].map(|kind| small.with(kind)));
        }
        shapes
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn name(&self) -> String {
        let Self {
            m,
            n,
            k,
            kind,
            tile,
            splits,
            ..
        } = self;
        let kind = match kind {
            Product => String::new(),
            BiasGelu => "_bias_gelu".into(),
            Swiglu => "_swiglu".into(),
            Experts(count) => format!("_experts{count}"),
            Lora(rank) => format!("_lora{rank}"),
        };
        let tile = tile.map_or(String::new(), |(m, n)| format!("_tile{m}x{n}"));
        let splits = splits.filter(|&splits| splits > 1);
        let splits = splits.map_or(String::new(), |splits| format!("_splits{splits}"));
        format!("m{m}_n{n}_k{k}{kind}{tile}{splits}")
    }

    fn work(&self) -> Work {
        let Self { m, n, k, .. } = *self;
        let product = self.work_of_product();
        let (operations, elements) = match self.kind {
            Lora(rank) => (2 * m * rank * (k + n), rank * (k + n)),
            BiasGelu => (0, n),
            Product | Swiglu | Experts(_) => (0, 0),
        };
        // of a gated product one half is written
        let saved = m * (self.columns_of_product() - n);
        Work {
            operations: product.operations + operations as u64,
            bytes: product.bytes + (self.dtype.bytes() * elements) as u64
                - (self.dtype.bytes() * saved) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Ops>>, Box<dyn Error>> {
        Ok(match self.dtype {
            Dtype::F16 => Box::new(Problem::<f16>::new(self, stream)?),
            Dtype::BF16 => Box::new(Problem::<bf16>::new(self, stream)?),
            _ => Box::new(Problem::<f32>::new(self, stream)?),
        })
    }
}
