//! What a launch did, counted: a model of cost from executed instructions, never a time.

use std::fmt;

use crate::class::Class;

/// Accesses of one memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SharedTraffic {
    /// Warp instructions that reached shared memory.
    pub requests: u64,
    /// Passes the banks need: one serves 32 banks of 4 bytes.
    pub wavefronts: u64,
    /// Passes the same bytes would need without bank conflicts.
    pub ideal_wavefronts: u64,
}

impl SharedTraffic {
    /// Passes lost to bank conflicts.
    pub fn conflicts(&self) -> u64 {
        self.wavefronts - self.ideal_wavefronts
    }

    fn add(&mut self, other: &SharedTraffic) {
        self.requests += other.requests;
        self.wavefronts += other.wavefronts;
        self.ideal_wavefronts += other.ideal_wavefronts;
    }
}

/// Accesses of global memory in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GlobalTraffic {
    /// Warp instructions that reached global memory.
    pub requests: u64,
    /// 32-byte sectors over all requests.
    pub sectors: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// Distinct bytes touched by the launch.
    pub unique_bytes: u64,
}

impl GlobalTraffic {
    fn add(&mut self, other: &GlobalTraffic) {
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.bytes += other.bytes;
        self.unique_bytes += other.unique_bytes;
    }
}

/// Counters of one launch.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// The kernel's name.
    pub kernel: String,
    /// The device posed as, such as `sm_80`.
    pub device: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Static and dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// 32-bit registers of a thread; `None` where the image had no machine code for the device.
    #[serde(default)]
    pub registers: Option<u32>,
    /// Warp instructions by class, in the order of [`Class::ALL`].
    pub instructions: [u64; Class::ALL.len()],
    /// Multiply-adds of tensor-core instructions.
    pub mma_multiply_adds: u64,
    /// Shared loads and ldmatrix.
    pub shared_loads: SharedTraffic,
    /// Shared stores, stmatrix and the shared side of cp.async.
    pub shared_stores: SharedTraffic,
    /// Global loads and the global side of cp.async.
    pub global_loads: GlobalTraffic,
    /// Global stores.
    pub global_stores: GlobalTraffic,
    /// Atomics a lane.
    pub atomics: u64,
    /// Warps that arrived at a block barrier.
    pub barriers: u64,
    /// Branches that split a warp.
    pub divergent_branches: u64,
    /// What the kernel printed (`vprintf`), block by block.
    #[serde(default)]
    pub printed: String,
}

impl Report {
    /// Warp instructions of one class.
    pub fn count(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    /// Warp instructions of all classes.
    pub fn total(&self) -> u64 {
        self.instructions.iter().sum()
    }

    /// Passes lost to bank conflicts, loads and stores.
    pub fn bank_conflicts(&self) -> u64 {
        self.shared_loads.conflicts() + self.shared_stores.conflicts()
    }

    /// Adds the counts of another part of the same launch.
    pub(crate) fn add(&mut self, other: &Report) {
        for (sum, count) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += count;
        }
        self.printed.push_str(&other.printed);
        self.mma_multiply_adds += other.mma_multiply_adds;
        self.shared_loads.add(&other.shared_loads);
        self.shared_stores.add(&other.shared_stores);
        self.global_loads.add(&other.global_loads);
        self.global_stores.add(&other.global_stores);
        self.atomics += other.atomics;
        self.barriers += other.barriers;
        self.divergent_branches += other.divergent_branches;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [gx, gy, gz] = self.grid;
        let [bx, by, bz] = self.block;
        writeln!(
            f,
            "{} on the emulator as {}: grid ({gx}, {gy}, {gz}), block ({bx}, {by}, {bz}), {} bytes of shared memory",
            self.kernel, self.device, self.shared_bytes
        )?;
        let total = self.total();
        write!(f, "  warp instructions {total}:")?;
        for class in Class::ALL {
            let count = self.count(class);
            if count > 0 {
                write!(
                    f,
                    " {} {count} ({:.1} %)",
                    class.name(),
                    100.0 * count as f64 / total as f64
                )?;
            }
        }
        writeln!(f)?;
        if self.mma_multiply_adds > 0 {
            writeln!(
                f,
                "  tensor cores: {} multiply-adds",
                self.mma_multiply_adds
            )?;
        }
        for (name, shared) in [
            ("loads", &self.shared_loads),
            ("stores", &self.shared_stores),
        ] {
            if shared.requests > 0 {
                writeln!(
                    f,
                    "  shared {name}: {} requests, {} wavefronts, {} without bank conflicts",
                    shared.requests, shared.wavefronts, shared.ideal_wavefronts
                )?;
            }
        }
        for (name, global) in [
            ("loads", &self.global_loads),
            ("stores", &self.global_stores),
        ] {
            if global.requests > 0 {
                writeln!(
                    f,
                    "  global {name}: {} requests, {} sectors ({} bytes), {} bytes asked for, {} distinct",
                    global.requests,
                    global.sectors,
                    global.sectors * 32,
                    global.bytes,
                    global.unique_bytes
                )?;
            }
        }
        write!(
            f,
            "  atomics {}, barrier arrivals {}, divergent branches {}",
            self.atomics, self.barriers, self.divergent_branches
        )
    }
}
