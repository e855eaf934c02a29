//! cvt: conversions between types, of all lanes.

use half::{bf16, f16};

use super::exact::{Exact, Format};
use super::float::flush_if;
use super::registers::Registers;
use super::rounding;
use crate::ir::{Convert, Rounding, Scalar, Slot};

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
        Rounding::NearestAway => value.round(),
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

/// What a NaN becomes as an integer: 0, or where a double or 64 bits take part the middle of the unsigned range.
fn nan_as_integer(convert: Convert) -> u64 {
    let bytes = convert.to.bytes();
    if convert.from == Scalar::F64 || bytes == 8 {
        1 << (8 * bytes - 1)
    } else {
        0
    }
}

fn convert_one(convert: Convert, bits: u64) -> u64 {
    let value = source(convert.from, bits, convert.flush);
    if !convert.to.is_float() {
        let (low, high) = bounds(convert.to);
        return match value {
            // integers wrap unless .sat; floats always saturate
            Value::Integer(value) if convert.saturate => value.clamp(low, high) as u64,
            Value::Integer(value) => value as u64,
            Value::Float(value) if value.is_nan() => nan_as_integer(convert),
            Value::Float(value) => {
                (whole(convert.rounding, value).clamp(-2e38, 2e38) as i128).clamp(low, high) as u64
            }
        };
    }
    let nearest = matches!(convert.rounding, Rounding::Nearest | Rounding::NearestAway);
    if !convert.whole && (convert.finite || !nearest && convert.to != Scalar::Tf32) {
        return convert_exactly(convert, value);
    }
    let mut value = match value {
        Value::Float(value) if convert.whole => whole(convert.rounding, value),
        Value::Float(value) => value,
        Value::Integer(value) if convert.to == Scalar::F64 => value as f64,
        Value::Integer(value) => rounding::whole(value),
    };
    if convert.saturate {
        value = if value > 0.0 { value.min(1.0) } else { 0.0 };
    }
    if convert.relu && value < 0.0 {
        value = 0.0;
    }
    match convert.to {
        Scalar::F64 => value.to_bits(),
        Scalar::F32 => {
            // whole numbers of an f32 are f32: nothing is left to round
            let single = rounding::to_f32(value, convert.rounding);
            flush_if(convert.flush, single).to_bits().into()
        }
        // only f32 becomes tf32, so that the f32 here is exact
        Scalar::Tf32 => rounding::to_tf32(value as f32, convert.rounding).into(),
        half => rounding::to_half(half, value).into(),
    }
}

/// Conversions to a float with a direction, or to finite numbers only.
#[inline(never)]
fn convert_exactly(convert: Convert, value: Value) -> u64 {
    let value = match value {
        Value::Integer(value) => Exact::whole(value),
        Value::Float(value) => Exact::read(Format::F64, value.to_bits()),
    };
    let one = Exact::whole(1);
    let value = match value {
        // NaN saturates to 0
        Exact::Nan if convert.saturate => Exact::whole(0),
        Exact::Nan => value,
        value if convert.saturate && value.is_negative() => Exact::whole(0),
        // below zero; -0 is not
        value if convert.relu && value.negate().is_positive() => Exact::whole(0),
        value if convert.saturate && value.plus(one.negate(), false).is_positive() => one,
        value => value,
    };
    let format = match convert.to {
        // the top of an f32
        Scalar::Tf32 => Format::TF32,
        to => Format::of(to).unwrap_or(Format::F32),
    };
    let bits = match convert.finite {
        true => value.round_finite(format, convert.rounding),
        false => value.round(format, convert.rounding),
    };
    match convert.to {
        Scalar::Tf32 => bits << 13,
        Scalar::F32 => flush_if(convert.flush, f32::from_bits(bits as u32))
            .to_bits()
            .into(),
        _ => bits,
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
                    finite: false,
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
