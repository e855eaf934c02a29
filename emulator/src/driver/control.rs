//! The emulator's own functions of the shared library, by which [`mod@crate::install`] talks to it.
//!
//! The library that a program is linked with and the one that is loaded as a driver are two copies of
//! this crate, each with its own statics; these calls carry JSON from one to the other.

use std::ffi::{c_char, c_void};

use serde::Serialize;

use super::error::{Error, Result};
use super::ffi::{CUresult, HostPtr, call};
use super::log::{Scope, take_faults, take_reports};
use super::settings::{Settings, configure};

/// Takes the bytes of an answer, within the call that gives it.
pub(crate) type Sink =
    unsafe extern "C" fn(argument: *mut c_void, text: *const c_char, bytes: usize);

/// The name of [`cuda_emulator_version`], which tells the emulator from a real driver.
pub(crate) const VERSION_SYMBOL: &str = "cuda_emulator_version";
/// The name of [`cuda_emulator_configure`].
pub(crate) const CONFIGURE_SYMBOL: &str = "cuda_emulator_configure";
/// The name of [`cuda_emulator_take`].
pub(crate) const TAKE_SYMBOL: &str = "cuda_emulator_take";

/// What [`cuda_emulator_take`] takes, and whose.
pub(crate) const REPORTS: u32 = 0;
/// The texts of faults.
pub(crate) const FAULTS: u32 = 1;
/// Of launches of all threads.
pub(crate) const OF_PROCESS: u32 = 0;
/// Of launches of the calling thread.
pub(crate) const OF_THREAD: u32 = 1;

/// Type of [`cuda_emulator_version`].
pub(crate) type VersionFn = unsafe extern "C" fn() -> *const c_char;
/// Type of [`cuda_emulator_configure`].
pub(crate) type ConfigureFn =
    unsafe extern "C" fn(*const c_char, usize, Sink, *mut c_void) -> CUresult;
/// Type of [`cuda_emulator_take`].
pub(crate) type TakeFn = unsafe extern "C" fn(u32, u32, Sink, *mut c_void) -> CUresult;

/// The version of this crate, as a C string.
#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Changes settings, given as JSON of [`Settings`], and gives `sink` the reason if that fails.
///
/// # Safety
/// `sink` may be called with `argument`.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuda_emulator_configure(
    json: HostPtr,
    bytes: usize,
    sink: Sink,
    argument: *mut c_void,
) -> CUresult {
    call(CONFIGURE_SYMBOL, || {
        // SAFETY: the caller passes as many bytes as it says.
        let done = serde_json::from_slice::<Settings>(unsafe { json.bytes(bytes) }?)
            .map_err(|error| Error::value(format!("the settings do not read: {error}")))
            .and_then(|settings| configure(&settings));
        if let Err(Error { text, .. }) = &done {
            // SAFETY: this function's contract; the bytes live until it returns.
            unsafe { sink(argument, text.as_ptr().cast(), text.len()) };
        }
        done
    })
}

/// Takes the reports or faults of launches, oldest first, and gives them to `sink` as a JSON array.
///
/// # Safety
/// `sink` may be called with `argument`.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuda_emulator_take(
    what: u32,
    whose: u32,
    sink: Sink,
    argument: *mut c_void,
) -> CUresult {
    call(TAKE_SYMBOL, || {
        let scope = match whose {
            OF_PROCESS => Scope::Process,
            OF_THREAD => Scope::Thread,
            _ => {
                return Err(Error::value(format!(
                    "{whose} says not whose entries to take"
                )));
            }
        };
        let json = match what {
            REPORTS => json(&take_reports(scope)),
            FAULTS => json(&take_faults(scope)),
            _ => Err(Error::value(format!("{what} is nothing that can be taken"))),
        }?;
        // SAFETY: this function's contract; the bytes live until it returns.
        unsafe { sink(argument, json.as_ptr().cast(), json.len()) };
        Ok(())
    })
}

fn json(list: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(list).map_err(|error| Error::value(format!("no JSON: {error}")))
}
