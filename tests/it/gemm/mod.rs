//! Matrix multiplication: the description of one problem, and its verdict. `problem` puts it on the device, `expected`
//! knows what has to come out, and the other files are tables of problems.

mod bare;
mod counters;
mod dense;
mod epilogue;
mod errors;
mod expected;
mod f32;
mod groups;
mod lora;
mod mutants;
mod overflow;
mod problem;
mod queue;
mod random;
mod split;
mod sums;

use seqmix::gemm::{Activation, Config, Overflow};

use crate::naive::{Number, bound};
use crate::support::{assert_close, device};
use expected::{Expected, both, strict};
use problem::{Found, Problem};

/// Sizes and options of one problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    a: Stored,
    /// Of b and of the gate's weights.
    b: Stored,
    /// Elements that each row or column in memory is longer than it need be.
    padding: usize,
    /// Elements that each tensor begins after a multiple of 16 bytes.
    shift: usize,
    /// The tensors that have padding and shift: a bit for each.
    uneven: u32,
    /// One a for the whole batch, whose stride is 0.
    shared_a: bool,
    /// One b, and what belongs to it, for the whole batch.
    shared_b: bool,
    config: Config,
    epilogue: Epilogue,
    activation: Activation,
    extra: Extra,
    groups: Groups,
}

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    Rows,
    Columns,
}
use Stored::{Columns, Rows};

/// Which epilogue there is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Epilogue {
    Activate,
    Gate,
    ActivateBackward,
    GateBackward,
}

/// Which optional tensors there are.
#[derive(Clone, Copy, Debug, Default)]
struct Extra {
    adapter: Option<Low>,
    row_scale: bool,
    column_scale: bool,
    c: Addend,
    bias: bool,
    gate_bias: bool,
    residual: bool,
    /// Whether the forward epilogues save what the activation gets.
    preactivation: bool,
    column_sums: bool,
    non_finite: bool,
    /// One bias and one of each scale for the whole batch.
    one_vector: bool,
}

/// An adapter.
#[derive(Clone, Copy, Debug)]
struct Low {
    rank: usize,
    down: Stored,
    up: Stored,
}

/// What is added before the activation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Addend {
    #[default]
    None,
    Tensor,
    InPlace,
}

/// The offsets of groups, if there are any. Then m, or k, counts all groups, and batch is not read.
#[derive(Clone, Copy, Debug)]
enum Groups {
    None,
    Rows(&'static [i32]),
    K(&'static [i32]),
}

const PLAIN: Config = Config {
    alpha: 1.0,
    beta: 1.0,
    overflow: Overflow::Infinity,
    tile: None,
    splits: None,
    max_workspace: usize::MAX,
};

/// Every tile of the kernels that multiply on tensor cores.
const TILES: [(usize, usize); 5] = [(128, 256), (128, 128), (64, 64), (32, 64), (16, 128)];

const NOTHING: Extra = Extra {
    adapter: None,
    row_scale: false,
    column_scale: false,
    c: Addend::None,
    bias: false,
    gate_bias: false,
    residual: false,
    preactivation: false,
    column_sums: false,
    non_finite: false,
    one_vector: false,
};

/// What is added.
const ALL: Extra = Extra {
    c: Addend::Tensor,
    bias: true,
    residual: true,
    ..NOTHING
};

/// Everything but an adapter.
const EVERYTHING: Extra = Extra {
    row_scale: true,
    column_scale: true,
    gate_bias: true,
    preactivation: true,
    column_sums: true,
    non_finite: true,
    ..ALL
};

const ACTIVATIONS: [Activation; 5] = [
    Activation::None,
    Activation::Relu,
    Activation::GeluTanh,
    Activation::GeluErf,
    Activation::Silu,
];

const EPILOGUES: [Epilogue; 4] = [
    Epilogue::Activate,
    Epilogue::Gate,
    Epilogue::ActivateBackward,
    Epilogue::GateBackward,
];

/// Every layout of a and b.
const LAYOUTS: [(Stored, Stored); 4] = [
    (Rows, Rows),
    (Rows, Columns),
    (Columns, Rows),
    (Columns, Columns),
];

impl Case {
    /// A problem of this size, and for the rest the default: row by row, aligned if sizes are.
    const fn of(m: usize, n: usize, k: usize) -> Self {
        Self {
            batch: 1,
            m,
            n,
            k,
            a: Rows,
            b: Rows,
            padding: 0,
            shift: 0,
            uneven: u32::MAX,
            shared_a: false,
            shared_b: false,
            config: PLAIN,
            epilogue: Epilogue::Activate,
            activation: Activation::None,
            extra: NOTHING,
            groups: Groups::None,
        }
    }

    /// The problem with another epilogue, without the tensors that it does not take.
    fn with(self, epilogue: Epilogue, activation: Activation) -> Self {
        let mut case = Self {
            epilogue,
            activation,
            ..self
        };
        let extra = &mut case.extra;
        match epilogue {
            Epilogue::Activate | Epilogue::ActivateBackward => {}
            Epilogue::Gate => {
                extra.adapter = None;
                extra.column_scale = false;
                extra.c = Addend::None;
                extra.column_sums = false;
            }
            Epilogue::GateBackward => {
                if extra.c == Addend::InPlace {
                    extra.c = Addend::Tensor;
                }
                extra.residual = false;
                extra.column_sums = false;
            }
        }
        case
    }

    /// Columns of d.
    fn columns(&self) -> usize {
        match self.epilogue {
            Epilogue::GateBackward => 2 * self.n,
            _ => self.n,
        }
    }

    /// Columns of what the activation gets, or got.
    fn saved_columns(&self) -> usize {
        match self.epilogue {
            Epilogue::Activate | Epilogue::ActivateBackward => self.n,
            Epilogue::Gate | Epilogue::GateBackward => 2 * self.n,
        }
    }
}

/// Runs a problem and compares all that it writes with the reference.
fn check_into<T: Number, D: Number>(case: Case) {
    let device = device();
    let stream = device.stream();
    let mut problem = Problem::<T, D>::new(case, &stream);
    let name = format!("{:?} to {:?} {case:?}", T::DTYPE, D::DTYPE);
    problem
        .run(&device.gemm, &stream)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    judge::<T, D>(&name, &problem, &problem.fetch(&stream));
}

/// The same with d in the dtype of the operands.
fn check<T: Number>(case: Case) {
    check_into::<T, T>(case);
}

/// The same in f16 and in bf16.
fn check_both(case: Case) {
    check::<half::f16>(case);
    check::<half::bf16>(case);
}

/// Compares what was found with the reference.
fn judge<T: Number, D: Number>(name: &str, problem: &Problem<T, D>, found: &Found) {
    let case = problem.case;
    let exact = Expected::of(problem, |x| x);
    // a down is rounded to T: then a result may also lose what a naive run in T does
    let naive = case.extra.adapter.map(|_| Expected::of(problem, T::round));
    let near = |tensor: &str, found: &[f64], part: fn(&Expected) -> &Vec<f64>, unit, row| {
        let name = format!("{name}: {tensor}");
        let expected = part(&exact);
        assert_eq!(found.len(), expected.len(), "{name}");
        // NaN stands for what must not be written, or is NaN
        let is_nan = |x: &f64| x.is_nan();
        let differ = (0..found.len()).find(|&at| is_nan(&found[at]) != is_nan(&expected[at]));
        if let Some(at) = differ {
            let (found, expected) = (found[at], expected[at]);
            panic!("{name}: element {at} is {found}, expected {expected}");
        }
        let numbers = |x: &[f64]| -> Vec<f64> {
            let kept = x.iter().zip(expected).filter(|(_, e)| !e.is_nan());
            kept.map(|(x, _)| *x).collect()
        };
        let mut within = strict::<T>(&numbers(expected), unit, case.depth());
        if let Some(naive) = &naive {
            let mut lost = bound::<T>(&numbers(expected), &numbers(part(naive)), row).unwrap();
            // of a row of few numbers that are not 0 the naive run may lose nothing by luck
            let rows = lost.row_rel_l2.zip(lost.rel_l2);
            lost.row_rel_l2 = rows.map(|(row, all)| row.max(4.0 * all));
            within = both(within, lost);
        }
        assert_close(&name, &numbers(found), &numbers(expected), row, within);
    };
    near("d", &found.d, |e| &e.d, D::UNIT, case.columns());
    if let Some(found) = &found.preactivation {
        let row = case.saved_columns();
        near("preactivation", found, |e| &e.preactivation, T::UNIT, row);
    }
    if let Some(found) = &found.column_sums {
        near("column_sums", found, |e| &e.column_sums, 0.0, case.n);
    }
    if let Some(found) = found.non_finite {
        assert_eq!(found, problem::COUNTED, "{name}: non_finite");
    }
}
