//! A block: its warps in turn, its barriers, and the words for what goes wrong.

use super::Shared;
use super::context::{Context, Trouble};
use super::interpret;
use super::registers::LANES;
use super::warp::{State, Stop, Warp};
use crate::fault::{Fault, FaultKind, Site};
use crate::ir::{BarrierKind, Pc};
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

/// A block and the host memory it runs in.
pub(super) struct Block<'l> {
    shared: &'l Shared<'l>,
    context: Context<'l>,
    warps: Vec<Warp>,
    gates: [Gate; BARRIERS],
    linear: u64,
    place: [u32; 3],
}

impl<'l> Block<'l> {
    pub(super) fn new(shared: &'l Shared<'l>) -> Self {
        let warps = (shared.launch.block.iter().product::<u32>() as usize).div_ceil(LANES);
        let bytes = shared.kernel.shared_bytes(shared.launch.dynamic_shared) as usize;
        Block {
            shared,
            context: Context::new(
                &shared.kernel.body,
                shared.allocations,
                shared.launch.params,
                bytes,
                warps,
            ),
            warps: (0..warps).map(|index| Warp::new(shared, index)).collect(),
            gates: [Gate::default(); BARRIERS],
            linear: 0,
            place: [0; 3],
        }
    }

    /// Begins block number `linear` of the grid.
    pub(super) fn start(&mut self, linear: u64) {
        let [gx, gy, _] = self.shared.launch.grid.map(u64::from);
        self.linear = linear;
        self.place = [
            (linear % gx) as u32,
            (linear / gx % gy) as u32,
            (linear / gx / gy) as u32,
        ];
        self.gates = [Gate::default(); BARRIERS];
        self.context.detector.reset();
        self.context.clock = 0;
        for warp in &mut self.warps {
            warp.start(self.shared, self.place, linear);
        }
    }

    pub(super) fn index(&self) -> u64 {
        self.linear
    }

    /// The counters of all blocks that ran here.
    pub(super) fn into_report(self) -> Report {
        let mut report = self.context.report;
        for (&count, &class) in self.context.issued.iter().zip(&self.context.body.classes) {
            report.instructions[class as usize] += count;
        }
        report
    }

    /// Gives every warp that can run a turn of `slice` instructions.
    pub(super) fn run(&mut self, slice: u64) -> Result<Outcome, Box<Fault>> {
        loop {
            let mut progress = false;
            let mut sliced = false;
            for at in 0..self.warps.len() {
                if !matches!(self.warps[at].state, State::Running) {
                    continue;
                }
                progress = true;
                let before = self.context.clock;
                let stop = interpret::run(
                    &mut self.warps[at],
                    &mut self.context,
                    self.shared.options.schedule,
                    slice,
                );
                let spent = self.context.clock - before;
                let total = self.shared.spent.fetch_add(spent, Ordering::Relaxed) + spent;
                match stop {
                    Err(trouble) => return Err(self.fault(at, *trouble)),
                    Ok(Stop::Exited) => self.warps[at].state = State::Exited,
                    Ok(Stop::Slice) => {
                        sliced = true;
                        if total > self.shared.options.max_instructions {
                            let limit = self.shared.options.max_instructions;
                            let message = format!(
                                "the launch ran for more than {limit} warp instructions: it hangs, or the limit is too low"
                            );
                            let trouble = Trouble::new(FaultKind::Timeout, None, message);
                            return Err(self.fault(at, *trouble));
                        }
                    }
                    Ok(Stop::Barrier(barrier)) => {
                        self.warps[at].state = State::Waiting(barrier);
                        if let Err(trouble) = self.arrive(at) {
                            return Err(self.fault(at, *trouble));
                        }
                    }
                }
            }
            if self
                .warps
                .iter()
                .all(|warp| matches!(warp.state, State::Exited))
            {
                return Ok(Outcome::Done);
            }
            if !progress {
                return Err(self.deadlock());
            }
            if sliced {
                return Ok(Outcome::Yielded);
            }
        }
    }

    /// Warp `at` reaches its barrier; opens it if it was the last.
    fn arrive(&mut self, at: usize) -> Result<(), Box<Trouble>> {
        let State::Waiting(barrier) = self.warps[at].state else {
            return Ok(());
        };
        let threads = (self.warps.len() * LANES) as u32;
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
        let gate = &mut self.gates[id];
        let bit = 1u32 << at;
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
            let gate = std::mem::take(&mut self.gates[id]);
            self.open(gate);
            if !self.context.detector.barrier(gate.arrived, gate.waiting) {
                return refuse(
                    "more barriers than the race detector can tell apart in one block".into(),
                );
            }
        }
        Ok(())
    }

    /// Lets the warps of a barrier go on, with the result of its reduction.
    fn open(&mut self, gate: Gate) {
        let members = || (0..LANES).filter(|warp| gate.waiting >> warp & 1 != 0);
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
            instruction: body
                .texts
                .get(pc as usize)
                .map(ToString::to_string)
                .unwrap_or_default(),
            source: program
                .file(origin.file)
                .map(|file| (file.to_string(), origin.source)),
        }
    }

    fn fault(&self, at: usize, trouble: Trouble) -> Box<Fault> {
        let warp = &self.warps[at];
        let lane = trouble.lane.unwrap_or_else(|| warp.live.trailing_zeros()) as usize % LANES;
        let other = trouble.conflict.map(|conflict| {
            let what = match (conflict.pending, conflict.write) {
                (true, _) => "the cp.async",
                (false, true) => "the write",
                (false, false) => "the read",
            };
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
            thread: Some((self.place, warp.threads[lane])),
            site: Some(self.site(warp.at).into()),
            message: trouble.message,
            others: other.into_iter().collect(),
        })
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
        let message = if exited.is_empty() {
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
            thread: first.map(|warp| (self.place, warp.threads[0])),
            site: first.map(|warp| self.site(warp.at).into()),
            message,
            others,
        })
    }
}
