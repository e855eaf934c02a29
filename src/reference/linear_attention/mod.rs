//! Linear attention: attention without the softmax, so that a matrix of fixed size stands for all keys and values so
//! far; with decays, gates and the delta rule. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive
//! Transformers with Linear Attention", 2020; see [`Decay`], [`Rule`] and [`Readout`] for what others added.
//!
//! [`Forward::run`] and [`Backward::run`] are the recurrences, step by step; [`Forward::run_chunked`] and
//! [`Backward::run_chunked`] compute the same numbers as kernels do, chunk by chunk.

mod backward;
mod chunks;
mod chunks_backward;
mod feature_map;
mod head;
mod recurrent;
mod scores;
mod step;
#[cfg(test)]
mod tests;

pub use backward::{Backward, Gradients};
pub use chunks::Chunks;
pub use feature_map::FeatureMap;
pub use step::Step;

use super::{Mismatch, Sequence, check_groups, check_length, check_optional, sequences};
use head::{Head, HeadOutput};

/// How the state fades before each update. All are natural logarithms: 0 keeps everything, `-infinity` forgets it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Decay<'a> {
    /// Not at all.
    #[default]
    None,
    /// `[heads]`: alike at each step; RetNet: Sun et al., "Retentive Network", 2023; Lightning Attention-2: Qin et
    /// al., 2024.
    PerHead(&'a [f64]),
    /// `[batch, seqlen, heads]`: a gate of each step, as in Mamba-2; Gated DeltaNet: Yang et al., 2024.
    PerStep(&'a [f64]),
    /// `[batch, seqlen, heads, dk]`: a gate of each step for each channel of the keys; Gated Linear Attention: Yang
    /// et al., 2023; RWKV-6: Peng et al., "Eagle and Finch", 2024.
    PerChannel(&'a [f64]),
}

impl<'a> Decay<'a> {
    /// The numbers, however they are arranged.
    fn values(self) -> &'a [f64] {
        match self {
            Self::None => &[],
            Self::PerHead(values) | Self::PerStep(values) | Self::PerChannel(values) => values,
        }
    }
}

/// What a step adds to the state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Rule<'a> {
    /// `k v^T`: a sum of outer products.
    #[default]
    Linear,
    /// `k (beta (v - S^T k))^T`: what the state has for this key moves towards `v`, wholly if `beta` is 1 and `k` of
    /// length 1. Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers", 2021; Yang et al.,
    /// "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024.
    Delta {
        /// `[batch, seqlen, heads]`
        beta: &'a [f64],
    },
}

/// Which state a query reads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Readout<'a> {
    /// The one after its own step: causal attention.
    #[default]
    Updated,
    /// The one before its own step, and of its own step what the bonus lets through (RWKV-6): `[heads, dk]`, a factor
    /// of each channel of the key.
    Bonus(&'a [f64]),
    /// The one after the last step of the sequence: attention that is not causal.
    Last,
}

/// One problem: sizes, tensors (contiguous, row-major) and options.
///
/// There are `heads` states, each with its own decay, update and output. Queries, keys and values may be shared: with
/// `heads_k` heads of keys, state `h` takes keys from head `h / (heads / heads_k)`, and so on.
///
/// ```
/// use seqmix::reference::linear_attention::{Decay, Forward};
///
/// // A state of one number that halves with each step.
/// let problem = Forward {
///     batch: 1, seqlen: 3, heads: 1, heads_q: 1, heads_k: 1, heads_v: 1, dk: 1, dv: 1,
///     q: &[1.0, 1.0, 10.0],
///     k: &[1.0, 1.0, 0.0],
///     v: &[8.0, 2.0, 5.0],
///     decay: Decay::PerHead(&[-std::f64::consts::LN_2]),
///     ..Forward::default()
/// };
/// let result = problem.run()?;
/// assert_eq!(result.out, [8.0, 4.0 + 2.0, 30.0]);
/// assert_eq!(result.final_state, [3.0]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'a> {
    /// Number of independent sequences; 1 with `cu_seqlens`.
    pub batch: usize,
    /// Steps of each sequence; with `cu_seqlens`, of all together.
    pub seqlen: usize,
    /// States of a sequence, and heads of the output.
    pub heads: usize,
    /// Heads of `q`; a divisor of `heads`, as the next two.
    pub heads_q: usize,
    /// Heads of `k`.
    pub heads_k: usize,
    /// Heads of `v`.
    pub heads_v: usize,
    /// Channels of a query and of a key.
    pub dk: usize,
    /// Channels of a value.
    pub dv: usize,
    /// `[batch, seqlen, heads_q, dk]`
    pub q: &'a [f64],
    /// `[batch, seqlen, heads_k, dk]`
    pub k: &'a [f64],
    /// `[batch, seqlen, heads_v, dv]`
    pub v: &'a [f64],
    /// Applied to `q` and to `k`.
    pub feature_map: FeatureMap,
    /// Multiplies the mapped queries; `None`: `1 / sqrt(dk)`.
    pub scale: Option<f64>,
    /// How states fade.
    pub decay: Decay<'a>,
    /// What a step adds.
    pub rule: Rule<'a>,
    /// Which state a query reads.
    pub readout: Readout<'a>,
    /// `Some(eps)`: outputs are divided by `eps` plus what they would be if all values were 1.
    pub normalize: Option<f64>,
    /// `[sequences, heads, dk, dv]`: the state before each sequence; `None`: zeros.
    pub initial_state: Option<&'a [f64]>,
    /// `[sequences, heads, dk]`: the normaliser's state before each sequence, only with `normalize`; `None`: zeros.
    pub initial_z: Option<&'a [f64]>,
    /// `[sequences + 1]`: sequences of different lengths, one after the other: sequence `i` holds the steps
    /// `cu_seqlens[i]` to `cu_seqlens[i + 1]`. `None`: one sequence for each of `batch`.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// What attention returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// `[batch, seqlen, heads, dv]`
    pub out: Vec<f64>,
    /// `[sequences, heads, dk, dv]`: the state after the last step of each sequence, the initial state of what
    /// follows.
    pub final_state: Vec<f64>,
    /// `[sequences, heads, dk]`: the normaliser's state, if outputs are normalised.
    pub final_z: Option<Vec<f64>>,
}

impl Forward<'_> {
    /// Attention, in `f64` throughout. For each head, with `f` the feature map, `q' = scale f(q)` and `k' = f(k)`;
    /// the state `S[t]` a matrix `[dk, dv]`, `S[-1]` the initial state, and `g[t]` the decay of each row:
    ///
    /// ```text
    /// S'[t]  = diag(exp(g[t])) S[t-1]
    /// u[t]   = v[t]                             or, by the delta rule, beta[t] (v[t] - S'[t]^T k'[t])
    /// S[t]   = S'[t] + k'[t] u[t]^T
    /// out[t] = R[t]^T q'[t],   R[t] = S[t]      or S[t-1] + diag(bonus) k'[t] u[t]^T, or S[last]
    /// ```
    ///
    /// The normaliser is one more channel of the values, which is 1 at each step: its column of `S` is called `z`. If
    /// `n[t]` is what it reads out, `out[t] / (n[t] + eps)` is returned; by the linear rule without decay,
    ///
    /// ```text
    /// z[t]   = z[t-1] + k'[t]
    /// out[t] = S[t]^T q'[t] / (z[t] . q'[t] + eps)
    /// ```
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for, `cu_seqlens` do not fit them, or `heads_q`, `heads_k`
    /// or `heads_v` does not divide `heads`.
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula as a naive implementation on tensor cores of a narrow type computes it: `round` (to that type
    /// and back) is applied to what enters a product, which is `f(q)`, `f(k)`, `u` and, where something is read out of
    /// it, the state; and to the result. Sums are exact. Scale, decays and the state that is carried on are in `f32` in
    /// every implementation that works at all, and are not rounded here.
    ///
    /// How far this lies from [`run`](Self::run) is a yardstick for kernels. A chunked kernel rounds other products:
    /// see [`run_chunked_rounded`](Self::run_chunked_rounded).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        self.run_by(&round, |head| head.run(&round))
    }

    /// The same numbers by the chunked algorithm: see [`Chunks`].
    ///
    /// # Errors
    /// As [`run`](Self::run), or if a size of `chunks` is 0.
    pub fn run_chunked(&self, chunks: Chunks) -> Result<Output, Mismatch> {
        self.run_chunked_rounded(chunks, |x| x)
    }

    /// The chunked algorithm as a naive implementation on tensor cores of a narrow type computes it: `round` is applied
    /// to all operands of products of matrices, which in the notation of [`Chunks`] are `f(q)`, `f(k)`, `Q P`, `K P`,
    /// `K P[n] / P`, the factors that `A` and `M` are made of, `A`, `T`, `W = T (K P)`, `U` and `S`; and to the result.
    /// Sums are exact, and so are `A` and `M` within a sub-chunk, scale, decays and the state that is carried on.
    ///
    /// This is the yardstick for what [`run_rounded`](Self::run_rounded) has exactly, which is the final state of the
    /// linear rule.
    ///
    /// # Errors
    /// As [`run_chunked`](Self::run_chunked).
    pub fn run_chunked_rounded(
        &self,
        chunks: Chunks,
        round: impl Fn(f64) -> f64,
    ) -> Result<Output, Mismatch> {
        chunks.check()?;
        self.run_by(&round, |head| chunks.run(head, &round))
    }

    /// Gathers each head, runs it by `run`, divides and puts the results where they belong.
    fn run_by(
        &self,
        round: &impl Fn(f64) -> f64,
        run: impl Fn(&Head) -> HeadOutput,
    ) -> Result<Output, Mismatch> {
        let sequences = self.check()?;
        let mut result = Output {
            out: vec![0.0; self.batch * self.seqlen * self.heads * self.dv],
            final_state: Vec::new(),
            final_z: self.normalize.map(|_| Vec::new()),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for h in 0..self.heads {
                let head = self.head(i, sequence, h, round);
                let HeadOutput { out, state } = run(&head);
                for (t, out) in sequence.steps.clone().zip(out.chunks(head.dv.max(1))) {
                    let to = self.at_out(sequence, t, h);
                    let divisor = self.normalize.map_or(1.0, |eps| out[self.dv] + eps);
                    for (result, out) in result.out[to..][..self.dv].iter_mut().zip(out) {
                        *result = round(out / divisor);
                    }
                }
                self.split(&state, &mut result.final_state, result.final_z.as_mut());
            }
        }
        Ok(result)
    }

    fn check(&self) -> Result<Vec<Sequence>, Mismatch> {
        let Self {
            batch,
            seqlen,
            heads,
            heads_q,
            heads_k,
            heads_v,
            dk,
            dv,
            ..
        } = *self;
        let sequences = sequences(batch, seqlen, self.cu_seqlens)?;
        for (multiple, name, shared) in [
            ("heads (a multiple of heads_q)", "heads_q", heads_q),
            ("heads (a multiple of heads_k)", "heads_k", heads_k),
            ("heads (a multiple of heads_v)", "heads_v", heads_v),
        ] {
            check_groups((multiple, heads), (name, shared))?;
        }
        check_length("length of q", &[batch, seqlen, heads_q, dk], self.q.len())?;
        check_length("length of k", &[batch, seqlen, heads_k, dk], self.k.len())?;
        check_length("length of v", &[batch, seqlen, heads_v, dv], self.v.len())?;
        // no tensor of the caller has its size, which may be more than there can be
        let out = [batch, seqlen, heads, dv];
        let elements = out.iter().fold(1_usize, |n, &size| n.saturating_mul(size));
        check_length("length of out", &out, elements)?;
        let steps = [batch, seqlen, heads];
        match self.decay {
            Decay::None => {}
            Decay::PerHead(decay) => check_length("length of decay", &[heads], decay.len())?,
            Decay::PerStep(decay) => check_length("length of decay", &steps, decay.len())?,
            Decay::PerChannel(decay) => {
                check_length("length of decay", &[batch, seqlen, heads, dk], decay.len())?;
            }
        }
        if let Rule::Delta { beta } = self.rule {
            check_length("length of beta", &steps, beta.len())?;
        }
        if let Readout::Bonus(bonus) = self.readout {
            check_length("length of bonus", &[heads, dk], bonus.len())?;
        }
        let states = [sequences.len(), heads, dk, dv];
        check_optional("length of initial_state", &states, self.initial_state)?;
        check_optional(
            "length of initial_z",
            &self.z_sizes(&sequences),
            self.initial_z,
        )?;
        Ok(sequences)
    }

    /// The sizes of the normaliser's states, which are none without one.
    fn z_sizes(&self, sequences: &[Sequence]) -> [usize; 3] {
        match self.normalize {
            Some(_) => [sequences.len(), self.heads, self.dk],
            None => [0; 3],
        }
    }
}
