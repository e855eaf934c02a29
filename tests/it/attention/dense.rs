//! Problems whose sequences all have one length.

use half::{bf16, f16};
use seqmix::attention::{Config, Mask};

use super::{CAUSAL, Case, FULL, Layout, Problem, check, judge};
use crate::naive::Number;
use crate::support::device;

/// Both dtypes, full and causal.
fn check_all(case: Case) {
    let scale = case.config.scale;
    for config in [FULL, CAUSAL].map(|config| Config { scale, ..config }) {
        check::<f16>(Case { config, ..case });
        check::<bf16>(Case { config, ..case });
    }
}

/// Below, at and above every size of a tile, and nothing that divides one.
#[test]
fn every_length() {
    for seq in [1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 129] {
        check_all(Case::of(seq, seq));
    }
}

#[test]
fn queries_and_keys_of_different_number() {
    for (less, more) in [(1, 2), (1, 129), (7, 64), (65, 130), (3, 257)] {
        check_all(Case::of(less, more));
        check_all(Case::of(more, less));
    }
}

#[test]
fn many_tiles() {
    for (seq_q, seq_k) in [(384, 384), (300, 517), (517, 300)] {
        check_all(Case {
            heads: 1,
            ..Case::of(seq_q, seq_k)
        });
    }
}

/// Each row of the table, at the edges of its tiles.
#[test]
fn every_head_dim() {
    for head_dim in [32, 64, 96, 128, 160, 192, 256] {
        for (seq_q, seq_k) in [
            (1, 1),
            (65, 33),
            (63, 64),
            (128, 128),
            (127, 129),
            (257, 255),
        ] {
            check_all(Case {
                head_dim,
                heads: 1,
                ..Case::of(seq_q, seq_k)
            });
        }
    }
}

/// Head dims that run in the next larger row.
#[test]
fn head_dims_between_the_rows() {
    for head_dim in [
        8, 16, 24, 40, 56, 72, 80, 88, 104, 136, 152, 168, 184, 200, 224, 248,
    ] {
        check_all(Case {
            head_dim,
            heads: 1,
            ..Case::of(66, 70)
        });
    }
}

#[test]
fn query_heads_share_key_heads() {
    for (heads, heads_kv) in [(1, 1), (2, 2), (4, 2), (6, 2), (5, 1), (8, 1)] {
        check_all(Case {
            batch: 2,
            heads,
            heads_kv,
            ..Case::of(17, 33)
        });
    }
}

#[test]
fn strided_tensors() {
    for layout in [
        Layout::Bhsd,
        Layout::Sbhd,
        Layout::PackedQkv,
        Layout::SharedKv,
    ] {
        let case = Case {
            batch: 3,
            heads: 2,
            heads_kv: 2,
            layout,
            ..Case::of(40, 40)
        };
        check_all(case);
        check_all(Case {
            head_dim: 72,
            ..case
        });
    }
}

#[test]
fn without_lse() {
    check_all(Case {
        lse: false,
        ..Case::default()
    });
}

#[test]
fn other_scales() {
    for scale in [0.01, 1.0] {
        let config = Config {
            scale: Some(scale),
            ..FULL
        };
        check_all(Case {
            config,
            ..Case::default()
        });
    }
}

/// Windows that are the full and the causal mask by another name.
#[test]
fn windows_without_limits() {
    for right in [None, Some(0)] {
        let config = Config {
            mask: Mask::Window { left: None, right },
            ..FULL
        };
        check::<f16>(Case {
            config,
            ..Case::of(70, 90)
        });
    }
}

/// Scores of about +-100, whose exponentials overflow unless the row's maximum is taken off first.
#[test]
fn large_logits() {
    check_all(Case {
        deviation: 5.0,
        ..Case::of(130, 130)
    });
}

/// Queries that see no key, among others that do.
#[test]
fn rows_that_see_no_key() {
    for (seq_q, seq_k) in [(5, 0), (130, 0), (200, 30), (64, 1)] {
        check_all(Case::of(seq_q, seq_k));
    }
}

/// Nothing to compute is no error, and nothing is launched.
#[test]
fn empty_problems() {
    check_all(Case {
        batch: 0,
        ..Case::default()
    });
    check_all(Case {
        heads: 0,
        heads_kv: 0,
        ..Case::default()
    });
    check_all(Case::of(0, 65));
    check_all(Case::of(0, 0));
}

/// A NaN in a query spoils its own row of the output, and no other.
#[test]
fn a_nan_stays_in_its_row() {
    let device = device();
    let stream = device.stream();
    let case = Case {
        heads: 1,
        config: CAUSAL,
        ..Case::of(70, 70)
    };
    let row = 37 * case.head_dim..38 * case.head_dim;
    let (mut expected, mut naive) = Problem::<f16>::new(case, &stream).expected();
    let mut inputs = Problem::<f16>::inputs(case);
    inputs[0][row.clone()].fill(f16::NAN);
    let mut problem = Problem::of(case, inputs, &stream);
    problem.queue(&device.attention, &stream).unwrap();
    let (mut out, mut lse) = problem.fetch(&stream);

    assert!(
        out[row.clone()].iter().all(|x| x.is_nan()),
        "{:?}",
        &out[row.clone()]
    );
    assert!(lse[37].is_nan(), "{}", lse[37]);
    out[row.clone()].fill(f16::narrow(1.0));
    expected.out[row.clone()].fill(1.0);
    naive.out[row].fill(1.0);
    (lse[37], expected.lse[37]) = (1.0, 1.0);
    judge(
        "the other rows",
        case.head_dim,
        &out,
        Some(&lse),
        &expected,
        &naive,
    );
}
