//! Race detection on global memory: accesses of two threads to the same bytes, one of them a write, that nothing orders.
//!
//! Threads of one block or cluster are ordered by its clocks. Blocks that do not run together are ordered only by what
//! they read from memory ([`sync`](super::sync)), in whatever order they happen to run here: a race is found on any
//! number of host threads.

#[cfg(test)]
mod tests;

use super::shadow::{Judge, Lanes, Line, Record};
use super::{Detector, parts_cover};
use crate::ir::Scope;

/// An access by one warp to bytes of one line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Touch {
    pub warp: usize,
    pub pc: u32,
    /// The bytes of the line.
    pub mask: u128,
    pub lanes: Lanes,
    pub write: bool,
    /// `None` if it is weak.
    pub scope: Option<Scope>,
}

/// The other side of a race on global memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unordered {
    /// The block or cluster in the grid, if it is another one.
    pub unit: Option<u32>,
    /// The warp in it, and a lane if it was one.
    pub warp: usize,
    pub lane: Option<u32>,
    pub pc: u32,
    pub write: bool,
    /// Both are strong: a scope is too narrow.
    pub narrow: bool,
    /// Bytes of the line that both touch.
    pub overlap: u128,
}

impl Detector {
    /// Judges and notes an access to a line.
    #[inline]
    pub(crate) fn touch(&self, line: &mut Line, touch: Touch) -> Result<(), Unordered> {
        let new = Record {
            mask: touch.mask,
            unit: self.unit,
            clock: self.now(touch.warp),
            pc: touch.pc,
            lanes: touch.lanes,
            warp: touch.warp as u16,
            write: touch.write,
            scope: touch.scope,
        };
        line.access(new, self).map_err(|old| {
            let overlap = old.mask & new.mask;
            let lanes = old.lanes.over(overlap & overlap.wrapping_neg());
            Unordered {
                unit: (old.unit != new.unit).then_some(old.unit),
                warp: old.warp.into(),
                lane: lanes.is_power_of_two().then(|| lanes.trailing_zeros()),
                pc: old.pc,
                write: old.write,
                narrow: old.scope.is_some() && new.scope.is_some(),
                overlap,
            }
        })
    }
}

impl Judge for Detector {
    fn is_after(&self, old: &Record, new: &Record, overlap: u128) -> bool {
        let (from, to) = (usize::from(old.warp), usize::from(new.warp));
        if old.unit != new.unit {
            return self.memories.as_ref().is_some_and(|memories| {
                let others = memories.others(to);
                others.cover(old.unit, from, old.clock, || old.lanes.over(overlap))
            });
        }
        let seen = if from == to {
            old.clock < self.synced[to] || old.lanes.agree(new.lanes, overlap)
        } else {
            old.clock <= self.seen(to)[from]
        };
        seen || !self.parts[to].is_empty()
            && parts_cover(&self.parts[to], from, old.clock, old.lanes.over(overlap))
    }

    fn is_moral(&self, old: &Record, new: &Record) -> bool {
        let (Some(one), Some(other)) = (old.scope, new.scope) else {
            return false;
        };
        let block = |record: &Record| usize::from(record.warp) / self.warps;
        let needed = if old.unit != new.unit {
            Scope::Device
        } else if block(old) != block(new) {
            Scope::Cluster
        } else {
            Scope::Block
        };
        one.min(other) >= needed
    }

    fn synchronises(&self) -> bool {
        self.memories.is_some()
    }
}
