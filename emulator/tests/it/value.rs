//! Typed values in tables: how they are written, stored and compared.

use half::{bf16, f16};

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Unsigned(u32),
    Signed(u32),
    F16,
    Bf16,
    F32,
    F64,
    /// Two halves in 32 bits, written `low,high`.
    F16x2,
    Bf16x2,
}

impl Type {
    pub(crate) fn by_name(name: &str) -> Option<Type> {
        Some(match name {
            "u8" => Type::Unsigned(1),
            "u16" => Type::Unsigned(2),
            "u32" => Type::Unsigned(4),
            "u64" => Type::Unsigned(8),
            "s8" => Type::Signed(1),
            "s16" => Type::Signed(2),
            "s32" => Type::Signed(4),
            "s64" => Type::Signed(8),
            "f16" => Type::F16,
            "bf16" => Type::Bf16,
            "f32" => Type::F32,
            "f64" => Type::F64,
            "f16x2" => Type::F16x2,
            "bf16x2" => Type::Bf16x2,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Type::Unsigned(bytes) | Type::Signed(bytes) => bytes as usize,
            Type::F16 | Type::Bf16 => 2,
            Type::F32 | Type::F16x2 | Type::Bf16x2 => 4,
            Type::F64 => 8,
        }
    }

    /// Type of each part, and how many there are.
    fn parts(self) -> (Type, u32) {
        match self {
            Type::F16x2 => (Type::F16, 2),
            Type::Bf16x2 => (Type::Bf16, 2),
            single => (single, 1),
        }
    }

    fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// The bits of a value as tables write it: a number, or its bits in hexadecimal.
    pub(crate) fn parse(self, text: &str) -> Option<u64> {
        let (part, count) = self.parts();
        if count == 2 && !text.starts_with("0x") {
            let (low, high) = text.split_once(',')?;
            return Some(part.parse(low)? | part.parse(high)? << 16);
        }
        if let Some(hex) = text.strip_prefix("0x") {
            return u64::from_str_radix(hex, 16)
                .ok()
                .filter(|bits| bits & !self.mask() == 0);
        }
        Some(match self {
            Type::Unsigned(_) => text
                .parse()
                .ok()
                .filter(|value: &u64| value & !self.mask() == 0)?,
            Type::Signed(bytes) => {
                let value: i64 = text.parse().ok()?;
                let unused = 64 - 8 * bytes;
                if value << unused >> unused != value {
                    return None;
                }
                value as u64 & self.mask()
            }
            Type::F16 => f16::from_f64(text.parse().ok()?).to_bits().into(),
            Type::Bf16 => bf16::from_f64(text.parse().ok()?).to_bits().into(),
            Type::F32 => text.parse::<f32>().ok()?.to_bits().into(),
            Type::F64 => text.parse::<f64>().ok()?.to_bits(),
            Type::F16x2 | Type::Bf16x2 => return None,
        })
    }

    /// Bits as a reader wants them in a failure.
    pub(crate) fn show(self, bits: u64) -> String {
        let bits = bits & self.mask();
        let plain = match self {
            Type::Unsigned(_) => bits.to_string(),
            Type::Signed(bytes) => {
                ((bits << (64 - 8 * bytes)) as i64 >> (64 - 8 * bytes)).to_string()
            }
            Type::F16x2 | Type::Bf16x2 => {
                let part = self.parts().0;
                format!(
                    "{:?},{:?}",
                    part.float(bits & 0xffff),
                    part.float(bits >> 16)
                )
            }
            float => format!("{:?}", float.float(bits)),
        };
        format!("{plain} (0x{bits:0width$x})", width = 2 * self.bytes())
    }

    fn float(self, bits: u64) -> f64 {
        match self {
            Type::F16 => f16::from_bits(bits as u16).to_f64(),
            Type::Bf16 => bf16::from_bits(bits as u16).to_f64(),
            Type::F32 => f32::from_bits(bits as u32).into(),
            _ => f64::from_bits(bits),
        }
    }

    fn is_float(self) -> bool {
        !matches!(self, Type::Unsigned(_) | Type::Signed(_))
    }

    /// Distance from a finite value to the next one of larger magnitude.
    fn unit(self, bits: u64) -> f64 {
        let magnitude = bits & (self.mask() >> 1);
        self.float(magnitude + 1) - self.float(magnitude)
    }
}

/// How far a result may be from the expected one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Tolerance {
    /// Bit for bit; any NaN equals any NaN.
    Exact,
    /// Units in the last place of the expected value.
    Units(f64),
    Absolute(f64),
    Relative(f64),
}

impl Tolerance {
    /// `2ulp`, `abs2^-22` or `rel2^-22.9`.
    pub(crate) fn parse(text: &str) -> Option<Tolerance> {
        if let Some(units) = text.strip_suffix("ulp") {
            return units.parse().ok().map(Tolerance::Units);
        }
        let power = |text: &str| text.parse().ok().map(f64::exp2);
        if let Some(exponent) = text.strip_prefix("abs2^") {
            return power(exponent).map(Tolerance::Absolute);
        }
        text.strip_prefix("rel2^")
            .and_then(power)
            .map(Tolerance::Relative)
    }

    /// Is `found` as good as `expected`?
    pub(crate) fn accepts(self, kind: Type, expected: u64, found: u64) -> bool {
        let (part, count) = kind.parts();
        (0..count).all(|at| {
            let pick = |bits: u64| bits >> (8 * part.bytes() as u32 * at) & part.mask();
            self.accepts_one(part, pick(expected), pick(found))
        })
    }

    fn accepts_one(self, kind: Type, expected: u64, found: u64) -> bool {
        if expected == found {
            return true;
        }
        if !kind.is_float() {
            return false;
        }
        let (right, value) = (kind.float(expected), kind.float(found));
        if right.is_nan() || value.is_nan() {
            return right.is_nan() && value.is_nan();
        }
        let error = (right - value).abs();
        match self {
            Tolerance::Exact => false,
            // infinities and zeros of the wrong sign differ by no number of units
            _ if right.is_infinite() || value.is_infinite() => false,
            Tolerance::Units(units) => error <= units * kind.unit(expected),
            Tolerance::Absolute(bound) => error <= bound,
            Tolerance::Relative(bound) => error <= bound * right.abs(),
        }
    }
}

#[test]
fn values_are_read_as_they_are_written() {
    let bits = |kind: &str, text: &str| Type::by_name(kind).and_then(|kind| kind.parse(text));
    assert_eq!(bits("s16", "-2"), Some(0xfffe));
    assert_eq!(bits("s16", "32768"), None);
    assert_eq!(bits("u8", "256"), None);
    assert_eq!(bits("f32", "-0.0"), Some(0x8000_0000));
    assert_eq!(bits("f16x2", "1,-2"), Some(0xc000_3c00));
    assert_eq!(bits("u64", "0xffffffffffffffff"), Some(u64::MAX));
    assert_eq!(bits("f32", "one"), None);
}

#[test]
fn tolerances_tell_near_from_far() {
    let f = |x: f32| u64::from(x.to_bits());
    let units = Tolerance::Units(2.0);
    assert!(units.accepts(Type::F32, f(1.0), f(1.0) + 2));
    assert!(!units.accepts(Type::F32, f(1.0), f(1.0) + 3));
    assert!(!units.accepts(Type::F32, f(f32::INFINITY), f(f32::MAX)));
    assert!(!Tolerance::Exact.accepts(Type::F32, f(0.0), f(-0.0)));
    assert!(Tolerance::Exact.accepts(Type::F32, f(f32::NAN), 0xffff_ffff));
    assert!(!Tolerance::Exact.accepts(Type::F16x2, 0x3c00_7e00, 0x3c01_7e00));
    assert!(Tolerance::Exact.accepts(Type::F16x2, 0x3c00_7e00, 0x3c00_7fff));
}
