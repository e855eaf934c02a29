//! Copies: between host and device, on either, in one piece or in rows.

use super::context::{Context, current};
use super::error::{Error, Result};
use super::ffi::{CUdeviceptr, CUresult, Handle, HostPtr, In, call};
use super::state::Driver;
use super::work::{Work, submit};

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Host(HostPtr),
    Device(CUdeviceptr),
}

impl Place {
    /// The place `bytes` further on.
    fn after(self, bytes: usize) -> Result<Place> {
        match self {
            Place::Host(pointer) => Some(Place::Host(pointer.after(bytes))),
            Place::Device(address) => address.checked_add(bytes as u64).map(Place::Device),
        }
        .ok_or_else(|| Error::value("the address overflows"))
    }
}

/// A copy of `height` rows of `width` bytes; of one row if it is in one piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    to: Side,
    from: Side,
    width: usize,
    height: usize,
}

/// One side of a copy.
#[derive(Clone, Copy, Debug)]
struct Side {
    place: Place,
    /// Bytes from one row to the next.
    pitch: usize,
}

impl Transfer {
    fn linear(to: Place, from: Place, bytes: usize) -> Transfer {
        let side = |place| Side {
            place,
            pitch: bytes,
        };
        Transfer {
            to: side(to),
            from: side(from),
            width: bytes,
            height: 1,
        }
    }

    /// Copies, row by row.
    pub(super) fn run(&self, driver: &Driver) -> Result<()> {
        if self.width == 0 {
            return Ok(());
        }
        if isize::try_from(self.width).is_err() {
            return Err(Error::value(format!(
                "{} bytes are too many to copy",
                self.width
            )));
        }
        // All of it or nothing is copied.
        let Some(rows) = self.height.checked_sub(1) else {
            return Ok(());
        };
        for side in [&self.to, &self.from] {
            let start = rows.checked_mul(side.pitch);
            let bytes = start.and_then(|start| start.checked_add(self.width));
            let bytes = bytes.ok_or_else(|| Error::value("the rows overflow"))?;
            if let Place::Device(address) = side.place {
                driver.memory.check(address, bytes as u64)?;
            }
        }
        for row in 0..self.height {
            let at = |side: &Side| {
                let offset = row.checked_mul(side.pitch);
                side.place
                    .after(offset.ok_or_else(|| Error::value("the rows overflow"))?)
            };
            let (to, from, width) = (at(&self.to)?, at(&self.from)?, self.width);
            match (to, from) {
                (Place::Device(to), Place::Host(from)) => {
                    // SAFETY: the caller of a copy gives host memory of its size, and leaves that to
                    // the copy until it is done.
                    driver.memory.write(to, unsafe { from.bytes(width) }?)?;
                }
                (Place::Host(to), Place::Device(from)) => {
                    // SAFETY: as above.
                    driver.memory.read(from, unsafe { to.bytes_mut(width) }?)?;
                }
                (Place::Device(to), Place::Device(from)) => {
                    driver.memory.copy(to, from, width as u64)?;
                }
                (Place::Host(to), Place::Host(from)) => {
                    if to.address() == 0 || from.address() == 0 {
                        return Err(Error::value("the host pointer is null"));
                    }
                    // SAFETY: as above; the two sides may overlap.
                    unsafe {
                        std::ptr::copy(from.0.cast_const().cast::<u8>(), to.0.cast(), width);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Copies in one piece, on a stream.
fn linear(to: Place, from: Place, bytes: usize, stream: Handle) -> Result<()> {
    let (driver, context) = current()?;
    submit(
        &driver,
        &context,
        stream,
        Work::Copy(Transfer::linear(to, from, bytes)),
    )
}

/// The place of an address that may be the host's or the device's.
fn unified(driver: &Driver, address: CUdeviceptr) -> Place {
    if driver.allocations.is_device(address) {
        Place::Device(address)
    } else {
        Place::Host(HostPtr(std::ptr::with_exposed_provenance_mut(
            address as usize,
        )))
    }
}

fn copy_unified(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: Handle) -> Result<()> {
    let (driver, context) = current()?;
    let copy = Transfer::linear(unified(&driver, to), unified(&driver, from), bytes);
    submit(&driver, &context, stream, Work::Copy(copy))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpy(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> CUresult {
    call("cuMemcpy", || copy_unified(to, from, bytes, 0))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpyAsync(
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemcpyAsync", || copy_unified(to, from, bytes, stream))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: HostPtr, bytes: usize) -> CUresult {
    call("cuMemcpyHtoD", || {
        linear(Place::Device(to), Place::Host(from), bytes, 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpyHtoDAsync_v2(
    to: CUdeviceptr,
    from: HostPtr,
    bytes: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemcpyHtoDAsync", || {
        linear(Place::Device(to), Place::Host(from), bytes, stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpyDtoH_v2(to: HostPtr, from: CUdeviceptr, bytes: usize) -> CUresult {
    call("cuMemcpyDtoH", || {
        linear(Place::Host(to), Place::Device(from), bytes, 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpyDtoHAsync_v2(
    to: HostPtr,
    from: CUdeviceptr,
    bytes: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemcpyDtoHAsync", || {
        linear(Place::Host(to), Place::Device(from), bytes, stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpyDtoD_v2(
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
) -> CUresult {
    call("cuMemcpyDtoD", || {
        linear(Place::Device(to), Place::Device(from), bytes, 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpyDtoDAsync_v2(
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemcpyDtoDAsync", || {
        linear(Place::Device(to), Place::Device(from), bytes, stream)
    })
}

/// Between contexts, which share one device here.
fn peer(
    (to, to_context): (CUdeviceptr, Handle),
    (from, from_context): (CUdeviceptr, Handle),
    bytes: usize,
    stream: Handle,
) -> Result<()> {
    let (driver, _) = current()?;
    driver.contexts.get(to_context)?;
    driver.contexts.get(from_context)?;
    linear(Place::Device(to), Place::Device(from), bytes, stream)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpyPeer(
    to: CUdeviceptr,
    to_context: Handle,
    from: CUdeviceptr,
    from_context: Handle,
    bytes: usize,
) -> CUresult {
    call("cuMemcpyPeer", || {
        peer((to, to_context), (from, from_context), bytes, 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpyPeerAsync(
    to: CUdeviceptr,
    to_context: Handle,
    from: CUdeviceptr,
    from_context: Handle,
    bytes: usize,
    stream: Handle,
) -> CUresult {
    call("cuMemcpyPeerAsync", || {
        peer((to, to_context), (from, from_context), bytes, stream)
    })
}

/// One side of a `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Corner {
    x_bytes: usize,
    y: usize,
    memory_type: u32,
    host: HostPtr,
    device: CUdeviceptr,
    array: Handle,
    pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Rectangle {
    from: Corner,
    to: Corner,
    width_bytes: usize,
    height: usize,
}

impl Corner {
    fn side(&self, driver: &Driver, width: usize, height: usize) -> Result<Side> {
        let place = match self.memory_type {
            1 => Place::Host(self.host),
            2 => Place::Device(self.device),
            3 => return Err(Error::unsupported("CUDA arrays are not emulated")),
            4 => unified(driver, self.device),
            other => return Err(Error::value(format!("{other} is no CUmemorytype"))),
        };
        let end = self.x_bytes.checked_add(width);
        if height > 1 && end.is_none_or(|end| end > self.pitch) {
            return Err(Error::value(format!(
                "rows of {width} bytes from byte {} do not fit a pitch of {}",
                self.x_bytes, self.pitch
            )));
        }
        let start = (self.y.checked_mul(self.pitch)).and_then(|y| y.checked_add(self.x_bytes));
        let start = start.ok_or_else(|| Error::value("the rows overflow"))?;
        Ok(Side {
            place: place.after(start)?,
            pitch: self.pitch,
        })
    }
}

fn rectangle(
    driver: &Driver,
    context: &Context,
    rectangle: &In<Rectangle>,
    stream: Handle,
) -> Result<()> {
    let Rectangle {
        from,
        to,
        width_bytes: width,
        height,
    } = rectangle.get()?;
    let copy = Transfer {
        to: to.side(driver, width, height)?,
        from: from.side(driver, width, height)?,
        width,
        height,
    };
    submit(driver, context, stream, Work::Copy(copy))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpy2D_v2(copy: In<Rectangle>) -> CUresult {
    call("cuMemcpy2D", || {
        let (driver, context) = current()?;
        rectangle(&driver, &context, &copy, 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpy2DUnaligned_v2(copy: In<Rectangle>) -> CUresult {
    call("cuMemcpy2DUnaligned", || {
        let (driver, context) = current()?;
        rectangle(&driver, &context, &copy, 0)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuMemcpy2DAsync_v2(copy: In<Rectangle>, stream: Handle) -> CUresult {
    call("cuMemcpy2DAsync", || {
        let (driver, context) = current()?;
        rectangle(&driver, &context, &copy, stream)
    })
}
