//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::gemm::{Activation, Config};
use seqmix::kernels;

use super::{ALL, Case, Epilogue, Extra, LAYOUTS, Low, NOTHING, PLAIN, Rows, TILES, check};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// No bias, which many lanes read at once: bytes would count each of them.
const EXTRA: Extra = Extra { bias: false, ..ALL };

/// What a kernel has to move and multiply.
struct Work {
    /// Bytes that it reads at least once.
    inputs: usize,
    /// Bytes that it writes, once.
    outputs: usize,
    multiply_adds: usize,
    /// How many accesses touch a sector of global memory, at most: eight `f32` of a lane take two, and of sums of
    /// columns a lane stores every eighth. Those may also meet on a bank of shared memory, at the end.
    accesses: u64,
}

/// Runs a problem in both dtypes. Compares each of the kernels that it launches with `work`, in order, and adds their
/// names to `launched`.
fn count(case: Case, work: &[Work], launched: &mut BTreeSet<String>) {
    take_thread_reports();
    check::<f16>(case);
    check::<bf16>(case);
    if device().driver == Driver::Cuda {
        return;
    }
    let reports = take_thread_reports();
    assert_eq!(reports.len(), 2 * work.len(), "{case:?}");
    for (report, work) in reports.iter().zip(work.iter().chain(work)) {
        judge(case, report, work);
    }
    launched.extend(reports.into_iter().map(|report| report.kernel));
}

fn judge(case: Case, report: &Report, work: &Work) {
    let name = format!("{case:?}: {report}");
    let conflicts = if work.accesses > 1 {
        warps(report) * 2
    } else {
        0
    };
    assert!(report.bank_conflicts() <= conflicts, "{name}");
    assert_eq!(report.atomics, 0, "{name}");
    assert_eq!(
        report.mma_multiply_adds, work.multiply_adds as u64,
        "{name}"
    );
    // Every sector that moves is used whole, inputs are all read, and outputs are written once.
    for traffic in [&report.global_loads, &report.global_stores] {
        let moved = traffic.sectors * SECTOR;
        let most = work.accesses * traffic.bytes;
        assert!((traffic.bytes..=most).contains(&moved), "{name}");
    }
    let (inputs, outputs) = (work.inputs as u64, work.outputs as u64);
    assert_eq!(report.global_loads.unique_bytes, inputs, "{name}");
    assert_eq!(report.global_stores.unique_bytes, outputs, "{name}");
    assert_eq!(report.global_stores.bytes, outputs, "{name}");
}

/// Warps of a launch.
fn warps(report: &Report) -> u64 {
    let count = |sizes: [u32; 3]| sizes.iter().map(|&size| u64::from(size)).product::<u64>();
    count(report.grid) * count(report.block) / 32
}

/// This tile, and k in one part.
fn with_tile(tile: (usize, usize)) -> Config {
    Config {
        tile: Some(tile),
        splits: Some(1),
        ..PLAIN
    }
}

/// Bytes of elements of 16 bits, and of 32.
fn half(elements: usize) -> usize {
    2 * elements
}
fn single(elements: usize) -> usize {
    4 * elements
}

#[test]
fn every_kernel_uses_shared_and_global_memory_well() {
    let mut launched = BTreeSet::new();
    products(&mut launched);
    gates(&mut launched);
    adapters(&mut launched);
    parts_of_k(&mut launched);
    sums_of_columns(&mut launched);
    if device().driver == Driver::Cuda {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    // those of f32 are counted beside their other tests
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table: BTreeSet<String> = table
        .filter(|name| name.starts_with("gemm_") && !name.contains("_f32"))
        .collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}

fn products(launched: &mut BTreeSet<String>) {
    let (m, n, k) = (128, 256, 192);
    let work = Work {
        // a and b; c and residual
        inputs: half(m * k + k * n + 2 * m * n),
        outputs: half(m * n),
        multiply_adds: m * n * k,
        accesses: 1,
    };
    for tile in TILES {
        for (a, b) in LAYOUTS {
            let case = Case {
                a,
                b,
                config: with_tile(tile),
                extra: EXTRA,
                ..Case::of(m, n, k)
            };
            count(case, &[Work { ..work }], launched);
        }
    }
}

fn gates(launched: &mut BTreeSet<String>) {
    let (m, n, k) = (128, 256, 128);
    let extra = Extra {
        preactivation: true,
        residual: true,
        ..NOTHING
    };
    for tile in TILES {
        for (a, b) in LAYOUTS {
            let case = Case {
                a,
                b,
                config: with_tile(tile),
                extra,
                ..Case::of(m, n, k)
            };
            let work = Work {
                inputs: half(m * k + 2 * k * n + m * n),
                outputs: half(3 * m * n),
                multiply_adds: 2 * m * n * k,
                accesses: 1,
            };
            count(
                case.with(Epilogue::Gate, Activation::Silu),
                &[work],
                launched,
            );
        }
    }
}

fn adapters(launched: &mut BTreeSet<String>) {
    let (m, n, k, rank) = (128, 256, 128, 64);
    for tile in [(128, 128), (32, 64)] {
        for stored in [Rows, super::Columns] {
            let adapter = Low {
                rank,
                down: stored,
                up: stored,
            };
            let case = Case {
                b: stored,
                config: with_tile(tile),
                extra: Extra {
                    adapter: Some(adapter),
                    ..EXTRA
                },
                ..Case::of(m, n, k)
            };
            let work = Work {
                inputs: half(m * k + k * n + k * rank + rank * n + 2 * m * n),
                outputs: half(m * n),
                // a down is computed in each tile of a row of tiles
                multiply_adds: m * n * k + m * k * rank * (n / tile.1) + m * n * rank,
                accesses: 1,
            };
            count(case, &[work], launched);
        }
    }
}

fn parts_of_k(launched: &mut BTreeSet<String>) {
    let (m, n, k, splits) = (64, 128, 512, 4);
    let case = Case {
        config: Config {
            splits: Some(splits),
            ..PLAIN
        },
        extra: EXTRA,
        ..Case::of(m, n, k)
    };
    let parts = single(splits * m * n);
    let multiply = Work {
        inputs: half(m * k + k * n),
        outputs: parts,
        multiply_adds: m * n * k,
        accesses: 2,
    };
    let add = Work {
        inputs: parts + half(2 * m * n),
        outputs: half(m * n),
        multiply_adds: 0,
        accesses: 2,
    };
    count(case, &[multiply, add], launched);
}

fn sums_of_columns(launched: &mut BTreeSet<String>) {
    let (m, n, k) = (128, 256, 64);
    for tile in TILES {
        let case = Case {
            config: with_tile(tile),
            extra: Extra {
                column_sums: true,
                ..EXTRA
            },
            ..Case::of(m, n, k)
        };
        let parts = single(m / tile.0 * n);
        let multiply = Work {
            inputs: half(m * k + k * n + 2 * m * n),
            outputs: half(m * n) + parts,
            multiply_adds: m * n * k,
            accesses: 2,
        };
        let add = Work {
            inputs: parts,
            outputs: single(n),
            multiply_adds: 0,
            accesses: 8,
        };
        count(case, &[multiply, add], launched);
    }
}
