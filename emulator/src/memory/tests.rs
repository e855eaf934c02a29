//! Tests of device memory: bounds, states of bytes, frees, mapped host memory.

use super::*;

#[test]
fn ranges_are_checked_to_the_byte() {
    let memory = Memory::new(1 << 20);
    let a = memory.alloc(100).unwrap();
    assert_eq!(a % 256, 0);
    assert_ne!(a % 512, 0, "aligned to no more than the driver promises");
    memory.write(a + 90, &[1; 10]).unwrap();
    let error = memory.write(a + 91, &[1; 10]).unwrap_err().to_string();
    assert!(
        error.contains("1 bytes past the 100-byte allocation"),
        "{error}"
    );
    let error = memory.read(a - 1, &mut [0]).unwrap_err().to_string();
    assert!(error.contains("1 bytes before"), "{error}");
}

#[test]
fn unwritten_bytes_read_as_nan_and_copies_keep_that() {
    let memory = Memory::new(1 << 20);
    let (a, b) = (memory.alloc(4).unwrap(), memory.alloc(4).unwrap());
    memory.write(a, &[7, 7]).unwrap();
    memory.copy(b, a, 4).unwrap();
    let mut out = [0; 4];
    memory.read(b, &mut out).unwrap();
    assert_eq!(out, [7, 7, 0xff, 0xff]);
}

#[test]
fn freed_memory_is_told_from_unknown_memory() {
    let memory = Memory::new(1000);
    let a = memory.alloc(600).unwrap();
    assert!(matches!(
        memory.alloc(600),
        Err(MemoryError::OutOfMemory { free: 400, .. })
    ));
    assert!(memory.free(a + 8).is_err());
    memory.free(a).unwrap();
    assert!(
        memory
            .free(a)
            .unwrap_err()
            .to_string()
            .contains("was freed")
    );
    assert!(
        memory
            .write(a, &[1])
            .unwrap_err()
            .to_string()
            .contains("was freed")
    );
    assert_ne!(memory.alloc(600).unwrap(), a, "addresses are not reused");
    assert_eq!(memory.used(), 600);
}

#[test]
fn host_memory_is_reached_by_its_own_address() {
    let memory = Memory::new(1 << 20);
    let mut host = vec![7u8; 64];
    let data = host.as_mut_ptr();
    let address = data.addr() as u64;
    assert!(memory.check(address, 1).is_err());
    // SAFETY: the vector lives until it is unmapped, and is not touched otherwise meanwhile.
    unsafe { memory.map(data, 64) }.unwrap();
    let mut out = [0; 4];
    memory.read(address + 60, &mut out).unwrap();
    assert_eq!(out, [7; 4], "what the host wrote is taken as written");
    memory.write(address, &[9]).unwrap();
    assert!(memory.check(address + 60, 5).is_err());
    assert_eq!(memory.extent(address + 3), Some((address, 64)));
    let error = memory.free(address).unwrap_err().to_string();
    assert!(error.contains("the host's memory"), "{error}");
    memory.unmap(address);
    assert!(memory.check(address, 1).is_err());
    assert_eq!((host[0], host[1]), (9, 7));
    // SAFETY: refused before anything is read or written.
    let low = unsafe { memory.map(std::ptr::without_provenance_mut(1 << 32), 16) };
    assert!(low.is_err(), "shared memory has its window there");
}
