//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::kernels;
use seqmix::ssd::Config;

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
                seqlen: 192,
                heads: 4,
                dstate,
                z: true,
                final_states: false,
                config: Config {
                    segment,
                    ..SOFTPLUS
                },
                ..CASE
            };
            check::<f16>(case);
            check::<bf16>(case);
            check::<f32>(case);
            gradients::check::<f16>(case);
            gradients::check::<bf16>(case);
            gradients::check::<f32>(case);
            for report in take_thread_reports() {
                judge(case, &report);
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
    let table: BTreeSet<String> = table.filter(|name| name.starts_with("ssd_")).collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}

fn judge(case: Case, report: &Report) {
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
    let outputs = 2 * steps * heads * headdim;
    // Every sector that is written is written whole, and once.
    let stores = &report.global_stores;
    assert_eq!(stores.sectors * SECTOR, stores.bytes, "{report}");
    assert_eq!(stores.unique_bytes, outputs as u64, "{report}");
    assert_eq!(stores.bytes, stores.unique_bytes, "{report}");
    // x, z, B, C and dt, and the states before each segment.
    let segments = case.config.segment.map_or(1, |segment| seqlen / segment);
    let inputs = 2 * outputs + 2 * 2 * steps * groups * dstate + 2 * steps * heads;
    let vectors = 4 * heads * 3; // A, D and dt_bias
    let loads = &report.global_loads;
    let expected = inputs + vectors + states * segments;
    assert_eq!(loads.unique_bytes, expected as u64, "{report}");
    // Two slices of a block share B, C and their product.
    let slices = if dstate == 256 { 1 } else { 2 };
    let tiles = |rows: usize, columns: usize, sums: usize| rows * columns * sums;
    let chunks = (steps / 64) * heads;
    let triangle = 64 * 64 * 5 / 8; // of tiles 16 wide, on and below the diagonal
    let products = triangle * dstate / slices
        + tiles(64, headdim, dstate)
        + triangle * headdim
        + tiles(headdim, dstate, 64);
    assert_eq!(
        report.mma_multiply_adds,
        (chunks * products) as u64,
        "{report}"
    );
}
