//! An access of shared memory in one word.

/// A period counter; 0 is before everything.
pub(super) type Clock = u32;

/// Lane number of a read that the whole warp took part in.
pub(super) const COLLECTIVE: u64 = 32;
/// Lane number where several lanes read in one period.
pub(super) const SEVERAL: u64 = 33;

const PC_BITS: u32 = 24;
const LANE_BITS: u32 = 6;
const WARP_BITS: u32 = 9;
const CLOCK_BITS: u32 = 22;
pub(super) const LANE_SHIFT: u32 = PC_BITS;
pub(super) const CLOCK_SHIFT: u32 = PC_BITS + LANE_BITS + WARP_BITS;
pub(super) const PENDING: u64 = 1 << 63;
pub(super) const STRONG: u64 = 1 << 62;
/// A write that no fence.proxy.async has followed.
pub(super) const UNFENCED: u64 = 1 << 61;
/// No access: the bytes hold an mbarrier.
pub(super) const OBJECT: u64 = PENDING | STRONG;

/// The most warps that run together, in a block or a cluster; one number is left for the agent.
pub(crate) const WARP_LIMIT: usize = (1 << WARP_BITS) - 1;

/// The most periods a warp may have: more are a fault, never a wrong answer.
pub(crate) const CLOCK_LIMIT: u32 = (1 << CLOCK_BITS) - 1;

/// One access: when, by whom, where in the code. 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event(pub(super) u64);

impl Event {
    pub(super) fn new(clock: Clock, warp: usize, lane: u64, pc: u32) -> Self {
        Event(
            u64::from(clock) << CLOCK_SHIFT
                | (warp as u64) << (PC_BITS + LANE_BITS)
                | lane << LANE_SHIFT
                | u64::from(pc),
        )
    }

    pub(super) fn pc(self) -> u32 {
        (self.0 & ((1 << PC_BITS) - 1)) as u32
    }

    pub(super) fn lane(self) -> u64 {
        self.0 >> LANE_SHIFT & ((1 << LANE_BITS) - 1)
    }

    pub(super) fn warp(self) -> usize {
        (self.0 >> (PC_BITS + LANE_BITS) & ((1 << WARP_BITS) - 1)) as usize
    }

    pub(super) fn clock(self) -> Clock {
        (self.0 >> CLOCK_SHIFT) as u32 & CLOCK_LIMIT
    }

    pub(super) fn pending(self) -> bool {
        self.0 & PENDING != 0
    }

    pub(super) fn strong(self) -> bool {
        self.0 & STRONG != 0
    }

    pub(super) fn unfenced(self) -> bool {
        self.0 & UNFENCED != 0
    }
}
