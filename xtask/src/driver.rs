//! Whether this machine has a CUDA driver with a device, asked without any CUDA library of our own.

use std::ffi::c_int;

use libloading::{Library, Symbol};

/// What the tests will run on: they follow the same rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// A real driver with at least one device, or one that SEQMIX_DRIVER insists on.
    Cuda,
    /// The software driver of emulator/.
    Emulator,
}

/// SEQMIX_DRIVER if it is set, else the real driver if it has a device, else the emulator.
pub(crate) fn chosen() -> Driver {
    match std::env::var("SEQMIX_DRIVER").as_deref() {
        Ok("cuda") => Driver::Cuda,
        Ok("emulator") => Driver::Emulator,
        _ if devices() > 0 => Driver::Cuda,
        _ => Driver::Emulator,
    }
}

/// How many devices the CUDA driver of this machine has; 0 if there is no driver that works.
fn devices() -> c_int {
    let name = if cfg!(windows) {
        "nvcuda.dll"
    } else {
        "libcuda.so.1"
    };
    // SAFETY: the initialisers of NVIDIA's driver library may run at any time in any thread.
    let Ok(driver) = (unsafe { Library::new(name) }) else {
        return 0;
    };
    // SAFETY: the signatures are those of cuda.h: `CUresult cuInit(unsigned)` and
    // `CUresult cuDeviceGetCount(int *)`, where CUresult is an int-sized enum and 0 is success.
    let (init, count) = unsafe {
        let init: Result<Symbol<unsafe extern "system" fn(u32) -> c_int>, _> =
            driver.get(b"cuInit\0");
        let count: Result<Symbol<unsafe extern "system" fn(*mut c_int) -> c_int>, _> =
            driver.get(b"cuDeviceGetCount\0");
        (init, count)
    };
    let (Ok(init), Ok(count)) = (init, count) else {
        return 0;
    };
    let mut devices = 0;
    // SAFETY: cuInit takes no pointer; `devices` outlives the call that writes it.
    let status = unsafe {
        match init(0) {
            0 => count(&mut devices),
            failed => failed,
        }
    };
    if status == 0 { devices } else { 0 }
}
