//! cvt: exact numbers rounded by search, to every type, in every direction.

use super::float::{flushed, saturated};
use super::{name, number, range};
use crate::exact::{BF16, Direction, E4M3, E5M2, F16, F32, F64, Format, Number, TF32, whole};
use crate::form::Form;

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    integers(&mut forms);
    to_integers(&mut forms);
    from_integers(&mut forms);
    floats(&mut forms);
    wholes(&mut forms);
    pairs(&mut forms);
    bytes(&mut forms);
    packs(&mut forms);
    forms
}

const FLOATS: [(&str, Format); 4] = [("f16", F16), ("bf16", BF16), ("f32", F32), ("f64", F64)];

/// Conversions of bf16 to and from anything but f32 came with sm_90.
fn least(one: &str, other: &str) -> u32 {
    match (one, other) {
        ("bf16", "f32") => 80,
        ("bf16", _) | (_, "bf16") => 90,
        _ => 80,
    }
}

/// The integers that a float converts to and from; bf16 has none of 8 bits.
fn widths(float: &str) -> impl Iterator<Item = u32> {
    let least = if float == "bf16" { 16 } else { 8 };
    [8, 16, 32, 64]
        .into_iter()
        .filter(move |&bits| bits >= least)
}

fn integers(forms: &mut Vec<Form>) {
    for from in [8, 16, 32, 64] {
        for to in [8, 16, 32, 64] {
            for (from_signed, to_signed) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                if (from, from_signed) == (to, to_signed) {
                    continue;
                }
                let ((low, high), (least, most)) = (range(from, from_signed), range(to, to_signed));
                let fits = least <= low && high <= most;
                for sat in ["", ".sat"] {
                    if fits && !sat.is_empty() {
                        continue;
                    }
                    let (source, target) = (name(from, from_signed), name(to, to_signed));
                    let opcode = format!("cvt{sat}.{target}.{source}");
                    forms.push(Form::simple(opcode, &source, &target, move |x| {
                        let value = number(x[0], from, from_signed);
                        let (low, high) = range(to, to_signed);
                        let value = if sat.is_empty() {
                            value
                        } else {
                            value.clamp(low, high)
                        };
                        value as u64
                    }));
                }
            }
        }
    }
}

/// A number as a whole one.
fn whole_number(value: &Number, word: &str) -> i128 {
    // beyond 2^70 every integer type is saturated, and there are no fractions to round
    let limit = whole(1 << 70);
    if value.magnitude.compare(&limit.magnitude).is_ge() {
        return if value.negative { -(1 << 70) } else { 1 << 70 };
    }
    // the largest whole number that is not above it, bit by bit
    let mut low = 0i128;
    for bit in (0..71).rev() {
        let next = low | 1 << bit;
        if value.magnitude.compare(&whole(next).magnitude).is_ge() {
            low = next;
        }
    }
    let twice = value.magnitude.times(&whole(2).magnitude);
    let half = twice.compare(&whole(2 * low + 1).magnitude);
    let exact = value.magnitude.compare(&whole(low).magnitude).is_eq();
    let up = match word {
        "rni" => half.is_gt() || half.is_eq() && low % 2 != 0,
        "rmi" => value.negative && !exact,
        "rpi" => !value.negative && !exact,
        _ => false,
    };
    let magnitude = low + i128::from(up);
    if value.negative {
        -magnitude
    } else {
        magnitude
    }
}

fn to_integers(forms: &mut Vec<Form>) {
    for (source, format) in FLOATS {
        for bits in widths(source) {
            for signed in [false, true] {
                for word in ["rni", "rzi", "rmi", "rpi"] {
                    let target = name(bits, signed);
                    let opcode = format!("cvt.{word}.{target}.{source}");
                    let form = Form::simple(opcode, source, &target, move |x| {
                        if format.is_nan(x[0]) {
                            // zero, or where 64 bits take part the middle of the unsigned range
                            let wide = bits == 64 || format == F64;
                            return if wide { 1 << (bits - 1) } else { 0 };
                        }
                        let value = format.number(x[0]);
                        let (low, high) = range(bits, signed);
                        let value = match format.is_infinite(x[0]) {
                            true if value.negative => low,
                            true => high,
                            false => whole_number(&value, word),
                        };
                        value.clamp(low, high) as u64
                    });
                    forms.push(form.arch(least(source, "")));
                }
            }
        }
    }
    let form = Form::simple("cvt.rzi.ftz.s32.f32", "f32", "s32", |x| {
        let bits = flushed(F32, x[0]);
        if F32.is_nan(bits) {
            return 0;
        }
        let (low, high) = range(32, true);
        whole_number(&F32.number(bits), "rzi").clamp(low, high) as u64
    });
    forms.push(form);
}

fn from_integers(forms: &mut Vec<Form>) {
    for (target, format) in FLOATS {
        for bits in widths(target) {
            for signed in [false, true] {
                for word in ["rn", "rz", "rm", "rp"] {
                    let source = name(bits, signed);
                    let opcode = format!("cvt.{word}.{target}.{source}");
                    let form = Form::simple(opcode, &source, target, move |x| {
                        let value = whole(number(x[0], bits, signed));
                        format.round(&value, Direction::named(word))
                    });
                    forms.push(form.arch(least(target, "")));
                }
            }
        }
    }
}

/// A float in another format: infinities and NaN stay what they are.
fn convert(from: Format, to: Format, direction: Direction, bits: u64) -> u64 {
    let sign = if bits > from.nan() { to.nan() + 1 } else { 0 };
    if from.is_nan(bits) {
        to.nan()
    } else if from.is_infinite(bits) {
        sign | to.infinity()
    } else {
        to.round(&from.number(bits), direction)
    }
}

fn floats(forms: &mut Vec<Form>) {
    for (source, from) in FLOATS {
        for (target, to) in FLOATS {
            if source == target {
                continue;
            }
            let widens = from.mantissa <= to.mantissa && from.exponent <= to.exponent;
            let words: &[&str] = match (widens, target, source) {
                (true, ..) => &[""],
                (_, "bf16", "f32") => &["rn", "rz"],
                _ => &["rn", "rz", "rm", "rp"],
            };
            for word in words {
                let dot = if word.is_empty() { "" } else { "." };
                let opcode = format!("cvt{dot}{word}.{target}.{source}");
                let form = Form::simple(opcode, source, target, move |x| {
                    convert(from, to, Direction::named(word), x[0])
                });
                let least = match (target, source) {
                    ("bf16", "f32") => 80,
                    (_, "bf16") | ("bf16", _) => 90,
                    _ => 80,
                };
                forms.push(form.arch(least));
            }
        }
    }
    for (opcode, source, target) in [
        ("cvt.rn.sat.f32.f64", ("f64", F64), ("f32", F32)),
        ("cvt.rz.sat.f16.f32", ("f32", F32), ("f16", F16)),
        ("cvt.sat.f32.f16", ("f16", F16), ("f32", F32)),
    ] {
        let direction = Direction::named(&opcode[4..6]);
        forms.push(Form::simple(opcode, source.0, target.0, move |x| {
            saturated(target.1, convert(source.1, target.1, direction, x[0]))
        }));
    }
    forms.push(Form::simple("cvt.rp.ftz.f32.f64", "f64", "f32", |x| {
        flushed(F32, convert(F64, F32, Direction::Up, x[0]))
    }));
    // f32 to narrow formats, cut at zero and kept finite
    for (kind, to) in [("f16", F16), ("bf16", BF16), ("tf32", TF32)] {
        for word in ["rn", "rz", "rna"] {
            for flags in ["", ".relu", ".satfinite", ".relu.satfinite"] {
                if word == "rna" && (kind != "tf32" || flags.contains("relu")) {
                    continue;
                }
                let listed = match kind {
                    "tf32" => word == "rna" || !flags.contains("satfinite"),
                    // `floats` has the plain forms already
                    _ => !flags.is_empty(),
                };
                if !listed {
                    continue;
                }
                let opcode = format!("cvt.{word}{flags}.{kind}.f32");
                let column = if kind == "tf32" { "f32" } else { kind };
                let form = Form::simple(opcode, "f32", column, move |x| {
                    let bits = narrow(to, Direction::named(word), flags, x[0]);
                    if kind == "tf32" { bits << 13 } else { bits }
                });
                let newer = kind == "tf32" && word != "rna" || flags.contains("satfinite");
                forms.push(if newer { form.arch(90) } else { form });
            }
        }
    }
}

/// An f32 in a narrow format with `.relu` and `.satfinite`.
fn narrow(to: Format, direction: Direction, flags: &str, bits: u64) -> u64 {
    let sign = if bits > F32.nan() { to.nan() + 1 } else { 0 };
    if F32.is_nan(bits) {
        return to.nan();
    }
    // below zero; -0 is not
    if flags.contains("relu") && bits > F32.nan() + 1 {
        return 0;
    }
    let finite = flags.contains("satfinite");
    let rounded = if F32.is_infinite(bits) {
        sign | to.infinity()
    } else {
        to.round(&F32.number(bits), direction)
    };
    to.finish(rounded, finite)
}

fn wholes(forms: &mut Vec<Form>) {
    for (kind, format) in FLOATS {
        for word in ["rni", "rzi", "rmi", "rpi"] {
            let opcode = format!("cvt.{word}.{kind}.{kind}");
            let form = Form::simple(opcode, kind, kind, move |x| {
                let sign = x[0] & (format.nan() + 1);
                if format.is_nan(x[0]) || format.is_infinite(x[0]) {
                    return x[0];
                }
                let value = format.number(x[0]);
                // beyond the precision there are no fractions
                let last = whole(1 << 60);
                if value.magnitude.compare(&last.magnitude).is_ge() {
                    return x[0];
                }
                let rounded = whole_number(&value, word).unsigned_abs() as i128;
                sign | format.round(&whole(rounded), Direction::Nearest)
            });
            forms.push(form.arch(least(kind, "")));
        }
    }
}

fn pairs(forms: &mut Vec<Form>) {
    for (kind, to) in [("f16x2", F16), ("bf16x2", BF16)] {
        for word in ["rn", "rz"] {
            for flags in ["", ".relu", ".satfinite", ".relu.satfinite"] {
                let opcode = format!("cvt.{word}{flags}.{kind}.f32");
                let form = Form::simple(opcode, "f32 f32", kind, move |x| {
                    let half = |bits| narrow(to, Direction::named(word), flags, bits);
                    half(x[0]) << 16 | half(x[1])
                });
                let newer = flags.contains("satfinite");
                forms.push(if newer { form.arch(90) } else { form });
            }
        }
    }
}

fn bytes(forms: &mut Vec<Form>) {
    for (kind, to) in [("e4m3x2", E4M3), ("e5m2x2", E5M2)] {
        for relu in ["", ".relu"] {
            let opcode = format!("cvt.rn.satfinite{relu}.{kind}.f32");
            let flags = format!("{relu}.satfinite");
            let single = flags.clone();
            forms.push(
                Form::simple(opcode, "f32 f32", "u16", move |x| {
                    let byte = |bits| narrow(to, Direction::Nearest, &single, bits);
                    byte(x[0]) << 8 | byte(x[1])
                })
                .arch(89),
            );
            let opcode = format!("cvt.rn.satfinite{relu}.{kind}.f16x2");
            forms.push(
                Form::simple(opcode, "f16x2", "u16", move |x| {
                    let byte = |half: u64| {
                        // every f16 is an f32
                        let bits = convert(F16, F32, Direction::Nearest, half & 0xffff);
                        narrow(to, Direction::Nearest, &flags, bits)
                    };
                    byte(x[0] >> 16) << 8 | byte(x[0])
                })
                .arch(89),
            );
            let opcode = format!("cvt.rn{relu}.f16x2.{kind}");
            forms.push(
                Form::simple(opcode, "u16", "f16x2", move |x| {
                    let half = |byte: u64| {
                        let byte = byte & 0xff;
                        if !relu.is_empty() && byte > 0x80 && !to.is_nan(byte) {
                            return 0;
                        }
                        convert(to, F16, Direction::Nearest, byte)
                    };
                    half(x[0] >> 8) << 16 | half(x[0])
                })
                .arch(89),
            );
        }
    }
}

fn packs(forms: &mut Vec<Form>) {
    for bits in [2u32, 4, 8, 16] {
        for signed in [false, true] {
            let kind = name(bits, signed);
            let convert = move |word| {
                let (low, high) = range(bits, signed);
                number(number(word, 32, true).clamp(low, high) as u64, bits, false) as u64
            };
            if bits == 16 {
                let opcode = format!("cvt.pack.sat.{kind}.s32");
                forms.push(Form::simple(opcode, "s32 s32", "u32", move |x| {
                    convert(x[0]) << bits | convert(x[1])
                }));
            } else {
                let opcode = format!("cvt.pack.sat.{kind}.s32.b32");
                forms.push(Form::simple(opcode, "s32 s32 u32", "u32", move |x| {
                    x[2] << (2 * bits) | convert(x[0]) << bits | convert(x[1])
                }));
            }
        }
    }
}
