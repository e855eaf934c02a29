//! [`Head`]: one head of one sequence, taken out of a problem; all of linear attention that is left to do is one
//! recurrence of matrices.

use super::{Decay, Forward, Readout, Rule, Sequence};

/// One head of one sequence: feature maps and scale are applied, decays spread over steps and channels, and with a
/// normaliser the values have one more channel, of ones.
pub(super) struct Head {
    pub(super) steps: usize,
    pub(super) dk: usize,
    /// With the normaliser's channel, if there is one.
    pub(super) dv: usize,
    /// `[steps, dk]`: mapped and scaled.
    pub(super) q: Vec<f64>,
    /// `[steps, dk]`: mapped.
    pub(super) k: Vec<f64>,
    /// `[steps, dv]`
    pub(super) v: Vec<f64>,
    /// `[steps, dk]`: logarithms of decays.
    pub(super) decay: Vec<f64>,
    /// `[steps]`, if the rule is the delta rule.
    pub(super) beta: Option<Vec<f64>>,
    pub(super) reads: Reads,
    /// `[dk, dv]`: the state before the first step.
    pub(super) state: Vec<f64>,
}

/// [`Readout`] of one head.
pub(super) enum Reads {
    Updated,
    /// `[dk]`
    Bonus(Vec<f64>),
    Last,
}

/// What one head gives.
pub(super) struct HeadOutput {
    /// `[steps, dv]`
    pub(super) out: Vec<f64>,
    /// `[dk, dv]`: the state after the last step.
    pub(super) state: Vec<f64>,
}

/// Gradients with respect to the fields of [`Head`] of the same names; what there is no use for stays 0.
pub(super) struct HeadGradients {
    pub(super) q: Vec<f64>,
    pub(super) k: Vec<f64>,
    pub(super) v: Vec<f64>,
    pub(super) decay: Vec<f64>,
    /// `[steps]`
    pub(super) beta: Vec<f64>,
    /// `[dk]`
    pub(super) bonus: Vec<f64>,
    pub(super) state: Vec<f64>,
}

impl HeadGradients {
    pub(super) fn zeros(head: &Head) -> Self {
        Self {
            q: vec![0.0; head.q.len()],
            k: vec![0.0; head.k.len()],
            v: vec![0.0; head.v.len()],
            decay: vec![0.0; head.decay.len()],
            beta: vec![0.0; head.steps],
            bonus: vec![0.0; head.dk],
            state: vec![0.0; head.state.len()],
        }
    }
}

impl Forward<'_> {
    /// Takes head `h` of the `i`-th sequence out of the tensors; `round` is applied to what feature maps give.
    pub(super) fn head(
        &self,
        i: usize,
        sequence: &Sequence,
        h: usize,
        round: &impl Fn(f64) -> f64,
    ) -> Head {
        let mapped = |x: &f64| round(self.feature_map.apply(*x));
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        let mut decay = Vec::new();
        for t in sequence.steps.clone() {
            let query = &self.q[self.at_q(sequence, t, h)..][..self.dk];
            q.extend(query.iter().map(mapped).map(|x| self.scale() * x));
            k.extend(
                self.k[self.at_k(sequence, t, h)..][..self.dk]
                    .iter()
                    .map(mapped),
            );
            v.extend(&self.v[self.at_v(sequence, t, h)..][..self.dv]);
            v.extend(self.normalize.map(|_| 1.0));
            decay.extend(
                (0..self.dk).map(|c| match self.at_decay(sequence, t, h, c) {
                    Some(at) => self.decay.values()[at],
                    None => 0.0,
                }),
            );
        }
        let mut state = Vec::new();
        for c in 0..self.dk {
            let row = (i * self.heads + h) * self.dk + c;
            match self.initial_state {
                Some(states) => state.extend(&states[row * self.dv..][..self.dv]),
                None => state.extend((0..self.dv).map(|_| 0.0)),
            }
            state.extend(
                self.normalize
                    .map(|_| self.initial_z.map_or(0.0, |z| z[row])),
            );
        }
        let at_step = |beta: &[f64], t| beta[self.at_step(sequence, t, h)];
        Head {
            steps: sequence.steps.len(),
            dk: self.dk,
            dv: self.dv + usize::from(self.normalize.is_some()),
            q,
            k,
            v,
            decay,
            beta: match self.rule {
                Rule::Linear => None,
                Rule::Delta { beta } => {
                    Some(sequence.steps.clone().map(|t| at_step(beta, t)).collect())
                }
            },
            reads: match self.readout {
                Readout::Updated => Reads::Updated,
                Readout::Bonus(bonus) => Reads::Bonus(bonus[h * self.dk..][..self.dk].to_vec()),
                Readout::Last => Reads::Last,
            },
            state,
        }
    }

    /// Appends the rows of a head's state to those of all states, and the normaliser's column to `z`.
    pub(super) fn split(&self, state: &[f64], states: &mut Vec<f64>, z: Option<&mut Vec<f64>>) {
        let width = self.dv + usize::from(self.normalize.is_some());
        for row in state.chunks(width.max(1)) {
            states.extend(&row[..self.dv]);
        }
        if let Some(z) = z {
            z.extend(state.chunks(width).map(|row| row[self.dv]));
        }
    }

    pub(super) fn scale(&self) -> f64 {
        self.scale.unwrap_or(1.0 / (self.dk as f64).sqrt())
    }

    /// Where state `h` has its query at step `t`.
    pub(super) fn at_q(&self, sequence: &Sequence, t: usize, h: usize) -> usize {
        let group = h / (self.heads / self.heads_q);
        (self.token(sequence, t) * self.heads_q + group) * self.dk
    }

    /// Where state `h` has its key at step `t`.
    pub(super) fn at_k(&self, sequence: &Sequence, t: usize, h: usize) -> usize {
        let group = h / (self.heads / self.heads_k);
        (self.token(sequence, t) * self.heads_k + group) * self.dk
    }

    /// Where state `h` has its value at step `t`.
    pub(super) fn at_v(&self, sequence: &Sequence, t: usize, h: usize) -> usize {
        let group = h / (self.heads / self.heads_v);
        (self.token(sequence, t) * self.heads_v + group) * self.dv
    }

    /// Where state `h` has its output at step `t`.
    pub(super) fn at_out(&self, sequence: &Sequence, t: usize, h: usize) -> usize {
        self.at_step(sequence, t, h) * self.dv
    }

    /// Where state `h` has its `beta` at step `t`.
    pub(super) fn at_step(&self, sequence: &Sequence, t: usize, h: usize) -> usize {
        self.token(sequence, t) * self.heads + h
    }

    /// Where channel `c` of state `h` has its decay at step `t`.
    pub(super) fn at_decay(
        &self,
        sequence: &Sequence,
        t: usize,
        h: usize,
        c: usize,
    ) -> Option<usize> {
        let step = self.at_step(sequence, t, h);
        match self.decay {
            Decay::None => None,
            Decay::PerHead(_) => Some(h),
            Decay::PerStep(_) => Some(step),
            Decay::PerChannel(_) => Some(step * self.dk + c),
        }
    }

    fn token(&self, sequence: &Sequence, t: usize) -> usize {
        sequence.batch * self.seqlen + t
    }
}
