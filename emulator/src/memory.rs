//! Device memory: allocations in a fake address space with red zones, and the state of every byte.
//!
//! An address is never reused, so that a pointer into freed memory is always told from one into a later allocation.
//! Blocks run on several host threads and reach these bytes through raw pointers, as threads of a GPU do: a race of the
//! emulated program on global memory is a race here, on bytes only, until the launch that it ends.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::race::Shadow;

/// Where device addresses start: above every address of the host, so that a unified copy tells the two apart. Far below
/// lie the windows of shared, local and parameter memory.
const BASE: u64 = 1 << 48;
/// Where host memory may lie that the device reaches: above the windows of shared, local and parameter memory.
const LOWEST_MAPPED: u64 = 1 << 36;
/// Address space is given out in regions of 2 MiB: an address finds its allocation by one division.
const REGION: u64 = 1 << 21;
/// Bytes before an allocation that belong to nobody. Allocations are aligned to 256 bytes as the driver
/// promises, and to no more: a kernel that relies on more shows.
const RED_ZONE: u64 = 256;

/// The byte was written since its allocation.
pub(crate) const INITIALISED: u8 = 1;
/// The byte was read by the running launch.
pub(crate) const READ: u8 = 2;
/// The byte was written by the running launch.
pub(crate) const WRITTEN: u8 = 4;

/// A request that device memory cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The device has not that much left.
    #[error(
        "out of device memory: {requested} bytes asked for, {free} of {capacity} free, as far as the host has room"
    )]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes left.
        free: u64,
        /// Bytes of the device.
        capacity: u64,
    },
    /// Allocations have at least one byte.
    #[error("an allocation of 0 bytes")]
    Empty,
    /// The address is not the start of a live allocation.
    #[error("free of {address:#x}: {reason}")]
    BadFree {
        /// The address given.
        address: u64,
        /// What stands there.
        reason: String,
    },
    /// The range is not inside one live allocation.
    #[error("{bytes} bytes at {address:#x}: {reason}")]
    BadRange {
        /// First address.
        address: u64,
        /// Length in bytes.
        bytes: u64,
        /// What stands there.
        reason: String,
    },
}

/// One allocation; its bytes go when it is freed, its address range stays taken.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub base: u64,
    pub bytes: u64,
    /// A multiple of 16 on the host.
    pub data: *mut u8,
    /// One state byte a byte of data.
    pub state: *mut u8,
    live: bool,
    /// The bytes are the host's, which keeps them.
    borrowed: bool,
    /// Touched by the running launch: its marks are to be counted and cleared.
    pub touched: AtomicBool,
    /// What the running launch did to these bytes.
    pub shadow: Shadow,
}

// SAFETY: `data` and `state` are owned buffers that live as long as the allocation (`Allocation::new`, `Allocation::release`);
// concurrent access to their bytes is through raw pointers only, never through references.
unsafe impl Send for Allocation {}
// SAFETY: as for Send.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// `None` if the host has no room.
    fn new(base: u64, bytes: usize) -> Option<Self> {
        let layout = Self::layout(bytes)?;
        // zeroed pages come lazily from the system: a large allocation that is little used costs little
        // SAFETY: `Memory::alloc` asks for at least one byte.
        let (data, state) = unsafe { (alloc_zeroed(layout), alloc_zeroed(layout)) };
        let allocation = Allocation {
            base,
            bytes: bytes as u64,
            data,
            state,
            live: true,
            borrowed: false,
            touched: AtomicBool::new(false),
            shadow: Shadow::default(),
        };
        // dropping it gives back whichever of the two there is
        (!data.is_null() && !state.is_null()).then_some(allocation)
    }

    /// Host memory under its own address. Who writes it there is not seen, so every byte counts as written. `None` if the
    /// host has no room for the states.
    fn mapped(data: *mut u8, bytes: usize) -> Option<Self> {
        let layout = Self::layout(bytes)?;
        // SAFETY: `Memory::map` asks for at least one byte.
        let state = unsafe { alloc_zeroed(layout) };
        if state.is_null() {
            return None;
        }
        // SAFETY: it was just allocated with as many bytes.
        unsafe { std::ptr::write_bytes(state, INITIALISED, bytes) };
        Some(Allocation {
            base: data.addr() as u64,
            bytes: bytes as u64,
            data,
            state,
            live: true,
            borrowed: true,
            touched: AtomicBool::new(false),
            shadow: Shadow::default(),
        })
    }

    /// Aligned to 16 bytes on the host, so that atomics of the host serve atomics of the device.
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, 16).ok()
    }

    fn release(&mut self) {
        let Some(layout) = Self::layout(self.bytes as usize) else {
            return;
        };
        if std::mem::replace(&mut self.live, false) {
            let data = if self.borrowed {
                std::ptr::null_mut()
            } else {
                self.data
            };
            for buffer in [data, self.state] {
                if !buffer.is_null() {
                    // SAFETY: `new` or `mapped` allocated it with this layout; `live` was true, so it is freed once.
                    unsafe { dealloc(buffer, layout) };
                }
            }
        }
    }

    /// Counts and clears the marks of the last launch: bytes read, bytes written.
    pub(crate) fn take_marks(&mut self) -> (u64, u64) {
        if !self.live || !self.touched.swap(false, Ordering::Relaxed) {
            return (0, 0);
        }
        self.shadow.clear();
        // SAFETY: `state` holds `bytes` bytes while live, and no launch runs: the caller holds the write lock.
        let state = unsafe { std::slice::from_raw_parts_mut(self.state, self.bytes as usize) };
        let (mut read, mut written) = (0, 0);
        // eight states at a time: each byte of a sum counts those of one place, up to 255
        for chunk in state.chunks_mut(8 * 255) {
            let (mut reads, mut writes) = (0, 0);
            let (words, rest) = chunk.as_chunks_mut::<8>();
            for bytes in &*words {
                let word = u64::from_ne_bytes(*bytes);
                reads += word >> READ.trailing_zeros() & each(1);
                writes += word >> WRITTEN.trailing_zeros() & each(1);
            }
            // what was not touched may not even have a page yet
            if reads | writes != 0 {
                for bytes in words {
                    let word = u64::from_ne_bytes(*bytes);
                    *bytes = (word & each(INITIALISED)).to_ne_bytes();
                }
            }
            read += sum_of_bytes(reads);
            written += sum_of_bytes(writes);
            for byte in rest {
                read += u64::from(*byte & READ != 0);
                written += u64::from(*byte & WRITTEN != 0);
                *byte &= INITIALISED;
            }
        }
        (read, written)
    }
}

/// The same bits in each of eight bytes.
const fn each(bits: u8) -> u64 {
    u64::from_ne_bytes([bits; 8])
}

fn sum_of_bytes(word: u64) -> u64 {
    word.to_ne_bytes().into_iter().map(u64::from).sum()
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.release();
    }
}

/// All allocations of a device.
#[derive(Debug, Default)]
pub(crate) struct Allocations {
    /// Index + 1 of the allocation in each region; 0 is none.
    regions: Vec<u32>,
    list: Vec<Allocation>,
    /// Host memory that the device reaches too, by its address; all of it lies below [`BASE`].
    mapped: BTreeMap<u64, Allocation>,
    /// Those of them that are not freed: a process makes many more than it has at a time.
    live: BTreeSet<u32>,
    used: u64,
}

impl Allocations {
    /// The allocation whose address range (with its red zones) holds `address`.
    fn near(&self, address: u64) -> Option<&Allocation> {
        if address < BASE {
            return self.host(address);
        }
        self.list.get(self.index(address)? as usize)
    }

    fn index(&self, address: u64) -> Option<u32> {
        let region = usize::try_from(address.checked_sub(BASE)? / REGION).ok()?;
        self.regions.get(region)?.checked_sub(1)
    }

    /// The host memory that holds `address`.
    #[cold]
    fn host(&self, address: u64) -> Option<&Allocation> {
        let (base, block) = self.mapped.range(..=address).next_back()?;
        (address - base < block.bytes).then_some(block)
    }

    /// The live allocation that holds all of `bytes` bytes at `address`, or what is wrong with them.
    pub(crate) fn find(&self, address: u64, bytes: u64) -> Result<&Allocation, String> {
        let Some(allocation) = self.near(address) else {
            return Err(format!("{address:#x} lies in no allocation"));
        };
        let (base, size) = (allocation.base, allocation.bytes);
        if !allocation.live {
            return Err(format!(
                "{address:#x} lies in the {size}-byte allocation at {base:#x}, which was freed"
            ));
        }
        if address < base {
            return Err(format!(
                "{address:#x} lies {} bytes before the {size}-byte allocation at {base:#x}",
                base - address
            ));
        }
        let end = (address - base).saturating_add(bytes);
        if end > size {
            return Err(format!(
                "the access ends {} bytes past the {size}-byte allocation at {base:#x} (offset {})",
                end - size,
                address - base
            ));
        }
        Ok(allocation)
    }
}

impl Allocations {
    /// Data and states of `bytes` bytes at `address`, valid while the allocations are locked.
    fn pointers(&self, address: u64, bytes: u64) -> Result<(*mut u8, *mut u8), MemoryError> {
        let allocation = self
            .find(address, bytes)
            .map_err(|reason| MemoryError::BadRange {
                address,
                bytes,
                reason,
            })?;
        let offset = (address - allocation.base) as usize;
        // SAFETY: `find` showed that `bytes` bytes from this offset lie inside the buffers.
        Ok(unsafe { (allocation.data.add(offset), allocation.state.add(offset)) })
    }
}

/// The memory of one emulated device.
#[derive(Debug)]
pub struct Memory {
    allocations: RwLock<Allocations>,
    launching: Mutex<()>,
    capacity: u64,
}

impl Memory {
    /// Memory of `capacity` bytes; the host provides pages as they are used.
    pub fn new(capacity: u64) -> Memory {
        Memory {
            allocations: RwLock::default(),
            launching: Mutex::default(),
            capacity,
        }
    }

    /// Held by a launch from start to end: the marks count the bytes of one launch, and a second one would share them.
    pub(crate) fn one_launch(&self) -> MutexGuard<'_, ()> {
        self.launching
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Shared access to the allocations: launches hold it, so that none is freed under them.
    pub(crate) fn lock(&self) -> RwLockReadGuard<'_, Allocations> {
        self.allocations
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_mut(&self) -> RwLockWriteGuard<'_, Allocations> {
        self.allocations
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives out `bytes` uninitialised bytes, aligned to 256.
    pub fn alloc(&self, bytes: u64) -> Result<u64, MemoryError> {
        let mut all = self.lock_mut();
        let free = self.capacity - all.used;
        let Some(size) = usize::try_from(bytes).ok().filter(|_| bytes <= free) else {
            return Err(MemoryError::OutOfMemory {
                requested: bytes,
                free,
                capacity: self.capacity,
            });
        };
        if size == 0 {
            return Err(MemoryError::Empty);
        }
        let base = BASE + all.regions.len() as u64 * REGION + RED_ZONE;
        let regions = (bytes + 2 * RED_ZONE).div_ceil(REGION);
        let Some(allocation) = Allocation::new(base, size) else {
            return Err(MemoryError::OutOfMemory {
                requested: bytes,
                free,
                capacity: self.capacity,
            });
        };
        all.list.push(allocation);
        let index = all.list.len() as u32;
        all.live.insert(index - 1);
        let length = all.regions.len() + regions as usize;
        all.regions.resize(length, index);
        all.used += bytes;
        Ok(base)
    }

    /// Gives the allocation that starts at `address` back.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut all = self.lock_mut();
        let bytes = match all.find(address, 1) {
            Ok(allocation) if allocation.borrowed => {
                let reason = "it is the host's memory".to_owned();
                return Err(MemoryError::BadFree { address, reason });
            }
            Ok(allocation) if allocation.base == address => allocation.bytes,
            Ok(allocation) => {
                let reason = format!(
                    "it lies inside the allocation at {:#x}; only its start can be freed",
                    allocation.base
                );
                return Err(MemoryError::BadFree { address, reason });
            }
            Err(reason) => return Err(MemoryError::BadFree { address, reason }),
        };
        if let Some(index) = all.index(address) {
            all.live.remove(&index);
            if let Some(allocation) = all.list.get_mut(index as usize) {
                allocation.release();
            }
        }
        all.used -= bytes;
        Ok(())
    }

    /// Lets the device reach host memory under its own address.
    ///
    /// # Safety
    /// `data` is valid to read and write `bytes` bytes until [`Memory::unmap`] of its address, or the memory's end.
    pub(crate) unsafe fn map(&self, data: *mut u8, bytes: usize) -> Result<(), MemoryError> {
        let address = data.addr() as u64;
        if bytes == 0 {
            return Err(MemoryError::Empty);
        }
        let end = address.saturating_add(bytes as u64);
        // Generic addresses of other spaces lie below, addresses of the device's own memory above.
        if address < LOWEST_MAPPED || end > BASE {
            let reason = "host memory that lies there cannot be mapped".to_owned();
            return Err(MemoryError::BadRange {
                address,
                bytes: bytes as u64,
                reason,
            });
        }
        let mut all = self.lock_mut();
        let Some(block) = Allocation::mapped(data, bytes) else {
            return Err(MemoryError::OutOfMemory {
                requested: bytes as u64,
                free: self.capacity - all.used,
                capacity: self.capacity,
            });
        };
        all.mapped.insert(address, block);
        Ok(())
    }

    /// Takes host memory away from the device; nothing happens if it was not mapped.
    pub(crate) fn unmap(&self, address: u64) {
        self.lock_mut().mapped.remove(&address);
    }

    fn range<T>(
        &self,
        address: u64,
        bytes: u64,
        then: impl FnOnce(*mut u8, *mut u8) -> T,
    ) -> Result<T, MemoryError> {
        let all = self.lock();
        let (data, state) = all.pointers(address, bytes)?;
        Ok(then(data, state))
    }

    /// Whether a range lies inside one live allocation.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, address: u64, bytes: u64) -> Result<(), MemoryError> {
        match bytes {
            0 => Ok(()),
            _ => self.range(address, bytes, |_, _| ()),
        }
    }

    /// Copies host bytes to the device.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.range(address, bytes.len() as u64, |data, state| {
            // SAFETY: `range` gives pointers to as many bytes as asked for.
            unsafe {
                std::ptr::copy(bytes.as_ptr(), data, bytes.len());
                std::ptr::write_bytes(state, INITIALISED, bytes.len());
            }
        })
    }

    /// Copies device bytes to the host. Bytes that nobody wrote arrive as 0xff: a NaN in every float type.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.range(address, bytes.len() as u64, |data, state| {
            for (at, byte) in bytes.iter_mut().enumerate() {
                // SAFETY: `range` gives pointers to as many bytes as asked for.
                let (value, state) = unsafe { (*data.add(at), *state.add(at)) };
                *byte = if state & INITIALISED != 0 {
                    value
                } else {
                    0xff
                };
            }
        })
    }

    /// Writes `pattern` `count` times in a row.
    pub fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), MemoryError> {
        let bytes = (pattern.len() as u64).saturating_mul(count);
        if bytes == 0 {
            return Ok(());
        }
        self.range(address, bytes, |data, state| {
            for at in 0..bytes as usize {
                // SAFETY: `range` gives pointers to as many bytes as asked for.
                unsafe {
                    *data.add(at) = pattern[at % pattern.len()];
                    *state.add(at) = INITIALISED;
                }
            }
        })
    }

    /// Copies within the device; uninitialised bytes stay uninitialised.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        if bytes == 0 {
            return Ok(());
        }
        let all = self.lock();
        let (source, source_state) = all.pointers(from, bytes)?;
        let (data, state) = all.pointers(to, bytes)?;
        // SAFETY: `pointers` checked both ranges, and the lock is still held.
        unsafe {
            std::ptr::copy(source, data, bytes as usize);
            std::ptr::copy(source_state, state, bytes as usize);
        }
        Ok(())
    }

    /// Base and bytes of the live allocation that holds `address`.
    pub fn extent(&self, address: u64) -> Option<(u64, u64)> {
        let all = self.lock();
        all.find(address, 1)
            .ok()
            .map(|allocation| (allocation.base, allocation.bytes))
    }

    /// Bytes given out.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Bytes of the device.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Distinct bytes that the last launch read and wrote; clears the marks.
    pub(crate) fn take_marks(&self) -> (u64, u64) {
        let mut all = self.lock_mut();
        let Allocations {
            list, live, mapped, ..
        } = &mut *all;
        let mut marks = (0, 0);
        let mut count = |allocation: &mut Allocation| {
            let (read, written) = allocation.take_marks();
            marks = (marks.0 + read, marks.1 + written);
        };
        for &index in live.iter() {
            if let Some(allocation) = list.get_mut(index as usize) {
                count(allocation);
            }
        }
        mapped.values_mut().for_each(&mut count);
        marks
    }
}

#[cfg(test)]
mod tests;
