//! Sticky faults, as on hardware. The setting is the process's, so this test has a process of its own.

use std::ptr::null_mut;

use cuda_emulator::{Settings, configure, install, take_faults};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

const KERNELS: &str = include_str!("../driver/kernels.ptx");

fn code(result: Result<(), DriverError>) -> CUresult {
    result.expect_err("an error").0
}

#[test]
fn a_fault_costs_the_context() {
    install().unwrap();
    let settings = Settings {
        quiet: Some(true),
        sticky: Some(true),
        ..Settings::default()
    };
    configure(&settings).unwrap();
    for _ in 0..2 {
        let context = CudaContext::new(0).unwrap();
        // SAFETY: one stream; its events would be the first calls after a launch.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let module = context.load_module(Ptx::from_src(KERNELS)).unwrap();
        let kernel = module.load_function("vector_add").unwrap();
        let data = stream.alloc_zeros::<f32>(64).unwrap();
        let launch = |count: u32, threads: u32| {
            let mut out = stream.alloc_zeros::<f32>(64)?;
            let mut launch = stream.launch_builder(&kernel);
            launch.arg(&data).arg(&data).arg(&mut out).arg(&count);
            let config = LaunchConfig {
                grid_dim: (1, 1, 1),
                block_dim: (threads, 1, 1),
                shared_mem_bytes: 0,
            };
            // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
            unsafe { launch.launch(config) }.map(drop)
        };
        launch(64, 64).unwrap();
        // A launch that never begins costs nothing.
        assert_eq!(code(launch(64, 2048)), CUresult::CUDA_ERROR_INVALID_VALUE);
        launch(64, 64).unwrap();
        // One that reads too far is queued; every call after it learns what happened.
        take_faults();
        let mut out = stream.alloc_zeros::<f32>(128).unwrap();
        let mut bad = stream.launch_builder(&kernel);
        bad.arg(&data).arg(&data).arg(&mut out).arg(&65u32);
        // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
        unsafe { bad.launch(LaunchConfig::for_num_elems(128)) }
            .map(drop)
            .unwrap();
        let faults = take_faults();
        assert!(
            faults[0].contains("past the 256-byte allocation"),
            "{faults:?}"
        );
        let lost = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
        let (mut address, mut current) = (0, null_mut());
        // SAFETY: driver calls with valid pointers.
        unsafe {
            assert_eq!(code(sys::cuCtxSynchronize().result()), lost);
            assert_eq!(
                code(sys::cuStreamSynchronize(stream.cu_stream()).result()),
                lost
            );
            assert_eq!(code(sys::cuMemAlloc_v2(&raw mut address, 4).result()), lost);
            assert_eq!(code(sys::cuMemsetD8_v2(address, 0, 4).result()), lost);
            // What needs no context goes on.
            sys::cuCtxGetCurrent(&raw mut current).result().unwrap();
            sys::cuCtxPushCurrent_v2(current).result().unwrap();
            sys::cuCtxPopCurrent_v2(&raw mut current).result().unwrap();
        }
        assert_eq!(code(launch(64, 64)), lost);
        let text = stream.synchronize().unwrap_err().to_string();
        assert!(text.contains("kernel vector_add"), "{text}");
        // The context ends here, and the next begins afresh.
    }
}
