//! Bugs planted in the kernel of the gradients.

use cuda_emulator::FaultKind;

use super::bare::Gated;
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    // Barriers: one for the weights, two in the pass over the ends of segments, and in the walk over tiles those
    // before numbers are read, warps' sums added and overwritten, and terms of D added and overwritten.
    ("no barrier before the weights are read", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before a tile's numbers are read", |ptx| ptx.delete("bar.sync", 3), By(FaultKind::Race)),
    ("no barrier before the warps' sums are added", |ptx| ptx.delete("bar.sync", 4), By(FaultKind::Uninitialised)),
    ("no barrier before the warps' sums are overwritten", |ptx| ptx.delete("bar.sync", 5), By(FaultKind::Race)),
    ("no barrier before the terms of D are added", |ptx| ptx.delete("bar.sync", 6), By(FaultKind::Race)),
    ("no barrier before the next tile", |ptx| ptx.delete("bar.sync", 7), By(FaultKind::Race)),
    ("results overwrite steps that a lane has not read", |ptx| ptx.delete("bar.warp.sync", 0), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 3, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 5, half_of_each_warp), By(FaultKind::Divergence)),
    // Waits, and the groups that they wait for: the last tile, and in the walk each one before.
    ("no wait for a tile", |ptx| ptx.delete("cp.async.wait_group", 1), By(FaultKind::MissingWait)),
    ("a wait that leaves the tile under way", |ptx| ptx.edit("cp.async.wait_group", 1, |_| "cp.async.wait_group 1;".into()), By(FaultKind::MissingWait)),
    ("the last tile belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 0), By(FaultKind::MissingWait)),
    ("the tile before belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 2), By(FaultKind::MissingWait)),
    // Bounds.
    ("steps past the last are read", |ptx| ptx.copy_all(0), By(FaultKind::OutOfBounds)),
    ("offsets from the device are trusted", trust_offsets, By(FaultKind::OutOfBounds)),
    ("du is written past its last step", |ptx| whole_chunks(ptx, 0), By(FaultKind::OutOfBounds)),
    ("ddelta is written past its last step", |ptx| whole_chunks(ptx, 1), By(FaultKind::OutOfBounds)),
    ("dz is written past its last step", |ptx| whole_chunks(ptx, 2), By(FaultKind::OutOfBounds)),
    // Sums and values.
    ("lanes do not share their sums", share_nothing, Numbers),
    ("the tile before has the B and C of the last", |ptx| ptx.delete("cp.async.cg", 10), Numbers),
    ("the tile before has the step sizes of the last", |ptx| ptx.delete("cp.async.cg", 11), Numbers),
];

/// Every minimum before the first copy becomes its first operand: offsets are clamped there.
fn trust_offsets(ptx: &mut Ptx) {
    let first_copy = ptx.find("cp.async.cg")[0];
    let clamps = ptx.find("min.s32").into_iter();
    for at in clamps.filter(|&at| at < first_copy) {
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}

/// Stores a result's chunks of 16 bytes wherever the steps end.
fn whole_chunks(ptx: &mut Ptx, which: usize) {
    ptx.delete_guard("st.global.v4.u32", which);
}

/// Lanes keep their own value instead of a neighbour's.
fn share_nothing(ptx: &mut Ptx) {
    for at in ptx.find("shfl.sync") {
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}

#[test]
fn planted_bugs_are_caught() {
    assert_caught(&Gated::new(), MUTANTS);
}

/// Without a bug, no order of the lanes makes a fault or a wrong number.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    assert_clean(&Gated::new());
}
