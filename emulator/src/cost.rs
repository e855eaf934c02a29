//! What a launch takes of a GPU at least: for each resource the cycles that its counters need at the GPU's rate.
//!
//! It is a lower bound, and no time. A GPU that runs the same instructions needs at least the cycles of the resource that
//! takes most, which *binds*; it needs more for latency, for dependencies, for waits, for blocks that do not end together,
//! and wherever two resources cannot be busy at once. Its use is to see what a kernel is made of, and whether a change
//! takes more of what binds.
//!
//! What is counted: PTX instructions, as the warps executed them. Of these ptxas makes machine code, which has more
//! instructions in some places and fewer in others. So moves count for nothing, integers, comparisons, conversions and
//! branches only take a slot of the schedulers, and a division counts as the one instruction of the multi-function unit
//! that it cannot do without. Operands that `wgmma` and bulk copies move through shared memory on their own are not among
//! the wavefronts. Device memory is charged with each byte once, as if L2 began cold and then never lost anything.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::class::{Class, MatrixKind};
use crate::gpu::Gpu;
use crate::occupancy::{Block, Limit};
use crate::report::{GlobalTraffic, Report, SECTOR};

/// Lanes of a warp.
const WARP: f64 = 32.0;

/// Something that a launch takes of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Resource {
    /// Slots of the schedulers: a warp instruction each, moves left out.
    Issue,
    /// Single-precision units.
    Fp32,
    /// Half-precision units.
    Half,
    /// Double-precision units.
    Fp64,
    /// Multi-function units.
    Mufu,
    /// Tensor cores.
    TensorCores,
    /// Shuffles.
    Shuffle,
    /// Passes over the banks of shared memory.
    Shared,
    /// Sectors between L2 and the multiprocessors.
    L2,
    /// Device memory: each byte that is touched, once.
    Memory,
}

impl Resource {
    /// The words reports print.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Issue => "issue slots",
            Resource::Fp32 => "FP32",
            Resource::Half => "half precision",
            Resource::Fp64 => "FP64",
            Resource::Mufu => "MUFU",
            Resource::TensorCores => "tensor cores",
            Resource::Shuffle => "shuffles",
            Resource::Shared => "shared memory",
            Resource::L2 => "L2",
            Resource::Memory => "device memory",
        }
    }
}

/// The cycles that a resource is busy at least.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// What is busy.
    pub resource: Resource,
    /// Cycles at the multiprocessors' clock.
    pub cycles: f64,
    /// These cycles as a part of those of the resource that binds, 0 to 1.
    pub share: f64,
}

/// How full a multiprocessor is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Blocks that it holds at once; 0 if the launch does not fit the GPU.
    pub blocks: u32,
    /// Warps of these blocks.
    pub warps: u32,
    /// Warps that it could hold.
    pub max_warps: u32,
    /// What keeps it from holding more.
    pub limit: Limit,
    /// Blocks of the grid for each place on the GPU: the last of several waves may leave much of it idle.
    pub waves: f64,
}

/// What a launch takes of a GPU at least: see the [module's words](crate::Report::cost).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The kernel's name.
    pub kernel: String,
    /// The GPU by whose rates this is reckoned.
    pub gpu: Gpu,
    /// Each resource that the launch uses, the one that binds first.
    pub bounds: Vec<Bound>,
    /// How full a multiprocessor is.
    pub occupancy: Occupancy,
    /// Whether the registers of a thread are known: without them occupancy is an upper bound.
    pub registers_known: bool,
    /// Passes over the banks of shared memory for each that is needed: 1 without bank conflicts.
    pub wavefronts_per_ideal: f64,
    /// The part of the sectors read that lanes asked for: 1 if loads coalesce.
    pub loads_sector_use: f64,
    /// As often is the average byte that is read asked for.
    pub loads_reuse: f64,
    /// The part of the sectors written that lanes gave: 1 if stores coalesce.
    pub stores_sector_use: f64,
    /// As often is the average byte that is written given.
    pub stores_reuse: f64,
}

impl Report {
    /// What the launch takes of a GPU at least, by resource. It is a lower bound from executed PTX instructions, and no
    /// time.
    ///
    /// A grid that is smaller than the GPU is charged to as many multiprocessors as it has blocks. The launch need not
    /// have been on the GPU's own pose: the A100's cost of what ran as sm_80 can be compared with the H100's. Registers
    /// are those of the pose.
    ///
    /// ```
    /// use cuda_emulator::{Class, Gpu, Report, Resource};
    ///
    /// let mut report = Report { grid: [108, 1, 1], block: [128, 1, 1], ..Report::default() };
    /// report.instructions[Class::Fp32 as usize] = 108 * 1000;
    /// let cost = report.cost(Gpu::A100);
    /// let fp32 = cost.binding().unwrap();
    /// // 1000 warp instructions on each multiprocessor, which has units for two warps
    /// assert_eq!((fp32.resource, fp32.cycles), (Resource::Fp32, 500.0));
    /// ```
    pub fn cost(&self, gpu: Gpu) -> Cost {
        let (device, rates) = (gpu.device(), gpu.rates());
        let blocks = product(self.grid);
        // As many multiprocessors work as there are blocks.
        let working = blocks.clamp(1, device.multiprocessors.into()) as f64;
        let instructions = |class| self.count(class) as f64;
        let lanes = |class, rate| WARP * instructions(class) / (rate * working);
        let issued = self.total() - self.count(Class::Move);
        let tensor: f64 = (MatrixKind::ALL.into_iter())
            .filter_map(|kind| {
                let rate = rates.multiply_adds[kind as usize]?;
                Some(self.multiply_adds(kind) as f64 / rate)
            })
            .sum();
        let shared = self.shared_loads.wavefronts + self.shared_stores.wavefronts;
        let ideal = self.shared_loads.ideal_wavefronts + self.shared_stores.ideal_wavefronts;
        let bytes =
            |of: fn(&GlobalTraffic) -> u64| of(&self.global_loads) + of(&self.global_stores);
        let sectors = SECTOR * bytes(|traffic| traffic.sectors);
        let touched = bytes(|traffic| traffic.unique_bytes);
        let cycles = [
            (Resource::Issue, issued as f64 / (rates.issue * working)),
            (Resource::Fp32, lanes(Class::Fp32, rates.fp32)),
            (Resource::Half, lanes(Class::Half, rates.half)),
            (Resource::Fp64, lanes(Class::Fp64, rates.fp64)),
            (Resource::Mufu, lanes(Class::Mufu, rates.mufu)),
            (Resource::TensorCores, tensor / working),
            (Resource::Shuffle, lanes(Class::Shuffle, rates.shuffle)),
            (
                Resource::Shared,
                shared as f64 / (rates.wavefronts * working),
            ),
            (
                Resource::L2,
                rates.l2_bytes.map_or(0.0, |rate| sectors as f64 / rate),
            ),
            (Resource::Memory, touched as f64 / rates.memory_bytes),
        ];
        let most = (cycles.iter()).fold(0.0, |most: f64, (_, cycles)| most.max(*cycles));
        let mut bounds: Vec<Bound> = (cycles.into_iter())
            .filter(|(_, cycles)| *cycles > 0.0)
            .map(|(resource, cycles)| Bound {
                resource,
                cycles,
                share: cycles / most,
            })
            .collect();
        bounds.sort_by(|a, b| b.cycles.total_cmp(&a.cycles));
        let threads = product(self.block);
        let (resident, limit) = Block {
            threads,
            shared: self.shared_bytes.into(),
            registers: self.registers,
        }
        .resident(&device);
        let warps = threads.div_ceil(device.warp_size.into()) as u32;
        Cost {
            kernel: self.kernel.clone(),
            gpu,
            bounds,
            occupancy: Occupancy {
                blocks: resident,
                warps: resident * warps,
                max_warps: device.max_threads_per_multiprocessor / device.warp_size,
                limit,
                waves: match resident {
                    0 => 0.0,
                    _ => blocks as f64 / f64::from(resident * device.multiprocessors),
                },
            },
            registers_known: self.registers.is_some(),
            wavefronts_per_ideal: match ideal {
                0 => 1.0,
                _ => shared as f64 / ideal as f64,
            },
            loads_sector_use: self.global_loads.sector_use(),
            loads_reuse: self.global_loads.reuse(),
            stores_sector_use: self.global_stores.sector_use(),
            stores_reuse: self.global_stores.reuse(),
        }
    }
}

fn product(sides: [u32; 3]) -> u64 {
    (sides.into_iter()).fold(1, |product, side| product.saturating_mul(side.into()))
}

impl Cost {
    /// The resource that takes most cycles: the launch needs no fewer. `None` if it does nothing.
    pub fn binding(&self) -> Option<&Bound> {
        self.bounds.first()
    }

    /// Cycles of one resource; 0 if the launch does not use it.
    pub fn cycles(&self, resource: Resource) -> f64 {
        let mut bounds = self.bounds.iter();
        let bound = bounds.find(|bound| bound.resource == resource);
        bound.map_or(0.0, |bound| bound.cycles)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  at least, on an {}: ", self.gpu.name())?;
        let Some(binding) = self.binding() else {
            return write!(f, "nothing");
        };
        let (cycles, name) = (binding.cycles, binding.resource.name());
        write!(f, "{cycles:.0} cycles, bound by {name}")?;
        for (index, bound) in self.bounds[1..].iter().enumerate() {
            let separator = if index == 0 { ';' } else { ',' };
            let (share, name) = (100.0 * bound.share, bound.resource.name());
            write!(f, "{separator} {name} {share:.0} %")?;
        }
        let Occupancy {
            blocks,
            warps,
            max_warps,
            limit,
            waves,
        } = self.occupancy;
        let upper = if self.registers_known { "" } else { "at most " };
        write!(
            f,
            "\n  (a lower bound from executed instructions, no time)\n  \
             a multiprocessor holds {upper}{blocks} blocks, {warps} of {max_warps} warps, by {}; {waves:.2} waves\n  \
             wavefronts {:.2} times the ideal; sectors used: loads {:.0} %, stores {:.0} %; \
             each byte read {:.2} times, written {:.2} times",
            limit.name(),
            self.wavefronts_per_ideal,
            100.0 * self.loads_sector_use,
            100.0 * self.stores_sector_use,
            self.loads_reuse,
            self.stores_reuse,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::SharedTraffic;

    /// A launch that fills an A100 once, with counts by hand.
    fn report() -> Report {
        let mut report = Report {
            kernel: "walk".to_owned(),
            grid: [108, 1, 1],
            block: [128, 1, 1],
            shared_bytes: 48 << 10,
            registers: Some(168),
            shared_loads: SharedTraffic {
                requests: 108 * 10,
                wavefronts: 108 * 40,
                ideal_wavefronts: 108 * 30,
            },
            global_loads: GlobalTraffic {
                requests: 1000,
                sectors: 4000,
                bytes: 128_000,
                unique_bytes: 64_000,
            },
            ..Report::default()
        };
        for (class, count) in [
            (Class::Fp32, 100),
            (Class::Mufu, 20),
            (Class::Move, 1000),
            (Class::Integer, 60),
            (Class::Shuffle, 8),
            (Class::Half, 16),
            (Class::Fp64, 4),
        ] {
            report.instructions[class as usize] = 108 * count;
        }
        report.mma[MatrixKind::Half as usize] = 108 * 51_200;
        report.mma[MatrixKind::Tf32 as usize] = 108 * 5_120;
        report
    }

    #[test]
    fn cycles_are_counts_over_rates() {
        let cost = report().cost(Gpu::A100);
        #[rustfmt::skip]
        let expected = [
            (Resource::TensorCores, 51_200. / 1024. + 5_120. / 512.),
            (Resource::Issue,       (100. + 20. + 60. + 8. + 16. + 4.) / 4.),
            (Resource::Fp32,        100. * 32. / 64.),
            (Resource::Mufu,        20. * 32. / 16.),
            (Resource::Shared,      40.),
            (Resource::Memory,      64_000. / (1_555.2e9 / 1.41e9)),
            (Resource::L2,          128_000. / 5120.),
            (Resource::Shuffle,     8.),
            (Resource::Half,        16. * 32. / 128.),
            (Resource::Fp64,        4.),
        ];
        for (resource, cycles) in expected {
            let found = cost.cycles(resource);
            assert!(
                (found - cycles).abs() < 1e-9,
                "{resource:?}: {found}, not {cycles}"
            );
        }
        assert_eq!(cost.bounds.len(), expected.len());
        assert_eq!(cost.binding().unwrap().resource, Resource::TensorCores);
        assert!(cost.bounds.is_sorted_by(|a, b| a.share >= b.share));
        assert_eq!(cost.bounds[0].share, 1.0);
        assert_eq!(cost.wavefronts_per_ideal, 4.0 / 3.0);
        assert_eq!((cost.loads_sector_use, cost.loads_reuse), (1.0, 2.0));
    }

    #[test]
    fn occupancy_has_its_limit_and_waves() {
        let cost = report().cost(Gpu::A100);
        // 12 warps of 168 registers; 3 blocks of 48 KiB and the reserved KiB
        let expected = Occupancy {
            blocks: 3,
            warps: 12,
            max_warps: 64,
            limit: Limit::Shared,
            waves: 1.0 / 3.0,
        };
        assert_eq!(cost.occupancy, expected);
        let unknown = Report {
            registers: None,
            ..report()
        };
        assert!(
            unknown
                .cost(Gpu::A100)
                .to_string()
                .contains("at most 3 blocks")
        );
        let huge = Report {
            shared_bytes: 164 << 10,
            ..report()
        };
        let occupancy = huge.cost(Gpu::A100).occupancy;
        assert_eq!((occupancy.blocks, occupancy.waves), (0, 0.0));
    }

    #[test]
    fn a_small_grid_is_charged_to_the_multiprocessors_that_work() {
        let small = Report {
            grid: [27, 1, 1],
            ..report()
        };
        let (small, full) = (small.cost(Gpu::A100), report().cost(Gpu::A100));
        let times = |resource| small.cycles(resource) / full.cycles(resource);
        assert_eq!(times(Resource::Fp32), 4.0);
        assert_eq!(times(Resource::Memory), 1.0, "memory serves all of them");
        let idle = Report::default().cost(Gpu::H100);
        assert_eq!(idle.binding(), None);
        assert!(idle.to_string().ends_with("nothing"));
    }

    #[test]
    fn another_gpu_may_be_bound_by_something_else() {
        let cost = report().cost(Gpu::H100);
        assert_eq!(cost.cycles(Resource::L2), 0.0, "not published");
        assert!(
            cost.cycles(Resource::TensorCores)
                < report().cost(Gpu::A100).cycles(Resource::TensorCores)
        );
        let text = cost.to_string();
        for words in [
            "on an H100 SXM5",
            "lower bound from executed instructions",
            "by registers",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_cost_survives_json() {
        let cost = report().cost(Gpu::A100);
        let json = serde_json::to_string(&cost).unwrap();
        let read: Cost = serde_json::from_str(&json).unwrap();
        assert_eq!(read.to_string(), cost.to_string());
        assert!(json.contains(r#""resource":"tensor_cores""#), "{json}");
    }
}
