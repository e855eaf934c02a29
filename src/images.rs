//! What build.rs compiled: the images, and what each kernel in them needs of a GPU.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

use crate::error::{Error, Result};

/// An image of compiled kernels: a fatbin with SASS and PTX for each target.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The image's name.
    pub unit: &'static str,
    /// The compute capabilities that it was built for, e.g. `80,90a`.
    pub targets: &'static str,
    /// The fatbin.
    pub fatbin: &'static [u8],
}

/// What ptxas reported of one kernel for one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// The kernel's symbol.
    pub name: &'static str,
    /// The target, e.g. `sm_80`.
    pub arch: &'static str,
    /// Registers of each thread.
    pub registers: u32,
    /// Bytes of registers that each thread spills to memory: stores plus loads.
    pub spill_bytes: u32,
    /// Shared memory of each block, in bytes: what ptxas counted plus what each launch adds.
    pub shared_bytes: u32,
    /// Threads of each block.
    pub threads: u32,
}

// build.rs writes IMAGES and KERNELS.
include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The images in this build; none if it was built without nvcc.
pub fn images() -> &'static [Image] {
    IMAGES
}

/// Registers, spills and shared memory of each kernel for each target of this build.
pub fn kernels() -> &'static [KernelInfo] {
    KERNELS
}

/// Loads the image `unit` into `ctx`.
pub(crate) fn load(ctx: &Arc<CudaContext>, unit: &str) -> Result<Arc<CudaModule>> {
    let image = find(IMAGES, unit)?;
    ctx.load_module(Ptx::from_binary(image.fatbin.to_vec()))
        .map_err(|source| match advice(source) {
            Some(advice) => Error::Load {
                unit: image.unit,
                built: image.targets,
                advice,
                source,
            },
            None => Error::Driver(source),
        })
}

fn find(images: &[Image], unit: &str) -> Result<Image> {
    let image = images.iter().find(|image| image.unit == unit);
    image.copied().ok_or(Error::KernelsNotBuilt)
}

/// What to do about an image that the driver refuses; `None` for errors of another kind.
fn advice(DriverError(code): DriverError) -> Option<&'static str> {
    match code {
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => Some(
            "none of these targets runs on this GPU; build with CUDA_COMPUTE_CAP set to its \
             compute capability, e.g. CUDA_COMPUTE_CAP=\"80,90a,120\"",
        ),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Some(
            "the CUDA toolkit that compiled them is newer than the driver; update the driver, or \
             build with an older toolkit, or name this GPU in CUDA_COMPUTE_CAP",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_kernels_says_how_to_get_them() {
        let error = find(&[], "attention_forward_f16_d64").unwrap_err();
        assert_eq!(error, Error::KernelsNotBuilt);
        let text = error.to_string();
        for word in [
            "no nvcc was found",
            "cargo xtask toolkit",
            "NVCC",
            "CUDA_HOME",
        ] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn a_refused_image_names_its_targets_and_the_cure() {
        let source = DriverError(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let advice = advice(source).unwrap();
        assert!(advice.contains("CUDA_COMPUTE_CAP"));
        let out_of_memory = DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(super::advice(out_of_memory), None);
    }
}
