//! What a launch has done to global memory, as far as it may still race: a list of accesses for each line of 128 bytes,
//! made when the line is first touched.
//!
//! Most lines are read by many and written by none, or written once. The first are told by masks: once two blocks have
//! read a byte, any write races with at least one of them, and further reads need no note. An access that comes after
//! an earlier one replaces it where whatever races with the earlier races with the later too.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::event::Clock;
use crate::ir::Scope;

/// Bytes of a line.
pub(crate) const LINE: u64 = 128;
/// Lines that are made together, behind one lock.
const LINES: u64 = 32;
/// Accesses of a line beyond which reads and strong accesses are judged, but not noted: a write that races with none but
/// those is missed.
const MOST: usize = 128;

/// Which lanes of a warp an access belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lanes {
    /// Byte `i` of the line is lane `first + (i >> shift)`; 7 is one lane.
    Striped { first: i8, shift: u8 },
    /// All of them every byte.
    Several(u32),
}

impl Lanes {
    pub(crate) fn one(lane: u32) -> Lanes {
        Lanes::Striped {
            first: lane as i8,
            shift: 7,
        }
    }

    /// The lanes of some bytes.
    pub(super) fn over(self, mask: u128) -> u32 {
        match self {
            Lanes::Striped { shift: 7, first } => 1 << first,
            Lanes::Striped { first, shift } => bytes(mask).fold(0, |lanes, at| {
                lanes | 1 << (i32::from(first) + (at >> shift) as i32)
            }),
            Lanes::Several(lanes) => lanes,
        }
    }

    /// Is each of these bytes one lane's, and the same in both?
    pub(super) fn agree(self, other: Lanes, mask: u128) -> bool {
        let (Lanes::Striped { .. }, Lanes::Striped { .. }) = (self, other) else {
            return false;
        };
        self == other || bytes(mask).all(|at| self.over(1 << at) == other.over(1 << at))
    }
}

/// The bytes of a mask, from the lowest.
fn bytes(mask: u128) -> impl Iterator<Item = u32> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let at = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (at < 128).then_some(at)
    })
}

/// Who accessed which bytes of a line, when and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub mask: u128,
    /// The block or cluster in the grid.
    pub unit: u32,
    pub clock: Clock,
    pub pc: u32,
    pub lanes: Lanes,
    pub warp: u16,
    pub write: bool,
    /// `None` if it is weak.
    pub scope: Option<Scope>,
}

impl Record {
    fn conflicts(&self, other: &Record) -> bool {
        self.write || other.write
    }

    /// By one warp at one time, in one way: only lanes may differ.
    fn is_like(&self, other: &Record) -> bool {
        let way = |record: &Record| {
            (
                record.unit,
                record.warp,
                record.clock,
                record.write,
                record.scope,
            )
        };
        way(self) == way(other)
    }
}

/// Judges two accesses that overlap.
pub(super) trait Judge {
    /// Does `new` come after `old` on these bytes?
    fn is_after(&self, old: &Record, new: &Record, overlap: u128) -> bool;

    /// Both are strong, and each has the other in its scope.
    fn is_moral(&self, old: &Record, new: &Record) -> bool;

    /// Threads of two units may be ordered.
    fn synchronises(&self) -> bool;
}

/// 128 bytes of global memory.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Bytes that weak reads of two units are noted for.
    read: u128,
    /// Bytes that strong writes of two units are noted for.
    updated: u128,
    records: Records,
}

/// Accesses of a line, the first without an allocation of its own: many lines have one.
#[derive(Debug, Default)]
struct Records {
    first: Option<Record>,
    more: Vec<Record>,
}

impl Records {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    fn iter(&self) -> impl Iterator<Item = &Record> {
        self.first.iter().chain(&self.more)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Record> {
        self.first.iter_mut().chain(&mut self.more)
    }

    fn push(&mut self, record: Record) {
        match self.first {
            None => self.first = Some(record),
            Some(_) => self.more.push(record),
        }
    }

    /// Drops those without bytes.
    fn tidy(&mut self) {
        self.more.retain(|record| record.mask != 0);
        self.first = self.first.filter(|record| record.mask != 0);
        self.first = self.first.or_else(|| self.more.pop());
    }
}

impl Line {
    /// Notes an access, or gives the one that it races with.
    pub(super) fn access(&mut self, mut new: Record, judge: &impl Judge) -> Result<(), Record> {
        let mask = new.mask;
        // nothing orders two units, so that those already noted are enough
        let meets = |other: fn(&Record) -> bool| {
            (self.records.iter()).any(|record| record.mask & mask != 0 && other(record))
        };
        let wide = new.write && new.scope == Some(Scope::Device);
        if !new.write && mask & !self.read == 0 && !meets(|record| record.write)
            || wide && mask & !self.updated == 0 && !meets(|record| record.scope.is_none())
        {
            return Ok(());
        }
        let mut merged = None;
        let mut emptied = false;
        for old in self.records.iter_mut() {
            let overlap = old.mask & new.mask;
            if overlap == 0 {
                continue;
            }
            let after = judge.is_after(old, &new, overlap);
            if !after && old.conflicts(&new) && !judge.is_moral(old, &new) {
                return Err(*old);
            }
            if after {
                // what would race with the old one races with the new one
                if (new.write || !old.write) && new.scope <= old.scope {
                    old.mask &= !overlap;
                }
            } else if old.is_like(&new) {
                let lanes = old.lanes.over(overlap) | new.lanes.over(overlap);
                let both = Record {
                    mask: overlap,
                    lanes: Lanes::Several(lanes),
                    ..new
                };
                if overlap == old.mask {
                    *old = both;
                } else {
                    old.mask &= !overlap;
                    merged.get_or_insert_with(Vec::new).push(both);
                }
                new.mask &= !overlap;
            } else if old.unit != new.unit && !judge.synchronises() {
                match (old.write, new.write) {
                    (false, false) => self.read |= overlap,
                    (true, true) => self.updated |= overlap,
                    _ => {}
                }
            }
            emptied |= old.mask == 0;
        }
        if emptied {
            self.records.tidy();
        }
        for record in merged.into_iter().flatten() {
            self.records.push(record);
        }
        if new.mask != 0 {
            self.note(new, judge.synchronises());
        }
        Ok(())
    }
}

impl Line {
    fn note(&mut self, new: Record, synchronises: bool) {
        let same = |old: &&mut Record| old.is_like(&new) && old.lanes == new.lanes;
        let twin = (self.records.iter_mut().filter(same)).find(|old| old.pc == new.pc);
        if let Some(old) = twin {
            old.mask |= new.mask;
            return;
        }
        if self.records.len() >= MOST && !synchronises {
            self.compact(new.unit);
        }
        if self.records.len() < MOST || new.write && new.scope.is_none() {
            self.records.push(new);
        }
    }

    /// Where nothing orders two units, it is enough to know which bytes another unit has touched. That unit's own races
    /// on this line are not found from now on.
    fn compact(&mut self, unit: u32) {
        let way = |record: &Record| (record.unit, record.write, record.scope);
        let mut kept = Records::default();
        let records = std::mem::take(&mut self.records);
        for record in records.first.into_iter().chain(records.more) {
            let twin = kept
                .iter_mut()
                .find(|old| record.unit != unit && way(old) == way(&record));
            match twin {
                Some(old) => {
                    old.mask |= record.mask;
                    old.lanes = Lanes::Several(u32::MAX);
                    old.clock = 0;
                }
                None => kept.push(record),
            }
        }
        self.records = kept;
    }
}

type Page = Mutex<[Line; LINES as usize]>;

/// The lines of one allocation.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    pages: OnceLock<Box<[OnceLock<Box<Page>>]>>,
}

impl Shadow {
    /// The lines around the byte at `offset` of an allocation of `bytes` bytes.
    pub(crate) fn lines(&self, offset: u64, bytes: u64) -> Lines<'_> {
        let number = offset / (LINE * LINES);
        let pages = self.pages.get_or_init(|| {
            (0..bytes.div_ceil(LINE * LINES))
                .map(|_| OnceLock::new())
                .collect()
        });
        let page = pages[number as usize].get_or_init(Box::default);
        Lines {
            number,
            lines: page.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Forgets what the last launch did.
    pub(crate) fn clear(&mut self) {
        self.pages.take();
    }
}

/// Neighbouring lines that nobody else sees meanwhile.
pub(crate) struct Lines<'s> {
    number: u64,
    lines: MutexGuard<'s, [Line; LINES as usize]>,
}

impl Lines<'_> {
    pub(crate) fn contain(&self, offset: u64) -> bool {
        offset / (LINE * LINES) == self.number
    }

    pub(crate) fn line(&mut self, offset: u64) -> &mut Line {
        &mut self.lines[(offset / LINE % LINES) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_of_bytes() {
        let stripes = Lanes::Striped {
            first: -8,
            shift: 2,
        };
        assert_eq!(stripes.over(0xff << 32), 0b11);
        assert_eq!(Lanes::one(5).over(1 << 127 | 1), 1 << 5);
        let wide = Lanes::Striped {
            first: -4,
            shift: 3,
        };
        assert!(stripes.agree(stripes, u128::MAX));
        assert!(stripes.agree(wide, 0xf << 32), "both are lane 0's");
        assert!(!stripes.agree(wide, 0xff << 32));
        assert!(
            !Lanes::Several(1).agree(Lanes::Several(1), 1),
            "who is who is not known"
        );
    }
}
