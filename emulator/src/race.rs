//! Race detection: on the shared memory of a block here, on global memory in `global`, `shadow` and `sync`.
//!
//! Every warp has a vector clock. A barrier joins the clocks of its warps and starts a new period in each; bar.warp.sync
//! starts a new period in its own warp. Each grain of shared memory remembers its last write and, for every warp, the
//! last read: an access must come after them by the clocks, or it is a race. A grain is as large as the smallest shared
//! access of the kernel, so that neighbours are never confused.
//!
//! Accesses of one warp between two of its barriers are ordered only within a lane. A read by ldmatrix gathers all lanes
//! before it and so orders itself before later writes of its warp.
//!
//! Bulk copies and wgmma reach shared memory by the async proxy. Each is pending from its issue until it is waited for;
//! then it counts as an access of one more warp, the agent, whose clock travels with what was waited for. A write by
//! other means is marked until a fence.proxy.async follows it: the async proxy may not touch it before.

mod agent;
mod cluster;
mod event;
mod global;
mod lanes;
mod shadow;
mod sync;
#[cfg(test)]
mod tests;

pub(crate) use agent::AgentLane;
pub(crate) use event::{CLOCK_LIMIT, WARP_LIMIT};
pub(crate) use global::{Touch, Unordered};
pub(crate) use shadow::{LINE, Lanes, Lines, Shadow};
pub(crate) use sync::Flags;

use std::collections::HashMap;

use event::{COLLECTIVE, Clock, Event, OBJECT, PENDING, SEVERAL, STRONG, UNFENCED};
use sync::{Known, Memories};

/// What some lanes of a warp did up to a period.
#[derive(Debug, Clone, Copy)]
struct Part {
    warp: usize,
    lanes: u32,
    clock: Clock,
}

/// What a release made visible: whoever acquires it comes after.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    clocks: Vec<Clock>,
    parts: Vec<Part>,
    /// The same of blocks that do not run together with these.
    others: Known,
}

impl Seen {
    fn join_clocks(&mut self, clocks: &[Clock]) {
        self.clocks.resize(clocks.len().max(self.clocks.len()), 0);
        for (slot, &clock) in self.clocks.iter_mut().zip(clocks) {
            *slot = clock.max(*slot);
        }
    }

    /// Everything in `other` as well.
    pub(crate) fn join(&mut self, other: &Seen) {
        self.join_clocks(&other.clocks);
        join_parts(&mut self.parts, &other.parts);
        self.others.join(&other.others);
    }
}

/// Was what `lanes` of a warp did at a time done before one of these?
fn parts_cover(parts: &[Part], warp: usize, clock: Clock, lanes: u32) -> bool {
    let covering = parts
        .iter()
        .filter(|part| part.warp == warp && clock <= part.clock);
    lanes & !covering.fold(0, |seen, part| seen | part.lanes) == 0
}

/// One entry a warp and set of lanes is enough: what they did later includes what they did before.
fn join_parts(to: &mut Vec<Part>, from: &[Part]) {
    for part in from {
        match to
            .iter_mut()
            .find(|old| old.warp == part.warp && old.lanes == part.lanes)
        {
            Some(old) => old.clock = old.clock.max(part.clock),
            None => to.push(*part),
        }
    }
}

/// An access that conflicts with the one at hand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conflict {
    pub warp: usize,
    /// `None` if several lanes took part.
    pub lane: Option<u32>,
    pub pc: u32,
    pub write: bool,
    /// It is asynchronous and has not been waited for.
    pub pending: bool,
    /// No access: the bytes hold an mbarrier since then.
    pub object: bool,
    /// It was a write that the async proxy does not see yet.
    pub unfenced: bool,
    /// It was the agent's: a bulk copy or wgmma that somebody has waited for.
    pub agent: bool,
}

/// Why an access is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refusal {
    Uninitialised,
    Conflict(Conflict),
}

impl Refusal {
    /// The other access is a write of the generic proxy that has ended.
    #[cold]
    pub(crate) fn is_plain_write(&self) -> bool {
        match self {
            Refusal::Uninitialised => false,
            Refusal::Conflict(other) => {
                other.write && !(other.pending || other.object || other.unfenced || other.agent)
            }
        }
    }
}

/// Who makes an access, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accessor {
    pub warp: usize,
    pub lane: u32,
    pub pc: u32,
    /// All lanes of the warp take part (ldmatrix, stmatrix).
    pub collective: bool,
    /// Atomic or volatile: does not race with its like.
    pub strong: bool,
}

/// Clocks and marks of the shared memory of blocks that run together: one, or those of a cluster.
#[derive(Debug)]
pub(crate) struct Detector {
    grain_shift: u32,
    /// Grains of one block.
    grains: usize,
    /// Warps of one block.
    warps: usize,
    /// Warps of all blocks; also the number of the agent.
    agent: usize,
    /// `clocks[w * (agent + 1) + v]`: the last period of warp v that warp w has seen. The last row is the agent's own.
    clocks: Vec<Clock>,
    /// The first period of each warp since its lanes last met.
    synced: Vec<Clock>,
    /// What each warp has seen of single lanes beyond `clocks`.
    parts: Vec<Vec<Part>>,
    writes: Vec<Event>,
    /// `reads[w * grains + g]`: the event of the last read of grain g of its own block by warp w. Plain words, which come
    /// zeroed without being written.
    reads: Vec<u64>,
    /// Last reads by warps of other blocks, by grain.
    remote: HashMap<usize, Vec<Event>>,
    /// The last read by the async proxy; empty if the kernel has no such instruction.
    agent_reads: Vec<Event>,
    /// Reads by the async proxy that are under way.
    readers: Vec<u32>,
    /// Grains that may be marked as unfenced.
    dirty: Vec<u32>,
    /// Accesses across blocks.
    reach: cluster::Reach,
    /// Number of the block or cluster in the grid.
    unit: u32,
    /// What orders threads beside barriers; `None` if the kernel reads no memory by strong operations.
    memories: Option<Box<Memories>>,
}

impl Detector {
    #[cfg(test)]
    fn new(bytes: usize, grain: u32, warps: usize) -> Self {
        Self::cluster(1, bytes, grain, warps, false)
    }

    /// For `blocks` blocks of `bytes` bytes and `warps` warps each; `asynchronous` if the async proxy is used.
    pub(crate) fn cluster(
        blocks: usize,
        bytes: usize,
        grain: u32,
        warps: usize,
        asynchronous: bool,
    ) -> Self {
        let grains = bytes.div_ceil(grain as usize);
        let agent = blocks * warps;
        let mut detector = Detector {
            grain_shift: grain.trailing_zeros(),
            grains,
            warps,
            agent,
            clocks: vec![0; (agent + 1) * (agent + 1)],
            synced: vec![0; agent],
            parts: vec![Vec::new(); agent],
            writes: vec![Event(0); blocks * grains],
            reads: vec![0; agent * grains],
            remote: HashMap::new(),
            agent_reads: vec![Event(0); if asynchronous { blocks * grains } else { 0 }],
            readers: vec![0; if asynchronous { blocks * grains } else { 0 }],
            dirty: Vec::new(),
            reach: cluster::Reach::new(agent),
            unit: 0,
            memories: None,
        };
        detector.reset(0);
        detector
    }

    /// The same, for a kernel whose threads order themselves by what they find in memory as well.
    pub(crate) fn synchronising(mut self) -> Self {
        self.memories = Some(Box::new(Memories::new(self.agent)));
        self
    }

    /// Forgets everything: the shared memory of new blocks, of which the first is number `unit` of the grid.
    pub(crate) fn reset(&mut self, unit: u32) {
        self.unit = unit;
        if let Some(memories) = &mut self.memories {
            memories.reset();
        }
        // time goes on, so that reads of the blocks before come before all of these: to clear them would take longer than
        // many blocks run
        let mut past = (0..=self.agent)
            .map(|warp| self.now(warp))
            .max()
            .unwrap_or(0);
        if past > CLOCK_LIMIT / 16 {
            self.reads.fill(0);
            past = 0;
        }
        self.clocks.fill(past);
        for warp in 0..=self.agent {
            let own = warp * (self.agent + 1) + warp;
            self.clocks[own] = past + 1;
        }
        self.synced.fill(past + 1);
        self.parts.iter_mut().for_each(Vec::clear);
        self.writes.fill(Event(0));
        self.remote.clear();
        self.agent_reads.fill(Event(0));
        self.readers.fill(0);
        self.dirty.clear();
        self.reach.reset();
    }

    fn now(&self, warp: usize) -> Clock {
        self.clocks[warp * (self.agent + 1) + warp]
    }

    fn seen(&self, warp: usize) -> &[Clock] {
        &self.clocks[warp * (self.agent + 1)..][..=self.agent]
    }

    /// A barrier of the warps in `arrivals`, counted from warp `first`; those in `waits` see all that was done before it.
    /// Returns false when a clock is used up.
    pub(crate) fn barrier(&mut self, first: usize, arrivals: u32, waits: u32) -> bool {
        let members = |mask: u32| {
            (0..32usize).filter_map(move |at| (mask >> at & 1 != 0).then_some(first + at))
        };
        let mut joined = Seen::default();
        for warp in members(arrivals) {
            joined.join_clocks(self.seen(warp));
            join_parts(&mut joined.parts, &self.parts[warp]);
            if let Some(memories) = &self.memories {
                joined.others.join(memories.others(warp));
            }
        }
        if let Some(memories) = &mut self.memories {
            memories.barrier(first, arrivals, waits);
        }
        let mut room = true;
        for warp in members(arrivals | waits) {
            if waits >> (warp - first) & 1 != 0 {
                self.acquire(warp, &joined);
            }
            room &= self.warp_sync(warp);
        }
        room
    }

    /// The lanes of a warp have met: a new period. Returns false when its clock is used up.
    pub(crate) fn warp_sync(&mut self, warp: usize) -> bool {
        let room = self.new_period(warp);
        self.synced[warp] = self.now(warp);
        room
    }

    fn new_period(&mut self, warp: usize) -> bool {
        let clock = &mut self.clocks[warp * (self.agent + 1) + warp];
        *clock += 1;
        *clock < CLOCK_LIMIT
    }

    /// `lanes` of a warp, of which `live` are left, release what they have done and seen. Returns false when its clock is
    /// used up.
    pub(crate) fn release(&mut self, warp: usize, lanes: u32, live: u32, into: &mut Seen) -> bool {
        let own = into.clocks.get(warp).copied().unwrap_or(0);
        into.join_clocks(&self.clocks[warp * (self.agent + 1)..][..=self.agent]);
        join_parts(&mut into.parts, &self.parts[warp]);
        if let Some(memories) = &self.memories {
            into.others.join(memories.others(warp));
        }
        if lanes & live != live {
            // lanes that have not met these since are not part of it
            into.clocks[warp] = own.max(self.synced[warp] - 1);
            let clock = self.now(warp);
            join_parts(&mut into.parts, &[Part { warp, lanes, clock }]);
        }
        self.new_period(warp)
    }

    /// What a warp does from now on comes after `from`.
    pub(crate) fn acquire(&mut self, warp: usize, from: &Seen) {
        if let Some(memories) = &mut self.memories {
            memories.learn(warp, &from.others);
        }
        let row = &mut self.clocks[warp * (self.agent + 1)..][..=self.agent];
        for (at, (slot, &clock)) in row.iter_mut().zip(&from.clocks).enumerate() {
            if at != warp {
                *slot = clock.max(*slot);
            }
        }
        // what all lanes of this warp had released, each of them comes after
        let own = from.clocks.get(warp).map_or(0, |&clock| clock + 1);
        self.synced[warp] = self.synced[warp].max(own.min(self.now(warp)));
        if !from.parts.is_empty() || !self.parts[warp].is_empty() {
            let mut parts = std::mem::take(&mut self.parts[warp]);
            join_parts(&mut parts, &from.parts);
            let (row, synced) = (self.seen(warp), self.synced[warp]);
            parts.retain(|part| {
                if part.warp == warp {
                    part.clock >= synced
                } else {
                    part.clock > row[part.warp]
                }
            });
            self.parts[warp] = parts;
        }
    }

    fn grains_of(&self, address: usize, bytes: usize) -> std::ops::Range<usize> {
        address >> self.grain_shift..(address + bytes) >> self.grain_shift
    }

    /// The block whose memory a grain is.
    #[inline]
    fn block_of(&self, grain: usize) -> usize {
        if self.agent == self.warps {
            0
        } else {
            grain / self.grains
        }
    }

    /// Is `event` ordered before an access of `by`?
    #[inline(always)]
    fn ordered(&self, event: Event, by: Accessor) -> bool {
        let warp = event.warp();
        if warp != by.warp {
            return event.clock() <= self.clocks[by.warp * (self.agent + 1) + warp]
                || self.partly_seen(event, by.warp);
        }
        event.clock() < self.synced[warp]
            || event.lane() == COLLECTIVE
            || (event.lane() == u64::from(by.lane) && !by.collective)
            || self.partly_seen(event, warp)
    }

    #[cold]
    fn partly_seen(&self, event: Event, by: usize) -> bool {
        event.lane() < 32
            && self.parts[by].iter().any(|part| {
                part.warp == event.warp()
                    && event.clock() <= part.clock
                    && part.lanes >> event.lane() & 1 != 0
            })
    }

    fn conflict(&self, event: Event, write: bool) -> Refusal {
        let lane = u32::try_from(event.lane()).ok().filter(|&lane| lane < 32);
        let object = event.0 & OBJECT == OBJECT;
        Refusal::Conflict(Conflict {
            warp: event.warp(),
            lane,
            pc: event.pc(),
            write,
            pending: event.pending() && !object,
            object,
            unfenced: false,
            agent: event.warp() == self.agent,
        })
    }

    /// Judges and notes a read.
    #[inline]
    pub(crate) fn read(
        &mut self,
        address: usize,
        bytes: usize,
        by: Accessor,
    ) -> Result<(), Refusal> {
        let grains = self.grains_of(address, bytes);
        let mut seen = Event(u64::MAX);
        for &event in &self.writes[grains.clone()] {
            if event == seen {
                continue;
            }
            seen = event;
            if event.0 == 0 {
                return Err(Refusal::Uninitialised);
            }
            if event.pending() || !(self.ordered(event, by) || (by.strong && event.strong())) {
                return Err(self.conflict(event, true));
            }
        }
        let now = self.now(by.warp);
        let lane = if by.collective {
            COLLECTIVE
        } else {
            u64::from(by.lane)
        };
        let event = Event::new(now, by.warp, lane, by.pc);
        if by.strong {
            return Ok(());
        }
        let block = self.block_of(grains.start);
        if self.agent != self.warps && by.warp / self.warps != block {
            for grain in grains {
                let list = self.remote.entry(grain).or_default();
                list.retain(|old| {
                    old.warp() != by.warp || old.lane() != lane && old.lane() != COLLECTIVE
                });
                list.push(event);
            }
            return Ok(());
        }
        let synced = self.synced[by.warp];
        let own = grains.start - block * self.grains..grains.end - block * self.grains;
        for slot in &mut self.reads[by.warp * self.grains..][own] {
            let old = Event(*slot);
            // a collective read orders itself, so it must not hide the plain read of a lane
            if old.clock() >= synced && old.lane() != lane {
                if lane != COLLECTIVE {
                    *slot = if old.lane() == COLLECTIVE {
                        event.0
                    } else {
                        Event::new(now, by.warp, SEVERAL, by.pc).0
                    };
                }
            } else {
                *slot = event.0;
            }
        }
        Ok(())
    }

    /// Judges a write without noting it.
    fn may_write(&self, address: usize, bytes: usize, by: Accessor) -> Result<(), Refusal> {
        let grains = self.grains_of(address, bytes);
        let mut seen = Event(0);
        for &event in &self.writes[grains.clone()] {
            if event == seen || event.0 == 0 {
                continue;
            }
            seen = event;
            if event.pending() || !(self.ordered(event, by) || (by.strong && event.strong())) {
                return Err(self.conflict(event, true));
            }
        }
        let block = self.block_of(grains.start);
        let own = grains.start - block * self.grains..grains.end - block * self.grains;
        for warp in block * self.warps..(block + 1) * self.warps {
            let mut seen = 0;
            for &word in &self.reads[warp * self.grains..][own.clone()] {
                if word == seen || word == 0 {
                    continue;
                }
                seen = word;
                let event = Event(word);
                if !self.ordered(event, by) {
                    return Err(self.conflict(event, false));
                }
            }
        }
        if !self.remote.is_empty() {
            let lists = grains.clone().filter_map(|grain| self.remote.get(&grain));
            if let Some(&event) = lists.flatten().find(|&&event| !self.ordered(event, by)) {
                return Err(self.conflict(event, false));
            }
        }
        if !self.agent_reads.is_empty() {
            let mut seen = Event(0);
            for &event in &self.agent_reads[grains] {
                if event == seen || event.0 == 0 {
                    continue;
                }
                seen = event;
                if event.pending() || !self.ordered(event, by) {
                    return Err(self.conflict(event, false));
                }
            }
        }
        Ok(())
    }

    /// Marks writes that the async proxy does not see yet.
    fn mark_unfenced(&mut self, grains: std::ops::Range<usize>, event: &mut Event) {
        if self.agent_reads.is_empty() {
            return;
        }
        event.0 |= UNFENCED;
        for grain in grains {
            if !self.writes[grain].unfenced() {
                self.dirty.push(grain as u32);
            }
        }
    }

    /// Judges and notes a write.
    #[inline]
    pub(crate) fn write(
        &mut self,
        address: usize,
        bytes: usize,
        by: Accessor,
    ) -> Result<(), Refusal> {
        self.may_write(address, bytes, by)?;
        let strong = if by.strong { STRONG } else { 0 };
        let mut event =
            Event(Event::new(self.now(by.warp), by.warp, by.lane.into(), by.pc).0 | strong);
        let grains = self.grains_of(address, bytes);
        self.mark_unfenced(grains.clone(), &mut event);
        self.writes[grains].fill(event);
        Ok(())
    }

    /// Judges an asynchronous write at its issue and marks the bytes as under way.
    pub(crate) fn issue(
        &mut self,
        address: usize,
        bytes: usize,
        by: Accessor,
    ) -> Result<(), Refusal> {
        self.may_write(address, bytes, by)?;
        let event =
            Event(Event::new(self.now(by.warp), by.warp, by.lane.into(), by.pc).0 | PENDING);
        let grains = self.grains_of(address, bytes);
        self.writes[grains].fill(event);
        Ok(())
    }

    /// An asynchronous write that its thread has waited for.
    pub(crate) fn complete(&mut self, address: usize, bytes: usize, by: Accessor) {
        let mut event = Event::new(self.now(by.warp), by.warp, by.lane.into(), by.pc);
        let grains = self.grains_of(address, bytes);
        self.mark_unfenced(grains.clone(), &mut event);
        self.writes[grains].fill(event);
    }
}
