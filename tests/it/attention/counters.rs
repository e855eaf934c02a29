//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, take_thread_reports};
use half::{bf16, f16};
use seqmix::kernels;

use super::{CAUSAL, Case, FULL, check};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

#[test]
fn every_kernel_uses_shared_and_global_memory_well() {
    let on_gpu = device().driver == Driver::Cuda;
    let mut launched = BTreeSet::new();
    for head_dim in [32, 64, 96, 128, 160, 192, 256] {
        for config in [FULL, CAUSAL] {
            let case = Case {
                seq_q: 256,
                seq_k: 256,
                heads: 2,
                heads_kv: 1,
                head_dim,
                config,
                ..Case::default()
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
    let table: BTreeSet<String> = table
        .filter(|name| name.starts_with("attention_"))
        .collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}

/// Checks what this thread launched, all of it for problems of one shape; returns the kernels' names.
fn judge(case: Case) -> Vec<String> {
    let Case {
        seq_q,
        seq_k,
        heads,
        heads_kv,
        head_dim,
        ..
    } = case;
    let inputs = 2 * head_dim * (seq_q * heads + 2 * seq_k * heads_kv);
    let outputs = 2 * head_dim * seq_q * heads + 4 * seq_q * heads;
    let reports = take_thread_reports();
    assert_eq!(reports.len(), 2, "f16 and bf16");
    for report in &reports {
        assert_eq!(report.bank_conflicts(), 0, "{report}");
        assert_eq!(report.atomics, 0, "{report}");
        // Every sector that moves is used whole, inputs are all read, and outputs are written once.
        for traffic in [&report.global_loads, &report.global_stores] {
            assert_eq!(traffic.sectors * SECTOR, traffic.bytes, "{report}");
        }
        assert_eq!(report.global_loads.unique_bytes, inputs as u64, "{report}");
        assert_eq!(
            report.global_stores.unique_bytes, outputs as u64,
            "{report}"
        );
        assert_eq!(report.global_stores.bytes, outputs as u64, "{report}");
    }
    reports.into_iter().map(|report| report.kernel).collect()
}
