//! The gradients of the scan by their formulas.

use super::{Coefficient, Forward, Mismatch, Number, check_length, check_optional};
use crate::reference::pointwise::{sigmoid, silu, silu_derivative};

/// The gradients of a scan.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backward<'a, S = f64> {
    /// The scan whose gradients are asked for.
    pub forward: Forward<'a, S>,
    /// As `u`: the gradient of `out`.
    pub dout: &'a [f64],
    /// `[sequences, dim, dstate]`: the gradient of `last_state`; `None`: zeros.
    pub dlast_state: Option<&'a [S]>,
}

/// What [`Backward`] returns. D, `delta_bias` and the initial state count as zeros where they are absent, and have a
/// gradient as well. That of a complex number is explained at [`Number`].
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients<S = f64> {
    /// As `u`.
    pub du: Vec<f64>,
    /// As `delta`: with respect to what was given, before bias and softplus.
    pub ddelta: Vec<f64>,
    /// As A.
    pub da: Vec<S>,
    /// As B: `[dim, dstate]` if constant, `[batch, groups, dstate, seqlen]` if variable.
    pub db: Vec<S>,
    /// As C.
    pub dc: Vec<S>,
    /// As D.
    pub dd: Vec<f64>,
    /// As `z`, if there is one.
    pub dz: Option<Vec<f64>>,
    /// As `delta_bias`.
    pub ddelta_bias: Vec<f64>,
    /// As `initial_state`.
    pub dinitial_state: Vec<S>,
}

impl<S: Number> Backward<'_, S> {
    /// The gradients, in `f64` throughout, in the notation of [`Forward::run`]; `g[t]` is the gradient of the state
    /// `x[t]`, `conj` the complex conjugate, and `r` is 1 for real numbers, 2 for complex ones:
    ///
    /// ```text
    /// dz[t]      = dout[t] y[t] silu'(z[t])
    /// dy[t]      = dout[t] silu(z[t])                                  or dout[t] without z
    /// g[t]       = conj(exp(delta'[t+1] A)) g[t+1] + r dy[t] conj(C[t])    at the last step dlast_state + ...
    /// ddelta'[t] = sum over states of Re(g[t] conj(A exp(delta'[t] A) x[t-1] + B[t] u[t]))
    /// ddelta[t]  = ddelta'[t] softplus'(delta[t] + delta_bias)         or ddelta'[t] without softplus
    /// du[t]      = sum over states of Re(g[t] conj(delta'[t] B[t])) + D dy[t]
    /// dA         = sum over sequences and t of g[t] conj(delta'[t] exp(delta'[t] A) x[t-1])
    /// dB[t]      = sum over the channels of the group of g[t] delta'[t] u[t]     constant: over sequences and t
    /// dC[t]      = sum over the channels of the group of r dy[t] conj(x[t])      constant: over sequences and t
    /// dD         = sum over sequences and t of dy[t] u[t]
    /// ddelta_bias = sum over sequences and t of ddelta[t]
    /// dinitial_state = conj(exp(delta'[0] A)) g[0]
    /// ```
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Gradients<S>, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formulas as a naive implementation with tensors of a narrow type computes them: `round` is applied
    /// to `y`, `silu(z)` and `dy`, and to the gradients of what comes in that type: `du`, `ddelta`, `dz`, and `dB`
    /// and `dC` where these are variable. The gradients of A, D, `delta_bias`, the initial state and constant B and C
    /// are not rounded themselves.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Gradients<S>, Mismatch> {
        let forward = &self.forward;
        let Forward { dim, dstate, .. } = *forward;
        let sequences = forward.check()?;
        let states = [sequences.len(), dim, dstate];
        check_length("length of dout", &[forward.u.len()], self.dout.len())?;
        check_optional("length of dlast_state", &states, self.dlast_state)?;
        let zero = S::default();
        let mut result = Gradients {
            du: vec![0.0; forward.u.len()],
            ddelta: vec![0.0; forward.u.len()],
            da: vec![zero; forward.a.len()],
            db: vec![zero; forward.b.values().len()],
            dc: vec![zero; forward.c.values().len()],
            dd: vec![0.0; dim],
            dz: forward.z.map(|z| vec![0.0; z.len()]),
            ddelta_bias: vec![0.0; dim],
            dinitial_state: Vec::new(),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for d in 0..dim {
                let x = forward.states(i, sequence, d);
                // What comes from the step behind, or from after the last one.
                let mut carried = match self.dlast_state {
                    Some(dlast) => dlast[(i * dim + d) * dstate..][..dstate].to_vec(),
                    None => vec![zero; dstate],
                };
                let order = forward.order(sequence);
                for (step, t) in order.into_iter().enumerate().rev() {
                    let at = forward.at(sequence, d, t);
                    let (u, delta) = (forward.u[at], forward.step_size(sequence, d, t));
                    let (before, after) = x[step * dstate..][..2 * dstate].split_at(dstate);
                    let mut dy = self.dout[at];
                    if let (Some(z), Some(dz)) = (forward.z, &mut result.dz) {
                        let y = round(forward.readout(sequence, d, t, after));
                        dz[at] = dy * y * silu_derivative(z[at]);
                        dy = round(dy * round(silu(z[at])));
                    }
                    let (mut du, mut ddelta) = (forward.d.map_or(0.0, |skip| skip[d] * dy), 0.0);
                    for n in 0..dstate {
                        let a = forward.a[d * dstate + n];
                        let at_b = forward.coefficient(forward.b, sequence, d, n, t);
                        let at_c = forward.coefficient(forward.c, sequence, d, n, t);
                        let b = forward.b.values()[at_b];
                        let c = forward.c.values()[at_c];
                        let decay = (a * delta).exp();
                        let g = carried[n] + c.conj() * (S::READOUT * dy);
                        let kept = decay * before[n];
                        ddelta += (g * (a * kept + b * u).conj()).re();
                        du += (g * (b * delta).conj()).re();
                        let da = &mut result.da[d * dstate + n];
                        *da = *da + g * (kept * delta).conj();
                        result.db[at_b] = result.db[at_b] + g * (delta * u);
                        result.dc[at_c] = result.dc[at_c] + after[n].conj() * (S::READOUT * dy);
                        carried[n] = decay.conj() * g;
                    }
                    if forward.delta_softplus {
                        ddelta *= sigmoid(forward.biased(sequence, d, t));
                    }
                    result.du[at] = du;
                    result.ddelta[at] = ddelta;
                    result.dd[d] += dy * u;
                    result.ddelta_bias[d] += ddelta;
                }
                result.dinitial_state.extend(carried);
            }
        }
        let round_all = |values: &mut Vec<f64>| values.iter_mut().for_each(|x| *x = round(*x));
        round_all(&mut result.du);
        round_all(&mut result.ddelta);
        result.dz.iter_mut().for_each(round_all);
        for (coefficient, gradient) in [(forward.b, &mut result.db), (forward.c, &mut result.dc)] {
            if let Coefficient::Variable(_) = coefficient {
                gradient.iter_mut().for_each(|x| *x = x.map(&round));
            }
        }
        Ok(result)
    }
}
