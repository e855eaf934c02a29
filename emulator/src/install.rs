//! Chooses the driver of this process, and puts the emulator in the place of a real one.
//!
//! Programs find a CUDA driver by loading `libcuda.so`. Cargo builds this crate twice: as the library
//! that tests, benches and examples link, and as a shared library whose soname is `libcuda.so`.
//! [`install`] loads the latter from the former; a later `dlopen("libcuda.so")`, cudarc's first, then
//! gets the object that is already loaded. It must therefore come before the first CUDA call.
//!
//! ```
//! use cuda_emulator::{Driver, Settings, configure, select};
//!
//! let driver = select(Some("emulator"))?;
//! assert_eq!(driver, Driver::Emulator);
//! configure(&Settings { quiet: Some(true), ..Settings::default() })?;
//! # Ok::<(), cuda_emulator::InstallError>(())
//! ```

use std::env;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use libloading::Library;
use serde::de::DeserializeOwned;

use crate::driver::Settings;
use crate::driver::control::{
    CONFIGURE_SYMBOL, ConfigureFn, FAULTS, OF_PROCESS, OF_THREAD, REPORTS, TAKE_SYMBOL, TakeFn,
    VERSION_SYMBOL, VersionFn,
};
use crate::report::Report;

/// The names under which programs, and this probe, look for a real driver.
const REAL: &[&str] = if cfg!(windows) {
    &["nvcuda.dll"]
} else {
    &["libcuda.so.1", "libcuda.so"]
};

/// The name that the emulator's shared library takes; cudarc asks for it first.
const SONAME: &str = "libcuda.so";

/// Which driver serves this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// NVIDIA's driver, with at least one device.
    Cuda,
    /// This crate.
    Emulator,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::Cuda => "CUDA driver",
            Driver::Emulator => "emulator",
        })
    }
}

/// Why a driver could not be chosen, or the emulator not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// The choice is not one of those that there are.
    #[error("no driver `{choice}`; there are `cuda` and `emulator`")]
    UnknownChoice {
        /// What was asked for.
        choice: String,
    },
    /// A real driver was asked for and there is none that works.
    #[error("no CUDA device: {reason}; without one, choose the emulator")]
    NoDevice {
        /// What the probe met.
        reason: String,
    },
    /// This process already uses another driver.
    #[error(
        "this process already uses the {present}: the choice is made once, before the first CUDA call"
    )]
    AlreadySelected {
        /// The driver in use.
        present: Driver,
    },
    /// The platform cannot load a library under another name.
    #[error("the emulator takes the place of libcuda.so by its soname, which needs Linux")]
    Platform,
    /// The shared library was not found.
    #[error(
        "the emulator's shared library {file} was not found: it is built with the tests, benches \
         and examples of packages that have cuda-emulator as a dependency; tried {tried}"
    )]
    NotFound {
        /// Its file name.
        file: String,
        /// The places, with what went wrong there.
        tried: String,
    },
    /// The shared library belongs to another version of this crate.
    #[error("{file} is version {found} of the emulator, not {}: build it anew", env!("CARGO_PKG_VERSION"))]
    OtherVersion {
        /// Where it lies.
        file: String,
        /// Its version.
        found: String,
    },
    /// Something else is loaded under the name of the driver.
    #[error(
        "another {SONAME} is already loaded in this process: choose the driver before the first CUDA call"
    )]
    Shadowed,
    /// The emulator is not installed.
    #[error("the emulator is not installed in this process: call `install` or `select` first")]
    NotInstalled,
    /// The emulator did not accept the settings.
    #[error("{reason}")]
    Settings {
        /// What was wrong.
        reason: String,
    },
}

/// The shared library, loaded for the rest of the process.
#[derive(Clone, Copy)]
struct Installed {
    configure: ConfigureFn,
    take: TakeFn,
}

/// The choice, once it is made.
enum Selected {
    Cuda,
    Emulator(Installed),
}

impl Selected {
    fn driver(&self) -> Driver {
        match self {
            Selected::Cuda => Driver::Cuda,
            Selected::Emulator(_) => Driver::Emulator,
        }
    }
}

static SELECTED: Mutex<Option<Selected>> = Mutex::new(None);

/// Chooses the driver of this process: `cuda`, `emulator`, or (`None`) the real one if it has a
/// device, else the emulator. Must come before the first CUDA call; the choice is made once, and later
/// calls get the same answer.
///
/// # Errors
/// The choice cannot be had, or contradicts an earlier one.
pub fn select(choice: Option<&str>) -> Result<Driver, InstallError> {
    let wanted = match choice {
        None => None,
        Some("cuda") => Some(Driver::Cuda),
        Some("emulator") => Some(Driver::Emulator),
        Some(other) => {
            let choice = other.to_owned();
            return Err(InstallError::UnknownChoice { choice });
        }
    };
    let mut selected = SELECTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(selected) = &*selected {
        let present = selected.driver();
        return if wanted.is_none_or(|wanted| wanted == present) {
            Ok(present)
        } else {
            Err(InstallError::AlreadySelected { present })
        };
    }
    let choice = match wanted {
        Some(Driver::Emulator) => Selected::Emulator(load()?),
        Some(Driver::Cuda) => {
            probe().map_err(|reason| InstallError::NoDevice { reason })?;
            Selected::Cuda
        }
        None if probe().is_ok() => Selected::Cuda,
        None => Selected::Emulator(load()?),
    };
    Ok(selected.insert(choice).driver())
}

/// Makes the emulator the driver of this process: [`select`] with the choice `emulator`.
///
/// # Errors
/// Its shared library is not found or cannot take the driver's place.
pub fn install() -> Result<(), InstallError> {
    select(Some("emulator")).map(drop)
}

/// Changes settings of the installed emulator.
///
/// # Errors
/// The emulator is not installed, or a setting is not accepted.
pub fn configure(settings: &Settings) -> Result<(), InstallError> {
    let installed = installed().ok_or(InstallError::NotInstalled)?;
    let settings_error = |reason: String| InstallError::Settings { reason };
    let json = serde_json::to_vec(settings).map_err(|error| settings_error(error.to_string()))?;
    let mut reason = Vec::new();
    // SAFETY: the bytes are given with their number, and `collect` takes this vector.
    let code = unsafe {
        let reason = (&raw mut reason).cast();
        (installed.configure)(json.as_ptr().cast(), json.len(), collect, reason)
    };
    match code {
        0 => Ok(()),
        _ => Err(settings_error(
            String::from_utf8_lossy(&reason).into_owned(),
        )),
    }
}

/// Takes the reports of all launches of the installed emulator that were not taken yet, oldest first.
/// It keeps the last few thousand. Empty on a real driver.
pub fn take_reports() -> Vec<Report> {
    take(REPORTS, OF_PROCESS)
}

/// As [`take_reports`], of launches that the calling thread made: for tests that run in parallel.
pub fn take_thread_reports() -> Vec<Report> {
    take(REPORTS, OF_THREAD)
}

/// Takes the texts of all faults of the installed emulator that were not taken yet, oldest first. It
/// keeps the last few thousand. Empty on a real driver.
pub fn take_faults() -> Vec<String> {
    take(FAULTS, OF_PROCESS)
}

/// As [`take_faults`], of launches that the calling thread made: for tests that run in parallel.
pub fn take_thread_faults() -> Vec<String> {
    take(FAULTS, OF_THREAD)
}

fn installed() -> Option<Installed> {
    match &*SELECTED.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(Selected::Emulator(installed)) => Some(*installed),
        _ => None,
    }
}

fn take<T: DeserializeOwned>(what: u32, whose: u32) -> Vec<T> {
    let Some(installed) = installed() else {
        return Vec::new();
    };
    let mut json: Vec<u8> = Vec::new();
    // SAFETY: `collect` takes this vector.
    let code = unsafe { (installed.take)(what, whose, collect, (&raw mut json).cast()) };
    match serde_json::from_slice(&json) {
        Ok(list) if code == 0 => list,
        // Both sides are of one version (`open`), so this does not happen unless one is damaged.
        _ => {
            eprintln!("cuda-emulator: reports could not be read (code {code})");
            Vec::new()
        }
    }
}

/// Appends the bytes to the `Vec<u8>` that `argument` points to.
unsafe extern "C" fn collect(argument: *mut c_void, text: *const c_char, bytes: usize) {
    // SAFETY: callers pass a vector that nothing else uses meanwhile (`configure`, `take`), and the
    // emulator passes valid bytes.
    unsafe {
        let vector = &mut *argument.cast::<Vec<u8>>();
        vector.extend_from_slice(std::slice::from_raw_parts(text.cast(), bytes));
    }
}

/// Whether a real driver works: it opens, initialises and has a device. Else the reason.
fn probe() -> Result<(), String> {
    let mut reasons = Vec::new();
    for name in REAL {
        // SAFETY: loading a driver runs its initialisers, as any use of CUDA does.
        let library = match unsafe { Library::new(*name) } {
            Ok(library) => library,
            Err(error) => {
                reasons.push(describe(&error));
                continue;
            }
        };
        // SAFETY: the symbol is only looked for.
        if unsafe { library.get::<VersionFn>(VERSION_SYMBOL) }.is_ok() {
            reasons.push(format!("{name} is the emulator"));
            continue;
        }
        let answer = devices(&library);
        if name.ends_with(".1") || answer.is_ok() {
            // A driver that has started must not be unloaded. Its own name does not stand in the way
            // of the emulator's, which is the name without a version.
            std::mem::forget(library);
        }
        match answer {
            Ok(_) => return Ok(()),
            Err(reason) => return Err(format!("{name}: {reason}")),
        }
    }
    Err(reasons.join("; "))
}

/// What the loader said, which the error keeps as its source.
fn describe(error: &libloading::Error) -> String {
    match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

/// The number of devices of a driver, if above zero.
fn devices(library: &Library) -> Result<c_int, String> {
    type Init = unsafe extern "C" fn(c_int) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    let missing = |error: libloading::Error| describe(&error);
    // SAFETY: these are the signatures of the driver API.
    let (init, count) = unsafe {
        let init = library.get::<Init>("cuInit").map_err(missing)?;
        let count = library.get::<Count>("cuDeviceGetCount").map_err(missing)?;
        (init, count)
    };
    // SAFETY: cuInit takes no flags.
    let code = unsafe { init(0) };
    if code != 0 {
        return Err(format!("cuInit answered {code}"));
    }
    let mut devices = 0;
    // SAFETY: the pointer is valid to write an int.
    let code = unsafe { count(&raw mut devices) };
    match (code, devices) {
        (0, 1..) => Ok(devices),
        (0, _) => Err("the driver has no device".to_owned()),
        _ => Err(format!("cuDeviceGetCount answered {code}")),
    }
}

/// Loads the shared library and makes sure that it is found under the driver's name.
fn load() -> Result<Installed, InstallError> {
    if !cfg!(unix) {
        return Err(InstallError::Platform);
    }
    let file = format!("{DLL_PREFIX}cuda_emulator{DLL_SUFFIX}");
    let mut tried = Vec::new();
    for place in places(&file) {
        // SAFETY: the file is this crate's own library, which has no initialisers.
        match unsafe { Library::new(&place) } {
            Ok(library) => return open(library, &place.display().to_string()),
            Err(error) => tried.push(describe(&error)),
        }
    }
    let tried = tried.join("; ");
    Err(InstallError::NotFound { file, tried })
}

/// Where the shared library may lie, likeliest first.
fn places(file: &str) -> Vec<PathBuf> {
    // The bare name goes by the search path, which cargo points to its folder: a doctest's
    // executable lies elsewhere.
    let mut places = vec![PathBuf::from(file)];
    if let Ok(executable) = env::current_exe() {
        for folder in executable.ancestors().skip(1).take(2) {
            places.push(folder.join(file));
            places.push(folder.join("deps").join(file));
        }
    }
    places.push(PathBuf::from(env!("CUDA_EMULATOR_FOLDER")).join(file));
    places
}

fn open(library: Library, file: &str) -> Result<Installed, InstallError> {
    // Programs keep what they got from it, so it stays loaded.
    let library: &'static Library = Box::leak(Box::new(library));
    let other = |found: &str| InstallError::OtherVersion {
        file: file.to_owned(),
        found: found.to_owned(),
    };
    // SAFETY: a library that has the first symbol is this crate's; the types are those that its
    // `control` module gives for each name, in every version.
    let (version, configure, take) = unsafe {
        let unknown = |_| other("unknown");
        (
            *library.get::<VersionFn>(VERSION_SYMBOL).map_err(unknown)?,
            *library
                .get::<ConfigureFn>(CONFIGURE_SYMBOL)
                .map_err(unknown)?,
            *library.get::<TakeFn>(TAKE_SYMBOL).map_err(unknown)?,
        )
    };
    // SAFETY: the function returns a C string that lasts.
    let found = unsafe { CStr::from_ptr(version()) }.to_string_lossy();
    if found != env!("CARGO_PKG_VERSION") {
        return Err(other(&found));
    }
    // SAFETY: what has this name is this very library, or a driver that was loaded before.
    let by_name = unsafe { Library::new(SONAME) };
    let is_ours = by_name.is_ok_and(|library| {
        // SAFETY: the symbol is only compared.
        let symbol = unsafe { library.get::<VersionFn>(VERSION_SYMBOL) };
        symbol.is_ok_and(|symbol| std::ptr::fn_addr_eq(*symbol, version))
    });
    if !is_ours {
        return Err(InstallError::Shadowed);
    }
    Ok(Installed { configure, take })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_choices_are_named() {
        let error = select(Some("gpu")).unwrap_err().to_string();
        assert_eq!(error, "no driver `gpu`; there are `cuda` and `emulator`");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_library_that_is_no_driver_is_told_by_its_symbols() {
        // SAFETY: the C library is loaded already.
        let library = unsafe { Library::new("libc.so.6") }.unwrap();
        let reason = devices(&library).unwrap_err();
        assert!(reason.contains("cuInit"), "{reason}");
    }

    #[test]
    fn without_the_emulator_there_is_nothing_to_take() {
        // Unit tests never install it: they are linked with what would be loaded.
        assert!(take_reports().is_empty() && take_thread_faults().is_empty());
        let error = configure(&Settings::default()).unwrap_err();
        assert!(matches!(error, InstallError::NotInstalled));
    }
}
