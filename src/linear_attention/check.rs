//! The checks of a layer, for the messages of the operation of a name.

use super::Config;
use crate::error::{Error, Result};
use crate::tensor::Layout;

/// What `dk` and `dv` are multiples of: products take eight columns at a time.
const COLUMNS: usize = 8;

/// The checks, for the messages of the operation of this name.
#[derive(Clone, Copy)]
pub(super) struct Check(pub(super) &'static str);

impl Check {
    fn shape(self, tensor: &'static str, expected: String, found: String) -> Error {
        Error::Shape {
            op: self.0,
            tensor,
            expected,
            found,
        }
    }

    pub(super) fn argument(self, argument: &'static str, expected: &str, found: String) -> Error {
        Error::Argument {
            op: self.0,
            argument,
            expected: expected.into(),
            found,
        }
    }

    pub(super) fn sizes<const N: usize>(
        self,
        tensor: &'static str,
        expected: [usize; N],
        found: [usize; N],
    ) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        let (expected, found) = (format!("shape {expected:?}"), format!("shape {found:?}"));
        Err(self.shape(tensor, expected, found))
    }

    /// How many sequences there are.
    pub(super) fn sequences(self, batch: usize, cu_seqlens: Option<Layout<1>>) -> Result<usize> {
        let Some(Layout {
            shape: [starts], ..
        }) = cu_seqlens
        else {
            return Ok(batch);
        };
        if batch != 1 {
            let expected = "a batch of 1 with cu_seqlens".into();
            return Err(self.shape("q", expected, format!("a batch of {batch}")));
        }
        starts.checked_sub(1).ok_or_else(|| {
            let expected = "sequences + 1 elements".into();
            self.shape("cu_seqlens", expected, "no elements".into())
        })
    }

    /// How many of `heads` share one of `of`.
    pub(super) fn shared(self, tensor: &'static str, heads: usize, of: usize) -> Result<i64> {
        if heads == 0 {
            return Ok(1);
        }
        let ratio = heads.checked_div(of).filter(|ratio| ratio * of == heads);
        match ratio.map(i64::try_from) {
            Some(Ok(ratio)) => Ok(ratio),
            _ => {
                let expected = format!("a number of heads that divides the {heads} of out");
                Err(self.shape(tensor, expected, format!("{of} heads")))
            }
        }
    }

    /// Refuses a size without a kernel.
    pub(super) fn multiple(self, name: &str, size: usize, largest: usize) -> Result<()> {
        if size > 0 && size.is_multiple_of(COLUMNS) && size <= largest {
            return Ok(());
        }
        Err(Error::Unsupported {
            op: self.0,
            request: format!("{name} {size}"),
            available: format!("each multiple of {COLUMNS} up to {largest}"),
        })
    }

    pub(super) fn at_most(
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

    pub(super) fn config(self, config: Config) -> Result<()> {
        if config.segment == Some(0) {
            return Err(self.argument("segment", "at least one step", "0".into()));
        }
        match config.normalize {
            // a NaN is in no order
            Some(eps) if !(eps >= 0.0) => {
                let expected = "a number that is not negative";
                Err(self.argument("normalize", expected, eps.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// That outputs are normalised, for a tensor that exists only then.
    pub(super) fn normalized(self, tensor: &'static str, config: Config) -> Result<()> {
        match config.normalize {
            Some(_) => Ok(()),
            None => Err(self.argument(tensor, "none without normalize", "a tensor".into())),
        }
    }

    /// Checks that all strides but the last are multiples of `multiple`, and that the last axis is
    /// contiguous if it has to be; returns the strides, 0 for axes of one element, which the kernels
    /// never step along.
    pub(super) fn strides<const N: usize>(
        self,
        tensor: &'static str,
        layout: &Layout<N>,
        multiple: usize,
        contiguous: bool,
    ) -> Result<[i64; N]> {
        let mut strides = [0; N];
        for axis in (0..N).filter(|&axis| layout.shape[axis] > 1) {
            let stride = layout.strides[axis];
            let (fits, expected) = match contiguous && axis + 1 == N {
                true => (stride == 1, "a last stride of 1".into()),
                false => {
                    let expected = format!("strides that are multiples of {multiple} elements");
                    (stride.is_multiple_of(multiple), expected)
                }
            };
            let (true, Ok(stride)) = (fits, i64::try_from(stride)) else {
                return Err(Error::Layout {
                    op: self.0,
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
