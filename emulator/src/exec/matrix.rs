//! ldmatrix, stmatrix and mma.sync.
//!
//! Each register of a fragment holds two neighbours of an 8x8 tile of 16-bit elements: lane 4 r + c holds columns 2c and
//! 2c + 1 of row r. All lanes of a register in order are therefore the tile in row-major order.

use super::context::{Context, Done, count_shared};
use super::float::f32_to_half;
use super::memory::addresses;
use super::registers::{FULL, LANES, Registers};
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
fn fragment(tile: &[Row16; TILE], transposed: bool) -> [u32; LANES] {
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
    let rows = TILE * matrix.registers.len();
    count_shared(
        &mut context.report.shared_loads,
        &at,
        FULL >> (LANES - rows),
        16,
    );
    for (index, &slot) in matrix.registers.iter().enumerate() {
        let mut tile = [[0; TILE]; TILE];
        for (r, out) in tile.iter_mut().enumerate() {
            let lane = TILE * index + r;
            let mut bytes = [0; 16];
            context.load_shared(accessor(warp, lane), at[lane], &mut bytes)?;
            *out = row(bytes);
        }
        warp.registers
            .put(FULL, slot, fragment(&tile, matrix.transposed));
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
    let rows = TILE * matrix.registers.len();
    count_shared(
        &mut context.report.shared_stores,
        &at,
        FULL >> (LANES - rows),
        16,
    );
    for (index, &slot) in matrix.registers.iter().enumerate() {
        let tile = halves(&warp.registers, slot);
        for r in 0..TILE {
            let mut bytes = [0; 16];
            for c in 0..TILE {
                let from = if matrix.transposed {
                    TILE * c + r
                } else {
                    TILE * r + c
                };
                bytes[2 * c..2 * c + 2].copy_from_slice(&tile[from].to_le_bytes());
            }
            let lane = TILE * index + r;
            context.store_shared(accessor(warp, lane), at[lane], &bytes)?;
        }
    }
    Ok(())
}

/// The tile a register holds, in row-major order.
fn halves(r: &Registers, slot: Slot) -> [u16; TILE * TILE] {
    let words = r.row(slot);
    std::array::from_fn(|at| (words[at / 2] >> (16 * (at % 2))) as u16)
}

/// The even and the odd columns of the tile a register holds, as f32.
#[inline(always)]
fn columns(r: &Registers, slot: Slot, kind: Scalar) -> ([f32; LANES], [f32; LANES]) {
    let words = r.row(slot);
    let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
    match kind {
        Scalar::Bf16 => {
            for lane in 0..LANES {
                even[lane] = f32::from_bits(words[lane] << 16);
                odd[lane] = f32::from_bits(words[lane] & 0xffff_0000);
            }
        }
        _ => {
            for lane in 0..LANES {
                even[lane] = half_to_f32(words[lane] as u16);
                odd[lane] = half_to_f32((words[lane] >> 16) as u16);
            }
        }
    }
    (even, odd)
}

/// f16 to f32 without a branch, so that a tile converts eight at a time.
#[inline(always)]
fn half_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    // scaling by 2^112 moves the exponent's bias; subnormals come out normal, and the top exponent needs its own
    let value = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = if magnitude >= 0x0f80_0000 {
        0x7f80_0000
    } else {
        0
    };
    f32::from_bits(value.to_bits() | special | sign)
}

/// Eight columns of a row: the even ones, then the odd ones, as registers hold them.
type Vector = [f32; TILE];

/// `mma.sync`: D = A B + C with f32 arithmetic; hardware accumulates in f32 too, in an order of its own.
pub(super) fn multiply(r: &mut Registers, mma: &Mma) {
    let depth = usize::from(mma.k) / TILE;
    let mut acc = [[0f32; TILE]; 2 * TILE];
    read_accumulator(r, mma, &mut acc);
    for step in 0..depth {
        // B lies column by column: lane 4 n + c holds rows 2c and 2c + 1 of column n
        let (even, odd) = columns(r, mma.b[step], mma.kind);
        let mut rows: [Vector; TILE] = [[0.0; TILE]; TILE];
        for c in 0..TILE / 2 {
            for place in 0..TILE {
                let n = 2 * (place % 4) + place / 4;
                rows[2 * c][place] = even[4 * n + c];
                rows[2 * c + 1][place] = odd[4 * n + c];
            }
        }
        for half in 0..2 {
            let (even, odd) = columns(r, mma.a[2 * step + half], mma.kind);
            // two rows at a time: each row of B is loaded once for both
            for pair in 0..TILE / 2 {
                let (mut first, mut second) =
                    (acc[TILE * half + 2 * pair], acc[TILE * half + 2 * pair + 1]);
                for c in 0..TILE / 2 {
                    let (at, next) = (8 * pair + c, 8 * pair + 4 + c);
                    add_product(&mut first, even[at], &rows[2 * c]);
                    add_product(&mut second, even[next], &rows[2 * c]);
                    add_product(&mut first, odd[at], &rows[2 * c + 1]);
                    add_product(&mut second, odd[next], &rows[2 * c + 1]);
                }
                acc[TILE * half + 2 * pair] = first;
                acc[TILE * half + 2 * pair + 1] = second;
            }
        }
    }
    write_accumulator(r, mma, &acc);
}

#[inline(always)]
fn add_product(sum: &mut Vector, x: f32, row: &Vector) {
    for place in 0..TILE {
        sum[place] = x.mul_add(row[place], sum[place]);
    }
}

/// Rows 0 to 7 lie in the first half of the registers, rows 8 to 15 in the second; lane 4 r + c holds columns 2c, 2c + 1.
#[inline(always)]
fn read_accumulator(r: &Registers, mma: &Mma, acc: &mut [Vector; 2 * TILE]) {
    for half in 0..2 {
        let (even, odd) = if mma.half_accumulator {
            columns(r, mma.c[half], Scalar::F16)
        } else {
            (
                r.get::<f32>(mma.c[2 * half]),
                r.get::<f32>(mma.c[2 * half + 1]),
            )
        };
        for row in 0..TILE {
            acc[TILE * half + row][..4].copy_from_slice(&even[4 * row..4 * row + 4]);
            acc[TILE * half + row][4..].copy_from_slice(&odd[4 * row..4 * row + 4]);
        }
    }
}

#[inline(always)]
fn write_accumulator(r: &mut Registers, mma: &Mma, acc: &[Vector; 2 * TILE]) {
    for half in 0..2 {
        let mut even = [0f32; LANES];
        let mut odd = [0f32; LANES];
        for row in 0..TILE {
            even[4 * row..4 * row + 4].copy_from_slice(&acc[TILE * half + row][..4]);
            odd[4 * row..4 * row + 4].copy_from_slice(&acc[TILE * half + row][4..]);
        }
        if mma.half_accumulator {
            let mut out = [0; LANES];
            for lane in 0..LANES {
                out[lane] = f32_to_half(even[lane]) | f32_to_half(odd[lane]) << 16;
            }
            r.put(FULL, mma.d[half], out);
        } else {
            r.put(FULL, mma.d[2 * half], even);
            r.put(FULL, mma.d[2 * half + 1], odd);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

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
            // the destination overlaps the accumulator, as compilers write it
            let mma = Mma {
                kind,
                k,
                half_accumulator: false,
                d: [0, 1, 2, 3],
                a: [4, 5, 6, 7],
                b: [8, 9],
                c: [0, 1, 2, 3],
            };
            let (mut plain, mut fast) = (Registers::new(14, 2), Registers::new(14, 2));
            fill(&mut plain);
            fill(&mut fast);
            multiply(&mut plain, &mma);
            // SAFETY: `has_avx2` said so.
            unsafe { crate::exec::avx2::multiply(&mut fast, &mma) };
            for slot in 0..4 {
                assert_eq!(
                    plain.row(slot),
                    fast.row(slot),
                    "{kind:?} k {k} register {slot}"
                );
            }
        }
    }

    #[test]
    fn every_half_converts_as_the_standard_says() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(
                ours == theirs || (ours.is_nan() && theirs.is_nan()),
                "{bits:#06x}: {ours} is not {theirs}"
            );
        }
    }
}
