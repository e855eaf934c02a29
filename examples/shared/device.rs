//! Which device the tests, benches and examples run on.

use std::error::Error;
use std::io::Write;
use std::sync::{Arc, Once};

use cuda_emulator::Driver;
use seqmix::cudarc::driver::CudaContext;

/// The first GPU if one works, else the emulator: a software CUDA driver. `SEQMIX_DRIVER=cuda` or
/// `SEQMIX_DRIVER=emulator` chooses. Prints which of them it is.
pub(crate) fn open() -> Result<(Arc<CudaContext>, Driver), Box<dyn Error>> {
    let choice = std::env::var("SEQMIX_DRIVER").ok();
    let driver = cuda_emulator::select(choice.as_deref())?;
    let context = seqmix::context(0)?;
    let (major, minor) = context.compute_capability()?;
    static PRINT: Once = Once::new();
    PRINT.call_once(|| {
        let name = context.name().unwrap_or_else(|error| error.to_string());
        let text = format!("{name} (compute capability {major}.{minor}), through the {driver}");
        // Not eprintln, which the test harness would keep to itself. Without a stderr nobody reads.
        let _ = writeln!(std::io::stderr(), "device: {text}");
    });
    Ok((context, driver))
}
