//! Launches: parameters in all forms, limits, faults, reports, occupancy.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::thread;

use cuda_emulator::{take_thread_faults, take_thread_reports};
use cudarc::driver::sys::{CUfunction_attribute_enum as Attribute, CUresult};
use cudarc::driver::{
    CudaFunction, CudaSlice, DevicePtr, DriverError, LaunchConfig, PushKernelArg, sys,
};

use crate::{assert_error, context, kernel};

fn config(blocks: u32, threads: u32, shared_mem_bytes: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes,
    }
}

/// Adds `n` numbers to their doubles, and says what the device has after `len` of them.
fn add(len: usize, n: u32, blocks: u32) -> Result<Vec<f32>, DriverError> {
    let context = context();
    let stream = context.new_stream()?;
    let add = kernel(&context, "vector_add");
    let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
    let b: Vec<f32> = a.iter().map(|x| 2.0 * x).collect();
    let (a, b) = (stream.clone_htod(&a)?, stream.clone_htod(&b)?);
    let mut c = stream.alloc_zeros::<f32>(len)?;
    let mut launch = stream.launch_builder(&add);
    launch.arg(&a).arg(&b).arg(&mut c).arg(&n);
    // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
    unsafe { launch.launch(config(blocks, 64, 0)) }?;
    stream.clone_dtoh(&c)
}

#[test]
fn a_kernel_computes_what_it_says() {
    let sum = add(1000, 1000, 16).unwrap();
    assert!(
        sum.iter().enumerate().all(|(i, x)| *x == 3.0 * i as f32),
        "{sum:?}"
    );
}

#[test]
fn a_kernel_leaves_alone_what_is_not_its_own() {
    let sum = add(100, 10, 2).unwrap();
    assert_eq!(sum[9], 27.0);
    assert!(sum[10..].iter().all(|x| *x == 0.0), "{sum:?}");
}

#[test]
fn a_report_tells_what_a_launch_did() {
    take_thread_reports();
    add(64, 64, 1).unwrap();
    add(64, 64, 3).unwrap();
    let reports = take_thread_reports();
    let grids: Vec<_> = reports.iter().map(|report| report.grid[0]).collect();
    assert_eq!(grids, [1, 3], "oldest first");
    let report = &reports[0];
    assert_eq!(
        (report.kernel.as_str(), report.block),
        ("vector_add", [64, 1, 1])
    );
    assert_eq!(report.global_loads.bytes, 2 * 64 * 4);
    assert_eq!(report.global_stores.unique_bytes, 64 * 4);
    assert!(report.to_string().contains("vector_add"), "{report}");
    assert!(take_thread_reports().is_empty(), "they were taken");
}

#[test]
fn reports_of_another_thread_stay_there() {
    context();
    take_thread_reports();
    thread::scope(|scope| {
        scope.spawn(|| {
            add(64, 64, 1).unwrap();
            assert_eq!(take_thread_reports().len(), 1);
            add(64, 64, 1).unwrap();
        });
    });
    assert!(take_thread_reports().is_empty());
}

#[test]
fn a_fault_is_the_text_of_the_error() {
    take_thread_faults();
    // 64 numbers, the kernel is told 65.
    let result = add(64, 65, 2);
    for words in [
        "kernel vector_add",
        "block (1, 0, 0), thread (0, 0, 0)",
        "ld.global.f32",
    ] {
        assert_error(result.clone(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, words);
    }
    let faults = take_thread_faults();
    assert_eq!(faults.len(), 1);
    assert!(
        faults[0].contains("past the 256-byte allocation"),
        "{}",
        faults[0]
    );
}

#[test]
fn threads_launch_side_by_side() {
    thread::scope(|scope| {
        for threads in 1..=8 {
            scope.spawn(move || {
                let len = 100 * threads;
                let sum = add(len, len as u32, 16).unwrap();
                assert!(sum.iter().enumerate().all(|(i, x)| *x == 3.0 * i as f32));
            });
        }
    });
}

#[test]
fn a_fault_is_not_sticky() {
    assert!(add(64, 65, 2).is_err());
    assert_eq!(add(4, 4, 1).unwrap(), [0.0, 3.0, 6.0, 9.0]);
}

#[test]
fn launches_beyond_the_device_are_refused() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let kernel = kernel(&context, "through_shared");
    let mut data = stream.alloc_zeros::<u32>(32).unwrap();
    let mut run = |config| {
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&mut data).arg(&7u32);
        // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
        unsafe { launch.launch(config) }.map(drop)
    };
    run(config(1, 32, 128)).unwrap();
    run(config(1, 32, 48 * 1024)).unwrap();
    for (config, words) in [
        (config(1, 1025, 8192), "1024"),
        (config(1, 32, 48 * 1024 + 16), "shared"),
        (config(0, 32, 128), "grid"),
    ] {
        assert_error(run(config), CUresult::CUDA_ERROR_INVALID_VALUE, words);
    }
}

#[test]
fn more_dynamic_shared_memory_must_be_asked_for() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let kernel = kernel(&context, "through_shared");
    let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert_eq!(kernel.get_attribute(most), Ok(48 * 1024));
    let optin = (context
        .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN))
    .unwrap();
    assert_error(
        kernel.set_attribute(most, optin + 1),
        CUresult::CUDA_ERROR_INVALID_VALUE,
        &format!("allows {optin} bytes"),
    );
    kernel.set_attribute(most, optin).unwrap();
    let mut data = stream.alloc_zeros::<u32>(32).unwrap();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&mut data).arg(&7u32);
    // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
    unsafe { launch.launch(config(1, 32, optin as u32)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [7; 32]);
}

/// Launches by the raw call, with both forms of parameters as they are given.
fn raw(
    kernel: &CudaFunction,
    mut pointers: Option<[*mut c_void; 2]>,
    mut extra: Option<[*mut c_void; 5]>,
) -> Result<(), DriverError> {
    let pointers = pointers
        .as_mut()
        .map_or(null_mut(), |list| list.as_mut_ptr());
    let extra = extra.as_mut().map_or(null_mut(), |list| list.as_mut_ptr());
    // SAFETY: each form is null or holds what the kernel takes.
    unsafe {
        let function = kernel.cu_function();
        sys::cuLaunchKernel(
            function,
            1,
            1,
            1,
            32,
            1,
            1,
            128,
            null_mut(),
            pointers,
            extra,
        )
        .result()
    }
}

#[test]
fn parameters_may_come_as_a_buffer() {
    let context = context();
    let stream = context.default_stream();
    let kernel = kernel(&context, "through_shared");
    let data = stream.alloc_zeros::<u32>(32).unwrap();
    let address = data.device_ptr(&stream).0;

    #[repr(C)]
    struct Buffer(u64, u32);
    let buffer = Buffer(address, 5);
    let mut bytes: usize = 12;
    let list = |bytes: *mut usize| {
        // CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END
        let [pointer, size, end] = [1, 2, 0].map(|key: usize| key as *mut c_void);
        Some([
            pointer,
            (&raw const buffer).cast_mut().cast(),
            size,
            bytes.cast(),
            end,
        ])
    };
    raw(&kernel, None, list(&raw mut bytes)).unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [5; 32]);

    bytes = 8;
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let short = "through_shared takes 12 bytes of parameters, the buffer has 8";
    assert_error(raw(&kernel, None, list(&raw mut bytes)), invalid, short);
    let (mut first, mut second) = (address, 6u32);
    let pointers = Some([(&raw mut first).cast(), (&raw mut second).cast()]);
    assert_error(
        raw(&kernel, pointers, list(&raw mut bytes)),
        invalid,
        "only one",
    );
    assert_error(
        raw(&kernel, None, None),
        invalid,
        "2 parameters, none were given",
    );
    let missing = Some([(&raw mut first).cast(), null_mut()]);
    assert_error(raw(&kernel, missing, None), invalid, "parameter value");
    raw(&kernel, pointers, None).unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [6; 32]);
}

/// Launches by `cuLaunchKernelEx` with one attribute.
fn extended(
    kernel: &CudaFunction,
    data: &CudaSlice<u32>,
    id: sys::CUlaunchAttributeID,
    value: sys::CUlaunchAttributeValue,
) -> Result<(), DriverError> {
    let mut attribute = sys::CUlaunchAttribute {
        id,
        pad: [0; 4],
        value,
    };
    let config = sys::CUlaunchConfig {
        gridDimX: 1,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 128,
        hStream: data.stream().cu_stream(),
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    let (mut address, mut value) = (data.device_ptr(data.stream()).0, 9u32);
    let mut pointers: [*mut c_void; 2] = [(&raw mut address).cast(), (&raw mut value).cast()];
    // SAFETY: the configuration and the parameters live until the call returns.
    unsafe {
        let function = kernel.cu_function();
        sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), null_mut()).result()
    }
}

#[test]
fn launch_attributes_are_obeyed_or_refused() {
    use sys::CUlaunchAttributeID as Id;
    let context = context();
    let stream = context.new_stream().unwrap();
    let kernel = kernel(&context, "through_shared");
    let data = stream.alloc_zeros::<u32>(32).unwrap();
    let cluster = |x| {
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y: 1, z: 1 };
        value
    };
    let number = |n| sys::CUlaunchAttributeValue { cooperative: n };
    extended(
        &kernel,
        &data,
        Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
        number(1),
    )
    .unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [9; 32]);
    extended(&kernel, &data, Id::CU_LAUNCH_ATTRIBUTE_PRIORITY, number(-1)).unwrap();
    extended(
        &kernel,
        &data,
        Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        cluster(1),
    )
    .unwrap();
    // a grid of one block, on a device with clusters or without
    let (code, words) = match context.compute_capability().unwrap() {
        (8, _) => (CUresult::CUDA_ERROR_NOT_SUPPORTED, "blocks: "),
        _ => (CUresult::CUDA_ERROR_INVALID_VALUE, "do not divide a grid"),
    };
    for words in ["clusters of (2, 1, 1) blocks", words] {
        assert_error(
            extended(
                &kernel,
                &data,
                Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                cluster(2),
            ),
            code,
            words,
        );
    }
}

#[test]
fn a_cooperative_launch_must_fit_the_device() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let kernel = kernel(&context, "through_shared");
    let mut data = stream.alloc_zeros::<u32>(1024).unwrap();
    let multiprocessors = (context
        .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT))
    .unwrap() as u32;
    // One block of 1024 threads fits a multiprocessor of 1536 threads, two fit one of 2048.
    let mut run = |blocks| {
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&mut data).arg(&7u32);
        // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
        unsafe { launch.launch_cooperative(config(blocks, 1024, 4096)) }.map(drop)
    };
    run(1).unwrap();
    let resident = kernel.occupancy_max_active_blocks_per_multiprocessor(1024, 4096, None);
    let most = resident.unwrap() * multiprocessors;
    let holds = format!("holds {most}");
    let code = CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    assert_error(run(most + 1), code, &holds);
}

#[test]
fn functions_tell_about_themselves() {
    let context = context();
    let kernel = kernel(&context, "through_shared");
    assert_eq!(kernel.max_threads_per_block(), Ok(1024));
    assert_eq!(kernel.shared_size_bytes(), Ok(0));
    assert_eq!(kernel.local_size_bytes(), Ok(0));
    assert_eq!(kernel.num_regs(), Ok(255), "no more than that have names");
    let binary = kernel.binary_version().unwrap();
    assert_eq!(kernel.ptx_version(), Ok(80), "of the text");
    let (major, minor) = context.compute_capability().unwrap();
    assert_eq!(binary, 10 * major + minor);
    let (mut offset, mut size) = (0, 0);
    // SAFETY: the pointers are valid to write.
    let found = unsafe {
        sys::cuFuncGetParamInfo(kernel.cu_function(), 1, &raw mut offset, &raw mut size).result()
    };
    assert_eq!((found, offset, size), (Ok(()), 8, 4));
    // SAFETY: as above.
    let found = unsafe {
        sys::cuFuncGetParamInfo(kernel.cu_function(), 2, &raw mut offset, &raw mut size).result()
    };
    let code = CUresult::CUDA_ERROR_INVALID_VALUE;
    assert_error(found, code, "through_shared has 2 parameters, not one at 2");
}
