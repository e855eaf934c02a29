use super::Case;
use super::problem::Problem;
use crate::support::device;
use cuda_emulator::take_thread_reports;
use half::f16;

#[test]
fn show() {
    let stream = device().stream();
    for case in [
        Case::of(1, 64, 512, 16),
        Case::of(1, 64, 512, 16).across(),
        Case::bare(1, 64, 512, 16),
    ] {
        let p = Problem::<f16>::new(case, &stream);
        take_thread_reports();
        p.run(&device().selective_scan).unwrap();
        for report in take_thread_reports() {
            eprintln!("{report}");
        }
    }
}
