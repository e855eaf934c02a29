//! Bugs planted in the kernel's PTX, to know that the tests would find them: each mutant lacks one barrier, wait,
//! mask or bound, and the emulator must stop it or its numbers must be wrong.

use cuda_emulator::{Device, Fault, FaultKind, Schedule};

use super::bare::{Bare, KERNEL};

/// A kernel's text, a line an element.
struct Ptx(Vec<String>);

impl Ptx {
    /// The lines whose instruction, after a predicate, begins with `opcode`.
    fn find(&self, opcode: &str) -> Vec<usize> {
        let instruction = |line: &str| match line.trim_start().split_once(' ') {
            Some((predicate, rest)) if predicate.starts_with('@') => rest.trim_start().to_owned(),
            _ => line.trim_start().to_owned(),
        };
        let lines = self.0.iter().enumerate();
        lines
            .filter(|(_, line)| instruction(line).starts_with(opcode))
            .map(|(at, _)| at)
            .collect()
    }

    /// Edits the `which`-th instruction of this opcode, from 0.
    fn edit(&mut self, opcode: &str, which: usize, edit: impl FnOnce(&str) -> String) {
        let found = self.find(opcode);
        let at = *found
            .get(which)
            .unwrap_or_else(|| panic!("{} {opcode}, no number {which}", found.len()));
        self.0[at] = edit(&self.0[at]);
    }

    fn delete(&mut self, opcode: &str, which: usize) {
        self.edit(opcode, which, |_| String::new());
    }

    /// Deletes the guard of the first instruction of this opcode: the last branch that skips it.
    fn delete_guard(&mut self, opcode: &str) {
        let guarded = self.find(opcode)[0];
        let skips = |&at: &usize| {
            let target = self.0[at]
                .trim()
                .trim_end_matches(';')
                .rsplit(char::is_whitespace)
                .next();
            let label = format!("{}:", target.unwrap_or_default());
            at < guarded
                && self.0[guarded..]
                    .iter()
                    .any(|line| line.starts_with(&label))
        };
        let guard = self.find("bra").into_iter().rfind(skips).expect("a guard");
        self.0[guard].clear();
    }

    /// Lets every copy of the `which`-th group of `cp.async` read 16 bytes, wherever the row ends.
    fn copy_all(&mut self, which: usize) {
        let ends = self.find("cp.async.commit_group");
        let start = if which == 0 { 0 } else { ends[which - 1] };
        for at in self
            .find("cp.async.cg")
            .into_iter()
            .filter(|&at| start < at && at < ends[which])
        {
            let operands = self.0[at].rfind(',').expect("the bytes to read");
            self.0[at].replace_range(operands.., ", 16;");
        }
    }

    /// Edits the choices between a score and -inf: the comparison that decides, and the choice.
    fn edit_masks(&mut self, edit: impl Fn(&mut String, &mut String)) {
        let choices = self
            .find("selp.f32")
            .into_iter()
            .filter(|&at| self.0[at].contains("0fFF800000"));
        let choices: Vec<usize> = choices.collect();
        assert!(choices.len() > 16, "{} masked scores", choices.len());
        for choice in choices {
            let comparison = self
                .find("setp")
                .into_iter()
                .rfind(|&at| at < choice)
                .expect("a comparison");
            let [comparison, choice] = self
                .0
                .get_disjoint_mut([comparison, choice])
                .expect("two lines");
            edit(comparison, choice);
        }
    }
}

/// The instruction `opcode to, from, ...` as `mov.b32 to, from`; what follows `|` in `to` is dropped.
fn to_move(line: &str) -> String {
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

/// How a mutant must be caught.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Caught {
    /// The emulator stops it.
    By(FaultKind),
    /// It runs to its end and returns wrong numbers.
    Numbers,
}
use Caught::{By, Numbers};

/// What is planted, how, and what must catch it.
type Mutant = (&'static str, fn(&mut Ptx), Caught);

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    // Barriers: the first of the loop is passed when k has landed, the second when v has.
    ("no barrier before q k^T", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before p v", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 1, half_of_each_warp), By(FaultKind::Divergence)),
    ("no barrier between the output's rows and their store", |ptx| ptx.delete("bar.warp.sync", 0), By(FaultKind::Race)),
    // Waits, and the groups that they wait for: q with the first k, v, the next k.
    ("no wait before q k^T", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("no wait before p v", |ptx| ptx.delete("cp.async.wait_group", 1), By(FaultKind::MissingWait)),
    ("a wait that leaves k under way", |ptx| ptx.edit("cp.async.wait_group", 0, |_| "cp.async.wait_group 1;".into()), By(FaultKind::MissingWait)),
    ("a wait that leaves v under way", |ptx| ptx.edit("cp.async.wait_group", 1, |_| "cp.async.wait_group 1;".into()), By(FaultKind::MissingWait)),
    ("q and the first k belong to no group", |ptx| ptx.delete("cp.async.commit_group", 0), By(FaultKind::MissingWait)),
    ("v belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 1), By(FaultKind::MissingWait)),
    ("the next k belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 2), By(FaultKind::MissingWait)),
    // Bounds.
    ("q and k are read past their last rows", |ptx| ptx.copy_all(0), By(FaultKind::OutOfBounds)),
    ("v is read past its last row", |ptx| ptx.copy_all(1), By(FaultKind::OutOfBounds)),
    ("out is written past its last row", |ptx| ptx.delete_guard("st.global.v4"), By(FaultKind::OutOfBounds)),
    ("lse is written past its last row", |ptx| ptx.delete_guard("st.global.f32"), By(FaultKind::OutOfBounds)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    ("a matrix begins between two rows", |ptx| ptx.edit("ldmatrix", 0, |line| line.replace(']', "+4]")), By(FaultKind::Misaligned)),
    // Masks and sums.
    ("no score is masked", |ptx| ptx.edit_masks(|_, choice| choice.clear()), Numbers),
    ("each row sees one key too many", |ptx| ptx.edit_masks(|comparison, _| *comparison = see_one_more(comparison)), Numbers),
    ("lanes do not share their sums", |ptx| share_nothing(ptx), Numbers),
];

/// The barrier, passed by the lower half of each warp only.
fn half_of_each_warp(barrier: &str) -> String {
    format!(
        "{{ .reg .u32 %lane; .reg .pred %low; mov.u32 %lane, %laneid; setp.lt.u32 %low, %lane, 16; @%low {barrier} }}"
    )
}

/// The barrier, after another one that only the first warp reaches and that wants two.
fn wait_alone(barrier: &str) -> String {
    format!(
        "{{ .reg .u32 %t; .reg .pred %first; mov.u32 %t, %tid.x; setp.lt.u32 %first, %t, 32; @%first bar.sync 1, 64; }} {barrier}"
    )
}

/// Every minimum before the first copy becomes its first operand: lengths are clamped there.
fn trust_lengths(ptx: &mut Ptx) {
    let first_copy = ptx.find("cp.async.cg")[0];
    for at in ptx
        .find("min.s32")
        .into_iter()
        .filter(|&at| at < first_copy)
    {
        ptx.0[at] = to_move(&ptx.0[at]);
    }
}

/// A comparison that also holds for equal operands, or no longer does.
fn see_one_more(comparison: &str) -> String {
    let pairs = [
        (".gt.", ".ge."),
        (".lt.", ".le."),
        (".ge.", ".gt."),
        (".le.", ".lt."),
    ];
    let (from, to) = pairs
        .into_iter()
        .find(|(from, _)| comparison.contains(from))
        .expect("an order");
    comparison.replace(from, to)
}

/// Lanes keep their own value instead of a neighbour's.
fn share_nothing(ptx: &mut Ptx) {
    for at in ptx.find("shfl.sync") {
        ptx.0[at] = to_move(&ptx.0[at]);
    }
}

/// Both poses: the compiler makes different text of the kernel for each.
const POSES: [fn() -> Device; 2] = [Device::sm_80, Device::sm_90];

#[test]
fn planted_bugs_are_caught() {
    for pose in POSES {
        let bare = Bare::new(pose());
        let ptx = bare.ptx();
        let missed = MUTANTS
            .iter()
            .filter_map(|mutant| missed(&bare, &ptx, mutant));
        let missed: Vec<String> = missed.collect();
        let (count, of, name) = (missed.len(), MUTANTS.len(), pose().name);
        assert!(
            missed.is_empty(),
            "{name}, {count} of {of} mutants:\n{}",
            missed.join("\n")
        );
    }
}

/// Without a bug, no order of the lanes makes a fault or a wrong number.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    for pose in POSES {
        let bare = Bare::new(pose());
        let ptx = bare.ptx();
        let orders = [Schedule::LowestPc]
            .into_iter()
            .chain((1..=4).map(Schedule::Adversarial));
        for order in orders {
            let name = format!("{}, {order:?}", pose().name);
            let verdicts = bare
                .run(&ptx, order)
                .unwrap_or_else(|fault| panic!("{name}: {fault}"));
            for verdict in verdicts {
                assert!(verdict.pass(), "{name}: {verdict}");
            }
        }
    }
}

/// Plants a bug; says why it was not caught as it must be.
fn missed(bare: &Bare, ptx: &str, (name, plant, caught): &Mutant) -> Option<String> {
    let mut mutant = Ptx(ptx.lines().map(str::to_owned).collect());
    plant(&mut mutant);
    let why = match (bare.run(&mutant.0.join("\n"), Schedule::LowestPc), caught) {
        (Err(fault), By(kind)) if fault.kind == *kind => silent(&fault)?,
        (Err(fault), _) => format!("stopped by another fault: {fault}"),
        (Ok(_), By(kind)) => format!("no {} was found", kind.name()),
        (Ok(verdicts), Numbers) if verdicts.iter().any(|verdict| !verdict.pass()) => return None,
        (Ok(_), Numbers) => "the numbers are right".into(),
    };
    Some(format!("{name}: {why}"))
}

/// What the text of a fault fails to name, of the kernel, block, thread, PTX line and CUDA line, and the other access
/// of a race. A deadlock has no one thread: it names each warp.
fn silent(fault: &Fault) -> Option<String> {
    let text = fault.to_string();
    let who = if fault.kind == FaultKind::Deadlock {
        "warp"
    } else {
        "thread ("
    };
    let words = [KERNEL, "block (", who, "PTX line ", ".cuh:"];
    let word = words.into_iter().find(|word| !text.contains(word));
    let word = word
        .or((fault.kind == FaultKind::Race && fault.others.is_empty())
            .then_some("the other access"));
    word.map(|word| format!("{word:?} is not in: {text}"))
}
