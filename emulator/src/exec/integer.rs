//! Integer arithmetic, logic and shifts of all lanes.

use super::registers::Registers;
use crate::ir::{BitOp, ByteOp, IntOp, Slot, WideOp, Width};

/// Every operation of one width, for one lane: the unsigned and the signed type, and types of twice the width.
macro_rules! width {
    ($name:ident, $u:ty, $s:ty, $du:ty, $ds:ty) => {
        fn $name(op: IntOp, x: $u, y: $u, z: $u) -> $u {
            const BITS: u32 = <$u>::BITS;
            let high_u = || ((<$du>::from(x) * <$du>::from(y)) >> BITS) as $u;
            let high_s = || ((<$ds>::from(x as $s) * <$ds>::from(y as $s)) >> BITS) as $u;
            let (sx, sy) = (x as $s, y as $s);
            // shift amounts are 32-bit whatever the width, and clamp
            let amount = y as u32;
            match op {
                IntOp::Add => x.wrapping_add(y),
                IntOp::Sub => x.wrapping_sub(y),
                IntOp::Mul => x.wrapping_mul(y),
                IntOp::MulHighU => high_u(),
                IntOp::MulHighS => high_s(),
                IntOp::Mad => x.wrapping_mul(y).wrapping_add(z),
                IntOp::MadHighU => high_u().wrapping_add(z),
                IntOp::MadHighS => high_s().wrapping_add(z),
                IntOp::MadHighSat => (high_s() as $s).saturating_add(z as $s) as $u,
                // the manual leaves division by zero open; hardware gives all ones
                IntOp::DivU => x.checked_div(y).unwrap_or(<$u>::MAX),
                IntOp::DivS => {
                    if y == 0 {
                        <$u>::MAX
                    } else {
                        sx.wrapping_div(sy) as $u
                    }
                }
                IntOp::RemU => x.checked_rem(y).unwrap_or(x),
                IntOp::RemS => {
                    if y == 0 {
                        x
                    } else {
                        sx.wrapping_rem(sy) as $u
                    }
                }
                IntOp::MinU => x.min(y),
                IntOp::MinS => sx.min(sy) as $u,
                IntOp::MaxU => x.max(y),
                IntOp::MaxS => sx.max(sy) as $u,
                IntOp::AddSat => sx.saturating_add(sy) as $u,
                IntOp::SubSat => sx.saturating_sub(sy) as $u,
                IntOp::Abs => sx.wrapping_abs() as $u,
                IntOp::Neg => sx.wrapping_neg() as $u,
                IntOp::And => x & y,
                IntOp::Or => x | y,
                IntOp::Xor => x ^ y,
                IntOp::Not => !x,
                IntOp::Cnot => <$u>::from(x == 0),
                IntOp::Shl => {
                    if amount < BITS {
                        x << amount
                    } else {
                        0
                    }
                }
                IntOp::ShrU => {
                    if amount < BITS {
                        x >> amount
                    } else {
                        0
                    }
                }
                IntOp::ShrS => (sx >> amount.min(BITS - 1)) as $u,
                IntOp::Brev => x.reverse_bits(),
                IntOp::SadU => z.wrapping_add(x.abs_diff(y)),
                IntOp::SadS => z.wrapping_add(sx.abs_diff(sy)),
                IntOp::Lop3(table) => {
                    (0..8)
                        .filter(|case| table >> case & 1 != 0)
                        .fold(0, |out, case| {
                            let x = if case & 4 != 0 { x } else { !x };
                            let y = if case & 2 != 0 { y } else { !y };
                            let z = if case & 1 != 0 { z } else { !z };
                            out | x & y & z
                        })
                }
            }
        }
    };
}

width!(lane16, u16, i16, u32, i32);
width!(lane32, u32, i32, u64, i64);
width!(lane64, u64, i64, u128, i128);

#[inline(always)]
pub(super) fn int(
    r: &mut Registers,
    mask: u32,
    op: IntOp,
    width: Width,
    d: Slot,
    (a, b, c): (Slot, Slot, Slot),
) {
    // one loop for each of the operations that addresses and indices are made of
    match (width, op) {
        (Width::W32, IntOp::Add) => r.map2(mask, d, (a, b), |x: u32, y: u32| x.wrapping_add(y)),
        (Width::W32, IntOp::Sub) => r.map2(mask, d, (a, b), |x: u32, y: u32| x.wrapping_sub(y)),
        (Width::W32, IntOp::Mul) => r.map2(mask, d, (a, b), |x: u32, y: u32| x.wrapping_mul(y)),
        (Width::W32, IntOp::And) => r.map2(mask, d, (a, b), |x: u32, y: u32| x & y),
        (Width::W32, IntOp::Or) => r.map2(mask, d, (a, b), |x: u32, y: u32| x | y),
        (Width::W32, IntOp::Xor) => r.map2(mask, d, (a, b), |x: u32, y: u32| x ^ y),
        (Width::W32, IntOp::Shl) => r.map2(
            mask,
            d,
            (a, b),
            |x: u32, y: u32| if y < 32 { x << y } else { 0 },
        ),
        (Width::W64, IntOp::Add) => r.map2(mask, d, (a, b), |x: u64, y: u64| x.wrapping_add(y)),
        (Width::W64, IntOp::Mul) => r.map2(mask, d, (a, b), |x: u64, y: u64| x.wrapping_mul(y)),
        _ => int_slow(r, mask, op, width, d, (a, b, c)),
    }
}

/// Every operation of every width, lane by lane.
#[inline(never)]
fn int_slow(
    r: &mut Registers,
    mask: u32,
    op: IntOp,
    width: Width,
    d: Slot,
    (a, b, c): (Slot, Slot, Slot),
) {
    match width {
        Width::W32 => r.map3(mask, d, (a, b, c), |x: u32, y: u32, z: u32| {
            lane32(op, x, y, z)
        }),
        Width::W16 if matches!(op, IntOp::Shl | IntOp::ShrS | IntOp::ShrU) => {
            r.map2(mask, d, (a, b), |x: u16, y: u32| {
                lane16(op, x, y.min(16) as u16, 0)
            });
        }
        Width::W16 => r.map3(mask, d, (a, b, c), |x: u16, y: u16, z: u16| {
            lane16(op, x, y, z)
        }),
        Width::W64 if matches!(op, IntOp::Shl | IntOp::ShrS | IntOp::ShrU) => {
            r.map2(mask, d, (a, b), |x: u64, y: u32| lane64(op, x, y.into(), 0));
        }
        Width::W64 => r.map3(mask, d, (a, b, c), |x: u64, y: u64, z: u64| {
            lane64(op, x, y, z)
        }),
    }
}

#[inline(always)]
pub(super) fn wide(
    r: &mut Registers,
    mask: u32,
    op: WideOp,
    d: Slot,
    (a, b): (Slot, Slot),
    c: Option<Slot>,
) {
    macro_rules! product {
        ($narrow:ty, $wide:ty) => {
            match c {
                None => r.map2(mask, d, (a, b), |x: $narrow, y: $narrow| {
                    <$wide>::from(x).wrapping_mul(<$wide>::from(y))
                }),
                Some(c) => r.map3(mask, d, (a, b, c), |x: $narrow, y: $narrow, z: $wide| {
                    <$wide>::from(x)
                        .wrapping_mul(<$wide>::from(y))
                        .wrapping_add(z)
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
    let low = if kept >= 64 {
        u64::MAX
    } else {
        (1u64 << kept) - 1
    };
    let fill = if sign { !low } else { 0 };
    field & low | fill
}

fn insert(field: u64, into: u64, bits: u32, start: u32, length: u32) -> u64 {
    let (start, length) = (start & 255, length & 255);
    if length == 0 || start >= bits {
        return into;
    }
    let low = if length >= 64 {
        u64::MAX
    } else {
        (1u64 << length) - 1
    };
    let mask = low << start;
    into & !mask | field << start & mask
}

pub(super) fn bits(
    r: &mut Registers,
    mask: u32,
    op: BitOp,
    wide: bool,
    d: Slot,
    [a, b, c, e]: [Slot; 4],
) {
    let value = |lane: usize, r: &Registers, slot: Slot| {
        if wide {
            r.get::<u64>(slot)[lane]
        } else {
            r.row(slot)[lane].into()
        }
    };
    let width = if wide { 64 } else { 32 };
    let signed = |value: u64| {
        let value = if wide {
            value as i64
        } else {
            i64::from(value as i32)
        };
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
            BitOp::ExtractU => {
                full[lane] = extract(x, width, r.row(b)[lane], r.row(c)[lane], false)
            }
            BitOp::ExtractS => full[lane] = extract(x, width, r.row(b)[lane], r.row(c)[lane], true),
            BitOp::Insert => {
                full[lane] = insert(x, value(lane, r, b), width, r.row(c)[lane], r.row(e)[lane])
            }
        }
    }
    match op {
        BitOp::Popc | BitOp::Clz | BitOp::FindU { .. } | BitOp::FindS { .. } => {
            r.put(mask, d, narrow)
        }
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
        let byte = if pick & 8 != 0 {
            ((byte as i8) >> 7) as u8
        } else {
            byte
        };
        out |= u32::from(byte) << (8 * at);
    }
    out
}

#[inline(never)]
pub(super) fn bytes(r: &mut Registers, mask: u32, op: ByteOp, d: Slot, abc: (Slot, Slot, Slot)) {
    let amount = |c: u32, wrap: bool| if wrap { c & 31 } else { c.min(32) };
    match op {
        ByteOp::Prmt => r.map3(mask, d, abc, permute),
        ByteOp::ShfLeft { wrap } => r.map3(mask, d, abc, |a: u32, b: u32, c: u32| {
            (((u64::from(b) << 32 | u64::from(a)) << amount(c, wrap)) >> 32) as u32
        }),
        ByteOp::ShfRight { wrap } => r.map3(mask, d, abc, |a: u32, b: u32, c: u32| {
            ((u64::from(b) << 32 | u64::from(a)) >> amount(c, wrap)) as u32
        }),
        ByteOp::Dp4a { a_signed, b_signed } => r.map3(mask, d, abc, |a: u32, b: u32, c: u32| {
            let byte = |word: u32, at: u32, signed: bool| {
                let byte = (word >> (8 * at)) as u8;
                if signed {
                    i32::from(byte as i8)
                } else {
                    i32::from(byte)
                }
            };
            (0..4).fold(c, |sum, at| {
                sum.wrapping_add((byte(a, at, a_signed) * byte(b, at, b_signed)) as u32)
            })
        }),
    }
}
