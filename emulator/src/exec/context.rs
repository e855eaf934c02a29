//! What a block runs with: its memories, the race detector and the counters.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::Forgiven;
use super::Shared as Launching;
use super::bulk::Pending;
use super::cluster::Gate;
use super::global::exhausted;
use super::mbarrier::{self, Mbarrier};
use super::registers::LANES;
use super::traffic::count_range;
pub(super) use super::traffic::{count_global, count_shared};
use super::warp::Warp;
use super::wgmma::{self, Warpgroup};
use crate::fault::FaultKind;
use crate::ir::{Body, Code, Pc, Space};
use crate::memory::{Allocation, Allocations, INITIALISED, READ, WRITTEN};
use crate::race::{Accessor, Conflict, Detector, Flags, Refusal, Unordered};
use crate::report::Report;

/// Generic addresses of the windows into the memories of a block and of a thread.
pub(super) const SHARED_WINDOW: u64 = 1 << 32;
pub(super) const LOCAL_WINDOW: u64 = 2 << 32;
pub(super) const PARAM_WINDOW: u64 = 3 << 32;
/// Addresses of the shared memory of a cluster: offset `a` of block `r` is `r + 1 << CLUSTER_SHIFT | a`, and the running
/// block's own memory is at `a` as well.
pub(super) const CLUSTER_SHIFT: u32 = 24;
/// Bytes of a window.
const WINDOW: u64 = 1 << 32;

/// A mistake of one lane, before its place in the code is added.
#[derive(Debug)]
pub(super) struct Trouble {
    pub kind: FaultKind,
    /// `None` if the warp as a whole made it.
    pub lane: Option<u32>,
    pub message: String,
    /// The other access of a race on shared memory.
    pub conflict: Option<Conflict>,
    /// The other access of a race on global memory.
    pub unordered: Option<Unordered>,
}

impl Trouble {
    pub(super) fn new(
        kind: FaultKind,
        lane: impl Into<Option<u32>>,
        message: impl Into<String>,
    ) -> Box<Self> {
        Box::new(Trouble {
            kind,
            lane: lane.into(),
            message: message.into(),
            conflict: None,
            unordered: None,
        })
    }
}

fn warpgroups(blocks: usize, warps: usize) -> Vec<Warpgroup> {
    let count = blocks * warps.div_ceil(wgmma::WARPS);
    std::iter::repeat_with(Warpgroup::default)
        .take(count)
        .collect()
}

/// Result of an operation.
pub(super) type Done<T = ()> = Result<T, Box<Trouble>>;

/// The lanes of a mask, from the lowest.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        Some(lane)
    })
}

/// The surroundings of a running block, used again for the next one.
pub(super) struct Context<'l> {
    pub body: &'l Body,
    allocations: &'l Allocations,
    /// Races on global memory are judged.
    pub judges: bool,
    /// What strong accesses of the launch leave beside global memory.
    pub flags: &'l Mutex<Flags>,
    /// The allocation that served last: neighbours in time are neighbours in space.
    pub last: Option<&'l Allocation>,
    pub params: &'l [u8],
    /// The shared memory of all blocks of the cluster, [`Context::stride`] apart.
    pub shared: Vec<u8>,
    /// Bytes of one block's shared memory, and from the start of one to the next.
    pub block_bytes: usize,
    stride: usize,
    /// Where the memory of the block begins whose warp runs.
    pub own: usize,
    pub detector: Detector,
    /// mbarriers by where they lie in `shared`.
    pub mbarriers: BTreeMap<usize, Mbarrier>,
    /// mbarriers that were initialised in each block.
    pub initialised: Vec<u32>,
    /// Ends of the cluster's barrier when a fence.mbarrier_init showed an mbarrier to the cluster.
    pub init_fences: BTreeMap<usize, u64>,
    /// Times that the barrier of the cluster has opened.
    pub cluster_phase: u64,
    pub gate: Gate,
    /// What is under way and ends by itself.
    pub pending: Vec<Pending>,
    /// Grows with everything that a warp which gave way may wait for.
    pub changes: u64,
    /// Blocks whose warps have all exited.
    pub exited: Vec<bool>,
    /// Registers a thread of each warp: `.maxnreg`, then what setmaxnreg said; 0 where nothing did.
    pub registers: Vec<u32>,
    /// Warps of one block, and the warpgroups of all.
    pub block_warps: usize,
    pub warpgroups: Vec<Warpgroup>,
    /// Registers of a block, and whether the kernel says how many.
    pub register_pool: (u32, bool),
    /// What a warp has of them at its start.
    start_registers: u32,
    /// Times each operation was issued, a warp at a time.
    pub forgiven: Forgiven,
    pub issued: Vec<u64>,
    pub report: Report,
    /// Strong reads of global memory, where threads order themselves by them.
    pub polls: u64,
    /// Instructions of this block, for clocks.
    pub clock: u64,
}

impl<'l> Context<'l> {
    /// For `blocks` blocks of `warps` warps each.
    pub(super) fn new(launch: &'l Launching<'l>, blocks: usize, warps: usize) -> Self {
        let body = &launch.kernel.body;
        let block_bytes = launch.kernel.shared_bytes(launch.launch.dynamic_shared) as usize;
        let stride = block_bytes.next_multiple_of(16);
        let start_registers = launch.kernel.registers.unwrap_or(0);
        let detector =
            Detector::cluster(blocks, stride, body.shared_grain, warps, body.async_proxy);
        let detector = match body.synchronises {
            true => detector.synchronising(),
            false => detector,
        };
        Context {
            body,
            allocations: launch.allocations,
            judges: launch.options.global_races,
            flags: &launch.flags,
            last: None,
            params: launch.launch.params,
            shared: vec![0; blocks * stride],
            block_bytes,
            stride,
            own: 0,
            detector,
            mbarriers: BTreeMap::new(),
            initialised: vec![0; blocks],
            init_fences: BTreeMap::new(),
            cluster_phase: 0,
            gate: Gate::default(),
            pending: Vec::new(),
            changes: 0,
            exited: vec![false; blocks],
            registers: vec![start_registers; blocks * warps],
            block_warps: warps,
            warpgroups: warpgroups(blocks, warps),
            register_pool: match launch.kernel.registers {
                Some(each) => (each * (warps * LANES) as u32, true),
                None => (launch.device.registers_per_block, false),
            },
            start_registers,
            forgiven: launch.options.forgiven,
            issued: vec![0; body.ops.len()],
            report: Report::default(),
            polls: 0,
            clock: 0,
        }
    }

    /// Forgets the blocks that ran here; the next are number `unit` of the grid.
    pub(super) fn reset(&mut self, unit: u64) {
        self.detector.reset(unit as u32);
        self.mbarriers.clear();
        self.initialised.fill(0);
        self.init_fences.clear();
        self.cluster_phase = 0;
        self.gate = Gate::default();
        self.pending.clear();
        self.changes = 0;
        self.exited.fill(false);
        self.registers.fill(self.start_registers);
        self.warpgroups = warpgroups(self.exited.len(), self.block_warps);
        self.clock = 0;
    }

    /// A warp of block `rank` of the cluster runs from now on.
    pub(super) fn enter(&mut self, rank: usize) {
        self.own = rank * self.stride;
    }

    /// The block that a byte of the cluster's shared memory belongs to.
    pub(super) fn block_at(&self, at: usize) -> usize {
        at / self.stride.max(1)
    }

    /// The offset in its block of a byte of the cluster's shared memory.
    pub(super) fn offset_in_block(&self, at: usize) -> usize {
        at % self.stride.max(1)
    }

    /// A fence shows the async proxy the mbarriers that these lanes have initialised, or have seen initialised. With
    /// `cluster`, as `fence.mbarrier_init` does, all that the barrier of the cluster lets go on from here see them too.
    pub(super) fn show_mbarriers(&mut self, warp: &Warp, active: u32, cluster: bool) {
        for (&at, barrier) in &mut self.mbarriers {
            if barrier.shown && !cluster {
                continue;
            }
            let seen = lanes(active).any(|lane| {
                let by = mbarrier::accessor(warp, lane);
                self.detector.use_object(at, by).is_ok()
            });
            barrier.shown |= seen;
            if seen && cluster {
                self.init_fences.entry(at).or_insert(self.cluster_phase);
            }
        }
    }

    pub(super) fn init_is_visible(&self, at: usize) -> bool {
        (self.init_fences.get(&at)).is_some_and(|&phase| phase < self.cluster_phase)
    }

    /// An instruction and its line, for a message.
    pub(super) fn place(&self, pc: Pc) -> String {
        let line = self.body.origins[pc as usize].ptx;
        format!("PTX line {line}: {}", self.body.texts.get(pc))
    }

    /// What an instruction is called that works on shared memory by itself.
    pub(super) fn copy_name(&self, pc: Pc) -> &'static str {
        match self.body.ops.get(pc as usize).map(|op| &op.code) {
            Some(Code::Hopper(op)) => op.name(),
            _ => "the cp.async",
        }
    }

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

    /// A warp has synchronised: what its lanes do next comes after what they did before.
    pub(super) fn new_period(&mut self, warp: usize) -> Done {
        match self.detector.warp_sync(warp) {
            true => Ok(()),
            false => Err(exhausted()),
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
        for (at, &byte) in bytes.iter().enumerate() {
            // SAFETY: `global` checked that as many bytes lie there.
            unsafe {
                *data.add(at) = byte;
                *state.add(at) |= INITIALISED | WRITTEN;
            }
        }
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
        for (at, &byte) in bytes.iter().enumerate() {
            // SAFETY: `global_range` checked that as many bytes lie there.
            unsafe {
                *to.add(at) = byte;
                *state.add(at) |= INITIALISED | WRITTEN;
            }
        }
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

/// The state space and address in it of a generic address.
pub(super) fn resolve(address: u64) -> (Space, u64) {
    match address {
        SHARED_WINDOW..LOCAL_WINDOW => (Space::Shared, address - SHARED_WINDOW),
        LOCAL_WINDOW..PARAM_WINDOW => (Space::Local, address - LOCAL_WINDOW),
        _ if (PARAM_WINDOW..PARAM_WINDOW + WINDOW).contains(&address) => {
            (Space::Param, address - PARAM_WINDOW)
        }
        _ => (Space::Global, address),
    }
}
