use cuda_emulator::take_thread_reports;
use half::f16;
use super::problem::Problem;
use super::Case;
use crate::support::device;

#[test]
fn show() {
    let stream = device().stream();
    for case in [Case::of(1, 64, 512, 16)] {
        let p = Problem::<f16>::new(case, &stream);
        take_thread_reports();
        p.run(&device().selective_scan).unwrap();
        for report in take_thread_reports() {
            eprintln!("{report}");
        }
    }
}
