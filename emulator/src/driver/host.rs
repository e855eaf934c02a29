//! Host memory that the driver gives out or takes note of: pinned memory. It is ordinary memory of
//! the process; kernels cannot reach it, copies can.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Mutex;

use super::context::current;
use super::error::{Error, Result, code};
use super::ffi::{CUresult, Handle, HostPtr, Out, call, lock};

/// Pinned memory begins at a page, in bytes.
const PAGE: usize = 4096;

/// All pinned memory, by address.
#[derive(Default)]
pub(super) struct HostBlocks(Mutex<BTreeMap<usize, Block>>);

struct Block {
    pointer: HostPtr,
    context: Handle,
    bytes: usize,
    flags: u32,
    origin: Origin,
}

/// Whose memory it is.
enum Origin {
    /// The driver's, to be given back with this layout.
    Allocated(Layout),
    /// The program's.
    Registered,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Origin::Allocated(layout) = self.origin {
            // SAFETY: `HostBlocks::allocate` got it with this layout; blocks leave the map once.
            unsafe { dealloc(self.pointer.0.cast(), layout) };
        }
    }
}

impl HostBlocks {
    fn allocate(&self, context: Handle, bytes: usize, flags: u32) -> Result<*mut c_void> {
        let layout = Layout::from_size_align(bytes, PAGE)
            .ok()
            .filter(|_| bytes > 0);
        let layout = layout
            .ok_or_else(|| Error::value(format!("{bytes} bytes of host memory cannot be")))?;
        // SAFETY: the layout has a size above 0.
        let pointer = HostPtr(unsafe { alloc_zeroed(layout) }.cast());
        if pointer.0.is_null() {
            let text = format!("the host has no {bytes} bytes left");
            return Err(Error::new(code::OUT_OF_MEMORY, text));
        }
        let block = Block {
            pointer,
            context,
            bytes,
            flags,
            origin: Origin::Allocated(layout),
        };
        lock(&self.0).insert(pointer.address(), block);
        Ok(pointer.0)
    }

    fn release(&self, pointer: HostPtr) -> Result<()> {
        let mut blocks = lock(&self.0);
        match blocks.get(&pointer.address()) {
            Some(Block {
                origin: Origin::Allocated(_),
                ..
            }) => {
                blocks.remove(&pointer.address());
                Ok(())
            }
            _ => Err(Error::value(format!(
                "{:#x} is not the start of pinned memory that is alive",
                pointer.address()
            ))),
        }
    }

    /// Start and bytes of the pinned memory that holds an address.
    pub(super) fn extent(&self, address: usize) -> Option<(usize, usize)> {
        let blocks = lock(&self.0);
        let (start, block) = blocks.range(..=address).next_back()?;
        (address - start < block.bytes).then_some((*start, block.bytes))
    }

    /// Gives back what a context allocated.
    pub(super) fn end_of_context(&self, context: Handle) {
        lock(&self.0).retain(|_, block| block.context != context);
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
    out.set(driver.host.allocate(context.handle, bytes, flags)?)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemFreeHost(pointer: HostPtr) -> CUresult {
    call("cuMemFreeHost", || {
        let (driver, _) = current()?;
        lock(&driver.captures).forbid("cuMemFreeHost")?;
        driver.host.release(pointer)
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
            origin: Origin::Registered,
        };
        blocks.insert(pointer.address(), block);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemHostUnregister(pointer: HostPtr) -> CUresult {
    call("cuMemHostUnregister", || {
        let (driver, _) = current()?;
        let mut blocks = lock(&driver.host.0);
        match blocks.get(&pointer.address()) {
            Some(Block {
                origin: Origin::Registered,
                ..
            }) => {
                blocks.remove(&pointer.address());
                Ok(())
            }
            _ => {
                let text = format!("host memory at {:#x} is not registered", pointer.address());
                Err(Error::new(code::HOST_MEMORY_NOT_REGISTERED, text))
            }
        }
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemHostGetFlags(flags: Out<u32>, pointer: HostPtr) -> CUresult {
    call("cuMemHostGetFlags", || {
        let (driver, _) = current()?;
        let blocks = lock(&driver.host.0);
        let block = blocks.get(&pointer.address()).ok_or_else(|| {
            let address = pointer.address();
            Error::value(format!(
                "{address:#x} is not the start of pinned memory that is alive"
            ))
        })?;
        flags.set(block.flags)
    })
}
