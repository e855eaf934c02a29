//! The gradients of attention by their formulas.

use super::head::{Head, HeadGradients, HeadOutput};
use super::{Chunks, Decay, Forward, Mismatch, Readout, Rule, Sequence};
use super::{check_length, check_optional};

/// The gradients of attention.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backward<'a> {
    /// The attention whose gradients are asked for.
    pub forward: Forward<'a>,
    /// `[batch, seqlen, heads, dv]`: the gradient of `out`.
    pub dout: &'a [f64],
    /// `[sequences, heads, dk, dv]`: the gradient of `final_state`; `None`: zeros.
    pub dfinal_state: Option<&'a [f64]>,
    /// `[sequences, heads, dk]`: the gradient of `final_z`, only with a normaliser; `None`: zeros.
    pub dfinal_z: Option<&'a [f64]>,
}

/// What [`Backward`] returns. The initial states count as zeros where they are absent, and have a gradient as well.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// As `q`: with respect to what was given, before the feature map.
    pub dq: Vec<f64>,
    /// As `k`, likewise.
    pub dk: Vec<f64>,
    /// As `v`.
    pub dv: Vec<f64>,
    /// As the tensor of [`Decay`], if there is one: of the logarithms.
    pub ddecay: Option<Vec<f64>>,
    /// As `beta`, if the rule is [`Rule::Delta`].
    pub dbeta: Option<Vec<f64>>,
    /// As the tensor of [`Readout::Bonus`], if there is one.
    pub dbonus: Option<Vec<f64>>,
    /// As `initial_state`.
    pub dinitial_state: Vec<f64>,
    /// As `initial_z`, if outputs are normalised.
    pub dinitial_z: Option<Vec<f64>>,
}

impl Backward<'_> {
    /// The gradients, in `f64` throughout, in the notation of [`Forward::run`]. `G[t]` is the gradient of the state
    /// `S[t]`, and `<,>` is the sum of products along rows, a number for each channel of the keys:
    ///
    /// ```text
    /// dq'[t]    = R[t] dout[t]
    /// G[t]      = q'[t] dout[t]^T + diag(exp(g[t+1])) G'[t+1]      at the last step dfinal_state + ...
    /// du[t]     = G[t]^T k'[t]
    /// dk'[t]    = G[t] u[t]                                        delta rule: ... - S'[t] dv[t]
    /// dv[t]     = du[t]                                            delta rule: beta[t] du[t]
    /// dbeta[t]  = du[t] . (v[t] - S'[t]^T k'[t])
    /// G'[t]     = G[t]                                             delta rule: G[t] - k'[t] dv[t]^T
    /// dg[t]     = exp(g[t]) <G'[t], S[t-1]>                        summed over what shares the decay
    /// dinitial_state = diag(exp(g[0])) G'[0]
    /// ```
    ///
    /// Where the last state is read, `G` begins with the sum over all steps of `q'[t] dout[t]^T` and gets nothing
    /// later. With a bonus, `q'[t] dout[t]^T` is added after step `t` instead, to the gradient of `S[t-1]`, and the
    /// step's own part of `R` gives, with `a[t] = u[t] . dout[t]`,
    ///
    /// ```text
    /// dk'[t] += bonus q'[t] a[t],   du[t] += (q'[t] . (bonus k'[t])) dout[t],   dbonus = sum of q'[t] k'[t] a[t]
    /// ```
    ///
    /// Feature map and scale are `dq = scale f'(q) dq'` and `dk = f'(k) dk'`, summed over the heads that share a query
    /// or a key. Before all that, the division by `n[t] + eps` makes of `dout[t]` for the values' channels and the
    /// normaliser's one
    ///
    /// ```text
    /// dout[t] / (n[t] + eps)    and    -(dout[t] . out[t]) / (n[t] + eps)
    /// ```
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Gradients, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formulas as a naive implementation on tensor cores of a narrow type computes them: `round` is applied
    /// to what enters a product, which is `f(q)`, `f(k)`, `u` and `dv`, and `S`, `S'`, `R` and `G` where they are
    /// multiplied with a vector; and to `dq`, `dk`, `dv` and `dbeta`. The states and their gradients as they are
    /// carried on, their product with each other and the gradients of decays, bonus and initial states are in `f32` and
    /// not rounded.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Gradients, Mismatch> {
        self.run_by(
            &round,
            |head| head.run(&round),
            |head, dout, dstate| head.gradients(dout, dstate, &round),
        )
    }

    /// The same numbers by the chunked algorithm: see [`Chunks`].
    ///
    /// # Errors
    /// As [`Forward::run_chunked`].
    pub fn run_chunked(&self, chunks: Chunks) -> Result<Gradients, Mismatch> {
        self.run_chunked_rounded(chunks, |x| x)
    }

    /// The chunked algorithm as a naive implementation on tensor cores of a narrow type computes it: `round` is applied
    /// to all operands of products of matrices, which are those of [`Forward::run_chunked_rounded`], `M`, and the
    /// gradients of `A`, of `M`, of `U`, of values and of states; and to `dq`, `dk`, `dv` and `dbeta`. Sums are exact,
    /// and so are the states and their gradients as they are carried on and in products with each other.
    ///
    /// This is the yardstick for what [`run_rounded`](Self::run_rounded) has exactly, which is the gradients of decays
    /// and initial states of the linear rule.
    ///
    /// # Errors
    /// As [`Forward::run_chunked`].
    pub fn run_chunked_rounded(
        &self,
        chunks: Chunks,
        round: impl Fn(f64) -> f64,
    ) -> Result<Gradients, Mismatch> {
        chunks.check()?;
        self.run_by(
            &round,
            |head| chunks.run(head, &round),
            |head, dout, dstate| chunks.gradients(head, dout, dstate, &round),
        )
    }

    /// Gathers each head, runs it by `run` and `gradients`, and puts the results where they belong.
    fn run_by(
        &self,
        round: &impl Fn(f64) -> f64,
        run: impl Fn(&Head) -> HeadOutput,
        gradients: impl Fn(&Head, &[f64], &[f64]) -> HeadGradients,
    ) -> Result<Gradients, Mismatch> {
        let forward = &self.forward;
        let sequences = self.check()?;
        let zeros = |like: &[f64]| vec![0.0; like.len()];
        let mut result = Gradients {
            dq: zeros(forward.q),
            dk: zeros(forward.k),
            dv: zeros(forward.v),
            ddecay: match forward.decay {
                Decay::None => None,
                decay => Some(zeros(decay.values())),
            },
            dbeta: match forward.rule {
                Rule::Linear => None,
                Rule::Delta { beta } => Some(zeros(beta)),
            },
            dbonus: match forward.readout {
                Readout::Bonus(bonus) => Some(zeros(bonus)),
                _ => None,
            },
            dinitial_state: Vec::new(),
            dinitial_z: forward.normalize.map(|_| Vec::new()),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for h in 0..forward.heads {
                let head = forward.head(i, sequence, h, round);
                let dout = self.dout(sequence, h, &run(&head).out, round);
                let gradients = gradients(&head, &dout, &self.dstate(i, h));
                result.add(forward, sequence, h, &gradients);
                let (states, z) = (&mut result.dinitial_state, result.dinitial_z.as_mut());
                forward.split(&gradients.state, states, z);
            }
        }
        for (given, gradient) in [(forward.q, &mut result.dq), (forward.k, &mut result.dk)] {
            for (x, dx) in given.iter().zip(gradient) {
                *dx *= forward.feature_map.derivative(*x);
            }
        }
        let Gradients { dq, dk, dv, .. } = &mut result;
        let round_all = |values: &mut Vec<f64>| values.iter_mut().for_each(|x| *x = round(*x));
        [dq, dk, dv].into_iter().for_each(round_all);
        result.dbeta.iter_mut().for_each(round_all);
        Ok(result)
    }

    /// The gradient of what a head reads out, `[steps, dv]` with the normaliser's channel; `out` is what it read.
    fn dout(
        &self,
        sequence: &Sequence,
        h: usize,
        out: &[f64],
        round: &impl Fn(f64) -> f64,
    ) -> Vec<f64> {
        let dv = self.forward.dv;
        let steps = sequence.steps.clone();
        let given = steps.map(|t| &self.dout[self.forward.at_out(sequence, t, h)..][..dv]);
        let Some(eps) = self.forward.normalize else {
            return given.flatten().copied().collect();
        };
        let mut result = Vec::new();
        for (dout, out) in given.zip(out.chunks(dv + 1)) {
            let divisor = out[dv] + eps;
            let along: f64 = dout.iter().zip(out).map(|(dout, out)| dout * out).sum();
            result.extend(dout.iter().map(|x| round(x / divisor)));
            result.push(round(-along / (divisor * divisor)));
        }
        result
    }

    /// The gradient of the last state of head `h` of the `i`-th sequence, with the normaliser's column.
    fn dstate(&self, i: usize, h: usize) -> Vec<f64> {
        let Forward { heads, dk, dv, .. } = self.forward;
        let mut result = Vec::new();
        for row in ((i * heads + h) * dk..).take(dk) {
            match self.dfinal_state {
                Some(dstate) => result.extend(&dstate[row * dv..][..dv]),
                None => result.extend((0..dv).map(|_| 0.0)),
            }
            let dz = self.dfinal_z.map_or(0.0, |dz| dz[row]);
            result.extend(self.forward.normalize.map(|_| dz));
        }
        result
    }

    fn check(&self) -> Result<Vec<Sequence>, Mismatch> {
        let forward = &self.forward;
        let sequences = forward.check()?;
        let Forward {
            batch,
            seqlen,
            heads,
            dk,
            dv,
            ..
        } = *forward;
        check_length(
            "length of dout",
            &[batch, seqlen, heads, dv],
            self.dout.len(),
        )?;
        let states = [sequences.len(), heads, dk, dv];
        check_optional("length of dfinal_state", &states, self.dfinal_state)?;
        let z = forward.z_sizes(&sequences);
        check_optional("length of dfinal_z", &z, self.dfinal_z)?;
        Ok(sequences)
    }
}

impl Gradients {
    /// Adds what one head has found; feature maps are left to do.
    fn add(&mut self, forward: &Forward<'_>, sequence: &Sequence, h: usize, from: &HeadGradients) {
        let Forward { dk, dv, .. } = *forward;
        let width = dv + usize::from(forward.normalize.is_some());
        for (step, t) in sequence.steps.clone().enumerate() {
            let (at_q, at_k) = (forward.at_q(sequence, t, h), forward.at_k(sequence, t, h));
            for c in 0..dk {
                self.dq[at_q + c] += forward.scale() * from.q[step * dk + c];
                self.dk[at_k + c] += from.k[step * dk + c];
                let at_decay = forward.at_decay(sequence, t, h, c);
                if let (Some(ddecay), Some(at)) = (&mut self.ddecay, at_decay) {
                    ddecay[at] += from.decay[step * dk + c];
                }
            }
            let at_v = forward.at_v(sequence, t, h);
            for e in 0..dv {
                self.dv[at_v + e] += from.v[step * width + e];
            }
            if let Some(dbeta) = &mut self.dbeta {
                dbeta[forward.at_step(sequence, t, h)] = from.beta[step];
            }
        }
        if let Some(dbonus) = &mut self.dbonus {
            for c in 0..dk {
                dbonus[h * dk + c] += from.bonus[c];
            }
        }
    }
}
