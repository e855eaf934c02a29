//! Kernels of the shapes that real ones have, and the same with one mistake at a time: deleted barriers and waits, wrong
//! bounds, stages, phases and counts.
//!
//! Each mutant is a line changed as a programmer might get it wrong. Several still give the right numbers on the emulator,
//! and might on a GPU: what counts is that the mistake is seen, and where.

mod attention;
mod copies;
mod hopper;
mod planted;
mod ring;
mod sums;

use std::sync::Mutex;
use std::thread;

use crate::assembler;
use crate::emulator::ways;
use planted::{Planted, Verdict};

/// Everything that mistakes are planted in.
fn kernels() -> Vec<Planted> {
    let mut all = vec![copies::planted(), ring::planted(), attention::planted()];
    all.extend(sums::planted());
    all.extend(hopper::planted());
    all
}

/// Flagged means: a fault of an expected kind, at an expected line, in every schedule. Mistakes that leave every access
/// ordered and in place change only the numbers; they count as not flagged, and must be few.
#[test]
fn mistakes_are_flagged_where_they_are() {
    let queue = Mutex::new(kernels());
    let verdicts = Mutex::new(Vec::<Verdict>::new());
    let work = || {
        while let Some(kernel) = { queue.lock().unwrap().pop() } {
            let found = kernel.verdicts();
            verdicts.lock().unwrap().extend(found);
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    let verdicts = verdicts.into_inner().unwrap();
    let total = verdicts.len();
    let seen = |verdict: &&Verdict| verdict.missed.is_none() && verdict.only_numbers.is_none();
    let flagged = verdicts.iter().filter(seen).count();
    let rest = verdicts.iter().filter(|verdict| !seen(verdict));
    let table: Vec<String> = rest
        .map(|verdict| match (&verdict.missed, verdict.only_numbers) {
            (Some(missed), _) => format!("MISSED {}\n  {missed}", verdict.name),
            (None, why) => format!("numbers {}\n  {}", verdict.name, why.unwrap_or_default()),
        })
        .collect();
    let table = table.join("\n");
    println!("{flagged} of {total} mistakes are flagged\n{table}");
    assert!(total >= 60, "only {total} mistakes are planted");
    assert!(!table.contains("MISSED"), "of {total} mistakes\n{table}");
    assert!(
        100 * flagged >= 95 * total,
        "{flagged} of {total} mistakes are flagged\n{table}"
    );
}

/// Whatever synchronises, waits or copies is needed: without its line there is a fault, in every schedule.
#[test]
fn nothing_that_synchronises_can_be_left_out() {
    let synchronises = [
        "bar.",
        "barrier.",
        "fence",
        "wait",
        "commit",
        "mbarrier",
        "cp.async",
        "setmaxnreg.dec",
    ];
    // without a copy out nothing is wrong but the result
    let copies_out = "cp.async.bulk.tensor.2d.global";
    let mut missed = Vec::new();
    for kernel in kernels() {
        let lines = || kernel.text.lines().enumerate();
        let matters = |line: &str| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains(';')
                && !code.contains(copies_out)
                && synchronises.iter().any(|word| code.contains(word))
        };
        for (at, line) in lines().filter(|(_, line)| matters(line)) {
            let rest: Vec<_> = lines()
                .map(|(other, line)| if other == at { "" } else { line })
                .collect();
            for (device, schedule) in ways(kernel.arch).take(4) {
                if (kernel.run)(&rest.join("\n"), device, schedule).is_ok() {
                    let (name, number) = (kernel.name, at + 1);
                    missed.push(format!("{name}, line {number}, {schedule:?}: {line}"));
                    break;
                }
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn the_assembler_accepts_every_kernel() {
    let Some(ptxas) = assembler::find() else {
        println!("no ptxas beside nvcc: the kernels are not assembled");
        return;
    };
    let refused: Vec<_> = kernels()
        .iter()
        .filter_map(|kernel| {
            // wgmma and setmaxnreg belong to the H100 alone
            let arch = if kernel.arch < 90 { "80" } else { "90a" };
            assembler::assemble(&ptxas, arch, kernel.name, &kernel.text)
        })
        .collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
