//! Logic, shifts, fields and bytes: bit by bit, as the manual describes them.

use super::{name, number};
use crate::form::Form;

/// A bit of a word; none lies outside.
fn bit(word: u64, at: i64, bits: u32) -> bool {
    (0..i64::from(bits)).contains(&at) && word >> at & 1 != 0
}

/// A word from its bits.
fn word(bits: u32, f: impl Fn(i64) -> bool) -> u64 {
    (0..bits).fold(0, |out, at| out | u64::from(f(at.into())) << at)
}

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for bits in [16, 32, 64] {
        logic(&mut forms, bits);
        shifts(&mut forms, bits);
    }
    for bits in [32, 64] {
        counts(&mut forms, bits);
        fields(&mut forms, bits);
    }
    tables(&mut forms);
    funnels(&mut forms);
    bytes(&mut forms);
    masks(&mut forms);
    forms
}

fn logic(forms: &mut Vec<Form>, bits: u32) {
    let kind = format!("u{bits}");
    let pair = format!("{kind} {kind}");
    type OfBits = fn(bool, bool) -> bool;
    let two = [
        ("and", (|x, y| x && y) as OfBits),
        ("or", |x, y| x || y),
        ("xor", |x, y| x != y),
    ];
    for (opcode, f) in two {
        forms.push(Form::simple(
            format!("{opcode}.b{bits}"),
            &pair,
            &kind,
            move |x| word(bits, |at| f(bit(x[0], at, bits), bit(x[1], at, bits))),
        ));
    }
    forms.push(Form::simple(
        format!("not.b{bits}"),
        &kind,
        &kind,
        move |x| word(bits, |at| !bit(x[0], at, bits)),
    ));
    forms.push(Form::simple(format!("cnot.b{bits}"), &kind, &kind, |x| {
        u64::from(x[0] == 0)
    }));
}

fn shifts(forms: &mut Vec<Form>, bits: u32) {
    let kind = format!("u{bits}");
    let inputs = format!("{kind} u32");
    forms.push(Form::simple(
        format!("shl.b{bits}"),
        &inputs,
        &kind,
        move |x| word(bits, |at| bit(x[0], at - x[1] as i64, bits)),
    ));
    for signed in [false, true] {
        let opcode = format!("shr.{}", name(bits, signed));
        forms.push(Form::simple(opcode, &inputs, &kind, move |x| {
            let top = signed && bit(x[0], i64::from(bits) - 1, bits);
            word(bits, |at| {
                let from = at + x[1] as i64;
                if from < i64::from(bits) {
                    bit(x[0], from, bits)
                } else {
                    top
                }
            })
        }));
    }
}

fn counts(forms: &mut Vec<Form>, bits: u32) {
    let kind = format!("u{bits}");
    let ones = move |x: u64| (0..bits).filter(|&at| bit(x, at.into(), bits)).count() as u64;
    forms.push(Form::simple(
        format!("popc.b{bits}"),
        &kind,
        "u32",
        move |x| ones(x[0]),
    ));
    let highest = move |x: u64| (0..bits).rev().find(|&at| bit(x, at.into(), bits));
    forms.push(Form::simple(
        format!("clz.b{bits}"),
        &kind,
        "u32",
        move |x| highest(x[0]).map_or(bits, |at| bits - 1 - at).into(),
    ));
    forms.push(Form::simple(
        format!("brev.b{bits}"),
        &kind,
        &kind,
        move |x| word(bits, |at| bit(x[0], i64::from(bits) - 1 - at, bits)),
    ));
    for signed in [false, true] {
        for shift in [false, true] {
            let middle = if shift { ".shiftamt" } else { "" };
            let opcode = format!("bfind{middle}.{}", name(bits, signed));
            forms.push(Form::simple(opcode, &kind, "u32", move |x| {
                // of a negative number the highest bit that is not the sign
                let negative = signed && bit(x[0], i64::from(bits) - 1, bits);
                match highest(if negative { !x[0] } else { x[0] }) {
                    None => u64::from(u32::MAX),
                    Some(at) if shift => (bits - 1 - at).into(),
                    Some(at) => at.into(),
                }
            }));
        }
    }
}

fn fields(forms: &mut Vec<Form>, bits: u32) {
    let kind = format!("u{bits}");
    for signed in [false, true] {
        let opcode = format!("bfe.{}", name(bits, signed));
        let form = Form::simple(opcode, &format!("{kind} u32 u32"), &kind, move |x| {
            let (start, length) = ((x[1] & 255) as i64, (x[2] & 255) as i64);
            let last = i64::from(bits) - 1;
            let top = signed && length > 0 && bit(x[0], (start + length - 1).min(last), bits);
            word(bits, |at| {
                if at < length && start + at <= last {
                    bit(x[0], start + at, bits)
                } else {
                    top
                }
            })
        });
        forms.push(form);
    }
    let inputs = format!("{kind} {kind} u32 u32");
    forms.push(Form::simple(
        format!("bfi.b{bits}"),
        &inputs,
        &kind,
        move |x| {
            let (start, length) = ((x[2] & 255) as i64, (x[3] & 255) as i64);
            word(bits, |at| match at - start {
                within if (0..length).contains(&within) => bit(x[0], within, bits),
                _ => bit(x[1], at, bits),
            })
        },
    ));
}

fn tables(forms: &mut Vec<Form>) {
    let lop3 = |x: &[u64], table: u64| {
        word(32, |at| {
            let case = 4 * u64::from(bit(x[0], at, 32))
                + 2 * u64::from(bit(x[1], at, 32))
                + u64::from(bit(x[2], at, 32));
            table >> case & 1 != 0
        })
    };
    for table in [0x00, 0x1a, 0x40, 0x80, 0x96, 0xca, 0xe8, 0xfe] {
        let body = format!("lop3.b32 %o0, %i0, %i1, %i2, {table};");
        forms.push(Form::lanes(
            format!("lop3.b32 {table:#04x}"),
            "u32 u32 u32",
            "u32",
            body,
            move |x| vec![Some(lop3(x, table))],
        ));
    }
    for or in [false, true] {
        let opcode = if or { "lop3.or.b32" } else { "lop3.and.b32" };
        let body = format!(
            ".reg .pred %p, %q;\nsetp.ne.u32 %q, %i3, 0;\n\
             {opcode} %o0|%p, %i0, %i1, %i2, 0xe8, %q;\nselp.u32 %o1, 1, 0, %p;"
        );
        forms.push(Form::lanes(
            opcode,
            "u32 u32 u32 u32",
            "u32 u32",
            body,
            move |x| {
                let d = lop3(x, 0xe8);
                let (some, q) = (d != 0, x[3] != 0);
                let p = if or { some || q } else { some && q };
                vec![Some(d), Some(p.into())]
            },
        ));
    }
}

fn funnels(forms: &mut Vec<Form>) {
    for mode in ["wrap", "clamp"] {
        for left in [true, false] {
            let opcode = format!("shf.{}.{mode}.b32", if left { 'l' } else { 'r' });
            forms.push(Form::simple(opcode, "u32 u32 u32", "u32", move |x| {
                let both = u128::from(x[0] | x[1] << 32);
                let by = match mode {
                    "wrap" => x[2] % 32,
                    _ => x[2].min(32),
                };
                let shifted = if left { both << by >> 32 } else { both >> by };
                shifted as u64
            }));
        }
    }
}

fn bytes(forms: &mut Vec<Form>) {
    forms.push(Form::simple("prmt.b32", "u32 u32 u32", "u32", |x| {
        let bytes = [x[0].to_le_bytes(), x[1].to_le_bytes()];
        (0..4).fold(0, |out, at| {
            let pick = x[2] >> (4 * at) & 15;
            let byte = bytes[(pick >> 2 & 1) as usize][(pick & 3) as usize];
            let sign = if byte >= 128 { 255 } else { 0 };
            out | u64::from(if pick >= 8 { sign } else { byte }) << (8 * at)
        })
    }));
    // the bytes of each result for the selectors 0 to 3, from the highest
    let modes = [
        ("f4e", ["3210", "4321", "5432", "6543"]),
        ("b4e", ["5670", "6701", "7012", "0123"]),
        ("rc8", ["0000", "1111", "2222", "3333"]),
        ("ecl", ["3210", "3211", "3222", "3333"]),
        ("ecr", ["0000", "1110", "2210", "3210"]),
        ("rc16", ["1010", "3232", "1010", "3232"]),
    ];
    for (mode, picks) in modes {
        forms.push(Form::simple(
            format!("prmt.b32.{mode}"),
            "u32 u32 u32",
            "u32",
            move |x| {
                let both = x[0] | x[1] << 32;
                picks[(x[2] & 3) as usize].bytes().fold(0, |out, digit| {
                    out << 8 | both >> (8 * (digit - b'0')) & 255
                })
            },
        ));
    }
}

fn masks(forms: &mut Vec<Form>) {
    let nth = Form::simple("fns.b32", "u32 u32 s32", "u32", |x| {
        let (base, offset) = (x[1] as i64, number(x[2], 32, true) as i64);
        let set = |at: &i64| bit(x[0], *at, 32);
        let found = match offset {
            0 => set(&base).then_some(base),
            1.. => (base..32).filter(set).nth(offset as usize - 1),
            _ => (0..=base).rev().filter(set).nth((-offset) as usize - 1),
        };
        found.map_or(u32::MAX.into(), |at| at as u64)
    });
    // a base above 31 is undefined
    forms.push(
        nth.with(1, |base| base % 32)
            .with(2, |offset| (offset as i32 % 9) as u32 as u64),
    );
    for mode in ["clamp", "wrap"] {
        forms.push(Form::simple(
            format!("bmsk.{mode}.b32"),
            "u32 u32",
            "u32",
            move |x| {
                let (start, length) = match mode {
                    "wrap" => (x[0] % 32, x[1] % 32),
                    _ => (x[0], x[1]),
                };
                word(32, |at| (start..start + length).contains(&(at as u64)))
            },
        ));
        for signed in [false, true] {
            let opcode = format!("szext.{mode}.{}", name(32, signed));
            forms.push(Form::simple(opcode, "u32 u32", "u32", move |x| {
                let bits = match mode {
                    "wrap" => x[1] as u32 % 32,
                    _ => (x[1] as u32).min(32),
                };
                if bits == 0 {
                    0
                } else {
                    number(x[0], bits, signed) as u64
                }
            }));
        }
    }
}
