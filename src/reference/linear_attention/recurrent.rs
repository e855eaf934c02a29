//! The recurrence of one head, step by step, and its gradients.

use super::head::{Head, HeadGradients, HeadOutput, Reads};

/// One step of the recurrence.
struct Update {
    /// `[dk, dv]`: `S'`, what the decay left of the state.
    kept: Vec<f64>,
    /// `[dv]`: `v - S'^T k`, or `v` by the linear rule.
    error: Vec<f64>,
    /// `[dv]`: `u`.
    u: Vec<f64>,
    /// `[dk, dv]`: the state after the step.
    after: Vec<f64>,
}

impl Head {
    /// `out` and the last state, as `Forward::run_rounded` says.
    pub(super) fn run(&self, round: &impl Fn(f64) -> f64) -> HeadOutput {
        let mut state = self.state.clone();
        let mut out = Vec::with_capacity(self.steps * self.dv);
        for t in 0..self.steps {
            let update = self.update(t, &state, round);
            if !matches!(self.reads, Reads::Last) {
                out.extend(self.product(self.query(t), &self.read(t, &state, &update), round));
            }
            state = update.after;
        }
        if matches!(self.reads, Reads::Last) {
            for t in 0..self.steps {
                out.extend(self.product(self.query(t), &state, round));
            }
        }
        HeadOutput { out, state }
    }

    /// The gradients, as `Backward::run_rounded` says; `dout` is `[steps, dv]`, `dstate` that of the last state.
    pub(super) fn gradients(
        &self,
        dout: &[f64],
        dstate: &[f64],
        round: &impl Fn(f64) -> f64,
    ) -> HeadGradients {
        let (dk, dv) = (self.dk, self.dv);
        let mut result = HeadGradients::zeros(self);
        let mut states = vec![self.state.clone()];
        for t in 0..self.steps {
            states.push(self.update(t, &states[t], round).after);
        }
        // The gradient of the state that the next step begins with.
        let mut g = dstate.to_vec();
        if matches!(self.reads, Reads::Last) {
            for t in 0..self.steps {
                let dout = &dout[t * dv..][..dv];
                add_outer(&mut g, self.query(t), dout);
                add(
                    &mut result.q[t * dk..],
                    &self.times(&states[self.steps], dout, round),
                );
            }
        }
        for t in (0..self.steps).rev() {
            let update = self.update(t, &states[t], round);
            let (q, k, dout) = (self.query(t), self.key(t), &dout[t * dv..][..dv]);
            let (dq, dkey) = (&mut result.q[t * dk..], &mut result.k[t * dk..]);
            let mut du = vec![0.0; dv];
            match &self.reads {
                Reads::Last => {}
                Reads::Updated => {
                    add(dq, &self.times(&update.after, dout, round));
                    add_outer(&mut g, q, dout);
                }
                Reads::Bonus(bonus) => {
                    add(
                        dq,
                        &self.times(&self.read(t, &states[t], &update), dout, round),
                    );
                    let along: f64 = update.u.iter().zip(dout).map(|(u, dout)| u * dout).sum();
                    for c in 0..dk {
                        dkey[c] += q[c] * bonus[c] * along;
                        result.bonus[c] += q[c] * k[c] * along;
                        for (du, dout) in du.iter_mut().zip(dout) {
                            *du += q[c] * bonus[c] * k[c] * dout;
                        }
                    }
                }
            }
            add(&mut du, &self.product(k, &g, round));
            add(dkey, &self.times(&g, &update.u, round));
            let derror = match &self.beta {
                None => du,
                Some(beta) => {
                    result.beta[t] = du.iter().zip(&update.error).map(|(du, e)| du * e).sum();
                    let derror: Vec<f64> = du.iter().map(|du| round(beta[t] * du)).collect();
                    let found = self.times(&update.kept, &derror, round);
                    for (dkey, found) in dkey.iter_mut().zip(found) {
                        *dkey -= found;
                    }
                    let minus: Vec<f64> = derror.iter().map(|x| -x).collect();
                    add_outer(&mut g, k, &minus);
                    derror
                }
            };
            result.v[t * dv..][..dv].copy_from_slice(&derror);
            // g is now the gradient of what the decay left.
            for (c, row) in g.chunks_mut(dv.max(1)).enumerate() {
                let decay = self.decay[t * dk + c].exp();
                for (g, kept) in row.iter_mut().zip(&update.kept[c * dv..]) {
                    result.decay[t * dk + c] += *g * kept;
                    *g *= decay;
                }
            }
            if let Reads::Bonus(_) = self.reads {
                add_outer(&mut g, q, dout);
            }
        }
        result.state = g;
        result
    }

    /// What step `t` makes of the state before it.
    fn update(&self, t: usize, before: &[f64], round: &impl Fn(f64) -> f64) -> Update {
        let mut kept = before.to_vec();
        for (c, row) in kept.chunks_mut(self.dv.max(1)).enumerate() {
            let decay = self.decay[t * self.dk + c].exp();
            row.iter_mut().for_each(|x| *x *= decay);
        }
        let mut error = self.v[t * self.dv..][..self.dv].to_vec();
        let mut u = error.clone();
        if let Some(beta) = &self.beta {
            let found = self.product(self.key(t), &kept, round);
            for e in 0..self.dv {
                error[e] -= found[e];
                u[e] = round(beta[t] * error[e]);
            }
        }
        let mut after = kept.clone();
        add_outer(&mut after, self.key(t), &u);
        Update {
            kept,
            error,
            u,
            after,
        }
    }

    /// The matrix that the query of a step reads, unless that is the last state.
    fn read(&self, t: usize, before: &[f64], update: &Update) -> Vec<f64> {
        let Reads::Bonus(bonus) = &self.reads else {
            return update.after.clone();
        };
        let passed: Vec<f64> = bonus.iter().zip(self.key(t)).map(|(b, k)| b * k).collect();
        let mut read = before.to_vec();
        add_outer(&mut read, &passed, &update.u);
        read
    }

    pub(super) fn query(&self, t: usize) -> &[f64] {
        &self.q[t * self.dk..][..self.dk]
    }

    pub(super) fn key(&self, t: usize) -> &[f64] {
        &self.k[t * self.dk..][..self.dk]
    }

    /// `[dv]`: `matrix^T x` for a matrix `[dk, dv]`, which is rounded.
    fn product(&self, x: &[f64], matrix: &[f64], round: &impl Fn(f64) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.dv];
        for (x, row) in x.iter().zip(matrix.chunks(self.dv.max(1))) {
            for (sum, m) in sums.iter_mut().zip(row) {
                *sum += x * round(*m);
            }
        }
        sums
    }

    /// `[dk]`: `matrix y` for a matrix `[dk, dv]`, which is rounded.
    fn times(&self, matrix: &[f64], y: &[f64], round: &impl Fn(f64) -> f64) -> Vec<f64> {
        let row = |c: usize| &matrix[c * self.dv..][..self.dv];
        let sum = |c| row(c).iter().zip(y).map(|(m, y)| round(*m) * y).sum();
        (0..self.dk).map(sum).collect()
    }
}

/// Adds `x y^T` to a matrix.
fn add_outer(matrix: &mut [f64], x: &[f64], y: &[f64]) {
    for (x, row) in x.iter().zip(matrix.chunks_mut(y.len().max(1))) {
        for (m, y) in row.iter_mut().zip(y) {
            *m += x * y;
        }
    }
}

/// Adds each element of `what` to that of `to` at its place.
fn add(to: &mut [f64], what: &[f64]) {
    for (to, what) in to.iter_mut().zip(what) {
        *to += what;
    }
}
