//! Clusters: their barrier, and addresses in the memory of another block.

use super::{Lowered, Lowerer, Modifiers};
use crate::ir::{Code, Hopper};
use crate::syntax::Operand;

fn unknown<T>(m: &Modifiers<'_>) -> Lowered<T> {
    Err(format!("the opcode `{}` is not emulated", m.opcode()))
}

/// `barrier.cluster.{arrive,wait}`; `.cluster` and `.aligned` are taken.
pub(super) fn barrier<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
    aligned: bool,
) -> Lowered<Code> {
    l.count(operands, 0)?;
    Ok(Code::hopper(match m.take_any(&["arrive", "wait"]) {
        Some("arrive") => Hopper::ClusterArrive {
            releases: m.take_any(&["release", "relaxed"]) != Some("relaxed"),
            aligned,
        },
        Some(_) => {
            m.take("acquire");
            Hopper::ClusterWait { aligned }
        }
        None => return unknown(m),
    }))
}

/// The width of an address, and whether it is generic.
fn form(m: &mut Modifiers<'_>) -> Lowered<(bool, bool)> {
    let generic = !m.take("shared::cluster");
    match m.take_any(&["u32", "u64"]) {
        Some(word) => Ok((word == "u64", generic)),
        None => unknown(m),
    }
}

/// `mapa d, a, rank`
pub(super) fn map<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 3)?;
    let (wide, generic) = form(m)?;
    Ok(Code::hopper(Hopper::MapAddress {
        d: l.out(&operands[0], wide)?,
        a: l.source(&operands[1], wide)?,
        rank: l.narrow(&operands[2])?,
        wide,
        generic,
    }))
}

/// `getctarank d, a`
pub(super) fn rank<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 2)?;
    let (wide, generic) = form(m)?;
    Ok(Code::hopper(Hopper::RankOf {
        d: l.narrow_out(&operands[0])?,
        a: l.source(&operands[1], wide)?,
        wide,
        generic,
    }))
}
