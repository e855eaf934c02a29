//! Attention: one problem, from seeded inputs to a verdict. The other files here are tables of problems.

mod bare;
mod counters;
mod dense;
mod mutants;
mod queue;
mod varlen;

use std::sync::Arc;

use seqmix::Result;
use seqmix::attention::{Attention, Bias, Config, Forward, Mask};
use seqmix::cudarc::driver::CudaStream;
use seqmix::reference::attention as reference;

use crate::naive::{Narrow, bound, lse_bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// Sizes and options of one problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    seq_q: usize,
    seq_k: usize,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    config: Config,
    layout: Layout,
    lse: bool,
    /// Standard deviation of the inputs; scores grow with its square.
    deviation: f64,
}

/// How the tensors of a problem lie in memory.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// `[batch, seq, heads, head_dim]`
    Bshd,
    /// `[batch, heads, seq, head_dim]`
    Bhsd,
    /// `[seq, batch, heads, head_dim]`, and lse `[heads, batch, seq]`
    Sbhd,
    /// `[batch, seq, 3, heads, head_dim]`: q, k and v side by side, as one projection writes them.
    PackedQkv,
    /// Sequences share one k and v, whose batch stride is 0.
    SharedKv,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            batch: 1,
            seq_q: 65,
            seq_k: 65,
            heads: 2,
            heads_kv: 1,
            head_dim: 64,
            config: FULL,
            layout: Layout::Bshd,
            lse: true,
            deviation: 1.0,
        }
    }
}

impl Case {
    /// A problem of these lengths, and for the rest the default.
    fn of(seq_q: usize, seq_k: usize) -> Self {
        Self {
            seq_q,
            seq_k,
            ..Self::default()
        }
    }
}

const FULL: Config = Config {
    mask: Mask::Full,
    scale: None,
    softcap: None,
};
const CAUSAL: Config = Config {
    mask: Mask::Causal,
    ..FULL
};

/// A problem on the device.
struct Problem<T> {
    case: Case,
    q: Placed<T, 4>,
    k: Placed<T, 4>,
    v: Placed<T, 4>,
    out: Placed<T, 4>,
    lse: Placed<f32, 3>,
    host: [Vec<T>; 3],
}

impl<T: Narrow> Problem<T> {
    /// A problem of seeded inputs.
    fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        Self::of(case, Self::inputs(case), stream)
    }

    /// q, k and v.
    fn inputs(case: Case) -> [Vec<T>; 3] {
        let Case {
            batch,
            seq_q,
            seq_k,
            heads,
            heads_kv,
            head_dim,
            layout,
            deviation,
            ..
        } = case;
        let sequence = [(seq_q, heads), (seq_k, heads_kv), (seq_k, heads_kv)];
        let draw = |which: usize, sequences: usize| {
            let (seq, heads) = sequence[which];
            normal::<T>(which as u64, sequences * seq * heads * head_dim, deviation)
        };
        match layout {
            Layout::SharedKv => [
                draw(0, batch),
                draw(1, 1).repeat(batch),
                draw(2, 1).repeat(batch),
            ],
            _ => [draw(0, batch), draw(1, batch), draw(2, batch)],
        }
    }

    /// Inputs are surrounded by NaN; outputs are NaN, surrounded by a number that must stay.
    fn of(case: Case, host: [Vec<T>; 3], stream: &Arc<CudaStream>) -> Self {
        let Case {
            batch,
            seq_q,
            seq_k,
            heads,
            heads_kv,
            head_dim,
            layout,
            ..
        } = case;
        let place = |shape, part| match layout {
            Layout::Bshd => Place::contiguous(shape),
            Layout::Bhsd => Place::in_order(shape, [0, 2, 1, 3]),
            Layout::Sbhd => Place::in_order(shape, [1, 0, 2, 3]),
            Layout::PackedQkv => Place::packed(shape, 2, part, 3),
            Layout::SharedKv if part == 0 => Place::contiguous(shape),
            Layout::SharedKv => Place::repeated(shape, 0),
        };
        let lse = match layout {
            Layout::Sbhd => Place::in_order([batch, heads, seq_q], [1, 0, 2]),
            _ => Place::contiguous([batch, heads, seq_q]),
        };
        let shape_q = [batch, seq_q, heads, head_dim];
        let shape_k = [batch, seq_k, heads_kv, head_dim];
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(-123.0));
        Self {
            case,
            q: Placed::input(stream, place(shape_q, 0), &host[0], nan),
            k: Placed::input(stream, place(shape_k, 1), &host[1], nan),
            v: Placed::input(stream, place(shape_k, 2), &host[2], nan),
            out: Placed::output(stream, place(shape_q, 0), nan, guard),
            lse: Placed::output(stream, lse, f32::NAN, -123.0),
            host,
        }
    }

    /// Queues the op.
    fn queue(&mut self, attention: &Attention, stream: &Arc<CudaStream>) -> Result<()> {
        let tensors = Forward {
            q: self.q.view(),
            k: self.k.view(),
            v: self.v.view(),
            out: self.out.view_mut(),
            lse: self.case.lse.then(|| self.lse.view_mut()),
            bias: Bias::default(),
        };
        attention.forward(stream, self.case.config, tensors)
    }

    /// The outputs, after a check that nothing beside them was written.
    fn fetch(&self, stream: &Arc<CudaStream>) -> (Vec<T>, Vec<f32>) {
        (self.out.fetch(stream, "out"), self.lse.fetch(stream, "lse"))
    }

    /// What the reference returns for the same numbers, and what a naive run in `T` returns.
    fn expected(&self) -> (reference::Output, reference::Output) {
        let Case {
            batch,
            seq_q,
            seq_k,
            heads,
            heads_kv,
            head_dim,
            config,
            ..
        } = self.case;
        let [q, k, v] = self.host.each_ref().map(|x| widen(x));
        let (left, right) = match config.mask {
            Mask::Full => (None, None),
            Mask::Causal => (None, Some(0)),
            Mask::Window { left, right } => (left, right),
        };
        let problem = reference::Forward {
            batch,
            seq_q,
            seq_k,
            heads,
            heads_kv,
            head_dim,
            q: &q,
            k: &k,
            v: &v,
            scale: config.scale.map(f64::from),
            left,
            right,
            ..reference::Forward::default()
        };
        (
            problem.run().unwrap(),
            problem.run_rounded(T::round).unwrap(),
        )
    }
}

fn widen<T: Narrow>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// Runs a problem and compares both outputs with the reference.
fn check<T: Narrow>(case: Case) {
    let device = device();
    let stream = device.stream();
    let mut problem = Problem::<T>::new(case, &stream);
    let name = format!("{:?} {case:?}", T::DTYPE);
    problem
        .queue(&device.attention, &stream)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let (out, lse) = problem.fetch(&stream);
    let (expected, naive) = problem.expected();
    judge(
        &name,
        case.head_dim,
        &out,
        case.lse.then_some(&lse),
        &expected,
        &naive,
    );
    assert!(
        case.lse || lse.iter().all(|x| x.is_nan()),
        "{name}: lse was written unasked"
    );
}

/// Compares outputs with the reference's, within the bounds that the naive run sets.
fn judge<T: Narrow>(
    name: &str,
    head_dim: usize,
    out: &[T],
    lse: Option<&Vec<f32>>,
    expected: &reference::Output,
    naive: &reference::Output,
) {
    let out = widen(out);
    let within = bound::<T>(&expected.out, &naive.out, head_dim).unwrap();
    assert_close(
        &format!("{name}: out"),
        &out,
        &expected.out,
        head_dim,
        within,
    );
    // A row that sees no key is 0, not nearly 0.
    for (at, expected) in expected.out.iter().enumerate() {
        assert!(
            *expected != 0.0 || out[at] == 0.0,
            "{name}: out[{at}] is {}, expected 0",
            out[at]
        );
    }
    if let Some(lse) = lse {
        let lse: Vec<f64> = lse.iter().map(|&x| x.into()).collect();
        assert_close(
            &format!("{name}: lse"),
            &lse,
            &expected.lse,
            1,
            lse_bound(&expected.lse),
        );
    }
}
