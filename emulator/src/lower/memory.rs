//! Loads, stores and asynchronous copies.

use super::{Kind, Lowered, Lowerer, Modifiers, Place};
use crate::ir::{self, Access, AsyncCopy, Code, Constant, Order, Scalar, Scope, Slot, Space};
use crate::syntax::Operand;

/// An address: slot, whether that slot has 32 bits, and an offset.
pub(super) struct Address {
    pub slot: Slot,
    pub narrow: bool,
    pub offset: i64,
}

impl<'t> Lowerer<'t> {
    pub(super) fn address(&mut self, operand: &Operand<'t>) -> Lowered<Address> {
        let Operand::Address { base, offset } = operand else {
            return Err("an address in brackets is missing".into());
        };
        let Some(name) = base else {
            return Ok(Address {
                slot: self.constant(Constant::Double(*offset as u64))?,
                narrow: false,
                offset: 0,
            });
        };
        match self.register(name) {
            Some((Kind::Wide, row)) => Ok(Address {
                slot: row as Slot,
                narrow: false,
                offset: *offset,
            }),
            Some((Kind::Narrow { .. }, row)) => Ok(Address {
                slot: row as Slot,
                narrow: true,
                offset: *offset,
            }),
            Some((Kind::Pred, _)) => Err(format!("`{name}` is a predicate, not an address")),
            None => {
                let slot = self.wide(&Operand::Name(name))?;
                Ok(Address {
                    slot,
                    narrow: false,
                    offset: *offset,
                })
            }
        }
    }
}

pub(super) fn space(m: &mut Modifiers<'_>) -> Space {
    match m.take_any(&[
        "global",
        "const",
        "shared::cta",
        "shared::cluster",
        "shared",
        "local",
        "param::entry",
        "param::func",
        "param",
    ]) {
        Some("global" | "const") => Space::Global,
        Some("shared::cta" | "shared::cluster" | "shared") => Space::Shared,
        Some("local") => Space::Local,
        Some(_) => Space::Param,
        None => Space::Generic,
    }
}

/// An address operand with the space its opcode names.
pub(super) fn located<'t>(
    l: &mut Lowerer<'t>,
    operand: &Operand<'t>,
    space: Space,
) -> Lowered<ir::Address> {
    let address = l.address(operand)?;
    Ok(ir::Address {
        space,
        slot: address.slot,
        narrow: address.narrow,
        offset: address.offset,
    })
}

/// The space of a tensor map's address: a parameter by its name, else generic.
pub(super) fn map_space(l: &Lowerer<'_>, operand: &Operand<'_>) -> Space {
    match operand {
        Operand::Address {
            base: Some(name), ..
        } if matches!(l.place(name), Some(Place::Param(_))) => Space::Param,
        _ => Space::Generic,
    }
}

/// Takes a scope.
pub(super) fn scope(m: &mut Modifiers<'_>) -> Option<Scope> {
    match m.take_any(&["cta", "cluster", "gpu", "gl", "sys"])? {
        "cta" => Some(Scope::Block),
        "cluster" => Some(Scope::Cluster),
        _ => Some(Scope::Device),
    }
}

/// Takes the words that say how strong an access is. Atomics are strong without a word.
pub(super) fn order(m: &mut Modifiers<'_>, atomic: bool) -> Order {
    m.take("weak");
    let scope = scope(m).unwrap_or(Scope::Device);
    let word = m.take_any(&[
        "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio",
    ]);
    Order {
        scope: (atomic || word.is_some()).then_some(scope),
        acquires: matches!(word, Some("acquire" | "acq_rel")),
        releases: matches!(word, Some("release" | "acq_rel")),
    }
}

/// Takes hints to the caches: they change no result. True if an operand with a policy follows.
pub(super) fn cache_hints(m: &mut Modifiers<'_>) -> bool {
    m.take_any(&["ca", "cg", "cs", "cv", "lu", "wb", "wt"]);
    m.take("nc");
    m.take_any(&["L2::64B", "L2::128B", "L2::256B"]);
    m.take_any(&[
        "L1::evict_normal",
        "L1::evict_unchanged",
        "L1::evict_first",
        "L1::evict_last",
        "L1::no_allocate",
    ]);
    m.take_any(&["L2::evict_last", "L2::evict_normal", "L2::evict_first"]);
    m.take("L2::cache_hint")
}

pub(super) fn vector(m: &mut Modifiers<'_>) -> usize {
    match m.take_any(&["v2", "v4", "v8"]) {
        Some("v2") => 2,
        Some("v4") => 4,
        Some(_) => 8,
        None => 1,
    }
}

/// What load and store share: everything but the registers.
fn access<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    address: &Operand<'t>,
    items: &[&Operand<'t>],
) -> Lowered<Access> {
    let kind = m.scalar()?;
    let (space, order) = (space(m), order(m, false));
    let space = match l.is_frame(address) {
        true if space == Space::Param => Space::Local,
        _ => space,
    };
    let lanes = vector(m);
    if items.len() != lanes {
        return Err(format!(
            "takes a vector of {lanes} registers, found {}",
            items.len()
        ));
    }
    let address = l.address(address)?;
    if space == Space::Shared || space == Space::Generic {
        l.shared_access(kind.bytes() * lanes as u32);
    }
    let wide = items.iter().any(|item| l.is_wide(item)) || kind.bytes() == 8;
    Ok(Access {
        space,
        address: address.slot,
        narrow: address.narrow,
        offset: address.offset,
        bytes: kind.bytes() as u8,
        signed: matches!(kind, Scalar::S8 | Scalar::S16 | Scalar::S32),
        wide,
        order,
        elements: Vec::with_capacity(lanes),
    })
}

pub(super) fn items<'o, 't>(operand: &'o Operand<'t>) -> Vec<&'o Operand<'t>> {
    match operand {
        Operand::Vector(items) => items.iter().collect(),
        single => vec![single],
    }
}

pub(super) fn load<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let policy = cache_hints(m);
    l.count(operands, 2 + usize::from(policy))?;
    if let Some(code) = parameter(l, m, operands)? {
        return Ok(code);
    }
    let items = items(&operands[0]);
    let mut access = access(l, m, &operands[1], &items)?;
    for item in items {
        let wide = access.wide;
        access.elements.push(if *item == Operand::Sink {
            None
        } else {
            Some(l.out(item, wide)?)
        });
    }
    Ok(Code::Load(Box::new(access)))
}

/// A parameter at a fixed offset is a constant of the launch.
fn parameter<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Option<Code>> {
    let (
        Operand::Name(_),
        Operand::Address {
            base: Some(name),
            offset,
        },
    ) = (&operands[0], &operands[1])
    else {
        return Ok(None);
    };
    let (Some(Place::Param(at)), Some(kind)) = (
        l.place(name),
        m.rest()
            .last()
            .and_then(|word| super::modifiers::scalar(word)),
    ) else {
        return Ok(None);
    };
    let wide = l.is_wide(&operands[0]);
    let fits = kind.bytes() == if wide { 8 } else { 4 };
    let Ok(at) = u32::try_from(i64::from(at) + offset) else {
        return Ok(None);
    };
    // what lies outside or across is a fault of the launch
    let inside = at % kind.bytes() == 0 && at.saturating_add(kind.bytes()) <= l.param_bytes;
    if !fits || !inside || m.rest().iter().any(|word| matches!(*word, "v2" | "v4")) {
        return Ok(None);
    }
    m.scalar()?;
    space(m);
    Ok(Some(if wide {
        Code::Move64 {
            d: l.wide_out(&operands[0])?,
            a: l.constant(Constant::Param64(at))?,
        }
    } else {
        Code::Move32 {
            d: l.narrow_out(&operands[0])?,
            a: l.constant(Constant::Param32(at))?,
        }
    }))
}

pub(super) fn store<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let policy = cache_hints(m);
    l.count(operands, 2 + usize::from(policy))?;
    let items = items(&operands[1]);
    let mut access = access(l, m, &operands[0], &items)?;
    if access.space == Space::Param {
        return Err("stores to parameters are not emulated".into());
    }
    for item in items {
        access.elements.push(Some(l.source(item, access.wide)?));
    }
    Ok(Code::Store(Box::new(access)))
}

pub(super) fn copy_async<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let unknown = |m: &Modifiers<'_>| format!("the opcode `{}` is not emulated", m.opcode());
    let reduces = m.take("reduce");
    if !m.take("async") {
        return Err(unknown(m));
    }
    if m.take("bulk") {
        return super::bulk::bulk(l, m, operands, reduces);
    }
    if reduces {
        return Err(unknown(m));
    }
    if m.take("mbarrier") {
        return super::hopper::copy_arrive(l, m, operands);
    }
    if m.take("commit_group") {
        return Ok(Code::CopyCommit);
    }
    if m.take("wait_all") {
        return Ok(Code::CopyWaitAll);
    }
    if m.take("wait_group") {
        return match operands {
            [Operand::Integer(pending @ 0..=0x7fff_ffff)] => Ok(Code::CopyWait {
                pending: *pending as u32,
            }),
            _ => Err("takes the number of groups that may be in flight".into()),
        };
    }
    if m.take_any(&["ca", "cg"]).is_none()
        || m.take_any(&["shared::cta", "shared"]).is_none()
        || !m.take("global")
    {
        return Err(unknown(m));
    }
    m.take_any(&["L2::64B", "L2::128B", "L2::256B"]);
    if !(3..=4).contains(&operands.len()) {
        return Err(format!("takes 3 or 4 operands, found {}", operands.len()));
    }
    let bytes = match operands[2] {
        Operand::Integer(bytes @ (4 | 8 | 16)) => bytes as u8,
        _ => return Err("copies 4, 8 or 16 bytes".into()),
    };
    l.shared_access(bytes.into());
    let (to, from) = (l.address(&operands[0])?, l.address(&operands[1])?);
    let (mut source_bytes, mut ignore) = (None, None);
    match operands.get(3) {
        Some(Operand::Name(name)) if matches!(l.register(name), Some((Kind::Pred, _))) => {
            ignore = Some(l.predicate(&operands[3])?.0);
        }
        Some(operand) => source_bytes = Some(l.narrow(operand)?),
        None => {}
    }
    if from.narrow {
        return Err("a global address has 64 bits".into());
    }
    Ok(Code::CopyAsync(Box::new(AsyncCopy {
        to: to.slot,
        to_offset: to.offset,
        to_narrow: to.narrow,
        from: from.slot,
        from_offset: from.offset,
        bytes,
        source_bytes,
        ignore,
    })))
}
