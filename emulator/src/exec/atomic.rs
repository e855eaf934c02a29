//! atom and red, on global memory with the host's own atomics and on shared memory in turn.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use half::{bf16, f16};

use super::context::{Context, Done, Trouble, count_global, lanes, resolve};
use super::float::flush_if;
use super::global::{self, Effect, Reach};
use super::memory::addresses;
use super::registers::LANES;
use super::together::Pattern;
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ir::{Atomic, AtomicOp, Scalar, Space};
use crate::memory::{INITIALISED, READ, WRITTEN};
use crate::race::Accessor;

/// The new value of a location.
pub(super) fn combine(op: AtomicOp, kind: Scalar, old: u64, value: u64, second: u64) -> u64 {
    let halves = |f: fn(u16, u16) -> u16| {
        let low = f(old as u16, value as u16);
        let high = f((old >> 16) as u16, (value >> 16) as u16);
        u64::from(low) | u64::from(high) << 16
    };
    let add_f16 = |x, y| (f16::from_bits(x) + f16::from_bits(y)).to_bits();
    let add_bf16 = |x, y| (bf16::from_bits(x) + bf16::from_bits(y)).to_bits();
    match (op, kind) {
        (AtomicOp::Add, Scalar::F32) => (f32::from_bits(old as u32) + f32::from_bits(value as u32))
            .to_bits()
            .into(),
        (AtomicOp::Add, Scalar::F64) => (f64::from_bits(old) + f64::from_bits(value)).to_bits(),
        (AtomicOp::Add, Scalar::F16) => add_f16(old as u16, value as u16).into(),
        (AtomicOp::Add, Scalar::Bf16) => add_bf16(old as u16, value as u16).into(),
        (AtomicOp::Add, Scalar::F16x2) => halves(add_f16),
        (AtomicOp::Add, Scalar::Bf16x2) => halves(add_bf16),
        (AtomicOp::Add, _) => old.wrapping_add(value),
        (AtomicOp::Min | AtomicOp::Max, kind) if kind.is_float() => {
            let max = op == AtomicOp::Max;
            match kind {
                Scalar::F16x2 | Scalar::Bf16x2 => {
                    let high = extreme(max, kind, (old >> 16) as u16, (value >> 16) as u16);
                    u64::from(extreme(max, kind, old as u16, value as u16)) | u64::from(high) << 16
                }
                _ => extreme(max, kind, old as u16, value as u16).into(),
            }
        }
        (AtomicOp::Min, Scalar::S32) => (old as i32).min(value as i32) as u32 as u64,
        (AtomicOp::Max, Scalar::S32) => (old as i32).max(value as i32) as u32 as u64,
        (AtomicOp::Min, Scalar::S64) => (old as i64).min(value as i64) as u64,
        (AtomicOp::Max, Scalar::S64) => (old as i64).max(value as i64) as u64,
        (AtomicOp::Min, _) => old.min(value),
        (AtomicOp::Max, _) => old.max(value),
        (AtomicOp::Inc, _) => {
            if old >= value {
                0
            } else {
                old + 1
            }
        }
        (AtomicOp::Dec, _) => {
            if old == 0 || old > value {
                value
            } else {
                old - 1
            }
        }
        (AtomicOp::And, _) => old & value,
        (AtomicOp::Or, _) => old | value,
        (AtomicOp::Xor, _) => old ^ value,
        (AtomicOp::Exch, _) => value,
        (AtomicOp::Cas, _) => {
            if old == value {
                second
            } else {
                old
            }
        }
    }
}

/// The sum of two f32 whose subnormals count as zero, as does a subnormal sum.
fn add_flushed(x: u32, y: u32) -> u64 {
    let flush = |bits| flush_if(true, f32::from_bits(bits));
    flush_if(true, flush(x) + flush(y)).to_bits().into()
}

/// The lesser or the greater half; a NaN gives way to a number, and -0 is less than +0.
fn extreme(max: bool, kind: Scalar, x: u16, y: u16) -> u16 {
    let value = |bits| match kind {
        Scalar::Bf16 | Scalar::Bf16x2 => bf16::from_bits(bits).to_f32(),
        _ => f16::from_bits(bits).to_f32(),
    };
    let (a, b) = (value(x), value(y));
    let first = match (a.is_nan(), b.is_nan()) {
        (true, true) => return 0x7fff,
        (true, false) => false,
        (false, true) => true,
        _ if a == b => a.is_sign_positive() == max,
        _ => (a > b) == max,
    };
    if first { x } else { y }
}

/// Runs the elements of a vector one by one.
pub(super) fn vector(
    warp: &mut Warp,
    context: &mut Context<'_>,
    elements: &[Atomic],
    active: u32,
) -> Done {
    let Some(first) = elements.first() else {
        return Ok(());
    };
    let bytes = u64::from(first.kind.bytes()) * elements.len() as u64;
    let at = addresses(&warp.registers, first.address, first.narrow, first.offset);
    for lane in lanes(active) {
        if !at[lane].is_multiple_of(bytes) {
            let message = format!(
                "updates {bytes} bytes of global memory at {:#x}, which is not a multiple of {bytes}",
                at[lane]
            );
            return Err(Trouble::new(FaultKind::Misaligned, lane as u32, message));
        }
    }
    // results have 32 bits at most, so that none of them lies in the address
    elements
        .iter()
        .try_for_each(|element| run(warp, context, element, active))
}

/// Runs an atomic lane by lane: lanes that meet at one address take turns.
pub(super) fn run(
    warp: &mut Warp,
    context: &mut Context<'_>,
    atomic: &Atomic,
    active: u32,
) -> Done {
    let at = addresses(
        &warp.registers,
        atomic.address,
        atomic.narrow,
        atomic.offset,
    );
    let bytes = atomic.kind.bytes() as usize;
    let wide = bytes == 8;
    let read = |slot| -> [u64; LANES] {
        if wide {
            warp.registers.get(slot)
        } else {
            warp.registers.get::<u32>(slot).map(u64::from)
        }
    };
    let (values, seconds) = (read(atomic.value), read(atomic.second));
    let keep = if wide {
        u64::MAX
    } else {
        (1 << (8 * bytes)) - 1
    };
    let mut out = [0u64; LANES];
    let (mut at, mut shared) = (at, 0u32);
    for lane in lanes(active) {
        let (space, address) = match atomic.space {
            Space::Generic => resolve(at[lane]),
            space => (space, at[lane]),
        };
        at[lane] = address;
        shared |= u32::from(space == Space::Shared) << lane;
    }
    let global = active & !shared;
    let parts = [(Space::Global, global), (Space::Shared, shared)];
    let turns = parts.map(|(space, mask)| {
        let turn = (mask != 0).then(|| global::turn(context, space, atomic.order));
        turn.flatten()
    });
    for lane in lanes(active) {
        let (space, address) = match shared >> lane & 1 {
            0 => (Space::Global, at[lane]),
            _ => (Space::Shared, at[lane]),
        };
        let (value, second) = (values[lane] & keep, seconds[lane] & keep);
        // sums of f32 in global memory flush subnormals, those in shared memory do not
        let flush =
            space != Space::Shared && (atomic.op, atomic.kind) == (AtomicOp::Add, Scalar::F32);
        let update = |old: u64| {
            if flush {
                return add_flushed(old as u32, value as u32);
            }
            combine(atomic.op, atomic.kind, old, value, second) & keep
        };
        out[lane] = if space == Space::Shared {
            let by = Accessor {
                warp: warp.index,
                lane: lane as u32,
                pc: warp.at,
                collective: false,
                strong: true,
            };
            let mut buffer = [0; 8];
            context.load_shared(by, address, &mut buffer[..bytes])?;
            let old = u64::from_le_bytes(buffer);
            context.store_shared(by, address, &update(old).to_le_bytes()[..bytes])?;
            old
        } else {
            global_update(context, lane as u32, address, bytes, update)?
        };
    }
    for ((space, mask), turn) in parts.into_iter().zip(turns) {
        let reach = Reach {
            at: &at,
            mask,
            bytes,
            effect: match atomic.reads {
                true => Effect::Update,
                false => Effect::Reduce,
            },
            order: atomic.order,
        };
        global::access(warp, context, turn, space, reach)?;
    }
    context.report.atomics += u64::from(active.count_ones());
    if global != 0 {
        count_global(
            &mut context.report.global_stores,
            &at,
            global,
            bytes as u64,
            Pattern::Any,
        );
    }
    match atomic.result {
        Some(slot) if wide => warp.registers.put(active, slot, out),
        Some(slot) => warp
            .registers
            .put(active, slot, out.map(|value| value as u32)),
        None => {}
    }
    Ok(())
}

/// Combines one global location with a value: an element of a bulk reduction.
pub(super) fn reduce(
    context: &mut Context<'_>,
    lane: u32,
    address: u64,
    op: AtomicOp,
    kind: Scalar,
    value: u64,
) -> Done {
    let bytes = kind.bytes() as usize;
    let update = |old: u64| combine(op, kind, old, value, 0);
    global_update(context, lane, address, bytes, update)?;
    context.report.atomics += 1;
    Ok(())
}

/// Updates one global location with the host's atomics, so that blocks on other threads take turns with it.
fn global_update(
    context: &mut Context<'_>,
    lane: u32,
    address: u64,
    bytes: usize,
    update: impl Fn(u64) -> u64,
) -> Done<u64> {
    // the read half of the access: bounds, alignment, initialised
    let mut buffer = [0; 8];
    context.load_global(lane, address, &mut buffer[..bytes])?;
    let (data, state) = context.global(lane, address, bytes as u64, true)?;
    macro_rules! update_as {
        ($atomic:ty, $int:ty) => {{
            // SAFETY: `Context::global` checked bounds and alignment of `bytes` bytes at `data`; an allocation starts at a
            // multiple of 16 on the host (`Allocation::data`) as on the device, so the host address is aligned as well.
            let cell = unsafe { <$atomic>::from_ptr(data.cast()) };
            let mut old = cell.load(Ordering::SeqCst);
            loop {
                match cell.compare_exchange_weak(old, update(u64::from(old)) as $int, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => break u64::from(old),
                    Err(found) => old = found,
                }
            }
        }};
    }
    let old = match bytes {
        2 => update_as!(AtomicU16, u16),
        4 => update_as!(AtomicU32, u32),
        _ => update_as!(AtomicU64, u64),
    };
    for at in 0..bytes {
        // SAFETY: `Context::global` checked that as many states lie there.
        unsafe { *state.add(at) |= INITIALISED | READ | WRITTEN };
    }
    Ok(old)
}
