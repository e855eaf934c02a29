//! Accesses of a warp judged together: what is the same for its lanes is looked up once.
//!
//! Nothing is decided here that [`Detector::read`], [`Detector::write`] and [`Detector::issue`] would decide in another
//! way: whatever is not plainly in order is left to them, from the first lane on. What was noted by then they note again.

use super::event::{CLOCK_SHIFT, COLLECTIVE, Clock, Event, LANE_SHIFT, PENDING, SEVERAL};
use super::{Accessor, Detector};

/// Warps of a block at the most.
const WARPS: usize = 32;

/// The first event of a period: what is less was done before it.
fn floor(clock: Clock) -> u64 {
    u64::from(clock) << CLOCK_SHIFT
}

/// What a warp has seen of others, and of itself.
struct View<'d> {
    clocks: &'d [Clock],
    synced: Clock,
    by: Accessor,
    /// The last write that comes before accesses of all lanes: neighbours are often of one write.
    passed: Event,
    /// A write was the lane's own, and comes before that lane alone.
    alone: bool,
}

impl View<'_> {
    /// Does a write come before an access of this lane by the clocks alone?
    #[inline(always)]
    fn comes_after(&mut self, write: Event, lane: u64) -> bool {
        if write == self.passed {
            return true;
        }
        let own = write.warp() == self.by.warp;
        let before = if own {
            self.synced - 1
        } else {
            self.clocks[write.warp()]
        };
        if write.pending() {
            return false;
        }
        if write.clock() <= before {
            self.passed = write;
            return true;
        }
        self.alone = true;
        own && !self.by.collective && write.lane() == lane
    }
}

impl Detector {
    /// The usual case: one block, by instructions that are judged as races.
    fn is_plain(&self, by: Accessor) -> bool {
        self.agent == self.warps && self.agent <= WARPS && self.grains != 0 && !by.strong
    }

    /// Judges and notes the reads of `bytes` bytes by the lanes of `mask`, at these places. False if one of them is not
    /// plainly in order; collective reads are those of rows, which lanes name.
    pub(crate) fn read_lanes(
        &mut self,
        at: &[u32; 32],
        bytes: usize,
        mask: u32,
        by: Accessor,
    ) -> bool {
        match bytes >> self.grain_shift {
            _ if !self.is_plain(by) => false,
            1 => self.read_grains::<1>(at, mask, by),
            2 => self.read_grains::<2>(at, mask, by),
            4 => self.read_grains::<4>(at, mask, by),
            8 => self.read_grains::<8>(at, mask, by),
            _ => false,
        }
    }

    fn read_grains<const GRAINS: usize>(
        &mut self,
        at: &[u32; 32],
        mask: u32,
        by: Accessor,
    ) -> bool {
        let synced = self.synced[by.warp];
        let mut view = View {
            clocks: &self.clocks[by.warp * (self.agent + 1)..][..=self.agent],
            synced,
            by,
            passed: Event(u64::MAX),
            alone: false,
        };
        let event = Event::new(view.clocks[by.warp], by.warp, 0, by.pc);
        let floor = floor(synced);
        let reads = &mut self.reads[by.warp * self.grains..][..self.grains];
        // where the lane before read what any lane may read, and whether it was the second there
        let (mut place, mut several) = (usize::MAX, false);
        let mut rest = mask;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            let start = at[lane as usize] as usize >> self.grain_shift;
            let slots = &mut reads[start..start + GRAINS];
            if start == place && !by.collective {
                if !several {
                    slots.fill(event.of(SEVERAL).0);
                    several = true;
                }
                continue;
            }
            view.alone = false;
            for &write in &self.writes[start..start + GRAINS] {
                if write.0 == 0 || !view.comes_after(write, lane.into()) {
                    return false;
                }
            }
            (place, several) = (if view.alone { usize::MAX } else { start }, false);
            if by.collective {
                let event = event.of(COLLECTIVE).0;
                for slot in slots {
                    // it orders itself, so that it must not hide the plain read of a lane
                    if *slot < floor || Event(*slot).lane() == COLLECTIVE {
                        *slot = event;
                    }
                }
                continue;
            }
            for slot in slots {
                let old = Event(*slot).lane();
                let alone = *slot < floor || old == u64::from(lane) || old == COLLECTIVE;
                *slot = event.of(if alone { lane.into() } else { SEVERAL }).0;
            }
        }
        true
    }

    /// The same for writes; those that are `pending` end later.
    pub(crate) fn write_lanes(
        &mut self,
        at: &[u32; 32],
        bytes: usize,
        mask: u32,
        by: Accessor,
        pending: bool,
    ) -> bool {
        match bytes >> self.grain_shift {
            _ if !self.is_plain(by) || !self.agent_reads.is_empty() => false,
            1 => self.write_grains::<1>(at, mask, by, pending),
            2 => self.write_grains::<2>(at, mask, by, pending),
            4 => self.write_grains::<4>(at, mask, by, pending),
            8 => self.write_grains::<8>(at, mask, by, pending),
            _ => false,
        }
    }

    fn write_grains<const GRAINS: usize>(
        &mut self,
        at: &[u32; 32],
        mask: u32,
        by: Accessor,
        pending: bool,
    ) -> bool {
        let synced = self.synced[by.warp];
        let mut view = View {
            clocks: &self.clocks[by.warp * (self.agent + 1)..][..=self.agent],
            synced,
            by,
            passed: Event(0),
            alone: false,
        };
        let event = Event::new(view.clocks[by.warp], by.warp, 0, by.pc);
        let flags = if pending { PENDING } else { 0 };
        // reads of each warp that are less come before
        let mut limits = [0; WARPS];
        for (warp, limit) in limits[..self.warps].iter_mut().enumerate() {
            *limit = floor(if warp == by.warp {
                synced
            } else {
                view.clocks[warp] + 1
            });
        }
        let mut before = [[Event(0); GRAINS]; 32];
        let mut rest = mask;
        while rest != 0 {
            let lane = u64::from(rest.trailing_zeros());
            let start = at[lane as usize] as usize >> self.grain_shift;
            let own = start..start + GRAINS;
            let mut fits = (self.writes[own.clone()].iter())
                .all(|&write| write.0 == 0 || view.comes_after(write, lane));
            let of_warps = self.reads.chunks_exact(self.grains);
            for (warp, (reads, &limit)) in of_warps.zip(&limits).enumerate() {
                let reads = &reads[own.clone()];
                if reads.iter().fold(0, |last, &read| read.max(last)) < limit {
                    continue;
                }
                let own_read = |&read: &u64| {
                    let lane_of = Event(read).lane();
                    read < limit || lane_of == COLLECTIVE || (lane_of == lane && !by.collective)
                };
                fits &= warp == by.warp && reads.iter().all(own_read);
            }
            if !fits {
                // what is under way would meet itself when it is noted again
                for lane in (0..32)
                    .rev()
                    .filter(|lane| pending && (mask & !rest) >> lane & 1 != 0)
                {
                    let start = at[lane] as usize >> self.grain_shift;
                    self.writes[start..start + GRAINS].copy_from_slice(&before[lane]);
                }
                return false;
            }
            rest &= rest - 1;
            before[lane as usize].copy_from_slice(&self.writes[own.clone()]);
            self.writes[own].fill(Event(event.of(lane).0 | flags));
        }
        true
    }
}

impl Event {
    /// The same access by another lane; this is by lane 0.
    #[inline(always)]
    fn of(self, lane: u64) -> Event {
        Event(self.0 | lane << LANE_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64
    struct Random(u64);

    impl Random {
        fn below(&mut self, count: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % count
        }
    }

    /// Lane by lane, as far as it goes.
    fn one_by_one(
        detector: &mut Detector,
        at: &[u32; 32],
        bytes: usize,
        mask: u32,
        by: Accessor,
        kind: u64,
    ) -> bool {
        (0..32).filter(|lane| mask >> lane & 1 != 0).all(|lane| {
            let by = Accessor { lane, ..by };
            let at = at[lane as usize] as usize;
            match kind {
                0 => detector.read(at, bytes, by),
                1 => detector.write(at, bytes, by),
                _ => detector.issue(at, bytes, by),
            }
            .is_ok()
        })
    }

    #[test]
    fn lanes_together_are_judged_as_one_by_one() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..400 {
            let (bytes, warps) = (512, 1 + random.below(3) as usize);
            let mut fast = Detector::new(bytes, 4, warps);
            let mut plain = Detector::new(bytes, 4, warps);
            for _ in 0..40 {
                let warp = random.below(warps as u64) as usize;
                match random.below(8) {
                    0 => {
                        let all = (1 << warps) - 1;
                        assert!(fast.barrier(0, all, all) && plain.barrier(0, all, all));
                    }
                    1 => assert!(fast.warp_sync(warp) && plain.warp_sync(warp)),
                    2 => {
                        fast.reset(0);
                        plain.reset(0);
                    }
                    _ => {
                        let width = 4 << random.below(3);
                        let (start, step) = (random.below(8), random.below(3));
                        let places = (bytes / width) as u64;
                        let at = std::array::from_fn(|lane| {
                            ((start + step * lane as u64) % places) as u32 * width as u32
                        });
                        let mask = match random.below(3) {
                            0 => u32::MAX,
                            1 => 1,
                            _ => random.below(1 << 32) as u32,
                        };
                        let kind = random.below(3);
                        let by = Accessor {
                            warp,
                            lane: 0,
                            pc: random.below(100) as u32,
                            collective: random.below(3) == 0,
                            strong: random.below(16) == 0,
                        };
                        let together = match kind {
                            0 => fast.read_lanes(&at, width, mask, by),
                            _ => fast.write_lanes(&at, width, mask, by, kind == 2),
                        };
                        taken += u32::from(together);
                        // as the caller does
                        let fast_fine =
                            together || one_by_one(&mut fast, &at, width, mask, by, kind);
                        let plain_fine = one_by_one(&mut plain, &at, width, mask, by, kind);
                        refused += u32::from(!plain_fine);
                        assert_eq!(fast_fine, plain_fine);
                        assert_eq!(fast.writes, plain.writes);
                        assert_eq!(fast.reads, plain.reads);
                        if kind == 2 && plain_fine && random.below(2) == 0 {
                            for lane in (0..32).filter(|lane| mask >> lane & 1 != 0) {
                                let by = Accessor { lane, ..by };
                                let at = at[lane as usize] as usize;
                                fast.complete(at, width, by);
                                plain.complete(at, width, by);
                            }
                        }
                    }
                }
            }
        }
        assert!(
            taken > 500 && refused > 500,
            "{taken} taken, {refused} refused"
        );
    }
}
