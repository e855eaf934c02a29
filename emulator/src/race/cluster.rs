//! Blocks of a cluster that reach into each other's memory: a block must not be gone before.

use std::collections::HashMap;

use super::{Accessor, Clock, Detector, Event, OBJECT};

/// What is known of accesses across blocks beside the marks of each grain.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// The last operation on an mbarrier of another block, by that block, warp and lane.
    objects: HashMap<(usize, usize, u32), Event>,
    /// The period of each warp when it last arrived at the barrier of the cluster, and when that last opened.
    arrived: Vec<Clock>,
    opened: Vec<Clock>,
}

impl Reach {
    pub(super) fn new(warps: usize) -> Reach {
        Reach {
            objects: HashMap::new(),
            arrived: vec![0; warps],
            opened: vec![0; warps],
        }
    }

    pub(super) fn reset(&mut self) {
        self.objects.clear();
        self.arrived.fill(0);
        self.opened.fill(0);
    }
}

/// An access to the memory of a block that may be gone by then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stray {
    pub warp: usize,
    /// `None` if several lanes took part.
    pub lane: Option<u32>,
    pub pc: u32,
}

impl Detector {
    /// Notes an operation on an mbarrier, which may be another block's.
    pub(crate) fn note_object(&mut self, address: usize, by: Accessor) {
        if self.agent == self.warps {
            return;
        }
        let block = self.block_of(address >> self.grain_shift);
        if by.warp / self.warps != block {
            let event = Event::new(self.now(by.warp), by.warp, by.lane.into(), by.pc);
            self.reach.objects.insert((block, by.warp, by.lane), event);
        }
    }

    /// A warp arrives at the barrier of the cluster, in whatever order.
    pub(crate) fn arrive_at_gate(&mut self, warp: usize) {
        self.reach.arrived[warp] = self.now(warp);
    }

    /// The barrier of the cluster opens.
    pub(crate) fn open_gate(&mut self) {
        let reach = &mut self.reach;
        reach.opened.copy_from_slice(&reach.arrived);
    }

    /// A block exits: an access of another block to its memory that none of its warps has seen, and that no barrier of
    /// the cluster came after.
    pub(crate) fn stray(&self, block: usize) -> Option<Stray> {
        let warps = block * self.warps..(block + 1) * self.warps;
        let grains = block * self.grains..(block + 1) * self.grains;
        let remote = |event: &Event| {
            let by_thread = event.0 != 0 && !event.pending() && event.warp() != self.agent;
            by_thread && event.0 & OBJECT != OBJECT && !warps.contains(&event.warp())
        };
        let seen = |event: &Event| {
            event.clock() <= self.reach.opened[event.warp()]
                || warps.clone().any(|warp| {
                    event.clock() <= self.clocks[warp * (self.agent + 1) + event.warp()]
                        || self.partly_seen(*event, warp)
                })
        };
        let writes = self.writes[grains.clone()].iter();
        let reads = (self.remote.iter()).filter(|(grain, _)| grains.contains(grain));
        let objects = self.reach.objects.iter();
        let objects = objects.filter(|((of, ..), _)| *of == block);
        (writes.chain(reads.flat_map(|(_, events)| events)))
            .chain(objects.map(|(_, event)| event))
            .filter(|event| remote(event) && !seen(event))
            .min_by_key(|event| (event.clock(), event.warp(), event.lane()))
            .map(|event| Stray {
                warp: event.warp(),
                lane: u32::try_from(event.lane()).ok().filter(|&lane| lane < 32),
                pc: event.pc(),
            })
    }
}
