//! Control flow, synchronisation, and exchanges within a warp.

use super::{Lowered, Lowerer, Modifiers, cluster, isa, memory, tensor_map};
use crate::ir::{AtomicOp, Barrier, BarrierKind, Code, Hopper, Scalar, Scope, Shuffle, Vote};
use crate::syntax::Operand;

/// Hints that change no result, whatever their modifiers.
pub(super) fn hint<'t>(
    _: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    _: &[Operand<'t>],
) -> Lowered<Code> {
    while !m.rest().is_empty() {
        m.last()?;
    }
    Ok(Code::Nop)
}

/// `createpolicy`: what it makes is read by hints only.
pub(super) fn cache_policy<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    hint(l, m, operands)?;
    let Some(d) = operands.first() else {
        return Err("takes a destination".into());
    };
    Ok(Code::Move64 {
        d: l.wide_out(d)?,
        a: l.wide(&Operand::Integer(0))?,
    })
}

pub(super) fn branch<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    m.take("uni");
    match operands {
        [Operand::Name(name)] => Ok(Code::Branch {
            target: l.label(name)?,
        }),
        _ => Err("takes a label".into()),
    }
}

pub(super) fn branch_index<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    m.take("uni");
    if !m.take("idx") {
        return Err(format!("the opcode `{}` is not emulated", m.opcode()));
    }
    match operands {
        [index, Operand::Name(table)] => Ok(Code::BranchIndex {
            index: l.narrow(index)?,
            targets: l.table(table)?.into(),
        }),
        _ => Err("takes an index and a table of labels".into()),
    }
}

pub(super) fn exit<'t>(
    _: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    _: &[Operand<'t>],
) -> Lowered<Code> {
    m.take("uni");
    Ok(Code::Exit)
}

pub(super) fn trap<'t>(
    _: &mut Lowerer<'t>,
    _: &mut Modifiers<'_>,
    _: &[Operand<'t>],
) -> Lowered<Code> {
    Ok(Code::Trap)
}

pub(super) fn fence<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    if m.take("proxy") {
        if m.take("tensormap::generic") {
            return tensor_map::fence(l, m, operands);
        }
        let shared = match m.take_any(&["async", "alias"]) {
            Some("async") => {
                m.take_any(&["shared::cta", "shared::cluster"]).is_some() || !m.take("global")
            }
            Some(_) => false,
            None => return Err(format!("the opcode `{}` is not emulated", m.opcode())),
        };
        return Ok(if shared {
            Code::hopper(Hopper::FenceProxy)
        } else {
            Code::Fence(None)
        });
    }
    if m.take("mbarrier_init") {
        m.take("release");
        m.take("cluster");
        return Ok(Code::hopper(Hopper::FenceInit));
    }
    let scope = memory::scope(m).unwrap_or(Scope::Device);
    m.take_any(&["sc", "acq_rel", "acquire", "release"]);
    Ok(Code::Fence(Some(scope)))
}

pub(super) fn barrier<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    // `bar` is the aligned form of `barrier`
    let aligned = m.mnemonic == "bar" || m.rest().contains(&"aligned");
    let marked = m.take("aligned");
    if m.take("cluster") {
        return cluster::barrier(l, m, operands, marked);
    }
    m.take("cta");
    if m.take("warp") {
        if !m.take("sync") {
            return Err(format!("the opcode `{}` is not emulated", m.opcode()));
        }
        l.count(operands, 1)?;
        return Ok(Code::WarpSync {
            members: l.narrow(&operands[0])?,
        });
    }
    let word = m.take_any(&["sync", "arrive", "red"]);
    let (kind, rest) = match word {
        Some("sync") => (BarrierKind::Sync, operands),
        Some("arrive") => (BarrierKind::Arrive, operands),
        Some("red") => {
            let (Some(d), Some(input)) = (operands.first(), operands.last()) else {
                return Err("takes a destination, a barrier and a predicate".into());
            };
            let (input, negated) = l.predicate(input)?;
            let kind = match m.take_any(&["popc", "and", "or"]) {
                Some("popc") => {
                    m.take("u32");
                    BarrierKind::Popc {
                        d: l.narrow_out(d)?,
                        input,
                        negated,
                    }
                }
                Some("and") => BarrierKind::All {
                    d: l.predicate_out(d)?,
                    input,
                    negated,
                },
                Some(_) => BarrierKind::Any {
                    d: l.predicate_out(d)?,
                    input,
                    negated,
                },
                None => return Err(format!("the opcode `{}` lacks an operation", m.opcode())),
            };
            m.take("pred");
            (kind, operands.get(1..operands.len() - 1).unwrap_or(&[]))
        }
        _ => return Err(format!("the opcode `{}` is not emulated", m.opcode())),
    };
    let (id, count) = match rest {
        [id] => (l.narrow(id)?, None),
        [id, count] => (l.narrow(id)?, Some(l.narrow(count)?)),
        _ => return Err("takes a barrier and an optional thread count".into()),
    };
    if kind == BarrierKind::Arrive && count.is_none() {
        return Err("bar.arrive takes a thread count".into());
    }
    Ok(Code::Barrier(Barrier {
        kind,
        id,
        count,
        aligned,
    }))
}

pub(super) fn shuffle<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 5)?;
    m.scalar()?;
    if !m.take("sync") {
        return Err(format!(
            "the opcode `{}` is not emulated: it lacks .sync",
            m.opcode()
        ));
    }
    let mode = match m.take_any(&["up", "down", "bfly", "idx"]) {
        Some("up") => Shuffle::Up,
        Some("down") => Shuffle::Down,
        Some("bfly") => Shuffle::Butterfly,
        Some(_) => Shuffle::Index,
        None => return Err(format!("the opcode `{}` lacks a mode", m.opcode())),
    };
    let (d, p) = l.narrow_out_with_predicate(&operands[0])?;
    Ok(Code::Shuffle {
        mode,
        d,
        p,
        a: l.narrow(&operands[1])?,
        b: l.narrow(&operands[2])?,
        clamp: l.narrow(&operands[3])?,
        members: l.narrow(&operands[4])?,
    })
}

pub(super) fn vote<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 3)?;
    if !m.take("sync") {
        return Err(format!(
            "the opcode `{}` is not emulated: it lacks .sync",
            m.opcode()
        ));
    }
    let mode = match m.take_any(&["all", "any", "uni", "ballot"]) {
        Some("all") => Vote::All,
        Some("any") => Vote::Any,
        Some("uni") => Vote::Uniform,
        Some(_) => Vote::Ballot,
        None => return Err(format!("the opcode `{}` lacks a mode", m.opcode())),
    };
    m.take_any(&["pred", "b32"]);
    let (d, p) = match mode {
        Vote::Ballot => (l.narrow_out(&operands[0])?, l.sink_predicate()),
        _ => (l.sink, l.predicate_out(&operands[0])?),
    };
    let (a, negated) = l.predicate(&operands[1])?;
    Ok(Code::Vote {
        mode,
        d,
        p,
        a,
        negated,
        members: l.narrow(&operands[2])?,
    })
}

pub(super) fn matching<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 3)?;
    let wide = m.scalar()?.bytes() == 8;
    if !m.take("sync") {
        return Err(format!(
            "the opcode `{}` is not emulated: it lacks .sync",
            m.opcode()
        ));
    }
    let all = match m.take_any(&["all", "any"]) {
        Some("all") => true,
        Some(_) => false,
        None => return Err(format!("the opcode `{}` lacks a mode", m.opcode())),
    };
    let (d, p) = l.narrow_out_with_predicate(&operands[0])?;
    Ok(Code::Match {
        all,
        wide,
        d,
        p,
        a: l.source(&operands[1], wide)?,
        members: l.narrow(&operands[2])?,
    })
}

pub(super) fn active_mask<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 1)?;
    m.take("b32");
    Ok(Code::ActiveMask {
        d: l.narrow_out(&operands[0])?,
    })
}

pub(super) fn reduce<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 3)?;
    let kind = m.scalar()?;
    let op = isa::atomic_op(m)?;
    let known = matches!(kind, Scalar::U32 | Scalar::S32)
        && matches!(
            op,
            AtomicOp::Add
                | AtomicOp::Min
                | AtomicOp::Max
                | AtomicOp::And
                | AtomicOp::Or
                | AtomicOp::Xor
        );
    if !m.take("sync") || !known {
        return Err(format!("the opcode `{}` is not emulated", m.opcode()));
    }
    let d = l.narrow_out(&operands[0])?;
    Ok(Code::Reduce {
        op,
        kind,
        d,
        a: l.narrow(&operands[1])?,
        members: l.narrow(&operands[2])?,
    })
}
