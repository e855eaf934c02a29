//! Occupancy: how many blocks fit a multiprocessor, by threads, shared memory and registers.
//!
//! PTX does not tell how many registers a kernel takes. Where its fatbin has machine code for the device posed as,
//! that does; elsewhere these are upper bounds, and on hardware the registers may allow fewer.

use std::ffi::c_int;
use std::sync::Arc;

use super::error::{Error, Result};
use super::ffi::{CUresult, Handle, In, Out, call};
use super::function::Function;
use super::launch::Config;
use super::state::{Driver, driver};
use crate::occupancy::{Block, SHARED_GRANULE};

/// `CUoccupancyB2DSize`: bytes of dynamic shared memory for a block of so many threads.
pub(super) type SharedForBlock = unsafe extern "C" fn(c_int) -> usize;

fn function(handle: Handle) -> Result<(Arc<Driver>, Arc<Function>)> {
    let driver = driver()?;
    let function = driver.functions.get(handle)?;
    Ok((driver, function))
}

/// Blocks of a kernel on one multiprocessor.
fn blocks(driver: &Driver, function: &Function, threads: i32, dynamic: usize) -> Result<u32> {
    let threads = u64::try_from(threads).ok().filter(|threads| *threads > 0);
    let threads = threads.ok_or_else(|| Error::value("a block has at least one thread"))?;
    let kernel = function.kernel()?;
    let allowed = dynamic as u64 <= function.dynamic_shared_limit().into();
    if !allowed || kernel.max_threads.is_some_and(|most| threads > most.into()) {
        return Ok(0);
    }
    let block = Block {
        threads,
        shared: u64::from(kernel.static_shared) + dynamic as u64,
        registers: function.registers(),
    };
    Ok(block.resident(&driver.device).0)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    count: Out<i32>,
    handle: Handle,
    threads: i32,
    dynamic_shared: usize,
) -> CUresult {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", || {
        let (driver, function) = function(handle)?;
        count.set(blocks(&driver, &function, threads, dynamic_shared)? as i32)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    count: Out<i32>,
    handle: Handle,
    threads: i32,
    dynamic_shared: usize,
    _flags: u32,
) -> CUresult {
    call(
        "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
        || {
            let (driver, function) = function(handle)?;
            count.set(blocks(&driver, &function, threads, dynamic_shared)? as i32)
        },
    )
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: Out<usize>,
    handle: Handle,
    count: i32,
    threads: i32,
) -> CUresult {
    call("cuOccupancyAvailableDynamicSMemPerBlock", || {
        let (driver, function) = function(handle)?;
        if count < 1 || blocks(&driver, &function, threads, 0)? < count as u32 {
            let text = format!("{count} blocks of {threads} threads do not fit a multiprocessor");
            return Err(Error::value(text));
        }
        let device = &driver.device;
        let share = device.shared_per_multiprocessor / count as u32;
        let used = device.shared_reserved_per_block + function.kernel()?.static_shared;
        let left = share.saturating_sub(used) / SHARED_GRANULE as u32 * SHARED_GRANULE as u32;
        bytes.set(left.min(device.shared_per_block_optin) as usize)
    })
}

/// The block size that fills a multiprocessor best, and the grid that fills the device with it.
fn best_block(
    grid: &Out<i32>,
    block: &Out<i32>,
    handle: Handle,
    shared: impl Fn(i32) -> usize,
    limit: i32,
) -> Result<()> {
    let (driver, function) = function(handle)?;
    let device = &driver.device;
    let own = function.kernel()?.max_threads;
    let most = own.map_or(device.max_threads_per_block, |own| {
        own.min(device.max_threads_per_block)
    });
    let most = u32::try_from(limit)
        .ok()
        .filter(|n| *n > 0)
        .map_or(most, |n| n.min(most));
    let mut best = (0, 0, 0); // resident threads, threads of a block, blocks
    // From the largest down, so that among equals the largest block wins.
    for threads in (1..=most)
        .rev()
        .filter(|n| n % device.warp_size == 0 || *n == most)
    {
        let count = blocks(&driver, &function, threads as i32, shared(threads as i32))?;
        if count * threads > best.0 {
            best = (count * threads, threads, count);
        }
    }
    let (_, threads, count) = best;
    block.set(threads as i32)?;
    grid.set((count * device.multiprocessors) as i32)
}

/// The program's function of the block size, or the constant where it gave none.
fn shared_size(function: Option<SharedForBlock>, constant: usize) -> impl Fn(i32) -> usize {
    move |threads| match function {
        // SAFETY: C passes a function that takes any block size.
        Some(function) => unsafe { function(threads) },
        None => constant,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: Out<i32>,
    block: Out<i32>,
    handle: Handle,
    shared_for_block: Option<SharedForBlock>,
    dynamic_shared: usize,
    limit: i32,
) -> CUresult {
    call("cuOccupancyMaxPotentialBlockSize", || {
        let shared = shared_size(shared_for_block, dynamic_shared);
        best_block(&grid, &block, handle, shared, limit)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: Out<i32>,
    block: Out<i32>,
    handle: Handle,
    shared_for_block: Option<SharedForBlock>,
    dynamic_shared: usize,
    limit: i32,
    _flags: u32,
) -> CUresult {
    call("cuOccupancyMaxPotentialBlockSizeWithFlags", || {
        let shared = shared_size(shared_for_block, dynamic_shared);
        best_block(&grid, &block, handle, shared, limit)
    })
}

/// Without an attribute for clusters every block is one of its own.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuOccupancyMaxActiveClusters(
    count: Out<i32>,
    handle: Handle,
    config: In<Config>,
) -> CUresult {
    call("cuOccupancyMaxActiveClusters", || {
        let (driver, function) = function(handle)?;
        let config = config.get()?;
        let cluster: u32 = config
            .attributes()?
            .cluster
            .map_or(1, |sides| sides.iter().product());
        let threads = config.threads();
        let per = blocks(&driver, &function, threads, config.dynamic_shared as usize)?;
        // as many as there is room for: which multiprocessors may form a cluster is not modelled
        let clusters = per * driver.device.multiprocessors / cluster.max(1);
        count.set(clusters as i32)
    })
}

/// The largest clusters that every device of the arch has, if a block fits at all.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuOccupancyMaxPotentialClusterSize(
    size: Out<i32>,
    handle: Handle,
    config: In<Config>,
) -> CUresult {
    call("cuOccupancyMaxPotentialClusterSize", || {
        let (driver, function) = function(handle)?;
        let config = config.get()?;
        let threads = config.threads();
        if blocks(&driver, &function, threads, config.dynamic_shared as usize)? == 0 {
            let text = format!("no block of {threads} threads and its shared memory fits");
            return Err(Error::value(text));
        }
        size.set(driver.device.max_cluster as i32)
    })
}
