//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::ssd::Config;
use seqmix::{Dtype, kernels};

use super::{CASE, Case, SOFTPLUS, check, gradients};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

#[test]
fn every_kernel_uses_shared_and_global_memory_well() {
    let on_gpu = device().driver == Driver::Cuda;
    let mut launched = BTreeSet::new();
    for dstate in [64, 128, 256] {
        for segment in [None, Some(64)] {
            let case = Case {
                batch: 1,
                seqlen: 192,
                heads: 2,
                dstate,
                z: true,
                final_states: false,
                config: Config {
                    segment,
                    ..SOFTPLUS
                },
                ..CASE
            };
            let mut judge_all = |dtype| {
                for report in take_thread_reports() {
                    judge(case, dtype, &report);
                    launched.insert(report.kernel);
                }
            };
            check::<f16>(case);
            gradients::check::<f16>(case);
            judge_all(Dtype::F16);
            check::<bf16>(case);
            gradients::check::<bf16>(case);
            judge_all(Dtype::BF16);
            check::<f32>(case);
            gradients::check::<f32>(case);
            judge_all(Dtype::F32);
        }
    }
    if on_gpu {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table: BTreeSet<String> = table.filter(|name| name.starts_with("ssd_")).collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}

fn judge(case: Case, dtype: Dtype, report: &Report) {
    assert_eq!(report.bank_conflicts(), 0, "{report}");
    assert_eq!(report.atomics, 0, "{report}");
    if !report.kernel.starts_with("ssd_forward") {
        return;
    }
    let Case {
        batch,
        seqlen,
        heads,
        headdim,
        groups,
        dstate,
        ..
    } = case;
    let steps = batch * seqlen;
    let states = 4 * batch * heads * headdim * dstate;
    let outputs = dtype.bytes() * steps * heads * headdim;
    // Every sector that is written is written whole, and once.
    let stores = &report.global_stores;
    assert_eq!(stores.sectors * SECTOR, stores.bytes, "{report}");
    assert_eq!(stores.unique_bytes, outputs as u64, "{report}");
    assert_eq!(stores.bytes, stores.unique_bytes, "{report}");
    // x, z, B, C and dt, and the states before each segment.
    let segments = case.config.segment.map_or(1, |segment| seqlen / segment);
    let others = dtype.bytes() * steps * (2 * groups * dstate + heads);
    let vectors = 4 * heads * 3; // A, D and dt_bias
    let loads = &report.global_loads;
    let expected = 2 * outputs + others + vectors + states * segments;
    assert_eq!(loads.unique_bytes, expected as u64, "{report}");
    // A chunk has as many steps as a slice has channels. Two slices of a block share B, C and their product; a slice
    // of 256 states in 16 bits has a block of its own. A product of f32 is six.
    let (chunk, shared, times) = match (dtype, dstate) {
        (Dtype::F32, _) => (32, 2, 6),
        (_, 256) => (64, 1, 1),
        _ => (64, 2, 1),
    };
    let tiles = chunk / 16;
    let triangle = 16 * 16 * tiles * (tiles + 1) / 2; // on and below the diagonal
    let products = triangle * kernel_size(report) / shared
        + 2 * chunk * chunk * kernel_size(report)
        + triangle * chunk;
    let slices = (steps / chunk) * heads * (headdim / chunk);
    assert_eq!(
        report.mma_multiply_adds,
        (times * slices * products) as u64,
        "{report}"
    );
}

/// The most states of a channel that a kernel has room for, by its name.
fn kernel_size(report: &Report) -> usize {
    let size = report.kernel.rsplit_once("_n").expect("a size").1;
    size.parse().expect("a number")
}
