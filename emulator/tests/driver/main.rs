//! The driver API, through an unmodified cudarc: what programs do with a driver, and what they do
//! wrong.

mod capture;
#[path = "../support/cubin.rs"]
mod cubin;
#[path = "../support/fatbin.rs"]
mod fatbin;
mod functions;
mod hostile;
mod launch;
mod managed;
mod memory;
mod module;
mod objects;
mod occupancy;
mod tensor_map;

use std::sync::Arc;

use cuda_emulator::{Settings, configure, install};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

/// Kernels for the tests.
const KERNELS: &str = include_str!("kernels.ptx");

/// The device, on the emulator even where there is a GPU. Faults are expected here: they stay quiet.
fn context() -> Arc<CudaContext> {
    install().unwrap();
    let quiet = Settings {
        quiet: Some(true),
        ..Settings::default()
    };
    configure(&quiet).unwrap();
    CudaContext::new(0).unwrap()
}

fn kernels(context: &Arc<CudaContext>) -> Arc<CudaModule> {
    context.load_module(Ptx::from_src(KERNELS)).unwrap()
}

fn kernel(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    kernels(context).load_function(name).unwrap()
}

/// Asserts that a result is an error of this code whose text, as cudarc prints it, has these words.
#[track_caller]
fn assert_error<T>(result: Result<T, DriverError>, code: CUresult, words: &str) {
    let error = result.err().expect("an error");
    let text = format!("{error}");
    assert_eq!(error.0, code, "{text}");
    assert!(text.contains(words), "`{text}` lacks `{words}`");
}
