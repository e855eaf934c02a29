//! A product by a ring of `cp.async` stages, swizzled tiles, `ldmatrix` and `mma`.

use half::f16;

use super::planted::{Mutant, Planted, changed, deleted, only_numbers};
use crate::emulator::{Bench, Call, ways};
use cuda_emulator::{Device, Fault, FaultKind, Options, Schedule};

use FaultKind::{Divergence, Misaligned, MissingWait, OutOfBounds, Race, Uninitialised};

const TEXT: &str = include_str!("ring.ptx");
/// Two blocks each way, the last of which have rows, columns and steps that are not whole.
const M: usize = 50;
const N: usize = 40;
const K: usize = 168;

const READS: &[&str] = &["read A", "read B", "read the rest of B"];
const COPIES: &[&str] = &[
    "copy of A",
    "other copy of A",
    "copy of B",
    "other copy of B",
];
const ALL: &[&str] = &[
    "read A",
    "read B",
    "read the rest of B",
    "copy of A",
    "other copy of A",
    "copy of B",
    "other copy of B",
];

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    changed("size", "12288", "12272", &[OutOfBounds], COPIES),
    changed("place of a chunk", "3;", "1;", &[MissingWait], COPIES),
    changed("tile of B", "2048", "2056", &[Misaligned], &["read B"]),
    changed("stages ahead", "-2", "-1", &[Uninitialised, MissingWait], READS),
    changed("first steps only copy", "0;", "-1;", &[Uninitialised, MissingWait], READS),
    deleted("wait", &[MissingWait], READS),
    changed("wait", "1;", "2;", &[MissingWait], READS),
    deleted("stage is there, and the one before is free", &[MissingWait, Race, Uninitialised], ALL),
    changed("stage is there, and the one before is free", "bar.sync 0", "bar.warp.sync 0xffffffff", &[MissingWait, Race, Uninitialised], ALL),
    changed("stage is there, and the one before is free", "bar.sync 0", "bar.arrive 0, 64", &[MissingWait, Race, Uninitialised], ALL),
    changed("stage is there, and the one before is free", "bar", "@%inside bar", &[MissingWait, Race, Divergence], &["read A", "read B", "read the rest of B", "copy of A", "other copy of A", "copy of B", "other copy of B", "stage is there, and the one before is free"]),
    changed("stage to fill", "4096", "2048", &[MissingWait, Race], ALL),
    deleted("columns of A", &[OutOfBounds, Uninitialised], COPIES),
    changed("columns of A", "lt", "le", &[OutOfBounds], &["other copy of A"]),
    changed("other rows of A", "lt", "le", &[OutOfBounds], &["other copy of A"]),
    changed("rows of B", "lt", "le", &[OutOfBounds], &["copy of B"]),
    changed("other rows of B", "lt.and.u32 %p, %v, %k, %inside", "lt.u32 %p, %column, %n", &[OutOfBounds], &["other copy of B"]),
    changed("other copy of A", "16, %bytes", "16, 16", &[OutOfBounds], &["other copy of A"]),
    changed("copy of A", "[%to]", "[%to+8]", &[Misaligned], &["copy of A"]),
    changed("other copy of A", "1024", "2048", &[MissingWait], &["copy of B"]),
    deleted("copy of B", &[Uninitialised, MissingWait], READS),
    changed("other copy of B", "3072", "3056", &[MissingWait, Race], &["copy of B", "other copy of B"]),
    changed("fills wrap", "3;", "2;", &[MissingWait, Race, Uninitialised], ALL),
    changed("fills wrap", "3;", "4;", &[OutOfBounds], COPIES),
    deleted("commit", &[MissingWait], READS),
    changed("commit", "cp", "@%inside cp", &[MissingWait], READS),
    deleted("nothing to multiply yet", &[Uninitialised, MissingWait], READS),
    changed("stage to multiply", "4096", "0", &[MissingWait, Race], ALL),
    changed("half of B", "512", "2048", &[OutOfBounds, MissingWait, Uninitialised], READS),
    changed("other columns of B", ", 32", ", 4096", &[OutOfBounds, MissingWait, Uninitialised, Race], ALL),
    changed("read A", "[%v]", "[%v+4]", &[Misaligned], &["read A"]),
    changed("multiply", "mma", "@%inside mma", &[Divergence], &["multiply"]),
    changed("stages wrap", "3;", "4;", &[OutOfBounds], READS),
    only_numbers("last step", "lt", "le", "the stage of three steps before is multiplied once more"),
    changed("lower rows of the result", "%m;", "%k;", &[OutOfBounds], &["lower store"]),
    changed("last columns of the result", "%n,", "%k,", &[OutOfBounds, Race], &["last store", "store"]),
];

fn a(row: usize, k: usize) -> f64 {
    ((row * 7 + k * 11) % 13) as f64 - 6.0
}

fn b(k: usize, column: usize) -> f64 {
    ((k * 5 + column * 3) % 7) as f64 - 3.0
}

fn run(text: &str, device: Device, schedule: Schedule) -> Result<Vec<u8>, Fault> {
    let bench = Bench::load(text).unwrap_or_else(|error| panic!("{error}"));
    let matrix = |rows: usize, columns: usize, value: fn(usize, usize) -> f64| -> u64 {
        let values = (0..rows * columns).map(|at| value(at / columns, at % columns));
        let bytes: Vec<u8> = values
            .flat_map(|value| f16::from_f64(value).to_le_bytes())
            .collect();
        bench.buffer(&bytes)
    };
    let (a, b) = (matrix(M, K, a), matrix(K, N, b));
    let out = bench.memory.alloc(4 * (M * N) as u64).unwrap();
    let sizes = [M, N, K].map(|size| (size as u32).to_le_bytes());
    let mut call = Call::new(&[out, a, b]);
    call.params.extend(sizes.concat());
    bench.run(&Call {
        device,
        options: Options {
            threads: 1,
            schedule,
            max_instructions: 1 << 20,
            ..Options::default()
        },
        grid: [N.div_ceil(32) as u32, M.div_ceil(32) as u32, 1],
        block: [64, 1, 1],
        ..call
    })?;
    Ok(bench.read(out, 4 * M * N))
}

pub(super) fn planted() -> Planted {
    Planted {
        name: "ring",
        text: TEXT.into(),
        arch: 80,
        mutants: MUTANTS,
        run: Box::new(run),
    }
}

#[test]
fn the_product_is_right_and_raises_no_alarm() {
    let product = |at: usize| (0..K).map(|k| a(at / N, k) * b(k, at % N)).sum::<f64>() as f32;
    let expected: Vec<u8> = (0..M * N)
        .flat_map(|at| product(at).to_le_bytes())
        .collect();
    for (device, schedule) in ways(80) {
        let found = run(TEXT, device, schedule).unwrap_or_else(|fault| panic!("{fault}"));
        assert!(found == expected, "{schedule:?}");
    }
}
