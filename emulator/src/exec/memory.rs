//! Loads and stores of every space, packing, and address spaces.

use super::context::{
    Context, Done, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, Trouble, count_global, count_shared,
    lanes, resolve,
};
use super::global::{self, Effect};
use super::registers::{LANES, Registers};
use super::together::Pattern;
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ir::{Access, Pred, Slot, Space};
use crate::race::Accessor;

/// The most bytes of one lane's access: eight registers of eight bytes.
const MOST: usize = 64;

/// The addresses that all lanes hold.
#[inline(always)]
pub(super) fn addresses(r: &Registers, slot: Slot, narrow: bool, offset: i64) -> [u64; LANES] {
    let mut out = [0; LANES];
    if narrow {
        let addresses = r.row(slot);
        for lane in 0..LANES {
            out[lane] = addresses[lane].wrapping_add_signed(offset as i32).into();
        }
    } else {
        let addresses = r.get::<u64>(slot);
        for lane in 0..LANES {
            out[lane] = addresses[lane].wrapping_add_signed(offset);
        }
    }
    out
}

/// Runs an access for each group of lanes that address one space: generic addresses are resolved lane by lane.
fn each_space(
    access: &Access,
    mut addresses: [u64; LANES],
    active: u32,
    mut then: impl FnMut(Space, &[u64; LANES], u32) -> Done,
) -> Done {
    if access.space != Space::Generic {
        return then(access.space, &addresses, active);
    }
    let mut spaces = [Space::Global; LANES];
    for lane in lanes(active) {
        (spaces[lane], addresses[lane]) = resolve(addresses[lane]);
    }
    let mut rest = active;
    while rest != 0 {
        let space = spaces[rest.trailing_zeros() as usize];
        let same = lanes(rest)
            .filter(|&lane| spaces[lane] == space)
            .fold(0, |mask, lane| mask | 1 << lane);
        then(space, &addresses, same)?;
        rest &= !same;
    }
    Ok(())
}

/// The shared address that a generic one means.
pub(super) fn shared_address(address: u64, lane: usize) -> Done<u64> {
    match resolve(address) {
        (Space::Shared, offset) => Ok(offset),
        _ => {
            let message = format!("names shared memory by {address:#x}, which lies elsewhere");
            Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, message))
        }
    }
}

pub(super) fn accessor(warp: &Warp, lane: usize, strong: bool) -> Accessor {
    Accessor {
        warp: warp.index,
        lane: lane as u32,
        pc: warp.at,
        collective: false,
        strong,
    }
}

/// `ld`
pub(super) fn load(
    warp: &mut Warp,
    context: &mut Context<'_>,
    access: &Access,
    active: u32,
) -> Done {
    let all = addresses(
        &warp.registers,
        access.address,
        access.narrow,
        access.offset,
    );
    let bytes = usize::from(access.bytes) * access.elements.len();
    each_space(access, all, active, |space, at, mask| {
        let to = (access, space, at, mask);
        let turn = global::turn(context, space, access.order);
        match bytes {
            1 => load_lanes::<1>(warp, context, to),
            2 => load_lanes::<2>(warp, context, to),
            4 => load_lanes::<4>(warp, context, to),
            8 => load_lanes::<8>(warp, context, to),
            16 => load_lanes::<16>(warp, context, to),
            _ => load_lanes::<MOST>(warp, context, to),
        }?;
        let reach = global::Reach {
            at,
            mask,
            bytes,
            effect: Effect::Read,
            order: access.order,
        };
        global::access(warp, context, turn, space, reach)
    })
}

/// An access, its space, and where lanes of a mask access it.
type Reach<'a> = (&'a Access, Space, &'a [u64; LANES], u32);

/// Loads at most `N` bytes a lane.
fn load_lanes<const N: usize>(
    warp: &mut Warp,
    context: &mut Context<'_>,
    (access, space, at, mask): Reach<'_>,
) -> Done {
    let bytes = usize::from(access.bytes) * access.elements.len();
    let pattern = Pattern::of(at, mask, bytes);
    let mut buffer = [[0; N]; LANES];
    let together = match space {
        Space::Global => {
            let traffic = &mut context.report.global_loads;
            count_global(traffic, at, mask, bytes as u64, pattern);
            bytes <= 16 && context.load_global_lanes(at, mask, pattern, &mut buffer)
        }
        Space::Shared => {
            let traffic = &mut context.report.shared_loads;
            count_shared(traffic, at, mask, bytes as u64, pattern);
            let by = accessor(warp, 0, access.order.is_strong());
            bytes <= 16 && context.load_shared_lanes(by, at, mask, pattern, &mut buffer)
        }
        _ => false,
    };
    if space == Space::Param && pattern == Pattern::Same {
        // all threads have the same parameters
        load_lane(
            warp,
            context,
            access,
            space,
            (0, at[0]),
            &mut buffer[0][..bytes],
        )?;
        buffer = [buffer[0]; LANES];
    } else if !together {
        for lane in lanes(mask) {
            let out = &mut buffer[lane][..bytes];
            load_lane(warp, context, access, space, (lane, at[lane]), out)?;
        }
    }
    let size = usize::from(access.bytes);
    for (start, slot) in (0..).step_by(size).zip(&access.elements) {
        let Some(slot) = *slot else { continue };
        if size == 4 && !access.wide {
            let value = |lane: usize| {
                let mut word = [0; 4];
                word.copy_from_slice(&buffer[lane][start..start + 4]);
                u32::from_le_bytes(word)
            };
            let values: [u32; LANES] = std::array::from_fn(value);
            warp.registers.put(mask, slot, values);
            continue;
        }
        let value = |lane: usize| {
            let mut word = [0; 8];
            word[..size].copy_from_slice(&buffer[lane][start..start + size]);
            let value = u64::from_le_bytes(word);
            let unused = 64 - 8 * size as u32;
            if access.signed {
                ((value << unused) as i64 >> unused) as u64
            } else {
                value
            }
        };
        let values: [u64; LANES] = std::array::from_fn(value);
        if access.wide {
            warp.registers.put(mask, slot, values);
        } else {
            warp.registers
                .put(mask, slot, values.map(|value| value as u32));
        }
    }
    Ok(())
}

/// Loads the bytes of one lane.
fn load_lane(
    warp: &Warp,
    context: &mut Context<'_>,
    access: &Access,
    space: Space,
    (lane, at): (usize, u64),
    out: &mut [u8],
) -> Done {
    match space {
        Space::Global | Space::Generic => context.load_global(lane as u32, at, out),
        Space::Shared => {
            context.load_shared(accessor(warp, lane, access.order.is_strong()), at, out)
        }
        Space::Local => read_local(warp, lane, at, out),
        Space::Param => {
            let bytes = out.len();
            let start = usize::try_from(at).unwrap_or(usize::MAX);
            let Some(source) = start
                .checked_add(bytes)
                .and_then(|end| context.params.get(start..end))
            else {
                let message = format!(
                    "reads {bytes} bytes of parameters at offset {start}; there are {}",
                    context.params.len()
                );
                return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, message));
            };
            if start % bytes != 0 {
                let message = format!(
                    "reads {bytes} bytes of parameters at offset {start}, which is not a multiple of {bytes}"
                );
                return Err(Trouble::new(FaultKind::Misaligned, lane as u32, message));
            }
            out.copy_from_slice(source);
            Ok(())
        }
    }
}

/// `st`
pub(super) fn store(
    warp: &mut Warp,
    context: &mut Context<'_>,
    access: &Access,
    active: u32,
) -> Done {
    let all = addresses(
        &warp.registers,
        access.address,
        access.narrow,
        access.offset,
    );
    let bytes = usize::from(access.bytes) * access.elements.len();
    each_space(access, all, active, |space, at, mask| {
        let to = (access, space, at, mask);
        let turn = global::turn(context, space, access.order);
        match bytes {
            1 => store_lanes::<1>(warp, context, to),
            2 => store_lanes::<2>(warp, context, to),
            4 => store_lanes::<4>(warp, context, to),
            8 => store_lanes::<8>(warp, context, to),
            16 => store_lanes::<16>(warp, context, to),
            _ => store_lanes::<MOST>(warp, context, to),
        }?;
        let reach = global::Reach {
            at,
            mask,
            bytes,
            effect: Effect::Write,
            order: access.order,
        };
        global::access(warp, context, turn, space, reach)
    })
}

/// Stores at most `N` bytes a lane.
fn store_lanes<const N: usize>(
    warp: &mut Warp,
    context: &mut Context<'_>,
    (access, space, at, mask): Reach<'_>,
) -> Done {
    let size = usize::from(access.bytes);
    let bytes = size * access.elements.len();
    let mut buffer = [[0; N]; LANES];
    for (start, &slot) in (0..).step_by(size).zip(access.elements.iter().flatten()) {
        if size == 4 && !access.wide {
            let words = warp.registers.row(slot);
            for (out, word) in buffer.iter_mut().zip(words) {
                out[start..start + 4].copy_from_slice(&word.to_le_bytes());
            }
            continue;
        }
        let values = if access.wide {
            warp.registers.get(slot)
        } else {
            warp.registers.get::<u32>(slot).map(u64::from)
        };
        for (out, value) in buffer.iter_mut().zip(values) {
            out[start..start + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
    let pattern = Pattern::of(at, mask, bytes);
    let together = match space {
        Space::Global => {
            let traffic = &mut context.report.global_stores;
            count_global(traffic, at, mask, bytes as u64, pattern);
            bytes <= 16 && context.store_global_lanes(at, mask, pattern, &buffer)
        }
        Space::Shared => {
            let traffic = &mut context.report.shared_stores;
            count_shared(traffic, at, mask, bytes as u64, pattern);
            let by = accessor(warp, 0, access.order.is_strong());
            bytes <= 16 && context.store_shared_lanes(by, at, mask, &buffer)
        }
        _ => false,
    };
    if together {
        return Ok(());
    }
    for lane in lanes(mask) {
        let (at, bytes) = (at[lane], &buffer[lane][..bytes]);
        match space {
            Space::Global | Space::Generic => context.store_global(lane as u32, at, bytes)?,
            Space::Shared => {
                context.store_shared(accessor(warp, lane, access.order.is_strong()), at, bytes)?;
            }
            Space::Local => local(warp, lane, at, bytes.len(), true)?.copy_from(warp, bytes),
            Space::Param => {
                return Err(Trouble::new(
                    FaultKind::OutOfBounds,
                    lane as u32,
                    "writes to its parameters",
                ));
            }
        }
    }
    Ok(())
}

/// A checked range of one lane's local memory.
struct Local(std::ops::Range<usize>);

impl Local {
    fn copy_to(&self, warp: &Warp, out: &mut [u8]) {
        out.copy_from_slice(&warp.local[self.0.clone()]);
    }

    fn copy_from(&self, warp: &mut Warp, bytes: &[u8]) {
        warp.local[self.0.clone()].copy_from_slice(bytes);
        warp.local_written[self.0.clone()].fill(true);
    }
}

/// Reads local bytes of one lane.
pub(super) fn read_local(warp: &Warp, lane: usize, address: u64, out: &mut [u8]) -> Done {
    local(warp, lane, address, out.len(), false)?.copy_to(warp, out);
    Ok(())
}

fn local(warp: &Warp, lane: usize, address: u64, bytes: usize, write: bool) -> Done<Local> {
    let verb = if write { "writes" } else { "reads" };
    let size = u64::from(warp.local_bytes);
    if address
        .checked_add(bytes as u64)
        .is_none_or(|end| end > size)
    {
        let message = format!(
            "{verb} {bytes} bytes of local memory at offset {address:#x}; the thread has {size} bytes"
        );
        return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, message));
    }
    if !address.is_multiple_of(bytes as u64) {
        let message = format!(
            "{verb} {bytes} bytes of local memory at offset {address:#x}, which is not a multiple of {bytes}"
        );
        return Err(Trouble::new(FaultKind::Misaligned, lane as u32, message));
    }
    let start = lane * size as usize + address as usize;
    let range = start..start + bytes;
    if !write
        && !warp.local_written[range.clone()]
            .iter()
            .all(|&written| written)
    {
        let message =
            format!("reads {bytes} bytes of local memory at offset {address:#x} that nobody wrote");
        return Err(Trouble::new(FaultKind::Uninitialised, lane as u32, message));
    }
    Ok(Local(range))
}

/// `mov.b64 %rd, {…}` and its like.
pub(super) fn pack(r: &mut Registers, active: u32, d: Slot, parts: &[Slot], part_bytes: u8) {
    let bits = 8 * u32::from(part_bytes);
    let keep = (1u64 << bits) - 1;
    let mut out = [0u64; LANES];
    for (index, &part) in parts.iter().enumerate() {
        let values = r.get::<u32>(part);
        for lane in 0..LANES {
            out[lane] |= (u64::from(values[lane]) & keep) << (bits * index as u32);
        }
    }
    if parts.len() as u32 * bits == 64 {
        r.put(active, d, out);
    } else {
        r.put(active, d, out.map(|value| value as u32));
    }
}

/// `mov.b64 {…}, %rd` and its like.
pub(super) fn unpack(
    r: &mut Registers,
    active: u32,
    a: Slot,
    parts: &[Option<Slot>],
    part_bytes: u8,
) {
    let bits = 8 * u32::from(part_bytes);
    let keep = (1u64 << bits) - 1;
    let values: [u64; LANES] = if parts.len() as u32 * bits == 64 {
        r.get(a)
    } else {
        r.get::<u32>(a).map(u64::from)
    };
    for (index, part) in parts.iter().enumerate() {
        if let Some(part) = *part {
            r.put(
                active,
                part,
                values.map(|value| (value >> (bits * index as u32) & keep) as u32),
            );
        }
    }
}

/// The window of a space; `None` where addresses are generic already.
fn window(space: Space) -> Option<u64> {
    match space {
        Space::Shared => Some(SHARED_WINDOW),
        Space::Local => Some(LOCAL_WINDOW),
        Space::Param => Some(PARAM_WINDOW),
        Space::Global | Space::Generic => None,
    }
}

/// `cvta`
pub(super) fn address_space(
    warp: &mut Warp,
    space: Space,
    to_space: bool,
    d: Slot,
    a: Slot,
    active: u32,
) -> Done {
    let r = &mut warp.registers;
    let addresses = r.get::<u64>(a);
    if to_space {
        for lane in lanes(active) {
            // null stays null, as on hardware
            if addresses[lane] != 0 && resolve(addresses[lane]).0 != space {
                let message = format!(
                    "converts {:#x} to an address of a space it does not lie in",
                    addresses[lane]
                );
                return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, message));
            }
        }
    }
    let base = window(space).unwrap_or(0);
    r.put(
        active,
        d,
        addresses.map(|address| {
            if to_space {
                address.wrapping_sub(base)
            } else {
                address.wrapping_add(base)
            }
        }),
    );
    Ok(())
}

/// `isspacep`
pub(super) fn is_space(r: &mut Registers, active: u32, space: Space, d: Pred, a: Slot) {
    let holds = r
        .get::<u64>(a)
        .iter()
        .enumerate()
        .fold(0, |bits, (lane, &address)| {
            bits | u32::from(resolve(address).0 == space) << lane
        });
    r.set_predicate(active, d, holds);
}
