//! Occupancy: by threads, by shared memory, and by registers where the image has machine code that tells them.

use std::sync::Arc;

use cuda_emulator::take_thread_reports;
use cudarc::driver::sys::{CUfunction_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::cubin::cubin;
use crate::fatbin::{Entry, Packing, fatbin, ptx};
use crate::{KERNELS, assert_error, context, kernel};

/// `through_shared` of an image whose machine code says so many registers.
fn with_registers(context: &Arc<CudaContext>, registers: u32) -> CudaFunction {
    let (major, minor) = context.compute_capability().unwrap();
    let arch = (10 * major + minor) as u32;
    let code = cubin(arch, &[("vector_add", 1), ("through_shared", registers)]);
    let entry = Entry {
        kind: 2,
        arch,
        variant: 0,
        packing: Packing::Zstd,
        payload: &code,
    };
    let image = fatbin(&[entry, ptx(80, KERNELS)]);
    let module = context.load_module(Ptx::from_binary(image)).unwrap();
    module.load_function("through_shared").unwrap()
}

#[test]
fn occupancy_is_by_threads_and_shared_memory() {
    let context = context();
    let kernel = kernel(&context, "through_shared");
    let blocks = |threads, shared| {
        kernel.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None)
    };
    // sm_80, sm_86, sm_89 and sm_90: by threads, and by 48 KiB of the shared memory
    let (by_threads, by_shared, largest) = match context.compute_capability().unwrap() {
        (8, 0) => (8, 3, 1024),
        (9, 0) => (8, 4, 1024),
        _ => (6, 2, 768),
    };
    assert_eq!(blocks(256, 0), Ok(by_threads));
    assert_eq!(blocks(256, 48 * 1024), Ok(by_shared));
    assert_eq!(
        blocks(256, 49 * 1024),
        Ok(0),
        "more than the attribute allows"
    );
    let free = kernel
        .occupancy_available_dynamic_smem_per_block(2, 256)
        .unwrap();
    assert!(blocks(256, free.min(48 * 1024)).unwrap() >= 2, "{free}");
    extern "C" fn four_bytes_a_thread(threads: i32) -> usize {
        4 * threads as usize
    }
    let best = kernel.occupancy_max_potential_block_size(four_bytes_a_thread, 0, 0, None);
    let (grid, block) = best.unwrap();
    assert_eq!(block, largest);
    assert_eq!(grid % 2, 0, "two blocks on each multiprocessor");
}

#[test]
fn registers_of_the_machine_code_bound_occupancy() {
    let context = context();
    let kernel = with_registers(&context, 255);
    assert_eq!(kernel.num_regs(), Ok(255));
    assert_eq!(kernel.max_threads_per_block(), Ok(256));
    let blocks = |threads| kernel.occupancy_max_active_blocks_per_multiprocessor(threads, 0, None);
    assert_eq!(blocks(128), Ok(2));
    assert_eq!(blocks(256), Ok(1));
    assert_eq!(blocks(512), Ok(0), "more registers than there are");
    extern "C" fn none(_: i32) -> usize {
        0
    }
    let (grid, block) = kernel
        .occupancy_max_potential_block_size(none, 0, 0, None)
        .unwrap();
    let multiprocessors = context
        .attribute(
            cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
        .unwrap();
    assert_eq!((grid, block), (multiprocessors as u32, 256));
    let light = with_registers(&context, 32);
    assert_eq!(
        light.get_attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS),
        Ok(32)
    );
    assert_eq!(light.max_threads_per_block(), Ok(1024));
}

#[test]
fn a_launch_of_more_registers_than_a_block_may_have_is_refused() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let run = |registers| {
        let kernel = with_registers(&context, registers);
        let mut data = stream.alloc_zeros::<u32>(512)?;
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&mut data).arg(&1u32);
        let config = LaunchConfig {
            grid_dim: (1, 1, 1),
            block_dim: (512, 1, 1),
            shared_mem_bytes: 2048,
        };
        // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
        unsafe { launch.launch(config) }.map(drop)
    };
    take_thread_reports();
    run(128).unwrap();
    let reports = take_thread_reports();
    assert_eq!(reports[0].registers, Some(128));
    assert_error(
        run(129),
        CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
        "512 threads of 129 registers",
    );
    let text = kernel(&context, "through_shared");
    assert_eq!(text.num_regs(), Ok(255), "without machine code, a bound");
}
