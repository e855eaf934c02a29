//! Arithmetic with the carry flag: chains of words against whole numbers of twice the width.

use super::number;
use crate::form::Form;

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for bits in [32, 64] {
        let kind = format!("u{bits}");
        let (four, two) = ([kind.as_str(); 4].join(" "), format!("{kind} {kind}"));
        let pair = move |low: u64, high: u64| u128::from(low) + (u128::from(high) << bits);
        let split = move |value: u128| vec![Some(value as u64), Some((value >> bits) as u64)];
        for suffix in ["u", "s"] {
            let t = format!("{suffix}{bits}");
            forms.push(Form::lanes(
                format!("add.cc.{t} addc.{t}"),
                &four,
                &two,
                format!("add.cc.{t} %o0, %i0, %i2;\naddc.{t} %o1, %i1, %i3;"),
                move |x| split(pair(x[0], x[1]).wrapping_add(pair(x[2], x[3]))),
            ));
            forms.push(Form::lanes(
                format!("sub.cc.{t} subc.{t}"),
                &four,
                &two,
                format!("sub.cc.{t} %o0, %i0, %i2;\nsubc.{t} %o1, %i1, %i3;"),
                move |x| split(pair(x[0], x[1]).wrapping_sub(pair(x[2], x[3]))),
            ));
        }
        // a third word takes what the second carries
        forms.push(Form::lanes(
            format!("addc.cc.u{bits} subc.cc.u{bits}"),
            &four,
            &[kind.as_str(); 4].join(" "),
            format!(
                "add.cc.u{bits} %o0, %i0, %i2;\naddc.cc.u{bits} %o0, %i1, %i3;\naddc.u{bits} %o1, 0, 0;\n\
                 sub.cc.u{bits} %o2, %i0, %i2;\nsubc.cc.u{bits} %o2, %i1, %i3;\nsubc.u{bits} %o3, 0, 0;"
            ),
            move |x| {
                let sum = u128::from(x[1]) + u128::from(x[3])
                    + ((u128::from(x[0]) + u128::from(x[2])) >> bits);
                let borrow = i128::from(x[0] < x[2]);
                let difference = i128::from(x[1]) - i128::from(x[3]) - borrow;
                vec![
                    Some(sum as u64),
                    Some((sum >> bits) as u64),
                    Some(difference as u64),
                    Some(if difference < 0 { u64::MAX } else { 0 }),
                ]
            },
        ));
        for signed in [false, true] {
            let t = format!("{}{bits}", if signed { 's' } else { 'u' });
            forms.push(Form::lanes(
                format!("mad.lo.cc.{t} madc.hi.{t}"),
                &four,
                &two,
                format!("mad.lo.cc.{t} %o0, %i0, %i1, %i2;\nmadc.hi.{t} %o1, %i0, %i1, %i3;"),
                move |x| {
                    let product =
                        number(x[0], bits, signed).wrapping_mul(number(x[1], bits, signed));
                    split((product as u128).wrapping_add(pair(x[2], x[3])))
                },
            ));
            // the carry out of the high word, seen by a plain addc
            forms.push(Form::lanes(
                format!("mad.hi.cc.{t} madc.lo.cc.{t}"),
                &four,
                &[kind.as_str(); 3].join(" "),
                format!(
                    "mad.hi.cc.{t} %o0, %i0, %i1, %i2;\nmadc.lo.cc.{t} %o1, %i0, %i1, %i3;\naddc.{t} %o2, 0, 0;"
                ),
                move |x| {
                    let keep = (1u128 << bits) - 1;
                    let product =
                        number(x[0], bits, signed).wrapping_mul(number(x[1], bits, signed)) as u128;
                    let high = (product >> bits & keep) + u128::from(x[2]);
                    let low = (product & keep) + u128::from(x[3]) + (high >> bits);
                    vec![
                        Some(high as u64),
                        Some(low as u64),
                        Some((low >> bits) as u64),
                    ]
                },
            ));
        }
    }
    forms
}
