//! Streams. Work is done within the call that gives it, so a stream is never behind: synchronising
//! returns at once, and a host function may not wait for anything that the calling thread does later.

use std::ffi::c_void;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use super::context::{Context, current, host_function};
use super::error::{Error, Result, code};
use super::ffi::{CUdevice, CUresult, Handle, HostPtr, Out, call, lock};
use super::state::Driver;
use super::work::{HostFunction, submit_host};

/// The priorities of streams, from greatest to least. They change nothing here.
pub(super) const PRIORITIES: RangeInclusive<i32> = -5..=0;

/// `CU_STREAM_NON_BLOCKING`: no implicit order with stream 0.
const NON_BLOCKING: u32 = 1;

// Stream handles that mean a stream of the current context.
const NULL: Handle = 0;
const LEGACY: Handle = 1;
const PER_THREAD: Handle = 2;

/// A stream.
pub(super) struct Stream {
    pub(super) handle: Handle,
    pub(super) context: Handle,
    flags: u32,
    priority: i32,
    pub(super) is_legacy: bool,
    /// Held while work runs: work of one stream never overlaps.
    pub(super) turn: Mutex<()>,
}

impl Stream {
    pub(super) fn new(handle: Handle, context: Handle, flags: u32, priority: i32) -> Stream {
        Stream {
            handle,
            context,
            flags,
            priority,
            is_legacy: false,
            turn: Mutex::new(()),
        }
    }

    /// Stream 0 of a context.
    pub(super) fn legacy(context: Handle) -> Stream {
        Stream {
            is_legacy: true,
            ..Stream::new(super::handle::fresh(), context, 0, 0)
        }
    }

    /// Whether stream 0 waits for this stream.
    pub(super) fn is_blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }
}

/// The stream of a handle, of which three mean a stream of the current context.
pub(super) fn stream(driver: &Driver, context: &Context, handle: Handle) -> Result<Arc<Stream>> {
    match handle {
        NULL | LEGACY => Ok(Arc::clone(&context.legacy)),
        PER_THREAD => Ok(context.per_thread()),
        _ => driver.streams.get(handle),
    }
}

/// The driver and a stream.
pub(super) fn current_stream(handle: Handle) -> Result<(Arc<Driver>, Arc<Stream>)> {
    let (driver, context) = current()?;
    let stream = stream(&driver, &context, handle)?;
    Ok((driver, stream))
}

fn create(out: &Out<Handle>, flags: u32, priority: i32) -> Result<()> {
    let (driver, context) = current()?;
    out.check()?;
    if flags & !NON_BLOCKING != 0 {
        return Err(Error::value(format!("{flags:#x} are no flags of a stream")));
    }
    let priority = priority.clamp(*PRIORITIES.start(), *PRIORITIES.end());
    let create = |handle| Stream::new(handle, context.handle, flags, priority);
    out.set(driver.streams.insert(create).0)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamCreate(out: Out<Handle>, flags: u32) -> CUresult {
    call("cuStreamCreate", || create(&out, flags, 0))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamCreateWithPriority(
    out: Out<Handle>,
    flags: u32,
    priority: i32,
) -> CUresult {
    call("cuStreamCreateWithPriority", || {
        create(&out, flags, priority)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamDestroy_v2(handle: Handle) -> CUresult {
    call("cuStreamDestroy", || {
        let (driver, _) = current()?;
        let stream = driver.streams.remove(handle)?;
        lock(&driver.captures).end_of_stream(&stream);
        Ok(())
    })
}

/// A call that waits for a stream or asks whether it is done.
fn settle(name: &str, handle: Handle) -> Result<()> {
    let (driver, stream) = current_stream(handle)?;
    let mut captures = lock(&driver.captures);
    captures.forbid_on(name, &stream)?;
    captures.check_implicit(&stream)?;
    drop(captures);
    // Another thread may be in the middle of this stream's work.
    drop(lock(&stream.turn));
    Ok(())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamSynchronize(handle: Handle) -> CUresult {
    call("cuStreamSynchronize", || {
        settle("cuStreamSynchronize", handle)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamQuery(handle: Handle) -> CUresult {
    call("cuStreamQuery", || settle("cuStreamQuery", handle))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamGetFlags(handle: Handle, flags: Out<u32>) -> CUresult {
    call("cuStreamGetFlags", || {
        flags.set(current_stream(handle)?.1.flags)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamGetPriority(handle: Handle, priority: Out<i32>) -> CUresult {
    call("cuStreamGetPriority", || {
        priority.set(current_stream(handle)?.1.priority)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamGetId(handle: Handle, id: Out<u64>) -> CUresult {
    call("cuStreamGetId", || {
        id.set(current_stream(handle)?.1.handle as u64)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamGetCtx(handle: Handle, context: Out<Handle>) -> CUresult {
    call("cuStreamGetCtx", || {
        context.set(current_stream(handle)?.1.context)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamGetCtx_v2(
    handle: Handle,
    context: Out<Handle>,
    green_context: Out<Handle>,
) -> CUresult {
    call("cuStreamGetCtx", || {
        green_context.set_if_wanted(0);
        context.set(current_stream(handle)?.1.context)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamGetDevice(handle: Handle, device: Out<CUdevice>) -> CUresult {
    call("cuStreamGetDevice", || {
        current_stream(handle)?;
        device.set(0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    function: Option<HostFunction>,
    argument: HostPtr,
) -> CUresult {
    call("cuLaunchHostFunc", || {
        let (driver, context) = current()?;
        submit_host(&driver, &context, stream, function, argument)
    })
}

/// How the function's thread waits for work does not matter: there is none to wait for.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLaunchHostFunc_v2(
    stream: Handle,
    function: Option<HostFunction>,
    argument: HostPtr,
    _sync_mode: u32,
) -> CUresult {
    call("cuLaunchHostFunc", || {
        let (driver, context) = current()?;
        submit_host(&driver, &context, stream, function, argument)
    })
}

/// `CUstreamCallback`.
type Callback = unsafe extern "C" fn(Handle, CUresult, *mut c_void);

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamAddCallback(
    handle: Handle,
    callback: Option<Callback>,
    argument: HostPtr,
    _flags: u32,
) -> CUresult {
    call("cuStreamAddCallback", || {
        let (driver, stream) = current_stream(handle)?;
        let callback = callback.ok_or_else(|| Error::value("the callback is null"))?;
        lock(&driver.captures).forbid_on("cuStreamAddCallback", &stream)?;
        let _turn = lock(&stream.turn);
        // SAFETY: C passes a function that takes the stream, its state and this argument.
        host_function(|| unsafe { callback(handle, code::SUCCESS, argument.0) });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) -> CUresult {
    call("cuStreamWaitEvent", || {
        let (driver, stream) = current_stream(stream)?;
        let event = driver.events.get(event)?;
        if flags != 0 {
            let text = "waits for external events are not emulated";
            return Err(Error::unsupported(text));
        }
        let state = event.state();
        lock(&driver.captures).wait(&stream, &state)
    })
}
