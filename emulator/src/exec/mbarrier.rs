//! mbarriers: phases that end when all arrivals and all expected bytes have come.
//!
//! An mbarrier's state stands beside shared memory, not in it: its eight bytes belong to these instructions alone, and any
//! other access to them is a fault.

use super::access::refused;
use super::context::{Context, Done, Trouble, lanes};
use super::global::exhausted;
use super::memory::{self, addresses};
use super::registers::LANES;
use super::warp::{Stop, Warp};
use crate::fault::FaultKind;
use crate::ir::{Address, Mbarrier as Instruction, MbarrierOp, Space};
use crate::race::{Accessor, AgentLane, Seen};

/// The most arrivals, and the most bytes either way, that an mbarrier counts.
const MOST: u32 = (1 << 20) - 1;

/// The state of one mbarrier.
#[derive(Debug)]
pub(super) struct Mbarrier {
    /// Arrivals of each phase to come.
    expected: u32,
    /// Arrivals that this phase still lacks.
    pending: u32,
    /// Bytes that this phase still lacks; below 0 while they come before they are announced.
    bytes: i64,
    /// Phases that have ended.
    phase: u32,
    /// What tells its copies from those of others.
    pub(super) agent: AgentLane,
    /// A fence has shown its initialisation to the async proxy.
    pub(super) shown: bool,
    /// What the arrivals of this phase have released.
    gathered: Seen,
    /// What those of the last phase had.
    released: Seen,
}

impl Mbarrier {
    /// Ends the phase if nothing is lacking.
    fn settle(&mut self) -> bool {
        if self.pending != 0 || self.bytes != 0 {
            return false;
        }
        self.phase = self.phase.wrapping_add(1);
        self.pending = self.expected;
        self.released = std::mem::take(&mut self.gathered);
        true
    }

    /// The token of an arrival: the phase and the arrivals it lacked.
    fn token(&self) -> u64 {
        u64::from(self.phase) << 32 | u64::from(self.pending)
    }
}

/// `mbarrier.pending_count` of a token.
pub(super) fn pending_count(token: u64) -> u32 {
    token as u32 & MOST
}

fn trap<T>(lane: usize, message: String) -> Done<T> {
    Err(Trouble::new(FaultKind::Trap, lane as u32, message))
}

/// Where in the shared memory of its cluster each lane's mbarrier lies.
pub(super) fn places(
    warp: &Warp,
    context: &Context<'_>,
    at: &Address,
    active: u32,
) -> Done<[usize; LANES]> {
    let all = addresses(&warp.registers, at.slot, at.narrow, at.offset);
    let mut out = [0; LANES];
    for lane in lanes(active) {
        let address = match at.space {
            Space::Generic => memory::shared_address(all[lane], lane)?,
            _ => all[lane],
        };
        out[lane] = context.shared_offset((warp.at, lane as u32), address, 8, true)?;
    }
    Ok(out)
}

/// Where one lane's mbarrier lies; in block `rank` of the cluster at the same offset, if that is given.
pub(super) fn place(
    warp: &Warp,
    context: &Context<'_>,
    at: &Address,
    lane: usize,
    rank: Option<usize>,
) -> Done<usize> {
    let own = addresses(&warp.registers, at.slot, at.narrow, at.offset)[lane];
    let address = rank.map_or(own, |rank| context.address_in(rank, own));
    context.shared_offset((warp.at, lane as u32), address, 8, true)
}

pub(super) fn accessor(warp: &Warp, lane: usize) -> Accessor {
    Accessor {
        warp: warp.index,
        lane: lane as u32,
        pc: warp.at,
        collective: false,
        strong: false,
    }
}

/// The mbarrier at an offset, whose initialisation a lane must have seen.
fn find<'c>(
    warp: &Warp,
    context: &'c mut Context<'_>,
    at: usize,
    lane: usize,
) -> Done<&'c mut Mbarrier> {
    if !context.mbarriers.contains_key(&at) {
        let message = format!(
            "uses shared memory at offset {:#x} as an mbarrier that nobody initialised",
            context.offset_in_block(at)
        );
        return Err(Trouble::new(FaultKind::Uninitialised, lane as u32, message));
    }
    let by = accessor(warp, lane);
    if let Err(refusal) = context.detector.use_object(at, by)
        && !context.init_is_visible(at)
    {
        return Err(refused(context, by, at, 8, "uses the mbarrier in", refusal));
    }
    match context.mbarriers.get_mut(&at) {
        Some(barrier) => Ok(barrier),
        None => trap(lane, "the mbarrier is gone".into()),
    }
}

/// Adds bytes that are expected (or, below 0, that have come).
fn add_bytes(barrier: &mut Mbarrier, bytes: i64, lane: usize) -> Done {
    barrier.bytes += bytes;
    if barrier.bytes.unsigned_abs() > MOST.into() {
        return trap(
            lane,
            format!(
                "an mbarrier lacks {} bytes; it counts at most {MOST} either way",
                barrier.bytes
            ),
        );
    }
    Ok(())
}

/// Takes `count` arrivals off an mbarrier.
fn arrive(barrier: &mut Mbarrier, count: u32, drop: bool, no_complete: bool, lane: usize) -> Done {
    if count == 0 || count > barrier.pending {
        return trap(
            lane,
            format!(
                "arrives {count} times at an mbarrier whose phase lacks {} of {} arrivals",
                barrier.pending, barrier.expected
            ),
        );
    }
    if no_complete && count == barrier.pending && barrier.bytes == 0 {
        return trap(
            lane,
            "arrives with .noComplete, and would complete the phase".into(),
        );
    }
    barrier.pending -= count;
    if drop {
        barrier.expected -= count;
    }
    Ok(())
}

/// Runs an instruction on mbarriers; a wait that is not over gives the rest of the block its turn.
pub(super) fn run(
    warp: &mut Warp,
    context: &mut Context<'_>,
    instruction: &Instruction,
    active: u32,
) -> Done<Option<Stop>> {
    let at = places(warp, context, &instruction.at, active)?;
    for lane in lanes(active) {
        context.detector.note_object(at[lane], accessor(warp, lane));
    }
    let count_of = |warp: &Warp, slot| warp.registers.get::<u32>(slot);
    match instruction.op {
        MbarrierOp::Init { count } => {
            let counts = count_of(warp, count);
            for lane in lanes(active) {
                initialise(warp, context, at[lane], counts[lane], lane)?;
            }
        }
        MbarrierOp::Invalidate => {
            for lane in lanes(active) {
                find(warp, context, at[lane], lane)?;
                context.mbarriers.remove(&at[lane]);
                context.detector.remove_object(at[lane]);
            }
        }
        MbarrierOp::ExpectTx { bytes } | MbarrierOp::CompleteTx { bytes } => {
            let bytes = count_of(warp, bytes);
            let expects = matches!(instruction.op, MbarrierOp::ExpectTx { .. });
            for lane in lanes(active) {
                let more = i64::from(bytes[lane]);
                let barrier = find(warp, context, at[lane], lane)?;
                add_bytes(barrier, if expects { more } else { -more }, lane)?;
                let ended = barrier.settle();
                context.changes += u64::from(ended);
            }
        }
        MbarrierOp::Arrive {
            count,
            bytes,
            drop,
            no_complete,
            state,
        } => {
            let counts = count.map_or([1; LANES], |slot| count_of(warp, slot));
            let bytes = bytes.map(|slot| count_of(warp, slot));
            let mut tokens = [0; LANES];
            let mut rest = active;
            while rest != 0 {
                let place = at[rest.trailing_zeros() as usize];
                let same = lanes(rest)
                    .filter(|&lane| at[lane] == place)
                    .fold(0, |mask, lane| mask | 1 << lane);
                rest &= !same;
                for lane in lanes(same) {
                    find(warp, context, place, lane)?;
                }
                let mut seen = Seen::default();
                if instruction.orders {
                    context
                        .detector
                        .release(warp.index, same, warp.live, &mut seen);
                }
                for lane in lanes(same) {
                    let barrier = find(warp, context, place, lane)?;
                    barrier.gathered.join(&seen);
                    if let Some(bytes) = &bytes {
                        add_bytes(barrier, bytes[lane].into(), lane)?;
                    }
                    tokens[lane] = barrier.token();
                    arrive(barrier, counts[lane], drop, no_complete, lane)?;
                    let ended = barrier.settle();
                    context.changes += u64::from(ended);
                }
            }
            room(warp, context)?;
            if let Some(state) = state {
                warp.registers.put(active, state, tokens);
            }
        }
        MbarrierOp::TestState { d, state } => {
            let tokens = warp.registers.get::<u64>(state);
            let mut ended = 0;
            for lane in lanes(active) {
                let barrier = find(warp, context, at[lane], lane)?;
                let behind = barrier.phase.wrapping_sub((tokens[lane] >> 32) as u32);
                if behind > 1 {
                    return trap(
                        lane,
                        format!(
                            "waits for a state of an mbarrier that is {behind} phases behind: only the phase at hand and \
                             the one before can be waited for"
                        ),
                    );
                }
                ended |= behind << lane;
            }
            return Ok(tested(warp, context, instruction, &at, (d, active, ended)));
        }
        MbarrierOp::TestParity { d, parity } => {
            let parities = count_of(warp, parity);
            let mut ended = 0;
            for lane in lanes(active) {
                let barrier = find(warp, context, at[lane], lane)?;
                ended |= ((barrier.phase ^ parities[lane]) & 1) << lane;
            }
            return Ok(tested(warp, context, instruction, &at, (d, active, ended)));
        }
    }
    Ok(None)
}

fn initialise(warp: &Warp, context: &mut Context<'_>, at: usize, count: u32, lane: usize) -> Done {
    if !(1..=MOST).contains(&count) {
        return trap(
            lane,
            format!("initialises an mbarrier for {count} arrivals; it counts 1 to {MOST}"),
        );
    }
    let by = accessor(warp, lane);
    if let Err(refusal) = context.detector.place_object(at, by) {
        return Err(refused(
            context,
            by,
            at,
            8,
            "puts an mbarrier into",
            refusal,
        ));
    }
    context.init_fences.remove(&at);
    let block = context.block_at(at);
    let number = context.initialised[block];
    context.initialised[block] += 1;
    context.mbarriers.insert(
        at,
        Mbarrier {
            expected: count,
            pending: count,
            bytes: 0,
            phase: 0,
            agent: AgentLane::of_mbarrier(number),
            shown: false,
            gathered: Seen::default(),
            released: Seen::default(),
        },
    );
    Ok(())
}

/// Writes the result of a test; lanes whose phase has ended have seen what was released to it.
fn tested(
    warp: &mut Warp,
    context: &mut Context<'_>,
    instruction: &Instruction,
    at: &[usize; LANES],
    (d, active, ended): (crate::ir::Pred, u32, u32),
) -> Option<Stop> {
    warp.registers.set_predicate(active, d, ended);
    if instruction.orders {
        for lane in lanes(ended & active) {
            if let Some(barrier) = context.mbarriers.get(&at[lane]) {
                context.detector.acquire(warp.index, &barrier.released);
            }
        }
    }
    (active & !ended != 0).then_some(Stop::Polled)
}

/// Fails when the race detector cannot tell more periods apart.
fn room(warp: &Warp, context: &Context<'_>) -> Done {
    if context.detector.has_room(warp.index) {
        return Ok(());
    }
    Err(exhausted())
}

/// Announces one more arrival of the phase at hand: `cp.async.mbarrier.arrive` without `.noinc`.
pub(super) fn expect_one(warp: &Warp, context: &mut Context<'_>, at: usize, lane: usize) -> Done {
    let barrier = find(warp, context, at, lane)?;
    if barrier.pending == MOST {
        return trap(lane, format!("an mbarrier counts at most {MOST} arrivals"));
    }
    barrier.pending += 1;
    Ok(())
}

/// Checks that a lane may name the mbarrier at an offset.
pub(super) fn check(warp: &Warp, context: &mut Context<'_>, at: usize, lane: usize) -> Done {
    find(warp, context, at, lane).map(|_| ())
}

/// Checks that a lane may let the async proxy tell the mbarrier at an offset.
pub(super) fn check_shown(warp: &Warp, context: &mut Context<'_>, at: usize, lane: usize) -> Done {
    let forgiven = context.forgiven.unfenced_mbarriers;
    if find(warp, context, at, lane)?.shown || forgiven {
        return Ok(());
    }
    let message = format!(
        "names the mbarrier at offset {:#x}, whose initialisation the async proxy does not see: no fence.mbarrier_init or \
         fence.proxy.async came after it",
        context.offset_in_block(at)
    );
    Err(Trouble::new(FaultKind::Race, lane as u32, message))
}

/// The mbarrier that something under way ends at.
pub(super) fn told<'c>(
    context: &'c mut Context<'_>,
    at: usize,
    lane: usize,
) -> Done<&'c mut Mbarrier> {
    match context.mbarriers.get_mut(&at) {
        Some(barrier) => Ok(barrier),
        None => {
            let message = "an asynchronous copy ends at an mbarrier that was invalidated meanwhile";
            trap(lane, message.into())
        }
    }
}

/// The agent ends what an mbarrier waits for: `bytes` that have come, or an arrival.
pub(super) fn signal(
    context: &mut Context<'_>,
    at: usize,
    bytes: Option<u32>,
    lane: usize,
) -> Done {
    let agent = told(context, at, lane)?.agent;
    let mut ended = Seen::default();
    context.detector.release_agent(agent, &mut ended);
    let barrier = told(context, at, lane)?;
    barrier.gathered.join(&ended);
    match bytes {
        Some(bytes) => add_bytes(barrier, -i64::from(bytes), lane)?,
        None => arrive(barrier, 1, false, false, lane)?,
    }
    barrier.settle();
    context.changes += 1;
    Ok(())
}
