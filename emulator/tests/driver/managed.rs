//! Managed and pinned memory: host and kernels use the same bytes at the same address.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use cuda_emulator::take_thread_faults;
use cudarc::driver::sys::{
    self, CUmemAttach_flags as Attach, CUpointer_attribute as Attribute, CUresult,
};
use cudarc::driver::{CudaContext, CudaStream, DriverError, LaunchConfig, PushKernelArg};

use crate::{assert_error, context, kernel};

/// Runs `vector_add` on three addresses.
fn add(
    context: &Arc<CudaContext>,
    stream: &Arc<CudaStream>,
    [a, b, c]: [u64; 3],
    count: u32,
) -> Result<(), DriverError> {
    let kernel = kernel(context, "vector_add");
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&a).arg(&b).arg(&c).arg(&count);
    // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
    unsafe { launch.launch(LaunchConfig::for_num_elems(count)) }.map(drop)
}

#[test]
fn kernels_and_host_share_managed_memory() {
    let context = context();
    let stream = context.default_stream();
    // SAFETY: plain numbers, written before they are read.
    let mut data = unsafe { context.alloc_unified::<f32>(64, true) }.unwrap();
    for (i, x) in data.as_mut_slice().unwrap().iter_mut().enumerate() {
        *x = i as f32;
    }
    data.prefetch().unwrap();
    let kernel = kernel(&context, "vector_add");
    let ones = stream.clone_htod(&[1.0f32; 64]).unwrap();
    let mut out = stream.alloc_zeros::<f32>(64).unwrap();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&data).arg(&ones).arg(&mut out).arg(&64u32);
    // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
    unsafe { launch.launch(LaunchConfig::for_num_elems(64)) }.unwrap();
    let expected: Vec<f32> = (1..65).map(|i| i as f32).collect();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), expected);
    // and the other way round
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&ones).arg(&ones).arg(&mut data).arg(&64u32);
    // SAFETY: as above.
    unsafe { launch.launch(LaunchConfig::for_num_elems(64)) }.unwrap();
    stream.synchronize().unwrap();
    assert_eq!(data.as_slice().unwrap(), [2.0; 64]);
    data.attach(&stream, Attach::CU_MEM_ATTACH_SINGLE).unwrap();
}

fn managed(bytes: usize, flags: u32) -> Result<u64, DriverError> {
    let mut address = 0;
    // SAFETY: the pointer is valid to write.
    unsafe { sys::cuMemAllocManaged(&raw mut address, bytes, flags).result() }.map(|()| address)
}

#[test]
fn managed_memory_has_bounds_and_an_end() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let address = managed(256, 1).unwrap();
    // SAFETY: driver calls on memory that is alive, or must be refused.
    unsafe {
        sys::cuMemsetD32_v2(address, 7, 64).result().unwrap();
        let words = std::slice::from_raw_parts(address as *const u32, 64);
        assert_eq!(words, [7; 64]);
        let mut is_managed = 0u8;
        let out = (&raw mut is_managed).cast();
        sys::cuPointerGetAttribute(out, Attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED, address + 4)
            .result()
            .unwrap();
        assert_eq!(is_managed, 1);
        let past = sys::cuMemsetD32_v2(address, 7, 65).result();
        assert_error(
            past,
            CUresult::CUDA_ERROR_INVALID_VALUE,
            "past the 256-byte",
        );
        let wrong = sys::cuMemFreeHost(address as *mut c_void).result();
        assert_error(wrong, CUresult::CUDA_ERROR_INVALID_VALUE, "pinned memory");
    }
    take_thread_faults();
    let code = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    let past = add(&context, &stream, [address; 3], 65);
    assert_error(past, code, "lies in no allocation");
    // SAFETY: as above.
    let (first, second) = unsafe {
        (
            sys::cuMemFree_v2(address).result(),
            sys::cuMemFree_v2(address).result(),
        )
    };
    assert_eq!(first, Ok(()));
    assert_error(second, CUresult::CUDA_ERROR_INVALID_VALUE, "free of");
    let freed = add(&context, &stream, [address; 3], 64);
    assert_error(freed, code, "lies in no allocation");
}

#[test]
fn requests_for_managed_memory_that_make_no_sense_are_refused() {
    let _context = context();
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    assert_error(managed(0, 1), invalid, "0 bytes");
    assert_error(managed(16, 4), invalid, "attached");
    let memory = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    assert_error(managed(usize::MAX, 1), memory, "the host has no");
    let address = managed(64, 1).unwrap();
    let place = |kind: sys::CUmemLocationType, id: i32| {
        // SAFETY: a struct of numbers, whose kind 0 means none.
        let mut place: sys::CUmemLocation = unsafe { std::mem::zeroed() };
        place.type_ = kind;
        place.__bindgen_anon_1.id = id;
        place
    };
    let device = |id| place(sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id);
    let prefetch = |address, bytes, place| {
        // SAFETY: a call without pointers of the host.
        unsafe { sys::cuMemPrefetchAsync_v2(address, bytes, place, 0, null_mut()).result() }
    };
    let advise = |address, bytes| {
        let advice = sys::CUmem_advise::CU_MEM_ADVISE_SET_READ_MOSTLY;
        // SAFETY: as above.
        unsafe { sys::cuMemAdvise_v2(address, bytes, advice, device(0)).result() }
    };
    assert_eq!(prefetch(address, 64, device(0)), Ok(()));
    assert_eq!(
        prefetch(
            address + 32,
            32,
            place(sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_HOST, 0)
        ),
        Ok(())
    );
    assert_eq!(advise(address, 64), Ok(()));
    let other = CUresult::CUDA_ERROR_INVALID_DEVICE;
    assert_error(prefetch(address, 64, device(3)), other, "no device 3");
    for (start, bytes) in [
        (address, 65),
        (address + 64, 1),
        (address, 0),
        (0, 64),
        (address, usize::MAX),
    ] {
        assert_error(
            prefetch(start, bytes, device(0)),
            invalid,
            "no managed memory",
        );
        assert_error(advise(start, bytes), invalid, "no managed memory");
    }
    // SAFETY: as above.
    let part = unsafe { sys::cuStreamAttachMemAsync(null_mut(), address, 32, 4).result() };
    assert_error(part, invalid, "whole allocation");
    // SAFETY: it is alive.
    unsafe { sys::cuMemFree_v2(address).result() }.unwrap();
}

#[test]
fn kernels_reach_pinned_and_registered_memory() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let mut pinned: *mut c_void = null_mut();
    let mut own = vec![3.0f32; 32];
    let mut address = 0;
    // SAFETY: the pointers are valid, and the memory is alive until the end.
    unsafe {
        sys::cuMemHostAlloc(&raw mut pinned, 128, 2)
            .result()
            .unwrap();
        sys::cuMemHostGetDevicePointer_v2(&raw mut address, pinned, 0)
            .result()
            .unwrap();
        sys::cuMemHostRegister_v2(own.as_mut_ptr().cast(), 128, 0)
            .result()
            .unwrap();
        let registered = own.as_ptr() as u64;
        add(&context, &stream, [registered, registered, address], 32).unwrap();
        let sums = std::slice::from_raw_parts(pinned.cast_const().cast::<f32>(), 32);
        assert_eq!(sums, [6.0; 32]);
        sys::cuMemHostUnregister(own.as_mut_ptr().cast())
            .result()
            .unwrap();
        let after = add(&context, &stream, [registered, registered, address], 32);
        let code = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
        assert_error(after, code, "lies in no allocation");
        sys::cuMemFreeHost(pinned).result().unwrap();
        let freed = sys::cuMemHostGetDevicePointer_v2(&raw mut address, pinned, 0).result();
        assert_error(
            freed,
            CUresult::CUDA_ERROR_INVALID_VALUE,
            "no pinned memory",
        );
    }
}
