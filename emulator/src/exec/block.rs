//! A block: its warps in turn, its barriers, and the words for what goes wrong.

use super::Shared;
use super::context::{Context, Trouble};
use super::interpret;
use super::registers::LANES;
use super::schedule::Random;
use super::warp::{State, Stop, Warp};
use super::{bulk, wgmma};
use crate::fault::{Fault, FaultKind, Site};
use crate::ir::{BarrierKind, Pc};
use crate::race::Unordered;
use crate::report::Report;
use std::sync::atomic::Ordering;

/// Barriers of a block.
const BARRIERS: usize = 16;

/// What a block's turn ended with.
pub(super) enum Outcome {
    Done,
    /// Its warps spin or have more to do.
    Yielded,
}

/// A named barrier in use.
#[derive(Debug, Clone, Copy, Default)]
struct Gate {
    /// Warps that have arrived since it last opened.
    arrived: u32,
    /// Those of them that wait.
    waiting: u32,
    /// Threads it opens for.
    expected: u32,
}

/// Times that warps which poll are told in vain to wait no longer, before they count as hung.
const TIMEOUTS: u32 = 8;

/// The blocks of a cluster, or a single block, and the host memory they run in.
pub(super) struct Block<'l> {
    shared: &'l Shared<'l>,
    context: Context<'l>,
    /// The warps of all blocks, block by block.
    warps: Vec<Warp>,
    /// Warps of one block.
    size: usize,
    /// The barriers of each block.
    gates: Vec<[Gate; BARRIERS]>,
    index: u64,
    /// Coordinates of each block.
    places: Vec<[u32; 3]>,
    /// Changes and instructions when warps that poll were last told to wait no longer, and how often in vain.
    timeouts: (u64, u64, u32),
    random: Random,
}

impl<'l> Block<'l> {
    pub(super) fn new(shared: &'l Shared<'l>) -> Self {
        let blocks = shared.cluster.iter().product::<u32>() as usize;
        let size = (shared.launch.block.iter().product::<u32>() as usize).div_ceil(LANES);
        Block {
            shared,
            context: Context::new(shared, blocks, size),
            warps: (0..blocks * size)
                .map(|index| Warp::new(shared, index, size))
                .collect(),
            size,
            gates: vec![[Gate::default(); BARRIERS]; blocks],
            index: 0,
            places: vec![[0; 3]; blocks],
            timeouts: (0, 0, 0),
            random: Random::default(),
        }
    }

    /// Begins cluster number `index` of the grid, which is a block where there are none.
    pub(super) fn start(&mut self, index: u64) {
        let grid = self.shared.launch.grid;
        self.index = index;
        for (rank, place) in self.places.iter_mut().enumerate() {
            *place = self.shared.place(index, rank as u32);
        }
        self.gates.fill([Gate::default(); BARRIERS]);
        self.context.reset(index);
        self.timeouts = (0, 0, 0);
        self.random = Random::new(self.shared.options.schedule, index * 64);
        for warp in &mut self.warps {
            let place = self.places[warp.block];
            let [x, y, z] = place.map(u64::from);
            let [gx, gy, _] = grid.map(u64::from);
            warp.start(self.shared, place, (z * gy + y) * gx + x);
        }
    }

    pub(super) fn index(&self) -> u64 {
        self.index
    }

    /// Strong reads of memory so far: who waits for another block does nothing else for long.
    pub(super) fn polls(&self) -> u64 {
        self.context.polls
    }

    /// The counters of all blocks that ran here.
    pub(super) fn into_report(self) -> Report {
        let mut report = self.context.report;
        for (&count, &class) in self.context.issued.iter().zip(&self.context.body.classes) {
            report.instructions[class as usize] += count;
        }
        report.mma_multiply_adds = report.mma.iter().sum();
        report
    }

    /// Gives every warp that can run a turn of `slice` instructions.
    pub(super) fn run(&mut self, slice: u64) -> Result<Outcome, Box<Fault>> {
        loop {
            let mut progress = false;
            let mut sliced = false;
            let mut only_sliced = true;
            let count = self.warps.len();
            let first = self
                .random
                .next()
                .map_or(0, |random| random as usize % count);
            for at in (first..count).chain(0..first) {
                let warp = &mut self.warps[at];
                if !matches!(warp.state, State::Running)
                    || warp.gave_way == Some(self.context.changes)
                {
                    continue;
                }
                progress = true;
                warp.gave_way = None;
                self.context.enter(warp.block);
                let before = self.context.clock;
                let stop = interpret::run(
                    &mut self.warps[at],
                    &mut self.context,
                    self.shared.options.schedule,
                    slice,
                );
                let spent = self.context.clock - before;
                let total = self.shared.spent.fetch_add(spent, Ordering::Relaxed) + spent;
                only_sliced &= matches!(stop, Ok(Stop::Slice));
                match stop {
                    Err(trouble) => return Err(self.fault(at, *trouble)),
                    Ok(Stop::Exited) => self.exit(at)?,
                    Ok(stop @ (Stop::Polled | Stop::Retry)) => {
                        self.warps[at].gave_way = Some(self.context.changes);
                        self.warps[at].polls = matches!(stop, Stop::Polled);
                        self.check_time(at, total)?;
                    }
                    Ok(Stop::Slice) => {
                        sliced = true;
                        self.check_time(at, total)?;
                    }
                    Ok(Stop::Barrier(barrier)) => {
                        self.warps[at].state = State::Waiting(barrier);
                        if let Err(trouble) = self.arrive(at) {
                            return Err(self.fault(at, *trouble));
                        }
                    }
                }
            }
            if self.context.gate.arrived {
                self.open_cluster();
            }
            if self
                .warps
                .iter()
                .all(|warp| matches!(warp.state, State::Exited))
            {
                self.finish()?;
                return Ok(Outcome::Done);
            }
            let early = !self.context.pending.is_empty() && self.random.toss();
            if early || (progress && only_sliced && !self.context.pending.is_empty()) {
                self.complete_pending()?;
            }
            if !progress && !self.unblock()? {
                return Err(self.deadlock());
            }
            if sliced {
                return Ok(Outcome::Yielded);
            }
        }
    }

    /// Opens the barrier of the cluster if all threads that have not exited are there.
    fn open_cluster(&mut self) {
        let absent = |warp: &Warp| warp.live & !warp.lacks_cluster != 0;
        if self.warps.iter().any(absent) {
            return;
        }
        for warp in &mut self.warps {
            warp.lacks_cluster = 0;
        }
        self.context.gate.open();
        self.context.detector.open_gate();
        self.context.cluster_phase += 1;
        self.context.changes += 1;
    }

    /// Fails when the launch has run for too long.
    fn check_time(&self, at: usize, total: u64) -> Result<(), Box<Fault>> {
        let limit = self.shared.options.max_instructions;
        if total <= limit {
            return Ok(());
        }
        let message = format!(
            "the launch ran for more than {limit} warp instructions: it hangs, or the limit is too low"
        );
        Err(self.fault(at, *Trouble::new(FaultKind::Timeout, None, message)))
    }

    fn exit(&mut self, at: usize) -> Result<(), Box<Fault>> {
        self.warps[at].state = State::Exited;
        let block = self.warps[at].block;
        let mut warps = self.warps[block * self.size..][..self.size].iter();
        if warps.all(|warp| matches!(warp.state, State::Exited)) {
            self.context.exited[block] = true;
            self.context.changes += 1;
            self.check_reach(block)?;
        }
        Ok(())
    }

    /// A block has exited: nobody may be able to reach into its memory later, had it been faster.
    fn check_reach(&mut self, block: usize) -> Result<(), Box<Fault>> {
        if self.places.len() == 1 {
            return Ok(());
        }
        let Some(stray) = self.context.detector.stray(block) else {
            return Ok(());
        };
        self.warps[stray.warp].at = stray.pc;
        let message = format!(
            "reaches into shared memory of block {block} of the cluster, which has exited since: nothing makes it wait"
        );
        let trouble = Trouble::new(FaultKind::Race, stray.lane, message);
        Err(self.fault(stray.warp, *trouble))
    }

    /// No warp can go on: something under way ends, or a warp that polls stops waiting. False if there is nothing of the
    /// kind.
    fn unblock(&mut self) -> Result<bool, Box<Fault>> {
        if !self.context.pending.is_empty() {
            self.complete_pending()?;
            return Ok(true);
        }
        // a long way between two polls is no idle loop
        let (changes, clock, vain) = self.timeouts;
        let now = (self.context.changes, self.context.clock);
        let idle = now.0 == changes && now.1 - clock < 64 * self.warps.len() as u64;
        let vain = if idle { vain + 1 } else { 0 };
        self.timeouts = (now.0, now.1, vain);
        let mut polled = false;
        for warp in &mut self.warps {
            if matches!(warp.state, State::Running) && warp.polls {
                warp.gave_way = None;
                polled = true;
            }
        }
        Ok(polled && vain < TIMEOUTS)
    }

    /// Ends one of the things under way: the last, or any in the adversarial order.
    fn complete_pending(&mut self) -> Result<(), Box<Fault>> {
        let at = self.random.pick(self.context.pending.len());
        let (pc, warp) = (self.context.pending[at].pc, self.context.pending[at].warp);
        bulk::complete(&mut self.context, &mut self.warps, at).map_err(|trouble| {
            self.warps[warp].at = pc;
            self.fault(warp, *trouble)
        })
    }

    /// All warps have exited: nothing may write to their memory any more.
    fn finish(&mut self) -> Result<(), Box<Fault>> {
        let groups = self.size.div_ceil(wgmma::WARPS);
        for (at, group) in self.context.warpgroups.iter().enumerate() {
            if let Some(late) = group.straggler() {
                let at = at / groups * self.size + at % groups * wgmma::WARPS + late;
                let message = "the block ends, and this warp has executed fewer instructions of its warpgroup than others";
                return Err(self.fault(at, *Trouble::new(FaultKind::Divergence, None, message)));
            }
        }
        for at in 0..self.warps.len() {
            if let Some((pc, lane)) = self.warps[at].stores.reading() {
                self.warps[at].at = pc;
                let message = "the block ends while a copy out of its shared memory is still under way: nobody waited for it";
                let trouble = Trouble::new(FaultKind::MissingWait, lane, message);
                return Err(self.fault(at, *trouble));
            }
            let warp = &mut self.warps[at];
            if let Err(trouble) = bulk::flush(warp, &mut self.context) {
                return Err(self.fault(at, *trouble));
            }
        }
        let late = (self.context.pending.iter()).find(|pending| pending.writes_shared());
        if let Some(pending) = late {
            let (pc, warp, lane) = (pending.pc, pending.warp, pending.lane);
            self.warps[warp].at = pc;
            let message = "the block ends while a copy into its shared memory is still under way: nobody waited for it";
            let trouble = Trouble::new(FaultKind::MissingWait, lane, message);
            return Err(self.fault(warp, *trouble));
        }
        Ok(())
    }

    /// Warp `at` reaches its barrier; opens it if it was the last.
    fn arrive(&mut self, at: usize) -> Result<(), Box<Trouble>> {
        let State::Waiting(barrier) = self.warps[at].state else {
            return Ok(());
        };
        let threads = (self.size * LANES) as u32;
        let block = self.warps[at].block;
        let registers = &self.warps[at].registers;
        let lane = self.warps[at].live.trailing_zeros() as usize % LANES;
        let id = registers.row(barrier.id)[lane] as usize;
        let expected = barrier
            .count
            .map_or(threads, |count| registers.row(count)[lane]);
        let refuse = |message: String| Err(Trouble::new(FaultKind::Divergence, None, message));
        if id >= BARRIERS {
            return refuse(format!("barrier {id}; there are 0 to 15"));
        }
        if expected == 0 || expected % LANES as u32 != 0 || expected > threads {
            return refuse(format!(
                "barrier {id} for {expected} threads; the count is a multiple of 32 up to the block's {threads}"
            ));
        }
        let gate = &mut self.gates[block][id];
        let bit = 1u32 << (at - block * self.size);
        if gate.arrived != 0 && gate.expected != expected {
            let found = gate.expected;
            return refuse(format!(
                "arrives at barrier {id} for {expected} threads, where others arrived for {found}"
            ));
        }
        if gate.arrived & bit != 0 {
            return refuse(format!("arrives at barrier {id} twice before it opens"));
        }
        gate.expected = expected;
        gate.arrived |= bit;
        let arrive_only = barrier.kind == BarrierKind::Arrive;
        if arrive_only {
            self.warps[at].state = State::Running;
        } else {
            gate.waiting |= bit;
        }
        self.context.report.barriers += 1;
        if gate.arrived.count_ones() * LANES as u32 == gate.expected {
            let gate = std::mem::take(&mut self.gates[block][id]);
            let first = block * self.size;
            self.open(first, gate);
            if !(self.context.detector).barrier(first, gate.arrived, gate.waiting) {
                return refuse(
                    "more barriers than the race detector can tell apart in one block".into(),
                );
            }
        }
        Ok(())
    }

    /// Lets the warps of a barrier, counted from warp `first`, go on with the result of its reduction.
    fn open(&mut self, first: usize, gate: Gate) {
        let members =
            || (0..LANES).filter_map(|at| (gate.waiting >> at & 1 != 0).then_some(first + at));
        let (mut count, mut all, mut any) = (0, true, false);
        for at in members() {
            let warp = &self.warps[at];
            if let State::Waiting(barrier) = warp.state
                && let BarrierKind::Popc { input, negated, .. }
                | BarrierKind::All { input, negated, .. }
                | BarrierKind::Any { input, negated, .. } = barrier.kind
            {
                let holds = (warp.registers.predicate(input) ^ if negated { u32::MAX } else { 0 })
                    & warp.live;
                count += holds.count_ones();
                all &= holds == warp.live;
                any |= holds != 0;
            }
        }
        let mask = |holds: bool| if holds { u32::MAX } else { 0 };
        for at in members() {
            let warp = &mut self.warps[at];
            if let State::Waiting(barrier) = warp.state {
                match barrier.kind {
                    BarrierKind::Popc { d, .. } => warp.registers.put(warp.live, d, [count; LANES]),
                    BarrierKind::All { d, .. } => {
                        warp.registers.set_predicate(warp.live, d, mask(all))
                    }
                    BarrierKind::Any { d, .. } => {
                        warp.registers.set_predicate(warp.live, d, mask(any))
                    }
                    BarrierKind::Sync | BarrierKind::Arrive => {}
                }
            }
            warp.state = State::Running;
        }
    }

    fn site(&self, pc: Pc) -> Site {
        let body = &self.shared.kernel.body;
        let origin = body.origins.get(pc as usize).copied().unwrap_or_default();
        let program = self.shared.launch.module.program();
        Site {
            ptx_line: origin.ptx,
            instruction: body.texts.get(pc).into(),
            source: program
                .file(origin.file)
                .map(|file| (file.to_string(), origin.source)),
        }
    }

    fn fault(&self, at: usize, trouble: Trouble) -> Box<Fault> {
        let warp = &self.warps[at];
        let lane = trouble.lane.unwrap_or_else(|| warp.live.trailing_zeros()) as usize % LANES;
        let unordered = (trouble.unordered).map(|other| self.other_side(other));
        let other = trouble.conflict.map(|conflict| {
            let what = match (conflict.object, conflict.pending, conflict.write) {
                (true, ..) => "the initialisation",
                (false, true, _) => self.context.copy_name(conflict.pc),
                (false, false, true) => "the write",
                (false, false, false) => "the read",
            };
            if conflict.agent {
                return format!("{what} at {}", self.site(conflict.pc));
            }
            let who = match conflict.lane {
                Some(lane) => {
                    let [x, y, z] = self.warps[conflict.warp].threads[lane as usize];
                    format!("thread ({x}, {y}, {z})")
                }
                None => format!("warp {}", conflict.warp),
            };
            format!("{what} by {who} at {}", self.site(conflict.pc))
        });
        Box::new(Fault {
            kind: trouble.kind,
            kernel: self.shared.kernel.name.clone(),
            thread: Some((self.places[warp.block], warp.threads[lane])),
            site: Some(self.site(warp.at).into()),
            message: trouble.message,
            others: other.or(unordered).into_iter().collect(),
        })
    }

    /// The words for the other access of a race on global memory.
    fn other_side(&self, other: Unordered) -> String {
        let what = if other.write { "write" } else { "read" };
        let (rank, number) = (other.warp / self.size, other.warp % self.size);
        let place = match other.unit {
            Some(unit) => self.shared.place(unit.into(), rank as u32),
            None => self.places[rank],
        };
        let [bx, by, bz] = place;
        let who = match other.lane {
            Some(lane) => {
                let [x, y, z] = self.shared.thread(number * LANES + lane as usize);
                format!("thread ({x}, {y}, {z})")
            }
            None => format!("warp {number}"),
        };
        let site = self.site(other.pc);
        if other.unit.is_some() || self.places.len() > 1 {
            format!("the {what} by block ({bx}, {by}, {bz}), {who} at {site}")
        } else {
            format!("the {what} by {who} at {site}")
        }
    }

    /// Every warp waits or has exited, and no barrier opened.
    fn deadlock(&self) -> Box<Fault> {
        let mut others = Vec::new();
        let mut exited = Vec::new();
        let mut first = None;
        for warp in &self.warps {
            match warp.state {
                State::Exited => exited.push(warp.index.to_string()),
                State::Waiting(_) | State::Running => {
                    first = first.or(Some(warp));
                    others.push(format!(
                        "warp {} waits at {}",
                        warp.index,
                        self.site(warp.at)
                    ));
                }
            }
        }
        let polls = (self.warps.iter()).any(|warp| matches!(warp.state, State::Running));
        let message = if polls {
            "no warp can go on: they wait for what none of them will do".to_string()
        } else if exited.is_empty() {
            "no warp can go on: they wait at different barriers, or for more threads than arrive"
                .to_string()
        } else {
            format!(
                "warps wait at a barrier that others left out: warps {} have exited",
                exited.join(", ")
            )
        };
        Box::new(Fault {
            kind: FaultKind::Deadlock,
            kernel: self.shared.kernel.name.clone(),
            thread: first.map(|warp| (self.places[warp.block], warp.threads[0])),
            site: first.map(|warp| self.site(warp.at).into()),
            message,
            others,
        })
    }
}
