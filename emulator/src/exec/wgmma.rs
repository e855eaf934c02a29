//! wgmma: products by the four warps of a warpgroup, which run by themselves until they are waited for.
//!
//! Each warp computes its 16 of the 64 rows when it issues the instruction. What may not be touched until the wait is
//! guarded instead: the registers by [`touch`], the operands in shared memory by the race detector.

use std::collections::VecDeque;

use half::f16;

use super::context::{Context, Done, Trouble};
use super::descriptor::Descriptor;
use super::reads::Read;
use super::registers::{LANES, Registers};
use super::warp::{Stop, Warp};
use crate::class::MatrixKind;
use crate::fault::FaultKind;
use crate::ir::{Accumulator, MatrixElement, Pc, Slot, Wgmma, WgmmaSource};
use crate::race::{Accessor, AgentLane};

/// Warps of a warpgroup.
pub(super) const WARPS: usize = 4;
/// Rows of the product that a warp computes.
const ROWS: usize = 16;
/// Bytes that lie together in shared memory, whatever the layout.
const UNIT: usize = 16;
/// Bytes of K that an instruction takes of each row.
const DEPTH_BYTES: usize = 32;

/// What a warp's products have under way.
#[derive(Debug, Default)]
pub(super) struct Products {
    /// A wgmma.fence has been executed.
    fenced: bool,
    /// Registers of products, by their slots; empty until the first access.
    registers: Vec<Register>,
    /// Slots that were accessed since the last fence, and those of products under way.
    touched: Vec<Slot>,
    busy: Vec<Slot>,
    /// Groups that were committed.
    committed: u64,
}

/// What is known of a register.
#[derive(Debug, Clone, Copy, Default)]
struct Register {
    /// Where it was accessed since the last fence.
    touched: Option<Pc>,
    /// The product under way that it belongs to.
    busy: Option<Busy>,
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
    reads: Vec<(u64, Read)>,
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
    let slots = &context.body.product_slots[pc as usize];
    if slots.is_empty() {
        return Ok(());
    }
    let products = &mut warp.products;
    products
        .registers
        .resize(context.body.rows as usize, Register::default());
    for &slot in slots {
        let register = &mut products.registers[usize::from(slot)];
        if let Some(busy) = register.busy {
            let message = format!(
                "accesses a register of a wgmma.mma_async that was not waited for: {}",
                context.place(busy.pc)
            );
            return Err(Trouble::new(FaultKind::MissingWait, None, message));
        }
        if register.touched.replace(pc).is_none() {
            products.touched.push(slot);
        }
    }
    Ok(())
}

/// `wgmma.fence`
pub(super) fn fence(warp: &mut Warp) {
    let products = &mut warp.products;
    products.fenced = true;
    for slot in products.touched.drain(..) {
        products.registers[usize::from(slot)].touched = None;
    }
}

/// Notes an instruction that all warps of a warpgroup must execute alike; the number of the warpgroup.
pub(super) fn note(warp: &Warp, context: &mut Context<'_>) -> Done<usize> {
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
    let lane = AgentLane::of_products(number);
    for (_, read) in ended {
        context.end_read(read, lane);
    }
    context.detector.acquire_agent(warp.index, Some(lane));
    let Products {
        registers, busy, ..
    } = &mut warp.products;
    busy.retain(|&slot| {
        let register = &mut registers[usize::from(slot)];
        register.busy = register.busy.filter(|busy| busy.group >= until);
        register.busy.is_some()
    });
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
    let read = context.begin_read(by, merged(ranges), "multiplies")?;
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
    context.report.mma[MatrixKind::from(wgmma.a_kind) as usize] += (ROWS * n * k) as u64;
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
    let shape = (wgmma.n, wgmma.accumulator);
    products
        .registers
        .resize(context.body.rows as usize, Register::default());
    let accumulators = wgmma.d.iter().map(|slot| (slot, Some(shape)));
    for (&slot, shape) in accumulators.chain(a.iter().map(|slot| (slot, None))) {
        let register = &mut products.registers[usize::from(slot)];
        if let Some(pc) = register.touched {
            let message = format!(
                "takes a register that was accessed since the last wgmma.fence: {}",
                context.place(pc)
            );
            return Err(Trouble::new(FaultKind::Race, None, message));
        }
        match register.busy {
            Some(before) if before.shape != shape => {
                let message = format!(
                    "takes a register of another wgmma.mma_async that was not waited for, as other than an accumulator \
                     of the same shape: {}",
                    context.place(before.pc)
                );
                return Err(Trouble::new(FaultKind::MissingWait, None, message));
            }
            Some(_) => {}
            None => products.busy.push(slot),
        }
        register.busy = Some(Busy {
            group: products.committed,
            pc: warp.at,
            shape,
        });
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
        let depth = DEPTH_BYTES / self.element.bytes();
        let each = UNIT / self.element.bytes();
        let mut out = vec![0.0; self.rows.len() * depth];
        let mut values = [0.0; UNIT];
        let mut unit = |address: u64, values: &mut [f32]| -> Done {
            let at = context.shared_place((Pc::MAX, 0), address, UNIT, false)?;
            ranges.push((at, UNIT));
            self.element.decode(&context.shared[at..at + UNIT], values);
            Ok(())
        };
        if self.transposed {
            for start in self.rows.clone().step_by(8) {
                let first = start - self.rows.start;
                for k in 0..depth {
                    let address = self.descriptor.unit_of_column(start as u64 / 8, k as u64);
                    unit(address, &mut values[..each])?;
                    for (index, &value) in values[..each].iter().enumerate() {
                        out[(first + index) * depth + k] = value;
                    }
                }
            }
        } else {
            for (row, out) in self.rows.clone().zip(out.chunks_exact_mut(depth)) {
                for (half, out) in out.chunks_exact_mut(each).enumerate() {
                    unit(self.descriptor.unit_of_row(row as u64, half as u64), out)?;
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
    accumulate(&mut sums, a, &columns, (n, sign));
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

/// Adds the product of A, times a sign, and the columns of B to rows of `n` sums, by the host's means.
fn accumulate(sums: &mut [f32], a: &[f32], columns: &[f32], (n, sign): (usize, f32)) {
    #[cfg(target_arch = "x86_64")]
    if super::interpret::has_avx2() {
        // SAFETY: the features were just detected.
        return unsafe { accumulate_avx2(sums, a, columns, (n, sign)) };
    }
    accumulate_on(sums, a, columns, (n, sign));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn accumulate_avx2(sums: &mut [f32], a: &[f32], columns: &[f32], (n, sign): (usize, f32)) {
    accumulate_on(sums, a, columns, (n, sign));
}

#[inline(always)]
fn accumulate_on(sums: &mut [f32], a: &[f32], columns: &[f32], (n, sign): (usize, f32)) {
    let depth = columns.len() / n;
    for (sums, a) in sums.chunks_exact_mut(n).zip(a.chunks_exact(depth)) {
        for (values, &a) in columns.chunks_exact(n).zip(a) {
            let factor = sign * a;
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += factor * value;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
