//! What the scan does to memory and to the units that compute, by the emulator's counters. A GPU has none of these:
//! there the problems run and their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;

use cuda_emulator::{Class, Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::kernels;

use super::problem::Problem;
use super::{Case, Steps};
use crate::naive::Number;
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// What a multiprocessor of Hopper does in a clock: special functions, other arithmetic on floats, and passes over
/// shared memory.
const SPECIAL_LANES: u64 = 16;
const FLOAT_LANES: u64 = 128;

/// The reports of a scan whose numbers are right; none on a GPU.
fn reports<T: Number>(case: Case) -> Vec<Report> {
    let stream = device().stream();
    let problem = Problem::<T>::new(case, &stream);
    take_thread_reports();
    problem.check_forward(&device().selective_scan);
    take_thread_reports()
}

fn on_gpu() -> bool {
    let on_gpu = device().driver == Driver::Cuda;
    if on_gpu {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        eprintln!("{note}");
    }
    on_gpu
}

/// Every kernel of the forward table, on sizes that fill its blocks.
#[test]
fn no_kernel_has_bank_conflicts_or_atomics() {
    let mut launched = BTreeSet::new();
    let mut run = |case: Case| {
        let all = [
            case,
            case.across(),
            case.reversed(),
            case.across().reversed(),
        ];
        for case in all {
            let found = [reports::<f16>(case), reports::<f32>(case)].concat();
            for report in found {
                assert_eq!(report.bank_conflicts(), 0, "{case:?}: {report}");
                assert_eq!(report.atomics, 0, "{report}");
                launched.insert(report.kernel);
            }
        }
    };
    for dstate in [4, 16, 32, 64, 128, 256] {
        run(Case::of(1, 64, 64, dstate));
    }
    for dstate in [64, 256] {
        let case = Case::of(1, 32, 64, dstate);
        for (b, c) in [(None, None), (Some(Steps), None)] {
            run(Case { b, c, ..case });
        }
        run(Case {
            b: None,
            ..Case::of(1, 32, 64, dstate / 2).complex()
        });
    }
    run(Case::of(2, 64, 64, 16).segments(2));
    run(Case::of(2, 64, 64, 16).complex().segments(2));
    if on_gpu() {
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let ours = |name: &String| {
        let families = ["selective_scan_forward_", "selective_scan_carry_"];
        families.iter().any(|family| name.starts_with(family))
    };
    assert_eq!(
        launched,
        table.filter(ours).collect(),
        "the kernels that ran, and those of the table"
    );
}

/// A Mamba layer of two blocks of channels: each input is read once by each block, and each output written once, in
/// whole sectors.
#[test]
fn tensors_are_read_and_written_once() {
    const DIM: usize = 128;
    const SEQLEN: usize = 256;
    fn judge<T: Number>(case: Case) {
        for report in reports::<T>(case) {
            assert_eq!(report.grid, [2, 1, 1], "blocks of 64 channels");
            let element = size_of::<T>();
            let of_u = DIM * SEQLEN * element;
            let of_b = case.dstate * SEQLEN * element;
            // A, D, delta_bias and the initial state
            let of_channels = 4 * (2 * DIM * case.dstate + 2 * DIM);
            let loads = &report.global_loads;
            let unique = 3 * of_u + 2 * of_b + of_channels;
            assert_eq!(loads.unique_bytes, unique as u64, "{report}");
            let both = unique + 2 * of_b; // B and C once more, by the second block
            assert_eq!(loads.bytes, both as u64, "{report}");
            // states lie 16 bytes apart in a lane's hands: half a sector at a time
            let most = both + 4 * DIM * case.dstate * 2 * 8;
            assert!(loads.sectors * SECTOR <= most as u64, "{report}");
            let stores = &report.global_stores;
            let outputs = 2 * of_u + 4 * DIM * case.dstate;
            assert_eq!(stores.unique_bytes, outputs as u64, "{report}");
            assert_eq!(stores.bytes, outputs as u64, "{report}");
        }
    }
    for case in [
        Case::of(1, DIM, SEQLEN, 16),
        Case::of(1, DIM, SEQLEN, 16).across(),
    ] {
        judge::<f16>(case);
        judge::<bf16>(case);
        judge::<f32>(case);
    }
    on_gpu();
}

/// With 16 states one special function a number, and those of softplus and gate, take longer than the other
/// arithmetic, and than shared memory.
#[test]
fn special_functions_bind_the_scan() {
    let layer = Case::of(1, 64, 512, 16);
    for (case, of_element) in [
        (layer, 19),
        (layer.across(), 19),
        (Case::bare(1, 64, 512, 16), 16),
    ] {
        for report in reports::<f16>(case) {
            let lanes = |class| 32 * report.count(class);
            let elements = (case.dim * case.seqlen) as u64;
            assert_eq!(lanes(Class::Mufu), of_element * elements, "{report}");
            let special = lanes(Class::Mufu) / SPECIAL_LANES;
            let float = lanes(Class::Fp32) / FLOAT_LANES;
            let shared = report.shared_loads.wavefronts + report.shared_stores.wavefronts;
            let others = format!("{special} clocks, {float} of floats, {shared} of shared memory");
            assert!(special > float && special > shared, "{others}: {report}");
        }
    }
    on_gpu();
}
