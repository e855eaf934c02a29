//! Errors of the driver API: the code a call returns, the text behind it, and the names of all codes.
//!
//! A bare code says little, so every error carries a text. Each thread keeps the text of its last error
//! of each code, and `cuGetErrorString` gives that out: cudarc's `DriverError`, which prints the string,
//! then shows the whole story of a fault.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, CString, c_char};
use std::sync::Mutex;

use super::ffi::{CUresult, Out, call, lock};

/// The codes that this driver returns. All are known to every CUDA since 11.4, so that a binding
/// that reads them as an enum never meets a value it has no name for.
pub(super) mod code {
    use super::CUresult;

    pub(in super::super) const SUCCESS: CUresult = 0;
    pub(in super::super) const INVALID_VALUE: CUresult = 1;
    pub(in super::super) const OUT_OF_MEMORY: CUresult = 2;
    pub(in super::super) const NOT_INITIALIZED: CUresult = 3;
    pub(in super::super) const INVALID_DEVICE: CUresult = 101;
    pub(in super::super) const INVALID_IMAGE: CUresult = 200;
    pub(in super::super) const INVALID_CONTEXT: CUresult = 201;
    pub(in super::super) const NO_BINARY_FOR_GPU: CUresult = 209;
    pub(in super::super) const UNSUPPORTED_LIMIT: CUresult = 215;
    pub(in super::super) const INVALID_PTX: CUresult = 218;
    pub(in super::super) const FILE_NOT_FOUND: CUresult = 301;
    pub(in super::super) const INVALID_HANDLE: CUresult = 400;
    pub(in super::super) const ILLEGAL_STATE: CUresult = 401;
    pub(in super::super) const NOT_FOUND: CUresult = 500;
    pub(in super::super) const PEER_ACCESS_NOT_ENABLED: CUresult = 705;
    pub(in super::super) const CONTEXT_IS_DESTROYED: CUresult = 709;
    pub(in super::super) const HOST_MEMORY_ALREADY_REGISTERED: CUresult = 712;
    pub(in super::super) const HOST_MEMORY_NOT_REGISTERED: CUresult = 713;
    pub(in super::super) const COOPERATIVE_LAUNCH_TOO_LARGE: CUresult = 720;
    pub(in super::super) const NOT_PERMITTED: CUresult = 800;
    pub(in super::super) const NOT_SUPPORTED: CUresult = 801;
    pub(in super::super) const STREAM_CAPTURE_UNSUPPORTED: CUresult = 900;
    pub(in super::super) const STREAM_CAPTURE_INVALIDATED: CUresult = 901;
    pub(in super::super) const STREAM_CAPTURE_MERGE: CUresult = 902;
    pub(in super::super) const STREAM_CAPTURE_UNMATCHED: CUresult = 903;
    pub(in super::super) const STREAM_CAPTURE_UNJOINED: CUresult = 904;
    pub(in super::super) const STREAM_CAPTURE_ISOLATION: CUresult = 905;
    pub(in super::super) const STREAM_CAPTURE_IMPLICIT: CUresult = 906;
    pub(in super::super) const CAPTURED_EVENT: CUresult = 907;
    pub(in super::super) const STREAM_CAPTURE_WRONG_THREAD: CUresult = 908;
    pub(in super::super) const UNKNOWN: CUresult = 999;
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Error {
    /// What the call returns.
    pub(super) code: CUresult,
    /// What `cuGetErrorString` then says.
    pub(super) text: String,
    /// A kernel ran and did something wrong: on hardware the context is lost.
    pub(super) is_fault: bool,
}

/// Result of the body of a driver call.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn new(code: CUresult, text: impl Into<String>) -> Error {
        let text = text.into();
        Error {
            code,
            text,
            is_fault: false,
        }
    }

    /// An argument that makes no sense.
    pub(super) fn value(text: impl Into<String>) -> Error {
        Error::new(code::INVALID_VALUE, text)
    }

    /// What a kernel did wrong.
    pub(super) fn fault(fault: &crate::fault::Fault) -> Error {
        let error = Error::new(fault.kind.code(), fault.to_string());
        Error {
            is_fault: fault.kind.is_of_kernel(),
            ..error
        }
    }

    /// A request that this driver does not serve.
    pub(super) fn unsupported(text: impl Into<String>) -> Error {
        Error::new(code::NOT_SUPPORTED, text)
    }
}

impl From<crate::memory::MemoryError> for Error {
    fn from(error: crate::memory::MemoryError) -> Error {
        let code = match error {
            crate::memory::MemoryError::OutOfMemory { .. } => code::OUT_OF_MEMORY,
            _ => code::INVALID_VALUE,
        };
        Error::new(code, error.to_string())
    }
}

impl From<crate::image::ImageError> for Error {
    fn from(error: crate::image::ImageError) -> Error {
        let code = if error.is_other_target() {
            code::NO_BINARY_FOR_GPU
        } else {
            code::INVALID_IMAGE
        };
        Error::new(code, error.to_string())
    }
}

thread_local! {
    /// The text of this thread's last error of each code.
    static LAST: RefCell<BTreeMap<CUresult, String>> = const { RefCell::new(BTreeMap::new()) };
}

/// Keeps the text of an error as the calling thread's last one of this code.
pub(super) fn remember(error: Error) {
    LAST.with_borrow_mut(|last| last.insert(error.code, error.text));
}

/// The text of the calling thread's last error of a code.
#[cfg(test)]
pub(super) fn last_text(code: CUresult) -> String {
    LAST.with_borrow(|last| last.get(&code).cloned().unwrap_or_default())
}

/// A C string that lives as long as the process, as callers of `cuGetErrorString` expect. Each
/// distinct text is kept once.
fn lasting(text: &str) -> &'static CStr {
    static TEXTS: Mutex<Option<HashSet<&'static CStr>>> = Mutex::new(None);
    let text: Cow<'_, str> = if text.contains('\0') {
        text.replace('\0', " ").into()
    } else {
        text.into()
    };
    // The NULs were just replaced.
    let text = CString::new(text.as_bytes()).unwrap_or_default();
    let mut texts = lock(&TEXTS);
    let texts = texts.get_or_insert_default();
    match texts.get(text.as_c_str()) {
        Some(text) => text,
        None => {
            let text: &'static CStr = Box::leak(text.into_boxed_c_str());
            texts.insert(text);
            text
        }
    }
}

fn entry(result: CUresult) -> Result<&'static (CUresult, &'static CStr, &'static CStr)> {
    (CODES.binary_search_by_key(&result, |entry| entry.0))
        .map(|i| &CODES[i])
        .map_err(|_| Error::value(format!("{result} is no CUresult")))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGetErrorName(error: CUresult, name: Out<*const c_char>) -> CUresult {
    call("cuGetErrorName", || {
        // what is no error has a null for a name
        name.set(entry(error).map_or(std::ptr::null(), |entry| entry.1.as_ptr()))?;
        entry(error).map(drop)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGetErrorString(error: CUresult, text: Out<*const c_char>) -> CUresult {
    call("cuGetErrorString", || {
        let general = match entry(error) {
            Ok(entry) => entry.2,
            Err(unknown) => {
                text.set(std::ptr::null())?;
                return Err(unknown);
            }
        };
        let own = LAST.with_borrow(|last| {
            let text = last.get(&error).filter(|text| !text.is_empty());
            text.map(|text| lasting(text))
        });
        text.set(own.unwrap_or(general).as_ptr())
    })
}

/// Every `CUresult`, its name and what it means in general, in order of the numbers.
#[rustfmt::skip]
const CODES: &[(CUresult, &CStr, &CStr)] = &[
    (0, c"CUDA_SUCCESS", c"no error"),
    (1, c"CUDA_ERROR_INVALID_VALUE", c"an argument is not within the range that the call accepts"),
    (2, c"CUDA_ERROR_OUT_OF_MEMORY", c"not enough device memory"),
    (3, c"CUDA_ERROR_NOT_INITIALIZED", c"cuInit was not called"),
    (4, c"CUDA_ERROR_DEINITIALIZED", c"the driver is shutting down"),
    (5, c"CUDA_ERROR_PROFILER_DISABLED", c"profiling is disabled"),
    (6, c"CUDA_ERROR_PROFILER_NOT_INITIALIZED", c"the profiler is not initialised"),
    (7, c"CUDA_ERROR_PROFILER_ALREADY_STARTED", c"profiling has already started"),
    (8, c"CUDA_ERROR_PROFILER_ALREADY_STOPPED", c"profiling has already stopped"),
    (34, c"CUDA_ERROR_STUB_LIBRARY", c"the library is a stub without a driver"),
    (36, c"CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", c"the call needs a newer driver"),
    (46, c"CUDA_ERROR_DEVICE_UNAVAILABLE", c"the device is unavailable"),
    (47, c"CUDA_ERROR_MULTICAST_RESOURCE_FULL", c"no more multicast resources"),
    (100, c"CUDA_ERROR_NO_DEVICE", c"no CUDA device"),
    (101, c"CUDA_ERROR_INVALID_DEVICE", c"no device has this ordinal"),
    (102, c"CUDA_ERROR_DEVICE_NOT_LICENSED", c"the device has no licence"),
    (200, c"CUDA_ERROR_INVALID_IMAGE", c"the module image is not valid"),
    (201, c"CUDA_ERROR_INVALID_CONTEXT", c"no valid context is current to the thread"),
    (202, c"CUDA_ERROR_CONTEXT_ALREADY_CURRENT", c"the context is already current"),
    (205, c"CUDA_ERROR_MAP_FAILED", c"the resource could not be mapped"),
    (206, c"CUDA_ERROR_UNMAP_FAILED", c"the resource could not be unmapped"),
    (207, c"CUDA_ERROR_ARRAY_IS_MAPPED", c"the array is mapped"),
    (208, c"CUDA_ERROR_ALREADY_MAPPED", c"the resource is already mapped"),
    (209, c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"the image holds no code for the device"),
    (210, c"CUDA_ERROR_ALREADY_ACQUIRED", c"the resource is already acquired"),
    (211, c"CUDA_ERROR_NOT_MAPPED", c"the resource is not mapped"),
    (212, c"CUDA_ERROR_NOT_MAPPED_AS_ARRAY", c"the resource is not mapped as an array"),
    (213, c"CUDA_ERROR_NOT_MAPPED_AS_POINTER", c"the resource is not mapped as a pointer"),
    (214, c"CUDA_ERROR_ECC_UNCORRECTABLE", c"uncorrectable ECC error"),
    (215, c"CUDA_ERROR_UNSUPPORTED_LIMIT", c"the device does not support this limit"),
    (216, c"CUDA_ERROR_CONTEXT_ALREADY_IN_USE", c"the context is in use by another thread"),
    (217, c"CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", c"no peer access between the devices"),
    (218, c"CUDA_ERROR_INVALID_PTX", c"the PTX does not compile"),
    (219, c"CUDA_ERROR_INVALID_GRAPHICS_CONTEXT", c"invalid graphics context"),
    (220, c"CUDA_ERROR_NVLINK_UNCORRECTABLE", c"uncorrectable NVLink error"),
    (221, c"CUDA_ERROR_JIT_COMPILER_NOT_FOUND", c"no PTX compiler was found"),
    (222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", c"the PTX version is newer than the driver"),
    (223, c"CUDA_ERROR_JIT_COMPILATION_DISABLED", c"PTX compilation is disabled"),
    (224, c"CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY", c"the execution affinity is not supported"),
    (225, c"CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC", c"cuCtxSynchronize was called with device-side synchronisation"),
    (226, c"CUDA_ERROR_CONTAINED", c"the memory is contained after an error"),
    (227, c"CUDA_ERROR_INSUFFICIENT_LOADER_VERSION", c"the loader is older than the module"),
    (300, c"CUDA_ERROR_INVALID_SOURCE", c"the source is not valid"),
    (301, c"CUDA_ERROR_FILE_NOT_FOUND", c"file not found"),
    (302, c"CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", c"a shared object lacks a symbol"),
    (303, c"CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", c"a shared object failed to initialise"),
    (304, c"CUDA_ERROR_OPERATING_SYSTEM", c"an operating system call failed"),
    (400, c"CUDA_ERROR_INVALID_HANDLE", c"the handle is not valid"),
    (401, c"CUDA_ERROR_ILLEGAL_STATE", c"a resource is not in the state that the call needs"),
    (402, c"CUDA_ERROR_LOSSY_QUERY", c"data would be lost"),
    (500, c"CUDA_ERROR_NOT_FOUND", c"no symbol of this name"),
    (600, c"CUDA_ERROR_NOT_READY", c"work is still pending"),
    (700, c"CUDA_ERROR_ILLEGAL_ADDRESS", c"a kernel accessed memory that it may not"),
    (701, c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", c"the launch needs more resources than the device has"),
    (702, c"CUDA_ERROR_LAUNCH_TIMEOUT", c"the kernel ran longer than is allowed"),
    (703, c"CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING", c"the kernel's texturing mode does not match"),
    (704, c"CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", c"peer access is already enabled"),
    (705, c"CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", c"peer access is not enabled"),
    (708, c"CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", c"the primary context is already active"),
    (709, c"CUDA_ERROR_CONTEXT_IS_DESTROYED", c"the context was destroyed"),
    (710, c"CUDA_ERROR_ASSERT", c"a device-side assertion failed"),
    (711, c"CUDA_ERROR_TOO_MANY_PEERS", c"no more peers can be mapped"),
    (712, c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", c"the host memory is already registered"),
    (713, c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", c"the host memory is not registered"),
    (714, c"CUDA_ERROR_HARDWARE_STACK_ERROR", c"device stack error"),
    (715, c"CUDA_ERROR_ILLEGAL_INSTRUCTION", c"illegal instruction"),
    (716, c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address"),
    (717, c"CUDA_ERROR_INVALID_ADDRESS_SPACE", c"the instruction cannot access this state space"),
    (718, c"CUDA_ERROR_INVALID_PC", c"invalid program counter"),
    (719, c"CUDA_ERROR_LAUNCH_FAILED", c"a kernel failed while it ran"),
    (720, c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", c"more blocks than a cooperative launch can keep resident"),
    (721, c"CUDA_ERROR_TENSOR_MEMORY_LEAK", c"tensor memory leak"),
    (800, c"CUDA_ERROR_NOT_PERMITTED", c"the operation is not permitted"),
    (801, c"CUDA_ERROR_NOT_SUPPORTED", c"the operation is not supported"),
    (802, c"CUDA_ERROR_SYSTEM_NOT_READY", c"the system is not ready"),
    (803, c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", c"driver and kernel module do not match"),
    (804, c"CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", c"forward compatibility is not supported on the device"),
    (805, c"CUDA_ERROR_MPS_CONNECTION_FAILED", c"no connection to the MPS server"),
    (806, c"CUDA_ERROR_MPS_RPC_FAILURE", c"MPS remote procedure failure"),
    (807, c"CUDA_ERROR_MPS_SERVER_NOT_READY", c"the MPS server is not ready"),
    (808, c"CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", c"too many MPS clients"),
    (809, c"CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", c"too many MPS connections"),
    (810, c"CUDA_ERROR_MPS_CLIENT_TERMINATED", c"the MPS client was terminated"),
    (811, c"CUDA_ERROR_CDP_NOT_SUPPORTED", c"device-side launches are not supported"),
    (812, c"CUDA_ERROR_CDP_VERSION_MISMATCH", c"device-side launch version mismatch"),
    (900, c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"the operation is not permitted while a stream is capturing"),
    (901, c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", c"the capture was invalidated by an earlier error"),
    (902, c"CUDA_ERROR_STREAM_CAPTURE_MERGE", c"the operation would merge two captures"),
    (903, c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", c"the capture was not begun on this stream"),
    (904, c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", c"the capture has work that was not joined to its stream"),
    (905, c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", c"a dependency would cross the boundary of the capture"),
    (906, c"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", c"an implicit dependency on the legacy stream during a capture"),
    (907, c"CUDA_ERROR_CAPTURED_EVENT", c"the event was last recorded in a capture"),
    (908, c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", c"the capture was begun by another thread"),
    (909, c"CUDA_ERROR_TIMEOUT", c"timeout"),
    (910, c"CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE", c"the graph cannot be updated in place"),
    (911, c"CUDA_ERROR_EXTERNAL_DEVICE", c"a device other than a GPU failed"),
    (912, c"CUDA_ERROR_INVALID_CLUSTER_SIZE", c"invalid cluster size"),
    (913, c"CUDA_ERROR_FUNCTION_NOT_LOADED", c"the function is not loaded"),
    (914, c"CUDA_ERROR_INVALID_RESOURCE_TYPE", c"invalid resource type"),
    (915, c"CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION", c"invalid resource configuration"),
    (916, c"CUDA_ERROR_KEY_ROTATION", c"key rotation"),
    (917, c"CUDA_ERROR_STREAM_DETACHED", c"the stream is detached"),
    (918, c"CUDA_ERROR_GRAPH_RECAPTURE_FAILURE", c"the graph could not be captured again"),
    (919, c"CUDA_ERROR_FABRIC_NOT_READY", c"the fabric is not ready"),
    (999, c"CUDA_ERROR_UNKNOWN", c"unknown error"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn string(code: CUresult) -> String {
        let mut text = std::ptr::null();
        assert_eq!(cuGetErrorString(code, Out::to(&mut text)), code::SUCCESS);
        // SAFETY: the call succeeded, so this is a C string that lasts.
        unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn the_table_is_sorted_and_each_name_stands_once() {
        assert!(CODES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let names: HashSet<_> = CODES.iter().map(|entry| entry.1).collect();
        assert_eq!(names.len(), CODES.len());
    }

    #[test]
    fn the_last_error_of_a_code_lends_it_its_text() {
        remember(Error::new(code::NOT_FOUND, "no kernel `e`"));
        remember(Error::new(code::NOT_FOUND, "no kernel \0 `f`"));
        remember(Error::new(code::INVALID_VALUE, "a value"));
        assert_eq!(string(code::NOT_FOUND), "no kernel   `f`");
        assert_eq!(string(code::INVALID_HANDLE), "the handle is not valid");
        remember(Error::new(code::NOT_FOUND, ""));
        assert_eq!(string(code::NOT_FOUND), "no symbol of this name");
    }

    #[test]
    fn a_number_that_is_no_code_is_refused() {
        let mut name = std::ptr::null();
        assert_eq!(
            cuGetErrorName(12345, Out::to(&mut name)),
            code::INVALID_VALUE
        );
        assert_eq!(cuGetErrorName(0, Out::NULL), code::INVALID_VALUE);
        assert_eq!(cuGetErrorName(700, Out::to(&mut name)), code::SUCCESS);
        // SAFETY: the call succeeded, so this is a C string that lasts.
        let name = unsafe { CStr::from_ptr(name) };
        assert_eq!(name, c"CUDA_ERROR_ILLEGAL_ADDRESS");
    }
}
