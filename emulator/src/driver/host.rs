//! Host memory that the driver gives out or takes note of: pinned memory, and the blocks of managed memory. It is
//! ordinary memory of the process, which kernels reach under the same address. What the host writes there is not seen,
//! so that all of it counts as written.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Mutex;

use super::context::current;
use super::error::{Error, Result, code};
use super::ffi::{CUdeviceptr, CUresult, Handle, HostPtr, Out, call, lock};
use crate::memory::Memory;

/// Pinned memory begins at a page, in bytes.
const PAGE: usize = 4096;

/// All host memory that the driver knows, by address.
#[derive(Default)]
pub(super) struct HostBlocks(Mutex<BTreeMap<usize, Block>>);

struct Block {
    pointer: HostPtr,
    context: Handle,
    bytes: usize,
    flags: u32,
    kind: Kind,
    /// How it is given back; `None` for memory of the program.
    layout: Option<Layout>,
}

/// What a block of host memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Given out by `cuMemAllocHost` or `cuMemHostAlloc`.
    Pinned,
    /// The program's own, pinned by `cuMemHostRegister`.
    Registered,
    /// Given out by `cuMemAllocManaged`.
    Managed,
}

/// Where a block lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) base: usize,
    pub(super) bytes: usize,
    pub(super) kind: Kind,
    pub(super) context: Handle,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(layout) = self.layout {
            // SAFETY: `HostBlocks::allocate` got it with this layout; blocks leave the map once.
            unsafe { dealloc(self.pointer.0.cast(), layout) };
        }
    }
}

impl HostBlocks {
    /// Zeroed memory of the host, which the device reaches too.
    pub(super) fn allocate(
        &self,
        memory: &Memory,
        context: Handle,
        bytes: usize,
        (flags, kind): (u32, Kind),
    ) -> Result<*mut c_void> {
        if bytes == 0 {
            return Err(Error::value("0 bytes of host memory cannot be"));
        }
        let full = || {
            Error::new(
                code::OUT_OF_MEMORY,
                format!("the host has no {bytes} bytes left"),
            )
        };
        // Whole pages, so that what lies behind the block is nobody else's.
        let pages = bytes.checked_next_multiple_of(PAGE);
        let layout = pages
            .and_then(|size| Layout::from_size_align(size, PAGE).ok())
            .ok_or_else(full)?;
        // SAFETY: the layout has a size above 0.
        let pointer = HostPtr(unsafe { alloc_zeroed(layout) }.cast());
        if pointer.0.is_null() {
            return Err(full());
        }
        let block = Block {
            pointer,
            context,
            bytes,
            flags,
            kind,
            layout: Some(layout),
        };
        // SAFETY: the block's memory lives until it leaves the list, and is unmapped before that (`remove`,
        // `end_of_context`).
        unsafe { memory.map(pointer.0.cast(), bytes) }?;
        lock(&self.0).insert(pointer.address(), block);
        Ok(pointer.0)
    }

    /// Gives back the block of a kind that starts at an address; whether there was one.
    pub(super) fn remove(&self, memory: &Memory, address: usize, kind: Kind) -> bool {
        let mut blocks = lock(&self.0);
        let found = blocks.get(&address).is_some_and(|block| block.kind == kind);
        if found {
            memory.unmap(address as u64);
            blocks.remove(&address);
        }
        found
    }

    /// The block that holds an address.
    pub(super) fn find(&self, address: usize) -> Option<Extent> {
        let blocks = lock(&self.0);
        let (base, block) = blocks.range(..=address).next_back()?;
        (address - base < block.bytes).then_some(Extent {
            base: *base,
            bytes: block.bytes,
            kind: block.kind,
            context: block.context,
        })
    }

    /// Gives back what a context allocated.
    pub(super) fn end_of_context(&self, memory: &Memory, context: Handle) {
        lock(&self.0).retain(|address, block| {
            let stays = block.context != context;
            if !stays {
                memory.unmap(*address as u64);
            }
            stays
        });
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemAllocHost_v2(out: Out<*mut c_void>, bytes: usize) -> CUresult {
    call("cuMemAllocHost", || {
        allocate("cuMemAllocHost", &out, bytes, 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemHostAlloc(
    out: Out<*mut c_void>,
    bytes: usize,
    flags: u32,
) -> CUresult {
    call("cuMemHostAlloc", || {
        allocate("cuMemHostAlloc", &out, bytes, flags)
    })
}

fn allocate(name: &str, out: &Out<*mut c_void>, bytes: usize, flags: u32) -> Result<()> {
    let (driver, context) = current()?;
    out.check()?;
    lock(&driver.captures).forbid(name)?;
    /// All of `CU_MEMHOSTALLOC_*`: portable, mapped, write-combined.
    const FLAGS: u32 = 7;
    if flags & !FLAGS != 0 {
        let text = format!("{flags:#x} are no flags of pinned memory");
        return Err(Error::value(text));
    }
    let pinned = (flags, Kind::Pinned);
    out.set((driver.host).allocate(&driver.memory, context.handle, bytes, pinned)?)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemFreeHost(pointer: HostPtr) -> CUresult {
    call("cuMemFreeHost", || {
        let (driver, _) = current()?;
        lock(&driver.captures).forbid("cuMemFreeHost")?;
        let address = pointer.address();
        if driver.host.remove(&driver.memory, address, Kind::Pinned) {
            return Ok(());
        }
        Err(Error::value(format!(
            "{address:#x} is not the start of pinned memory that is alive"
        )))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemHostRegister_v2(
    pointer: HostPtr,
    bytes: usize,
    flags: u32,
) -> CUresult {
    call("cuMemHostRegister", || {
        let (driver, context) = current()?;
        if pointer.address() == 0 || bytes == 0 || pointer.address().checked_add(bytes).is_none() {
            let text = format!(
                "{bytes} bytes at {:#x} cannot be registered",
                pointer.address()
            );
            return Err(Error::value(text));
        }
        let last = pointer.address() + bytes - 1;
        let mut blocks = lock(&driver.host.0);
        // Blocks do not overlap, so the last one that begins in or before the range tells.
        let near = blocks.range(..=last).next_back();
        if near.is_some_and(|(start, block)| start + block.bytes > pointer.address()) {
            let text = format!("host memory at {:#x} is already pinned", pointer.address());
            return Err(Error::new(code::HOST_MEMORY_ALREADY_REGISTERED, text));
        }
        let block = Block {
            pointer,
            context: context.handle,
            bytes,
            flags,
            kind: Kind::Registered,
            layout: None,
        };
        // SAFETY: the program keeps the memory until it unregisters it, and it is unmapped then.
        unsafe { driver.memory.map(pointer.0.cast(), bytes) }?;
        blocks.insert(pointer.address(), block);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemHostUnregister(pointer: HostPtr) -> CUresult {
    call("cuMemHostUnregister", || {
        let (driver, _) = current()?;
        let address = pointer.address();
        if driver
            .host
            .remove(&driver.memory, address, Kind::Registered)
        {
            return Ok(());
        }
        let text = format!("host memory at {address:#x} is not registered");
        Err(Error::new(code::HOST_MEMORY_NOT_REGISTERED, text))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemHostGetFlags(flags: Out<u32>, pointer: HostPtr) -> CUresult {
    call("cuMemHostGetFlags", || {
        let (driver, _) = current()?;
        let blocks = lock(&driver.host.0);
        let block = blocks
            .get(&pointer.address())
            .filter(|block| block.kind != Kind::Managed);
        let block = block.ok_or_else(|| {
            let address = pointer.address();
            Error::value(format!(
                "{address:#x} is not the start of pinned memory that is alive"
            ))
        })?;
        flags.set(block.flags)
    })
}

/// The device reaches host memory under the host's own address.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemHostGetDevicePointer_v2(
    out: Out<CUdeviceptr>,
    pointer: HostPtr,
    flags: u32,
) -> CUresult {
    call("cuMemHostGetDevicePointer", || {
        let (driver, _) = current()?;
        let address = pointer.address();
        if flags != 0 || driver.host.find(address).is_none() {
            let text = format!("{address:#x}, flags {flags:#x}: no pinned memory and no flags");
            return Err(Error::value(text));
        }
        out.set(address as CUdeviceptr)
    })
}
