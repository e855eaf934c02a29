//! Integer arithmetic, logic and shifts of all lanes.

use super::registers::Registers;
use crate::ir::{BitOp, ByteOp, IntOp, Slot, WideOp, Width};

/// One width of [`IntOp`]: the unsigned and the signed type, and types of twice the width.
macro_rules! width {
    ($name:ident, $u:ty, $s:ty, $du:ty, $ds:ty) => {
        #[inline(always)]
        fn $name(r: &mut Registers, mask: u32, op: IntOp, d: Slot, (a, b, c): (Slot, Slot, Slot)) {
            const BITS: u32 = <$u>::BITS;
            let high_u = |x: $u, y: $u| ((<$du>::from(x) * <$du>::from(y)) >> BITS) as $u;
            let high_s = |x: $s, y: $s| ((<$ds>::from(x) * <$ds>::from(y)) >> BITS) as $s;
            match op {
                IntOp::Add => r.map2(mask, d, (a, b), |x: $u, y: $u| x.wrapping_add(y)),
                IntOp::Sub => r.map2(mask, d, (a, b), |x: $u, y: $u| x.wrapping_sub(y)),
                IntOp::Mul => r.map2(mask, d, (a, b), |x: $u, y: $u| x.wrapping_mul(y)),
                IntOp::MulHighU => r.map2(mask, d, (a, b), high_u),
                IntOp::MulHighS => r.map2(mask, d, (a, b), high_s),
                IntOp::Mad => r.map3(mask, d, (a, b, c), |x: $u, y: $u, z: $u| x.wrapping_mul(y).wrapping_add(z)),
                IntOp::MadHighU => r.map3(mask, d, (a, b, c), |x: $u, y: $u, z: $u| high_u(x, y).wrapping_add(z)),
                IntOp::MadHighS => r.map3(mask, d, (a, b, c), |x: $s, y: $s, z: $s| high_s(x, y).wrapping_add(z)),
                // the manual leaves division by zero open; hardware gives all ones
                IntOp::DivU => r.map2(mask, d, (a, b), |x: $u, y: $u| x.checked_div(y).unwrap_or(<$u>::MAX)),
                IntOp::DivS => r.map2(mask, d, (a, b), |x: $s, y: $s| if y == 0 { -1 } else { x.wrapping_div(y) }),
                IntOp::RemU => r.map2(mask, d, (a, b), |x: $u, y: $u| x.checked_rem(y).unwrap_or(x)),
                IntOp::RemS => r.map2(mask, d, (a, b), |x: $s, y: $s| if y == 0 { x } else { x.wrapping_rem(y) }),
                IntOp::MinU => r.map2(mask, d, (a, b), |x: $u, y: $u| x.min(y)),
                IntOp::MinS => r.map2(mask, d, (a, b), |x: $s, y: $s| x.min(y)),
                IntOp::MaxU => r.map2(mask, d, (a, b), |x: $u, y: $u| x.max(y)),
                IntOp::MaxS => r.map2(mask, d, (a, b), |x: $s, y: $s| x.max(y)),
                IntOp::AddSat => r.map2(mask, d, (a, b), |x: $s, y: $s| x.saturating_add(y)),
                IntOp::SubSat => r.map2(mask, d, (a, b), |x: $s, y: $s| x.saturating_sub(y)),
                IntOp::Abs => r.map1(mask, d, a, |x: $s| x.wrapping_abs()),
                IntOp::Neg => r.map1(mask, d, a, |x: $s| x.wrapping_neg()),
                IntOp::And => r.map2(mask, d, (a, b), |x: $u, y: $u| x & y),
                IntOp::Or => r.map2(mask, d, (a, b), |x: $u, y: $u| x | y),
                IntOp::Xor => r.map2(mask, d, (a, b), |x: $u, y: $u| x ^ y),
                IntOp::Not => r.map1(mask, d, a, |x: $u| !x),
                IntOp::Cnot => r.map1(mask, d, a, |x: $u| <$u>::from(x == 0)),
                IntOp::Shl => r.map2(mask, d, (a, b), |x: $u, y: u32| if y < BITS { x << y } else { 0 }),
                IntOp::ShrU => r.map2(mask, d, (a, b), |x: $u, y: u32| if y < BITS { x >> y } else { 0 }),
                IntOp::ShrS => r.map2(mask, d, (a, b), |x: $s, y: u32| x >> y.min(BITS - 1)),
                IntOp::Brev => r.map1(mask, d, a, |x: $u| x.reverse_bits()),
                IntOp::SadU => r.map3(mask, d, (a, b, c), |x: $u, y: $u, z: $u| z.wrapping_add(x.abs_diff(y))),
                IntOp::SadS => r.map3(mask, d, (a, b, c), |x: $s, y: $s, z: $u| z.wrapping_add(x.abs_diff(y))),
                IntOp::Lop3(table) => r.map3(mask, d, (a, b, c), |x: $u, y: $u, z: $u| {
                    let mut out = 0;
                    for case in 0..8 {
                        if table >> case & 1 != 0 {
                            let x = if case & 4 != 0 { x } else { !x };
                            let y = if case & 2 != 0 { y } else { !y };
                            let z = if case & 1 != 0 { z } else { !z };
                            out |= x & y & z;
                        }
                    }
                    out
                }),
            }
        }
    };
}

width!(run16, u16, i16, u32, i32);
width!(run32, u32, i32, u64, i64);
width!(run64, u64, i64, u128, i128);

#[inline(always)]
pub(super) fn int(r: &mut Registers, mask: u32, op: IntOp, width: Width, d: Slot, abc: (Slot, Slot, Slot)) {
    match width {
        Width::W32 => run32(r, mask, op, d, abc),
        Width::W64 => run64(r, mask, op, d, abc),
        Width::W16 => run16(r, mask, op, d, abc),
    }
}

#[inline(always)]
pub(super) fn wide(r: &mut Registers, mask: u32, op: WideOp, d: Slot, (a, b): (Slot, Slot), c: Option<Slot>) {
    macro_rules! product {
        ($narrow:ty, $wide:ty) => {
            match c {
                None => r.map2(mask, d, (a, b), |x: $narrow, y: $narrow| <$wide>::from(x).wrapping_mul(<$wide>::from(y))),
                Some(c) => r.map3(mask, d, (a, b, c), |x: $narrow, y: $narrow, z: $wide| {
                    <$wide>::from(x).wrapping_mul(<$wide>::from(y)).wrapping_add(z)
                }),
            }
        };
    }
    match op {
        WideOp::S16 => product!(i16, i32),
        WideOp::U16 => product!(u16, u32),
        WideOp::S32 => product!(i32, i64),
        WideOp::U32 => product!(u32, u64),
    }
}

/// Bit of the highest bit that differs from the sign, or all ones; `shift` counts from the top.
fn find(value: u64, bits: u32, shift: bool) -> u32 {
    if value == 0 {
        return u32::MAX;
    }
    let at = 63 - value.leading_zeros();
    if shift { bits - 1 - at } else { at }
}

/// The field of `length` bits at `start`; signed fields end with their highest bit, or the word's.
fn extract(value: u64, bits: u32, start: u32, length: u32, signed: bool) -> u64 {
    let (start, length) = (start & 255, length & 255);
    if length == 0 {
        return 0;
    }
    let end = (start + length).min(bits);
    let sign = signed && value >> (end.min(bits) - 1) & 1 != 0;
    let field = if start < bits { value >> start } else { 0 };
    let kept = end.saturating_sub(start);
    let low = if kept >= 64 { u64::MAX } else { (1u64 << kept) - 1 };
    let fill = if sign { !low } else { 0 };
    field & low | fill
}

fn insert(field: u64, into: u64, bits: u32, start: u32, length: u32) -> u64 {
    let (start, length) = (start & 255, length & 255);
    if length == 0 || start >= bits {
        return into;
    }
    let low = if length >= 64 { u64::MAX } else { (1u64 << length) - 1 };
    let mask = low << start;
    into & !mask | field << start & mask
}

pub(super) fn bits(r: &mut Registers, mask: u32, op: BitOp, wide: bool, d: Slot, [a, b, c, e]: [Slot; 4]) {
    let value = |lane: usize, r: &Registers, slot: Slot| if wide { r.get::<u64>(slot)[lane] } else { r.row(slot)[lane].into() };
    let width = if wide { 64 } else { 32 };
    let signed = |value: u64| {
        let value = if wide { value as i64 } else { i64::from(value as i32) };
        (if value < 0 { !value } else { value }) as u64
    };
    let mut narrow = [0u32; 32];
    let mut full = [0u64; 32];
    for lane in 0..32 {
        let x = value(lane, r, a);
        match op {
            BitOp::Popc => narrow[lane] = x.count_ones(),
            BitOp::Clz => narrow[lane] = x.leading_zeros() - (64 - width),
            BitOp::FindU { shift } => narrow[lane] = find(x, width, shift),
            BitOp::FindS { shift } => narrow[lane] = find(signed(x), width, shift),
            BitOp::ExtractU => full[lane] = extract(x, width, r.row(b)[lane], r.row(c)[lane], false),
            BitOp::ExtractS => full[lane] = extract(x, width, r.row(b)[lane], r.row(c)[lane], true),
            BitOp::Insert => full[lane] = insert(x, value(lane, r, b), width, r.row(c)[lane], r.row(e)[lane]),
        }
    }
    match op {
        BitOp::Popc | BitOp::Clz | BitOp::FindU { .. } | BitOp::FindS { .. } => r.put(mask, d, narrow),
        _ if wide => r.put(mask, d, full),
        _ => r.put(mask, d, full.map(|value| value as u32)),
    }
}

fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(a) | u64::from(b) << 32;
    let mut out = 0;
    for at in 0..4 {
        let pick = selector >> (4 * at);
        let byte = (bytes >> (8 * (pick & 7))) as u8;
        // the top bit of a selector replicates the sign of its byte
        let byte = if pick & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        out |= u32::from(byte) << (8 * at);
    }
    out
}

#[inline(always)]
pub(super) fn bytes(r: &mut Registers, mask: u32, op: ByteOp, d: Slot, abc: (Slot, Slot, Slot)) {
    let amount = |c: u32, wrap: bool| if wrap { c & 31 } else { c.min(32) };
    match op {
        ByteOp::Prmt => r.map3(mask, d, abc, permute),
        ByteOp::ShfLeft { wrap } => r.map3(mask, d, abc, |a: u32, b: u32, c: u32| {
            (((u64::from(b) << 32 | u64::from(a)) << amount(c, wrap)) >> 32) as u32
        }),
        ByteOp::ShfRight { wrap } => {
            r.map3(mask, d, abc, |a: u32, b: u32, c: u32| ((u64::from(b) << 32 | u64::from(a)) >> amount(c, wrap)) as u32)
        }
        ByteOp::Dp4a { a_signed, b_signed } => r.map3(mask, d, abc, |a: u32, b: u32, c: u32| {
            let byte = |word: u32, at: u32, signed: bool| {
                let byte = (word >> (8 * at)) as u8;
                if signed { i32::from(byte as i8) } else { i32::from(byte) }
            };
            (0..4).fold(c, |sum, at| sum.wrapping_add((byte(a, at, a_signed) * byte(b, at, b_signed)) as u32))
        }),
    }
}
