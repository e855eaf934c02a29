//! The recurrence of the linear recurrent unit (LRU): Orvieto et al., "Resurrecting Recurrent Neural Networks for Long
//! Sequences", 2023. Complex states that do not mix; the projections into and out of them are products.

use num_complex::Complex64;

use super::{Mismatch, Sequence, check_length, check_optional, sequences};

/// One problem: sizes and tensors (contiguous, row-major).
///
/// The unit computes `y[t] = Re(C h[t]) + D u[t]` with `x[t] = B u[t]`. Its parameters are the logarithms of those
/// here: `a = -exp(nu_log) + i exp(theta_log)` and `gamma = exp(gamma_log)`.
///
/// ```
/// use num_complex::Complex64;
/// use seqmix::reference::lru::Forward;
///
/// let problem = Forward {
///     batch: 1, seqlen: 3, dstate: 1,
///     a: &[Complex64::new(-std::f64::consts::LN_2, std::f64::consts::FRAC_PI_2)], // half, and a quarter turn
///     x: &[1.0, 0.0, 0.0].map(Complex64::from),
///     ..Forward::default()
/// };
/// let last = problem.run()?.states[2];
/// assert!((last - Complex64::from(-0.25)).norm() < 1e-15);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'a> {
    /// Number of independent sequences; 1 with `cu_seqlens`.
    pub batch: usize,
    /// Steps of each sequence; with `cu_seqlens`, of all together.
    pub seqlen: usize,
    /// States.
    pub dstate: usize,
    /// `[dstate]`: logarithms of the eigenvalues.
    pub a: &'a [Complex64],
    /// `[dstate]`: factors of the inputs; `None`: 1.
    pub gamma: Option<&'a [f64]>,
    /// `[batch, seqlen, dstate]`: inputs of the states.
    pub x: &'a [Complex64],
    /// `[sequences, dstate]`: the states before each sequence; `None`: zeros.
    pub initial_state: Option<&'a [Complex64]>,
    /// `[sequences + 1]`: sequences of different lengths, one after the other: sequence `i` holds the steps
    /// `cu_seqlens[i]` to `cu_seqlens[i + 1]`. `None`: one sequence for each of `batch`.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// What the recurrence returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// As `x`: the states after each step.
    pub states: Vec<Complex64>,
    /// `[sequences, dstate]`: the states after the last step of each sequence.
    pub final_state: Vec<Complex64>,
}

/// The gradients of the recurrence. Of a complex number, that is the gradient with respect to its real part plus `i`
/// times that with respect to its imaginary part, as in PyTorch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backward<'a> {
    /// The recurrence whose gradients are asked for.
    pub forward: Forward<'a>,
    /// As `x`: the gradient of `states`.
    pub dstates: &'a [Complex64],
    /// `[sequences, dstate]`: the gradient of `final_state`; `None`: zeros.
    pub dfinal_state: Option<&'a [Complex64]>,
}

/// What [`Backward`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// As `a`.
    pub da: Vec<Complex64>,
    /// As `gamma`, which counts as 1 if absent.
    pub dgamma: Vec<f64>,
    /// As `x`.
    pub dx: Vec<Complex64>,
    /// As `initial_state`, which counts as zeros if absent.
    pub dinitial_state: Vec<Complex64>,
}

impl Forward<'_> {
    /// The recurrence, in `f64` throughout. For each state:
    ///
    /// ```text
    /// h[t] = exp(a) h[t-1] + gamma x[t]
    /// ```
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for, or `cu_seqlens` do not fit them.
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula with outputs of a narrow type: `round` (to that type and back) is applied to both parts of
    /// `states`. What is carried on is in `f32` in every implementation that works at all, and is not rounded here.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        let sequences = self.check()?;
        let mut result = Output {
            states: vec![Complex64::ZERO; self.x.len()],
            final_state: Vec::new(),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for n in 0..self.dstate {
                let mut state = self.initial(i, n);
                for t in sequence.steps.clone() {
                    let at = self.at(sequence, t, n);
                    state = self.a[n].exp() * state + self.gamma(n) * self.x[at];
                    result.states[at] = Complex64::new(round(state.re), round(state.im));
                }
                result.final_state.push(state);
            }
        }
        Ok(result)
    }

    fn initial(&self, i: usize, n: usize) -> Complex64 {
        let states = self.initial_state;
        states.map_or(Complex64::ZERO, |states| states[i * self.dstate + n])
    }

    fn gamma(&self, n: usize) -> f64 {
        self.gamma.map_or(1.0, |gamma| gamma[n])
    }

    fn at(&self, sequence: &Sequence, t: usize, n: usize) -> usize {
        (sequence.batch * self.seqlen + t) * self.dstate + n
    }

    fn check(&self) -> Result<Vec<Sequence>, Mismatch> {
        let sequences = sequences(self.batch, self.seqlen, self.cu_seqlens)?;
        let steps = [self.batch, self.seqlen, self.dstate];
        let states = [sequences.len(), self.dstate];
        check_length("length of a", &[self.dstate], self.a.len())?;
        check_optional("length of gamma", &[self.dstate], self.gamma)?;
        check_length("length of x", &steps, self.x.len())?;
        check_optional("length of initial_state", &states, self.initial_state)?;
        Ok(sequences)
    }
}

impl Backward<'_> {
    /// The gradients, in `f64` throughout, in the notation of [`Forward::run`]; `g[t]` is the gradient of `h[t]` along
    /// all paths:
    ///
    /// ```text
    /// g[t]   = dstates[t] + conj(exp(a)) g[t+1]        at the last step + dfinal_state
    /// dx[t]  = gamma g[t]
    /// da     = sum over sequences and t of conj(exp(a) h[t-1]) g[t]
    /// dgamma = sum over sequences and t of Re(conj(x[t]) g[t])
    /// dinitial_state = conj(exp(a)) g[0]
    /// ```
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Gradients, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// As [`Forward::run_rounded`]: `round` is applied to both parts of `dx`.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Gradients, Mismatch> {
        let forward = &self.forward;
        let sequences = forward.check()?;
        check_length("length of dstates", &[forward.x.len()], self.dstates.len())?;
        let sizes = [sequences.len(), forward.dstate];
        check_optional("length of dfinal_state", &sizes, self.dfinal_state)?;
        let mut result = Gradients {
            da: vec![Complex64::ZERO; forward.dstate],
            dgamma: vec![0.0; forward.dstate],
            dx: vec![Complex64::ZERO; forward.x.len()],
            dinitial_state: Vec::new(),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for n in 0..forward.dstate {
                let decay = forward.a[n].exp();
                let mut kept = Vec::new();
                let mut state = forward.initial(i, n);
                for t in sequence.steps.clone() {
                    kept.push(decay * state);
                    state =
                        decay * state + forward.gamma(n) * forward.x[forward.at(sequence, t, n)];
                }
                let dfinal = self.dfinal_state;
                let mut g = dfinal.map_or(Complex64::ZERO, |d| d[i * forward.dstate + n]);
                for (kept, t) in kept.iter().zip(sequence.steps.clone()).rev() {
                    let at = forward.at(sequence, t, n);
                    g += self.dstates[at];
                    let dx = forward.gamma(n) * g;
                    result.dx[at] = Complex64::new(round(dx.re), round(dx.im));
                    result.da[n] += kept.conj() * g;
                    result.dgamma[n] += (forward.x[at].conj() * g).re;
                    g *= decay.conj();
                }
                result.dinitial_state.push(g);
            }
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::{Backward, Complex64, Forward};
    use crate::reference::differences::{assert_gradient, noise};
    use crate::reference::selective_scan::{self, Coefficient};

    const STEPS: usize = 6;
    const STATES: usize = 3;

    fn complex(parts: &[f64]) -> Vec<Complex64> {
        let pairs = parts.chunks(2);
        pairs.map(|pair| Complex64::new(pair[0], pair[1])).collect()
    }

    fn parts(numbers: &[Complex64]) -> Vec<f64> {
        numbers.iter().flat_map(|x| [x.re, x.im]).collect()
    }

    /// What a problem of packed sequences borrows: 2, 0 and 4 steps.
    struct Inputs {
        a: Vec<Complex64>,
        gamma: Vec<f64>,
        x: Vec<Complex64>,
        initial_state: Vec<Complex64>,
    }

    impl Inputs {
        fn new() -> Self {
            Self {
                a: complex(&noise(1, 2 * STATES)),
                gamma: noise(2, STATES),
                x: complex(&noise(3, 2 * STEPS * STATES)),
                initial_state: complex(&noise(4, 2 * 3 * STATES)),
            }
        }

        fn forward(&self) -> Forward<'_> {
            Forward {
                batch: 1,
                seqlen: STEPS,
                dstate: STATES,
                a: &self.a,
                gamma: Some(&self.gamma),
                x: &self.x,
                initial_state: Some(&self.initial_state),
                cu_seqlens: Some(&[0, 2, 2, 6]),
            }
        }
    }

    /// A scan whose step sizes are 1 reads out twice the real part of its state times C.
    #[test]
    fn it_is_a_selective_scan_of_constant_steps() {
        let inputs = Inputs::new();
        let x: Vec<Complex64> = inputs.x.iter().map(|x| x.re.into()).collect();
        let unit = Forward {
            x: &x,
            ..inputs.forward()
        };
        let found = unit.run().unwrap();
        let b: Vec<Complex64> = inputs.gamma.iter().map(|&gamma| gamma.into()).collect();
        // channels first
        let first = |at: usize| inputs.x[at % STEPS * STATES + at / STEPS].re;
        let u: Vec<f64> = (0..STEPS * STATES).map(first).collect();
        let half = Complex64::new(0.5, 0.0);
        for (c, part) in [(half, 0), (-Complex64::I * half, 1)] {
            let scan = selective_scan::Forward {
                batch: 1,
                dim: STATES,
                seqlen: STEPS,
                dstate: 1,
                groups: 1,
                u: &u,
                delta: &[1.0; STEPS * STATES],
                a: &inputs.a,
                b: Coefficient::Constant(&b),
                c: Coefficient::Constant(&[c; STATES]),
                initial_state: unit.initial_state,
                cu_seqlens: unit.cu_seqlens,
                ..selective_scan::Forward::default()
            };
            let scan = scan.run().unwrap();
            for (at, expected) in scan.out.iter().enumerate() {
                let state = found.states[at % STEPS * STATES + at / STEPS];
                let difference = [state.re, state.im][part] - expected;
                assert!(difference.abs() < 1e-13, "{at}: {state} is not {expected}");
            }
            for (found, expected) in found.final_state.iter().zip(&scan.last_state) {
                assert!(
                    (found - expected).norm() < 1e-13,
                    "{found} is not {expected}"
                );
            }
        }
    }

    #[test]
    fn gradients_are_finite_differences() {
        let inputs = Inputs::new();
        let forward = inputs.forward();
        let dstates = complex(&noise(5, 2 * STEPS * STATES));
        let dfinal_state = complex(&noise(6, 2 * 3 * STATES));
        let backward = Backward {
            forward,
            dstates: &dstates,
            dfinal_state: Some(&dfinal_state),
        };
        let gradients = backward.run().unwrap();
        let loss = |forward: Forward<'_>| {
            let result = forward.run().unwrap();
            let states = result.states.iter().zip(&dstates);
            let finals = result.final_state.iter().zip(&dfinal_state);
            states
                .chain(finals)
                .map(|(x, dx)| (dx.conj() * x).re)
                .sum::<f64>()
        };
        assert_gradient("a", &parts(&inputs.a), &parts(&gradients.da), |a| {
            let a = &complex(a);
            loss(Forward { a, ..forward })
        });
        assert_gradient("gamma", &inputs.gamma, &gradients.dgamma, |gamma| {
            let gamma = Some(gamma);
            loss(Forward { gamma, ..forward })
        });
        assert_gradient("x", &parts(&inputs.x), &parts(&gradients.dx), |x| {
            let x = &complex(x);
            loss(Forward { x, ..forward })
        });
        let (given, found) = (
            parts(&inputs.initial_state),
            parts(&gradients.dinitial_state),
        );
        assert_gradient("initial_state", &given, &found, |state| {
            let initial_state = Some(&complex(state)[..]);
            loss(Forward {
                initial_state,
                ..forward
            })
        });
    }

    #[test]
    fn absent_tensors_are_ones_and_zeros() {
        let inputs = Inputs::new();
        let absent = Forward {
            gamma: None,
            initial_state: None,
            ..inputs.forward()
        };
        let given = Forward {
            gamma: Some(&[1.0; STATES]),
            initial_state: Some(&[Complex64::ZERO; 3 * STATES]),
            ..absent
        };
        let rounded = absent.run_rounded(f64::round).unwrap();
        assert_eq!(rounded, given.run_rounded(f64::round).unwrap());
        assert!(parts(&rounded.states).iter().all(|x| x.fract() == 0.0));
        let gradients = |forward| {
            let backward = Backward {
                forward,
                dstates: &inputs.x,
                dfinal_state: None,
            };
            backward.run_rounded(f64::round).unwrap()
        };
        assert_eq!(gradients(absent), gradients(given));
        assert!(
            parts(&gradients(absent).dx)
                .iter()
                .all(|x| x.fract() == 0.0)
        );
    }

    #[test]
    fn sizes_that_disagree_are_named() {
        let inputs = Inputs::new();
        let problem = Forward {
            gamma: Some(&[1.0]),
            ..inputs.forward()
        };
        let error = problem.run().unwrap_err().to_string();
        assert_eq!(error, "length of gamma: expected 3, found 1");
        let backward = Backward {
            forward: inputs.forward(),
            dstates: &[],
            dfinal_state: None,
        };
        let error = backward.run().unwrap_err().to_string();
        assert_eq!(error, "length of dstates: expected 18, found 0");
    }
}
