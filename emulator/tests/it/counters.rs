//! Counters are exact: what a tiny kernel does can be counted by hand.

use super::emulator::{Bench, Call, kernel};
use cuda_emulator::{Class, GlobalTraffic, MatrixKind, Options, Report, SharedTraffic};

/// What [`kernel`] puts around a body, a warp: two parameters and a coordinate moved, an address computed, a return.
const AROUND: [(Class, u64); 3] = [(Class::Move, 3), (Class::Integer, 3), (Class::Control, 1)];

fn run(body: &str, call: &Call) -> Report {
    let bench = Bench::load(&kernel(body)).unwrap();
    let (out, input) = (bench.buffer(&[0; 1 << 16]), bench.buffer(&[0; 1 << 16]));
    let params = Call::new(&[out, input]).params;
    bench
        .run(&Call {
            params,
            ..call.clone()
        })
        .unwrap_or_else(|fault| panic!("{fault}"))
}

/// Runs a body in one warp.
fn one_warp(body: &str) -> Report {
    run(body, &Call::new(&[]))
}

#[test]
fn instructions_are_counted_by_class_and_warp() {
    let body = "add.f32 %f0, 0f3F800000, 0f3F800000;\nfma.rn.f32 %f1, %f0, %f0, %f0;\nex2.approx.f32 %f2, %f0;\n\
                setp.lt.f32 %p0, %f0, %f1;\nadd.u32 %r0, %t, 1;\nshl.b32 %r1, %r0, 2;\ncvt.rn.f32.u32 %f3, %r0;\n\
                mov.u32 %r2, 5;\nld.global.u32 %r3, [%in];\nst.relaxed.gpu.global.u32 [%out], %r3;\n\
                shfl.sync.bfly.b32 %r4, %t, 1, 0x1f, -1;\nvote.sync.any.pred %p0, %p0, -1;\nbar.sync 0;\nadd.rn.f64 %rd0, 0d0000000000000000, 0d0000000000000000;\n\
                mul.f16x2 %r5, %r0, %r0;\nred.global.add.u32 [%in+8192], 1;";
    let call = Call {
        grid: [3, 1, 1],
        block: [64, 1, 1],
        ..Call::new(&[])
    };
    let report = run(body, &call);
    let warps = 3 * 2;
    let mut expected = [0; Class::ALL.len()];
    let inside = [
        (Class::Fp32, 3),
        (Class::Mufu, 1),
        (Class::Integer, 2),
        (Class::Convert, 1),
        (Class::Move, 1),
        (Class::Global, 2),
        (Class::Shuffle, 1),
        (Class::Vote, 1),
        (Class::Barrier, 1),
        (Class::Fp64, 1),
        (Class::Half, 1),
        (Class::Atomic, 1),
    ];
    for (class, count) in inside.into_iter().chain(AROUND) {
        expected[class as usize] += count * warps;
    }
    for class in Class::ALL {
        assert_eq!(
            report.count(class),
            expected[class as usize],
            "{}",
            class.name()
        );
    }
    assert_eq!(report.total(), expected.iter().sum::<u64>());
    assert_eq!(report.barriers, warps);
    assert_eq!(
        report.atomics,
        32 * warps,
        "an atomic counts a lane at a time"
    );
    assert_eq!(
        (report.grid, report.block, &*report.device),
        ([3, 1, 1], [64, 1, 1], "sm_80")
    );
}

#[test]
fn an_instruction_that_no_lane_executes_is_still_issued() {
    let report = one_warp(
        "setp.gt.u32 %p0, %t, 99;\n@%p0 add.u32 %r0, %t, 1;\n@%p0 ld.global.u32 %r1, [%in];",
    );
    assert_eq!(report.count(Class::Integer), 3 + 2);
    assert_eq!(report.count(Class::Global), 1);
    assert_eq!(
        report.global_loads,
        GlobalTraffic::default(),
        "but it moves nothing"
    );
}

#[test]
fn sectors_and_distinct_bytes_of_global_memory() {
    // slots of 8 bytes: 32 words of 4 bytes over 256 bytes
    let report = one_warp(
        "ld.global.u32 %r0, [%in];\nld.global.u32 %r1, [%in];\nst.global.u64 [%out], %rd0;",
    );
    assert_eq!(
        report.global_loads,
        GlobalTraffic {
            requests: 2,
            sectors: 16,
            bytes: 256,
            unique_bytes: 128
        }
    );
    assert_eq!(
        report.global_stores,
        GlobalTraffic {
            requests: 1,
            sectors: 8,
            bytes: 256,
            unique_bytes: 256
        }
    );
    // 32 lanes in sectors of their own, then all in one word
    let report = one_warp(
        "mul.wide.u32 %rd0, %t, 248;\nadd.s64 %rd0, %in, %rd0;\nld.global.u8 %r0, [%rd0];",
    );
    assert_eq!(
        report.global_loads,
        GlobalTraffic {
            requests: 1,
            sectors: 32,
            bytes: 32,
            unique_bytes: 32
        }
    );
    let report =
        one_warp("sub.s64 %rd0, %in, %at;\nld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%rd0];");
    assert_eq!(
        report.global_loads,
        GlobalTraffic {
            requests: 1,
            sectors: 1,
            bytes: 512,
            unique_bytes: 16
        }
    );
    // a grid reads one place: the bytes add up, the distinct ones do not
    let call = Call {
        grid: [5, 1, 1],
        ..Call::new(&[])
    };
    let report = run("ld.global.u64 %rd0, [%in];", &call);
    assert_eq!(
        report.global_loads,
        GlobalTraffic {
            requests: 5,
            sectors: 40,
            bytes: 1280,
            unique_bytes: 256
        }
    );
    // the marks of one launch are gone in the next
    let bench = Bench::load(&kernel("ld.global.u32 %r0, [%in];")).unwrap();
    let call = Call::new(&[bench.buffer(&[0; 256]), bench.buffer(&[0; 256])]);
    for _ in 0..2 {
        assert_eq!(bench.run(&call).unwrap().global_loads.unique_bytes, 128);
    }
}

#[test]
fn wavefronts_of_shared_memory() {
    let traffic = |body: &str| {
        let report = one_warp(&format!(
            ".shared .align 16 .b8 words[8192];\nmov.u32 %r8, words;\n{body}"
        ));
        (
            report.shared_loads,
            report.shared_stores,
            report.bank_conflicts(),
        )
    };
    let once = |wavefronts, ideal_wavefronts| SharedTraffic {
        requests: 1,
        wavefronts,
        ideal_wavefronts,
    };
    let stored = |stride: u32| {
        traffic(&format!(
            "mad.lo.u32 %r0, %t, {stride}, %r8;\nst.shared.u32 [%r0], %t;"
        ))
    };
    assert_eq!(stored(4), (SharedTraffic::default(), once(1, 1), 0));
    assert_eq!(
        stored(8),
        (SharedTraffic::default(), once(2, 1), 1),
        "two lanes a bank"
    );
    assert_eq!(
        stored(128),
        (SharedTraffic::default(), once(32, 1), 31),
        "one bank for all"
    );
    assert_eq!(
        stored(132),
        (SharedTraffic::default(), once(1, 1), 0),
        "a padded row"
    );
    let broadcast = traffic(
        "setp.eq.u32 %p0, %t, 0;\n@%p0 st.shared.u32 [%r8], 1;\nbar.warp.sync -1;\nld.shared.u32 %r0, [%r8];",
    );
    assert_eq!(
        broadcast,
        (once(1, 1), once(1, 1), 0),
        "all lanes read one word at once"
    );
    let wide = traffic("mad.lo.u32 %r0, %t, 16, %r8;\nst.shared.v4.u32 [%r0], {%t, %t, %t, %t};");
    assert_eq!(wide.1, once(4, 4), "512 bytes take four passes");
    // rows of ldmatrix 128 bytes apart share their banks; 144 bytes apart they do not
    for (pitch, wavefronts) in [(128, 8), (144, 1)] {
        let body = format!(
            "mov.u32 %r1, 0;\nloop:\nmad.lo.u32 %r0, %t, 4, %r8;\nmad.lo.u32 %r0, %r1, 128, %r0;\nst.shared.u32 [%r0], %t;\n\
             add.u32 %r1, %r1, 1;\nsetp.lt.u32 %p0, %r1, 64;\n@%p0 bra loop;\nbar.warp.sync -1;\n\
             and.b32 %r2, %t, 7;\nmad.lo.u32 %r0, %r2, {pitch}, %r8;\n\
             ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r3}}, [%r0];"
        );
        let (loads, stores, conflicts) = traffic(&body);
        assert_eq!(
            (loads, conflicts),
            (once(wavefronts, 1), wavefronts - 1),
            "pitch {pitch}"
        );
        assert_eq!(
            stores,
            SharedTraffic {
                requests: 64,
                wavefronts: 64,
                ideal_wavefronts: 64
            }
        );
    }
    let copied = traffic(
        "mad.lo.u32 %r0, %t, 8, %r8;\ncp.async.ca.shared.global [%r0], [%in], 8;\ncp.async.wait_all;",
    );
    assert_eq!(copied.1, once(2, 2), "the shared side of cp.async");
}

#[test]
fn branches_that_split_a_warp() {
    let count = |body: &str| one_warp(body).divergent_branches;
    assert_eq!(count("bra done;\ndone:"), 0);
    assert_eq!(
        count("setp.lt.u32 %p0, %t, 99;\n@%p0 bra done;\nadd.u32 %r0, %t, 1;\ndone:"),
        0,
        "all lanes take it"
    );
    assert_eq!(
        count("setp.lt.u32 %p0, %t, 5;\n@%p0 bra done;\nadd.u32 %r0, %t, 1;\ndone:"),
        1
    );
    let turns =
        "mov.u32 %r0, 0;\nloop:\nadd.u32 %r0, %r0, 1;\nsetp.lt.u32 %p0, %r0, %t;\n@%p0 bra loop;";
    // lanes 0 and 1 leave first, then one a turn; the last leaves alone
    assert_eq!(count(turns), 30);
}

#[test]
fn multiply_adds_of_tensor_cores() {
    let mma = "mov.u32 %r0, 0;\n\
               mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r0, %r0, %r0}, {%r0, %r0}, {%f0, %f1, %f2, %f3};\n\
               mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r0}, {%r0}, {%f0, %f1, %f2, %f3};";
    let report = run(
        mma,
        &Call {
            grid: [2, 1, 1],
            ..Call::new(&[])
        },
    );
    assert_eq!(report.mma_multiply_adds, 2 * 16 * 8 * (16 + 8));
    assert_eq!(
        report.multiply_adds(MatrixKind::Half),
        report.mma_multiply_adds
    );
    assert_eq!(report.count(Class::Mma), 4);
    let others = "mov.u32 %r0, 0;\n\
        mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%f0, %f1, %f2, %f3}, {%r0, %r0}, {%r0}, {%f0, %f1, %f2, %f3};\n\
        mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r1, %r2}, {%r0}, {%r0}, {%r0, %r0};\n\
        mma.sync.aligned.m8n8k32.row.col.s32.u4.s4.s32 {%r1, %r2}, {%r0}, {%r0}, {%r0, %r0};";
    let report = one_warp(others);
    for (kind, expected) in [
        (MatrixKind::Tf32, 16 * 8 * 4),
        (MatrixKind::Int8, 8 * 8 * 16),
        (MatrixKind::Int4, 8 * 8 * 32),
    ] {
        assert_eq!(report.multiply_adds(kind), expected, "{}", kind.name());
    }
    assert_eq!(report.mma_multiply_adds, report.mma.iter().sum::<u64>());
}

#[test]
fn counters_do_not_depend_on_the_host_threads() {
    let body = "rem.u32 %r0, %t, 7;\nloop:\nsetp.eq.u32 %p0, %r0, 0;\n@%p0 bra done;\nsub.u32 %r0, %r0, 1;\nbra loop;\ndone:\n\
                bar.sync 0;\nld.global.u32 %r1, [%in];\nred.global.add.u32 [%in+16384], 1;\nst.relaxed.gpu.global.u32 [%out], %r1;";
    let with = |threads: usize| {
        let options = Options {
            threads,
            ..Options::default()
        };
        run(
            body,
            &Call {
                grid: [64, 1, 1],
                block: [96, 1, 1],
                options,
                ..Call::new(&[])
            },
        )
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
    assert_eq!(one.atomics, 64 * 96);
    assert!(one.divergent_branches > 0);
}

#[test]
fn a_report_reads_as_text() {
    let text = one_warp("ld.global.u32 %r0, [%in];\nadd.f32 %f0, %f0, %f0;").to_string();
    for part in [
        "case on the emulator as sm_80",
        "warp instructions 9:",
        "FP32 1 (11.1 %)",
        "8 sectors (256 bytes)",
        "128 distinct",
    ] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}
