//! atom and red of every operation, type and space: each thread updates a place of its own, so that both the old and the
//! new value are known; and one place that all threads of the block update.

use super::float::{arithmetic, extreme, flushed};
use super::{name, number};
use crate::exact::{BF16, Direction, F16, F32, F64, Format};
use crate::form::Form;

/// What an operation makes of the old value and its operands.
type Update = Box<dyn Fn(u64, u64, u64) -> u64>;

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for space in ["global", "shared", ""] {
        integers(&mut forms, space);
        floats(&mut forms, space);
    }
    orders(&mut forms);
    vectors(&mut forms);
    sums(&mut forms);
    forms
}

/// Declares `%at`, the address of 32 bytes of this thread; generic addresses point at global memory.
fn place(space: &str) -> String {
    let (declaration, convert) = match space {
        "shared" => (".shared .align 32 .b8 room[8192];\n", ""),
        "" => ("", "cvta.global.u64 %at, %at;\n"),
        _ => ("", ""),
    };
    format!(
        ".reg .b64 %at, %by;\n{declaration}mov.u64 %at, room;\nmul.wide.u32 %by, %thread, 32;\n\
         add.s64 %at, %at, %by;\n{convert}"
    )
}

fn with_room(form: Form, space: &str) -> Form {
    match space {
        "shared" => form,
        _ => form.module(".global .align 32 .b8 room[8192];"),
    }
}

/// `atom` and `red` of one operation: inputs are the old value, the operand, and for cas the new value.
fn update(
    forms: &mut Vec<Form>,
    opcode: &str,
    space: &str,
    column: &str,
    bits: u32,
    arch: u32,
    f: Update,
) {
    let cas = opcode.contains("cas");
    let count = if cas { 3 } else { 2 };
    let dot = if space.is_empty() { "" } else { "." };
    let more = if cas { ", %i2" } else { "" };
    let inputs = vec![column; count].join(" ");
    let f = std::rc::Rc::new(f);
    for word in ["atom", "red"] {
        let result = match word {
            "atom" => "%o0, ",
            // red has neither exch nor cas
            _ if cas || opcode.contains("exch") => continue,
            _ => "",
        };
        let opcode = format!("{word}{dot}{space}.{opcode}");
        let unused = if result.is_empty() {
            format!("mov.b{bits} %o0, %i0;\n")
        } else {
            String::new()
        };
        let body = place(space)
            + &format!(
                "st{dot}{space}.b{bits} [%at], %i0;\n{unused}{opcode} {result}[%at], %i1{more};\n\
                 ld{dot}{space}.b{bits} %o1, [%at];"
            );
        let f = f.clone();
        let form = Form::lanes(
            opcode,
            &inputs,
            &format!("{column} {column}"),
            body,
            move |x| {
                let third = x.get(2).copied().unwrap_or(0);
                vec![Some(x[0]), Some(f(x[0], x[1], third))]
            },
        );
        forms.push(with_room(form, space).arch(arch));
    }
}

fn integers(forms: &mut Vec<Form>, space: &str) {
    for bits in [32, 64] {
        let column = format!("u{bits}");
        let mut add = |opcode: &str, f: Update| {
            update(forms, opcode, space, &column, bits, 80, f);
        };
        for signed in [false, true] {
            let kind = name(bits, signed);
            let value = move |x| number(x, bits, signed);
            if bits == 32 || !signed {
                add(
                    &format!("add.{kind}"),
                    Box::new(|x, y, _| x.wrapping_add(y)),
                );
            }
            add(
                &format!("min.{kind}"),
                Box::new(move |x, y, _| value(x).min(value(y)) as u64),
            );
            add(
                &format!("max.{kind}"),
                Box::new(move |x, y, _| value(x).max(value(y)) as u64),
            );
        }
        add(&format!("and.b{bits}"), Box::new(|x, y, _| x & y));
        add(&format!("or.b{bits}"), Box::new(|x, y, _| x | y));
        add(&format!("xor.b{bits}"), Box::new(|x, y, _| x ^ y));
        add(&format!("exch.b{bits}"), Box::new(|_, y, _| y));
        add(
            &format!("cas.b{bits}"),
            Box::new(|x, y, z| if x == y { z } else { x }),
        );
    }
    update(
        forms,
        "inc.u32",
        space,
        "u32",
        32,
        80,
        Box::new(|x, y, _| if x >= y { 0 } else { x + 1 }),
    );
    update(
        forms,
        "dec.u32",
        space,
        "u32",
        32,
        80,
        Box::new(|x, y, _| if x == 0 || x > y { y } else { x - 1 }),
    );
    update(
        forms,
        "cas.b16",
        space,
        "u16",
        16,
        80,
        Box::new(|x, y, z| if x == y { z } else { x }),
    );
}

fn sum(format: Format, x: u64, y: u64) -> u64 {
    arithmetic("add", format, Direction::Nearest, &[x, y])
}

/// Applies an update to both halves.
fn halves(f: impl Fn(u64, u64) -> u64, x: u64, y: u64) -> u64 {
    f(x & 0xffff, y & 0xffff) | f(x >> 16, y >> 16) << 16
}

fn floats(forms: &mut Vec<Form>, space: &'static str) {
    update(
        forms,
        "add.f32",
        space,
        "f32",
        32,
        80,
        Box::new(move |x, y, _| {
            // only sums in shared memory keep subnormals
            if space == "shared" {
                return sum(F32, x, y);
            }
            flushed(F32, sum(F32, flushed(F32, x), flushed(F32, y)))
        }),
    );
    update(
        forms,
        "add.f64",
        space,
        "f64",
        64,
        80,
        Box::new(|x, y, _| sum(F64, x, y)),
    );
    for (kind, format, arch) in [("f16", F16, 80), ("bf16", BF16, 90)] {
        let opcode = format!("add.noftz.{kind}");
        update(
            forms,
            &opcode,
            space,
            kind,
            16,
            arch,
            Box::new(move |x, y, _| sum(format, x, y)),
        );
        let (opcode, pair) = (format!("add.noftz.{kind}x2"), format!("{kind}x2"));
        update(
            forms,
            &opcode,
            space,
            &pair,
            32,
            arch,
            Box::new(move |x, y, _| halves(|x, y| sum(format, x, y), x, y)),
        );
    }
}

fn orders(forms: &mut Vec<Form>) {
    for order in ["relaxed", "acquire", "release", "acq_rel"] {
        for scope in ["cta", "gpu", "sys", "cluster"] {
            let opcode = format!("atom.{order}.{scope}.global.add.u32");
            let body = place("global")
                + &format!(
                    "st.global.b32 [%at], %i0;\n{opcode} %o0, [%at], %i1;\nld.global.b32 %o1, [%at];"
                );
            let form = Form::lanes(opcode, "u32 u32", "u32 u32", body, |x| {
                vec![Some(x[0]), Some(x[0] + x[1])]
            });
            let arch = if scope == "cluster" { 90 } else { 80 };
            forms.push(with_room(form, "global").arch(arch));
        }
    }
    let body = place("global")
        + ".reg .b64 %policy;\ncreatepolicy.fractional.L2::evict_first.b64 %policy, 0.5;\n\
           st.global.b32 [%at], %i0;\natom.global.max.L2::cache_hint.u32 %o0, [%at], %i1, %policy;\n\
           red.global.add.L2::cache_hint.u32 [%at], 1, %policy;\nld.global.b32 %o1, [%at];";
    let form = Form::lanes(
        "atom.global.max.L2::cache_hint.u32",
        "u32 u32",
        "u32 u32",
        body,
        |x| vec![Some(x[0]), Some(x[0].max(x[1]) + 1)],
    );
    forms.push(with_room(form, "global"));
}

fn vectors(forms: &mut Vec<Form>) {
    let list = |prefix: char, from: usize, count: usize| {
        let names: Vec<_> = (from..from + count)
            .map(|at| format!("%{prefix}{at}"))
            .collect();
        format!("{{{}}}", names.join(", "))
    };
    for (kind, format, bits, most) in [
        ("f32", F32, 32, 4),
        ("f16", F16, 16, 8),
        ("bf16", BF16, 16, 8),
        ("f16x2", F16, 32, 4),
        ("bf16x2", BF16, 32, 4),
    ] {
        for op in ["add", "min", "max"] {
            if kind == "f32" && op != "add" {
                continue;
            }
            for count in [2, 4, 8] {
                if count > most {
                    continue;
                }
                let noftz = if kind == "f32" { "" } else { ".noftz" };
                for word in ["atom", "red"] {
                    let opcode = format!("{word}.global.{op}{noftz}.v{count}.{kind}");
                    let bytes = bits / 8;
                    let mut body = place("global");
                    for at in 0..count {
                        body += &format!("st.global.b{bits} [%at+{}], %i{at};\n", bytes * at);
                    }
                    let result = match word {
                        "atom" => list('o', 0, count) + ", ",
                        _ => {
                            for at in 0..count {
                                body += &format!("mov.b{bits} %o{at}, %i{at};\n");
                            }
                            String::new()
                        }
                    };
                    body += &format!("{opcode} {result}[%at], {};\n", list('i', count, count));
                    for at in 0..count {
                        body += &format!(
                            "ld.global.b{bits} %o{}, [%at+{}];\n",
                            count + at,
                            bytes * at
                        );
                    }
                    let kinds = vec![kind; 2 * count].join(" ");
                    let form = Form::lanes(opcode, &kinds, &kinds, body, move |x| {
                        let one = move |x: u64, y: u64| match op {
                            "add" if kind == "f32" => {
                                flushed(F32, sum(F32, flushed(F32, x), flushed(F32, y)))
                            }
                            "add" => sum(format, x, y),
                            op => extreme(op == "max", false, format, x, y),
                        };
                        let both = |x, y| match kind.ends_with("x2") {
                            true => halves(one, x, y),
                            false => one(x, y),
                        };
                        let new = (0..count).map(|at| Some(both(x[at], x[count + at])));
                        x[..count].iter().copied().map(Some).chain(new).collect()
                    });
                    forms.push(with_room(form, "global").arch(90));
                }
            }
        }
    }
}

/// All threads of the block update one place: the result is the same in any order.
fn sums(forms: &mut Vec<Form>) {
    type Fold = fn(u64, u64) -> u64;
    for (op, fold) in [
        ("add.u32", (|x, y| (x + y) & 0xffff_ffff) as Fold),
        ("min.u32", u64::min),
        ("max.u32", u64::max),
        ("and.b32", |x, y| x & y),
        ("or.b32", |x, y| x | y),
        ("xor.b32", |x, y| x ^ y),
    ] {
        let body = format!(
            ".shared .align 4 .b32 total;\n.reg .pred %first;\nsetp.eq.u32 %first, %thread, 0;\n\
             @%first st.shared.u32 [total], %i0;\nbar.sync 0;\n@%first bra joined;\n\
             red.shared.{op} [total], %i0;\njoined:\nbar.sync 0;\nld.shared.u32 %o0, [total];"
        );
        let name = format!("red.shared.{op} of a block");
        forms.push(Form::warps(name, ("u32", "u32"), 256, body, move |data| {
            let total = data[0].iter().copied().reduce(fold);
            vec![vec![total; data[0].len()]]
        }));
    }
}
