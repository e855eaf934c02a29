//! setp, set, selp, slct and testp.

use super::number;
use crate::exact::{BF16, F16, F32, F64, Format};
use crate::form::Form;

/// A type's name in opcodes, its column, and how its words are ordered: `None` where one is NaN.
type Kind = (
    &'static str,
    &'static str,
    fn(u64, u64) -> Option<std::cmp::Ordering>,
);

fn floats(format: Format, x: u64, y: u64) -> Option<std::cmp::Ordering> {
    if format.is_nan(x) || format.is_nan(y) {
        return None;
    }
    // sign and magnitude, with one zero
    let key = |bits: u64| {
        let magnitude = (bits & format.nan()) as i64;
        if bits > format.nan() {
            -magnitude
        } else {
            magnitude
        }
    };
    Some(key(x).cmp(&key(y)))
}

fn integers(bits: u32, signed: bool, x: u64, y: u64) -> Option<std::cmp::Ordering> {
    Some(number(x, bits, signed).cmp(&number(y, bits, signed)))
}

const KINDS: [Kind; 10] = [
    ("u16", "u16", |x, y| integers(16, false, x, y)),
    ("s16", "s16", |x, y| integers(16, true, x, y)),
    ("u32", "u32", |x, y| integers(32, false, x, y)),
    ("s32", "s32", |x, y| integers(32, true, x, y)),
    ("u64", "u64", |x, y| integers(64, false, x, y)),
    ("s64", "s64", |x, y| integers(64, true, x, y)),
    ("f32", "f32", |x, y| floats(F32, x, y)),
    ("f64", "f64", |x, y| floats(F64, x, y)),
    ("f16", "f16", |x, y| floats(F16, x, y)),
    ("bf16", "bf16", |x, y| floats(BF16, x, y)),
];

/// Does a relation hold of an order?
fn holds(relation: &str, order: Option<std::cmp::Ordering>) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let Some(order) = order else {
        return matches!(
            relation,
            "equ" | "neu" | "ltu" | "leu" | "gtu" | "geu" | "nan"
        );
    };
    match relation {
        "eq" | "equ" => order == Equal,
        "ne" | "neu" => order != Equal,
        "lt" | "ltu" | "lo" => order == Less,
        "le" | "leu" | "ls" => order != Greater,
        "gt" | "gtu" | "hi" => order == Greater,
        "ge" | "geu" | "hs" => order != Less,
        relation => relation == "num",
    }
}

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for kind in KINDS {
        let relations: &[&str] = match kind.0 {
            "u16" | "u32" | "u64" => &["eq", "ne", "lo", "ls", "hi", "hs", "lt", "ge"],
            "s16" | "s32" | "s64" => &["eq", "ne", "lt", "le", "gt", "ge"],
            _ => &[
                "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu",
                "num", "nan",
            ],
        };
        for relation in relations {
            set_predicate(&mut forms, kind, relation);
        }
        for to in ["u32", "s32", "f32"] {
            // halves become integers or halves
            if to != "f32" || !is_half(kind.0) {
                set(&mut forms, kind, "lt", to);
            }
        }
    }
    for (kind, to) in [(KINDS[8], "f16"), (KINDS[9], "bf16"), (KINDS[8], "u16")] {
        set(&mut forms, kind, "ge", to);
    }
    pairs(&mut forms);
    selections(&mut forms);
    properties(&mut forms);
    forms
}

fn is_half(kind: &str) -> bool {
    kind.ends_with("f16")
}

/// `setp` with a guard of its own, and both results as words; comparisons of halves have but one.
fn both(before: &str, opcode: &str, kind: &str, sources: &str) -> String {
    let (to, second) = match is_half(kind) {
        true => ("%p", "not.pred %q, %p;\n"),
        false => ("%p|%q", ""),
    };
    format!(
        ".reg .pred %p, %q, %c;\n{before}{opcode} {to}, {sources};\n{second}\
         selp.u32 %o0, 1, 0, %p;\nselp.u32 %o1, 1, 0, %q;"
    )
}

/// Comparisons of bf16 came with sm_90.
fn least(kind: &str) -> u32 {
    if kind.starts_with("bf16") { 90 } else { 80 }
}

fn set_predicate(forms: &mut Vec<Form>, (kind, column, order): Kind, relation: &'static str) {
    let opcode = format!("setp.{relation}.{kind}");
    let body = both("", &opcode, kind, "%i0, %i1");
    let form = Form::lanes(
        opcode,
        &format!("{column} {column}"),
        "u32 u32",
        body,
        move |x| {
            let p = holds(relation, order(x[0], x[1]));
            vec![Some(p.into()), Some((!p).into())]
        },
    );
    forms.push(form.arch(least(kind)));
    if relation != "lt" {
        return;
    }
    for logic in ["and", "or", "xor"] {
        for not in ["", "!"] {
            let opcode = format!("setp.{relation}.{logic}.{kind}");
            let before = "setp.ne.u32 %c, %i2, 0;\n";
            let body = both(before, &opcode, kind, &format!("%i0, %i1, {not}%c"));
            let inputs = format!("{column} {column} u32");
            let name = format!("{opcode} {not}");
            let form = Form::lanes(name, &inputs, "u32 u32", body, move |x| {
                let p = holds(relation, order(x[0], x[1]));
                let c = (x[2] != 0) != (not == "!");
                let combine = |p: bool| match logic {
                    "and" => p & c,
                    "or" => p | c,
                    _ => p ^ c,
                };
                let q = if is_half(kind) {
                    !combine(p)
                } else {
                    combine(!p)
                };
                vec![Some(combine(p).into()), Some(q.into())]
            });
            forms.push(form.arch(least(kind)));
        }
    }
}

/// What `set` writes for true.
fn yes(to: &str) -> u64 {
    match to {
        "f32" => 1f32.to_bits().into(),
        "f16" | "f16x2" => 0x3c00,
        "bf16" | "bf16x2" => 0x3f80,
        "u16" | "s16" => 0xffff,
        _ => 0xffff_ffff,
    }
}

fn set(
    forms: &mut Vec<Form>,
    (kind, column, order): Kind,
    relation: &'static str,
    to: &'static str,
) {
    let opcode = format!("set.{relation}.{to}.{kind}");
    let inputs = format!("{column} {column}");
    let form = Form::simple(opcode, &inputs, to, move |x| {
        if holds(relation, order(x[0], x[1])) {
            yes(to)
        } else {
            0
        }
    });
    forms.push(form.arch(least(kind)));
    let opcode = format!("set.{relation}.xor.{to}.{kind}");
    let body = format!(".reg .pred %c;\nsetp.ne.u32 %c, %i2, 0;\n{opcode} %o0, %i0, %i1, %c;");
    let form = Form::lanes(opcode, &format!("{inputs} u32"), to, body, move |x| {
        let true_ = holds(relation, order(x[0], x[1])) != (x[2] != 0);
        vec![Some(if true_ { yes(to) } else { 0 })]
    });
    forms.push(form.arch(least(kind)));
}

fn pairs(forms: &mut Vec<Form>) {
    for (kind, format) in [("f16x2", F16), ("bf16x2", BF16)] {
        for relation in ["lt", "neu", "num"] {
            let both = move |x: &[u64]| {
                [0, 16].map(|at| {
                    holds(
                        relation,
                        floats(format, x[0] >> at & 0xffff, x[1] >> at & 0xffff),
                    )
                })
            };
            let opcode = format!("setp.{relation}.{kind}");
            let body = format!(
                ".reg .pred %p, %q;\n{opcode} %p|%q, %i0, %i1;\n\
                 selp.u32 %o0, 1, 0, %p;\nselp.u32 %o1, 1, 0, %q;"
            );
            let inputs = format!("{kind} {kind}");
            let form = Form::lanes(opcode, &inputs, "u32 u32", body, move |x| {
                both(x).map(|p| Some(p.into())).to_vec()
            });
            forms.push(form.arch(least(kind)));
            let opcode = format!("set.{relation}.{kind}.{kind}");
            let form = Form::simple(opcode, &inputs, "u32", move |x| {
                let [low, high] = both(x).map(|p| if p { yes(kind) } else { 0 });
                low | high << 16
            });
            forms.push(form.arch(least(kind)));
        }
    }
}

fn selections(forms: &mut Vec<Form>) {
    for kind in ["u16", "u32", "u64", "f32", "f64"] {
        let opcode = format!("selp.{kind}");
        let body = format!(".reg .pred %p;\nsetp.gt.s32 %p, %i2, 0;\n{opcode} %o0, %i0, %i1, %p;");
        let inputs = format!("{kind} {kind} s32");
        forms.push(Form::lanes(opcode, &inputs, kind, body, |x| {
            vec![Some(if number(x[2], 32, true) > 0 {
                x[0]
            } else {
                x[1]
            })]
        }));
        for condition in ["s32", "f32"] {
            let inputs = format!("{kind} {kind} {condition}");
            let opcode = format!("slct.{kind}.{condition}");
            forms.push(Form::simple(opcode, &inputs, kind, move |x| {
                let first = match condition {
                    "s32" => number(x[2], 32, true) >= 0,
                    _ => f32::from_bits(x[2] as u32) >= 0.0,
                };
                if first { x[0] } else { x[1] }
            }));
        }
    }
}

fn properties(forms: &mut Vec<Form>) {
    for (kind, format) in [("f32", F32), ("f64", F64)] {
        for property in [
            "finite",
            "infinite",
            "number",
            "notanumber",
            "normal",
            "subnormal",
        ] {
            let opcode = format!("testp.{property}.{kind}");
            let body = format!(".reg .pred %p;\n{opcode} %p, %i0;\nselp.u32 %o0, 1, 0, %p;");
            forms.push(Form::lanes(opcode, kind, "u32", body, move |x| {
                let magnitude = x[0] & format.nan();
                let (nan, infinite) = (format.is_nan(x[0]), format.is_infinite(x[0]));
                let small = magnitude != 0 && magnitude < 1 << format.mantissa;
                let holds = match property {
                    "finite" => !nan && !infinite,
                    "infinite" => infinite,
                    "number" => !nan,
                    "notanumber" => nan,
                    "normal" => !nan && !infinite && !small,
                    _ => small,
                };
                vec![Some(holds.into())]
            }));
        }
    }
}
