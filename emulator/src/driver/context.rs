//! Contexts: the primary one, others, and which is current to a thread.
//!
//! All contexts share one device and one address space. A context owns its streams, events, modules
//! and allocations: they end with it, as on hardware, so that a leak in one test is not felt by the
//! next.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, ThreadId};

use super::error::{Error, Result, code};
use super::ffi::{CUdevice, CUresult, Handle, Out, call, lock};
use super::handle::fresh;
use super::state::{Driver, driver};
use super::stream::Stream;

/// What contexts of every API since `cuCtxCreate_v2` (CUDA 3.2) report as their version.
const API_VERSION: u32 = 3020;

/// `CU_LIMIT_STACK_SIZE`
const STACK_LIMIT: u32 = 0;

/// `CUlimit` values that can be read and set. All but the stack's change nothing here.
const LIMITS: [(u32, usize); 5] = [
    (STACK_LIMIT, 1024), // bytes of stack of a thread
    (1, 1 << 20),        // bytes of the printf buffer
    (2, 8 << 20),        // bytes of the device-side heap
    (5, 64),             // bytes of an L2 fetch
    (6, 0),              // bytes of L2 set aside for persisting accesses
];

/// A context.
pub(super) struct Context {
    pub(super) handle: Handle,
    flags: AtomicU32,
    /// Stream 0, which waits for all blocking streams.
    pub(super) legacy: Arc<Stream>,
    per_thread: Mutex<HashMap<ThreadId, Arc<Stream>>>,
    pub(super) limits: Mutex<BTreeMap<u32, usize>>,
    pub(super) cache_config: AtomicI32,
    pub(super) shared_config: AtomicI32,
    /// What a kernel did wrong, if faults are sticky: every call fails with it from then on.
    fault: OnceLock<Error>,
}

/// The device's primary context and how often it was retained.
#[derive(Default)]
pub(super) struct Primary {
    context: Option<Handle>,
    retained: usize,
    flags: u32,
}

thread_local! {
    /// The stack of contexts of this thread; the last is current.
    static STACK: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
    /// Whether this thread runs a host function of a stream.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// The driver and the calling thread's context, which no kernel has failed in.
pub(super) fn current() -> Result<(Arc<Driver>, Arc<Context>)> {
    let (driver, context) = attached()?;
    match context.fault.get() {
        Some(fault) => Err(fault.clone()),
        None => Ok((driver, context)),
    }
}

/// The driver and the calling thread's context, whatever became of it.
fn attached() -> Result<(Arc<Driver>, Arc<Context>)> {
    let driver = driver()?;
    if IN_HOST_FUNCTION.get() {
        let text = "a host function of a stream may not call CUDA";
        return Err(Error::new(code::NOT_PERMITTED, text));
    }
    let Some(handle) = top() else {
        return Err(Error::new(
            code::INVALID_CONTEXT,
            "no context is current to this thread: call cuCtxSetCurrent",
        ));
    };
    let context = driver.contexts.get(handle).map_err(|_| {
        let text = "the context that is current to this thread was destroyed";
        Error::new(code::CONTEXT_IS_DESTROYED, text)
    })?;
    Ok((driver, context))
}

/// Runs a host function of a stream; driver calls fail meanwhile.
pub(super) fn host_function(run: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    run();
    IN_HOST_FUNCTION.set(false);
}

fn top() -> Option<Handle> {
    STACK.with_borrow(|stack| stack.last().copied())
}

fn push(handle: Handle) {
    STACK.with_borrow_mut(|stack| stack.push(handle));
}

/// Puts a context in the place of the current one; 0 takes that away.
fn replace(handle: Handle) {
    STACK.with_borrow_mut(|stack| {
        stack.pop();
        if handle != 0 {
            stack.push(handle);
        }
    });
}

/// Refuses all ordinals but that of the one device.
pub(super) fn check_device(device: CUdevice) -> Result<()> {
    if device == 0 {
        return Ok(());
    }
    Err(Error::new(
        code::INVALID_DEVICE,
        format!("no device {device}: the emulator has one, device 0"),
    ))
}

impl Context {
    /// Bytes of stack that a thread may use.
    pub(super) fn stack_bytes(&self) -> u32 {
        let bytes = lock(&self.limits).get(&STACK_LIMIT).copied();
        // hardware has 512 KiB of local memory a thread
        bytes.unwrap_or(0).min(512 << 10) as u32
    }

    /// Keeps the first fault for all later calls.
    pub(super) fn fail(&self, fault: Error) {
        // Of two kernels that fail at once either may be first.
        let _ = self.fault.set(fault);
    }

    /// The stream that stream handle 2 means on the calling thread.
    pub(super) fn per_thread(&self) -> Arc<Stream> {
        let mut streams = lock(&self.per_thread);
        let stream = (streams.entry(thread::current().id()))
            .or_insert_with(|| Arc::new(Stream::new(fresh(), self.handle, 0, 0)));
        Arc::clone(stream)
    }
}

impl Driver {
    fn create_context(&self, flags: u32) -> Handle {
        let create = |handle| Context {
            handle,
            flags: AtomicU32::new(flags),
            legacy: Arc::new(Stream::legacy(handle)),
            per_thread: Mutex::default(),
            limits: Mutex::new(BTreeMap::from(LIMITS)),
            cache_config: AtomicI32::new(0),
            shared_config: AtomicI32::new(0),
            fault: OnceLock::new(),
        };
        self.contexts.insert(create).0
    }

    /// Ends a context and all that it owns.
    fn destroy_context(&self, handle: Handle) -> Result<()> {
        self.contexts.remove(handle)?;
        lock(&self.captures).end_of_context(handle);
        self.streams.extract(|stream| stream.context == handle);
        self.events.extract(|event| event.context == handle);
        for module in self
            .modules
            .extract(|module| module.context == Some(handle))
        {
            self.unload(&module);
        }
        self.allocations.end_of_context(&self.memory, handle);
        self.host.end_of_context(&self.memory, handle);
        Ok(())
    }

    fn release_primary(&self, all: bool) -> Result<()> {
        let mut primary = lock(&self.primary);
        let Some(handle) = primary.context else {
            if all {
                return Ok(());
            }
            let text = "the primary context was released more often than retained";
            return Err(Error::new(code::INVALID_CONTEXT, text));
        };
        primary.retained = if all { 0 } else { primary.retained - 1 };
        if primary.retained == 0 {
            primary.context = None;
            self.destroy_context(handle)?;
        }
        Ok(())
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDevicePrimaryCtxRetain(out: Out<Handle>, device: CUdevice) -> CUresult {
    call("cuDevicePrimaryCtxRetain", || {
        let driver = driver()?;
        check_device(device)?;
        out.check()?;
        let mut primary = lock(&driver.primary);
        let flags = primary.flags;
        let context = *(primary.context).get_or_insert_with(|| driver.create_context(flags));
        primary.retained += 1;
        out.set(context)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) -> CUresult {
    call("cuDevicePrimaryCtxRelease", || {
        check_device(device)?;
        driver()?.release_primary(false)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDevicePrimaryCtxReset_v2(device: CUdevice) -> CUresult {
    call("cuDevicePrimaryCtxReset", || {
        check_device(device)?;
        driver()?.release_primary(true)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDevicePrimaryCtxGetState(
    device: CUdevice,
    flags: Out<u32>,
    active: Out<i32>,
) -> CUresult {
    call("cuDevicePrimaryCtxGetState", || {
        check_device(device)?;
        let driver = driver()?;
        let primary = lock(&driver.primary);
        flags.set(primary.flags)?;
        active.set(primary.context.is_some().into())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: CUdevice, flags: u32) -> CUresult {
    call("cuDevicePrimaryCtxSetFlags", || {
        check_device(device)?;
        let driver = driver()?;
        let mut primary = lock(&driver.primary);
        primary.flags = flags;
        if let Some(context) = primary.context {
            driver.contexts.get(context)?.flags.store(flags, Relaxed);
        }
        Ok(())
    })
}

fn create(out: &Out<Handle>, flags: u32, device: CUdevice) -> Result<()> {
    check_device(device)?;
    out.check()?;
    let context = driver()?.create_context(flags);
    push(context);
    out.set(context)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxCreate_v2(
    out: Out<Handle>,
    flags: u32,
    device: CUdevice,
) -> CUresult {
    call("cuCtxCreate", || create(&out, flags, device))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxCreate_v3(
    out: Out<Handle>,
    _affinity: Handle,
    affinities: i32,
    flags: u32,
    device: CUdevice,
) -> CUresult {
    call("cuCtxCreate", || {
        if affinities != 0 {
            return Err(Error::unsupported("execution affinity is not emulated"));
        }
        create(&out, flags, device)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxCreate_v4(
    out: Out<Handle>,
    parameters: Handle,
    flags: u32,
    device: CUdevice,
) -> CUresult {
    call("cuCtxCreate", || {
        if parameters != 0 {
            let text = "execution affinity and graphics contexts are not emulated";
            return Err(Error::unsupported(text));
        }
        create(&out, flags, device)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxDestroy_v2(context: Handle) -> CUresult {
    call("cuCtxDestroy", || {
        let driver = driver()?;
        if lock(&driver.primary).context == Some(context) {
            let text = "the primary context is released, not destroyed";
            return Err(Error::new(code::INVALID_CONTEXT, text));
        }
        driver.destroy_context(context)?;
        if top() == Some(context) {
            replace(0);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxSetCurrent(context: Handle) -> CUresult {
    call("cuCtxSetCurrent", || {
        let driver = driver()?;
        if context != 0 {
            driver.contexts.get(context)?;
        }
        replace(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetCurrent(out: Out<Handle>) -> CUresult {
    call("cuCtxGetCurrent", || {
        driver()?;
        out.set(top().unwrap_or(0))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxPushCurrent_v2(context: Handle) -> CUresult {
    call("cuCtxPushCurrent", || {
        driver()?.contexts.get(context)?;
        push(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxPopCurrent_v2(out: Out<Handle>) -> CUresult {
    call("cuCtxPopCurrent", || {
        let (_, context) = attached()?;
        STACK.with_borrow_mut(Vec::pop);
        out.set_if_wanted(context.handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetDevice(out: Out<CUdevice>) -> CUresult {
    call("cuCtxGetDevice", || {
        current()?;
        out.set(0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetDevice_v2(out: Out<CUdevice>, context: Handle) -> CUresult {
    call("cuCtxGetDevice", || {
        given_or_current(context)?;
        out.set(0)
    })
}

/// A context by handle, where null means the current one.
fn given_or_current(context: Handle) -> Result<(Arc<Driver>, Arc<Context>)> {
    if context == 0 {
        return current();
    }
    let driver = driver()?;
    let context = driver.contexts.get(context)?;
    match context.fault.get() {
        Some(fault) => Err(fault.clone()),
        None => Ok((driver, context)),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetFlags(out: Out<u32>) -> CUresult {
    call("cuCtxGetFlags", || {
        out.set(current()?.1.flags.load(Relaxed))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxSetFlags(flags: u32) -> CUresult {
    call("cuCtxSetFlags", || {
        current()?.1.flags.store(flags, Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetId(context: Handle, out: Out<u64>) -> CUresult {
    call("cuCtxGetId", || {
        out.set(given_or_current(context)?.1.handle as u64)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetApiVersion(context: Handle, out: Out<u32>) -> CUresult {
    call("cuCtxGetApiVersion", || {
        given_or_current(context)?;
        out.set(API_VERSION)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxSynchronize() -> CUresult {
    call("cuCtxSynchronize", || synchronize(0))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxSynchronize_v2(context: Handle) -> CUresult {
    call("cuCtxSynchronize", || synchronize(context))
}

/// Nothing is ever pending, but a capture must not be waited for.
fn synchronize(context: Handle) -> Result<()> {
    let (driver, context) = given_or_current(context)?;
    lock(&driver.captures).forbid_in_context("cuCtxSynchronize", context.handle)
}

/// There is one device, and a device is no peer of itself.
fn no_peer(context: Handle) -> Result<()> {
    let (driver, _) = current()?;
    let known = driver.contexts.get(context);
    known.map_err(|error| Error::new(code::INVALID_CONTEXT, error.text))?;
    let text = "the context is on the same device, which is no peer of itself";
    Err(Error::new(code::INVALID_DEVICE, text))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxEnablePeerAccess(peer: Handle, flags: u32) -> CUresult {
    call("cuCtxEnablePeerAccess", || match flags {
        0 => no_peer(peer),
        _ => Err(Error::value("peer access has no flags")),
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxDisablePeerAccess(peer: Handle) -> CUresult {
    call("cuCtxDisablePeerAccess", || {
        no_peer(peer).map_err(|error| match error.code {
            code::INVALID_DEVICE => Error::new(code::PEER_ACCESS_NOT_ENABLED, error.text),
            _ => error,
        })
    })
}
