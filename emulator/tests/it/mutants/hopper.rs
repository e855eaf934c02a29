//! The matrix multiplication for Hopper: rings of mbarriers, tensor maps, wgmma, clusters.

use super::planted::{Mutant, Planted, changed, deleted, only_numbers};
use crate::hopper::gemm::{Sizes, VARIANTS};
use cuda_emulator::{FaultKind, Options};

use FaultKind::{
    Deadlock, Divergence, Misaligned, MissingWait, OutOfBounds, Race, Trap, Uninitialised,
};

/// Where warps wait for stages.
const FULL: &[&str] = &["ask for a full stage", "stage is there"];
const EMPTY: &[&str] = &["ask for a free stage", "stage is free"];
const RING: &[&str] = &[
    "ask for a full stage",
    "stage is there",
    "ask for a free stage",
    "stage is free",
];
/// What fills a stage, and what uses one.
const COPIES: &[&str] = &["copy of A", "copy of B"];
const PRODUCTS: &[&str] = &["first product", "product", "last product"];
const ROWS: &[&str] = &["first of A", "rows of A", "last of A"];
const CELLS: &[&str] = &["first cells", "cells"];

/// A from shared memory, two warpgroups.
#[rustfmt::skip]
const SHARED: &[Mutant] = &[
    deleted("mbarriers are shown", &[Race], COPIES),
    changed("full", ", 1;", ", 2;", &[Deadlock], FULL),
    deleted("full", &[Uninitialised], &["ask for a full stage", "expect"]),
    changed("empty", ", 8;", ", 9;", &[Deadlock], EMPTY),
    changed("empty", ", 8;", ", 4;", &[Trap, Race, MissingWait, Deadlock, Uninitialised], &["copy of A", "copy of B", "stage before", "last stage", "first product", "product", "last product", "ask for a full stage", "stage is there", "ask for a free stage", "stage is free", "expect"]),
    deleted("empty", &[Uninitialised], &["ask for a free stage", "stage before", "last stage"]),
    deleted("mbarriers are there", &[Race, Uninitialised], &["ask for a full stage", "ask for a free stage", "expect"]),
    changed("registers to give", "40", "48", &[Deadlock], &["registers to take"]),
    deleted("registers to give", &[Deadlock], &["registers to take"]),
    changed("registers to take", "232", "240", &[Deadlock], &["registers to take"]),
    changed("registers to take", "inc", "dec", &[Trap], &["registers to take"]),
    deleted("one thread copies", &[Trap, MissingWait, Race, Deadlock], &["expect", "copy of A", "copy of B"]),
    changed("first round is free", "1;", "0;", &[Deadlock], RING),
    changed("ask for a free stage", "%parity", "1", &[Race, MissingWait, Trap], &["copy of A", "copy of B", "expect"]),
    deleted("stage is free", &[Race, MissingWait, Trap], &["copy of A", "copy of B", "expect"]),
    deleted("expect", &[Deadlock], FULL),
    changed("expect", "24576", "16384", &[MissingWait, Uninitialised, Deadlock, Race], &["first product", "product", "last product", "ask for a full stage", "stage is there"]),
    changed("expect", "24576", "24592", &[Deadlock], FULL),
    changed("expect", "[%full]", "[%empty]", &[Deadlock, Trap], &["ask for a full stage", "expect"]),
    changed("stage of A", "24576", "16384", &[Race, MissingWait, Uninitialised], &["copy of A", "copy of B", "first product", "product", "last product"]),
    changed("stage of A", "%slot, 24576, %base", "%slot, 24576, %bars", &[OutOfBounds, Race], &["copy of A"]),
    changed("stage of B", "16384", "16400", &[Misaligned], &["copy of B"]),
    changed("stage of B", "16384", "8192", &[MissingWait, Race], &["copy of B"]),
    deleted("copy of A", &[Deadlock], FULL),
    deleted("copy of B", &[Deadlock], FULL),
    changed("copy of B", "[%full]", "[%empty]", &[Deadlock, Trap, MissingWait, Race, Uninitialised], &["ask for a full stage", "copy of A", "copy of B", "first product", "product", "last product"]),
    only_numbers("copy of A", "{%x, %row}", "{%row, %x}", "the box lies elsewhere in the tensor, or is filled with zeros"),
    changed("producer wraps", "3;", "4;", &[Uninitialised, Trap, OutOfBounds, Deadlock], &["ask for a free stage", "expect", "copy of A", "ask for a full stage"]),
    changed("producer wraps", "3;", "2;", &[Deadlock], RING),
    deleted("producer turns", &[Race, MissingWait, Trap, Deadlock], &["copy of A", "copy of B", "expect"]),
    changed("steps to bring", "lt", "le", &[Deadlock], RING),
    changed("first phase", "0;", "1;", &[Uninitialised, MissingWait, Race, Deadlock], &["first product", "product", "last product", "ask for a full stage", "stage is there", "ask for a free stage", "stage is free"]),
    changed("ask for a full stage", "%parity", "0", &[MissingWait, Race, Uninitialised, Deadlock], &["first product", "product", "last product", "copy of A", "copy of B", "ask for a full stage", "stage is there", "ask for a free stage", "stage is free"]),
    deleted("stage is there", &[Uninitialised, MissingWait, Race], PRODUCTS),
    changed("stage to multiply", "24576", "0", &[MissingWait, Race], &["first product", "product", "last product", "copy of A", "copy of B"]),
    changed("B to multiply", "16384", "24576", &[MissingWait, Race, Uninitialised], PRODUCTS),
    changed("consumer wraps", "3;", "4;", &[Uninitialised, OutOfBounds], &["first product", "product", "last product", "ask for a full stage", "stage before", "last stage"]),
    deleted("consumer turns", &[MissingWait, Race, Uninitialised, Deadlock], &["first product", "product", "last product", "copy of A", "copy of B", "ask for a full stage", "stage is there", "ask for a free stage", "stage is free"]),
    changed("steps to multiply", "lt", "le", &[Deadlock], RING),
    changed("layout of A", "0x40000040", "0x40000100", &[Uninitialised, MissingWait, Race], PRODUCTS),
    only_numbers("layout of B", "0x4", "0x8", "another swizzle of the same tile"),
    deleted("registers are ready", &[Race], PRODUCTS),
    changed("first product", "wgmma", "@%lead wgmma", &[Divergence, Deadlock], &["first product"]),
    deleted("commit", &[MissingWait, Race], &["copy of A", "copy of B", "first result", "cells"]),
    changed("step before is done", "aligned 1", "aligned 2", &[MissingWait, Race], COPIES),
    deleted("step before is done", &[MissingWait, Race], COPIES),
    changed("stage before", "[%used]", "[%empty]", &[MissingWait, Race, Deadlock], &["copy of A", "copy of B", "ask for a free stage", "stage is free"]),
    changed("stage before", "@%frees", "@%lead", &[Uninitialised, Trap, OutOfBounds, Misaligned], &["stage before", "last stage", "copy of A"]),
    deleted("stage before", &[Deadlock], EMPTY),
    deleted("stage to free", &[OutOfBounds, Uninitialised, Deadlock, Misaligned], &["stage before"]),
    deleted("product is there", &[MissingWait, Race], &["first result", "copy of A", "copy of B"]),
    changed("product is there", "aligned 0", "aligned 1", &[MissingWait, Race], &["first result", "copy of A", "copy of B"]),
    deleted("last stage", &[Deadlock], EMPTY),
    changed("last stage", "@%lead ", "", &[Trap, Race, MissingWait, Deadlock], &["last stage", "stage before", "copy of A", "copy of B", "expect", "ask for a free stage", "stage is free"]),
    deleted("C has left", &[MissingWait], CELLS),
    changed("C has left", ".read 0", ".read 1", &[MissingWait], CELLS),
    deleted("C is free", &[MissingWait, Race], CELLS),
    changed("box of C", "73728", "65536", &[Race, MissingWait], CELLS),
    changed("row of C", "128", "144", &[Race, OutOfBounds, Uninitialised], &["cells", "first cells", "store"]),
    deleted("C is shown", &[Race], &["store"]),
    changed("C is shown", "fence.proxy.async.shared::cta", "fence.proxy.async.global", &[Race], &["store"]),
    deleted("C is complete", &[Race, Uninitialised], &["store"]),
    changed("C is complete", "128", "256", &[Deadlock, Divergence, Race], &["C is complete", "C is free", "store"]),
    changed("C is complete", "%id", "1", &[Divergence, Race, Uninitialised], &["C is complete", "C is free", "store"]),
    deleted("commit of C", &[MissingWait], &["first cells", "cells", "store"]),
    deleted("last C has left", &[MissingWait], &["store"]),
];

/// A from registers.
#[rustfmt::skip]
const REGISTERS: &[Mutant] = &[
    deleted("mbarriers are shown", &[Race], COPIES),
    deleted("stage is there", &[Uninitialised, MissingWait, Race], ROWS),
    changed("expect", "16384", "8192", &[MissingWait, Uninitialised, Deadlock, Race], &["first of A", "rows of A", "last of A", "first product", "product", "last product"]),
    changed("row of A", "128", "136", &[Misaligned], ROWS),
    changed("first of A", "[%x]", "[%x+131072]", &[OutOfBounds], ROWS),
    only_numbers("swizzle of A", "%low", "0", "units of another row's place, all of them there"),
    deleted("registers are ready", &[Race], PRODUCTS),
    deleted("commit", &[MissingWait], &["first of A", "rows of A", "first result", "copy of A", "copy of B"]),
    deleted("product is there", &[MissingWait], &["first of A", "rows of A", "first result", "copy of A", "copy of B"]),
    changed("product is there", "aligned 0", "aligned 1", &[MissingWait], &["first of A", "rows of A", "first result", "copy of A", "copy of B"]),
    deleted("rows of A are read", &[Race], &["copy of A"]),
    deleted("last stage", &[Deadlock], EMPTY),
    deleted("stage is free", &[Race, MissingWait, Trap], &["copy of A", "copy of B", "expect"]),
];

/// B for both blocks of a cluster.
#[rustfmt::skip]
const CLUSTER: &[Mutant] = &[
    deleted("mbarriers are shown", &[Race], COPIES),
    deleted("mbarriers are there", &[Race, Uninitialised, Divergence], &["ask for a full stage", "ask for a free stage", "expect", "copy of B"]),
    changed("mbarriers are there", "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;", "bar.sync 0;", &[Race, Uninitialised], &["copy of B", "stage before there", "last stage there"]),
    changed("empty", ", 8;", ", 4;", &[Trap, Race, MissingWait, Deadlock], &["copy of A", "copy of B", "expect", "ask for a free stage", "stage before", "stage before there", "last stage", "last stage there"]),
    changed("expect", "16384", "12288", &[MissingWait, Uninitialised, Deadlock, Race, Trap], &["first product", "product", "last product"]),
    changed("expect", "16384", "20480", &[Deadlock], FULL),
    changed("both blocks", "3", "1", &[Deadlock, MissingWait, Race], &["ask for a full stage", "copy of A", "copy of B"]),
    changed("both blocks", "3", "7", &[Trap], &["copy of B"]),
    deleted("half of B", &[MissingWait, Race], &["copy of B"]),
    changed("the other block", "1;", "0;", &[Trap, Deadlock, Race, MissingWait, Uninitialised], &["ask for a free stage", "stage before", "stage before there", "last stage", "last stage there", "copy of A", "copy of B", "first product", "product", "last product", "expect"]),
    changed("stage before of the other", "%peer", "%rank", &[Trap, Deadlock, Race, MissingWait, Uninitialised], &["ask for a free stage", "stage before", "stage before there", "last stage", "last stage there", "copy of A", "copy of B", "first product", "product", "last product", "expect"]),
    changed("last stage of the other", "%peer", "2", &[Trap], &["last stage of the other"]),
    changed("stage before there", "shared::cluster", "shared::cta", &[OutOfBounds], &["stage before there"]),
    deleted("last stage there", &[Deadlock], EMPTY),
    changed("stage before there", "release", "relaxed", &[MissingWait, Race], &["copy of B"]),
    deleted("stage is free", &[Race, MissingWait, Trap], &["copy of A", "copy of B", "expect"]),
    deleted("nobody goes early", &[Race, OutOfBounds, MissingWait, Deadlock, Uninitialised], &["copy of B", "last stage there", "stage before there", "last stage of the other"]),
    only_numbers("tile to bring", "%rank;", "0;", "both blocks compute the same tile"),
];

/// B by columns.
#[rustfmt::skip]
const COLUMNS: &[Mutant] = &[
    changed("columns of B", "128", "512", &[MissingWait, Uninitialised, Race, OutOfBounds], PRODUCTS),
    only_numbers("first product", "1, 1, 1;", "1, 1, 0;", "the tile is read as its transpose"),
    deleted("stage is there", &[Uninitialised, MissingWait, Race], ROWS),
    deleted("registers are ready", &[Race], PRODUCTS),
    deleted("rows of A are read", &[Race], &["copy of A"]),
    deleted("C is shown", &[Race], &["store"]),
];

/// Three tiles below each other and two beside, so that a block walks over several, and its ring goes round.
const SIZES: Sizes = Sizes {
    m: 130,
    n: 72,
    k: 200,
};

pub(super) fn planted() -> Vec<Planted> {
    let lists = [SHARED, REGISTERS, CLUSTER, COLUMNS];
    (VARIANTS.into_iter().zip(lists))
        .map(|(gemm, mutants)| Planted {
            name: gemm.name,
            text: gemm.text(),
            arch: 90,
            mutants,
            run: Box::new(move |text, device, schedule| {
                let options = Options {
                    threads: 1,
                    schedule,
                    max_instructions: 1 << 20,
                    ..Options::default()
                };
                gemm.run(text, SIZES, 1, device, options)
            }),
        })
        .collect()
}
