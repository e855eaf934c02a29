//! Causal depthwise convolution by the formula: each channel is filtered by its own few taps, which reach back in
//! time. It stands before the scan in Gu and Dao, "Mamba", 2023, section 3.4.

use super::pointwise::{silu, silu_derivative};
use super::{Mismatch, Sequence, check_length, check_optional, sequences};

/// What is applied to each sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x / (1 + exp(-x))`
    Silu,
}

/// One problem: sizes, tensors (contiguous, row-major) and options.
///
/// ```
/// use seqmix::reference::causal_conv1d::Forward;
///
/// let problem = Forward {
///     batch: 1, dim: 1, seqlen: 3, width: 2,
///     x: &[1.0, 2.0, 3.0],
///     weight: &[10.0, 1.0], // the last tap meets the current step
///     ..Forward::default()
/// };
/// let result = problem.run()?;
/// assert_eq!(result.out, [1.0, 12.0, 23.0]);
/// assert_eq!(result.final_states, [3.0]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'a> {
    /// Number of independent sequences; 1 with `cu_seqlens`.
    pub batch: usize,
    /// Channels.
    pub dim: usize,
    /// Steps of each sequence; with `cu_seqlens`, of all together.
    pub seqlen: usize,
    /// Taps of each channel, at least 1.
    pub width: usize,
    /// `[batch, dim, seqlen]`
    pub x: &'a [f64],
    /// `[dim, width]`; the last tap meets the current step.
    pub weight: &'a [f64],
    /// `[dim]`
    pub bias: Option<&'a [f64]>,
    /// What is applied to each sum.
    pub activation: Activation,
    /// `[sequences, dim, width - 1]`: the inputs before the first step, oldest first; `None`: zeros.
    pub initial_states: Option<&'a [f64]>,
    /// `[sequences + 1]`: sequences of different lengths, one after the other: sequence `i` holds the steps
    /// `cu_seqlens[i]` to `cu_seqlens[i + 1]`. `None`: one sequence for each of `batch`.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// What the convolution returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// As `x`.
    pub out: Vec<f64>,
    /// `[sequences, dim, width - 1]`: the last inputs of each sequence, oldest first; of a shorter one preceded by
    /// its initial states. They are the initial states of what follows.
    pub final_states: Vec<f64>,
}

impl Forward<'_> {
    /// The convolution, in `f64` throughout. With `x[t]` for `t < 0` from the initial states:
    ///
    /// ```text
    /// s[t]   = bias + sum over j < width of weight[j] x[t - (width - 1) + j]
    /// out[t] = activation(s[t])
    /// ```
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for, or `cu_seqlens` do not fit them.
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula as a naive implementation in a narrow type computes it: `round` (to that type and back) is
    /// applied to the sum, which an unfused implementation stores, and to the result. Sums are exact, and states are
    /// copies.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        let sequences = self.check()?;
        let mut result = Output {
            out: vec![0.0; self.x.len()],
            final_states: vec![0.0; sequences.len() * self.dim * (self.width - 1)],
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for d in 0..self.dim {
                let inputs = self.inputs(i, sequence, d);
                let to = self.steps(sequence, d);
                for (t, out) in result.out[to].iter_mut().enumerate() {
                    let s = round(self.sum(&inputs, t, d));
                    *out = match self.activation {
                        Activation::None => s,
                        Activation::Silu => round(silu(s)),
                    };
                }
                let to = self.state(i, d);
                result.final_states[to].copy_from_slice(&inputs[sequence.steps.len()..]);
            }
        }
        Ok(result)
    }

    /// What channel `d` of the `i`-th sequence reads: its initial states, then its inputs.
    fn inputs(&self, i: usize, sequence: &Sequence, d: usize) -> Vec<f64> {
        let mut inputs = match self.initial_states {
            Some(states) => states[self.state(i, d)].to_vec(),
            None => vec![0.0; self.width - 1],
        };
        inputs.extend(&self.x[self.steps(sequence, d)]);
        inputs
    }

    /// The sum of channel `d` at step `t`, whose oldest input is `inputs[t]`.
    fn sum(&self, inputs: &[f64], t: usize, d: usize) -> f64 {
        let mut sum = self.bias.map_or(0.0, |bias| bias[d]);
        for j in 0..self.width {
            sum += self.weight[d * self.width + j] * inputs[t + j];
        }
        sum
    }

    /// Where channel `d` of a sequence lies in `x` and `out`.
    fn steps(&self, sequence: &Sequence, d: usize) -> std::ops::Range<usize> {
        let row = (sequence.batch * self.dim + d) * self.seqlen;
        row + sequence.steps.start..row + sequence.steps.end
    }

    /// Where channel `d` of the `i`-th sequence lies in the states.
    fn state(&self, i: usize, d: usize) -> std::ops::Range<usize> {
        let taps = self.width - 1;
        (i * self.dim + d) * taps..(i * self.dim + d + 1) * taps
    }

    fn check(&self) -> Result<Vec<Sequence>, Mismatch> {
        let Self {
            batch,
            dim,
            seqlen,
            width,
            ..
        } = *self;
        if width == 0 {
            return Err(Mismatch {
                what: "width (at least)",
                expected: 1,
                found: 0,
            });
        }
        let sequences = sequences(batch, seqlen, self.cu_seqlens)?;
        let states = [sequences.len(), dim, width - 1];
        check_length("length of x", &[batch, dim, seqlen], self.x.len())?;
        check_length("length of weight", &[dim, width], self.weight.len())?;
        check_optional("length of bias", &[dim], self.bias)?;
        check_optional("length of initial_states", &states, self.initial_states)?;
        Ok(sequences)
    }
}

/// The gradients of a convolution.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backward<'a> {
    /// The convolution whose gradients are asked for.
    pub forward: Forward<'a>,
    /// As `x`: the gradient of `out`.
    pub dout: &'a [f64],
    /// `[sequences, dim, width - 1]`: the gradient of `final_states`; `None`: zeros.
    pub dfinal_states: Option<&'a [f64]>,
}

/// What [`Backward`] returns. An input that is absent counts as zeros, and has a gradient as well.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// As `x`.
    pub dx: Vec<f64>,
    /// `[dim, width]`
    pub dweight: Vec<f64>,
    /// `[dim]`
    pub dbias: Vec<f64>,
    /// `[sequences, dim, width - 1]`
    pub dinitial_states: Vec<f64>,
}

impl Backward<'_> {
    /// The gradients, in `f64` throughout. With `x[t]` for `t < 0` from the initial states:
    ///
    /// ```text
    /// ds[t]      = dout[t] activation'(s[t])
    /// dx[t]      = sum over j < width of weight[j] ds[t + (width - 1) - j],  and dfinal_states where it is one
    /// dweight[j] = sum over sequences and t of ds[t] x[t - (width - 1) + j]
    /// dbias      = sum over sequences and t of ds[t]
    /// ```
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Gradients, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formulas as a naive implementation in a narrow type computes them: `round` is applied to `s`, to
    /// `ds`, and to the gradients. Sums are exact.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Gradients, Mismatch> {
        let forward = &self.forward;
        let Forward { dim, width, .. } = *forward;
        let sequences = forward.check()?;
        let states = [sequences.len(), dim, width - 1];
        check_length("length of dout", &[forward.x.len()], self.dout.len())?;
        check_optional("length of dfinal_states", &states, self.dfinal_states)?;
        let mut result = Gradients {
            dx: vec![0.0; forward.x.len()],
            dweight: vec![0.0; dim * width],
            dbias: vec![0.0; dim],
            dinitial_states: vec![0.0; states.iter().product()],
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for d in 0..dim {
                let inputs = forward.inputs(i, sequence, d);
                let (steps, state) = (forward.steps(sequence, d), forward.state(i, d));
                let mut dinputs = vec![0.0; inputs.len()];
                for (t, dout) in self.dout[steps.clone()].iter().enumerate() {
                    let s = round(forward.sum(&inputs, t, d));
                    let ds = match forward.activation {
                        Activation::None => *dout,
                        Activation::Silu => round(dout * silu_derivative(s)),
                    };
                    for j in 0..width {
                        dinputs[t + j] += ds * forward.weight[d * width + j];
                        result.dweight[d * width + j] += ds * inputs[t + j];
                    }
                    result.dbias[d] += ds;
                }
                if let Some(dfinal_states) = self.dfinal_states {
                    let last = &mut dinputs[sequence.steps.len()..];
                    last.iter_mut()
                        .zip(&dfinal_states[state.clone()])
                        .for_each(|(dx, dfinal)| *dx += dfinal);
                }
                let (before, within) = dinputs.split_at(width - 1);
                result.dinitial_states[state].copy_from_slice(before);
                result.dx[steps].copy_from_slice(within);
            }
        }
        let Gradients {
            dx,
            dweight,
            dbias,
            dinitial_states,
        } = &mut result;
        for gradient in [dx, dweight, dbias, dinitial_states] {
            gradient.iter_mut().for_each(|x| *x = round(*x));
        }
        Ok(result)
    }
}

/// One step of a sequence whose last inputs are kept between calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step<'a> {
    /// Number of independent sequences.
    pub batch: usize,
    /// Channels.
    pub dim: usize,
    /// Taps of each channel, at least 1.
    pub width: usize,
    /// `[batch, dim]`
    pub x: &'a [f64],
    /// `[batch, dim, width - 1]`: the inputs before this step, oldest first, as [`Output::final_states`].
    pub conv_state: &'a [f64],
    /// `[dim, width]`
    pub weight: &'a [f64],
    /// `[dim]`
    pub bias: Option<&'a [f64]>,
    /// What is applied to each sum.
    pub activation: Activation,
}

impl Step<'_> {
    /// The step: a sequence of length 1 with initial states. `out` is `[batch, dim]`, and `final_states` is the
    /// state after the step.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// As [`Forward::run_rounded`].
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        let forward = Forward {
            batch: self.batch,
            dim: self.dim,
            seqlen: 1,
            width: self.width,
            x: self.x,
            weight: self.weight,
            bias: self.bias,
            activation: self.activation,
            initial_states: Some(self.conv_state),
            cu_seqlens: None,
        };
        forward.run_rounded(round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::differences::{assert_gradient, noise};

    /// Sums of products of small integers: exact in `f64`.
    const INTEGERS: Forward<'_> = Forward {
        batch: 1,
        dim: 2,
        seqlen: 3,
        width: 3,
        x: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        weight: &[100.0, 10.0, 1.0, 1.0, 0.0, 0.0],
        bias: Some(&[1000.0, 0.0]),
        activation: Activation::None,
        initial_states: Some(&[8.0, 9.0, -1.0, -2.0]),
        cu_seqlens: None,
    };

    #[test]
    fn the_last_tap_meets_the_current_step() {
        let result = INTEGERS.run().unwrap();
        assert_eq!(result.out, [1891.0, 1912.0, 1123.0, -1.0, -2.0, 4.0]);
        assert_eq!(result.final_states, [2.0, 3.0, 5.0, 6.0]);
        let bare = Forward {
            bias: None,
            initial_states: None,
            ..INTEGERS
        };
        let result = bare.run().unwrap();
        assert_eq!(result.out, [1.0, 12.0, 123.0, 0.0, 0.0, 4.0]);
        let silu = Forward {
            activation: Activation::Silu,
            ..bare
        };
        let value = 1.0 / (1.0 + (-1.0_f64).exp());
        assert_eq!(silu.run().unwrap().out[0], value);
    }

    #[test]
    fn packed_sequences_do_not_see_each_other() {
        let packed = Forward {
            initial_states: Some(&[8.0, 9.0, -1.0, -2.0, 0.0, 7.0, 0.0, 0.0, 6.0, 5.0, 3.0, 4.0]),
            cu_seqlens: Some(&[0, 1, 1, 3]),
            ..INTEGERS
        };
        let result = packed.run().unwrap();
        assert_eq!(result.out, [1891.0, 1652.0, 1523.0, -1.0, 3.0, 4.0]);
        let states = [9.0, 1.0, -2.0, 4.0, 0.0, 7.0, 0.0, 0.0, 2.0, 3.0, 5.0, 6.0];
        assert_eq!(result.final_states, states);
    }

    #[test]
    fn steps_and_parts_make_the_whole() {
        let (batch, dim, seqlen) = (2, 3, 11);
        for width in 1..=8 {
            let x = noise(1, batch * dim * seqlen);
            let (weight, bias) = (noise(2, dim * width), noise(3, dim));
            let initial_states = noise(4, batch * dim * (width - 1));
            let whole = Forward {
                batch,
                dim,
                seqlen,
                width,
                x: &x,
                weight: &weight,
                bias: Some(&bias),
                activation: Activation::Silu,
                initial_states: Some(&initial_states),
                cu_seqlens: None,
            };
            let expected = whole.run().unwrap();
            let mut conv_state = initial_states.clone();
            for t in 0..seqlen {
                let at = |tensor: &[f64]| {
                    let rows = tensor.chunks(seqlen);
                    rows.map(|row| row[t]).collect::<Vec<_>>()
                };
                let step = Step {
                    batch,
                    dim,
                    width,
                    x: &at(&x),
                    conv_state: &conv_state,
                    weight: &weight,
                    bias: Some(&bias),
                    activation: Activation::Silu,
                };
                let step = step.run().unwrap();
                assert_eq!(step.out, at(&expected.out), "width {width}, step {t}");
                conv_state = step.final_states;
            }
            assert_eq!(conv_state, expected.final_states, "width {width}");
        }
    }

    #[test]
    fn gradients_are_finite_differences() {
        let cases: [(usize, usize, Option<&[usize]>, Activation); 4] = [
            (4, 2, None, Activation::Silu),
            (3, 1, Some(&[0, 1, 1, 5]), Activation::Silu),
            (8, 1, Some(&[0, 3, 5]), Activation::None),
            (1, 2, None, Activation::Silu),
        ];
        for (width, batch, cu_seqlens, activation) in cases {
            let (dim, seqlen) = (2, 5);
            let sequences = cu_seqlens.map_or(batch, |lengths| lengths.len() - 1);
            let states = sequences * dim * (width - 1);
            let x = noise(1, batch * dim * seqlen);
            let (weight, bias) = (noise(2, dim * width), noise(3, dim));
            let initial_states = noise(4, states);
            let (dout, dfinal_states) = (noise(5, x.len()), noise(6, states));
            let forward = Forward {
                batch,
                dim,
                seqlen,
                width,
                x: &x,
                weight: &weight,
                bias: Some(&bias),
                activation,
                initial_states: Some(&initial_states),
                cu_seqlens,
            };
            let backward = Backward {
                forward,
                dout: &dout,
                dfinal_states: Some(&dfinal_states),
            };
            let gradients = backward.run().unwrap();
            let loss = |forward: Forward<'_>| {
                let result = forward.run().unwrap();
                let outs = result.out.iter().zip(&dout);
                let finals = result.final_states.iter().zip(&dfinal_states);
                outs.chain(finals).map(|(x, dx)| x * dx).sum::<f64>()
            };
            assert_gradient("x", &x, &gradients.dx, |x| loss(Forward { x, ..forward }));
            assert_gradient("weight", &weight, &gradients.dweight, |weight| {
                loss(Forward { weight, ..forward })
            });
            assert_gradient("bias", &bias, &gradients.dbias, |bias| {
                let bias = Some(bias);
                loss(Forward { bias, ..forward })
            });
            let found = &gradients.dinitial_states;
            assert_gradient("initial_states", &initial_states, found, |states| {
                let initial_states = Some(states);
                loss(Forward {
                    initial_states,
                    ..forward
                })
            });
        }
    }

    #[test]
    fn rounding_applies_to_the_sum_and_to_the_result() {
        let coarse = |x: f64| (x * 4.0).round() / 4.0;
        let problem = Forward {
            batch: 1,
            dim: 1,
            seqlen: 1,
            width: 1,
            x: &[1.1],
            weight: &[1.0],
            activation: Activation::Silu,
            ..Forward::default()
        };
        // 1.1 -> 1; silu(1) = 0.731 -> 0.75
        let result = problem.run_rounded(coarse).unwrap();
        assert_eq!(result.out, [0.75]);
        assert_eq!(result.final_states, [0.0; 0]);
    }

    #[test]
    fn sizes_that_disagree_are_named() {
        let text = |problem: Forward<'_>| problem.run().unwrap_err().to_string();
        let weight = Forward {
            width: 4,
            ..INTEGERS
        };
        assert_eq!(text(weight), "length of weight: expected 8, found 6");
        let width = Forward {
            width: 0,
            ..INTEGERS
        };
        assert_eq!(text(width), "width (at least): expected 1, found 0");
        let lengths = Forward {
            cu_seqlens: Some(&[0, 2]),
            ..INTEGERS
        };
        assert_eq!(text(lengths), "last of cu_seqlens: expected 3, found 2");
        let batch = Forward {
            batch: 2,
            cu_seqlens: Some(&[0, 3]),
            ..INTEGERS
        };
        assert_eq!(
            text(batch),
            "batch of packed sequences: expected 1, found 2"
        );
        let backward = Backward {
            forward: INTEGERS,
            dout: &[0.0; 5],
            dfinal_states: None,
        };
        let error = backward.run().unwrap_err().to_string();
        assert_eq!(error, "length of dout: expected 6, found 5");
    }
}
