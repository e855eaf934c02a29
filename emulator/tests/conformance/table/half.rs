//! Half precision, single and in pairs: exact numbers rounded by search.

use super::float::{arithmetic, double, extreme, flushed, saturated, xor_sign};
use super::times;
use crate::exact::{BF16, Direction, F16, F64, Format};
use crate::form::Form;

/// Applies an operation to each half of each operand.
fn each(pair: bool, x: &[u64], f: impl Fn(&[u64]) -> u64) -> u64 {
    let at = |shift: u32| {
        let x: Vec<u64> = x.iter().map(|word| word >> shift & 0xffff).collect();
        f(&x) << shift
    };
    at(0) | if pair { at(16) } else { 0 }
}

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for kind in ["f16", "f16x2", "bf16", "bf16x2"] {
        let format = if kind.starts_with('b') { BF16 } else { F16 };
        let pair = kind.ends_with("x2");
        arithmetics(&mut forms, kind, format, pair);
        signs(&mut forms, kind, format, pair);
        extremes(&mut forms, kind, format, pair);
        approximations(&mut forms, kind, format, pair);
    }
    forms
}

fn arithmetics(forms: &mut Vec<Form>, kind: &'static str, format: Format, pair: bool) {
    for (op, sources) in [("add", 2), ("sub", 2), ("mul", 2), ("fma", 3)] {
        let flags: &[&str] = match (format == F16, op) {
            (true, "fma") => &["", "ftz.", "sat.", "ftz.sat.", "relu.", "ftz.relu."],
            (true, _) => &["", "ftz.", "sat.", "ftz.sat."],
            (false, "fma") => &["", "relu."],
            (false, _) => &[""],
        };
        for flag in flags {
            let opcode = format!("{op}.rn.{flag}{kind}");
            let flush = move |bits| {
                if flag.contains("ftz") {
                    flushed(format, bits)
                } else {
                    bits
                }
            };
            let form = Form::simple(opcode, &times(kind, sources), kind, move |x| {
                each(pair, x, |x| {
                    let x: Vec<u64> = x.iter().map(|&bits| flush(bits)).collect();
                    let bits = flush(arithmetic(op, format, Direction::Nearest, &x));
                    match *flag {
                        "sat." | "ftz.sat." => saturated(format, bits),
                        // below zero; -0 is not
                        "relu." | "ftz.relu." if bits > format.nan() + 1 => 0,
                        _ => bits,
                    }
                })
            });
            forms.push(if format == BF16 && op != "fma" {
                form.arch(90)
            } else {
                form
            });
        }
    }
}

fn signs(forms: &mut Vec<Form>, kind: &'static str, format: Format, pair: bool) {
    for (op, f) in [
        ("abs", (|format, bits| bits & format) as fn(u64, u64) -> u64),
        ("neg", |format, bits| bits ^ (format + 1)),
    ] {
        forms.push(Form::simple(format!("{op}.{kind}"), kind, kind, move |x| {
            each(pair, x, |x| f(format.nan(), x[0]))
        }));
        if format == F16 {
            forms.push(Form::simple(
                format!("{op}.ftz.{kind}"),
                kind,
                kind,
                move |x| each(pair, x, |x| f(format.nan(), flushed(format, x[0]))),
            ));
        }
    }
}

fn extremes(forms: &mut Vec<Form>, kind: &'static str, format: Format, pair: bool) {
    for (op, max) in [("min", false), ("max", true)] {
        for (flags, nan, xor) in [
            ("", false, false),
            ("NaN.", true, false),
            ("xorsign.abs.", false, true),
            ("NaN.xorsign.abs.", true, true),
        ] {
            for flush in [false, true] {
                if flush && format == BF16 {
                    continue;
                }
                let ftz = if flush { "ftz." } else { "" };
                let opcode = format!("{op}.{ftz}{flags}{kind}");
                let form = Form::simple(opcode, &times(kind, 2), kind, move |x| {
                    each(pair, x, |x| {
                        let flush = |bits| if flush { flushed(format, bits) } else { bits };
                        let f = if xor { xor_sign } else { extreme };
                        f(max, nan, format, flush(x[0]), flush(x[1]))
                    })
                });
                forms.push(if xor { form.arch(86) } else { form });
            }
        }
    }
}

/// An opcode, its bound as the manual gives it, whether it flushes, and what it computes.
type Approximation = (&'static str, &'static str, &'static str, fn(f64) -> f64);

fn approximations(forms: &mut Vec<Form>, kind: &'static str, format: Format, pair: bool) {
    let bounds: [Approximation; 2] = match format == F16 {
        true => [
            ("ex2.approx", "rel2^-9.9", "", f64::exp2),
            ("tanh.approx", "abs2^-10.987", "", f64::tanh),
        ],
        false => [
            ("ex2.approx.ftz", "rel2^-7", "ftz", f64::exp2),
            ("tanh.approx", "rel2^-7", "", f64::tanh),
        ],
    };
    for (op, bound, flush, f) in bounds {
        let form = Form::simple(format!("{op}.{kind}"), kind, kind, move |x| {
            each(pair, x, |x| {
                let flush = move |bits| {
                    if flush.is_empty() {
                        bits
                    } else {
                        flushed(format, bits)
                    }
                };
                let value = f(double(format, flush(x[0])));
                if value.is_nan() {
                    return format.nan();
                }
                if value.is_infinite() {
                    return format.infinity();
                }
                let exact = F64.number(value.to_bits());
                flush(format.round(&exact, Direction::Nearest))
            })
        });
        let form = form.within(bound);
        forms.push(if format == BF16 { form.arch(90) } else { form });
    }
}
