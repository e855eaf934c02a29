//! Bugs planted in the kernels of linear attention.

use cuda_emulator::FaultKind;

use super::bare::Layer;
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

#[rustfmt::skip]
const STEP: &[Mutant] = &[
    // Barriers: the tile has landed, it is prepared, outputs are divided, all has been read, what comes behind is known.
    ("no barrier before a tile is read", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Uninitialised)),
    ("no barrier before warps walk", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before z is carried on", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("no barrier before decays are overwritten", |ptx| ptx.delete("bar.sync", 3), By(FaultKind::Race)),
    ("no barrier before the last z is read", |ptx| ptx.delete("bar.sync", 4), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 0, half_of_each_warp), By(FaultKind::Divergence)),
    ("outputs are read before all lanes have written them", |ptx| ptx.delete("bar.warp.sync", 5), By(FaultKind::Race)),
    // Waits, and the groups that they wait for.
    ("no wait before a tile is read", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("the first tile belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 0), By(FaultKind::MissingWait)),
    ("the next tile belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 1), By(FaultKind::MissingWait)),
    // Bounds.
    ("tiles are read past their last rows", |ptx| ptx.copy_all(1), By(FaultKind::OutOfBounds)),
    ("out is written past its last row", |ptx| ptx.delete_guard("st.global.v4", 0), By(FaultKind::OutOfBounds)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    ("a matrix begins between two rows", |ptx| ptx.edit("ldmatrix", 0, |line| line.replace(']', "+4]")), By(FaultKind::Misaligned)),
    // Numbers.
    ("a product is left out", |ptx| ptx.delete("mma", 0), Numbers),
    ("the last product is left out", |ptx| { let last = ptx.find("mma").len() - 1; ptx.delete("mma", last) }, Numbers),
    ("tiles are stored without their swizzle", |ptx| ptx.edit_before("cp.async.cg", 0, "xor.b32", to_move), Numbers),
    ("lanes do not share their sums", share_nothing, Numbers),
];

#[rustfmt::skip]
const CHANNEL: &[Mutant] = &[
    // Barriers: the tile has landed, it is prepared, (outputs are divided,) it has been read.
    ("no barrier before a tile is read", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before warps walk", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before the next tile overwrites this one", |ptx| ptx.delete("bar.sync", 3), By(FaultKind::Race)),
    ("no wait before a tile is read", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("the next tile belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 1), By(FaultKind::MissingWait)),
    ("tiles are read past their last rows", |ptx| ptx.copy_all(1), By(FaultKind::OutOfBounds)),
    ("out is written past its last row", |ptx| ptx.delete_guard("st.global.v4", 0), By(FaultKind::OutOfBounds)),
    ("the last product is left out", |ptx| { let last = ptx.find("mma").len() - 1; ptx.delete("mma", last) }, Numbers),
    ("lanes do not share their sums", share_nothing, Numbers),
];

#[rustfmt::skip]
const IN_PAIRS: &[Mutant] = &[
    ("no barrier before a tile is read", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no wait before a tile is read", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("rows are read past their last channel", |ptx| copy_whole(ptx, 1), By(FaultKind::OutOfBounds)),
    ("out is written past its last channel", |ptx| ptx.delete_guard("st.global.u32", 0), By(FaultKind::OutOfBounds)),
];

#[rustfmt::skip]
const BY_ELEMENTS: &[Mutant] = &[
    ("no barrier before a tile is read", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Uninitialised)),
    ("rows are read past their last channel", |ptx| (0..ptx.find("ld.global.u16").len()).for_each(|load| ptx.delete_guard("ld.global.u16", load)), By(FaultKind::OutOfBounds)),
    ("out is written past its last channel", |ptx| ptx.delete_guard("st.global.u16", 0), By(FaultKind::OutOfBounds)),
];

/// Lets every copy of 4 bytes of the `which`-th group read them, wherever the row ends.
fn copy_whole(ptx: &mut Ptx, which: usize) {
    let ends = ptx.find("cp.async.commit_group");
    let start = if which == 0 { 0 } else { ends[which - 1] };
    for at in ptx.find("cp.async.ca") {
        if start < at && at < ends[which] {
            let operands = ptx.lines[at].rfind(',').unwrap();
            ptx.lines[at].replace_range(operands.., ", 4;");
        }
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

/// Lanes keep their own value instead of a neighbour's.
fn share_nothing(ptx: &mut Ptx) {
    for at in ptx.find("shfl.sync") {
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}

#[test]
fn bugs_planted_where_decays_are_a_number_a_step_are_caught() {
    assert_caught(&Layer::step(), STEP);
}

#[test]
fn bugs_planted_where_decays_are_a_number_a_channel_are_caught() {
    assert_caught(&Layer::channel(), CHANNEL);
}

#[test]
fn bugs_planted_where_rows_are_no_whole_copies_are_caught() {
    assert_caught(&Layer::step().in_pairs(), IN_PAIRS);
    assert_caught(&Layer::step().by_elements(), BY_ELEMENTS);
}

/// Without a bug, no order of the lanes makes a fault or a wrong number.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    assert_clean(&Layer::step());
    assert_clean(&Layer::channel());
    assert_clean(&Layer::step().reversed());
    assert_clean(&Layer::channel().reversed());
    assert_clean(&Layer::step().in_pairs());
    assert_clean(&Layer::channel().in_pairs());
    assert_clean(&Layer::step().by_elements().reversed());
    assert_clean(&Layer::channel().by_elements());
}
