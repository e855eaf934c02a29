//! State space duality: forward and backward.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::ssd as reference;
use seqmix::ssd::{Backward, Config, Forward, Layer, Skip, SkipMut, Ssd};
use seqmix::{Dtype, Tensor, Workspace};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};
use crate::support::numbers;

const CONFIG: Config = Config {
    dt_softplus: true,
    dt_limit: (0.0, f32::INFINITY),
    segment: None,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Forward,
    Backward,
}

/// A layer as Mamba-2 has it: one group, D for each head, biases of step sizes, and a gate; no states.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    call: Call,
    dtype: Dtype,
    batch: usize,
    seqlen: usize,
    heads: usize,
    headdim: usize,
    dstate: usize,
}

impl Shape {
    fn x_shape(&self) -> [usize; 4] {
        [self.batch, self.seqlen, self.heads, self.headdim]
    }

    fn b_shape(&self) -> [usize; 4] {
        [self.batch, self.seqlen, 1, self.dstate]
    }
}

impl bench::Shape for Shape {
    type Op = Ssd;
    const CALL: &'static str = "ssd";

    /// The inner widths of Mamba-2 370M and 2.7B, for one sequence and for eight.
    fn timed() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for heads in [32, 80] {
                for (batch, seqlen) in [(1, 2048), (1, 8192), (1, 32_768), (8, 2048), (8, 8192)] {
                    shapes.extend([Call::Forward, Call::Backward].map(|call| Self {
                        call,
                        dtype,
                        batch,
                        seqlen,
                        heads,
                        headdim: 64,
                        dstate: 128,
                    }));
                }
            }
        }
        shapes
    }

    fn counted() -> Vec<Self> {
        let mut shapes = Vec::new();
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            for dstate in [64, 128, 256] {
                shapes.extend([Call::Forward, Call::Backward].map(|call| Self {
                    call,
                    dtype,
                    batch: 1,
                    seqlen: 256,
                    heads: 4,
                    headdim: 64,
                    dstate,
                }));
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
            heads,
            headdim,
            dstate,
            ..
        } = self;
        format!("{call}_b{batch}_t{seqlen}_h{heads}_p{headdim}_n{dstate}")
    }

    /// A state takes a product of its input and one of its output, and twice as many backwards, where the states
    /// themselves come anew.
    fn work(&self) -> Work {
        let rows = self.batch * self.seqlen;
        let states = rows * self.heads * self.headdim * self.dstate;
        let inputs = rows * self.heads * self.headdim;
        let others = rows * (self.heads + 2 * self.dstate);
        let (products, bytes) = match self.call {
            Call::Forward => (2, 3 * inputs + others),
            Call::Backward => (5, 5 * inputs + 2 * others),
        };
        Work {
            operations: (2 * products * states) as u64,
            bytes: (self.dtype.bytes() * bytes) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Ssd>>, Box<dyn Error>> {
        Ok(match self.dtype {
            Dtype::F16 => Box::new(Problem::<f16>::new(self, stream)?),
            Dtype::BF16 => Box::new(Problem::<bf16>::new(self, stream)?),
            _ => Box::new(Problem::<f32>::new(self, stream)?),
        })
    }
}

/// The inputs as numbers.
struct Host<T> {
    x: Vec<T>,
    dt: Vec<T>,
    a: Vec<f32>,
    b: Vec<T>,
    c: Vec<T>,
    d: Vec<f32>,
    z: Vec<T>,
    dt_bias: Vec<f32>,
    dout: Vec<T>,
}

/// A layer on the device.
struct Problem<T> {
    shape: Shape,
    host: Host<T>,
    x: Tensor<T, 4>,
    dt: Tensor<T, 3>,
    a: Tensor<f32, 1>,
    b: Tensor<T, 4>,
    c: Tensor<T, 4>,
    d: Tensor<f32, 1>,
    z: Tensor<T, 4>,
    dt_bias: Tensor<f32, 1>,
    dout: Tensor<T, 4>,
    /// out, or dx.
    out: Tensor<T, 4>,
    ddt: Tensor<T, 3>,
    db: Tensor<T, 4>,
    dc: Tensor<T, 4>,
    dz: Tensor<T, 4>,
    /// da, dd and ddt_bias.
    sums: [Tensor<f32, 1>; 3],
    workspace: Workspace,
    plan: String,
}

impl<T: Number> Problem<T> {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let Shape {
            batch,
            seqlen,
            heads,
            ..
        } = shape;
        let (x_shape, b_shape) = (shape.x_shape(), shape.b_shape());
        let count = |shape: [usize; 4]| shape.iter().product();
        let (inputs, coefficients) = (count(x_shape), count(b_shape));
        let host = Host {
            x: numbers::<T>(1, inputs),
            dt: numbers::<T>(2, batch * seqlen * heads),
            a: (0..heads).map(|head| -1.0 - (head % 16) as f32).collect(),
            b: numbers::<T>(3, coefficients),
            c: numbers::<T>(4, coefficients),
            d: numbers::<f32>(5, heads),
            z: numbers::<T>(6, inputs),
            dt_bias: vec![-4.0; heads],
            dout: numbers::<T>(7, inputs),
        };
        let vector = |numbers: &[f32]| Tensor::from_host(stream, numbers, [heads]);
        let rows = |numbers: &[T], shape| Tensor::from_host(stream, numbers, shape);
        let dt_shape = [batch, seqlen, heads];
        Ok(Self {
            shape,
            x: rows(&host.x, x_shape)?,
            dt: Tensor::from_host(stream, &host.dt, dt_shape)?,
            a: vector(&host.a)?,
            b: rows(&host.b, b_shape)?,
            c: rows(&host.c, b_shape)?,
            d: vector(&host.d)?,
            z: rows(&host.z, x_shape)?,
            dt_bias: vector(&host.dt_bias)?,
            dout: rows(&host.dout, x_shape)?,
            out: Tensor::zeros(stream, x_shape)?,
            ddt: Tensor::zeros(stream, dt_shape)?,
            db: Tensor::zeros(stream, b_shape)?,
            dc: Tensor::zeros(stream, b_shape)?,
            dz: Tensor::zeros(stream, x_shape)?,
            sums: [
                Tensor::zeros(stream, [heads])?,
                Tensor::zeros(stream, [heads])?,
                Tensor::zeros(stream, [heads])?,
            ],
            workspace: Workspace::new(stream),
            plan: String::new(),
            host,
        })
    }

    /// The reference on some steps of the last row of the batch, all of its heads.
    fn reference(
        &self,
        steps: &Range<usize>,
        judge: impl Fn(&reference::Backward<'_>) -> Result<(), Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let Shape {
            heads,
            headdim,
            dstate,
            ..
        } = self.shape;
        let rows = |numbers: &[T]| widen(self.part(numbers, steps));
        let singles = |numbers: &[f32]| widen(numbers);
        let host = &self.host;
        let (d, z, dt_bias) = (singles(&host.d), rows(&host.z), singles(&host.dt_bias));
        let forward = reference::Forward {
            batch: 1,
            seqlen: steps.len(),
            nheads: heads,
            headdim,
            groups: 1,
            dstate,
            x: &rows(&host.x),
            dt: &rows(&host.dt),
            a: &singles(&host.a),
            b: &rows(&host.b),
            c: &rows(&host.c),
            d: Some(reference::Skip::PerHead(&d)),
            z: Some(&z),
            dt_bias: Some(&dt_bias),
            dt_softplus: true,
            ..reference::Forward::default()
        };
        judge(&reference::Backward {
            forward,
            dout: &rows(&host.dout),
            dfinal_states: None,
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
    type Op = Ssd;

    fn queue(&mut self, op: &Ssd, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let layer = Layer {
            d: Some(Skip::PerHead(self.d.view())),
            z: Some(self.z.view()),
            dt_bias: Some(self.dt_bias.view()),
            ..Layer::new(
                self.x.view(),
                self.dt.view(),
                self.a.view(),
                self.b.view(),
                self.c.view(),
            )
        };
        let workspace = &mut self.workspace;
        if self.shape.call == Call::Forward {
            let tensors = Forward {
                layer,
                out: self.out.view_mut(),
                final_states: None,
            };
            let plan = op.plan(CONFIG, &tensors)?;
            self.plan = plan.to_string();
            workspace.reserve(plan.workspace_bytes())?;
            return Ok(op.forward(stream, CONFIG, tensors, workspace)?);
        }
        let [da, dd, ddt_bias] = &mut self.sums;
        let tensors = Backward {
            layer,
            dout: self.dout.view(),
            dfinal_states: None,
            dx: self.out.view_mut(),
            ddt: self.ddt.view_mut(),
            da: da.view_mut(),
            db: self.db.view_mut(),
            dc: self.dc.view_mut(),
            dd: Some(SkipMut::PerHead(dd.view_mut())),
            dz: Some(self.dz.view_mut()),
            ddt_bias: Some(ddt_bias.view_mut()),
            dinitial_states: None,
        };
        let plan = op.backward_plan(CONFIG, &tensors)?;
        self.plan = plan.to_string();
        workspace.reserve(plan.workspace_bytes())?;
        Ok(op.backward(stream, CONFIG, tensors, workspace)?)
    }

    /// Compares the first and the last steps of a row with the reference, which would take hours for all. What comes
    /// from earlier steps is known of the first ones, what comes from later ones of the last.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let seqlen = self.shape.seqlen;
        let (first, last) = (0..seqlen.min(65), seqlen.saturating_sub(65)..seqlen);
        let out = self.out.to_host(stream)?;
        if self.shape.call == Call::Forward {
            return self.reference(&first, |problem| {
                let exact = problem.forward.run()?;
                let naive = problem.forward.run_rounded(T::round)?;
                judge("out", self.part(&out, &first), &exact.out, &naive.out)
            });
        }
        let (db, dc, dz) = (
            self.db.to_host(stream)?,
            self.dc.to_host(stream)?,
            self.dz.to_host(stream)?,
        );
        self.reference(&first, |problem| {
            let (exact, naive) = (problem.run()?, problem.run_rounded(T::round)?);
            judge("dc", self.part(&dc, &first), &exact.dc, &naive.dc)?;
            let [exact, naive] = [exact, naive].map(|run| run.dz.unwrap_or_default());
            judge("dz", self.part(&dz, &first), &exact, &naive)
        })?;
        self.reference(&last, |problem| {
            let (exact, naive) = (problem.run()?, problem.run_rounded(T::round)?);
            judge("dx", self.part(&out, &last), &exact.dx, &naive.dx)?;
            judge("db", self.part(&db, &last), &exact.db, &naive.db)
        })
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
