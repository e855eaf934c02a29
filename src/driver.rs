//! Finds the CUDA driver, and holds the few device properties that plans depend on.

use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, DriverError, sys::CUresult};

use crate::error::{Error, Result};

/// File names under which a CUDA driver is looked for, in this order.
const LIBRARIES: &[&str] = if cfg!(windows) {
    &["nvcuda.dll"]
} else {
    &["libcuda.so", "libcuda.so.1"]
};

/// The primary context of device `ordinal`.
///
/// The same as `CudaContext::new`, except that a machine without a CUDA driver gets an error
/// instead of a panic.
///
/// # Errors
/// [`Error::NoDriver`] if there is no driver, or no device that it can use.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    probe(LIBRARIES)?;
    CudaContext::new(ordinal).map_err(|DriverError(code)| match code {
        CUresult::CUDA_ERROR_NO_DEVICE => Error::NoDriver {
            reason: "the driver library is there, but it finds no GPU (CUDA_ERROR_NO_DEVICE); \
                     look at `nvidia-smi` and CUDA_VISIBLE_DEVICES"
                .into(),
        },
        _ => Error::Driver(DriverError(code)),
    })
}

/// Checks that one of `libraries` can be opened.
fn probe(libraries: &[&str]) -> Result<()> {
    let mut reasons = Vec::new();
    for name in libraries {
        // SAFETY: opening the driver's library runs its initialisers only. It is the library that
        // the calls after this one load and use in any case.
        match unsafe { libloading::Library::new(*name) } {
            Ok(_) => return Ok(()),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(Error::NoDriver {
        reason: format!(
            "none of {} can be opened ({}); install the NVIDIA driver (r580 or newer), \
             or add its folder to the library path",
            libraries.join(", "),
            reasons.join("; ")
        ),
    })
}

/// The oldest compute capability, times ten, that has the kernels' instructions (cp.async, mma of
/// bfloat16).
const OLDEST: i32 = 80;

/// What plans need to know of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Device {
    /// Compute capability times ten: 80, 90, 120.
    pub(crate) capability: u32,
    /// Shared memory that one block can ask for.
    pub(crate) shared_bytes: usize,
    /// Shared memory of a multiprocessor, for all its blocks.
    pub(crate) shared_bytes_of_all: usize,
    /// Multiprocessors.
    pub(crate) multiprocessors: usize,
}

impl Device {
    /// The device of `ctx`, if the kernels of `op` can run on it.
    pub(crate) fn of(op: &'static str, ctx: &CudaContext) -> Result<Self> {
        let (major, minor) = ctx.compute_capability()?;
        if 10 * major + minor < OLDEST {
            return Err(Error::Unsupported {
                op,
                request: format!("a GPU of compute capability {major}.{minor}"),
                available: "support from 8.0 on".into(),
            });
        }
        let attribute = |attribute| -> Result<usize> {
            Ok(usize::try_from(ctx.attribute(attribute)?).unwrap_or(0))
        };
        Ok(Self {
            capability: u32::try_from(10 * major + minor).unwrap_or(0),
            shared_bytes: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            shared_bytes_of_all: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_gets_an_error_that_names_what_was_tried() {
        let error = probe(&["libno_such_driver.so", "libnor_this.so.1"]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::NoDriver { .. }));
        for word in [
            "libno_such_driver.so, libnor_this.so.1",
            "install the NVIDIA driver",
        ] {
            assert!(text.contains(word), "{text}");
        }
    }
}
