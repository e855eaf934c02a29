//! What the async proxy does to shared memory, and the mbarriers that live there.

use super::{
    Accessor, CLOCK_LIMIT, Clock, Conflict, Detector, Event, OBJECT, PENDING, Refusal, Seen,
};

/// A mark of a read by the async proxy, to be found again when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadMark(Event);

impl Detector {
    /// `fence.proxy.async` by `lanes` of a warp: what they did and saw, the async proxy now sees.
    pub(crate) fn fence_proxy(&mut self, warp: usize, lanes: u32, pc: u32) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&grain| {
            let event = self.writes[grain as usize];
            if !event.unfenced() {
                return false;
            }
            let seen = (0..32).any(|lane| {
                let by = Accessor {
                    warp,
                    lane,
                    pc,
                    collective: false,
                    strong: false,
                };
                lanes >> lane & 1 != 0 && self.ordered(event, by)
            });
            if seen {
                self.writes[grain as usize].0 &= !super::UNFENCED;
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

    /// Marks bytes that the async proxy is reading.
    pub(crate) fn mark_read(&mut self, address: usize, bytes: usize, by: Accessor) -> ReadMark {
        let lane = if by.collective {
            super::COLLECTIVE
        } else {
            by.lane.into()
        };
        let mark = Event(Event::new(self.now(by.warp), by.warp, lane, by.pc).0 | PENDING);
        self.set_read(address, bytes, ReadMark(mark));
        ReadMark(mark)
    }

    /// Puts a mark again that the end of another read of the same bytes has taken.
    pub(crate) fn set_read(&mut self, address: usize, bytes: usize, mark: ReadMark) {
        let grains = self.grains_of(address, bytes);
        self.agent_reads[grains].fill(mark.0);
    }

    /// A read by the async proxy has ended.
    pub(crate) fn complete_read(&mut self, address: usize, bytes: usize, mark: ReadMark) {
        let event = Event::new(
            self.now(self.agent),
            self.agent,
            super::COLLECTIVE,
            mark.0.pc(),
        );
        let grains = self.grains_of(address, bytes);
        for slot in &mut self.agent_reads[grains] {
            if *slot == mark.0 || !slot.pending() {
                *slot = event;
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
    pub(crate) fn complete_write(&mut self, address: usize, valid: &[bool], pc: u32) {
        let event = Event::new(self.now(self.agent), self.agent, super::COLLECTIVE, pc);
        let grains = self.grains_of(address, valid.len());
        let states = valid.chunks_exact(1 << self.grain_shift);
        for (slot, valid) in self.writes[grains].iter_mut().zip(states) {
            let whole = valid.iter().all(|&valid| valid);
            *slot = if whole { event } else { Event(0) };
        }
    }

    /// A cp.async that an mbarrier tells of has arrived: the agent's write, but not by the async proxy.
    pub(crate) fn complete_copy(&mut self, address: usize, bytes: usize, pc: u32) {
        let mut event = Event::new(self.now(self.agent), self.agent, super::COLLECTIVE, pc);
        let grains = self.grains_of(address, bytes);
        self.mark_unfenced(grains.clone(), &mut event);
        self.writes[grains].fill(event);
    }

    /// A new period of the agent: what ends from now on is not part of what was waited for before. Returns false when its
    /// clock is used up.
    pub(crate) fn agent_period(&mut self) -> bool {
        self.new_period(self.agent)
    }

    /// Adds all that the agent has ended to what a wait will show.
    pub(crate) fn release_agent(&self, into: &mut Seen) {
        let mut clocks = vec![0; self.agent + 1];
        clocks[self.agent] = self.now(self.agent);
        into.join_clocks(&clocks);
    }

    /// A warp has waited for what the agent did.
    pub(crate) fn acquire_agent(&mut self, warp: usize) {
        let now: Clock = self.now(self.agent);
        let slot = &mut self.clocks[warp * (self.agent + 1) + self.agent];
        *slot = now.max(*slot);
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
