//! What a step does to memory, by the emulator's counters. A GPU has none of these: there nothing is counted.

use cuda_emulator::take_thread_reports;
use half::f16;

use super::Case;
use super::problem::Problem;
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// A step reads and writes its states once, in whole sectors, and little else.
#[test]
fn states_are_moved_once() {
    let device = device();
    let stream = device.stream();
    for dstate in [16, 64, 128] {
        for convolution in [None, Some(([4, 4], 9))] {
            for case in [Case::mamba2(2, 4, 64, dstate), Case::mamba(2, 256, dstate)] {
                let case = Case {
                    convolution,
                    ..case
                };
                let mut problem = Problem::<f16>::new(case, &stream);
                problem.queue(&stream, &device.selective_scan).unwrap();
                let states = (4 * case.batch * case.dim() * case.floats()) as u64;
                let out = (2 * case.batch * case.dim()) as u64;
                let ring = match convolution {
                    Some(_) => (2 * case.batch * case.conv_dim()) as u64,
                    None => 0,
                };
                for report in take_thread_reports() {
                    let (loads, stores) = (&report.global_loads, &report.global_stores);
                    assert_eq!(report.atomics, 0, "{report}");
                    assert_eq!(report.bank_conflicts(), 0, "{report}");
                    // an input goes to one slot of a ring, which is a sector of its own
                    assert_eq!(stores.bytes, states + out + ring, "{report}");
                    let scattered = ring / 2 * SECTOR;
                    assert!(
                        SECTOR * stores.sectors <= states + 2 * out + scattered,
                        "{report}"
                    );
                    // what is read besides: of Mamba-1 an A as large as the states of one row
                    let a = if case.per_head {
                        0
                    } else {
                        states / case.batch as u64
                    };
                    let besides = (loads.unique_bytes - states - a) as f64;
                    let share = if convolution.is_some() { 0.5 } else { 0.2 };
                    assert!(besides <= share * states as f64, "{report}");
                }
            }
        }
    }
}

/// Where there is enough to do, what is done once for each block and each channel costs little: an H100 moves 1 KiB of
/// states in about 0.37 ns, in which its schedulers begin 340 instructions of warps.
#[test]
fn memory_binds_a_large_batch() {
    let device = device();
    let stream = device.stream();
    for case in [Case::mamba2(16, 32, 64, 128), Case::mamba(32, 2048, 16)] {
        let mut problem = Problem::<f16>::new(case, &stream);
        problem.queue(&stream, &device.selective_scan).unwrap();
        let states = (4 * case.batch * case.dim() * case.floats()) as u64;
        for report in take_thread_reports() {
            let kilobytes = 2 * states / 1024;
            assert!(report.total() <= 300 * kilobytes, "{report}");
        }
    }
}
