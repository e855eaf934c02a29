//! Loads and stores: every width, vector and space, and the words that only hint.

use super::{name, number};
use crate::form::Form;

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    widths(&mut forms);
    qualifiers(&mut forms);
    vectors(&mut forms);
    spaces(&mut forms);
    forms
}

/// The room of a thread in a space: its declaration, and instructions that put its address into `%at`.
fn room(space: &str) -> (String, &'static str) {
    match space {
        "shared" => (
            ".shared .align 32 .b8 room[8192];\n".into(),
            "mov.u64 %at, room;\nmul.wide.u32 %by, %thread, 32;\nadd.s64 %at, %at, %by;\n",
        ),
        "local" => (
            ".local .align 32 .b8 room[32];\n".into(),
            "mov.u64 %at, room;\n",
        ),
        _ => (
            String::new(),
            "cvta.to.global.u64 %at, %scratch;\nmul.wide.u32 %by, %thread, 32;\nadd.s64 %at, %at, %by;\n",
        ),
    }
}

/// Declares `%at`, the address of 32 bytes of this thread in a space.
fn prepared(space: &str) -> String {
    let (declaration, address) = room(space);
    let scratch = match space {
        "global" => ".reg .b64 %scratch;\nmov.u64 %scratch, scratch;\n",
        _ => "",
    };
    format!(".reg .b64 %at, %by;\n{declaration}{scratch}{address}")
}

/// The variable behind `global` rooms.
const SCRATCH: &str = ".global .align 32 .b8 scratch[8192];";

fn with_room(form: Form, space: &str) -> Form {
    if space == "global" {
        form.module(SCRATCH)
    } else {
        form
    }
}

/// A narrow store and a load that extends: the sign of the load counts.
fn widths(forms: &mut Vec<Form>) {
    for space in ["global", "shared", "local"] {
        for bits in [8, 16, 32, 64] {
            for signed in [false, true] {
                let kind = name(bits, signed);
                let wide = if bits == 64 { 64 } else { 32 };
                let body = prepared(space)
                    + &format!(
                        ".reg .b{wide} %v;\nmov.b{wide} %v, %i0;\nst.{space}.b{bits} [%at], %v;\n\
                         ld.{space}.{kind} %o0, [%at];"
                    );
                let register = format!("u{wide}");
                let name = format!("st.{space}.b{bits} ld.{space}.{kind}");
                let form = Form::lanes(name, &register, &register, body, move |x| {
                    vec![Some(number(x[0], bits, signed) as u64)]
                });
                forms.push(with_room(form, space));
            }
        }
    }
}

fn qualifiers(forms: &mut Vec<Form>) {
    let loads = [
        "ld.global.ca.u32",
        "ld.global.cg.u32",
        "ld.global.cs.u32",
        "ld.global.lu.u32",
        "ld.global.cv.u32",
        "ld.global.nc.u32",
        "ld.global.nc.L1::no_allocate.L2::128B.u32",
        "ld.global.L1::evict_last.u32",
        "ld.global.L1::evict_first.L2::64B.u32",
        "ld.global.L2::256B.u32",
        "ld.volatile.global.u32",
        "ld.weak.global.u32",
        "ld.relaxed.cta.global.u32",
        "ld.relaxed.gpu.global.u32",
        "ld.acquire.sys.global.u32",
        "ld.acquire.gpu.global.u32",
        "ld.u32",
    ];
    for opcode in loads {
        let body = format!("{opcode} %o0, [%in];");
        forms.push(Form::lanes(opcode, "u32", "u32", body, |x| {
            vec![Some(x[0])]
        }));
    }
    let hinted = "createpolicy.fractional.L2::evict_last.b64 %policy, 1.0;";
    let body = format!(
        ".reg .b64 %policy;\n{hinted}\nld.global.L2::cache_hint.u32 %o0, [%in], %policy;\n\
         ld.global.nc.L2::cache_hint.u32 %o1, [%in], %policy;"
    );
    forms.push(Form::lanes(
        "ld.global.L2::cache_hint.u32",
        "u32",
        "u32 u32",
        body,
        |x| vec![Some(x[0]); 2],
    ));
    let stores = [
        "st.global.wb.u32",
        "st.global.cg.u32",
        "st.global.cs.u32",
        "st.global.wt.u32",
        "st.global.L1::no_allocate.u32",
        "st.volatile.global.u32",
        "st.relaxed.gpu.global.u32",
        "st.release.sys.global.u32",
        "st.release.cta.global.u32",
    ];
    for opcode in stores {
        let body =
            prepared("global") + &format!("{opcode} [%at+4], %i0;\nld.global.u32 %o0, [%at+4];");
        let form = Form::lanes(opcode, "u32", "u32", body, |x| vec![Some(x[0])]);
        forms.push(with_room(form, "global"));
    }
    let body = prepared("global")
        + &format!(
            ".reg .b64 %policy;\n{hinted}\nst.global.L2::cache_hint.u32 [%at], %i0, %policy;\n\
             ld.global.u32 %o0, [%at];"
        );
    let form = Form::lanes("st.global.L2::cache_hint.u32", "u32", "u32", body, |x| {
        vec![Some(x[0])]
    });
    forms.push(with_room(form, "global"));
}

fn vectors(forms: &mut Vec<Form>) {
    for space in ["global", "shared", "local"] {
        for (lanes, bits) in [(2, 8), (4, 8), (2, 16), (4, 16), (2, 32), (4, 32), (2, 64)] {
            let wide = if bits == 64 { 64 } else { 32 };
            let list = |prefix: &str| {
                let names: Vec<_> = (0..lanes).map(|at| format!("%{prefix}{at}")).collect();
                format!("{{{}}}", names.join(", "))
            };
            let mut body = prepared(space);
            for at in 0..lanes {
                body += &format!(".reg .b{wide} %v{at};\nadd.u{wide} %v{at}, %i0, {at};\n");
            }
            body += &format!(
                "st.{space}.v{lanes}.b{bits} [%at], {};\nld.{space}.v{lanes}.u{bits} {}, [%at];",
                list("v"),
                list("o")
            );
            let register = format!("u{wide}");
            let outputs = vec![register.as_str(); lanes].join(" ");
            let name = format!("st.{space}.v{lanes}.b{bits} ld.{space}.v{lanes}.u{bits}");
            let form = Form::lanes(name, &register, &outputs, body, move |x| {
                let one = |at: usize| number(x[0].wrapping_add(at as u64), bits, false) as u64;
                (0..lanes).map(|at| Some(one(at))).collect()
            });
            forms.push(with_room(form, space));
        }
    }
}

fn spaces(forms: &mut Vec<Form>) {
    // a table of constants, by lane
    let numbers: Vec<String> = (0..256).map(|at| (at * at + 7).to_string()).collect();
    let module = format!(
        ".const .align 4 .u32 squares[256] = {{{}}};",
        numbers.join(", ")
    );
    let body = ".reg .b64 %at, %by;\nmov.u64 %at, squares;\nand.b32 %o0, %i0, 255;\n\
                mul.wide.u32 %by, %o0, 4;\nadd.s64 %at, %at, %by;\nld.const.u32 %o0, [%at];";
    let form = Form::lanes("ld.const.u32", "u32", "u32", body, |x| {
        let at = x[0] & 255;
        vec![Some(at * at + 7)]
    });
    forms.push(form.module(module));
    for space in ["shared", "local"] {
        let body = prepared(space)
            + &format!(
                ".reg .b64 %generic;\n.reg .pred %p, %q;\ncvta.{space}.u64 %generic, %at;\n\
                 st.u64 [%generic+8], %i0;\nld.{space}.u64 %o0, [%at+8];\n\
                 isspacep.{space} %p, %generic;\nisspacep.global %q, %generic;\n\
                 selp.u32 %o1, 1, 0, %p;\nselp.u32 %o2, 1, 0, %q;\n\
                 cvta.to.{space}.u64 %generic, %generic;\nld.{space}.u64 %o3, [%generic+8];"
            );
        let name = format!("cvta.{space}.u64 isspacep.{space}");
        forms.push(Form::lanes(name, "u64", "u64 u32 u32 u64", body, |x| {
            vec![Some(x[0]), Some(1), Some(0), Some(x[0])]
        }));
    }
}
