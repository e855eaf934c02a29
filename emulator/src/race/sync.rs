//! How threads order themselves by what they read from memory: acquire and release, and fences around strong accesses.
//!
//! A release, or a strong write behind a fence, leaves beside the bytes what its thread has done and seen; an acquire, or
//! a fence behind a strong read, takes what was left beside the bytes it read. An atomic keeps what it finds there. Both
//! sides must have each other in the scopes of what they use. The order of two `fence.sc` alone orders nothing here: it
//! would be one way round by chance.
//!
//! Fences count for a whole block behind a barrier: `__threadfence(); __syncthreads();` in all threads and then an atomic
//! of one of them is a release of all, as programs have relied on since before the memory model was written down. Reads
//! count for a whole warp.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::event::{CLOCK_LIMIT, Clock};
use super::{Detector, Seen, parts_cover};
use crate::ir::{Order, Scope};

/// What a thread has seen of each block or cluster of the grid.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(BTreeMap<u32, Arc<Seen>>);

impl Known {
    pub(super) fn join(&mut self, other: &Known) {
        for (&unit, seen) in &other.0 {
            self.add(unit, seen);
        }
    }

    fn add(&mut self, unit: u32, seen: &Arc<Seen>) {
        let old = self.0.entry(unit).or_insert_with(|| Arc::clone(seen));
        if !Arc::ptr_eq(old, seen) {
            Arc::make_mut(old).join(seen);
        }
    }

    /// Was what some lanes of a unit's warp did at a time done before this?
    pub(super) fn cover(
        &self,
        unit: u32,
        warp: usize,
        clock: Clock,
        lanes: impl FnOnce() -> u32,
    ) -> bool {
        self.0.get(&unit).is_some_and(|seen| {
            (seen.clocks.get(warp)).is_some_and(|&known| clock <= known)
                || parts_cover(&seen.parts, warp, clock, lanes())
        })
    }
}

/// What is left beside some bytes.
#[derive(Debug, Clone)]
struct Left {
    scope: Scope,
    /// Who left it, where the scope is narrower than the device.
    unit: u32,
    block: usize,
    known: Arc<Known>,
}

impl Left {
    /// What a thread of a block finds here, and the scope that it needs to take it.
    fn found(&self, unit: u32, block: usize) -> impl Iterator<Item = (Scope, Arc<Known>)> {
        let own = (self.known.0.get(&unit))
            .map(|seen| Arc::new(Known(BTreeMap::from([(unit, Arc::clone(seen))]))));
        let all = Arc::clone(&self.known);
        let (narrow, wide) = match self.scope {
            Scope::Device => (
                own.map(|own| (Scope::Block, own)),
                Some((Scope::Device, all)),
            ),
            _ if self.unit != unit => (None, None),
            _ if self.block == block => (Some((Scope::Block, all)), None),
            Scope::Cluster => (Some((Scope::Cluster, all)), None),
            Scope::Block => (None, None),
        };
        narrow.into_iter().chain(wide)
    }
}

/// What is left beside the bytes of global memory, by their address.
#[derive(Debug, Default)]
pub(crate) struct Flags(HashMap<u64, Vec<Left>>);

/// What a fence has made ready for the next strong writes of some lanes.
#[derive(Debug, Clone)]
struct Fenced {
    scope: Scope,
    lanes: u32,
    known: Arc<Known>,
}

/// What strong reads found, which a fence of at least this scope takes.
#[derive(Debug, Clone)]
struct Found {
    address: u64,
    scope: Scope,
    known: Arc<Known>,
}

#[derive(Debug, Clone, Default)]
struct Memory {
    others: Known,
    fenced: Vec<Fenced>,
    found: Vec<Found>,
}

/// What the warps of a unit know beside its clocks.
#[derive(Debug)]
pub(super) struct Memories {
    warps: Vec<Memory>,
    /// For bytes of shared memory.
    flags: Flags,
}

impl Memories {
    pub(super) fn new(warps: usize) -> Self {
        Memories {
            warps: vec![Memory::default(); warps],
            flags: Flags::default(),
        }
    }

    pub(super) fn reset(&mut self) {
        self.warps.fill(Memory::default());
        self.flags.0.clear();
    }

    /// What a warp has seen of other units.
    pub(super) fn others(&self, warp: usize) -> &Known {
        &self.warps[warp].others
    }

    pub(super) fn learn(&mut self, warp: usize, others: &Known) {
        self.warps[warp].others.join(others);
    }

    /// A barrier: fences and reads of those who arrive count for those who wait.
    pub(super) fn barrier(&mut self, first: usize, arrivals: u32, waits: u32) {
        let members = |mask: u32| {
            (0..32usize).filter_map(move |at| (mask >> at & 1 != 0).then_some(first + at))
        };
        let mut fenced: Vec<Fenced> = Vec::new();
        let mut found: Vec<Found> = Vec::new();
        for warp in members(arrivals) {
            for entry in &self.warps[warp].fenced {
                match fenced.iter_mut().find(|old| old.scope == entry.scope) {
                    Some(old) => join(&mut old.known, &entry.known),
                    None => fenced.push(Fenced {
                        lanes: u32::MAX,
                        ..entry.clone()
                    }),
                }
            }
            for entry in &self.warps[warp].found {
                find(&mut found, entry);
            }
        }
        if fenced.is_empty() && found.is_empty() {
            return;
        }
        for warp in members(waits) {
            self.warps[warp].fenced.clone_from(&fenced);
            self.warps[warp].found.clone_from(&found);
        }
    }
}

fn join(to: &mut Arc<Known>, from: &Arc<Known>) {
    if !Arc::ptr_eq(to, from) {
        Arc::make_mut(to).join(from);
    }
}

fn find(found: &mut Vec<Found>, new: &Found) {
    let same = |old: &&mut Found| (old.address, old.scope) == (new.address, new.scope);
    match found.iter_mut().find(same) {
        Some(old) => join(&mut old.known, &new.known),
        None => found.push(new.clone()),
    }
}

impl Detector {
    /// A fence by `lanes` of a warp, of which `live` are left. Returns false when its clock is used up.
    pub(crate) fn fence(&mut self, warp: usize, scope: Scope, lanes: u32, live: u32) -> bool {
        let Some(memories) = &mut self.memories else {
            return true;
        };
        let mut taken = Known::default();
        memories.warps[warp].found.retain(|found| {
            let takes = found.scope <= scope;
            if takes {
                taken.join(&found.known);
            }
            !takes
        });
        self.take(warp, &taken);
        let known = Arc::new(self.all_seen(warp, lanes, live));
        if let Some(memories) = &mut self.memories {
            let fenced = &mut memories.warps[warp].fenced;
            fenced.retain_mut(|old| {
                if old.scope <= scope {
                    old.lanes &= !lanes;
                }
                old.lanes != 0
            });
            fenced.push(Fenced {
                scope,
                lanes,
                known,
            });
        }
        self.now(warp) < CLOCK_LIMIT
    }

    /// The flags in shared memory, to be given back.
    pub(crate) fn lend_flags(&mut self) -> Option<Flags> {
        (self.memories.as_mut()).map(|memories| std::mem::take(&mut memories.flags))
    }

    pub(crate) fn return_flags(&mut self, flags: Flags) {
        if let Some(memories) = &mut self.memories {
            memories.flags = flags;
        }
    }

    /// What `lanes` of a warp have done and seen.
    fn all_seen(&mut self, warp: usize, lanes: u32, live: u32) -> Known {
        let mut seen = Seen::default();
        self.release(warp, lanes, live, &mut seen);
        let mut known = std::mem::take(&mut seen.others);
        known.add(self.unit, &Arc::new(seen));
        known
    }

    /// What a warp does from now on comes after `known`.
    fn take(&mut self, warp: usize, known: &Known) {
        let mut others = known.clone();
        if let Some(own) = others.0.remove(&self.unit) {
            self.acquire(warp, &own);
        }
        if let Some(memories) = &mut self.memories {
            memories.learn(warp, &others);
        }
    }

    /// A warp has read the flags at `addresses` by a strong operation.
    pub(crate) fn strong_read(
        &mut self,
        flags: &Flags,
        addresses: impl Iterator<Item = u64>,
        warp: usize,
        order: Order,
    ) {
        let (unit, block) = (self.unit, warp / self.warps);
        let Some(reach) = order.scope else { return };
        let mut taken = Known::default();
        for address in addresses {
            let left = flags.0.get(&address).into_iter().flatten();
            for (scope, known) in left.flat_map(|left| left.found(unit, block)) {
                if scope > reach {
                    continue;
                }
                if order.acquires {
                    taken.join(&known);
                }
                if let Some(memories) = &mut self.memories {
                    let found = Found {
                        address,
                        scope,
                        known,
                    };
                    find(&mut memories.warps[warp].found, &found);
                }
            }
        }
        self.take(warp, &taken);
    }

    /// `lanes` of a warp, of which `live` are left, have written to the flags at `at` by a strong operation, which `keeps`
    /// what it finds there if it is an atomic. Returns false when a clock is used up.
    pub(crate) fn strong_write(
        &mut self,
        flags: &mut Flags,
        at: &[u64],
        (warp, lanes, live): (usize, u32, u32),
        order: Order,
        keeps: bool,
    ) -> bool {
        let (unit, block) = (self.unit, warp / self.warps);
        let Some(reach) = order.scope else {
            return true;
        };
        let released = order
            .releases
            .then(|| Arc::new(self.all_seen(warp, lanes, live)));
        let Some(memories) = &self.memories else {
            return true;
        };
        let fenced = &memories.warps[warp].fenced;
        for (lane, address) in (0..).zip(at).filter(|&(lane, _)| lanes >> lane & 1 != 0) {
            let fences = fenced.iter().filter(|entry| entry.lanes >> lane & 1 != 0);
            let fences = fences.map(|entry| (entry.scope.min(reach), &entry.known));
            let leaves = released.iter().map(|known| (reach, known)).chain(fences);
            let mut leaves = leaves.peekable();
            if leaves.peek().is_none() && (keeps || !flags.0.contains_key(address)) {
                continue;
            }
            let flag = flags.0.entry(*address).or_default();
            if !keeps {
                flag.clear();
            }
            for (scope, known) in leaves {
                let same = |old: &&mut Left| {
                    old.scope == scope
                        && (scope == Scope::Device || (old.unit, old.block) == (unit, block))
                };
                match flag.iter_mut().find(same) {
                    Some(old) => join(&mut old.known, known),
                    None => flag.push(Left {
                        scope,
                        unit,
                        block,
                        known: Arc::clone(known),
                    }),
                }
            }
        }
        self.now(warp) < CLOCK_LIMIT
    }
}
