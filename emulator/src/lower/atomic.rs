//! atom and red.

use super::lanes::unknown;
use super::memory::{cache_hints, items, order, space, vector};
use super::{Lowered, Lowerer, Modifiers, isa};
use crate::ir::{Atomic, AtomicOp, Code, Order, Scalar, Space};
use crate::syntax::Operand;

pub(super) fn atomic<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    atom: bool,
) -> Lowered<Code> {
    let kind = m.scalar()?;
    let op = isa::atomic_op(m)?;
    let space = space(m);
    let order = order(m, true);
    m.take("noftz");
    if m.rest()
        .iter()
        .any(|word| matches!(*word, "v2" | "v4" | "v8"))
    {
        return vectors(l, m, operands, (op, kind, space), order, atom);
    }
    let policy = usize::from(cache_hints(m));
    let sources = if op == AtomicOp::Cas { 2 } else { 1 };
    let first = usize::from(atom);
    l.count(operands, first + 1 + sources + policy)?;
    let wide = kind.bytes() == 8;
    let supported = match op {
        AtomicOp::Inc | AtomicOp::Dec => kind == Scalar::U32,
        AtomicOp::And | AtomicOp::Or | AtomicOp::Xor => matches!(kind, Scalar::U32 | Scalar::U64),
        AtomicOp::Exch | AtomicOp::Cas => matches!(kind, Scalar::U16 | Scalar::U32 | Scalar::U64),
        AtomicOp::Min | AtomicOp::Max => {
            matches!(kind, Scalar::U32 | Scalar::S32 | Scalar::U64 | Scalar::S64)
        }
        AtomicOp::Add => !matches!(
            kind,
            Scalar::U8 | Scalar::S8 | Scalar::U16 | Scalar::S16 | Scalar::Tf32
        ),
    };
    if !supported || !matches!(space, Space::Global | Space::Shared | Space::Generic) {
        return Err(format!("the opcode `{}` is not emulated", m.opcode()));
    }
    let address = l.address(&operands[first])?;
    if space != Space::Global {
        l.shared_access(kind.bytes());
    }
    let value = l.source(&operands[first + 1], wide)?;
    let second = if op == AtomicOp::Cas {
        l.source(&operands[first + 2], wide)?
    } else {
        value
    };
    let result = if atom && operands[0] != Operand::Sink {
        Some(l.out(&operands[0], wide)?)
    } else {
        None
    };
    Ok(Code::Atomic(Box::new(Atomic {
        space,
        address: address.slot,
        narrow: address.narrow,
        offset: address.offset,
        op,
        kind,
        order,
        reads: atom,
        result,
        value,
        second,
    })))
}

/// Vector forms: elements that are updated one by one.
fn vectors<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    (op, kind, space): (AtomicOp, Scalar, Space),
    order: Order,
    atom: bool,
) -> Lowered<Code> {
    let count = vector(m);
    let policy = usize::from(cache_hints(m));
    let most = match kind {
        Scalar::F16 | Scalar::Bf16 => 8,
        Scalar::F16x2 | Scalar::Bf16x2 | Scalar::F32 => 4,
        _ => 0,
    };
    let extremes = matches!(op, AtomicOp::Min | AtomicOp::Max) && kind != Scalar::F32;
    let known =
        (op == AtomicOp::Add || extremes) && matches!(space, Space::Global | Space::Generic);
    if !known || count > most {
        return Err(unknown(m));
    }
    let first = usize::from(atom);
    l.count(operands, first + 2 + policy)?;
    let address = l.address(&operands[first])?;
    let values = items(&operands[first + 1]);
    let results = if atom {
        items(&operands[0])
    } else {
        Vec::new()
    };
    if values.len() != count || atom && results.len() != count {
        return Err(format!(
            "takes vectors of {count} registers, found {}",
            values.len()
        ));
    }
    let mut elements = Vec::new();
    for (at, value) in values.into_iter().enumerate() {
        let value = l.narrow(value)?;
        let result = match results.get(at) {
            Some(Operand::Sink) | None => None,
            Some(operand) => Some(l.narrow_out(operand)?),
        };
        elements.push(Atomic {
            space,
            address: address.slot,
            narrow: address.narrow,
            offset: address.offset + i64::from(kind.bytes()) * at as i64,
            op,
            kind,
            order,
            reads: atom,
            result,
            value,
            second: value,
        });
    }
    Ok(Code::AtomicVector(elements.into()))
}
