//! The gradients of the layer by their formulas.

use super::{Forward, Mismatch, Skip, check_length, check_optional};
use crate::reference::pointwise::{sigmoid, silu, silu_derivative};

/// The gradients of a layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backward<'a> {
    /// The layer whose gradients are asked for.
    pub forward: Forward<'a>,
    /// As `x`: the gradient of `out`.
    pub dout: &'a [f64],
    /// `[sequences, nheads, headdim, dstate]`: the gradient of `final_states`; `None`: zeros.
    pub dfinal_states: Option<&'a [f64]>,
}

/// What [`Backward`] returns. D (as one number a head), `dt_bias` and the initial states count as zeros where they are
/// absent, and have a gradient as well.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// As `x`.
    pub dx: Vec<f64>,
    /// As `dt`: with respect to what was given, before bias, softplus and limits.
    pub ddt: Vec<f64>,
    /// As A.
    pub da: Vec<f64>,
    /// As B.
    pub db: Vec<f64>,
    /// As C.
    pub dc: Vec<f64>,
    /// As D.
    pub dd: Vec<f64>,
    /// As `z`, if there is one.
    pub dz: Option<Vec<f64>>,
    /// As `dt_bias`.
    pub ddt_bias: Vec<f64>,
    /// As `initial_states`.
    pub dinitial_states: Vec<f64>,
}

impl Backward<'_> {
    /// The gradients, in `f64` throughout, in the notation of [`Forward::run`]; `G[t]` is the gradient of the state
    /// `S[t]`, and `<,>` is the sum of all products of elements:
    ///
    /// ```text
    /// dz[t]   = dout[t] y[t] silu'(z[t])
    /// dy[t]   = dout[t] silu(z[t])                     or dout[t] without z
    /// G[t]    = exp(dt'[t+1] A) G[t+1] + dy[t] C[t]^T        at the last step dfinal_states + ...
    /// dx[t]   = dt'[t] G[t] B[t] + D dy[t]
    /// dB[t]   = sum over the heads of the group of G[t]^T (dt'[t] x[t])
    /// dC[t]   = sum over the heads of the group of S[t]^T dy[t]
    /// ddt'[t] = A exp(dt'[t] A) <G[t], S[t-1]> + x[t]^T G[t] B[t]
    /// ddt[t]  = ddt'[t] softplus'(dt[t] + dt_bias)     or ddt'[t] without softplus; 0 beyond dt_limit
    /// dA      = sum over sequences and t of dt'[t] exp(dt'[t] A) <G[t], S[t-1]>
    /// dD      = sum over sequences, t and the channels that share it of dy[t] x[t]
    /// ddt_bias = sum over sequences and t of ddt[t]
    /// dinitial_states = exp(dt'[0] A) G[0]
    /// ```
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Gradients, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formulas as a naive implementation on tensor cores of a narrow type computes them: `round` is applied
    /// to what enters a product, which is `dt' x`, `S` and `G` where they are multiplied with C, B, x or dy; to `y`,
    /// `silu(z)` and `dy`; and to the gradients of what comes in that type: `dx`, `ddt`, `dB`, `dC`, `dz`. `S` and `G`
    /// as they are carried on, and their product with each other, are in `f32` and not rounded; neither are the
    /// gradients of A, D, `dt_bias` and the initial states themselves.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Gradients, Mismatch> {
        let forward = &self.forward;
        let Forward {
            nheads,
            headdim,
            dstate,
            x,
            b,
            c,
            ..
        } = *forward;
        let sequences = forward.check()?;
        let sizes = [sequences.len(), nheads, headdim, dstate];
        check_length("length of dout", &[x.len()], self.dout.len())?;
        check_optional("length of dfinal_states", &sizes, self.dfinal_states)?;
        let per_channel = matches!(forward.d, Some(Skip::PerChannel(_)));
        let mut result = Gradients {
            dx: vec![0.0; x.len()],
            ddt: vec![0.0; forward.dt.len()],
            da: vec![0.0; nheads],
            db: vec![0.0; b.len()],
            dc: vec![0.0; c.len()],
            dd: vec![
                0.0;
                if per_channel {
                    nheads * headdim
                } else {
                    nheads
                }
            ],
            dz: forward.z.map(|z| vec![0.0; z.len()]),
            ddt_bias: vec![0.0; nheads],
            dinitial_states: Vec::new(),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for h in 0..nheads {
                let mut states = vec![forward.initial_state(i, h)];
                for (at, t) in sequence.steps.clone().enumerate() {
                    let step = forward.step(sequence, t, h);
                    states.push(forward.next(&step, &states[at], &round));
                }
                // What comes from the step behind, or from after the last one.
                let mut g = match self.dfinal_states {
                    Some(dfinal) => {
                        let size = headdim * dstate;
                        dfinal[(i * nheads + h) * size..][..size].to_vec()
                    }
                    None => vec![0.0; headdim * dstate],
                };
                for (at, t) in sequence.steps.clone().enumerate().rev() {
                    let step = forward.step(sequence, t, h);
                    let (before, after) = (&states[at], &states[at + 1]);
                    let y = forward.readout(&step, after, &round);
                    let mut along_decay = 0.0;
                    let mut along_input = 0.0;
                    for p in 0..headdim {
                        let input = x[step.x + p];
                        let mut dy = self.dout[step.x + p];
                        if let (Some(z), Some(dz)) = (forward.z, &mut result.dz) {
                            let z = z[step.x + p];
                            dz[step.x + p] = dy * y[p] * silu_derivative(z);
                            dy = round(dy * round(silu(z)));
                        }
                        let mut through_state = 0.0;
                        for n in 0..dstate {
                            let at = p * dstate + n;
                            g[at] += dy * c[step.b + n];
                            result.dc[step.b + n] += round(after[at]) * dy;
                            result.db[step.b + n] += round(g[at]) * round(step.size * input);
                            through_state += round(g[at]) * b[step.b + n];
                            along_decay += g[at] * before[at];
                            g[at] *= step.decay;
                        }
                        along_input += input * through_state;
                        result.dx[step.x + p] = step.size * through_state + forward.skip(h, p) * dy;
                        let skip = if per_channel { h * headdim + p } else { h };
                        result.dd[skip] += dy * input;
                    }
                    let mut ddt = forward.a[h] * step.decay * along_decay + along_input;
                    if step.limited {
                        ddt = 0.0;
                    } else if forward.dt_softplus {
                        ddt *= sigmoid(step.biased);
                    }
                    result.ddt[step.dt] = ddt;
                    result.ddt_bias[h] += ddt;
                    result.da[h] += step.size * step.decay * along_decay;
                }
                result.dinitial_states.extend(g);
            }
        }
        let round_all = |values: &mut Vec<f64>| values.iter_mut().for_each(|x| *x = round(*x));
        let Gradients {
            dx, ddt, db, dc, ..
        } = &mut result;
        [dx, ddt, db, dc].into_iter().for_each(round_all);
        result.dz.iter_mut().for_each(round_all);
        Ok(result)
    }
}
