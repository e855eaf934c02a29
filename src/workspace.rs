//! [`Workspace`]: scratch memory on the device that the caller owns.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaViewMut};

use crate::error::{Error, Result};

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

    /// The first `bytes` bytes, 256-byte aligned, with whatever the last user left there.
    ///
    /// # Errors
    /// [`Error::Workspace`] if fewer are reserved.
    pub fn get(&mut self, bytes: usize) -> Result<CudaViewMut<'_, u8>> {
        let reserved = self.bytes();
        self.memory
            .as_mut()
            .and_then(|memory| memory.try_slice_mut(..bytes))
            .ok_or(Error::Workspace {
                needed: bytes,
                reserved,
            })
    }
}
