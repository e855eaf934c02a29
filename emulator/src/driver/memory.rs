//! Device memory: allocation, release and what is known of an address.
//!
//! Stream-ordered calls take effect at once, as all work does.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::context::current;
use super::error::{Error, Result, code};
use super::ffi::{CUdeviceptr, CUresult, Handle, Out, call, lock};
use super::host::Kind;
use super::state::Driver;
use super::stream::stream;
use crate::memory::Memory;

/// Rows of a pitched allocation begin at multiples of this, in bytes, as on hardware.
const PITCH: usize = 512;

/// What the driver notes about one allocation.
#[derive(Clone, Copy)]
pub(super) struct Allocation {
    pub(super) context: Handle,
    /// The pool that it came from; `None` for `cuMemAlloc`.
    pub(super) pool: Option<Handle>,
    pub(super) bytes: u64,
    /// A number that no other allocation has or had.
    pub(super) id: u64,
}

/// Notes about all live allocations, by address.
#[derive(Default)]
pub(super) struct Allocations(Mutex<Notes>);

#[derive(Default)]
struct Notes {
    live: BTreeMap<u64, Allocation>,
    made: u64,
    /// First address and end of all that was ever allocated.
    range: Option<(u64, u64)>,
}

impl Allocations {
    /// The note on the allocation that starts at `base`.
    pub(super) fn get(&self, base: u64) -> Option<Allocation> {
        lock(&self.0).live.get(&base).copied()
    }

    /// Whether an address is the device's, be it live or freed; all others are the host's.
    pub(super) fn is_device(&self, address: u64) -> bool {
        (lock(&self.0).range).is_some_and(|(start, end)| (start..end).contains(&address))
    }

    /// Widens what counts as the device's addresses.
    pub(super) fn include(&self, base: u64, bytes: u64) {
        let mut notes = lock(&self.0);
        let (start, end) = notes.range.unwrap_or((base, base));
        notes.range = Some((start.min(base), end.max(base.saturating_add(bytes))));
    }

    /// Bytes that are allocated from a pool.
    pub(super) fn of_pool(&self, pool: Handle) -> u64 {
        let notes = lock(&self.0);
        let own = notes.live.values().filter(|a| a.pool == Some(pool));
        own.map(|allocation| allocation.bytes).sum()
    }

    /// Frees all that a context allocated.
    pub(super) fn end_of_context(&self, memory: &Memory, context: Handle) {
        lock(&self.0).live.retain(|base, allocation| {
            let stays = allocation.context != context;
            if !stays {
                // It is live by this very list, so the memory knows it.
                let _ = memory.free(*base);
            }
            stays
        });
    }
}

impl Driver {
    /// Allocates device memory for a context.
    pub(super) fn allocate(
        &self,
        context: Handle,
        pool: Option<Handle>,
        bytes: usize,
    ) -> Result<CUdeviceptr> {
        let bytes = bytes as u64;
        if bytes == 0 {
            return Err(Error::value("an allocation needs at least one byte"));
        }
        let base = self.memory.alloc(bytes)?;
        self.allocations.include(base, bytes);
        let mut notes = lock(&self.allocations.0);
        notes.made += 1;
        let id = notes.made;
        let allocation = Allocation {
            context,
            pool,
            bytes,
            id,
        };
        notes.live.insert(base, allocation);
        Ok(base)
    }

    fn release(&self, address: CUdeviceptr) -> Result<()> {
        if address == 0 {
            return Ok(());
        }
        let start = usize::try_from(address).unwrap_or(usize::MAX);
        if self.host.remove(&self.memory, start, Kind::Managed) {
            return Ok(());
        }
        let mut notes = lock(&self.allocations.0);
        let starts = self
            .memory
            .extent(address)
            .is_some_and(|(base, _)| base == address);
        if starts && !notes.live.contains_key(&address) {
            let text = format!("{address:#x} was not given out by an allocating call");
            return Err(Error::value(text));
        }
        self.memory.free(address)?;
        notes.live.remove(&address);
        Ok(())
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemAlloc_v2(out: Out<CUdeviceptr>, bytes: usize) -> CUresult {
    call("cuMemAlloc", || {
        let (driver, context) = current()?;
        out.check()?;
        lock(&driver.captures).forbid("cuMemAlloc")?;
        out.set(driver.allocate(context.handle, None, bytes)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemAllocPitch_v2(
    out: Out<CUdeviceptr>,
    pitch: Out<usize>,
    width: usize,
    height: usize,
    element: u32,
) -> CUresult {
    call("cuMemAllocPitch", || {
        let (driver, context) = current()?;
        out.check()?;
        lock(&driver.captures).forbid("cuMemAllocPitch")?;
        if !matches!(element, 4 | 8 | 16) {
            let text = format!("elements of {element} bytes: there are 4, 8 and 16");
            return Err(Error::value(text));
        }
        let row = width.checked_next_multiple_of(PITCH);
        let bytes = row.and_then(|row| row.checked_mul(height));
        let (Some(row), Some(bytes)) = (row, bytes) else {
            return Err(Error::value(format!(
                "{height} rows of {width} bytes overflow"
            )));
        };
        pitch.set(row)?;
        out.set(driver.allocate(context.handle, None, bytes)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemFree_v2(address: CUdeviceptr) -> CUresult {
    call("cuMemFree", || {
        let (driver, _) = current()?;
        lock(&driver.captures).forbid("cuMemFree")?;
        driver.release(address)
    })
}

/// Stream-ordered allocation from a pool; null means the current one.
fn allocate_async(
    name: &str,
    out: &Out<CUdeviceptr>,
    bytes: usize,
    pool: Handle,
    stream_handle: Handle,
) -> Result<()> {
    let (driver, context) = current()?;
    out.check()?;
    let stream = stream(&driver, &context, stream_handle)?;
    lock(&driver.captures).forbid_on(name, &stream)?;
    let pool = match pool {
        0 => *lock(&driver.current_pool),
        pool => pool,
    };
    driver.pools.get(pool)?;
    out.set(driver.allocate(context.handle, Some(pool), bytes)?)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemAllocAsync(
    out: Out<CUdeviceptr>,
    bytes: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemAllocAsync", || {
        allocate_async("cuMemAllocAsync", &out, bytes, 0, stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemAllocFromPoolAsync(
    out: Out<CUdeviceptr>,
    bytes: usize,
    pool: Handle,
    stream: Handle,
) -> CUresult {
    const NAME: &str = "cuMemAllocFromPoolAsync";
    call(NAME, || {
        if pool == 0 {
            return Err(Error::new(code::INVALID_HANDLE, "the memory pool is null"));
        }
        allocate_async(NAME, &out, bytes, pool, stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemFreeAsync(address: CUdeviceptr, handle: Handle) -> CUresult {
    call("cuMemFreeAsync", || {
        let (driver, context) = current()?;
        let stream = stream(&driver, &context, handle)?;
        lock(&driver.captures).forbid_on("cuMemFreeAsync", &stream)?;
        driver.release(address)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> CUresult {
    call("cuMemGetInfo", || {
        let (driver, _) = current()?;
        let (used, capacity) = (driver.memory.used(), driver.memory.capacity());
        free.set(capacity.saturating_sub(used) as usize)?;
        total.set(capacity as usize)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemGetAddressRange_v2(
    base: Out<CUdeviceptr>,
    bytes: Out<usize>,
    address: CUdeviceptr,
) -> CUresult {
    call("cuMemGetAddressRange", || {
        let (driver, _) = current()?;
        let (start, size) = (driver.memory.extent(address)).ok_or_else(|| {
            let text = format!("{address:#x} lies in no allocation that is alive");
            Error::new(code::NOT_FOUND, text)
        })?;
        base.set_if_wanted(start);
        bytes.set_if_wanted(size as usize);
        Ok(())
    })
}
