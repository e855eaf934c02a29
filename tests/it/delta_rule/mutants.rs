//! Bugs planted in the kernels of the delta rule.

use cuda_emulator::FaultKind;

use super::bare::Layer;
use super::{CASE, Fades};
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

#[rustfmt::skip]
const FORWARD: &[Mutant] = &[
    // Barriers of a tile: it has landed, and it is prepared.
    ("no barrier before a tile is prepared", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Uninitialised)),
    ("no barrier before inverses are multiplied", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 1, half_of_each_warp), By(FaultKind::Divergence)),
    // Waits, and the groups that they wait for.
    ("no wait before a tile is read", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("the next tile belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 1), By(FaultKind::MissingWait)),
    // Within a warp: L is written, read, overwritten and read again.
    ("L is read before all lanes have written", |ptx| at_triangle(ptx, 0), By(FaultKind::Race)),
    ("L is overwritten before all lanes have read", |ptx| at_triangle(ptx, 1), By(FaultKind::Race)),
    ("the inverse is read before all lanes have written", |ptx| at_triangle(ptx, 2), By(FaultKind::Race)),
    // Bounds.
    ("tiles are read past their last rows", |ptx| ptx.copy_all(1), By(FaultKind::OutOfBounds)),
    ("out is written past its last row", |ptx| (0..3).for_each(|store| ptx.delete_guard("st.global.v4", store)), By(FaultKind::OutOfBounds)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    ("a matrix begins between two rows", |ptx| ptx.edit("ldmatrix", 0, |line| line.replace(']', "+4]")), By(FaultKind::Misaligned)),
    // Numbers.
    ("a product is left out", |ptx| ptx.delete("mma", 0), Numbers),
    ("the last product is left out", |ptx| { let last = ptx.find("mma").len() - 1; ptx.delete("mma", last) }, Numbers),
    ("a step of the substitution is left out", skip_substitution, Numbers),
    ("lanes do not share their sums of exponents", share_nothing, Numbers),
];

#[rustfmt::skip]
const CHANNELS: &[Mutant] = &[
    // Barriers of a tile: it has landed, its rows are mapped, they have been read, and it is prepared.
    ("no barrier before a tile is prepared", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before two warps read a chunk", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("rows are overwritten before both warps have read them", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("no barrier before inverses are multiplied", |ptx| ptx.delete("bar.sync", 3), By(FaultKind::Uninitialised)),
    // Waits.
    ("no wait before a tile is read", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("the next tile belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 1), By(FaultKind::MissingWait)),
    // Within a warp.
    ("L is read before all lanes have written", |ptx| at_triangle(ptx, 0), By(FaultKind::Race)),
    ("L is overwritten before all lanes have read", |ptx| at_triangle(ptx, 1), By(FaultKind::Race)),
    ("the inverse is read before all lanes have written", |ptx| at_triangle(ptx, 2), By(FaultKind::Race)),
    // Bounds.
    ("tiles are read past their last rows", |ptx| ptx.copy_all(1), By(FaultKind::OutOfBounds)),
    // Numbers.
    ("a product is left out", |ptx| ptx.delete("mma", 8), Numbers), // those before it are of another mode
    ("the last product is left out", |ptx| { let last = ptx.find("mma").len() - 1; ptx.delete("mma", last) }, Numbers),
    ("a step of the substitution is left out", skip_substitution, Numbers),
    ("lanes do not share their sums of channels", share_nothing, Numbers),
    ("logarithms are taken for decays", |ptx| ptx.edit("ex2.approx", 0, to_move), Numbers),
];

/// Deletes the `which`-th of the three barriers of a warp around the substitution, which reads four numbers at a time.
fn at_triangle(ptx: &mut Ptx, which: usize) {
    let reads = substitution(ptx);
    let (first, last) = (reads[0], reads[reads.len() - 1]);
    let barriers = ptx.find("bar.warp.sync");
    let before = barriers.iter().filter(|&&at| at < first).count() - 1;
    let behind = barriers.iter().filter(|&&at| at < last).count();
    ptx.delete("bar.warp.sync", [before, behind, behind + 1][which]);
}

/// Where the substitution reads rows: before the last barrier of a tile, and behind the one before that.
fn substitution(ptx: &Ptx) -> Vec<usize> {
    let barriers = ptx.find("bar.sync");
    let behind = barriers[barriers.len() - 2];
    let mut reads = ptx.find("ld.shared.v4.f32");
    reads.retain(|&at| at > behind);
    reads
}

/// Of the substitution, the first multiplication after the first row is read.
fn skip_substitution(ptx: &mut Ptx) {
    let first = substitution(ptx)[0];
    let before = ptx
        .find("fma.rn.f32")
        .iter()
        .filter(|&&at| at < first)
        .count();
    ptx.edit("fma.rn.f32", before, |line| {
        // its destination takes the summand
        let operands: Vec<&str> = line.trim().split([' ', '\t', ',', ';']).collect();
        let operands: Vec<&str> = operands.into_iter().filter(|x| !x.is_empty()).collect();
        format!("mov.f32 {}, {};", operands[1], operands[4])
    });
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
fn bugs_planted_in_the_forward_kernel_are_caught() {
    assert_caught(&Layer::new(CASE.decay), FORWARD);
}

#[test]
fn bugs_planted_in_the_kernel_of_decays_of_channels_are_caught() {
    assert_caught(&Layer::new(Fades::PerChannel(-0.1)), CHANNELS);
}

/// Without a bug, no order of the lanes makes a fault or a wrong number.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    assert_clean(&Layer::new(CASE.decay));
    assert_clean(&Layer::new(Fades::PerChannel(-0.1)));
}
