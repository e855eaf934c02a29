//! ldmatrix, stmatrix and mma.sync.
//!
//! Each register of a fragment holds two neighbours of an 8x8 tile of 16-bit elements: lane 4 r + c holds columns 2c and
//! 2c + 1 of row r. All lanes of a register in order are therefore the tile in row-major order.

use half::{bf16, f16};

use super::context::{Context, Done, count_shared};
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
        let (low, high) = if transposed { (tile[c][r], tile[c + 1][r]) } else { (tile[r][c], tile[r][c + 1]) };
        u32::from(low) | u32::from(high) << 16
    })
}

fn accessor(warp: &Warp, lane: usize) -> Accessor {
    Accessor { warp: warp.index, lane: lane as u32, pc: warp.at, collective: true, strong: false }
}

/// `ldmatrix`: lane 8 i + r names row r of tile i.
pub(super) fn load(warp: &mut Warp, context: &mut Context<'_>, matrix: &Matrix) -> Done {
    let at = addresses(&warp.registers, matrix.address, matrix.narrow, matrix.offset);
    let rows = TILE * matrix.registers.len();
    count_shared(&mut context.report.shared_loads, &at, FULL >> (LANES - rows), 16);
    for (index, &slot) in matrix.registers.iter().enumerate() {
        let mut tile = [[0; TILE]; TILE];
        for (r, out) in tile.iter_mut().enumerate() {
            let lane = TILE * index + r;
            let mut bytes = [0; 16];
            context.load_shared(accessor(warp, lane), at[lane], &mut bytes)?;
            *out = row(bytes);
        }
        warp.registers.put(FULL, slot, fragment(&tile, matrix.transposed));
    }
    Ok(())
}

/// `stmatrix`: the other way round.
pub(super) fn store(warp: &mut Warp, context: &mut Context<'_>, matrix: &Matrix) -> Done {
    let at = addresses(&warp.registers, matrix.address, matrix.narrow, matrix.offset);
    let rows = TILE * matrix.registers.len();
    count_shared(&mut context.report.shared_stores, &at, FULL >> (LANES - rows), 16);
    for (index, &slot) in matrix.registers.iter().enumerate() {
        let tile = halves(&warp.registers, slot);
        for r in 0..TILE {
            let mut bytes = [0; 16];
            for c in 0..TILE {
                let from = if matrix.transposed { TILE * c + r } else { TILE * r + c };
                bytes[2 * c..2 * c + 2].copy_from_slice(&tile[from].to_le_bytes());
            }
            let lane = TILE * index + r;
            context.store_shared(accessor(warp, lane), at[lane], &bytes)?;
        }
    }
    Ok(())
}

/// The tile a register holds, in row-major order.
#[inline(always)]
fn halves(r: &Registers, slot: Slot) -> [u16; TILE * TILE] {
    let words = r.get::<u32>(slot);
    std::array::from_fn(|at| (words[at / 2] >> (16 * (at % 2))) as u16)
}

/// The tile a register holds, as f32.
#[inline(always)]
fn tile(r: &Registers, slot: Slot, kind: Scalar) -> [f32; TILE * TILE] {
    let halves = halves(r, slot);
    match kind {
        Scalar::Bf16 => halves.map(|bits| bf16::from_bits(bits).to_f32()),
        _ => halves.map(half_to_f32),
    }
}

/// f16 to f32 without a branch, so that a tile converts eight at a time.
#[inline(always)]
fn half_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    // scaling by 2^112 moves the exponent's bias; subnormals come out normal, and the top exponent needs its own
    let value = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value.to_bits() | special | sign)
}

/// `mma.sync`: D = A B + C with f32 arithmetic; hardware accumulates in f32 too, in an order of its own.
#[inline(always)]
pub(super) fn multiply(r: &mut Registers, mma: &Mma) {
    let depth = usize::from(mma.k) / TILE;
    let mut acc = [[0f32; TILE]; 2 * TILE];
    read_accumulator(r, mma, &mut acc);
    for step in 0..depth {
        let b = tile(r, mma.b[step], mma.kind);
        // B comes column by column: its columns become the lanes of a vector
        let mut columns = [[0f32; TILE]; TILE];
        for n in 0..TILE {
            for k in 0..TILE {
                columns[k][n] = b[TILE * n + k];
            }
        }
        for half in 0..2 {
            let a = tile(r, mma.a[2 * step + half], mma.kind);
            for row in 0..TILE {
                let mut sum = acc[TILE * half + row];
                for k in 0..TILE {
                    let x = a[TILE * row + k];
                    for n in 0..TILE {
                        sum[n] = x.mul_add(columns[k][n], sum[n]);
                    }
                }
                acc[TILE * half + row] = sum;
            }
        }
    }
    write_accumulator(r, mma, &acc);
}

/// Rows 0 to 7 lie in the first half of the registers, rows 8 to 15 in the second; lane 4 r + c holds columns 2c, 2c + 1.
#[inline(always)]
fn read_accumulator(r: &Registers, mma: &Mma, acc: &mut [[f32; TILE]; 2 * TILE]) {
    for half in 0..2 {
        if mma.half_accumulator {
            let values = tile(r, mma.c[half], Scalar::F16);
            for at in 0..TILE * TILE {
                acc[TILE * half + at / TILE][at % TILE] = values[at];
            }
            continue;
        }
        let (even, odd) = (r.get::<f32>(mma.c[2 * half]), r.get::<f32>(mma.c[2 * half + 1]));
        for lane in 0..LANES {
            acc[TILE * half + lane / 4][2 * (lane % 4)] = even[lane];
            acc[TILE * half + lane / 4][2 * (lane % 4) + 1] = odd[lane];
        }
    }
}

#[inline(always)]
fn write_accumulator(r: &mut Registers, mma: &Mma, acc: &[[f32; TILE]; 2 * TILE]) {
    for half in 0..2 {
        let mut even = [0f32; LANES];
        let mut odd = [0f32; LANES];
        for lane in 0..LANES {
            even[lane] = acc[TILE * half + lane / 4][2 * (lane % 4)];
            odd[lane] = acc[TILE * half + lane / 4][2 * (lane % 4) + 1];
        }
        if mma.half_accumulator {
            let pack = |lane: usize| {
                let half = |x: f32| u32::from(f16::from_f32(x).to_bits());
                half(even[lane]) | half(odd[lane]) << 16
            };
            r.put(FULL, mma.d[half], std::array::from_fn::<u32, LANES, _>(pack));
        } else {
            r.put(FULL, mma.d[2 * half], even);
            r.put(FULL, mma.d[2 * half + 1], odd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_converts_as_the_standard_says() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{bits:#06x}: {ours} is not {theirs}");
        }
    }
}
