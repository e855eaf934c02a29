//! How many blocks a multiprocessor holds at once, and what keeps it from holding more.

use serde::{Deserialize, Serialize};

use crate::device::Device;

/// Shared memory is given out in pieces of this many bytes.
pub(crate) const SHARED_GRANULE: u64 = 128;

/// Registers are given to a warp in pieces of this many.
const REGISTER_GRANULE: u64 = 256;

/// Parts of a multiprocessor, each with a scheduler and a quarter of the registers; a warp lives in one.
pub(crate) const PARTITIONS: u64 = 4;

/// What a block takes of a multiprocessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) threads: u64,
    /// Bytes of shared memory, static and dynamic.
    pub(crate) shared: u64,
    /// 32-bit registers of a thread; `None` where no machine code tells.
    pub(crate) registers: Option<u32>,
}

/// What keeps a multiprocessor from holding more blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// It holds no more threads.
    Threads,
    /// It holds no more blocks.
    Blocks,
    /// It has no more shared memory.
    Shared,
    /// It has no more registers.
    Registers,
}

impl Limit {
    /// The word reports print.
    pub fn name(self) -> &'static str {
        match self {
            Limit::Threads => "threads",
            Limit::Blocks => "blocks",
            Limit::Shared => "shared memory",
            Limit::Registers => "registers",
        }
    }
}

impl Block {
    /// Registers of one warp.
    fn warp_registers(&self, device: &Device) -> Option<u64> {
        let registers = u64::from(self.registers?) * u64::from(device.warp_size);
        Some(registers.next_multiple_of(REGISTER_GRANULE))
    }

    /// Whether the registers of a block hold its threads, however its warps fall to the partitions.
    pub(crate) fn registers_suffice(&self, device: &Device) -> bool {
        let warps = self.threads.div_ceil(device.warp_size.into());
        let taken = (self.warp_registers(device))
            .map_or(0, |each| each * warps.next_multiple_of(PARTITIONS));
        taken <= device.registers_per_block.into()
    }

    /// Blocks that a multiprocessor holds at once, and what keeps it from more; 0 blocks if it cannot hold one.
    pub(crate) fn resident(&self, device: &Device) -> (u32, Limit) {
        let warp = u64::from(device.warp_size);
        if self.threads == 0 || self.threads > device.max_threads_per_block.into() {
            return (0, Limit::Threads);
        }
        if self.shared > device.shared_per_block_optin.into() {
            return (0, Limit::Shared);
        }
        if !self.registers_suffice(device) {
            return (0, Limit::Registers);
        }
        let warps = self.threads.div_ceil(warp);
        let by_threads = u64::from(device.max_threads_per_multiprocessor) / (warps * warp);
        let taken = self.shared.next_multiple_of(SHARED_GRANULE)
            + u64::from(device.shared_reserved_per_block);
        let by_shared = u64::from(device.shared_per_multiprocessor) / taken;
        let by_registers = self.warp_registers(device).map_or(u64::MAX, |each| {
            let of_partition = u64::from(device.registers_per_multiprocessor) / PARTITIONS;
            of_partition / each.max(1) * PARTITIONS / warps
        });
        let limits = [
            (device.max_blocks_per_multiprocessor.into(), Limit::Blocks),
            (by_threads, Limit::Threads),
            (by_shared, Limit::Shared),
            (by_registers, Limit::Registers),
        ];
        let least = limits.into_iter().min_by_key(|(blocks, _)| *blocks);
        let (blocks, limit) = least.unwrap_or((0, Limit::Blocks));
        (blocks as u32, limit) // at most `max_blocks_per_multiprocessor`
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_resource_decides() {
        let (a100, h100) = (Device::sm_80(), Device::sm_90());
        let (a10, l40) = (Device::sm_86(), Device::sm_89());
        use Limit::{Blocks, Registers, Shared, Threads};
        #[rustfmt::skip]
        let cases = [
            // device, threads, shared, registers, blocks, by
            (&a100,  256,           0, None,       8, Threads,   "threads"),
            (&a100,  100,           0, None,      16, Threads,   "threads, in whole warps"),
            (&a100,   32,           0, None,      32, Blocks,    "blocks"),
            (&a10,    32,           0, None,      16, Blocks,    "fewer blocks"),
            (&l40,    32,           0, None,      24, Blocks,    "fewer blocks"),
            (&a10,   512,           0, None,       3, Threads,   "1536 threads"),
            (&a100,  128,   48 * 1024, None,       3, Shared,    "shared memory"),
            (&a10,   128,   48 * 1024, None,       2, Shared,    "less shared memory"),
            (&a100,  128,  163 * 1024, None,       1, Shared,    "shared memory, all of it"),
            (&a100,  128,  164 * 1024, None,       0, Shared,    "more than a block may have"),
            (&h100,  128,  113 * 1024, None,       2, Shared,    "half of it, with the reserved KiB"),
            (&h100,  128,  114 * 1024, None,       1, Shared,    "the reserved KiB does not fit twice"),
            (&h100, 1025,           0, None,       0, Threads,   "more threads than a block may have"),
            (&h100,    0,           0, None,       0, Threads,   "no threads"),
            (&a100,  256,           0, Some(32),   8, Threads,   "as many registers as threads need"),
            (&a100,  256,           0, Some(33),   6, Registers, "40 registers, given out by 8"),
            (&a100,  128,           0, Some(255),  2, Registers, "two warps a partition"),
            (&a100,  160,           0, Some(168),  2, Registers, "12 warps, 5 to a block"),
            (&a100,  256,           0, Some(255),  1, Registers, "all registers"),
            (&a100,  288,           0, Some(224),  0, Registers, "9 warps may need as many as 12"),
            (&a100, 1024,           0, Some(64),   1, Registers, "all registers, and half of the threads"),
            (&a100, 1024,           0, Some(65),   0, Registers, "too many"),
        ];
        for (device, threads, shared, registers, blocks, limit, why) in cases {
            let block = Block {
                threads,
                shared,
                registers,
            };
            assert_eq!(block.resident(device), (blocks, limit), "{why}");
        }
    }
}
