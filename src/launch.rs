//! [`Kernel`] and [`Launch`]: the only place where kernels are launched.
//!
//! A launch collects the tensors that its kernel reads and writes, checks what every operation
//! needs of them (one context, aligned addresses, outputs that overlap nothing), and holds cudarc's
//! guards until the kernel is queued, so that other streams wait where they must.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute as Attribute;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr,
    DeviceSlice, LaunchConfig, PushKernelArg, SyncOnDrop,
};

use crate::abi::Entry;
use crate::error::{Error, Result};
use crate::tensor::{Element, TensorMut, TensorRef};

/// Dynamic shared memory that a kernel may use without being asked for.
const SHARED_BYTES_WITHOUT_OPT_IN: usize = 48 << 10;

/// Blocks along x, y and z that every device allows.
const GRID_LIMITS: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];

/// A loaded kernel that takes the parameter struct `P`.
#[derive(Debug)]
pub(crate) struct Kernel<P> {
    function: CudaFunction,
    threads: u32,
    shared_bytes: u32,
    params: PhantomData<fn(P)>,
}

impl<P: DeviceRepr> Kernel<P> {
    /// Looks up `entry` in `module` and allows it its shared memory.
    pub(crate) fn load(module: &Arc<CudaModule>, entry: &Entry) -> Result<Self> {
        let function = module.load_function(&entry.name)?;
        if entry.shared_bytes > SHARED_BYTES_WITHOUT_OPT_IN {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // the abi's unit tests keep it below 2^31
            function.set_attribute(attribute, entry.shared_bytes as i32)?;
        }
        Ok(Self {
            function,
            threads: entry.threads,
            shared_bytes: entry.shared_bytes as u32,
            params: PhantomData,
        })
    }
}

/// A kernel launch in the making.
pub(crate) struct Launch<'a> {
    op: &'static str,
    stream: &'a Arc<CudaStream>,
    regions: Vec<Region>,
    /// Dropped after the launch: each then records that its tensor was used.
    guards: Vec<SyncOnDrop<'a>>,
}

/// The memory that one tensor can reach.
#[derive(Clone, Debug, PartialEq)]
struct Region {
    tensor: &'static str,
    bytes: Range<u64>,
    written: bool,
}

impl<'a> Launch<'a> {
    /// A launch of the operation `op`, whose name messages show, on `stream`.
    pub(crate) fn new(op: &'static str, stream: &'a Arc<CudaStream>) -> Self {
        Self {
            op,
            stream,
            regions: Vec::new(),
            guards: Vec::new(),
        }
    }

    pub(crate) fn op(&self) -> &'static str {
        self.op
    }

    /// Checks that `object`, which belongs to `ctx`, can be used on the stream.
    pub(crate) fn same_context(&self, object: &'static str, ctx: &Arc<CudaContext>) -> Result<()> {
        if ctx != self.stream.context() {
            return Err(Error::Context {
                op: self.op,
                object,
            });
        }
        Ok(())
    }

    /// The address of a tensor that the kernel reads, a multiple of `alignment`.
    pub(crate) fn read<T: Element, const N: usize>(
        &mut self,
        name: &'static str,
        tensor: &'a TensorRef<'_, T, N>,
        alignment: u64,
    ) -> Result<u64> {
        self.same_context(name, tensor.slice().stream().context())?;
        let (address, guard) = tensor.slice().device_ptr(self.stream);
        self.guards.push(guard);
        let elements = tensor.layout().extent().unwrap_or(usize::MAX);
        self.region::<T>(name, address, elements, alignment, false)
    }

    /// The address of a tensor that the kernel writes, a multiple of `alignment`.
    pub(crate) fn write<T: Element, const N: usize>(
        &mut self,
        name: &'static str,
        tensor: &'a mut TensorMut<'_, T, N>,
        alignment: u64,
    ) -> Result<u64> {
        let elements = tensor.layout().extent().unwrap_or(usize::MAX);
        let slice = tensor.slice_mut();
        self.same_context(name, slice.stream().context())?;
        let (address, guard) = slice.device_ptr_mut(self.stream);
        self.guards.push(guard);
        self.region::<T>(name, address, elements, alignment, true)
    }

    fn region<T: Element>(
        &mut self,
        tensor: &'static str,
        address: u64,
        elements: usize,
        alignment: u64,
        written: bool,
    ) -> Result<u64> {
        if elements > 0 && !address.is_multiple_of(alignment) {
            return Err(Error::Layout {
                op: self.op,
                tensor,
                expected: format!("an address that is a multiple of {alignment} bytes"),
                found: format!("address {address:#x}"),
            });
        }
        let bytes = elements.saturating_mul(size_of::<T>()) as u64;
        self.regions.push(Region {
            tensor,
            bytes: address..address.saturating_add(bytes),
            written,
        });
        Ok(address)
    }

    /// Checks that nothing that is written overlaps anything else: all that is left to do where there is
    /// no element to compute.
    pub(crate) fn check(&self) -> Result<()> {
        disjoint(self.op, &self.regions)
    }

    /// Queues a kernel; a launch of several kernels queues one after the other.
    ///
    /// # Errors
    /// An output overlaps another tensor, the grid is too large, or the driver refuses.
    ///
    /// # Safety
    /// With `params`, every block of `grid` must access only elements that the tensors given to
    /// [`Self::read`] and [`Self::write`] can reach, and write only the latter.
    pub(crate) unsafe fn run<P: DeviceRepr>(
        &self,
        kernel: &Kernel<P>,
        grid: [usize; 3],
        params: &P,
    ) -> Result<()> {
        self.check()?;
        let grid_dim = grid_dim(self.op, grid)?;
        let config = LaunchConfig {
            grid_dim,
            block_dim: (kernel.threads, 1, 1),
            shared_mem_bytes: kernel.shared_bytes,
        };
        let mut launch = self.stream.launch_builder(&kernel.function);
        launch.arg(params);
        // SAFETY: `Kernel<P>` ties the function to the struct that it takes (the stub asserts its
        // layout); that the kernel stays within the tensors is this function's own condition; the
        // guards in `self` outlive this call.
        unsafe { launch.launch(config) }?;
        Ok(())
    }
}

/// Checks that nothing that is written overlaps anything else.
fn disjoint(op: &'static str, regions: &[Region]) -> Result<()> {
    for (index, output) in regions.iter().enumerate().filter(|(_, r)| r.written) {
        for (other_index, other) in regions.iter().enumerate() {
            let overlap =
                output.bytes.start.max(other.bytes.start) < output.bytes.end.min(other.bytes.end);
            if overlap && index != other_index {
                return Err(Error::Overlap {
                    op,
                    output: output.tensor,
                    other: other.tensor,
                });
            }
        }
    }
    Ok(())
}

/// The grid in the driver's type, within the limits of every device.
fn grid_dim(op: &'static str, grid: [usize; 3]) -> Result<(u32, u32, u32)> {
    for (axis, (blocks, limit)) in ["x", "y", "z"]
        .into_iter()
        .zip(grid.into_iter().zip(GRID_LIMITS))
    {
        if blocks > limit {
            return Err(Error::Unsupported {
                op,
                request: format!("{blocks} blocks along {axis} of the grid"),
                available: format!("room for {limit}"),
            });
        }
    }
    Ok((grid[0] as u32, grid[1] as u32, grid[2] as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(tensor: &'static str, bytes: Range<u64>, written: bool) -> Region {
        Region {
            tensor,
            bytes,
            written,
        }
    }

    #[test]
    fn inputs_may_overlap_and_outputs_may_not() {
        let q = region("q", 0..100, false);
        let k = region("k", 50..150, false);
        let out = region("out", 150..200, true);
        let lse = region("lse", 200..210, true);
        let empty = region("empty", 160..160, true);
        assert_eq!(
            disjoint("op", &[q.clone(), k.clone(), out.clone(), lse, empty]),
            Ok(())
        );

        let in_place = region("out", 99..120, true);
        let error = disjoint("op", &[q, in_place]).unwrap_err();
        let text = "op: out overlaps q in memory; outputs need memory of their own";
        assert_eq!(error.to_string(), text);

        let lse = region("lse", 199..210, true);
        assert!(disjoint("op", &[out, lse]).is_err());
    }

    #[test]
    fn grids_stay_within_what_every_device_allows() {
        assert_eq!(
            grid_dim("op", [1 << 20, 65_535, 1]),
            Ok((1 << 20, 65_535, 1))
        );
        for grid in [[1 << 31, 1, 1], [1, 65_536, 1], [1, 1, 65_536]] {
            assert!(grid_dim("op", grid).is_err(), "{grid:?}");
        }
        let text = grid_dim("op", [1, 65_536, 1]).unwrap_err().to_string();
        assert_eq!(
            text,
            "op: no kernel for 65536 blocks along y of the grid; there is room for 65535"
        );
    }
}
