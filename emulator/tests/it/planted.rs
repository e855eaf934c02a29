//! Mistakes planted in a kernel, a line at a time: marked by a comment at the line's end.

use cuda_emulator::{Device, Fault, FaultKind, Schedule};

use crate::emulator::ways;

/// A mistake: the mark of its line, what replaces which part of it (nothing: the line goes), and what must be found.
pub(crate) struct Mutant {
    mark: &'static str,
    change: Option<(&'static str, &'static str)>,
    kinds: &'static [FaultKind],
}

pub(crate) const fn deleted(mark: &'static str, kinds: &'static [FaultKind]) -> Mutant {
    Mutant {
        mark,
        change: None,
        kinds,
    }
}

pub(crate) const fn changed(
    mark: &'static str,
    from: &'static str,
    to: &'static str,
    kinds: &'static [FaultKind],
) -> Mutant {
    Mutant {
        mark,
        change: Some((from, to)),
        kinds,
    }
}

impl Mutant {
    /// The text with the marked line changed, or gone.
    fn of(&self, text: &str) -> String {
        let mark = format!("// {}", self.mark);
        let mut found = 0;
        let lines = text.lines().map(|line| {
            let Some(code) = line.strip_suffix(&mark) else {
                return line.to_string();
            };
            found += 1;
            match self.change {
                None => String::new(),
                Some((from, to)) => {
                    assert!(code.contains(from), "`{from}` is not in `{code}`");
                    code.replacen(from, to, 1)
                }
            }
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        assert_eq!(found, 1, "lines marked `{}`", self.mark);
        text
    }
}

/// Runs each mutant of a kernel for devices from `arch` on, in every schedule: each must end in a fault of its kinds.
pub(crate) fn assert_flagged<T>(
    mutants: &[Mutant],
    text: &str,
    arch: u32,
    run: impl Fn(&str, Device, Schedule) -> Result<T, Fault>,
) {
    let mut missed = Vec::new();
    for mutant in mutants {
        let text = mutant.of(text);
        for (device, schedule) in ways(arch) {
            let name = format!("{} {:?}, {schedule:?}", mutant.mark, mutant.change);
            match run(&text, device, schedule) {
                Ok(_) => missed.push(format!("{name}: nothing was found")),
                Err(fault) if !mutant.kinds.contains(&fault.kind) => {
                    missed.push(format!("{name}: {fault}"));
                }
                Err(_) => {}
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
