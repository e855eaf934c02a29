//! Bugs planted in a kernel's PTX, to know that the tests would find them: each mutant lacks one barrier, wait, mask
//! or bound, and the emulator must stop it or its numbers must be wrong.

use std::ops::Range;

use cuda_emulator::{Device, Fault, FaultKind, Schedule};

use crate::bare::{self, Bare};
use crate::measure::Verdict;

/// One launch of one kernel, and what must come out.
pub(crate) trait Problem {
    /// The kernel's name.
    fn kernel(&self) -> &str;

    /// Blocks along x, y and z.
    fn grid(&self) -> [u32; 3];

    /// Launches it: verdicts on the outputs if nothing stopped it.
    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>>;
}

/// How a mutant must be caught.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Caught {
    /// The emulator stops it.
    By(FaultKind),
    /// It runs to its end and returns wrong numbers.
    Numbers,
}

/// What is planted, how, and what must catch it.
pub(crate) type Mutant = (&'static str, fn(&mut Ptx), Caught);

/// Both poses: the compiler makes different text of a kernel for each.
const POSES: [fn() -> Device; 2] = [Device::sm_80, Device::sm_90];

/// Plants each bug in the kernel, and fails with those that were not caught as they must be.
pub(crate) fn assert_caught(problem: &impl Problem, mutants: &[Mutant]) {
    for device in POSES.map(|pose| pose()) {
        let text = bare::ptx(problem.kernel(), &device);
        let missed = mutants
            .iter()
            .filter_map(|mutant| missed(problem, &device, &text, mutant));
        let missed: Vec<String> = missed.collect();
        assert!(
            missed.is_empty(),
            "{} as {}, {} of {} mutants:\n{}",
            problem.kernel(),
            device.name,
            missed.len(),
            mutants.len(),
            missed.join("\n")
        );
    }
}

/// Fails if the kernel that nobody edited is stopped, or returns wrong numbers, in any order of the lanes.
pub(crate) fn assert_clean(problem: &impl Problem) {
    for device in POSES.map(|pose| pose()) {
        let text = bare::ptx(problem.kernel(), &device);
        let orders = [Schedule::LowestPc]
            .into_iter()
            .chain((1..=4).map(Schedule::Adversarial));
        for order in orders {
            let name = format!("{} as {}, {order:?}", problem.kernel(), device.name);
            let verdicts = run(problem, &device, &text, order, true)
                .unwrap_or_else(|fault| panic!("{name}: {fault}"));
            for verdict in verdicts {
                assert!(verdict.pass(), "{name}: {verdict}");
            }
        }
    }
}

fn run(
    problem: &impl Problem,
    device: &Device,
    ptx: &str,
    schedule: Schedule,
    global_races: bool,
) -> Result<Vec<Verdict>, Box<Fault>> {
    problem.run(&Bare {
        device,
        kernel: problem.kernel(),
        ptx,
        grid: problem.grid(),
        schedule,
        global_races,
    })
}

/// Plants a bug; says why it was not caught as it must be.
fn missed(
    problem: &impl Problem,
    device: &Device,
    text: &str,
    (name, plant, caught): &Mutant,
) -> Option<String> {
    use Caught::{By, Numbers};
    let mut mutant = Ptx::new(text, problem.kernel());
    plant(&mut mutant);
    let mutant = mutant.lines.join("\n");
    // what is written past a row is a race with the next one as well, but must be told by its bounds or the numbers
    let races = matches!(caught, By(FaultKind::Race));
    let found = run(problem, device, &mutant, Schedule::LowestPc, races);
    let why = match (found, caught) {
        (Err(fault), By(kind)) if fault.kind == *kind => silent(&fault, problem.kernel())?,
        (Err(fault), _) => format!("stopped by another fault: {fault}"),
        (Ok(_), By(kind)) => format!("no {} was found", kind.name()),
        (Ok(verdicts), Numbers) if verdicts.iter().any(|verdict| !verdict.pass()) => return None,
        (Ok(_), Numbers) => "the numbers are right".into(),
    };
    Some(format!("{name}: {why}"))
}

/// What the text of a fault fails to name, of the kernel, block, thread, PTX line and CUDA line, and the other access
/// of a race. A deadlock has no one thread: it names each warp.
fn silent(fault: &Fault, kernel: &str) -> Option<String> {
    let text = fault.to_string();
    let who = if fault.kind == FaultKind::Deadlock {
        "warp"
    } else {
        "thread ("
    };
    let words = [kernel, "block (", who, "PTX line ", ".cuh:"];
    let word = words.into_iter().find(|word| !text.contains(word));
    let word = word
        .or((fault.kind == FaultKind::Race && fault.others.is_empty())
            .then_some("the other access"));
    word.map(|word| format!("{word:?} is not in: {text}"))
}

/// A module's text, of which one kernel is edited.
pub(crate) struct Ptx {
    pub(crate) lines: Vec<String>,
    /// The lines of the kernel.
    kernel: Range<usize>,
}

impl Ptx {
    fn new(text: &str, kernel: &str) -> Self {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let entry = format!(".entry {kernel}(");
        let is_entry = |line: &&String| line.contains(".entry ");
        let start = lines.iter().position(|line| line.contains(&entry));
        let start = start.expect("the kernel");
        let next = lines[start + 1..].iter().take_while(|line| !is_entry(line));
        Self {
            kernel: start..start + 1 + next.count(),
            lines,
        }
    }

    /// The lines whose instruction, after a predicate, begins with `opcode`.
    pub(crate) fn find(&self, opcode: &str) -> Vec<usize> {
        let instruction = |line: &str| match line.trim_start().split_once(' ') {
            Some((predicate, rest)) if predicate.starts_with('@') => rest.trim_start().to_owned(),
            _ => line.trim_start().to_owned(),
        };
        let lines = self.kernel.clone();
        lines
            .filter(|&at| instruction(&self.lines[at]).starts_with(opcode))
            .collect()
    }

    /// Edits the `which`-th instruction of this opcode, from 0.
    pub(crate) fn edit(&mut self, opcode: &str, which: usize, edit: impl FnOnce(&str) -> String) {
        let found = self.find(opcode);
        let at = *found
            .get(which)
            .unwrap_or_else(|| panic!("{} {opcode}, no number {which}", found.len()));
        self.lines[at] = edit(&self.lines[at]);
    }

    pub(crate) fn delete(&mut self, opcode: &str, which: usize) {
        self.edit(opcode, which, |_| String::new());
    }

    /// Edits the last instruction of `opcode` before the `which`-th of `landmark`.
    pub(crate) fn edit_before(
        &mut self,
        landmark: &str,
        which: usize,
        opcode: &str,
        edit: impl FnOnce(&str) -> String,
    ) {
        let landmark = self.find(landmark)[which];
        let earlier = self.find(opcode).into_iter();
        let which = earlier.filter(|&at| at < landmark).count();
        let which = which.checked_sub(1).expect("an earlier instruction");
        self.edit(opcode, which, edit);
    }

    /// Deletes the guard of the `which`-th instruction of this opcode: the last branch that skips it.
    pub(crate) fn delete_guard(&mut self, opcode: &str, which: usize) {
        let guarded = self.find(opcode)[which];
        let skips = |&at: &usize| {
            let target = self.lines[at]
                .trim()
                .trim_end_matches(';')
                .rsplit(char::is_whitespace)
                .next();
            let label = format!("{}:", target.unwrap_or_default());
            at < guarded
                && self.lines[guarded..self.kernel.end]
                    .iter()
                    .any(|line| line.starts_with(&label))
        };
        let guard = self.find("bra").into_iter().rfind(skips).expect("a guard");
        self.lines[guard].clear();
    }

    /// Lets every copy of the `which`-th group of `cp.async` read 16 bytes, wherever the row ends.
    pub(crate) fn copy_all(&mut self, which: usize) {
        let ends = self.find("cp.async.commit_group");
        let start = if which == 0 { 0 } else { ends[which - 1] };
        for at in self
            .find("cp.async.cg")
            .into_iter()
            .filter(|&at| start < at && at < ends[which])
        {
            let operands = self.lines[at].rfind(',').expect("the bytes to read");
            self.lines[at].replace_range(operands.., ", 16;");
        }
    }
}

/// The instruction `opcode to, from, ...` as `mov.b32 to, from`; what follows `|` in `to` is dropped.
pub(crate) fn to_move(line: &str) -> String {
    let operands = line
        .trim()
        .split_once(char::is_whitespace)
        .expect("operands")
        .1;
    let mut operands = operands.split([',', ';']).map(str::trim);
    let to = operands
        .next()
        .and_then(|to| to.split('|').next())
        .expect("a destination");
    format!("mov.b32 {to}, {};", operands.next().expect("a source"))
}

/// The barrier, passed by the lower half of each warp only.
pub(crate) fn half_of_each_warp(barrier: &str) -> String {
    format!(
        "{{ .reg .u32 %lane; .reg .pred %low; mov.u32 %lane, %laneid; setp.lt.u32 %low, %lane, 16; @%low {barrier} }}"
    )
}

/// The barrier, after another one that only the first warp reaches and that wants two.
pub(crate) fn wait_alone(barrier: &str) -> String {
    format!(
        "{{ .reg .u32 %t; .reg .pred %first; mov.u32 %t, %tid.x; setp.lt.u32 %first, %t, 32; @%first bar.sync 1, 64; }} {barrier}"
    )
}
