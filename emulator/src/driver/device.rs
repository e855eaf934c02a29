//! The device as programs see it: count, name, attributes.

use std::ffi::c_char;

use super::context::check_device;
use super::error::{Error, Result, code};
use super::ffi::{CUdevice, CUresult, Out, Text, call};
use super::state::{driver, init};
use crate::device::Device;

/// The driver's version: CUDA 13.0.
const VERSION: i32 = 13_000;

/// The address that the device claims on a bus that is not there.
const BUS_ID: &str = "0000:00:00.0";

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuInit(flags: u32) -> CUresult {
    call("cuInit", || {
        if flags != 0 {
            return Err(Error::value(format!(
                "cuInit takes no flags, not {flags:#x}"
            )));
        }
        init().inspect_err(|error| eprintln!("cuda-emulator: {}", error.text))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDriverGetVersion(version: Out<i32>) -> CUresult {
    call("cuDriverGetVersion", || version.set(VERSION))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGet(device: Out<CUdevice>, ordinal: i32) -> CUresult {
    call("cuDeviceGet", || {
        driver()?;
        check_device(ordinal)?;
        device.set(0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetCount(count: Out<i32>) -> CUresult {
    call("cuDeviceGetCount", || {
        driver()?;
        count.set(1)
    })
}

/// Writes a text, cut to the buffer and ended by a NUL.
fn give_text(text: &str, buffer: &Out<c_char>, size: i32) -> Result<()> {
    buffer.check()?;
    let Some(room) = usize::try_from(size)
        .ok()
        .and_then(|size| size.checked_sub(1))
    else {
        return Err(Error::value(format!(
            "a buffer of {size} chars holds no text"
        )));
    };
    let chars: Vec<c_char> = (text.bytes().take(room))
        .chain([0])
        .map(|byte| byte as c_char)
        .collect();
    // SAFETY: C passes a buffer of `size` chars, and these are no more.
    unsafe { buffer.set_all(&chars) };
    Ok(())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetName(
    name: Out<c_char>,
    size: i32,
    device: CUdevice,
) -> CUresult {
    call("cuDeviceGetName", || {
        check_device(device)?;
        give_text(&driver()?.device.name, &name, size)
    })
}

/// A number that names the emulator and the arch it poses as.
fn uuid(out: &Out<[u8; 16]>, device: CUdevice) -> Result<()> {
    check_device(device)?;
    let mut uuid = *b"cuda-emulator-\0\0";
    let arch = driver()?.device.arch() as u16;
    uuid[14..].copy_from_slice(&arch.to_be_bytes());
    out.set(uuid)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetUuid(out: Out<[u8; 16]>, device: CUdevice) -> CUresult {
    call("cuDeviceGetUuid", || uuid(&out, device))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetUuid_v2(out: Out<[u8; 16]>, device: CUdevice) -> CUresult {
    call("cuDeviceGetUuid", || uuid(&out, device))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: CUdevice) -> CUresult {
    call("cuDeviceTotalMem", || {
        check_device(device)?;
        bytes.set(driver()?.device.total_memory as usize)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceComputeCapability(
    major: Out<i32>,
    minor: Out<i32>,
    device: CUdevice,
) -> CUresult {
    call("cuDeviceComputeCapability", || {
        check_device(device)?;
        let capability = driver()?.device.compute_capability;
        major.set(capability.0 as i32)?;
        minor.set(capability.1 as i32)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetAttribute(
    value: Out<i32>,
    attribute: u32,
    device: CUdevice,
) -> CUresult {
    call("cuDeviceGetAttribute", || {
        check_device(device)?;
        let driver = driver()?;
        let found = attribute_of(&driver.device, attribute);
        value.set(found.ok_or_else(|| {
            Error::value(format!("{attribute} is no CUdevice_attribute of CUDA 13.0"))
        })?)
    })
}

/// Highest `CUdevice_attribute` of CUDA 13.0.
const LAST_ATTRIBUTE: u32 = 147;

/// The value of an attribute by its number in `CUdevice_attribute`. What is not listed is a feature
/// that the emulator does not have, and is 0.
fn attribute_of(device: &Device, attribute: u32) -> Option<i32> {
    let value = match attribute {
        1 => device.max_threads_per_block,
        2 => device.max_block[0],
        3 => device.max_block[1],
        4 => device.max_block[2],
        5 => device.max_grid[0],
        6 => device.max_grid[1],
        7 => device.max_grid[2],
        8 => device.shared_per_block,
        9 => device.constant_bytes,
        10 => device.warp_size,
        11 => i32::MAX as u32, // pitch of a copy
        12 => device.registers_per_block,
        13 => device.clock_khz,
        14 => 512, // alignment of a texture
        16 => device.multiprocessors,
        19 => 1, // kernels reach pinned memory
        31 => 1, // several kernels at once
        36 => device.memory_clock_khz,
        37 => device.memory_bus_bits,
        38 => device.l2_bytes,
        39 => device.max_threads_per_multiprocessor,
        40 => 2,  // copy engines; one each way
        41 => 1,  // one address space with the host
        51 => 32, // alignment of a texture's pitch
        75 => device.compute_capability.0,
        76 => device.compute_capability.1,
        78 => 1, // stream priorities
        79 => 1, // L1 caches global memory
        80 => 1, // L1 caches local memory
        81 => device.shared_per_multiprocessor,
        82 => device.registers_per_multiprocessor,
        83 | 89 => 1, // managed memory, which host and device may use at once
        91 => 1,      // registered memory has one address
        87 => 2,      // single over double precision throughput
        95 => 1,      // cooperative launch
        97 => device.shared_per_block_optin,
        99 => 1, // host memory can be registered
        106 => device.max_blocks_per_multiprocessor,
        108 => device.l2_persisting_bytes,
        111 => device.shared_reserved_per_block,
        115 => 1,                                       // memory pools
        120 | 127 => u32::from(device.max_cluster > 1), // clusters, tensor maps
        // CU_DEVICE_ATTRIBUTE_NUMA_ID and HOST_NUMA_ID: none.
        131 | 134 => return Some(-1),
        _ if (1..=LAST_ATTRIBUTE).contains(&attribute) => 0,
        _ => return None,
    };
    // No figure of a device is beyond an int.
    i32::try_from(value).ok()
}

/// `CUdevprop`.
#[repr(C)]
pub(super) struct Properties {
    max_threads_per_block: i32,
    max_block: [i32; 3],
    max_grid: [i32; 3],
    shared_per_block: i32,
    constant_bytes: i32,
    warp_size: i32,
    max_pitch: i32,
    registers_per_block: i32,
    clock_khz: i32,
    texture_alignment: i32,
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetProperties(
    properties: Out<Properties>,
    device: CUdevice,
) -> CUresult {
    call("cuDeviceGetProperties", || {
        check_device(device)?;
        let driver = driver()?;
        let of = |attribute| attribute_of(&driver.device, attribute).unwrap_or(0);
        properties.set(Properties {
            max_threads_per_block: of(1),
            max_block: [of(2), of(3), of(4)],
            max_grid: [of(5), of(6), of(7)],
            shared_per_block: of(8),
            constant_bytes: of(9),
            warp_size: of(10),
            max_pitch: of(11),
            registers_per_block: of(12),
            clock_khz: of(13),
            texture_alignment: of(14),
        })
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetPCIBusId(
    text: Out<c_char>,
    size: i32,
    device: CUdevice,
) -> CUresult {
    call("cuDeviceGetPCIBusId", || {
        driver()?;
        check_device(device)?;
        give_text(BUS_ID, &text, size)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetByPCIBusId(device: Out<CUdevice>, text: Text) -> CUresult {
    call("cuDeviceGetByPCIBusId", || {
        driver()?;
        let asked = text.get()?;
        if asked != BUS_ID {
            let text = format!("no device at {asked}; the emulator's is at {BUS_ID}");
            return Err(Error::new(code::INVALID_DEVICE, text));
        }
        device.set(0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceCanAccessPeer(
    answer: Out<i32>,
    device: CUdevice,
    peer: CUdevice,
) -> CUresult {
    call("cuDeviceCanAccessPeer", || {
        driver()?;
        check_device(device)?;
        check_device(peer)?;
        answer.set(0) // a device is no peer of itself
    })
}

/// As for peer access: there are no two devices.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetP2PAttribute(
    value: Out<i32>,
    attribute: u32,
    device: CUdevice,
    peer: CUdevice,
) -> CUresult {
    call("cuDeviceGetP2PAttribute", || {
        driver()?;
        value.check()?;
        // `CUdevice_P2PAttribute` begins at 1
        if !(1..=5).contains(&attribute) {
            return Err(Error::value(format!(
                "{attribute} is no CUdevice_P2PAttribute"
            )));
        }
        check_device(device)?;
        check_device(peer)?;
        let text = "the two devices are one";
        Err(Error::new(code::INVALID_DEVICE, text))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetExecAffinitySupport(
    answer: Out<i32>,
    _kind: u32,
    device: CUdevice,
) -> CUresult {
    call("cuDeviceGetExecAffinitySupport", || {
        driver()?;
        check_device(device)?;
        answer.set(0)
    })
}

/// There is no profiler to start.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuProfilerStart() -> CUresult {
    call("cuProfilerStart", || driver().map(drop))
}

/// As [`cuProfilerStart`].
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuProfilerStop() -> CUresult {
    call("cuProfilerStop", || driver().map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_tell_the_poses_apart() {
        let (a100, h100) = (Device::sm_80(), Device::sm_90());
        #[rustfmt::skip]
        let cases = [
            (75, 8, 9), (76, 0, 0), (16, 108, 132), (97, 166_912, 232_448), (8, 49_152, 49_152),
            (5, i32::MAX, i32::MAX), (19, 1, 1), (83, 1, 1), (115, 1, 1), (120, 0, 1),
        ];
        for (attribute, on_80, on_90) in cases {
            assert_eq!(
                attribute_of(&a100, attribute),
                Some(on_80),
                "{attribute} of sm_80"
            );
            assert_eq!(
                attribute_of(&h100, attribute),
                Some(on_90),
                "{attribute} of sm_90"
            );
        }
        for attribute in [0, LAST_ATTRIBUTE + 1, u32::MAX] {
            assert_eq!(attribute_of(&a100, attribute), None);
        }
    }
}
