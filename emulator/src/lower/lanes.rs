//! Instructions that become [`LaneOp`]s: integers, bits and carries.

use super::arithmetic::is_signed;
use super::{Lowered, Lowerer, Modifiers};
use crate::ir::{
    Carry, CarryOp, Code, LaneOp, Lanes, Logic, PairOp, Pred, Property, Scalar, Source, Target,
};
use crate::syntax::Operand;

/// The error for a form that is not emulated.
pub(super) fn unknown(m: &Modifiers<'_>) -> String {
    format!("the opcode `{}` is not emulated", m.opcode())
}

pub(super) fn code(op: LaneOp, to: Target, sources: Vec<Source>) -> Code {
    Code::Lanes(Box::new(Lanes { op, to, sources }))
}

/// An operation whose operands have 32 bits all.
pub(super) fn words<'t>(
    l: &mut Lowerer<'t>,
    operands: &[Operand<'t>],
    op: LaneOp,
    sources: usize,
) -> Lowered<Code> {
    l.count(operands, sources + 1)?;
    let to = Target::Narrow(l.narrow_out(&operands[0])?);
    let sources = operands[1..]
        .iter()
        .map(|operand| l.narrow(operand).map(Source::Narrow))
        .collect::<Lowered<_>>()?;
    Ok(code(op, to, sources))
}

impl<'t> Lowerer<'t> {
    /// A source of the width of `kind`.
    pub(super) fn source_of(&mut self, operand: &Operand<'t>, kind: Scalar) -> Lowered<Source> {
        Ok(if kind.bytes() == 8 {
            Source::Wide(self.wide(operand)?)
        } else {
            Source::Narrow(self.narrow(operand)?)
        })
    }

    /// A destination of the width of `kind`.
    pub(super) fn target_of(&mut self, operand: &Operand<'t>, kind: Scalar) -> Lowered<Target> {
        Ok(if kind.bytes() == 8 {
            Target::Wide(self.wide_out(operand)?)
        } else {
            Target::Narrow(self.narrow_out(operand)?)
        })
    }
}

pub(super) fn fns<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    m.take("b32");
    words(l, operands, LaneOp::Fns, 3)
}

fn wraps(m: &mut Modifiers<'_>) -> Lowered<bool> {
    match m.take_any(&["wrap", "clamp"]) {
        Some(word) => Ok(word == "wrap"),
        None => Err(format!("the opcode `{}` lacks .wrap or .clamp", m.opcode())),
    }
}

pub(super) fn szext<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let signed = is_signed(m.scalar()?);
    let wrap = wraps(m)?;
    words(l, operands, LaneOp::Szext { signed, wrap }, 2)
}

pub(super) fn bmsk<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    m.take("b32");
    let wrap = wraps(m)?;
    words(l, operands, LaneOp::Bmsk { wrap }, 2)
}

pub(super) fn dp2a<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let b_signed = is_signed(m.scalar()?);
    let a_signed = is_signed(m.scalar()?);
    let high = match m.take_any(&["lo", "hi"]) {
        Some(word) => word == "hi",
        None => return Err(format!("the opcode `{}` lacks .lo or .hi", m.opcode())),
    };
    let op = LaneOp::Dp2a {
        a_signed,
        b_signed,
        high,
    };
    words(l, operands, op, 3)
}

pub(super) fn multiply_24<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    add: bool,
) -> Lowered<Code> {
    let signed = is_signed(m.scalar()?);
    let high = match m.take_any(&["lo", "hi"]) {
        Some(word) => word == "hi",
        None => return Err(format!("the opcode `{}` lacks .lo or .hi", m.opcode())),
    };
    let saturate = m.take("sat");
    let op = LaneOp::Mul24 {
        signed,
        high,
        add,
        saturate,
    };
    words(l, operands, op, if add { 3 } else { 2 })
}

/// The bytes that a mode of `prmt` picks for each value of its selector.
pub(super) fn permute_mode(word: &str) -> [[u8; 4]; 4] {
    let pick = |select: u8, at: u8| match word {
        "f4e" => select + at,
        "b4e" => (8 + select - at) % 8,
        "rc8" => select,
        "ecl" => at.max(select),
        "ecr" => at.min(select),
        // rc16
        _ => at % 2 + 2 * (select % 2),
    };
    std::array::from_fn(|select| std::array::from_fn(|at| pick(select as u8, at as u8)))
}

/// `lop3.and.b32 d|p, a, b, c, table, q`
pub(super) fn lop3_predicate<'t>(
    l: &mut Lowerer<'t>,
    operands: &[Operand<'t>],
    logic: Logic,
    table: u8,
) -> Lowered<Code> {
    l.count(operands, 6)?;
    let (d, p) = l.narrow_out_with_predicate(&operands[0])?;
    let mut sources = Vec::new();
    for operand in &operands[1..4] {
        sources.push(Source::Narrow(l.narrow(operand)?));
    }
    let (q, negated) = l.predicate(&operands[5])?;
    sources.push(Source::Predicate(q, negated));
    let op = LaneOp::Lop3 { table, logic };
    Ok(code(op, Target::NarrowAndPredicate(d, p), sources))
}

/// `add`, `min` and `max` of two 16-bit integers, and minima and maxima cut at zero; `None` for other types.
pub(super) fn packed<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    op: PairOp,
) -> Lowered<Option<Code>> {
    let signed = match m.rest().last().copied() {
        Some("u16x2") => false,
        Some("s16x2") => true,
        Some("s32") if m.rest().contains(&"relu") => {
            m.last()?;
            m.take("relu");
            let max = op == PairOp::Max;
            return words(l, operands, LaneOp::Relu32 { max }, 2).map(Some);
        }
        _ => return Ok(None),
    };
    m.last()?;
    let relu = signed && op != PairOp::Add && m.take("relu");
    words(l, operands, LaneOp::Pair16 { op, signed, relu }, 2).map(Some)
}

pub(super) fn test_property<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let kind = m.scalar()?;
    l.count(operands, 2)?;
    let words = [
        "finite",
        "infinite",
        "number",
        "notanumber",
        "normal",
        "subnormal",
    ];
    let property = match m.take_any(&words) {
        Some("finite") => Property::Finite,
        Some("infinite") => Property::Infinite,
        Some("number") => Property::Number,
        Some("notanumber") => Property::NotANumber,
        Some("normal") => Property::Normal,
        Some(_) => Property::Subnormal,
        None => return Err(format!("the opcode `{}` lacks a property", m.opcode())),
    };
    if !matches!(kind, Scalar::F32 | Scalar::F64) {
        return Err(unknown(m));
    }
    let to = Target::Predicates(l.predicate_out(&operands[0])?, l.sink_predicate());
    let source = l.source_of(&operands[1], kind)?;
    Ok(code(LaneOp::Property { property, kind }, to, vec![source]))
}

impl Lowerer<'_> {
    /// The carry flag of each lane.
    fn carry_flag(&mut self) -> Lowered<Pred> {
        if let Some(flag) = self.carry {
            return Ok(flag);
        }
        let flag = Pred::try_from(self.predicates).map_err(|_| "too many predicates")?;
        self.predicates += 1;
        self.carry = Some(flag);
        Ok(flag)
    }
}

/// `add.cc`, `addc`, `sub.cc`, `subc`.
pub(super) fn add_with_carry<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    op: CarryOp,
    reads: bool,
) -> Lowered<Code> {
    let kind = m.scalar()?;
    carrying(l, m, operands, (op, kind), reads)
}

/// `mad.cc` and `madc`.
pub(super) fn multiply_with_carry<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    reads: bool,
) -> Lowered<Code> {
    let kind = m.scalar()?;
    let high = match m.take_any(&["lo", "hi"]) {
        Some(word) => word == "hi",
        None => return Err(format!("the opcode `{}` lacks .lo or .hi", m.opcode())),
    };
    let signed = is_signed(kind);
    carrying(l, m, operands, (CarryOp::Mad { high, signed }, kind), reads)
}

fn carrying<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    (op, kind): (CarryOp, Scalar),
    reads: bool,
) -> Lowered<Code> {
    let writes = m.take("cc");
    if kind.is_float() || kind.bytes() < 4 {
        return Err(unknown(m));
    }
    let sources = if matches!(op, CarryOp::Mad { .. }) {
        3
    } else {
        2
    };
    l.count(operands, sources + 1)?;
    let wide = kind.bytes() == 8;
    let d = l.out(&operands[0], wide)?;
    let (a, b) = (l.source(&operands[1], wide)?, l.source(&operands[2], wide)?);
    let c = match operands.get(3) {
        Some(operand) => l.source(operand, wide)?,
        None => a,
    };
    Ok(Code::Carry(Box::new(Carry {
        op,
        wide,
        d,
        a,
        b,
        c,
        flag: l.carry_flag()?,
        reads,
        writes,
    })))
}
