//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::abi::linear_attention::{Gate, WALK, Walk};
use seqmix::linear_attention::Config;
use seqmix::{Dtype, kernels};

use super::layer::{CASE, Case, Fades, NORMALIZED, check};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

#[test]
fn every_kernel_uses_shared_and_global_memory_well() {
    let on_gpu = device().driver == Driver::Cuda;
    let mut launched = BTreeSet::new();
    for row in WALK {
        let (decay, bonus) = match row.gate {
            Gate::Step => (Fades::PerStep, false),
            Gate::Channel => (Fades::PerChannel, true),
        };
        let whole = Case {
            seqlen: 64,
            heads: 1,
            shared: [1; 3],
            dk: row.size,
            dv: row.width(),
            decay,
            last: false,
            ..CASE
        };
        let normalized = Case {
            config: Config {
                segment: Some(32),
                ..NORMALIZED
            },
            seqlen: 128,
            ..whole
        };
        take_thread_reports();
        for case in [Case { bonus, ..whole }, whole, normalized] {
            match row.dtype {
                Dtype::F16 => check::<f16>(case),
                Dtype::BF16 => check::<bf16>(case),
                _ => check::<f32>(case),
            }
            for report in take_thread_reports() {
                assert_eq!(report.bank_conflicts(), 0, "{report}");
                assert_eq!(report.atomics, 0, "{report}");
                if case.config.segment.is_none() {
                    judge(row, case, &report);
                }
                launched.insert(report.kernel);
            }
        }
    }
    if on_gpu {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let ours = ["linear_attention_walk_", "linear_attention_carry"];
    let table: BTreeSet<String> = table
        .filter(|name| ours.iter().any(|ours| name.starts_with(ours)))
        .collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}

/// One head whose values one block takes, in whole tiles.
fn judge(row: &Walk, case: Case, report: &Report) {
    let Case { seqlen, dk, dv, .. } = case;
    let bytes = row.dtype.bytes();
    // Every sector that is written is written whole, and once.
    let stores = &report.global_stores;
    assert_eq!(stores.sectors * SECTOR, stores.bytes, "{report}");
    assert_eq!(
        stores.unique_bytes,
        (bytes * seqlen * dv) as u64,
        "{report}"
    );
    assert_eq!(stores.bytes, stores.unique_bytes, "{report}");
    // Queries, keys, values, decays, the bonus and the state before the sequence, once.
    let decays = match case.decay {
        Fades::PerChannel => seqlen * dk,
        _ => seqlen,
    };
    let bonus = if case.bonus { dk } else { 0 };
    let numbers = decays + bonus + dk * dv;
    let expected = bytes * seqlen * (2 * dk + dv) + 4 * numbers;
    let loads = &report.global_loads;
    assert_eq!(loads.unique_bytes, expected as u64, "{report}");
    // A chunk of 16 steps: what is read of a state and added to it, and the product with the scores, which are another
    // one where decays are a number a step. A product of f32 is six.
    let times = if row.dtype == Dtype::F32 { 6 } else { 1 };
    let scores = match case.decay {
        Fades::PerChannel => 0,
        _ => 16 * 16 * dk,
    };
    let products = 2 * 16 * dk * dv + 16 * 16 * dv + scores;
    assert_eq!(
        report.mma_multiply_adds,
        (times * products * seqlen / 16) as u64,
        "{report}"
    );
}
