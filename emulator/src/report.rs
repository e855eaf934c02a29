//! What a launch did, counted: a model of cost from executed instructions, never a time.

use std::fmt;

use crate::class::{Class, MatrixKind};

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

/// Bytes of a sector, the unit in which global memory is read and written.
pub(crate) const SECTOR: u64 = 32;

impl GlobalTraffic {
    /// The part of the sectors' bytes that lanes asked for: 1 if accesses coalesce, more if lanes share bytes. 1 without
    /// requests.
    pub fn sector_use(&self) -> f64 {
        ratio(self.bytes, self.sectors * SECTOR)
    }

    /// How often the average byte that is touched is asked for. 1 without requests.
    pub fn reuse(&self) -> f64 {
        ratio(self.bytes, self.unique_bytes)
    }

    /// Sectors of the average request: 4 if 32 lanes ask for neighbours of 4 bytes. 1 without requests.
    pub fn sectors_per_request(&self) -> f64 {
        ratio(self.sectors, self.requests)
    }

    fn add(&mut self, other: &GlobalTraffic) {
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.bytes += other.bytes;
        self.unique_bytes += other.unique_bytes;
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        1.0
    } else {
        part as f64 / whole as f64
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
    /// Warp instructions by class, in the order of [`Class::ALL`]. In JSON they are named.
    #[serde(with = "by_class")]
    pub instructions: [u64; Class::ALL.len()],
    /// Multiply-adds of tensor-core instructions.
    pub mma_multiply_adds: u64,
    /// The same by what is multiplied, in the order of [`MatrixKind::ALL`]. In JSON they are named.
    #[serde(default, with = "by_kind")]
    pub mma: [u64; MatrixKind::ALL.len()],
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

/// Counts by an enum, as a map from its names: lists of numbers tell nobody what they count.
macro_rules! named_counts {
    ($module:ident, $name:ty) => {
        mod $module {
            use std::collections::HashMap;

            use serde::{Deserialize, Deserializer, Serializer};

            type Name = $name;
            type Counts = [u64; Name::ALL.len()];

            pub(super) fn serialize<S: Serializer>(
                counts: &Counts,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                serializer.collect_map(Name::ALL.into_iter().zip(counts))
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Counts, D::Error> {
                let counts = HashMap::<Name, u64>::deserialize(deserializer)?;
                Ok(Name::ALL.map(|name| counts.get(&name).copied().unwrap_or(0)))
            }
        }
    };
}

named_counts!(by_class, crate::class::Class);
named_counts!(by_kind, crate::class::MatrixKind);

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

    /// Multiply-adds of the tensor cores of one kind.
    pub fn multiply_adds(&self, kind: MatrixKind) -> u64 {
        self.mma[kind as usize]
    }

    /// Adds the counts of another part of the same launch.
    pub(crate) fn add(&mut self, other: &Report) {
        for (sum, count) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += count;
        }
        self.printed.push_str(&other.printed);
        for (sum, count) in self.mma.iter_mut().zip(other.mma) {
            *sum += count;
        }
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
            "{} on the emulator as {}: grid ({gx}, {gy}, {gz}), block ({bx}, {by}, {bz}), {} bytes of shared memory, {} registers",
            self.kernel,
            self.device,
            self.shared_bytes,
            self.registers
                .map_or("unknown".to_owned(), |registers| registers.to_string())
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
                    global.sectors * SECTOR,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_names_what_it_counts() {
        let mut report = Report::default();
        report.instructions[Class::Mufu as usize] = 7;
        report.mma[MatrixKind::Tf32 as usize] = 9;
        let json = serde_json::to_string(&report).unwrap();
        for part in [r#""mufu":7"#, r#""tf32":9"#, r#""registers":null"#] {
            assert!(json.contains(part), "`{part}` is not in {json}");
        }
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }

    #[test]
    fn ratios_of_traffic() {
        let traffic = GlobalTraffic {
            requests: 10,
            sectors: 80,
            bytes: 1280,
            unique_bytes: 640,
        };
        let found = (
            traffic.sector_use(),
            traffic.reuse(),
            traffic.sectors_per_request(),
        );
        assert_eq!(found, (0.5, 2.0, 8.0));
        assert_eq!(GlobalTraffic::default().sector_use(), 1.0);
    }
}
