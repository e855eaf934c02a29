//! Mistakes planted in a kernel, a line at a time: marked by a comment at the line's end, and expected at such marks.

use cuda_emulator::{Device, Fault, FaultKind, Schedule};

use crate::emulator::ways;

/// A mistake: the mark of its line, what replaces which part of it (nothing: the line goes), and what must be found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mutant {
    mark: &'static str,
    change: Option<(&'static str, &'static str)>,
    expected: Expected,
}

/// What a mistake leads to, in every schedule.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected {
    /// A fault of one of these kinds at a line with one of these marks; of a deadlock, that is where a warp waits.
    Fault(&'static [FaultKind], &'static [&'static str]),
    /// Other results, and no fault. All that the mistake touches is there and ordered: the reason.
    Numbers(&'static str),
}

pub(crate) const fn deleted(
    mark: &'static str,
    kinds: &'static [FaultKind],
    places: &'static [&'static str],
) -> Mutant {
    Mutant {
        mark,
        change: None,
        expected: Expected::Fault(kinds, places),
    }
}

pub(crate) const fn changed(
    mark: &'static str,
    from: &'static str,
    to: &'static str,
    kinds: &'static [FaultKind],
    places: &'static [&'static str],
) -> Mutant {
    Mutant {
        mark,
        change: Some((from, to)),
        expected: Expected::Fault(kinds, places),
    }
}

/// A change that no check can see.
pub(crate) const fn only_numbers(
    mark: &'static str,
    from: &'static str,
    to: &'static str,
    why: &'static str,
) -> Mutant {
    Mutant {
        mark,
        change: Some((from, to)),
        expected: Expected::Numbers(why),
    }
}

impl Mutant {
    /// The text with the marked line changed, or gone, and the line's number. Lines keep their numbers and marks.
    fn of(&self, text: &str) -> (String, usize) {
        let mark = format!("// {}", self.mark);
        let mut found = Vec::new();
        let lines = (1..).zip(text.lines()).map(|(number, line)| {
            let Some(code) = line.strip_suffix(&mark) else {
                return line.to_string();
            };
            found.push(number);
            match self.change {
                None => String::new(),
                Some((from, to)) => {
                    assert!(code.contains(from), "`{from}` is not in `{code}`");
                    code.replacen(from, to, 1) + &mark
                }
            }
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        assert_eq!(found.len(), 1, "lines marked `{}`", self.mark);
        (text, found[0])
    }
}

/// Runs a text; the bytes of its results.
pub(crate) type Run = Box<dyn Fn(&str, Device, Schedule) -> Result<Vec<u8>, Fault> + Send>;

/// A kernel with its mistakes.
pub(crate) struct Planted {
    pub(crate) name: &'static str,
    pub(crate) text: String,
    /// The first architecture that has its instructions.
    pub(crate) arch: u32,
    pub(crate) mutants: &'static [Mutant],
    pub(crate) run: Run,
}

/// What became of a mistake.
pub(crate) struct Verdict {
    /// Kernel, line and change.
    pub(crate) name: String,
    /// Why no check can see it.
    pub(crate) only_numbers: Option<&'static str>,
    /// The first schedule that did not go as expected, and how it went.
    pub(crate) missed: Option<String>,
}

impl Planted {
    /// What becomes of each mistake on the first device that has the instructions, in every schedule.
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        let devices = || ways(self.arch).take(4);
        let right: Vec<_> = devices()
            .map(|(device, schedule)| {
                (self.run)(&self.text, device, schedule)
                    .unwrap_or_else(|fault| panic!("{}: {fault}", self.name))
            })
            .collect();
        let judge = |mutant: &Mutant| {
            let (text, line) = mutant.of(&self.text);
            let missed = devices()
                .zip(&right)
                .find_map(|((device, schedule), right)| {
                    let found = (self.run)(&text, device, schedule);
                    let missed = mutant.misses(&text, found, right)?;
                    Some(format!("{schedule:?}: {missed}"))
                });
            let change = match mutant.change {
                None => "deleted".to_string(),
                Some((from, to)) => format!("`{from}` became `{to}`"),
            };
            Verdict {
                name: format!("{}, line {line} ({}): {change}", self.name, mutant.mark),
                only_numbers: match mutant.expected {
                    Expected::Numbers(why) => Some(why),
                    Expected::Fault(..) => None,
                },
                missed,
            }
        };
        self.mutants.iter().map(judge).collect()
    }
}

impl Mutant {
    /// What is not as expected of a run, where `right` is what the kernel gives without the mistake.
    fn misses(&self, text: &str, found: Result<Vec<u8>, Fault>, right: &[u8]) -> Option<String> {
        match (self.expected, found) {
            (Expected::Numbers(_), Ok(found)) if found != right => None,
            (Expected::Numbers(_), Ok(_)) => Some("the results are right".into()),
            (Expected::Fault(..), Ok(_)) => Some("nothing was found".into()),
            (Expected::Numbers(_), Err(fault)) => Some(fault.to_string()),
            (Expected::Fault(kinds, places), Err(fault)) => {
                let at_place = lines_of(&fault)
                    .filter_map(|line| text.lines().nth(line - 1))
                    .filter_map(|line| line.rsplit_once("// "))
                    .any(|(_, mark)| places.contains(&mark));
                (!kinds.contains(&fault.kind) || !at_place).then(|| fault.to_string())
            }
        }
    }
}

/// The line of a fault; of a deadlock, those at which warps wait.
fn lines_of(fault: &Fault) -> impl Iterator<Item = usize> {
    let site = fault.site.iter().map(|site| site.ptx_line as usize);
    let waits = fault.others.iter().filter_map(|other| {
        let (_, place) = other.split_once("PTX line ")?;
        place.split_once(':')?.0.parse().ok()
    });
    let deadlock = fault.kind == FaultKind::Deadlock;
    site.chain(waits.filter(move |_| deadlock))
        .filter(|&line| line > 0)
}
