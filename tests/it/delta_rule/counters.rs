//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, take_thread_reports};
use half::{bf16, f16};
use seqmix::kernels;

use super::{CASE, Case, Fades, check, gradients};
use crate::support::device;

#[test]
fn every_kernel_uses_shared_memory_without_conflicts() {
    let mut launched = BTreeSet::new();
    let decays = [CASE.decay, Fades::PerChannel(-0.1)];
    for (dk, decay) in [64, 128, 256]
        .into_iter()
        .flat_map(|dk| decays.map(|decay| (dk, decay)))
    {
        let case = Case {
            seqlen: 50,
            heads: 1,
            shared: [1; 3],
            dk,
            dv: 64,
            decay,
            ..CASE
        };
        check::<f16>(case);
        check::<bf16>(case);
        check::<f32>(case);
        gradients::check::<f16>(case);
        gradients::check::<bf16>(case);
        gradients::check::<f32>(case);
        check::<bf16>(Case {
            seqlen: 70,
            segment: Some(64),
            ..case
        });
        for report in take_thread_reports() {
            assert_eq!(report.bank_conflicts(), 0, "{report}");
            assert_eq!(report.atomics, 0, "{report}");
            if report.kernel.starts_with("linear_attention_delta") {
                launched.insert(report.kernel);
            }
        }
    }
    if device().driver == Driver::Cuda {
        let note = "a GPU has no counters: bank conflicts were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table: BTreeSet<String> = table
        .filter(|name| name.starts_with("linear_attention_delta"))
        .collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}
