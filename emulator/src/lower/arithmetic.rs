//! Arithmetic, comparison, selection, logic and shifts.

use super::{Lowered, Lowerer, Modifiers};
use crate::ir::{
    BitOp, ByteOp, Cmp, Code, FloatOp, IntOp, Logic, Rounding, Scalar, Slot, WideOp, Width,
};
use crate::syntax::Operand;

fn width(kind: Scalar) -> Option<Width> {
    match kind {
        Scalar::U16 | Scalar::S16 => Some(Width::W16),
        Scalar::U32 | Scalar::S32 => Some(Width::W32),
        Scalar::U64 | Scalar::S64 => Some(Width::W64),
        _ => None,
    }
}

fn is_signed(kind: Scalar) -> bool {
    matches!(kind, Scalar::S8 | Scalar::S16 | Scalar::S32 | Scalar::S64)
}

fn integer_width(modifiers: &Modifiers<'_>, kind: Scalar) -> Lowered<Width> {
    width(kind).ok_or_else(|| {
        format!(
            "the opcode `{}` is not emulated for this type",
            modifiers.opcode()
        )
    })
}

fn rounding(modifiers: &mut Modifiers<'_>) -> Rounding {
    match modifiers.take_any(&["rn", "rz", "rm", "rp"]) {
        Some("rz") => Rounding::Zero,
        Some("rm") => Rounding::Down,
        Some("rp") => Rounding::Up,
        _ => Rounding::Nearest,
    }
}

/// A floating-point operation of one to three sources.
fn float<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    op: FloatOp,
    kind: Scalar,
    sources: usize,
) -> Lowered<Code> {
    l.count(operands, sources + 1)?;
    let wide = kind == Scalar::F64;
    // approximations round as they like; the exact result is within every documented bound
    m.take_any(&["approx", "full"]);
    let flush = m.take("ftz");
    let saturate = m.take("sat");
    let d = l.out(&operands[0], wide)?;
    let mut slots = [0; 3];
    for (slot, operand) in slots.iter_mut().zip(&operands[1..]) {
        *slot = l.source(operand, wide)?;
    }
    // unused sources read the first: every slot of an operation is valid
    for unused in sources..3 {
        slots[unused] = slots[0];
    }
    let [a, b, c] = slots;
    Ok(match kind {
        Scalar::F32 => {
            let rounding = rounding(m);
            if rounding != Rounding::Nearest
                && !matches!(
                    op,
                    FloatOp::Add | FloatOp::Sub | FloatOp::Mul | FloatOp::Fma
                )
            {
                return Err(format!(
                    "the opcode `{}` is emulated only with rounding to nearest",
                    m.opcode()
                ));
            }
            Code::F32 {
                op,
                flush,
                saturate,
                rounding,
                d,
                a,
                b,
                c,
            }
        }
        Scalar::F64 => {
            let rounding = rounding(m);
            if rounding != Rounding::Nearest {
                return Err(format!(
                    "the opcode `{}` is emulated only with rounding to nearest",
                    m.opcode()
                ));
            }
            Code::F64 { op, d, a, b, c }
        }
        Scalar::F16 | Scalar::Bf16 | Scalar::F16x2 | Scalar::Bf16x2 => {
            m.take("rn");
            m.take("noftz");
            let relu = m.take("relu");
            Code::Half {
                op,
                kind,
                flush,
                saturate,
                relu,
                d,
                a,
                b,
                c,
            }
        }
        _ => {
            return Err(format!(
                "the opcode `{}` is not emulated for this type",
                m.opcode()
            ));
        }
    })
}

fn integer<'t>(
    l: &mut Lowerer<'t>,
    operands: &[Operand<'t>],
    op: IntOp,
    width: Width,
    sources: usize,
) -> Lowered<Code> {
    l.count(operands, sources + 1)?;
    let wide = width == Width::W64;
    let d = l.out(&operands[0], wide)?;
    let mut slots = [0; 3];
    for (slot, operand) in slots.iter_mut().zip(&operands[1..]) {
        *slot = l.source(operand, wide)?;
    }
    for unused in sources..3 {
        slots[unused] = slots[0];
    }
    let [a, b, c] = slots;
    Ok(Code::Int {
        op,
        width,
        d,
        a,
        b,
        c,
    })
}

pub(super) fn binary<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    int: IntOp,
    float_op: FloatOp,
) -> Lowered<Code> {
    let kind = m.scalar()?;
    if kind.is_float() {
        return float(l, m, operands, float_op, kind, 2);
    }
    let width = integer_width(m, kind)?;
    let int = match (int, m.take("sat")) {
        (IntOp::Add, true) => IntOp::AddSat,
        (IntOp::Sub, true) => IntOp::SubSat,
        (int, _) => int,
    };
    integer(l, operands, int, width, 2)
}

pub(super) fn unary<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    int: Option<IntOp>,
    float_op: FloatOp,
) -> Lowered<Code> {
    let kind = m.scalar()?;
    match int {
        Some(int) if !kind.is_float() => {
            let width = integer_width(m, kind)?;
            integer(l, operands, int, width, 1)
        }
        _ => float(l, m, operands, float_op, kind, 1),
    }
}

pub(super) fn signed<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    signed: IntOp,
    unsigned: IntOp,
) -> Lowered<Code> {
    let kind = m.scalar()?;
    let width = integer_width(m, kind)?;
    integer(
        l,
        operands,
        if is_signed(kind) { signed } else { unsigned },
        width,
        2,
    )
}

pub(super) fn divide<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    if kind.is_float() {
        return float(l, m, operands, FloatOp::Div, kind, 2);
    }
    let width = integer_width(m, kind)?;
    integer(
        l,
        operands,
        if is_signed(kind) {
            IntOp::DivS
        } else {
            IntOp::DivU
        },
        width,
        2,
    )
}

pub(super) fn extreme<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    int: (IntOp, IntOp),
    float_ops: (FloatOp, FloatOp),
) -> Lowered<Code> {
    let kind = m.scalar()?;
    if kind.is_float() {
        let op = if m.take("NaN") {
            float_ops.1
        } else {
            float_ops.0
        };
        return float(l, m, operands, op, kind, 2);
    }
    let width = integer_width(m, kind)?;
    integer(
        l,
        operands,
        if is_signed(kind) { int.0 } else { int.1 },
        width,
        2,
    )
}

fn wide_op(kind: Scalar) -> Option<WideOp> {
    Some(match kind {
        Scalar::U16 => WideOp::U16,
        Scalar::S16 => WideOp::S16,
        Scalar::U32 => WideOp::U32,
        Scalar::S32 => WideOp::S32,
        _ => return None,
    })
}

fn widening<'t>(
    l: &mut Lowerer<'t>,
    m: &Modifiers<'_>,
    operands: &[Operand<'t>],
    kind: Scalar,
    add: bool,
) -> Lowered<Code> {
    l.count(operands, if add { 4 } else { 3 })?;
    let op = wide_op(kind)
        .ok_or_else(|| format!("the opcode `{}` is not emulated for this type", m.opcode()))?;
    let wide = matches!(op, WideOp::S32 | WideOp::U32);
    let c = if add {
        Some(l.source(&operands[3], wide)?)
    } else {
        None
    };
    Ok(Code::Wide {
        op,
        d: l.out(&operands[0], wide)?,
        a: l.narrow(&operands[1])?,
        b: l.narrow(&operands[2])?,
        c,
    })
}

pub(super) fn multiply<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    if kind.is_float() {
        return float(l, m, operands, FloatOp::Mul, kind, 2);
    }
    if m.take("wide") {
        return widening(l, m, operands, kind, false);
    }
    let width = integer_width(m, kind)?;
    let op = match (m.take("hi"), is_signed(kind)) {
        (false, _) => IntOp::Mul,
        (true, true) => IntOp::MulHighS,
        (true, false) => IntOp::MulHighU,
    };
    m.take("lo");
    integer(l, operands, op, width, 2)
}

pub(super) fn multiply_add<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    if kind.is_float() {
        return float(l, m, operands, FloatOp::Fma, kind, 3);
    }
    if m.take("wide") {
        return widening(l, m, operands, kind, true);
    }
    let width = integer_width(m, kind)?;
    let op = match (m.take("hi"), is_signed(kind)) {
        (false, _) => IntOp::Mad,
        (true, true) => IntOp::MadHighS,
        (true, false) => IntOp::MadHighU,
    };
    m.take("lo");
    integer(l, operands, op, width, 3)
}

pub(super) fn fused<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    float(l, m, operands, FloatOp::Fma, kind, 3)
}

pub(super) fn copysign<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    float(l, m, operands, FloatOp::Copysign, kind, 2)
}

pub(super) fn sad<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    let width = integer_width(m, kind)?;
    integer(
        l,
        operands,
        if is_signed(kind) {
            IntOp::SadS
        } else {
            IntOp::SadU
        },
        width,
        3,
    )
}

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
    l.count(operands, 5)?;
    let Operand::Integer(table @ 0..=255) = operands[4] else {
        return Err("the table of lop3 is not a number from 0 to 255".into());
    };
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
    m.scalar()?;
    three(l, operands, ByteOp::Prmt)
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
