//! Tests of the pure steps: tensors' layouts to [`Problem`], and [`Problem`] to [`Plan`].

use super::plan::Plan;
use super::problem::{Addresses, Layouts, Problem, Strides};
use super::{Activation, Config};
use crate::abi::Dtype::{BF16, F16, F32, I32};
use crate::abi::gemm::{Axis, MULTIPLY, Multiply};
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

/// Contiguous tensors, all of them.
fn layouts(batch: usize, m: usize, n: usize, k: usize) -> Layouts {
    Layouts {
        a: contiguous([batch, m, k]),
        b: contiguous([batch, k, n]),
        c: Some(contiguous([batch, m, n])),
        bias: Some(contiguous([n])),
        residual: Some(contiguous([batch, m, n])),
        d: contiguous([batch, m, n]),
    }
}

fn check(layouts: &Layouts) -> Result<Problem> {
    Problem::new(F16, F16, Config::default(), layouts)
}

fn strides(batch: i64, line: i64, vector: bool) -> Strides {
    Strides {
        batch,
        line,
        vector,
    }
}

#[test]
fn a_problem_holds_sizes_and_strides() {
    let problem = check(&layouts(2, 16, 24, 40)).unwrap();
    let expected = Problem {
        dtype: F16,
        out: F16,
        config: Config::default(),
        batch: 2,
        m: 16,
        n: 24,
        k: 40,
        axes: (Axis::K, Axis::Outer),
        a: strides(640, 40, true),
        b: strides(960, 24, true),
        c: strides(384, 24, true),
        bias: strides(0, 0, true),
        residual: strides(384, 24, true),
        d: strides(384, 24, true),
    };
    assert_eq!(problem, expected);
}

#[test]
fn parameters_hold_what_the_kernel_needs() {
    let config = Config {
        alpha: 2.0,
        beta: 3.0,
        activation: Activation::Silu,
        tile: None,
    };
    let problem = Problem::new(BF16, F32, config, &layouts(2, 16, 20, 40)).unwrap();
    let addresses = Addresses {
        a: 1024,
        b: 2048,
        c: 3072,
        bias: 4096,
        residual: 5120,
        d: 6144,
    };
    let params = problem.at(&addresses).params(&addresses);
    assert_eq!((params.m, params.n, params.k), (16, 20, 40));
    assert_eq!((params.a, params.b, params.c), (1024, 2048, 3072));
    assert_eq!((params.bias, params.residual, params.d), (4096, 5120, 6144));
    assert_eq!((params.a_batch_stride, params.a_stride), (640, 40));
    assert_eq!((params.b_batch_stride, params.b_stride), (800, 20));
    assert_eq!((params.c_batch_stride, params.c_row_stride), (320, 20));
    assert_eq!((params.d_batch_stride, params.d_row_stride), (320, 20));
    assert_eq!(
        (params.residual_batch_stride, params.residual_row_stride),
        (320, 20)
    );
    // rows of 20 elements are 40 bytes in bf16 and 80 in f32
    let vectors = [
        params.a_vector,
        params.b_vector,
        params.c_vector,
        params.bias_vector,
    ];
    assert_eq!(vectors, [1, 0, 0, 1]);
    assert_eq!((params.residual_vector, params.d_vector), (0, 1));
    assert_eq!((params.d_type, params.activation), (2, 4));
    assert_eq!((params.alpha, params.beta), (2.0, 3.0));
}

#[test]
fn operands_lie_by_rows_or_by_columns() {
    let axes = |a: [usize; 3], b: [usize; 3]| {
        let mut layouts = layouts(1, 16, 24, 40);
        (layouts.a.strides, layouts.b.strides) = (a, b);
        check(&layouts).map(|problem| (problem.axes, problem.a.line, problem.b.line))
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
    assert!(problem.b.vector);
    // a is [m, 1]
    let problem = check(&layouts(1, 16, 24, 1)).unwrap();
    assert_eq!(problem.axes, (Axis::Outer, Axis::Outer));
    assert!(problem.a.vector);
}

#[test]
fn vectors_need_aligned_strides_and_addresses() {
    let problem = check(&layouts(2, 3, 24, 12)).unwrap();
    assert!(!problem.a.vector, "rows of 12 elements");
    assert!(problem.b.vector);
    let mut uneven = layouts(2, 16, 24, 40);
    uneven.a.strides[0] = 644;
    assert!(!check(&uneven).unwrap().a.vector, "a batch stride of 644");

    let addresses = Addresses {
        a: 16,
        b: 24,
        d: 2,
        ..Addresses::default()
    };
    let problem = check(&layouts(1, 16, 24, 40)).unwrap().at(&addresses);
    let found = [problem.a, problem.b, problem.c, problem.d].map(|strides| strides.vector);
    assert_eq!(found, [true, false, true, false]);
}

#[test]
fn a_stride_of_zero_repeats_an_operand() {
    let mut shared = layouts(4, 16, 24, 40);
    shared.b.strides[0] = 0;
    assert_eq!(check(&shared).unwrap().b, strides(0, 24, true));
}

#[test]
fn sizes_that_do_not_fit_the_kernel_are_refused() {
    let huge = |m, n, k| {
        let layout = |shape| Layout {
            shape,
            strides: [0, 0, 1],
        };
        let layouts = Layouts {
            a: layout([1, m, k]),
            b: layout([1, k, n]),
            c: None,
            bias: None,
            residual: None,
            d: layout([1, m, n]),
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
    let mut layouts = layouts(1, m, n, k);
    layouts.b.strides = [n * k, 1, k];
    check(&layouts).unwrap()
}

fn plan(problem: &Problem, device: &Device) -> (Plan, (usize, usize)) {
    let plan = Plan::new("op", problem, MULTIPLY, device).unwrap();
    let (m, n, _) = MULTIPLY[plan.row].tile;
    (plan, (m, n))
}

const HUGE: (usize, usize) = (128, 256);
const LARGE: (usize, usize) = (128, 128);
const SMALL: (usize, usize) = (64, 64);
const SKINNY: (usize, usize) = (32, 64);

/// A name, m, n and k, and the tile on an A100 and on an H100.
type Choice = (&'static str, [usize; 3], [(usize, usize); 2]);

/// What named shapes get, and why.
#[rustfmt::skip]
const CHOICES: &[Choice] = &[
    // too few tiles for the multiprocessors: the smallest, of which there are most
    ("square 128", [128, 128, 128], [SKINNY, SKINNY]),
    ("square 256", [256, 256, 256], [SKINNY, SKINNY]),
    ("square 512", [512, 512, 512], [SMALL, SKINNY]),
    // 64 tiles of 128x128 fit in one wave; an H100 has room for 256 small ones that cost two waves of a quarter
    ("square 1024", [1024, 1024, 1024], [LARGE, SMALL]),
    // 256 tiles of 128x128 in 3 waves of 108, where 128x256 would need 2 of twice the size; on 132 they fit in one
    ("square 2048", [2048, 2048, 2048], [LARGE, HUGE]),
    // many waves: the tile that reads least through L2 and shared memory
    ("square 4096", [4096, 4096, 4096], [HUGE, HUGE]),
    ("square 8192", [8192, 8192, 8192], [HUGE, HUGE]),
    // one to 16 rows: all the time goes to reading the weights, so the tile with most bytes in flight
    ("llama 8B qkv, 1 token", [1, 6144, 4096], [SKINNY, SKINNY]),
    ("llama 8B out, 1 token", [1, 4096, 4096], [SKINNY, SKINNY]),
    ("llama 8B gate and up, 1 token", [1, 28672, 4096], [SKINNY, SKINNY]),
    ("llama 8B down, 1 token", [1, 4096, 14336], [SKINNY, SKINNY]),
    ("llama 8B qkv, 16 tokens", [16, 6144, 4096], [SKINNY, SKINNY]),
    ("llama 8B out, 16 tokens", [16, 4096, 4096], [SKINNY, SKINNY]),
    ("llama 8B gate and up, 16 tokens", [16, 28672, 4096], [SKINNY, SKINNY]),
    ("llama 8B down, 16 tokens", [16, 4096, 14336], [SKINNY, SKINNY]),
    // 64 rows: two skinny tiles would read the weights twice through L2, unless multiprocessors are idle
    ("llama 8B qkv, 64 tokens", [64, 6144, 4096], [SMALL, SMALL]),
    ("llama 8B out, 64 tokens", [64, 4096, 4096], [SMALL, SKINNY]),
    ("llama 8B gate and up, 64 tokens", [64, 28672, 4096], [SMALL, SMALL]),
    ("llama 8B down, 64 tokens", [64, 4096, 14336], [SMALL, SKINNY]),
    // enough tiles of 128 rows; which width depends on what is left over in the last wave
    ("llama 8B qkv, 512 tokens", [512, 6144, 4096], [HUGE, HUGE]),
    ("llama 8B out, 512 tokens", [512, 4096, 4096], [SMALL, LARGE]),
    ("llama 8B gate and up, 512 tokens", [512, 28672, 4096], [LARGE, LARGE]),
    ("llama 8B down, 512 tokens", [512, 4096, 14336], [SMALL, LARGE]),
    // thousands of tiles; the narrower one where its last wave is fuller
    ("llama 8B qkv, 8192 tokens", [8192, 6144, 4096], [LARGE, HUGE]),
    ("llama 8B out, 8192 tokens", [8192, 4096, 4096], [LARGE, HUGE]),
    ("llama 8B gate and up, 8192 tokens", [8192, 28672, 4096], [LARGE, LARGE]),
    ("llama 8B down, 8192 tokens", [8192, 4096, 14336], [LARGE, HUGE]),
    // as the other projections, only wider
    ("llama 8B logits, 1 token", [1, 128256, 4096], [SKINNY, SKINNY]),
    ("llama 8B logits, 512 tokens", [512, 128256, 4096], [HUGE, LARGE]),
    // few elements of d, each a long sum: nothing but the number of blocks helps
    ("tall k", [256, 256, 16384], [SKINNY, SKINNY]),
    ("tall k, one tile", [64, 64, 65536], [SKINNY, SKINNY]),
    // little to multiply: storing d costs most, alike for all; between equals the first row
    ("short k", [8192, 8192, 64], [HUGE, HUGE]),
    ("outer product", [4096, 4096, 8], [HUGE, HUGE]),
    // one tile is enough
    ("tiny", [16, 16, 16], [SKINNY, SKINNY]),
    ("one element", [1, 1, 1], [SKINNY, SKINNY]),
    // b is one column: 64 rows of a at a time keep an A100 just busy
    ("a column", [4096, 1, 4096], [SMALL, SKINNY]),
    // one wave of large tiles, or two of small ones
    ("BERT feed-forward, 8 x 128 tokens", [1024, 3072, 768], [HUGE, HUGE]),
    ("BERT projection, 8 x 128 tokens", [1024, 768, 768], [SMALL, SMALL]),
    ("MiniLM feed-forward, 148 tokens", [148, 1536, 384], [SMALL, SKINNY]),
    // 117 tiles of 128x256: just more than a wave of an A100, just less than one of an H100
    ("a wave and a little", [1664, 2304, 1024], [LARGE, HUGE]),
];

#[test]
fn named_shapes_get_the_tile_that_suits_them() {
    for &(name, [m, n, k], [on_a100, on_h100]) in CHOICES {
        let problem = linear(m, n, k);
        for (device, expected) in [(A100, on_a100), (H100, on_h100)] {
            let (plan, tile) = plan(&problem, &device);
            assert_eq!(tile, expected, "{name} on {device:?}: {plan:?}");
        }
    }
}

#[test]
fn a_plan_has_the_kernel_of_the_layouts_and_a_block_for_each_tile() {
    let problem = check(&layouts(3, 100, 70, 64)).unwrap();
    let (plan, (m, n)) = plan(&problem, &A100);
    assert_eq!(
        plan.grid,
        [100_usize.div_ceil(m) * 70_usize.div_ceil(n), 1, 3]
    );
    let axes = Multiply::layouts().nth(plan.layout);
    assert_eq!(axes, Some((Axis::K, Axis::Outer)));
}

#[test]
fn unaligned_operands_get_a_tile_that_can_copy_them() {
    let problem = linear(4096, 4096, 4095);
    assert_eq!(plan(&problem, &A100).1, SMALL);
    assert_eq!(plan(&linear(4096, 4096, 4096), &A100).1, HUGE);
}

#[test]
fn a_tile_can_be_asked_for() {
    for tile in [HUGE, LARGE, SMALL, SKINNY] {
        let mut problem = linear(64, 64, 64);
        problem.config.tile = Some(tile);
        assert_eq!(plan(&problem, &H100).1, tile);
    }
    let mut problem = linear(64, 64, 63);
    problem.config.tile = Some(HUGE);
    let error = Plan::new("op", &problem, MULTIPLY, &A100).unwrap_err();
    let text =
        "op: no kernel for tile 128x256 and these operands in f16; there is tile 64x64, 32x64";
    assert_eq!(error.to_string(), text);
}

#[test]
fn other_dtypes_have_no_row() {
    let mut problem = linear(64, 64, 64);
    problem.dtype = I32;
    assert!(Plan::new("op", &problem, MULTIPLY, &A100).is_err());
}
