//! The border to C: argument types that check themselves, and the frame around every call.
//!
//! A driver function is `extern "C"` but safe: what C promises about a pointer argument is the
//! invariant of the argument's type ([`Out`], [`In`], [`Text`], [`HostPtr`]), which Rust code cannot
//! make from a raw pointer without `unsafe`. Each of them may be null and says so as an error.

use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::error::{Error, Result, code, remember};

/// `CUresult`: 0 or an error code. C's enums are ints.
pub(super) type CUresult = c_int;
/// `CUdevice`: the ordinal of a device.
pub(super) type CUdevice = c_int;
/// `CUdeviceptr`: an address in the emulated device's memory.
pub(super) type CUdeviceptr = u64;
/// `CUcontext`, `CUstream` and so on: a number from [`super::handle`] in the place of a pointer.
pub(super) type Handle = usize;

/// Runs the body of one driver call: errors and panics become a code, and their text is kept.
pub(super) fn call(name: &'static str, body: impl FnOnce() -> Result<()>) -> CUresult {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return code::SUCCESS,
        Ok(Err(error)) => error,
        Err(panic) => {
            let text = format!(
                "{name}: the emulator panicked, which is a defect of its own: {}",
                message(&*panic)
            );
            eprintln!("cuda-emulator: {text}");
            Error::new(code::UNKNOWN, text)
        }
    };
    let code = error.code;
    remember(error);
    code
}

fn message(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}

/// Locks, also after a panic elsewhere: what the mutexes here guard is consistent at every step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], to read.
pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], to write.
pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// A pointer that a call writes its result to: null, or valid to write one `T`.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// As C passes `NULL`.
    pub(super) const NULL: Out<T> = Out(std::ptr::null_mut());

    /// Writes a result that the caller must take.
    pub(super) fn set(&self, value: T) -> Result<()> {
        self.check()?;
        // SAFETY: not null, so valid to write one `T` (the type's invariant).
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Writes a result that the caller may leave out.
    pub(super) fn set_if_wanted(&self, value: T) {
        if !self.0.is_null() {
            // SAFETY: not null, so valid to write one `T` (the type's invariant).
            unsafe { self.0.write(value) };
        }
    }

    /// Refuses null before anything is done that could not be handed back.
    pub(super) fn check(&self) -> Result<()> {
        if self.0.is_null() {
            return Err(Error::value("the pointer for the result is null"));
        }
        Ok(())
    }

    /// Whether it is a multiple of the type's alignment.
    pub(super) fn is_aligned(&self) -> bool {
        self.0.is_aligned()
    }

    /// Whether the caller left the result out.
    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The element of an array.
    ///
    /// # Safety
    /// Not null, and valid to read and write more than `index` elements.
    pub(super) unsafe fn element(&self, index: usize) -> Out<T> {
        // SAFETY: this function's contract.
        Out(unsafe { self.0.add(index) })
    }

    /// A pointer that came as a number.
    ///
    /// # Safety
    /// It is 0 or valid to write one `T`.
    pub(super) unsafe fn from_address(address: usize) -> Out<T> {
        Out(std::ptr::with_exposed_provenance_mut(address))
    }

    /// The argument as what it really points to.
    ///
    /// # Safety
    /// It is null or valid to write, and for [`Out::get`] to read, one `U`.
    pub(super) unsafe fn cast<U>(&self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl<T: Copy> Out<T> {
    /// What the caller put there; for arguments that go both ways.
    pub(super) fn get(&self) -> Result<T> {
        // SAFETY: such an argument is null or valid to read, as an `In` is.
        In(self.0.cast_const()).get()
    }

    /// Writes `values` to an array.
    ///
    /// # Safety
    /// Not null, and valid to write as many elements.
    pub(super) unsafe fn set_all(&self, values: &[T]) {
        // SAFETY: this function's contract; C's memory cannot overlap a Rust borrow.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.0, values.len()) };
    }
}

#[cfg(test)]
impl<T> Out<T> {
    /// As C passes `&mut value`.
    pub(super) fn to(value: &mut T) -> Out<T> {
        Out(value)
    }
}

/// A pointer to what a call reads: null, or valid to read one `T`.
#[repr(transparent)]
pub(super) struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// The value.
    pub(super) fn get(&self) -> Result<T> {
        if self.0.is_null() {
            return Err(Error::value("a pointer argument is null"));
        }
        // SAFETY: not null, so valid to read one `T` (the type's invariant).
        Ok(unsafe { self.0.read() })
    }

    /// The element of an array.
    ///
    /// # Safety
    /// Not null, and valid to read more than `index` elements.
    pub(super) unsafe fn element(&self, index: usize) -> T {
        // SAFETY: this function's contract.
        unsafe { self.0.add(index).read() }
    }

    /// The elements of an array.
    ///
    /// # Safety
    /// Null, or valid to read `count` elements.
    pub(super) unsafe fn list(&self, count: usize) -> Result<Vec<T>> {
        /// No call takes longer lists than this: what asks for more is a mistake, and would be read out of bounds.
        const MOST: usize = 1 << 20;
        if count == 0 {
            return Ok(Vec::new());
        }
        if count > MOST {
            return Err(Error::value(format!("an array of {count} elements")));
        }
        if self.0.is_null() {
            return Err(Error::value(format!(
                "an array of {count} elements is null"
            )));
        }
        // SAFETY: not null, so valid to read `count` elements (this function's contract).
        Ok((0..count)
            .map(|i| unsafe { self.0.add(i).read() })
            .collect())
    }
}

impl<T> In<T> {
    /// As C passes `NULL`.
    pub(super) const NULL: In<T> = In(std::ptr::null());

    /// Whether the caller passed null.
    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// A pointer that came untyped.
    ///
    /// # Safety
    /// It is null or valid to read one `T`.
    pub(super) unsafe fn from_pointer(pointer: HostPtr) -> In<T> {
        In(pointer.0.cast_const().cast())
    }
}

// A pointer is `Copy` whatever it points to, which a derived impl would not say.
impl<T> Clone for In<T> {
    fn clone(&self) -> In<T> {
        *self
    }
}

impl<T> Copy for In<T> {}

/// A string argument: null, or NUL-terminated.
#[repr(transparent)]
pub(super) struct Text(*const c_char);

impl Text {
    /// The text.
    pub(super) fn get(&self) -> Result<&str> {
        if self.0.is_null() {
            return Err(Error::value("a string argument is null"));
        }
        // SAFETY: not null, so a C string that outlives the call (the type's invariant).
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str()
            .map_err(|_| Error::value(format!("the name {text:?} is not UTF-8")))
    }
}

/// A pointer to host memory of any kind. It may be kept in a captured graph and used on another
/// thread; that the memory is still there then is what the caller of `cuGraphLaunch` promises.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HostPtr(pub(super) *mut c_void);

// SAFETY: the pointer is only followed in functions whose contract is the caller's promise to the
// C API, and that promise is not tied to a thread.
unsafe impl Send for HostPtr {}
// SAFETY: as above; the pointer itself never changes.
unsafe impl Sync for HostPtr {}

impl HostPtr {
    /// As a number.
    pub(super) fn address(self) -> usize {
        self.0.addr()
    }

    /// The pointer `bytes` further on.
    pub(super) fn after(self, bytes: usize) -> HostPtr {
        HostPtr(self.0.wrapping_byte_add(bytes))
    }

    /// The bytes there, to read.
    ///
    /// # Safety
    /// Null, or valid to read `len` bytes, which nobody writes meanwhile.
    pub(super) unsafe fn bytes<'a>(self, len: usize) -> Result<&'a [u8]> {
        self.check(len)?;
        // SAFETY: this function's contract; null was refused.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast_const().cast(), len) })
    }

    /// The bytes there, to write.
    ///
    /// # Safety
    /// Null, or valid to write `len` bytes, which nobody else touches meanwhile.
    pub(super) unsafe fn bytes_mut<'a>(self, len: usize) -> Result<&'a mut [u8]> {
        self.check(len)?;
        // SAFETY: this function's contract; null was refused.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.cast(), len) })
    }

    fn check(self, len: usize) -> Result<()> {
        if self.0.is_null() {
            return Err(Error::value("the host pointer is null"));
        }
        if isize::try_from(len).is_err() {
            return Err(Error::value(format!(
                "{len} bytes of host memory cannot be"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_code_with_its_message() {
        let code = call("cuTest", || panic!("lost {}", 3));
        assert_eq!(code, code::UNKNOWN);
        let text = super::super::error::last_text(code);
        assert!(text.starts_with("cuTest: the emulator panicked"), "{text}");
        assert!(text.ends_with("lost 3"), "{text}");
    }

    #[test]
    fn null_arguments_are_errors() {
        assert_eq!(
            Out::<u32>::NULL.set(1).unwrap_err().code,
            code::INVALID_VALUE
        );
        assert_eq!(
            In::<u32>(std::ptr::null()).get().unwrap_err().code,
            code::INVALID_VALUE
        );
        assert_eq!(
            Text(std::ptr::null()).get().unwrap_err().code,
            code::INVALID_VALUE
        );
        // SAFETY: null is allowed.
        let (none, some) = unsafe {
            let null = In::<u32>(std::ptr::null());
            (null.list(0), null.list(1))
        };
        assert_eq!(none, Ok(vec![]));
        assert_eq!(some.unwrap_err().code, code::INVALID_VALUE);
        // SAFETY: null is allowed.
        assert!(unsafe { HostPtr(std::ptr::null_mut()).bytes(0) }.is_err());
    }
}
