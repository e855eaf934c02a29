use super::emulator::{Bench, Call, kernel};
use cuda_emulator::Options;
#[test]
fn tmp_speed() {
    // a block of 4 warps streams 64 KiB that all blocks read, and writes 64 KiB of its own in fragments
    let body = "mov.u32 %r0, %ctaid.x;\nmul.wide.u32 %rd0, %r0, 65536;\nadd.s64 %rd0, %rd0, %out;\nmul.wide.u32 %rd2, %t, 8;\nadd.s64 %rd0,%rd0,%rd2;\nadd.s64 %rd1, %in, %rd2;\nmov.u32 %r1, 0;\nloop:\nld.global.v4.u32 {%r2,%r3,%r4,%r5}, [%rd1];\nld.global.v4.u32 {%r2,%r3,%r4,%r5}, [%rd1];\nadd.u32 %r2, %r2, %r3;\nadd.u32 %r2, %r2, %r3;\nadd.u32 %r2, %r2, %r3;\nadd.u32 %r2, %r2, %r3;\nSTORE add.s64 %rd0, %rd0, 2048;\nadd.s64 %rd1, %rd1, 2048;\nadd.u32 %r1, %r1, 1;\nsetp.lt.u32 %p0, %r1, 32;\n@%p0 bra loop;";
    for (name, store) in [
        ("read", ""),
        (
            "read and write",
            "st.global.v4.u32 [%rd0], {%r2,%r3,%r4,%r5};\n",
        ),
    ] {
        let text = kernel(&body.replace("STORE", store));
        for global_races in [false, true, false, true] {
            let bench = Bench::load(&text).unwrap();
            let (out, input) = (
                bench.memory.alloc(64 << 20).unwrap(),
                bench.buffer(&vec![0; 1 << 20]),
            );
            let start = std::time::Instant::now();
            let report = bench
                .run(&Call {
                    grid: [600, 1, 1],
                    block: [128, 1, 1],
                    options: Options {
                        threads: 1,
                        global_races,
                        ..Options::default()
                    },
                    ..Call::new(&[out, input])
                })
                .unwrap();
            let s = start.elapsed().as_secs_f64();
            println!(
                "{name} races {global_races}: {:.3} s, {:.1} M warp instructions a second, {} loads {} stores: {:.0} ns each",
                s,
                report.total() as f64 / s / 1e6,
                report.global_loads.requests,
                report.global_stores.requests,
                s * 1e9 / (report.global_loads.requests + report.global_stores.requests) as f64
            );
        }
    }
}
