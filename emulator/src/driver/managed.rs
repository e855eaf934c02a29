//! Managed memory: host memory that kernels reach under the same address. It never moves, so advice and prefetches have
//! nothing to do but check their range.

use super::context::{check_device, current};
use super::error::{Error, Result};
use super::ffi::{CUdevice, CUdeviceptr, CUresult, Handle, Out, call, lock};
use super::host::Kind;
use super::pool::Location;
use super::stream::stream;

// `CUmemAttach_flags`.
const GLOBAL: u32 = 1;
const HOST: u32 = 2;
const SINGLE: u32 = 4;

/// The device of calls from before CUDA 12.2 that means the host.
const CPU: CUdevice = -1;

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemAllocManaged(
    out: Out<CUdeviceptr>,
    bytes: usize,
    flags: u32,
) -> CUresult {
    call("cuMemAllocManaged", || {
        let (driver, context) = current()?;
        out.check()?;
        lock(&driver.captures).forbid("cuMemAllocManaged")?;
        if !matches!(flags, GLOBAL | HOST) {
            let text = format!(
                "managed memory is attached to all streams (1) or to the host (2), not {flags:#x}"
            );
            return Err(Error::value(text));
        }
        let (host, memory) = (&driver.host, &driver.memory);
        let pointer = host.allocate(memory, context.handle, bytes, (flags, Kind::Managed))?;
        out.set(pointer.addr() as CUdeviceptr)
    })
}

/// Refuses a range that is not managed memory.
fn check(address: CUdeviceptr, bytes: usize) -> Result<()> {
    let (driver, _) = current()?;
    let start = usize::try_from(address).unwrap_or(usize::MAX);
    let inside = (driver.host.find(start)).is_some_and(|block| {
        let room = block.base + block.bytes - start;
        block.kind == Kind::Managed && bytes > 0 && bytes <= room
    });
    if inside {
        return Ok(());
    }
    Err(Error::value(format!(
        "{bytes} bytes at {address:#x} are no managed memory"
    )))
}

/// Access by one stream or by all is the same here: the host waits for each launch.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamAttachMemAsync(
    handle: Handle,
    address: CUdeviceptr,
    bytes: usize,
    flags: u32,
) -> CUresult {
    call("cuStreamAttachMemAsync", || {
        let (driver, context) = current()?;
        stream(&driver, &context, handle)?;
        let start = usize::try_from(address).unwrap_or(usize::MAX);
        let whole = driver.host.find(start).is_some_and(|block| {
            let all = bytes == 0 || bytes == block.bytes;
            block.kind == Kind::Managed && block.base == start && all
        });
        if !whole || !matches!(flags, GLOBAL | HOST | SINGLE) {
            return Err(Error::value(format!(
                "{bytes} bytes at {address:#x} with flags {flags:#x}: a whole allocation of managed memory is \
                 attached, to all (1), the host (2) or a stream (4)"
            )));
        }
        Ok(())
    })
}

fn prefetch(address: CUdeviceptr, bytes: usize, handle: Handle) -> Result<()> {
    check(address, bytes)?;
    let (driver, context) = current()?;
    stream(&driver, &context, handle).map(drop)
}

fn check_place(device: CUdevice) -> Result<()> {
    match device {
        CPU => Ok(()),
        device => check_device(device),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemPrefetchAsync(
    address: CUdeviceptr,
    bytes: usize,
    device: CUdevice,
    stream: Handle,
) -> CUresult {
    call("cuMemPrefetchAsync", || {
        check_place(device)?;
        prefetch(address, bytes, stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemPrefetchAsync_v2(
    address: CUdeviceptr,
    bytes: usize,
    place: Location,
    flags: u32,
    stream: Handle,
) -> CUresult {
    call("cuMemPrefetchAsync", || {
        place.check_any()?;
        if flags != 0 {
            return Err(Error::value("a prefetch has no flags"));
        }
        prefetch(address, bytes, stream)
    })
}

/// `CUmem_advise` has the values 1 to 6.
fn advise(address: CUdeviceptr, bytes: usize, advice: u32) -> Result<()> {
    if !(1..=6).contains(&advice) {
        return Err(Error::value(format!("{advice} is no CUmem_advise")));
    }
    check(address, bytes)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemAdvise(
    address: CUdeviceptr,
    bytes: usize,
    advice: u32,
    device: CUdevice,
) -> CUresult {
    call("cuMemAdvise", || {
        check_place(device)?;
        advise(address, bytes, advice)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemAdvise_v2(
    address: CUdeviceptr,
    bytes: usize,
    advice: u32,
    place: Location,
) -> CUresult {
    call("cuMemAdvise", || {
        place.check_any()?;
        advise(address, bytes, advice)
    })
}
