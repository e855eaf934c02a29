//! Bulk copies of boxes of a tensor, as a tensor map describes it.

use super::bulk::{self, Data, check_multiple};
use super::context::{Context, Done, PARAM_WINDOW, Trouble, lanes, resolve};
use super::global::{self, By, Effect};
use super::memory::addresses;
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ir::{Address, AtomicOp, Bulk, Route, Scalar, Space};
use crate::tensor_map::{TENSOR_MAP_BYTES, TensorMap, TensorType};

/// What the shared addresses of boxes are multiples of.
const ALIGN: u64 = 128;
/// Bytes that a swizzle moves together.
const CHUNK: usize = 16;

/// `cp.async.bulk.tensor` and `cp.reduce.async.bulk.tensor`
pub(super) fn issue(warp: &mut Warp, context: &mut Context<'_>, bulk: &Bulk, active: u32) -> Done {
    let (map_at, shared_at) = match bulk.route {
        Route::Load => (&bulk.from, &bulk.to),
        _ => (&bulk.to, &bulk.from),
    };
    let shared = addresses(
        &warp.registers,
        shared_at.slot,
        shared_at.narrow,
        shared_at.offset,
    );
    for lane in lanes(active) {
        let map = read_map(warp, context, map_at, lane)?;
        if map.dims.len() != bulk.coordinates.len() {
            let message = format!(
                "copies a box of {} dimensions by a tensor map of {}",
                bulk.coordinates.len(),
                map.dims.len()
            );
            return Err(Trouble::new(FaultKind::Trap, lane as u32, message));
        }
        check_multiple(lane, "the shared address", shared[lane], ALIGN)?;
        let corner: Vec<i64> = (bulk.coordinates.iter())
            .map(|&slot| i64::from(warp.registers.row(slot)[lane] as i32))
            .collect();
        let rows = rows(&map, &corner);
        let row_bytes = map.counts()[0] * map.element.bytes() as usize;
        let size = rows.len() * row_bytes;
        match bulk.route {
            Route::Load => {
                let mut data = Data::default();
                for row in &rows {
                    gather(context, lane, &map, row, row_bytes, &mut data)?;
                    let bytes = row.inside.len() * map.element.bytes() as usize;
                    let range = (row.address, bytes);
                    global::judge_range(context, By::at(warp), lane, range, Effect::Read)?;
                }
                let targets = chunks(&map, shared[lane], size);
                bulk::load(warp, context, bulk, lane, data, &targets)?;
            }
            _ => scatter(
                warp,
                context,
                bulk,
                lane,
                &map,
                &rows,
                row_bytes,
                shared[lane],
            )?,
        }
    }
    Ok(())
}

/// The map that an address names: in the parameters, or in global memory.
fn read_map(warp: &Warp, context: &mut Context<'_>, at: &Address, lane: usize) -> Done<TensorMap> {
    let address = addresses(&warp.registers, at.slot, at.narrow, at.offset)[lane];
    let address = match at.space {
        Space::Param => address.wrapping_add(PARAM_WINDOW),
        _ => address,
    };
    let mut bytes = [0; TENSOR_MAP_BYTES];
    match resolve(address) {
        (Space::Param, start) => {
            check_multiple(lane, "the tensor map's address", start, 64)?;
            let range = start as usize..start as usize + TENSOR_MAP_BYTES;
            let Some(source) = context.params.get(range) else {
                let message = format!(
                    "a tensor map at parameter offset {start}, which is too close to their end"
                );
                return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, message));
            };
            bytes.copy_from_slice(source);
        }
        (Space::Global, address) => {
            check_multiple(lane, "the tensor map's address", address, 64)?;
            let (data, _) = context.read_global(lane as u32, address, TENSOR_MAP_BYTES)?;
            bytes.copy_from_slice(&data);
        }
        _ => {
            let message = "a tensor map lies in global memory or in the parameters";
            return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, message));
        }
    }
    TensorMap::decode(&bytes).map_err(|rule| {
        let message =
            format!("the {TENSOR_MAP_BYTES} bytes at {address:#x} are no tensor map: {rule}");
        Trouble::new(FaultKind::Trap, lane as u32, message)
    })
}

/// A row of a box: where it is in global memory and which of its elements exist.
struct Row {
    /// Address of the element at `inside.start`.
    address: u64,
    inside: std::ops::Range<usize>,
}

/// The rows of the box at `corner`, the second dimension first.
fn rows(map: &TensorMap, corner: &[i64]) -> Vec<Row> {
    let counts = map.counts();
    let size = map.element.bytes();
    let first = (-corner[0]).clamp(0, counts[0] as i64) as usize;
    let end = (map.dims[0] as i64 - corner[0]).clamp(first as i64, counts[0] as i64) as usize;
    let total: usize = counts[1..].iter().product();
    (0..total)
        .map(|row| {
            let mut rest = row;
            let mut address = map.address as i64 + (corner[0] + first as i64) * size as i64;
            let mut inside = true;
            for dimension in 1..counts.len() {
                let step = (rest % counts[dimension]) as i64 * i64::from(map.steps[dimension]);
                rest /= counts[dimension];
                let at = corner[dimension] + step;
                inside &= (0..map.dims[dimension] as i64).contains(&at);
                address = address.wrapping_add(at.wrapping_mul(map.strides[dimension - 1] as i64));
            }
            Row {
                address: address as u64,
                inside: if inside { first..end } else { 0..0 },
            }
        })
        .collect()
}

/// Adds a row to what a load brings: elements outside the tensor are filled.
fn gather(
    context: &mut Context<'_>,
    lane: usize,
    map: &TensorMap,
    row: &Row,
    row_bytes: usize,
    data: &mut Data,
) -> Done {
    let size = map.element.bytes() as usize;
    let start = data.bytes.len();
    let fill = if map.nan_fill { nan(map.element) } else { 0 };
    let fill = &fill.to_le_bytes()[..size];
    data.bytes.extend(fill.iter().cycle().take(row_bytes));
    data.valid.resize(start + row_bytes, true);
    let bytes = row.inside.len() * size;
    if bytes != 0 {
        let (found, valid) = context.read_global(lane as u32, row.address, bytes)?;
        let at = start + row.inside.start * size;
        data.bytes[at..at + bytes].copy_from_slice(&found);
        data.valid[at..at + bytes].copy_from_slice(&valid);
    }
    Ok(())
}

/// The quiet NaN with all other bits set.
fn nan(element: TensorType) -> u64 {
    match element.bytes() {
        2 => 0x7fff,
        8 => 0x7fff_ffff_ffff_ffff,
        _ => 0x7fff_ffff,
    }
}

/// Where a swizzle of `span` bytes puts a byte of shared memory: the chunk within a span changes with the 128 bytes that it
/// lies in.
pub(super) fn swizzled(address: u64, span: u32) -> u64 {
    let mask = u64::from(span / 16).saturating_sub(1);
    address ^ (address >> 7 & mask) << 4
}

/// Shared addresses and lengths of the parts of a box.
fn chunks(map: &TensorMap, start: u64, size: usize) -> Vec<(u64, usize)> {
    if map.swizzle == 0 {
        return vec![(start, size)];
    }
    (0..size)
        .step_by(CHUNK)
        .map(|at| (swizzled(start + at as u64, map.swizzle), CHUNK))
        .collect()
}

/// Begins a store of a box: elements outside the tensor go nowhere.
#[expect(clippy::too_many_arguments, reason = "the parts of one copy")]
fn scatter(
    warp: &mut Warp,
    context: &mut Context<'_>,
    bulk: &Bulk,
    lane: usize,
    map: &TensorMap,
    rows: &[Row],
    row_bytes: usize,
    shared: u64,
) -> Done {
    let reduce = match bulk.reduce {
        Some((op, _)) => Some((op, reduction(map, op, lane)?)),
        None => None,
    };
    let mut ranges = Vec::new();
    let mut bytes = Vec::with_capacity(rows.len() * row_bytes);
    for (address, length) in chunks(map, shared, rows.len() * row_bytes) {
        let at = context.shared_place((warp.at, lane as u32), address, length, false)?;
        ranges.push((at, length));
        bytes.extend_from_slice(&context.shared[at..at + length]);
    }
    let size = map.element.bytes() as usize;
    let mut writes = Vec::new();
    for (row, bytes) in rows.iter().zip(bytes.chunks_exact(row_bytes)) {
        let inside = row.inside.start * size..row.inside.end * size;
        if inside.is_empty() {
            continue;
        }
        context.check_global(lane as u32, row.address, inside.len(), true)?;
        writes.push((row.address, bytes[inside].to_vec()));
    }
    let read = bulk::read_shared(warp, context, lane, ranges)?;
    bulk::store(warp, lane, read, writes, reduce);
    Ok(())
}

/// The type of a reduction of a tensor, if there is one.
fn reduction(map: &TensorMap, op: AtomicOp, lane: usize) -> Done<Scalar> {
    let kind = map.element.scalar();
    let integer = matches!(kind, Scalar::U32 | Scalar::S32 | Scalar::U64 | Scalar::S64);
    let half = matches!(kind, Scalar::F16 | Scalar::Bf16);
    let exists = match op {
        AtomicOp::Add => integer || kind.is_float(),
        AtomicOp::Min | AtomicOp::Max => integer || half,
        AtomicOp::And | AtomicOp::Or | AtomicOp::Xor => integer,
        AtomicOp::Inc | AtomicOp::Dec => kind == Scalar::U32,
        AtomicOp::Exch | AtomicOp::Cas => false,
    };
    if exists {
        return Ok(kind);
    }
    let message = format!(
        "there is no such reduction of elements of type {:?}",
        map.element
    );
    Err(Trouble::new(FaultKind::Trap, lane as u32, message))
}
