//! What accesses of global memory mean to other threads: each is judged against the others of the launch, and strong ones
//! order their threads.

use std::sync::{MutexGuard, PoisonError};

use super::context::{Context, Done, Trouble, lanes};
use super::registers::LANES;
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ir::{Order, Pc, Space};
use crate::race::{Flags, LINE, Lanes, Lines, Touch, Unordered};

/// What an access does to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
    /// `atom`
    Update,
    /// `red`
    Reduce,
}

impl Effect {
    fn reads(self) -> bool {
        matches!(self, Effect::Read | Effect::Update)
    }

    fn writes(self) -> bool {
        self != Effect::Read
    }
}

/// One instruction's access by some lanes of a warp.
#[derive(Clone, Copy)]
pub(super) struct Reach<'a> {
    pub at: &'a [u64; LANES],
    pub mask: u32,
    /// Of one lane.
    pub bytes: usize,
    pub effect: Effect,
    pub order: Order,
}

/// Who makes an access: a warp by its number, at an instruction.
#[derive(Clone, Copy)]
pub(super) struct By {
    pub warp: usize,
    pub pc: Pc,
}

impl By {
    pub(super) fn at(warp: &Warp) -> By {
        By {
            warp: warp.index,
            pc: warp.at,
        }
    }
}

/// Bytes of one line that belong together, and where they begin.
struct Run {
    start: u64,
    mask: u128,
    lanes: Lanes,
    /// Lanes taken.
    count: u32,
}

impl Reach<'_> {
    /// The next lanes from `first` on that access neighbouring bytes of a line, or that all access the same.
    #[inline]
    fn run(&self, first: u32) -> Run {
        let start = self.at[first as usize];
        let bytes = self.bytes as u64;
        let within = start % LINE;
        let end = (start - within).saturating_add(LINE);
        let whole = |length: u64| (u128::MAX >> (LINE - length)) << within;
        let next = |count: u32| {
            let lane = first + count;
            (lane < 32 && self.mask >> lane & 1 != 0).then(|| self.at[lane as usize])
        };
        let mut count = 1;
        if next(1) == Some(start) && (self.effect != Effect::Write || self.order.is_strong()) {
            while next(count) == Some(start) {
                count += 1;
            }
            return Run {
                start,
                mask: whole(bytes),
                lanes: Lanes::Several((u32::MAX >> (32 - count)) << first),
                count,
            };
        }
        let shift = bytes.trailing_zeros();
        if !bytes.is_power_of_two() {
            return Run {
                start,
                mask: whole(bytes),
                lanes: Lanes::one(first),
                count,
            };
        }
        let mut after = start + bytes;
        while after < end && next(count) == Some(after) {
            after += bytes;
            count += 1;
        }
        let lanes = if count == 1 {
            Lanes::one(first)
        } else {
            Lanes::Striped {
                first: first as i8 - (within >> shift) as i8,
                shift: shift as u8,
            }
        };
        Run {
            start,
            mask: whole(after - start),
            lanes,
            count,
        }
    }
}

/// Judges and notes an access that has been found to lie inside its allocation.
pub(super) fn judge(context: &mut Context<'_>, by: By, reach: Reach<'_>) -> Done {
    let mut held: Option<(u64, Lines<'_>)> = None;
    let mut rest = if context.judges { reach.mask } else { 0 };
    while rest != 0 {
        let first = rest.trailing_zeros();
        let run = reach.run(first);
        rest &= !((u32::MAX >> (32 - run.count)) << first);
        let Some(allocation) = context.holder(run.start) else {
            continue;
        };
        let offset = run.start - allocation.base;
        held = held.filter(|(base, lines)| *base == allocation.base && lines.contain(offset));
        // the last lines are let go before others are taken: two threads must not wait for each other's
        let (_, lines) = held.get_or_insert_with(|| {
            let lines = allocation.shadow.lines(offset, allocation.bytes);
            (allocation.base, lines)
        });
        let touch = Touch {
            warp: by.warp,
            pc: by.pc,
            mask: run.mask,
            lanes: run.lanes,
            write: reach.effect.writes(),
            scope: reach.order.scope,
        };
        if let Err(other) = context.detector.touch(lines.line(offset), touch) {
            let line = run.start - run.start % LINE;
            return Err(race(by, &reach, line, first, other));
        }
    }
    Ok(())
}

/// Judges a range of any length that one lane accesses.
pub(super) fn judge_range(
    context: &mut Context<'_>,
    by: By,
    lane: usize,
    (address, bytes): (u64, usize),
    effect: Effect,
) -> Done {
    let order = match effect {
        Effect::Read | Effect::Write => Order::WEAK,
        // relaxed, of the device's scope
        Effect::Update | Effect::Reduce => Order::RELAXED,
    };
    let end = address + bytes as u64;
    let mut start = address;
    while start < end {
        let next = (start - start % LINE + LINE).min(end);
        let mut at = [0; LANES];
        at[lane] = start;
        let reach = Reach {
            at: &at,
            mask: 1 << lane,
            bytes: (next - start) as usize,
            effect,
            order,
        };
        judge(context, by, reach)?;
        start = next;
    }
    Ok(())
}

/// The words for a race.
#[cold]
fn race(by: By, reach: &Reach<'_>, line: u64, first: u32, other: Unordered) -> Box<Trouble> {
    let byte = line + u64::from(other.overlap.trailing_zeros());
    let covers = |lane: &u32| {
        let start = reach.at[*lane as usize];
        reach.mask >> lane & 1 != 0 && start <= byte && byte - start < reach.bytes as u64
    };
    let lane = (first..32).find(covers).unwrap_or(first);
    let address = reach.at[lane as usize];
    let verb = match reach.effect {
        Effect::Read => "reads",
        Effect::Write => "writes",
        Effect::Update | Effect::Reduce => "updates",
    };
    let did = if other.write { "wrote" } else { "read" };
    let what = format!(
        "{verb} {} bytes of global memory at {address:#x}",
        reach.bytes
    );
    let message = match other.unit {
        _ if other.narrow => format!(
            "{what} that a thread outside its scope {did}: the scope of one of the two is too narrow"
        ),
        Some(_) => format!(
            "{what} that another block {did}, and nothing orders the two: no release of one that the other acquires"
        ),
        None if other.warp == by.warp => {
            format!("{what} that another thread {did}, with no bar.warp.sync in between")
        }
        None => format!("{what} that another thread {did}, with no barrier in between"),
    };
    let mut trouble = Trouble::new(FaultKind::Race, lane, message);
    trouble.unordered = Some(other);
    trouble
}

/// Strong accesses of a launch take turns where threads order themselves by them: what is found beside the bytes is then
/// what was left there with their value.
pub(super) enum Turn<'l> {
    Global(MutexGuard<'l, Flags>),
    Shared(Flags),
}

/// Begins a strong access of a kernel that synchronises by them; `None` for others.
#[inline]
pub(super) fn turn<'l>(context: &mut Context<'l>, space: Space, order: Order) -> Option<Turn<'l>> {
    if !order.is_strong() || !context.body.synchronises {
        return None;
    }
    match space {
        Space::Shared => context.detector.lend_flags().map(Turn::Shared),
        Space::Global | Space::Generic => {
            let flags = context.flags.lock().unwrap_or_else(PoisonError::into_inner);
            Some(Turn::Global(flags))
        }
        Space::Local | Space::Param => None,
    }
}

/// Judges a load or store that has found its bytes, and orders what it orders.
#[inline]
pub(super) fn access(
    warp: &Warp,
    context: &mut Context<'_>,
    turn: Option<Turn<'_>>,
    space: Space,
    reach: Reach<'_>,
) -> Done {
    if matches!(space, Space::Global | Space::Generic) {
        judge(context, By::at(warp), reach)?;
    }
    match turn {
        Some(turn) => order(warp, context, turn, reach),
        None => Ok(()),
    }
}

/// What a strong access orders: its read half, then its write half.
fn order(warp: &Warp, context: &mut Context<'_>, mut turn: Turn<'_>, reach: Reach<'_>) -> Done {
    let keys = match turn {
        Turn::Global(_) => *reach.at,
        // a byte of shared memory has several addresses in a cluster
        Turn::Shared(_) => std::array::from_fn(|lane| {
            let place =
                context.shared_place((warp.at, lane as u32), reach.at[lane], reach.bytes, false);
            place.map_or(u64::MAX, |place| place as u64)
        }),
    };
    let global = matches!(turn, Turn::Global(_));
    let flags = match &mut turn {
        Turn::Global(flags) => &mut **flags,
        Turn::Shared(flags) => flags,
    };
    let detector = &mut context.detector;
    if reach.effect.reads() {
        context.polls += u64::from(global);
        let addresses = lanes(reach.mask).map(|lane| keys[lane]);
        detector.strong_read(flags, addresses, warp.index, reach.order);
    }
    let mut room = true;
    if reach.effect.writes() {
        let by = (warp.index, reach.mask, warp.live);
        let keeps = reach.effect != Effect::Write;
        room = detector.strong_write(flags, &keys, by, reach.order, keeps);
    }
    if let Turn::Shared(flags) = turn {
        detector.return_flags(flags);
    }
    if room { Ok(()) } else { Err(exhausted()) }
}

/// The race detector cannot tell more periods apart.
#[cold]
pub(super) fn exhausted() -> Box<Trouble> {
    let message = "more synchronisations than the race detector can tell apart in one block";
    Trouble::new(FaultKind::Divergence, None, message)
}
