//! Calls that make no sense: each returns the code that a driver gives, and the process goes on.

use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};
use std::thread;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{DevicePtr, DriverError};

use crate::{KERNELS, assert_error, context, kernels};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;
const MEMORY: CUresult = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
const HANDLE: CUresult = CUresult::CUDA_ERROR_INVALID_HANDLE;

#[test]
fn sizes_that_overflow_are_refused() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let data = stream.alloc_zeros::<u32>(16).unwrap();
    let at = data.device_ptr(&stream).0;
    let most = usize::MAX;
    let (mut address, mut pitch, mut pointer) = (0, 0, null_mut());
    // SAFETY: the pointers are valid; addresses and sizes are the emulator's to check.
    let results: [(&str, Result<(), DriverError>, CUresult); 14] = unsafe {
        let null_stream = null_mut();
        [
            (
                "alloc",
                sys::cuMemAlloc_v2(&raw mut address, most).result(),
                MEMORY,
            ),
            (
                "alloc nothing",
                sys::cuMemAlloc_v2(&raw mut address, 0).result(),
                INVALID,
            ),
            (
                "async",
                sys::cuMemAllocAsync(&raw mut address, most, null_stream).result(),
                MEMORY,
            ),
            (
                "pitch",
                sys::cuMemAllocPitch_v2(&raw mut address, &raw mut pitch, most, 2, 4).result(),
                INVALID,
            ),
            (
                "rows",
                sys::cuMemAllocPitch_v2(&raw mut address, &raw mut pitch, 512, most, 4).result(),
                INVALID,
            ),
            (
                "host",
                sys::cuMemAllocHost_v2(&raw mut pointer, most).result(),
                MEMORY,
            ),
            (
                "host, nothing",
                sys::cuMemAllocHost_v2(&raw mut pointer, 0).result(),
                INVALID,
            ),
            (
                "host, flags",
                sys::cuMemHostAlloc(&raw mut pointer, 16, 64).result(),
                INVALID,
            ),
            (
                "register",
                sys::cuMemHostRegister_v2(8 as *mut _, most, 0).result(),
                INVALID,
            ),
            ("memset", sys::cuMemsetD32_v2(at, 1, most).result(), INVALID),
            (
                "memset past the end",
                sys::cuMemsetD32_v2(at, 1, 17).result(),
                INVALID,
            ),
            (
                "memset rows",
                sys::cuMemsetD2D8_v2(at, 16, 1, 16, most).result(),
                INVALID,
            ),
            ("copy", sys::cuMemcpyDtoD_v2(at, at, most).result(), INVALID),
            (
                "copy to null",
                sys::cuMemcpyDtoH_v2(null_mut(), at, 4).result(),
                INVALID,
            ),
        ]
    };
    for (what, result, code) in results {
        assert_eq!(result.expect_err(what).0, code, "{what}");
    }
    // Nothing is moved by no bytes, however many rows of them there are.
    // SAFETY: as above.
    unsafe {
        sys::cuMemsetD2D8_v2(at, 16, 1, 0, most).result().unwrap();
        sys::cuMemsetD8_v2(at, 1, 0).result().unwrap();
        sys::cuMemcpyHtoD_v2(at, null(), 0).result().unwrap();
        sys::cuMemFree_v2(0).result().unwrap();
    }
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [0; 16]);
}

#[test]
fn lists_that_are_too_long_are_refused() {
    let context = context();
    let (mut pool, mut module) = (null_mut(), null_mut());
    let access = std::mem::MaybeUninit::<sys::CUmemAccessDesc>::zeroed();
    let mut option = sys::CUjit_option::CU_JIT_MAX_REGISTERS;
    let mut value = null_mut();
    // SAFETY: the lists are refused before they are read beyond their one element.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, 0)
            .result()
            .unwrap();
        let set = sys::cuMemPoolSetAccess(pool, access.as_ptr(), usize::MAX).result();
        assert_error(set, INVALID, "elements");
        let text = c".version 8.0".as_ptr().cast();
        let load = sys::cuModuleLoadDataEx(
            &raw mut module,
            text,
            u32::MAX,
            &raw mut option,
            &raw mut value,
        )
        .result();
        assert_error(load, INVALID, "elements");
    }
    drop(context);
}

#[test]
fn handles_are_stale_once_they_are_destroyed() {
    let context = context();
    let module = kernels(&context);
    let (mut stream, mut event, mut graph, mut exec, mut pool) =
        (null_mut(), null_mut(), null_mut(), null_mut(), null_mut());
    let (mut loaded, mut function) = (null_mut(), null_mut());
    let relaxed = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    let text = format!("{KERNELS}\0");
    // SAFETY: the pointers are valid; the emulator looks handles up and never follows them.
    unsafe {
        sys::cuStreamCreate(&raw mut stream, 1).result().unwrap();
        sys::cuEventCreate(&raw mut event, 0).result().unwrap();
        sys::cuStreamBeginCapture_v2(stream, relaxed)
            .result()
            .unwrap();
        sys::cuStreamEndCapture(stream, &raw mut graph)
            .result()
            .unwrap();
        sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0)
            .result()
            .unwrap();
        sys::cuModuleLoadData(&raw mut loaded, text.as_ptr().cast())
            .result()
            .unwrap();
        sys::cuModuleGetFunction(&raw mut function, loaded, c"vector_add".as_ptr())
            .result()
            .unwrap();
        let mut properties: sys::CUmemPoolProps = std::mem::zeroed();
        properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        sys::cuMemPoolCreate(&raw mut pool, &raw const properties)
            .result()
            .unwrap();
        for (again, code) in [(false, None), (true, Some(HANDLE))] {
            let results = [
                sys::cuGraphExecDestroy(exec),
                sys::cuGraphDestroy(graph),
                sys::cuEventDestroy_v2(event),
                sys::cuStreamDestroy_v2(stream),
                sys::cuModuleUnload(loaded),
                sys::cuMemPoolDestroy(pool),
            ];
            for result in results {
                assert_eq!(
                    result.result().err().map(|error| error.0),
                    code,
                    "again: {again}"
                );
            }
        }
        let mut address = 0;
        let stale = [
            sys::cuGraphLaunch(exec, null_mut()),
            sys::cuEventRecord(event, null_mut()),
            sys::cuStreamWaitEvent(null_mut(), event, 0),
            sys::cuStreamSynchronize(stream),
            sys::cuModuleGetFunction(&raw mut function, loaded, c"vector_add".as_ptr()),
            sys::cuLaunchKernel(
                function,
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                null_mut(),
                null_mut(),
                null_mut(),
            ),
            sys::cuMemAllocFromPoolAsync(&raw mut address, 4, pool, null_mut()),
        ];
        for result in stale {
            assert_eq!(result, HANDLE);
        }
    }
    drop(module);
}

#[test]
fn what_belongs_to_another_context_is_refused() {
    let _primary = context();
    thread::spawn(|| {
        let (mut a, mut b, mut top) = (null_mut(), null_mut(), null_mut());
        let (mut module, mut function) = (null_mut(), null_mut());
        let (mut event, mut stream) = (null_mut(), null_mut());
        let text = format!("{KERNELS}\0");
        // SAFETY: the pointers are valid; the emulator looks handles up.
        unsafe {
            sys::cuCtxCreate_v4(&raw mut a, null_mut(), 0, 0)
                .result()
                .unwrap();
            sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast())
                .result()
                .unwrap();
            sys::cuModuleGetFunction(&raw mut function, module, c"through_shared".as_ptr())
                .result()
                .unwrap();
            sys::cuEventCreate(&raw mut event, 0).result().unwrap();
            sys::cuCtxCreate_v4(&raw mut b, null_mut(), 0, 0)
                .result()
                .unwrap();
            sys::cuStreamCreate(&raw mut stream, 0).result().unwrap();
            assert_error(
                sys::cuEventRecord(event, stream).result(),
                HANDLE,
                "different contexts",
            );
            let mut parameters = [null_mut(); 2];
            let launch = sys::cuLaunchKernel(
                function,
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                stream,
                parameters.as_mut_ptr(),
                null_mut(),
            );
            assert_error(launch.result(), HANDLE, "different contexts");
            let peer = sys::cuCtxEnablePeerAccess(a, 0).result();
            assert_error(
                peer,
                CUresult::CUDA_ERROR_INVALID_DEVICE,
                "no peer of itself",
            );
            let peer = sys::cuCtxDisablePeerAccess(a).result();
            assert_error(
                peer,
                CUresult::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED,
                "no peer",
            );
            for context in [b, a] {
                sys::cuCtxPopCurrent_v2(&raw mut top).result().unwrap();
                assert_eq!(top, context);
                sys::cuCtxDestroy_v2(context).result().unwrap();
            }
            assert_eq!(sys::cuCtxDestroy_v2(a), HANDLE);
            let none = sys::cuCtxPopCurrent_v2(&raw mut top).result();
            assert_error(
                none,
                CUresult::CUDA_ERROR_INVALID_CONTEXT,
                "no context is current",
            );
        }
    })
    .join()
    .unwrap();
}

#[test]
fn codes_have_names_and_others_have_none() {
    let _context = context();
    let name = |code: CUresult| {
        let mut name: *const c_char = null();
        // SAFETY: the pointer is valid to write; names live as long as the process.
        unsafe {
            sys::cuGetErrorName(code, &raw mut name).result().unwrap();
            CStr::from_ptr(name).to_str().unwrap()
        }
    };
    assert_eq!(name(MEMORY), "CUDA_ERROR_OUT_OF_MEMORY");
    assert_eq!(name(CUresult::CUDA_SUCCESS), "CUDA_SUCCESS");
    // SAFETY: the emulator is loaded under this name.
    let library = unsafe { libloading::Library::new("libcuda.so") }.unwrap();
    for function in ["cuGetErrorName", "cuGetErrorString"] {
        let mut text: *const c_char = c"before".as_ptr();
        // SAFETY: the type of the function, but for a number that is no variant of the enum.
        let code = unsafe {
            let function = library
                .get::<unsafe extern "C" fn(i32, *mut *const c_char) -> i32>(function)
                .unwrap();
            function(54_321, &raw mut text)
        };
        assert_eq!((code, text.is_null()), (1, true), "{function}");
    }
}

#[test]
fn peers_are_what_one_device_has() {
    let _context = context();
    let (mut answer, mut value) = (7, 7);
    let attribute = sys::CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED;
    let device = CUresult::CUDA_ERROR_INVALID_DEVICE;
    // SAFETY: the pointers are valid to write.
    unsafe {
        sys::cuDeviceCanAccessPeer(&raw mut answer, 0, 0)
            .result()
            .unwrap();
        assert_eq!(answer, 0);
        let other = sys::cuDeviceCanAccessPeer(&raw mut answer, 0, 1).result();
        assert_error(other, device, "no device 1");
        let same = sys::cuDeviceGetP2PAttribute(&raw mut value, attribute, 0, 0).result();
        assert_error(same, device, "are one");
    }
}
