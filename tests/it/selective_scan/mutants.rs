//! Bugs planted in the kernel that scans.

use cuda_emulator::FaultKind;

use super::bare::Layer;
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

/// Two blocks, the second of which has six channels; three tiles, the last of which ends within a chunk; states that do
/// not fill a row.
fn ragged() -> Layer {
    Layer::new([70, 45, 13], false, true)
}

/// The same along channels and states.
fn across() -> Layer {
    Layer::new([70, 37, 13], true, true)
}

/// Rows that are copied element by element.
fn unaligned() -> Layer {
    Layer::new([70, 37, 13], false, false)
}

/// Sequences that begin and end within tiles, the last of which claims more steps than there are.
fn packed() -> Layer {
    Layer::packed([9, 45, 16], vec![0, 5, 21, 1000])
}

/// The pass that computes what a segment leaves behind.
fn ends() -> Layer {
    Layer::ends([70, 45, 13], 2)
}

#[rustfmt::skip]
const RAGGED: &[Mutant] = &[
    // Barriers: before the first tile is prepared, before its steps are taken, and before its results are stored.
    ("no barrier before the first tile", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before a tile's steps", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before a tile's results", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 1, half_of_each_warp), By(FaultKind::Race)),
    ("y takes the place of x that a lane has yet to read", |ptx| ptx.delete("bar.warp.sync", 0), By(FaultKind::Race)),
    // Waits, and the groups that they wait for: the first tile, and in the loop the next.
    ("no wait for a tile", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("a wait that leaves the tile under way", |ptx| ptx.edit("cp.async.wait_group", 0, |_| "cp.async.wait_group 1;".into()), By(FaultKind::MissingWait)),
    ("the first tile belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 0), By(FaultKind::MissingWait)),
    ("the next tile belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 1), By(FaultKind::MissingWait)),
    // Bounds.
    ("the first tile is read past its rows", |ptx| ptx.copy_all(0), By(FaultKind::OutOfBounds)),
    ("the last tile is read past its steps", |ptx| ptx.copy_all(1), By(FaultKind::OutOfBounds)),
    ("a block has channels that there are not", |ptx| ptx.edit("min.s32", 0, |line| line.replace("min", "max")), By(FaultKind::OutOfBounds)),
    ("A is read past its channels", |ptx| ptx.delete_guard("ld.global.f32", 2), By(FaultKind::OutOfBounds)),
    ("out is written past its last step", |ptx| ptx.delete_guard("st.global.u16", 13), By(FaultKind::OutOfBounds)),
    ("four floats are read from between two fours", misread, By(FaultKind::Misaligned)),
    // What is not the sequence's.
    ("steps behind the last one move the state", |ptx| any_step(ptx), Numbers),
    // Buffers of two tiles.
    ("the next tile's u takes the place of this one's", one_buffer, By(FaultKind::MissingWait)),
    // Arithmetic.
    ("a step is not scaled by its decay", |ptx| ptx.edit_before("bar.warp.sync", 0, "ex2.approx", to_move), Numbers),
    ("lanes do not share their sums", share_nothing, Numbers),
];

#[rustfmt::skip]
const ACROSS: &[Mutant] = &[
    ("no barrier before a tile's steps", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before a tile's results", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("the last tile is read past its channels, states and steps", |ptx| ptx.copy_all(1), By(FaultKind::OutOfBounds)),
    ("steps behind the last one move the state", |ptx| any_step(ptx), Numbers),
];

#[rustfmt::skip]
const UNALIGNED: &[Mutant] = &[
    ("no barrier before a tile's steps", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("the last element of a row is read past its end", |ptx| ptx.delete_guard("ld.global.u16", 7), By(FaultKind::OutOfBounds)),
    ("out is written past its last step", |ptx| ptx.delete_guard("st.global.u16", 13), By(FaultKind::OutOfBounds)),
];

#[rustfmt::skip]
const PACKED: &[Mutant] = &[
    ("offsets from the device are trusted", trust_offsets, By(FaultKind::OutOfBounds)),
    ("steps of other sequences move the state", |ptx| any_step(ptx), Numbers),
];

#[rustfmt::skip]
const ENDS: &[Mutant] = &[
    ("step sizes are added before all are there", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("the next tile is prepared before all are added", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
];

#[test]
fn the_kernel_without_a_bug_is_right() {
    for layer in [ragged(), across(), unaligned(), packed(), ends()] {
        assert_clean(&layer);
    }
}

#[test]
fn bugs_in_ragged_tiles_are_caught() {
    assert_caught(&ragged(), RAGGED);
}

#[test]
fn bugs_along_channels_are_caught() {
    assert_caught(&across(), ACROSS);
}

#[test]
fn bugs_in_unaligned_rows_are_caught() {
    assert_caught(&unaligned(), UNALIGNED);
}

#[test]
fn bugs_in_packed_sequences_are_caught() {
    assert_caught(&packed(), PACKED);
}

#[test]
fn bugs_between_segments_are_caught() {
    assert_caught(&ends(), ENDS);
}

/// Four numbers of C are read a float further on.
fn misread(ptx: &mut Ptx) {
    ptx.edit_before("bar.warp.sync", 0, "ld.shared.v4.f32", |line| {
        let (read, address) = line.split_once('[').expect("an address");
        let (address, _) = address.split_once(']').expect("its end");
        let (register, offset) = address.split_once('+').unwrap_or((address, "0"));
        let offset: u32 = offset.parse().expect("a number");
        format!("{read}[{register}+{}];", offset + 4)
    });
}

/// Step sizes and inputs count whether the sequence has the step or not.
fn any_step(ptx: &mut Ptx) {
    let barriers = ptx.find("bar.sync");
    let prepared = barriers[0]..barriers[1];
    let choices = ptx.find("selp.b32").into_iter();
    let masked = |line: &str| {
        let operands: Vec<&str> = line.split(',').map(str::trim).collect();
        operands.get(2) == Some(&"0")
    };
    let choices: Vec<usize> = choices
        .filter(|at| prepared.contains(at) && masked(&ptx.lines[*at]))
        .collect();
    assert!(choices.len() >= 16, "{} masked numbers", choices.len());
    for at in choices {
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}

/// Offsets of sequences are not clamped to the steps that there are.
fn trust_offsets(ptx: &mut Ptx) {
    let offset = ptx.find("ld.global.u32")[0];
    let clamps = ptx.find("min.s32").into_iter().filter(|&at| at > offset);
    for at in clamps.take(2).collect::<Vec<_>>() {
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}

/// Tiles of u share one buffer.
fn one_buffer(ptx: &mut Ptx) {
    ptx.edit_before("cp.async.cg", 5, "and.b32", |line| {
        let to = line
            .trim()
            .split_once(char::is_whitespace)
            .expect("operands")
            .1;
        let to = to.split(',').next().expect("a destination");
        format!("mov.b32 {to}, 0;")
    });
}

/// Lanes keep the y of their own states.
fn share_nothing(ptx: &mut Ptx) {
    for at in ptx.find("shfl.sync") {
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}
