//! A warp: its registers, and which of its lanes stand where.

use super::Shared;
use super::bulk::Stores;
use super::call::Calls;
use super::context::{Context, Done, Trouble, lanes};
use super::copy::Copies;
use super::registers::{LANES, Registers};
use super::schedule::{Random, Schedule};
use super::wgmma::Products;
use crate::fault::FaultKind;
use crate::ir::{Barrier, Code, Constant, Pc, Special};

/// Lanes that stand at one instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub pc: Pc,
    pub mask: u32,
    /// At a .sync instruction, waiting for the rest of its lanes.
    pub parked: bool,
}

/// Why a warp stopped running.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stop {
    Exited,
    Barrier(Barrier),
    /// Its time slice is over.
    Slice,
    /// A test of what others have yet to do was false.
    Polled,
    /// What it waits for is not there: the instruction runs again.
    Retry,
}

/// What a warp is doing, seen from its block.
#[derive(Debug, Clone, Copy)]
pub(super) enum State {
    Running,
    Waiting(Barrier),
    Exited,
}

/// A warp of a block.
pub(super) struct Warp {
    /// Its number among all warps of its cluster.
    pub index: usize,
    /// The rank of its block in the cluster.
    pub block: usize,
    /// Its number in its block.
    pub number: usize,
    pub state: State,
    /// Lanes that exist: a block's last warp may be part empty.
    launched: u32,
    /// Lanes that have not exited.
    pub live: u32,
    pub registers: Registers,
    /// Thread coordinates of each lane.
    pub threads: [[u32; 3]; LANES],
    pub groups: Vec<Group>,
    /// Local memory: `local_bytes` a lane, and whether each byte was written.
    pub local: Vec<u8>,
    pub local_written: Vec<bool>,
    pub local_bytes: u32,
    /// Lanes that have arrived at the barrier of the cluster and not waited, and those for which it has not opened since.
    pub at_cluster_barrier: u32,
    pub lacks_cluster: u32,
    pub copies: Copies,
    /// What functions return to.
    pub calls: Calls,
    pub stores: Stores,
    pub products: Products,
    /// Where the warp stands, for faults.
    pub at: Pc,
    random: Random,
    /// The last slice ended with lanes still spinning: others go first.
    rotate: bool,
    /// The lanes that run had their turn out of order.
    rotated: bool,
    /// What had changed when it last had to give way; `None` if it did not.
    pub gave_way: Option<u64>,
    /// It polls, and may do something else when it is told to wait no longer.
    pub polls: bool,
}

impl Warp {
    /// Warp `index` of its cluster, whose blocks have `size` warps each.
    pub(super) fn new(shared: &Shared<'_>, index: usize, size: usize) -> Self {
        let body = &shared.kernel.body;
        let local_bytes = shared.local_bytes();
        let local = local_bytes as usize * LANES;
        Warp {
            index,
            block: index / size,
            number: index % size,
            state: State::Running,
            launched: 0,
            live: 0,
            registers: Registers::new(body.rows, body.predicates),
            threads: [[0; 3]; LANES],
            groups: Vec::new(),
            local: vec![0; local],
            local_written: vec![false; local],
            local_bytes,
            calls: Calls::new(shared.kernel.frame_bytes),
            at_cluster_barrier: 0,
            lacks_cluster: 0,
            copies: Copies::default(),
            stores: Stores::default(),
            products: Products::default(),
            at: 0,
            random: Random::default(),
            rotate: false,
            rotated: false,
            gave_way: None,
            polls: false,
        }
    }

    /// Puts all threads at the first instruction of block `block`.
    pub(super) fn start(&mut self, shared: &Shared<'_>, block: [u32; 3], linear: u64) {
        let [bx, by, bz] = shared.launch.block;
        let threads = bx * by * bz;
        self.live = 0;
        for lane in 0..LANES {
            let thread = self.number * LANES + lane;
            self.threads[lane] = shared.thread(thread);
            if thread < threads as usize {
                self.live |= 1 << lane;
            }
        }
        self.launched = self.live;
        self.state = State::Running;
        self.groups.clear();
        self.groups.push(Group {
            pc: shared.kernel.body.entry,
            mask: self.live,
            parked: false,
        });
        self.local_written.fill(false);
        self.at_cluster_barrier = 0;
        self.lacks_cluster = 0;
        self.copies = Copies::default();
        self.calls.reset();
        self.stores = Stores::default();
        self.products = Products::default();
        self.rotate = false;
        self.rotated = false;
        self.gave_way = None;
        self.random = Random::new(shared.options.schedule, linear * 64 + self.number as u64);
        self.registers.reset();
        for &(slot, constant, value) in &shared.constants {
            match constant {
                Constant::Double(_) | Constant::Param64(_) | Constant::Global { .. } => {
                    self.registers.put(u32::MAX, slot, [value; LANES]);
                }
                Constant::Word(_) | Constant::Param32(_) => {
                    self.registers.put(u32::MAX, slot, [value as u32; LANES])
                }
                Constant::Special(special) => {
                    let values = std::array::from_fn(|lane| {
                        self.special(shared, special, lane, block, linear)
                    });
                    self.registers.put(u32::MAX, slot, values);
                }
            }
        }
    }

    fn special(
        &self,
        shared: &Shared<'_>,
        special: Special,
        lane: usize,
        block: [u32; 3],
        linear: u64,
    ) -> u32 {
        let launch = shared.launch;
        let bit = 1u32 << lane;
        let multiprocessors = shared.device.multiprocessors;
        match special {
            Special::Tid(axis) => self.threads[lane][usize::from(axis)],
            Special::Ntid(axis) => launch.block[usize::from(axis)],
            Special::Ctaid(axis) => block[usize::from(axis)],
            Special::Nctaid(axis) => launch.grid[usize::from(axis)],
            Special::LaneId => lane as u32,
            Special::WarpId => self.number as u32,
            Special::NumWarps => (launch.block.iter().product::<u32>()).div_ceil(LANES as u32),
            Special::SmId => (linear % u64::from(multiprocessors)) as u32,
            Special::NumSms => multiprocessors,
            Special::GridId => 1,
            Special::LaneMaskEq => bit,
            Special::LaneMaskLe => bit | (bit - 1),
            Special::LaneMaskLt => bit - 1,
            Special::LaneMaskGe => !(bit - 1),
            Special::LaneMaskGt => !(bit | (bit - 1)),
            Special::DynamicShared => launch.dynamic_shared,
            Special::TotalShared => shared.kernel.shared_bytes(launch.dynamic_shared),
            Special::Workspace { high: true } => (shared.workspace >> 32) as u32,
            Special::Workspace { high: false } => shared.workspace as u32,
            Special::Cluster(axis) => block[usize::from(axis)] / shared.cluster[usize::from(axis)],
            Special::NumClusters(axis) => {
                launch.grid[usize::from(axis)] / shared.cluster[usize::from(axis)]
            }
            Special::ClusterBlock(axis) => {
                block[usize::from(axis)] % shared.cluster[usize::from(axis)]
            }
            Special::ClusterBlocks(axis) => shared.cluster[usize::from(axis)],
            Special::ClusterRank => self.block as u32,
            Special::ClusterRanks => shared.cluster.iter().product(),
        }
    }

    /// Splits off lanes that stand elsewhere.
    pub(super) fn push(&mut self, pc: Pc, mask: u32, parked: bool) {
        if mask != 0 {
            self.groups.push(Group { pc, mask, parked });
        }
    }

    /// The slice ended inside a loop.
    pub(super) fn end_slice(&mut self) {
        self.rotate = true;
    }

    /// Lanes that poll or wait give way: to others of their warp if there are any, else to the rest of the block.
    pub(super) fn stop_at(&mut self, stop: Stop, pc: Pc, mask: u32, active: u32) -> Stop {
        let others = self.groups.iter().any(|group| !group.parked);
        if matches!(stop, Stop::Retry) {
            self.push(pc, active, false);
            self.push(pc + 1, mask & !active, false);
        } else {
            self.push(pc + 1, mask, false);
        }
        if others || (matches!(stop, Stop::Retry) && mask != active) {
            // in turns: the highest of two that poll must not keep the lowest from what it waits for
            self.rotate = !std::mem::take(&mut self.rotated);
            return Stop::Slice;
        }
        stop
    }

    /// The lanes that run next, and the instruction at which they must look for others.
    pub(super) fn pick(
        &mut self,
        context: &Context<'_>,
        schedule: Schedule,
    ) -> Done<Option<(Group, Pc)>> {
        if self.groups.is_empty() {
            return Ok(None);
        }
        if self.groups.len() == 1 && !self.groups[0].parked {
            return Ok(self.groups.pop().map(|group| (group, Pc::MAX)));
        }
        if let Some(group) = self.take_complete(context)? {
            return Ok(Some((group, self.limit(schedule))));
        }
        let adversarial = schedule != Schedule::LowestPc;
        let ready: Vec<usize> = (0..self.groups.len())
            .filter(|&at| !self.groups[at].parked)
            .collect();
        if ready.is_empty() {
            return Err(self.divergence(context));
        }
        let chosen = if adversarial {
            ready[self.random.pick(ready.len())]
        } else if std::mem::take(&mut self.rotate) {
            self.rotated = true;
            // the lowest lanes spin: the highest have their turn, without a limit that would send them back at once
            let highest = ready
                .into_iter()
                .max_by_key(|&at| self.groups[at].pc)
                .unwrap_or(0);
            return Ok(Some((self.groups.swap_remove(highest), Pc::MAX)));
        } else {
            ready
                .into_iter()
                .min_by_key(|&at| self.groups[at].pc)
                .unwrap_or(0)
        };
        let mut group = self.groups.swap_remove(chosen);
        if !adversarial {
            self.groups.retain(|other| {
                let joins = !other.parked && other.pc == group.pc;
                if joins {
                    group.mask |= other.mask;
                }
                !joins
            });
        }
        Ok(Some((group, self.limit(schedule))))
    }

    /// The lowest instruction at which other lanes stand ready.
    fn limit(&self, schedule: Schedule) -> Pc {
        match schedule {
            Schedule::LowestPc => self
                .groups
                .iter()
                .filter(|group| !group.parked)
                .map(|group| group.pc)
                .min()
                .unwrap_or(Pc::MAX),
            Schedule::Adversarial(_) => Pc::MAX,
        }
    }

    /// Joins lanes parked at one instruction; those whose instruction now has all its lanes are taken.
    fn take_complete(&mut self, context: &Context<'_>) -> Done<Option<Group>> {
        let mut at = 0;
        while at < self.groups.len() {
            let group = self.groups[at];
            if group.parked {
                let mut joined = group.mask;
                let mut other = at + 1;
                while other < self.groups.len() {
                    if self.groups[other].parked && self.groups[other].pc == group.pc {
                        joined |= self.groups[other].mask;
                        self.groups.swap_remove(other);
                    } else {
                        other += 1;
                    }
                }
                self.groups[at].mask = joined;
                if self.complete(context, group.pc, joined)? {
                    self.groups.swap_remove(at);
                    return Ok(Some(Group {
                        mask: joined,
                        parked: false,
                        ..group
                    }));
                }
            }
            at += 1;
        }
        Ok(None)
    }

    /// Has the .sync instruction at `pc` all the lanes it names? `mask` stands there.
    pub(super) fn complete(&mut self, context: &Context<'_>, pc: Pc, mask: u32) -> Done<bool> {
        let op = &context.body.ops[pc as usize];
        let guard = self.registers.predicate(op.guard) ^ if op.negated { u32::MAX } else { 0 };
        let active = mask & guard;
        let members = match op.code {
            Code::Hopper(ref op) => match op.members() {
                Some(members) => members,
                None => return Ok(active == self.live),
            },
            Code::WarpSync { members }
            | Code::Shuffle { members, .. }
            | Code::Vote { members, .. }
            | Code::Match { members, .. }
            | Code::Reduce { members, .. } => members,
            // aligned forms: the whole warp
            _ => return Ok(active == self.live),
        };
        let members = self.registers.get::<u32>(members);
        for lane in lanes(active) {
            if members[lane] >> lane & 1 == 0 {
                self.at = pc;
                let message = format!(
                    "executes a .sync instruction whose member mask {:#010x} leaves it out",
                    members[lane]
                );
                return Err(Trouble::new(FaultKind::Divergence, lane as u32, message));
            }
        }
        Ok(lanes(active).all(|lane| members[lane] & !active == 0))
    }

    /// No lanes can go on: says where each of them stands.
    fn divergence(&mut self, context: &Context<'_>) -> Box<Trouble> {
        let exited = self.launched & !self.live;
        let mut places: Vec<String> = self
            .groups
            .iter()
            .map(|group| {
                let origin = context.body.origins[group.pc as usize];
                format!(
                    "lanes {:#010x} at PTX line {}: {}",
                    group.mask,
                    origin.ptx,
                    context.body.texts.get(group.pc).trim_end_matches(';')
                )
            })
            .collect();
        if exited != 0 {
            places.push(format!("lanes {exited:#010x} have exited"));
        }
        self.at = self.groups.first().map_or(self.at, |group| group.pc);
        let lane = self.groups.first().map(|group| group.mask.trailing_zeros());
        let message = format!(
            "a .sync instruction that not all of its lanes reach together: {}",
            places.join("; ")
        );
        Trouble::new(FaultKind::Divergence, lane, message)
    }
}
