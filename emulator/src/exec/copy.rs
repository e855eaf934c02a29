//! cp.async: copies that end as late as the program allows, at its wait.

use super::access::refused;
use super::context::{Context, Done, Trouble, count_global, count_shared, lanes};
use super::global::{self, By, Effect, Reach};
use super::memory::addresses;
use super::registers::LANES;
use super::together::Pattern;
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ir::{AsyncCopy, Order};
use crate::race::{Accessor, AgentLane};

/// Where the copies of all lanes go in `shared`, and what.
#[derive(Debug)]
struct Places {
    at: [u32; LANES],
    /// The source bytes, with zeros behind a short source.
    bytes: [[u8; 16]; LANES],
}

/// One instruction's copies that nobody has waited for.
#[derive(Debug)]
struct Pending {
    /// Lanes whose copy is still under way.
    lanes: u32,
    /// The commit group of each lane.
    groups: [u32; LANES],
    to: Places,
    size: u8,
    pc: u32,
    /// Its number among the copies of the warp.
    number: u64,
}

impl Pending {
    /// The bytes of one lane reach shared memory; their place and number.
    #[inline]
    fn arrive(&self, lane: usize, context: &mut Context<'_>) -> (usize, usize) {
        let (to, size) = (self.to.at[lane] as usize, usize::from(self.size));
        let bytes = &self.to.bytes[lane];
        if size == bytes.len() {
            context.shared[to..to + bytes.len()].copy_from_slice(bytes);
        } else {
            context.shared[to..to + size].copy_from_slice(&bytes[..size]);
        }
        (to, size)
    }
}

/// The copies of a warp that are under way.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Groups that each lane has committed.
    committed: [u32; LANES],
    pending: Vec<Pending>,
    issued: u64,
    /// An mbarrier was told of copies before their thread waited for them.
    told: bool,
}

impl Copies {
    pub(super) fn commit(&mut self, active: u32) {
        for lane in lanes(active) {
            self.committed[lane] += 1;
        }
    }

    /// The number of the last copy.
    pub(super) fn issued(&self) -> u64 {
        self.issued
    }
}

/// `cp.async.{ca,cg}`
pub(super) fn issue(
    warp: &mut Warp,
    context: &mut Context<'_>,
    copy: &AsyncCopy,
    active: u32,
) -> Done {
    let r = &warp.registers;
    let to = addresses(r, copy.to, copy.to_narrow, copy.to_offset);
    let from = addresses(r, copy.from, false, copy.from_offset);
    let size = usize::from(copy.bytes);
    let lengths = copy.source_bytes.map(|slot| r.get::<u32>(slot));
    let ignored = copy.ignore.map_or(0, |p| r.predicate(p));
    // lanes that read all of their bytes, and whether the others read none
    let (mut reading, mut plain) = (active & !ignored, true);
    if let Some(lengths) = &lengths {
        for lane in lanes(active) {
            if lengths[lane] as usize != size {
                reading &= !(1 << lane);
                plain &= lengths[lane] == 0;
            }
        }
    }
    let pattern = Pattern::of(&from, reading, size);
    let mut to_place = Places {
        at: [0; LANES],
        bytes: [[0; 16]; LANES],
    };
    let from_lanes = (&from, reading, pattern);
    let together = plain
        && match size {
            4 => to_place.fill::<4>(warp, context, &to, active, from_lanes),
            8 => to_place.fill::<8>(warp, context, &to, active, from_lanes),
            _ => to_place.fill::<16>(warp, context, &to, active, from_lanes),
        };
    if !together {
        reading = 0;
        for lane in lanes(active) {
            let mut length = lengths.map_or(size as u32, |lengths| lengths[lane]) as usize;
            if length > size {
                let message = format!("copies {length} source bytes into {size}");
                return Err(Trouble::new(FaultKind::Trap, lane as u32, message));
            }
            if ignored >> lane & 1 != 0 {
                length = 0;
            }
            to_place.bytes[lane] = [0; 16];
            if length > 0 {
                reading |= 1 << lane;
                if !from[lane].is_multiple_of(size as u64) {
                    let message = format!(
                        "copies {size} bytes from {:#x}, which is not a multiple of {size}",
                        from[lane]
                    );
                    return Err(Trouble::new(FaultKind::Misaligned, lane as u32, message));
                }
                let out = &mut to_place.bytes[lane][..length];
                load_prefix(context, lane as u32, from[lane], out)?;
            }
            let by = accessor(warp, lane as u32, warp.at);
            let at = context.shared_offset((by.pc, by.lane), to[lane], size, true)?;
            if let Err(refusal) = context.detector.issue(at, size, by) {
                return Err(refused(context, by, at, size, "copies into", refusal));
            }
            to_place.at[lane] = at as u32;
        }
    }
    let by = By::at(warp);
    match lengths {
        Some(lengths) => {
            for lane in lanes(reading) {
                let range = (from[lane], lengths[lane] as usize);
                global::judge_range(context, by, lane, range, Effect::Read)?;
            }
        }
        None => {
            let reach = Reach {
                at: &from,
                mask: reading,
                bytes: size,
                effect: Effect::Read,
                order: Order::WEAK,
            };
            global::judge(context, by, reach)?;
        }
    }
    if reading != 0 {
        let traffic = &mut context.report.global_loads;
        let pattern = Pattern::of(&from, reading, size);
        count_global(traffic, &from, reading, size as u64, pattern);
    }
    let traffic = &mut context.report.shared_stores;
    let pattern = Pattern::of(&to, active, size);
    count_shared(traffic, &to, active, size as u64, pattern);
    warp.copies.issued += 1;
    warp.copies.pending.push(Pending {
        lanes: active,
        groups: warp.copies.committed,
        to: to_place,
        size: copy.bytes,
        pc: warp.at,
        number: warp.copies.issued,
    });
    Ok(())
}

fn accessor(warp: &Warp, lane: u32, pc: u32) -> Accessor {
    Accessor {
        warp: warp.index,
        lane,
        pc,
        collective: false,
        strong: false,
    }
}

impl Places {
    /// The copies of all lanes, if they are plainly in order: whole or of nothing, and each into the memory of its block.
    fn fill<const N: usize>(
        &mut self,
        warp: &Warp,
        context: &mut Context<'_>,
        to: &[u64; LANES],
        active: u32,
        (from, reading, pattern): (&[u64; LANES], u32, Pattern),
    ) -> bool {
        let mut bytes = [[0; N]; LANES];
        if reading != 0 && !context.load_global_lanes(from, reading, pattern, &mut bytes) {
            return false;
        }
        let Some(places) = context.shared_places::<N>(to, active) else {
            return false;
        };
        let by = accessor(warp, 0, warp.at);
        let detector = &mut context.detector;
        if !detector.write_lanes(&places, N, active, by, true) {
            return false;
        }
        self.at = places;
        for (out, bytes) in self.bytes.iter_mut().zip(&bytes) {
            out[..N].copy_from_slice(bytes);
        }
        true
    }
}

/// Reads a source shorter than the copy, whose length need not be a power of two.
fn load_prefix(context: &mut Context<'_>, lane: u32, from: u64, out: &mut [u8]) -> Done {
    match out.len() {
        4 | 8 | 16 => context.load_global(lane, from, out),
        _ => out.iter_mut().enumerate().try_for_each(|(at, byte)| {
            context.load_global(lane, from + at as u64, std::slice::from_mut(byte))
        }),
    }
}

/// `cp.async.wait_group`: what each lane waits for arrives; `allowed` groups may stay under way.
pub(super) fn wait(warp: &mut Warp, context: &mut Context<'_>, allowed: u32, active: u32) {
    let index = warp.index;
    let Copies {
        committed,
        pending,
        told,
        ..
    } = &mut warp.copies;
    if *told {
        context.detector.acquire_agent(index, None);
    }
    pending.retain_mut(|copy| {
        for lane in lanes(copy.lanes & active) {
            // a copy that was not committed belongs to the group to come: no wait_group reaches it
            if u64::from(copy.groups[lane]) + u64::from(allowed) >= u64::from(committed[lane]) {
                continue;
            }
            let (to, size) = copy.arrive(lane, context);
            let by = Accessor {
                warp: index,
                lane: lane as u32,
                pc: copy.pc,
                collective: false,
                strong: false,
            };
            context.detector.complete(to, size, by);
            copy.lanes &= !(1 << lane);
        }
        copy.lanes != 0
    });
}

/// The copies of one lane up to number `until` arrive, for an mbarrier to tell of.
pub(super) fn finish(
    warp: &mut Warp,
    context: &mut Context<'_>,
    lane: usize,
    until: u64,
    agent: AgentLane,
) {
    let Copies { pending, told, .. } = &mut warp.copies;
    *told = true;
    pending.retain_mut(|copy| {
        if copy.number > until || copy.lanes >> lane & 1 == 0 {
            return true;
        }
        let (to, size) = copy.arrive(lane, context);
        context.detector.complete_copy(to, size, copy.pc, agent);
        copy.lanes &= !(1 << lane);
        copy.lanes != 0
    });
}
