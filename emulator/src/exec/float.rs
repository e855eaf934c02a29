//! Floating-point arithmetic, comparisons and conversions of all lanes.

use std::cmp::Ordering;

use half::{bf16, f16};

use super::registers::Registers;
use crate::ir::{Cmp, Convert, FloatOp, Rounding, Scalar, Slot};

/// Subnormals become zero of their sign.
#[inline(always)]
fn flush_if(flush: bool, value: f32) -> f32 {
    let subnormal = value.to_bits() & 0x7f80_0000 == 0;
    if flush && subnormal {
        f32::from_bits(value.to_bits() & 0x8000_0000)
    } else {
        value
    }
}

#[inline(always)]
fn saturate_if(saturate: bool, value: f32) -> f32 {
    // NaN saturates to 0
    if saturate {
        if value > 0.0 { value.min(1.0) } else { 0.0 }
    } else {
        value
    }
}

/// The lesser number; a NaN gives way to a number, and -0 is less than +0.
#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    let less = if a == b { a.is_sign_negative() } else { a < b };
    if b.is_nan() || less { a } else { b }
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    let more = if a == b { b.is_sign_negative() } else { a > b };
    if b.is_nan() || more { a } else { b }
}

/// 2^x with an error of at most 2 units in the last place, as the manual bounds `ex2.approx`; no branch, so that lanes
/// run side by side.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let clamped = x.clamp(-160.0, 160.0);
    // nearest whole number by the trick of adding 1.5 * 2^23
    let whole = (clamped + 12_582_912.0) - 12_582_912.0;
    let t = clamped - whole;
    // 2^t on [-1/2, 1/2]: the Taylor series of e^(t ln 2) to degree 7, whose rest is below 2^-26
    let mut p = 1.525_273_4e-5_f32;
    p = p.mul_add(t, 1.540_353_e-4);
    p = p.mul_add(t, 1.333_355_8e-3);
    p = p.mul_add(t, 9.618_129e-3);
    p = p.mul_add(t, 5.550_411e-2);
    p = p.mul_add(t, 2.402_265e-1);
    p = p.mul_add(t, 6.931_472e-1);
    p = p.mul_add(t, 1.0);
    // in two steps, so that results below the normal range are reached
    let whole = whole as i32;
    let half = whole >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let value = p * power(half) * power(whole - half);
    if x.is_nan() { f32::NAN } else { value }
}

/// An f64 rounded to f32 in the given direction; `exact` tells on which side of `value` the true result lies.
fn round_to_f32(value: f64, rest: f64, rounding: Rounding) -> f32 {
    let near = value as f32;
    if !near.is_finite() || value.is_infinite() {
        if value.is_finite() {
            // overflow: directed rounding stops at the largest number on its inner side
            return match (rounding, value > 0.0) {
                (Rounding::Nearest, _) | (Rounding::Up, true) | (Rounding::Down, false) => near,
                (_, true) => f32::MAX,
                (_, false) => f32::MIN,
            };
        }
        return near;
    }
    let error = (f64::from(near) - value) - rest;
    let above = error > 0.0;
    let below = error < 0.0;
    match rounding {
        Rounding::Nearest => near,
        Rounding::Zero if near >= 0.0 && above => near.next_down(),
        Rounding::Zero if near <= 0.0 && below => near.next_up(),
        Rounding::Zero => near,
        Rounding::Down => {
            if above {
                near.next_down()
            } else {
                near
            }
        }
        Rounding::Up => {
            if below {
                near.next_up()
            } else {
                near
            }
        }
    }
}

/// Addition, multiplication and fma with a direction, through f64: products of two f32 are exact there, and the rest of
/// a sum is recovered by Knuth's two-sum.
fn directed(op: FloatOp, rounding: Rounding, a: f32, b: f32, c: f32) -> f32 {
    let (a, b, c) = (f64::from(a), f64::from(b), f64::from(c));
    let two_sum = |x: f64, y: f64| {
        let sum = x + y;
        let z = sum - x;
        (sum, (x - (sum - z)) + (y - z))
    };
    let (value, rest) = match op {
        FloatOp::Add => two_sum(a, b),
        FloatOp::Sub => two_sum(a, -b),
        FloatOp::Mul => (a * b, 0.0),
        _ => two_sum(a * b, c),
    };
    round_to_f32(value, if rest.is_nan() { 0.0 } else { rest }, rounding)
}

/// Operation, flags, destination and sources of an f32 instruction.
#[derive(Clone, Copy)]
pub(super) struct Single {
    pub op: FloatOp,
    pub flush: bool,
    pub saturate: bool,
    pub rounding: Rounding,
}

#[inline(always)]
pub(super) fn single(
    r: &mut Registers,
    mask: u32,
    how: Single,
    d: Slot,
    (a, b, c): (Slot, Slot, Slot),
) {
    if how.saturate || how.rounding != Rounding::Nearest || (how.flush && how.op != FloatOp::Ex2) {
        return single_slow(r, mask, how, d, (a, b, c));
    }
    match how.op {
        FloatOp::Add => r.map2(mask, d, (a, b), |x: f32, y: f32| x + y),
        FloatOp::Sub => r.map2(mask, d, (a, b), |x: f32, y: f32| x - y),
        FloatOp::Mul => r.map2(mask, d, (a, b), |x: f32, y: f32| x * y),
        FloatOp::Fma => r.map3(mask, d, (a, b, c), |x: f32, y: f32, z: f32| x.mul_add(y, z)),
        FloatOp::Min => r.map2(mask, d, (a, b), min),
        FloatOp::Max => r.map2(mask, d, (a, b), max),
        FloatOp::Neg => r.map1(mask, d, a, |x: f32| -x),
        FloatOp::Abs => r.map1(mask, d, a, f32::abs),
        FloatOp::Rcp => r.map1(mask, d, a, |x: f32| 1.0 / x),
        FloatOp::Ex2 => r.map1(mask, d, a, |x: f32| {
            flush_if(how.flush, exp2(flush_if(how.flush, x)))
        }),
        _ => single_slow(r, mask, how, d, (a, b, c)),
    }
}

/// Every operation with every flag, lane by lane.
#[inline(never)]
fn single_slow(r: &mut Registers, mask: u32, how: Single, d: Slot, abc: (Slot, Slot, Slot)) {
    let flush = |value| flush_if(how.flush, value);
    r.map3(mask, d, abc, |x: f32, y: f32, z: f32| {
        let (x, y, z) = (flush(x), flush(y), flush(z));
        let value = if how.rounding == Rounding::Nearest {
            nearest(how.op, x, y, z)
        } else {
            directed(how.op, how.rounding, x, y, z)
        };
        saturate_if(how.saturate, flush(value))
    });
}

fn nearest(op: FloatOp, x: f32, y: f32, z: f32) -> f32 {
    match op {
        FloatOp::Add => x + y,
        FloatOp::Sub => x - y,
        FloatOp::Mul => x * y,
        FloatOp::Fma => x.mul_add(y, z),
        FloatOp::Div => x / y,
        FloatOp::Abs => x.abs(),
        FloatOp::Neg => -x,
        FloatOp::MinNan | FloatOp::MaxNan if x.is_nan() || y.is_nan() => f32::NAN,
        FloatOp::Min | FloatOp::MinNan => min(x, y),
        FloatOp::Max | FloatOp::MaxNan => max(x, y),
        FloatOp::Rcp => 1.0 / x,
        FloatOp::Sqrt => x.sqrt(),
        FloatOp::Rsqrt => 1.0 / x.sqrt(),
        FloatOp::Ex2 => exp2(x),
        FloatOp::Lg2 => x.log2(),
        FloatOp::Sin => x.sin(),
        FloatOp::Cos => x.cos(),
        FloatOp::Tanh => x.tanh(),
        FloatOp::Copysign => y.copysign(x),
    }
}

pub(super) fn double(
    r: &mut Registers,
    mask: u32,
    op: FloatOp,
    d: Slot,
    (a, b, c): (Slot, Slot, Slot),
) {
    r.map3(mask, d, (a, b, c), |x: f64, y: f64, z: f64| match op {
        FloatOp::Add => x + y,
        FloatOp::Sub => x - y,
        FloatOp::Mul => x * y,
        FloatOp::Fma => x.mul_add(y, z),
        FloatOp::Div => x / y,
        FloatOp::Abs => x.abs(),
        FloatOp::Neg => -x,
        FloatOp::Min => x.min(y),
        FloatOp::Max => x.max(y),
        FloatOp::MinNan | FloatOp::MaxNan if x.is_nan() || y.is_nan() => f64::NAN,
        FloatOp::MinNan => x.min(y),
        FloatOp::MaxNan => x.max(y),
        FloatOp::Rcp => 1.0 / x,
        FloatOp::Sqrt => x.sqrt(),
        FloatOp::Rsqrt => 1.0 / x.sqrt(),
        FloatOp::Ex2 => x.exp2(),
        FloatOp::Lg2 => x.log2(),
        FloatOp::Sin => x.sin(),
        FloatOp::Cos => x.cos(),
        FloatOp::Tanh => x.tanh(),
        FloatOp::Copysign => y.copysign(x),
    });
}

/// A half-precision result from exact or once-rounded f64 arithmetic.
fn half_op(op: FloatOp, x: f64, y: f64, z: f64) -> f64 {
    match op {
        FloatOp::Add => x + y,
        FloatOp::Sub => x - y,
        FloatOp::Mul => x * y,
        FloatOp::Fma => x * y + z,
        FloatOp::Div => x / y,
        FloatOp::Abs => x.abs(),
        FloatOp::Neg => -x,
        FloatOp::MinNan | FloatOp::MaxNan if x.is_nan() || y.is_nan() => f64::NAN,
        FloatOp::Min | FloatOp::MinNan => f64::from(min(x as f32, y as f32)),
        FloatOp::Max | FloatOp::MaxNan => f64::from(max(x as f32, y as f32)),
        FloatOp::Rcp => 1.0 / x,
        FloatOp::Sqrt => x.sqrt(),
        FloatOp::Rsqrt => 1.0 / x.sqrt(),
        FloatOp::Ex2 => x.exp2(),
        FloatOp::Lg2 => x.log2(),
        FloatOp::Sin => x.sin(),
        FloatOp::Cos => x.cos(),
        FloatOp::Tanh => x.tanh(),
        FloatOp::Copysign => y.copysign(x),
    }
}

fn half_to_f64(kind: Scalar, bits: u16) -> f64 {
    match kind {
        Scalar::Bf16 | Scalar::Bf16x2 => bf16::from_bits(bits).to_f64(),
        _ => f16::from_bits(bits).to_f64(),
    }
}

fn half_from_f64(kind: Scalar, value: f64) -> u16 {
    match kind {
        Scalar::Bf16 | Scalar::Bf16x2 => bf16::from_f64(value).to_bits(),
        _ => f16::from_f64(value).to_bits(),
    }
}

/// Flags of a half-precision instruction.
#[derive(Clone, Copy)]
pub(super) struct Half {
    pub op: FloatOp,
    pub kind: Scalar,
    pub flush: bool,
    pub saturate: bool,
    pub relu: bool,
}

pub(super) fn half(r: &mut Registers, mask: u32, how: Half, d: Slot, abc: (Slot, Slot, Slot)) {
    let pair = matches!(how.kind, Scalar::F16x2 | Scalar::Bf16x2);
    let flush = |value: f64| {
        if how.flush && value.abs() < f64::from(f16::MIN_POSITIVE) {
            0f64.copysign(value)
        } else {
            value
        }
    };
    let one = |x: u16, y: u16, z: u16| {
        let [x, y, z] = [x, y, z].map(|bits| flush(half_to_f64(how.kind, bits)));
        let mut value = flush(half_op(how.op, x, y, z));
        if how.saturate {
            value = if value > 0.0 { value.min(1.0) } else { 0.0 };
        }
        if how.relu && value < 0.0 {
            value = 0.0;
        }
        half_from_f64(how.kind, value)
    };
    r.map3(mask, d, abc, |x: u32, y: u32, z: u32| {
        let low = u32::from(one(x as u16, y as u16, z as u16));
        if !pair {
            return low;
        }
        low | u32::from(one((x >> 16) as u16, (y >> 16) as u16, (z >> 16) as u16)) << 16
    });
}

/// Ordered relations are false, and unordered ones true, where an operand is NaN.
fn relation<T: PartialOrd>(cmp: Cmp, a: T, b: T) -> bool {
    let order = a.partial_cmp(&b);
    let is = |wanted: &[Ordering]| order.is_some_and(|order| wanted.contains(&order));
    let unordered = order.is_none();
    match cmp {
        Cmp::Eq => is(&[Ordering::Equal]),
        Cmp::Ne => is(&[Ordering::Less, Ordering::Greater]),
        Cmp::Lt => is(&[Ordering::Less]),
        Cmp::Le => is(&[Ordering::Less, Ordering::Equal]),
        Cmp::Gt => is(&[Ordering::Greater]),
        Cmp::Ge => is(&[Ordering::Greater, Ordering::Equal]),
        Cmp::Equ => unordered || is(&[Ordering::Equal]),
        Cmp::Neu => unordered || is(&[Ordering::Less, Ordering::Greater]),
        Cmp::Ltu => unordered || is(&[Ordering::Less]),
        Cmp::Leu => unordered || is(&[Ordering::Less, Ordering::Equal]),
        Cmp::Gtu => unordered || is(&[Ordering::Greater]),
        Cmp::Geu => unordered || is(&[Ordering::Greater, Ordering::Equal]),
        Cmp::Num => !unordered,
        Cmp::Nan => unordered,
    }
}

/// The lanes where a comparison holds.
#[inline(always)]
pub(super) fn compare(r: &Registers, cmp: Cmp, kind: Scalar, flush: bool, a: Slot, b: Slot) -> u32 {
    // one loop for each of the relations that compilers write, so that they are not decided lane by lane
    match (kind, cmp) {
        (Scalar::U32 | Scalar::S32, Cmp::Eq) => r.test(a, b, |x: u32, y: u32| x == y),
        (Scalar::U32 | Scalar::S32, Cmp::Ne) => r.test(a, b, |x: u32, y: u32| x != y),
        (Scalar::S32, Cmp::Lt) => r.test(a, b, |x: i32, y: i32| x < y),
        (Scalar::S32, Cmp::Le) => r.test(a, b, |x: i32, y: i32| x <= y),
        (Scalar::S32, Cmp::Gt) => r.test(a, b, |x: i32, y: i32| x > y),
        (Scalar::S32, Cmp::Ge) => r.test(a, b, |x: i32, y: i32| x >= y),
        (Scalar::F32, Cmp::Gt) if !flush => r.test(a, b, |x: f32, y: f32| x > y),
        (Scalar::F32, Cmp::Lt) if !flush => r.test(a, b, |x: f32, y: f32| x < y),
        _ => compare_slow(r, cmp, kind, flush, a, b),
    }
}

/// Every comparison of every type, lane by lane.
#[inline(never)]
fn compare_slow(r: &Registers, cmp: Cmp, kind: Scalar, flush: bool, a: Slot, b: Slot) -> u32 {
    macro_rules! test {
        ($kind:ty, $wrap:expr) => {
            r.test(a, b, |x: $kind, y: $kind| relation(cmp, $wrap(x), $wrap(y)))
        };
    }
    match kind {
        Scalar::U8 | Scalar::U16 => test!(u16, |x| x),
        Scalar::S8 | Scalar::S16 => test!(i16, |x| x),
        Scalar::U32 => test!(u32, |x| x),
        Scalar::S32 => test!(i32, |x| x),
        Scalar::U64 => test!(u64, |x| x),
        Scalar::S64 => test!(i64, |x| x),
        Scalar::F64 => test!(f64, |x| x),
        Scalar::F16 | Scalar::F16x2 => test!(u16, |x| f16::from_bits(x).to_f32()),
        Scalar::Bf16 | Scalar::Bf16x2 => test!(u16, |x| bf16::from_bits(x).to_f32()),
        Scalar::F32 | Scalar::Tf32 => test!(f32, |x| flush_if(flush, x)),
    }
}

/// The value of a source of a conversion: integers are exact in i128, floats in f64.
enum Value {
    Integer(i128),
    Float(f64),
}

fn source(kind: Scalar, bits: u64, flush: bool) -> Value {
    match kind {
        Scalar::U8 => Value::Integer((bits as u8).into()),
        Scalar::S8 => Value::Integer((bits as i8).into()),
        Scalar::U16 => Value::Integer((bits as u16).into()),
        Scalar::S16 => Value::Integer((bits as i16).into()),
        Scalar::U32 => Value::Integer((bits as u32).into()),
        Scalar::S32 => Value::Integer((bits as i32).into()),
        Scalar::U64 => Value::Integer(bits.into()),
        Scalar::S64 => Value::Integer((bits as i64).into()),
        Scalar::F16 | Scalar::F16x2 => Value::Float(f16::from_bits(bits as u16).to_f64()),
        Scalar::Bf16 | Scalar::Bf16x2 => Value::Float(bf16::from_bits(bits as u16).to_f64()),
        Scalar::F32 | Scalar::Tf32 => {
            Value::Float(flush_if(flush, f32::from_bits(bits as u32)).into())
        }
        Scalar::F64 => Value::Float(f64::from_bits(bits)),
    }
}

fn whole(rounding: Rounding, value: f64) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// The least and greatest value of an integer type.
fn bounds(kind: Scalar) -> (i128, i128) {
    let bits = 8 * kind.bytes();
    match kind {
        Scalar::S8 | Scalar::S16 | Scalar::S32 | Scalar::S64 => {
            (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        }
        _ => (0, (1i128 << bits) - 1),
    }
}

fn convert_one(convert: Convert, bits: u64) -> u64 {
    let value = source(convert.from, bits, convert.flush);
    if !convert.to.is_float() {
        let (low, high) = bounds(convert.to);
        return match value {
            // integers wrap unless .sat; floats always saturate, and NaN becomes 0
            Value::Integer(value) => {
                (if convert.saturate {
                    value.clamp(low, high)
                } else {
                    value
                }) as u64
            }
            Value::Float(value) if value.is_nan() => 0,
            Value::Float(value) => {
                (whole(convert.rounding, value).clamp(-2e38, 2e38) as i128).clamp(low, high) as u64
            }
        };
    }
    let mut value = match value {
        Value::Float(value) if convert.whole => whole(convert.rounding, value),
        Value::Float(value) => value,
        // i128 to f64 would round twice on the way to f32: only 64-bit sources can, and they go to f32 directly
        Value::Integer(value)
            if convert.to == Scalar::F32 && convert.rounding == Rounding::Nearest =>
        {
            f64::from(value as f32)
        }
        Value::Integer(value) => value as f64,
    };
    if convert.saturate {
        value = if value > 0.0 { value.min(1.0) } else { 0.0 };
    }
    if convert.relu && value < 0.0 {
        value = 0.0;
    }
    match convert.to {
        Scalar::F16 | Scalar::F16x2 => f16::from_f64(value).to_bits().into(),
        Scalar::Bf16 | Scalar::Bf16x2 => bf16::from_f64(value).to_bits().into(),
        Scalar::F64 => value.to_bits(),
        Scalar::Tf32 => {
            // round to nearest, ties away from zero, to 10 bits of mantissa
            let bits = (value as f32).to_bits();
            let rounded = if (value as f32).is_finite() {
                bits.wrapping_add(0x1000)
            } else {
                bits
            };
            u64::from(rounded & 0xffff_e000)
        }
        _ => {
            let rounding = if convert.whole {
                Rounding::Nearest
            } else {
                convert.rounding
            };
            flush_if(convert.flush, round_to_f32(value, 0.0, rounding))
                .to_bits()
                .into()
        }
    }
}

#[inline(always)]
pub(super) fn convert(r: &mut Registers, mask: u32, convert: Convert, d: Slot, a: Slot) {
    // the conversions of address arithmetic and of half inputs are hot
    match (convert.to, convert.from) {
        (Scalar::S64, Scalar::S32) => return r.map1(mask, d, a, |x: i32| i64::from(x)),
        (Scalar::U64, Scalar::U32) => return r.map1(mask, d, a, |x: u32| u64::from(x)),
        (Scalar::U32 | Scalar::S32, Scalar::U64 | Scalar::S64) if !convert.saturate => {
            return r.map1(mask, d, a, |x: u64| x as u32);
        }
        (Scalar::F32, Scalar::F16) if !convert.saturate => {
            return r.map1(mask, d, a, |x: u32| f16::from_bits(x as u16).to_f32());
        }
        _ => {}
    }
    slow_convert(r, mask, convert, d, a);
}

fn slow_convert(r: &mut Registers, mask: u32, convert: Convert, d: Slot, a: Slot) {
    let input: [u64; 32] = if convert.from.bytes() == 8 {
        r.get(a)
    } else {
        r.get::<u32>(a).map(u64::from)
    };
    let output = input.map(|bits| convert_one(convert, bits));
    if convert.to.bytes() == 8 {
        r.put(mask, d, output);
        return;
    }
    // a narrow signed result is sign-extended to its register, as the manual says of cvt
    let narrow = output.map(|bits| match convert.to {
        Scalar::S8 => bits as i8 as u32,
        Scalar::U8 => bits as u8 as u32,
        Scalar::S16 => bits as i16 as u32,
        Scalar::U16 | Scalar::F16 | Scalar::Bf16 => bits as u16 as u32,
        _ => bits as u32,
    });
    r.put(mask, d, narrow);
}

/// f32 to f16, to nearest even, without a branch, so that lanes convert side by side.
#[inline(always)]
pub(super) fn f32_to_half(value: f32) -> u32 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // normal results: move the exponent's bias and round on bit 13
    let normal = magnitude
        .wrapping_sub(112 << 23)
        .wrapping_add(0xfff + (magnitude >> 13 & 1))
        >> 13;
    // subnormal results: adding 1/2 moves the last bit of an f16 to the last bit of an f32, which then rounds
    let subnormal = (f32::from_bits(magnitude) + 0.5)
        .to_bits()
        .wrapping_sub(0.5f32.to_bits());
    let special = if magnitude > 0x7f80_0000 {
        0x7fff
    } else {
        0x7c00
    };
    let half = if magnitude < 113 << 23 {
        subnormal
    } else {
        normal
    };
    // from 65,520 on the nearest f16 is infinity
    let half = if magnitude >= 0x477f_f000 {
        special
    } else {
        half
    };
    half | bits >> 16 & 0x8000
}

#[inline(always)]
pub(super) fn convert_pair(
    r: &mut Registers,
    mask: u32,
    to: Scalar,
    relu: bool,
    d: Slot,
    (a, b): (Slot, Slot),
) {
    let input = |x: f32| if relu && x < 0.0 { 0.0 } else { x };
    if to == Scalar::Bf16x2 {
        return r.map2(mask, d, (a, b), |high: f32, low: f32| {
            let convert = |x: f32| {
                let bits = input(x).to_bits();
                // round to nearest even; NaN stays NaN
                let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
                if x.is_nan() { 0x7fff } else { rounded }
            };
            convert(high) << 16 | convert(low)
        });
    }
    r.map2(mask, d, (a, b), |high: f32, low: f32| {
        f32_to_half(input(high)) << 16 | f32_to_half(input(low))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_within_two_units_everywhere() {
        let mut worst = 0.0f64;
        let mut x = -126.0f32;
        while x < 127.9 {
            let exact = f64::from(x).exp2();
            let unit =
                f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
            worst = worst.max((f64::from(exp2(x)) - exact).abs() / unit);
            x += 0.000_937;
        }
        assert!(worst <= 2.0, "{worst} units");
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(-149.0), f32::from_bits(1));
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn halves_round_to_nearest_even() {
        // every f16, the points between neighbours, and their neighbours in f32
        for bits in 0..0x7c00u16 {
            let (here, next) = (
                f16::from_bits(bits).to_f32(),
                f16::from_bits(bits + 1).to_f32(),
            );
            let middle = if next.is_finite() {
                here + (next - here) / 2.0
            } else {
                65_520.0
            };
            for value in [here, middle, middle.next_down(), middle.next_up()] {
                for value in [value, -value] {
                    assert_eq!(
                        f32_to_half(value),
                        u32::from(f16::from_f32(value).to_bits()),
                        "{value:e}"
                    );
                }
            }
        }
        assert_eq!(f32_to_half(f32::INFINITY), 0x7c00);
        assert_eq!(f32_to_half(f32::NAN) & 0x7fff, 0x7fff);
    }

    #[test]
    fn directed_rounding_brackets_the_exact_sum() {
        for (a, b) in [
            (1.0f32, 1e-10f32),
            (-1.0, 1e-10),
            (1.0, -1e-10),
            (3.5, 1.25e-8),
            (1e30, -1.0),
        ] {
            let down = directed(FloatOp::Add, Rounding::Down, a, b, 0.0);
            let up = directed(FloatOp::Add, Rounding::Up, a, b, 0.0);
            let zero = directed(FloatOp::Add, Rounding::Zero, a, b, 0.0);
            assert_eq!(down.next_up(), up, "{a} + {b}");
            assert_eq!(zero, if a > 0.0 { down } else { up }, "{a} + {b}");
        }
    }

    #[test]
    fn conversions_saturate_round_and_extend() {
        let convert = |to, from, rounding, bits| {
            convert_one(
                Convert {
                    to,
                    from,
                    rounding,
                    whole: true,
                    saturate: false,
                    relu: false,
                    flush: false,
                },
                bits,
            )
        };
        let f = |x: f32| u64::from(x.to_bits());
        assert_eq!(
            convert(Scalar::S32, Scalar::F32, Rounding::Nearest, f(2.5)) as i32,
            2
        );
        assert_eq!(
            convert(Scalar::S32, Scalar::F32, Rounding::Zero, f(-2.9)) as i32,
            -2
        );
        assert_eq!(
            convert(Scalar::S32, Scalar::F32, Rounding::Zero, f(1e20)) as i32,
            i32::MAX
        );
        assert_eq!(
            convert(Scalar::U32, Scalar::F32, Rounding::Zero, f(-5.0)) as u32,
            0
        );
        assert_eq!(
            convert(Scalar::S64, Scalar::S8, Rounding::Nearest, 0x80) as i64,
            -128
        );
        assert_eq!(
            convert(Scalar::U32, Scalar::F32, Rounding::Zero, f(f32::NAN)) as u32,
            0
        );
    }
}
