//! The ops of this crate as plain `f64` loops by their formulas, to judge the kernels by.
//!
//! One file an op, one loop an index of the formula; no SIMD, no threads, no cleverness. These functions are
//! slow and depend on nothing else in the crate. They are public so that a caller can check a kernel's result
//! on their own data.

pub mod attention;
pub mod causal_conv1d;
#[cfg(test)]
mod differences;
pub mod gated_attention_unit;
pub mod gemm;
pub mod linear_attention;
pub mod lru;
mod matrix;
mod pointwise;
pub mod rwkv4;
pub mod rwkv7;
pub mod selective_scan;
pub mod ssd;

use std::ops::Range;

/// A size of an input that does not fit the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Which size, in words.
    pub what: &'static str,
    /// What the other sizes ask for.
    pub expected: usize,
    /// What was given.
    pub found: usize,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            what,
            expected,
            found,
        } = self;
        write!(f, "{what}: expected {expected}, found {found}")
    }
}

impl std::error::Error for Mismatch {}

/// `Ok` if `found` elements are what a tensor of these `sizes` holds.
fn check_length(what: &'static str, sizes: &[usize], found: usize) -> Result<(), Mismatch> {
    let expected = sizes
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(size));
    match expected {
        Some(expected) if expected == found => Ok(()),
        _ => Err(Mismatch {
            what,
            expected: expected.unwrap_or(usize::MAX),
            found,
        }),
    }
}

/// As [`check_length`], for a tensor that may be absent.
fn check_optional<T>(
    what: &'static str,
    sizes: &[usize],
    tensor: Option<&[T]>,
) -> Result<(), Mismatch> {
    tensor.map_or(Ok(()), |tensor| check_length(what, sizes, tensor.len()))
}

/// `Ok` if `groups` groups of equal size make `members`; both with their names.
fn check_groups(
    (members_name, members): (&'static str, usize),
    (groups_name, groups): (&'static str, usize),
) -> Result<(), Mismatch> {
    if groups == 0 && members > 0 {
        return Err(Mismatch {
            what: groups_name,
            expected: 1,
            found: 0,
        });
    }
    if groups > 0 && members % groups != 0 {
        return Err(Mismatch {
            what: members_name,
            expected: members.saturating_add(groups - members % groups),
            found: members,
        });
    }
    Ok(())
}

/// The total of cumulative lengths, which begin at 0 and never fall.
fn check_lengths(cu_seqlens: &[usize]) -> Result<usize, Mismatch> {
    let mut last = 0;
    for (b, &length) in cu_seqlens.iter().enumerate() {
        if b == 0 && length != 0 {
            return Err(Mismatch {
                what: "first of cu_seqlens",
                expected: 0,
                found: length,
            });
        }
        if length < last {
            return Err(Mismatch {
                what: "cu_seqlens, which may not fall",
                expected: last,
                found: length,
            });
        }
        last = length;
    }
    Ok(last)
}

/// Where one sequence lies in tensors that have an axis `batch` and one of `seqlen` steps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sequence {
    batch: usize,
    steps: Range<usize>,
}

/// The sequences of a batch: each row is one, or, with `cu_seqlens`, the only row holds them one after the other.
fn sequences(
    batch: usize,
    seqlen: usize,
    cu_seqlens: Option<&[usize]>,
) -> Result<Vec<Sequence>, Mismatch> {
    let Some(cu_seqlens) = cu_seqlens else {
        let rows = (0..batch).map(|batch| Sequence {
            batch,
            steps: 0..seqlen,
        });
        return Ok(rows.collect());
    };
    check_length("batch of packed sequences", &[1], batch)?;
    check_length("last of cu_seqlens", &[seqlen], check_lengths(cu_seqlens)?)?;
    let packed = cu_seqlens.windows(2).map(|ends| Sequence {
        batch: 0,
        steps: ends[0]..ends[1],
    });
    Ok(packed.collect())
}
