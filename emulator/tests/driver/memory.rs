//! Memory: allocation, copies in all directions, memsets, pools, pinned memory, pointers.

use std::ffi::c_void;
use std::mem::{MaybeUninit, zeroed};
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{DevicePtr, DriverError};

use crate::{assert_error, context};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

#[test]
fn bytes_survive_every_copy() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let data: Vec<u64> = (0..1000).map(|i| i * 0x0123_4567_89ab).collect();
    let a = stream.clone_htod(&data).unwrap();
    let mut b = stream.alloc_zeros::<u64>(1000).unwrap();
    assert_eq!(stream.clone_dtoh(&b).unwrap(), [0; 1000]);
    stream.memcpy_dtod(&a, &mut b).unwrap();
    assert_eq!(stream.clone_dtoh(&b).unwrap(), data);
    stream.memset_zeros(&mut b.slice_mut(10..20)).unwrap();
    let b = stream.clone_dtoh(&b).unwrap();
    assert_eq!(
        (&b[..10], &b[10..20], &b[20..]),
        (&data[..10], &[0; 10][..], &data[20..])
    );
}

#[test]
fn memory_runs_out_and_comes_back() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let (_, total) = context.mem_get_info().unwrap();
    assert_eq!(total, context.total_mem().unwrap());
    // SAFETY: nothing reads the memory.
    let result = unsafe { stream.alloc::<u8>(total + 1) };
    let words = format!("{} bytes asked for", total + 1);
    assert_error(result.map(drop), CUresult::CUDA_ERROR_OUT_OF_MEMORY, &words);
    // SAFETY: nothing reads the memory.
    let result = unsafe { stream.alloc::<u8>(0) };
    assert_error(result.map(drop), INVALID, "at least one byte");
}

/// Device memory by the raw call.
fn allocate(bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: the pointer is valid to write.
    unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes).result() }.unwrap();
    address
}

fn free(address: u64) -> Result<(), DriverError> {
    // SAFETY: the emulator checks the address.
    unsafe { sys::cuMemFree_v2(address).result() }
}

#[test]
fn a_bad_free_says_what_it_met() {
    let _context = context();
    let address = allocate(100);
    assert_error(free(address + 8), INVALID, "lies inside the allocation");
    free(address).unwrap();
    assert_error(free(address), INVALID, "was freed");
    assert_error(free(12345), INVALID, "0x3039 lies in no allocation");
    free(0).unwrap();
    // SAFETY: the emulator checks the address.
    let copy = unsafe { sys::cuMemsetD8_v2(address, 0, 1).result() };
    assert_error(copy, INVALID, "was freed");
}

#[test]
fn copies_stay_within_an_allocation() {
    let _context = context();
    let address = allocate(100);
    let mut bytes = [1u8; 101];
    // SAFETY: the host buffer has 101 bytes; the emulator checks the device's, and for null.
    unsafe {
        let write = sys::cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), 101).result();
        assert_error(write, INVALID, "1 bytes past the 100-byte allocation");
        let read = sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), address + 1, 100).result();
        assert_error(read, INVALID, "(offset 1)");
        let endless = sys::cuMemcpyDtoD_v2(address, address, usize::MAX).result();
        assert_error(endless, INVALID, "too many to copy");
        let null = sys::cuMemcpyHtoD_v2(address, null_mut(), 4).result();
        assert_error(null, INVALID, "host pointer is null");
        let none = sys::cuMemcpyHtoD_v2(address, null_mut(), 0).result();
        assert_eq!(none, Ok(()));
    }
    free(address).unwrap();
}

#[test]
fn a_unified_copy_finds_out_whose_memory_it_is() {
    let _context = context();
    let (a, b) = (allocate(16), allocate(16));
    let (from, mut to) = ([7u8; 16], [0u8; 16]);
    let host = |pointer: *const u8| pointer as u64;
    // SAFETY: the buffers have 16 bytes.
    unsafe {
        sys::cuMemcpy(a, host(from.as_ptr()), 16).result().unwrap();
        sys::cuMemcpy(b, a, 16).result().unwrap();
        sys::cuMemcpyAsync(host(to.as_mut_ptr()), b, 16, null_mut())
            .result()
            .unwrap();
    }
    assert_eq!(to, from);
    free(a).unwrap();
    // SAFETY: as above; the emulator knows that the address was freed.
    let stale = unsafe { sys::cuMemcpy(host(to.as_mut_ptr()), a, 16).result() };
    assert_error(stale, INVALID, "was freed");
    free(b).unwrap();
}

#[test]
fn memsets_write_their_elements() {
    let _context = context();
    let address = allocate(64);
    let mut bytes = [0u8; 64];
    // SAFETY: the emulator checks the addresses; the buffer has 64 bytes.
    unsafe {
        sys::cuMemsetD8_v2(address, 0xaa, 64).result().unwrap();
        sys::cuMemsetD16_v2(address + 2, 0x1234, 3)
            .result()
            .unwrap();
        sys::cuMemsetD32_v2(address + 16, 0x0102_0304, 2)
            .result()
            .unwrap();
        // two rows of 3 bytes, 16 apart
        sys::cuMemsetD2D8_v2(address + 32, 16, 0xff, 3, 2)
            .result()
            .unwrap();
        sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), address, 64)
            .result()
            .unwrap();
    }
    let mut expected = [0xaa; 64];
    expected[2..8].copy_from_slice(&[0x34, 0x12, 0x34, 0x12, 0x34, 0x12]);
    expected[16..24].copy_from_slice(&[4, 3, 2, 1, 4, 3, 2, 1]);
    expected[32..35].fill(0xff);
    expected[48..51].fill(0xff);
    assert_eq!(bytes, expected);
    // SAFETY: the emulator checks the arguments.
    unsafe {
        let odd = sys::cuMemsetD32_v2(address + 2, 0, 1).result();
        assert_error(odd, INVALID, "misaligned");
        let narrow = sys::cuMemsetD2D8_v2(address, 2, 0, 3, 2).result();
        assert_error(narrow, INVALID, "do not fit a pitch of 2");
        let huge = sys::cuMemsetD32_v2(address, 0, usize::MAX).result();
        assert_error(huge, INVALID, "overflows");
    }
    free(address).unwrap();
}

#[test]
fn rectangles_are_copied_row_by_row() {
    let _context = context();
    let (mut pitched, mut pitch) = (0, 0);
    // SAFETY: the pointers are valid to write.
    unsafe { sys::cuMemAllocPitch_v2(&raw mut pitched, &raw mut pitch, 6, 4, 4).result() }.unwrap();
    assert_eq!(pitch, 512);
    let from: Vec<u8> = (0..24).collect();
    let mut to = [0u8; 8];
    // SAFETY: zero is a value of this structure; the buffers have the sizes that are given.
    unsafe {
        let mut copy: sys::CUDA_MEMCPY2D = zeroed_rectangle();
        copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
        copy.srcHost = from.as_ptr().cast();
        copy.srcPitch = 6;
        copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.dstDevice = pitched;
        copy.dstPitch = pitch;
        copy.WidthInBytes = 6;
        copy.Height = 4;
        sys::cuMemcpy2D_v2(&raw const copy).result().unwrap();

        // The 2 x 4 bytes in the middle, back to the host.
        let mut copy: sys::CUDA_MEMCPY2D = zeroed_rectangle();
        copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_UNIFIED;
        copy.srcDevice = pitched;
        copy.srcPitch = pitch;
        (copy.srcXInBytes, copy.srcY) = (1, 1);
        copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
        copy.dstHost = to.as_mut_ptr().cast();
        copy.dstPitch = 4;
        (copy.WidthInBytes, copy.Height) = (4, 2);
        sys::cuMemcpy2DAsync_v2(&raw const copy, null_mut())
            .result()
            .unwrap();
        assert_eq!(to, [7, 8, 9, 10, 13, 14, 15, 16]);

        copy.dstPitch = 3;
        let narrow = sys::cuMemcpy2D_v2(&raw const copy).result();
        assert_error(narrow, INVALID, "do not fit a pitch of 3");
        copy.dstPitch = 4;
        copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_ARRAY;
        let array = sys::cuMemcpy2D_v2(&raw const copy).result();
        assert_error(array, CUresult::CUDA_ERROR_NOT_SUPPORTED, "CUDA arrays");
    }
    free(pitched).unwrap();
}

/// A rectangle without places; its enums hold a value that there is.
fn zeroed_rectangle() -> sys::CUDA_MEMCPY2D {
    let mut copy = MaybeUninit::<sys::CUDA_MEMCPY2D>::zeroed();
    let pointer = copy.as_mut_ptr();
    // SAFETY: all fields but the two enums are numbers and pointers, for which zero is a value; the
    // enums are written.
    unsafe {
        (&raw mut (*pointer).srcMemoryType).write(sys::CUmemorytype::CU_MEMORYTYPE_HOST);
        (&raw mut (*pointer).dstMemoryType).write(sys::CUmemorytype::CU_MEMORYTYPE_HOST);
        copy.assume_init()
    }
}

#[test]
fn pinned_memory_is_the_hosts() {
    let context = context();
    let stream = context.new_stream().unwrap();
    // SAFETY: the memory is written before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<u32>(100) }.unwrap();
    pinned.as_mut_slice().unwrap().copy_from_slice(&[3; 100]);
    let device = stream.clone_htod(&pinned).unwrap();
    assert_eq!(stream.clone_dtoh(&device).unwrap(), [3; 100]);
    let mut data = [0u8; 100];
    let pointer: *mut c_void = data.as_mut_ptr().cast();
    let twice = CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    let unknown = CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    // SAFETY: the buffer has 100 bytes and outlives its registration.
    unsafe {
        sys::cuMemHostRegister_v2(pointer, 100, 0).result().unwrap();
        let second = sys::cuMemHostRegister_v2(pointer, 100, 0).result();
        assert_error(second, twice, "already pinned");
        let overlapping = sys::cuMemHostRegister_v2(pointer.byte_add(99), 10, 0).result();
        assert_error(overlapping, twice, "already pinned");
        let inside = sys::cuMemHostUnregister(pointer.byte_add(1)).result();
        assert_error(inside, unknown, "is not registered");
        let registered = sys::cuMemFreeHost(pointer).result();
        assert_error(registered, INVALID, "not the start of pinned memory");
        sys::cuMemHostUnregister(pointer).result().unwrap();
        let null = sys::cuMemFreeHost(null_mut()).result();
        assert_error(null, INVALID, "0x0 is not the start of pinned memory");
    }
}

#[test]
fn pointers_tell_what_they_are() {
    use sys::CUpointer_attribute as Attribute;
    let context = context();
    let stream = context.new_stream().unwrap();
    let data = stream.alloc_zeros::<u8>(100).unwrap();
    let base = data.device_ptr(&stream).0;
    let (mut kind, mut start, mut bytes) = (0u32, 0u64, 0usize);
    let inside = base + 40;
    // SAFETY: each pointer is of the type of its attribute.
    unsafe {
        let kind = (&raw mut kind).cast();
        let attribute = Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        sys::cuPointerGetAttribute(kind, attribute, inside)
            .result()
            .unwrap();
        let start = (&raw mut start).cast();
        let attribute = Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR;
        sys::cuPointerGetAttribute(start, attribute, inside)
            .result()
            .unwrap();
        sys::cuMemGetAddressRange_v2(null_mut(), &raw mut bytes, inside)
            .result()
            .unwrap();
    }
    assert_eq!((kind, start, bytes), (2, base, 100));

    // Nothing is known of an address on the stack: an error for one, zeros for many.
    let stack = (&raw const kind) as u64;
    let mut attributes = [
        Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
    ];
    let mut out: [*mut c_void; 2] = [(&raw mut kind).cast(), (&raw mut start).cast()];
    // SAFETY: as above.
    let (one, many) = unsafe {
        (
            sys::cuPointerGetAttribute(out[0], attributes[0], stack).result(),
            sys::cuPointerGetAttributes(2, attributes.as_mut_ptr(), out.as_mut_ptr(), stack)
                .result(),
        )
    };
    assert_error(one, INVALID, "neither device memory nor pinned");
    assert_eq!((many, kind, start), (Ok(()), 0, 0));
}

#[test]
fn pools_count_what_they_gave() {
    use sys::CUmemPool_attribute as Attribute;
    let context = context();
    let stream = context.new_stream().unwrap();
    // SAFETY: zero is a value of this structure but for its enums, which are set by their first values.
    let mut properties: sys::CUmemPoolProps = unsafe { zeroed() };
    properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let (mut pool, mut address) = (null_mut(), 0);
    let used = |pool| {
        let mut used = 0u64;
        let attribute = Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        // SAFETY: the attribute is a 64-bit number.
        let found =
            unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut used).cast()).result() };
        found.map(|()| used)
    };
    // SAFETY: the pointers are valid to write, and the emulator checks handles and addresses.
    unsafe {
        sys::cuMemPoolCreate(&raw mut pool, &raw const properties)
            .result()
            .unwrap();
        let stream = stream.cu_stream();
        sys::cuMemAllocFromPoolAsync(&raw mut address, 1000, pool, stream)
            .result()
            .unwrap();
        assert_eq!(used(pool), Ok(1000));
        sys::cuMemFreeAsync(address, stream).result().unwrap();
        assert_eq!(used(pool), Ok(0));
        sys::cuMemPoolDestroy(pool).result().unwrap();
    }
    let code = CUresult::CUDA_ERROR_INVALID_HANDLE;
    assert_error(used(pool), code, "no memory pool that is alive");
}
