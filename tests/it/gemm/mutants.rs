//! Bugs planted in the kernels that multiply.

use cuda_emulator::FaultKind;

use super::bare::Layer;
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

/// For the kernel of large products. Nothing fills a tile; the ring of four stages goes round, and the last block of k
/// lies in the first stage, where results go.
fn ragged() -> Layer {
    Layer::new("gemm_f16_128x128_nt", [150, 140, 148], 4)
}

/// The same kernel with two groups of rows, the second of which claims more than there are.
fn grouped() -> Layer {
    Layer::grouped("gemm_f16_128x128_nt", [150, 140, 36], 4, vec![0, 60, 1000])
}

/// For a kernel that copies operands which are not aligned, element by element, through a ring of three stages.
fn unaligned() -> Layer {
    Layer::new("gemm_f16_64x64_nt", [70, 75, 197], 2)
}

#[rustfmt::skip]
const RAGGED: &[Mutant] = &[
    // Barriers: before the first block is loaded, before the next, before results overwrite the ring, and between the
    // warps' sums of columns.
    ("no barrier before the first block", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before the next block", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before results overwrite the ring", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("no barrier between the warps' column sums", |ptx| ptx.delete("bar.sync", 3), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 1, half_of_each_warp), By(FaultKind::Divergence)),
    ("results are read before all lanes have written", |ptx| ptx.delete("bar.warp.sync", 0), By(FaultKind::Race)),
    ("results are overwritten before all lanes have read", |ptx| ptx.delete("bar.warp.sync", 1), By(FaultKind::Race)),
    // Waits, and the groups that they count: three blocks before the loop, then one in each round. Of the wait
    // before results there is no mutant: no copies are under way by then.
    ("no wait before the first block", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("no wait before the next block", |ptx| ptx.delete("cp.async.wait_group", 1), By(FaultKind::MissingWait)),
    ("a wait that leaves the first block under way", |ptx| ptx.edit("cp.async.wait_group", 0, leave_three), By(FaultKind::MissingWait)),
    ("a wait that leaves the next block under way", |ptx| ptx.edit("cp.async.wait_group", 1, leave_three), By(FaultKind::MissingWait)),
    ("the first block belongs to the second's group", |ptx| ptx.delete("cp.async.commit_group", 0), By(FaultKind::MissingWait)),
    ("the third block belongs to the fourth's group", |ptx| ptx.delete("cp.async.commit_group", 2), By(FaultKind::MissingWait)),
    ("blocks of the loop belong to no group", |ptx| ptx.delete("cp.async.commit_group", 3), By(FaultKind::MissingWait)),
    // Bounds.
    ("rows past the last are read", |ptx| ptx.copy_all(0), By(FaultKind::OutOfBounds)),
    ("the last block of k is read past its end", |ptx| ptx.edit_before("cp.async.cg", 24, "min.s32", |line| to_number(line, 8)), By(FaultKind::OutOfBounds)),
    ("rows past the last are written", |ptx| ptx.delete_guard("ld.shared.v4", 0), By(FaultKind::OutOfBounds)),
    ("the last chunk of a row is read whole", |ptx| any_count(ptx, "ld.global.v4.u32"), By(FaultKind::OutOfBounds)),
    ("the last chunk of a row is written whole", |ptx| any_count(ptx, "st.global.v4.u32"), By(FaultKind::OutOfBounds)),
    ("a matrix begins between two rows", |ptx| ptx.edit("ldmatrix", 0, |line| line.replace(']', "+4]")), By(FaultKind::Misaligned)),
    // The ring, and the two buffers of operands in registers.
    ("blocks are fetched to a fifth stage", |ptx| ptx.edit_before("bar.sync", 2, "setp.eq.s32", |line| line.replace(" 4;", " 3;")), By(FaultKind::OutOfBounds)),
    ("the fourth block is read from the first stage", |ptx| ptx.edit_before("bar.sync", 1, "setp.eq.s32", |line| line.replace(" 4;", " 3;")), By(FaultKind::MissingWait)),
    ("the next step's operands overwrite those in use", one_buffer, Numbers),
    ("the next block's first operands are not loaded", |ptx| ptx.delete("ldmatrix", 16), Numbers),
    ("a step's operands are those of the step before", |ptx| ptx.edit_before("ldmatrix", 8, "xor.b32", to_move), Numbers),
    ("the last block of k is left out", round_blocks_down, Numbers),
    ("a product is left out", |ptx| ptx.delete("mma", 0), Numbers),
    // Swizzles.
    ("a is stored without its swizzle", |ptx| ptx.edit_before("cp.async.cg", 0, "xor.b32", to_move), Numbers),
    ("b is stored without its swizzle", |ptx| ptx.edit_before("cp.async.cg", 28, "xor.b32", to_move), Numbers),
    ("results are read without their swizzle", |ptx| ptx.edit_before("ld.shared.v4", 0, "xor.b32", to_move), Numbers),
    ("both halves of a chunk are the first", |ptx| ptx.edit_before("ld.shared.v4", 1, "xor.b32", to_move), Numbers),
    // Sums of columns.
    ("lanes do not share their column sums", share_nothing, Numbers),
];

#[rustfmt::skip]
const GROUPED: &[Mutant] = &[
    ("offsets from the device are trusted", trust_offsets, By(FaultKind::OutOfBounds)),
    ("all groups have the first one's weights", first_weights, Numbers),
];

#[rustfmt::skip]
const UNALIGNED: &[Mutant] = &[
    ("no barrier before the first block", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("no barrier before the next block", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before results overwrite the ring", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("rows past the last are read", |ptx| ptx.delete_guard("ld.global.u16", 0), By(FaultKind::OutOfBounds)),
    // Two blocks of a and of b are fetched before the loop, by eight loads each; this is the last of a in the loop.
    ("the last block of k is read past its end", |ptx| ptx.edit_before("ld.global.u16", 39, "setp.lt.s32", |line| line.replace(" 8;", " 0;")), By(FaultKind::OutOfBounds)),
    ("an element is copied to the wrong half of a word", |ptx| ptx.edit_before("st.shared", 0, "shl.b32", to_move), Numbers),
];

/// Waits for one group fewer.
fn leave_three(wait: &str) -> String {
    wait.replace(" 2;", " 3;")
}

/// The instruction `opcode to, ...` as `mov.b32 to, number`.
fn to_number(line: &str, number: u32) -> String {
    let moved = to_move(line);
    let (to, _) = moved.split_once(',').expect("a destination");
    format!("{to}, {number};")
}

/// The last access of this opcode, for chunks of eight elements, is made for shorter ones too.
fn any_count(ptx: &mut Ptx, access: &str) {
    let last = ptx.find(access).len() - 1;
    ptx.edit_before(access, last, "setp.gt.s32", |line| {
        assert!(line.ends_with(" 7;"), "no comparison of a count: {line}");
        line.replace(" 7;", " 0;")
    });
}

/// What the loop loads first, for the second step, also replaces the first operands of the first step.
fn one_buffer(ptx: &mut Ptx) {
    let registers = |line: &str| -> Vec<String> {
        let (_, list) = line.split_once('{').expect("registers");
        let (list, _) = list.split_once('}').expect("registers");
        list.split(',')
            .map(|register| register.trim().to_owned())
            .collect()
    };
    let loads = ptx.find("ldmatrix");
    let first = registers(&ptx.lines[loads[0]]);
    let second = registers(&ptx.lines[loads[8]]);
    for (first, second) in first.iter().zip(second) {
        ptx.lines[loads[8]] += &format!(" mov.b32 {first}, {second};");
    }
}

/// The blocks of k are counted without the one that it ends in.
fn round_blocks_down(ptx: &mut Ptx) {
    let first_copy = ptx.find("cp.async.cg")[0];
    let rounds_up = |&at: &usize| at < first_copy && ptx.lines[at].ends_with(", 31;");
    let at = ptx.find("add.s32").into_iter().rfind(rounds_up);
    let at = at.expect("a division that rounds up");
    ptx.lines[at] = to_move(&ptx.lines[at]);
}

/// Lanes keep their own value instead of a neighbour's.
fn share_nothing(ptx: &mut Ptx) {
    let results = ptx.find("bar.warp.sync")[1];
    for at in ptx.find("shfl.sync") {
        if at > results {
            ptx.lines[at] = to_move(&ptx.lines[at]);
        }
    }
}

/// Every minimum between the first offset and the search for the tile's group becomes its first operand.
fn trust_offsets(ptx: &mut Ptx) {
    let (loads, search) = (ptx.find("ld.global"), ptx.find("shfl.sync"));
    for at in ptx.find("min.s32") {
        if loads[0] < at && at < search[0] {
            ptx.lines[at] = to_move(&ptx.lines[at]);
        }
    }
}

/// What the search finds last is the group, which becomes 0.
fn first_weights(ptx: &mut Ptx) {
    let first_copy = ptx.find("cp.async.cg")[0];
    let search = ptx.find("shfl.sync").into_iter();
    let found = search.filter(|&at| at < first_copy).max();
    let found = found.expect("a search for the group");
    let group = ptx.find("cvt.s64.s32").into_iter().find(|&at| at > found);
    let group = group.expect("the group's number");
    ptx.lines[group] = to_number(&ptx.lines[group], 0).replace("b32", "b64");
}

#[test]
fn planted_bugs_are_caught() {
    assert_caught(&ragged(), RAGGED);
    assert_caught(&grouped(), GROUPED);
    assert_caught(&unaligned(), UNALIGNED);
}

#[test]
fn nothing_is_found_where_nothing_was_planted() {
    for problem in [ragged(), grouped(), unaligned()] {
        assert_clean(&problem);
    }
}
