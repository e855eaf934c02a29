//! [`Workspace`]: scratch memory on the device that the caller owns.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaViewMut};

use crate::error::{Error, Result};
use crate::tensor::{Float, TensorMut};

/// Scratch memory that operations use and never allocate themselves.
///
/// One workspace serves any number of calls, one after the other on one stream. A call that finds
/// it too small says so; reserve it beforehand where the call is captured into a CUDA graph.
///
/// ```no_run
/// # fn main() -> seqmix::Result<()> {
/// let stream = seqmix::context(0)?.default_stream();
/// let mut workspace = seqmix::Workspace::new(&stream);
/// workspace.reserve(1 << 20)?;
/// assert!(workspace.bytes() >= 1 << 20);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Workspace {
    stream: Arc<CudaStream>,
    memory: Option<CudaSlice<u8>>,
}

impl Workspace {
    /// An empty workspace whose memory will be allocated on `stream`.
    pub fn new(stream: &Arc<CudaStream>) -> Self {
        Self {
            stream: stream.clone(),
            memory: None,
        }
    }

    /// Bytes that are reserved.
    pub fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, CudaSlice::len)
    }

    /// Grows the workspace to at least `bytes`; what it held is lost if it grows. Never shrinks.
    ///
    /// # Errors
    /// Driver errors, e.g. out of memory; the workspace is then empty.
    pub fn reserve(&mut self, bytes: usize) -> Result<()> {
        if self.bytes() < bytes {
            // freed first: the old and the new memory need not fit together
            self.memory = None;
            // SAFETY: the memory is unset, and `u8` has no invalid values; kernels write their
            // scratch before they read it.
            self.memory = Some(unsafe { self.stream.alloc(bytes) }?);
        }
        Ok(())
    }

    /// All of it, for one call.
    pub(crate) fn scratch(&mut self) -> Scratch<'_> {
        Scratch(self.memory.as_mut().map(CudaSlice::as_view_mut))
    }
}

/// What a call has of a [`Workspace`], with whatever the last user left there. It begins at a multiple
/// of 256 bytes.
pub(crate) struct Scratch<'a>(Option<CudaViewMut<'a, u8>>);

impl Scratch<'_> {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, CudaViewMut::len)
    }

    /// The first `bytes` bytes; none if there is no memory at all and none is asked for.
    ///
    /// # Errors
    /// [`Error::Workspace`] if fewer are reserved.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<Option<TensorMut<'_, u8, 1>>> {
        if bytes == 0 {
            return Ok(None);
        }
        let reserved = self.bytes();
        let view = self
            .0
            .as_mut()
            .and_then(|memory| memory.try_slice_mut(..bytes));
        let view = view.ok_or(Error::Workspace {
            needed: bytes,
            reserved,
        })?;
        TensorMut::contiguous(view, [bytes]).map(Some)
    }

    /// The first `bytes` bytes and the rest, of at least `needed` in all.
    ///
    /// # Errors
    /// [`Error::Workspace`] if fewer are reserved.
    pub(crate) fn split(
        &mut self,
        needed: usize,
        bytes: usize,
    ) -> Result<(CudaViewMut<'_, u8>, Scratch<'_>)> {
        let reserved = self.bytes();
        let error = Error::Workspace { needed, reserved };
        if reserved < needed {
            return Err(error);
        }
        let parts = self
            .0
            .as_mut()
            .and_then(|memory| memory.try_split_at_mut(bytes));
        let (first, rest) = parts.ok_or(error)?;
        Ok((first, Scratch(Some(rest))))
    }
}

/// A part of a workspace, which begins at a multiple of 256 bytes, as a contiguous tensor.
pub(crate) fn typed<'a, T: Float, const N: usize>(
    memory: &'a mut CudaViewMut<'_, u8>,
    shape: [usize; N],
) -> Result<TensorMut<'a, T, N>> {
    let elements = shape.iter().product();
    let available = memory.len() / size_of::<T>();
    // SAFETY: the memory begins at a multiple of 256 bytes, and every bit pattern is a `Float`.
    let view = unsafe { memory.transmute_mut::<T>(elements) };
    let view = view.ok_or(Error::OutOfBounds {
        shape: shape.to_vec(),
        strides: Vec::new(),
        needed: elements,
        available,
    })?;
    TensorMut::contiguous(view, shape)
}
