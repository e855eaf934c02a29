//! Integer arithmetic: every value is computed as an exact whole number, and cut to the width.

use super::{name, number, range, times};
use crate::form::Form;

type Exact = fn(i128, i128, i128) -> i128;

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for bits in [16, 32, 64] {
        for signed in [false, true] {
            plain(&mut forms, bits, signed);
        }
    }
    products(&mut forms);
    packed(&mut forms);
    saturating(&mut forms);
    dots(&mut forms);
    forms
}

fn exact(opcode: String, sources: usize, bits: u32, signed: bool, f: Exact) -> Form {
    let kind = name(bits, signed);
    Form::simple(opcode, &times(&kind, sources), &kind, move |x| {
        let at = |index: usize| x.get(index).map_or(0, |&word| number(word, bits, signed));
        f(at(0), at(1), at(2)) as u64
    })
}

fn plain(forms: &mut Vec<Form>, bits: u32, signed: bool) {
    let kind = name(bits, signed);
    let two: [(&str, Exact); 5] = [
        ("add", |x, y, _| x + y),
        ("sub", |x, y, _| x - y),
        ("mul.lo", |x, y, _| x * y),
        ("min", |x, y, _| x.min(y)),
        ("max", |x, y, _| x.max(y)),
    ];
    for (word, f) in two {
        forms.push(exact(format!("{word}.{kind}"), 2, bits, signed, f));
    }
    // the manual leaves division by zero open
    for (word, f) in [
        ("div", (|x, y, _| x / y) as Exact),
        ("rem", |x, y, _| x % y),
    ] {
        let divides = exact(format!("{word}.{kind}"), 2, bits, signed, f);
        forms.push(divides.with(1, |divisor| divisor.max(1)));
    }
    forms.push(exact(
        format!("mad.lo.{kind}"),
        3,
        bits,
        signed,
        |x, y, z| x * y + z,
    ));
    forms.push(exact(format!("sad.{kind}"), 3, bits, signed, |x, y, z| {
        (x - y).abs() + z
    }));
    for add in [false, true] {
        let word = if add { "mad" } else { "mul" };
        let count = if add { 3 } else { 2 };
        forms.push(Form::simple(
            format!("{word}.hi.{kind}"),
            &times(&kind, count),
            &kind,
            move |x| {
                let product = number(x[0], bits, signed) * number(x[1], bits, signed);
                let z = if add { number(x[2], bits, signed) } else { 0 };
                ((product >> bits) + z) as u64
            },
        ));
        if bits < 64 {
            let wide = name(2 * bits, signed);
            let inputs = format!(
                "{kind} {kind}{}",
                if add { format!(" {wide}") } else { "".into() }
            );
            forms.push(Form::simple(
                format!("{word}.wide.{kind}"),
                &inputs,
                &wide,
                move |x| {
                    let product = number(x[0], bits, signed) * number(x[1], bits, signed);
                    let z = if add {
                        number(x[2], 2 * bits, signed)
                    } else {
                        0
                    };
                    (product + z) as u64
                },
            ));
        }
    }
    if signed {
        forms.push(exact(format!("abs.{kind}"), 1, bits, true, |x, _, _| {
            x.abs()
        }));
        forms.push(exact(format!("neg.{kind}"), 1, bits, true, |x, _, _| -x));
    }
}

fn products(forms: &mut Vec<Form>) {
    for signed in [false, true] {
        let kind = name(32, signed);
        for add in [false, true] {
            for high in [false, true] {
                let (word, half) = (
                    if add { "mad24" } else { "mul24" },
                    if high { "hi" } else { "lo" },
                );
                let opcode = format!("{word}.{half}.{kind}");
                let form = Form::simple(
                    opcode,
                    &times(&kind, if add { 3 } else { 2 }),
                    &kind,
                    move |x| {
                        let product = number(x[0], 24, signed) * number(x[1], 24, signed);
                        let z = if add { number(x[2], 32, signed) } else { 0 };
                        ((product >> if high { 16 } else { 0 }) + z) as u64
                    },
                );
                // operands hold 24 bits: what lies above is an extension of them
                let extended = move |bits: u64| number(bits, 24, signed) as u32 as u64;
                forms.push(form.with(0, extended).with(1, extended));
            }
        }
    }
    let form = Form::simple("mad24.hi.sat.s32", "s32 s32 s32", "s32", |x| {
        let product = number(x[0], 24, true) * number(x[1], 24, true);
        let (low, high) = range(32, true);
        // bits 16 to 47
        (number((product >> 16) as u64, 32, true) + number(x[2], 32, true)).clamp(low, high) as u64
    });
    let extended = |bits: u64| number(bits, 24, true) as u32 as u64;
    forms.push(form.with(0, extended).with(1, extended));
}

fn packed(forms: &mut Vec<Form>) {
    for signed in [false, true] {
        let kind = if signed { "s16x2" } else { "u16x2" };
        let operations: [(&str, Exact); 5] = [
            ("add", |x, y, _| x + y),
            ("min", |x, y, _| x.min(y)),
            ("max", |x, y, _| x.max(y)),
            ("min.relu", |x, y, _| x.min(y).max(0)),
            ("max.relu", |x, y, _| x.max(y).max(0)),
        ];
        let count = if signed { 5 } else { 3 };
        for (word, f) in &operations[..count] {
            let f = *f;
            let form = Form::simple(format!("{word}.{kind}"), "u32 u32", "u32", move |x| {
                let half = |at: u32| {
                    let (a, b) = (
                        number(x[0] >> at, 16, signed),
                        number(x[1] >> at, 16, signed),
                    );
                    u64::from(f(a, b, 0) as u16) << at
                };
                half(0) | half(16)
            });
            forms.push(form.arch(90));
        }
    }
    for (word, f) in [
        ("min.relu.s32", (|x, y, _| x.min(y).max(0)) as Exact),
        ("max.relu.s32", |x, y, _| x.max(y).max(0)),
    ] {
        forms.push(exact(word.into(), 2, 32, true, f).arch(90));
    }
}

fn saturating(forms: &mut Vec<Form>) {
    for (word, f) in [
        ("add.sat.s32", (|x, y, _| x + y) as Exact),
        ("sub.sat.s32", |x, y, _| x - y),
        ("mad.hi.sat.s32", |x, y, z| ((x * y) >> 32) + z),
    ] {
        let sources = if word.starts_with("mad") { 3 } else { 2 };
        forms.push(Form::simple(
            word,
            &times("s32", sources),
            "s32",
            move |x| {
                let at = |index: usize| x.get(index).map_or(0, |&word| number(word, 32, true));
                let (low, high) = range(32, true);
                f(at(0), at(1), at(2)).clamp(low, high) as u64
            },
        ));
    }
}

fn dots(forms: &mut Vec<Form>) {
    for a_signed in [false, true] {
        for b_signed in [false, true] {
            let kinds = format!("{}.{}", name(32, a_signed), name(32, b_signed));
            forms.push(Form::simple(
                format!("dp4a.{kinds}"),
                "u32 u32 u32",
                "u32",
                move |x| {
                    let products = (0..4).map(|at| {
                        number(x[0] >> (8 * at), 8, a_signed)
                            * number(x[1] >> (8 * at), 8, b_signed)
                    });
                    (products.sum::<i128>() + number(x[2], 32, true)) as u64
                },
            ));
            for (half, first) in [("lo", 0), ("hi", 2)] {
                let opcode = format!("dp2a.{half}.{kinds}");
                forms.push(Form::simple(opcode, "u32 u32 u32", "u32", move |x| {
                    let products = (0..2).map(|at| {
                        number(x[0] >> (16 * at), 16, a_signed)
                            * number(x[1] >> (8 * (first + at)), 8, b_signed)
                    });
                    (products.sum::<i128>() + number(x[2], 32, true)) as u64
                }));
            }
        }
    }
}
