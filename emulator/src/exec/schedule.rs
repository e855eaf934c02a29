//! Who has its turn: the order of blocks, and what is left to chance.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;
use super::block::{Block, Outcome};
use crate::fault::Fault;
use crate::report::Report;

/// Warp instructions a warp runs before another has its turn.
const SLICE: u64 = 1 << 16;
/// The same in kernels whose blocks may wait for each other.
const SHORT_SLICE: u64 = 1 << 10;

/// How the lanes of a diverged warp take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// The lanes at the lowest instruction go first and join those they meet: what most hardware does.
    #[default]
    LowestPc,
    /// Groups go in random order from this seed and join only at .sync instructions: what a compiler may rely on, and no
    /// more. Warps and blocks take turns, and what is asynchronous ends, at random as well.
    Adversarial(u64),
}

impl FromStr for Schedule {
    type Err = String;

    /// `lowest` or `adversarial:SEED`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "lowest" => Ok(Schedule::LowestPc),
            Some(("adversarial", seed)) => match seed.parse() {
                Ok(seed) => Ok(Schedule::Adversarial(seed)),
                Err(_) => Err(format!("the seed `{seed}` is not a number")),
            },
            _ => Err(format!(
                "unknown schedule `{text}`; there are `lowest` and `adversarial:SEED`"
            )),
        }
    }
}

/// The order of what may end at any time: the last first, or as a seed has it.
#[derive(Debug, Default)]
pub(super) struct Random(Option<u64>);

impl Random {
    /// splitmix64 of the schedule's seed and a number, so that every user has an order of its own.
    pub(super) fn new(schedule: Schedule, number: u64) -> Self {
        Random(match schedule {
            Schedule::LowestPc => None,
            Schedule::Adversarial(seed) => {
                Some(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            }
        })
    }

    pub(super) fn next(&mut self) -> Option<u64> {
        let state = self.0.as_mut()?;
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ z >> 31)
    }

    /// Now, in one case of two; never without a seed.
    pub(super) fn toss(&mut self) -> bool {
        self.next().is_some_and(|random| random & 1 != 0)
    }

    /// One of `count`; the last without a seed.
    pub(super) fn pick(&mut self, count: usize) -> usize {
        match self.next() {
            Some(random) => (random % count.max(1) as u64) as usize,
            None => count.saturating_sub(1),
        }
    }
}

/// The order in which the blocks of a grid begin: by their numbers, or in steps that a seed has chosen.
#[derive(Debug)]
pub(super) struct Turns {
    pub blocks: u64,
    first: u64,
    step: u64,
    taken: AtomicU64,
}

impl Turns {
    pub(super) fn new(blocks: u64, schedule: Schedule) -> Self {
        let mut random = Random::new(schedule, u64::MAX - 1);
        let (mut first, mut step) = (0, 1);
        if let (Some(a), Some(b)) = (random.next(), random.next()) {
            first = a % blocks.max(1);
            step = 1 + b % blocks.max(1);
            // all blocks are met if the step has no divisor in common with their number
            while divisor(step, blocks) > 1 {
                step += 1;
            }
        }
        Turns {
            blocks,
            first,
            step,
            taken: AtomicU64::new(0),
        }
    }

    /// The number of the next block; `None` when all have begun.
    fn next(&self) -> Option<u64> {
        let turn = self.taken.fetch_add(1, Ordering::Relaxed);
        let at = u128::from(self.first) + u128::from(turn) * u128::from(self.step);
        (turn < self.blocks).then(|| (at % u128::from(self.blocks)) as u64)
    }
}

/// The greatest common divisor.
fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

impl<'l> Shared<'l> {
    /// Takes blocks until none is left; the counters, and the fault with its block's number.
    pub(super) fn worker(&'l self, workers: u64) -> (Report, Option<(u64, Fault)>) {
        // blocks of a cooperative launch wait for each other: a worker turns over all of its blocks
        let mut resident = if self.launch.cooperative {
            self.turns.blocks.div_ceil(workers)
        } else {
            1
        };
        let slice = if self.kernel.body.synchronises {
            SHORT_SLICE
        } else {
            SLICE
        };
        let most = u64::from(self.device.multiprocessors).div_ceil(workers);
        let mut running: Vec<Block<'_>> = Vec::new();
        let mut spare: Vec<Block<'_>> = Vec::new();
        let mut report = Report::default();
        loop {
            while (running.len() as u64) < resident {
                let Some(index) = self.turns.next() else {
                    break;
                };
                let mut block = spare.pop().unwrap_or_else(|| Block::new(self));
                block.start(index);
                running.push(block);
            }
            if running.is_empty() {
                break;
            }
            let mut at = 0;
            let mut waiting = true;
            while at < running.len() {
                if self.stop.load(Ordering::Relaxed) {
                    return (report, None);
                }
                let polls = running[at].polls();
                match running[at].run(slice) {
                    Ok(Outcome::Done) => {
                        waiting = false;
                        spare.push(running.swap_remove(at));
                    }
                    Ok(Outcome::Yielded) => {
                        waiting &= running[at].polls() != polls;
                        at += 1;
                    }
                    Err(fault) => {
                        self.stop.store(true, Ordering::Relaxed);
                        let index = running[at].index();
                        for block in running.into_iter().chain(spare) {
                            report.add(&block.into_report());
                        }
                        return (report, Some((index, *fault)));
                    }
                }
            }
            // they may wait for a block that has not begun
            if waiting && resident < most {
                resident += 1;
            }
        }
        for block in spare {
            report.add(&block.into_report());
        }
        (report, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_its_turn() {
        let order = |blocks: u64, schedule: Schedule| -> Vec<u64> {
            let turns = Turns::new(blocks, schedule);
            std::iter::from_fn(|| turns.next()).collect()
        };
        assert_eq!(order(3, Schedule::LowestPc), [0, 1, 2]);
        let mut orders = Vec::new();
        for seed in 0..20 {
            for blocks in [1, 2, 7, 30, 128] {
                let order = order(blocks, Schedule::Adversarial(seed));
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, Vec::from_iter(0..blocks), "seed {seed}");
                orders.push(order);
            }
        }
        orders.sort_unstable();
        orders.dedup();
        assert!(orders.len() > 50, "only {} orders", orders.len());
    }
}
