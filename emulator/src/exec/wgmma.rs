//! wgmma: products by the four warps of a warpgroup, which run by themselves until they are waited for.
//!
//! Each warp computes its 16 of the 64 rows when it issues the instruction. What may not be touched until the wait is
//! guarded instead: the registers by [`touch`], the operands in shared memory by the race detector.

use std::collections::{BTreeMap, VecDeque};

use half::{bf16, f16};

use super::context::{Context, Done, Trouble};
use super::descriptor::Descriptor;
use super::reads::ReadId;
use super::registers::{LANES, Registers};
use super::warp::{Stop, Warp};
use crate::fault::FaultKind;
use crate::ir::{Accumulator, MatrixElement, Pc, Slot, Wgmma, WgmmaSource};
use crate::race::Accessor;

/// Warps of a warpgroup.
pub(super) const WARPS: usize = 4;
/// Rows of the product that a warp computes.
const ROWS: usize = 16;
/// Bytes of K that an instruction takes of each row.
const DEPTH_BYTES: usize = 32;

/// What a warp's products have under way.
#[derive(Debug, Default)]
pub(super) struct Products {
    /// A wgmma.fence has been executed.
    fenced: bool,
    /// Registers of products that were accessed since the last fence, and where.
    touched: BTreeMap<Slot, Pc>,
    /// Registers of products under way.
    busy: BTreeMap<Slot, Busy>,
    /// Groups that were committed.
    committed: u64,
}

/// A register of a product under way.
#[derive(Debug, Clone, Copy)]
struct Busy {
    group: u64,
    pc: Pc,
    /// N of an accumulator; `None` for a register of A.
    shape: Option<(u16, Accumulator)>,
}

/// What the warps of a warpgroup have in common.
#[derive(Debug, Default)]
pub(super) struct Warpgroup {
    /// The instructions of the warp that is ahead, from number `first` on.
    log: VecDeque<Pc>,
    first: u64,
    /// Instructions of each warp, and groups that it has committed.
    executed: [u64; WARPS],
    committed: [u64; WARPS],
    /// Reads of shared memory that are under way, with their groups.
    reads: Vec<(u64, ReadId)>,
}

impl Warpgroup {
    /// Notes an instruction of warp `number`; the one that another warp executed in its place, if that differs.
    fn note(&mut self, number: usize, pc: Pc) -> Option<Pc> {
        let at = (self.executed[number] - self.first) as usize;
        self.executed[number] += 1;
        match self.log.get(at) {
            None => self.log.push_back(pc),
            Some(&other) if other != pc => return Some(other),
            Some(_) => {}
        }
        while self.executed.iter().all(|&count| count > self.first) {
            self.log.pop_front();
            self.first += 1;
        }
        None
    }

    /// The warps have executed the same; else a warp that has not.
    pub(super) fn straggler(&self) -> Option<usize> {
        let most = self.executed.iter().max()?;
        self.executed.iter().position(|count| count < most)
    }
}

/// Guards registers of products: those of products under way may not be touched, others only before a fence.
pub(super) fn touch(warp: &mut Warp, context: &Context<'_>, pc: Pc) -> Done {
    for slot in &context.body.product_slots[pc as usize] {
        if let Some(busy) = warp.products.busy.get(slot) {
            let message = format!(
                "accesses a register of a wgmma.mma_async that was not waited for: {}",
                context.place(busy.pc)
            );
            return Err(Trouble::new(FaultKind::MissingWait, None, message));
        }
        warp.products.touched.insert(*slot, pc);
    }
    Ok(())
}

/// `wgmma.fence`
pub(super) fn fence(warp: &mut Warp) {
    warp.products.fenced = true;
    warp.products.touched.clear();
}

/// Notes an instruction that all warps of a warpgroup must execute alike; the number of the warpgroup.
fn note(warp: &Warp, context: &mut Context<'_>) -> Done<usize> {
    let size = context.block_warps;
    if warp.number / WARPS * WARPS + WARPS > size {
        let message = format!(
            "a warpgroup is four warps; the block has {size} and this is number {}",
            warp.number
        );
        return Err(Trouble::new(FaultKind::Divergence, None, message));
    }
    let group = warp.block * size.div_ceil(WARPS) + warp.number / WARPS;
    if let Some(other) = context.warpgroups[group].note(warp.number % WARPS, warp.at) {
        let message = format!(
            "the warps of a warpgroup execute different instructions: another was at {}",
            context.place(other)
        );
        return Err(Trouble::new(FaultKind::Divergence, None, message));
    }
    Ok(group)
}

/// `wgmma.commit_group`
pub(super) fn commit(warp: &mut Warp, context: &mut Context<'_>) -> Done {
    let group = note(warp, context)?;
    warp.products.committed += 1;
    context.warpgroups[group].committed[warp.number % WARPS] = warp.products.committed;
    context.changes += 1;
    Ok(())
}

/// `wgmma.wait_group`: the products of a group end when all four warps have begun them.
pub(super) fn wait(warp: &mut Warp, context: &mut Context<'_>, pending: u32) -> Option<Stop> {
    let until = warp.products.committed.saturating_sub(pending.into());
    if until == 0 {
        return None;
    }
    let size = context.block_warps;
    let number = warp.block * size.div_ceil(WARPS) + warp.number / WARPS;
    let group = &mut context.warpgroups[number];
    if group.committed.iter().any(|&committed| committed < until) {
        return Some(Stop::Retry);
    }
    let (ended, reads) = (group.reads.drain(..)).partition::<Vec<_>, _>(|&(at, _)| at < until);
    group.reads = reads;
    context.detector.agent_period();
    for (_, read) in ended {
        context.end_read(read);
    }
    context.detector.acquire_agent(warp.index);
    warp.products.busy.retain(|_, busy| busy.group >= until);
    None
}

/// `wgmma.mma_async`
pub(super) fn multiply(warp: &mut Warp, context: &mut Context<'_>, wgmma: &Wgmma) -> Done {
    let group = note(warp, context)?;
    claim(warp, context, wgmma)?;
    let mut ranges = Vec::new();
    let (n, k) = (usize::from(wgmma.n), usize::from(wgmma.k));
    let a = match wgmma.a {
        WgmmaSource::Registers(slots) => a_of_registers(&warp.registers, slots, wgmma.a_kind),
        WgmmaSource::Descriptor(slot) => {
            let first = warp.number % WARPS * ROWS;
            let descriptor = descriptor(warp, slot)?;
            let tile = Tile {
                descriptor,
                rows: first..first + ROWS,
                transposed: wgmma.a_transposed,
                element: wgmma.a_kind,
            };
            tile.read(context, &mut ranges)?
        }
    };
    let tile = Tile {
        descriptor: descriptor(warp, wgmma.b)?,
        rows: 0..n,
        transposed: wgmma.b_transposed,
        element: wgmma.b_kind,
    };
    let b = tile.read(context, &mut ranges)?;
    let by = Accessor {
        warp: warp.index,
        lane: 0,
        pc: warp.at,
        collective: true,
        strong: false,
    };
    let read = context.begin_read(by, &merged(ranges), "multiplies")?;
    context.warpgroups[group]
        .reads
        .push((warp.products.committed, read));
    let (p, negated) = wgmma.scale_d;
    let adds = (warp.registers.predicate(p) ^ if negated { u32::MAX } else { 0 }) & 1 != 0;
    if wgmma.accumulator == Accumulator::S32 {
        multiply_integers(&mut warp.registers, wgmma, &a, &b, adds);
    } else {
        multiply_floats(&mut warp.registers, wgmma, &a, &b, adds);
    }
    context.report.mma_multiply_adds += (ROWS * n * k) as u64;
    Ok(())
}

/// Judges and takes the registers of a product.
fn claim(warp: &mut Warp, context: &Context<'_>, wgmma: &Wgmma) -> Done {
    let products = &mut warp.products;
    if !products.fenced {
        let message =
            "the first wgmma.mma_async of a warp comes after a wgmma.fence, and there is none";
        return Err(Trouble::new(FaultKind::Race, None, message));
    }
    let a: &[Slot] = match &wgmma.a {
        WgmmaSource::Registers(slots) => slots,
        WgmmaSource::Descriptor(_) => &[],
    };
    for slot in wgmma.d.iter().chain(a) {
        if let Some(&pc) = products.touched.get(slot) {
            let message = format!(
                "takes a register that was accessed since the last wgmma.fence: {}",
                context.place(pc)
            );
            return Err(Trouble::new(FaultKind::Race, None, message));
        }
    }
    let shape = (wgmma.n, wgmma.accumulator);
    let busy = |shape| Busy {
        group: products.committed,
        pc: warp.at,
        shape,
    };
    for (slot, kind) in
        (wgmma.d.iter().map(|slot| (slot, Some(shape)))).chain(a.iter().map(|slot| (slot, None)))
    {
        if let Some(before) = products.busy.get(slot)
            && before.shape != kind
        {
            let message = format!(
                "takes a register of another wgmma.mma_async that was not waited for, as other than an accumulator of the \
                 same shape: {}",
                context.place(before.pc)
            );
            return Err(Trouble::new(FaultKind::MissingWait, None, message));
        }
        let busy = busy(kind);
        products.busy.insert(*slot, busy);
    }
    Ok(())
}

/// A descriptor, which is the same in all lanes.
fn descriptor(warp: &Warp, slot: Slot) -> Done<Descriptor> {
    let values = warp.registers.get::<u64>(slot);
    if let Some(lane) = values.iter().position(|&value| value != values[0]) {
        let message = format!(
            "the matrix descriptor {:#018x} of this lane is not the {:#018x} of the first",
            values[lane], values[0]
        );
        return Err(Trouble::new(FaultKind::Divergence, lane as u32, message));
    }
    Ok(Descriptor::new(values[0]))
}

/// An operand in shared memory.
struct Tile {
    descriptor: Descriptor,
    /// Rows of A or of B transposed.
    rows: std::ops::Range<usize>,
    /// M or N is contiguous, not K.
    transposed: bool,
    element: MatrixElement,
}

impl Tile {
    /// The elements row by row, and the places they were read from.
    fn read(&self, context: &Context<'_>, ranges: &mut Vec<(usize, usize)>) -> Done<Vec<f32>> {
        let size = self.element.bytes();
        let depth = DEPTH_BYTES / size;
        let mut out = vec![0.0; self.rows.len() * depth];
        let mut unit = |address: u64, mut put: Box<dyn FnMut(usize, f32) + '_>| -> Done {
            let at = context.shared_place(0, address, 16, false)?;
            ranges.push((at, 16));
            for (index, bytes) in context.shared[at..at + 16].chunks_exact(size).enumerate() {
                put(index, self.element.value(bytes));
            }
            Ok(())
        };
        let out_cell = std::cell::RefCell::new(&mut out);
        if self.transposed {
            for block in self.rows.clone().step_by(8) {
                for k in 0..depth {
                    let address = self.descriptor.unit_of_column(block as u64 / 8, k as u64);
                    let row = block - self.rows.start;
                    unit(
                        address,
                        Box::new(|index, value| {
                            out_cell.borrow_mut()[(row + index) * depth + k] = value;
                        }),
                    )?;
                }
            }
        } else {
            for row in self.rows.clone() {
                for half in 0..2 {
                    let address = self.descriptor.unit_of_row(row as u64, half as u64);
                    let start = (row - self.rows.start) * depth + half * 16 / size;
                    unit(
                        address,
                        Box::new(|index, value| out_cell.borrow_mut()[start + index] = value),
                    )?;
                }
            }
        }
        Ok(out)
    }
}

/// Neighbours joined.
fn merged(mut ranges: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    ranges.sort_unstable();
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (at, size) in ranges {
        match out.last_mut() {
            Some((start, length)) if at <= *start + *length => {
                *length = (*length).max(at + size - *start);
            }
            _ => out.push((at, size)),
        }
    }
    out
}

/// A fragment of A: lane 4 r + c holds columns of rows r and r + 8, a register four bytes of a row.
fn a_of_registers(r: &Registers, slots: [Slot; 4], element: MatrixElement) -> Vec<f32> {
    let size = element.bytes();
    let depth = DEPTH_BYTES / size;
    let each = 4 / size;
    let mut out = vec![0.0; ROWS * depth];
    for (register, &slot) in slots.iter().enumerate() {
        for (lane, word) in r.row(slot).iter().enumerate() {
            let row = lane / 4 + 8 * (register % 2);
            let column = (lane % 4) * each + register / 2 * depth / 2;
            for (index, bytes) in word.to_le_bytes().chunks_exact(size).enumerate() {
                out[row * depth + column + index] = element.value(bytes);
            }
        }
    }
    out
}

/// Row and column of the accumulator's element `at` of register `register` in a lane; two lie in a register of f16.
fn place(lane: usize, register: usize, at: usize, packed: bool) -> (usize, usize) {
    let (pair, low) = if packed {
        (register, at)
    } else {
        (register / 2, register % 2)
    };
    (lane / 4 + 8 * (pair % 2), pair / 2 * 8 + lane % 4 * 2 + low)
}

fn multiply_floats(r: &mut Registers, wgmma: &Wgmma, a: &[f32], b: &[f32], adds: bool) {
    let (n, depth) = (usize::from(wgmma.n), usize::from(wgmma.k));
    let packed = wgmma.accumulator == Accumulator::F16;
    let mut sums = vec![0f32; ROWS * n];
    if adds {
        for (register, &slot) in wgmma.d.iter().enumerate() {
            for (lane, &word) in r.row(slot).iter().enumerate() {
                for at in 0..1 + usize::from(packed) {
                    let (row, column) = place(lane, register, at, packed);
                    sums[row * n + column] = if packed {
                        f16::from_bits((word >> (16 * at)) as u16).to_f32()
                    } else {
                        f32::from_bits(word)
                    };
                }
            }
        }
    }
    let sign = if wgmma.negate_a != wgmma.negate_b {
        -1.0
    } else {
        1.0
    };
    // columns of B side by side, so that the inner loop runs along the row of the product
    let mut columns = vec![0f32; depth * n];
    for (column, row) in b.chunks_exact(depth).enumerate() {
        for (k, &value) in row.iter().enumerate() {
            columns[k * n + column] = value;
        }
    }
    for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
        for (k, values) in columns.chunks_exact(n).enumerate() {
            let factor = sign * a[row * depth + k];
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += factor * value;
            }
        }
    }
    for (register, &slot) in wgmma.d.iter().enumerate() {
        let words: [u32; LANES] = std::array::from_fn(|lane| {
            let sum = |at| {
                let (row, column) = place(lane, register, at, packed);
                sums[row * n + column]
            };
            if packed {
                let half = |at| u32::from(f16::from_f32(sum(at)).to_bits());
                half(0) | half(1) << 16
            } else {
                sum(0).to_bits()
            }
        });
        r.put(u32::MAX, slot, words);
    }
}

fn multiply_integers(r: &mut Registers, wgmma: &Wgmma, a: &[f32], b: &[f32], adds: bool) {
    let depth = usize::from(wgmma.k);
    for (register, &slot) in wgmma.d.iter().enumerate() {
        let before = *r.row(slot);
        let words: [u32; LANES] = std::array::from_fn(|lane| {
            let (row, column) = place(lane, register, 0, false);
            let (a, b) = (&a[row * depth..][..depth], &b[column * depth..][..depth]);
            let dot: i64 = a.iter().zip(b).map(|(&a, &b)| a as i64 * b as i64).sum();
            let sum = dot
                + if adds {
                    i64::from(before[lane] as i32)
                } else {
                    0
                };
            if wgmma.saturate {
                sum.clamp(i32::MIN.into(), i32::MAX.into()) as u32
            } else {
                sum as u32
            }
        });
        r.put(u32::MAX, slot, words);
    }
}

impl MatrixElement {
    /// The value of an element's bytes.
    fn value(self, bytes: &[u8]) -> f32 {
        let half = || u16::from_le_bytes([bytes[0], bytes[1]]);
        match self {
            MatrixElement::F16 => f16::from_bits(half()).to_f32(),
            MatrixElement::Bf16 => bf16::from_bits(half()).to_f32(),
            MatrixElement::Tf32 => {
                let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                // the low 13 bits are not read
                f32::from_bits(bits & !0x1fff)
            }
            MatrixElement::E4m3 => e4m3(bytes[0]),
            // the upper byte of an f16
            MatrixElement::E5m2 => f16::from_bits(u16::from(bytes[0]) << 8).to_f32(),
            MatrixElement::S8 => f32::from(bytes[0] as i8),
            MatrixElement::U8 => f32::from(bytes[0]),
        }
    }
}

/// Four bits of exponent with bias 7, three of mantissa, no infinities; all ones is NaN.
fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let value = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 != 0 { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_have_their_range() {
        for (bits, value) in [
            (0x00, 0.0),
            (0x01, 1.0 / 512.0),
            (0x08, 1.0 / 64.0),
            (0x38, 1.0),
            (0xb9, -1.125),
            (0x7e, 448.0),
        ] {
            assert_eq!(e4m3(bits), value, "{bits:#x}");
        }
        assert!(e4m3(0xff).is_nan());
        assert_eq!(MatrixElement::E5m2.value(&[0x7b]), 57344.0);
        assert_eq!(MatrixElement::E5m2.value(&[0xfc]), f32::NEG_INFINITY);
    }

    #[test]
    fn warps_of_a_warpgroup_keep_step() {
        let mut group = Warpgroup::default();
        for warp in [0, 0, 2, 1, 3] {
            assert_eq!(
                group.note(warp, if group.executed[warp] == 0 { 7 } else { 9 }),
                None
            );
        }
        assert_eq!(group.straggler(), Some(1));
        assert_eq!(group.note(1, 8), Some(9));
    }
}
