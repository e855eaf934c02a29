//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, take_thread_reports};
use half::{bf16, f16};
use seqmix::gemm::Config;
use seqmix::kernels;

use super::{ALL, Case, Extra, LAYOUTS, PLAIN, TILES, check};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

#[test]
fn every_kernel_uses_shared_and_global_memory_well() {
    // no bias, which many lanes read at once: bytes would count each of them
    let extra = Extra { bias: false, ..ALL };
    let on_gpu = device().driver == Driver::Cuda;
    let mut launched = BTreeSet::new();
    for tile in TILES {
        let config = Config {
            tile: Some(tile),
            ..PLAIN
        };
        for (a, b) in LAYOUTS {
            let case = Case {
                a,
                b,
                config,
                extra,
                ..Case::of(256, 512, 256)
            };
            check::<f16>(case);
            check::<bf16>(case);
            if !on_gpu {
                launched.extend(judge(case));
            }
        }
    }
    if on_gpu {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table: BTreeSet<String> = table.filter(|name| name.starts_with("gemm_")).collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}

/// Checks what this thread launched, all of it for problems of one shape; returns the kernels' names.
fn judge(case: Case) -> Vec<String> {
    let Case { m, n, k, .. } = case;
    // a and b; c and residual
    let inputs = 2 * (m * k + k * n + 2 * m * n) as u64;
    let outputs = 2 * (m * n) as u64;
    let reports = take_thread_reports();
    assert_eq!(reports.len(), 2, "f16 and bf16");
    for report in &reports {
        assert_eq!(report.bank_conflicts(), 0, "{report}");
        assert_eq!(report.atomics, 0, "{report}");
        assert_eq!(report.mma_multiply_adds, (m * n * k) as u64, "{report}");
        // Every sector that moves is used whole, inputs are all read, and outputs are written once.
        for traffic in [&report.global_loads, &report.global_stores] {
            assert_eq!(traffic.sectors * SECTOR, traffic.bytes, "{report}");
        }
        assert_eq!(report.global_loads.unique_bytes, inputs, "{report}");
        assert_eq!(report.global_stores.unique_bytes, outputs, "{report}");
        assert_eq!(report.global_stores.bytes, outputs, "{report}");
    }
    reports.into_iter().map(|report| report.kernel).collect()
}
