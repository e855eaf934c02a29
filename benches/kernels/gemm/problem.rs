//! A multiplication with its tensors on the device: the call, cuBLAS's, and what both must return.

use std::error::Error;
use std::sync::Arc;

use seqmix::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use seqmix::gemm::{Activation, Adapter, Config, Epilogue, Groups, Multiply};
use seqmix::reference::gemm as reference;
use seqmix::{TensorMut, TensorRef, Workspace};

use super::{BiasGelu, Experts, Lora, Ops, Product, Shape, Swiglu};
use crate::bench::{self, Rival};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};
use crate::support::numbers;

/// Numbers in both memories.
struct Data<T> {
    host: Vec<T>,
    device: CudaSlice<T>,
}

impl<T: DeviceRepr> Data<T> {
    fn new(host: Vec<T>, stream: &Arc<CudaStream>) -> Result<Self, Box<dyn Error>> {
        let device = stream.clone_htod(&host)?;
        Ok(Self { host, device })
    }
}

impl<T: Number> Data<T> {
    /// Matrices of this shape, each read the other way round, behind `skipped` times as many.
    fn transposed(&self, skipped: usize, shape: [usize; 3]) -> seqmix::Result<TensorRef<'_, T, 3>> {
        let elements = shape.iter().product::<usize>();
        let view = self
            .device
            .slice(skipped * elements..(skipped + 1) * elements);
        Ok(TensorRef::contiguous(view, shape)?.transposed())
    }
}

/// A problem on the device.
pub(crate) struct Problem<T> {
    shape: Shape,
    /// `[m, k]`
    x: Data<T>,
    /// `[weights, n, k]`: one matrix, the gate's and the other, or one for each expert.
    weight: Data<T>,
    /// `[n]`
    bias: Data<T>,
    /// `[rank, k]` and `[n, rank]`
    adapter: [Data<T>; 2],
    /// `[experts + 1]`
    offsets: Data<i32>,
    y: CudaSlice<T>,
    /// What cuBLAS returns: the product alone.
    y_rival: Option<CudaSlice<T>>,
    /// How the first call was planned, and the memory that all use.
    plan: Option<(String, Workspace)>,
}

/// Rows and columns whose elements are compared with the reference: it would take minutes for all.
fn samples(size: usize) -> [usize; 3] {
    [0, size / 3, size - 1]
}

impl<T: Number> Problem<T> {
    pub(super) fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, Box<dyn Error>> {
        let Shape { m, n, k, .. } = shape;
        let (rank, experts) = match shape.kind {
            Lora(rank) => (rank, 1),
            Experts(count) => (1, count),
            Product | BiasGelu | Swiglu => (1, 1),
        };
        // expert e has e + 1 parts of the rows
        let parts = experts * (experts + 1) / 2;
        let offsets = (0..=experts).map(|expert| (m * expert * (expert + 1) / 2 / parts) as i32);
        Ok(Self {
            shape,
            x: Data::new(numbers(1, m * k), stream)?,
            weight: Data::new(numbers(2, shape.weights() * n * k), stream)?,
            bias: Data::new(numbers(3, n), stream)?,
            adapter: [
                Data::new(numbers(4, rank * k), stream)?,
                Data::new(numbers(5, n * rank), stream)?,
            ],
            offsets: Data::new(offsets.collect(), stream)?,
            y: stream.alloc_zeros(m * n)?,
            y_rival: None,
            plan: None,
        })
    }

    /// A factor that keeps results of fused calls near 1, where activations bend.
    fn alpha(&self) -> f32 {
        match self.shape.kind {
            BiasGelu | Swiglu => 1.0 / (self.shape.k as f32).sqrt(),
            Product | Experts(_) | Lora(_) => 1.0,
        }
    }

    /// How far a sum in `f32` of k products of size 1 may lie from the exact one: four times the typical.
    fn lost_in_sums(&self) -> f64 {
        2.0 * f64::from(f32::EPSILON) * self.shape.k as f64
    }

    /// What multiplies `a down`, whose elements are as large as those of the product.
    fn adapter_scale(&self) -> f32 {
        1.0 / (self.shape.k as f32).sqrt()
    }

    /// The matrix of weights that a row of x meets; of a gated product the gate's.
    fn weights_of(&self, row: usize) -> usize {
        match self.shape.kind {
            Experts(_) => {
                let begun = |&&offset: &&i32| offset as usize <= row;
                self.offsets.host.iter().take_while(begun).count() - 1
            }
            _ => 0,
        }
    }

    /// Some elements of a row of the result and what a naive implementation returns for them, or of the
    /// product alone.
    fn expected(
        &self,
        row: usize,
        columns: [usize; 3],
        alone: bool,
    ) -> Result<[Vec<f64>; 2], Box<dyn Error>> {
        let Shape { n, k, kind, .. } = self.shape;
        let lines = |data: &[T], width: usize, lines: [usize; 3]| -> Vec<f64> {
            let at = |along: usize| lines.map(|line| data[line * width + along].into());
            (0..width).flat_map(at).collect()
        };
        let widen = |data: &[T]| -> Vec<f64> { data.iter().map(|&x| x.into()).collect() };
        let first = self.weights_of(row) * n;
        let matrix = |which: usize| lines(&self.weight.host, k, columns.map(|at| which * n + at));
        let (a, gate) = (widen(&self.x.host[row * k..][..k]), matrix(0));
        let bias = columns.map(|column| self.bias.host[column % n].into());
        let mut one = reference::Multiply {
            batch: 1,
            m: 1,
            n: columns.len(),
            k,
            a: &a,
            ..reference::Multiply::default()
        };
        let b = match kind {
            Swiglu if !alone => matrix(1),
            _ => lines(&self.weight.host, k, columns.map(|at| first + at)),
        };
        one.b = &b;
        let (down, up);
        if !alone {
            one.alpha = self.alpha().into();
            match kind {
                BiasGelu => {
                    let activation = reference::Activation::GeluTanh;
                    one.bias = Some(&bias);
                    one.epilogue = reference::Epilogue::Activate { activation };
                }
                Swiglu => {
                    one.epilogue = reference::Epilogue::Gate {
                        activation: reference::Activation::Silu,
                        weights: &gate,
                        bias: None,
                    };
                }
                Lora(rank) => {
                    let transposed = |along: usize| {
                        let down = &self.adapter[0].host;
                        (0..rank).map(move |at| down[at * k + along].into())
                    };
                    down = (0..k).flat_map(transposed).collect::<Vec<f64>>();
                    up = lines(&self.adapter[1].host, rank, columns);
                    one.adapter = Some(reference::Adapter {
                        rank,
                        down: &down,
                        up: &up,
                        scale: self.adapter_scale().into(),
                    });
                }
                Product | Experts(_) => {}
            }
        }
        Ok([one.run()?.d, one.run_rounded(T::round)?.d])
    }

    /// Compares elements of a result, or of the product alone, whose rows have `width` elements.
    fn compare(&self, y: &[T], width: usize, alone: bool) -> Result<(), Box<dyn Error>> {
        let columns = samples(width);
        for row in samples(self.shape.m) {
            let [expected, naive] = self.expected(row, columns, alone)?;
            let found = columns.map(|column| y[row * width + column].into());
            let mut within = bound::<T>(&expected, &naive, columns.len())?;
            within.max_abs += self.lost_in_sums();
            // of three elements, all of which may be small
            within.rel_l2 = None;
            within.row_rel_l2 = None;
            let verdict = Verdict::of(&found, &expected, columns.len(), within);
            if !verdict.pass() {
                return Err(format!("row {row}: {verdict}").into());
            }
        }
        Ok(())
    }
}

impl<T: Number> bench::Problem for Problem<T> {
    type Op = Ops;

    fn queue(&mut self, op: &Ops, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let (alpha, adapter_scale) = (self.alpha(), self.adapter_scale());
        let Self {
            shape,
            x,
            weight,
            bias,
            adapter: [down, up],
            offsets,
            y,
            plan,
            ..
        } = self;
        let Shape {
            m,
            n,
            k,
            kind,
            tile,
            splits,
            ..
        } = *shape;
        let config = Config {
            alpha,
            tile,
            splits,
            ..Config::default()
        };
        let a = TensorRef::contiguous(x.device.as_view(), [1, m, k])?;
        let b = match kind {
            Swiglu => weight.transposed(1, [1, n, k])?,
            _ => weight.transposed(0, [shape.weights(), n, k])?,
        };
        let d = TensorMut::contiguous(y.as_view_mut(), [1, m, n])?;
        let mut call = Multiply::new(a, b, d);
        match kind {
            Product => {}
            BiasGelu => {
                call.bias = Some(TensorRef::contiguous(bias.device.as_view(), [1, n])?);
                call.epilogue = Epilogue::Activate {
                    activation: Activation::GeluTanh,
                    preactivation: None,
                };
            }
            Swiglu => {
                call.epilogue = Epilogue::Gate {
                    activation: Activation::Silu,
                    weights: weight.transposed(0, [1, n, k])?,
                    bias: None,
                    preactivation: None,
                };
            }
            Experts(count) => {
                let offsets = TensorRef::contiguous(offsets.device.as_view(), [count + 1])?;
                call.groups = Groups::Rows(offsets);
            }
            Lora(rank) => {
                call.adapter = Some(Adapter {
                    down: down.transposed(0, [1, rank, k])?,
                    up: up.transposed(0, [1, n, rank])?,
                    scale: adapter_scale,
                });
            }
        }
        let (_, workspace) = match plan {
            Some(planned) => planned,
            none => {
                let plan = op.gemm.plan(stream, config, &mut call)?;
                let mut workspace = Workspace::new(stream);
                workspace.reserve(plan.workspace_bytes())?;
                none.insert((plan.to_string(), workspace))
            }
        };
        Ok(op.gemm.multiply(stream, config, call, workspace)?)
    }

    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        self.compare(&stream.clone_dtoh(&self.y)?, self.shape.n, false)
    }

    fn plan(&self) -> Option<&str> {
        self.plan.as_ref().map(|(plan, _)| plan.as_str())
    }

    fn queue_rival(
        &mut self,
        op: &Ops,
        stream: &Arc<CudaStream>,
    ) -> Result<Option<Rival>, Box<dyn Error>> {
        let Some(cublas) = &op.cublas else {
            return Ok(None);
        };
        let Shape { m, n, k, kind, .. } = self.shape;
        let columns = self.shape.columns_of_product();
        let y = match &mut self.y_rival {
            Some(y) => y,
            none => none.insert(stream.alloc_zeros(m * columns)?),
        };
        let (x, weight) = (&self.x.device, &self.weight.device);
        if let Experts(count) = kind {
            for expert in 0..count {
                let rows = [expert, expert + 1].map(|at| self.offsets.host[at] as usize);
                let rows = rows[0]..rows[1];
                let part = |width: usize| rows.start * width..rows.end * width;
                cublas.linear(
                    [rows.len(), n, k],
                    &x.slice(part(k)),
                    &weight.slice(expert * n * k..(expert + 1) * n * k),
                    &mut y.slice_mut(part(n)),
                )?;
            }
        } else {
            let sizes = [m, columns, k];
            cublas.linear(sizes, &x.as_view(), &weight.as_view(), &mut y.as_view_mut())?;
        }
        Ok(Some(Rival {
            name: match kind {
                Product | Experts(_) => "cuBLAS",
                BiasGelu | Swiglu | Lora(_) => "cuBLAS's product alone",
            },
            work: self.shape.work_of_product(),
        }))
    }

    fn verify_rival(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let theirs = stream.clone_dtoh(self.y_rival.as_ref().ok_or("cuBLAS did not run")?)?;
        self.compare(&theirs, self.shape.columns_of_product(), true)?;
        let n = self.shape.n;
        let ours = match self.shape.kind {
            Product | Experts(_) => stream.clone_dtoh(&self.y)?,
            BiasGelu | Swiglu | Lora(_) => return Ok(()), // more than the product
        };
        // a row at a time: widened, the largest results would take gigabytes
        for (row, (ours, theirs)) in ours.chunks(n).zip(theirs.chunks(n)).enumerate() {
            let widen = |x: &[T]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
            let (ours, theirs) = (widen(ours), widen(theirs));
            let largest = theirs
                .iter()
                .fold(0.0_f64, |largest, x| largest.max(x.abs()));
            // the two round the same sums, added in different orders: each is off by one rounding at most
            let within = Bound {
                max_abs: 2.0 * T::UNIT * largest + self.lost_in_sums(),
                rel_l2: Some(2.0 * T::UNIT + self.lost_in_sums() / (self.shape.k as f64).sqrt()),
                row_rel_l2: None,
            };
            let verdict = Verdict::of(&ours, &theirs, n, within);
            if !verdict.pass() {
                return Err(format!("row {row}: {verdict}").into());
            }
        }
        Ok(())
    }
}
