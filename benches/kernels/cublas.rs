//! cuBLAS to compare with: looked for when the bench runs, so that nothing needs it.
//!
//! Not through cudarc, which panics where it finds no library and takes the system's before the one that was asked for.

use std::error::Error;
use std::ffi::{c_int, c_void};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use libloading::Library;
use seqmix::cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use seqmix::cudarc::get_lib_name_candidates;
use seqmix::{Dtype, Float};

/// Names the library, or the folder that it is in.
const VARIABLE: &str = "SEQMIX_CUBLAS";

type Handle = *mut c_void;

/// 0 is success.
type Status = c_int;

/// What is called, declared as in cublas_v2.h, whose enums are ints.
struct Functions {
    create: unsafe extern "system" fn(*mut Handle) -> Status,
    destroy: unsafe extern "system" fn(Handle) -> Status,
    version: unsafe extern "system" fn(Handle, *mut c_int) -> Status,
    set_stream: unsafe extern "system" fn(Handle, *mut c_void) -> Status,
    set_math_mode: unsafe extern "system" fn(Handle, c_int) -> Status,
    gemm: unsafe extern "system" fn(
        Handle,
        c_int,         // whether a is transposed
        c_int,         // whether b is
        c_int,         // m
        c_int,         // n
        c_int,         // k
        *const c_void, // alpha
        *const c_void, // a
        c_int,         // its type
        c_int,         // elements from a column to the next
        *const c_void, // b
        c_int,
        c_int,
        *const c_void, // beta
        *mut c_void,   // c
        c_int,
        c_int,
        c_int, // type of the sums
        c_int, // algorithm
    ) -> Status,
}

// Values of the header's enums.
const OP_N: c_int = 0;
const OP_T: c_int = 1;
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const COMPUTE_32F: c_int = 68;
const GEMM_DEFAULT: c_int = -1;
/// Without it parts of a sum may be added in 16 bits, which this crate never does.
const DISALLOW_REDUCED_PRECISION_REDUCTION: c_int = 16;

/// The library, ready for one stream.
pub(crate) struct Cublas {
    handle: Handle,
    functions: Functions,
    stream: Arc<CudaStream>,
    /// Version and file.
    pub(crate) name: String,
    /// Dropped last: the functions are its.
    _library: Library,
}

impl Cublas {
    /// Loads the library; the error says what to set.
    pub(crate) fn open(stream: &Arc<CudaStream>) -> Result<Self, Box<dyn Error>> {
        // empty means unset: the linker would take it for this program
        let chosen = std::env::var_os(VARIABLE).filter(|chosen| !chosen.is_empty());
        let (library, path) = find(chosen.map(PathBuf::from))?;
        let path = path.display();
        Self::start(library, stream, &path).map_err(|why| format!("{path}: {why}").into())
    }

    fn start(
        library: Library,
        stream: &Arc<CudaStream>,
        path: &dyn Display,
    ) -> Result<Self, Box<dyn Error>> {
        // SAFETY: the signatures are those of cublas_v2.h, where these functions have had them since CUDA 11.
        let functions = unsafe {
            Functions {
                create: *library.get(b"cublasCreate_v2\0")?,
                destroy: *library.get(b"cublasDestroy_v2\0")?,
                version: *library.get(b"cublasGetVersion_v2\0")?,
                set_stream: *library.get(b"cublasSetStream_v2\0")?,
                set_math_mode: *library.get(b"cublasSetMathMode\0")?,
                gemm: *library.get(b"cublasGemmEx\0")?,
            }
        };
        stream.context().bind_to_thread()?;
        let (mut handle, mut version) = (ptr::null_mut(), 0);
        // SAFETY: the handle outlives the call that writes it.
        check("cublasCreate", unsafe { (functions.create)(&mut handle) })?;
        let mut cublas = Self {
            handle,
            functions,
            stream: stream.clone(),
            name: String::new(),
            _library: library,
        };
        let functions = &cublas.functions;
        // SAFETY: the handle is new; `version` outlives the call that writes it; the stream lives as long as the
        // handle, since both are fields of `cublas`.
        unsafe {
            check(
                "cublasGetVersion",
                (functions.version)(handle, &mut version),
            )?;
            check(
                "cublasSetStream",
                (functions.set_stream)(handle, stream.cu_stream().cast()),
            )?;
            check(
                "cublasSetMathMode",
                (functions.set_math_mode)(handle, DISALLOW_REDUCED_PRECISION_REDUCTION),
            )?;
        }
        cublas.name = format!("cuBLAS {version} ({path})");
        Ok(cublas)
    }

    /// Queues `y = x w^T` with sums in `f32`, all row by row: x `[m, k]`, w `[n, k]`, y `[m, n]`. Nothing if y has no
    /// rows.
    pub(crate) fn linear<T: Float>(
        &self,
        [m, n, k]: [usize; 3],
        x: &CudaView<'_, T>,
        w: &CudaView<'_, T>,
        y: &mut CudaViewMut<'_, T>,
    ) -> Result<(), Box<dyn Error>> {
        if [x.len(), w.len(), y.len()] != [m * k, n * k, m * n] {
            return Err(format!("tensors that are not of m {m}, n {n}, k {k}").into());
        }
        if m == 0 {
            return Ok(());
        }
        let [m, n, k] = [
            c_int::try_from(m)?,
            c_int::try_from(n)?,
            c_int::try_from(k)?,
        ];
        let dtype = match T::DTYPE {
            Dtype::F16 => R_16F,
            Dtype::BF16 => R_16BF,
            _ => R_32F, // a `Float` is one of the three
        };
        let (x, _x_used) = x.device_ptr(&self.stream);
        let (w, _w_used) = w.device_ptr(&self.stream);
        let (y, _y_used) = y.device_ptr_mut(&self.stream);
        let (one, zero) = (1f32, 0f32);
        self.stream.context().bind_to_thread()?;
        // Matrices of cuBLAS lie column by column. Read so, y is its own transpose, w x^T: w, which is then
        // [k, n], has to be transposed back, and x is x^T already.
        // SAFETY: the tensors have the sizes that the call is told, checked above, and live until work on the
        // stream has used them; the two numbers are read before the call returns.
        let status = unsafe {
            (self.functions.gemm)(
                self.handle,
                OP_T,
                OP_N,
                n,
                m,
                k,
                (&raw const one).cast(),
                w as *const c_void,
                dtype,
                k,
                x as *const c_void,
                dtype,
                k,
                (&raw const zero).cast(),
                y as *mut c_void,
                dtype,
                n,
                COMPUTE_32F,
                GEMM_DEFAULT,
            )
        };
        check("cublasGemmEx", status)
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: the handle was made with these functions and is used by nobody else. A failure at the end of a
        // program changes nothing.
        unsafe { (self.functions.destroy)(self.handle) };
    }
}

fn check(call: &str, status: Status) -> Result<(), Box<dyn Error>> {
    match status {
        0 => Ok(()),
        _ => Err(format!("{call} returned status {status}").into()),
    }
}

/// Loads the library that `chosen` names, or one of the folder that it names, or the system's.
fn find(chosen: Option<PathBuf>) -> Result<(Library, PathBuf), Box<dyn Error>> {
    let names = get_lib_name_candidates("cublas");
    let paths: Vec<PathBuf> = match &chosen {
        Some(folder) if folder.is_dir() => names.iter().map(|name| folder.join(name)).collect(),
        Some(file) => vec![file.clone()],
        None => names.iter().map(PathBuf::from).collect(),
    };
    let mut why = String::new();
    for path in paths {
        // SAFETY: NVIDIA's library, whose initialisers may run at any time in any thread.
        match unsafe { Library::new(&path) } {
            Ok(library) => return Ok((library, path)),
            // libloading keeps the linker's words in the source
            Err(error) if path.exists() => {
                why = error
                    .source()
                    .map_or(String::new(), |why| format!(" ({why})"));
            }
            Err(_) => {}
        }
    }
    let place = chosen
        .as_deref()
        .map_or("the system".into(), Path::to_string_lossy);
    let fix = format!("set {VARIABLE} to the library or to its folder");
    Err(format!("cuBLAS was not found in {place}{why}: {fix}").into())
}
