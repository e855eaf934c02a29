//! The ops of this crate as plain `f64` loops by their formulas, to judge the kernels by.
//!
//! One file an op, one loop an index of the formula; no SIMD, no threads, no cleverness. These functions are
//! slow and depend on nothing else in the crate. They are public so that a caller can check a kernel's result
//! on their own data.

pub mod attention;
pub mod gemm;

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
