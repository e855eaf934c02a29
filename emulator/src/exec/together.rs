//! Loads and stores of all lanes of a warp at once: one check of range, state and race where all is in order.
//!
//! Each function says so if a lane needs a closer look, and has then done nothing that the way lane by lane would not do
//! as well: it finds the fault, or that there is none.

use super::context::{Context, lanes};
use super::registers::{FULL, LANES};
use crate::memory::{Allocation, INITIALISED, READ, WRITTEN};
use crate::race::Accessor;

/// How the addresses of a warp follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// All lanes have the same.
    Same,
    /// Each lane's bytes follow those of the lane before.
    Row,
    /// In some other way, or lanes are missing.
    Any,
}

impl Pattern {
    #[inline]
    pub(super) fn of(at: &[u64; LANES], mask: u32, bytes: usize) -> Pattern {
        if mask != FULL {
            return Pattern::Any;
        }
        let (mut same, mut row) = (0, 0);
        for lane in 0..LANES {
            same |= at[lane] ^ at[0];
            row |= at[lane] ^ at[0].wrapping_add((bytes * lane) as u64);
        }
        match (same, row) {
            (0, _) => Pattern::Same,
            (_, 0) => Pattern::Row,
            _ => Pattern::Any,
        }
    }
}

/// The same bits in each of 16 bytes.
const fn each(bits: u8) -> u128 {
    u128::from_ne_bytes([bits; 16])
}

/// Asks for bits in the states of at most 16 bytes, and sets others. States that have them are left alone, so that host
/// threads which read the same bytes do not take the states from each other.
///
/// # Safety
/// `state` points to the states of `N` bytes of live device memory.
#[inline(always)]
unsafe fn mark<const N: usize>(state: *mut u8, needed: u8, set: u8) -> bool {
    let mut states = [0xff; 16];
    // SAFETY: `N` states lie there, and `N` is at most 16, or the slice would panic.
    states[..N].copy_from_slice(&unsafe { state.cast::<[u8; N]>().read_unaligned() });
    let word = u128::from_ne_bytes(states);
    if word & each(needed) != each(needed) {
        return false;
    }
    if word & each(set) != each(set) {
        let word = (word | each(set)).to_ne_bytes();
        let mut states = [0; N];
        states.copy_from_slice(&word[..N]);
        // SAFETY: as above.
        unsafe { state.cast::<[u8; N]>().write_unaligned(states) };
    }
    true
}

/// The same for a warp's row of `bytes` bytes, a multiple of 16.
///
/// # Safety
/// `state` points to the states of `bytes` bytes of live device memory.
#[inline(always)]
unsafe fn mark_row(state: *mut u8, bytes: usize, needed: u8, set: u8) -> bool {
    let words = state.cast::<u128>();
    let mut all = u128::MAX;
    for at in 0..bytes / 16 {
        // SAFETY: 16 states lie there, by the caller's promise.
        all &= unsafe { words.add(at).read_unaligned() };
    }
    if all & each(needed) != each(needed) {
        return false;
    }
    if all & each(set) != each(set) {
        for at in 0..bytes / 16 {
            // SAFETY: as above.
            unsafe {
                let word = words.add(at);
                word.write_unaligned(word.read_unaligned() | each(set));
            }
        }
    }
    true
}

/// Where `bytes` bytes at an address lie in an allocation, if they do and the address is a multiple of `N`.
#[inline(always)]
fn offset<const N: usize>(allocation: &Allocation, address: u64, bytes: usize) -> Option<usize> {
    let last = allocation.bytes.checked_sub(bytes as u64)?;
    let offset = address.wrapping_sub(allocation.base);
    (offset <= last && address.is_multiple_of(N as u64)).then_some(offset as usize)
}

impl<'l> Context<'l> {
    /// The allocation of a warp's first lane.
    #[inline]
    fn allocation(&mut self, address: u64, bytes: usize) -> Option<&'l Allocation> {
        let hit = self
            .last
            .filter(|allocation| offset::<1>(allocation, address, bytes).is_some());
        hit.or_else(|| self.find(0, address, bytes as u64, false).ok())
    }

    /// Reads `N` bytes of global memory a lane, 1 to 16 and a power of two.
    #[inline]
    pub(super) fn load_global_lanes<const N: usize>(
        &mut self,
        at: &[u64; LANES],
        mask: u32,
        pattern: Pattern,
        out: &mut [[u8; N]; LANES],
    ) -> bool {
        let first = at[mask.trailing_zeros() as usize % LANES];
        let Some(allocation) = self.allocation(first, N) else {
            return false;
        };
        match pattern {
            Pattern::Row => {
                let Some(offset) = offset::<N>(allocation, first, N * LANES) else {
                    return false;
                };
                // SAFETY: `offset` found the whole row in the allocation, which lives while the launch holds the lock;
                // `out` has its size.
                unsafe {
                    let from = allocation.data.add(offset);
                    from.copy_to_nonoverlapping(out.as_mut_ptr().cast(), N * LANES);
                    mark_row(allocation.state.add(offset), N * LANES, INITIALISED, READ)
                }
            }
            Pattern::Same => {
                let Some(offset) = offset::<N>(allocation, first, N) else {
                    return false;
                };
                // SAFETY: `offset` found the bytes in the allocation, which lives while the launch holds the lock.
                unsafe {
                    *out = [allocation
                        .data
                        .add(offset)
                        .cast::<[u8; N]>()
                        .read_unaligned(); LANES];
                    mark::<N>(allocation.state.add(offset), INITIALISED, READ)
                }
            }
            Pattern::Any => lanes(mask).all(|lane| {
                let Some(offset) = offset::<N>(allocation, at[lane], N) else {
                    return false;
                };
                // SAFETY: as for `Same`.
                unsafe {
                    out[lane] = allocation
                        .data
                        .add(offset)
                        .cast::<[u8; N]>()
                        .read_unaligned();
                    mark::<N>(allocation.state.add(offset), INITIALISED, READ)
                }
            }),
        }
    }

    /// Writes `N` bytes of global memory a lane, 1 to 16 and a power of two.
    #[inline]
    pub(super) fn store_global_lanes<const N: usize>(
        &mut self,
        at: &[u64; LANES],
        mask: u32,
        pattern: Pattern,
        bytes: &[[u8; N]; LANES],
    ) -> bool {
        const SET: u8 = INITIALISED | WRITTEN;
        let first = at[mask.trailing_zeros() as usize % LANES];
        let Some(allocation) = self.allocation(first, N) else {
            return false;
        };
        if pattern == Pattern::Row {
            let Some(offset) = offset::<N>(allocation, first, N * LANES) else {
                return false;
            };
            // SAFETY: as for loads.
            return unsafe {
                let to = allocation.data.add(offset);
                to.copy_from_nonoverlapping(bytes.as_ptr().cast(), N * LANES);
                mark_row(allocation.state.add(offset), N * LANES, 0, SET)
            };
        }
        lanes(mask).all(|lane| {
            let Some(offset) = offset::<N>(allocation, at[lane], N) else {
                return false;
            };
            // SAFETY: as for loads.
            unsafe {
                let to = allocation.data.add(offset).cast::<[u8; N]>();
                to.write_unaligned(bytes[lane]);
                mark::<N>(allocation.state.add(offset), 0, SET)
            }
        })
    }

    /// The places in `shared` of all lanes' accesses, if each is aligned and lies in the running block's own memory. What
    /// lanes outside of the mask get means nothing.
    #[inline]
    pub(super) fn shared_places<const N: usize>(
        &self,
        at: &[u64; LANES],
        mask: u32,
    ) -> Option<[u32; LANES]> {
        let last = (self.block_bytes as u64).checked_sub(N as u64)?;
        let mut wrong = 0;
        let mut places = [0; LANES];
        for lane in 0..LANES {
            wrong |= u32::from(at[lane] > last || !at[lane].is_multiple_of(N as u64)) << lane;
            places[lane] = (self.own as u32).wrapping_add(at[lane] as u32);
        }
        (wrong & mask == 0).then_some(places)
    }

    /// Reads `N` bytes of shared memory a lane, or of each row that a lane names.
    #[inline]
    pub(super) fn load_shared_lanes<const N: usize>(
        &mut self,
        by: Accessor,
        at: &[u64; LANES],
        mask: u32,
        pattern: Pattern,
        out: &mut [[u8; N]; LANES],
    ) -> bool {
        let Some(places) = self.shared_places::<N>(at, mask) else {
            return false;
        };
        if !self.detector.read_lanes(&places, N, mask, by) {
            return false;
        }
        let first = places[0] as usize;
        match pattern {
            Pattern::Row => {
                let row = &self.shared[first..first + N * LANES];
                out.as_flattened_mut().copy_from_slice(row);
            }
            Pattern::Same => {
                let mut bytes = [0; N];
                bytes.copy_from_slice(&self.shared[first..first + N]);
                *out = [bytes; LANES];
            }
            Pattern::Any => {
                for lane in lanes(mask) {
                    let place = places[lane] as usize;
                    out[lane].copy_from_slice(&self.shared[place..place + N]);
                }
            }
        }
        true
    }

    /// Writes `N` bytes of shared memory a lane, or of each row that a lane names.
    #[inline]
    pub(super) fn store_shared_lanes<const N: usize>(
        &mut self,
        by: Accessor,
        at: &[u64; LANES],
        mask: u32,
        bytes: &[[u8; N]; LANES],
    ) -> bool {
        let Some(places) = self.shared_places::<N>(at, mask) else {
            return false;
        };
        if !(self.detector).write_lanes(&places, N, mask, by, false) {
            return false;
        }
        for lane in lanes(mask) {
            let place = places[lane] as usize;
            self.shared[place..place + N].copy_from_slice(&bytes[lane]);
        }
        true
    }
}
