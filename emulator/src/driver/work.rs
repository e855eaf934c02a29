//! Work that a stream takes: done at once, or recorded while the stream captures.

use std::ffi::c_void;
use std::sync::Arc;

use super::context::{Context, host_function};
use super::copy::Transfer;
use super::error::{Error, Result, code};
use super::ffi::{Handle, HostPtr, lock};
use super::launch::Launch;
use super::memset::Fill;
use super::settings::config;
use super::state::Driver;
use super::stream::{Stream, stream};

/// `CUhostFn`.
pub(super) type HostFunction = unsafe extern "C" fn(*mut c_void);

/// One piece of work. A graph holds it as a node and may do it many times.
#[derive(Clone)]
pub(super) enum Work {
    /// A kernel.
    Launch(Launch),
    /// A copy of memory.
    Copy(Transfer),
    /// A memset.
    Fill(Fill),
    /// A function of the program, with its argument.
    Host(HostFunction, HostPtr),
    /// The work of another graph, in order.
    Graph(Arc<[Work]>),
}

impl Work {
    /// `CUgraphNodeType`.
    pub(super) fn node_type(&self) -> u32 {
        match self {
            Work::Launch(_) => 0,
            Work::Copy(_) => 1,
            Work::Fill(_) => 2,
            Work::Host(..) => 3,
            Work::Graph(_) => 4,
        }
    }

    /// Does the work.
    pub(super) fn run(&self, driver: &Driver) -> Result<()> {
        match self {
            Work::Launch(launch) => launch.run(driver),
            Work::Copy(copy) => copy.run(driver),
            Work::Fill(fill) => fill.run(driver),
            Work::Host(function, argument) => {
                // SAFETY: the program gave the function with this argument to a stream, to be
                // called once the work before it is done, which it is.
                host_function(|| unsafe { function(argument.0) });
                Ok(())
            }
            Work::Graph(list) => list.iter().try_for_each(|work| work.run(driver)),
        }
    }
}

/// Gives work to the stream of a handle.
pub(super) fn submit(
    driver: &Driver,
    context: &Context,
    stream_handle: Handle,
    work: Work,
) -> Result<()> {
    let stream = stream(driver, context, stream_handle)?;
    submit_to(driver, &stream, work)
}

/// Gives work to a stream: it is recorded if the stream captures, else done before this returns.
pub(super) fn submit_to(driver: &Driver, stream: &Stream, work: Work) -> Result<()> {
    let mut captures = lock(&driver.captures);
    if captures.is_capturing(stream) {
        return captures.record(stream, work);
    }
    captures.check_implicit(stream)?;
    drop(captures);
    let _turn = lock(&stream.turn);
    match work.run(driver) {
        Err(fault) if fault.is_fault && config()?.sticky => {
            // The launch is queued, and what comes later learns what became of it.
            driver.contexts.get(stream.context)?.fail(fault);
            Ok(())
        }
        done => done,
    }
}

/// Gives a host function to a stream.
pub(super) fn submit_host(
    driver: &Driver,
    context: &Context,
    stream: Handle,
    function: Option<HostFunction>,
    argument: HostPtr,
) -> Result<()> {
    let function =
        function.ok_or_else(|| Error::new(code::INVALID_VALUE, "the host function is null"))?;
    submit(driver, context, stream, Work::Host(function, argument))
}
