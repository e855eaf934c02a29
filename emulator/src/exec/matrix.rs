//! ldmatrix, stmatrix and mma.sync.
//!
//! Each register of a fragment holds two neighbours of an 8x8 tile of 16-bit elements: lane 4 r + c holds columns 2c and
//! 2c + 1 of row r. All lanes of a register in order are therefore the tile in row-major order.

use half::{bf16, f16};

use super::context::{Context, Done, count_shared, lanes};
use super::convert::f32_to_half;
use super::memory::addresses;
use super::registers::{FULL, LANES, Registers};
use super::together::Pattern;
use super::warp::Warp;
use crate::ir::{Matrix, Mma, Scalar, Slot};
use crate::race::Accessor;

/// Rows and columns of the tiles that fragments are made of.
const TILE: usize = 8;

/// The row of a tile: 8 elements of 16 bits.
type Row16 = [u16; TILE];

fn row(bytes: [u8; 16]) -> Row16 {
    std::array::from_fn(|at| u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]))
}

/// The register that holds a tile, lane by lane.
pub(super) fn fragment(tile: &[Row16; TILE], transposed: bool) -> [u32; LANES] {
    std::array::from_fn(|lane| {
        let (r, c) = (lane / 4, 2 * (lane % 4));
        let (low, high) = if transposed {
            (tile[c][r], tile[c + 1][r])
        } else {
            (tile[r][c], tile[r][c + 1])
        };
        u32::from(low) | u32::from(high) << 16
    })
}

fn accessor(warp: &Warp, lane: usize) -> Accessor {
    Accessor {
        warp: warp.index,
        lane: lane as u32,
        pc: warp.at,
        collective: true,
        strong: false,
    }
}

/// `ldmatrix`: lane 8 i + r names row r of tile i.
pub(super) fn load(warp: &mut Warp, context: &mut Context<'_>, matrix: &Matrix) -> Done {
    let at = addresses(
        &warp.registers,
        matrix.address,
        matrix.narrow,
        matrix.offset,
    );
    let named = FULL >> (LANES - TILE * matrix.registers.len());
    let traffic = &mut context.report.shared_loads;
    count_shared(traffic, &at, named, 16, Pattern::Any);
    let mut rows = [[0; 16]; LANES];
    let by = accessor(warp, 0);
    if !context.load_shared_lanes(by, &at, named, Pattern::Any, &mut rows) {
        for lane in lanes(named) {
            context.load_shared(accessor(warp, lane), at[lane], &mut rows[lane])?;
        }
    }
    for (tile, &slot) in rows.chunks_exact(TILE).zip(&matrix.registers) {
        let words = if matrix.transposed {
            let tile: [Row16; TILE] = std::array::from_fn(|at| row(tile[at]));
            fragment(&tile, true)
        } else {
            // four bytes a lane, in order
            std::array::from_fn(|lane| {
                let (row, at) = (tile[lane / 4], 4 * (lane % 4));
                u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
            })
        };
        warp.registers.put(FULL, slot, words);
    }
    Ok(())
}

/// `stmatrix`: the other way round.
pub(super) fn store(warp: &mut Warp, context: &mut Context<'_>, matrix: &Matrix) -> Done {
    let at = addresses(
        &warp.registers,
        matrix.address,
        matrix.narrow,
        matrix.offset,
    );
    let named = FULL >> (LANES - TILE * matrix.registers.len());
    let traffic = &mut context.report.shared_stores;
    count_shared(traffic, &at, named, 16, Pattern::Any);
    let mut rows = [[0; 16]; LANES];
    for (rows, &slot) in rows.chunks_exact_mut(TILE).zip(&matrix.registers) {
        let tile = halves(&warp.registers, slot);
        for (r, row) in rows.iter_mut().enumerate() {
            for c in 0..TILE {
                let from = if matrix.transposed {
                    TILE * c + r
                } else {
                    TILE * r + c
                };
                row[2 * c..2 * c + 2].copy_from_slice(&tile[from].to_le_bytes());
            }
        }
    }
    if !context.store_shared_lanes(accessor(warp, 0), &at, named, &rows) {
        for lane in lanes(named) {
            context.store_shared(accessor(warp, lane), at[lane], &rows[lane])?;
        }
    }
    Ok(())
}

/// The tile a register holds, in row-major order.
pub(super) fn halves(r: &Registers, slot: Slot) -> [u16; TILE * TILE] {
    let words = r.row(slot);
    std::array::from_fn(|at| (words[at / 2] >> (16 * (at % 2))) as u16)
}

/// The tile a register holds, as f32, row by row.
fn tile(r: &Registers, slot: Slot, kind: Scalar) -> [f32; TILE * TILE] {
    halves(r, slot).map(|bits| match kind {
        Scalar::Bf16 => bf16::from_bits(bits).to_f32(),
        _ => f16::from_bits(bits).to_f32(),
    })
}

/// `mma.sync`: D = A B + C with f32 arithmetic; hardware accumulates in f32 too, in an order of its own.
///
/// A is rows 0 to 7, then rows 8 to 15, of each step of 8 columns; B comes column by column.
pub(super) fn multiply(r: &mut Registers, mma: &Mma) {
    let steps = usize::from(mma.k) / TILE;
    // both halves before the first write: D may lie in registers of A, B or C
    let sums = [0, 1].map(|half| {
        let mut sums = accumulator(r, mma, half);
        for step in 0..steps {
            let a = tile(r, mma.a[2 * step + half], mma.kind);
            let b = tile(r, mma.b[step], mma.kind);
            for (at, sum) in sums.iter_mut().enumerate() {
                let (row, column) = (at / TILE, at % TILE);
                for k in 0..TILE {
                    *sum = a[TILE * row + k].mul_add(b[TILE * column + k], *sum);
                }
            }
        }
        sums
    });
    for (half, sums) in sums.iter().enumerate() {
        set_accumulator(r, mma, half, sums);
    }
}

/// Rows 0 to 7 or 8 to 15 of C: in f32, one register holds the even columns and one the odd.
fn accumulator(r: &Registers, mma: &Mma, half: usize) -> [f32; TILE * TILE] {
    if mma.half_accumulator {
        return tile(r, mma.c[half], Scalar::F16);
    }
    std::array::from_fn(|at| f32::from_bits(r.row(mma.c[2 * half + at % 2])[at / 2]))
}

/// The same rows of D.
fn set_accumulator(r: &mut Registers, mma: &Mma, half: usize, sums: &[f32; TILE * TILE]) {
    if mma.half_accumulator {
        let pack =
            |lane: usize| f32_to_half(sums[2 * lane]) | f32_to_half(sums[2 * lane + 1]) << 16;
        r.put(
            FULL,
            mma.d[half],
            std::array::from_fn::<u32, LANES, _>(pack),
        );
        return;
    }
    for odd in 0..2 {
        let column = |lane: usize| sums[2 * lane + odd];
        r.put(
            FULL,
            mma.d[2 * half + odd],
            std::array::from_fn::<f32, LANES, _>(column),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_avx2_product_is_the_plain_one() {
        if !crate::exec::interpret::has_avx2() {
            return;
        }
        let fill = |r: &mut Registers| {
            for slot in 0..14 {
                let word = |lane: u32| (lane * 37 + u32::from(slot) * 101) % 64;
                // small whole numbers: sums are exact in any order
                let half = |x: u32| u32::from(f16::from_f32(x as f32 - 32.0).to_bits());
                let values = std::array::from_fn(|lane| match slot {
                    0..4 => (word(lane as u32) as f32).to_bits(),
                    _ => half(word(lane as u32)) | half(word(lane as u32 + 7)) << 16,
                });
                r.put::<u32>(FULL, slot, values);
            }
        };
        for (k, kind) in [(16, Scalar::F16), (8, Scalar::F16), (16, Scalar::Bf16)] {
            // the destination is apart, then overlaps the accumulator, as compilers write it, then everything
            for d in [[10, 11, 12, 13], [0, 1, 2, 3], [3, 5, 8, 7]] {
                let mma = Mma {
                    kind,
                    k,
                    half_accumulator: false,
                    d,
                    a: [4, 5, 6, 7],
                    b: [8, 9],
                    c: [0, 1, 2, 3],
                };
                let mut results = [(); 3].map(|()| Registers::new(14, 2));
                results.iter_mut().for_each(fill);
                let [apart, plain, fast] = &mut results;
                let apart_from_all = Mma {
                    d: [10, 11, 12, 13],
                    ..mma
                };
                multiply(apart, &apart_from_all);
                multiply(plain, &mma);
                // SAFETY: `has_avx2` said so.
                unsafe { crate::exec::avx2::multiply(fast, &mma) };
                for (at, slot) in d.into_iter().enumerate() {
                    let words = apart.row(10 + at as Slot);
                    assert_eq!(words, plain.row(slot), "{kind:?} k {k} register {slot}");
                    assert_eq!(words, fast.row(slot), "{kind:?} k {k} register {slot}");
                }
            }
        }
    }
}
