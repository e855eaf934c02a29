//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, take_thread_reports};
use half::f16;
use seqmix::kernels;

use super::problem::Problem;
use super::{Case, DecayKind};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// The state is read and written once, 16 bytes at a time.
#[test]
fn every_state_is_moved_once() {
    let stream = device().stream();
    let mut launched = BTreeSet::new();
    for (dk, delta) in [(64, false), (128, true), (256, false)] {
        let (batch, heads, dv) = (2, 2, 64);
        let case = Case {
            decay: DecayKind::PerHead,
            delta,
            ..Case::of(batch, heads, dk, dv)
        };
        let mut problem = Problem::<f16>::new(case, &stream);
        problem
            .queue(&stream, &device().linear_attention, 0)
            .unwrap();
        for report in take_thread_reports() {
            let of_heads = batch * heads;
            let state = (4 * of_heads * dk * dv) as u64;
            let inputs = 2 * of_heads * (2 * dk + dv) + 4 * heads;
            let beta = if delta { 2 * of_heads } else { 0 };
            let loads = &report.global_loads;
            let expected = state + (inputs + beta) as u64;
            assert_eq!(loads.unique_bytes, expected, "{report}");
            // besides, blocks of a head share queries and keys, and a decay lies in a sector
            let again = (2 * of_heads * 4 * dk) as u64;
            assert!(
                SECTOR * loads.sectors <= expected + again + 4096,
                "{report}"
            );
            // a warp's request of a state is four lines of 128 bytes
            let stores = &report.global_stores;
            let out = (2 * of_heads * dv) as u64;
            assert_eq!(stores.unique_bytes, state + out, "{report}");
            assert_eq!(stores.bytes, state + out, "{report}");
            assert_eq!(SECTOR * stores.sectors, state + out, "{report}");
            assert_eq!(stores.requests, state / 512 + out / 64, "{report}");
            assert_eq!(report.bank_conflicts(), 0, "{report}");
            assert_eq!(report.atomics, 0, "{report}");
            launched.insert(report.kernel.clone());
        }
    }
    if device().driver == Driver::Cuda {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table = table.filter(|name| name.starts_with("linear_attention_step_"));
    assert_eq!(
        launched,
        table.collect(),
        "the kernels that ran, and those of the table"
    );
}
