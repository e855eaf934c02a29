//! A product by two stages of `cp.async`: small enough to be read at once.

use half::f16;

use super::planted::{Mutant, Planted, changed, deleted};
use crate::emulator::{Bench, Call, ways};
use cuda_emulator::{Device, Fault, FaultKind, Options, Schedule};

const TEXT: &str = include_str!("copies.ptx");
const ROWS: usize = 30;
const DEPTH: usize = 64;
const COLUMNS: usize = 8;

use FaultKind::{Deadlock, Divergence, Misaligned, MissingWait, OutOfBounds, Race, Uninitialised};

#[rustfmt::skip]
const MUTANTS: [Mutant; 24] = [
    deleted("stage is visible", &[MissingWait, Race, Uninitialised], &["read A", "read B"]),
    deleted("stage is free", &[Race, MissingWait], &["copy of A", "copy of B", "read A", "read B"]),
    deleted("wait", &[MissingWait], &["read A", "read B"]),
    deleted("commit", &[MissingWait], &["read A", "read B"]),
    deleted("first commit", &[MissingWait], &["read A", "read B"]),
    deleted("last stage", &[OutOfBounds], &["copy of A", "copy of B"]),
    deleted("copy of B", &[Uninitialised], &["read B"]),
    changed("wait", "wait_group 1", "wait_group 2", &[MissingWait], &["read A", "read B"]),
    changed("stage is visible", "bar.sync 0", "bar.warp.sync 0xffffffff", &[MissingWait, Race, Uninitialised], &["read A", "read B"]),
    changed("stage is visible", "bar.sync 0", "bar.sync 0, 32", &[MissingWait, Race, Uninitialised], &["read A", "read B"]),
    changed("stage is free", "bar.sync 0", "bar.arrive 0, 64", &[Race, MissingWait], &["copy of A", "copy of B"]),
    changed("stage is free", "bar.sync", "@%is_b bar.sync", &[Divergence, Race], &["stage is free", "copy of A", "copy of B"]),
    changed("stage is visible", "bar.sync", "@%last bar.sync", &[MissingWait, Race, Uninitialised], &["read A", "read B"]),
    changed("stage of A", "1280", "0", &[MissingWait], &["copy of A"]),
    changed("stage of B", "1280", "1024", &[MissingWait, Race, OutOfBounds, Uninitialised], &["copy of A", "copy of B", "read B"]),
    changed("rows of A", "16, 0", "16, 16", &[OutOfBounds], &["first copy of A"]),
    changed("rows of B", "16", "15", &[Uninitialised], &["read B"]),
    changed("rows of B", "16", "18", &[MissingWait, Race, OutOfBounds], &["copy of A", "copy of B", "first copy of A"]),
    changed("size", "2560", "2544", &[OutOfBounds], &["copy of B"]),
    changed("read A", "[%at]", "[%at+8]", &[Misaligned], &["read A"]),
    changed("read B", "[%at]", "[%at+32]", &[OutOfBounds, Uninitialised, MissingWait, Race], &["read B", "copy of A"]),
    changed("multiply", "mma", "@%is_b mma", &[Divergence, Deadlock], &["multiply"]),
    changed("stages", "4", "5", &[OutOfBounds], &["copy of A", "copy of B"]),
    changed("second store", "@%inside st", "st", &[OutOfBounds], &["second store"]),
];

fn b(depth: usize, column: usize) -> f64 {
    ((depth * 5 + column * 3) % 7) as f64 - 3.0
}

fn a(row: usize, depth: usize) -> f64 {
    ((row * 7 + depth * 11) % 13) as f64 - 6.0
}

/// Runs a text of the kernel; the product that it stored.
fn run(text: &str, device: Device, schedule: Schedule) -> Result<Vec<u8>, Fault> {
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
    Ok(bench.read(out, bytes))
}

pub(super) fn planted() -> Planted {
    Planted {
        name: "copies",
        text: TEXT.into(),
        arch: 80,
        mutants: &MUTANTS,
        run: Box::new(run),
    }
}

#[test]
fn the_product_is_right_and_raises_no_alarm() {
    let expected: Vec<u8> = (0..ROWS * COLUMNS)
        .flat_map(|at| {
            let products = (0..DEPTH).map(|k| a(at / COLUMNS, k) * b(k, at % COLUMNS));
            (products.sum::<f64>() as f32).to_le_bytes()
        })
        .collect();
    for (device, schedule) in ways(80) {
        let found = run(TEXT, device, schedule).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(found, expected, "{schedule:?}");
    }
}
