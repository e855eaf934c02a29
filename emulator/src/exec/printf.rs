//! The formats of C's printf, as kernels write them.

/// A piece of a format.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'f> {
    Text(&'f [u8]),
    Value(Value),
}

/// One conversion, such as `%-8.3f`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Value {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
    /// Width and precision are arguments.
    pub stars: (bool, bool),
    /// Letters that change the size of an integer: two for `hh` and `ll`.
    short: u8,
    long: bool,
    pub conversion: u8,
}

/// A format's texts and conversions in order.
pub(super) fn pieces(format: &[u8]) -> Vec<Piece<'_>> {
    let mut out = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        if at > 0 {
            out.push(Piece::Text(&rest[..at]));
        }
        let skip = match conversion(&rest[at + 1..]) {
            Some((value, length)) => {
                out.push(Piece::Value(value));
                1 + length
            }
            // `%%`, or what is no conversion: the sign as it stands
            None => {
                out.push(Piece::Text(b"%"));
                1 + usize::from(rest.get(at + 1) == Some(&b'%'))
            }
        };
        rest = &rest[(at + skip).min(rest.len())..];
    }
    if !rest.is_empty() {
        out.push(Piece::Text(rest));
    }
    out
}

/// What stands behind a `%`, and its length; none of `%%` and of what is no conversion.
fn conversion(text: &[u8]) -> Option<(Value, usize)> {
    let mut value = Value::default();
    let mut at = 0;
    let number = |at: &mut usize| {
        let start = *at;
        while text.get(*at).is_some_and(u8::is_ascii_digit) {
            *at += 1;
        }
        let digits = std::str::from_utf8(&text[start..*at]).unwrap_or("");
        // wider than any terminal is a mistake
        digits.parse().ok().filter(|&count: &usize| count < 4096)
    };
    while let Some(byte) = text.get(at) {
        match byte {
            b'-' => value.left = true,
            b'+' => value.plus = true,
            b' ' => value.space = true,
            b'#' => value.alternate = true,
            b'0' => value.zero = true,
            _ => break,
        }
        at += 1;
    }
    if text.get(at) == Some(&b'*') {
        value.stars.0 = true;
        at += 1;
    } else {
        value.width = number(&mut at);
    }
    if text.get(at) == Some(&b'.') {
        at += 1;
        if text.get(at) == Some(&b'*') {
            value.stars.1 = true;
            at += 1;
        } else {
            value.precision = Some(number(&mut at).unwrap_or(0));
        }
    }
    while let Some(byte) = text.get(at) {
        match byte {
            b'h' => value.short += 1,
            b'l' | b'j' | b'z' | b't' => value.long = true,
            _ => break,
        }
        at += 1;
    }
    let &byte = text.get(at)?;
    value.conversion = byte;
    b"diuoxXcspfFeEgGaA"
        .contains(&byte)
        .then_some((value, at + 1))
}

impl Value {
    /// Bytes of its argument: floats are doubles, and `char` and `short` are as wide as `int`.
    pub(super) fn bytes(&self) -> u64 {
        match self.conversion {
            b'd' | b'i' | b'u' | b'o' | b'x' | b'X' | b'c' if !self.long => 4,
            _ => 8,
        }
    }

    /// The argument as text; `text` is what a pointer of `%s` leads to.
    pub(super) fn format(
        &self,
        word: u64,
        text: &[u8],
        width: Option<i32>,
        precision: Option<i32>,
    ) -> Vec<u8> {
        let left = self.left || width.is_some_and(|width| width < 0);
        let width = match width {
            Some(width) => width.unsigned_abs() as usize,
            None => self.width.unwrap_or(0),
        };
        let precision = match precision {
            Some(precision) => usize::try_from(precision).ok(),
            None => self.precision,
        };
        let (sign, body) = match self.conversion {
            b's' => {
                let kept = precision.unwrap_or(text.len()).min(text.len());
                ("", text[..kept].to_vec())
            }
            b'c' => ("", vec![word as u8]),
            b'p' => ("0x", format!("{word:x}").into_bytes()),
            b'd' | b'i' => {
                let value = self.extend(word);
                let digits = value.unsigned_abs().to_string();
                (self.sign(value < 0), padded(&digits, precision))
            }
            b'u' => ("", padded(&self.cut(word).to_string(), precision)),
            b'o' => ("", padded(&format!("{:o}", self.cut(word)), precision)),
            b'x' | b'X' => {
                let value = self.cut(word);
                let lower = self.conversion == b'x';
                let digits = match lower {
                    true => format!("{value:x}"),
                    false => format!("{value:X}"),
                };
                let prefix = match (self.alternate && value != 0, lower) {
                    (true, true) => "0x",
                    (true, false) => "0X",
                    _ => "",
                };
                (prefix, padded(&digits, precision))
            }
            _ => {
                let value = f64::from_bits(word);
                let sign = self.sign(value.is_sign_negative());
                (sign, self.float(value.abs(), precision).into_bytes())
            }
        };
        let number = !matches!(self.conversion, b's' | b'c' | b'p');
        // a precision of an integer takes the place of leading zeros, and infinity has no digits
        let integer = b"diuoxX".contains(&self.conversion);
        let digits = body.iter().any(u8::is_ascii_digit);
        let zeros = self.zero && number && !left && digits && !(integer && precision.is_some());
        let fill = width.saturating_sub(sign.len() + body.len());
        let mut out = Vec::with_capacity(width);
        if !left && !zeros {
            out.resize(fill, b' ');
        }
        out.extend_from_slice(sign.as_bytes());
        if zeros {
            out.resize(out.len() + fill, b'0');
        }
        out.extend(body);
        if left {
            out.resize(out.len() + fill, b' ');
        }
        out
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    /// A signed argument of its size.
    fn extend(&self, word: u64) -> i64 {
        match (self.long, self.short) {
            (true, _) => word as i64,
            (_, 0) => (word as i32).into(),
            (_, 1) => (word as i16).into(),
            _ => (word as i8).into(),
        }
    }

    fn cut(&self, word: u64) -> u64 {
        match (self.long, self.short) {
            (true, _) => word,
            (_, 0) => word as u32 as u64,
            (_, 1) => word as u16 as u64,
            _ => word as u8 as u64,
        }
    }

    /// A float that is not negative.
    fn float(&self, value: f64, precision: Option<usize>) -> String {
        let upper = self.conversion.is_ascii_uppercase();
        let text = if !value.is_finite() {
            (if value.is_nan() { "nan" } else { "inf" }).to_string()
        } else {
            let digits = precision.unwrap_or(6);
            match self.conversion.to_ascii_lowercase() {
                b'f' => format!("{value:.digits$}"),
                b'e' => exponential(value, digits),
                b'g' => general(value, digits.max(1), self.alternate),
                // hexadecimal: exact, so that it needs no precision
                _ => hexadecimal(value),
            }
        };
        if upper { text.to_uppercase() } else { text }
    }
}

/// Digits with zeros in front, up to the precision.
fn padded(digits: &str, precision: Option<usize>) -> Vec<u8> {
    let width = precision.unwrap_or(1);
    if precision == Some(0) && digits == "0" {
        return Vec::new();
    }
    format!("{digits:0>width$}").into_bytes()
}

/// As C writes it: the exponent has a sign and two digits at least.
fn exponential(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{exponent:0>2}")
}

/// `%g`: so many digits in the shorter form, without zeros at the end.
fn general(value: f64, digits: usize, keep: bool) -> String {
    let rounded = exponential(value, digits - 1);
    let exponent: i32 = rounded
        .rsplit_once('e')
        .and_then(|(_, exponent)| exponent.parse().ok())
        .unwrap_or(0);
    let trim = |text: &str| match text.contains('.') && !keep {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text.to_string(),
    };
    if exponent < -4 || exponent >= digits as i32 {
        let (mantissa, power) = rounded.split_once('e').unwrap_or((&rounded, "+00"));
        return format!("{}e{power}", trim(mantissa));
    }
    let after = (digits as i32 - 1 - exponent) as usize;
    trim(&format!("{value:.after$}"))
}

fn hexadecimal(value: f64) -> String {
    let bits = value.to_bits();
    let (exponent, fraction) = ((bits >> 52) as i32, bits & ((1 << 52) - 1));
    let (lead, power) = match (exponent, fraction) {
        (0, 0) => (0, 0),
        (0, _) => (0, -1022),
        _ => (1, exponent - 1023),
    };
    let digits = format!("{fraction:013x}");
    let digits = digits.trim_end_matches('0');
    let dot = if digits.is_empty() { "" } else { "." };
    format!("0x{lead}{dot}{digits}p{power:+}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(format: &str, word: u64) -> String {
        let mut out = Vec::new();
        for piece in pieces(format.as_bytes()) {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Value(value) => out.extend(value.format(word, b"text", None, None)),
            }
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn conversions_read_as_c_writes_them() {
        let f = |x: f64| x.to_bits();
        for (format, word, expected) in [
            ("a %d b", -5i64 as u64, "a -5 b"),
            ("%5d|%-5d|%05d", 42, "   42|42   |00042"),
            ("%+d % d %.3d", 7, "+7  7 007"),
            ("%u", u64::MAX, "4294967295"),
            ("%llu", u64::MAX, "18446744073709551615"),
            ("%hhd %hu", 0x1_ffff, "-1 65535"),
            ("%x %#X %o", 255, "ff 0XFF 377"),
            ("%c%c", 65, "AA"),
            ("100%% %i", 1, "100% 1"),
            ("%s|%8s|%.2s", 0, "text|    text|te"),
            ("%p", 0x7f00, "0x7f00"),
            ("%f %.2f %8.1f", f(2.71875), "2.718750 2.72      2.7"),
            ("%e %.0e", f(12345.678), "1.234568e+04 1e+04"),
            ("%g %g", f(0.0001), "0.0001 0.0001"),
            ("%g", f(1e-5), "1e-05"),
            ("%g", f(123456789.0), "1.23457e+08"),
            ("%g", f(100000.0), "100000"),
            ("%G", f(f64::INFINITY), "INF"),
            ("%08.3f", f(-1.5), "-001.500"),
            ("%a", f(1.5), "0x1.8p+0"),
            ("%", 0, "%"),
            ("%q %d", 3, "%q 3"),
        ] {
            assert_eq!(print(format, word), expected, "{format}");
        }
    }
}
