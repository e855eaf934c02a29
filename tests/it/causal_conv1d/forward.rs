//! Sizes, layouts and options of the forward pass.

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{ALONG, Case, Dim, FORWARD, LENGTHS, Seqlen, check_forward, check_types};

#[test]
fn any_length() {
    for seqlen in LENGTHS {
        for along in ALONG {
            check_types(FORWARD, Case::of(40, seqlen, along));
        }
    }
}

/// Fewer channels than a tile, more, and neither a multiple of anything.
#[test]
fn any_number_of_channels() {
    for dim in [1, 2, 3, 31, 33, 63, 64, 65, 129, 200] {
        for along in ALONG {
            check_types(FORWARD, Case::of(dim, 70, along));
        }
    }
}

#[test]
fn every_width() {
    for width in 2..=8 {
        for along in ALONG {
            for seqlen in [3, 150] {
                let case = Case {
                    width,
                    ..Case::of(72, seqlen, along)
                };
                check_types(FORWARD, case);
                check_types(
                    FORWARD,
                    Case {
                        states: false,
                        silu: false,
                        ..case
                    },
                );
            }
        }
    }
}

#[test]
fn every_option() {
    for along in ALONG {
        for which in 0..16 {
            let case = Case {
                silu: which & 1 != 0,
                bias: which & 2 != 0,
                states: which & 4 != 0,
                turned: which & 8 != 0,
                batch: 2,
                ..Case::of(24, 40, along)
            };
            check_forward::<f16, f16>(case);
            check_forward::<f32, f32>(case);
        }
    }
}

/// Weights of another type than x.
#[test]
fn every_type_of_weights() {
    for along in ALONG {
        let case = Case::of(40, 100, along);
        check_forward::<f16, f32>(case);
        check_forward::<bf16, f32>(case);
        check_forward::<bf16, f16>(case);
        check_forward::<f32, bf16>(case);
    }
}

/// Lines that are longer than what is read of them, aligned and not, and tensors that begin anywhere.
#[test]
fn padded_and_unaligned_tensors() {
    for along in ALONG {
        for (size, padding, shift) in [
            (60, 4, 0),
            (61, 3, 0),
            (64, 8, 8),
            (64, 0, 1),
            (64, 0, 4),
            (64, 1, 3),
            (1000, 1, 1),
        ] {
            let (dim, seqlen) = match along {
                Dim => (size, 150),
                Seqlen => (20, size),
            };
            let case = Case {
                batch: 2,
                padding,
                shift,
                ..Case::of(dim, seqlen, along)
            };
            check_types(FORWARD, case);
            check_types(FORWARD, Case { width: 7, ..case });
        }
    }
}

#[test]
fn batches() {
    for along in ALONG {
        for batch in [2, 5] {
            check_types(
                FORWARD,
                Case {
                    batch,
                    ..Case::of(72, 136, along)
                },
            );
        }
    }
}

/// More tiles than one along both axes.
#[test]
fn many_tiles() {
    for along in ALONG {
        check_forward::<f16, f16>(Case::of(136, 2100, along));
        check_forward::<f32, f32>(Case::of(70, 1100, along));
    }
}

/// Nothing to compute is no error; final states of no step are the initial ones.
#[test]
fn empty_problems() {
    for along in ALONG {
        for (batch, dim, seqlen) in [(0, 8, 8), (2, 0, 8), (2, 8, 0), (0, 0, 0)] {
            for states in [false, true] {
                check_types(
                    FORWARD,
                    Case {
                        batch,
                        states,
                        ..Case::of(dim, seqlen, along)
                    },
                );
            }
        }
    }
}

/// Problems that no one chose.
#[test]
fn random_problems() {
    let mut random = StdRng::seed_from_u64(7);
    let mut below = |limit: usize| random.random_range(0..limit);
    for _ in 0..60 {
        let case = Case {
            batch: 1 + below(3),
            width: 2 + below(7),
            padding: [0, 0, 1, 8][below(4)],
            shift: [0, 0, 0, 3][below(4)],
            silu: below(2) == 0,
            bias: below(2) == 0,
            states: below(2) == 0,
            turned: below(2) == 0,
            ..Case::of(1 + below(100), 1 + below(300), ALONG[below(2)])
        };
        match below(4) {
            0 => check_forward::<f16, f16>(case),
            1 => check_forward::<bf16, bf16>(case),
            2 => check_forward::<bf16, f32>(case),
            _ => check_forward::<f32, f32>(case),
        }
    }
}
