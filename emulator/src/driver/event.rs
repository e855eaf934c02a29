//! Events. Everything before an event is done when it is recorded; the emulator measures no time.

use std::sync::{Arc, Mutex};

use super::context::current;
use super::error::{Error, Result, code};
use super::ffi::{CUresult, Handle, Out, call, lock};
use super::log::once;
use super::state::Driver;
use super::stream::current_stream;

/// All flags of an event: blocking wait, no timing, between processes.
const FLAGS: u32 = 7;
const INTERPROCESS: u32 = 4;

/// An event.
pub(super) struct Event {
    pub(super) context: Handle,
    state: Mutex<State>,
}

/// Where an event was last recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nowhere yet: waiting for it is no wait.
    New,
    /// In a stream that did the work at once.
    Done,
    /// In a capture, after these nodes.
    Captured { capture: u64, nodes: Vec<Handle> },
}

impl Event {
    /// Where it was last recorded.
    pub(super) fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// Refuses an event that stands for a place in a capture.
    fn check_settled(&self) -> Result<()> {
        match self.state() {
            State::New | State::Done => Ok(()),
            State::Captured { .. } => {
                let text = "the event was last recorded in a capture: it cannot be waited for";
                Err(Error::new(code::CAPTURED_EVENT, text))
            }
        }
    }
}

fn event(handle: Handle) -> Result<(Arc<Driver>, Arc<Event>)> {
    let (driver, _) = current()?;
    let event = driver.events.get(handle)?;
    Ok((driver, event))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuEventCreate(out: Out<Handle>, flags: u32) -> CUresult {
    call("cuEventCreate", || {
        let (driver, context) = current()?;
        out.check()?;
        if flags & !FLAGS != 0 {
            return Err(Error::value(format!("{flags:#x} are no flags of an event")));
        }
        if flags & INTERPROCESS != 0 {
            return Err(Error::unsupported(
                "events cannot be shared between processes",
            ));
        }
        let create = |_| Event {
            context: context.handle,
            state: Mutex::new(State::New),
        };
        out.set(driver.events.insert(create).0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuEventDestroy_v2(handle: Handle) -> CUresult {
    call("cuEventDestroy", || {
        let (driver, _) = current()?;
        driver.events.remove(handle).map(drop)
    })
}

fn record(handle: Handle, stream: Handle) -> Result<()> {
    let (driver, event) = event(handle)?;
    let (_, stream) = current_stream(stream)?;
    if stream.context != event.context {
        let text = "the event and the stream belong to different contexts";
        return Err(Error::new(code::INVALID_HANDLE, text));
    }
    let mut captures = lock(&driver.captures);
    let state = match captures.position(&stream)? {
        Some((capture, nodes)) => State::Captured { capture, nodes },
        None => {
            captures.check_implicit(&stream)?;
            State::Done
        }
    };
    drop(captures);
    *lock(&event.state) = state;
    Ok(())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> CUresult {
    call("cuEventRecord", || record(event, stream))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuEventRecordWithFlags(
    event: Handle,
    stream: Handle,
    flags: u32,
) -> CUresult {
    call("cuEventRecordWithFlags", || {
        if flags != 0 {
            return Err(Error::unsupported("external events are not emulated"));
        }
        record(event, stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuEventQuery(handle: Handle) -> CUresult {
    call("cuEventQuery", || event(handle)?.1.check_settled())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuEventSynchronize(handle: Handle) -> CUresult {
    call("cuEventSynchronize", || event(handle)?.1.check_settled())
}

const NO_TIME: &str =
    "cuEventElapsedTime: the emulator measures no time; its reports count what a launch did";

/// Checks the events and refuses.
fn elapsed(start: Handle, end: Handle) -> Result<()> {
    for handle in [start, end] {
        let (_, event) = event(handle)?;
        event.check_settled()?;
        if event.state() == State::New {
            let text = "the event was not recorded";
            return Err(Error::new(code::INVALID_HANDLE, text));
        }
    }
    once(NO_TIME);
    Err(Error::unsupported(NO_TIME))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuEventElapsedTime(
    _milliseconds: Out<f32>,
    start: Handle,
    end: Handle,
) -> CUresult {
    call("cuEventElapsedTime", || elapsed(start, end))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuEventElapsedTime_v2(
    _milliseconds: Out<f32>,
    start: Handle,
    end: Handle,
) -> CUresult {
    call("cuEventElapsedTime", || elapsed(start, end))
}
