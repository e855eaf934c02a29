//! Tests of the pure steps: tensors' layouts to [`Problem`], and [`Problem`] to [`Plan`].

use super::plan::Plan;
use super::problem::{Layouts, Problem, Strides};
use super::{Config, Mask};
use crate::abi::Dtype::{self, BF16, F16};
use crate::abi::attention::FORWARD;
use crate::error::{Error, Result};
use crate::tensor::Layout;

fn contiguous<const N: usize>(shape: [usize; N]) -> Layout<N> {
    Layout::contiguous(shape).unwrap()
}

/// Contiguous tensors: batch 2, 5 queries, 7 keys, 6 heads on 3, head_dim 64.
fn dense() -> Layouts<4, 3> {
    Layouts {
        q: contiguous([2, 5, 6, 64]),
        k: contiguous([2, 7, 3, 64]),
        v: contiguous([2, 7, 3, 64]),
        out: contiguous([2, 5, 6, 64]),
        lse: Some(contiguous([2, 6, 5])),
    }
}

/// Contiguous tensors: 5 queries and 7 keys in all, 6 heads on 3, head_dim 64.
fn varlen() -> Layouts<3, 2> {
    Layouts {
        q: contiguous([5, 6, 64]),
        k: contiguous([7, 3, 64]),
        v: contiguous([7, 3, 64]),
        out: contiguous([5, 6, 64]),
        lse: Some(contiguous([6, 5])),
    }
}

fn check(layouts: Layouts<4, 3>) -> Result<Problem> {
    Problem::dense(F16, Config::default(), &layouts)
}

fn check_varlen(layouts: Layouts<3, 2>, starts: [usize; 2], longest: usize) -> Result<Problem> {
    let cu_seqlens = starts.map(|starts| contiguous([starts]));
    Problem::varlen(F16, Config::default(), &layouts, cu_seqlens, longest)
}

fn with_config(config: Config) -> Result<Problem> {
    Problem::dense(F16, config, &dense())
}

#[test]
fn a_dense_problem_holds_sizes_and_strides() {
    let problem = check(dense()).unwrap();
    let expected = Problem {
        dtype: F16,
        batch: 2,
        heads: 6,
        heads_per_kv: 2,
        head_dim: 64,
        rows_q: 5,
        rows_k: 7,
        longest_q: 5,
        causal: false,
        scale: 0.125,
        q: Strides {
            batch: 1920,
            row: 384,
            head: 64,
        },
        k: Strides {
            batch: 1344,
            row: 192,
            head: 64,
        },
        v: Strides {
            batch: 1344,
            row: 192,
            head: 64,
        },
        out: Strides {
            batch: 1920,
            row: 384,
            head: 64,
        },
        lse: Strides {
            batch: 30,
            row: 1,
            head: 5,
        },
    };
    assert_eq!(problem, expected);
    assert!(!problem.is_empty());
}

#[test]
fn a_varlen_problem_has_no_batch_strides() {
    let problem = check_varlen(varlen(), [4, 4], 3).unwrap();
    assert_eq!((problem.batch, problem.longest_q), (3, 3));
    assert_eq!((problem.rows_q, problem.rows_k), (5, 7));
    assert_eq!(
        problem.q,
        Strides {
            batch: 0,
            row: 384,
            head: 64
        }
    );
    assert_eq!(
        problem.lse,
        Strides {
            batch: 0,
            row: 1,
            head: 5
        }
    );
    // no sequence can be longer than all of them together
    assert_eq!(check_varlen(varlen(), [4, 4], 1000).unwrap().longest_q, 5);
}

#[test]
fn sizes_that_disagree_are_named() {
    let cases: [(Layouts<4, 3>, &str); 10] = [
        (
            Layouts {
                k: contiguous([1, 7, 3, 64]),
                ..dense()
            },
            "k has shape [1, 7, 3, 64], expected shape [2, 7, 3, 64]",
        ),
        (
            Layouts {
                k: contiguous([2, 7, 3, 32]),
                ..dense()
            },
            "k has shape [2, 7, 3, 32], expected shape [2, 7, 3, 64]",
        ),
        (
            Layouts {
                v: contiguous([2, 8, 3, 64]),
                ..dense()
            },
            "v has shape [2, 8, 3, 64], expected shape [2, 7, 3, 64]",
        ),
        (
            Layouts {
                out: contiguous([2, 6, 5, 64]),
                ..dense()
            },
            "out has shape [2, 6, 5, 64], expected shape [2, 5, 6, 64]",
        ),
        (
            Layouts {
                lse: Some(contiguous([2, 5, 6])),
                ..dense()
            },
            "lse has shape [2, 5, 6], expected shape [2, 6, 5]",
        ),
        (
            Layouts {
                k: contiguous([2, 7, 4, 64]),
                v: contiguous([2, 7, 4, 64]),
                ..dense()
            },
            "k has 4 heads, expected a number of heads that divides the 6 heads of q",
        ),
        (
            Layouts {
                k: contiguous([2, 7, 0, 64]),
                v: contiguous([2, 7, 0, 64]),
                ..dense()
            },
            "k has 0 heads, expected a number of heads that divides the 6 heads of q",
        ),
        (
            Layouts {
                k: contiguous([2, 7, 12, 64]),
                v: contiguous([2, 7, 12, 64]),
                ..dense()
            },
            "k has 12 heads, expected a number of heads that divides the 6 heads of q",
        ),
        (
            Layouts {
                q: Layout {
                    shape: [2, 5, 6, 64],
                    strides: [1920, 384, 64, 2],
                },
                ..dense()
            },
            "q has strides [1920, 384, 64, 2], expected a last stride of 1",
        ),
        (
            Layouts {
                v: Layout {
                    shape: [2, 7, 3, 64],
                    strides: [1400, 196, 64, 1],
                },
                ..dense()
            },
            "v has strides [1400, 196, 64, 1], expected strides that are multiples of 8 elements",
        ),
    ];
    for (layouts, message) in cases {
        let error = check(layouts).unwrap_err();
        assert_eq!(error.to_string(), format!("attention::forward: {message}"));
    }
}

#[test]
fn sizes_of_varlen_that_disagree_are_named() {
    let short = Layouts {
        lse: Some(contiguous([5, 6])),
        ..varlen()
    };
    let cases = [
        (short, [3, 3], "lse has shape [5, 6], expected shape [6, 5]"),
        (
            varlen(),
            [3, 4],
            "cu_seqlens_k has shape [4], expected shape [3]",
        ),
        (
            varlen(),
            [0, 0],
            "cu_seqlens_q has no elements, expected batch + 1 elements",
        ),
    ];
    for (layouts, starts, message) in cases {
        let error = check_varlen(layouts, starts, 5).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("attention::forward_varlen: {message}")
        );
    }
}

#[test]
fn every_multiple_of_8_up_to_256_is_a_head_dim_and_nothing_else() {
    for head_dim in 0..300 {
        let layouts = Layouts {
            q: contiguous([2, 5, 6, head_dim]),
            k: contiguous([2, 7, 3, head_dim]),
            v: contiguous([2, 7, 3, head_dim]),
            out: contiguous([2, 5, 6, head_dim]),
            lse: None,
        };
        let problem = check(layouts);
        if head_dim > 0 && head_dim % 8 == 0 && head_dim <= 256 {
            assert_eq!(problem.map(|problem| problem.head_dim), Ok(head_dim as i32));
        } else {
            let message = format!(
                "attention::forward: no kernel for head_dim {head_dim}; \
                 there is each multiple of 8 up to 256"
            );
            assert_eq!(problem.unwrap_err().to_string(), message);
        }
    }
}

#[test]
fn strides_of_axes_with_one_element_do_not_matter() {
    let odd = Layout {
        shape: [1, 5, 1, 64],
        strides: [3, 384, usize::MAX, 1],
    };
    let layouts = Layouts {
        q: odd,
        k: contiguous([1, 7, 1, 64]),
        v: contiguous([1, 7, 1, 64]),
        out: contiguous([1, 5, 1, 64]),
        lse: Some(Layout {
            shape: [1, 1, 5],
            strides: [7, 9, 1],
        }),
    };
    let problem = check(layouts).unwrap();
    assert_eq!(
        problem.q,
        Strides {
            batch: 0,
            row: 384,
            head: 0
        }
    );
    assert_eq!(
        problem.lse,
        Strides {
            batch: 0,
            row: 1,
            head: 0
        }
    );
}

#[test]
fn tensors_too_long_for_the_kernel_are_refused() {
    let longest = 1 << 30;
    let broadcast = |rows| Layout {
        shape: [2, rows, 3, 64],
        strides: [0, 0, 0, 1],
    };
    let layouts = |rows| Layouts {
        k: broadcast(rows),
        v: broadcast(rows),
        ..dense()
    };
    assert_eq!(check(layouts(longest)).unwrap().rows_k, 1 << 30);
    let message = "attention::forward: k has 1073741825 rows, expected at most 1073741824 rows";
    assert_eq!(
        check(layouts(longest + 1)).unwrap_err().to_string(),
        message
    );
}

#[test]
fn options_without_a_kernel_are_refused_by_name() {
    let softcap = Config {
        softcap: Some(30.0),
        ..Config::default()
    };
    let window = |left, right| Config {
        mask: Mask::Window { left, right },
        ..Config::default()
    };
    for (config, name) in [
        (softcap, "softcap 30"),
        (
            window(Some(4), None),
            "window: Window { left: Some(4), right: None }",
        ),
        (
            window(None, Some(1)),
            "window: Window { left: None, right: Some(1) }",
        ),
    ] {
        let error = with_config(config).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }));
        assert!(error.to_string().contains(name), "{error}");
    }
    // windows that are one of the masks with a kernel
    assert!(!with_config(window(None, None)).unwrap().causal);
    assert!(with_config(window(None, Some(0))).unwrap().causal);
    assert!(
        with_config(Config {
            mask: Mask::Causal,
            ..Config::default()
        })
        .unwrap()
        .causal
    );
}

#[test]
fn the_scale_is_positive_and_finite() {
    let scale = |scale| Config {
        scale: Some(scale),
        ..Config::default()
    };
    assert_eq!(with_config(scale(0.5)).unwrap().scale, 0.5);
    for bad in [0.0, -1.0, 2.4e38, f32::NAN, f32::INFINITY] {
        let error = with_config(scale(bad)).unwrap_err();
        let message =
            format!("attention::forward: scale is {bad}, expected a positive number up to 2.35e38");
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn problems_without_output_are_empty() {
    let shapes = [[0, 5, 6], [2, 0, 6], [2, 5, 0]];
    for [batch, rows, heads] in shapes {
        let layouts = Layouts {
            q: contiguous([batch, rows, heads, 64]),
            k: contiguous([batch, 7, heads / 2, 64]),
            v: contiguous([batch, 7, heads / 2, 64]),
            out: contiguous([batch, rows, heads, 64]),
            lse: None,
        };
        assert!(check(layouts).unwrap().is_empty(), "{batch} {rows} {heads}");
    }
    assert!(check_varlen(varlen(), [1, 1], 5).unwrap().is_empty());
    assert!(check_varlen(varlen(), [2, 2], 0).unwrap().is_empty());
    // no keys: the outputs are zeros, which somebody has to write
    let no_keys = Layouts {
        k: contiguous([2, 0, 3, 64]),
        v: contiguous([2, 0, 3, 64]),
        ..dense()
    };
    assert!(!check(no_keys).unwrap().is_empty());
}

fn plan(dtype: Dtype, head_dim: i32, longest_q: usize) -> Result<Plan> {
    let problem = Problem {
        dtype,
        head_dim,
        longest_q,
        ..check(dense()).unwrap()
    };
    Plan::forward("attention::forward", &problem, FORWARD)
}

#[test]
fn each_head_dim_runs_in_the_next_larger_row_of_its_dtype() {
    for (head_dim, dim) in [(8, 32), (32, 32), (40, 64), (64, 64), (72, 96), (104, 128)] {
        for dtype in [F16, BF16] {
            let row = FORWARD[plan(dtype, head_dim, 5).unwrap().row];
            assert_eq!((row.dtype, row.dim), (dtype, dim), "head_dim {head_dim}");
        }
    }
    for (head_dim, dim) in [(136, 160), (168, 192), (200, 256), (256, 256)] {
        assert_eq!(FORWARD[plan(F16, head_dim, 5).unwrap().row].dim, dim);
    }
}

#[test]
fn the_grid_has_a_block_for_each_tile_head_and_sequence() {
    let (tile_q, _) = FORWARD[plan(F16, 64, 1).unwrap().row].tile;
    for (rows, tiles) in [(1, 1), (tile_q, 1), (tile_q + 1, 2), (5 * tile_q, 5)] {
        assert_eq!(
            plan(F16, 64, rows).unwrap().grid,
            [tiles, 6, 2],
            "{rows} rows"
        );
    }
}

#[test]
fn a_device_without_a_fitting_row_gets_an_error() {
    let problem = Problem {
        head_dim: 200,
        ..check(dense()).unwrap()
    };
    let rows = &FORWARD[..2];
    let error = Plan::forward("attention::forward", &problem, rows).unwrap_err();
    let message = "attention::forward: no kernel for f16 head_dim 200; \
                   there is head_dim up to 64 on this GPU";
    assert_eq!(error.to_string(), message);
}
