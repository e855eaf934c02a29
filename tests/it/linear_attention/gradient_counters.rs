//! What the kernels of gradients do to memory, by the emulator's counters. A GPU has none of these: there the problems
//! run and their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, take_thread_reports};
use half::{bf16, f16};
use seqmix::kernels;
use seqmix::linear_attention::FeatureMap;

use super::gradients::{CASE, Case, Fades, check};
use crate::support::device;

#[test]
fn every_kernel_uses_shared_memory_well_and_no_atomics() {
    let on_gpu = device().driver == Driver::Cuda;
    let mut launched = BTreeSet::new();
    for channels in [64, 128, 256] {
        let case = Case {
            seqlen: 80,
            heads: 1,
            shared: [1; 3],
            dk: channels,
            dv: channels,
            segment: Some(64),
            decay: if channels == 64 {
                Fades::PerHead
            } else {
                Fades::PerStep
            },
            ..CASE
        };
        check::<f16>(case);
        check::<bf16>(case);
        check::<f32>(Case { seqlen: 17, ..case });
        if channels == 64 {
            let normalized = Case {
                feature_map: FeatureMap::EluPlusOne,
                normalize: Some(1e-3),
                causal: false,
                ..case
            };
            check::<f16>(normalized);
            check::<bf16>(Case {
                causal: true,
                ..normalized
            });
            check::<bf16>(normalized);
            check::<f32>(Case {
                seqlen: 17,
                ..normalized
            });
        }
        let case = Case {
            decay: Fades::PerChannel,
            bonus: true,
            ..case
        };
        check::<f16>(case);
        check::<bf16>(case);
        check::<f32>(Case { seqlen: 17, ..case });
        if channels == 64 {
            check::<f16>(Case {
                feature_map: FeatureMap::EluPlusOne,
                normalize: Some(1e-3),
                ..case
            });
            let last = Case {
                bonus: false,
                causal: false,
                ..case
            };
            check::<f16>(last);
            check::<bf16>(last);
            check::<f32>(Case { seqlen: 17, ..last });
        }
        for report in take_thread_reports() {
            if of_gradients(&report.kernel) {
                assert_eq!(report.bank_conflicts(), 0, "{report}");
                assert_eq!(report.atomics, 0, "{report}");
                launched.insert(report.kernel);
            }
        }
    }
    if on_gpu {
        let note = "a GPU has no counters: bank conflicts were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table: BTreeSet<String> = table.filter(|name| of_gradients(name)).collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}

fn of_gradients(kernel: &str) -> bool {
    [
        "gradient_walk_",
        "sum_heads_",
        "bonus_gradient_",
        "decay_gradient_",
        "head_decay_",
        "normalizer_gradient_",
        "row_products_",
        "last_channels_",
        "last_decays",
        "last_states",
        "sum_spans",
    ]
    .iter()
    .any(|name| kernel.starts_with(&format!("linear_attention_{name}")))
}
