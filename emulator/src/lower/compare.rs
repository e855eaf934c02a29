//! Comparison and selection.

use super::{Lowered, Lowerer, Modifiers};
use crate::ir::{Cmp, Code, Logic, Scalar, Slot};
use crate::syntax::Operand;

fn comparison(m: &mut Modifiers<'_>, kind: Scalar) -> Lowered<Cmp> {
    let words = [
        "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
        "gtu", "geu", "num", "nan",
    ];
    let cmp = match m.take_any(&words) {
        Some("eq") => Cmp::Eq,
        // NaN differs from everything only in the unordered form
        Some("ne") => Cmp::Ne,
        Some("lt" | "lo") => Cmp::Lt,
        Some("le" | "ls") => Cmp::Le,
        Some("gt" | "hi") => Cmp::Gt,
        Some("ge" | "hs") => Cmp::Ge,
        Some("equ") => Cmp::Equ,
        Some("neu") => Cmp::Neu,
        Some("ltu") => Cmp::Ltu,
        Some("leu") => Cmp::Leu,
        Some("gtu") => Cmp::Gtu,
        Some("geu") => Cmp::Geu,
        Some("num") => Cmp::Num,
        Some("nan") => Cmp::Nan,
        _ => return Err(format!("the opcode `{}` lacks a comparison", m.opcode())),
    };
    if matches!(
        kind,
        Scalar::F16x2 | Scalar::Bf16x2 | Scalar::Tf32 | Scalar::U8 | Scalar::S8
    ) {
        return Err(format!(
            "the opcode `{}` is not emulated for this type",
            m.opcode()
        ));
    }
    Ok(cmp)
}

pub(super) fn set_predicate<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    let cmp = comparison(m, kind)?;
    let flush = m.take("ftz");
    let combine = match m.take_any(&["and", "or", "xor"]) {
        None => {
            l.count(operands, 3)?;
            None
        }
        Some(word) => {
            l.count(operands, 4)?;
            let (p, negated) = l.predicate(&operands[3])?;
            let logic = match word {
                "and" => Logic::And,
                "or" => Logic::Or,
                _ => Logic::Xor,
            };
            Some((logic, p, negated))
        }
    };
    let wide = kind.bytes() == 8;
    let (d, q) = match &operands[0] {
        Operand::Pair(d, q) => (
            l.predicate_out(&Operand::Name(d))?,
            l.predicate_out(&Operand::Name(q))?,
        ),
        single => (l.predicate_out(single)?, crate::ir::SINK),
    };
    let (a, b) = (l.source(&operands[1], wide)?, l.source(&operands[2], wide)?);
    Ok(Code::Compare {
        cmp,
        kind,
        flush,
        d,
        q,
        a,
        b,
        combine,
    })
}

pub(super) fn set_value<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 3)?;
    let kind = m.scalar()?;
    let to = m.scalar()?;
    let flush = m.take("ftz");
    let cmp = comparison(m, kind)?;
    if to.bytes() != 4 {
        return Err(format!(
            "the opcode `{}` is not emulated for this type",
            m.opcode()
        ));
    }
    let wide = kind.bytes() == 8;
    let (a, b) = (l.source(&operands[1], wide)?, l.source(&operands[2], wide)?);
    Ok(Code::SetValue {
        cmp,
        kind,
        flush,
        float: to == Scalar::F32,
        d: l.narrow_out(&operands[0])?,
        a,
        b,
    })
}

pub(super) fn select<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let wide = m.scalar()?.bytes() == 8;
    l.count(operands, 4)?;
    let (p, negated) = l.predicate(&operands[3])?;
    let d = l.out(&operands[0], wide)?;
    let (mut a, mut b): (Slot, Slot) =
        (l.source(&operands[1], wide)?, l.source(&operands[2], wide)?);
    if negated {
        std::mem::swap(&mut a, &mut b);
    }
    Ok(if wide {
        Code::Select64 { d, a, b, p }
    } else {
        Code::Select32 { d, a, b, p }
    })
}

pub(super) fn select_sign<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let condition = m.scalar()?;
    let wide = m.scalar()?.bytes() == 8;
    let flush = m.take("ftz");
    l.count(operands, 4)?;
    let d = l.out(&operands[0], wide)?;
    let (a, b) = (l.source(&operands[1], wide)?, l.source(&operands[2], wide)?);
    Ok(Code::SelectSign {
        wide,
        float: condition == Scalar::F32,
        flush,
        d,
        a,
        b,
        c: l.narrow(&operands[3])?,
    })
}
