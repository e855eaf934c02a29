//! Products of matrices by the fragments of the PTX manual, one element after the other.
//!
//! A lane is the pair of its group (lane / 4) and its place in it (lane % 4). Register r of A holds the row of its group,
//! or the eighth below for odd r of 16 rows, and from column `place * packed` on as many neighbours as it packs; further
//! registers go on four lanes' worth of columns to the right. B is the same by columns. The accumulators of a lane are two
//! neighbours of its group's row, then two of the eighth row below.

use super::context::Context;
use super::exact::{Exact, Format};
use super::lanes::extend;
use super::matrix::{fragment, halves};
use super::registers::{FULL, LANES, Registers};
use super::warp::Warp;
use crate::class::MatrixKind;
use crate::ir::{BitProduct, Collective, Element, Product, Rounding, Scalar, Slot};

/// Runs an operation of the whole warp.
#[inline(never)]
pub(super) fn run(warp: &mut Warp, context: &mut Context<'_>, op: &Collective) {
    let r = &mut warp.registers;
    match op {
        Collective::Product(product) => {
            let products = if product.is_quads() { 4 } else { 1 };
            context.report.mma[MatrixKind::from(product.a_kind) as usize] +=
                products * 8 * u64::from(product.rows) * u64::from(product.depth);
            match product.is_quads() {
                true => multiply_quads(r, product),
                false => multiply(r, product),
            }
        }
        &Collective::MoveMatrix { d, a } => {
            let elements = halves(r, a);
            let tile: [[u16; 8]; 8] =
                std::array::from_fn(|row| std::array::from_fn(|column| elements[8 * row + column]));
            r.put(FULL, d, fragment(&tile, true));
        }
    }
}

/// A matrix of words, row by row.
struct Table {
    columns: usize,
    words: Vec<u64>,
}

impl Table {
    fn new(rows: usize, columns: usize) -> Table {
        Table {
            columns,
            words: vec![0; rows * columns],
        }
    }

    fn at(&self, row: usize, column: usize) -> u64 {
        self.words[row * self.columns + column]
    }

    fn set(&mut self, row: usize, column: usize, word: u64) {
        self.words[row * self.columns + column] = word;
    }
}

fn words(r: &Registers, slot: Slot, wide: bool) -> [u64; LANES] {
    if wide {
        r.get(slot)
    } else {
        r.get::<u32>(slot).map(u64::from)
    }
}

/// The lines of A or B: a row of A, or a column of B, by depth.
fn lines(r: &Registers, slots: &[Slot], kind: Element, count: usize, depth: usize) -> Table {
    let mut out = Table::new(count, depth);
    let (packed, bits) = (kind.packed() as usize, kind.bits());
    for (index, &slot) in slots.iter().enumerate() {
        let (below, right) = (index % (count / 8), index / (count / 8));
        for (lane, word) in words(r, slot, bits == 64).into_iter().enumerate() {
            let line = lane / 4 + 8 * below;
            let start = packed * (lane % 4 + 4 * right);
            for element in 0..packed {
                let word = word >> (element as u32 * bits);
                out.set(line, start + element, word & (u64::MAX >> (64 - bits)));
            }
        }
    }
    out
}

/// The value of an element of a float type.
fn float(kind: Element, word: u64) -> f64 {
    let format = match kind {
        Element::F64 => return f64::from_bits(word),
        // what lies below the mantissa of a tf32 is not read
        Element::Tf32 => return f32::from_bits(word as u32 & 0xffff_e000).into(),
        Element::E4m3 => Format::E4M3,
        Element::E5m2 => Format::E5M2,
        _ => Format::F16,
    };
    let wide = Exact::read(format, word).round(Format::F64, Rounding::Nearest);
    f64::from_bits(wide)
}

/// Where an accumulator lies: register, half of it, and lane, of a row and a column.
fn place(kind: Scalar, row: usize, column: usize) -> (usize, u32, usize) {
    let lane = 4 * (row % 8) + column / 2;
    match kind {
        Scalar::F16 => (row / 8, 16 * (column as u32 % 2), lane),
        _ => (2 * (row / 8) + column % 2, 0, lane),
    }
}

/// An accumulator of C; 16-bit ones as f32.
fn read_sum(kind: Scalar, word: u64, shift: u32) -> u64 {
    match kind {
        Scalar::F16 => {
            let half = Exact::read(Format::F16, word >> shift & 0xffff);
            half.round(Format::F32, Rounding::Nearest)
        }
        _ => word,
    }
}

fn multiply(r: &mut Registers, product: &Product) {
    let (rows, depth) = (product.rows as usize, product.depth as usize);
    let a = lines(r, &product.a, product.a_kind, rows, depth);
    let b = lines(r, &product.b, product.b_kind, 8, depth);
    let wide = product.accumulator == Scalar::F64;
    let source: Vec<_> = product.c.iter().map(|&slot| words(r, slot, wide)).collect();
    let mut out = vec![[0u64; LANES]; product.d.len()];
    for row in 0..rows {
        for column in 0..8 {
            let (register, shift, lane) = place(product.accumulator, row, column);
            let start = read_sum(product.accumulator, source[register][lane], shift);
            let pairs = (0..depth).map(|k| (a.at(row, k), b.at(column, k)));
            let sum = dot(product, start, pairs);
            out[register][lane] |= write_sum(product.accumulator, sum) << shift;
        }
    }
    for (&slot, words) in product.d.iter().zip(out) {
        if wide {
            r.put(FULL, slot, words);
        } else {
            r.put(FULL, slot, words.map(|word| word as u32));
        }
    }
}

fn write_sum(kind: Scalar, sum: u64) -> u64 {
    match kind {
        Scalar::F16 => Exact::read(Format::F32, sum).round(Format::F16, Rounding::Nearest),
        _ => sum,
    }
}

/// A sum of products on top of an accumulator: f64 in f64, other floats in f32, integers exactly.
fn dot(product: &Product, start: u64, pairs: impl Iterator<Item = (u64, u64)>) -> u64 {
    let (a, b) = (product.a_kind, product.b_kind);
    match (product.accumulator, product.bits) {
        (Scalar::F64, _) => pairs
            .fold(f64::from_bits(start), |sum, (x, y)| {
                f64::from_bits(x).mul_add(f64::from_bits(y), sum)
            })
            .to_bits(),
        (Scalar::S32, BitProduct::None) => {
            let value = |kind: Element, word| match kind {
                Element::Integer { bits, signed } => extend(word, bits, signed),
                _ => 0,
            };
            let sum = pairs.fold(extend(start, 32, true), |sum, (x, y)| {
                sum + value(a, x) * value(b, y)
            });
            match product.saturate {
                true => sum.clamp(i32::MIN.into(), i32::MAX.into()) as u64,
                false => sum as u64,
            }
        }
        (Scalar::S32, bits) => pairs.fold(start, |sum, (x, y)| {
            sum.wrapping_add(if bits == BitProduct::Xor {
                x ^ y
            } else {
                x & y
            })
        }),
        _ => pairs
            .fold(f32::from_bits(start as u32), |sum, (x, y)| {
                (float(a, x) as f32).mul_add(float(b, y) as f32, sum)
            })
            .to_bits()
            .into(),
    }
}

/// m8n8k4 of f16: lanes 4q to 4q + 3 and those 16 above hold a product of their own.
fn multiply_quads(r: &mut Registers, product: &Product) {
    let read = |slots: &[Slot]| -> Vec<[u64; LANES]> {
        slots.iter().map(|&slot| words(r, slot, false)).collect()
    };
    let (a, b, c) = (read(&product.a), read(&product.b), read(&product.c));
    let half = |fragment: &[[u64; LANES]], lane: usize, at: usize| {
        fragment[at / 2][lane] >> (16 * (at % 2)) & 0xffff
    };
    let mut out = vec![[0u64; LANES]; product.d.len()];
    for quad in 0..4 {
        // the lane that holds a line of A or B, and the four in the other direction
        let lane = |line: usize| 4 * quad + line % 4 + 16 * (line / 4);
        let across = |line: usize, k: usize| (4 * quad + k + 16 * (line / 4), line % 4);
        for row in 0..8 {
            for column in 0..8 {
                let sums = |kind: Scalar| match kind {
                    Scalar::F16 => (lane(row), column / 2, 16 * (column as u32 % 2)),
                    _ => {
                        let lane = 4 * quad + (row & 1) + (column & 2) + 16 * (row / 4);
                        (lane, (row & 2) + (column & 4) + (column & 1), 0)
                    }
                };
                let pairs = (0..4).map(|k| {
                    let x = match product.a_rows {
                        true => half(&a, lane(row), k),
                        false => {
                            let (lane, at) = across(row, k);
                            half(&a, lane, at)
                        }
                    };
                    let y = match product.b_columns {
                        true => half(&b, lane(column), k),
                        false => {
                            let (lane, at) = across(column, k);
                            half(&b, lane, at)
                        }
                    };
                    (x, y)
                });
                let (from, register, shift) = sums(product.source);
                let start = read_sum(product.source, c[register][from], shift);
                let sum = dot(product, start, pairs);
                let (to, register, shift) = sums(product.accumulator);
                out[register][to] |= write_sum(product.accumulator, sum) << shift;
            }
        }
    }
    for (&slot, words) in product.d.iter().zip(out) {
        r.put(FULL, slot, words.map(|word| word as u32));
    }
}
