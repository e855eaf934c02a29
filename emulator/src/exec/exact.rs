//! Arithmetic that rounds once, to any format, in any direction: what host floats cannot do.
//!
//! A number is a sign, a whole number of at most 128 bits and a power of two. Sums and quotients keep what they cut off as
//! an odd last bit ("sticky"), far below the last bit of any result, so that rounding sees that it was there.

use crate::ir::{Rounding, Scalar};

/// A binary format: f16, f32, fp8 and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// Stored bits of the mantissa.
    pub mantissa: u32,
    /// Bits of the exponent.
    pub exponent: u32,
    /// The all-ones exponent holds numbers, and all ones in the mantissa too is NaN: e4m3.
    pub finite: bool,
}

impl Format {
    pub(super) const F16: Format = Format::ieee(10, 5);
    pub(super) const BF16: Format = Format::ieee(7, 8);
    pub(super) const F32: Format = Format::ieee(23, 8);
    pub(super) const F64: Format = Format::ieee(52, 11);
    pub(super) const TF32: Format = Format::ieee(10, 8);
    pub(super) const E5M2: Format = Format::ieee(2, 5);
    pub(super) const E4M3: Format = Format {
        mantissa: 3,
        exponent: 4,
        finite: true,
    };

    const fn ieee(mantissa: u32, exponent: u32) -> Format {
        Format {
            mantissa,
            exponent,
            finite: false,
        }
    }

    /// The format of a scalar type; `None` for whole numbers.
    pub(super) fn of(kind: Scalar) -> Option<Format> {
        Some(match kind {
            Scalar::F16 | Scalar::F16x2 => Format::F16,
            Scalar::Bf16 | Scalar::Bf16x2 => Format::BF16,
            Scalar::F32 | Scalar::Tf32 => Format::F32,
            Scalar::F64 => Format::F64,
            _ => return None,
        })
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    fn sign(self) -> u64 {
        1 << (self.mantissa + self.exponent)
    }

    fn top_exponent(self) -> u64 {
        (1 << self.exponent) - 1
    }

    /// The bits of NaN, as instructions write it: positive, all ones below the sign.
    pub(super) fn nan(self) -> u64 {
        self.sign() - 1
    }

    /// The bits of infinity; NaN where the format has none.
    fn infinity(self) -> u64 {
        if self.finite {
            self.nan()
        } else {
            self.top_exponent() << self.mantissa
        }
    }

    /// The bits of the largest finite number.
    fn largest(self) -> u64 {
        if self.finite {
            self.nan() - 1
        } else {
            self.infinity() - 1
        }
    }
}

/// A number, or what is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Exact {
    Nan,
    Infinite {
        negative: bool,
    },
    /// `mantissa * 2^exponent`
    Finite {
        negative: bool,
        mantissa: u128,
        exponent: i32,
    },
}

use Exact::{Finite, Infinite, Nan};

impl Exact {
    /// Reads the bits of a format.
    pub(super) fn read(format: Format, bits: u64) -> Exact {
        let negative = bits & format.sign() != 0;
        let fraction = bits & ((1 << format.mantissa) - 1);
        let exponent = bits >> format.mantissa & format.top_exponent();
        if format.finite {
            if bits & format.nan() == format.nan() {
                return Nan;
            }
        } else if exponent == format.top_exponent() {
            return if fraction == 0 {
                Infinite { negative }
            } else {
                Nan
            };
        }
        let implied = if exponent == 0 {
            0
        } else {
            1 << format.mantissa
        };
        Finite {
            negative,
            mantissa: u128::from(fraction | implied),
            exponent: exponent.max(1) as i32 - format.bias() - format.mantissa as i32,
        }
    }

    pub(super) fn whole(value: i128) -> Exact {
        Finite {
            negative: value < 0,
            mantissa: value.unsigned_abs(),
            exponent: 0,
        }
    }

    pub(super) fn is_negative(self) -> bool {
        matches!(
            self,
            Infinite { negative: true } | Finite { negative: true, .. }
        )
    }

    /// Above zero.
    pub(super) fn is_positive(self) -> bool {
        match self {
            Nan => false,
            Infinite { negative } => !negative,
            Finite {
                negative, mantissa, ..
            } => !negative && mantissa != 0,
        }
    }

    pub(super) fn negate(self) -> Exact {
        match self {
            Nan => Nan,
            Infinite { negative } => Infinite {
                negative: !negative,
            },
            Finite {
                negative,
                mantissa,
                exponent,
            } => Finite {
                negative: !negative,
                mantissa,
                exponent,
            },
        }
    }

    fn is_zero(self) -> bool {
        matches!(self, Finite { mantissa: 0, .. })
    }

    /// Factors have at most 64 bits, so that products are exact.
    pub(super) fn times(self, other: Exact) -> Exact {
        let negative = self.is_negative() != other.is_negative();
        match (self, other) {
            (Nan, _) | (_, Nan) => Nan,
            (Infinite { .. }, other) | (other, Infinite { .. }) => {
                if other.is_zero() {
                    Nan
                } else {
                    Infinite { negative }
                }
            }
            (
                Finite {
                    mantissa: a,
                    exponent: x,
                    ..
                },
                Finite {
                    mantissa: b,
                    exponent: y,
                    ..
                },
            ) => Finite {
                negative,
                mantissa: a * b,
                exponent: x + y,
            },
        }
    }

    /// The sum; `down` is the direction in which a sum of opposites is -0.
    pub(super) fn plus(self, other: Exact, down: bool) -> Exact {
        let (a, b) = match (self, other) {
            (Nan, _) | (_, Nan) => return Nan,
            (Infinite { negative: a }, Infinite { negative: b }) if a != b => return Nan,
            (Infinite { negative }, _) | (_, Infinite { negative }) => {
                return Infinite { negative };
            }
            (a, b) if a.is_zero() && b.is_zero() => {
                let (a, b) = (a.is_negative(), b.is_negative());
                return Finite {
                    negative: if a == b { a } else { down },
                    mantissa: 0,
                    exponent: 0,
                };
            }
            (a, b) if a.is_zero() => return b,
            (a, b) if b.is_zero() => return a,
            (a, b) => (a.normal(), b.normal()),
        };
        // both have their highest bit at 125: the exponent says which is larger
        let ((sign, big, at), (other, small, below)) = if a.2 >= b.2 { (a, b) } else { (b, a) };
        let small = shift_right(small, (at - below) as u32);
        if sign == other {
            return Finite {
                negative: sign,
                mantissa: big + small,
                exponent: at,
            };
        }
        let (negative, mantissa) = if big == small {
            (down, 0)
        } else if big > small {
            (sign, big - small)
        } else {
            (other, small - big)
        };
        Finite {
            negative,
            mantissa,
            exponent: at,
        }
    }

    /// Sign, mantissa with its highest bit at 125, exponent; of a finite number other than zero.
    fn normal(self) -> (bool, u128, i32) {
        let Finite {
            negative,
            mantissa,
            exponent,
        } = self
        else {
            return (false, 0, 0);
        };
        let up = mantissa.leading_zeros() as i32 - 2;
        let mantissa = if up >= 0 {
            mantissa << up
        } else {
            shift_right(mantissa, up.unsigned_abs())
        };
        (negative, mantissa, exponent - up)
    }

    /// The quotient of numbers of at most 53 bits.
    pub(super) fn over(self, other: Exact) -> Exact {
        let negative = self.is_negative() != other.is_negative();
        match (self, other) {
            (Nan, _) | (_, Nan) => Nan,
            (Infinite { .. }, Infinite { .. }) => Nan,
            (Infinite { .. }, _) => Infinite { negative },
            (_, Infinite { .. }) => Finite {
                negative,
                mantissa: 0,
                exponent: 0,
            },
            (
                Finite {
                    mantissa: a,
                    exponent: x,
                    ..
                },
                Finite {
                    mantissa: b,
                    exponent: y,
                    ..
                },
            ) => match (a, b) {
                (0, 0) => Nan,
                (_, 0) => Infinite { negative },
                (0, _) => Finite {
                    negative,
                    mantissa: 0,
                    exponent: 0,
                },
                _ => {
                    let up = a.leading_zeros();
                    let dividend = a << up;
                    let quotient = dividend / b;
                    Finite {
                        negative,
                        mantissa: quotient | u128::from(dividend % b != 0),
                        exponent: x - y - up as i32,
                    }
                }
            },
        }
    }

    /// The square root; -0 for -0.
    pub(super) fn root(self) -> Exact {
        match self {
            zero if zero.is_zero() => zero,
            negative if negative.is_negative() => Nan,
            Finite {
                mantissa, exponent, ..
            } => {
                // an even exponent, and a mantissa that fills the word but for a bit
                let mut up = mantissa.leading_zeros();
                if (exponent - up as i32) % 2 != 0 {
                    up -= 1;
                }
                let square = mantissa << up;
                let root = square.isqrt();
                Finite {
                    negative: false,
                    // a bit more, so that the last bit can say that something is left
                    mantissa: root << 1 | u128::from(root * root != square),
                    exponent: (exponent - up as i32) / 2 - 1,
                }
            }
            other => other,
        }
    }

    /// The bits in a format. Finite values that are too large become infinity or the largest number, as the direction says.
    pub(super) fn round(self, format: Format, rounding: Rounding) -> u64 {
        let (negative, mantissa, exponent) = match self {
            Nan => return format.nan(),
            Infinite { negative } => return format.infinity() | sign_bit(format, negative),
            zero if zero.is_zero() => return sign_bit(format, zero.is_negative()),
            finite => finite.normal(),
        };
        // the number is mantissa / 2^125 * 2^power, between 1 and 2 in front of the power
        let power = exponent + 125;
        let least = 1 - format.bias();
        // bits that fall off: all below the last place, which for subnormals is fixed
        let cut = 125 - format.mantissa as i32 + (least - power).max(0);
        let cut = cut.min(127) as u32;
        let kept = (mantissa >> cut) as u64;
        let lost = mantissa & ((1 << cut) - 1);
        let half = 1u128 << (cut - 1);
        let up = match rounding {
            Rounding::Nearest => lost > half || lost == half && kept & 1 != 0,
            Rounding::NearestAway => lost >= half,
            Rounding::Zero => false,
            Rounding::Down => negative && lost != 0,
            Rounding::Up => !negative && lost != 0,
        };
        // the implied bit carries into the exponent by itself
        let biased = (power.max(least) + format.bias() - 1) as u64;
        let magnitude = (biased << format.mantissa) + kept + u64::from(up);
        let inward = match rounding {
            Rounding::Nearest | Rounding::NearestAway => false,
            Rounding::Zero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
        };
        let magnitude = match magnitude > format.largest() {
            true if inward => format.largest(),
            true => format.infinity(),
            false => magnitude,
        };
        magnitude | sign_bit(format, negative)
    }

    /// As [`Exact::round`], but infinities and what is too large become the largest number: `.satfinite`.
    pub(super) fn round_finite(self, format: Format, rounding: Rounding) -> u64 {
        let largest = format.largest() | sign_bit(format, self.is_negative());
        match self {
            Infinite { .. } => largest,
            Nan => format.nan(),
            finite => {
                let bits = finite.round(format, rounding);
                if bits & (format.sign() - 1) > format.largest() {
                    largest
                } else {
                    bits
                }
            }
        }
    }
}

fn sign_bit(format: Format, negative: bool) -> u64 {
    if negative { format.sign() } else { 0 }
}

/// A shift that leaves a last bit of one if any bit fell off.
fn shift_right(value: u128, by: u32) -> u128 {
    if by == 0 {
        return value;
    }
    if by >= 128 {
        return u128::from(value != 0);
    }
    value >> by | u128::from(value & ((1 << by) - 1) != 0)
}

#[cfg(test)]
mod tests;
