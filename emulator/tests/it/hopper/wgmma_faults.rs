//! What wgmma must not be given: missing fences, commits and waits, tiles beyond shared memory, forms that do not exist.

use cuda_emulator::{FaultKind, Schedule};

use super::wgmma::{Form, Kind};
use crate::emulator::Bench;

#[test]
fn each_missing_step_is_found() {
    use FaultKind::{Divergence, MissingWait, Race};
    let form = Form::new(Kind::F16, "f32", 16);
    let right = form.right();
    let without = |part: &str| {
        assert!(right.contains(part));
        right.replace(part, "")
    };
    form.fails(
        &without("fence.proxy.async.shared::cta;\n"),
        Race,
        "no fence.proxy.async in between",
        "wgmma.mma_async",
    );
    form.fails(
        &without("bar.sync 0;\n"),
        Race,
        "multiplies",
        "wgmma.mma_async",
    );
    form.fails(
        &without("wgmma.fence.sync.aligned;\n"),
        Race,
        "there is none",
        "wgmma.mma_async",
    );
    form.fails(
        &without("wgmma.wait_group.sync.aligned 0;\n"),
        MissingWait,
        "of a wgmma.mma_async that was not waited for",
        "st.global.b32",
    );
    form.fails(
        &without("wgmma.commit_group.sync.aligned;\n"),
        MissingWait,
        "that was not waited for",
        "st.global.b32",
    );
    let late = right.replace("aligned 0;", "aligned 1;");
    form.fails(
        &late,
        MissingWait,
        "that was not waited for",
        "st.global.b32",
    );
    let written = right.replace("wgmma.mma", "mov.b32 %d3, %v;\nwgmma.mma");
    form.fails(
        &written,
        Race,
        "accessed since the last wgmma.fence: PTX line",
        "wgmma.mma_async",
    );
    let read = right.replace("wgmma.wait", "add.u32 %v, %d2, 1;\nwgmma.wait");
    form.fails(&read, MissingWait, "that was not waited for", "add.u32");
    // the tile is written while it is multiplied
    let over = right.replace("wgmma.wait", "st.shared.u32 [32768], %v;\nwgmma.wait");
    form.fails(
        &over,
        MissingWait,
        "that a wgmma is still reading",
        "st.shared.u32",
    );
    // after the wait of its own warp a thread may write: no warp of the group still reads
    let after = right.clone() + "setp.eq.u32 %q, %t, 127;\n@%q st.shared.u32 [32768], %v;\n";
    assert!(
        form.run(&after, Schedule::LowestPc).is_ok(),
        "the thread has waited itself"
    );
    // three warps of four
    let some = right.replace("wgmma.", "@!%last wgmma.");
    form.fails(
        &some,
        FaultKind::Deadlock,
        "they wait for what none of them will do",
        "@!%last wgmma.wait_group",
    );
    let other = right.replace(
        "wgmma.commit",
        &format!(
            "@%last bra other;\n{i}bra join;\nother:\n{i}join:\nwgmma.commit",
            i = form.instruction()
        ),
    );
    form.fails(
        &other,
        Divergence,
        "execute different instructions",
        "wgmma.mma_async",
    );
}

#[test]
fn registers_of_a_are_guarded_too() {
    let form = Form {
        a_layout: None,
        ..Form::new(Kind::F16, "f32", 16)
    };
    let right = form.right();
    let written = right.replace("wgmma.wait", "mov.b32 %a1, %v;\nwgmma.wait");
    form.fails(
        &written,
        FaultKind::MissingWait,
        "that was not waited for",
        "mov.b32 %a1",
    );
    let unfenced = right.replace("wgmma.mma", "mov.b32 %a1, %v;\nwgmma.mma");
    form.fails(
        &unfenced,
        FaultKind::Race,
        "since the last wgmma.fence",
        "wgmma.mma_async",
    );
}

#[test]
fn a_tile_beyond_shared_memory_is_refused() {
    let form = Form::new(Kind::F16, "f32", 16);
    let beyond = form.right().replace(
        "wgmma.fence",
        "mov.b64 %db, 0x4000004000012000;\nwgmma.fence",
    );
    // 0x2000 << 4 is 128 KiB
    form.fails(
        &beyond,
        FaultKind::OutOfBounds,
        "shared memory at offset 0x20000",
        "wgmma.mma_async",
    );
}

#[test]
fn forms_that_do_not_exist_are_refused_at_load() {
    let good = Form::new(Kind::F16, "f32", 16);
    for (from, to) in [
        ("m64n16k16", "m64n12k16"),
        ("m64n16k16", "m64n264k16"),
        ("m64n16k16", "m64n16k8"),
        (".f32.f16.f16", ".f32.f16.bf16"),
        (".f32.f16.f16", ".f16.bf16.bf16"),
        ("%p, 1, 1", "%p, 2, 1"),
        ("mma_async", "mma_async.sp"),
    ] {
        let text = good.kernel(&good.right().replace(from, to));
        assert!(Bench::load(&text).is_err(), "{to}");
    }
}
