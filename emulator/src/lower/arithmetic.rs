//! Integer and floating-point arithmetic.

use super::{Lowered, Lowerer, Modifiers, lanes};
use crate::ir::{CarryOp, Code, FloatOp, IntOp, LaneOp, PairOp, Rounding, Scalar, WideOp, Width};
use crate::syntax::Operand;

fn width(kind: Scalar) -> Option<Width> {
    match kind {
        Scalar::U16 | Scalar::S16 => Some(Width::W16),
        Scalar::U32 | Scalar::S32 => Some(Width::W32),
        Scalar::U64 | Scalar::S64 => Some(Width::W64),
        _ => None,
    }
}

pub(super) fn is_signed(kind: Scalar) -> bool {
    matches!(kind, Scalar::S8 | Scalar::S16 | Scalar::S32 | Scalar::S64)
}

pub(super) fn integer_width(modifiers: &Modifiers<'_>, kind: Scalar) -> Lowered<Width> {
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

/// A floating-point operation whose operands have one type all.
fn float_lanes<'t>(
    l: &mut Lowerer<'t>,
    operands: &[Operand<'t>],
    op: LaneOp,
    kind: Scalar,
) -> Lowered<Code> {
    let to = l.target_of(&operands[0], kind)?;
    let mut sources = Vec::new();
    for operand in &operands[1..] {
        sources.push(l.source_of(operand, kind)?);
    }
    Ok(lanes::code(op, to, sources))
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
    let approximate = m.take_any(&["approx", "full"]).is_some();
    let flush = m.take("ftz");
    let saturate = m.take("sat");
    if approximate && flush && wide && matches!(op, FloatOp::Rcp | FloatOp::Rsqrt) {
        let root = op == FloatOp::Rsqrt;
        return float_lanes(l, operands, LaneOp::Gross { root }, kind);
    }
    let xor_sign = m.take("xorsign") && m.take("abs");
    let rounding = rounding(m);
    let fast = match (kind, op) {
        _ if xor_sign => false,
        _ if rounding == Rounding::Nearest => true,
        (Scalar::F32, FloatOp::Add | FloatOp::Sub | FloatOp::Mul | FloatOp::Fma) => true,
        _ => false,
    };
    if !fast {
        let known = match op {
            FloatOp::Add | FloatOp::Sub | FloatOp::Mul | FloatOp::Fma => kind == Scalar::F64,
            FloatOp::Div | FloatOp::Rcp | FloatOp::Sqrt => {
                matches!(kind, Scalar::F32 | Scalar::F64)
            }
            _ => xor_sign && kind != Scalar::F64,
        };
        if !known {
            return Err(lanes::unknown(m));
        }
        let op = LaneOp::Float {
            op,
            kind,
            rounding,
            flush,
            saturate,
            xor_sign,
        };
        return float_lanes(l, operands, op, kind);
    }
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
        Scalar::F32 => Code::F32 {
            op,
            flush,
            saturate,
            rounding,
            d,
            a,
            b,
            c,
        },
        Scalar::F64 => Code::F64 { op, d, a, b, c },
        Scalar::F16 | Scalar::Bf16 | Scalar::F16x2 | Scalar::Bf16x2 => {
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

pub(super) fn integer<'t>(
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
    if int == IntOp::Add
        && let Some(code) = lanes::packed(l, m, operands, PairOp::Add)?
    {
        return Ok(code);
    }
    if m.rest().contains(&"cc") {
        let op = match int {
            IntOp::Add => CarryOp::Add,
            _ => CarryOp::Sub,
        };
        return lanes::add_with_carry(l, m, operands, op, false);
    }
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
    let pair = match float_ops.0 {
        FloatOp::Min => PairOp::Min,
        _ => PairOp::Max,
    };
    if let Some(code) = lanes::packed(l, m, operands, pair)? {
        return Ok(code);
    }
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
    if m.rest().contains(&"cc") {
        return lanes::multiply_with_carry(l, m, operands, false);
    }
    let kind = m.scalar()?;
    if kind.is_float() {
        return float(l, m, operands, FloatOp::Fma, kind, 3);
    }
    if m.take("wide") {
        return widening(l, m, operands, kind, true);
    }
    let width = integer_width(m, kind)?;
    let op = match (m.take("hi"), is_signed(kind)) {
        (true, true) if kind == Scalar::S32 && m.take("sat") => IntOp::MadHighSat,
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
