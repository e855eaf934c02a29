//! Operands of f32, which are multiplied without tensor cores.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, take_thread_reports};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seqmix::gemm::{Activation, Config};
use seqmix::kernels;

use super::problem::Problem;
use super::{
    ACTIVATIONS, ALL, Addend, Case, Columns, EPILOGUES, EVERYTHING, Epilogue, Extra, Groups,
    LAYOUTS, NOTHING, PLAIN, Rows, check, check_into,
};
use crate::support::device;

/// Every tile of the table for f32.
const TILES: [(usize, usize); 2] = [(128, 128), (64, 64)];

/// Offsets of groups, within 152: they begin where no copy of 16 bytes can, although the whole tensors allow them.
const OFFSETS: [&[i32]; 3] = [
    &[0, 1, 3, 8, 72, 72, 133, 150],
    &[7, 30, 149],
    &[-5, 64, 64, 1000],
];

fn with_tile(tile: (usize, usize)) -> Config {
    Config {
        tile: Some(tile),
        ..PLAIN
    }
}

/// Each tile in each layout of the operands.
fn each_kernel(case: Case) -> impl Iterator<Item = Case> {
    let of_tile = move |tile| {
        LAYOUTS.map(|(a, b)| Case {
            a,
            b,
            config: Config {
                tile: Some(tile),
                ..case.config
            },
            ..case
        })
    };
    TILES.into_iter().flat_map(of_tile)
}

/// Whole tiles, whole vectors, and neither; with fewer tiles along k than there are stages, and more.
const SIZES: [(usize, usize, usize); 7] = [
    (128, 128, 64),
    (132, 140, 100),
    (64, 68, 4),
    (1, 1, 1),
    (67, 131, 99),
    (33, 4, 17),
    (3, 130, 48),
];

/// A sum is one fused multiply-add after the other in the order of k, whatever the tile and layout: the CPU makes
/// the same bits.
#[test]
fn sums_are_made_in_the_order_of_k() {
    let device = device();
    let stream = device.stream();
    for (m, n, k) in SIZES {
        for case in each_kernel(Case {
            batch: 2,
            config: Config {
                splits: Some(1),
                ..PLAIN
            },
            ..Case::of(m, n, k)
        }) {
            let mut problem = Problem::<f32, f32>::new(case, &stream);
            problem.run(&device.gemm, &stream).unwrap();
            let found = problem.fetch(&stream).d;
            let (a, b) = (&problem.a.host, &problem.b.host);
            for (at, found) in found.into_iter().enumerate() {
                let (row, column) = (at / n, at % n);
                let b = &b[row / m * k * n + column..];
                let products = (0..k).map(|l| (a[row * k + l] as f32, b[l * n] as f32));
                let sum = products.fold(0.0_f32, |sum, (a, b)| a.mul_add(b, sum));
                assert_eq!(found as f32, sum, "{case:?}: element {at}");
            }
        }
    }
}

#[test]
fn every_tile_in_every_layout() {
    for (m, n, k) in SIZES {
        for case in each_kernel(Case {
            batch: 2,
            extra: EVERYTHING,
            ..Case::of(m, n, k)
        }) {
            check::<f32>(case);
        }
    }
}

/// Nothing is a multiple of anything.
#[test]
fn any_size() {
    for size in [1, 2, 3, 5, 7, 8, 9, 15, 17, 31, 33, 63, 65, 127, 129] {
        check::<f32>(Case::of(size, 70, 35));
        check::<f32>(Case::of(35, size, 70));
        check::<f32>(Case::of(70, 35, size));
    }
}

/// Rows that are aligned and end within 16 bytes, and tensors that begin anywhere.
#[test]
fn padded_and_unaligned_tensors() {
    for (shift, padding) in [(0, 3), (0, 4), (1, 0), (2, 1), (4, 0), (8, 8)] {
        for size in [33, 72] {
            let extra = EVERYTHING;
            for case in each_kernel(Case {
                shift,
                padding,
                extra,
                ..Case::of(size, size, size)
            }) {
                check::<f32>(case);
            }
        }
    }
}

#[test]
fn one_b_for_the_whole_batch() {
    for case in each_kernel(Case {
        batch: 3,
        shared_b: true,
        ..Case::of(20, 36, 24)
    }) {
        check::<f32>(case);
    }
}

/// The halves of a tile are the gate's and b's, or both b's; the edge of d lies in either.
#[test]
fn every_epilogue() {
    for epilogue in EPILOGUES {
        for activation in ACTIVATIONS {
            for (m, n) in [(40, 64), (33, 35)] {
                for extra in [NOTHING, EVERYTHING] {
                    let case = Case {
                        batch: 2,
                        extra,
                        ..Case::of(m, n, 40)
                    };
                    check::<f32>(case.with(epilogue, activation));
                }
            }
        }
        for (m, n, k) in [(1, 1, 1), (140, 60, 8), (70, 150, 33), (10, 272, 20)] {
            for case in each_kernel(Case {
                extra: EVERYTHING,
                ..Case::of(m, n, k)
            }) {
                check::<f32>(case.with(epilogue, Activation::GeluTanh));
            }
        }
    }
}

/// d in each type, and c in the same, as a tensor of its own or as d before the call.
#[test]
fn every_type_of_output() {
    for epilogue in EPILOGUES {
        for c in [Addend::Tensor, Addend::InPlace] {
            for (m, n) in [(24, 40), (21, 43)] {
                let extra = Extra { c, ..EVERYTHING };
                let case = Case {
                    extra,
                    ..Case::of(m, n, 32)
                };
                let case = case.with(epilogue, Activation::Silu);
                check_into::<f32, f32>(case);
                check_into::<f32, f16>(case);
                check_into::<f32, bf16>(case);
            }
        }
    }
}

/// Without a product there is still an epilogue, and without elements there is no launch.
#[test]
fn nothing_to_multiply() {
    for epilogue in EPILOGUES {
        for (batch, m, n, k) in [(2, 70, 50, 0), (0, 4, 4, 4), (1, 0, 4, 4), (1, 4, 0, 4)] {
            for case in each_kernel(Case {
                batch,
                extra: EVERYTHING,
                ..Case::of(m, n, k)
            }) {
                check::<f32>(case.with(epilogue, Activation::GeluErf));
            }
        }
    }
}

/// More tiles than a group of the grid's order has, and more of k than fits in shared memory many times over.
#[test]
fn many_tiles_and_long_k() {
    for tile in TILES {
        let config = with_tile(tile);
        check::<f32>(Case {
            config,
            ..Case::of(1100, 200, 20)
        });
        check::<f32>(Case {
            config,
            ..Case::of(20, 72, 2056)
        });
    }
}

#[test]
fn parts_of_k() {
    for splits in [2, 7] {
        for (m, n, k) in [(70, 68, 200), (5, 9, 33), (20, 24, 0), (8, 8, 20)] {
            for case in each_kernel(Case {
                batch: 2,
                extra: ALL,
                config: Config {
                    splits: Some(splits),
                    ..PLAIN
                },
                ..Case::of(m, n, k)
            }) {
                check::<f32>(case);
            }
        }
    }
}

/// The plan splits by itself where few tiles have long sums.
#[test]
fn few_tiles_are_split() {
    let device = device();
    let stream = device.stream();
    let case = Case::of(64, 128, 4096);
    let mut problem = Problem::<f32, f32>::new(case, &stream);
    let plan = problem.plan(&device.gemm, &stream).unwrap();
    assert!(plan.splits() > 1, "{plan}");
    check::<f32>(case);
}

#[test]
fn groups() {
    for offsets in OFFSETS {
        for epilogue in EPILOGUES {
            let extra = Extra {
                column_sums: false,
                ..EVERYTHING
            };
            for case in each_kernel(Case {
                extra,
                groups: Groups::Rows(offsets),
                ..Case::of(152, 44, 24)
            }) {
                check::<f32>(case.with(epilogue, Activation::Silu));
            }
            for case in each_kernel(Case {
                extra,
                groups: Groups::K(offsets),
                ..Case::of(24, 44, 152)
            }) {
                check::<f32>(case.with(epilogue, Activation::Silu));
            }
        }
    }
}

#[test]
fn ten_runs_give_the_same_bits() {
    let device = device();
    let stream = device.stream();
    for tile in TILES {
        for (epilogue, splits) in [
            (Epilogue::Activate, None),
            (Epilogue::Gate, None),
            (Epilogue::GateBackward, Some(3)),
        ] {
            let case = Case {
                batch: 2,
                extra: EVERYTHING,
                config: Config {
                    splits,
                    ..with_tile(tile)
                },
                ..Case::of(72, 72, 40)
            };
            let case = case.with(epilogue, Activation::Silu);
            let run = || {
                let mut problem = Problem::<f32, f32>::new(case, &stream);
                problem.run(&device.gemm, &stream).unwrap();
                problem.fetch(&stream).bits()
            };
            let first = run();
            for repeat in 1..10 {
                let same = run() == first;
                assert!(same, "{case:?}: run {repeat} differs from the first");
            }
        }
    }
}

/// Problems that no one chose.
#[test]
fn random_problems() {
    let mut random = StdRng::seed_from_u64(11);
    let mut below = |limit: usize| random.random_range(0..limit);
    for _ in 0..100 {
        let (a, b) = LAYOUTS[below(4)];
        let case = Case {
            batch: 1 + below(3),
            a,
            b,
            padding: [0, 0, 1, 4][below(4)],
            shift: [0, 0, 1, 4][below(4)],
            shared_b: below(3) == 0,
            config: Config {
                alpha: 0.75,
                beta: 2.0,
                tile: [None, Some(TILES[0]), Some(TILES[1])][below(3)],
                ..PLAIN
            },
            extra: Extra {
                adapter: None,
                row_scale: below(2) == 0,
                column_scale: below(2) == 0,
                c: [Addend::None, Addend::Tensor, Addend::InPlace][below(3)],
                bias: below(2) == 0,
                gate_bias: below(2) == 0,
                residual: below(2) == 0,
                preactivation: below(2) == 0,
                column_sums: below(3) == 0,
                non_finite: below(3) == 0,
                one_vector: below(2) == 0,
            },
            ..Case::of(1 + below(160), 1 + below(160), below(120))
        };
        let case = case.with(EPILOGUES[below(4)], ACTIVATIONS[below(5)]);
        match below(4) {
            0 => check_into::<f32, f16>(case),
            1 => check_into::<f32, bf16>(case),
            _ => check::<f32>(case),
        }
    }
}

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// By the emulator's counters; on a GPU the problems run, their numbers are checked, and nothing is counted.
#[test]
fn every_kernel_uses_shared_and_global_memory_well() {
    let (m, n, k) = (256, 256, 64);
    let on_gpu = device().driver == Driver::Cuda;
    let mut launched = BTreeSet::new();
    for epilogue in [Epilogue::Activate, Epilogue::Gate] {
        // with a gate there are two b
        let weights = if epilogue == Epilogue::Gate { 2 } else { 1 };
        for shift in [0, 1] {
            for case in each_kernel(Case {
                shift,
                config: Config {
                    splits: Some(1),
                    ..PLAIN
                },
                ..Case::of(m, n, k)
            }) {
                take_thread_reports();
                check::<f32>(case.with(epilogue, Activation::Silu));
                if on_gpu {
                    continue;
                }
                let reports = take_thread_reports();
                assert_eq!(reports.len(), 1, "{case:?}");
                let report = &reports[0];
                let (loads, stores) = (report.global_loads, report.global_stores);
                assert_eq!(report.bank_conflicts(), 0, "{case:?}: {report}");
                assert_eq!(report.atomics, 0, "{case:?}: {report}");
                assert_eq!(report.mma_multiply_adds, 0, "{case:?}: {report}");
                let bytes = |elements: usize| 4 * elements as u64;
                assert_eq!(
                    loads.unique_bytes,
                    bytes(m * k + weights * k * n),
                    "{report}"
                );
                assert_eq!(stores.unique_bytes, bytes(m * n), "{report}");
                assert_eq!(stores.bytes, stores.unique_bytes, "{report}");
                if shift == 0 {
                    assert_eq!(loads.sectors * SECTOR, loads.bytes, "{report}");
                    // a lane stores the two halves of a sector one after the other
                    assert_eq!(stores.sectors * SECTOR, 2 * stores.bytes, "{report}");
                }
                launched.insert(report.kernel.clone());
            }
        }
    }
    if on_gpu {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table: BTreeSet<String> = table.filter(|name| name.starts_with("gemm_f32_")).collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}

/// An adapter is for tensor cores.
#[test]
fn adapters_are_refused() {
    let device = device();
    let stream = device.stream();
    let adapter = super::Low {
        rank: 8,
        down: Rows,
        up: Columns,
    };
    let case = Case {
        extra: Extra {
            adapter: Some(adapter),
            ..NOTHING
        },
        ..Case::of(16, 16, 16)
    };
    let mut problem = Problem::<f32, f32>::new(case, &stream);
    let error = problem.run(&device.gemm, &stream).unwrap_err().to_string();
    let words = "tile of any size and these operands in f32, with an adapter";
    assert!(error.contains(words), "{error}");
}
