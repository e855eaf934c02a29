//! What the emulated device is and what it allows: the limits that a launch is held to.
//!
//! The figures are those of a card that has the compute capability: the A100 (40 GB, SXM) for
//! sm_80, the RTX A6000 for sm_86, the RTX 6000 of the Ada generation for sm_89, the H100 (SXM) for
//! sm_90. Clocks and bus widths are there because programs ask for them
//! to compute a roofline; nothing in the emulator runs by them.

use serde::{Deserialize, Serialize};

/// Bytes in one KiB, so that the tables below read as data sheets do.
const KIB: u32 = 1024;

/// An emulated device: its identity and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What `cuDeviceGetName` answers. It says that no GPU is at work.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
    /// Number of multiprocessors (SMs).
    pub multiprocessors: u32,
    /// Most blocks of a cluster that every kernel may use; 1 without clusters.
    pub max_cluster: u32,
    /// Threads in a warp.
    pub warp_size: u32,
    /// Most threads in a block.
    pub max_threads_per_block: u32,
    /// Most resident threads on a multiprocessor.
    pub max_threads_per_multiprocessor: u32,
    /// Most resident blocks on a multiprocessor.
    pub max_blocks_per_multiprocessor: u32,
    /// Most threads of a block along x, y and z.
    pub max_block: [u32; 3],
    /// Most blocks of a grid along x, y and z.
    pub max_grid: [u32; 3],
    /// Bytes of shared memory (static and dynamic) that every block may use.
    pub shared_per_block: u32,
    /// Bytes of shared memory that a block may use once
    /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES` is raised.
    pub shared_per_block_optin: u32,
    /// Bytes of shared memory on a multiprocessor.
    pub shared_per_multiprocessor: u32,
    /// Bytes of shared memory that the system takes from each resident block.
    pub shared_reserved_per_block: u32,
    /// 32-bit registers that a block may use.
    pub registers_per_block: u32,
    /// 32-bit registers of a multiprocessor.
    pub registers_per_multiprocessor: u32,
    /// Most bytes of kernel parameters.
    pub max_parameter_bytes: u32,
    /// Bytes of constant memory.
    pub constant_bytes: u32,
    /// Bytes of device memory.
    pub total_memory: u64,
    /// Bytes of L2 cache.
    pub l2_bytes: u32,
    /// Peak clock of the multiprocessors, in kHz.
    pub clock_khz: u32,
    /// Peak clock of the memory, in kHz.
    pub memory_clock_khz: u32,
    /// Width of the memory bus, in bits.
    pub memory_bus_bits: u32,
    /// Bytes of L2 cache that can be set aside for persisting accesses.
    pub l2_persisting_bytes: u32,
}

impl Device {
    /// Device memory unless configured otherwise: 8 GiB, which most hosts can back.
    pub const DEFAULT_MEMORY: u64 = 8 << 30;

    /// Poses as an Ampere A100.
    pub fn sm_80() -> Device {
        Device {
            name: "Emulated sm_80 (no GPU)".to_owned(),
            compute_capability: (8, 0),
            multiprocessors: 108,
            max_cluster: 1,
            warp_size: 32,
            max_threads_per_block: 1024,
            max_threads_per_multiprocessor: 2048,
            max_blocks_per_multiprocessor: 32,
            max_block: [1024, 1024, 64],
            max_grid: [i32::MAX as u32, 65_535, 65_535],
            shared_per_block: 48 * KIB,
            shared_per_block_optin: 163 * KIB,
            shared_per_multiprocessor: 164 * KIB,
            shared_reserved_per_block: KIB,
            registers_per_block: 65_536,
            registers_per_multiprocessor: 65_536,
            // 4 KiB before CUDA 12.1; since then on every card from Volta on.
            max_parameter_bytes: 32_764,
            constant_bytes: 64 * KIB,
            total_memory: Self::DEFAULT_MEMORY,
            l2_bytes: 40 * KIB * KIB,
            clock_khz: 1_410_000,
            memory_clock_khz: 1_215_000,
            memory_bus_bits: 5120,
            l2_persisting_bytes: 30 * KIB * KIB,
        }
    }

    /// Poses as an RTX A6000, of Ampere's smaller GA102.
    pub fn sm_86() -> Device {
        Device {
            name: "Emulated sm_86 (no GPU)".to_owned(),
            compute_capability: (8, 6),
            multiprocessors: 84,
            max_threads_per_multiprocessor: 1536,
            max_blocks_per_multiprocessor: 16,
            shared_per_block_optin: 99 * KIB,
            shared_per_multiprocessor: 100 * KIB,
            l2_bytes: 6 * KIB * KIB,
            clock_khz: 1_800_000,
            memory_clock_khz: 8_001_000,
            memory_bus_bits: 384,
            l2_persisting_bytes: 4 * KIB * KIB + 512 * KIB,
            ..Self::sm_80()
        }
    }

    /// Poses as an RTX 6000 of the Ada generation.
    pub fn sm_89() -> Device {
        Device {
            name: "Emulated sm_89 (no GPU)".to_owned(),
            compute_capability: (8, 9),
            multiprocessors: 142,
            max_blocks_per_multiprocessor: 24,
            l2_bytes: 96 * KIB * KIB,
            clock_khz: 2_505_000,
            memory_clock_khz: 10_001_000,
            l2_persisting_bytes: 66 * KIB * KIB,
            ..Self::sm_86()
        }
    }

    /// Poses as a Hopper H100.
    pub fn sm_90() -> Device {
        Device {
            name: "Emulated sm_90 (no GPU)".to_owned(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            max_cluster: 8,
            shared_per_block_optin: 227 * KIB,
            shared_per_multiprocessor: 228 * KIB,
            l2_bytes: 50 * KIB * KIB,
            clock_khz: 1_980_000,
            memory_clock_khz: 2_619_000,
            l2_persisting_bytes: 32 * KIB * KIB,
            ..Self::sm_80()
        }
    }

    /// The names that [`Device::by_name`] takes, for messages.
    pub const NAMES: &'static str = "sm_80, sm_86, sm_89, sm_90";

    /// The device of a name such as `sm_80`, `80`, `sm_90a` or `90a`; `None` if there is none.
    ///
    /// The `a` may be given because `sm_90a` is how Hopper's own instructions are asked for; the
    /// device is the same.
    pub fn by_name(name: &str) -> Option<Device> {
        match name.trim().trim_start_matches("sm_") {
            "80" => Some(Self::sm_80()),
            "86" => Some(Self::sm_86()),
            "89" => Some(Self::sm_89()),
            "90" | "90a" => Some(Self::sm_90()),
            _ => None,
        }
    }

    /// Compute capability as one number, as in `sm_90`: 90.
    pub fn arch(&self) -> u32 {
        self.compute_capability.0 * 10 + self.compute_capability.1
    }
}

impl Default for Device {
    /// The baseline that every card since Ampere runs: [`Device::sm_80`].
    fn default() -> Device {
        Device::sm_80()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_known() {
        for (name, arch) in [
            ("sm_80", 80),
            ("sm_86", 86),
            ("89", 89),
            ("80", 80),
            (" sm_90 ", 90),
            ("90", 90),
            ("90a", 90),
            ("sm_90a", 90),
        ] {
            assert_eq!(
                Device::by_name(name).map(|d| d.arch()),
                Some(arch),
                "{name}"
            );
        }
        for name in ["", "sm_", "75", "sm_80a", "hopper"] {
            assert_eq!(Device::by_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_block_leaves_room_for_the_reserved_shared_memory() {
        for device in [
            Device::sm_80(),
            Device::sm_86(),
            Device::sm_89(),
            Device::sm_90(),
        ] {
            assert_eq!(
                device.shared_per_block_optin + device.shared_reserved_per_block,
                device.shared_per_multiprocessor,
                "{}",
                device.name
            );
        }
    }
}
