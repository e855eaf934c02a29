//! Tests of the pure steps: tensors' layouts to [`Problem`], and [`Problem`] to [`Plan`].

use super::plan::Plan;
use super::problem::{Each, Ending, Grouping, Problem, Request};
use super::{Activation, Config, Overflow};
use crate::abi::Dtype::{BF16, F16, F32, I32};
use crate::abi::gemm::{Axis, MULTIPLY, Matrix};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::tensor::Layout;

const A100: Device = Device {
    capability: 80,
    shared_bytes: 163 << 10,
    shared_bytes_of_all: 164 << 10,
    multiprocessors: 108,
};

const H100: Device = Device {
    capability: 90,
    shared_bytes: 227 << 10,
    shared_bytes_of_all: 228 << 10,
    multiprocessors: 132,
};

fn contiguous<const N: usize>(shape: [usize; N]) -> Layout<N> {
    Layout::contiguous(shape).unwrap()
}

/// Contiguous tensors: all that go with one another.
fn layouts(batch: usize, m: usize, n: usize, k: usize) -> Each<Option<Layout<3>>> {
    let some = |shape| Some(contiguous(shape));
    Each {
        a: some([batch, m, k]),
        b: some([batch, k, n]),
        c: some([batch, m, n]),
        bias: some([batch, 1, n]),
        residual: some([batch, m, n]),
        row_scale: some([batch, 1, m]),
        column_scale: some([batch, 1, n]),
        preactivation: some([batch, m, n]),
        d: some([batch, m, n]),
        ..Each::default()
    }
}

const REQUEST: Request = Request {
    dtype: F16,
    out: F16,
    config: Config {
        alpha: 1.0,
        beta: 1.0,
        overflow: Overflow::Infinity,
        tile: None,
        splits: None,
        max_workspace: usize::MAX,
    },
    ending: Ending::Activate,
    activation: Activation::None,
    in_place: false,
    grouping: Grouping::None,
    offsets: None,
    column_sums: None,
    non_finite: None,
    adapter_scale: 0.0,
};

type Layouts = Each<Option<Layout<3>>>;

fn check(layouts: &Layouts) -> Result<Problem> {
    Problem::new(REQUEST, layouts)
}

/// A matrix of f16 before its address is known.
fn matrix(batch_stride: i64, row_stride: i64, vector: i32) -> Matrix {
    Matrix {
        at: 0,
        batch_stride,
        row_stride,
        column_stride: 1,
        vector,
        dtype: 0,
    }
}

/// An address for each tensor.
fn addresses(first: u64) -> Each<u64> {
    Each {
        a: first,
        b: 2 * first,
        gate: 0,
        down: 0,
        up: 0,
        c: 3 * first,
        bias: 4 * first,
        gate_bias: 0,
        residual: 5 * first,
        row_scale: 6 * first,
        column_scale: 7 * first,
        preactivation: 8 * first,
        d: 9 * first,
    }
}

#[test]
fn a_problem_holds_sizes_and_strides() {
    let problem = check(&layouts(2, 16, 24, 40)).unwrap();
    let of_f32 = |row_stride| Matrix {
        dtype: 2,
        ..matrix(row_stride, 0, 1)
    };
    let expected = Problem {
        request: REQUEST,
        batch: 2,
        weights: 2,
        m: 16,
        n: 24,
        k: 40,
        rank: 0,
        axes: (Axis::K, Axis::Outer),
        matrices: Each {
            a: matrix(640, 40, 1),
            b: matrix(960, 24, 1),
            c: matrix(384, 24, 1),
            bias: matrix(24, 0, 1),
            residual: matrix(384, 24, 1),
            row_scale: of_f32(16),
            column_scale: of_f32(24),
            preactivation: matrix(384, 24, 1),
            d: matrix(384, 24, 1),
            ..Each::default()
        },
    };
    assert_eq!(problem, expected);
}

#[test]
fn parameters_hold_what_the_kernel_needs() {
    let request = Request {
        dtype: BF16,
        out: F32,
        config: Config {
            alpha: 2.0,
            beta: 3.0,
            overflow: Overflow::Saturate,
            ..REQUEST.config
        },
        ending: Ending::ActivateBackward,
        activation: Activation::Silu,
        ..REQUEST
    };
    let problem = Problem::new(request, &layouts(2, 16, 20, 40)).unwrap();
    let params = problem.at(&addresses(1024)).params();
    assert_eq!((params.m, params.n, params.k), (16, 20, 40));
    assert_eq!((params.a.at, params.b.at, params.c.at), (1024, 2048, 3072));
    assert_eq!((params.preactivation.at, params.d.at), (8192, 9216));
    assert_eq!((params.a.batch_stride, params.a.row_stride), (640, 40));
    assert_eq!((params.b.batch_stride, params.b.row_stride), (800, 20));
    assert_eq!((params.c.batch_stride, params.c.row_stride), (320, 20));
    assert_eq!((params.d.batch_stride, params.d.row_stride), (320, 20));
    // rows of 20 elements are 40 bytes in bf16 and 80 in f32; c is of the type of d
    let vectors = [
        params.a,
        params.b,
        params.c,
        params.bias,
        params.residual,
        params.d,
    ];
    assert_eq!(vectors.map(|matrix| matrix.vector), [1, 0, 1, 0, 0, 1]);
    assert_eq!(vectors.map(|matrix| matrix.dtype), [1, 1, 2, 1, 1, 2]);
    assert_eq!(
        (params.epilogue, params.activation, params.saturate),
        (2, 4, 1)
    );
    assert_eq!((params.alpha, params.beta), (2.0, 3.0));
    assert_eq!((params.splits, params.grouping, params.rank), (1, 0, 0));
    assert_eq!((params.gate.at, params.down.at, params.offsets), (0, 0, 0));
}

#[test]
fn operands_lie_by_rows_or_by_columns() {
    let axes = |a: [usize; 3], b: [usize; 3]| {
        let mut layouts = layouts(1, 16, 24, 40);
        let strides = |shape, strides| Some(Layout { shape, strides });
        (layouts.a, layouts.b) = (strides([1, 16, 40], a), strides([1, 40, 24], b));
        check(&layouts).map(|problem| {
            let Each { a, b, .. } = problem.matrices;
            (problem.axes, a.row_stride, b.row_stride)
        })
    };
    let (k, outer) = (Axis::K, Axis::Outer);
    let rows = axes([640, 40, 1], [960, 24, 1]);
    assert_eq!(rows, Ok(((k, outer), 40, 24)));
    let columns = axes([640, 1, 16], [960, 1, 48]);
    assert_eq!(columns, Ok(((outer, k), 16, 48)));
    let neither = axes([640, 2, 16], [960, 24, 1]);
    assert!(matches!(neither, Err(Error::Layout { tensor: "a", .. })));
}

/// A matrix of one row or column lies both ways: it is read the way that is aligned.
#[test]
fn vectors_are_read_the_aligned_way() {
    // b is [k, 1] and contiguous: as rows of one element it would not be aligned
    let problem = check(&layouts(1, 16, 1, 40)).unwrap();
    assert_eq!(problem.axes, (Axis::K, Axis::K));
    assert_eq!(problem.matrices.b.vector, 1);
    // a is [m, 1]
    let problem = check(&layouts(1, 16, 24, 1)).unwrap();
    assert_eq!(problem.axes, (Axis::Outer, Axis::Outer));
    assert_eq!(problem.matrices.a.vector, 1);
}

#[test]
fn vectors_need_aligned_strides_and_addresses() {
    let problem = check(&layouts(2, 3, 24, 12)).unwrap();
    let vectors = (problem.matrices.a.vector, problem.matrices.b.vector);
    assert_eq!(vectors, (0, 1), "rows of 12 elements");
    let mut uneven = layouts(2, 16, 24, 40);
    uneven.a = Some(Layout {
        shape: [2, 16, 40],
        strides: [644, 40, 1],
    });
    let problem = check(&uneven).unwrap();
    assert_eq!(problem.matrices.a.vector, 0, "a batch stride of 644");

    let addresses = Each {
        a: 16,
        b: 24,
        d: 2,
        ..Each::default()
    };
    let Each { a, b, c, d, .. } = check(&layouts(1, 16, 24, 40))
        .unwrap()
        .at(&addresses)
        .matrices;
    assert_eq!([a, b, c, d].map(|matrix| matrix.vector), [1, 0, 1, 0]);
}

#[test]
fn a_stride_of_zero_repeats_an_operand() {
    let mut shared = layouts(4, 16, 24, 40);
    shared.b = Some(Layout {
        shape: [4, 40, 24],
        strides: [0, 24, 1],
    });
    assert_eq!(check(&shared).unwrap().matrices.b, matrix(0, 24, 1));
    shared.bias = Some(contiguous([1, 1, 24]));
    assert_eq!(check(&shared).unwrap().matrices.bias, matrix(0, 0, 1));
}

/// Groups of rows have a batch of weights, groups of k one of results.
#[test]
fn groups_have_batches_where_they_differ() {
    let of = |grouping, a, b, d| {
        let request = Request {
            grouping,
            offsets: Some(contiguous([6])),
            ..REQUEST
        };
        let some = |shape| Some(contiguous(shape));
        let layouts = Each {
            a: some(a),
            b: some(b),
            d: some(d),
            ..Each::default()
        };
        Problem::new(request, &layouts).map(|problem| (problem.batch, problem.weights, problem))
    };
    let (batch, weights, _) = of(Grouping::Rows, [1, 16, 40], [5, 40, 24], [1, 16, 24]).unwrap();
    assert_eq!((batch, weights), (1, 5));
    let (batch, weights, problem) = of(Grouping::K, [1, 16, 40], [1, 40, 24], [5, 16, 24]).unwrap();
    assert_eq!((batch, weights), (5, 5));
    // a lies along k, where a group may begin anywhere
    let Each { a, b, .. } = problem.matrices;
    assert_eq!((a.vector, b.vector, a.batch_stride), (0, 1, 0));
    // as it may among rows that lie side by side
    let columns = Layout {
        shape: [1, 16, 40],
        strides: [640, 1, 16],
    };
    for (rows, vector) in [(contiguous([1, 16, 40]), 1), (columns, 0)] {
        let layouts = Each {
            a: Some(rows),
            b: Some(contiguous([5, 40, 24])),
            d: Some(contiguous([1, 16, 24])),
            ..Each::default()
        };
        let request = Request {
            grouping: Grouping::Rows,
            offsets: Some(contiguous([6])),
            ..REQUEST
        };
        let problem = Problem::new(request, &layouts).unwrap();
        assert_eq!(problem.matrices.a.vector, vector);
    }
    let error = of(Grouping::Rows, [1, 16, 40], [4, 40, 24], [1, 16, 24]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "gemm::multiply: offsets has shape [6], expected shape [5]"
    );
}

/// Both halves of a row are copied like the first only if the second begins as evenly.
#[test]
fn halves_of_rows_are_aligned_where_both_are() {
    for (n, vector) in [(24, 1), (20, 0)] {
        let some = |shape| Some(contiguous(shape));
        let layouts = Each {
            a: some([1, 16, 40]),
            b: some([1, 40, n]),
            preactivation: some([1, 16, 2 * n]),
            d: some([1, 16, 2 * n]),
            ..Each::default()
        };
        let request = Request {
            ending: Ending::GateBackward,
            ..REQUEST
        };
        let Each {
            d, preactivation, ..
        } = Problem::new(request, &layouts).unwrap().matrices;
        assert_eq!((d.vector, preactivation.vector), (vector, vector), "{n}");
    }
}

#[test]
fn sizes_that_do_not_fit_the_kernel_are_refused() {
    let huge = |m, n, k| {
        let layout = |shape| {
            Some(Layout {
                shape,
                strides: [0, 0, 1],
            })
        };
        let layouts = Each {
            a: layout([1, m, k]),
            b: layout([1, k, n]),
            d: layout([1, m, n]),
            ..Each::default()
        };
        check(&layouts)
    };
    let limit = 1 << 30;
    assert!(huge(limit, limit, limit).is_ok());
    for (m, n, k) in [(limit + 1, 1, 1), (1, limit + 1, 1), (1, 1, limit + 1)] {
        let error = huge(m, n, k).unwrap_err().to_string();
        assert!(
            error.contains("at most 1073741824 rows and columns"),
            "{error}"
        );
    }
}

#[test]
fn problems_without_elements_are_empty_and_those_without_a_sum_are_not() {
    for (batch, m, n) in [(0, 4, 4), (4, 0, 4), (4, 4, 0)] {
        assert!(check(&layouts(batch, m, n, 4)).unwrap().is_empty());
    }
    assert!(!check(&layouts(1, 4, 4, 0)).unwrap().is_empty());
}

/// A problem of `x [m, k]` and weights `[n, k]`, as linear layers have it.
fn linear(m: usize, n: usize, k: usize) -> Problem {
    let layouts = Each {
        a: Some(contiguous([1, m, k])),
        b: Some(Layout {
            shape: [1, k, n],
            strides: [n * k, 1, k],
        }),
        d: Some(contiguous([1, m, n])),
        ..Each::default()
    };
    check(&layouts).unwrap()
}

fn plan(problem: &Problem, device: &Device) -> Plan {
    Plan::new(problem, MULTIPLY, device).unwrap()
}

const HUGE: (usize, usize) = (128, 256);
const LARGE: (usize, usize) = (128, 128);
const SMALL: (usize, usize) = (64, 64);
const SKINNY: (usize, usize) = (32, 64);
const THIN: (usize, usize) = (16, 128);

/// A tile, and the parts of k.
type Chosen = ((usize, usize), usize);

/// A name, m, n and k, what is chosen on an A100 (108 multiprocessors) and on an H100 (132), and why.
type Choice = (&'static str, [usize; 3], [Chosen; 2], &'static str);

/// What named shapes get, and why.
#[rustfmt::skip]
const CHOICES: &[Choice] = &[
    ("square 128", [128, 128, 128], [(SKINNY, 1), (SKINNY, 1)],
        "eight blocks at most keep busy: the smallest tile has most of them, and a second kernel would cost more than the first takes"),
    ("square 256", [256, 256, 256], [(SKINNY, 1), (SKINNY, 1)],
        "as 128: fewer tiles than multiprocessors"),
    ("square 512", [512, 512, 512], [(SMALL, 1), (SKINNY, 1)],
        "64 tiles are a wave of an A100; an H100 has room for the 128 of half the size"),
    ("square 1024", [1024, 1024, 1024], [(LARGE, 1), (LARGE, 2)],
        "64 tiles of 128x128 fit a wave of 108; on 132 two parts of k fill it"),
    ("square 2048", [2048, 2048, 2048], [(LARGE, 2), (HUGE, 1)],
        "256 tiles are 3 rounds of 108 and leave the last a third full: in halves of k they are 5 of half the length; on 132 the 128 large ones are one round"),
    ("square 4096", [4096, 4096, 4096], [(HUGE, 1), (HUGE, 1)],
        "many rounds: the tile that reads least through L2 and shared memory"),
    ("square 8192", [8192, 8192, 8192], [(HUGE, 1), (HUGE, 1)],
        "as 4096"),
    ("llama 8B qkv, 1 token", [1, 6144, 4096], [(SKINNY, 1), (SKINNY, 1)],
        "reading the weights is all: 96 blocks with 36 KiB under way each reach the memory's rate"),
    ("llama 8B out, 1 token", [1, 4096, 4096], [(SKINNY, 1), (SKINNY, 1)],
        "64 blocks just reach the memory's rate; parts of k would add a launch"),
    ("llama 8B gate and up, 1 token", [1, 28672, 4096], [(THIN, 1), (THIN, 1)],
        "enough columns for two wide blocks a multiprocessor: 16 rows waste least"),
    ("llama 8B down, 1 token", [1, 4096, 14336], [(SKINNY, 1), (SKINNY, 1)],
        "long sums, but 64 blocks just reach the memory's rate"),
    ("llama 8B qkv, 16 tokens", [16, 6144, 4096], [(SKINNY, 1), (SKINNY, 1)],
        "as one token: the weights weigh the same"),
    ("llama 8B out, 16 tokens", [16, 4096, 4096], [(SKINNY, 1), (SKINNY, 1)],
        "as one token"),
    ("llama 8B gate and up, 16 tokens", [16, 28672, 4096], [(THIN, 1), (THIN, 1)],
        "as one token"),
    ("llama 8B down, 16 tokens", [16, 4096, 14336], [(SKINNY, 1), (SKINNY, 1)],
        "as one token"),
    ("llama 8B qkv, 64 tokens", [64, 6144, 4096], [(SMALL, 1), (SMALL, 1)],
        "one row of tiles reads the weights once; still bound by memory"),
    ("llama 8B out, 64 tokens", [64, 4096, 4096], [(SMALL, 1), (SKINNY, 1)],
        "64 blocks of 64 rows on 108; on 132 twice as many of 32 rows, which read the weights twice, through L2"),
    ("llama 8B gate and up, 64 tokens", [64, 28672, 4096], [(SMALL, 1), (SMALL, 1)],
        "as qkv, four tiles a multiprocessor"),
    ("llama 8B down, 64 tokens", [64, 4096, 14336], [(SMALL, 1), (SKINNY, 1)],
        "as out, with longer sums"),
    ("llama 8B qkv, 512 tokens", [512, 6144, 4096], [(HUGE, 1), (LARGE, 2)],
        "96 large tiles are nearly a wave of 108; on 132 192 smaller ones in halves of k are nearly three"),
    ("llama 8B out, 512 tokens", [512, 4096, 4096], [(LARGE, 4), (LARGE, 1)],
        "128 tiles are one wave of 132; on 108 they leave a fifth over, which quarters of k spread"),
    ("llama 8B gate and up, 512 tokens", [512, 28672, 4096], [(LARGE, 1), (LARGE, 1)],
        "896 tiles: the last of 9 rounds of 108, or of 7 of 132, is nearly full"),
    ("llama 8B down, 512 tokens", [512, 4096, 14336], [(HUGE, 5), (LARGE, 1)],
        "as out, with sums so long that five parts of large tiles fill three rounds of 108"),
    ("llama 8B qkv, 8192 tokens", [8192, 6144, 4096], [(LARGE, 1), (HUGE, 1)],
        "3072 tiles are 28.4 rounds of 108, where the large ones are 14.2 and end worse; on 132 those end better"),
    ("llama 8B out, 8192 tokens", [8192, 4096, 4096], [(LARGE, 1), (HUGE, 1)],
        "2048 tiles are 18.96 rounds of 108; the 1024 large ones 7.8 of 132"),
    ("llama 8B gate and up, 8192 tokens", [8192, 28672, 4096], [(LARGE, 1), (LARGE, 1)],
        "14336 tiles: 132.7 rounds of 108 and 108.6 of 132, where large ones end worse"),
    ("llama 8B down, 8192 tokens", [8192, 4096, 14336], [(LARGE, 1), (HUGE, 1)],
        "as out"),
    ("llama 8B logits, 1 token", [1, 128256, 4096], [(THIN, 1), (THIN, 1)],
        "as gate and up: many columns for few rows"),
    ("llama 8B logits, 512 tokens", [512, 128256, 4096], [(HUGE, 1), (LARGE, 1)],
        "2004 large tiles are 18.6 rounds of 108 and 15.2 of 132, where 4008 smaller ones end better"),
    ("tall k", [256, 256, 16384], [(LARGE, 24), (LARGE, 24)],
        "four tiles: parts of k are the only way to more blocks"),
    ("tall k, one tile", [64, 64, 65536], [(SKINNY, 24), (SKINNY, 32)],
        "two tiles of 32 rows, and as many parts of k as shorten the sums by more than adding them costs"),
    ("short k", [8192, 8192, 64], [(HUGE, 1), (HUGE, 1)],
        "storing d is all, alike for every tile: the first row"),
    ("outer product", [4096, 4096, 8], [(HUGE, 1), (HUGE, 1)],
        "as short k"),
    ("tiny", [16, 16, 16], [(SKINNY, 1), (SKINNY, 1)],
        "one tile: the least work in it"),
    ("one element", [1, 1, 1], [(SKINNY, 1), (SKINNY, 1)],
        "as tiny"),
    ("a column", [4096, 1, 4096], [(SMALL, 1), (SKINNY, 1)],
        "b is one column: rows of a are what is read, 64 at a time on 108, 32 on 132"),
    ("BERT feed-forward, 8 x 128 tokens", [1024, 3072, 768], [(HUGE, 1), (HUGE, 1)],
        "96 large tiles are one wave"),
    ("BERT projection, 8 x 128 tokens", [1024, 768, 768], [(SMALL, 1), (SMALL, 1)],
        "192 small tiles are two a multiprocessor side by side, where 48 large ones leave half of them idle"),
    ("MiniLM feed-forward, 148 tokens", [148, 1536, 384], [(SMALL, 1), (SKINNY, 1)],
        "72 tiles of 64 rows on 108; 120 of 32 rows on 132"),
    ("a wave and a little", [1664, 2304, 1024], [(LARGE, 1), (HUGE, 1)],
        "117 large tiles are just more than a wave of 108, just less than one of 132"),
];

#[test]
fn named_shapes_get_the_tile_that_suits_them() {
    for &(name, [m, n, k], expected, reason) in CHOICES {
        let problem = linear(m, n, k);
        for (device, expected) in [A100, H100].into_iter().zip(expected) {
            let plan = plan(&problem, &device);
            assert_eq!(
                (plan.tile, plan.splits),
                expected,
                "{name} on {device:?}: {plan}; {reason}"
            );
        }
    }
}

/// The same of f32, of which multiply-adds take longest: what counts is that all multiprocessors have equally many.
#[rustfmt::skip]
const CHOICES_OF_F32: &[Choice] = &[
    ("square 128", [128, 128, 128], [(SMALL, 8), (SMALL, 8)],
        "a step a part: the sum alone would take longer than a second kernel"),
    ("square 256", [256, 256, 256], [(SMALL, 16), (SMALL, 16)],
        "as 128"),
    ("square 512", [512, 512, 512], [(SMALL, 8), (SMALL, 4)],
        "64 tiles: 512 parts are 4.7 rounds of 108, 256 are 1.9 of 132"),
    ("square 1024", [1024, 1024, 1024], [(SMALL, 2), (LARGE, 2)],
        "512 halves of small tiles are 4.7 rounds of 108; 128 halves of large ones nearly one of 132"),
    ("square 2048", [2048, 2048, 2048], [(SMALL, 2), (LARGE, 1)],
        "2048 halves of small tiles are 18.96 rounds of 108; 256 large tiles 1.9 of 132"),
    ("square 4096", [4096, 4096, 4096], [(SMALL, 1), (LARGE, 1)],
        "4096 small tiles are 37.9 rounds of 108, where both multiply at the same rate; 1024 large ones 7.8 of 132"),
    ("one token", [1, 4096, 4096], [(SMALL, 5), (SMALL, 4)],
        "64 tiles: 320 parts are nearly 3 rounds of 108, 256 nearly 2 of 132"),
    ("64 tokens", [64, 4096, 4096], [(SMALL, 5), (SMALL, 4)],
        "as one token: rows that are missing take as long"),
    ("512 tokens", [512, 4096, 4096], [(SMALL, 4), (LARGE, 1)],
        "2048 quarters of small tiles are 18.96 rounds of 108; 128 large tiles nearly one of 132"),
    ("MiniLM feed-forward, 148 tokens", [148, 1536, 384], [(SMALL, 3), (SMALL, 5)],
        "72 tiles: 216 parts are 2 rounds of 108, 360 are 2.7 of 132"),
    ("tall k", [256, 256, 16384], [(SMALL, 32), (LARGE, 32)],
        "parts are the only way to more blocks"),
    ("short k", [8192, 8192, 16], [(LARGE, 1), (LARGE, 1)],
        "storing d is all"),
];

#[test]
fn named_shapes_of_f32_get_the_tile_that_suits_them() {
    for &(name, [m, n, k], expected, reason) in CHOICES_OF_F32 {
        let mut problem = linear(m, n, k);
        (problem.request.dtype, problem.request.out) = (F32, F32);
        for (device, expected) in [A100, H100].into_iter().zip(expected) {
            let plan = plan(&problem, &device);
            assert_eq!(
                (plan.tile, plan.splits),
                expected,
                "{name} on {device:?}: {plan}; {reason}"
            );
        }
    }
}

#[test]
fn a_plan_has_the_kernel_of_the_layouts_and_a_block_for_each_tile() {
    let problem = check(&layouts(3, 100, 70, 64)).unwrap();
    let plan = plan(&problem, &A100);
    let (m, n) = plan.tile;
    let tiles = 100_usize.div_ceil(m) * 70_usize.div_ceil(n);
    assert_eq!(plan.grid, [tiles, plan.splits, 3]);
    let axes = MULTIPLY[plan.row].layouts()[plan.layout];
    assert_eq!(axes, (Axis::K, Axis::Outer));
}

#[test]
fn a_plan_says_what_it_is() {
    let mut problem = linear(1, 4096, 4096);
    problem.request.config.splits = Some(3);
    problem.request.config.tile = Some(THIN);
    let plan = plan(&problem, &H100);
    assert_eq!(plan.workspace_bytes(), 3 * 4096 * 4);
    assert_eq!((plan.tile(), plan.splits()), (THIN, 3));
    let text = plan.to_string();
    let expected = "gemm_f16_16x128_nt, 32 tiles of 16x128 x 3 splits of k x 1, 49152 bytes of workspace; \
                    clocks: the longest of multiply ";
    assert!(text.starts_with(expected), "{text}");
}

/// Splits are for one product: what is in the loop's end, or per group, is not split.
#[test]
fn some_problems_are_never_split() {
    let mut tall = linear(16, 16, 65536);
    assert!(plan(&tall, &A100).splits > 1);
    tall.request.config.max_workspace = 0;
    assert_eq!(plan(&tall, &A100).splits, 1);
    let mut sums = linear(16, 16, 65536);
    sums.request.column_sums = Some(contiguous([16]));
    assert_eq!(plan(&sums, &A100).splits, 1);
    assert_eq!(plan(&sums, &A100).workspace, 16 * 4);
    sums.request.config.splits = Some(2);
    let error = Plan::new(&sums, MULTIPLY, &A100).unwrap_err().to_string();
    assert_eq!(
        error,
        "gemm::multiply: no kernel for 2 splits with a gate, column_sums, groups or an adapter; there is 1"
    );
    for splits in [0, 65_536] {
        let mut problem = linear(16, 16, 64);
        problem.request.config.splits = Some(splits);
        let error = Plan::new(&problem, MULTIPLY, &A100)
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected 1 to 65535"), "{error}");
    }
}

#[test]
fn unaligned_operands_get_a_tile_that_can_copy_them() {
    let problem = linear(4096, 4096, 4095);
    assert_eq!(plan(&problem, &A100).tile, SMALL);
    assert_eq!(plan(&linear(4096, 4096, 4096), &A100).tile, HUGE);
}

#[test]
fn a_tile_can_be_asked_for() {
    for tile in [HUGE, LARGE, SMALL, SKINNY, THIN] {
        let mut problem = linear(64, 64, 64);
        problem.request.config.tile = Some(tile);
        assert_eq!(plan(&problem, &H100).tile, tile);
    }
    let mut problem = linear(64, 64, 63);
    problem.request.config.tile = Some(HUGE);
    let error = Plan::new(&problem, MULTIPLY, &A100).unwrap_err();
    let text = "gemm::multiply: no kernel for tile 128x256 and these operands in f16; \
                there is tile 64x64, 32x64, 16x128";
    assert_eq!(error.to_string(), text);
}

#[test]
fn other_dtypes_have_no_row() {
    let mut problem = linear(64, 64, 64);
    problem.request.dtype = I32;
    let error = Plan::new(&problem, MULTIPLY, &A100).unwrap_err();
    assert!(
        error.to_string().ends_with("there is none for them at all"),
        "{error}"
    );
}
