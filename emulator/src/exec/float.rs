//! Floating-point arithmetic and comparisons of all lanes.

use std::cmp::Ordering;

use half::{bf16, f16};

use super::registers::Registers;
use super::rounding;
use crate::ir::{Cmp, FloatOp, Rounding, Scalar, Slot};

/// Subnormals become zero of their sign.
#[inline(always)]
pub(super) fn flush_if(flush: bool, value: f32) -> f32 {
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

/// The lesser and the greater number; a NaN gives way to a number, and -0 is less than +0.
macro_rules! extremes {
    ($min:ident, $max:ident, $kind:ty) => {
        #[inline(always)]
        fn $min(a: $kind, b: $kind) -> $kind {
            let less = if a == b { a.is_sign_negative() } else { a < b };
            if b.is_nan() || less { a } else { b }
        }

        #[inline(always)]
        fn $max(a: $kind, b: $kind) -> $kind {
            let more = if a == b { b.is_sign_negative() } else { a > b };
            if b.is_nan() || more { a } else { b }
        }
    };
}

extremes!(min, max, f32);
extremes!(min_double, max_double, f64);

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

/// Addition, multiplication and fma with a direction, through f64: products of two f32 are exact there.
fn directed(op: FloatOp, rounding: Rounding, a: f32, b: f32, c: f32) -> f32 {
    let (a, b, c) = (f64::from(a), f64::from(b), f64::from(c));
    let sum = |x: f64, y: f64| {
        // a sum of nothing is -0 where rounding goes down, unless both sides are +0
        if rounding == Rounding::Down && x == -y && x != 0.0 && x.is_finite() {
            return -0.0;
        }
        if rounding == Rounding::Down && x == 0.0 && y == 0.0 {
            return if x.is_sign_negative() { x } else { y };
        }
        rounding::sum(x, y)
    };
    let value = match op {
        FloatOp::Add => sum(a, b),
        FloatOp::Sub => sum(a, -b),
        FloatOp::Mul => a * b,
        _ => sum(a * b, c),
    };
    rounding::to_f32(value, rounding)
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
        FloatOp::Min => min_double(x, y),
        FloatOp::Max => max_double(x, y),
        FloatOp::MinNan | FloatOp::MaxNan if x.is_nan() || y.is_nan() => f64::NAN,
        FloatOp::MinNan => min_double(x, y),
        FloatOp::MaxNan => max_double(x, y),
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

/// A half-precision result before its rounding: products of halves are exact in f64, sums are rounded to odd.
fn half_op(op: FloatOp, x: f64, y: f64, z: f64) -> f64 {
    match op {
        FloatOp::Add => rounding::sum(x, y),
        FloatOp::Sub => rounding::sum(x, -y),
        FloatOp::Mul => x * y,
        FloatOp::Fma => rounding::sum(x * y, z),
        FloatOp::Div => x / y,
        FloatOp::Abs => x.abs(),
        FloatOp::Neg => -x,
        FloatOp::MinNan | FloatOp::MaxNan if x.is_nan() || y.is_nan() => f64::NAN,
        FloatOp::Min | FloatOp::MinNan => min_double(x, y),
        FloatOp::Max | FloatOp::MaxNan => max_double(x, y),
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

/// Subnormals of f16 or bf16 become zero of their sign.
fn flush_half(kind: Scalar, bits: u16) -> u16 {
    let exponent = match kind {
        Scalar::Bf16 | Scalar::Bf16x2 => 0x7f80,
        _ => 0x7c00,
    };
    if bits & exponent == 0 {
        bits & 0x8000
    } else {
        bits
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
    let flush = |bits| {
        if how.flush {
            flush_half(how.kind, bits)
        } else {
            bits
        }
    };
    let one = |x: u16, y: u16, z: u16| {
        let [x, y, z] = [x, y, z].map(|bits| half_to_f64(how.kind, flush(bits)));
        let mut value = half_op(how.op, x, y, z);
        if how.saturate {
            value = if value > 0.0 { value.min(1.0) } else { 0.0 };
        }
        if how.relu && value < 0.0 {
            value = 0.0;
        }
        flush(rounding::to_half(how.kind, value))
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
pub(super) fn relation<T: PartialOrd>(cmp: Cmp, a: T, b: T) -> bool {
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
        Scalar::F16 | Scalar::F16x2 if flush => {
            test!(u16, |x| f16::from_bits(flush_half(kind, x)).to_f32())
        }
        Scalar::F16 | Scalar::F16x2 => test!(u16, |x| f16::from_bits(x).to_f32()),
        Scalar::Bf16 | Scalar::Bf16x2 => test!(u16, |x| bf16::from_bits(x).to_f32()),
        Scalar::F32 | Scalar::Tf32 => test!(f32, |x| flush_if(flush, x)),
    }
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
}
