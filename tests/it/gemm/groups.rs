//! Problems of different sizes in one call: groups of rows, and groups of k.

use half::{bf16, f16};
use seqmix::gemm::{Activation, Config};

use super::problem::Problem;
use super::{
    ACTIVATIONS, ALL, Addend, Case, EPILOGUES, EVERYTHING, Epilogue, Extra, Groups, LAYOUTS,
    NOTHING, PLAIN, TILES, check, check_both, check_into,
};
use crate::support::{RacesPass, device};

/// Offsets of groups within 150 rows, or 150 of k.
const OFFSETS: [&[i32]; 10] = [
    &[0, 150],                             // one group
    &[0, 0, 150],                          // the first is empty
    &[0, 150, 150],                        // the last is empty
    &[0, 40, 40, 40, 150],                 // empty ones between others
    &[0, 1, 3, 8, 72, 100, 101, 133, 150], // uneven ones
    &[0, 64, 128, 150],                    // whole tiles, and a rest
    &[7, 30, 149],                         // what belongs to no group at either end
    &[0, 0, 0],                            // nothing at all
    &[75, 75],                             // nothing in the middle
    &[
        0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 144, 150,
    ],
];

/// Everything that goes with groups.
const WITH_GROUPS: Extra = Extra {
    column_sums: false,
    ..EVERYTHING
};

fn rows(offsets: &'static [i32], n: usize, k: usize) -> Case {
    Case {
        groups: Groups::Rows(offsets),
        ..Case::of(150, n, k)
    }
}

fn parts_of_k(offsets: &'static [i32], m: usize, n: usize) -> Case {
    Case {
        groups: Groups::K(offsets),
        ..Case::of(m, n, 150)
    }
}

#[test]
fn groups_of_rows() {
    for offsets in OFFSETS {
        for extra in [NOTHING, WITH_GROUPS] {
            for (n, k) in [(72, 40), (35, 33)] {
                check_both(Case {
                    extra,
                    activation: Activation::Silu,
                    ..rows(offsets, n, k)
                });
            }
        }
    }
}

#[test]
fn groups_of_k() {
    for offsets in OFFSETS {
        for extra in [NOTHING, WITH_GROUPS] {
            for (m, n) in [(72, 40), (35, 33)] {
                check_both(Case {
                    extra,
                    ..parts_of_k(offsets, m, n)
                });
            }
        }
    }
}

/// A group may begin where no copy of 16 bytes can, although the whole tensors allow them.
#[test]
fn every_tile_and_layout() {
    for offsets in [OFFSETS[4], OFFSETS[6]] {
        for tile in TILES {
            for (a, b) in LAYOUTS {
                let config = Config {
                    tile: Some(tile),
                    ..PLAIN
                };
                let extra = WITH_GROUPS;
                // where groups begin within copies of 16 bytes, the large tiles cannot be copied
                if tile.0 <= 64 || a == super::Rows {
                    check::<f16>(Case {
                        a,
                        b,
                        config,
                        extra,
                        groups: Groups::Rows(offsets),
                        ..Case::of(152, 136, 40)
                    });
                }
                if tile.0 <= 64 || (a, b) == (super::Columns, super::Rows) {
                    check::<f16>(Case {
                        a,
                        b,
                        config,
                        extra,
                        groups: Groups::K(offsets),
                        ..Case::of(40, 136, 152)
                    });
                }
            }
        }
    }
}

#[test]
fn every_epilogue() {
    for epilogue in EPILOGUES {
        for activation in ACTIVATIONS {
            for one_vector in [false, true] {
                let extra = Extra {
                    one_vector,
                    ..WITH_GROUPS
                };
                let case = Case {
                    extra,
                    ..rows(OFFSETS[4], 44, 24)
                };
                check::<bf16>(case.with(epilogue, activation));
                let case = Case {
                    extra,
                    ..parts_of_k(OFFSETS[6], 20, 44)
                };
                check::<bf16>(case.with(epilogue, activation));
            }
        }
    }
}

/// Gradients of weights add up over steps, in f32.
#[test]
fn in_place_and_in_f32() {
    for c in [Addend::Tensor, Addend::InPlace] {
        let extra = Extra { c, ..ALL };
        for offsets in [OFFSETS[3], OFFSETS[6]] {
            check_into::<bf16, f32>(Case {
                extra,
                ..rows(offsets, 33, 20)
            });
            check_into::<bf16, f32>(Case {
                extra,
                ..parts_of_k(offsets, 20, 33)
            });
        }
    }
}

#[test]
fn unaligned_tensors() {
    for (shift, padding) in [(1, 0), (8, 0), (0, 3)] {
        let change = |case: Case| Case {
            shift,
            padding,
            extra: WITH_GROUPS,
            ..case
        };
        check::<f16>(change(rows(OFFSETS[4], 40, 40)));
        check::<f16>(change(parts_of_k(OFFSETS[4], 40, 40)));
    }
}

/// More groups than a warp has lanes, some of them empty.
#[test]
fn many_groups() {
    let offsets: Vec<i32> = (0..=100)
        .map(|group| (group * group * 3 / 200).min(150))
        .collect();
    check::<f16>(rows(offsets.clone().leak(), 24, 16));
    check::<f16>(parts_of_k(offsets.leak(), 16, 24));
}

/// Offsets that no one should give: they are clamped, a group that ends before it begins is empty.
const WRONG: [&[i32]; 7] = [
    &[-5, 30, 1000],
    &[i32::MIN, i32::MAX],
    &[i32::MAX, i32::MIN],
    &[100, 50, 50],
    &[0, 60, 20],
    &[150, 0],
    &[-7, -3, 0, 12, 12, 4000, 5000],
];

#[test]
fn wrong_offsets_are_clamped() {
    for offsets in WRONG {
        for epilogue in EPILOGUES {
            let extra = WITH_GROUPS;
            let case = Case {
                extra,
                ..rows(offsets, 40, 24)
            };
            check::<f16>(case.with(epilogue, Activation::GeluErf));
            let case = Case {
                extra,
                ..parts_of_k(offsets, 24, 40)
            };
            check::<f16>(case.with(epilogue, Activation::GeluErf));
        }
    }
}

/// Offsets that fall, so that groups of rows share some: nothing is read or written out of bounds, and what belongs
/// to no group stays.
#[test]
fn groups_that_overlap_stay_within_bounds() {
    let device = device();
    let _groups_overlap = RacesPass::new();
    let stream = device.stream();
    let zigzag: &[i32] = &[3, 140, 3, 140, 3, 140, 3, 140, 3, 140];
    for offsets in [
        &[5, 60, 20, 100][..],
        zigzag,
        &[140, 3, 120, -8, 80, i32::MAX, 3],
    ] {
        for tile in TILES {
            let config = Config {
                tile: Some(tile),
                ..PLAIN
            };
            let case = Case {
                config,
                extra: WITH_GROUPS,
                ..rows(offsets, 136, 40)
            };
            let mut problem = Problem::<f16, f16>::new(case, &stream);
            problem.run(&device.gemm, &stream).unwrap();
            let found = problem.fetch(&stream);
            let limits = offsets.windows(2).filter(|pair| pair[0] < pair[1]);
            let of_any = |row: usize| {
                limits
                    .clone()
                    .any(|pair| (pair[0]..pair[1]).contains(&(row as i32)))
            };
            for (row, d) in found.d.chunks(136).enumerate() {
                let written = d.iter().any(|x| !x.is_nan());
                assert!(of_any(row) || !written, "{offsets:?} {tile:?}: row {row}");
            }
        }
    }
    // of k any groups may share parts
    check::<f16>(parts_of_k(zigzag, 24, 40));
    check::<f16>(parts_of_k(&[5, 60, 20, 100], 24, 40));
}

#[test]
fn groups_of_nothing() {
    for epilogue in [Epilogue::Activate, Epilogue::Gate] {
        for (m, n) in [(0, 8), (150, 0)] {
            let case = Case {
                groups: Groups::Rows(OFFSETS[1]),
                ..Case::of(m, n, 16)
            };
            check::<f16>(case.with(epilogue, Activation::Silu));
        }
        // k of 0 is a product of 0 for each group
        let case = Case {
            groups: Groups::K(OFFSETS[4]),
            extra: WITH_GROUPS,
            ..Case::of(12, 20, 0)
        };
        check::<f16>(case.with(epilogue, Activation::Silu));
    }
}

/// As on a device that has no experts.
#[test]
fn no_groups_at_all() {
    for extra in [NOTHING, WITH_GROUPS] {
        let case = Case {
            extra,
            ..rows(&[0], 24, 16)
        };
        check::<f16>(case);
        let case = Case {
            extra,
            ..parts_of_k(&[0], 16, 24)
        };
        check::<f16>(case);
    }
}
