//! Races on global memory are found, and what is ordered is not, whatever the order of blocks and the host threads.

use super::case::Case;
use super::emulator::{Bench, Call};
use cuda_emulator::{Device, Fault, FaultKind, Options, Schedule};

/// Runs a case with buffers of zeros.
fn run(case: &Case, schedule: Schedule, threads: usize) -> Result<(), Fault> {
    let bench = Bench::load(&case.ptx).unwrap();
    let [out, input] = [(); 2].map(|()| bench.buffer(&[0; 1 << 14]));
    let device = if case.arch >= 90 {
        Device::sm_90()
    } else {
        Device::sm_80()
    };
    let call = Call {
        device,
        options: Options {
            threads,
            schedule,
            max_instructions: 1 << 24,
            ..Options::default()
        },
        grid: case.settings.grid,
        block: case.settings.block,
        ..Call::new(&[out, input])
    };
    bench.run(&call).map(|_| ())
}

/// Runs the cases of a folder whose names begin with `prefix` in many ways.
fn judge(folder: &str, prefix: &str, at_least: usize, expect: impl Fn(Result<(), Fault>) -> bool) {
    let cases = Case::folder(folder);
    let cases: Vec<_> = cases
        .iter()
        .filter(|case| case.name.starts_with(prefix))
        .collect();
    assert!(cases.len() >= at_least, "only {} cases", cases.len());
    let schedules = [
        Schedule::LowestPc,
        Schedule::Adversarial(3),
        Schedule::Adversarial(4),
        Schedule::Adversarial(5),
    ];
    let mut failures = Vec::new();
    for case in cases {
        for schedule in schedules {
            for threads in [1, 2, 3] {
                let found = run(case, schedule, threads);
                let text = match &found {
                    Ok(()) => "nothing was found".into(),
                    Err(fault) => fault.to_string(),
                };
                if !expect(found) {
                    let name = &case.name;
                    failures.push(format!("{name}, {schedule:?}, {threads} threads: {text}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn races_are_found_on_any_number_of_host_threads() {
    judge("fail", "race_global_", 20, |found| {
        found.is_err_and(|fault| fault.kind == FaultKind::Race && fault.others.len() == 1)
    });
}

#[test]
fn what_is_ordered_is_no_race_on_any_number_of_host_threads() {
    judge("pass", "order_", 12, |found| found.is_ok());
}
