//! A kernel as Hopper wants it, and the same with one mistake at a time: tensor maps, two stages with mbarriers, wgmma.
//!
//! Each mutant is a line of `pipeline.ptx` changed as a programmer might get it wrong. Several still give the right numbers
//! on the emulator, and might on a GPU: what counts is that the mistake is seen.

use half::f16;

use crate::emulator::{Bench, Call, ways};
use crate::planted::{Mutant, assert_flagged, changed, deleted};
use cuda_emulator::{Device, Fault, FaultKind, Options, Schedule, TensorMap, TensorType};

const PIPELINE: &str = include_str!("pipeline.ptx");
/// Rows of A and of B, and their columns.
const SIZE: usize = 64;
const DEPTH: usize = 256;

use FaultKind::{
    Deadlock, Divergence, Misaligned, MissingWait, OutOfBounds, Race, Trap, Uninitialised,
};

#[rustfmt::skip]
const MUTANTS: [Mutant; 32] = [
    changed("full", ", 1;", ", 2;", &[Deadlock]),
    changed("empty", ", 4;", ", 5;", &[Deadlock]),
    deleted("empty", &[Uninitialised]),
    deleted("mbarriers are visible", &[Race, Uninitialised]),
    deleted("first phase is free", &[Deadlock]),
    deleted("stage is free", &[Race, MissingWait, Trap]),
    deleted("expect", &[Deadlock]),
    changed("expect", "16384", "8192", &[MissingWait, Deadlock, Uninitialised, Race]),
    changed("expect", "16384", "16400", &[Deadlock]),
    changed("stage of A", "8192", "0", &[Race, MissingWait, Uninitialised, Deadlock]),
    changed("stage of A", "%base", "%bars", &[OutOfBounds, Misaligned, Race]),
    changed("stage of B", "16384", "16400", &[Misaligned]),
    changed("stage of B", "16384", "8192", &[MissingWait, Race, Uninitialised]),
    deleted("copy of A", &[Deadlock]),
    deleted("copy of B", &[Deadlock]),
    changed("copy of B", "[%full]", "[%empty]", &[Deadlock, Trap, MissingWait, Race]),
    changed("steps", "4", "3", &[Deadlock]),
    changed("phase", ", 1;", ", 2;", &[MissingWait, Race, Deadlock]),
    deleted("stage is there", &[MissingWait, Uninitialised, Race]),
    changed("layout", "0x4000004000010000", "0x4000008000010000", &[OutOfBounds, Uninitialised, MissingWait, Race]),
    changed("stage to multiply", "512", "0", &[MissingWait, Race]),
    deleted("registers are ready", &[Race]),
    changed("multiply", "wgmma", "@%lead wgmma", &[Divergence, Deadlock]),
    deleted("commit", &[MissingWait]),
    deleted("product is there", &[MissingWait]),
    changed("product is there", "aligned 0", "aligned 1", &[MissingWait]),
    deleted("stage is used", &[Deadlock]),
    changed("place of C", "32768", "32832", &[Race]),
    deleted("C is shown", &[Race]),
    deleted("C is complete", &[Race, Uninitialised]),
    deleted("last commit", &[MissingWait]),
    deleted("C has left", &[MissingWait]),
];

fn a(row: usize, depth: usize) -> i32 {
    ((row * 7 + depth * 11) % 5) as i32 - 2
}

fn b(column: usize, depth: usize) -> i32 {
    ((column * 3 + depth * 5) % 7) as i32 - 3
}

/// Runs a text of the kernel; the product that it stored.
fn run(text: &str, device: Device, schedule: Schedule) -> Result<Vec<i32>, Fault> {
    let bench = Bench::load(text).unwrap_or_else(|error| panic!("{error}"));
    let matrix = |value: fn(usize, usize) -> i32| -> Vec<u8> {
        (0..SIZE * DEPTH)
            .flat_map(|at| f16::from_f32(value(at / DEPTH, at % DEPTH) as f32).to_le_bytes())
            .collect()
    };
    let map = |address: u64, columns: usize, swizzle: u32| {
        TensorMap {
            element: TensorType::F16,
            address,
            dims: vec![columns as u64, SIZE as u64],
            strides: vec![2 * columns as u64],
            boxes: vec![64, SIZE as u32],
            steps: vec![1, 1],
            swizzle,
            nan_fill: false,
        }
        .encode()
        .unwrap()
    };
    let (a, b) = (bench.buffer(&matrix(a)), bench.buffer(&matrix(b)));
    let c = bench.memory.alloc(2 * (SIZE * SIZE) as u64).unwrap();
    let maps = [map(a, DEPTH, 128), map(b, DEPTH, 128), map(c, SIZE, 0)];
    bench.run(&Call {
        device,
        options: Options {
            threads: 1,
            schedule,
            max_instructions: 1 << 20,
            ..Options::default()
        },
        block: [160, 1, 1],
        params: maps.concat(),
        ..Call::new(&[])
    })?;
    let out = bench.read(c, 2 * SIZE * SIZE);
    let value = |half: &[u8]| f16::from_le_bytes([half[0], half[1]]).to_f32() as i32;
    Ok(out.chunks(2).map(value).collect())
}

#[test]
fn the_pipeline_is_right_and_raises_no_alarm() {
    let expected: Vec<i32> = (0..SIZE * SIZE)
        .map(|at| (0..DEPTH).map(|k| a(at / SIZE, k) * b(at % SIZE, k)).sum())
        .collect();
    for (device, schedule) in ways(90) {
        let found = run(PIPELINE, device, schedule).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(found, expected, "{schedule:?}");
    }
}

#[test]
fn every_mutant_is_flagged() {
    assert_flagged(&MUTANTS, PIPELINE, 90, run);
}
