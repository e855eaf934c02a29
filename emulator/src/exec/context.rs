//! What a block runs with: its memories, the race detector and the counters.

use std::sync::atomic::Ordering;

use super::registers::LANES;
use crate::fault::FaultKind;
use crate::ir::{Body, Space};
use crate::memory::{Allocation, Allocations, INITIALISED, READ, WRITTEN};
use crate::race::{Accessor, Conflict, Detector, Refusal};
use crate::report::{GlobalTraffic, Report, SharedTraffic};

/// Generic addresses of the windows into the memories of a block and of a thread.
pub(super) const SHARED_WINDOW: u64 = 1 << 32;
pub(super) const LOCAL_WINDOW: u64 = 2 << 32;
pub(super) const PARAM_WINDOW: u64 = 3 << 32;
/// Bytes of a window.
const WINDOW: u64 = 1 << 32;

/// A mistake of one lane, before its place in the code is added.
#[derive(Debug)]
pub(super) struct Trouble {
    pub kind: FaultKind,
    /// `None` if the warp as a whole made it.
    pub lane: Option<u32>,
    pub message: String,
    /// The other access of a race.
    pub conflict: Option<Conflict>,
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
        })
    }
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
    /// The allocation that served last: neighbours in time are neighbours in space.
    last: Option<&'l Allocation>,
    pub params: &'l [u8],
    pub shared: Vec<u8>,
    pub detector: Detector,
    /// Times each operation was issued, a warp at a time.
    pub issued: Vec<u64>,
    pub report: Report,
    /// Instructions of this block, for clocks.
    pub clock: u64,
}

impl<'l> Context<'l> {
    pub(super) fn new(
        body: &'l Body,
        allocations: &'l Allocations,
        params: &'l [u8],
        shared: usize,
        warps: usize,
    ) -> Self {
        Context {
            body,
            allocations,
            last: None,
            params,
            shared: vec![0; shared],
            detector: Detector::new(shared, body.shared_grain, warps),
            issued: vec![0; body.ops.len()],
            report: Report::default(),
            clock: 0,
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

    fn find(&mut self, lane: u32, address: u64, bytes: u64, write: bool) -> Done<&'l Allocation> {
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
        if self.detector.warp_sync(warp) {
            return Ok(());
        }
        let message = "more synchronisations than the race detector can tell apart in one block";
        Err(Trouble::new(FaultKind::Divergence, None, message))
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
        lane: u32,
        address: u64,
        bytes: usize,
        write: bool,
    ) -> Done<usize> {
        let verb = if write { "writes" } else { "reads" };
        if address
            .checked_add(bytes as u64)
            .is_none_or(|end| end > self.shared.len() as u64)
        {
            let size = self.shared.len();
            let message = format!(
                "{verb} {bytes} bytes of shared memory at offset {address:#x}; the block has {size} bytes"
            );
            return Err(Trouble::new(FaultKind::OutOfBounds, lane, message));
        }
        if !address.is_multiple_of(bytes as u64) {
            let message = format!(
                "{verb} {bytes} bytes of shared memory at offset {address:#x}, which is not a multiple of {bytes}"
            );
            return Err(Trouble::new(FaultKind::Misaligned, lane, message));
        }
        Ok(address as usize)
    }

    /// Reads shared bytes of one lane, or of the warp by the row that a lane names.
    #[inline]
    pub(super) fn load_shared(&mut self, by: Accessor, address: u64, out: &mut [u8]) -> Done {
        let at = self.shared_offset(by.lane, address, out.len(), false)?;
        if let Err(refusal) = self.detector.read(at, out.len(), by) {
            return Err(refused(by, at, out.len(), "reads", refusal));
        }
        out.copy_from_slice(&self.shared[at..at + out.len()]);
        Ok(())
    }

    /// Writes shared bytes of one lane.
    #[inline]
    pub(super) fn store_shared(&mut self, by: Accessor, address: u64, bytes: &[u8]) -> Done {
        let at = self.shared_offset(by.lane, address, bytes.len(), true)?;
        if let Err(refusal) = self.detector.write(at, bytes.len(), by) {
            return Err(refused(by, at, bytes.len(), "writes", refusal));
        }
        self.shared[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// The words for an access that the race detector refuses.
pub(super) fn refused(
    by: Accessor,
    at: usize,
    bytes: usize,
    verb: &str,
    refusal: Refusal,
) -> Box<Trouble> {
    let what = format!("{verb} {bytes} bytes of shared memory at offset {at:#x}");
    let conflict = match refusal {
        Refusal::Uninitialised => {
            let message = format!("{what} that nobody wrote");
            return Trouble::new(FaultKind::Uninitialised, by.lane, message);
        }
        Refusal::Conflict(conflict) => conflict,
    };
    let did = if conflict.write { "wrote" } else { "read" };
    let (kind, message) = if conflict.pending {
        let message = format!("{what} that a cp.async is still writing: it was not waited for");
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

/// Adds one request of global memory: its 32-byte sectors.
pub(super) fn count_global(
    traffic: &mut GlobalTraffic,
    addresses: &[u64; LANES],
    mask: u32,
    bytes: u64,
) {
    let mut sectors = [0u64; 2 * LANES];
    let (mut count, mut sorted) = (0, true);
    for lane in lanes(mask) {
        for sector in addresses[lane] / 32..=(addresses[lane] + bytes - 1) / 32 {
            if count > 0 && sectors[count - 1] == sector {
                continue;
            }
            sorted &= count == 0 || sectors[count - 1] < sector;
            sectors[count] = sector;
            count += 1;
        }
    }
    let list = &mut sectors[..count];
    if !sorted {
        list.sort_unstable();
    }
    let distinct = list.chunk_by(|a, b| a == b).count();
    traffic.requests += 1;
    traffic.sectors += distinct as u64;
    traffic.bytes += bytes * u64::from(mask.count_ones());
}

/// Adds one request of shared memory: its passes over the banks, in phases of 128 bytes.
pub(super) fn count_shared(
    traffic: &mut SharedTraffic,
    addresses: &[u64; LANES],
    mask: u32,
    bytes: u64,
) {
    traffic.requests += 1;
    // a phase moves at most 128 bytes: 32 lanes of 4, 16 of 8 or 8 of 16
    let unit = bytes.max(4);
    let banks = 128 / unit;
    let group = LANES.min(banks as usize);
    for start in (0..LANES).step_by(group) {
        let phase = mask >> start & (u32::MAX >> (LANES - group));
        if phase == 0 {
            continue;
        }
        // most accesses meet every bank once, or not at all
        let met = lanes(phase).fold(0u32, |met, lane| {
            met | 1 << (addresses[start + lane] / unit % banks)
        });
        if met.count_ones() == phase.count_ones() {
            traffic.wavefronts += 1;
            traffic.ideal_wavefronts += 1;
            continue;
        }
        // the first unit that each bank serves, and those that come on top
        let mut first = [0; LANES];
        let mut depth = [0u64; LANES];
        let mut more = [0; LANES];
        let mut extra = 0;
        for lane in lanes(phase) {
            let chunk = addresses[start + lane] / unit;
            let bank = (chunk % banks) as usize;
            if depth[bank] == 0 {
                first[bank] = chunk;
            } else if first[bank] == chunk || more[..extra].contains(&chunk) {
                continue;
            } else {
                more[extra] = chunk;
                extra += 1;
            }
            depth[bank] += 1;
        }
        let distinct: u64 = depth.iter().sum();
        traffic.wavefronts += depth.into_iter().max().unwrap_or(1);
        traffic.ideal_wavefronts += (distinct * unit).div_ceil(128);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(f: impl Fn(u64) -> u64) -> [u64; LANES] {
        std::array::from_fn(|lane| f(lane as u64))
    }

    #[test]
    fn wavefronts_follow_the_banks() {
        let passes = |f: fn(u64) -> u64, bytes| {
            let mut traffic = SharedTraffic::default();
            count_shared(&mut traffic, &addresses(f), u32::MAX, bytes);
            (traffic.wavefronts, traffic.ideal_wavefronts)
        };
        assert_eq!(passes(|lane| 4 * lane, 4), (1, 1));
        assert_eq!(passes(|_| 64, 4), (1, 1), "one word for all is a broadcast");
        assert_eq!(passes(|lane| 8 * lane, 4), (2, 1));
        assert_eq!(passes(|lane| 128 * lane, 4), (32, 1));
        assert_eq!(passes(|lane| 16 * lane, 16), (4, 4));
        assert_eq!(
            passes(|lane| 128 * lane, 16),
            (32, 4),
            "eight rows at one bank a phase"
        );
        assert_eq!(passes(|lane| 2 * lane, 2), (1, 1));
    }

    #[test]
    fn sectors_are_counted_once() {
        let sectors = |f: fn(u64) -> u64, bytes| {
            let mut traffic = GlobalTraffic::default();
            count_global(&mut traffic, &addresses(f), u32::MAX, bytes);
            traffic.sectors
        };
        assert_eq!(sectors(|lane| 4 * lane, 4), 4);
        assert_eq!(sectors(|lane| 128 - 4 * (lane + 1), 4), 4);
        assert_eq!(sectors(|lane| 1024 * lane, 4), 32);
        assert_eq!(sectors(|lane| 16 * lane, 16), 16);
    }
}
