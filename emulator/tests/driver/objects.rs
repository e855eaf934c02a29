//! Devices, contexts, streams, events, handles and symbols.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use cuda_emulator::{Driver, InstallError, Settings, configure, select};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, DriverError};

use crate::{assert_error, context};

const BAD_HANDLE: CUresult = CUresult::CUDA_ERROR_INVALID_HANDLE;

#[test]
fn every_symbol_is_exported() {
    let _context = context();
    // SAFETY: the emulator is loaded under this name; nothing runs.
    let library = unsafe { libloading::Library::new("libcuda.so") }.unwrap();
    let missing: Vec<&str> = include_str!("../support/cudarc-0.19.10-symbols.txt")
        .lines()
        // SAFETY: the symbols are only looked for.
        .filter(|name| unsafe { library.get::<*const ()>(*name) }.is_err())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_device_says_that_it_is_emulated() {
    let context = context();
    let (major, minor) = context.compute_capability().unwrap();
    let name = context.name().unwrap();
    assert_eq!(name, format!("Emulated sm_{major}{minor} (no GPU)"));
    assert_eq!(CudaContext::device_count(), Ok(1));
    let code = CUresult::CUDA_ERROR_INVALID_DEVICE;
    assert_error(CudaContext::new(1), code, "no device 1");
    let mut short = [1 as c_char; 5];
    // SAFETY: the buffer has 5 chars.
    unsafe { sys::cuDeviceGetName(short.as_mut_ptr(), 5, 0).result() }.unwrap();
    assert_eq!(short.map(|c| c as u8), *b"Emul\0");
}

#[test]
fn the_choice_of_driver_is_made_once() {
    let _context = context();
    assert_eq!(select(None).unwrap(), Driver::Emulator);
    assert_eq!(select(Some("emulator")).unwrap(), Driver::Emulator);
    let error = select(Some("cuda")).unwrap_err();
    let present = InstallError::AlreadySelected {
        present: Driver::Emulator,
    };
    assert_eq!(error.to_string(), present.to_string());
    assert!(
        error.to_string().contains("already uses the emulator"),
        "{error}"
    );
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let context = context();
    let other = match context.compute_capability().unwrap() {
        (8, 0) => "sm_90",
        _ => "sm_80",
    };
    let arch = |name: &str| Settings {
        arch: Some(name.to_owned()),
        ..Settings::default()
    };
    for (settings, words) in [
        (
            arch("sm_61"),
            "no emulated device `sm_61`; there are sm_80, sm_86, sm_89, sm_90",
        ),
        (arch(other), "cannot be replaced while a context exists"),
    ] {
        let error = configure(&settings).unwrap_err().to_string();
        assert!(error.contains(words), "`{error}` lacks `{words}`");
    }
    let (major, minor) = context.compute_capability().unwrap();
    configure(&arch(&format!("sm_{major}{minor}"))).unwrap();
}

#[test]
fn streams_and_events_keep_order_and_no_time() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let timed = sys::CUevent_flags::CU_EVENT_DEFAULT;
    let (start, end) = (
        context.new_event(Some(timed)).unwrap(),
        context.new_event(Some(timed)).unwrap(),
    );
    assert!(
        start.is_complete(),
        "an event that was never recorded is done"
    );
    assert_error(start.elapsed_ms(&end), BAD_HANDLE, "was not recorded");
    start.record(&stream).unwrap();
    end.record(&stream).unwrap();
    end.synchronize().unwrap();
    let code = CUresult::CUDA_ERROR_NOT_SUPPORTED;
    assert_error(start.elapsed_ms(&end), code, "measures no time");
    stream.wait(&end).unwrap();
    stream.synchronize().unwrap();
    context.default_stream().join(&stream).unwrap();
    context.per_thread_stream().synchronize().unwrap();
    let stream = context.new_stream_with_priority(-1).unwrap();
    let mut priority = 1;
    // SAFETY: the pointer is valid to write.
    unsafe { sys::cuStreamGetPriority(stream.cu_stream(), &raw mut priority).result() }.unwrap();
    assert_eq!(priority, -1);
}

#[test]
fn host_functions_run_in_order_and_may_not_call_cuda() {
    static SEEN: AtomicU32 = AtomicU32::new(u32::MAX);
    unsafe extern "C" fn see(argument: *mut c_void) {
        let mut bytes = [0u8; 4];
        // SAFETY: the argument is a device address; the buffer has 4 bytes.
        let code = unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), argument as u64, 4) };
        SEEN.store(code as u32, Ordering::SeqCst);
    }
    let context = context();
    let stream = context.new_stream().unwrap();
    // SAFETY: the function takes any argument.
    let result =
        unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(see), null_mut()).result() };
    assert_eq!(result, Ok(()));
    let not_permitted = CUresult::CUDA_ERROR_NOT_PERMITTED as u32;
    assert_eq!(SEEN.load(Ordering::SeqCst), not_permitted);
}

#[test]
fn handles_that_are_none_are_errors() {
    let context = context();
    let stream = context.new_stream().unwrap();
    // A null handle, one that was made up, and one of another kind.
    for handle in [
        null_mut(),
        0xdead_beef_usize as *mut c_void,
        stream.cu_stream().cast(),
    ] {
        // SAFETY: the emulator looks handles up and never follows them.
        let results: [Result<(), DriverError>; 6] = unsafe {
            [
                sys::cuEventSynchronize(handle.cast()).result(),
                sys::cuModuleUnload(handle.cast()).result(),
                sys::cuGraphLaunch(handle.cast(), stream.cu_stream()).result(),
                sys::cuGraphDestroy(handle.cast()).result(),
                sys::cuMemPoolDestroy(handle.cast()).result(),
                sys::cuFuncSetCacheConfig(
                    handle.cast(),
                    sys::CUfunc_cache::CU_FUNC_CACHE_PREFER_NONE,
                )
                .result(),
            ]
        };
        for result in results {
            assert_error(result, BAD_HANDLE, "");
        }
    }
    let made_up = 0xdead_beef_usize as *mut sys::CUstream_st;
    // SAFETY: as above.
    let result = unsafe { sys::cuStreamSynchronize(made_up).result() };
    assert_error(result, BAD_HANDLE, "0xdeadbeef is no stream that is alive");
}

#[test]
fn null_results_are_errors() {
    let _context = context();
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    // SAFETY: the emulator checks for null.
    let results = unsafe {
        [
            sys::cuDeviceGetCount(null_mut()).result(),
            sys::cuMemAlloc_v2(null_mut(), 4).result(),
            sys::cuStreamCreate(null_mut(), 0).result(),
            sys::cuEventCreate(null_mut(), 0).result(),
            sys::cuModuleLoadData(null_mut(), c".version 8.0".as_ptr().cast()).result(),
            sys::cuDevicePrimaryCtxRetain(null_mut(), 0).result(),
            sys::cuDeviceGetName(null_mut(), 4, 0).result(),
        ]
    };
    for result in results {
        assert_error(result, invalid, "null");
    }
    let mut module = null_mut();
    // SAFETY: as above.
    let result = unsafe { sys::cuModuleLoadData(&raw mut module, null_mut()).result() };
    assert_error(result, CUresult::CUDA_ERROR_INVALID_IMAGE, "empty");
}

#[test]
fn what_is_not_emulated_says_its_name() {
    let _context = context();
    let mut graph = null_mut();
    // SAFETY: the pointer is valid to write.
    let result = unsafe { sys::cuGraphCreate(&raw mut graph, 0).result() };
    let code = CUresult::CUDA_ERROR_NOT_SUPPORTED;
    assert_error(result, code, "cuGraphCreate is not emulated");
}

#[test]
fn a_context_takes_what_it_owns_with_it() {
    let _primary = context();
    // A thread of its own: contexts are current to threads.
    thread::spawn(|| {
        let (mut own, mut top, mut stream, mut address) = (null_mut(), null_mut(), null_mut(), 0);
        // SAFETY: the pointers are valid to write; the emulator checks handles and addresses.
        unsafe {
            let nothing = sys::cuMemAlloc_v2(&raw mut address, 64).result();
            let code = CUresult::CUDA_ERROR_INVALID_CONTEXT;
            assert_error(nothing, code, "no context is current");
            sys::cuCtxCreate_v4(&raw mut own, null_mut(), 0, 0)
                .result()
                .unwrap();
            sys::cuMemAlloc_v2(&raw mut address, 64).result().unwrap();
            sys::cuStreamCreate(&raw mut stream, 0).result().unwrap();
            sys::cuCtxPushCurrent_v2(own).result().unwrap();
            sys::cuCtxDestroy_v2(own).result().unwrap();
            let stale = sys::cuStreamSynchronize(stream).result();
            let code = CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED;
            assert_error(stale, code, "was destroyed");

            sys::cuCtxCreate_v4(&raw mut own, null_mut(), 0, 0)
                .result()
                .unwrap();
            let gone = sys::cuStreamSynchronize(stream).result();
            assert_error(gone, BAD_HANDLE, "no stream that is alive");
            let freed = sys::cuMemFree_v2(address).result();
            assert_error(freed, CUresult::CUDA_ERROR_INVALID_VALUE, "was freed");
            sys::cuCtxPopCurrent_v2(&raw mut top).result().unwrap();
            assert_eq!(top, own);
            sys::cuCtxDestroy_v2(own).result().unwrap();
        }
    })
    .join()
    .unwrap();
}

#[test]
fn limits_are_kept() {
    let context = context();
    let limit = sys::CUlimit::CU_LIMIT_STACK_SIZE;
    let before = context.get_limit(limit).unwrap();
    context.set_limit(limit, 4096).unwrap();
    assert_eq!(context.get_limit(limit), Ok(4096));
    context.set_limit(limit, before).unwrap();
    let unknown = context.get_limit(sys::CUlimit::CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH);
    assert_error(unknown, CUresult::CUDA_ERROR_UNSUPPORTED_LIMIT, "CUlimit 3");
}

#[test]
fn symbols_are_found_by_name_and_version() {
    let _context = context();
    let find = |name: &std::ffi::CStr, version| {
        let mut address = null_mut();
        let mut status = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS;
        // SAFETY: the pointers are valid to write.
        let result = unsafe {
            let (address, status) = (&raw mut address, &raw mut status);
            sys::cuGetProcAddress_v2(name.as_ptr(), address, version, 0, status).result()
        };
        result.map(|()| address)
    };
    let code = CUresult::CUDA_ERROR_NOT_FOUND;
    assert_error(find(c"cuNothing", 13_000), code, "no `cuNothing`");
    let count = find(c"cuDeviceGetCount", 13_000).unwrap();
    // SAFETY: this is the type of the function.
    let count: extern "C" fn(*mut c_int) -> c_int = unsafe { std::mem::transmute(count) };
    let mut devices = 0;
    assert_eq!((count(&raw mut devices), devices), (0, 1));
    // Names with and without the number of a variant are one function, and different from others.
    let found: HashMap<_, _> = [
        (c"cuMemAlloc", 13_000),
        (c"cuMemAlloc_v2", 13_000),
        (c"cuCtxCreate", 11_000),
        (c"cuCtxCreate", 13_000),
    ]
    .map(|(name, version)| (find(name, version).unwrap() as usize, name))
    .into();
    assert_eq!(found.len(), 3);
}
