//! Copies by the async proxy, and the list of what is under way and ends by itself.
//!
//! Loads end as late as the program allows: when no warp can go on, the last one first, so that whoever waits for another
//! meets bytes that are still under way. In the adversarial order they end at random, early ones among them. Stores end
//! at the wait for their group. The source is read when a copy begins: whoever changes it before its end is refused.

use super::access::refused;
use super::atomic;
use super::context::{Context, Done, Trouble, lanes};
use super::copy;
use super::global::{self, By, Effect};
use super::mbarrier;
use super::memory::addresses;
use super::reads::Read;
use super::registers::LANES;
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ir::{Address, AtomicOp, Bulk, Pc, Route, Scalar};
use crate::race::AgentLane;

/// What addresses and sizes of bulk copies are multiples of.
const ALIGN: u64 = 16;

/// How values are combined with those at the destination.
pub(super) type Reduce = (AtomicOp, Scalar);

/// Something under way that no instruction waits for directly.
#[derive(Debug)]
pub(super) struct Pending {
    /// The instruction that began it, and who executed it.
    pub pc: Pc,
    pub warp: usize,
    pub lane: u32,
    /// Where the mbarrier lies that is told.
    mbarrier: usize,
    what: What,
}

#[derive(Debug)]
enum What {
    /// The cp.async of one lane with all earlier ones; the number of its last.
    Copies { until: u64 },
    /// Bytes on their way into shared memory.
    Load {
        data: Data,
        /// Bytes that the mbarrier is told of.
        bytes: u32,
        /// The read of the source, if that is shared memory.
        read: Option<Read>,
        reduce: Option<Reduce>,
    },
}

impl Pending {
    /// It writes shared memory that must live until then.
    pub(super) fn writes_shared(&self) -> bool {
        matches!(self.what, What::Load { .. })
    }
}

/// Bytes and where they go.
#[derive(Debug, Clone, Default)]
pub(super) struct Data {
    pub bytes: Vec<u8>,
    /// Whether each byte has a value.
    pub valid: Vec<bool>,
    /// Places in the cluster's shared memory, one after the other of `bytes`: start and length.
    pub pieces: Vec<(usize, usize)>,
}

/// A store that has not ended.
#[derive(Debug)]
struct Store {
    lane: usize,
    /// The group of its lane.
    group: u32,
    pc: Pc,
    /// The read of its source, until that has ended.
    read: Option<Read>,
    /// Global addresses with the bytes that go there.
    writes: Vec<(u64, Vec<u8>)>,
    reduce: Option<Reduce>,
}

/// The stores of a warp that are under way.
#[derive(Debug, Default)]
pub(super) struct Stores {
    committed: [u32; LANES],
    pending: Vec<Store>,
}

impl Stores {
    /// `cp.async.bulk.commit_group`
    pub(super) fn commit(&mut self, active: u32) {
        for lane in lanes(active) {
            self.committed[lane] += 1;
        }
    }

    /// A store whose source is still being read: its instruction and lane.
    pub(super) fn reading(&self) -> Option<(Pc, u32)> {
        let store = self.pending.iter().find(|store| store.read.is_some())?;
        Some((store.pc, store.lane as u32))
    }
}

/// Fails unless an address or a size of a copy is a multiple of `of`.
pub(super) fn check_multiple(lane: usize, what: &str, value: u64, of: u64) -> Done {
    if value.is_multiple_of(of) {
        return Ok(());
    }
    let message = format!("{what} {value:#x} of a bulk copy is not a multiple of {of}");
    Err(Trouble::new(FaultKind::Misaligned, lane as u32, message))
}

/// `cp.async.bulk` and `cp.reduce.async.bulk`
pub(super) fn issue(warp: &mut Warp, context: &mut Context<'_>, bulk: &Bulk, active: u32) -> Done {
    let r = &warp.registers;
    let Some(bytes) = bulk.bytes.map(|slot| r.get::<u32>(slot)) else {
        return super::tensor::issue(warp, context, bulk, active);
    };
    let to = addresses(r, bulk.to.slot, bulk.to.narrow, bulk.to.offset);
    let from = addresses(r, bulk.from.slot, bulk.from.narrow, bulk.from.offset);
    let reduce = match bulk.reduce {
        Some((op, Some(kind))) => Some((op, kind)),
        _ => None,
    };
    for lane in lanes(active) {
        check_multiple(lane, "the destination", to[lane], ALIGN)?;
        check_multiple(lane, "the source", from[lane], ALIGN)?;
        check_multiple(lane, "the size", bytes[lane].into(), ALIGN)?;
        let (to, from, size) = (to[lane], from[lane], bytes[lane] as usize);
        match bulk.route {
            Route::Load => {
                let (bytes, valid) = context.read_global(lane as u32, from, size)?;
                global::judge_range(context, By::at(warp), lane, (from, size), Effect::Read)?;
                let data = Data {
                    bytes,
                    valid,
                    pieces: Vec::new(),
                };
                let targets = [(to, size)];
                load(warp, context, bulk, lane, data, &targets)?;
            }
            Route::Across => {
                let at = context.shared_place((warp.at, lane as u32), from, size, false)?;
                let read = read_shared(warp, context, lane, vec![(at, size)])?;
                let data = Data {
                    bytes: context.shared[at..at + size].to_vec(),
                    valid: vec![true; size],
                    pieces: vec![(
                        context.shared_place((warp.at, lane as u32), to, size, true)?,
                        size,
                    )],
                };
                begin(warp, context, bulk, lane, data, Some(read), reduce)?;
            }
            Route::Store => {
                let at = context.shared_place((warp.at, lane as u32), from, size, false)?;
                context.check_global(lane as u32, to, size, true)?;
                let read = read_shared(warp, context, lane, vec![(at, size)])?;
                let writes = vec![(to, context.shared[at..at + size].to_vec())];
                store(warp, lane, read, writes, reduce);
            }
        }
    }
    Ok(())
}

/// Begins loads of the same data into the running block, or into each that a multicast names. `targets` are the addresses
/// in shared memory and lengths of the parts of the data.
pub(super) fn load(
    warp: &mut Warp,
    context: &mut Context<'_>,
    bulk: &Bulk,
    lane: usize,
    mut data: Data,
    targets: &[(u64, usize)],
) -> Done {
    let Some(mask) = bulk.multicast else {
        for &(address, size) in targets {
            let place = context.shared_place((warp.at, lane as u32), address, size, true)?;
            data.pieces.push((place, size));
        }
        return begin(warp, context, bulk, lane, data, None, None);
    };
    let mask = warp.registers.row(mask)[lane] & 0xffff;
    let blocks = context.exited.len();
    if mask == 0 || mask >> blocks != 0 {
        let message = format!("a multicast to blocks {mask:#x} of a cluster of {blocks}");
        return Err(Trouble::new(FaultKind::Trap, lane as u32, message));
    }
    for rank in lanes(mask) {
        data.pieces.clear();
        for &(address, size) in targets {
            let address = context.address_in(rank, address);
            let place = context.shared_place((warp.at, lane as u32), address, size, true)?;
            data.pieces.push((place, size));
        }
        begin_at(warp, context, bulk, lane, data.clone(), Some(rank))?;
    }
    Ok(())
}

fn begin_at(
    warp: &mut Warp,
    context: &mut Context<'_>,
    bulk: &Bulk,
    lane: usize,
    data: Data,
    rank: Option<usize>,
) -> Done {
    let Some(mbarrier) = &bulk.mbarrier else {
        return Ok(());
    };
    let at = mbarrier::place(warp, context, mbarrier, lane, rank)?;
    push(warp, context, lane, at, data, None, None)
}

fn begin(
    warp: &mut Warp,
    context: &mut Context<'_>,
    bulk: &Bulk,
    lane: usize,
    data: Data,
    read: Option<Read>,
    reduce: Option<Reduce>,
) -> Done {
    let Some(mbarrier) = &bulk.mbarrier else {
        return Ok(());
    };
    let at = mbarrier::place(warp, context, mbarrier, lane, None)?;
    push(warp, context, lane, at, data, read, reduce)
}

/// Marks the destination and puts a load on the list.
fn push(
    warp: &mut Warp,
    context: &mut Context<'_>,
    lane: usize,
    mbarrier: usize,
    data: Data,
    read: Option<Read>,
    reduce: Option<Reduce>,
) -> Done {
    mbarrier::check_shown(warp, context, mbarrier, lane)?;
    let by = mbarrier::accessor(warp, lane);
    for &(at, size) in &data.pieces {
        if let Err(refusal) = context.detector.issue_write(at, size, by) {
            return Err(refused(context, by, at, size, "copies into", refusal));
        }
    }
    context.pending.push(Pending {
        pc: warp.at,
        warp: warp.index,
        lane: lane as u32,
        mbarrier,
        what: What::Load {
            bytes: data.bytes.len() as u32,
            data,
            read,
            reduce,
        },
    });
    Ok(())
}

/// Judges the async proxy's read of ranges of shared memory, which then must not change until it ends.
pub(super) fn read_shared(
    warp: &Warp,
    context: &mut Context<'_>,
    lane: usize,
    ranges: Vec<(usize, usize)>,
) -> Done<Read> {
    let by = mbarrier::accessor(warp, lane);
    context.begin_read(by, ranges, "copies")
}

/// Puts a store into the group of its lane that is not committed yet.
pub(super) fn store(
    warp: &mut Warp,
    lane: usize,
    read: Read,
    writes: Vec<(u64, Vec<u8>)>,
    reduce: Option<Reduce>,
) {
    warp.stores.pending.push(Store {
        lane,
        group: warp.stores.committed[lane],
        pc: warp.at,
        read: Some(read),
        writes,
        reduce,
    });
}

/// `cp.async.bulk.wait_group`
pub(super) fn wait(
    warp: &mut Warp,
    context: &mut Context<'_>,
    allowed: u32,
    read_only: bool,
    active: u32,
) -> Done {
    let mut stores = std::mem::take(&mut warp.stores.pending);
    context.detector.agent_period();
    let (index, lane) = (warp.index, AgentLane::of_stores(warp.index));
    let mut ended = Ok(());
    stores.retain_mut(|store| {
        let committed = u64::from(warp.stores.committed[store.lane]);
        let waits = active >> store.lane & 1 != 0
            && u64::from(store.group) + u64::from(allowed) < committed;
        if !waits || ended.is_err() {
            return true;
        }
        if let Some(read) = store.read.take() {
            context.end_read(read, lane);
        }
        if !read_only {
            ended = write(context, index, store);
        }
        read_only
    });
    warp.stores.pending = stores;
    context.detector.acquire_agent(warp.index, Some(lane));
    ended
}

/// Writes what a store has read.
fn write(context: &mut Context<'_>, warp: usize, store: &Store) -> Done {
    let lane = store.lane as u32;
    let by = By { warp, pc: store.pc };
    let effect = match store.reduce {
        None => Effect::Write,
        Some(_) => Effect::Reduce,
    };
    for (address, bytes) in &store.writes {
        global::judge_range(context, by, store.lane, (*address, bytes.len()), effect)?;
        match store.reduce {
            None => context.write_global(lane, *address, bytes)?,
            Some((op, kind)) => {
                let size = kind.bytes() as usize;
                for (at, value) in bytes.chunks_exact(size).enumerate() {
                    let address = address + (at * size) as u64;
                    atomic::reduce(context, lane, address, op, kind, little_endian(value))?;
                }
            }
        }
    }
    Ok(())
}

fn little_endian(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// The stores that a warp leaves behind are written at the end of its block.
pub(super) fn flush(warp: &mut Warp, context: &mut Context<'_>) -> Done {
    for store in std::mem::take(&mut warp.stores.pending) {
        warp.at = store.pc;
        write(context, warp.index, &store)?;
    }
    Ok(())
}

/// `cp.async.mbarrier.arrive`
pub(super) fn copy_arrive(
    warp: &mut Warp,
    context: &mut Context<'_>,
    at: &Address,
    increment: bool,
    active: u32,
) -> Done {
    let places = mbarrier::places(warp, context, at, active)?;
    for lane in lanes(active) {
        if increment {
            mbarrier::expect_one(warp, context, places[lane], lane)?;
        } else {
            mbarrier::check(warp, context, places[lane], lane)?;
        }
        context.pending.push(Pending {
            pc: warp.at,
            warp: warp.index,
            lane: lane as u32,
            mbarrier: places[lane],
            what: What::Copies {
                until: warp.copies.issued(),
            },
        });
    }
    Ok(())
}

/// The oldest arrival that waits for copies of the thread of number `at`: each tells of all copies before it, so that what
/// a later one ends, an earlier one has to have told of.
fn first_of_thread(pending: &[Pending], at: usize) -> usize {
    let thread = (pending[at].warp, pending[at].lane);
    let of_thread = |other: &Pending| {
        matches!(other.what, What::Copies { .. }) && (other.warp, other.lane) == thread
    };
    pending.iter().position(of_thread).unwrap_or(at)
}

/// Ends one of the things under way: number `at` of the list.
pub(super) fn complete(context: &mut Context<'_>, warps: &mut [Warp], at: usize) -> Done {
    let at = match context.pending[at].what {
        What::Copies { .. } => first_of_thread(&context.pending, at),
        _ => at,
    };
    let pending = context.pending.remove(at);
    context.detector.agent_period();
    let lane = pending.lane as usize;
    let agent = mbarrier::told(context, pending.mbarrier, lane)?.agent;
    match pending.what {
        What::Copies { until } => {
            copy::finish(&mut warps[pending.warp], context, lane, until, agent);
            mbarrier::signal(context, pending.mbarrier, None, lane)
        }
        What::Load {
            data,
            bytes,
            read,
            reduce,
        } => {
            if let Some(read) = read {
                context.end_read(read, agent);
            }
            arrive(context, pending.pc, agent, &data, reduce);
            mbarrier::signal(context, pending.mbarrier, Some(bytes), lane)
        }
    }
}

/// Bytes arrive in shared memory.
fn arrive(context: &mut Context<'_>, pc: Pc, lane: AgentLane, data: &Data, reduce: Option<Reduce>) {
    let mut start = 0;
    for &(at, size) in &data.pieces {
        let (bytes, valid) = (&data.bytes[start..][..size], &data.valid[start..][..size]);
        start += size;
        let target = &mut context.shared[at..at + size];
        match reduce {
            None => target.copy_from_slice(bytes),
            Some((op, kind)) => {
                let size = kind.bytes() as usize;
                for (old, new) in target.chunks_exact_mut(size).zip(bytes.chunks_exact(size)) {
                    let value =
                        atomic::combine(op, kind, little_endian(old), little_endian(new), 0);
                    old.copy_from_slice(&value.to_le_bytes()[..size]);
                }
            }
        }
        context.detector.complete_write(at, valid, pc, lane);
    }
}
