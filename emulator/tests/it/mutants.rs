//! A pipelined kernel with one mistake at a time: deleted barriers and waits, wrong bounds and stages.
//!
//! Each is a line of `pipeline.ptx` changed as a programmer might get it wrong. Several still give the right numbers on
//! the emulator, and might on a GPU: what counts is that the mistake is seen.

use half::f16;

use super::emulator::{Bench, Call, ways};
use super::planted::{Mutant, assert_flagged, changed, deleted};
use cuda_emulator::{Device, Fault, FaultKind, Options, Schedule};

const PIPELINE: &str = include_str!("pipeline.ptx");
const ROWS: usize = 30;
const DEPTH: usize = 64;
const COLUMNS: usize = 8;

use FaultKind::{Deadlock, Divergence, Misaligned, MissingWait, OutOfBounds, Race, Uninitialised};

// where a barrier is missing, the warp that reads may have its turn before anybody writes
#[rustfmt::skip]
const MUTANTS: [Mutant; 24] = [
    deleted("stage is visible", &[MissingWait, Race, Uninitialised]),
    deleted("stage is free", &[Race, MissingWait]),
    deleted("wait", &[MissingWait]),
    deleted("commit", &[MissingWait]),
    deleted("first commit", &[MissingWait]),
    deleted("last stage", &[OutOfBounds]),
    deleted("copy of B", &[Uninitialised]),
    changed("wait", "wait_group 1", "wait_group 2", &[MissingWait]),
    changed("stage is visible", "bar.sync 0", "bar.warp.sync 0xffffffff", &[MissingWait, Race, Uninitialised]),
    changed("stage is visible", "bar.sync 0", "bar.sync 0, 32", &[MissingWait, Race, Uninitialised]),
    changed("stage is free", "bar.sync 0", "bar.arrive 0, 64", &[Race, MissingWait]),
    changed("stage is free", "bar.sync", "@%is_b bar.sync", &[Divergence, Race]),
    changed("stage is visible", "bar.sync", "@%last bar.sync", &[MissingWait, Race, Uninitialised]),
    changed("stage of A", "1280", "0", &[MissingWait]),
    changed("stage of B", "1280", "1024", &[MissingWait, Race, OutOfBounds, Uninitialised]),
    changed("rows of A", "16, 0", "16, 16", &[OutOfBounds]),
    changed("rows of B", "16", "15", &[Uninitialised]),
    changed("rows of B", "16", "18", &[MissingWait, Race, OutOfBounds]),
    changed("size", "2560", "2544", &[OutOfBounds]),
    changed("read A", "[%at]", "[%at+8]", &[Misaligned]),
    changed("read B", "[%at]", "[%at+32]", &[OutOfBounds, Uninitialised, MissingWait, Race]),
    changed("multiply", "mma", "@%is_b mma", &[Divergence, Deadlock]),
    changed("stages", "4", "5", &[OutOfBounds]),
    changed("second store", "@%inside st", "st", &[OutOfBounds]),
];

fn b(depth: usize, column: usize) -> f64 {
    ((depth * 5 + column * 3) % 7) as f64 - 3.0
}

fn a(row: usize, depth: usize) -> f64 {
    ((row * 7 + depth * 11) % 13) as f64 - 6.0
}

/// Runs a text of the kernel; the product that it stored.
fn run(text: &str, device: Device, schedule: Schedule) -> Result<Vec<f32>, Fault> {
    let bench = Bench::load(text).unwrap_or_else(|error| panic!("{error}"));
    let columns = (0..COLUMNS).flat_map(|column| (0..DEPTH).map(move |depth| b(depth, column)));
    let rows = (0..ROWS).flat_map(|row| (0..DEPTH).map(move |depth| a(row, depth)));
    let input: Vec<u8> = columns
        .chain(rows)
        .flat_map(|value| f16::from_f64(value).to_le_bytes())
        .collect();
    let bytes = 4 * ROWS * COLUMNS;
    let (input, out) = (
        bench.buffer(&input),
        bench.memory.alloc(bytes as u64).unwrap(),
    );
    let options = Options {
        threads: 1,
        schedule,
        max_instructions: 1 << 20,
        ..Options::default()
    };
    bench.run(&Call {
        device,
        options,
        block: [64, 1, 1],
        ..Call::new(&[out, input])
    })?;
    let out = bench.read(out, bytes);
    Ok(out
        .chunks(4)
        .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
}

#[test]
fn the_pipeline_is_right_and_raises_no_alarm() {
    let expected: Vec<f32> = (0..ROWS * COLUMNS)
        .map(|at| {
            (0..DEPTH)
                .map(|depth| a(at / COLUMNS, depth) * b(depth, at % COLUMNS))
                .sum::<f64>() as f32
        })
        .collect();
    for (device, schedule) in ways(80) {
        let found = run(PIPELINE, device, schedule).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(found, expected, "{schedule:?}");
    }
}

#[test]
fn every_mutant_is_flagged() {
    assert_flagged(&MUTANTS, PIPELINE, 80, run);
}
