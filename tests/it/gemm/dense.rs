//! Sizes and layouts.

use half::{bf16, f16};
use seqmix::gemm::{Activation, Config};

use super::{
    ACTIVATIONS, ALL, Addend, Case, Extra, LAYOUTS, NOTHING, PLAIN, TILES, check, check_both,
    check_into,
};

/// Each layout of the operands.
fn check_layouts(case: Case) {
    for (a, b) in LAYOUTS {
        check_both(Case { a, b, ..case });
    }
}

/// Whole tiles, and sizes that no tile divides but whose strides allow 16-byte copies; with fewer steps along k
/// than there are stages, and more.
#[test]
fn every_tile_in_every_layout() {
    for tile in TILES {
        let config = Config {
            tile: Some(tile),
            ..PLAIN
        };
        for (m, n, k) in [(128, 256, 64), (136, 264, 136), (16, 72, 8), (72, 8, 352)] {
            check_layouts(Case {
                config,
                ..Case::of(m, n, k)
            });
        }
        check_layouts(Case {
            config,
            batch: 2,
            extra: ALL,
            ..Case::of(40, 72, 0)
        });
    }
}

/// Nothing is a multiple of anything.
#[test]
fn any_size() {
    for size in [1, 2, 3, 7, 8, 9, 15, 17, 31, 33, 63, 65, 127, 129] {
        check_both(Case::of(size, 70, 35));
        check_both(Case::of(35, size, 70));
        check_both(Case::of(70, 35, size));
    }
    check_layouts(Case::of(1, 1, 1));
    check_layouts(Case::of(67, 131, 99));
}

/// The rows are aligned, but end within a chunk of 16 bytes.
#[test]
fn padded_rows() {
    for (size, padding) in [(1, 7), (33, 7), (60, 4), (127, 1)] {
        for tile in TILES {
            let config = Config {
                tile: Some(tile),
                ..PLAIN
            };
            check_layouts(Case {
                padding,
                config,
                extra: ALL,
                ..Case::of(size, size, size)
            });
        }
    }
}

/// Tensors that begin anywhere, with sizes that would allow 16-byte copies.
#[test]
fn unaligned_tensors() {
    for shift in [1, 4] {
        check_layouts(Case {
            shift,
            extra: ALL,
            ..Case::of(72, 136, 40)
        });
    }
}

#[test]
fn batches() {
    for batch in [2, 5] {
        let case = Case {
            batch,
            extra: ALL,
            ..Case::of(40, 72, 24)
        };
        check_layouts(case);
        for (shared_a, shared_b) in [(false, true), (true, false), (true, true)] {
            check_layouts(Case {
                shared_a,
                shared_b,
                ..case
            });
        }
        check_both(Case {
            batch,
            shared_b: true,
            ..Case::of(5, 9, 11)
        });
    }
}

#[test]
fn every_activation_and_addend() {
    for activation in ACTIVATIONS {
        for which in 0..8 {
            let extra = Extra {
                c: match which & 1 {
                    0 => Addend::None,
                    _ => Addend::Tensor,
                },
                bias: which & 2 != 0,
                residual: which & 4 != 0,
                ..NOTHING
            };
            let config = Config {
                alpha: 1.5,
                beta: -0.5,
                ..PLAIN
            };
            check_both(Case {
                config,
                activation,
                extra,
                ..Case::of(40, 50, 48)
            });
        }
    }
}

/// d in each type.
#[test]
fn every_type_of_output() {
    for (m, n) in [(40, 72), (33, 35)] {
        let case = Case {
            extra: ALL,
            ..Case::of(m, n, 64)
        };
        check_into::<f16, f32>(case);
        check_into::<bf16, f32>(case);
        check_into::<bf16, f16>(case);
    }
}

/// Without a product there is still an epilogue.
#[test]
fn k_of_zero() {
    for extra in [NOTHING, ALL] {
        check_layouts(Case {
            activation: Activation::GeluErf,
            extra,
            ..Case::of(70, 50, 0)
        });
    }
}

/// Nothing to compute is no error, and nothing is launched.
#[test]
fn empty_problems() {
    for (batch, m, n) in [(0, 4, 4), (1, 0, 4), (1, 4, 0), (0, 0, 0)] {
        check_layouts(Case {
            batch,
            ..Case::of(m, n, 16)
        });
    }
}

/// Many tiles, more of them than a group of the grid's order has.
#[test]
fn many_tiles() {
    check::<f16>(Case::of(1100, 300, 32));
    check::<bf16>(Case::of(300, 1100, 64));
}

#[test]
fn long_k() {
    check_both(Case::of(20, 72, 2056));
    check_both(Case::of(130, 130, 1001));
}
