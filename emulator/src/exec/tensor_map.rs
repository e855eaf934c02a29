//! Tensor maps that a kernel changes and copies.

use super::context::{Context, Done, Trouble, lanes, resolve};
use super::memory::{accessor, addresses};
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ir::{Address, MapField, Space};
use crate::tensor_map::{Fields, TENSOR_MAP_BYTES};

/// What the address of a tensor map is a multiple of.
const ALIGN: u64 = 64;
/// Shared memory is accessed in pieces of this many bytes.
const PIECE: usize = 16;

type Bytes = [u8; TENSOR_MAP_BYTES];

/// `tensormap.replace`
pub(super) fn replace(
    warp: &mut Warp,
    context: &mut Context<'_>,
    at: &Address,
    field: &MapField,
    active: u32,
) -> Done {
    for lane in lanes(active) {
        let (space, address) = place(warp, at, lane)?;
        let bytes = load(warp, context, space, address, lane)?;
        let trouble = |message| Trouble::new(FaultKind::Trap, lane as u32, message);
        let mut map = Fields::from_bytes(&bytes).map_err(|rule| {
            trouble(format!(
                "the bytes at {address:#x} are no tensor map: {rule}"
            ))
        })?;
        change(&mut map, warp, field, lane).map_err(trouble)?;
        store(warp, context, space, address, lane, &map.to_bytes())?;
    }
    Ok(())
}

/// `tensormap.cp_fenceproxy`: the lanes of a warp copy one map together.
pub(super) fn copy(
    warp: &mut Warp,
    context: &mut Context<'_>,
    to: &Address,
    from: &Address,
    active: u32,
) -> Done {
    let mut copied = None;
    for lane in lanes(active) {
        let ends = (place(warp, to, lane)?, place(warp, from, lane)?);
        if copied == Some(ends) {
            continue;
        }
        let bytes = load(warp, context, ends.1.0, ends.1.1, lane)?;
        store(warp, context, ends.0.0, ends.0.1, lane, &bytes)?;
        copied = Some(ends);
    }
    Ok(())
}

/// Gives a field of a map the value that a lane has for it.
fn change(map: &mut Fields, warp: &Warp, field: &MapField, lane: usize) -> Result<(), String> {
    let narrow = |slot| warp.registers.get::<u32>(slot)[lane];
    let wide = |slot| warp.registers.get::<u64>(slot)[lane];
    match *field {
        MapField::Address(value) => map.address = wide(value),
        MapField::Rank(value) => {
            let less_one = narrow(value);
            map.rank = u8::try_from(less_one)
                .ok()
                .filter(|rank| *rank < 5)
                .map(|rank| rank + 1)
                .ok_or_else(|| format!("a rank of {less_one} and one; there are 1 to 5"))?;
        }
        MapField::Size(at, value) => map.set_size(at, narrow(value).into())?,
        MapField::Stride(at, value) => map.strides[at] = wide(value),
        MapField::Box(at, value) => map.set_box(at, narrow(value))?,
        MapField::Step(at, value) => map.set_step(at, narrow(value))?,
        MapField::Element(element) => map.element = element,
        MapField::Swizzle(bytes) => map.swizzle = bytes as u8,
        MapField::NanFill(fill) => map.nan_fill = fill,
        MapField::Fixed => {}
    }
    Ok(())
}

/// The space and the address in it that a lane names.
fn place(warp: &Warp, at: &Address, lane: usize) -> Done<(Space, u64)> {
    let address = addresses(&warp.registers, at.slot, at.narrow, at.offset)[lane];
    let (space, address) = match at.space {
        Space::Generic => resolve(address),
        space => (space, address),
    };
    if !matches!(space, Space::Global | Space::Shared) {
        let message = "a tensor map that is changed lies in global or shared memory";
        return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, message));
    }
    if !address.is_multiple_of(ALIGN) {
        let message =
            format!("the address {address:#x} of a tensor map is not a multiple of {ALIGN}");
        return Err(Trouble::new(FaultKind::Misaligned, lane as u32, message));
    }
    Ok((space, address))
}

fn load(
    warp: &Warp,
    context: &mut Context<'_>,
    space: Space,
    address: u64,
    lane: usize,
) -> Done<Bytes> {
    let mut bytes = [0; TENSOR_MAP_BYTES];
    if space == Space::Shared {
        for (piece, out) in bytes.chunks_exact_mut(PIECE).enumerate() {
            let by = accessor(warp, lane, false);
            context.load_shared(by, address + (piece * PIECE) as u64, out)?;
        }
    } else {
        let (data, written) = context.read_global(lane as u32, address, TENSOR_MAP_BYTES)?;
        if written.contains(&false) {
            let message =
                format!("reads a tensor map at {address:#x} of which nobody wrote some bytes");
            return Err(Trouble::new(FaultKind::Uninitialised, lane as u32, message));
        }
        bytes.copy_from_slice(&data);
    }
    Ok(bytes)
}

fn store(
    warp: &Warp,
    context: &mut Context<'_>,
    space: Space,
    address: u64,
    lane: usize,
    bytes: &Bytes,
) -> Done {
    if space == Space::Global {
        return context.write_global(lane as u32, address, bytes);
    }
    for (piece, bytes) in bytes.chunks_exact(PIECE).enumerate() {
        let by = accessor(warp, lane, false);
        context.store_shared(by, address + (piece * PIECE) as u64, bytes)?;
    }
    Ok(())
}
