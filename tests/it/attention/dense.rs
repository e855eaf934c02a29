//! Problems whose sequences all have one length.

use half::{bf16, f16};
use seqmix::attention::Config;

use super::{CAUSAL, Case, Layout, check};

/// Both dtypes, full and causal.
fn check_all(case: Case) {
    for config in [
        case.config,
        Config {
            mask: CAUSAL.mask,
            ..case.config
        },
    ] {
        check::<f16>(Case { config, ..case });
        check::<bf16>(Case { config, ..case });
    }
}

/// Below, at and above every tile size, and nothing that divides one.
const LENGTHS: [usize; 11] = [1, 2, 3, 7, 8, 63, 64, 65, 127, 128, 129];

#[test]
fn every_length() {
    for seq in LENGTHS {
        check_all(Case {
            seq_q: seq,
            seq_k: seq,
            ..Case::default()
        });
    }
}

#[test]
fn queries_and_keys_of_different_number() {
    let pairs = [
        (1, 2),
        (2, 1),
        (1, 129),
        (129, 1),
        (7, 64),
        (64, 7),
        (65, 130),
        (130, 65),
        (3, 257),
        (257, 3),
    ];
    for (seq_q, seq_k) in pairs {
        check_all(Case {
            seq_q,
            seq_k,
            ..Case::default()
        });
    }
}

#[test]
fn many_tiles() {
    for (seq_q, seq_k) in [(384, 384), (300, 517), (517, 300)] {
        check_all(Case {
            seq_q,
            seq_k,
            heads: 1,
            ..Case::default()
        });
    }
}

/// Each row of the table at the edges of its tiles, and head dims that run in the next larger row.
#[test]
fn every_head_dim() {
    for head_dim in [32, 64, 96, 128, 160, 192, 256] {
        for (seq_q, seq_k) in [(128, 128), (127, 129), (65, 33)] {
            check_all(Case {
                seq_q,
                seq_k,
                head_dim,
                heads: 1,
                ..Case::default()
            });
        }
    }
    for head_dim in [8, 16, 24, 40, 72, 80, 104, 136, 168, 200, 248] {
        check_all(Case {
            seq_q: 66,
            seq_k: 70,
            head_dim,
            heads: 1,
            ..Case::default()
        });
    }
}

#[test]
fn query_heads_share_key_heads() {
    for (heads, heads_kv) in [(1, 1), (2, 2), (4, 2), (6, 2), (5, 1), (8, 1)] {
        check_all(Case {
            batch: 2,
            seq_q: 17,
            seq_k: 33,
            heads,
            heads_kv,
            ..Case::default()
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
            seq_q: 40,
            seq_k: 40,
            heads: 2,
            heads_kv: 2,
            layout,
            ..Case::default()
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
        check_all(Case {
            config: Config {
                scale: Some(scale),
                ..Config::default()
            },
            ..Case::default()
        });
    }
}

/// Scores of about +-100: exponentials that are not taken of the difference to the row's maximum overflow.
#[test]
fn large_logits() {
    check_all(Case {
        deviation: 5.0,
        seq_q: 130,
        seq_k: 130,
        ..Case::default()
    });
}

/// Queries that see no key, among others that do.
#[test]
fn rows_that_see_no_key() {
    for (seq_q, seq_k) in [(5, 0), (130, 0), (200, 30), (64, 1)] {
        check_all(Case {
            seq_q,
            seq_k,
            ..Case::default()
        });
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
        seq_q: 0,
        ..Case::default()
    });
    check_all(Case {
        seq_q: 0,
        seq_k: 0,
        ..Case::default()
    });
}
