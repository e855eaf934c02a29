//! What came with Hopper: hands each operation to its file, and runs the small ones.

use super::context::{Context, Done, Trouble, lanes};
use super::registers::LANES;
use super::warp::{Stop, Warp};
use super::{bulk, cluster, mbarrier, tensor_map, wgmma};
use crate::fault::FaultKind;
use crate::ir::{Hopper, Pred, Slot};

/// Runs an operation; a stop comes after it, but for [`Stop::Retry`], which comes before.
pub(super) fn run(
    warp: &mut Warp,
    context: &mut Context<'_>,
    op: &Hopper,
    active: u32,
) -> Done<Option<Stop>> {
    match op {
        Hopper::Mbarrier(instruction) => return mbarrier::run(warp, context, instruction, active),
        &Hopper::PendingCount { d, state } => {
            warp.registers
                .map1(active, d, state, mbarrier::pending_count);
        }
        Hopper::CopyArrive { at, increment } => {
            bulk::copy_arrive(warp, context, at, *increment, active)?;
        }
        &Hopper::ClusterArrive { releases, .. } => {
            cluster::arrive(warp, context, releases, active)?;
        }
        Hopper::ClusterWait { .. } => return cluster::wait(warp, context, active),
        &Hopper::MapAddress {
            d,
            a,
            rank,
            wide,
            generic,
        } => cluster::map(warp, context, (d, a, rank), wide, generic, active)?,
        &Hopper::RankOf {
            d,
            a,
            wide,
            generic,
        } => cluster::rank_of(warp, (d, a), wide, generic, active)?,
        Hopper::Wgmma(product) => wgmma::multiply(warp, context, product)?,
        Hopper::WgmmaFence => wgmma::fence(warp),
        Hopper::WgmmaCommit => wgmma::commit(warp, context)?,
        &Hopper::WgmmaWait { pending } => return Ok(wgmma::wait(warp, context, pending)),
        Hopper::Bulk(copy) => bulk::issue(warp, context, copy, active)?,
        Hopper::BulkCommit => warp.stores.commit(active),
        &Hopper::BulkWait { pending, read } => bulk::wait(warp, context, pending, read, active)?,
        Hopper::FenceProxy => {
            context.detector.fence_proxy(warp.index, active, warp.at);
            context.show_mbarriers(warp, active, false);
        }
        Hopper::FenceInit => context.show_mbarriers(warp, active, true),
        &Hopper::Elect { d, p, members } => elect(warp, active, (d, p), members),
        Hopper::ReplaceMap { at, field } => tensor_map::replace(warp, context, at, field, active)?,
        Hopper::CopyMap { to, from } => tensor_map::copy(warp, context, to, from, active)?,
        &Hopper::SetRegisters { count, more } => {
            return set_registers(warp, context, count, more);
        }
    }
    Ok(None)
}

/// `elect.sync`: the lowest member leads.
fn elect(warp: &mut Warp, active: u32, (d, p): (Slot, Pred), members: Slot) {
    let members = warp.registers.get::<u32>(members);
    let mut leaders = [0; LANES];
    let mut elected = 0;
    for lane in lanes(active) {
        leaders[lane] = members[lane].trailing_zeros();
        elected |= u32::from(leaders[lane] == lane as u32) << lane;
    }
    warp.registers.put(active, d, leaders);
    warp.registers.set_predicate(active, p, elected);
}

/// `setmaxnreg`: the warps of a block may not hold more registers together than it has. Where `.maxnreg` says what it
/// began with, one that asks for more waits until others have given theirs back.
fn set_registers(
    warp: &Warp,
    context: &mut Context<'_>,
    count: u32,
    more: bool,
) -> Done<Option<Stop>> {
    let own = context.registers[warp.index];
    if own != 0 && (more && count < own || !more && count > own) {
        let name = if more { "inc" } else { "dec" };
        let message = format!("setmaxnreg.{name} to {count} registers a thread, from {own}");
        return Err(Trouble::new(FaultKind::Trap, None, message));
    }
    let block = &context.registers[warp.block * context.block_warps..][..context.block_warps];
    let held = (block.iter().sum::<u32>() - own + count) * LANES as u32;
    let (most, known) = context.register_pool;
    if held > most && known {
        return Ok(Some(Stop::Retry));
    }
    if held > most {
        let message = format!(
            "asks for {count} registers a thread; the warps of the block would hold {held} together, a block has {most}"
        );
        return Err(Trouble::new(FaultKind::Resources, None, message));
    }
    // all warps of a warpgroup execute it
    wgmma::note(warp, context)?;
    context.registers[warp.index] = count;
    context.changes += u64::from(count < own);
    Ok(None)
}
