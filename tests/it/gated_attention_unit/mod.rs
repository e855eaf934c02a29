//! The gated attention unit: one unit, from seeded inputs to a verdict. The other files here are tables of units.

mod backward;
mod bare;
mod block;
mod counters;
mod errors;
mod forward;
mod gradients;
mod mutants;
mod queue;

use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::gated_attention_unit::{
    Affine, Config, Forward, GatedAttentionUnit, Mixed, Pair, Unit,
};
use seqmix::reference::gated_attention_unit as reference;
use seqmix::{Dtype, Result, TensorRef, Workspace};

use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one unit.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    seqlen: usize,
    dz: usize,
    dv: usize,
    causal: bool,
    bias: bool,
    /// Steps of a chunk; `None`: all is quadratic.
    chunk: Option<usize>,
    /// Lengths of packed sequences; `batch` and `seqlen` then say nothing.
    lengths: Option<&'static [usize]>,
    /// Whether u, v and z are parts of wider tensors.
    projection: bool,
    /// Standard deviations of u, v and z.
    deviations: [f64; 3],
    /// Multiplies scores; those of the linear part have the same.
    scale: f32,
    /// Value channels of a block.
    channels: Option<usize>,
}

const CASE: Case = Case {
    batch: 1,
    seqlen: 129,
    dz: 64,
    dv: 72,
    causal: true,
    bias: true,
    chunk: None,
    lengths: None,
    projection: false,
    deviations: [1.0; 3],
    scale: 0.125,
    channels: None,
};

/// The tensors of a unit as numbers.
#[derive(Clone)]
struct Inputs<T> {
    u: Vec<T>,
    v: Vec<T>,
    z: Vec<T>,
    /// gamma and beta of queries and of keys: of the quadratic part, then of the linear one.
    vectors: [Vec<f32>; 8],
    bias: Vec<f32>,
}

impl Case {
    /// Rows of the batch, and steps of each.
    fn steps(&self) -> [usize; 2] {
        match self.lengths {
            Some(lengths) => [1, lengths.iter().sum()],
            None => [self.batch, self.seqlen],
        }
    }

    fn cu_seqlens(&self) -> Option<Vec<usize>> {
        let lengths = self.lengths?;
        let ends = lengths.iter().scan(0, |sum, length| {
            *sum += length;
            Some(*sum)
        });
        Some(std::iter::once(0).chain(ends).collect())
    }

    fn v_shape(&self) -> [usize; 3] {
        let [batch, steps] = self.steps();
        [batch, steps, self.dv]
    }

    fn z_shape(&self) -> [usize; 3] {
        let [batch, steps] = self.steps();
        [batch, steps, self.dz]
    }

    /// Numbers of the bias.
    fn biases(&self) -> usize {
        let [_, steps] = self.steps();
        (2 * self.chunk.unwrap_or(steps)).saturating_sub(1)
    }

    fn config(&self) -> Config {
        Config {
            scale: self.scale,
            causal: self.causal,
            channels: self.channels,
        }
    }

    fn inputs<T: Number>(&self) -> Inputs<T> {
        let count = |shape: [usize; 3]| shape.iter().product();
        let [u, v, z] = self.deviations;
        Inputs {
            u: normal(1, count(self.v_shape()), u),
            v: normal(2, count(self.v_shape()), v),
            z: normal(3, count(self.z_shape()), z),
            vectors: std::array::from_fn(|i| {
                let mean = if i % 2 == 0 { 1.0 } else { 0.0 };
                let around = normal::<f32>(10 + i as u64, self.dz, 0.3);
                around.into_iter().map(|x| x + mean).collect()
            }),
            bias: normal(4, self.biases(), 0.5),
        }
    }

    /// Where a tensor with a row for each step lies: the `part`-th of three if they are parts of one.
    fn place(&self, shape: [usize; 3], part: usize) -> Place<3> {
        match self.projection {
            false => Place::contiguous(shape),
            true => Place::packed(shape, 2, part, 3),
        }
    }

    /// Calls `with` with the unit of the reference on these inputs.
    fn reference<T: Number, R>(
        &self,
        inputs: &Inputs<T>,
        with: impl Fn(&reference::Forward<'_>) -> R,
    ) -> R {
        let [batch, seqlen] = self.steps();
        let widen = |x: &[T]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let vectors = inputs.vectors.each_ref().map(|x| widen_f32(x));
        let affine = |at: usize| reference::Affine {
            gamma: &vectors[at],
            beta: &vectors[at + 1],
        };
        let pair = |at: usize| reference::Pair {
            q: affine(at),
            k: affine(at + 2),
        };
        with(&reference::Forward {
            batch,
            seqlen,
            dz: self.dz,
            dv: self.dv,
            u: &widen(&inputs.u),
            v: &widen(&inputs.v),
            z: &widen(&inputs.z),
            quadratic: pair(0),
            scale: self.scale.into(),
            bias: self.bias.then(|| widen_f32(&inputs.bias)).as_deref(),
            causal: self.causal,
            mixed: self.chunk.map(|chunk| reference::Mixed {
                chunk,
                linear: pair(4),
                scale: self.scale.into(),
            }),
            cu_seqlens: self.cu_seqlens().as_deref(),
        })
    }
}

fn widen_f32(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// The inputs of a unit on the device, surrounded by NaN.
struct Placement<T> {
    u: Placed<T, 3>,
    v: Placed<T, 3>,
    z: Placed<T, 3>,
    vectors: [Placed<f32, 1>; 8],
    bias: Placed<f32, 1>,
    cu_seqlens: Option<Placed<i32, 1>>,
}

impl<T: Number> Placement<T> {
    fn new(case: Case, inputs: &Inputs<T>, stream: &Arc<CudaStream>) -> Self {
        let nan = T::narrow(f64::NAN);
        let rows =
            |shape, part, data: &[T]| Placed::input(stream, case.place(shape, part), data, nan);
        let vector =
            |data: &[f32]| Placed::input(stream, Place::contiguous([data.len()]), data, f32::NAN);
        let offsets = case.cu_seqlens().map(|starts| {
            let starts: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
            let place = Place::contiguous([starts.len()]);
            Placed::input(stream, place, &starts, i32::MAX)
        });
        Self {
            u: rows(case.v_shape(), 1, &inputs.u),
            v: rows(case.v_shape(), 2, &inputs.v),
            z: rows(case.z_shape(), 1, &inputs.z),
            vectors: inputs.vectors.each_ref().map(|data| vector(data)),
            bias: vector(&inputs.bias),
            cu_seqlens: offsets,
        }
    }

    fn view(&self, case: Case) -> Unit<'_, T> {
        let vector = |at: usize| -> TensorRef<'_, f32, 1> { self.vectors[at].view() };
        let affine = |at: usize| Affine {
            gamma: vector(at),
            beta: vector(at + 1),
        };
        let pair = |at: usize| Pair {
            q: affine(at),
            k: affine(at + 2),
        };
        Unit {
            bias: case.bias.then(|| self.bias.view()),
            mixed: case.chunk.map(|chunk| Mixed {
                chunk,
                linear: pair(4),
                scale: case.scale,
            }),
            cu_seqlens: self.cu_seqlens.as_ref().map(Placed::view),
            ..Unit::new(self.u.view(), self.v.view(), self.z.view(), pair(0))
        }
    }
}

/// A unit on the device; the output is NaN, surrounded by a number that must stay.
struct Problem<T> {
    case: Case,
    unit: Placement<T>,
    out: Placed<T, 3>,
    workspace: Workspace,
}

impl<T: Number> Problem<T> {
    fn new(case: Case, inputs: &Inputs<T>, stream: &Arc<CudaStream>) -> Self {
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(-123.0));
        let out = case.place(case.v_shape(), 0);
        Self {
            case,
            unit: Placement::new(case, inputs, stream),
            out: Placed::output(stream, out, nan, guard),
            workspace: Workspace::new(stream),
        }
    }

    /// Queues the op, in a workspace of just the size that it asks for.
    fn queue(&mut self, gau: &GatedAttentionUnit, stream: &Arc<CudaStream>) -> Result<()> {
        self.reserve(gau)?;
        let config = self.case.config();
        let (tensors, workspace) = self.tensors();
        gau.forward(stream, config, tensors, workspace)
    }

    fn reserve(&mut self, gau: &GatedAttentionUnit) -> Result<()> {
        let config = self.case.config();
        let (tensors, workspace) = self.tensors();
        workspace.reserve(gau.plan(config, &tensors)?.workspace_bytes())
    }

    fn tensors(&mut self) -> (Forward<'_, T>, &mut Workspace) {
        let tensors = Forward {
            unit: self.unit.view(self.case),
            out: self.out.view_mut(),
        };
        (tensors, &mut self.workspace)
    }

    /// The output, after a check that nothing beside it was written.
    fn fetch(&self, stream: &Arc<CudaStream>) -> Vec<T> {
        self.out.fetch(stream, "out")
    }
}

/// Bits that a naive run in `f32` keeps: its sums are exact, and those of the kernels are in `f32`.
const BITS: i32 = 20;

/// As `T` rounds, but without its limits: they are no excuse for a kernel.
fn round_in_any_range<T: Number>(x: f64) -> f64 {
    if x == 0.0 {
        return x;
    }
    let exponent = x.abs().log2().floor() as i32;
    let bits = match T::DTYPE {
        Dtype::F32 => BITS,
        Dtype::F16 => 11,
        _ => 8,
    };
    let unit = f64::powi(2.0, exponent + 1 - bits);
    (x / unit).round_ties_even() * unit
}

/// The output of a unit, as numbers.
fn run<T: Number>(name: &str, case: Case, inputs: &Inputs<T>) -> Vec<f64> {
    let device = device();
    let stream = device.stream();
    let mut problem = Problem::new(case, inputs, &stream);
    let queued = problem.queue(&device.gated_attention_unit, &stream);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    let out = problem.fetch(&stream);
    out.into_iter().map(Into::into).collect()
}

/// Compares an output with the reference's, within the bounds that a naive run sets.
fn compare<T: Number>(name: &str, case: Case, inputs: &Inputs<T>, out: &[f64]) {
    let (expected, naive) = case.reference(inputs, |unit| {
        let naive = unit.run_rounded(round_in_any_range::<T>);
        (unit.run().unwrap(), naive.unwrap())
    });
    let within = bound::<T>(&expected, &naive, case.dv).unwrap();
    assert_close(name, out, &expected, case.dv, within);
}

/// Runs a unit and compares its output with the reference.
fn check<T: Number>(case: Case) {
    let name = format!("{:?} {case:?}", T::DTYPE);
    let inputs = case.inputs::<T>();
    compare(&name, case, &inputs, &run(&name, case, &inputs));
}
