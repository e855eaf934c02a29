//! What has to come out of a problem, by the reference, and how near.

use std::ops::Range;

use seqmix::gemm::Activation;
use seqmix::reference::gemm::{self as reference, Adapter, Epilogue as Formula};

use super::problem::{ADAPTER_SCALE, Batches, Drawn, Problem};
use super::{Addend, Case, Epilogue, Groups};
use crate::measure::Bound;
use crate::naive::Number;

/// What a problem writes; NaN where it writes nothing.
pub(super) struct Expected {
    pub(super) d: Vec<f64>,
    pub(super) preactivation: Vec<f64>,
    pub(super) column_sums: Vec<f64>,
}

/// The part of a problem that is one product.
struct Part {
    /// Which of a, of b, of the vectors, and of d.
    a: usize,
    b: usize,
    vectors: usize,
    result: usize,
    rows: Range<usize>,
    depth: Range<usize>,
}

impl Case {
    fn parts(&self) -> Vec<Part> {
        let Self { batch, m, k, .. } = *self;
        match self.groups {
            Groups::None => (0..batch)
                .map(|at| Part {
                    a: at,
                    b: at,
                    vectors: at,
                    result: at,
                    rows: 0..m,
                    depth: 0..k,
                })
                .collect(),
            Groups::Rows(offsets) => ranges(offsets, m)
                .enumerate()
                .map(|(group, rows)| Part {
                    a: 0,
                    b: group,
                    vectors: group,
                    result: 0,
                    rows,
                    depth: 0..k,
                })
                .collect(),
            Groups::K(offsets) => ranges(offsets, k)
                .enumerate()
                .map(|(group, depth)| Part {
                    a: 0,
                    b: 0,
                    vectors: group,
                    result: group,
                    rows: 0..m,
                    depth,
                })
                .collect(),
        }
    }

    /// The most elements of k that are summed.
    pub(super) fn depth(&self) -> usize {
        let depths = self.parts().into_iter().map(|part| part.depth.len());
        depths.max().unwrap_or(0)
    }
}

/// The groups of offsets that are clamped to `0..=limit`; empty where they fall.
fn ranges(offsets: &'static [i32], limit: usize) -> impl Iterator<Item = Range<usize>> {
    let clamped = move |offset: i32| usize::try_from(offset).unwrap_or(0).min(limit);
    offsets.windows(2).map(move |pair| {
        let (begin, end) = (clamped(pair[0]), clamped(pair[1]));
        begin..end.max(begin)
    })
}

impl Expected {
    /// What the reference returns; `round` is that of [`reference::Multiply::run_rounded`].
    pub(super) fn of<T: Number, D: Number>(problem: &Problem<T, D>, round: fn(f64) -> f64) -> Self {
        let case = problem.case;
        let Batches { results, .. } = case.batches();
        let Case { m, n, .. } = case;
        let (columns, saved) = (case.columns(), case.saved_columns());
        // rows of no group keep what they hold
        let before = match (case.extra.c, &problem.c) {
            (Addend::InPlace, Some(c)) => c.host.clone(),
            _ => vec![f64::NAN; results * m * columns],
        };
        let mut expected = Self {
            d: before,
            preactivation: vec![f64::NAN; results * m * saved],
            column_sums: vec![0.0; n],
        };
        for part in case.parts() {
            let output = run(problem, &part, round);
            let first = part.result * m + part.rows.start;
            let rows = |columns| first * columns..(first + part.rows.len()) * columns;
            expected.d[rows(columns)].copy_from_slice(&output.d);
            if !case.is_backward() {
                expected.preactivation[rows(saved)].copy_from_slice(&output.preactivation);
            }
            for (sum, more) in expected.column_sums.iter_mut().zip(output.column_sums) {
                *sum += more;
            }
        }
        expected
    }
}

/// The reference on one part.
fn run<T: Number, D: Number>(
    problem: &Problem<T, D>,
    part: &Part,
    round: fn(f64) -> f64,
) -> reference::Output {
    let Case {
        m,
        n,
        k,
        extra,
        config,
        ..
    } = problem.case;
    let (rows, depth) = (part.rows.clone(), part.depth.clone());
    let rank = extra.adapter.map_or(0, |low| low.rank);
    let a: Vec<f64> = rows
        .clone()
        .flat_map(|row| {
            let first = (part.a * m + row) * k;
            &problem.a.host[first + depth.start..first + depth.end]
        })
        .copied()
        .collect();
    let below = |x: &Drawn<T, 3>, columns: usize| -> Vec<f64> {
        let first = part.b * k + depth.start;
        x.host[first * columns..(first + depth.len()) * columns].to_vec()
    };
    let of_rows = |host: &[f64], columns: usize| -> Vec<f64> {
        let first = part.result * m + rows.start;
        host[first * columns..(first + rows.len()) * columns].to_vec()
    };
    // one vector stands for all
    let vector = |host: &[f64], size: usize, at: usize, from: usize, count: usize| -> Vec<f64> {
        let first = if host.len() == size { 0 } else { at * size };
        host[first + from..first + from + count].to_vec()
    };
    let b = below(&problem.b, n);
    let weights = problem.weights.as_ref().map(|weights| below(weights, n));
    let down = problem.down.as_ref().map(|down| below(down, rank));
    let up = problem.up.as_ref().map(|up| {
        let first = part.b * rank * n;
        &up.host[first..first + rank * n]
    });
    let row_scale = problem.row_scale.as_ref();
    let row_scale =
        row_scale.map(|scale| vector(&scale.host, m, part.result, rows.start, rows.len()));
    let per_column = |host: &[f64]| vector(host, n, part.vectors, 0, n);
    let column_scale = problem.column_scale.as_ref();
    let column_scale = column_scale.map(|scale| per_column(&scale.host));
    let bias = problem.bias.as_ref().map(|bias| per_column(&bias.host));
    let gate_bias = problem.gate_bias.as_ref();
    let gate_bias = gate_bias.map(|bias| per_column(&bias.host));
    let c = problem.c.as_ref().map(|c| of_rows(&c.host, n));
    let residual = problem.residual.as_ref();
    let residual = residual.map(|residual| of_rows(&residual.host, n));
    let preactivation = problem.preactivation.as_ref();
    let preactivation = preactivation.map(|x| of_rows(&x.host, problem.case.saved_columns()));
    let preactivation = preactivation.as_deref().unwrap_or_default();
    let activation = formula(problem.case.activation);
    let product = reference::Multiply {
        batch: 1,
        m: rows.len(),
        n,
        k: depth.len(),
        a: &a,
        b: &b,
        adapter: down.as_ref().zip(up).map(|(down, up)| Adapter {
            rank,
            down,
            up,
            scale: ADAPTER_SCALE.into(),
        }),
        row_scale: row_scale.as_deref(),
        column_scale: column_scale.as_deref(),
        c: c.as_deref(),
        bias: bias.as_deref(),
        residual: residual.as_deref(),
        alpha: config.alpha.into(),
        beta: config.beta.into(),
        epilogue: match problem.case.epilogue {
            Epilogue::Activate => Formula::Activate { activation },
            Epilogue::Gate => Formula::Gate {
                activation,
                weights: weights.as_deref().unwrap_or_default(),
                bias: gate_bias.as_deref(),
            },
            Epilogue::ActivateBackward => Formula::ActivateBackward {
                activation,
                preactivation,
            },
            Epilogue::GateBackward => Formula::GateBackward {
                activation,
                preactivation,
            },
        },
    };
    product.run_rounded(round).unwrap()
}

/// The same function of the reference.
fn formula(activation: Activation) -> reference::Activation {
    match activation {
        Activation::None => reference::Activation::None,
        Activation::Relu => reference::Activation::Relu,
        Activation::GeluTanh => reference::Activation::GeluTanh,
        Activation::GeluErf => reference::Activation::GeluErf,
        Activation::Silu => reference::Activation::Silu,
    }
}

/// What arithmetic in `f32` loses of sums of `depth` products, relative to the size of what is added: a few roundings
/// of the epilogue and its approximations, and those of the sums. Tensor cores cut off what they add up, 16 products
/// at a time; sums of `f32` products round, each up or down.
fn lost_in_f32<T: Number>(depth: usize) -> f64 {
    let depth = depth as f64;
    let sums = if size_of::<T>() == size_of::<f32>() {
        depth.sqrt()
    } else {
        depth / 8.0
    };
    (8.0 + sums) * f64::from(f32::EPSILON)
}

/// The bound of a result that is computed in `f32` and then rounded once, with the relative error `unit`: what no
/// naive run in a narrower type keeps.
pub(super) fn strict<T: Number>(expected: &[f64], unit: f64, depth: usize) -> Bound {
    let squares: f64 = expected.iter().map(|x| x * x).sum();
    let rms = (squares / expected.len().max(1) as f64).sqrt();
    let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    // what is added is of size 1, also where it cancels
    let size = if rms > 0.0 { (2.0 / rms).max(1.0) } else { 0.0 };
    let lost = lost_in_f32::<T>(depth) * size;
    Bound {
        max_abs: unit * largest + lost * largest.max(4.0),
        rel_l2: Some(unit + lost),
        // the shortest rows are measured against a twentieth of the others
        row_rel_l2: Some(unit + 20.0 * lost),
    }
}

/// The bound of what loses in two ways.
pub(super) fn both(one: Bound, other: Bound) -> Bound {
    let sum = |one: Option<f64>, other: Option<f64>| Some(one? + other?);
    Bound {
        max_abs: one.max_abs + other.max_abs,
        rel_l2: sum(one.rel_l2, other.rel_l2),
        row_rel_l2: sum(one.row_rel_l2, other.row_rel_l2),
    }
}
