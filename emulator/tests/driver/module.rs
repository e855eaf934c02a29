//! Modules: images of all kinds, what is wrong with some, functions, globals, libraries.

use std::ffi::c_void;
use std::fs;
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::fatbin::{Entry, Packing, fatbin, ptx};
use crate::{KERNELS, assert_error, context, kernels};

/// Loads an image and runs its `through_shared`.
fn run(image: Ptx) -> Result<Vec<u32>, DriverError> {
    let context = context();
    let stream = context.new_stream()?;
    let kernel = context
        .load_module(image)?
        .load_function("through_shared")?;
    let mut data = stream.alloc_zeros::<u32>(32)?;
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&mut data).arg(&5u32);
    let config = LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (32, 1, 1),
        shared_mem_bytes: 128,
    };
    // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
    unsafe { launch.launch(config) }?;
    stream.clone_dtoh(&data)
}

fn sass(arch: u32) -> Entry<'static> {
    Entry {
        kind: 2,
        ..ptx(arch, "machine code")
    }
}

#[test]
fn images_of_every_kind_run() {
    for packing in [Packing::Plain, Packing::Zstd, Packing::Lz4] {
        let entry = Entry {
            packing,
            ..ptx(80, KERNELS)
        };
        let image = fatbin(&[sass(80), entry, sass(90)]);
        assert_eq!(run(Ptx::from_binary(image)), Ok(vec![5; 32]), "{packing:?}");
    }
    let text = [KERNELS.as_bytes(), b"\0"].concat();
    assert_eq!(run(Ptx::from_binary(text)), Ok(vec![5; 32]));
    let path = std::env::temp_dir().join(format!("driver-{}.ptx", std::process::id()));
    fs::write(&path, KERNELS).unwrap();
    let loaded = run(Ptx::from_file(&path));
    fs::remove_file(&path).unwrap();
    assert_eq!(loaded, Ok(vec![5; 32]));
}

#[test]
fn images_that_do_not_run_say_why() {
    let lines = |opcode: &str| KERNELS.replace("bar.sync 0;", opcode);
    let truncated = |mut image: Vec<u8>| {
        image[16 + 8..16 + 16].copy_from_slice(&u64::from(u32::MAX).to_le_bytes());
        image
    };
    #[rustfmt::skip]
    let cases: [(Ptx, CUresult, &str); 9] = [
        (Ptx::from_binary(fatbin(&[sass(80), sass(90)])), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
            "only SASS for sm_80, sm_90"),
        (Ptx::from_binary(fatbin(&[ptx(120, KERNELS)])), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
            "PTX for compute_120"),
        (Ptx::from_binary(truncated(fatbin(&[sass(80)]))), CUresult::CUDA_ERROR_INVALID_IMAGE,
            "is damaged"),
        (Ptx::from_src(KERNELS.replace(".target sm_80", ".target sm_120")), CUresult::CUDA_ERROR_INVALID_PTX,
            "the PTX is for sm_120, which"),
        (Ptx::from_src(KERNELS.replace(".target sm_80", ".target sm_100a, debug")), CUresult::CUDA_ERROR_INVALID_PTX,
            "the PTX is for sm_100a, which"),
        (Ptx::from_src("no module"), CUresult::CUDA_ERROR_INVALID_IMAGE,
            "no module image"),
        (Ptx::from_src(lines("bar.dance 0;")), CUresult::CUDA_ERROR_INVALID_PTX,
            "bar.dance"),
        (Ptx::from_src(lines("bar.sync 0")), CUresult::CUDA_ERROR_INVALID_PTX,
            "line"),
        (Ptx::from_file("/no/such/file.ptx"), CUresult::CUDA_ERROR_FILE_NOT_FOUND,
            "/no/such/file.ptx"),
    ];
    for (image, code, words) in cases {
        assert_error(context().load_module(image), code, words);
    }
}

#[test]
fn a_missing_kernel_is_named_beside_those_that_there_are() {
    let module = kernels(&context());
    let result = module.load_function("vector_sub");
    let words = "no kernel `vector_sub`; it has through_shared, vector_add";
    assert_error(result, CUresult::CUDA_ERROR_NOT_FOUND, words);
}

#[test]
fn globals_have_their_initial_value_and_can_be_written() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = kernels(&context);
    let other = kernels(&context);
    let read = |module: &std::sync::Arc<_>| {
        let module: &std::sync::Arc<cudarc::driver::CudaModule> = module;
        let global = module.get_global("launches", &stream).unwrap();
        stream.clone_dtoh(&global).unwrap()
    };
    assert_eq!(read(&module), 3u32.to_le_bytes());
    let mut global = module.get_global("launches", &stream).unwrap();
    stream.memcpy_htod(&[9, 0, 0, 0], &mut global).unwrap();
    assert_eq!(read(&module), [9, 0, 0, 0]);
    assert_eq!(read(&other), [3, 0, 0, 0], "each module has its own");
    let result = module.get_global("landings", &stream);
    let words = "no global variable `landings`";
    assert_error(result.map(drop), CUresult::CUDA_ERROR_NOT_FOUND, words);
}

#[test]
fn a_library_is_loaded_without_a_context_of_its_own() {
    let _context = context();
    let text = [KERNELS.as_bytes(), b"\0"].concat();
    let image: *const c_void = text.as_ptr().cast();
    let (mut library, mut kernel, mut function) = (null_mut(), null_mut(), null_mut());
    let mut count = 0;
    // SAFETY: the image is whole and the pointers are valid to write.
    unsafe {
        let no_options = null_mut();
        let no_values = null_mut();
        sys::cuLibraryLoadData(
            &raw mut library,
            image,
            no_options,
            no_values,
            0,
            null_mut(),
            null_mut(),
            0,
        )
        .result()
        .unwrap();
        sys::cuLibraryGetKernelCount(&raw mut count, library)
            .result()
            .unwrap();
        let name = c"vector_add".as_ptr();
        sys::cuLibraryGetKernel(&raw mut kernel, library, name)
            .result()
            .unwrap();
        sys::cuKernelGetFunction(&raw mut function, kernel)
            .result()
            .unwrap();
    }
    assert_eq!(count, 2);
    let mut threads = 0;
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
    // SAFETY: the emulator checks the handles.
    let (before, twice) = unsafe {
        let before = sys::cuFuncGetAttribute(&raw mut threads, most, function).result();
        sys::cuLibraryUnload(library).result().unwrap();
        (before, sys::cuLibraryUnload(library).result())
    };
    assert_eq!((before, threads), (Ok(()), 1024));
    let code = CUresult::CUDA_ERROR_INVALID_HANDLE;
    assert_error(twice, code, "no module that is alive");
    // SAFETY: as above.
    let after = unsafe { sys::cuFuncGetAttribute(&raw mut threads, most, function).result() };
    assert_error(after, code, "no function that is alive");
}

#[test]
fn the_compilers_log_has_the_error() {
    use sys::CUjit_option as Option;
    let _context = context();
    let text = [
        KERNELS.replace("bar.sync 0;", "bar.dance 0;").as_bytes(),
        b"\0",
    ]
    .concat();
    let (mut log, mut info) = ([1u8; 64], [1u8; 8]);
    let mut options = [
        Option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        Option::CU_JIT_ERROR_LOG_BUFFER,
        Option::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
        Option::CU_JIT_INFO_LOG_BUFFER,
    ];
    // Sizes are ints in the place of pointers, whose upper half is nobody's.
    let size = log.len() | 7 << 40;
    let mut values: [*mut c_void; 4] = [
        size as *mut c_void,
        log.as_mut_ptr().cast(),
        info.len() as *mut c_void,
        info.as_mut_ptr().cast(),
    ];
    let mut module = null_mut();
    // SAFETY: the image is whole, and there are as many values as options.
    let result = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        let image = text.as_ptr().cast();
        sys::cuModuleLoadDataEx(&raw mut module, image, 4, options, values).result()
    };
    assert_error(result, CUresult::CUDA_ERROR_INVALID_PTX, "bar.dance");
    let end = log.iter().position(|byte| *byte == 0).expect("a C string");
    let text = std::str::from_utf8(&log[..end]).unwrap();
    assert!(text.contains("through_shared"), "{text}");
    assert_eq!(values[0] as usize, end + 1, "the size that is used");
    assert_eq!(info[0], 0, "the other log is empty");
}
