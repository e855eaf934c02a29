//! What GPUs do in a cycle at most: the rates that a cost is reckoned by.
//!
//! Each figure is NVIDIA's own:
//! - rates of instructions: "Throughput of Native Arithmetic Instructions" in the CUDA C++ Best Practices Guide (13.0;
//!   before that in the CUDA C++ Programming Guide), in lanes a cycle and multiprocessor;
//! - schedulers, tensor cores, clocks, memory: the whitepapers "NVIDIA A100 Tensor Core GPU Architecture", "NVIDIA Ampere
//!   GA102 GPU Architecture" (its appendix on the RTX A6000), "NVIDIA Ada GPU Architecture" (RTX 6000) and "NVIDIA H100
//!   Tensor Core GPU Architecture" (SXM5);
//! - shared memory: 32 banks of 4 bytes, each once a cycle (CUDA C++ Programming Guide, on compute capabilities 5.x and on).
//!
//! The tests multiply the rates out and compare them with the peaks that the whitepapers print.

use serde::{Deserialize, Serialize};

use crate::class::MatrixKind;
use crate::device::Device;

/// A GPU with known rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Gpu {
    /// A100, SXM4, 40 GB: sm_80.
    A100,
    /// RTX A6000: sm_86.
    RtxA6000,
    /// RTX 6000 of the Ada generation: sm_89.
    Rtx6000Ada,
    /// H100, SXM5, 80 GB: sm_90.
    H100,
}

/// What a GPU does in a cycle at most; of each multiprocessor unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Warp instructions that the schedulers issue.
    pub issue: f64,
    /// Lanes of single-precision arithmetic.
    pub fp32: f64,
    /// Lanes of half-precision arithmetic, of one or two elements each.
    pub half: f64,
    /// Lanes of double-precision arithmetic.
    pub fp64: f64,
    /// Lanes of the multi-function unit.
    pub mufu: f64,
    /// Lanes of shuffles.
    pub shuffle: f64,
    /// Dense multiply-adds of the tensor cores in the order of [`MatrixKind::ALL`]; `None` where the GPU has no such, or
    /// NVIDIA does not say.
    pub multiply_adds: [Option<f64>; MatrixKind::ALL.len()],
    /// Passes over the banks of shared memory.
    pub wavefronts: f64,
    /// Bytes between L2 and all multiprocessors; `None` where NVIDIA does not say.
    pub l2_bytes: Option<f64>,
    /// Bytes of device memory, of the whole GPU at its peak clocks.
    pub memory_bytes: f64,
}

impl Gpu {
    /// Every GPU with known rates.
    pub const ALL: [Gpu; 4] = [Gpu::A100, Gpu::RtxA6000, Gpu::Rtx6000Ada, Gpu::H100];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Gpu::A100 => "A100 SXM4 40 GB",
            Gpu::RtxA6000 => "RTX A6000",
            Gpu::Rtx6000Ada => "RTX 6000 Ada",
            Gpu::H100 => "H100 SXM5",
        }
    }

    /// Its sizes and clocks.
    pub fn device(self) -> Device {
        match self {
            Gpu::A100 => Device::sm_80(),
            Gpu::RtxA6000 => Device::sm_86(),
            Gpu::Rtx6000Ada => Device::sm_89(),
            Gpu::H100 => Device::sm_90(),
        }
    }

    /// The GPU that the emulator means when it poses as a device such as `sm_80`; `None` if there is none.
    pub fn posed_as(device: &str) -> Option<Gpu> {
        let device = Device::by_name(device)?;
        (Gpu::ALL.into_iter()).find(|gpu| gpu.device().arch() == device.arch())
    }

    /// Its rates.
    pub fn rates(self) -> Rates {
        let device = self.device();
        // Memory moves twice a cycle of its clock.
        let memory =
            2.0 * f64::from(device.memory_clock_khz) * f64::from(device.memory_bus_bits / 8);
        let (fp32, half, fp64) = match self {
            Gpu::A100 => (64.0, 128.0, 32.0),
            Gpu::RtxA6000 | Gpu::Rtx6000Ada => (128.0, 64.0, 2.0),
            Gpu::H100 => (128.0, 128.0, 64.0),
        };
        #[rustfmt::skip]
        let multiply_adds = match self {
            //                 half          tf32          f64          f8            int8          int4          bits
            Gpu::A100 =>       [Some(1024.), Some(512.),   Some(64.),   None,         Some(2048.),  Some(4096.),  Some(16384.)],
            Gpu::RtxA6000 =>   [Some(512.),  Some(256.),   None,        None,         Some(1024.),  Some(2048.),  None],
            Gpu::Rtx6000Ada => [Some(512.),  Some(256.),   None,        Some(1024.),  Some(1024.),  Some(2048.),  None],
            Gpu::H100 =>       [Some(2048.), Some(1024.),  Some(128.),  Some(4096.),  Some(4096.),  None,         None],
        };
        Rates {
            issue: 4.0,
            fp32,
            half,
            fp64,
            mufu: 16.0,
            shuffle: 32.0,
            multiply_adds,
            wavefronts: 1.0,
            l2_bytes: (self == Gpu::A100).then_some(5120.0),
            memory_bytes: memory / f64::from(device.clock_khz),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_multiply_out_to_the_peaks_of_the_whitepapers() {
        use MatrixKind::{F8, F64, Half, Int4, Int8, Tf32};
        // The H100's tensor cores reach their peaks of f16 and narrower at 1830 MHz, other GPUs' at their boost clock.
        #[rustfmt::skip]
        let tensor = [
            (Gpu::A100, 1410, Half, 312.0), (Gpu::A100, 1410, Tf32, 156.0), (Gpu::A100, 1410, F64, 19.5),
            (Gpu::A100, 1410, Int8, 624.0), (Gpu::A100, 1410, Int4, 1248.0),
            (Gpu::RtxA6000, 1800, Half, 154.8), (Gpu::RtxA6000, 1800, Tf32, 77.4), (Gpu::RtxA6000, 1800, Int8, 309.7),
            (Gpu::Rtx6000Ada, 2505, Half, 364.2), (Gpu::Rtx6000Ada, 2505, F8, 728.5),
            (Gpu::H100, 1830, Half, 989.4), (Gpu::H100, 1830, Tf32, 494.7), (Gpu::H100, 1830, F8, 1978.9),
            (Gpu::H100, 1830, Int8, 1978.9), (Gpu::H100, 1980, F64, 66.9),
        ];
        let close = |found: f64, printed: f64, what: String| {
            assert!(
                (found / printed - 1.0).abs() < 0.005,
                "{what}: {found} for {printed}"
            );
        };
        for (gpu, megahertz, kind, printed) in tensor {
            let device = gpu.device();
            let rate = gpu.rates().multiply_adds[kind as usize].unwrap();
            let found = 2.0 * rate * f64::from(device.multiprocessors) * f64::from(megahertz) / 1e6;
            close(
                found,
                printed,
                format!("{} {kind:?} in TFLOP/s", gpu.name()),
            );
        }
        // FP32 and FP64 in TFLOP/s, device memory in GB/s
        #[rustfmt::skip]
        let others = [
            (Gpu::A100,       19.5,  9.7, 1555.0),
            (Gpu::RtxA6000,   38.7,  0.605, 768.0),
            (Gpu::Rtx6000Ada, 91.1,  1.423, 960.0),
            (Gpu::H100,       66.9, 33.5, 3352.0),
        ];
        for (gpu, fp32, fp64, memory) in others {
            let (device, rates) = (gpu.device(), gpu.rates());
            let kilohertz = f64::from(device.clock_khz);
            let all = f64::from(device.multiprocessors) * kilohertz / 1e9;
            close(2.0 * rates.fp32 * all, fp32, format!("{} FP32", gpu.name()));
            close(2.0 * rates.fp64 * all, fp64, format!("{} FP64", gpu.name()));
            close(
                rates.memory_bytes * kilohertz / 1e6,
                memory,
                format!("{} memory", gpu.name()),
            );
        }
    }

    #[test]
    fn every_pose_has_its_gpu() {
        for gpu in Gpu::ALL {
            assert_eq!(
                Gpu::posed_as(&format!("sm_{}", gpu.device().arch())),
                Some(gpu)
            );
        }
        assert_eq!(Gpu::posed_as("sm_70"), None);
        for name in Device::NAMES.split(", ") {
            assert!(Gpu::posed_as(name).is_some(), "{name}");
        }
    }
}
