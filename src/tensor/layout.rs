//! [`Layout`]: shape and strides of a tensor, and the arithmetic that keeps its elements in bounds.

use std::ops::Range;

use crate::error::{Error, Result};

/// Shape and strides, in elements, of a tensor of `N` axes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Layout<const N: usize> {
    pub(crate) shape: [usize; N],
    pub(crate) strides: [usize; N],
}

impl<const N: usize> Layout<N> {
    /// The row-major layout of `shape`; `None` if its strides do not fit `usize`.
    pub(crate) fn contiguous(shape: [usize; N]) -> Option<Self> {
        let mut strides = [1usize; N];
        for axis in (1..N).rev() {
            strides[axis - 1] = strides[axis].checked_mul(shape[axis].max(1))?;
        }
        Some(Self { shape, strides })
    }

    /// Whether index after index of an axis lies side by side.
    pub(crate) fn is_contiguous_along(&self, axis: usize) -> bool {
        self.shape[axis] <= 1 || self.strides[axis] == 1
    }

    /// The stride of an axis as kernels count it, 0 where there is nothing to step over; `None` if it is too
    /// large.
    pub(crate) fn step(&self, axis: usize) -> Option<i64> {
        match self.shape[axis] {
            0 | 1 => Some(0),
            _ => i64::try_from(self.strides[axis]).ok(),
        }
    }

    /// The same elements with the last two axes swapped.
    pub(crate) fn transposed(mut self) -> Self {
        if let Some(last) = N.checked_sub(2) {
            self.shape[last..].reverse();
            self.strides[last..].reverse();
        }
        self
    }

    /// The indices of `axis` in `range`, and the offset of the first of them.
    pub(crate) fn narrow(mut self, axis: usize, range: Range<usize>) -> Result<(Self, usize)> {
        let size = self.shape.get(axis).copied();
        if range.start > range.end || size.is_none_or(|size| range.end > size) {
            return Err(Error::Argument {
                op: "narrow",
                argument: "range",
                expected: format!("indices of an axis of shape {:?}", self.shape),
                found: format!("{range:?} of axis {axis}"),
            });
        }
        self.shape[axis] = range.len();
        // an empty view has no elements to be off from; of others, the offset is one that they can reach
        let offset = match self.shape.contains(&0) {
            true => 0,
            false => range.start * self.strides[axis],
        };
        Ok((self, offset))
    }

    /// Elements from the first to the last reachable one; 0 for an empty tensor, `None` if the
    /// number does not fit `usize`.
    pub(crate) fn extent(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut last = 0usize;
        for (size, stride) in self.shape.iter().zip(self.strides) {
            last = last.checked_add((size - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }

    /// Checks that every reachable element lies in a buffer of `available` elements.
    pub(crate) fn within(self, available: usize) -> Result<Self> {
        match self.extent() {
            Some(needed) if needed <= available => Ok(self),
            needed => Err(Error::OutOfBounds {
                shape: self.shape.to_vec(),
                strides: self.strides.to_vec(),
                needed: needed.unwrap_or(usize::MAX),
                available,
            }),
        }
    }

    /// Checks that no two indices reach one element.
    ///
    /// Sufficient, not necessary: every stride must exceed the reach of all smaller ones, which
    /// holds for each permutation, slice or padding of a contiguous tensor.
    pub(crate) fn injective(self) -> Result<Self> {
        if self.shape.contains(&0) {
            return Ok(self);
        }
        let mut axes: Vec<(usize, usize)> = (0..N)
            .filter(|&axis| self.shape[axis] > 1)
            .map(|axis| (self.strides[axis], self.shape[axis]))
            .collect();
        axes.sort_unstable();
        let mut reach = 0usize;
        for (stride, size) in axes {
            let step = (size - 1).checked_mul(stride);
            let next = step.and_then(|step| reach.checked_add(step));
            match next {
                Some(next) if stride > reach => reach = next,
                _ => {
                    return Err(Error::SelfOverlap {
                        shape: self.shape.to_vec(),
                        strides: self.strides.to_vec(),
                    });
                }
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout<const N: usize>(shape: [usize; N], strides: [usize; N]) -> Layout<N> {
        Layout { shape, strides }
    }

    #[test]
    fn contiguous_strides_are_row_major() {
        assert_eq!(Layout::contiguous([2, 3, 4]).unwrap().strides, [12, 4, 1]);
        assert_eq!(Layout::contiguous([5]).unwrap().strides, [1]);
        // an empty axis must not make the strides of the others zero
        assert_eq!(Layout::contiguous([2, 0, 4]).unwrap().strides, [4, 4, 1]);
        assert_eq!(Layout::contiguous([2, usize::MAX, 2]), None);
    }

    #[test]
    fn narrow_keeps_the_indices_of_a_range() {
        let dense = layout([4, 6], [6, 1]);
        let part = |axis, range| dense.narrow(axis, range).unwrap();
        assert_eq!(part(1, 2..5), (layout([4, 3], [6, 1]), 2));
        assert_eq!(part(0, 3..4), (layout([1, 6], [6, 1]), 18));
        assert_eq!(part(0, 4..4), (layout([0, 6], [6, 1]), 0));
        for (axis, range) in [
            (0, 0..5),
            (1, 6..7),
            (2, 0..1),
            (0, Range { start: 3, end: 2 }),
        ] {
            let text = dense.narrow(axis, range).unwrap_err().to_string();
            assert!(
                text.contains("indices of an axis of shape [4, 6]"),
                "{text}"
            );
        }
    }

    #[test]
    fn extent_counts_to_the_last_reachable_element() {
        let cases = [
            (layout([2, 3], [3, 1]), Some(6)),
            (layout([2, 3], [10, 1]), Some(13)),
            (layout([2, 3], [0, 1]), Some(3)),
            (layout([0, 3], [usize::MAX, 1]), Some(0)),
            (layout([1, 1], [usize::MAX, usize::MAX]), Some(1)),
            (layout([3, 1], [usize::MAX / 2, 1]), Some(usize::MAX)),
            (layout([3, 2], [usize::MAX / 2, 1]), None),
            (layout([4, 1], [usize::MAX / 2, 1]), None),
        ];
        for (layout, extent) in cases {
            assert_eq!(layout.extent(), extent, "{layout:?}");
        }
    }

    #[test]
    fn a_view_may_fill_its_buffer_but_not_leave_it() {
        let view = layout([4, 8], [16, 1]);
        assert_eq!(view.within(56), Ok(view));
        let error = view.within(55).unwrap_err();
        let text = "a tensor of shape [4, 8] with strides [16, 1] needs 56 elements, \
                    its buffer has 55";
        assert_eq!(error.to_string(), text);
        assert!(layout([9], [usize::MAX / 4]).within(usize::MAX).is_err());
    }

    #[test]
    fn tensors_to_write_reach_no_element_twice() {
        let good = [
            layout([2, 3, 4], [12, 4, 1]),
            layout([2, 3, 4], [4, 8, 1]), // the two outer axes swapped
            layout([2, 3, 4], [100, 30, 5]), // padded
            layout([1, 3, 1], [0, 1, 0]), // an axis of one element may have any stride
            layout([0, 3, 2], [0, 0, 0]), // nothing is written
        ];
        for layout in good {
            assert_eq!(layout.injective(), Ok(layout));
        }
        let bad = [
            layout([2, 3, 4], [0, 4, 1]), // broadcast
            layout([2, 3, 4], [12, 3, 1]),
            layout([2, 1, 4], [3, 1, 1]),
            layout([2, 3, usize::MAX], [1, 2, 7]),
        ];
        for layout in bad {
            assert!(layout.injective().is_err(), "{layout:?}");
        }
    }
}
