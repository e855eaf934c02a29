//! Memsets: bytes, half words and words, in one piece or in rows.

use super::context::current;
use super::error::{Error, Result};
use super::ffi::{CUdeviceptr, CUresult, Handle, call};
use super::state::Driver;
use super::work::{Work, submit};

/// `height` rows of `width` elements that are set to one value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    address: CUdeviceptr,
    /// Bytes from one row to the next.
    pitch: usize,
    /// The bytes of an element, little end first.
    value: [u8; 4],
    /// Bytes of an element: 1, 2 or 4.
    size: usize,
    /// Elements in a row.
    width: usize,
    height: usize,
}

impl Fill {
    /// One row of elements; `value` has their bytes.
    fn row(address: CUdeviceptr, value: &[u8], width: usize) -> Fill {
        Fill::rows(address, 0, value, width, 1)
    }

    fn rows(address: CUdeviceptr, pitch: usize, bytes: &[u8], width: usize, height: usize) -> Fill {
        let mut value = [0; 4];
        value[..bytes.len()].copy_from_slice(bytes);
        Fill {
            address,
            pitch,
            value,
            size: bytes.len(),
            width,
            height,
        }
    }

    fn check(&self) -> Result<()> {
        let size = self.size;
        if !self.address.is_multiple_of(size as u64) || !self.pitch.is_multiple_of(size) {
            return Err(Error::value(format!(
                "a memset of {size}-byte elements at {:#x} with a pitch of {} is misaligned",
                self.address, self.pitch
            )));
        }
        let row = self.width.checked_mul(size);
        if self.height > 1 && row.is_none_or(|row| row > self.pitch) {
            return Err(Error::value(format!(
                "rows of {} elements of {size} bytes do not fit a pitch of {}",
                self.width, self.pitch
            )));
        }
        Ok(())
    }

    /// Writes the elements, row by row.
    pub(super) fn run(&self, driver: &Driver) -> Result<()> {
        let Some(rows) = (self.height as u64)
            .checked_sub(1)
            .filter(|_| self.width > 0)
        else {
            return Ok(());
        };
        let overflow = || Error::value("the range of the memset overflows");
        // All of it or nothing is written.
        let row = (self.width as u64).checked_mul(self.size as u64);
        let bytes = (rows.checked_mul(self.pitch as u64)).and_then(|start| start.checked_add(row?));
        (driver.memory).check(self.address, bytes.ok_or_else(overflow)?)?;
        for row in 0..self.height as u64 {
            let start = self.address + row * self.pitch as u64;
            let value = &self.value[..self.size];
            driver.memory.fill(start, value, self.width as u64)?;
        }
        Ok(())
    }
}

fn fill(fill: Fill, stream: Handle) -> Result<()> {
    let (driver, context) = current()?;
    fill.check()?;
    submit(&driver, &context, stream, Work::Fill(fill))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD8_v2(address: CUdeviceptr, value: u8, count: usize) -> CUresult {
    call("cuMemsetD8", || {
        fill(Fill::row(address, &value.to_le_bytes(), count), 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD8Async(
    address: CUdeviceptr,
    value: u8,
    count: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemsetD8Async", || {
        fill(Fill::row(address, &value.to_le_bytes(), count), stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD16_v2(
    address: CUdeviceptr,
    value: u16,
    count: usize,
) -> CUresult {
    call("cuMemsetD16", || {
        fill(Fill::row(address, &value.to_le_bytes(), count), 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD16Async(
    address: CUdeviceptr,
    value: u16,
    count: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemsetD16Async", || {
        fill(Fill::row(address, &value.to_le_bytes(), count), stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD32_v2(
    address: CUdeviceptr,
    value: u32,
    count: usize,
) -> CUresult {
    call("cuMemsetD32", || {
        fill(Fill::row(address, &value.to_le_bytes(), count), 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD32Async(
    address: CUdeviceptr,
    value: u32,
    count: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemsetD32Async", || {
        fill(Fill::row(address, &value.to_le_bytes(), count), stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD2D8_v2(
    address: CUdeviceptr,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
) -> CUresult {
    call("cuMemsetD2D8", || {
        fill(
            Fill::rows(address, pitch, &value.to_le_bytes(), width, height),
            0,
        )
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD2D8Async(
    address: CUdeviceptr,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemsetD2D8Async", || {
        fill(
            Fill::rows(address, pitch, &value.to_le_bytes(), width, height),
            stream,
        )
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD2D16_v2(
    address: CUdeviceptr,
    pitch: usize,
    value: u16,
    width: usize,
    height: usize,
) -> CUresult {
    call("cuMemsetD2D16", || {
        fill(
            Fill::rows(address, pitch, &value.to_le_bytes(), width, height),
            0,
        )
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD2D16Async(
    address: CUdeviceptr,
    pitch: usize,
    value: u16,
    width: usize,
    height: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemsetD2D16Async", || {
        fill(
            Fill::rows(address, pitch, &value.to_le_bytes(), width, height),
            stream,
        )
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD2D32_v2(
    address: CUdeviceptr,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
) -> CUresult {
    call("cuMemsetD2D32", || {
        fill(
            Fill::rows(address, pitch, &value.to_le_bytes(), width, height),
            0,
        )
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemsetD2D32Async(
    address: CUdeviceptr,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemsetD2D32Async", || {
        fill(
            Fill::rows(address, pitch, &value.to_le_bytes(), width, height),
            stream,
        )
    })
}
