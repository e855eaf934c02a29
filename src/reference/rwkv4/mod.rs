//! The average of RWKV-4, called wkv: Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023. Each channel
//! by itself averages its values, with weights that fade by distance and grow with the exponentials of keys.

#[cfg(test)]
mod tests;

use super::{Mismatch, Sequence, check_length, sequences};

/// One problem: sizes and tensors (contiguous, row-major).
///
/// ```
/// use seqmix::reference::rwkv4::Forward;
///
/// let problem = Forward {
///     batch: 1, seqlen: 2, dim: 1,
///     decay: &[-std::f64::consts::LN_2],
///     bonus: &[0.0],
///     k: &[0.0, 0.0],
///     v: &[3.0, 5.0],
///     ..Forward::default()
/// };
/// // the first step weighs as much as the second: no decay lies between them
/// assert_eq!(problem.run()?.out, [3.0, 4.0]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'a> {
    /// Number of independent sequences; 1 with `cu_seqlens`.
    pub batch: usize,
    /// Steps of each sequence; with `cu_seqlens`, of all together.
    pub seqlen: usize,
    /// Channels.
    pub dim: usize,
    /// `[dim]`: `w`, the natural logarithm of the decay of a step; models have `-exp` of a parameter here.
    pub decay: &'a [f64],
    /// `[dim]`: `u`, added to the key of a step's own value.
    pub bonus: &'a [f64],
    /// `[batch, seqlen, dim]`: logarithms of weights.
    pub k: &'a [f64],
    /// `[batch, seqlen, dim]`: what is averaged.
    pub v: &'a [f64],
    /// The sums before each sequence; `None`: nothing, whose exponent is `-infinity`.
    pub initial_state: Option<State<'a>>,
    /// `[sequences + 1]`: sequences of different lengths, one after the other: sequence `i` holds the steps
    /// `cu_seqlens[i]` to `cu_seqlens[i + 1]`. `None`: one sequence for each of `batch`.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// Sums of weighted values and of weights, both divided by `exp(exponent)`, so that neither overflows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct State<'a> {
    /// `[sequences, dim]`: the sum of weighted values.
    pub numerator: &'a [f64],
    /// `[sequences, dim]`: the sum of weights.
    pub denominator: &'a [f64],
    /// `[sequences, dim]`
    pub exponent: &'a [f64],
}

/// What the recurrence returns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// As `v`.
    pub out: Vec<f64>,
    /// `[sequences, dim]`: as in [`State`], after the last step of each sequence.
    pub numerator: Vec<f64>,
    /// `[sequences, dim]`
    pub denominator: Vec<f64>,
    /// `[sequences, dim]`: the largest logarithm of a weight so far.
    pub exponent: Vec<f64>,
}

/// The gradients of the recurrence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backward<'a> {
    /// The recurrence whose gradients are asked for.
    pub forward: Forward<'a>,
    /// As `v`: the gradient of `out`.
    pub dout: &'a [f64],
    /// `[sequences, dim]`: the gradients of the last numerators and of the last denominators, as divided by the
    /// exponential of the last exponents, which do not count as variables; `None`: zeros.
    pub dfinal_state: Option<(&'a [f64], &'a [f64])>,
}

/// What [`Backward`] returns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// As `decay`: of the logarithm.
    pub ddecay: Vec<f64>,
    /// As `bonus`.
    pub dbonus: Vec<f64>,
    /// As `k`.
    pub dk: Vec<f64>,
    /// As `v`.
    pub dv: Vec<f64>,
    /// `[sequences, dim]`: of the initial numerators at their exponents; zeros without an initial state.
    pub dnumerator: Vec<f64>,
    /// `[sequences, dim]`: of the initial denominators, likewise.
    pub ddenominator: Vec<f64>,
}

/// The sums of one channel.
#[derive(Clone, Copy)]
struct Sums {
    numerator: f64,
    denominator: f64,
    exponent: f64,
}

/// One step of one channel. Each factor is at most 1.
struct Step {
    /// Of the sums so far and of the step's own value, in `out`.
    read: (f64, f64),
    /// Of the sums so far and of the step's own value, in the sums that are carried on.
    carry: (f64, f64),
    /// The sum of weights in `out`.
    divisor: f64,
    out: f64,
    after: Sums,
}

impl Forward<'_> {
    /// The recurrence, in `f64` throughout. For each channel, with `a[-1]` and `b[-1]` the initial state:
    ///
    /// ```text
    /// out[t] = (a[t-1] + exp(bonus + k[t]) v[t]) / (b[t-1] + exp(bonus + k[t]))
    /// a[t]   = exp(decay) a[t-1] + exp(k[t]) v[t]
    /// b[t]   = exp(decay) b[t-1] + exp(k[t])
    /// ```
    ///
    /// `a` and `b` are kept divided by the exponential of the largest logarithm of a weight that is in them.
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for, or `cu_seqlens` do not fit them.
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula with outputs of a narrow type: `round` (to that type and back) is applied to `out`. All else is
    /// in `f32` in every implementation that works at all, and is not rounded here.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        let sequences = self.check()?;
        let mut result = Output {
            out: vec![0.0; self.v.len()],
            ..Output::default()
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for d in 0..self.dim {
                let mut sums = self.sums(i, d);
                for t in sequence.steps.clone() {
                    let step = self.step(sequence, t, d, sums);
                    result.out[self.at(sequence, t, d)] = round(step.out);
                    sums = step.after;
                }
                result.numerator.push(sums.numerator);
                result.denominator.push(sums.denominator);
                result.exponent.push(sums.exponent);
            }
        }
        Ok(result)
    }

    fn step(&self, sequence: &Sequence, t: usize, d: usize, before: Sums) -> Step {
        let at = self.at(sequence, t, d);
        let (k, v) = (self.k[at], self.v[at]);
        // the factors of two logarithms of weights, relative to the larger
        let beside = |old: f64, new: f64| {
            let largest = old.max(new);
            ((old - largest).exp(), (new - largest).exp())
        };
        let read = beside(before.exponent, self.bonus[d] + k);
        let carry = beside(self.decay[d] + before.exponent, k);
        let divisor = read.0 * before.denominator + read.1;
        Step {
            out: (read.0 * before.numerator + read.1 * v) / divisor,
            after: Sums {
                numerator: carry.0 * before.numerator + carry.1 * v,
                denominator: carry.0 * before.denominator + carry.1,
                exponent: k.max(self.decay[d] + before.exponent),
            },
            read,
            carry,
            divisor,
        }
    }

    /// The sums of channel `d` before the `i`-th sequence.
    fn sums(&self, i: usize, d: usize) -> Sums {
        let at = i * self.dim + d;
        match self.initial_state {
            Some(state) => Sums {
                numerator: state.numerator[at],
                denominator: state.denominator[at],
                exponent: state.exponent[at],
            },
            None => Sums {
                numerator: 0.0,
                denominator: 0.0,
                exponent: f64::NEG_INFINITY,
            },
        }
    }

    fn at(&self, sequence: &Sequence, t: usize, d: usize) -> usize {
        (sequence.batch * self.seqlen + t) * self.dim + d
    }

    fn check(&self) -> Result<Vec<Sequence>, Mismatch> {
        let sequences = sequences(self.batch, self.seqlen, self.cu_seqlens)?;
        let steps = [self.batch, self.seqlen, self.dim];
        check_length("length of decay", &[self.dim], self.decay.len())?;
        check_length("length of bonus", &[self.dim], self.bonus.len())?;
        check_length("length of k", &steps, self.k.len())?;
        check_length("length of v", &steps, self.v.len())?;
        if let Some(state) = self.initial_state {
            let sizes = [sequences.len(), self.dim];
            check_length("length of numerator", &sizes, state.numerator.len())?;
            check_length("length of denominator", &sizes, state.denominator.len())?;
            check_length("length of exponent", &sizes, state.exponent.len())?;
        }
        Ok(sequences)
    }
}

impl Backward<'_> {
    /// The gradients, in `f64` throughout, in the notation of [`Forward::run`]; `n[t]` is the divisor of `out[t]`, and
    /// `da[t]` and `db[t]` are the gradients of `a[t]` and `b[t]`:
    ///
    /// ```text
    /// da[t-1]  = exp(decay) da[t] + dout[t] / n[t]
    /// db[t-1]  = exp(decay) db[t] - dout[t] out[t] / n[t]
    /// dv[t]    = exp(k[t]) da[t] + exp(bonus + k[t]) dout[t] / n[t]
    /// e[t]     = exp(bonus + k[t]) dout[t] (v[t] - out[t]) / n[t]
    /// dk[t]    = exp(k[t]) (da[t] v[t] + db[t]) + e[t]
    /// dbonus   = sum over sequences and t of e[t]
    /// ddecay   = sum over sequences and t of exp(decay) (da[t] a[t-1] + db[t] b[t-1])
    /// ```
    ///
    /// `da` and `db` are carried multiplied by what `a` and `b` are divided by.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Gradients, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// As [`Forward::run_rounded`]: `round` is applied to `dk` and `dv`.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Gradients, Mismatch> {
        let forward = &self.forward;
        let sequences = forward.check()?;
        check_length("length of dout", &[forward.v.len()], self.dout.len())?;
        if let Some((dnumerator, ddenominator)) = self.dfinal_state {
            let sizes = [sequences.len(), forward.dim];
            check_length(
                "length of the gradient of numerators",
                &sizes,
                dnumerator.len(),
            )?;
            let name = "length of the gradient of denominators";
            check_length(name, &sizes, ddenominator.len())?;
        }
        let mut result = Gradients {
            ddecay: vec![0.0; forward.dim],
            dbonus: vec![0.0; forward.dim],
            dk: vec![0.0; forward.k.len()],
            dv: vec![0.0; forward.v.len()],
            ..Gradients::default()
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for d in 0..forward.dim {
                let mut sums = vec![forward.sums(i, d)];
                for (at, t) in sequence.steps.clone().enumerate() {
                    sums.push(forward.step(sequence, t, d, sums[at]).after);
                }
                let place = i * forward.dim + d;
                let (mut da, mut db) = match self.dfinal_state {
                    Some((da, db)) => (da[place], db[place]),
                    None => (0.0, 0.0),
                };
                for (before, t) in sums.iter().zip(sequence.steps.clone()).rev() {
                    let step = forward.step(sequence, t, d, *before);
                    let at = forward.at(sequence, t, d);
                    let v = forward.v[at];
                    let along_numerator = self.dout[at] / step.divisor;
                    let along_denominator = -along_numerator * step.out;
                    let own = step.read.1 * (along_numerator * v + along_denominator);
                    result.dbonus[d] += own;
                    let kept = da * before.numerator + db * before.denominator;
                    result.ddecay[d] += step.carry.0 * kept;
                    result.dk[at] = round(step.carry.1 * (da * v + db) + own);
                    result.dv[at] = round(step.carry.1 * da + step.read.1 * along_numerator);
                    da = step.carry.0 * da + step.read.0 * along_numerator;
                    db = step.carry.0 * db + step.read.0 * along_denominator;
                }
                result.dnumerator.push(da);
                result.ddenominator.push(db);
            }
        }
        Ok(result)
    }
}
