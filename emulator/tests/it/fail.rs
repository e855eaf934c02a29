//! Kernels with one mistake each are refused, with the fault, the words and the lines that their files name.

use super::case::Case;
use super::emulator::{Bench, Call, ways};
use cuda_emulator::{Device, Fault, FaultKind, Forgiven, LoadError, Options, Schedule};

/// Every kind of fault, by its variant.
const KINDS: [FaultKind; 12] = [
    FaultKind::OutOfBounds,
    FaultKind::Misaligned,
    FaultKind::Uninitialised,
    FaultKind::Race,
    FaultKind::MissingWait,
    FaultKind::Deadlock,
    FaultKind::Divergence,
    FaultKind::Resources,
    FaultKind::Trap,
    FaultKind::Assert,
    FaultKind::StackOverflow,
    FaultKind::Timeout,
];

/// Is the fault the one that the file asks for? The words for what is not.
fn judge(case: &Case, fault: &Fault) -> Option<String> {
    let text = fault.to_string();
    let wanted = case.settings.fault.as_deref().unwrap_or_default();
    if format!("{:?}", fault.kind) != wanted {
        return Some(format!("expected {wanted}, found {text}"));
    }
    if let Some(missing) = case.settings.says.iter().find(|part| !text.contains(*part)) {
        return Some(format!("`{missing}` is not in: {text}"));
    }
    let lines = case.marked("// <- fault");
    let line = fault.site.as_ref().map(|site| site.ptx_line);
    if !lines.is_empty() && !line.is_some_and(|line| lines.contains(&line)) {
        return Some(format!("line {line:?} is not one of {lines:?}: {text}"));
    }
    let others = case.marked("// <- other");
    let named = |line: &u32| {
        fault
            .others
            .iter()
            .any(|other| other.contains(&format!("PTX line {line}: ")))
    };
    if !others.is_empty() && !others.iter().any(named) {
        return Some(format!(
            "none of the lines {others:?} is named as the other side: {text}"
        ));
    }
    None
}

fn check_load(case: &Case, error: &LoadError) -> Option<String> {
    let text = error.to_string();
    if case.settings.fault.as_deref() != Some("load") {
        return Some(text);
    }
    if let Some(missing) = case.settings.says.iter().find(|part| !text.contains(*part)) {
        return Some(format!("`{missing}` is not in: {text}"));
    }
    let lines = case.marked("// <- fault");
    let named = |line: &u32| text.contains(&format!("PTX line {line}: "));
    if !lines.is_empty() && !lines.iter().any(named) {
        return Some(format!("none of the lines {lines:?} is named: {text}"));
    }
    None
}

fn check(case: &Case, device: Device, schedule: Schedule) -> Option<String> {
    let settings = &case.settings;
    let bench = match Bench::load(&case.ptx) {
        Ok(_) if settings.fault.as_deref() == Some("load") => return Some("it loads".into()),
        Ok(bench) => bench,
        Err(error) => return check_load(case, &error),
    };
    let bytes: Vec<u8> = (0..settings.input.unwrap_or(4096))
        .map(|at| (at / 4).to_le_bytes()[at % 4])
        .collect();
    let input = bench.buffer(&bytes);
    if settings.input.is_none() {
        bench.memory.free(input).unwrap();
    }
    let out = bench.memory.alloc(settings.output as u64).unwrap();
    let call = Call {
        device,
        options: Options {
            threads: 1,
            schedule,
            max_instructions: settings.instructions.unwrap_or(1 << 24),
            ..Options::default()
        },
        grid: settings.grid,
        block: settings.block,
        dynamic: settings.dynamic,
        ..Call::new(&[out, input])
    };
    match bench.run(&call) {
        Ok(_) => Some("nothing was found".into()),
        Err(fault) => judge(case, &fault),
    }
}

#[test]
fn what_is_forgiven_is_no_fault() {
    for (name, forgiven) in [
        ("bulk_init_unfenced", "unfenced-mbarriers"),
        ("shared_unwritten", "unwritten-shared"),
    ] {
        let cases = Case::folder("fail");
        let case = cases.iter().find(|case| case.name == name).unwrap();
        let bench = Bench::load(&case.ptx).unwrap();
        let (out, input) = (bench.buffer(&[0; 4096]), bench.buffer(&[0; 4096]));
        let mut call = Call {
            device: Device::sm_90(),
            block: case.settings.block,
            ..Call::new(&[out, input])
        };
        assert!(bench.run(&call).is_err(), "{name}");
        call.options.forgiven = forgiven.parse().unwrap();
        bench
            .run(&call)
            .unwrap_or_else(|fault| panic!("{name}: {fault}"));
    }
    assert!("races".parse::<Forgiven>().is_err());
}

#[test]
fn every_mistake_is_found_and_named() {
    let cases = Case::folder("fail");
    assert!(cases.len() >= 60, "only {} cases were found", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        for (device, schedule) in ways(case.arch) {
            let skipped = match case.settings.only.as_deref() {
                Some("lowest") => schedule != Schedule::LowestPc,
                Some(_) => schedule == Schedule::LowestPc,
                None => false,
            };
            if skipped {
                continue;
            }
            let arch = device.arch();
            if let Some(wrong) = check(case, device, schedule) {
                failures.push(format!("{} on sm_{arch}, {schedule:?}: {wrong}", case.name));
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
fn every_kind_of_fault_has_a_case() {
    let cases = Case::folder("fail");
    for kind in KINDS {
        let name = format!("{kind:?}");
        // a launch that asks for too much is no kernel's mistake: `resources` has those
        let found = cases
            .iter()
            .any(|case| case.settings.fault.as_deref() == Some(&name));
        assert!(
            found || kind == FaultKind::Resources,
            "no file expects {name}"
        );
    }
}

#[test]
fn every_case_names_its_line() {
    for case in Case::folder("fail") {
        assert!(
            case.settings.fault.is_some(),
            "{} expects no fault",
            case.name
        );
        assert!(
            !case.settings.says.is_empty(),
            "{} expects no words",
            case.name
        );
        let whole = case.settings.fault.as_deref() == Some("load");
        assert!(
            whole || !case.marked("// <- fault").is_empty(),
            "{} marks no line",
            case.name
        );
    }
}
