//! Race detection on a block's shared memory.
//!
//! Every warp has a vector clock. A barrier joins the clocks of its warps and starts a new period in each; bar.warp.sync
//! starts a new period in its own warp. Each grain of shared memory remembers its last write and, for every warp, the
//! last read: an access must come after them by the clocks, or it is a race. A grain is as large as the smallest shared
//! access of the kernel, so that neighbours are never confused.
//!
//! Accesses of one warp between two of its barriers are ordered only within a lane. A read by ldmatrix gathers all lanes
//! before it and so orders itself before later writes of its warp.

/// A period counter; 0 is before everything.
type Clock = u32;

/// Lane number of a read that the whole warp took part in.
const COLLECTIVE: u64 = 32;
/// Lane number where several lanes read in one period.
const SEVERAL: u64 = 33;

const PC_BITS: u32 = 24;
const LANE_BITS: u32 = 6;
const WARP_BITS: u32 = 5;
const CLOCK_BITS: u32 = 26;
const PENDING: u64 = 1 << 63;
const STRONG: u64 = 1 << 62;

/// The most periods a warp may have: more are a fault, never a wrong answer.
pub(crate) const CLOCK_LIMIT: u32 = (1 << CLOCK_BITS) - 1;

/// One access: when, by whom, where in the code. 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Event(u64);

impl Event {
    fn new(clock: Clock, warp: usize, lane: u64, pc: u32) -> Self {
        Event(
            u64::from(clock) << (PC_BITS + LANE_BITS + WARP_BITS)
                | (warp as u64) << (PC_BITS + LANE_BITS)
                | lane << PC_BITS
                | u64::from(pc),
        )
    }

    fn pc(self) -> u32 {
        (self.0 & ((1 << PC_BITS) - 1)) as u32
    }

    fn lane(self) -> u64 {
        self.0 >> PC_BITS & ((1 << LANE_BITS) - 1)
    }

    fn warp(self) -> usize {
        (self.0 >> (PC_BITS + LANE_BITS) & ((1 << WARP_BITS) - 1)) as usize
    }

    fn clock(self) -> Clock {
        (self.0 >> (PC_BITS + LANE_BITS + WARP_BITS)) as u32 & CLOCK_LIMIT
    }

    fn pending(self) -> bool {
        self.0 & PENDING != 0
    }

    fn strong(self) -> bool {
        self.0 & STRONG != 0
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
    /// It is a cp.async that has not been waited for.
    pub pending: bool,
}

/// Why an access is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refusal {
    Uninitialised,
    Conflict(Conflict),
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

/// Clocks and marks of one block's shared memory.
#[derive(Debug)]
pub(crate) struct Detector {
    grain_shift: u32,
    grains: usize,
    warps: usize,
    /// `clocks[w * warps + v]`: the last period of warp v that warp w has seen.
    clocks: Vec<Clock>,
    writes: Vec<Event>,
    /// `reads[w * grains + g]`: the last read of grain g by warp w.
    reads: Vec<Event>,
}

impl Detector {
    pub(crate) fn new(bytes: usize, grain: u32, warps: usize) -> Self {
        let grains = bytes.div_ceil(grain as usize);
        let mut clocks = vec![0; warps * warps];
        for warp in 0..warps {
            clocks[warp * warps + warp] = 1;
        }
        Detector {
            grain_shift: grain.trailing_zeros(),
            grains,
            warps,
            clocks,
            writes: vec![Event(0); grains],
            reads: vec![Event(0); grains * warps],
        }
    }

    /// Forgets everything: the shared memory of a new block.
    pub(crate) fn reset(&mut self) {
        self.clocks.fill(0);
        for warp in 0..self.warps {
            self.clocks[warp * self.warps + warp] = 1;
        }
        self.writes.fill(Event(0));
        self.reads.fill(Event(0));
    }

    fn now(&self, warp: usize) -> Clock {
        self.clocks[warp * self.warps + warp]
    }

    /// A barrier of the warps in `arrivals`; those in `waits` see all that was done before it. Returns false when a
    /// clock is used up.
    pub(crate) fn barrier(&mut self, arrivals: u32, waits: u32) -> bool {
        let members = |mask: u32| (0..32usize).filter(move |warp| mask >> warp & 1 != 0);
        let mut joined = vec![0; self.warps];
        for warp in members(arrivals) {
            for (slot, &clock) in joined
                .iter_mut()
                .zip(&self.clocks[warp * self.warps..][..self.warps])
            {
                *slot = clock.max(*slot);
            }
        }
        let mut room = true;
        for warp in members(arrivals | waits) {
            if waits >> warp & 1 != 0 {
                self.clocks[warp * self.warps..][..self.warps].copy_from_slice(&joined);
            }
            room &= self.warp_sync(warp);
        }
        room
    }

    /// A new period of one warp. Returns false when its clock is used up.
    pub(crate) fn warp_sync(&mut self, warp: usize) -> bool {
        let clock = &mut self.clocks[warp * self.warps + warp];
        *clock += 1;
        *clock < CLOCK_LIMIT
    }

    fn grains_of(&self, address: usize, bytes: usize) -> std::ops::Range<usize> {
        address >> self.grain_shift..(address + bytes) >> self.grain_shift
    }

    /// Is `event` ordered before an access of `by`?
    #[inline]
    fn ordered(&self, event: Event, by: Accessor) -> bool {
        let warp = event.warp();
        if warp != by.warp {
            return event.clock() <= self.clocks[by.warp * self.warps + warp];
        }
        event.clock() < self.now(warp)
            || event.lane() == COLLECTIVE
            || (event.lane() == u64::from(by.lane) && !by.collective)
    }

    fn conflict(event: Event, write: bool) -> Refusal {
        let lane = u32::try_from(event.lane()).ok().filter(|&lane| lane < 32);
        Refusal::Conflict(Conflict {
            warp: event.warp(),
            lane,
            pc: event.pc(),
            write,
            pending: event.pending(),
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
                return Err(Self::conflict(event, true));
            }
        }
        let now = self.now(by.warp);
        let lane = if by.collective {
            COLLECTIVE
        } else {
            u64::from(by.lane)
        };
        let event = Event::new(now, by.warp, lane, by.pc);
        let reads = &mut self.reads[by.warp * self.grains..][grains];
        if by.strong {
            return Ok(());
        }
        for slot in reads {
            let old = *slot;
            // a collective read orders itself, so it must not hide the plain read of a lane
            if old.clock() == now && old.lane() != lane {
                if lane != COLLECTIVE {
                    *slot = if old.lane() == COLLECTIVE {
                        event
                    } else {
                        Event::new(now, by.warp, SEVERAL, by.pc)
                    };
                }
            } else {
                *slot = event;
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
                return Err(Self::conflict(event, true));
            }
        }
        for warp in 0..self.warps {
            let mut seen = Event(0);
            for &event in &self.reads[warp * self.grains..][grains.clone()] {
                if event == seen || event.0 == 0 {
                    continue;
                }
                seen = event;
                if !self.ordered(event, by) {
                    return Err(Self::conflict(event, false));
                }
            }
        }
        Ok(())
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
        let event = Event(Event::new(self.now(by.warp), by.warp, by.lane.into(), by.pc).0 | strong);
        let grains = self.grains_of(address, bytes);
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
        let event = Event::new(self.now(by.warp), by.warp, by.lane.into(), by.pc);
        let grains = self.grains_of(address, bytes);
        self.writes[grains].fill(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(warp: usize, lane: u32) -> Accessor {
        Accessor {
            warp,
            lane,
            pc: 7,
            collective: false,
            strong: false,
        }
    }

    fn collective(warp: usize) -> Accessor {
        Accessor {
            collective: true,
            ..lane(warp, 0)
        }
    }

    #[test]
    fn a_barrier_orders_a_write_before_a_read_of_another_warp() {
        let mut detector = Detector::new(64, 4, 2);
        detector.write(0, 4, lane(0, 0)).unwrap();
        assert!(matches!(
            detector.read(0, 4, lane(1, 0)),
            Err(Refusal::Conflict(Conflict {
                write: true,
                warp: 0,
                ..
            }))
        ));
        assert!(detector.barrier(0b11, 0b11));
        detector.read(0, 4, lane(1, 0)).unwrap();
        assert!(matches!(
            detector.write(0, 4, lane(0, 0)),
            Err(Refusal::Conflict(Conflict {
                write: false,
                warp: 1,
                ..
            }))
        ));
        assert!(detector.barrier(0b11, 0b11));
        detector.write(0, 4, lane(0, 0)).unwrap();
    }

    #[test]
    fn arriving_releases_and_only_waiting_acquires() {
        let mut detector = Detector::new(64, 4, 2);
        detector.write(0, 4, lane(0, 0)).unwrap();
        // warp 0 only arrives, warp 1 waits: 0 is before 1, not the other way round
        detector.barrier(0b11, 0b10);
        detector.read(0, 4, lane(1, 0)).unwrap();
        assert!(detector.write(0, 4, lane(0, 0)).is_err());
    }

    #[test]
    fn lanes_of_a_warp_race_until_it_synchronises() {
        let mut detector = Detector::new(64, 4, 1);
        detector.write(0, 4, lane(0, 3)).unwrap();
        detector.read(0, 4, lane(0, 3)).unwrap();
        assert!(detector.read(0, 4, lane(0, 4)).is_err());
        assert!(detector.read(0, 4, collective(0)).is_err());
        detector.warp_sync(0);
        detector.read(0, 4, lane(0, 4)).unwrap();
        detector.read(0, 4, lane(0, 5)).unwrap();
        assert!(
            detector.write(0, 4, lane(0, 4)).is_err(),
            "lane 5 reads it too"
        );
    }

    #[test]
    fn a_collective_read_orders_itself_but_hides_no_lane() {
        let mut detector = Detector::new(64, 4, 1);
        detector.write(0, 4, lane(0, 0)).unwrap();
        detector.warp_sync(0);
        detector.read(0, 4, collective(0)).unwrap();
        detector.write(0, 4, lane(0, 9)).unwrap();
        detector.warp_sync(0);
        detector.read(0, 4, lane(0, 3)).unwrap();
        detector.read(0, 4, collective(0)).unwrap();
        assert!(detector.write(0, 4, lane(0, 9)).is_err());
    }

    #[test]
    fn bytes_under_way_are_untouchable_until_waited_for() {
        let mut detector = Detector::new(64, 16, 2);
        assert!(matches!(
            detector.read(16, 16, lane(0, 0)),
            Err(Refusal::Uninitialised)
        ));
        detector.issue(16, 16, lane(0, 0)).unwrap();
        for warp in 0..2 {
            let refusal = detector.read(16, 16, lane(warp, 0)).unwrap_err();
            assert!(matches!(
                refusal,
                Refusal::Conflict(Conflict { pending: true, .. })
            ));
        }
        detector.complete(16, 16, lane(0, 0));
        detector.read(16, 16, lane(0, 0)).unwrap();
        assert!(
            detector.read(16, 16, lane(1, 0)).is_err(),
            "only a barrier shows it to another warp"
        );
    }

    #[test]
    fn events_keep_their_fields() {
        let event = Event(Event::new(CLOCK_LIMIT, 31, 33, (1 << 24) - 1).0 | PENDING | STRONG);
        assert_eq!(
            (event.clock(), event.warp(), event.lane(), event.pc()),
            (CLOCK_LIMIT, 31, 33, (1 << 24) - 1)
        );
    }
}
