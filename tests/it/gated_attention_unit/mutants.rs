//! Bugs planted in the kernels of the gated attention unit.

use cuda_emulator::FaultKind;

use super::bare::{Attention, Queries};
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

#[rustfmt::skip]
const ATTEND: &[Mutant] = &[
    // Barriers of the linear part: z has landed, rows and states, all has been read. Then: z of rows; and of a tile: z
    // of columns, columns and bias, magnitudes, scores and values, all has been read.
    ("no barrier before linear rows are made", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before linear rows are multiplied", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before rows overwrite linear ones", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("no barrier before rows are made", |ptx| ptx.delete("bar.sync", 3), By(FaultKind::Race)),
    ("no barrier before columns are made", |ptx| ptx.delete("bar.sync", 4), By(FaultKind::Race)),
    ("no barrier before scores", |ptx| ptx.delete("bar.sync", 5), By(FaultKind::Race)),
    ("no barrier between magnitudes", |ptx| ptx.delete("bar.sync", 6), By(FaultKind::Uninitialised)),
    ("no barrier before scores are multiplied", |ptx| ptx.delete("bar.sync", 7), By(FaultKind::Race)),
    ("no barrier before the next values come", |ptx| ptx.delete("bar.sync", 8), By(FaultKind::MissingWait)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 3, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 1, half_of_each_warp), By(FaultKind::Divergence)),
    ("the gate is read before all lanes' parts of it have landed", |ptx| ptx.delete("bar.warp.sync", 0), By(FaultKind::Race)),
    ("outputs are read before all lanes have written", |ptx| ptx.delete("bar.warp.sync", 1), By(FaultKind::Race)),
    // Waits, and the groups that they wait for.
    ("no wait before linear rows", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("no wait before states", |ptx| ptx.delete("cp.async.wait_group", 1), By(FaultKind::MissingWait)),
    ("no wait before rows", |ptx| ptx.delete("cp.async.wait_group", 2), By(FaultKind::MissingWait)),
    ("no wait before columns", |ptx| ptx.delete("cp.async.wait_group", 3), By(FaultKind::MissingWait)),
    ("no wait before values", |ptx| ptx.delete("cp.async.wait_group", 4), By(FaultKind::MissingWait)),
    ("no wait before the gate", |ptx| ptx.delete("cp.async.wait_group", 5), By(FaultKind::MissingWait)),
    // Bounds.
    ("z is read past its last row", |ptx| ptx.copy_all(0), By(FaultKind::OutOfBounds)),
    ("states are read past their last row", |ptx| ptx.copy_all(2), By(FaultKind::OutOfBounds)),
    ("columns are read past their last row", |ptx| ptx.copy_all(6), By(FaultKind::OutOfBounds)),
    ("values are read past their last row", |ptx| ptx.copy_all(7), By(FaultKind::OutOfBounds)),
    ("out is written past its last row", |ptx| ptx.delete_guard("st.global.v4", 0), By(FaultKind::OutOfBounds)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    ("a matrix begins between two rows", |ptx| ptx.edit("ldmatrix", 0, |line| line.replace(']', "+4]")), By(FaultKind::Misaligned)),
    // Numbers.
    ("a product is left out", |ptx| ptx.delete("mma", 0), Numbers),
    ("the last product is left out", |ptx| { let last = ptx.find("mma").len() - 1; ptx.delete("mma", last) }, Numbers),
    ("tiles are stored without their swizzle", |ptx| ptx.edit_before("cp.async.cg", 0, "xor.b32", to_move), Numbers),
    ("lanes do not share their magnitudes", share_nothing, Numbers),
    ("later steps act on earlier ones", unmask, Numbers),
];

#[rustfmt::skip]
const GRADIENTS: &[Mutant] = &[
    // Barriers of the linear part: tiles have landed; its sums are written, and read. Then: z of
    // rows; of a slice: tiles have landed; of a tile: z of columns, columns and bias, magnitudes, scores. Then
    // diagonals, sums.
    ("no barrier before linear tiles are multiplied", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before linear sums are added", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before rows are made", |ptx| ptx.delete("bar.sync", 3), By(FaultKind::Race)),
    ("no barrier before slices are multiplied", |ptx| ptx.delete("bar.sync", 4), By(FaultKind::Race)),
    ("no barrier before columns are made", |ptx| ptx.delete("bar.sync", 5), By(FaultKind::Race)),
    ("no barrier before scores", |ptx| ptx.delete("bar.sync", 6), By(FaultKind::Race)),
    ("no barrier between magnitudes", |ptx| ptx.delete("bar.sync", 7), By(FaultKind::Uninitialised)),
    ("no barrier before scores are multiplied", |ptx| ptx.delete("bar.sync", 8), By(FaultKind::Race)),
    ("no barrier before sums are added", |ptx| ptx.delete("bar.sync", 10), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 3, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 4, half_of_each_warp), By(FaultKind::Divergence)),
    // Waits, and the groups that they wait for.
    ("no wait before linear tiles", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("no wait before rows", |ptx| ptx.delete("cp.async.wait_group", 1), By(FaultKind::MissingWait)),
    ("no wait before slices", |ptx| ptx.delete("cp.async.wait_group", 2), By(FaultKind::MissingWait)),
    ("no wait before columns", |ptx| ptx.delete("cp.async.wait_group", 3), By(FaultKind::MissingWait)),
    // Bounds.
    ("linear tiles are read past their ends", |ptx| ptx.copy_all(0), By(FaultKind::OutOfBounds)),
    ("z is read past its last row", |ptx| ptx.copy_all(2), By(FaultKind::OutOfBounds)),
    ("slices are read past their ends", |ptx| ptx.copy_all(3), By(FaultKind::OutOfBounds)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    // Numbers.
    ("a product is left out", |ptx| ptx.delete("mma", 0), Numbers),
    ("the last product is left out", |ptx| { let last = ptx.find("mma").len() - 1; ptx.delete("mma", last) }, Numbers),
    ("tiles are stored without their swizzle", |ptx| ptx.edit_before("cp.async.cg", 0, "xor.b32", to_move), Numbers),
    ("lanes do not share their sums", share_nothing, Numbers),
    ("later steps act on earlier ones", unmask, Numbers),
];

/// The first two choices take the number, and not the limit that it is above: lengths are clamped there.
fn trust_lengths(ptx: &mut Ptx) {
    for _ in 0..2 {
        ptx.edit("selp.b32", 0, |line| {
            let operands: Vec<&str> = line.trim().split([' ', '\t', ',', ';']).collect();
            let operands: Vec<&str> = operands.into_iter().filter(|x| !x.is_empty()).collect();
            let [_, to, _, number, _] = operands[..] else {
                panic!("{line}")
            };
            format!("mov.b32 {to}, {number};")
        });
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
fn bugs_planted_in_the_kernel_of_attention_are_caught() {
    assert_caught(&Attention::new(), ATTEND);
}

#[test]
fn bugs_planted_in_the_kernel_of_gradients_are_caught() {
    assert_caught(&Queries::new(), GRADIENTS);
}

/// Without a bug, no order of the lanes makes a fault or a wrong number.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    assert_clean(&Attention::new());
    assert_clean(&Queries::new());
}
