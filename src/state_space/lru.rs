//! Eigenvalues on a ring: Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences", 2023, whose
//! linear recurrent unit (LRU) is `x[t] = lambda x[t-1] + gamma B u[t]`, `y[t] = Re(C x[t]) + D u[t]`.

use num_complex::Complex64;

use super::random::Uniform;
use crate::{Error, Result};

/// The distribution of initial eigenvalues: uniform by area on a ring, or on a slice of one.
///
/// ```
/// use seqmix::state_space::Ring;
///
/// // Long memory, slow oscillation.
/// let ring = Ring { r_min: 0.9, r_max: 0.999, max_phase: 0.3 };
/// let states = ring.sample(64, 1)?;
/// assert!(states.iter().all(|state| state.lambda().norm() >= 0.9 - 1e-12));
/// # Ok::<(), seqmix::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ring {
    /// The least absolute value, at least 0.
    pub r_min: f64,
    /// The largest one, at most 1.
    pub r_max: f64,
    /// The largest angle, in radians, above 0.
    pub max_phase: f64,
}

impl Default for Ring {
    /// The whole disc.
    fn default() -> Self {
        Self {
            r_min: 0.0,
            r_max: 1.0,
            max_phase: std::f64::consts::TAU,
        }
    }
}

/// One state of an LRU in the parameters that are trained, for which any real number will do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RingState {
    /// The logarithm of `nu`, of which `exp(-nu)` is the eigenvalue's absolute value.
    pub nu_log: f64,
    /// The logarithm of the eigenvalue's angle.
    pub theta_log: f64,
    /// The logarithm of `gamma`, the factor of B.
    pub gamma_log: f64,
}

impl RingState {
    /// The eigenvalue: `exp(-exp(nu_log) + i exp(theta_log))`.
    pub fn lambda(&self) -> Complex64 {
        self.a().exp()
    }

    /// The logarithm of the eigenvalue, which is A for a scan whose step sizes are all 1.
    ///
    /// A complex scan reads `2 Re(C x)` out; an LRU's C has to be halved for it.
    pub fn a(&self) -> Complex64 {
        Complex64::new(-self.nu_log.exp(), self.theta_log.exp())
    }

    /// The factor of B. With it the state varies as much as each `B u` does, if the inputs are uncorrelated.
    pub fn gamma(&self) -> f64 {
        self.gamma_log.exp()
    }
}

impl Ring {
    /// `count` states, the same ones for the same `seed`, by lemma 3.2 of the paper: with `u`, `v` uniform between 0
    /// and 1,
    ///
    /// ```text
    /// nu    = -1/2 ln(u (r_max^2 - r_min^2) + r_min^2)
    /// theta = v max_phase
    /// gamma = sqrt(1 - |lambda|^2)
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] if not `0 <= r_min <= r_max <= 1` with `r_max` above 0 and `r_min` below 1, or if
    /// `max_phase` is not finite and above 0: logarithms of what is then drawn would not be finite.
    pub fn sample(self, count: usize, seed: u64) -> Result<Vec<RingState>> {
        self.check()?;
        let mut uniform = Uniform::new(seed);
        let mut draw = || {
            let (u, v) = (uniform.draw(), uniform.draw());
            self.at(u, v)
        };
        Ok((0..count).map(|_| draw()).collect())
    }

    /// The state of these uniform numbers.
    fn at(self, u: f64, v: f64) -> RingState {
        let (inner, outer) = (self.r_min * self.r_min, self.r_max * self.r_max);
        let square = u * (outer - inner) + inner;
        let nu = -0.5 * square.ln();
        RingState {
            nu_log: nu.ln(),
            theta_log: (v * self.max_phase).ln(),
            // 1 - |lambda|^2, also where |lambda| is close to 1
            gamma_log: 0.5 * (-(-2.0 * nu).exp_m1()).ln(),
        }
    }

    fn check(self) -> Result<()> {
        let Self {
            r_min,
            r_max,
            max_phase,
        } = self;
        let (argument, expected, found) = if !(0.0..1.0).contains(&r_min) {
            ("r_min", "a number from 0 to below 1".to_owned(), r_min)
        } else if !(r_max >= r_min && r_max > 0.0 && r_max <= 1.0) {
            let expected = format!("a number from r_min, {r_min}, to 1, and above 0");
            ("r_max", expected, r_max)
        } else if !(max_phase > 0.0 && max_phase.is_finite()) {
            ("max_phase", "a finite number above 0".to_owned(), max_phase)
        } else {
            return Ok(());
        };
        Err(Error::Argument {
            op: "state_space::Ring",
            argument,
            expected,
            found: found.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::selective_scan::{Coefficient, Forward};

    const RING: Ring = Ring {
        r_min: 0.5,
        r_max: 0.9,
        max_phase: 1.0,
    };

    /// Computed from the formulas with 30 digits.
    #[test]
    fn one_state_by_the_formulas() {
        let state = RING.at(0.25, 0.75);
        assert!(
            (state.nu_log + 0.753_312_834_118_828_8).abs() < 1e-14,
            "{}",
            state.nu_log
        );
        assert!((state.theta_log + 0.287_682_072_451_780_9).abs() < 1e-14);
        assert!((state.gamma_log + 0.247_148_160_907_390_06).abs() < 1e-14);
        assert!((state.lambda().norm() - 0.39_f64.sqrt()).abs() < 1e-15);
        assert!((state.lambda().arg() - 0.75).abs() < 1e-15);
        assert!((state.gamma() - 0.61_f64.sqrt()).abs() < 1e-15);
    }

    /// On a ring that is filled evenly, squares of radii are uniform, and so are angles.
    #[test]
    fn the_ring_is_filled_evenly() {
        let count = 10_000;
        let states = RING.sample(count, 5).unwrap();
        let middle = (0.25_f64 + 0.81) / 2.0;
        let inner = states
            .iter()
            .filter(|state| state.lambda().norm_sqr() < middle)
            .count();
        let low = states
            .iter()
            .filter(|state| state.lambda().arg() < 0.5)
            .count();
        // five standard deviations
        assert!(inner.abs_diff(count / 2) < 250, "{inner}");
        assert!(low.abs_diff(count / 2) < 250, "{low}");
        for state in states {
            let radius = state.lambda().norm();
            assert!((0.5 - 1e-12..=0.9 + 1e-12).contains(&radius), "{radius}");
        }
        assert_eq!(RING.sample(9, 5).unwrap(), RING.sample(9, 5).unwrap());
        assert_ne!(RING.sample(9, 5).unwrap(), RING.sample(9, 6).unwrap());
    }

    #[test]
    fn the_whole_disc_has_finite_parameters() {
        for (u, v) in [(1e-16, 1e-16), (1.0 - 1e-16, 1.0 - 1e-16), (0.5, 0.5)] {
            let state = Ring::default().at(u, v);
            for number in [state.nu_log, state.theta_log, state.gamma_log] {
                assert!(number.is_finite(), "{u}, {v}: {state:?}");
            }
        }
    }

    /// The scan with A the logarithm of the eigenvalue and steps of 1 is the LRU's recurrence, and gamma makes the
    /// variance of its state that of its input: the sum over all t of gamma^2 |lambda|^(2 t) is 1.
    #[test]
    fn the_scan_runs_it_with_variance_1() {
        let state = RING.at(0.7, 0.3);
        let seqlen = 200;
        let mut u = vec![0.0; seqlen];
        u[0] = 1.0;
        let problem = Forward {
            batch: 1,
            dim: 1,
            seqlen,
            dstate: 1,
            u: &u,
            delta: &vec![1.0; seqlen],
            a: &[state.a()],
            b: Coefficient::Constant(&[state.gamma().into()]),
            c: Coefficient::Constant(&[Complex64::new(0.5, 0.0)]),
            ..Forward::default()
        };
        let out = problem.run().unwrap().out;
        let mut x = Complex64::from(state.gamma());
        let mut variance = 0.0;
        for y in out {
            assert!((y - x.re).abs() < 1e-14);
            variance += x.norm_sqr();
            x *= state.lambda();
        }
        assert!((variance - 1.0).abs() < 1e-12, "{variance}");
    }

    #[test]
    fn what_is_no_ring_is_refused() {
        let text = |ring: Ring| ring.sample(1, 1).unwrap_err().to_string();
        let inner = Ring { r_min: 1.0, ..RING };
        assert_eq!(
            text(inner),
            "state_space::Ring: r_min is 1, expected a number from 0 to below 1"
        );
        let outer = Ring { r_max: 0.4, ..RING };
        assert_eq!(
            text(outer),
            "state_space::Ring: r_max is 0.4, expected a number from r_min, 0.5, to 1, and above 0"
        );
        let phase = Ring {
            max_phase: f64::INFINITY,
            ..RING
        };
        assert_eq!(
            text(phase),
            "state_space::Ring: max_phase is inf, expected a finite number above 0"
        );
    }
}
