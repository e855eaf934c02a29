//! [`Check`]: what operations ask of the tensors of a call, and the errors that say so. Pure.

use crate::error::{Error, Result};
use crate::tensor::Layout;

/// Checks whose errors name an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) op: &'static str,
}

impl Check {
    /// A tensor whose sizes do not agree.
    pub(crate) fn shape(
        self,
        tensor: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Shape {
            op: self.op,
            tensor,
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// A tensor that lies so that no kernel takes it.
    pub(crate) fn layout<const N: usize>(
        self,
        tensor: &'static str,
        expected: impl Into<String>,
        layout: &Layout<N>,
    ) -> Error {
        let Layout { shape, strides } = layout;
        Error::Layout {
            op: self.op,
            tensor,
            expected: expected.into(),
            found: format!("shape {shape:?} with strides {strides:?}"),
        }
    }

    /// A number or an option outside its range.
    pub(crate) fn argument(
        self,
        argument: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Argument {
            op: self.op,
            argument,
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// What there is no kernel for.
    pub(crate) fn unsupported(
        self,
        request: impl Into<String>,
        available: impl Into<String>,
    ) -> Error {
        Error::Unsupported {
            op: self.op,
            request: request.into(),
            available: available.into(),
        }
    }

    /// Checks that a tensor has this shape.
    pub(crate) fn sizes<const N: usize>(
        self,
        tensor: &'static str,
        expected: [usize; N],
        found: [usize; N],
    ) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        let [expected, found] = [expected, found].map(|sizes| format!("shape {sizes:?}"));
        Err(self.shape(tensor, expected, found))
    }

    /// Checks that a tensor has at most so many of something.
    pub(crate) fn at_most(
        self,
        tensor: &'static str,
        found: usize,
        most: usize,
        what: &str,
    ) -> Result<()> {
        if found <= most {
            return Ok(());
        }
        let expected = format!("at most {most} {what}");
        Err(self.shape(tensor, expected, format!("{found} {what}")))
    }

    /// Refuses a size without a kernel: there are some for the multiples of `factor` up to `largest`.
    pub(crate) fn multiple(
        self,
        name: &str,
        size: usize,
        factor: usize,
        largest: usize,
    ) -> Result<()> {
        if size > 0 && size.is_multiple_of(factor) && size <= largest {
            return Ok(());
        }
        let available = format!("each multiple of {factor} up to {largest}");
        Err(self.unsupported(format!("{name} {size}"), available))
    }

    /// The same where there are some for each from 1 to `largest`.
    pub(crate) fn within(self, name: &str, size: usize, largest: usize) -> Result<()> {
        if (1..=largest).contains(&size) {
            return Ok(());
        }
        let available = format!("each from 1 to {largest}");
        Err(self.unsupported(format!("{name} {size}"), available))
    }

    /// How many of `heads`, the heads of the tensor `whole`, share one of `parts`, which `tensor` has and which
    /// are called `what`. 1 where there are no heads.
    pub(crate) fn heads_per(
        self,
        (tensor, parts, what): (&'static str, usize, &str),
        (whole, heads): (&str, usize),
    ) -> Result<usize> {
        if heads == 0 {
            return Ok(1);
        }
        let ratio = heads.checked_div(parts);
        ratio.filter(|ratio| ratio * parts == heads).ok_or_else(|| {
            let expected = format!("a number of {what} that divides the {heads} heads of {whole}");
            self.shape(tensor, expected, format!("{parts} {what}"))
        })
    }

    /// How many sequences a call has: those that `cu_seqlens` delimits in one row of the batch, or its rows.
    /// `alone` says that `tensor` has to have one row then.
    pub(crate) fn sequences(
        self,
        (tensor, batch): (&'static str, usize),
        cu_seqlens: Option<&Layout<1>>,
        alone: &str,
    ) -> Result<usize> {
        let Some(cu_seqlens) = cu_seqlens else {
            return Ok(batch);
        };
        if batch != 1 {
            return Err(self.shape(tensor, alone, format!("a batch of {batch}")));
        }
        let sequences = cu_seqlens.shape[0].checked_sub(1);
        sequences.ok_or_else(|| self.shape("cu_seqlens", "sequences + 1 elements", "no elements"))
    }

    /// Checks a vector that kernels read without a stride.
    pub(crate) fn contiguous(self, tensor: &'static str, layout: &Layout<1>) -> Result<()> {
        match layout.is_contiguous_along(0) {
            true => Ok(()),
            false => Err(self.layout(tensor, "a stride of 1", layout)),
        }
    }

    /// The stride of an axis in the kernels' type; 0 along axes of one element, which they never step along.
    pub(crate) fn stride<const N: usize>(
        self,
        tensor: &'static str,
        layout: &Layout<N>,
        axis: usize,
    ) -> Result<i64> {
        layout
            .step(axis)
            .ok_or_else(|| self.layout(tensor, "strides below 2^63", layout))
    }

    /// [`Check::stride`] of all axes.
    pub(crate) fn strides<const N: usize>(
        self,
        tensor: &'static str,
        layout: &Layout<N>,
    ) -> Result<[i64; N]> {
        let mut strides = [0; N];
        for (axis, stride) in strides.iter_mut().enumerate() {
            *stride = self.stride(tensor, layout, axis)?;
        }
        Ok(strides)
    }

    /// The same of a tensor whose last axis is contiguous, and whose other strides are multiples of `multiple`.
    pub(crate) fn row_strides<const N: usize>(
        self,
        tensor: &'static str,
        layout: &Layout<N>,
        multiple: usize,
    ) -> Result<[i64; N]> {
        let mut strides = [0; N];
        for axis in (0..N).filter(|&axis| layout.shape[axis] > 1) {
            let stride = layout.strides[axis];
            let (fits, expected) = match axis + 1 == N {
                true => (stride == 1, "a last stride of 1".into()),
                false => {
                    let expected = format!("strides that are multiples of {multiple} elements");
                    (stride.is_multiple_of(multiple), expected)
                }
            };
            let (true, Ok(stride)) = (fits, i64::try_from(stride)) else {
                return Err(Error::Layout {
                    op: self.op,
                    tensor,
                    expected,
                    found: format!("strides {:?}", layout.strides),
                });
            };
            strides[axis] = stride;
        }
        Ok(strides)
    }
}
