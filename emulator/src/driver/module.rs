//! Modules: loading images, and their global variables. A library is a module that no context owns.

use std::collections::BTreeMap;
use std::ffi::c_char;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use super::context::current;
use super::coverage;
use super::error::{Error, Result, code};
use super::ffi::{CUdeviceptr, CUresult, Handle, HostPtr, In, Out, Text, call, lock};
use super::function::Function;
use super::state::{Driver, driver};
use crate::device::Device;
use crate::image;
use crate::module::{LoadError, Module, Program};

/// Bytes of images whose programs are kept for the next load. Every test that makes its own context
/// loads the same images again, and parsing is the slow part.
const CACHE_BYTES: usize = 64 << 20;

/// A loaded module.
pub(super) struct LoadedModule {
    pub(super) handle: Handle,
    /// `None` for a library.
    pub(super) context: Option<Handle>,
    pub(super) module: Module,
    loaded: AtomicBool,
    functions: Mutex<BTreeMap<String, Handle>>,
}

impl LoadedModule {
    /// Refuses a module that was unloaded while a function or a graph still names it.
    pub(super) fn check_loaded(&self) -> Result<()> {
        if self.loaded.load(Relaxed) {
            return Ok(());
        }
        let text = "the module of this function was unloaded";
        Err(Error::new(code::INVALID_HANDLE, text))
    }
}

/// Programs by the image that they came from; the least recently used are dropped first.
#[derive(Default)]
pub(super) struct Programs(Mutex<Vec<Cached>>);

/// An image and its program.
type Cached = (Box<[u8]>, Arc<Program>);

impl Programs {
    /// The program of an image.
    fn get(&self, image: &[u8], device: &Device) -> Result<Arc<Program>> {
        let mut cached = lock(&self.0);
        if let Some(at) = cached.iter().position(|(key, _)| **key == *image) {
            let recent = cached.remove(at);
            let program = Arc::clone(&recent.1);
            cached.push(recent);
            return Ok(program);
        }
        // Parsed under the lock: another thread that wants the same image waits and then finds it.
        let text = image::ptx(image, device)?;
        check_target(&text, device)?;
        let code = image::MachineCode::find(image, device);
        let program = Arc::new(Program::parse(&text)?.with_machine_code(code));
        cached.push((image.into(), Arc::clone(&program)));
        let mut bytes: usize = cached.iter().map(|(key, _)| key.len()).sum();
        while bytes > CACHE_BYTES {
            bytes -= cached.remove(0).0.len();
        }
        Ok(program)
    }
}

/// Refuses PTX for a device that this one is not, as the compiler of a driver does.
fn check_target(text: &str, device: &Device) -> Result<()> {
    let mut lines = text.lines().map(str::trim_start);
    let targets = lines.find_map(|line| line.strip_prefix(".target"));
    let mut names = targets.unwrap_or_default().split(',').map(str::trim);
    let Some(name) = names.find_map(|name| name.strip_prefix("sm_")) else {
        return Ok(()); // the parser has its own words for a text without a target
    };
    let digits = name.trim_end_matches(|end: char| !end.is_ascii_digit());
    let Ok(arch) = digits.parse::<u32>() else {
        return Ok(());
    };
    let own = device.arch();
    let runs = match &name[digits.len()..] {
        "a" => arch == own,
        "f" => arch <= own && arch / 10 == own / 10,
        _ => arch <= own,
    };
    if runs {
        return Ok(());
    }
    let text = format!("the PTX is for sm_{name}, which a device of sm_{own} does not run");
    Err(Error::new(code::INVALID_PTX, text))
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Error {
        match error {
            LoadError::Memory(error) => error.into(),
            other => Error::new(code::INVALID_PTX, other.to_string()),
        }
    }
}

impl Driver {
    fn load(&self, image: &[u8], context: Option<Handle>) -> Result<Arc<LoadedModule>> {
        let program = self.programs.get(image, &self.device)?;
        coverage::loaded(&self.device, &program);
        let module = Module::load(program, &self.memory)?;
        let loaded = |handle| LoadedModule {
            handle,
            context,
            module,
            loaded: AtomicBool::new(true),
            functions: Mutex::default(),
        };
        Ok(self.modules.insert(loaded).1)
    }

    /// Frees what a module holds that is no longer in the table.
    pub(super) fn unload(&self, module: &LoadedModule) {
        module.loaded.store(false, Relaxed);
        for function in std::mem::take(&mut *lock(&module.functions)).into_values() {
            // It is in the table by this very map.
            let _ = self.functions.remove(function);
        }
        module.module.unload(&self.memory);
    }

    /// The function of a kernel; the same one each time, for it has attributes.
    pub(super) fn function(&self, module: &Arc<LoadedModule>, name: &str) -> Result<Handle> {
        let program = module.module.program();
        if program.kernel(name).is_none() {
            let mut known: Vec<&str> = program.kernels().map(|k| k.name.as_str()).collect();
            known.sort_unstable();
            let known = match &*known {
                [] => "it has none".to_owned(),
                _ => format!("it has {}", known.join(", ")),
            };
            let text = format!("the module has no kernel `{name}`; {known}");
            return Err(Error::new(code::NOT_FOUND, text));
        }
        let mut functions = lock(&module.functions);
        if let Some(handle) = functions.get(name) {
            return Ok(*handle);
        }
        let create = |handle| Function::new(handle, module, name, &self.device);
        let (handle, _) = self.functions.insert(create);
        functions.insert(name.to_owned(), handle);
        Ok(handle)
    }

    /// Address and bytes of a global variable.
    fn global(&self, module: Handle, name: &str) -> Result<(CUdeviceptr, u64)> {
        let module = self.modules.get(module)?;
        let (address, bytes) = module.module.global(name).ok_or_else(|| {
            let text = format!("the module has no global variable `{name}`");
            Error::new(code::NOT_FOUND, text)
        })?;
        self.allocations.include(address, bytes);
        Ok((address, bytes))
    }
}

/// Loads the image at a pointer into the current context.
fn load_data(name: &str, out: &Out<Handle>, image: HostPtr) -> Result<()> {
    let (driver, context) = current()?;
    out.check()?;
    lock(&driver.captures).forbid(name)?;
    // SAFETY: C passes a whole image of one of these kinds, and keeps it until this returns.
    let image = unsafe { image::at(image.0) }?;
    out.set(driver.load(image, Some(context.handle))?.handle)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleLoadData(out: Out<Handle>, image: HostPtr) -> CUresult {
    call("cuModuleLoadData", || {
        load_data("cuModuleLoadData", &out, image)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleLoadFatBinary(out: Out<Handle>, image: HostPtr) -> CUresult {
    call("cuModuleLoadFatBinary", || {
        load_data("cuModuleLoadFatBinary", &out, image)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleLoadDataEx(
    out: Out<Handle>,
    image: HostPtr,
    count: u32,
    options: In<u32>,
    values: Out<usize>,
) -> CUresult {
    call("cuModuleLoadDataEx", || {
        let log = ErrorLog::find(count, &options, &values)?;
        let result = load_data("cuModuleLoadDataEx", &out, image);
        log.fill(result.as_ref().err().map_or("", |error| &error.text));
        result
    })
}

/// Where the compiler's errors go: the options 5 (buffer) and 6 (its size, then how much is used).
struct ErrorLog {
    buffer: Out<c_char>,
    size: usize,
    used: Option<Out<usize>>,
}

impl ErrorLog {
    /// The log of errors; that of information, the options 3 and 4, becomes empty.
    fn find(count: u32, options: &In<u32>, values: &Out<usize>) -> Result<ErrorLog> {
        ErrorLog::of(count, options, values, [3, 4])?.fill("");
        ErrorLog::of(count, options, values, [5, 6])
    }

    /// The log of two options: its buffer and its size.
    fn of(
        count: u32,
        options: &In<u32>,
        values: &Out<usize>,
        [buffer, size]: [u32; 2],
    ) -> Result<ErrorLog> {
        // SAFETY: C passes as many options as it says.
        let options = unsafe { options.list(count as usize) }?;
        if !options.is_empty() {
            values.check()?;
        }
        let value = |option| {
            let at = options.iter().position(|found| *found == option)?;
            // SAFETY: C passes as many values as options, and `at` is below their number.
            Some(unsafe { values.element(at) })
        };
        let used = value(size);
        // An unsigned int in the place of a pointer: its upper half may be anything.
        let size = used.as_ref().map_or(Ok(0), Out::get)? & u32::MAX as usize;
        let buffer = value(buffer).map_or(Ok(0), |slot| slot.get())?;
        // SAFETY: the value of this option is a pointer to a buffer of as many chars as the other says.
        let buffer = unsafe { Out::from_address(buffer) };
        Ok(ErrorLog { buffer, size, used })
    }

    /// Writes the text, cut to the buffer and ended by a NUL.
    fn fill(&self, text: &str) {
        if self.buffer.is_null() || self.size == 0 {
            return;
        }
        let kept = text.len().min(self.size - 1);
        let bytes: Vec<c_char> = (text.as_bytes()[..kept].iter())
            .chain(&[0])
            .map(|byte| *byte as c_char)
            .collect();
        // SAFETY: not null, and the buffer holds `size` chars, which is not less (`find`).
        unsafe { self.buffer.set_all(&bytes) };
        if let Some(used) = &self.used {
            used.set_if_wanted(bytes.len());
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleLoad(out: Out<Handle>, path: Text) -> CUresult {
    call("cuModuleLoad", || {
        let (driver, context) = current()?;
        out.check()?;
        lock(&driver.captures).forbid("cuModuleLoad")?;
        let image = read_file(path.get()?)?;
        out.set(driver.load(&image, Some(context.handle))?.handle)
    })
}

fn read_file(path: &str) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::new(code::FILE_NOT_FOUND, format!("{path}: {error}")))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleUnload(module: Handle) -> CUresult {
    call("cuModuleUnload", || {
        let (driver, _) = current()?;
        if driver.modules.get(module)?.context.is_none() {
            let text = "the module belongs to a library: unload that";
            return Err(Error::new(code::NOT_PERMITTED, text));
        }
        driver.unload(&*driver.modules.remove(module)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleGetFunction(
    out: Out<Handle>,
    module: Handle,
    name: Text,
) -> CUresult {
    call("cuModuleGetFunction", || {
        let (driver, _) = current()?;
        out.set(driver.function(&driver.modules.get(module)?, name.get()?)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleGetGlobal_v2(
    address: Out<CUdeviceptr>,
    bytes: Out<usize>,
    module: Handle,
    name: Text,
) -> CUresult {
    call("cuModuleGetGlobal", || {
        let (driver, _) = current()?;
        let (start, size) = driver.global(module, name.get()?)?;
        address.set_if_wanted(start);
        bytes.set_if_wanted(size as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleGetFunctionCount(count: Out<u32>, module: Handle) -> CUresult {
    call("cuModuleGetFunctionCount", || {
        count.set(kernel_count(&*driver()?, module)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleEnumerateFunctions(
    functions: Out<Handle>,
    count: u32,
    module: Handle,
) -> CUresult {
    call("cuModuleEnumerateFunctions", || {
        enumerate(&functions, count, module)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuModuleGetLoadingMode(mode: Out<u32>) -> CUresult {
    /// `CU_MODULE_EAGER_LOADING`.
    const EAGER: u32 = 1;
    call("cuModuleGetLoadingMode", || mode.set(EAGER))
}

fn kernel_count(driver: &Driver, module: Handle) -> Result<u32> {
    let module = driver.modules.get(module)?;
    Ok(module.module.program().kernels().count() as u32)
}

fn enumerate(functions: &Out<Handle>, count: u32, module: Handle) -> Result<()> {
    let driver = driver()?;
    functions.check()?;
    let module = driver.modules.get(module)?;
    let handles: Vec<Handle> = (module.module.program().kernels())
        .take(count as usize)
        .map(|kernel| driver.function(&module, &kernel.name))
        .collect::<Result<_>>()?;
    // SAFETY: C passes an array of `count` elements, and there are no more handles than that.
    unsafe { functions.set_all(&handles) };
    Ok(())
}

/// The options of a library cannot change what the emulator does.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLibraryLoadData(
    out: Out<Handle>,
    image: HostPtr,
    options: In<u32>,
    values: Out<usize>,
    count: u32,
    _library_options: Handle,
    _library_values: Handle,
    _library_count: u32,
) -> CUresult {
    call("cuLibraryLoadData", || {
        let driver = driver()?;
        out.check()?;
        let log = ErrorLog::find(count, &options, &values)?;
        // SAFETY: C passes a whole image of one of these kinds, and keeps it until this returns.
        let result = unsafe { image::at(image.0) }
            .map_err(Error::from)
            .and_then(|image| driver.load(image, None));
        log.fill(result.as_ref().err().map_or("", |error| &error.text));
        out.set(result?.handle)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLibraryLoadFromFile(
    out: Out<Handle>,
    path: Text,
    _options: Handle,
    _values: Handle,
    _count: u32,
    _library_options: Handle,
    _library_values: Handle,
    _library_count: u32,
) -> CUresult {
    call("cuLibraryLoadFromFile", || {
        let driver = driver()?;
        out.check()?;
        out.set(driver.load(&read_file(path.get()?)?, None)?.handle)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLibraryUnload(library: Handle) -> CUresult {
    call("cuLibraryUnload", || {
        let driver = driver()?;
        if driver.modules.get(library)?.context.is_some() {
            return Err(Error::new(
                code::INVALID_HANDLE,
                "this is a module, not a library",
            ));
        }
        driver.unload(&*driver.modules.remove(library)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLibraryGetKernel(
    out: Out<Handle>,
    library: Handle,
    name: Text,
) -> CUresult {
    call("cuLibraryGetKernel", || {
        let driver = driver()?;
        out.set(driver.function(&driver.modules.get(library)?, name.get()?)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLibraryGetKernelCount(count: Out<u32>, library: Handle) -> CUresult {
    call("cuLibraryGetKernelCount", || {
        count.set(kernel_count(&*driver()?, library)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLibraryEnumerateKernels(
    kernels: Out<Handle>,
    count: u32,
    library: Handle,
) -> CUresult {
    call("cuLibraryEnumerateKernels", || {
        enumerate(&kernels, count, library)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLibraryGetModule(out: Out<Handle>, library: Handle) -> CUresult {
    call("cuLibraryGetModule", || {
        let (driver, _) = current()?;
        out.set(driver.modules.get(library)?.handle)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLibraryGetGlobal(
    address: Out<CUdeviceptr>,
    bytes: Out<usize>,
    library: Handle,
    name: Text,
) -> CUresult {
    call("cuLibraryGetGlobal", || {
        let (driver, _) = current()?;
        let (start, size) = driver.global(library, name.get()?)?;
        address.set_if_wanted(start);
        bytes.set_if_wanted(size as usize);
        Ok(())
    })
}
