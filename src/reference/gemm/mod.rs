//! Matrix multiplication by the formula, with what is done to the product in the same call.

mod activation;
#[cfg(test)]
mod gradients;
mod lora;
#[cfg(test)]
mod tests;

use super::{Mismatch, check_length};
pub use activation::Activation;
pub use lora::{LoraBackward, LoraGradients};

/// A product of low rank beside that of `a` and `b`: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
/// 2021, equation 3.
#[derive(Clone, Copy, Debug)]
pub struct Adapter<'a> {
    /// Columns of `down`, rows of `up`.
    pub rank: usize,
    /// `[batch, k, rank]`
    pub down: &'a [f64],
    /// `[batch, rank, n]`
    pub up: &'a [f64],
    /// Factor of `(a down) up`.
    pub scale: f64,
}

/// What becomes of `x`, the scaled product with everything that is added to it; see [`Multiply::run`].
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// `d = f(x) + residual`
    Activate {
        /// The function `f`.
        activation: Activation,
    },
    /// `d = f(g) x + residual`, where `g` is a second product with `a`: Shazeer, "GLU Variants Improve Transformer",
    /// 2020, equation 5. With [`Activation::Silu`] it is SwiGLU, with either GELU it is GEGLU.
    Gate {
        /// The function `f`.
        activation: Activation,
        /// `[batch, k, n]`: what `a` is multiplied with for `g`.
        weights: &'a [f64],
        /// `[batch, n]`: added to `g`.
        bias: Option<&'a [f64]>,
    },
    /// `d = x f'(preactivation) + residual`: from `x`, the gradient of what [`Activate`](Self::Activate) gave, that of
    /// what it got.
    ActivateBackward {
        /// The function `f`.
        activation: Activation,
        /// `[batch, m, n]`: what the activation got.
        preactivation: &'a [f64],
    },
    /// `d` is `[batch, m, 2 n]`: from `x`, the gradient of what [`Gate`](Self::Gate) gave, those of `g` and of the
    /// other factor `u`, side by side: `x u f'(g)`, then `x f(g)`. There is no residual.
    GateBackward {
        /// The function `f`.
        activation: Activation,
        /// `[batch, m, 2 n]`: `g`, then `u`.
        preactivation: &'a [f64],
    },
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self::Activate {
            activation: Activation::None,
        }
    }
}

/// One problem: sizes, tensors (contiguous, row-major) and options.
///
/// ```
/// use seqmix::reference::gemm::{Activation, Epilogue, Multiply};
///
/// let problem = Multiply {
///     batch: 1, m: 1, n: 2, k: 2,
///     a: &[1.0, 2.0],
///     b: &[1.0, -1.0, 1.0, -1.0],
///     bias: Some(&[0.5, 0.5]),
///     epilogue: Epilogue::Activate { activation: Activation::Relu },
///     ..Multiply::default()
/// };
/// let result = problem.run()?;
/// assert_eq!(result.preactivation, [3.5, -2.5]);
/// assert_eq!(result.d, [3.5, 0.0]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Multiply<'a> {
    /// Number of independent products.
    pub batch: usize,
    /// Rows of `a` and of the result.
    pub m: usize,
    /// Columns of `b` and of the product.
    pub n: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
    /// `[batch, m, k]`
    pub a: &'a [f64],
    /// `[batch, k, n]`
    pub b: &'a [f64],
    /// What is added to `b` as a product of low rank.
    pub adapter: Option<Adapter<'a>>,
    /// `[batch, m]`: a factor of each row of the products, that of the gate too.
    pub row_scale: Option<&'a [f64]>,
    /// `[batch, n]`: a factor of each column of the product with `b`.
    pub column_scale: Option<&'a [f64]>,
    /// `[batch, m, n]`
    pub c: Option<&'a [f64]>,
    /// `[batch, n]`
    pub bias: Option<&'a [f64]>,
    /// `[batch, m, n]`
    pub residual: Option<&'a [f64]>,
    /// Factor of the products; 1 by default.
    pub alpha: f64,
    /// Factor of `c`; 1 by default.
    pub beta: f64,
    /// What becomes of the sum of product, `c` and `bias`; nothing by default.
    pub epilogue: Epilogue<'a>,
}

impl Default for Multiply<'_> {
    fn default() -> Self {
        Self {
            batch: 0,
            m: 0,
            n: 0,
            k: 0,
            a: &[],
            b: &[],
            adapter: None,
            row_scale: None,
            column_scale: None,
            c: None,
            bias: None,
            residual: None,
            alpha: 1.0,
            beta: 1.0,
            epilogue: Epilogue::default(),
        }
    }
}

/// What a multiplication returns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// `[batch, m, n]`, of [`Epilogue::GateBackward`] `[batch, m, 2 n]`.
    pub d: Vec<f64>,
    /// What the activation got: `x`, `[batch, m, n]`, of [`Epilogue::Activate`]; `g`, then `x`, `[batch, m, 2 n]`, of
    /// [`Epilogue::Gate`]; of the others nothing.
    pub preactivation: Vec<f64>,
    /// `[n]`, of [`Epilogue::GateBackward`] `[2 n]`: the sum of each column of `d`, over `batch` and `m`. If `d` is a
    /// gradient, it is that of a bias.
    pub column_sums: Vec<f64>,
}

impl Multiply<'_> {
    /// The result, in `f64` throughout:
    ///
    /// ```text
    /// p[i,j] = sum over l of a[i,l] b[l,j]  +  adapter.scale * sum over r of (sum over l of a[i,l] down[l,r]) up[r,j]
    /// x[i,j] = alpha row_scale[i] column_scale[j] p[i,j] + beta c[i,j] + bias[j]
    /// g[i,j] = alpha row_scale[i] (sum over l of a[i,l] weights[l,j]) + gate bias[j]          if Gate
    /// d[i,j] = f(x[i,j]) + residual[i,j], or what another epilogue says
    /// ```
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for.
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula as an implementation computes it that keeps every intermediate in a narrow type: `round`
    /// (to that type and back) is applied to each product, with an adapter also to `a down`, to `x` and `g`, to what
    /// the activation or its derivative gives, and to the result. Sums are exact; `column_sums` are those of the
    /// result before it is rounded.
    ///
    /// How far this lies from [`run`](Self::run) is what a naive implementation of that precision loses, and so a
    /// yardstick for kernels.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        self.check()?;
        let Self { batch, m, n, k, .. } = *self;
        let at = |tensor: Option<&[f64]>, index: usize| tensor.map(|tensor| tensor[index]);
        let p = self.products(&round);
        let gates = match self.epilogue {
            Epilogue::Gate { weights, .. } => product(batch, [m, k, n], self.a, weights, &round),
            _ => Vec::new(),
        };
        let (saved, columns) = self.widths();
        let mut result = Output {
            d: vec![0.0; batch * m * columns],
            preactivation: vec![0.0; batch * m * saved],
            column_sums: vec![0.0; columns],
        };
        for row in 0..batch * m {
            let matrix = row / m;
            let preactivation = &mut result.preactivation[row * saved..][..saved];
            let mut give = |column: usize, d: f64| {
                result.d[row * columns + column] = round(d);
                result.column_sums[column] += d;
            };
            for j in 0..n {
                let scale = self.alpha * at(self.row_scale, row).unwrap_or(1.0);
                let mut x = scale * at(self.column_scale, matrix * n + j).unwrap_or(1.0);
                x *= p[row * n + j];
                x += self.beta * at(self.c, row * n + j).unwrap_or(0.0);
                x += at(self.bias, matrix * n + j).unwrap_or(0.0);
                let x = round(x);
                let residual = at(self.residual, row * n + j).unwrap_or(0.0);
                match self.epilogue {
                    Epilogue::Activate { activation } => {
                        preactivation[j] = x;
                        give(j, round(activation.apply(x)) + residual);
                    }
                    Epilogue::Gate {
                        activation, bias, ..
                    } => {
                        let bias = at(bias, matrix * n + j).unwrap_or(0.0);
                        let g = round(scale * gates[row * n + j] + bias);
                        preactivation[j] = g;
                        preactivation[n + j] = x;
                        give(j, round(activation.apply(g)) * x + residual);
                    }
                    Epilogue::ActivateBackward {
                        activation,
                        preactivation,
                    } => {
                        let slope = round(activation.derivative(preactivation[row * n + j]));
                        give(j, x * slope + residual);
                    }
                    Epilogue::GateBackward {
                        activation,
                        preactivation,
                    } => {
                        let g = preactivation[row * 2 * n + j];
                        let u = preactivation[row * 2 * n + n + j];
                        give(j, x * u * round(activation.derivative(g)));
                        give(n + j, x * round(activation.apply(g)));
                    }
                }
            }
        }
        Ok(result)
    }

    /// `a b + scale (a down) up`
    fn products(&self, round: impl Fn(f64) -> f64) -> Vec<f64> {
        let Self { batch, m, n, k, .. } = *self;
        let mut result = product(batch, [m, k, n], self.a, self.b, &round);
        if let Some(adapter) = self.adapter {
            let inner = product(batch, [m, k, adapter.rank], self.a, adapter.down, &round);
            let outer = product(batch, [m, adapter.rank, n], &inner, adapter.up, &round);
            for (p, outer) in result.iter_mut().zip(outer) {
                *p += adapter.scale * outer;
            }
        }
        result
    }

    /// Columns of `preactivation` and of `d`.
    fn widths(&self) -> (usize, usize) {
        match self.epilogue {
            Epilogue::Activate { .. } => (self.n, self.n),
            Epilogue::Gate { .. } => (2 * self.n, self.n),
            Epilogue::ActivateBackward { .. } => (0, self.n),
            Epilogue::GateBackward { .. } => (0, 2 * self.n),
        }
    }

    fn check(&self) -> Result<(), Mismatch> {
        let Self { batch, m, n, k, .. } = *self;
        let optional = |what, sizes: &[usize], tensor: Option<&[f64]>| {
            tensor.map_or(Ok(()), |tensor| check_length(what, sizes, tensor.len()))
        };
        check_length("elements of a", &[batch, m, k], self.a.len())?;
        check_length("elements of b", &[batch, k, n], self.b.len())?;
        if let Some(Adapter { rank, down, up, .. }) = self.adapter {
            check_length("elements of adapter.down", &[batch, k, rank], down.len())?;
            check_length("elements of adapter.up", &[batch, rank, n], up.len())?;
        }
        optional("elements of row_scale", &[batch, m], self.row_scale)?;
        optional("elements of column_scale", &[batch, n], self.column_scale)?;
        optional("elements of c", &[batch, m, n], self.c)?;
        optional("elements of bias", &[batch, n], self.bias)?;
        optional("elements of residual", &[batch, m, n], self.residual)?;
        match self.epilogue {
            Epilogue::Activate { .. } => Ok(()),
            Epilogue::Gate { weights, bias, .. } => {
                check_length("elements of weights", &[batch, k, n], weights.len())?;
                optional("elements of the gate's bias", &[batch, n], bias)
            }
            Epilogue::ActivateBackward { preactivation, .. } => {
                let (what, found) = ("elements of preactivation", preactivation.len());
                check_length(what, &[batch, m, n], found)
            }
            Epilogue::GateBackward { preactivation, .. } => {
                let (what, found) = ("elements of preactivation", preactivation.len());
                check_length(what, &[batch, m, 2, n], found)
            }
        }
    }
}

/// The products of `batch` pairs of `[m, k]` and `[k, n]`, with each element rounded.
fn product(
    batch: usize,
    [m, k, n]: [usize; 3],
    a: &[f64],
    b: &[f64],
    round: impl Fn(f64) -> f64,
) -> Vec<f64> {
    let mut result = Vec::with_capacity(batch * m * n);
    for matrix in 0..batch {
        for i in 0..m {
            let mut sums = vec![0.0; n];
            for l in 0..k {
                let factor = a[(matrix * m + i) * k + l];
                let row = &b[(matrix * k + l) * n..][..n];
                for (sum, b) in sums.iter_mut().zip(row) {
                    *sum += factor * b;
                }
            }
            result.extend(sums.into_iter().map(&round));
        }
    }
    result
}
