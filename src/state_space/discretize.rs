//! From continuous to discrete time.

use num_complex::Complex64;

use super::{Dense, SquareMatrix};

/// How `x' = A x + B u` becomes `x[t] = Ad x[t-1] + Bd u[t]` over a step of length `dt`: Gu et al., "Efficiently
/// Modeling Long Sequences with Structured State Spaces" (S4), 2021, equation 3 for the bilinear method; Gu and Dao,
/// "Mamba", 2023, equation 4 for zero-order hold.
///
/// The scan of this crate, as Mamba, takes `Ad` from zero-order hold and `dt B` as `Bd`, which is the first term of
/// its series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discretization {
    /// The input is constant during a step: exact for such inputs.
    ///
    /// ```text
    /// Ad = exp(dt A),    Bd = A^-1 (exp(dt A) - I) B
    /// ```
    #[default]
    ZeroOrderHold,
    /// The trapezoidal rule: what decays goes on decaying, whatever the step is.
    ///
    /// ```text
    /// Ad = (I - dt/2 A)^-1 (I + dt/2 A),    Bd = (I - dt/2 A)^-1 dt B
    /// ```
    Bilinear,
}

/// One state of a diagonal system in discrete time: `x[t] = a x[t-1] + b B u[t]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Diagonal {
    /// What remains of the state.
    pub a: Complex64,
    /// The factor of B.
    pub b: Complex64,
}

impl Discretization {
    /// Discretises one state of a diagonal system. A real `a` gives real results.
    ///
    /// The bilinear method divides by `1 - dt a / 2`, which is never 0 where `a` has a negative real part.
    ///
    /// ```
    /// use seqmix::num_complex::Complex64;
    /// use seqmix::state_space::Discretization;
    ///
    /// let decay = Complex64::from(-2.0);
    /// let exact = Discretization::ZeroOrderHold.diagonal(decay, 0.1);
    /// let close = Discretization::Bilinear.diagonal(decay, 0.1);
    /// assert_eq!(exact.a.re, (-0.2_f64).exp()); // 0.8187
    /// assert_eq!(close.a.re, 0.9 / 1.1); // 0.8182
    /// ```
    pub fn diagonal(self, a: Complex64, dt: f64) -> Diagonal {
        let z = a * dt;
        match self {
            Self::ZeroOrderHold => Diagonal {
                a: z.exp(),
                // (exp(z) - 1) / a; at a = 0 its limit
                b: match z.norm_sqr() > 0.0 {
                    true => exp_minus_1(z) / z * dt,
                    false => dt.into(),
                },
            },
            Self::Bilinear => {
                let (ahead, behind) = (1.0 + z / 2.0, 1.0 - z / 2.0);
                Diagonal {
                    a: ahead / behind,
                    b: dt / behind,
                }
            }
        }
    }

    /// Discretises a dense system. It takes of the order of `dstate`³ operations.
    ///
    /// Where the bilinear method divides by a singular matrix, or zero-order hold overflows, the result is not finite;
    /// neither happens if all eigenvalues of A have negative real parts.
    pub fn dense(self, system: &Dense, dt: f64) -> Dense {
        // With the input as one more state that stays as it is, both methods are functions of one matrix:
        // of [A B; 0 0] they give [Ad Bd; 0 1].
        let (a, b) = (system.a(), system.b());
        let dstate = b.len();
        let extended = SquareMatrix::from_fn(dstate + 1, |i, j| match (i < dstate, j < dstate) {
            (true, true) => a.at(i, j),
            (true, false) => b[i],
            (false, _) => 0.0,
        });
        let discrete = match self {
            Self::ZeroOrderHold => extended.scaled(dt).exponential(),
            Self::Bilinear => {
                let identity =
                    SquareMatrix::from_fn(dstate + 1, |i, j| f64::from(u8::from(i == j)));
                let behind = identity.plus(&extended.scaled(-dt / 2.0));
                behind.solve(&identity.plus(&extended.scaled(dt / 2.0)))
            }
        };
        Dense::of(
            SquareMatrix::from_fn(dstate, |i, j| discrete.at(i, j)),
            (0..dstate).map(|i| discrete.at(i, dstate)).collect(),
        )
    }
}

/// `exp(z) - 1` without the loss of digits where `z` is small.
fn exp_minus_1(z: Complex64) -> Complex64 {
    // exp(x) cos(y) - 1 = (exp(x) - 1) cos(y) - (1 - cos(y))
    let half = (z.im / 2.0).sin();
    Complex64::new(
        z.re.exp_m1() * z.im.cos() - 2.0 * half * half,
        z.re.exp() * z.im.sin(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Discretization; 2] = [Discretization::ZeroOrderHold, Discretization::Bilinear];

    /// At `A = -1/2 + 3 i` and `dt = 0.1`, computed from the formulas with 40 digits.
    #[test]
    fn one_state_by_the_formulas() {
        let a = Complex64::new(-0.5, 3.0);
        let held = Diagonal {
            a: Complex64::new(0.908_744_178_755_482_8, 0.281_107_516_110_798_15),
            b: Complex64::new(0.096_102_752_319_421_94, 0.014_401_481_694_935_397),
        };
        let bilinear = Diagonal {
            a: Complex64::new(0.910_308_677_926_616_2, 0.279_557_367_501_456_03),
            b: Complex64::new(0.095_515_433_896_330_81, 0.013_977_868_375_072_8),
        };
        for (method, expected) in BOTH.into_iter().zip([held, bilinear]) {
            let found = method.diagonal(a, 0.1);
            assert!((found.a - expected.a).norm() < 1e-15, "{method:?}");
            assert!((found.b - expected.b).norm() < 1e-16, "{method:?}");
        }
    }

    #[test]
    fn a_slow_state_integrates() {
        for method in BOTH {
            let still = method.diagonal(Complex64::ZERO, 0.25);
            assert_eq!((still.a, still.b), (Complex64::ONE, Complex64::from(0.25)));
            // of (exp(z) - 1) / z, the next term of the series
            let z = Complex64::new(0.0, 1e-9);
            let slow = method.diagonal(z, 1.0);
            assert!((slow.b - Complex64::new(1.0, 0.5e-9)).norm() < 1e-17);
        }
    }

    #[test]
    fn what_decays_goes_on_decaying() {
        for method in BOTH {
            for dt in [1e-3, 1.0, 1e3] {
                let found = method.diagonal(Complex64::new(-0.5, 40.0), dt);
                assert!(found.a.norm() < 1.0, "{method:?}, dt {dt}: {}", found.a);
            }
        }
    }

    /// A turning and decaying pair of states as one complex and as two real ones.
    #[test]
    fn dense_and_diagonal_agree() {
        let (a, dt) = (Complex64::new(-0.3, 2.0), 0.7);
        let system = Dense::new(vec![a.re, -a.im, a.im, a.re], vec![1.0, 0.0]).unwrap();
        for method in BOTH {
            let expected = method.diagonal(a, dt);
            let found = method.dense(&system, dt);
            let (re, im) = (expected.a.re, expected.a.im);
            let pairs = found.a().elements().iter().zip([re, -im, im, re]);
            for (found, expected) in
                pairs.chain(found.b().iter().zip([expected.b.re, expected.b.im]))
            {
                assert!(
                    (found - expected).abs() < 1e-15,
                    "{method:?}: {found} {expected}"
                );
            }
        }
    }

    /// A has no inverse here: a mass that a force pushes.
    #[test]
    fn a_singular_system_has_a_hold_of_its_own() {
        let dt = 0.5;
        let mass = Dense::new(vec![0.0, 1.0, 0.0, 0.0], vec![0.0, 1.0]).unwrap();
        for method in BOTH {
            let found = method.dense(&mass, dt);
            let pairs = found.a().elements().iter().zip([1.0, dt, 0.0, 1.0]);
            for (found, expected) in pairs.chain(found.b().iter().zip([dt * dt / 2.0, dt])) {
                assert!(
                    (found - expected).abs() < 1e-15,
                    "{method:?}: {found} {expected}"
                );
            }
        }
    }
}
