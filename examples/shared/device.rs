//! Which device the tests, benches and examples run on.

use std::error::Error;
use std::sync::Arc;

use cuda_emulator::Driver;
use seqmix::cudarc::driver::CudaContext;

/// The first GPU if one works, else the emulator: a software CUDA driver. `SEQMIX_DRIVER=cuda` or
/// `SEQMIX_DRIVER=emulator` chooses. Prints which of them it is.
pub(crate) fn open() -> Result<(Arc<CudaContext>, Driver), Box<dyn Error>> {
    let choice = std::env::var("SEQMIX_DRIVER").ok();
    let driver = cuda_emulator::select(choice.as_deref())?;
    let context = seqmix::context(0)?;
    let (major, minor) = context.compute_capability()?;
    eprintln!(
        "device: {} (compute capability {major}.{minor}), through the {driver}",
        context.name()?
    );
    Ok((context, driver))
}
