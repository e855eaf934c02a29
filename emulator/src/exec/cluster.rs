//! Clusters: the barrier of all their threads, and addresses in the memory of another block.
//!
//! All blocks of a cluster run on one host thread, their warps in turn.

use super::context::{CLUSTER_SHIFT, Context, Done, SHARED_WINDOW, Trouble, lanes};
use super::memory::shared_address;
use super::registers::LANES;
use super::warp::{Stop, Warp};
use crate::fault::FaultKind;
use crate::ir::Slot;
use crate::race::Seen;

/// The barrier of a cluster.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Somebody has arrived since it last opened.
    pub arrived: bool,
    /// What the arrivals have released.
    gathered: Seen,
    /// What those before the last opening had.
    released: Seen,
}

impl Gate {
    /// Lets those who wait go on.
    pub(super) fn open(&mut self) {
        self.arrived = false;
        self.released = std::mem::take(&mut self.gathered);
    }
}

/// `barrier.cluster.arrive`
pub(super) fn arrive(
    warp: &mut Warp,
    context: &mut Context<'_>,
    releases: bool,
    active: u32,
) -> Done {
    let twice = warp.at_cluster_barrier & active;
    if twice != 0 {
        let message = "arrives at the barrier of its cluster twice, without a wait in between";
        return Err(Trouble::new(
            FaultKind::Divergence,
            twice.trailing_zeros(),
            message,
        ));
    }
    warp.at_cluster_barrier |= active;
    warp.lacks_cluster |= active;
    context.gate.arrived = true;
    context.detector.arrive_at_gate(warp.index);
    context.report.barriers += 1;
    if releases {
        let gathered = &mut context.gate.gathered;
        (context.detector).release(warp.index, active, warp.live, gathered);
    }
    Ok(())
}

/// `barrier.cluster.wait`
pub(super) fn wait(warp: &mut Warp, context: &mut Context<'_>, active: u32) -> Done<Option<Stop>> {
    let absent = active & !warp.at_cluster_barrier;
    if absent != 0 {
        let message = "waits at the barrier of its cluster without having arrived there";
        return Err(Trouble::new(
            FaultKind::Divergence,
            absent.trailing_zeros(),
            message,
        ));
    }
    if warp.lacks_cluster & active != 0 {
        return Ok(Some(Stop::Retry));
    }
    warp.at_cluster_barrier &= !active;
    context.detector.acquire(warp.index, &context.gate.released);
    if active == warp.live {
        context.new_period(warp.index)?;
    }
    Ok(None)
}

/// `mapa`: the same offset in the memory of another block.
pub(super) fn map(
    warp: &mut Warp,
    context: &Context<'_>,
    (d, a, rank): (Slot, Slot, Slot),
    wide: bool,
    generic: bool,
    active: u32,
) -> Done {
    let ranks = *warp.registers.row(rank);
    let addresses: [u64; LANES] = if wide {
        warp.registers.get(a)
    } else {
        warp.registers.get::<u32>(a).map(u64::from)
    };
    let blocks = context.exited.len();
    let mut out = [0; LANES];
    for lane in lanes(active) {
        if ranks[lane] as usize >= blocks {
            let message = format!(
                "maps an address to block {} of a cluster of {blocks}",
                ranks[lane]
            );
            return Err(Trouble::new(FaultKind::Trap, lane as u32, message));
        }
        let address = if generic {
            shared_address(addresses[lane], lane)?
        } else {
            addresses[lane]
        };
        let base = if generic { SHARED_WINDOW } else { 0 };
        out[lane] = base + context.address_in(ranks[lane] as usize, address);
    }
    if wide {
        warp.registers.put(active, d, out);
    } else {
        warp.registers
            .put(active, d, out.map(|address| address as u32));
    }
    Ok(())
}

/// `getctarank`: the block whose memory an address lies in.
pub(super) fn rank_of(
    warp: &mut Warp,
    (d, a): (Slot, Slot),
    wide: bool,
    generic: bool,
    active: u32,
) -> Done {
    let addresses: [u64; LANES] = if wide {
        warp.registers.get(a)
    } else {
        warp.registers.get::<u32>(a).map(u64::from)
    };
    let mut out = [0; LANES];
    for lane in lanes(active) {
        let address = if generic {
            shared_address(addresses[lane], lane)?
        } else {
            addresses[lane]
        };
        out[lane] = match address >> CLUSTER_SHIFT {
            0 => warp.block as u32,
            rank => rank as u32 - 1,
        };
    }
    warp.registers.put(active, d, out);
    Ok(())
}
