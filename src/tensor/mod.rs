//! Tensors on the device: [`Tensor`] owns its elements, [`TensorRef`] and [`TensorMut`] view them.
//!
//! A view's bounds are checked once, in its constructor; everything behind it trusts them.

mod layout;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

pub use crate::abi::Dtype;
use crate::error::{Error, Result};
pub(crate) use layout::Layout;

mod sealed {
    pub trait Sealed {}
}

/// A type that tensors can hold: `f16`, `bf16`, `f32`, `i32` or `u8`.
pub trait Element:
    sealed::Sealed
    + DeviceRepr
    + ValidAsZeroBits
    + Copy
    + Default
    + PartialEq
    + fmt::Debug
    + Send
    + Sync
    + 'static
{
    /// The type's name in the table of kernels.
    const DTYPE: Dtype;
}

/// An [`Element`] that is a floating-point number: `f16`, `bf16` or `f32`.
pub trait Float: Element {}

/// A [`Float`] of 16 bits that tensor cores multiply: `f16` or `bf16`.
pub trait Half: Float {}

macro_rules! elements {
    ($($element:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $element {}
        impl Element for $element {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}
elements!(f16 => F16, bf16 => BF16, f32 => F32, i32 => I32, u8 => U8);
impl Float for f16 {}
impl Float for bf16 {}
impl Float for f32 {}
impl Half for f16 {}
impl Half for bf16 {}

/// A contiguous, row-major tensor of `N` axes that owns its device memory.
///
/// ```no_run
/// use seqmix::Tensor;
/// # fn main() -> seqmix::Result<()> {
/// let stream = seqmix::context(0)?.default_stream();
/// let x = Tensor::from_host(&stream, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
/// assert_eq!(x.to_host(&stream)?[4], 5.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Tensor<T, const N: usize> {
    slice: CudaSlice<T>,
    layout: Layout<N>,
}

impl<T: Element, const N: usize> Tensor<T, N> {
    /// Copies `data`, in row-major order, to the device.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` does not have as many elements as `shape`; driver errors.
    pub fn from_host(stream: &Arc<CudaStream>, data: &[T], shape: [usize; N]) -> Result<Self> {
        let layout = whole("Tensor::from_host", shape)?;
        if layout.extent() != Some(data.len()) {
            return Err(Error::Shape {
                op: "Tensor::from_host",
                tensor: "data",
                expected: format!("the element count of shape {shape:?}"),
                found: format!("{} elements", data.len()),
            });
        }
        if data.is_empty() {
            return Self::zeros(stream, shape);
        }
        let slice = stream.clone_htod(data)?;
        Ok(Self { slice, layout })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// Driver errors, e.g. out of memory.
    pub fn zeros(stream: &Arc<CudaStream>, shape: [usize; N]) -> Result<Self> {
        let layout = whole("Tensor::zeros", shape)?;
        // the driver refuses allocations of no bytes
        let len = layout.extent().unwrap_or(usize::MAX).max(1);
        let slice = stream.alloc_zeros(len)?;
        Ok(Self { slice, layout })
    }

    /// The elements in row-major order; waits until the stream has written them.
    ///
    /// # Errors
    /// Driver errors, also those of earlier work on the stream.
    pub fn to_host(&self, stream: &Arc<CudaStream>) -> Result<Vec<T>> {
        let len = self.layout.extent().unwrap_or(0);
        let mut host = vec![T::default(); len];
        if len > 0 {
            stream.memcpy_dtoh(&self.slice.slice(..len), &mut host)?;
        }
        stream.synchronize()?;
        Ok(host)
    }

    /// The whole tensor, to read.
    pub fn view(&self) -> TensorRef<'_, T, N> {
        TensorRef {
            slice: self.slice.as_view(),
            layout: self.layout,
        }
    }

    /// The whole tensor, to write.
    pub fn view_mut(&mut self) -> TensorMut<'_, T, N> {
        TensorMut {
            slice: self.slice.as_view_mut(),
            layout: self.layout,
        }
    }
}

impl<T, const N: usize> Tensor<T, N> {
    /// Elements along each axis.
    pub fn shape(&self) -> [usize; N] {
        self.layout.shape
    }
}

/// The contiguous layout of a tensor that is to be allocated; its byte count fits `isize`.
fn whole<const N: usize>(op: &'static str, shape: [usize; N]) -> Result<Layout<N>> {
    Layout::contiguous(shape)
        .filter(|layout| {
            layout
                .extent()
                .is_some_and(|extent| extent <= (isize::MAX as usize) / 16)
        })
        .ok_or_else(|| Error::Shape {
            op,
            tensor: "shape",
            expected: "a size that fits the address space".into(),
            found: format!("{shape:?}"),
        })
}

/// A strided view to read. Every element it can reach lies in its slice.
#[derive(Debug)]
pub struct TensorRef<'a, T, const N: usize> {
    slice: CudaView<'a, T>,
    layout: Layout<N>,
}

impl<T, const N: usize> Clone for TensorRef<'_, T, N> {
    fn clone(&self) -> Self {
        Self {
            slice: self.slice.slice(..),
            layout: self.layout,
        }
    }
}

impl<'a, T, const N: usize> TensorRef<'a, T, N> {
    /// Views `slice` with `strides` in elements. A stride of 0 repeats an axis.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if an element would lie outside the slice.
    pub fn new(slice: CudaView<'a, T>, shape: [usize; N], strides: [usize; N]) -> Result<Self> {
        let layout = Layout { shape, strides }.within(slice.len())?;
        Ok(Self { slice, layout })
    }

    /// Views the start of `slice` as a row-major tensor.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the slice has fewer elements than `shape`.
    pub fn contiguous(slice: CudaView<'a, T>, shape: [usize; N]) -> Result<Self> {
        let layout = row_major(shape, slice.len())?;
        Ok(Self { slice, layout })
    }

    /// The same elements with the last two axes swapped.
    #[must_use]
    pub fn transposed(self) -> Self {
        let layout = self.layout.transposed();
        Self { layout, ..self }
    }

    /// The indices of `axis` in `range`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such axis, or one that is shorter.
    pub fn narrow(self, axis: usize, range: Range<usize>) -> Result<Self> {
        let (layout, offset) = self.layout.narrow(axis, range)?;
        let slice = self.slice.slice(offset..);
        Ok(Self { slice, layout })
    }

    /// The same memory, from the first element on, with another shape and other strides: so an axis of one
    /// element appears or goes, two axes become one, or one stands for many with a stride of 0.
    ///
    /// # Errors
    /// As [`TensorRef::new`].
    pub fn as_strided<const M: usize>(
        self,
        shape: [usize; M],
        strides: [usize; M],
    ) -> Result<TensorRef<'a, T, M>> {
        TensorRef::new(self.slice, shape, strides)
    }

    /// Elements along each axis.
    pub fn shape(&self) -> [usize; N] {
        self.layout.shape
    }

    /// Elements from one index of each axis to the next.
    pub fn strides(&self) -> [usize; N] {
        self.layout.strides
    }

    pub(crate) fn layout(&self) -> Layout<N> {
        self.layout
    }

    pub(crate) fn slice(&self) -> &CudaView<'a, T> {
        &self.slice
    }
}

/// A strided view to write. Every element it can reach lies in its slice, and no two indices
/// reach one element.
#[derive(Debug)]
pub struct TensorMut<'a, T, const N: usize> {
    slice: CudaViewMut<'a, T>,
    layout: Layout<N>,
}

impl<'a, T, const N: usize> TensorMut<'a, T, N> {
    /// Views `slice` with `strides` in elements.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if an element would lie outside the slice, [`Error::SelfOverlap`] if
    /// two indices may reach one element.
    pub fn new(slice: CudaViewMut<'a, T>, shape: [usize; N], strides: [usize; N]) -> Result<Self> {
        let layout = Layout { shape, strides }.within(slice.len())?.injective()?;
        Ok(Self { slice, layout })
    }

    /// Views the start of `slice` as a row-major tensor.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the slice has fewer elements than `shape`.
    pub fn contiguous(slice: CudaViewMut<'a, T>, shape: [usize; N]) -> Result<Self> {
        let layout = row_major(shape, slice.len())?;
        Ok(Self { slice, layout })
    }

    /// The same elements, to read for a while.
    pub fn view(&self) -> TensorRef<'_, T, N> {
        TensorRef {
            slice: self.slice.as_view(),
            layout: self.layout,
        }
    }

    /// The same elements, to write for a while.
    pub fn reborrow(&mut self) -> TensorMut<'_, T, N> {
        TensorMut {
            slice: self.slice.slice_mut(..),
            layout: self.layout,
        }
    }

    /// The same elements with the last two axes swapped.
    #[must_use]
    pub fn transposed(self) -> Self {
        let layout = self.layout.transposed();
        Self { layout, ..self }
    }

    /// The indices of `axis` in `range`, to write for a while.
    ///
    /// # Errors
    /// As [`TensorRef::narrow`].
    pub fn narrow(&mut self, axis: usize, range: Range<usize>) -> Result<TensorMut<'_, T, N>> {
        let (layout, offset) = self.layout.narrow(axis, range)?;
        let slice = self.slice.slice_mut(offset..);
        Ok(TensorMut { slice, layout })
    }

    /// The same memory, from the first element on, with another shape and other strides.
    ///
    /// # Errors
    /// As [`TensorMut::new`].
    pub fn as_strided<const M: usize>(
        self,
        shape: [usize; M],
        strides: [usize; M],
    ) -> Result<TensorMut<'a, T, M>> {
        TensorMut::new(self.slice, shape, strides)
    }

    /// Elements along each axis.
    pub fn shape(&self) -> [usize; N] {
        self.layout.shape
    }

    /// Elements from one index of each axis to the next.
    pub fn strides(&self) -> [usize; N] {
        self.layout.strides
    }

    pub(crate) fn layout(&self) -> Layout<N> {
        self.layout
    }

    pub(crate) fn slice_mut(&mut self) -> &mut CudaViewMut<'a, T> {
        &mut self.slice
    }
}

/// The contiguous layout of a view of `available` elements.
fn row_major<const N: usize>(shape: [usize; N], available: usize) -> Result<Layout<N>> {
    match Layout::contiguous(shape) {
        Some(layout) => layout.within(available),
        None => Err(Error::OutOfBounds {
            shape: shape.to_vec(),
            strides: Vec::new(),
            needed: usize::MAX,
            available,
        }),
    }
}
