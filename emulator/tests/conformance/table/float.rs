//! Single and double precision: exact numbers rounded by search, and approximations within the manual's bounds.

use super::times;
use crate::exact::{Direction, F32, F64, Format, Number, whole};
use crate::form::Form;

/// An operation on bits of a format, rounded once.
pub(crate) fn arithmetic(op: &str, format: Format, direction: Direction, x: &[u64]) -> u64 {
    let value = |at: usize| double(format, x[at]);
    // what is no finite number follows the rules of any format: the host's
    let finite = x
        .iter()
        .all(|&bits| !format.is_nan(bits) && !format.is_infinite(bits));
    let zero = |at: usize| x[at] & format.nan() == 0;
    let special = match op {
        "div" => !finite || zero(0) || zero(1),
        "rcp" => !finite || zero(0),
        "sqrt" => !finite || zero(0) || value(0) < 0.0,
        _ => !finite,
    };
    if special {
        let value = match op {
            "add" => value(0) + value(1),
            "sub" => value(0) - value(1),
            "mul" => value(0) * value(1),
            "fma" => value(0).mul_add(value(1), value(2)),
            "div" => value(0) / value(1),
            "rcp" => 1.0 / value(0),
            _ => value(0).sqrt(),
        };
        // zero, infinity and NaN exist in every format
        let sign = if value.is_sign_negative() {
            format.nan() + 1
        } else {
            0
        };
        return match value {
            value if value.is_nan() => format.nan(),
            value if value.is_infinite() => sign | format.infinity(),
            _ => sign,
        };
    }
    let down = direction == Direction::Down;
    let number = |at: usize| format.number(x[at]);
    let round = |number: &Number| format.round(number, direction);
    let quotient = |dividend: Number, divisor: Number| {
        // a / b is above c where a is above c * b
        let negative = dividend.negative != divisor.negative;
        format.search(negative, direction, |c| {
            dividend.magnitude.compare(&c.times(&divisor.magnitude))
        })
    };
    match op {
        "add" => round(&number(0).plus(&number(1), down)),
        "sub" => round(&number(0).plus(&number(1).opposite(), down)),
        "mul" => round(&number(0).times(&number(1))),
        "fma" => round(&number(0).times(&number(1)).plus(&number(2), down)),
        "div" => quotient(number(0), number(1)),
        "rcp" => quotient(whole(1), number(0)),
        _ => {
            let square = number(0).magnitude;
            format.search(false, direction, |c| square.compare(&c.times(c)))
        }
    }
}

/// The value of bits, exactly.
pub(crate) fn double(format: Format, bits: u64) -> f64 {
    if format.is_nan(bits) {
        return f64::NAN;
    }
    let sign = if bits > format.nan() { -1.0 } else { 1.0 };
    if format.is_infinite(bits) {
        return sign * f64::INFINITY;
    }
    let wide = F64.round(&format.number(bits), Direction::Nearest);
    f64::from_bits(wide)
}

/// Subnormals become zero of their sign.
pub(crate) fn flushed(format: Format, bits: u64) -> u64 {
    if bits & format.nan() < 1 << format.mantissa {
        bits & (format.nan() + 1)
    } else {
        bits
    }
}

/// `.sat`: between 0 and 1, and NaN is 0.
pub(crate) fn saturated(format: Format, bits: u64) -> u64 {
    if format.is_nan(bits) || bits > format.nan() {
        return 0;
    }
    bits.min(format.round(&whole(1), Direction::Nearest))
}

/// The lesser or the greater of two; a NaN gives way to a number unless `.NaN` asks for it.
pub(crate) fn extreme(max: bool, nan: bool, format: Format, x: u64, y: u64) -> u64 {
    match (format.is_nan(x), format.is_nan(y)) {
        (true, true) => return format.nan(),
        (true, false) | (false, true) if nan => return format.nan(),
        (true, false) => return y,
        (false, true) => return x,
        _ => {}
    }
    // -0 is below +0
    let key = |bits: u64| {
        let magnitude = (bits & format.nan()) as i64;
        if bits > format.nan() {
            -magnitude - 1
        } else {
            magnitude
        }
    };
    if (key(x) > key(y)) == max { x } else { y }
}

/// `.xorsign.abs`: the lesser or the greater magnitude, with the product of the signs.
pub(crate) fn xor_sign(max: bool, nan: bool, format: Format, x: u64, y: u64) -> u64 {
    let magnitude = extreme(max, nan, format, x & format.nan(), y & format.nan());
    if format.is_nan(magnitude) {
        magnitude
    } else {
        magnitude | (x ^ y) & (format.nan() + 1)
    }
}

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for kind in ["f32", "f64"] {
        rounded(&mut forms, kind);
        signs(&mut forms, kind);
    }
    extremes(&mut forms);
    approximations(&mut forms);
    forms
}

fn format(kind: &str) -> Format {
    if kind == "f64" { F64 } else { F32 }
}

fn rounded(forms: &mut Vec<Form>, kind: &'static str) {
    let format = format(kind);
    for (op, sources) in [
        ("add", 2),
        ("sub", 2),
        ("mul", 2),
        ("fma", 3),
        ("div", 2),
        ("rcp", 1),
        ("sqrt", 1),
    ] {
        for word in ["rn", "rz", "rm", "rp"] {
            let direction = Direction::named(word);
            let inputs = times(kind, sources);
            let opcode = format!("{op}.{word}.{kind}");
            forms.push(Form::simple(opcode, &inputs, kind, move |x| {
                arithmetic(op, format, direction, x)
            }));
            if kind == "f64" {
                continue;
            }
            let opcode = format!("{op}.{word}.ftz.{kind}");
            forms.push(Form::simple(opcode, &inputs, kind, move |x| {
                let x: Vec<u64> = x.iter().map(|&bits| flushed(format, bits)).collect();
                flushed(format, arithmetic(op, format, direction, &x))
            }));
            if matches!(op, "add" | "sub" | "mul" | "fma") {
                let opcode = format!("{op}.{word}.sat.{kind}");
                forms.push(Form::simple(opcode, &inputs, kind, move |x| {
                    saturated(format, arithmetic(op, format, direction, x))
                }));
            }
        }
    }
    for word in ["rn", "rz", "rm", "rp"] {
        let direction = Direction::named(word);
        let opcode = format!("mad.{word}.{kind}");
        forms.push(Form::simple(opcode, &times(kind, 3), kind, move |x| {
            arithmetic("fma", format, direction, x)
        }));
    }
}

fn signs(forms: &mut Vec<Form>, kind: &'static str) {
    let format = format(kind);
    let sign = format.nan() + 1;
    forms.push(Form::simple(format!("abs.{kind}"), kind, kind, move |x| {
        x[0] & format.nan()
    }));
    forms.push(Form::simple(format!("neg.{kind}"), kind, kind, move |x| {
        x[0] ^ sign
    }));
    let pair = times(kind, 2);
    forms.push(Form::simple(
        format!("copysign.{kind}"),
        &pair,
        kind,
        move |x| x[0] & sign | x[1] & format.nan(),
    ));
    if kind == "f32" {
        for (word, f) in [
            ("abs", (|bits| bits & 0x7fff_ffff) as fn(u64) -> u64),
            ("neg", |bits| bits ^ 0x8000_0000),
        ] {
            forms.push(Form::simple(
                format!("{word}.ftz.f32"),
                kind,
                kind,
                move |x| f(flushed(format, x[0])),
            ));
        }
    }
}

fn extremes(forms: &mut Vec<Form>) {
    for kind in ["f32", "f64"] {
        let (format, pair) = (format(kind), times(kind, 2));
        for (word, max) in [("min", false), ("max", true)] {
            forms.push(Form::simple(
                format!("{word}.{kind}"),
                &pair,
                kind,
                move |x| extreme(max, false, format, x[0], x[1]),
            ));
            if kind == "f64" {
                continue;
            }
            for (flags, flush, nan, xor) in [
                ("ftz.", true, false, false),
                ("NaN.", false, true, false),
                ("ftz.NaN.", true, true, false),
                ("xorsign.abs.", false, false, true),
                ("NaN.xorsign.abs.", false, true, true),
                ("ftz.NaN.xorsign.abs.", true, true, true),
            ] {
                let opcode = format!("{word}.{flags}{kind}");
                let form = Form::simple(opcode, &pair, kind, move |x| {
                    let flush = |bits| if flush { flushed(format, bits) } else { bits };
                    let f = if xor { xor_sign } else { extreme };
                    f(max, nan, format, flush(x[0]), flush(x[1]))
                });
                forms.push(if xor { form.arch(86) } else { form });
            }
        }
    }
}

/// An opcode, its bound as the manual gives it, what it computes, and where the bound holds.
type Approximation = (&'static str, &'static str, fn(f64) -> f64, fn(f64) -> bool);

fn approximations(forms: &mut Vec<Form>) {
    let single = |bits: u64| f64::from(f32::from_bits(bits as u32));
    let bits = |value: f64| u64::from((value as f32).to_bits());
    let unary: [Approximation; 8] = [
        ("rcp.approx.f32", "1ulp", |x| 1.0 / x, |_| true),
        ("sqrt.approx.f32", "rel2^-22", f64::sqrt, |_| true),
        (
            "rsqrt.approx.f32",
            "rel2^-22.9",
            |x| 1.0 / x.sqrt(),
            |_| true,
        ),
        ("ex2.approx.f32", "2ulp", f64::exp2, |_| true),
        ("lg2.approx.f32", "rel2^-22", f64::log2, |x| {
            !(0.5..=2.0).contains(&x)
        }),
        ("sin.approx.f32", "abs2^-20.5", f64::sin, |x| {
            x.abs() <= std::f64::consts::PI
        }),
        ("cos.approx.f32", "abs2^-20.5", f64::cos, |x| {
            x.abs() <= std::f64::consts::PI
        }),
        ("tanh.approx.f32", "rel2^-10.987", f64::tanh, |_| true),
    ];
    for (opcode, bound, f, within) in unary {
        let body = format!("{opcode} %o0, %i0;");
        let form = Form::lanes(opcode, "f32", "f32", body, move |x| {
            let value = single(x[0]);
            let judged = within(value) || !value.is_finite();
            vec![judged.then(|| bits(f(value)))]
        });
        forms.push(form.within(bound));
        if opcode.starts_with("tanh") {
            continue;
        }
        let opcode = opcode.replace("approx", "approx.ftz");
        let body = format!("{opcode} %o0, %i0;");
        let form = Form::lanes(opcode, "f32", "f32", body, move |x| {
            let value = single(flushed(F32, x[0]));
            let judged = within(value) || !value.is_finite();
            let result = flushed(F32, bits(f(value)));
            vec![judged.then_some(result)]
        });
        forms.push(form.within(bound));
    }
    for opcode in ["div.approx.f32", "div.full.f32"] {
        let body = format!("{opcode} %o0, %i0, %i1;");
        let form = Form::lanes(opcode, "f32 f32", "f32", body, move |x| {
            let (a, b) = (single(x[0]), single(x[1]));
            // the bound holds for divisors of a moderate size
            let size = b.abs();
            let judged = (f64::exp2(-126.0)..=f64::exp2(126.0)).contains(&size);
            let quotient = arithmetic("div", F32, Direction::Nearest, x);
            // subnormal results are outside of the bound in units
            let normal = flushed(F32, quotient) == quotient && a.is_finite();
            vec![(judged && normal).then_some(quotient)]
        });
        forms.push(form.within("2ulp"));
    }
    for (opcode, f) in [
        ("rcp.approx.ftz.f64", (|x| 1.0 / x) as fn(f64) -> f64),
        ("rsqrt.approx.ftz.f64", |x| 1.0 / x.sqrt()),
    ] {
        let form = Form::simple(opcode, "f64", "f64", move |x| {
            flushed(F64, f(f64::from_bits(flushed(F64, x[0]))).to_bits())
        });
        forms.push(form.within("rel2^-18"));
    }
    let form = Form::simple("rsqrt.approx.f64", "f64", "f64", |x| {
        (1.0 / f64::from_bits(x[0]).sqrt()).to_bits()
    });
    forms.push(form.within("2ulp"));
}
