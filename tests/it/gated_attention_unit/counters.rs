//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::{Dtype, kernels};

use super::{CASE, Case, check, gradients};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// Two chunks of two tiles each.
const COUNTED: Case = Case {
    seqlen: 256,
    dv: 128,
    chunk: Some(128),
    bias: true,
    ..CASE
};

#[test]
fn every_kernel_uses_shared_and_global_memory_well() {
    let on_gpu = device().driver == Driver::Cuda;
    let mut launched = BTreeSet::new();
    for (dz, channels) in [(64, 256), (128, 256), (128, 512), (256, 256)] {
        let case = Case {
            dz,
            scale: 1.0 / dz as f32,
            channels: Some(channels),
            ..COUNTED
        };
        let mut judge_all = |dtype| {
            for report in take_thread_reports() {
                judge(case, dtype, &report);
                launched.insert(report.kernel);
            }
        };
        check::<f16>(case);
        judge_all(Dtype::F16);
        check::<bf16>(case);
        judge_all(Dtype::BF16);
        if channels == 256 {
            gradients::check::<f16>(case);
            judge_all(Dtype::F16);
            gradients::check::<bf16>(case);
            judge_all(Dtype::BF16);
        }
    }
    for dz in [128, 256] {
        let case = Case {
            seqlen: 128,
            dz,
            dv: 64,
            chunk: Some(64),
            scale: 1.0 / dz as f32,
            ..COUNTED
        };
        check::<f32>(case);
        gradients::check::<f32>(case);
        for report in take_thread_reports() {
            judge(case, Dtype::F32, &report);
            launched.insert(report.kernel);
        }
    }
    if on_gpu {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table: BTreeSet<String> = table.filter(|name| name.starts_with("gated_")).collect();
    assert_eq!(
        launched, table,
        "the kernels that ran, and those of the table"
    );
}

fn judge(case: Case, dtype: Dtype, report: &Report) {
    assert_eq!(report.bank_conflicts(), 0, "{report}");
    assert_eq!(report.atomics, 0, "{report}");
    // every sector that is written is written whole, but for those of bias, which begin anywhere
    let stores = &report.global_stores;
    let Case {
        seqlen,
        dz,
        dv,
        chunk,
        ..
    } = case;
    let bytes = |numbers: usize| (dtype.bytes() * numbers) as u64;
    let size = |kernel: &str| -> Option<usize> {
        let rest = report
            .kernel
            .strip_prefix(&format!("gated_attention_unit_{kernel}_"))?;
        let size = rest.split("_z").nth(1)?.split('_').next()?;
        size.parse().ok()
    };
    let chunk = chunk.unwrap_or(seqlen);
    let chunks = seqlen / chunk;
    if let Some(size) = size("attend") {
        assert_eq!(stores.sectors * SECTOR, stores.bytes, "{report}");
        assert_eq!(stores.bytes, stores.unique_bytes, "{report}");
        assert!(
            [1, 2]
                .map(|outputs| bytes(outputs * seqlen * dv))
                .contains(&stores.unique_bytes),
            "{report}"
        );
        // The warps' parts of scores: 16 rows and half of the columns, where any of 16 columns is seen. Values of
        // 16 rows and columns likewise, for the warps whose channels exist. A product of f32 is six.
        let f32 = dtype == Dtype::F32;
        let tiles = chunk / 16;
        let triangle = 16 * 16 * tiles * (tiles + 1) / 2;
        let channels: usize = report.kernel.rsplit_once("_v").unwrap().1.parse().unwrap();
        let of_warps = dv.next_multiple_of(channels / 8);
        let blocks = dv.div_ceil(channels);
        let linear = seqlen - chunk; // rows that meet states
        let products = chunks * triangle * (blocks * size + of_warps) + linear * dz * of_warps;
        let times = if f32 { 6 } else { 1 };
        assert_eq!(
            report.mma_multiply_adds,
            (times * products) as u64,
            "{report}"
        );
    }
    if size("states").is_some() {
        assert_eq!(stores.sectors * SECTOR, stores.bytes, "{report}");
        assert_eq!(
            stores.unique_bytes,
            (4 * (chunks - 1) * dz * dv) as u64,
            "{report}"
        );
        let loads = &report.global_loads;
        let vectors = 2 * 4 * dz;
        let rows = bytes((seqlen - chunk) * (dz + dv));
        assert_eq!(loads.unique_bytes, rows + vectors as u64, "{report}");
    }
}
