//! Comparison and selection.

use super::{Lowered, Lowerer, Modifiers, lanes};
use crate::ir::{Cmp, Code, LaneOp, Logic, Scalar, Slot, Source, Target};
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
    if matches!(kind, Scalar::Tf32 | Scalar::U8 | Scalar::S8) {
        return Err(format!(
            "the opcode `{}` is not emulated for this type",
            m.opcode()
        ));
    }
    Ok(cmp)
}

/// The logic of `setp` and `set`, and the predicate that it takes.
type Combination = Option<(Logic, crate::ir::Pred, bool)>;

fn combination<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Combination> {
    let logic = match m.take_any(&["and", "or", "xor"]) {
        None => return l.count(operands, 3).map(|()| None),
        Some("and") => Logic::And,
        Some("or") => Logic::Or,
        Some(_) => Logic::Xor,
    };
    l.count(operands, 4)?;
    let (p, negated) = l.predicate(&operands[3])?;
    Ok(Some((logic, p, negated)))
}

/// Both sources, and the predicate that is combined with the result.
fn sources<'t>(
    l: &mut Lowerer<'t>,
    operands: &[Operand<'t>],
    kind: Scalar,
    combine: Combination,
) -> Lowered<(Option<Logic>, Vec<Source>)> {
    let mut sources = vec![
        l.source_of(&operands[1], kind)?,
        l.source_of(&operands[2], kind)?,
    ];
    let logic = combine.map(|(logic, p, negated)| {
        sources.push(Source::Predicate(p, negated));
        logic
    });
    Ok((logic, sources))
}

pub(super) fn set_predicate<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    let cmp = comparison(m, kind)?;
    let flush = m.take("ftz");
    let combine = combination(l, m, operands)?;
    let wide = kind.bytes() == 8;
    let (d, q) = match &operands[0] {
        Operand::Pair(d, q) => (
            l.predicate_out(&Operand::Name(d))?,
            l.predicate_out(&Operand::Name(q))?,
        ),
        single => (l.predicate_out(single)?, crate::ir::SINK),
    };
    if matches!(kind, Scalar::F16x2 | Scalar::Bf16x2) {
        let (logic, sources) = sources(l, operands, kind, combine)?;
        let op = LaneOp::ComparePair {
            cmp,
            kind,
            flush,
            logic,
        };
        return Ok(lanes::code(op, Target::Predicates(d, q), sources));
    }
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
    let kind = m.scalar()?;
    let to = m.scalar()?;
    let flush = m.take("ftz");
    let cmp = comparison(m, kind)?;
    let combine = combination(l, m, operands)?;
    if combine.is_none() && to.bytes() == 4 && kind.bytes() >= 4 && !is_pair(kind) {
        let wide = kind.bytes() == 8;
        let (a, b) = (l.source(&operands[1], wide)?, l.source(&operands[2], wide)?);
        return Ok(Code::SetValue {
            cmp,
            kind,
            flush,
            float: to == Scalar::F32,
            d: l.narrow_out(&operands[0])?,
            a,
            b,
        });
    }
    if to.bytes() > 4 || is_pair(to) != is_pair(kind) {
        return Err(lanes::unknown(m));
    }
    let target = Target::Narrow(l.narrow_out(&operands[0])?);
    let (logic, sources) = sources(l, operands, kind, combine)?;
    let op = LaneOp::Set {
        cmp,
        kind,
        to,
        flush,
        logic,
    };
    Ok(lanes::code(op, target, sources))
}

fn is_pair(kind: Scalar) -> bool {
    matches!(kind, Scalar::F16x2 | Scalar::Bf16x2)
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
