//! Rounding once: results that are wider than their format reach it without a rounding on the way that shows.
//!
//! An f64 that is odd in its last bit whenever something was cut off (rounding to odd) rounds to any format of at most
//! 51 bits of mantissa, in any direction, as the exact number would.

use half::{bf16, f16};

use crate::ir::{Rounding, Scalar};

/// `sum + rest` rounded to odd, where `sum` is the nearest f64.
fn odd(sum: f64, rest: f64) -> f64 {
    if rest == 0.0 || rest.is_nan() || sum.is_infinite() || sum.to_bits() & 1 != 0 {
        return sum;
    }
    if rest > 0.0 {
        sum.next_up()
    } else {
        sum.next_down()
    }
}

/// `x + y` rounded to odd; the rest of the sum is Knuth's.
pub(super) fn sum(x: f64, y: f64) -> f64 {
    let sum = x + y;
    let z = sum - x;
    odd(sum, (x - (sum - z)) + (y - z))
}

/// A whole number rounded to odd.
pub(super) fn whole(value: i128) -> f64 {
    let near = value as f64;
    odd(near, (value - near as i128) as f64)
}

/// An f64 rounded to f32 in the given direction.
pub(super) fn to_f32(value: f64, rounding: Rounding) -> f32 {
    let near = value as f32;
    if !near.is_finite() {
        if value.is_finite() {
            // overflow: directed rounding stops at the largest number on its inner side
            return match (rounding, value > 0.0) {
                (Rounding::Nearest | Rounding::NearestAway, _) => near,
                (Rounding::Up, true) | (Rounding::Down, false) => near,
                (_, true) => f32::MAX,
                (_, false) => f32::MIN,
            };
        }
        return near;
    }
    let above = f64::from(near) > value;
    let below = f64::from(near) < value;
    match rounding {
        Rounding::Zero if value > 0.0 && above => near.next_down(),
        Rounding::Zero if value < 0.0 && below => near.next_up(),
        Rounding::Down if above => near.next_down(),
        Rounding::Up if below => near.next_up(),
        _ => near,
    }
}

/// An f64 rounded to the nearest f16 or bf16, ties to even.
pub(super) fn to_half(kind: Scalar, value: f64) -> u16 {
    let cut = to_f32(value, Rounding::Zero);
    // to odd again: an f32 has more than two bits more than either
    let single = if f64::from(cut) == value || value.is_nan() {
        cut
    } else {
        f32::from_bits(cut.to_bits() | 1)
    };
    match kind {
        Scalar::Bf16 | Scalar::Bf16x2 => bf16::from_f32(single).to_bits(),
        _ => f16::from_f32(single).to_bits(),
    }
}

/// An f32 rounded to the 10 bits of mantissa of a tf32, which keeps the place of an f32.
pub(super) fn to_tf32(value: f32, rounding: Rounding) -> u32 {
    let bits = value.to_bits();
    let below_half = match rounding {
        _ if !value.is_finite() => 0,
        Rounding::NearestAway => 0x1000,
        Rounding::Nearest => 0xfff + (bits >> 13 & 1),
        _ => 0,
    };
    (bits + below_half) & 0xffff_e000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_decides_ties() {
        let tie = 1.0 + 2f64.powi(-11);
        for (rest, bits) in [(0.0, 0x3c00), (1e-30, 0x3c01), (-1e-30, 0x3c00)] {
            assert_eq!(to_half(Scalar::F16, sum(tie, rest)), bits, "{rest}");
        }
        assert_eq!(to_half(Scalar::F16, 65_519.999_999), 0x7bff);
        assert_eq!(to_half(Scalar::F16, 65_520.0), 0x7c00);
        assert_eq!(to_half(Scalar::Bf16, -1e-60), 0x8000);
        assert_eq!(
            to_f32(whole(u64::MAX.into()), Rounding::Zero),
            18_446_742_974_197_923_840.0
        );
        assert_eq!(
            to_f32(whole((1 << 54) + (1 << 30) + 1), Rounding::Nearest),
            18_014_400_656_965_632.0
        );
    }

    #[test]
    fn directions_bracket_the_value() {
        for value in [1e-50, 0.1, 1.0 + 1e-9, 3.4e38, 1e300] {
            let [zero, down, up] = [Rounding::Zero, Rounding::Down, Rounding::Up]
                .map(|rounding| to_f32(value, rounding));
            assert_eq!((zero, down.next_up()), (down, up), "{value}");
            assert_eq!(to_f32(-value, Rounding::Up), -down, "{value}");
            assert_eq!(to_f32(-value, Rounding::Zero), -zero, "{value}");
        }
        assert_eq!(to_f32(0.5, Rounding::Down), 0.5);
        assert_eq!(to_f32(f64::NEG_INFINITY, Rounding::Zero), f32::NEG_INFINITY);
    }
}
