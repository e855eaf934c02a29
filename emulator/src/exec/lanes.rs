//! What each lane computes for itself, an operation at a time: see [`LaneOp`].

use super::exact::{Exact, Format};
use super::float::{flush_if, relation};
use super::registers::{LANES, Registers};
use super::video;
use crate::ir::{
    Carry, CarryOp, Cmp, FloatOp, LaneOp, Lanes, Logic, PairOp, Property, Rounding, Scalar, Small,
    Source, Target,
};

/// Runs an operation in the lanes of `mask`.
#[inline(never)]
pub(super) fn run(r: &mut Registers, mask: u32, lanes: &Lanes) {
    let mut inputs = [[0u64; LANES]; 4];
    for (input, source) in inputs.iter_mut().zip(&lanes.sources) {
        *input = match *source {
            Source::Narrow(slot) => r.get::<u32>(slot).map(u64::from),
            Source::Wide(slot) => r.get(slot),
            Source::Predicate(p, negated) => {
                let bits = r.predicate(p) ^ if negated { u32::MAX } else { 0 };
                std::array::from_fn(|lane| u64::from(bits >> lane & 1))
            }
        };
    }
    let [a, b, c, e] = inputs;
    let out: [u64; LANES] = std::array::from_fn(|lane| {
        if mask >> lane & 1 == 0 {
            return 0;
        }
        one(&lanes.op, [a[lane], b[lane], c[lane], e[lane]])
    });
    let bits = |at: u32| {
        (0..LANES).fold(0, |bits, lane| {
            bits | ((out[lane] >> at & 1) as u32) << lane
        })
    };
    match lanes.to {
        Target::Narrow(slot) => r.put(mask, slot, out.map(|value| value as u32)),
        Target::Wide(slot) => r.put(mask, slot, out),
        Target::Predicates(p, q) => {
            r.set_predicate(mask, p, bits(0));
            r.set_predicate(mask, q, bits(1));
        }
        Target::NarrowAndPredicate(slot, p) => {
            r.put(mask, slot, out.map(|value| value as u32));
            r.set_predicate(mask, p, bits(32));
        }
    }
}

/// The low bits of a word as a number.
pub(super) fn extend(value: u64, bits: u32, signed: bool) -> i64 {
    let unused = 64 - bits;
    if signed {
        (value << unused) as i64 >> unused
    } else {
        (value << unused >> unused) as i64
    }
}

fn combine(logic: Option<Logic>, a: bool, b: bool) -> bool {
    match logic {
        None => a,
        Some(Logic::And) => a & b,
        Some(Logic::Or) => a | b,
        Some(Logic::Xor) => a ^ b,
    }
}

fn one(op: &LaneOp, x: [u64; 4]) -> u64 {
    let [a, b, c, _] = x;
    match *op {
        LaneOp::Fns => find_nth(a as u32, b as u32, c as i32).into(),
        LaneOp::Szext { signed, wrap } => match (b as u32, wrap) {
            (0, _) => 0,
            (32.., false) => a,
            (bits, _) if bits % 32 == 0 => 0,
            (bits, _) => extend(a, bits % 32, signed) as u32 as u64,
        },
        LaneOp::Bmsk { wrap } => run_of_ones(a as u32, b as u32, wrap).into(),
        LaneOp::Dp2a {
            a_signed,
            b_signed,
            high,
        } => {
            let first = if high { 2 } else { 0 };
            (0..2).fold(c, |sum, at| {
                let x = extend(a >> (16 * at), 16, a_signed);
                let y = extend(b >> (8 * (first + at)), 8, b_signed);
                sum.wrapping_add((x * y) as u64)
            })
        }
        LaneOp::Mul24 {
            signed,
            high,
            add,
            saturate,
        } => {
            let product = extend(a, 24, signed) * extend(b, 24, signed);
            let half = if high { product >> 16 } else { product };
            let half = extend(half as u64, 32, signed);
            let sum = half + if add { extend(c, 32, signed) } else { 0 };
            if saturate {
                sum.clamp(i32::MIN.into(), i32::MAX.into()) as u64
            } else {
                sum as u64
            }
        }
        LaneOp::Prmt(ref bytes) => {
            let both = a | b << 32;
            bytes[(c & 3) as usize]
                .iter()
                .rev()
                .fold(0, |out, &byte| out << 8 | both >> (8 * byte) & 0xff)
        }
        LaneOp::Lop3 { table, logic } => {
            let value = (0..32).fold(0, |out, bit| {
                let case = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1;
                out | u64::from(table >> case & 1) << bit
            });
            let holds = combine(Some(logic), value != 0, x[3] != 0);
            value | u64::from(holds) << 32
        }
        LaneOp::Pair16 { op, signed, relu } => {
            let half = |at: u32| {
                let x = extend(a >> at, 16, signed);
                let y = extend(b >> at, 16, signed);
                let value = match op {
                    PairOp::Add => x + y,
                    PairOp::Min => x.min(y),
                    PairOp::Max => x.max(y),
                };
                let value = if relu { value.max(0) } else { value };
                u64::from(value as u16) << at
            };
            half(0) | half(16)
        }
        LaneOp::Relu32 { max } => {
            let (x, y) = (a as i32, b as i32);
            let value = if max { x.max(y) } else { x.min(y) };
            value.max(0) as u64
        }
        LaneOp::Property { property, kind } => u64::from(has(property, kind, a)),
        LaneOp::Float {
            op,
            kind,
            rounding,
            flush,
            saturate,
            xor_sign,
        } => parts(kind, [a, b, c], |format, x| {
            let flushed = |bits| {
                if flush {
                    flush_bits(format, bits)
                } else {
                    bits
                }
            };
            let x = x.map(flushed);
            if xor_sign {
                return flushed(magnitudes(op, format, x[0], x[1]));
            }
            let [x, y, z] = x.map(|bits| Exact::read(format, bits));
            let down = rounding == Rounding::Down;
            let value = match op {
                FloatOp::Add => x.plus(y, down),
                FloatOp::Sub => x.plus(y.negate(), down),
                FloatOp::Mul => x.times(y),
                FloatOp::Fma => x.times(y).plus(z, down),
                FloatOp::Div => x.over(y),
                FloatOp::Rcp => Exact::whole(1).over(x),
                FloatOp::Sqrt => x.root(),
                _ => Exact::Nan,
            };
            let bits = flushed(value.round(format, rounding));
            if saturate {
                clamp_to_one(format, bits)
            } else {
                bits
            }
        }),
        LaneOp::Gross { root } => {
            let x = f64::from_bits(flush_bits(Format::F64, a & !0xffff_ffff));
            let value = 1.0 / if root { x.sqrt() } else { x };
            if value.is_nan() {
                Format::F64.nan()
            } else {
                flush_bits(Format::F64, value.to_bits()) & !0xffff_ffff
            }
        }
        LaneOp::ComparePair {
            cmp,
            kind,
            flush,
            logic,
        } => (0..2).fold(0, |bits, at| {
            let holds = compare(cmp, kind, flush, a >> (16 * at), b >> (16 * at));
            bits | u64::from(combine(logic, holds, c != 0)) << at
        }),
        LaneOp::Set {
            cmp,
            kind,
            to,
            flush,
            logic,
        } => {
            let count = u32::from(matches!(kind, Scalar::F16x2 | Scalar::Bf16x2)) + 1;
            (0..count).fold(0, |out, at| {
                let holds = compare(cmp, kind, flush, a >> (16 * at), b >> (16 * at));
                if combine(logic, holds, c != 0) {
                    out | yes(to) << (16 * at)
                } else {
                    out
                }
            })
        }
        LaneOp::ConvertPair {
            to,
            rounding,
            relu,
            finite,
        } => {
            let convert = |bits| narrow(Exact::read(Format::F32, bits), to, rounding, relu, finite);
            convert(a) << width(to) | convert(b)
        }
        LaneOp::ConvertHalves { to, relu } => {
            let convert = |bits: u64| {
                let value = Exact::read(Format::F16, bits & 0xffff);
                narrow(value, to, Rounding::Nearest, relu, true)
            };
            convert(a >> 16) << 8 | convert(a)
        }
        LaneOp::Widen { from, relu } => {
            let convert = |bits: u64| {
                let value = Exact::read(format_of(from), bits & 0xff);
                narrow(value, Small::F16, Rounding::Nearest, relu, false)
            };
            convert(a >> 8) << 16 | convert(a)
        }
        LaneOp::Pack {
            bits,
            signed,
            keeps,
        } => {
            let (low, high) = match signed {
                true => (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1),
                false => (0, (1i64 << bits) - 1),
            };
            let convert = |value| {
                let value = extend(value, 32, true).clamp(low, high);
                value as u64 & ((1 << bits) - 1)
            };
            let above = if keeps { c << (2 * bits) } else { 0 };
            above | convert(a) << bits | convert(b)
        }
        LaneOp::Video(ref video) => video::scalar(video, a, b, c),
        LaneOp::VideoMad { .. } => video::multiply_add(op, a, b, c),
        LaneOp::VideoParts(ref parts) => video::parts(parts, a, b, c).into(),
    }
}

/// `fns`
fn find_nth(mask: u32, base: u32, offset: i32) -> u32 {
    let set = |at: i64| (0..32).contains(&at) && mask >> at & 1 != 0;
    let mut at = i64::from(base);
    if offset == 0 {
        return if set(at) { base } else { u32::MAX };
    }
    let mut left = offset.unsigned_abs();
    while (0..32).contains(&at) {
        left -= u32::from(set(at));
        if left == 0 {
            return at as u32;
        }
        at += i64::from(offset.signum());
    }
    u32::MAX
}

/// `bmsk`
fn run_of_ones(start: u32, length: u32, wrap: bool) -> u32 {
    if !wrap && start >= 32 {
        return 0;
    }
    let length = match wrap {
        true => length % 32,
        false => length.min(32),
    };
    let ones = (1u64 << length) - 1;
    (ones << (start % 32)) as u32
}

fn has(property: Property, kind: Scalar, bits: u64) -> bool {
    let class = match kind {
        Scalar::F64 => f64::from_bits(bits).classify(),
        _ => f32::from_bits(bits as u32).classify(),
    };
    use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal, Zero};
    match property {
        Property::Finite => !matches!(class, Infinite | Nan),
        Property::Infinite => class == Infinite,
        Property::Number => class != Nan,
        Property::NotANumber => class == Nan,
        Property::Normal => matches!(class, Normal | Zero),
        Property::Subnormal => class == Subnormal,
    }
}

/// Applies a function to a value, or to both halves of a pair.
fn parts(kind: Scalar, x: [u64; 3], f: impl Fn(Format, [u64; 3]) -> u64) -> u64 {
    let format = Format::of(kind).unwrap_or(Format::F32);
    let pick = |at: u32, bits: u32| x.map(|word| word >> at & (u64::MAX >> (64 - bits)));
    match kind {
        Scalar::F16x2 | Scalar::Bf16x2 => f(format, pick(0, 16)) | f(format, pick(16, 16)) << 16,
        _ => f(format, pick(0, 8 * kind.bytes())),
    }
}

/// Subnormals become zero of their sign.
fn flush_bits(format: Format, bits: u64) -> u64 {
    let sign = format.nan() + 1;
    let subnormal = bits & (sign - 1) < 1 << format.mantissa;
    if subnormal { bits & sign } else { bits }
}

/// `.sat`: NaN and negative numbers become +0.
fn clamp_to_one(format: Format, bits: u64) -> u64 {
    let one = Exact::whole(1).round(format, Rounding::Nearest);
    let number = Exact::read(format, bits);
    if number.is_negative() || number == Exact::Nan {
        0
    } else {
        bits.min(one)
    }
}

/// `min.xorsign.abs` and its like: the lesser or greater magnitude, with the product of the signs.
fn magnitudes(op: FloatOp, format: Format, x: u64, y: u64) -> u64 {
    let sign = format.nan() + 1;
    let (a, b) = (x & (sign - 1), y & (sign - 1));
    let nan = |bits| Exact::read(format, bits) == Exact::Nan;
    let takes_nan = matches!(op, FloatOp::MinNan | FloatOp::MaxNan);
    // magnitudes are ordered as their bits are
    let magnitude = match (nan(a), nan(b)) {
        (true, true) => return format.nan(),
        (true, false) | (false, true) if takes_nan => return format.nan(),
        (true, false) => b,
        (false, true) => a,
        _ if matches!(op, FloatOp::Min | FloatOp::MinNan) => a.min(b),
        _ => a.max(b),
    };
    magnitude | (x ^ y) & sign
}

fn compare(cmp: Cmp, kind: Scalar, flush: bool, a: u64, b: u64) -> bool {
    let Some(format) = Format::of(kind) else {
        let bits = 8 * kind.bytes();
        return match kind {
            Scalar::S16 | Scalar::S32 | Scalar::S64 => {
                relation(cmp, extend(a, bits, true), extend(b, bits, true))
            }
            _ => relation(
                cmp,
                extend(a, bits, false) as u64,
                extend(b, bits, false) as u64,
            ),
        };
    };
    let value = |bits: u64| match format {
        Format::F64 => f64::from_bits(bits),
        Format::F32 => flush_if(flush, f32::from_bits(bits as u32)).into(),
        _ => {
            let bits = bits & 0xffff;
            let bits = if flush {
                flush_bits(format, bits)
            } else {
                bits
            };
            let wide = Exact::read(format, bits).round(Format::F64, Rounding::Nearest);
            f64::from_bits(wide)
        }
    };
    relation(cmp, value(a), value(b))
}

/// What `set` writes where its comparison holds.
fn yes(to: Scalar) -> u64 {
    match Format::of(to) {
        Some(format) => Exact::whole(1).round(format, Rounding::Nearest),
        None => u64::MAX >> (64 - 8 * to.bytes()),
    }
}

fn format_of(small: Small) -> Format {
    match small {
        Small::F16 => Format::F16,
        Small::Bf16 => Format::BF16,
        Small::E4m3 => Format::E4M3,
        Small::E5m2 => Format::E5M2,
    }
}

fn width(small: Small) -> u32 {
    match small {
        Small::F16 | Small::Bf16 => 16,
        Small::E4m3 | Small::E5m2 => 8,
    }
}

/// A value in a narrow format; those below zero become +0 with `relu`.
fn narrow(value: Exact, to: Small, rounding: Rounding, relu: bool, finite: bool) -> u64 {
    let format = format_of(to);
    if relu && value.negate().is_positive() {
        return 0;
    }
    if finite {
        value.round_finite(format, rounding)
    } else {
        value.round(format, rounding)
    }
}

/// `add.cc`, `madc` and their like.
#[inline(never)]
pub(super) fn carry(r: &mut Registers, mask: u32, op: &Carry) {
    let read = |slot| -> [u64; LANES] {
        if op.wide {
            r.get(slot)
        } else {
            r.get::<u32>(slot).map(u64::from)
        }
    };
    let (a, b, c) = (read(op.a), read(op.b), read(op.c));
    let flag = if op.reads { r.predicate(op.flag) } else { 0 };
    let bits = if op.wide { 64 } else { 32 };
    let keep = (1u128 << bits) - 1;
    let mut out = [0u64; LANES];
    let mut carries = 0;
    for lane in 0..LANES {
        let carry = u128::from(flag >> lane & 1);
        let (x, y, z) = (
            u128::from(a[lane]),
            u128::from(b[lane]),
            u128::from(c[lane]),
        );
        // a borrow leaves bits above the word
        let sum = match op.op {
            CarryOp::Add => x + y + carry,
            CarryOp::Sub => x.wrapping_sub(y + carry),
            CarryOp::Mad { high, signed } => {
                let product = if signed {
                    let x = i128::from(extend(a[lane], bits, true));
                    (x * i128::from(extend(b[lane], bits, true))) as u128
                } else {
                    x * y
                };
                let half = if high { product >> bits } else { product };
                (half & keep) + z + carry
            }
        };
        out[lane] = (sum & keep) as u64;
        carries |= u32::from(sum > keep) << lane;
    }
    if op.wide {
        r.put(mask, op.d, out);
    } else {
        r.put(mask, op.d, out.map(|value| value as u32));
    }
    if op.writes {
        r.set_predicate(mask, op.flag, carries);
    }
}
