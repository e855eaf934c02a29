//! Accesses of a lane to global and shared memory: checked, judged and done.

use std::sync::atomic::Ordering;

use super::context::{CLUSTER_SHIFT, Context, Done, Trouble};
use super::traffic::count_range;
use crate::fault::FaultKind;
use crate::ir::Pc;
use crate::memory::{Allocation, INITIALISED, READ, WRITTEN};
use crate::race::{Accessor, Refusal};

impl<'l> Context<'l> {
    /// Checks an access of one lane to global memory; gives its data and its states.
    #[inline]
    pub(super) fn global(
        &mut self,
        lane: u32,
        address: u64,
        bytes: u64,
        write: bool,
    ) -> Done<(*mut u8, *mut u8)> {
        let hit = self
            .last
            .filter(|a| address >= a.base && address - a.base + bytes <= a.bytes);
        let allocation = match hit {
            Some(allocation) => allocation,
            None => self.find(lane, address, bytes, write)?,
        };
        if !address.is_multiple_of(bytes.next_power_of_two()) {
            let verb = if write { "writes" } else { "reads" };
            let message = format!(
                "{verb} {bytes} bytes of global memory at {address:#x}, which is not a multiple of {bytes}"
            );
            return Err(Trouble::new(FaultKind::Misaligned, lane, message));
        }
        let offset = (address - allocation.base) as usize;
        // SAFETY: the range lies inside the allocation, by the comparison above or by `Allocations::find`; the launch
        // holds the memory's lock, so that the buffers live.
        Ok(unsafe { (allocation.data.add(offset), allocation.state.add(offset)) })
    }

    /// The allocation that a byte lies in.
    pub(super) fn holder(&mut self, address: u64) -> Option<&'l Allocation> {
        let hit = self
            .last
            .filter(|a| address >= a.base && address - a.base < a.bytes);
        hit.or_else(|| self.allocations.find(address, 1).ok())
    }

    pub(super) fn find(
        &mut self,
        lane: u32,
        address: u64,
        bytes: u64,
        write: bool,
    ) -> Done<&'l Allocation> {
        match self.allocations.find(address, bytes) {
            Ok(allocation) => {
                allocation.touched.store(true, Ordering::Relaxed);
                self.last = Some(allocation);
                Ok(allocation)
            }
            Err(reason) => {
                let verb = if write { "writes" } else { "reads" };
                let message =
                    format!("{verb} {bytes} bytes of global memory at {address:#x}: {reason}");
                Err(Trouble::new(FaultKind::OutOfBounds, lane, message))
            }
        }
    }

    /// Reads global bytes of one lane.
    #[inline]
    pub(super) fn load_global(&mut self, lane: u32, address: u64, out: &mut [u8]) -> Done {
        let (data, state) = self.global(lane, address, out.len() as u64, false)?;
        let mut all = INITIALISED;
        for (at, byte) in out.iter_mut().enumerate() {
            // SAFETY: `global` checked that as many bytes lie there.
            unsafe {
                *byte = *data.add(at);
                let mark = state.add(at);
                all &= *mark;
                *mark |= READ;
            }
        }
        if all & INITIALISED == 0 {
            let message = format!(
                "reads {} bytes of global memory at {address:#x} that nobody wrote",
                out.len()
            );
            return Err(Trouble::new(FaultKind::Uninitialised, lane, message));
        }
        Ok(())
    }

    /// Writes global bytes of one lane.
    #[inline]
    pub(super) fn store_global(&mut self, lane: u32, address: u64, bytes: &[u8]) -> Done {
        let (data, state) = self.global(lane, address, bytes.len() as u64, true)?;
        // SAFETY: `global` checked that as many bytes lie there.
        unsafe { put(data, state, bytes) };
        Ok(())
    }

    /// Checks an access of one lane to shared memory; gives its offset.
    #[inline]
    pub(super) fn shared_offset(
        &self,
        (pc, lane): (Pc, u32),
        address: u64,
        bytes: usize,
        write: bool,
    ) -> Done<usize> {
        let at = self.shared_place((pc, lane), address, bytes, write)?;
        if !address.is_multiple_of(bytes as u64) {
            let verb = if write { "writes" } else { "reads" };
            let message = format!(
                "{verb} {bytes} bytes of shared memory at offset {address:#x}, which is not a multiple of {bytes}"
            );
            return Err(Trouble::new(FaultKind::Misaligned, lane, message));
        }
        Ok(at)
    }

    /// The place of bytes in `shared`, whatever their alignment.
    #[inline]
    pub(super) fn shared_place(
        &self,
        (pc, lane): (Pc, u32),
        address: u64,
        bytes: usize,
        write: bool,
    ) -> Done<usize> {
        let inside = address
            .checked_add(bytes as u64)
            .is_some_and(|end| end <= self.block_bytes as u64);
        if inside {
            return Ok(self.own + address as usize);
        }
        self.remote_offset((pc, lane), address, bytes, write)
    }

    /// The address of the same offset in block `rank` of the cluster.
    pub(super) fn address_in(&self, rank: usize, address: u64) -> u64 {
        (rank as u64 + 1) << CLUSTER_SHIFT | address & ((1 << CLUSTER_SHIFT) - 1)
    }

    /// Checks a range of global memory of any length.
    fn global_range(
        &mut self,
        lane: u32,
        address: u64,
        bytes: usize,
        write: bool,
    ) -> Done<(*mut u8, *mut u8)> {
        let allocation = self.find(lane, address, bytes as u64, write)?;
        let offset = (address - allocation.base) as usize;
        // SAFETY: the range lies inside the allocation by `Allocations::find`; the launch holds the memory's lock, so that
        // the buffers live.
        Ok(unsafe { (allocation.data.add(offset), allocation.state.add(offset)) })
    }

    /// Checks a range of global memory that is accessed later.
    pub(super) fn check_global(
        &mut self,
        lane: u32,
        address: u64,
        bytes: usize,
        write: bool,
    ) -> Done {
        if bytes != 0 {
            self.global_range(lane, address, bytes, write)?;
        }
        Ok(())
    }

    /// Reads a range of global memory with what it knows of each byte.
    pub(super) fn read_global(
        &mut self,
        lane: u32,
        address: u64,
        bytes: usize,
    ) -> Done<(Vec<u8>, Vec<bool>)> {
        let (mut data, mut valid) = (vec![0; bytes], vec![false; bytes]);
        if bytes == 0 {
            return Ok((data, valid));
        }
        let (from, state) = self.global_range(lane, address, bytes, false)?;
        for at in 0..bytes {
            // SAFETY: `global_range` checked that as many bytes lie there.
            unsafe {
                data[at] = *from.add(at);
                let mark = state.add(at);
                valid[at] = *mark & INITIALISED != 0;
                *mark |= READ;
            }
        }
        count_range(&mut self.report.global_loads, address, bytes);
        Ok((data, valid))
    }

    /// Writes a range of global memory.
    pub(super) fn write_global(&mut self, lane: u32, address: u64, bytes: &[u8]) -> Done {
        if bytes.is_empty() {
            return Ok(());
        }
        let (to, state) = self.global_range(lane, address, bytes.len(), true)?;
        // SAFETY: `global_range` checked that as many bytes lie there.
        unsafe { put(to, state, bytes) };
        count_range(&mut self.report.global_stores, address, bytes.len());
        Ok(())
    }

    /// The place of an address that does not lie in the block's own memory: see [`CLUSTER_SHIFT`].
    #[cold]
    fn remote_offset(
        &self,
        (pc, lane): (Pc, u32),
        address: u64,
        bytes: usize,
        write: bool,
    ) -> Done<usize> {
        let verb = if write { "writes" } else { "reads" };
        let (rank, offset) = (
            address >> CLUSTER_SHIFT,
            address & ((1 << CLUSTER_SHIFT) - 1),
        );
        let size = self.block_bytes;
        let inside = offset + bytes as u64 <= size as u64;
        let blocks = self.exited.len();
        if rank == 0 || rank > blocks as u64 || !inside {
            let block = if rank == 0 || rank > blocks as u64 {
                String::new()
            } else {
                format!(" of block {} of the cluster", rank - 1)
            };
            let offset = if block.is_empty() { address } else { offset };
            let message = format!(
                "{verb} {bytes} bytes of shared memory{block} at offset {offset:#x}; the block has {size} bytes"
            );
            return Err(Trouble::new(FaultKind::OutOfBounds, lane, message));
        }
        let rank = rank as usize - 1;
        if self.exited[rank] {
            let message = format!(
                "{verb} {bytes} bytes of shared memory of block {rank} of the cluster, which has exited"
            );
            return Err(Trouble::new(FaultKind::OutOfBounds, lane, message));
        }
        if rank * self.stride != self.own && self.body.near.get(pc as usize) == Some(&true) {
            let message = format!(
                "{verb} {bytes} bytes of shared memory of block {rank} of the cluster by an instruction that reaches its own alone"
            );
            return Err(Trouble::new(FaultKind::OutOfBounds, lane, message));
        }
        Ok(rank * self.stride + offset as usize)
    }

    /// Reads shared bytes of one lane, or of the warp by the row that a lane names.
    #[inline]
    pub(super) fn load_shared(&mut self, by: Accessor, address: u64, out: &mut [u8]) -> Done {
        let at = self.shared_offset((by.pc, by.lane), address, out.len(), false)?;
        if let Err(refusal) = self.detector.read(at, out.len(), by) {
            let unwritten = matches!(refusal, Refusal::Uninitialised);
            if !(unwritten && self.forgiven.unwritten_shared) {
                return Err(refused(self, by, at, out.len(), "reads", refusal));
            }
        }
        out.copy_from_slice(&self.shared[at..at + out.len()]);
        Ok(())
    }

    /// Writes shared bytes of one lane.
    #[inline]
    pub(super) fn store_shared(&mut self, by: Accessor, address: u64, bytes: &[u8]) -> Done {
        let at = self.shared_offset((by.pc, by.lane), address, bytes.len(), true)?;
        if let Err(refusal) = self.detector.write(at, bytes.len(), by) {
            // threads may write one value to one place: whichever comes last, it stands there
            if !refusal.is_plain_write() || self.shared[at..at + bytes.len()] != *bytes {
                return Err(refused(self, by, at, bytes.len(), "writes", refusal));
            }
        }
        self.shared[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// Writes bytes and marks them written.
///
/// # Safety
/// As many bytes of data and of states must lie at the pointers.
#[inline]
unsafe fn put(data: *mut u8, state: *mut u8, bytes: &[u8]) {
    for (at, &byte) in bytes.iter().enumerate() {
        // SAFETY: this function's own condition.
        unsafe {
            *data.add(at) = byte;
            *state.add(at) |= INITIALISED | WRITTEN;
        }
    }
}

/// The words for an access that the race detector refuses.
#[cold]
pub(super) fn refused(
    context: &Context<'_>,
    by: Accessor,
    at: usize,
    bytes: usize,
    verb: &str,
    refusal: Refusal,
) -> Box<Trouble> {
    let offset = context.offset_in_block(at);
    let what = format!("{verb} {bytes} bytes of shared memory at offset {offset:#x}");
    let conflict = match refusal {
        Refusal::Uninitialised => {
            let message = format!("{what} that nobody wrote");
            return Trouble::new(FaultKind::Uninitialised, by.lane, message);
        }
        Refusal::Conflict(conflict) => conflict,
    };
    let did = if conflict.write { "wrote" } else { "read" };
    let (kind, message) = if conflict.unfenced {
        let message = format!(
            "{what} by the async proxy, which another proxy wrote, with no fence.proxy.async in between"
        );
        (FaultKind::Race, message)
    } else if conflict.object && conflict.warp == by.warp && verb.contains("uses") {
        let message =
            format!("{what} that another thread initialised, with no bar.warp.sync in between");
        (FaultKind::Race, message)
    } else if conflict.object && verb.contains("uses") {
        let message = format!("{what} that another thread initialised, with no barrier in between");
        (FaultKind::Race, message)
    } else if conflict.object {
        (FaultKind::Race, format!("{what} that hold an mbarrier"))
    } else if conflict.pending {
        let name = context.copy_name(conflict.pc).trim_start_matches("the ");
        let does = if conflict.write { "writing" } else { "reading" };
        let message = format!("{what} that a {name} is still {does}: it was not waited for");
        (FaultKind::MissingWait, message)
    } else if conflict.agent {
        let message =
            format!("{what} that an asynchronous copy {did}, and this thread did not wait for it");
        (FaultKind::MissingWait, message)
    } else if conflict.warp != by.warp {
        let message = format!("{what} that another thread {did}, with no barrier in between");
        (FaultKind::Race, message)
    } else if by.collective {
        // the lane that names a row may be the one that wrote it: the others still need to see it
        let message = format!(
            "{what} for the warp, one of whose threads {did} them, with no bar.warp.sync in between"
        );
        (FaultKind::Race, message)
    } else {
        let message = format!("{what} that another thread {did}, with no bar.warp.sync in between");
        (FaultKind::Race, message)
    };
    Box::new(Trouble {
        kind,
        lane: Some(by.lane),
        message,
        conflict: Some(conflict),
        unordered: None,
    })
}
