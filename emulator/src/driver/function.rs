//! Functions: kernels of a loaded module with their attributes. A `CUkernel` of a library is the same
//! thing by the same handle.

use std::ffi::{CStr, CString, c_char};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::Relaxed};

use super::context::check_device;
use super::error::{Error, Result, code};
use super::ffi::{CUdevice, CUresult, Handle, Out, call};
use super::module::LoadedModule;
use super::state::{Driver, driver};
use crate::device::Device;
use crate::module::Kernel;
use crate::occupancy::Block;

// `CUfunction_attribute`.
const MAX_THREADS_PER_BLOCK: u32 = 0;
const SHARED_SIZE: u32 = 1;
const CONST_SIZE: u32 = 2;
const LOCAL_SIZE: u32 = 3;
const NUM_REGS: u32 = 4;
const PTX_VERSION: u32 = 5;
const BINARY_VERSION: u32 = 6;
const CACHE_MODE_CA: u32 = 7;
const MAX_DYNAMIC_SHARED_SIZE: u32 = 8;
const PREFERRED_CARVEOUT: u32 = 9;
const CLUSTER_SIZE_MUST_BE_SET: u32 = 10;
const REQUIRED_CLUSTER_WIDTH: u32 = 11;
const REQUIRED_CLUSTER_DEPTH: u32 = 13;
const CLUSTER_SCHEDULING_POLICY: u32 = 15;

/// A kernel that can be launched.
pub(super) struct Function {
    pub(super) handle: Handle,
    pub(super) module: Arc<LoadedModule>,
    name: CString,
    /// Bytes of dynamic shared memory that a launch may ask for.
    dynamic_shared: AtomicU32,
    carveout: AtomicI32,
}

impl Function {
    /// The function of a kernel that the module has.
    pub(super) fn new(
        handle: Handle,
        module: &Arc<LoadedModule>,
        name: &str,
        device: &Device,
    ) -> Function {
        let kernel = module.module.program().kernel(name);
        let used = kernel.map_or(0, |kernel| kernel.static_shared);
        Function {
            handle,
            module: Arc::clone(module),
            // PTX has no NUL in a name.
            name: CString::new(name).unwrap_or_default(),
            dynamic_shared: AtomicU32::new(device.shared_per_block.saturating_sub(used)),
            carveout: AtomicI32::new(-1),
        }
    }

    /// The kernel's name.
    pub(super) fn name(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }

    /// The kernel.
    pub(super) fn kernel(&self) -> Result<&Kernel> {
        self.module.check_loaded()?;
        let kernel = self.module.module.program().kernel(self.name());
        kernel.ok_or_else(|| Error::new(code::NOT_FOUND, "the kernel is gone"))
    }

    /// 32-bit registers of a thread, if the image had machine code for the device.
    pub(super) fn registers(&self) -> Option<u32> {
        self.module.module.program().registers(self.name())
    }

    /// Bytes of dynamic shared memory that a launch may ask for.
    pub(super) fn dynamic_shared_limit(&self) -> u32 {
        self.dynamic_shared.load(Relaxed)
    }

    fn attribute(&self, device: &Device, attribute: u32) -> Result<i32> {
        let kernel = self.kernel()?;
        let value = match attribute {
            MAX_THREADS_PER_BLOCK => {
                let own = kernel.max_threads.unwrap_or(device.max_threads_per_block);
                let most = own.min(device.max_threads_per_block);
                let fits = |threads: u32| {
                    let block = Block {
                        threads: threads.into(),
                        shared: 0,
                        registers: self.registers(),
                    };
                    block.registers_suffice(device)
                };
                let smaller = (1..).map_while(|warps| most.checked_sub(warps * device.warp_size));
                (std::iter::once(most).chain(smaller))
                    .find(|threads| fits(*threads))
                    .unwrap_or(0)
            }
            SHARED_SIZE => kernel.static_shared,
            LOCAL_SIZE => kernel.local_bytes,
            NUM_REGS => self
                .registers()
                .unwrap_or_else(|| register_bound(kernel.max_threads, device)),
            PTX_VERSION => {
                let program = self.module.module.program();
                program.arch().unwrap_or(device.arch())
            }
            BINARY_VERSION => device.arch(),
            CONST_SIZE | CACHE_MODE_CA => 0,
            MAX_DYNAMIC_SHARED_SIZE => self.dynamic_shared_limit(),
            PREFERRED_CARVEOUT => return Ok(self.carveout.load(Relaxed)),
            REQUIRED_CLUSTER_WIDTH..=REQUIRED_CLUSTER_DEPTH => {
                let side = (attribute - REQUIRED_CLUSTER_WIDTH) as usize;
                kernel.cluster.map_or(0, |sides| sides[side])
            }
            CLUSTER_SIZE_MUST_BE_SET..=CLUSTER_SCHEDULING_POLICY => 0,
            _ => {
                return Err(Error::value(format!(
                    "{attribute} is no function attribute"
                )));
            }
        };
        i32::try_from(value).map_err(|_| Error::value(format!("{value} does not fit an int")))
    }

    fn set_attribute(&self, device: &Device, attribute: u32, value: i32) -> Result<()> {
        let kernel = self.kernel()?;
        match attribute {
            MAX_DYNAMIC_SHARED_SIZE => {
                let room = (device.shared_per_block_optin).saturating_sub(kernel.static_shared);
                let bytes = u32::try_from(value).ok().filter(|bytes| *bytes <= room);
                let bytes = bytes.ok_or_else(|| {
                    Error::value(format!(
                        "{}: {value} bytes of dynamic shared memory; {} allows {room} bytes \
                         beside the kernel's {} static ones",
                        self.name(),
                        device.name,
                        kernel.static_shared
                    ))
                })?;
                self.dynamic_shared.store(bytes, Relaxed);
                Ok(())
            }
            PREFERRED_CARVEOUT if (-1..=100).contains(&value) => {
                self.carveout.store(value, Relaxed);
                Ok(())
            }
            PREFERRED_CARVEOUT => Err(Error::value(format!(
                "a carveout of {value} is not within -1 and 100 percent"
            ))),
            CLUSTER_SIZE_MUST_BE_SET..=CLUSTER_SCHEDULING_POLICY => {
                let text = "attributes for clusters cannot be set: the launch or the kernel has their size";
                Err(Error::unsupported(text))
            }
            _ => Err(Error::value(format!(
                "function attribute {attribute} cannot be set"
            ))),
        }
    }
}

/// The most registers a thread may have: as many as an instruction can name, and few enough that the largest block that
/// the kernel declares fits a multiprocessor. How many of them ptxas takes, PTX does not tell.
fn register_bound(max_threads: Option<u32>, device: &Device) -> u32 {
    /// The registers R0 to R254.
    const NAMED: u32 = 255;
    /// A warp is given registers in pieces of so many a thread.
    const GRANULE: u32 = 8;
    let Some(threads) = max_threads.filter(|threads| *threads > 0) else {
        return NAMED;
    };
    let threads = threads
        .min(device.max_threads_per_block)
        .next_multiple_of(device.warp_size);
    let share = device.registers_per_block / threads;
    (share / GRANULE * GRANULE).min(NAMED)
}

/// The function of a handle.
fn function(handle: Handle) -> Result<(Arc<Driver>, Arc<Function>)> {
    let driver = driver()?;
    let function = driver.functions.get(handle)?;
    Ok((driver, function))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncGetAttribute(
    value: Out<i32>,
    attribute: u32,
    handle: Handle,
) -> CUresult {
    call("cuFuncGetAttribute", || {
        let (driver, function) = function(handle)?;
        value.set(function.attribute(&driver.device, attribute)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuKernelGetAttribute(
    value: Out<i32>,
    attribute: u32,
    handle: Handle,
    device: CUdevice,
) -> CUresult {
    call("cuKernelGetAttribute", || {
        check_device(device)?;
        let (driver, function) = function(handle)?;
        value.set(function.attribute(&driver.device, attribute)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncSetAttribute(
    handle: Handle,
    attribute: u32,
    value: i32,
) -> CUresult {
    call("cuFuncSetAttribute", || {
        let (driver, function) = function(handle)?;
        function.set_attribute(&driver.device, attribute, value)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuKernelSetAttribute(
    attribute: u32,
    value: i32,
    handle: Handle,
    device: CUdevice,
) -> CUresult {
    call("cuKernelSetAttribute", || {
        check_device(device)?;
        let (driver, function) = function(handle)?;
        function.set_attribute(&driver.device, attribute, value)
    })
}

/// A preference between L1 and shared memory changes nothing here.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncSetCacheConfig(handle: Handle, _preference: i32) -> CUresult {
    call("cuFuncSetCacheConfig", || function(handle).map(drop))
}

/// As [`cuFuncSetCacheConfig`].
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuKernelSetCacheConfig(
    handle: Handle,
    _preference: i32,
    device: CUdevice,
) -> CUresult {
    call("cuKernelSetCacheConfig", || {
        check_device(device)?;
        function(handle).map(drop)
    })
}

/// The size of a bank is fixed since Maxwell.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncSetSharedMemConfig(handle: Handle, _preference: i32) -> CUresult {
    call("cuFuncSetSharedMemConfig", || function(handle).map(drop))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncGetModule(out: Out<Handle>, handle: Handle) -> CUresult {
    call("cuFuncGetModule", || {
        out.set(function(handle)?.1.module.handle)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuKernelGetLibrary(out: Out<Handle>, handle: Handle) -> CUresult {
    call("cuKernelGetLibrary", || {
        out.set(function(handle)?.1.module.handle)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuKernelGetFunction(out: Out<Handle>, handle: Handle) -> CUresult {
    call("cuKernelGetFunction", || {
        out.set(function(handle)?.1.handle)
    })
}

/// The name lasts as long as the function.
fn give_name(name: &Out<*const c_char>, handle: Handle) -> Result<()> {
    let (_, function) = function(handle)?;
    let text: &CStr = &function.name;
    name.set(text.as_ptr())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncGetName(name: Out<*const c_char>, handle: Handle) -> CUresult {
    call("cuFuncGetName", || give_name(&name, handle))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuKernelGetName(name: Out<*const c_char>, handle: Handle) -> CUresult {
    call("cuKernelGetName", || give_name(&name, handle))
}

fn parameter(handle: Handle, index: usize, offset: &Out<usize>, size: &Out<usize>) -> Result<()> {
    let (_, function) = function(handle)?;
    let parameters = &function.kernel()?.params;
    let parameter = parameters.get(index).ok_or_else(|| {
        let (name, count) = (function.name(), parameters.len());
        Error::value(format!("{name} has {count} parameters, not one at {index}"))
    })?;
    offset.set(parameter.offset as usize)?;
    size.set_if_wanted(parameter.size as usize);
    Ok(())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncGetParamInfo(
    handle: Handle,
    index: usize,
    offset: Out<usize>,
    size: Out<usize>,
) -> CUresult {
    call("cuFuncGetParamInfo", || {
        parameter(handle, index, &offset, &size)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuKernelGetParamInfo(
    handle: Handle,
    index: usize,
    offset: Out<usize>,
    size: Out<usize>,
) -> CUresult {
    call("cuKernelGetParamInfo", || {
        parameter(handle, index, &offset, &size)
    })
}

fn parameter_count(handle: Handle) -> Result<usize> {
    Ok(function(handle)?.1.kernel()?.params.len())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncGetParamCount(handle: Handle, count: Out<usize>) -> CUresult {
    call("cuFuncGetParamCount", || {
        count.set(parameter_count(handle)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuKernelGetParamCount(handle: Handle, count: Out<usize>) -> CUresult {
    call("cuKernelGetParamCount", || {
        count.set(parameter_count(handle)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncIsLoaded(state: Out<u32>, handle: Handle) -> CUresult {
    /// `CU_FUNCTION_LOADING_STATE_LOADED`.
    const LOADED: u32 = 1;
    call("cuFuncIsLoaded", || {
        function(handle)?;
        state.set(LOADED)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuFuncLoad(handle: Handle) -> CUresult {
    call("cuFuncLoad", || function(handle).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_bounded_by_the_block() {
        let device = Device::sm_80();
        for (threads, most) in [
            (None, 255),
            (Some(128), 255),
            (Some(256), 255),
            (Some(257), 224),
            (Some(384), 168),
            (Some(1024), 64),
        ] {
            assert_eq!(register_bound(threads, &device), most, "{threads:?}");
        }
    }
}
