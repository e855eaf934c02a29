//! What A, B, C and the state of a scan consist of.

use std::ops::{Add, Mul};

use num_complex::Complex64;

/// A real or a complex number.
///
/// Complex states come in conjugate pairs, since inputs and outputs are real; only one of each pair is computed, and
/// the other one counts in the factor [`READOUT`](Self::READOUT): Gu et al., "On the Parameterization and
/// Initialization of Diagonal State Space Models", 2022, section 3.
///
/// The gradient of a real function with respect to a complex number is that of its real part plus `i` times that of
/// its imaginary part, as in PyTorch: the direction of steepest ascent.
pub trait Number:
    Copy
    + Default
    + std::fmt::Debug
    + Add<Output = Self>
    + Mul<Output = Self>
    + Mul<f64, Output = Self>
    + sealed::Sealed
{
    /// How many states one number stands for in the output: 1 for a real one, 2 for a complex one.
    const READOUT: f64;
    /// The exponential function.
    fn exp(self) -> Self;
    /// The complex conjugate; a real number is its own.
    fn conj(self) -> Self;
    /// The real part.
    fn re(self) -> f64;
    /// The real and the imaginary part, each through `f`.
    fn map(self, f: impl Fn(f64) -> f64) -> Self;
}

mod sealed {
    /// Keeps the implementations to those of this crate.
    pub trait Sealed {}
    impl Sealed for f64 {}
    impl Sealed for num_complex::Complex64 {}
}

impl Number for f64 {
    const READOUT: f64 = 1.0;
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn conj(self) -> Self {
        self
    }
    fn re(self) -> f64 {
        self
    }
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        f(self)
    }
}

impl Number for Complex64 {
    const READOUT: f64 = 2.0;
    fn exp(self) -> Self {
        Complex64::exp(self)
    }
    fn conj(self) -> Self {
        Complex64::conj(&self)
    }
    fn re(self) -> f64 {
        self.re
    }
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Complex64::new(f(self.re), f(self.im))
    }
}
