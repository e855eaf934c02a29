//! Sums along k in several parts, which a second kernel adds and finishes.

use half::{bf16, f16};
use seqmix::Workspace;
use seqmix::gemm::{Activation, Config};

use super::problem::Problem;
use super::{
    ACTIVATIONS, ALL, Addend, Case, EPILOGUES, EVERYTHING, Epilogue, Extra, LAYOUTS, NOTHING,
    PLAIN, TILES, check, check_both, check_into,
};
use crate::support::device;

fn in_parts(splits: usize) -> Config {
    Config {
        splits: Some(splits),
        ..PLAIN
    }
}

/// k ends within a tile, within a copy, within a part; parts may have no tile at all.
#[test]
fn every_number_of_parts() {
    for splits in 2..=7 {
        for k in [1, 63, 65, 200, 256, 449] {
            check_both(Case {
                config: in_parts(splits),
                ..Case::of(18, 40, k)
            });
        }
    }
}

#[test]
fn more_parts_than_steps() {
    for (splits, k) in [(2, 0), (5, 8), (40, 130)] {
        for extra in [NOTHING, ALL] {
            check_both(Case {
                config: in_parts(splits),
                extra,
                ..Case::of(33, 24, k)
            });
        }
    }
}

#[test]
fn every_tile_in_every_layout() {
    for tile in TILES {
        for (a, b) in LAYOUTS {
            let config = Config {
                tile: Some(tile),
                ..in_parts(3)
            };
            // sizes whose strides allow copies of 16 bytes, and sizes that allow none to the small tiles
            for (m, n, k) in [(136, 264, 200), (19, 35, 131)] {
                let small = tile.0 <= 64;
                if small || m % 8 == 0 {
                    check::<f16>(Case {
                        a,
                        b,
                        config,
                        extra: ALL,
                        ..Case::of(m, n, k)
                    });
                }
            }
        }
    }
}

/// The second kernel does all that the first one does where k is whole; with a gate and sums of columns k is whole.
#[test]
fn every_epilogue() {
    let extra = Extra {
        column_sums: false,
        ..EVERYTHING
    };
    for epilogue in EPILOGUES {
        for activation in ACTIVATIONS {
            for (m, n) in [(20, 48), (17, 43)] {
                let case = Case {
                    config: in_parts(3),
                    extra,
                    ..Case::of(m, n, 200)
                };
                if epilogue != Epilogue::Gate {
                    check_both(case.with(epilogue, activation));
                }
            }
        }
    }
}

#[test]
fn every_type_of_output_and_alignment() {
    for c in [Addend::Tensor, Addend::InPlace] {
        for (shift, padding) in [(0, 0), (1, 0), (0, 3), (8, 8)] {
            let case = Case {
                batch: 3,
                shift,
                padding,
                config: in_parts(4),
                extra: Extra { c, ..ALL },
                ..Case::of(21, 44, 300)
            };
            check_into::<f16, f32>(case);
            check_into::<bf16, f16>(case);
            check_into::<bf16, bf16>(case);
        }
    }
}

/// Few rows and a long k, for which the plan splits by itself.
#[test]
fn the_plan_splits_where_tiles_are_few() {
    let device = device();
    let stream = device.stream();
    let case = Case {
        b: super::Columns,
        ..Case::of(4, 128, 4096)
    };
    let mut problem = Problem::<f16, f16>::new(case, &stream);
    let plan = problem.plan(&device.gemm, &stream).unwrap();
    assert!(plan.splits() > 1, "{plan}");
    assert!(plan.workspace_bytes() > 0, "{plan}");
    check_both(case);

    // unless that needs more memory than it may
    let config = Config {
        max_workspace: plan.workspace_bytes() - 1,
        ..PLAIN
    };
    let mut less = Problem::<f16, f16>::new(Case { config, ..case }, &stream);
    let other = less.plan(&device.gemm, &stream).unwrap();
    assert!(other.workspace_bytes() < plan.workspace_bytes(), "{other}");
    check_both(Case { config, ..case });
}

/// What an earlier call left in the workspace is not part of the sums.
#[test]
fn a_workspace_serves_many_calls() {
    let device = device();
    let stream = device.stream();
    let mut workspace = Workspace::new(&stream);
    let sizes = [(40, 60, 500), (7, 9, 11), (40, 60, 500), (64, 64, 640)];
    for (seed, (m, n, k)) in sizes.into_iter().enumerate() {
        let case = Case {
            config: in_parts(2 + seed),
            activation: Activation::Silu,
            ..Case::of(m, n, k)
        };
        let mut problem = Problem::<bf16, bf16>::new(case, &stream);
        let plan = problem.plan(&device.gemm, &stream).unwrap();
        workspace.reserve(plan.workspace_bytes()).unwrap();
        problem
            .queue(&device.gemm, &stream, &mut workspace)
            .unwrap();
        let name = format!("call {seed} with a shared workspace");
        super::judge(&name, &problem, &problem.fetch(&stream));
    }
}
