//! Functions and whole grids through the driver; and the example of the README.

use cuda_emulator::take_thread_faults;
use cudarc::driver::sys::{CUlimit_enum as Limit, CUresult};
use cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

use crate::{assert_error, context};

fn config(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: 0,
    }
}

#[test]
fn the_fault_of_the_readme_is_what_a_run_says() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = context
        .load_module(Ptx::from_src(include_str!("sum.ptx")))
        .unwrap();
    let sum = module.load_function("sum").unwrap();
    let input = stream.clone_htod(&[1f32; 64]).unwrap();
    let mut out = stream.alloc_zeros::<f32>(1).unwrap();
    take_thread_faults();
    let mut launch = stream.launch_builder(&sum);
    launch.arg(&input).arg(&mut out);
    // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
    let result = unsafe { launch.launch(config(1, 64)) }.map(drop);
    assert_error(result, CUresult::CUDA_ERROR_LAUNCH_FAILED, "race");
    let fault = &take_thread_faults()[0];
    let readme = include_str!("../../README.md");
    assert!(readme.contains(fault), "the README does not show\n{fault}");
}

/// A function that calls itself as often as it is told, and counts.
const DEEP: &str = ".version 8.0\n.target sm_80\n.address_size 64\n\
    .func (.param .b32 r) down(.param .b32 n)\n{\n.reg .b32 %n, %r;\n.reg .pred %p;\n\
    ld.param.b32 %n, [n];\nmov.u32 %r, 0;\nsetp.eq.u32 %p, %n, 0;\n@%p bra done;\n\
    sub.u32 %n, %n, 1;\n{\n.param .b32 a;\n.param .b32 b;\nst.param.b32 [a], %n;\n\
    call.uni (b), down, (a);\nld.param.b32 %r, [b];\n}\nadd.u32 %r, %r, 1;\n\
    done:\nst.param.b32 [r], %r;\nret;\n}\n\
    .visible .entry deep(.param .u64 out, .param .u32 n)\n{\n.reg .b32 %n;\n.reg .b64 %out;\n\
    ld.param.u64 %out, [out];\nld.param.u32 %n, [n];\n\
    {\n.param .b32 a;\n.param .b32 b;\nst.param.b32 [a], %n;\ncall.uni (b), down, (a);\n\
    ld.param.b32 %n, [b];\n}\nst.global.u32 [%out], %n;\nret;\n}\n";

#[test]
fn the_limit_on_the_stack_is_the_context_s() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_src(DEEP)).unwrap();
    let deep: CudaFunction = module.load_function("deep").unwrap();
    let run = |n: u32| {
        let mut out = stream.alloc_zeros::<u32>(1)?;
        let mut launch = stream.launch_builder(&deep);
        launch.arg(&mut out).arg(&n);
        // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
        unsafe { launch.launch(config(1, 1)) }?;
        stream.clone_dtoh(&out)
    };
    let set = |bytes| {
        // SAFETY: a call without pointers.
        unsafe { sys::cuCtxSetLimit(Limit::CU_LIMIT_STACK_SIZE, bytes) }
            .result()
            .unwrap();
    };
    assert_eq!(run(50).unwrap(), [50]);
    set(1 << 16);
    assert_eq!(run(1000).unwrap(), [1000]);
    set(1024);
    assert_error(
        run(1000),
        CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
        "calls `down`",
    );
}

/// Block 0 waits for what the last block writes after both have met once.
const MEET: &str = ".version 8.0\n.target sm_80\n.address_size 64\n\
    .visible .entry meet(.param .u64 out)\n{\n.reg .b32 %e<2>, %r<6>;\n.reg .b64 %out, %count, %mine;\n\
    .reg .pred %p;\nld.param.u64 %out, [out];\nmov.u32 %e0, %envreg2;\nmov.u32 %e1, %envreg1;\n\
    mov.b64 %count, {%e0, %e1};\nmov.u32 %r0, %ctaid.x;\nmov.u32 %r1, %nctaid.x;\n\
    mul.wide.u32 %mine, %r0, 4;\nadd.s64 %mine, %out, %mine;\nst.global.u32 [%mine], %r0;\n\
    atom.add.release.gpu.u32 %r2, [%count], 1;\n\
    wait:\nld.acquire.gpu.u32 %r3, [%count];\nsetp.lt.u32 %p, %r3, %r1;\n@%p bra wait;\n\
    sub.u32 %r4, %r1, %r0;\nsub.u32 %r4, %r4, 1;\nmul.wide.u32 %mine, %r4, 4;\n\
    add.s64 %mine, %out, %mine;\nld.global.u32 %r5, [%mine];\n\
    setp.ne.u32 %p, %r5, %r4;\n@%p trap;\nret;\n}\n";

#[test]
fn the_blocks_of_a_cooperative_launch_meet() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_src(MEET)).unwrap();
    let meet = module.load_function("meet").unwrap();
    // twice: every launch has a count of its own
    for _ in 0..2 {
        let mut out = stream.alloc_zeros::<u32>(40).unwrap();
        let mut launch = stream.launch_builder(&meet);
        launch.arg(&mut out);
        // SAFETY: the kernel takes this argument; the emulator checks its accesses.
        unsafe { launch.launch_cooperative(config(40, 1)) }.unwrap();
        let expected: Vec<u32> = (0..40).collect();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), expected);
    }
}
