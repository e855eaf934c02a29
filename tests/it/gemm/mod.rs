//! Matrix multiplication: one problem, from seeded inputs to a verdict. The other files here are tables of problems.

mod counters;
mod dense;
mod errors;
mod queue;

use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::gemm::{Activation, Config, Gemm, Multiply};
use seqmix::reference::gemm as reference;
use seqmix::{Float, Result};

use crate::naive::{Narrow, bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    a: Stored,
    b: Stored,
    /// Elements that each row or column in memory is longer than it need be.
    padding: usize,
    /// Elements that each tensor begins after a multiple of 16 bytes.
    shift: usize,
    /// One b for the whole batch, whose stride is 0.
    shared_b: bool,
    config: Config,
    extra: Extra,
}

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    Rows,
    Columns,
}
use Stored::{Columns, Rows};

/// Which optional tensors there are.
#[derive(Clone, Copy, Debug, Default)]
struct Extra {
    c: bool,
    bias: bool,
    residual: bool,
}

const PLAIN: Config = Config {
    alpha: 1.0,
    beta: 1.0,
    activation: Activation::None,
    tile: None,
};

/// Every tile of the table.
const TILES: [(usize, usize); 4] = [(128, 256), (128, 128), (64, 64), (32, 64)];

const ALL: Extra = Extra {
    c: true,
    bias: true,
    residual: true,
};

/// Every layout of a and b.
const LAYOUTS: [(Stored, Stored); 4] = [
    (Rows, Rows),
    (Rows, Columns),
    (Columns, Rows),
    (Columns, Columns),
];

impl Case {
    /// A problem of this size, and for the rest the default: row by row, aligned if sizes are.
    fn of(m: usize, n: usize, k: usize) -> Self {
        Self {
            batch: 1,
            m,
            n,
            k,
            a: Rows,
            b: Rows,
            padding: 0,
            shift: 0,
            shared_b: false,
            config: PLAIN,
            extra: Extra::default(),
        }
    }

    /// Where `batch` matrices lie.
    fn place(&self, shape: [usize; 3], stored: Stored) -> Place<3> {
        let [batch, rows, columns] = shape;
        let (line, strides) = match stored {
            Rows => (columns + self.padding, [0, columns + self.padding, 1]),
            Columns => (rows + self.padding, [0, 1, rows + self.padding]),
        };
        let matrix = line * if stored == Rows { rows } else { columns };
        let dense = Place::contiguous([batch, matrix]);
        Place {
            shape,
            strides: [matrix, strides[1], strides[2]],
            offset: dense.offset + self.shift,
            total: dense.total + self.shift,
        }
    }
}

/// A problem on the device, with d in `D`.
struct Problem<T, D> {
    case: Case,
    a: Placed<T, 3>,
    b: Placed<T, 3>,
    c: Placed<T, 3>,
    bias: Placed<T, 1>,
    residual: Placed<T, 3>,
    d: Placed<D, 3>,
    /// a, b, c, bias and residual.
    host: [Vec<T>; 5],
}

/// What d can be made of in a test.
trait Output: Float + Into<f64> {
    const NAN: Self;
    const GUARD: Self;
}

impl Output for f32 {
    const NAN: Self = f32::NAN;
    const GUARD: Self = -123.0;
}

impl Output for half::f16 {
    const NAN: Self = Self::NAN;
    const GUARD: Self = Self::from_f32_const(-123.0);
}

impl Output for half::bf16 {
    const NAN: Self = Self::NAN;
    const GUARD: Self = Self::from_f32_const(-123.0);
}

impl<T: Narrow, D: Output> Problem<T, D> {
    /// A problem of seeded inputs, surrounded by NaN; d is NaN, surrounded by a number that must stay.
    fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        let Case { batch, m, n, k, .. } = case;
        let draw = |seed, count, deviation| normal::<T>(seed, count, deviation);
        let matrices_b = if case.shared_b { 1 } else { batch };
        let host = [
            draw(1, batch * m * k, 1.0),
            draw(2, matrices_b * k * n, 1.0 / (k.max(1) as f64).sqrt()),
            draw(3, batch * m * n, 1.0),
            draw(4, n, 1.0),
            draw(5, batch * m * n, 1.0),
        ];
        let nan = T::narrow(f64::NAN);
        let input = |place, data: &[T]| Placed::input(stream, place, data, nan);
        let mut place_b = case.place([matrices_b, k, n], case.b);
        let mut host = host;
        if case.shared_b {
            place_b.shape[0] = batch;
            place_b.strides[0] = 0;
            host[1] = host[1].repeat(batch);
        }
        let shape = [batch, m, n];
        let vector = Place::contiguous([n]);
        let vector = Place {
            offset: vector.offset + case.shift,
            total: vector.total + case.shift,
            ..vector
        };
        Self {
            case,
            a: input(case.place([batch, m, k], case.a), &host[0]),
            b: input(place_b, &host[1]),
            c: input(case.place(shape, Rows), &host[2]),
            bias: Placed::input(stream, vector, &host[3], nan),
            residual: input(case.place(shape, Rows), &host[4]),
            d: Placed::output(stream, case.place(shape, Rows), D::NAN, D::GUARD),
            host,
        }
    }

    /// Queues the op.
    fn queue(&mut self, gemm: &Gemm, stream: &Arc<CudaStream>) -> Result<()> {
        let Extra { c, bias, residual } = self.case.extra;
        let tensors = Multiply {
            a: self.a.view(),
            b: self.b.view(),
            c: c.then(|| self.c.view()),
            bias: bias.then(|| self.bias.view()),
            residual: residual.then(|| self.residual.view()),
            d: self.d.view_mut(),
        };
        gemm.multiply(stream, self.case.config, tensors)
    }

    /// What the reference returns for the same numbers, and what a naive run in `T` returns.
    fn expected(&self) -> (Vec<f64>, Vec<f64>) {
        let Case {
            batch,
            m,
            n,
            k,
            config,
            extra,
            ..
        } = self.case;
        let widen = |x: &Vec<T>| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let [a, b, c, bias, residual] = self.host.each_ref().map(widen);
        let bias = bias.repeat(batch);
        let problem = reference::Multiply {
            batch,
            m,
            n,
            k,
            a: &a,
            b: &b,
            c: extra.c.then_some(&c),
            bias: extra.bias.then_some(&bias),
            residual: extra.residual.then_some(&residual),
            alpha: config.alpha.into(),
            beta: config.beta.into(),
            epilogue: reference::Epilogue::Activate {
                activation: match config.activation {
                    Activation::None => reference::Activation::None,
                    Activation::Relu => reference::Activation::Relu,
                    Activation::GeluTanh => reference::Activation::GeluTanh,
                    Activation::GeluErf => reference::Activation::GeluErf,
                    Activation::Silu => reference::Activation::Silu,
                },
            },
            ..reference::Multiply::default()
        };
        let naive = problem.run_rounded(T::round).unwrap();
        (problem.run().unwrap().d, naive.d)
    }
}

/// Runs a problem and compares d with the reference.
fn check_into<T: Narrow, D: Output>(case: Case) {
    let device = device();
    let stream = device.stream();
    let mut problem = Problem::<T, D>::new(case, &stream);
    let name = format!("{:?} to {:?} {case:?}", T::DTYPE, D::DTYPE);
    problem
        .queue(&device.gemm, &stream)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let d = problem.d.fetch(&stream, "d");
    let d: Vec<f64> = d.into_iter().map(Into::into).collect();
    let (expected, naive) = problem.expected();
    let within = bound::<T>(&expected, &naive, case.n).unwrap();
    assert_close(&name, &d, &expected, case.n, within);
}

/// The same with d in the dtype of the operands.
fn check<T: Narrow + Output>(case: Case) {
    check_into::<T, T>(case);
}
