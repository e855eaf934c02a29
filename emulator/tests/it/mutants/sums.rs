//! Sums of rows and running sums: warps exchange values, blocks meet in shared memory.

use super::planted::{Mutant, Planted, changed, deleted, only_numbers};
use crate::emulator::{Bench, Call, ways};
use cuda_emulator::{Device, Fault, FaultKind, Options, Schedule};

use FaultKind::{Deadlock, Divergence, Misaligned, OutOfBounds, Race, Uninitialised};

const REDUCTION: &str = include_str!("reduction.ptx");
const SCAN: &str = include_str!("scan.ptx");

#[rustfmt::skip]
const OF_REDUCTION: &[Mutant] = &[
    changed("size", "16", "12", &[OutOfBounds], &["part"]),
    changed("columns", "100", "101", &[OutOfBounds], &["load"]),
    changed("load", "@%inside ", "", &[OutOfBounds], &["load"]),
    changed("first exchange", "shfl", "@%inside shfl", &[Divergence], &["first exchange"]),
    changed("first exchange", "0xffffffff", "0x0000ffff", &[Divergence], &["first exchange"]),
    changed("second exchange", "0xffffffff", "0xffff", &[Divergence], &["second exchange"]),
    changed("place of a part", "%warp, 4", "%warp, 0", &[Race], &["part"]),
    changed("place of a part", "%warp, 4", "%warp, 2", &[Misaligned, Race], &["part"]),
    changed("part", "@%lead", "@%first", &[Uninitialised], &["read a part"]),
    deleted("part", &[Uninitialised], &["read a part"]),
    deleted("parts are there", &[Race, Uninitialised], &["read a part", "total", "part"]),
    changed("parts are there", "bar.sync 0", "bar.warp.sync 0xffffffff", &[Race, Uninitialised], &["read a part"]),
    changed("parts are there", "bar.sync", "@%inside bar.sync", &[Divergence], &["parts are there"]),
    changed("parts are there", "bar.sync 0", "bar.sync 0, 96", &[Divergence, Deadlock, Race, Uninitialised], &["parts are there", "total is there", "total is read", "read a part"]),
    changed("parts", "4;", "5;", &[OutOfBounds], &["read a part"]),
    changed("read a part", "@%p ", "", &[OutOfBounds, Uninitialised], &["read a part"]),
    changed("exchange of parts", "shfl", "@%p shfl", &[Divergence], &["exchange of parts"]),
    changed("total", "@%first ", "", &[Race], &["total"]),
    deleted("total is there", &[Race, Uninitialised], &["read the total", "total"]),
    changed("total is there", "0;", "0, 64;", &[Divergence, Deadlock, Race], &["total is there", "parts are there", "total is read", "read the total", "part"]),
    changed("store", "@%inside ", "", &[OutOfBounds], &["store"]),
    deleted("total is read", &[Race], &["total", "part", "read the total"]),
    changed("rows", "2;", "3;", &[OutOfBounds], &["load"]),
];

#[rustfmt::skip]
const OF_SCAN: &[Mutant] = &[
    changed("size", "528", "524", &[OutOfBounds], &["sum of a warp"]),
    changed("first of a thread", "250", "256", &[OutOfBounds], &["first load"]),
    changed("second of a thread", "250", "252", &[OutOfBounds], &["second load"]),
    deleted("sum", &[Uninitialised], &["read a sum"]),
    deleted("sums are there", &[Race], &["read a sum"]),
    changed("sums are there", "0xffffffff", "0x0000ffff", &[Divergence], &["sums are there"]),
    deleted("lanes that add", &[Uninitialised, OutOfBounds, Race], &["read a sum"]),
    changed("read a sum", "@%p ", "", &[OutOfBounds, Race, Uninitialised], &["read a sum"]),
    deleted("sums are read", &[Race], &["longer sum"]),
    changed("longer sum", "[%at]", "[%at+4]", &[Race, Uninitialised], &["sum", "longer sum", "read a sum", "sum of a warp"]),
    changed("last of a warp", "31;", "32;", &[Uninitialised], &["read the sum of a warp"]),
    changed("sum of a warp", "@%last ", "", &[Race], &["sum of a warp"]),
    changed("sum of a warp", "512", "508", &[Race], &["sum", "sum of a warp"]),
    deleted("sum of a warp", &[Uninitialised], &["read the sum of a warp"]),
    deleted("sums of warps are there", &[Race, Uninitialised], &["read the sum of a warp"]),
    changed("sums of warps are there", "bar.sync 0", "bar.sync %warp, 32", &[Race, Uninitialised], &["read the sum of a warp"]),
    changed("sums of warps are there", "bar", "@%last bar", &[Divergence, Race, Uninitialised], &["sums of warps are there", "read the sum of a warp"]),
    only_numbers("sums to add", "lt", "le", "a warp adds its own sum twice"),
    changed("read the sum of a warp", "512", "520", &[OutOfBounds], &["read the sum of a warp"]),
    changed("first store", "@%low ", "", &[OutOfBounds], &["first store"]),
];

/// Rows of the reduction, and what the scan takes.
const ROW: usize = 100;
const ROWS: usize = 2;
const COUNT: usize = 250;

/// Small whole numbers, so that sums are exact in any order.
fn value(at: usize) -> f32 {
    ((at * 7) % 11) as f32 + 1.0
}

/// Runs a text on the first `count` values; as many results.
fn run(text: &str, count: usize, device: Device, schedule: Schedule) -> Result<Vec<u8>, Fault> {
    let bench = Bench::load(text).unwrap_or_else(|error| panic!("{error}"));
    let input: Vec<u8> = (0..count).flat_map(|at| value(at).to_le_bytes()).collect();
    let input = bench.buffer(&input);
    let out = bench.memory.alloc(4 * count as u64).unwrap();
    bench.run(&Call {
        device,
        options: Options {
            threads: 1,
            schedule,
            max_instructions: 1 << 18,
            ..Options::default()
        },
        block: [128, 1, 1],
        ..Call::new(&[out, input])
    })?;
    Ok(bench.read(out, 4 * count))
}

pub(super) fn planted() -> [Planted; 2] {
    let kernel = |name, text: &'static str, mutants, count| Planted {
        name,
        text: text.into(),
        arch: 80,
        mutants,
        run: Box::new(move |text, device, schedule| run(text, count, device, schedule)),
    };
    [
        kernel("reduction", REDUCTION, OF_REDUCTION, ROW * ROWS),
        kernel("scan", SCAN, OF_SCAN, COUNT),
    ]
}

fn assert_right(text: &str, expected: &[f32]) {
    for (device, schedule) in ways(80) {
        let found =
            run(text, expected.len(), device, schedule).unwrap_or_else(|fault| panic!("{fault}"));
        for (at, (word, expected)) in found.chunks_exact(4).zip(expected).enumerate() {
            let found = f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            // div.approx is off by at most 2 ulp
            let bound = expected.abs() * 2f32.powi(-22);
            assert!(
                (found - expected).abs() <= bound,
                "{at}: {found} is not {expected}, {schedule:?}"
            );
        }
    }
}

#[test]
fn rows_are_divided_by_their_sums() {
    let total = |row: usize| (0..ROW).map(|at| value(row * ROW + at)).sum::<f32>();
    let expected: Vec<f32> = (0..ROW * ROWS)
        .map(|at| value(at) / total(at / ROW))
        .collect();
    assert_right(REDUCTION, &expected);
}

#[test]
fn running_sums_are_right() {
    let expected: Vec<f32> = (0..COUNT).map(|at| (0..=at).map(value).sum()).collect();
    assert_right(SCAN, &expected);
}
