//! What the kernels of the gradients do to memory, by the emulator's counters. A GPU has none of these: there the
//! problems run and their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Class, Driver, take_thread_reports};
use half::{bf16, f16};
use seqmix::kernels;

use super::{Case, check};
use crate::support::device;

/// The kernels that only gradients need.
const KERNELS: [&str; 3] = [
    "selective_scan_backward_",
    "selective_scan_channel_sums_",
    "selective_scan_step_sums_",
];

/// The kernel of Mamba-1 reads each tensor once, of which B and C are shared by the 64 channels of a block, and writes
/// each gradient and each sum once.
#[test]
fn a_mamba_layer_reads_and_writes_once() {
    const CHANNELS: usize = 64;
    const STEPS: usize = 128;
    const STATES: usize = 16;
    const TILE: usize = 16;
    for case in [
        Case::of(1, CHANNELS, STEPS, STATES),
        Case::of(1, CHANNELS, STEPS, STATES).across(),
    ] {
        take_thread_reports();
        check::<f16>(case);
        let reports = take_thread_reports().into_iter();
        for report in reports.filter(|x| x.kernel == "selective_scan_backward_real_16") {
            let (elements, states) = (CHANNELS * STEPS, 4 * CHANNELS * STATES);
            // u, delta, z, dout; B and C; D and delta_bias; A, the first state and the last one's gradient; and the
            // states between the tiles
            let weights = 2 * 4 * CHANNELS;
            let reads = 4 * 2 * elements + 2 * 2 * STATES * STEPS + weights + 3 * states;
            let between = (STEPS / TILE - 1) * states;
            let loads = &report.global_loads;
            assert_eq!(loads.unique_bytes, (reads + between) as u64, "{report}");
            assert_eq!(loads.bytes, loads.unique_bytes, "{report}");
            // du, ddelta, dz; sums of dB and dC; sums of dD and ddelta_bias; those of dA and the first state's gradient
            let writes = 3 * 2 * elements + 2 * 4 * STATES * STEPS + weights + 2 * states;
            let stores = &report.global_stores;
            assert_eq!(stores.unique_bytes, writes as u64, "{report}");
            assert_eq!(stores.bytes, stores.unique_bytes, "{report}");
            // a decay for each state, and once more but for the last 4 steps of a tile; 8 for softplus and gate
            let specials = elements * (STATES + STATES * 12 / 16 + 8) / 32;
            assert_eq!(report.count(Class::Mufu), specials as u64, "{report}");
        }
    }
}

/// Whole tiles, blocks and rows of states, in both layouts, in one segment and in several.
#[test]
fn every_kernel_uses_shared_memory_well() {
    let on_gpu = device().driver == Driver::Cuda;
    let mut launched = BTreeSet::new();
    let constant = |case| Case { b: None, ..case };
    for case in [
        Case::of(1, 64, 64, 16),
        Case::of(1, 64, 64, 64),
        Case::of(1, 32, 32, 256),
        constant(Case::of(1, 32, 64, 64)),
        constant(Case::of(1, 32, 32, 256)),
        Case::of(1, 32, 64, 32).complex(),
        Case::of(1, 32, 32, 128).complex(),
    ] {
        take_thread_reports();
        check::<f16>(case);
        check::<bf16>(case.across());
        check::<f32>(case);
        check::<f16>(case.across().segments(2).reversed());
        for report in take_thread_reports() {
            if !KERNELS.iter().any(|name| report.kernel.starts_with(name)) {
                continue;
            }
            assert_eq!(report.bank_conflicts(), 0, "{case:?}: {report}");
            assert_eq!(report.atomics, 0, "{report}");
            launched.insert(report.kernel);
        }
    }
    if on_gpu {
        let note = "a GPU has no counters: bank conflicts were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let of_gradients = |name: &&str| KERNELS.iter().any(|kernel| name.starts_with(kernel));
    let table = kernels().iter().map(|info| info.name).filter(of_gradients);
    let table: BTreeSet<String> = table.map(str::to_owned).collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}
