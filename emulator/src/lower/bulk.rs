//! Bulk copies: `cp.async.bulk`, its tensor form, and `cp.reduce.async.bulk`.

use super::{Lowered, Lowerer, Modifiers, isa, memory};
use crate::ir::{Address, AtomicOp, Bulk, Code, Hopper, Route, Scalar, Slot, Space};
use crate::syntax::Operand;

fn unknown<T>(m: &Modifiers<'_>) -> Lowered<T> {
    Err(format!("the opcode `{}` is not emulated", m.opcode()))
}

/// `cp.async.bulk.*` and `cp.reduce.async.bulk.*`; `.async` and `.bulk` are taken.
pub(super) fn bulk<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    reduces: bool,
) -> Lowered<Code> {
    if m.take("commit_group") {
        l.count(operands, 0)?;
        return Ok(Code::hopper(Hopper::BulkCommit));
    }
    if m.take("wait_group") {
        let read = m.take("read");
        return match operands {
            [Operand::Integer(pending @ 0..=0x7fff_ffff)] => Ok(Code::hopper(Hopper::BulkWait {
                pending: *pending as u32,
                read,
            })),
            _ => Err("takes the number of groups that may be in flight".into()),
        };
    }
    let rank = m
        .take("tensor")
        .then(|| m.take_any(&["1d", "2d", "3d", "4d", "5d"]))
        .map(|word| word.map_or(0, |word| usize::from(word.as_bytes()[0] - b'0')));
    if rank == Some(0) {
        return unknown(m);
    }
    if rank.is_some() {
        m.take("tile");
    }
    let hint = m.take("L2::cache_hint");
    if m.take("prefetch") {
        return if m.take("L2") && m.take("global") {
            Ok(Code::Nop)
        } else {
            unknown(m)
        };
    }
    let reduce = match (reduces, rank) {
        (false, _) => None,
        (true, Some(_)) => Some((isa::atomic_op(m)?, None)),
        (true, None) => {
            let kind = m.scalar()?;
            m.take("noftz");
            let op = isa::atomic_op(m)?;
            if !reduction_exists(op, kind) {
                return unknown(m);
            }
            Some((op, Some(kind)))
        }
    };
    let (route, to, from) = route(m)?;
    let multicast = route == Route::Load && m.take("multicast::cluster");
    let tells = m.take("mbarrier::complete_tx::bytes");
    if tells == (route == Route::Store) || (route == Route::Store && !m.take("bulk_group")) {
        return unknown(m);
    }
    l.shared_access(16);
    let mut rest = operands.iter();
    let mut next = || rest.next().ok_or("an operand is missing".to_string());
    let (mut coordinates, mut ends) = (Vec::new(), Vec::new());
    for space in [to, from] {
        let operand = next()?;
        let operand = match (operand, rank) {
            (Operand::Vector(parts), Some(rank)) if space == Space::Global => {
                let [map, Operand::Vector(at)] = &parts[..] else {
                    return Err("takes a tensor map and coordinates".into());
                };
                if at.len() != rank {
                    return Err(format!("takes {rank} coordinates, found {}", at.len()));
                }
                coordinates = at.iter().map(|c| l.narrow(c)).collect::<Lowered<_>>()?;
                map
            }
            (_, Some(_)) if space == Space::Global => {
                return Err("takes a tensor map and coordinates".into());
            }
            (operand, _) => operand,
        };
        // a tensor map is named by a generic address, or as a parameter
        let space = if rank.is_some() && space == Space::Global {
            memory::map_space(l, operand)
        } else {
            space
        };
        ends.push(memory::located(l, operand, space)?);
    }
    let bytes: Option<Slot> = match rank {
        None => Some(l.narrow(next()?)?),
        Some(_) => None,
    };
    let mbarrier: Option<Address> = if tells {
        l.shared_access(8);
        Some(memory::located(l, next()?, Space::Shared)?)
    } else {
        None
    };
    let multicast = match multicast {
        true => Some(l.narrow(next()?)?),
        false => None,
    };
    if hint {
        next()?;
    }
    if rest.next().is_some() {
        return Err(format!("found {} operands: too many", operands.len()));
    }
    if let Some((_, Some(kind))) = reduce {
        l.shared_access(kind.bytes());
    }
    Ok(Code::hopper(Hopper::Bulk(Bulk {
        route,
        to: ends[0],
        from: ends[1],
        bytes,
        coordinates,
        mbarrier,
        multicast,
        reduce,
    })))
}

/// Takes the two state spaces, in their order: the destination first.
fn route(m: &mut Modifiers<'_>) -> Lowered<(Route, Space, Space)> {
    let words: Vec<_> = (m.rest().iter().copied())
        .filter(|word| matches!(*word, "global" | "shared::cta" | "shared::cluster"))
        .collect();
    for word in &words {
        m.take(word);
    }
    match words[..] {
        ["shared::cluster" | "shared::cta", "global"] => {
            Ok((Route::Load, Space::Shared, Space::Global))
        }
        ["global", "shared::cta"] => Ok((Route::Store, Space::Global, Space::Shared)),
        ["shared::cluster", "shared::cta"] => Ok((Route::Across, Space::Shared, Space::Shared)),
        _ => unknown(m),
    }
}

fn reduction_exists(op: AtomicOp, kind: Scalar) -> bool {
    use Scalar::{Bf16, F16, F32, F64, S32, S64, U32, U64};
    match op {
        AtomicOp::Add => matches!(kind, U32 | S32 | U64 | F16 | Bf16 | F32 | F64),
        AtomicOp::Min | AtomicOp::Max => matches!(kind, U32 | S32 | U64 | S64 | F16 | Bf16),
        AtomicOp::Inc | AtomicOp::Dec => kind == U32,
        AtomicOp::And | AtomicOp::Or | AtomicOp::Xor => matches!(kind, U32 | U64),
        AtomicOp::Exch | AtomicOp::Cas => false,
    }
}
