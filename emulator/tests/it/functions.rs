//! Functions: parameters and results in memory, recursion, calls through tables, lanes that part at calls; what kernels
//! print and assert; grids that synchronise.

use super::emulator::{Bench, Call};
use cuda_emulator::{Fault, FaultKind, Schedule};

/// A module with `functions` in front of a kernel `case(out, in)` of one word a thread.
fn module(functions: &str, body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n{functions}\n\
         .visible .entry case(.param .u64 out, .param .u64 in)\n{{\n\
         .reg .b32 %t, %r<8>;\n.reg .b64 %out, %in, %at, %rd<8>;\n.reg .pred %p<4>;\n\
         ld.param.u64 %out, [out];\nld.param.u64 %in, [in];\nmov.u32 %t, %tid.x;\n\
         mul.wide.u32 %at, %t, 4;\nadd.s64 %out, %out, %at;\n{body}\nret;\n}}\n"
    )
}

const SCHEDULES: [Schedule; 3] = [
    Schedule::LowestPc,
    Schedule::Adversarial(1),
    Schedule::Adversarial(2),
];

/// What 32 threads write, the same in every order of lanes.
fn run(text: &str) -> Vec<u32> {
    let mut last: Option<Vec<u32>> = None;
    for schedule in SCHEDULES {
        let bench = Bench::load(text).unwrap_or_else(|error| panic!("{error}"));
        let out = bench.memory.alloc(128).unwrap();
        let mut call = Call::new(&[out, 0]);
        call.options.schedule = schedule;
        bench
            .run(&call)
            .unwrap_or_else(|fault| panic!("{schedule:?}: {fault}"));
        let bytes = bench.read(out, 128);
        let words: Vec<u32> = bytes
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        if let Some(last) = &last {
            assert_eq!(last, &words, "{schedule:?}");
        }
        last = Some(words);
    }
    last.unwrap()
}

fn fault(text: &str) -> Fault {
    let bench = Bench::load(text).unwrap_or_else(|error| panic!("{error}"));
    let out = bench.memory.alloc(128).unwrap();
    bench.run(&Call::new(&[out, 0])).unwrap_err()
}

/// A call of a function with one word and one result.
fn call(name: &str, argument: &str, result: &str) -> String {
    format!(
        "{{\n.param .b32 a;\n.param .b32 r;\nst.param.b32 [a], {argument};\n\
         call (r), {name}, (a);\nld.param.b32 {result}, [r];\n}}\n"
    )
}

/// A function `name(x)` with its result in `%y`.
fn function(name: &str, body: &str) -> String {
    format!(
        ".func (.param .b32 result) {name}(.param .b32 x)\n{{\n.reg .b32 %x, %y, %r<8>;\n.reg .pred %p;\n\
         .reg .b64 %rd<4>;\nld.param.b32 %x, [x];\n{body}\nst.param.b32 [result], %y;\nret;\n}}\n"
    )
}

#[test]
fn a_function_calls_another() {
    let functions = function("twice", "add.u32 %y, %x, %x;")
        + &function(
            "quad",
            &(call("twice", "%x", "%r0") + &call("twice", "%r0", "%y")),
        );
    let body =
        call("quad", "%t", "%r1") + &call("twice", "%r1", "%r2") + "st.global.u32 [%out], %r2;";
    let out = run(&module(&functions, &body));
    assert_eq!(out, (0..32).map(|t| 8 * t).collect::<Vec<_>>());
}

/// Fibonacci numbers, with a local variable whose address goes down the recursion.
fn fibonacci() -> String {
    ".func (.param .b32 result) fib(.param .b32 x, .param .b64 count);\n\
     .func (.param .b32 result) fib(.param .b32 x, .param .b64 count)\n{\n\
     .local .align 8 .b8 depot[8];\n.reg .b32 %x, %y, %r<8>;\n.reg .pred %p;\n.reg .b64 %count, %own;\n\
     ld.param.b32 %x, [x];\nld.param.b64 %count, [count];\n\
     mov.u64 %own, depot;\ncvta.local.u64 %own, %own;\nst.u32 [%own], %x;\n\
     ld.u32 %r0, [%count];\nadd.u32 %r0, %r0, 1;\nst.u32 [%count], %r0;\n\
     setp.lt.u32 %p, %x, 2;\nmov.u32 %y, %x;\n@%p bra done;\n\
     {\n.param .b32 a;\n.param .b64 b;\n.param .b32 r;\nsub.u32 %r1, %x, 1;\nst.param.b32 [a], %r1;\n\
     st.param.b64 [b], %count;\ncall.uni (r), fib, (a, b);\nld.param.b32 %r2, [r];\n}\n\
     {\n.param .b32 a;\n.param .b64 b;\n.param .b32 r;\nld.u32 %r3, [%own];\nsub.u32 %r3, %r3, 2;\n\
     st.param.b32 [a], %r3;\nst.param.b64 [b], %count;\ncall.uni (r), fib, (a, b);\n\
     ld.param.b32 %r4, [r];\n}\nadd.u32 %y, %r2, %r4;\n\
     done:\nst.param.b32 [result], %y;\nret;\n}\n"
        .into()
}

fn count_calls(n: &str) -> String {
    format!(
        ".local .align 4 .b8 count[4];\nmov.u64 %rd0, count;\ncvta.local.u64 %rd1, %rd0;\n\
         mov.u32 %r0, 0;\nst.local.u32 [%rd0], %r0;\n{n}\n\
         {{\n.param .b32 a;\n.param .b64 b;\n.param .b32 r;\nst.param.b32 [a], %r1;\n\
         st.param.b64 [b], %rd1;\ncall.uni (r), fib, (a, b);\nld.param.b32 %r2, [r];\n}}\n\
         ld.local.u32 %r3, [%rd0];\nmad.lo.u32 %r2, %r3, 1000, %r2;\nst.global.u32 [%out], %r2;"
    )
}

#[test]
fn recursion_keeps_registers_and_locals_of_every_call() {
    let out = run(&module(&fibonacci(), &count_calls("and.b32 %r1, %t, 7;")));
    let expected = |n: u32| {
        let (mut a, mut b, mut calls, mut before) = (0, 1, 1, 1);
        for at in 0..n {
            (a, b) = (b, a + b);
            if at > 0 {
                (before, calls) = (calls, calls + before + 1);
            }
        }
        1000 * calls + a
    };
    assert_eq!(out, (0..32).map(|t| expected(t & 7)).collect::<Vec<_>>());
}

#[test]
fn recursion_without_end_is_a_stack_overflow() {
    let fault = fault(&module(&fibonacci(), &count_calls("mov.u32 %r1, 1000;")));
    assert_eq!(fault.kind, FaultKind::StackOverflow, "{fault}");
    for words in ["calls `fib`", "calls deep", "1088 bytes", "call.uni"] {
        assert!(fault.to_string().contains(words), "{fault}");
    }
}

#[test]
fn lanes_call_different_functions_through_a_table() {
    let functions = function("triple", "mul.lo.u32 %y, %x, 3;")
        + &function("square", "mul.lo.u32 %y, %x, %x;")
        + &function("next", "add.u32 %y, %x, 1;")
        + ".global .align 8 .u64 table[3] = {triple, square, next};\n";
    let body = "rem.u32 %r0, %t, 3;\nmul.wide.u32 %rd0, %r0, 8;\nmov.u64 %rd1, table;\n\
                add.s64 %rd1, %rd1, %rd0;\nld.global.u64 %rd2, [%rd1];\n\
                {\n.param .b32 a;\n.param .b32 r;\nst.param.b32 [a], %t;\n\
                kind : .callprototype (.param .b32 _) _ (.param .b32 _);\n\
                call (r), %rd2, (a), kind;\nld.param.b32 %r1, [r];\n}\n\
                // all lanes meet again\nvote.sync.ballot.b32 %r2, %p0, 0xffffffff;\n\
                st.global.u32 [%out], %r1;";
    let out = run(&module(
        &functions,
        &body
            .replace("%p0, 0x", "!%p0, 0x")
            .replace("// all", "setp.eq.u32 %p0, %t, 99;\n// all"),
    ));
    let expected = |t: u32| [3 * t, t * t, t + 1][t as usize % 3];
    assert_eq!(out, (0..32).map(expected).collect::<Vec<_>>());
}

#[test]
fn an_address_in_a_register_is_called() {
    let functions =
        function("triple", "mul.lo.u32 %y, %x, 3;") + &function("next", "add.u32 %y, %x, 1;");
    let body = "mov.u64 %rd0, triple;\nmov.u64 %rd1, next;\nsetp.lt.u32 %p0, %t, 9;\n\
                selp.b64 %rd2, %rd0, %rd1, %p0;\n"
        .to_string()
        + &call("%rd2", "%t", "%r0")
        + "st.global.u32 [%out], %r0;";
    let out = run(&module(&functions, &body));
    let expected = |t: u32| if t < 9 { 3 * t } else { t + 1 };
    assert_eq!(out, (0..32).map(expected).collect::<Vec<_>>());
}

#[test]
fn a_call_through_anything_else_is_a_fault() {
    let body = "cvt.u64.u32 %rd2, %t;\n".to_string() + &call("%rd2", "%t", "%r0");
    let fault = fault(&module("", &body));
    assert_eq!(fault.kind, FaultKind::Trap);
    assert!(fault.message.contains("no function's"), "{fault}");
}

#[test]
fn some_lanes_call_and_some_return_early() {
    let functions = function(
        "halve",
        "mov.u32 %y, 7;\nst.param.b32 [result], %y;\nsetp.lt.u32 %p, %x, 8;\n@%p ret;\nshr.u32 %y, %x, 1;",
    );
    let body = "mov.u32 %r0, 99;\nand.b32 %r1, %t, 1;\nsetp.eq.u32 %p0, %r1, 0;\n@%p0 bra after;\n"
        .to_string()
        + &call("halve", "%t", "%r0")
        + "after:\nbar.warp.sync 0xffffffff;\nst.global.u32 [%out], %r0;";
    let out = run(&module(&functions, &body));
    let expected = |t: u32| match t {
        t if t % 2 == 0 => 99,
        0..8 => 7,
        t => t / 2,
    };
    assert_eq!(out, (0..32).map(expected).collect::<Vec<_>>());
}

#[test]
fn a_result_that_was_not_set_is_uninitialised() {
    let functions = ".func (.param .b32 result) nothing(.param .b32 x)\n{\nret;\n}\n";
    let fault = fault(&module(functions, &call("nothing", "%t", "%r0")));
    assert_eq!(fault.kind, FaultKind::Uninitialised, "{fault}");
}

#[test]
fn what_cannot_be_called_is_named_at_load() {
    for (functions, body, words) in [
        ("", call("malloc", "%t", "%r0"), "`malloc` has no body"),
        (
            ".func twice(.reg .b32 x)\n{\nret;\n}\n",
            call("twice", "%t", "%r0"),
            "`x` is a parameter in a register",
        ),
        (
            ".func (.param .b64 r) wide(.param .b32 x)\n{\nret;\n}\n",
            call("wide", "%t", "%r0"),
            "parameters of other sizes",
        ),
        (
            ".func (.param .b32 r) odd(.param .b32 x)\n{\nfrob.u32 r, x;\n}\n",
            call("odd", "%t", "%r0"),
            "`frob.u32` is not emulated",
        ),
    ] {
        let error = Bench::load(&module(functions, &body)).err().expect(words);
        assert!(error.to_string().contains(words), "{error}");
    }
}

const TEXTS: &str = ".extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);\n\
    .extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);\n\
    .global .align 1 .b8 format[17] = {116, 32, 37, 100, 58, 32, 37, 46, 50, 102, 32, 37, 115, 33, 10, 0};\n\
    .global .align 1 .b8 name[4] = {111, 110, 101, 0};\n";

#[test]
fn a_kernel_prints() {
    let body = ".local .align 8 .b8 arguments[24];\nmov.u64 %rd0, arguments;\ncvta.local.u64 %rd1, %rd0;\n\
        setp.gt.u32 %p0, %t, 1;\n@%p0 bra after;\nst.local.u32 [%rd0], %t;\n\
        mov.b64 %rd2, 0d3FF8000000000000;\nst.local.u64 [%rd0+8], %rd2;\nmov.u64 %rd3, name;\n\
        cvta.global.u64 %rd3, %rd3;\nst.local.u64 [%rd0+16], %rd3;\nmov.u64 %rd4, format;\n\
        cvta.global.u64 %rd4, %rd4;\n\
        {\n.param .b64 f;\n.param .b64 a;\n.param .b32 r;\nst.param.b64 [f], %rd4;\n\
        st.param.b64 [a], %rd1;\ncall.uni (r), vprintf, (f, a);\nld.param.b32 %r0, [r];\n}\n\
        st.global.u32 [%out], %r0;\nafter:";
    let bench = Bench::load(&module(TEXTS, body)).unwrap();
    let out = bench.memory.alloc(128).unwrap();
    let report = bench.run(&Call::new(&[out, 0])).unwrap();
    assert_eq!(report.printed, "t 0: 1.50 one!\nt 1: 1.50 one!\n");
    assert_eq!(bench.read(out, 4), 3u32.to_le_bytes(), "three arguments");
}

#[test]
fn a_failed_assertion_is_a_fault_with_its_words() {
    let body = "setp.ne.u32 %p0, %t, 5;\n@%p0 bra after;\nmov.u64 %rd0, name;\ncvta.global.u64 %rd0, %rd0;\n\
        {\n.param .b64 a;\n.param .b64 b;\n.param .b32 c;\n.param .b64 d;\n.param .b64 e;\n\
        st.param.b64 [a], %rd0;\nst.param.b64 [b], %rd0;\nst.param.b32 [c], 41;\nst.param.b64 [d], %rd0;\n\
        st.param.b64 [e], 1;\ncall.uni __assertfail, (a, b, c, d, e);\n}\nafter:";
    let fault = fault(&module(TEXTS, body));
    assert_eq!(fault.kind, FaultKind::Assert);
    assert_eq!(fault.kind.code(), 710);
    assert_eq!(fault.message, "`one` does not hold: one:41, in one");
    assert_eq!(fault.thread.unwrap().1, [5, 0, 0]);
}

/// Every block writes, the grid meets, every block reads what its neighbour wrote: twice.
fn grid_kernel() -> String {
    let meet = |at: &str| {
        format!(
            "barrier.sync 0;\nsetp.ne.u32 %p0, %t, 0;\n@%p0 bra met{at};\n\
             mov.u32 %r1, %nctaid.x;\nmov.u32 %r2, -2147483647;\nsub.u32 %r2, %r2, %r1;\n\
             mov.u32 %r3, %ctaid.x;\nsetp.eq.u32 %p1, %r3, 0;\nselp.b32 %r2, %r2, 1, %p1;\n\
             atom.add.release.gpu.u32 %r4, [%rd0+4], %r2;\n\
             wait{at}:\nld.acquire.gpu.u32 %r5, [%rd0+4];\nxor.b32 %r5, %r5, %r4;\n\
             setp.gt.s32 %p2, %r5, -1;\n@%p2 bra wait{at};\nmet{at}:\nbarrier.sync 0;\n"
        )
    };
    module(
        "",
        &format!(
            ".reg .b32 %e<2>, %next;\n.reg .b64 %mine, %theirs;\nmov.u32 %e0, %envreg2;\nmov.u32 %e1, %envreg1;\n\
             mov.b64 %rd0, {{%e0, %e1}};\nsetp.eq.u64 %p3, %rd0, 0;\n@%p3 trap;\n\
             mov.u32 %r0, %ctaid.x;\nmov.u32 %r1, %nctaid.x;\nadd.u32 %next, %r0, 1;\nrem.u32 %next, %next, %r1;\n\
             mul.wide.u32 %mine, %r0, 128;\nadd.s64 %mine, %out, %mine;\nmul.wide.u32 %theirs, %next, 128;\n\
             add.s64 %theirs, %out, %theirs;\nmul.lo.u32 %r6, %r0, 10;\nst.global.u32 [%mine], %r6;\n\
             {}ld.global.u32 %r7, [%theirs];\n{}add.u32 %r7, %r7, 1;\nst.global.u32 [%mine], %r7;",
            meet("a"),
            meet("b")
        ),
    )
}

#[test]
fn a_cooperative_grid_synchronises() {
    let bench = Bench::load(&grid_kernel()).unwrap();
    for threads in [1, 2] {
        let out = bench.memory.alloc(5 * 128).unwrap();
        let mut call = Call::new(&[out, 0]);
        call.grid = [5, 1, 1];
        call.cooperative = true;
        call.options.threads = threads;
        bench.run(&call).unwrap_or_else(|fault| panic!("{fault}"));
        for block in 0..5u32 {
            let words = bench.read(out + 128 * u64::from(block), 128);
            let expected = (block + 1) % 5 * 10 + 1;
            assert_eq!(words, expected.to_le_bytes().repeat(32), "block {block}");
        }
    }
}

#[test]
fn an_ordinary_launch_cannot_synchronise_its_grid() {
    let bench = Bench::load(&grid_kernel()).unwrap();
    let out = bench.memory.alloc(128).unwrap();
    let fault = bench.run(&Call::new(&[out, 0])).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Trap);
}
