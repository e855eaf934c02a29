//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;

use cuda_emulator::{Driver, Report};
use half::{bf16, f16};
use seqmix::attention::Config;
use seqmix::kernels;

use super::{CAUSAL, Case, check};
use crate::support::device;

/// Every kernel runs, without bank conflicts, and asks global memory only for whole sectors.
#[test]
fn every_kernel_uses_shared_and_global_memory_well() {
    let mut launched = BTreeSet::new();
    let driver = device().driver;
    for head_dim in [32, 64, 96, 128, 160, 192, 256] {
        for config in [Config::default(), CAUSAL] {
            let case = Case {
                seq_q: 256,
                seq_k: 256,
                heads: 2,
                head_dim,
                config,
                ..Case::default()
            };
            check::<f16>(case);
            check::<bf16>(case);
            if driver == Driver::Emulator {
                let reports = cuda_emulator::take_thread_reports();
                launched.extend(
                    reports
                        .into_iter()
                        .filter(|report| report.kernel.contains("attention"))
                        .map(judge),
                );
            }
        }
    }
    match driver {
        Driver::Cuda => println!(
            "on a GPU: {} kernels ran, nothing was counted",
            kernels().len()
        ),
        Driver::Emulator => {
            let all: BTreeSet<String> = kernels()
                .iter()
                .map(|kernel| kernel.name.to_owned())
                .collect();
            assert_eq!(launched, all, "kernels that ran, and kernels of the table");
        }
    }
}

/// Checks one launch; returns the kernel's name.
fn judge(report: Report) -> String {
    assert_eq!(report.bank_conflicts(), 0, "{report}");
    assert_eq!(report.atomics, 0, "{report}");
    report.kernel
}
