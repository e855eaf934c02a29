//! HiPPO-LegS: the system whose state is the history of its input, as coefficients of Legendre polynomials.

use super::{Dense, Discretization, SquareMatrix};

impl Dense {
    /// HiPPO-LegS in the signs of S4, where A is stable: Gu et al., "HiPPO: Recurrent Memory with Optimal Polynomial
    /// Projections", 2020, theorem 2.
    ///
    /// ```text
    /// A[n,k] = -sqrt(2n+1) sqrt(2k+1)   n > k
    ///          -(n+1)                   n = k
    ///          0                        n < k
    /// B[n]   = sqrt(2n+1)
    /// ```
    ///
    /// The state of `x'(t) = (A x(t) + B u(t)) / t` are the coefficients of `u` on `[0, t]`; see [`LegsMemory`].
    pub fn hippo_legs(dstate: usize) -> Self {
        let root = |n: usize| (2.0 * n as f64 + 1.0).sqrt();
        let a = SquareMatrix::from_fn(dstate, |n, k| match n.cmp(&k) {
            std::cmp::Ordering::Greater => -root(n) * root(k),
            std::cmp::Ordering::Equal => -(n as f64 + 1.0),
            std::cmp::Ordering::Less => 0.0,
        });
        Self::of(a, (0..dstate).map(root).collect())
    }
}

/// P, `[dstate]`, of HiPPO-LegS as a normal matrix less one of rank 1: `A + P P^T` is -1/2 on the diagonal and
/// skew-symmetric beside it. Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces" (S4), 2021,
/// theorem 1 and its proof.
///
/// ```text
/// P[n] = sqrt(n + 1/2)
/// ```
pub fn legs_low_rank(dstate: usize) -> Vec<f64> {
    (0..dstate).map(|n| (n as f64 + 0.5).sqrt()).collect()
}

/// A signal that is seen one sample at a time, remembered as its `dstate` first Legendre coefficients over the whole
/// time so far: the best approximation by a polynomial of degree below `dstate`, however long the signal is.
///
/// With `s = ln t` the system of [`Dense::hippo_legs`] is `dx/ds = A x + B u`, of constant coefficients. A sample that
/// lasts from time `k` to `k + 1` is a step of length `ln((k + 1) / k)`; the first one fills the time until 1.
///
/// ```
/// use seqmix::state_space::{Discretization, LegsMemory};
///
/// // A ramp is a polynomial of degree 1: two coefficients hold it.
/// let mut memory = LegsMemory::new(2, Discretization::ZeroOrderHold);
/// for k in 0..100 {
///     memory.push(f64::from(k) + 0.5);
/// }
/// assert!((memory.recall(0.25) - 25.0).abs() < 0.01);
/// ```
#[derive(Clone, Debug)]
pub struct LegsMemory {
    system: Dense,
    method: Discretization,
    coefficients: Vec<f64>,
    samples: u64,
}

impl LegsMemory {
    /// A memory of nothing. With [`Discretization::ZeroOrderHold`] the coefficients are exactly those of the signal
    /// whose samples last one unit of time each.
    pub fn new(dstate: usize, method: Discretization) -> Self {
        Self {
            system: Dense::hippo_legs(dstate),
            method,
            coefficients: vec![0.0; dstate],
            samples: 0,
        }
    }

    /// Takes the next sample. It takes of the order of `dstate`³ operations.
    pub fn push(&mut self, sample: f64) {
        if self.samples == 0 {
            // Of a constant signal the first coefficient is its value, and the others are 0.
            if let Some(first) = self.coefficients.first_mut() {
                *first = sample;
            }
        } else {
            let step = (1.0 / self.samples as f64).ln_1p();
            let discrete = self.method.dense(&self.system, step);
            self.coefficients = discrete.apply(&self.coefficients, sample);
        }
        self.samples += 1;
    }

    /// `[dstate]`: coefficient `n` belongs to `sqrt(2n+1) P_n(2 x - 1)`, a polynomial in `x` from 0, the beginning, to
    /// 1, now. These are orthonormal over that time.
    pub fn coefficients(&self) -> &[f64] {
        &self.coefficients
    }

    /// What the signal was at `position`, from 0, its beginning, to 1, now.
    pub fn recall(&self, position: f64) -> f64 {
        let y = 2.0 * position - 1.0;
        let (mut sum, mut before, mut current) = (0.0, 0.0, 1.0);
        for (n, coefficient) in self.coefficients.iter().enumerate() {
            let n = n as f64;
            sum += coefficient * (2.0 * n + 1.0).sqrt() * current;
            // (n+1) P_{n+1} = (2n+1) y P_n - n P_{n-1}
            let next = ((2.0 * n + 1.0) * y * current - n * before) / (n + 1.0);
            (before, current) = (current, next);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_states_by_hand() {
        let legs = Dense::hippo_legs(3);
        let (r3, r5) = (3.0_f64.sqrt(), 5.0_f64.sqrt());
        let a = [-1.0, 0.0, 0.0, -r3, -2.0, 0.0, -r5, -r3 * r5, -3.0];
        assert_eq!(legs.a().elements(), a);
        assert_eq!(legs.b(), [1.0, r3, r5]);
    }

    #[test]
    fn it_is_normal_but_for_rank_1() {
        let dstate = 7;
        let (legs, p) = (Dense::hippo_legs(dstate), legs_low_rank(dstate));
        let normal = |n: usize, k: usize| legs.a().at(n, k) + p[n] * p[k];
        for n in 0..dstate {
            assert!((normal(n, n) + 0.5).abs() < 1e-14);
            for k in 0..n {
                assert!((normal(n, k) + normal(k, n)).abs() < 1e-14);
                let half = ((2 * n + 1) as f64 * (2 * k + 1) as f64).sqrt() / 2.0;
                assert!((normal(k, n) - half).abs() < 1e-14);
            }
        }
    }

    /// Legendre polynomials `P_0(y)` to `P_count(y)`.
    fn legendre(count: usize, y: f64) -> Vec<f64> {
        let mut values = vec![1.0, y];
        for n in 1..count {
            let (n_f, last) = (n as f64, values[n]);
            values.push(((2.0 * n_f + 1.0) * y * last - n_f * values[n - 1]) / (n_f + 1.0));
        }
        values
    }

    /// The coefficients of samples that last 1 / len each, from the integrals of the polynomials:
    /// `(2n+1) P_n = (P_{n+1} - P_{n-1})'`.
    fn projected(samples: &[f64], dstate: usize) -> Vec<f64> {
        let integral = |n: usize, x: f64| {
            let p = legendre(dstate + 1, 2.0 * x - 1.0);
            match n {
                0 => x,
                _ => (p[n + 1] - p[n - 1]) / (2 * n + 1) as f64 / 2.0,
            }
        };
        let len = samples.len() as f64;
        let coefficient = |n: usize| {
            let parts = samples.iter().enumerate().map(|(k, sample)| {
                let (from, to) = (k as f64 / len, (k + 1) as f64 / len);
                sample * (integral(n, to) - integral(n, from))
            });
            parts.sum::<f64>() * (2.0 * n as f64 + 1.0).sqrt()
        };
        (0..dstate).map(coefficient).collect()
    }

    /// A signal with a jump, which no polynomial follows.
    fn signal(len: usize) -> Vec<f64> {
        let sample = |k: usize| (0.3 * k as f64).cos() + if k > len / 3 { 2.0 } else { 0.0 };
        (0..len).map(sample).collect()
    }

    fn remembered(samples: &[f64], dstate: usize, method: Discretization) -> Vec<f64> {
        let mut memory = LegsMemory::new(dstate, method);
        samples.iter().for_each(|&sample| memory.push(sample));
        memory.coefficients().to_vec()
    }

    fn distance(found: &[f64], expected: &[f64]) -> f64 {
        let pairs = found.iter().zip(expected);
        pairs.map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
    }

    #[test]
    fn the_memory_is_the_projection() {
        for (len, dstate) in [(1, 4), (2, 4), (3, 1), (60, 16), (200, 32)] {
            let samples = signal(len);
            let found = remembered(&samples, dstate, Discretization::ZeroOrderHold);
            let lost = distance(&found, &projected(&samples, dstate));
            assert!(lost < 1e-11, "{len} samples, {dstate} states: {lost:e}");
        }
    }

    /// The error of the bilinear method falls with the number of samples, and faster than that grows.
    #[test]
    fn the_bilinear_memory_comes_close() {
        let smooth = |len: usize| -> Vec<f64> {
            let sample = |k: usize| (3.0 * (k as f64 + 0.5) / len as f64).sin();
            (0..len).map(sample).collect()
        };
        let lost = [100, 200, 400].map(|len| {
            let samples = smooth(len);
            let found = remembered(&samples, 4, Discretization::Bilinear);
            distance(&found, &projected(&samples, 4))
        });
        assert!(lost[0] < 1e-3, "{lost:?}");
        assert!(
            lost[1] < 0.4 * lost[0] && lost[2] < 0.4 * lost[1],
            "{lost:?}"
        );
    }

    #[test]
    fn recalling_is_the_sum_of_the_polynomials() {
        let samples = signal(50);
        let mut memory = LegsMemory::new(9, Discretization::ZeroOrderHold);
        assert_eq!(memory.recall(0.5), 0.0);
        samples.iter().for_each(|&sample| memory.push(sample));
        for x in [0.0, 0.2, 0.5, 0.99, 1.0] {
            let p = legendre(9, 2.0 * x - 1.0);
            let terms = memory.coefficients().iter().zip(&p).enumerate();
            let expected: f64 = terms
                .map(|(n, (c, p))| c * (2.0 * n as f64 + 1.0).sqrt() * p)
                .sum();
            assert!((memory.recall(x) - expected).abs() < 1e-12, "at {x}");
        }
    }

    #[test]
    fn a_memory_without_states_recalls_nothing() {
        let mut memory = LegsMemory::new(0, Discretization::Bilinear);
        memory.push(1.0);
        memory.push(2.0);
        assert_eq!(memory.recall(0.5), 0.0);
    }
}
