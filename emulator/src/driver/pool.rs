//! Memory pools: names under which allocations are counted. Freed memory never stays in a pool.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Mutex;

use super::context::check_device;
use super::error::{Error, Result};
use super::ffi::{CUdevice, CUresult, Handle, In, Out, call, lock};
use super::state::driver;

/// A memory pool.
#[derive(Default)]
pub(super) struct Pool {
    /// Attributes that were set. None of them changes anything here.
    attributes: Mutex<BTreeMap<u32, u64>>,
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Location {
    kind: u32,
    id: i32,
}

impl Location {
    /// `CU_MEM_LOCATION_TYPE_DEVICE`.
    const DEVICE: u32 = 1;

    /// Refuses what is neither the device nor the host, which has several names.
    pub(super) fn check_any(self) -> Result<()> {
        /// `CU_MEM_LOCATION_TYPE_HOST`, `_HOST_NUMA` and `_HOST_NUMA_CURRENT`.
        const HOST: std::ops::RangeInclusive<u32> = 2..=4;
        match self.kind {
            Self::DEVICE => check_device(self.id),
            kind if HOST.contains(&kind) => Ok(()),
            kind => Err(Error::value(format!("{kind} is no CUmemLocationType"))),
        }
    }

    fn check(self) -> Result<()> {
        if self.kind != Self::DEVICE {
            return Err(Error::unsupported("only pools on the device are emulated"));
        }
        check_device(self.id)
    }
}

/// `CUmemPoolProps`, as far as it is read.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Properties {
    _allocation_kind: u32,
    handle_kinds: u32,
    location: Location,
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Access {
    location: Location,
    flags: u32,
}

/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: u32 = 3;

// `CUmemPool_attribute`.
const REUSE_FOLLOW_EVENT_DEPENDENCIES: u32 = 1;
const REUSE_ALLOW_INTERNAL_DEPENDENCIES: u32 = 3;
const RELEASE_THRESHOLD: u32 = 4;
const RESERVED_HIGH: u32 = 6;
const USED_HIGH: u32 = 8;

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemPoolCreate(out: Out<Handle>, properties: In<Properties>) -> CUresult {
    call("cuMemPoolCreate", || {
        let driver = driver()?;
        out.check()?;
        let properties = properties.get()?;
        properties.location.check()?;
        if properties.handle_kinds != 0 {
            return Err(Error::unsupported(
                "memory pools cannot be shared between processes",
            ));
        }
        out.set(driver.pools.insert(|_| Pool::default()).0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemPoolDestroy(pool: Handle) -> CUresult {
    call("cuMemPoolDestroy", || {
        let driver = driver()?;
        if pool == driver.default_pool {
            return Err(Error::value("the default memory pool cannot be destroyed"));
        }
        driver.pools.remove(pool)?;
        let mut current = lock(&driver.current_pool);
        if *current == pool {
            *current = driver.default_pool;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemPoolTrimTo(pool: Handle, _keep: usize) -> CUresult {
    call("cuMemPoolTrimTo", || driver()?.pools.get(pool).map(drop))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemPoolGetAttribute(
    handle: Handle,
    attribute: u32,
    value: Out<c_void>,
) -> CUresult {
    call("cuMemPoolGetAttribute", || {
        let driver = driver()?;
        let pool = driver.pools.get(handle)?;
        let set = lock(&pool.attributes).get(&attribute).copied();
        match attribute {
            REUSE_FOLLOW_EVENT_DEPENDENCIES..=REUSE_ALLOW_INTERNAL_DEPENDENCIES => {
                // SAFETY: C passes a pointer to an int for these attributes.
                unsafe { value.cast::<i32>() }.set(set.unwrap_or(1) as i32)
            }
            RELEASE_THRESHOLD..=USED_HIGH => {
                let size = match attribute {
                    RELEASE_THRESHOLD => set.unwrap_or(0),
                    _ => driver.allocations.of_pool(handle),
                };
                // SAFETY: C passes a pointer to a 64-bit number for these attributes.
                unsafe { value.cast::<u64>() }.set(size)
            }
            _ => Err(unknown(attribute)),
        }
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemPoolSetAttribute(
    handle: Handle,
    attribute: u32,
    value: Out<c_void>,
) -> CUresult {
    call("cuMemPoolSetAttribute", || {
        let pool = driver()?.pools.get(handle)?;
        let value = match attribute {
            REUSE_FOLLOW_EVENT_DEPENDENCIES..=REUSE_ALLOW_INTERNAL_DEPENDENCIES => {
                // SAFETY: C passes a pointer to an int for these attributes.
                u64::from(unsafe { value.cast::<i32>() }.get()? != 0)
            }
            RELEASE_THRESHOLD | RESERVED_HIGH | USED_HIGH => {
                // SAFETY: C passes a pointer to a 64-bit number for these attributes.
                unsafe { value.cast::<u64>() }.get()?
            }
            _ => return Err(unknown(attribute)),
        };
        lock(&pool.attributes).insert(attribute, value);
        Ok(())
    })
}

fn unknown(attribute: u32) -> Error {
    Error::value(format!("memory pool attribute {attribute} is not emulated"))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemPoolSetAccess(
    pool: Handle,
    list: In<Access>,
    count: usize,
) -> CUresult {
    call("cuMemPoolSetAccess", || {
        driver()?.pools.get(pool)?;
        // SAFETY: C passes an array of `count` descriptions.
        for access in unsafe { list.list(count) }? {
            access.location.check()?;
            if access.flags != READ_WRITE {
                let text = "the device that a pool lies on always reads and writes it";
                return Err(Error::value(text));
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemPoolGetAccess(
    flags: Out<u32>,
    pool: Handle,
    location: In<Location>,
) -> CUresult {
    call("cuMemPoolGetAccess", || {
        driver()?.pools.get(pool)?;
        location.get()?.check()?;
        flags.set(READ_WRITE)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetDefaultMemPool(out: Out<Handle>, device: CUdevice) -> CUresult {
    call("cuDeviceGetDefaultMemPool", || {
        check_device(device)?;
        out.set(driver()?.default_pool)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceGetMemPool(out: Out<Handle>, device: CUdevice) -> CUresult {
    call("cuDeviceGetMemPool", || {
        check_device(device)?;
        out.set(*lock(&driver()?.current_pool))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDeviceSetMemPool(device: CUdevice, pool: Handle) -> CUresult {
    call("cuDeviceSetMemPool", || {
        check_device(device)?;
        let driver = driver()?;
        driver.pools.get(pool)?;
        *lock(&driver.current_pool) = pool;
        Ok(())
    })
}
