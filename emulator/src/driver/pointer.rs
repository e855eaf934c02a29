//! What is known of a pointer: whose memory it is and where its allocation lies.

use std::ffi::c_void;

use super::context::current;
use super::error::{Error, Result};
use super::ffi::{CUdeviceptr, CUresult, Handle, In, Out, call};
use super::host::{Extent, Kind};
use super::state::Driver;

// `CUpointer_attribute`.
const CONTEXT: u32 = 1;
const MEMORY_TYPE: u32 = 2;
const DEVICE_POINTER: u32 = 3;
const HOST_POINTER: u32 = 4;
const SYNC_MEMOPS: u32 = 6;
const BUFFER_ID: u32 = 7;
const IS_MANAGED: u32 = 8;
const DEVICE_ORDINAL: u32 = 9;
const IPC_CAPABLE: u32 = 10;
const RANGE_START: u32 = 11;
const RANGE_SIZE: u32 = 12;
const MAPPED: u32 = 13;
const ALLOWED_HANDLE_TYPES: u32 = 14;
const RDMA_CAPABLE: u32 = 15;
const ACCESS_FLAGS: u32 = 16;
const POOL: u32 = 17;

/// What a pointer points to.
enum Target {
    Device {
        base: u64,
        bytes: u64,
        context: Handle,
        pool: Handle,
        id: u64,
    },
    /// Pinned host memory.
    Host(Extent),
}

/// The value of an attribute, in the type that C expects.
enum Value {
    Number(u32),
    Long(u64),
    Pointer(usize),
}

impl Target {
    fn find(driver: &Driver, context: Handle, address: u64) -> Option<Target> {
        // Host memory is mapped, so that the device's memory knows it too.
        if let Some(extent) = usize::try_from(address)
            .ok()
            .and_then(|at| driver.host.find(at))
        {
            return Some(Target::Host(extent));
        }
        if let Some((base, bytes)) = driver.memory.extent(address) {
            // Global variables of a module are not in the list of allocations.
            let note = driver.allocations.get(base);
            return Some(Target::Device {
                base,
                bytes,
                context: note.map_or(context, |note| note.context),
                pool: note.and_then(|note| note.pool).unwrap_or(0),
                id: note.map_or(0, |note| note.id),
            });
        }
        None
    }

    fn attribute(&self, attribute: u32, address: u64) -> Option<Value> {
        /// `CU_MEMORYTYPE_HOST`, `CU_MEMORYTYPE_DEVICE`, `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
        const HOST: u32 = 1;
        const DEVICE: u32 = 2;
        const READ_WRITE: u32 = 3;
        let value = match (attribute, self) {
            (CONTEXT, Target::Device { context, .. }) => Value::Pointer(*context),
            (MEMORY_TYPE, Target::Device { .. }) => Value::Number(DEVICE),
            (CONTEXT, Target::Host(extent)) => Value::Pointer(extent.context),
            (MEMORY_TYPE, Target::Host(extent)) => match extent.kind {
                Kind::Managed => Value::Number(DEVICE),
                _ => Value::Number(HOST),
            },
            (IS_MANAGED, Target::Host(extent)) => {
                Value::Number((extent.kind == Kind::Managed).into())
            }
            (DEVICE_POINTER, _) => Value::Long(address),
            (HOST_POINTER, Target::Host(_)) => Value::Pointer(address as usize),
            (BUFFER_ID, Target::Device { id, .. }) => Value::Long(*id),
            (RANGE_START, Target::Device { base, .. }) => Value::Long(*base),
            (RANGE_START, Target::Host(extent)) => Value::Long(extent.base as u64),
            (RANGE_SIZE, Target::Device { bytes, .. }) => Value::Pointer(*bytes as usize),
            (RANGE_SIZE, Target::Host(extent)) => Value::Pointer(extent.bytes),
            (ACCESS_FLAGS, _) => Value::Number(READ_WRITE),
            (POOL, Target::Device { pool, .. }) => Value::Pointer(*pool),
            (ALLOWED_HANDLE_TYPES, _) => Value::Long(0),
            (MAPPED, _) => Value::Number(1),
            (SYNC_MEMOPS | IS_MANAGED | DEVICE_ORDINAL | IPC_CAPABLE | RDMA_CAPABLE, _) => {
                Value::Number(0)
            }
            _ => return None,
        };
        Some(value)
    }
}

impl Value {
    /// # Safety
    /// As for `cuPointerGetAttribute`: `out` is null or takes the attribute's type.
    unsafe fn give(&self, attribute: u32, out: &Out<c_void>) -> Result<()> {
        // The boolean attributes are documented with different types: a byte is all that each has.
        let is_flag = matches!(
            attribute,
            IS_MANAGED | IPC_CAPABLE | MAPPED | RDMA_CAPABLE | SYNC_MEMOPS
        );
        // SAFETY: this function's contract, for each type in turn.
        unsafe {
            match *self {
                Value::Number(value) if is_flag => out.cast::<u8>().set(value as u8),
                Value::Number(value) => out.cast::<u32>().set(value),
                Value::Long(value) => out.cast::<u64>().set(value),
                Value::Pointer(value) => out.cast::<usize>().set(value),
            }
        }
    }

    /// The value for an attribute that the pointer does not have.
    fn none(attribute: u32) -> Value {
        match attribute {
            MEMORY_TYPE | SYNC_MEMOPS | IS_MANAGED | IPC_CAPABLE | MAPPED | RDMA_CAPABLE
            | ACCESS_FLAGS => Value::Number(0),
            // `CU_DEVICE_INVALID`
            DEVICE_ORDINAL => Value::Number(-2i32 as u32),
            DEVICE_POINTER | BUFFER_ID | RANGE_START | ALLOWED_HANDLE_TYPES => Value::Long(0),
            _ => Value::Pointer(0),
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuPointerGetAttribute(
    out: Out<c_void>,
    attribute: u32,
    address: CUdeviceptr,
) -> CUresult {
    call("cuPointerGetAttribute", || {
        let (driver, context) = current()?;
        let target = Target::find(&driver, context.handle, address).ok_or_else(|| {
            let text = format!("{address:#x} is neither device memory nor pinned host memory");
            Error::value(text)
        })?;
        let value = target.attribute(attribute, address).ok_or_else(|| {
            let text = format!("the memory at {address:#x} has no pointer attribute {attribute}");
            Error::value(text)
        })?;
        // SAFETY: C passes a pointer to the attribute's type.
        unsafe { value.give(attribute, &out) }
    })
}

/// Unlike the call for one attribute, this answers 0 or null where there is nothing to tell.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuPointerGetAttributes(
    count: u32,
    attributes: In<u32>,
    data: In<usize>,
    address: CUdeviceptr,
) -> CUresult {
    call("cuPointerGetAttributes", || {
        let (driver, context) = current()?;
        let target = Target::find(&driver, context.handle, address);
        // SAFETY: C passes as many attributes and pointers as it says.
        let (attributes, data) =
            unsafe { (attributes.list(count as usize)?, data.list(count as usize)?) };
        for (attribute, out) in attributes.into_iter().zip(data) {
            if !(CONTEXT..=POOL).contains(&attribute) {
                return Err(Error::value(format!("{attribute} is no pointer attribute")));
            }
            let value = target
                .as_ref()
                .and_then(|target| target.attribute(attribute, address));
            let value = value.unwrap_or_else(|| Value::none(attribute));
            // SAFETY: C passes a pointer to each attribute's type.
            unsafe { value.give(attribute, &Out::from_address(out)) }?;
        }
        Ok(())
    })
}

/// Only the synchronisation of copies can be set, and copies are always synchronous.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuPointerSetAttribute(
    _value: Handle,
    attribute: u32,
    address: CUdeviceptr,
) -> CUresult {
    call("cuPointerSetAttribute", || {
        let (driver, context) = current()?;
        if attribute != SYNC_MEMOPS {
            return Err(Error::value(format!(
                "pointer attribute {attribute} cannot be set"
            )));
        }
        match Target::find(&driver, context.handle, address) {
            Some(Target::Device { .. }) => Ok(()),
            _ => Err(Error::value(format!("{address:#x} is no device memory"))),
        }
    })
}
