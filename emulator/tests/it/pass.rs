//! Kernels of one instruction each give what the manual says, on every device and in every order of lanes.

use super::case::Case;
use super::emulator::{Bench, Call, ways};
use cuda_emulator::{Device, Options, Schedule};

/// Runs a case once; the words for what is wrong.
fn check(case: &Case, device: &Device, schedule: Schedule) -> Vec<String> {
    if case.rows.is_empty() {
        return vec!["it has no table".into()];
    }
    let bench = match Bench::load(&case.ptx) {
        Ok(bench) => bench,
        Err(error) => return vec![error.to_string()],
    };
    let input = bench.buffer(&case.input_bytes());
    let out = bench.memory.alloc(case.output_size() as u64).unwrap();
    let call = Call {
        device: device.clone(),
        options: Options {
            threads: 1,
            schedule,
            max_instructions: 1 << 24,
            ..Options::default()
        },
        grid: case.settings.grid,
        block: case.settings.block,
        dynamic: case.settings.dynamic,
        ..Call::new(&[out, input])
    };
    match bench.run(&call) {
        Ok(_) => case.differences(&bench.read(out, case.output_size())),
        Err(fault) => vec![fault.to_string()],
    }
}

#[test]
fn every_instruction_gives_what_the_manual_says() {
    let cases = Case::folder("pass");
    assert!(cases.len() >= 80, "only {} cases were found", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        for (device, schedule) in ways(case.arch) {
            let wrong = check(case, &device, schedule);
            if let Some(first) = wrong.first() {
                let (name, count) = (&case.name, wrong.len());
                failures.push(format!(
                    "{name} on sm_{}, {schedule:?}: {count} wrong, first {first}",
                    device.arch()
                ));
                break;
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} cases fail:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

#[test]
fn a_wrong_expectation_is_noticed() {
    let mut case = Case::folder("pass")
        .into_iter()
        .find(|case| case.name == "add_32")
        .unwrap();
    let column = case.rows[0].outputs[0].as_mut().unwrap();
    *column ^= 1;
    assert!(!check(&case, &Device::sm_80(), Schedule::LowestPc).is_empty());
}
