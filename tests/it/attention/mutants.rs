//! Bugs planted in the attention kernel.

use cuda_emulator::FaultKind;

use super::bare::Causal;
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

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
    ("out is written past its last row", |ptx| ptx.delete_guard("st.global.v4", 0), By(FaultKind::OutOfBounds)),
    ("lse is written past its last row", |ptx| ptx.delete_guard("st.global.f32", 0), By(FaultKind::OutOfBounds)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    ("a matrix begins between two rows", |ptx| ptx.edit("ldmatrix", 0, |line| line.replace(']', "+4]")), By(FaultKind::Misaligned)),
    // Masks and sums.
    ("no score is masked", |ptx| edit_masks(ptx, |_, choice| choice.clear()), Numbers),
    ("each row sees one key too many", |ptx| edit_masks(ptx, |comparison, _| *comparison = see_one_more(comparison)), Numbers),
    ("lanes do not share their sums", |ptx| share_nothing(ptx), Numbers),
];

/// Edits the choices between a score and -inf: the comparison that decides, and the choice.
fn edit_masks(ptx: &mut Ptx, edit: impl Fn(&mut String, &mut String)) {
    let choices = ptx
        .find("selp.f32")
        .into_iter()
        .filter(|&at| ptx.lines[at].contains("0fFF800000"));
    let choices: Vec<usize> = choices.collect();
    assert!(choices.len() > 16, "{} masked scores", choices.len());
    for choice in choices {
        let comparison = ptx
            .find("setp")
            .into_iter()
            .rfind(|&at| at < choice)
            .expect("a comparison");
        let [comparison, choice] = ptx
            .lines
            .get_disjoint_mut([comparison, choice])
            .expect("two lines");
        edit(comparison, choice);
    }
}

/// Every minimum before the first copy becomes its first operand: lengths are clamped there.
fn trust_lengths(ptx: &mut Ptx) {
    let first_copy = ptx.find("cp.async.cg")[0];
    for at in ptx
        .find("min.s32")
        .into_iter()
        .filter(|&at| at < first_copy)
    {
        ptx.lines[at] = to_move(&ptx.lines[at]);
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
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}

#[test]
fn planted_bugs_are_caught() {
    assert_caught(&Causal::new(), MUTANTS);
}

/// Without a bug, no order of the lanes makes a fault or a wrong number.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    assert_clean(&Causal::new());
}
