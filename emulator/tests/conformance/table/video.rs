//! Video instructions: whole numbers of any width, clamped and put together as the manual's pseudocode says.

use super::{name, number, range};
use crate::form::Form;

/// The bits that a selector names.
fn part(selector: &str) -> (u32, u32) {
    let at = |bits: u32| bits * (selector[2..].parse::<u32>().unwrap());
    match selector.as_bytes().get(1) {
        Some(b'b') => (at(8), 8),
        Some(b'h') => (at(16), 16),
        _ => (0, 32),
    }
}

fn pick(word: u64, selector: &str, signed: bool) -> i128 {
    let (start, bits) = part(selector);
    number(word >> start, bits, signed)
}

fn operate(op: &str, a: i128, b: i128) -> i128 {
    match op {
        "vadd" => a + b,
        "vsub" => a - b,
        "vabsdiff" => (a - b).abs(),
        "vmin" => a.min(b),
        "vmax" => a.max(b),
        // half away from zero where the sum is not negative, down otherwise
        _ if a + b >= 0 => (a + b + 1).div_euclid(2),
        _ => (a + b).div_euclid(2),
    }
}

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    scalars(&mut forms);
    shifts(&mut forms);
    sets(&mut forms);
    products(&mut forms);
    pairs(&mut forms);
    forms
}

/// What a scalar instruction makes of its first result.
fn finish(value: i128, signed: bool, saturate: bool, into: &str, second: &str, c: u64) -> u64 {
    let (start, bits) = part(into);
    let (low, high) = range(bits, signed);
    let value = if saturate {
        value.clamp(low, high)
    } else {
        value
    };
    let (word, other) = (number(value as u64, 32, signed), number(c, 32, signed));
    match second {
        "add" => (value + other) as u64,
        "min" => word.min(other) as u64,
        "max" => word.max(other) as u64,
        _ if into.is_empty() => value as u64,
        _ => {
            let mask = ((1u64 << bits) - 1) << start;
            c & !mask | (value as u64) << start & mask
        }
    }
}

/// How a scalar instruction ends: saturation, part of the destination, second operation.
const ENDS: [(bool, &str, &str); 7] = [
    (false, "", ""),
    (true, "", ""),
    (false, "", "add"),
    (true, "", "min"),
    (true, "", "max"),
    (false, ".b2", ""),
    (true, ".h1", ""),
];

fn scalar(
    opcode: &str,
    (d, a, b): (bool, &'static str, &'static str),
    (saturate, into, second): (bool, &'static str, &'static str),
    mode: &str,
    f: impl Fn(u64, u64) -> i128 + 'static,
) -> Form {
    let sat = if saturate { ".sat" } else { "" };
    let dot = if second.is_empty() { "" } else { "." };
    let opcode = format!("{opcode}{sat}{mode}{dot}{second}");
    let three = !into.is_empty() || !second.is_empty();
    let c = if three { ", %i2" } else { "" };
    let body = format!("{opcode} %o0{into}, %i0{a}, %i1{b}{c};");
    Form::lanes(body.clone(), "u32 u32 u32", "u32", body, move |x| {
        vec![Some(finish(f(x[0], x[1]), d, saturate, into, second, x[2]))]
    })
}

fn scalars(forms: &mut Vec<Form>) {
    let signs = [
        (false, false, false, "", ".b1"),
        (true, true, true, ".h1", ""),
        (true, false, true, ".b3", ".h0"),
    ];
    for op in ["vadd", "vsub", "vabsdiff", "vmin", "vmax"] {
        for (d, a, b, from_a, from_b) in signs {
            let kinds = [d, a, b].map(|signed| name(32, signed)).join(".");
            for end in ENDS {
                let opcode = format!("{op}.{kinds}");
                forms.push(scalar(
                    &opcode,
                    (d, from_a, from_b),
                    end,
                    "",
                    move |x, y| operate(op, pick(x, from_a, a), pick(y, from_b, b)),
                ));
            }
        }
    }
}

fn shifts(forms: &mut Vec<Form>) {
    for op in ["vshl", "vshr"] {
        for signed in [false, true] {
            for mode in ["clamp", "wrap"] {
                for end in [ENDS[0], ENDS[2], ENDS[5]] {
                    let kind = name(32, signed);
                    let opcode = format!("{op}.{kind}.{kind}.u32");
                    let mode_word = format!(".{mode}");
                    forms.push(scalar(
                        &opcode,
                        (signed, "", ".b0"),
                        end,
                        &mode_word,
                        move |x, y| {
                            let by = pick(y, ".b0", false);
                            let by = if mode == "wrap" { by % 32 } else { by.min(32) };
                            let x = pick(x, "", signed);
                            if op == "vshl" { x << by } else { x >> by }
                        },
                    ));
                }
            }
        }
    }
}

fn holds(relation: &str, a: i128, b: i128) -> bool {
    match relation {
        "eq" => a == b,
        "ne" => a != b,
        "lt" => a < b,
        "le" => a <= b,
        "gt" => a > b,
        _ => a >= b,
    }
}

fn sets(forms: &mut Vec<Form>) {
    for relation in ["eq", "ne", "lt", "le", "gt", "ge"] {
        for end in [ENDS[0], ENDS[2], ENDS[5]] {
            let opcode = format!("vset.s32.u32.{relation}");
            forms.push(scalar(
                &opcode,
                (false, ".h0", ".h1"),
                end,
                "",
                move |x, y| holds(relation, pick(x, ".h0", true), pick(y, ".h1", false)).into(),
            ));
        }
    }
}

fn products(forms: &mut Vec<Form>) {
    // d, a and b signed; which operand is negative; scale
    for (d, a, b, minus, tail) in [
        (false, false, false, "", ""),
        (true, true, true, "", ".shr7"),
        (true, true, false, "b", ".sat"),
        (true, true, true, "c", ".sat.shr15"),
        (true, false, false, "b", ""),
        (false, false, false, "po", ".sat.shr15"),
    ] {
        let kinds = [d, a, b].map(|signed| name(32, signed)).join(".");
        let sign = move |operand| if minus == operand { "-" } else { "" };
        let po = if minus == "po" { ".po" } else { "" };
        let body = format!(
            "vmad.{kinds}{po}{tail} %o0, %i0.h0, {}%i1, {}%i2;",
            sign("b"),
            sign("c")
        );
        forms.push(Form::lanes(
            body.clone(),
            "u32 u32 u32",
            "u32",
            body,
            move |x| {
                let signed = a || b || !sign("b").is_empty() || !sign("c").is_empty();
                let product = pick(x[0], ".h0", a) * pick(x[1], "", b);
                let c = number(x[2], 32, signed);
                let sum = match minus {
                    "b" => c - product,
                    "c" => product - c,
                    "po" => product + c + 1,
                    _ => product + c,
                };
                let shift = match tail {
                    ".shr7" => 7,
                    ".sat.shr15" => 15,
                    _ => 0,
                };
                let (low, high) = range(32, signed);
                let value = sum >> shift;
                vec![Some(if tail.starts_with(".sat") {
                    value.clamp(low, high) as u64
                } else {
                    value as u64
                })]
            },
        ));
    }
}

/// The parts of b:a in the order that digits list them, from the lowest.
fn parts(digits: &str, bits: u32, signed: bool, x: &[u64]) -> Vec<i128> {
    let both = x[0] | x[1] << 32;
    let at = |digit: u8| number(both >> (bits * u32::from(digit - b'0')), bits, signed);
    digits.bytes().rev().map(at).collect()
}

fn pairs(forms: &mut Vec<Form>) {
    for (count, defaults, other, mask) in [
        (2u32, ("10", "32"), ("21", "03"), "1"),
        (4, ("3210", "7654"), ("0426", "7153"), "31"),
    ] {
        let bits = 32 / count;
        let letter = if count == 2 { 'h' } else { 'b' };
        for op in ["vadd", "vsub", "vabsdiff", "vmin", "vmax", "vavrg", "vset"] {
            for (d, a, b) in [
                (false, false, false),
                (true, true, true),
                (true, true, false),
            ] {
                for end in ["", ".sat", ".add", "mask"] {
                    let relation = "gt";
                    let kinds = match op {
                        "vset" if end == ".sat" => continue,
                        "vset" => format!("{}.{}.{relation}", name(32, a), name(32, b)),
                        _ => [d, a, b].map(|signed| name(32, signed)).join("."),
                    };
                    let masked = end == "mask";
                    let (tail, picks, text) = if masked {
                        let (a, b) = other;
                        let text =
                            format!("%o0.{letter}{mask}, %i0.{letter}{a}, %i1.{letter}{b}, %i2");
                        ("", other, text)
                    } else {
                        (end, defaults, "%o0, %i0, %i1, %i2".into())
                    };
                    let body = format!("{op}{count}.{kinds}{tail} {text};");
                    if op == "vset" && d != a {
                        continue;
                    }
                    forms.push(Form::lanes(
                        body.clone(),
                        "u32 u32 u32",
                        "u32",
                        body,
                        move |x| {
                            let (va, vb) = (parts(picks.0, bits, a, x), parts(picks.1, bits, b, x));
                            let mut out = if end == ".add" { i128::from(x[2]) } else { 0 };
                            for at in 0..count as usize {
                                let mut value = match op {
                                    "vset" => holds(relation, va[at], vb[at]).into(),
                                    op => operate(op, va[at], vb[at]),
                                };
                                if end == ".sat" {
                                    let (low, high) = range(bits, d);
                                    value = value.clamp(low, high);
                                }
                                let within = !masked || mask.contains(char::from(b'0' + at as u8));
                                let shift = bits * at as u32;
                                out = match (end, within) {
                                    (".add", _) => out + value,
                                    (_, true) => out | number(value as u64, bits, false) << shift,
                                    (_, false) => out | number(x[2] >> shift, bits, false) << shift,
                                };
                            }
                            vec![Some(out as u64)]
                        },
                    ));
                }
            }
        }
    }
}
