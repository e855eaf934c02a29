//! Bugs planted in the kernels of state space duality.

use cuda_emulator::FaultKind;

use super::bare::{Chunk, Layer};
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

#[rustfmt::skip]
const FORWARD: &[Mutant] = &[
    // Barriers of a chunk: tiles have landed, scores are written, all has been read.
    ("no barrier before C B^T", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before scores are multiplied", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before the next chunk overwrites this one", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 1, half_of_each_warp), By(FaultKind::Divergence)),
    ("z is read before all lanes' parts of it have landed", |ptx| ptx.delete("bar.warp.sync", 0), By(FaultKind::Race)),
    ("outputs are read before all lanes have written", |ptx| ptx.delete("bar.warp.sync", 1), By(FaultKind::Race)),
    // Waits, and the groups that they wait for: tiles, z, the next z, the next tiles. Tiles without a group of their
    // own are in that of z.
    ("no wait before C B^T", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("no wait before the gate", |ptx| ptx.delete("cp.async.wait_group", 1), By(FaultKind::MissingWait)),
    ("z belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 1), By(FaultKind::MissingWait)),
    ("the next z belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 2), By(FaultKind::MissingWait)),
    ("the next tiles belong to no group", |ptx| ptx.delete("cp.async.commit_group", 3), By(FaultKind::MissingWait)),
    // Bounds.
    ("z is read past its last row", |ptx| ptx.copy_all(2), By(FaultKind::OutOfBounds)),
    ("tiles are read past their last rows", |ptx| ptx.copy_all(3), By(FaultKind::OutOfBounds)),
    ("out is written past its last row", |ptx| ptx.delete_guard("st.global.v4", 0), By(FaultKind::OutOfBounds)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    ("a matrix begins between two rows", |ptx| ptx.edit("ldmatrix", 0, |line| line.replace(']', "+4]")), By(FaultKind::Misaligned)),
    // Numbers.
    ("a product is left out", |ptx| ptx.delete("mma", 0), Numbers),
    ("the last product is left out", |ptx| { let last = ptx.find("mma").len() - 1; ptx.delete("mma", last) }, Numbers),
    ("tiles are stored without their swizzle", |ptx| ptx.edit_before("cp.async.cg", 0, "xor.b32", to_move), Numbers),
    ("lanes do not share their sums of exponents", share_nothing, Numbers),
    ("later steps act on earlier ones", unmask, Numbers),
];

#[rustfmt::skip]
const GRADIENTS: &[Mutant] = &[
    // Barriers of a slice: tiles have landed, dy is written, magnitudes, K and Q, G has landed, dx is written.
    ("no barrier before dy is made", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before dy is multiplied", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier between magnitudes", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Uninitialised)),
    ("no barrier before K and Q are multiplied", |ptx| ptx.delete("bar.sync", 3), By(FaultKind::Race)),
    ("no barrier before G is multiplied", |ptx| ptx.delete("bar.sync", 4), By(FaultKind::Race)),
    ("no barrier before dx is stored", |ptx| ptx.delete("bar.sync", 5), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 3, half_of_each_warp), By(FaultKind::Divergence)),
    // Waits, and the groups that they wait for: B and C, x and dout and z, S, G. Tiles without a group of their own are
    // in the next one.
    ("no wait before tiles are read", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("no wait before G is multiplied", |ptx| ptx.delete("cp.async.wait_group", 1), By(FaultKind::MissingWait)),
    ("S belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 2), By(FaultKind::MissingWait)),
    ("G belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 3), By(FaultKind::MissingWait)),
    // Bounds.
    ("B and C are read past their last rows", |ptx| ptx.copy_all(0), By(FaultKind::OutOfBounds)),
    ("x is read past its last row", |ptx| ptx.copy_all(1), By(FaultKind::OutOfBounds)),
    ("S is read past its last channel", |ptx| ptx.copy_all(2), By(FaultKind::OutOfBounds)),
    ("G is read past its last channel", |ptx| ptx.copy_all(3), By(FaultKind::OutOfBounds)),
    ("dx is written past its last row", |ptx| ptx.delete_guard("st.global.v4", 1), By(FaultKind::OutOfBounds)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    // Numbers.
    ("a product is left out", |ptx| ptx.delete("mma", 0), Numbers),
    ("the last product is left out", |ptx| { let last = ptx.find("mma").len() - 1; ptx.delete("mma", last) }, Numbers),
    ("tiles are stored without their swizzle", |ptx| ptx.edit_before("cp.async.cg", 0, "xor.b32", to_move), Numbers),
    ("lanes do not share their sums", share_nothing, Numbers),
    ("later steps act on earlier ones", unmask, Numbers),
];

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

/// Choices between a number and 0 take the number, whichever comes first.
fn unmask(ptx: &mut Ptx) {
    for at in ptx.find("selp.f32") {
        let line = ptx.lines[at].clone();
        let operands: Vec<&str> = line.trim().split([' ', '\t', ',', ';']).collect();
        let operands: Vec<&str> = operands.into_iter().filter(|x| !x.is_empty()).collect();
        let [_, to, first, second, _] = operands[..] else {
            panic!("{line}")
        };
        let zero = "0f00000000";
        if (first == zero) != (second == zero) {
            let number = if first == zero { second } else { first };
            ptx.lines[at] = format!("mov.f32 {to}, {number};");
        }
    }
}

#[test]
fn bugs_planted_in_the_forward_kernel_are_caught() {
    assert_caught(&Layer::new(), FORWARD);
}

#[test]
fn bugs_planted_in_the_kernel_of_gradients_are_caught() {
    assert_caught(&Chunk::new(), GRADIENTS);
}

/// Without a bug, no order of the lanes makes a fault or a wrong number.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    assert_clean(&Layer::new());
    assert_clean(&Chunk::new());
}
