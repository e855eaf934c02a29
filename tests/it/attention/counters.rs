//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, take_thread_reports};
use half::{bf16, f16};
use seqmix::abi::attention::FORWARD;
use seqmix::attention::Mask;
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
        // a mask, and a length that ends within tiles of all sizes
        for (config, seq) in [(FULL, 256), (CAUSAL, 256), (CAUSAL, 408)] {
            let case = Case {
                seq_q: seq,
                seq_k: seq,
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

/// What may be read beyond the ideal.
const SLACK: f64 = 1.05;

/// Bytes that the kernel of this name reads at least, by its tile: q once, and for each tile of queries the keys and
/// values that one of its rows sees.
fn ideal(kernel: &str, case: Case) -> usize {
    let mut rows = FORWARD.iter();
    let row = rows.find(|row| row.entry().name == kernel);
    let tile_q = row.expect("a row of the table").tile.0;
    let keys: usize = (0..case.seq_q.div_ceil(tile_q))
        .map(|tile| {
            let last = ((tile + 1) * tile_q).min(case.seq_q);
            match case.config.mask {
                Mask::Causal => (last + case.seq_k).saturating_sub(case.seq_q),
                _ => case.seq_k,
            }
        })
        .sum();
    2 * case.head_dim * case.heads * (case.seq_q + 2 * keys)
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
        // What the emulator reads of the machine code is what ptxas said when it was built.
        let mut built = kernels().iter().filter(|info| info.name == report.kernel);
        if let Some(info) = built.find(|info| info.arch.trim_end_matches('a') == report.device) {
            assert_eq!(report.registers, Some(info.registers), "{report}");
        }
        let (read, ideal) = (
            report.global_loads.bytes,
            ideal(&report.kernel, case) as f64,
        );
        assert!(
            (ideal..=SLACK * ideal).contains(&(read as f64)),
            "{read} bytes read, where the tile asks for {ideal}\n{report}"
        );
        assert_eq!(report.global_loads.unique_bytes, inputs as u64, "{report}");
        assert_eq!(
            report.global_stores.unique_bytes, outputs as u64,
            "{report}"
        );
        assert_eq!(report.global_stores.bytes, outputs as u64, "{report}");
    }
    reports.into_iter().map(|report| report.kernel).collect()
}
