//! An attention tile with softmax as it goes: two buffers of `cp.async`, `ldmatrix`, `mma`, exchanges within rows.

use half::f16;

use super::planted::{Mutant, Planted, changed, deleted};
use crate::emulator::{Bench, Call, ways};
use cuda_emulator::{Device, Fault, FaultKind, Options, Schedule};

use FaultKind::{Deadlock, Divergence, Misaligned, MissingWait, OutOfBounds, Race, Uninitialised};

const TEXT: &str = include_str!("attention.ptx");
const QUERIES: usize = 32;
const KEYS: usize = 37;
const CHANNELS: usize = 16;

const READS: &[&str] = &["read Q", "read K", "read V"];
const COPY: &[&str] = &["copy of K or V"];
const ALL: &[&str] = &["read Q", "read K", "read V", "copy of K or V"];

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    changed("size", "3072", "3056", &[OutOfBounds], COPY),
    changed("place of a chunk", "1;", "0;", &[MissingWait, Race], &["copy of Q"]),
    changed("copy of Q", "[%place]", "[%place+8]", &[Misaligned], &["copy of Q"]),
    changed("copy of Q", "[%place]", "[%place+1024]", &[MissingWait, Race, Uninitialised], &["copy of K or V", "read Q"]),
    deleted("copy of Q", &[Uninitialised], &["read Q"]),
    changed("place in V", "16,", "8,", &[Misaligned], &["read Q", "read V"]),
    changed("queries of a warp", "512", "1024", &[MissingWait, Race], &["read Q", "copy of K or V"]),
    changed("place in K", "16,", "24,", &[Misaligned], &["read K"]),
    changed("tiles ahead", "-1", "0", &[Uninitialised, MissingWait], READS),
    changed("buffer to fill", "%x", "%ahead", &[OutOfBounds], COPY),
    changed("last tile", "@%t", "@!%t", &[Uninitialised, OutOfBounds], ALL),
    changed("keys", "lt", "le", &[OutOfBounds], COPY),
    changed("buffer to fill", "1024", "512", &[MissingWait, Race, Uninitialised], ALL),
    changed("buffer to fill", "1024", "0", &[MissingWait, Race], ALL),
    changed("behind Q", "1024", "512", &[MissingWait, Race], &["copy of Q", "copy of K or V", "read Q"]),
    changed("copy of K or V", "16, %bytes", "16, 16", &[OutOfBounds], COPY),
    deleted("copy of K or V", &[Uninitialised], READS),
    deleted("commit", &[MissingWait], READS),
    deleted("nothing there yet", &[Uninitialised, MissingWait], READS),
    deleted("wait", &[MissingWait], READS),
    changed("wait", "1;", "2;", &[MissingWait], READS),
    deleted("tile is there", &[MissingWait, Race, Uninitialised], ALL),
    changed("tile is there", "bar.sync 0", "bar.warp.sync 0xffffffff", &[MissingWait, Race, Uninitialised], ALL),
    changed("tile is there", "bar", "@!%is_v bar", &[Deadlock, Divergence, MissingWait, Race, Uninitialised], &["tile is there", "tile is free", "read Q", "read K", "read V", "copy of K or V"]),
    changed("buffer to use", "%x, 1024", "%x, 0", &[MissingWait, Race], ALL),
    changed("read K", "1024", "2048", &[MissingWait, Uninitialised, OutOfBounds], &["read K"]),
    changed("read V", "1536", "1552", &[MissingWait, OutOfBounds, Race, Uninitialised], &["read V", "copy of K or V"]),
    changed("exchange of maxima", "shfl", "@%inside shfl", &[Divergence], &["exchange of maxima"]),
    changed("exchange of maxima", "0xffffffff", "0x7fffffff", &[Divergence], &["exchange of maxima"]),
    deleted("tile is free", &[MissingWait, Race], ALL),
    changed("tile is free", "bar.sync 0", "bar.arrive 0, 64", &[MissingWait, Race, Divergence, Deadlock], &["copy of K or V", "read Q", "read K", "read V", "tile is there", "tile is free"]),
    changed("exchange of sums", "1, 31, 0xffffffff", "1, 31, 0xffff", &[Divergence], &["exchange of sums"]),
    changed("row of the result", "16,", "32,", &[OutOfBounds], &["store", "lower store"]),
    changed("lower store", "512", "1536", &[OutOfBounds], &["lower store"]),
];

fn q(row: usize, channel: usize) -> f64 {
    (((row * 7 + channel * 5) % 17) as f64 - 8.0) / 16.0
}

fn k(row: usize, channel: usize) -> f64 {
    (((row * 11 + channel * 3) % 19) as f64 - 9.0) / 8.0
}

fn v(row: usize, channel: usize) -> f64 {
    (((row * 5 + channel * 13) % 23) as f64 - 11.0) / 4.0
}

fn run(text: &str, device: Device, schedule: Schedule) -> Result<Vec<u8>, Fault> {
    let bench = Bench::load(text).unwrap_or_else(|error| panic!("{error}"));
    let matrix = |rows: usize, value: fn(usize, usize) -> f64| -> u64 {
        let values = (0..rows * CHANNELS).map(|at| value(at / CHANNELS, at % CHANNELS));
        let bytes: Vec<u8> = values
            .flat_map(|value| f16::from_f64(value).to_le_bytes())
            .collect();
        bench.buffer(&bytes)
    };
    let (q, k, v) = (matrix(QUERIES, q), matrix(KEYS, k), matrix(KEYS, v));
    let bytes = 4 * QUERIES * CHANNELS;
    let out = bench.memory.alloc(bytes as u64).unwrap();
    let mut call = Call::new(&[out, q, k, v]);
    call.params.extend((KEYS as u32).to_le_bytes());
    bench.run(&Call {
        device,
        options: Options {
            threads: 1,
            schedule,
            max_instructions: 1 << 18,
            ..Options::default()
        },
        block: [64, 1, 1],
        ..call
    })?;
    Ok(bench.read(out, bytes))
}

pub(super) fn planted() -> Planted {
    Planted {
        name: "attention",
        text: TEXT.into(),
        arch: 80,
        mutants: MUTANTS,
        run: Box::new(run),
    }
}

#[test]
fn the_tile_is_right_and_raises_no_alarm() {
    for (device, schedule) in ways(80) {
        let found = run(TEXT, device, schedule).unwrap_or_else(|fault| panic!("{fault}"));
        for (at, word) in found.chunks_exact(4).enumerate() {
            let (row, channel) = (at / CHANNELS, at % CHANNELS);
            let weights: Vec<f64> = (0..KEYS)
                .map(|key| {
                    (0..CHANNELS)
                        .map(|at| q(row, at) * k(key, at))
                        .sum::<f64>()
                        .exp2()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            let mean = |value: &dyn Fn(usize) -> f64| -> f64 {
                let products = weights
                    .iter()
                    .enumerate()
                    .map(|(key, weight)| weight * value(key));
                products.sum::<f64>() / sum
            };
            let expected = mean(&|key| v(key, channel));
            // weights are rounded to f16; ex2, division and sums lose far less
            let bound = mean(&|key| v(key, channel).abs()) * 2f64.powi(-10);
            let found = f64::from(f32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            assert!(
                (found - expected).abs() <= bound,
                "row {row}, channel {channel}: {found} is not {expected} to {bound}, {schedule:?}"
            );
        }
    }
}
