//! What the async proxy does to shared memory, and the mbarriers that live there.

use super::event::{CLOCK_LIMIT, COLLECTIVE, Event, OBJECT, PENDING, UNFENCED};
use super::{Accessor, Conflict, Detector, Part, Refusal, Seen};

/// One of the agent's lanes: what ends with one of them is told apart from what ends with another. The mbarriers of a block
/// share the first 24 in the order of their initialisation, four lanes serve groups of stores and four those of wgmma.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AgentLane(u32);

impl AgentLane {
    /// For what the mbarrier of this number in its block tells of.
    pub(crate) fn of_mbarrier(number: u32) -> AgentLane {
        AgentLane(number % 24)
    }

    /// For the stores of a warp.
    pub(crate) fn of_stores(warp: usize) -> AgentLane {
        AgentLane(24 + (warp % 4) as u32)
    }

    /// For the products of a warpgroup.
    pub(crate) fn of_products(warpgroup: usize) -> AgentLane {
        AgentLane(28 + (warpgroup % 4) as u32)
    }
}

impl Detector {
    /// `fence.proxy.async` by `lanes` of a warp: what they did and saw, the async proxy now sees.
    pub(crate) fn fence_proxy(&mut self, warp: usize, lanes: u32, pc: u32) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&grain| {
            let event = self.writes[grain as usize];
            if !event.unfenced() {
                return false;
            }
            // most were written by one of these lanes, or long ago
            let own = event.warp() == warp && event.lane() < 32;
            let first = if own && lanes >> event.lane() & 1 != 0 {
                event.lane() as u32
            } else {
                lanes.trailing_zeros()
            };
            let by = Accessor {
                warp,
                lane: first,
                pc,
                collective: false,
                strong: false,
            };
            let seen = self.ordered(event, by);
            if seen {
                self.writes[grain as usize].0 &= !UNFENCED;
            }
            !seen
        });
        self.dirty = dirty;
    }

    /// Judges a read by the async proxy that an instruction of `by` begins, and marks the bytes until it has ended.
    pub(crate) fn issue_read(
        &mut self,
        address: usize,
        bytes: usize,
        by: Accessor,
    ) -> Result<(), Refusal> {
        let grains = self.grains_of(address, bytes);
        let mut seen = Event(u64::MAX);
        for &event in &self.writes[grains] {
            if event == seen {
                continue;
            }
            seen = event;
            if event.0 == 0 {
                return Err(Refusal::Uninitialised);
            }
            if event.pending() || !self.ordered(event, by) {
                return Err(self.conflict(event, true));
            }
            if event.unfenced() {
                return Err(self.hidden(event));
            }
        }
        Ok(())
    }

    /// Marks bytes that the async proxy is reading; several reads may meet.
    pub(crate) fn mark_read(&mut self, address: usize, bytes: usize, by: Accessor) {
        let lane = if by.collective {
            COLLECTIVE
        } else {
            by.lane.into()
        };
        let mark = Event(Event::new(self.now(by.warp), by.warp, lane, by.pc).0 | PENDING);
        for grain in self.grains_of(address, bytes) {
            self.agent_reads[grain] = mark;
            self.readers[grain] += 1;
        }
    }

    /// A read by the async proxy has ended.
    pub(crate) fn complete_read(&mut self, address: usize, bytes: usize, pc: u32, lane: AgentLane) {
        let event = self.agent_event(lane, pc);
        for grain in self.grains_of(address, bytes) {
            self.readers[grain] = self.readers[grain].saturating_sub(1);
            if self.readers[grain] == 0 {
                self.agent_reads[grain] = event;
            }
        }
    }

    /// Judges a write by the async proxy that an instruction of `by` begins, and marks the bytes as under way.
    pub(crate) fn issue_write(
        &mut self,
        address: usize,
        bytes: usize,
        by: Accessor,
    ) -> Result<(), Refusal> {
        self.may_write(address, bytes, by)?;
        let grains = self.grains_of(address, bytes);
        if let Some(&event) = self.writes[grains.clone()]
            .iter()
            .find(|event| event.unfenced())
        {
            return Err(self.hidden(event));
        }
        let event =
            Event(Event::new(self.now(by.warp), by.warp, by.lane.into(), by.pc).0 | PENDING);
        self.writes[grains].fill(event);
        Ok(())
    }

    /// A write by the async proxy has arrived; bytes that had no value at its source have none here.
    pub(crate) fn complete_write(
        &mut self,
        address: usize,
        valid: &[bool],
        pc: u32,
        lane: AgentLane,
    ) {
        let event = self.agent_event(lane, pc);
        let grains = self.grains_of(address, valid.len());
        let states = valid.chunks_exact(1 << self.grain_shift);
        for (slot, valid) in self.writes[grains].iter_mut().zip(states) {
            let whole = valid.iter().all(|&valid| valid);
            *slot = if whole { event } else { Event(0) };
        }
    }

    /// A cp.async that an mbarrier tells of has arrived: the agent's write, but not by the async proxy.
    pub(crate) fn complete_copy(&mut self, address: usize, bytes: usize, pc: u32, lane: AgentLane) {
        let mut event = self.agent_event(lane, pc);
        let grains = self.grains_of(address, bytes);
        self.mark_unfenced(grains.clone(), &mut event);
        self.writes[grains].fill(event);
    }

    /// A new period of the agent: what ends from now on is not part of what was waited for before. Returns false when its
    /// clock is used up.
    pub(crate) fn agent_period(&mut self) -> bool {
        self.new_period(self.agent)
    }

    fn agent_event(&self, lane: AgentLane, pc: u32) -> Event {
        Event::new(self.now(self.agent), self.agent, lane.0.into(), pc)
    }

    fn agent_part(&self, lanes: u32) -> Part {
        Part {
            warp: self.agent,
            lanes,
            clock: self.now(self.agent),
        }
    }

    /// Adds what a lane of the agent has ended to what a wait will show.
    pub(crate) fn release_agent(&self, lane: AgentLane, into: &mut Seen) {
        super::join_parts(&mut into.parts, &[self.agent_part(1 << lane.0)]);
    }

    /// A warp has waited for what a lane of the agent did; for all it did, if none is named.
    pub(crate) fn acquire_agent(&mut self, warp: usize, lane: Option<AgentLane>) {
        let part = self.agent_part(lane.map_or(u32::MAX, |lane| 1 << lane.0));
        super::join_parts(&mut self.parts[warp], &[part]);
    }

    fn hidden(&self, event: Event) -> Refusal {
        let Refusal::Conflict(conflict) = self.conflict(event, true) else {
            return Refusal::Uninitialised;
        };
        Refusal::Conflict(Conflict {
            unfenced: true,
            ..conflict
        })
    }

    /// The bytes become an mbarrier: nothing else may touch them.
    pub(crate) fn place_object(&mut self, address: usize, by: Accessor) -> Result<(), Refusal> {
        self.may_write(address, 8, by)?;
        let event = Event(Event::new(self.now(by.warp), by.warp, by.lane.into(), by.pc).0 | OBJECT);
        let grains = self.grains_of(address, 8);
        self.writes[grains].fill(event);
        Ok(())
    }

    /// The bytes are no mbarrier any more, and have no value.
    pub(crate) fn remove_object(&mut self, address: usize) {
        let grains = self.grains_of(address, 8);
        self.writes[grains].fill(Event(0));
    }

    /// Judges the use of an mbarrier: its initialisation must come before.
    pub(crate) fn use_object(&self, address: usize, by: Accessor) -> Result<(), Refusal> {
        let event = self.writes[self.grains_of(address, 8).start];
        if self.ordered(event, by) {
            return Ok(());
        }
        Err(self.conflict(event, true))
    }

    /// Periods are left for `warp` and the agent.
    pub(crate) fn has_room(&self, warp: usize) -> bool {
        self.now(warp) < CLOCK_LIMIT && self.now(self.agent) < CLOCK_LIMIT
    }
}
