//! Logic, shifts, and the bits and bytes of a word.

use super::arithmetic::{integer, integer_width, is_signed};
use super::{Lowered, Lowerer, Modifiers, lanes};
use crate::ir::{BitOp, ByteOp, Code, IntOp, LaneOp, Logic, Width};
use crate::syntax::Operand;

pub(super) fn logic<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    op: IntOp,
) -> Lowered<Code> {
    if m.take("pred") {
        l.count(operands, 3)?;
        let op = match op {
            IntOp::And => Logic::And,
            IntOp::Or => Logic::Or,
            _ => Logic::Xor,
        };
        let d = l.predicate_out(&operands[0])?;
        let (a, na) = l.predicate(&operands[1])?;
        let (b, nb) = l.predicate(&operands[2])?;
        if na || nb {
            return Err("negated predicates are not operands of logic".into());
        }
        return Ok(Code::PredLogic { op, d, a, b });
    }
    let kind = m.scalar()?;
    let width = integer_width(m, kind)?;
    integer(l, operands, op, width, 2)
}

pub(super) fn logic_one<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    op: IntOp,
) -> Lowered<Code> {
    if op == IntOp::Not && m.take("pred") {
        l.count(operands, 2)?;
        let d = l.predicate_out(&operands[0])?;
        let (a, negated) = l.predicate(&operands[1])?;
        return Ok(if negated {
            Code::MovePred {
                d,
                a,
                negated: false,
            }
        } else {
            Code::PredNot { d, a }
        });
    }
    let kind = m.scalar()?;
    let width = integer_width(m, kind)?;
    integer(l, operands, op, width, 1)
}

pub(super) fn lop3<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    m.scalar()?;
    let Some(&Operand::Integer(table @ 0..=255)) = operands.get(4) else {
        return Err("the table of lop3 is not a number from 0 to 255".into());
    };
    match m.take_any(&["and", "or"]) {
        Some("and") => return lanes::lop3_predicate(l, operands, Logic::And, table as u8),
        Some(_) => return lanes::lop3_predicate(l, operands, Logic::Or, table as u8),
        None => l.count(operands, 5)?,
    }
    integer(l, &operands[..4], IntOp::Lop3(table as u8), Width::W32, 3)
}

pub(super) fn shift<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    ops: (IntOp, IntOp),
) -> Lowered<Code> {
    let kind = m.scalar()?;
    l.count(operands, 3)?;
    let width = integer_width(m, kind)?;
    let wide = width == Width::W64;
    let (d, a) = (l.out(&operands[0], wide)?, l.source(&operands[1], wide)?);
    let b = l.narrow(&operands[2])?;
    Ok(Code::Int {
        op: if is_signed(kind) { ops.0 } else { ops.1 },
        width,
        d,
        a,
        b,
        c: a,
    })
}

pub(super) fn funnel_shift<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    m.scalar()?;
    let left = match m.take_any(&["l", "r"]) {
        Some("l") => true,
        Some(_) => false,
        None => return Err("shf lacks a direction".into()),
    };
    let wrap = m.take("wrap");
    m.take("clamp");
    let op = if left {
        ByteOp::ShfLeft { wrap }
    } else {
        ByteOp::ShfRight { wrap }
    };
    three(l, operands, op)
}

fn three<'t>(l: &mut Lowerer<'t>, operands: &[Operand<'t>], op: ByteOp) -> Lowered<Code> {
    l.count(operands, 4)?;
    Ok(Code::Bytes {
        op,
        d: l.narrow_out(&operands[0])?,
        a: l.narrow(&operands[1])?,
        b: l.narrow(&operands[2])?,
        c: l.narrow(&operands[3])?,
    })
}

pub(super) fn permute<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    // the mode stands behind the type
    let modes = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
    let mode = m.take_any(&modes);
    m.scalar()?;
    match mode {
        Some(mode) => {
            let op = LaneOp::Prmt(lanes::permute_mode(mode));
            lanes::words(l, operands, op, 3)
        }
        None => three(l, operands, ByteOp::Prmt),
    }
}

pub(super) fn dp4a<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let b_signed = is_signed(m.scalar()?);
    let a_signed = is_signed(m.scalar()?);
    three(l, operands, ByteOp::Dp4a { a_signed, b_signed })
}

pub(super) fn count_bits<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let wide = m.scalar()?.bytes() == 8;
    l.count(operands, 2)?;
    let op = if m.mnemonic == "popc" {
        BitOp::Popc
    } else {
        BitOp::Clz
    };
    let a = l.source(&operands[1], wide)?;
    Ok(Code::Bits {
        op,
        wide,
        d: l.narrow_out(&operands[0])?,
        a,
        b: 0,
        c: 0,
        e: 0,
    })
}

pub(super) fn find_bit<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    l.count(operands, 2)?;
    let shift = m.take("shiftamt");
    let op = if is_signed(kind) {
        BitOp::FindS { shift }
    } else {
        BitOp::FindU { shift }
    };
    let wide = kind.bytes() == 8;
    let a = l.source(&operands[1], wide)?;
    Ok(Code::Bits {
        op,
        wide,
        d: l.narrow_out(&operands[0])?,
        a,
        b: 0,
        c: 0,
        e: 0,
    })
}

pub(super) fn extract<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    l.count(operands, 4)?;
    let wide = kind.bytes() == 8;
    let op = if is_signed(kind) {
        BitOp::ExtractS
    } else {
        BitOp::ExtractU
    };
    let d = l.out(&operands[0], wide)?;
    let a = l.source(&operands[1], wide)?;
    Ok(Code::Bits {
        op,
        wide,
        d,
        a,
        b: l.narrow(&operands[2])?,
        c: l.narrow(&operands[3])?,
        e: 0,
    })
}

pub(super) fn insert<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let wide = m.scalar()?.bytes() == 8;
    l.count(operands, 5)?;
    let d = l.out(&operands[0], wide)?;
    let (a, b) = (l.source(&operands[1], wide)?, l.source(&operands[2], wide)?);
    Ok(Code::Bits {
        op: BitOp::Insert,
        wide,
        d,
        a,
        b,
        c: l.narrow(&operands[3])?,
        e: l.narrow(&operands[4])?,
    })
}
