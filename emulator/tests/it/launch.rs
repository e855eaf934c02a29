//! Launches: parameters, limits of the device, blocks that wait for each other, and modules.

use super::emulator::{Bench, Call, kernel};
use cuda_emulator::{Device, FaultKind, Options, Program, Schedule};

/// A call with two buffers of 4 KiB.
fn call(bench: &Bench) -> Call {
    Call::new(&[bench.buffer(&[0; 4096]), bench.buffer(&[0; 4096])])
}

#[test]
fn launches_beyond_the_device_are_refused() {
    let bench = Bench::load(&kernel("mov.u32 %r0, 0;")).unwrap();
    let fine = call(&bench);
    for block in [[1024, 1, 1], [1, 1, 64], [2, 512, 1], [1, 1024, 1]] {
        bench
            .run(&Call {
                block,
                ..fine.clone()
            })
            .unwrap();
    }
    let cases: [(Call, &str); 9] = [
        (
            Call {
                block: [1025, 1, 1],
                ..fine.clone()
            },
            "the device allows 1024 in all",
        ),
        (
            Call {
                block: [32, 33, 1],
                ..fine.clone()
            },
            "the device allows 1024 in all",
        ),
        (
            Call {
                block: [1, 1, 65],
                ..fine.clone()
            },
            "[1024, 1024, 64]",
        ),
        (
            Call {
                block: [0, 1, 1],
                ..fine.clone()
            },
            "an empty launch",
        ),
        (
            Call {
                grid: [1, 0, 1],
                ..fine.clone()
            },
            "an empty launch",
        ),
        (
            Call {
                grid: [1, 65_536, 1],
                ..fine.clone()
            },
            "a grid of [1, 65536, 1] blocks",
        ),
        (
            Call {
                grid: [1, 1, 65_536],
                ..fine.clone()
            },
            "a grid of [1, 1, 65536] blocks",
        ),
        (
            Call {
                params: vec![0; 15],
                ..fine.clone()
            },
            "15 bytes of parameters; the kernel takes 16",
        ),
        (
            Call {
                dynamic: 1025,
                dynamic_limit: 1024,
                ..fine.clone()
            },
            "MAX_DYNAMIC_SHARED_SIZE_BYTES allows 1024",
        ),
    ];
    for (call, part) in cases {
        let fault = bench.run(&call).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Configuration, "{fault}");
        assert!(
            fault.to_string().contains(part),
            "`{part}` is not in: {fault}"
        );
        assert!(
            fault.thread.is_none() && fault.site.is_none(),
            "no thread did this: {fault}"
        );
    }
}

#[test]
fn shared_memory_is_what_the_device_has() {
    let bench = Bench::load(&kernel(
        ".shared .align 16 .b8 words[1024];\nst.shared.u8 [words], %t;",
    ))
    .unwrap();
    let ask = |device: Device, dynamic: u32| Call {
        device,
        dynamic,
        block: [1, 1, 1],
        ..call(&bench)
    };
    // 163 KiB on sm_80, 227 KiB on sm_90, 1 KiB of them static
    bench.run(&ask(Device::sm_80(), 162 << 10)).unwrap();
    bench.run(&ask(Device::sm_90(), 226 << 10)).unwrap();
    for (device, dynamic) in [
        (Device::sm_80(), (162 << 10) + 1),
        (Device::sm_90(), (226 << 10) + 1),
        (Device::sm_80(), 200 << 10),
    ] {
        let fault = bench.run(&ask(device, dynamic)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Configuration);
        assert!(fault.message.contains("bytes of"), "{fault}");
    }
    let report = bench.run(&ask(Device::sm_80(), 100)).unwrap();
    assert_eq!(report.shared_bytes, 1024 + 100);
}

#[test]
fn a_kernel_names_its_largest_block() {
    let text = kernel("mov.u32 %r0, 0;").replace("\n{\n", "\n.maxntid 64, 1, 1\n{\n");
    let bench = Bench::load(&text).unwrap();
    bench
        .run(&Call {
            block: [64, 1, 1],
            ..call(&bench)
        })
        .unwrap();
    let fault = bench
        .run(&Call {
            block: [65, 1, 1],
            ..call(&bench)
        })
        .unwrap_err();
    assert!(
        fault.message.contains("compiled for at most 64 (.maxntid)"),
        "{fault}"
    );
}

#[test]
fn parameters_beyond_the_device_are_refused() {
    let with = |bytes: u32| {
        let entry = format!("(.param .u64 out, .param .u64 in, .param .align 4 .b8 rest[{bytes}])");
        let bench = Bench::load(
            &kernel("mov.u32 %r0, 0;").replace("(.param .u64 out, .param .u64 in)", &entry),
        )
        .unwrap();
        let params = vec![0; 16 + bytes as usize];
        bench.run(&Call {
            params,
            ..Call::new(&[])
        })
    };
    with(32_764 - 16).unwrap();
    let fault = with(32_764 - 15).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Configuration);
    assert!(
        fault
            .message
            .contains("32765 bytes of parameters; the device allows 32764"),
        "{fault}"
    );
}

#[test]
fn an_unknown_kernel_is_named() {
    let text = kernel("mov.u32 %r0, 0;").replace("entry case(", "entry other(");
    let bench = Bench::load(&text).unwrap();
    let fault = bench.run(&call(&bench)).unwrap_err();
    assert!(fault.message.contains("no kernel `case`"), "{fault}");
    let names: Vec<_> = bench
        .module
        .program()
        .kernels()
        .map(|kernel| kernel.name.clone())
        .collect();
    assert_eq!(names, ["other"]);
}

/// A structure as nvcc passes it: read by member, by byte, by vector, and through a generic address.
#[test]
fn where_a_pointer_leads_does_not_place_its_parameter() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n\
                .entry case(.param .f32 scale, .param .u64 .ptr .global .align 1 out, .param .u16 count,\n\
                .param .align 32 .u64 .ptr .shared .align 2 tile) { ret; }";
    let program = Program::parse(text).unwrap();
    let params = &program.kernel("case").unwrap().params;
    let found: Vec<_> = params.iter().map(|p| (p.offset, p.align)).collect();
    assert_eq!(found, [(0, 4), (8, 8), (16, 2), (32, 32)]);
}

#[test]
fn members_of_a_parameter_structure() {
    let entry = "(.param .u64 out, .param .u64 in, .param .u8 small, .param .align 16 .b8 s[32], .param .f32 last)";
    let body = "ld.param.u8 %r0, [small];\nst.global.u32 [%out], %r0;\n\
                ld.param.u32 %r0, [s];\nst.global.u32 [%out+4], %r0;\n\
                ld.param.s8 %r0, [s+7];\nst.global.u32 [%out+8], %r0;\n\
                ld.param.u16 %r0, [s+8];\nst.global.u32 [%out+12], %r0;\n\
                ld.param.v4.u32 {%r0, %r1, %r2, %r3}, [s+16];\nst.global.v4.u32 [%out+16], {%r0, %r1, %r2, %r3};\n\
                mov.b64 %rd0, s;\ncvta.param.u64 %rd0, %rd0;\nld.u64 %rd1, [%rd0+24];\nst.global.u64 [%out+32], %rd1;\n\
                ld.param.u64 %rd1, [s+16];\nst.global.u64 [%out+40], %rd1;\n\
                ld.param.f32 %f0, [last];\nst.global.f32 [%out+48], %f0;\n\
                mov.b64 %rd0, s;\nld.param.u32 %r0, [%rd0+12];\nst.global.u32 [%out+52], %r0;";
    let text = kernel(body).replace("(.param .u64 out, .param .u64 in)", entry);
    let bench = Bench::load(&text).unwrap();
    let case = bench.module.program().kernel("case").unwrap();
    let layout: Vec<_> = case
        .params
        .iter()
        .map(|param| (param.offset, param.size))
        .collect();
    assert_eq!(layout, [(0, 8), (8, 8), (16, 1), (32, 32), (64, 4)]);
    let out = bench.memory.alloc(64).unwrap();
    let mut params = Call::new(&[out, out]).params;
    params.resize(68, 0);
    params[16] = 200;
    for at in 0..32 {
        params[32 + at] = 0xe0 + at as u8;
    }
    params[64..].copy_from_slice(&1.5f32.to_le_bytes());
    bench
        .run(&Call {
            params,
            block: [1, 1, 1],
            ..Call::new(&[])
        })
        .unwrap_or_else(|fault| panic!("{fault}"));
    let bytes = bench.read(out, 56);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), 200);
    assert_eq!(word(4), 0xe3e2_e1e0);
    assert_eq!(word(8), 0xffff_ffe7);
    assert_eq!(word(12), 0xe9e8);
    assert_eq!(
        [word(16), word(20), word(24), word(28)],
        [0xf3f2_f1f0, 0xf7f6_f5f4, 0xfbfa_f9f8, 0xfffe_fdfc]
    );
    assert_eq!([word(32), word(36)], [0xfbfa_f9f8, 0xfffe_fdfc]);
    assert_eq!([word(40), word(44)], [0xf3f2_f1f0, 0xf7f6_f5f4]);
    assert_eq!(word(48), 1.5f32.to_bits());
    assert_eq!(word(52), 0xefee_edec);
}

/// Blocks of a cooperative launch wait for each other at a counter in global memory.
#[test]
fn blocks_of_a_cooperative_launch_meet() {
    let body = "setp.ne.u32 %p0, %t, 0;\nmov.u32 %r0, %nctaid.x;\nmov.u32 %r3, %ctaid.x;\nbar.sync 0;\n@%p0 bra met;\n\
                mul.wide.u32 %rd0, %r3, 4;\nadd.s64 %rd0, %rd0, %out;\nst.global.u32 [%rd0], %r3;\n\
                membar.gl;\nred.release.gpu.global.add.u32 [%in], 1;\n\
                wait:\nld.acquire.gpu.global.u32 %r1, [%in];\nsetp.lt.u32 %p1, %r1, %r0;\n@%p1 bra wait;\n\
                add.u32 %r3, %r3, 1;\nrem.u32 %r3, %r3, %r0;\nmul.wide.u32 %rd0, %r3, 4;\nadd.s64 %rd0, %rd0, %out;\n\
                ld.global.u32 %r4, [%rd0];\nadd.s64 %rd0, %rd0, 1024;\nst.global.u32 [%rd0], %r4;\nmet:\nbar.sync 0;";
    for threads in [1, 2, 4] {
        let bench = Bench::load(&kernel(body)).unwrap();
        let (out, counter) = (bench.memory.alloc(2048).unwrap(), bench.buffer(&[0; 8]));
        let options = Options {
            threads,
            max_instructions: 1 << 26,
            ..Options::default()
        };
        let asked = Call {
            grid: [9, 1, 1],
            block: [64, 1, 1],
            options,
            cooperative: true,
            ..Call::new(&[out, counter])
        };
        bench
            .run(&asked)
            .unwrap_or_else(|fault| panic!("{threads} threads: {fault}"));
        let bytes = bench.read(out + 1024, 36);
        let seen: Vec<u32> = bytes
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8], "{threads} threads");
    }
}

#[test]
fn variables_of_a_module_can_be_found_and_go_with_it() {
    let text = kernel("ld.global.u32 %r0, [table];\nst.global.u32 [%out], %r0;").replace(
        ".visible",
        ".visible .global .align 4 .u32 table[3] = {7, 8};\n.visible",
    );
    let bench = Bench::load(&text).unwrap();
    let (address, size) = bench.module.global("table").unwrap();
    assert_eq!(
        (size, bench.read(address, 12)),
        (12, vec![7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0])
    );
    assert!(bench.module.global("chair").is_none());
    bench.memory.write(address, &9u32.to_le_bytes()).unwrap();
    let call = call(&bench);
    let out = u64::from_le_bytes(call.params[..8].try_into().unwrap());
    bench.run(&call).unwrap();
    assert_eq!(bench.read(out, 4), 9u32.to_le_bytes());
    let used = bench.memory.used();
    bench.module.unload(&bench.memory);
    assert_eq!(bench.memory.used(), used - 12);
}

#[test]
fn the_fault_of_the_first_block_is_told() {
    let bench = Bench::load(&kernel("ld.global.u32 %r0, [%in+4096];")).unwrap();
    let fault = bench
        .run(&Call {
            grid: [8, 1, 1],
            ..call(&bench)
        })
        .unwrap_err();
    assert_eq!(fault.thread, Some(([0; 3], [0; 3])));
    assert_eq!(fault.kind.code(), 700);
}

#[test]
fn a_schedule_is_repeated_by_its_seed() {
    let body = "mov.u32 %r0, 0;\nloop:\nadd.u32 %r0, %r0, 1;\nrem.u32 %r1, %r0, 3;\nsetp.eq.u32 %p0, %r1, 0;\n@%p0 bra next;\n\
                atom.global.add.u32 %r2, [%in], 1;\nnext:\nsetp.lt.u32 %p0, %r0, %t;\n@%p0 bra loop;\nst.global.u32 [%out], %r2;";
    let run = |schedule: Schedule| {
        let bench = Bench::load(&kernel(body)).unwrap();
        let call = call(&bench);
        let out = u64::from_le_bytes(call.params[..8].try_into().unwrap());
        let options = Options {
            schedule,
            threads: 1,
            ..Options::default()
        };
        let report = bench
            .run(&Call { options, ..call })
            .unwrap_or_else(|fault| panic!("{fault}"));
        (report, bench.read(out, 256))
    };
    for seed in 0..4 {
        let first = run(Schedule::Adversarial(seed));
        assert_eq!(first, run(Schedule::Adversarial(seed)), "seed {seed}");
        assert_eq!(
            first.1,
            run(Schedule::LowestPc).1,
            "the order changes no result of a kernel without races"
        );
    }
    assert!(
        run(Schedule::Adversarial(0)).0.total() > run(Schedule::LowestPc).0.total(),
        "lanes run apart"
    );
}

#[test]
fn schedules_are_named() {
    assert_eq!("lowest".parse(), Ok(Schedule::LowestPc));
    assert_eq!("adversarial:12".parse(), Ok(Schedule::Adversarial(12)));
    for (text, part) in [
        ("adversarial:x", "`x` is not a number"),
        ("random", "unknown schedule `random`"),
        ("adversarial", "unknown"),
    ] {
        let error = text.parse::<Schedule>().unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
