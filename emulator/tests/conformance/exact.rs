//! Exact numbers and their rounding by definition: an independent route to what floating-point instructions give.
//!
//! A number is a whole number of any length times a power of two. It is rounded by search: the largest number of the
//! format that is not above it is found by halving, then the one or its neighbour is taken as the direction says.

use std::cmp::Ordering;

/// `digits * 2^exponent`, least digit first; no sign.
#[derive(Debug, Clone)]
pub(crate) struct Magnitude {
    digits: Vec<u32>,
    exponent: i32,
}

impl Magnitude {
    fn new(value: u128, exponent: i32) -> Magnitude {
        let digits = (0..4).map(|at| (value >> (32 * at)) as u32).collect();
        Magnitude { digits, exponent }
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.digits.iter().all(|&digit| digit == 0)
    }

    pub(crate) fn times(&self, other: &Magnitude) -> Magnitude {
        let mut digits = vec![0u32; self.digits.len() + other.digits.len()];
        for (i, &a) in self.digits.iter().enumerate() {
            let mut carry = 0;
            for (j, &b) in other.digits.iter().enumerate() {
                let sum = u64::from(a) * u64::from(b) + u64::from(digits[i + j]) + carry;
                digits[i + j] = sum as u32;
                carry = sum >> 32;
            }
            digits[i + other.digits.len()] = carry as u32;
        }
        Magnitude {
            digits,
            exponent: self.exponent + other.exponent,
        }
    }

    /// The digits at a lower exponent.
    fn at(&self, exponent: i32) -> Vec<u32> {
        let up = (self.exponent - exponent) as usize;
        let mut out = vec![0; up / 32];
        let mut carry = 0;
        for &digit in &self.digits {
            let wide = u64::from(digit) << (up % 32) | carry;
            out.push(wide as u32);
            carry = wide >> 32;
        }
        out.push(carry as u32);
        out
    }

    /// Both at one exponent and of one length, with room for a carry.
    fn aligned(&self, other: &Magnitude) -> (Vec<u32>, Vec<u32>, i32) {
        let exponent = self.exponent.min(other.exponent);
        let (mut a, mut b) = (self.at(exponent), other.at(exponent));
        let length = a.len().max(b.len()) + 1;
        a.resize(length, 0);
        b.resize(length, 0);
        (a, b, exponent)
    }

    pub(crate) fn compare(&self, other: &Magnitude) -> Ordering {
        let (a, b, _) = self.aligned(other);
        a.iter().rev().cmp(b.iter().rev())
    }

    fn plus(&self, other: &Magnitude) -> Magnitude {
        let (mut a, b, exponent) = self.aligned(other);
        let mut carry = 0;
        for (a, b) in a.iter_mut().zip(b) {
            let sum = u64::from(*a) + u64::from(b) + carry;
            *a = sum as u32;
            carry = sum >> 32;
        }
        Magnitude {
            digits: a,
            exponent,
        }
    }

    /// The difference from a lesser number.
    fn minus(&self, other: &Magnitude) -> Magnitude {
        let (mut a, b, exponent) = self.aligned(other);
        let mut borrow = 0;
        for (a, b) in a.iter_mut().zip(b) {
            let difference = i64::from(*a) - i64::from(b) - borrow;
            *a = difference as u32;
            borrow = i64::from(difference < 0);
        }
        Magnitude {
            digits: a,
            exponent,
        }
    }
}

/// A number with a sign; zeros have one too.
#[derive(Debug, Clone)]
pub(crate) struct Number {
    pub(crate) negative: bool,
    pub(crate) magnitude: Magnitude,
}

impl Number {
    pub(crate) fn times(&self, other: &Number) -> Number {
        Number {
            negative: self.negative != other.negative,
            magnitude: self.magnitude.times(&other.magnitude),
        }
    }

    /// The sum; one of opposites is -0 if `down`.
    pub(crate) fn plus(&self, other: &Number, down: bool) -> Number {
        if self.negative == other.negative {
            return Number {
                negative: self.negative,
                magnitude: self.magnitude.plus(&other.magnitude),
            };
        }
        let (big, small) = match self.magnitude.compare(&other.magnitude) {
            Ordering::Less => (other, self),
            _ => (self, other),
        };
        let magnitude = big.magnitude.minus(&small.magnitude);
        Number {
            negative: if magnitude.is_zero() {
                down
            } else {
                big.negative
            },
            magnitude,
        }
    }

    pub(crate) fn opposite(&self) -> Number {
        Number {
            negative: !self.negative,
            magnitude: self.magnitude.clone(),
        }
    }
}

/// A binary format by its stored bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) mantissa: u32,
    pub(crate) exponent: u32,
    /// No infinities, and NaN only as all ones: e4m3.
    pub(crate) finite: bool,
}

pub(crate) const F16: Format = ieee(10, 5);
pub(crate) const BF16: Format = ieee(7, 8);
pub(crate) const F32: Format = ieee(23, 8);
pub(crate) const F64: Format = ieee(52, 11);
pub(crate) const TF32: Format = ieee(10, 8);
pub(crate) const E5M2: Format = ieee(2, 5);
pub(crate) const E4M3: Format = Format {
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

/// Where a result goes that is no number of its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Nearest,
    /// Ties away from zero.
    Away,
    Zero,
    Down,
    Up,
}

impl Direction {
    /// By the modifier: `rn`, `rz`, `rm`, `rp`, `rna`.
    pub(crate) fn named(word: &str) -> Direction {
        match word {
            "rz" => Direction::Zero,
            "rm" => Direction::Down,
            "rp" => Direction::Up,
            "rna" => Direction::Away,
            _ => Direction::Nearest,
        }
    }
}

impl Format {
    fn sign(self) -> u64 {
        1 << (self.mantissa + self.exponent)
    }

    pub(crate) fn nan(self) -> u64 {
        self.sign() - 1
    }

    fn largest(self) -> u64 {
        match self.finite {
            true => self.nan() - 1,
            false => (((1 << self.exponent) - 1) << self.mantissa) - 1,
        }
    }

    pub(crate) fn infinity(self) -> u64 {
        self.largest() + 1
    }

    pub(crate) fn is_nan(self, bits: u64) -> bool {
        bits & self.nan() > self.infinity() || self.finite && bits & self.nan() == self.nan()
    }

    pub(crate) fn is_infinite(self, bits: u64) -> bool {
        !self.finite && bits & self.nan() == self.infinity()
    }

    /// The number of finite bits; what lies above the largest goes on as if the exponent did.
    pub(crate) fn number(self, bits: u64) -> Number {
        let magnitude = bits & self.nan();
        let fraction = magnitude & ((1 << self.mantissa) - 1);
        let exponent = (magnitude >> self.mantissa) as i32;
        let bias = (1 << (self.exponent - 1)) - 1 + self.mantissa as i32;
        let (digits, exponent) = match exponent {
            0 => (fraction, 1 - bias),
            _ => (fraction | 1 << self.mantissa, exponent - bias),
        };
        Number {
            negative: bits & self.sign() != 0,
            magnitude: Magnitude::new(digits.into(), exponent),
        }
    }

    /// Rounds what compares as `compare` says: how the magnitude stands to a given one.
    pub(crate) fn search(
        self,
        negative: bool,
        direction: Direction,
        compare: impl Fn(&Magnitude) -> Ordering,
    ) -> u64 {
        let value = |bits| self.number(bits).magnitude;
        let (mut low, mut high) = (0, self.largest() + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if compare(&value(middle)) == Ordering::Less {
                high = middle;
            } else {
                low = middle;
            }
        }
        let exact = compare(&value(low)) == Ordering::Equal;
        let mut half = value(low).plus(&value(low + 1));
        half.exponent -= 1;
        let up = match direction {
            _ if exact => false,
            Direction::Zero => false,
            Direction::Down => negative,
            Direction::Up => !negative,
            Direction::Away => compare(&half) != Ordering::Less,
            Direction::Nearest => match compare(&half) {
                Ordering::Less => false,
                Ordering::Equal => low & 1 != 0,
                Ordering::Greater => true,
            },
        };
        (low + u64::from(up)) | if negative { self.sign() } else { 0 }
    }

    pub(crate) fn round(self, number: &Number, direction: Direction) -> u64 {
        self.search(number.negative, direction, |other| {
            number.magnitude.compare(other)
        })
    }

    /// Infinity where the result is too large; the largest number with `.satfinite`.
    pub(crate) fn finish(self, bits: u64, finite: bool) -> u64 {
        if finite && bits & self.nan() > self.largest() {
            bits & self.sign() | self.largest()
        } else {
            bits
        }
    }
}

/// A whole number.
pub(crate) fn whole(value: i128) -> Number {
    Number {
        negative: value < 0,
        magnitude: Magnitude::new(value.unsigned_abs(), 0),
    }
}

#[test]
fn rounding_agrees_with_the_host() {
    let numbers = [1.0, 0.1, 1e-310, 3.4e38, 123456.789, 1.0 + f64::EPSILON];
    for a in numbers {
        let exact = F64.number(a.to_bits());
        assert_eq!(F64.round(&exact, Direction::Nearest), a.to_bits());
        let single = F32.round(&exact, Direction::Nearest) as u32;
        assert_eq!(single, (a as f32).to_bits());
        for b in numbers {
            let other = F64.number((-b).to_bits());
            let sum = F64.round(&exact.plus(&other, false), Direction::Nearest);
            assert_eq!(f64::from_bits(sum), a - b);
            let product = F64.round(&exact.times(&other), Direction::Nearest);
            assert_eq!(f64::from_bits(product), a * -b);
        }
    }
}
