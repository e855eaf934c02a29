//! What a multiplication is made of: options, tensors, epilogues.

use crate::tensor::{TensorMut, TensorRef};

/// A function that is applied to each element, in `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`; a NaN stays. Its derivative at 0 counts as 0.
    Relu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `x / 2 (1 + erf(x / sqrt(2)))`
    GeluErf,
    /// `x / (1 + exp(-x))`
    Silu,
}

/// What becomes of results beyond the largest number of `d`'s type. A NaN stays one in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Infinity, as IEEE arithmetic rounds: a loss scaler sees that the scale was too large.
    #[default]
    Infinity,
    /// The largest finite number.
    Saturate,
}

/// Options of a multiplication.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// What multiplies the product; 1 by default.
    pub alpha: f32,
    /// What multiplies `c`, if there is one; 1 by default.
    pub beta: f32,
    /// What becomes of results that `d` cannot hold.
    pub overflow: Overflow,
    /// Rows and columns of `d` that a block computes; `None`: what the cost model finds cheapest.
    /// The table in [`abi::gemm`](crate::abi::gemm) has all tiles; the large ones take operands whose
    /// addresses and strides are multiples of 16 bytes. No tile changes what is computed, but sums
    /// may round differently.
    pub tile: Option<(usize, usize)>,
    /// Parts of `k` that are summed by different blocks and then added, in order; `None`: what the
    /// cost model finds cheapest.
    pub splits: Option<usize>,
    /// Bytes of workspace that splits of `k` may use; no limit by default.
    pub max_workspace: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            beta: 1.0,
            overflow: Overflow::Infinity,
            tile: None,
            splits: None,
            max_workspace: usize::MAX,
        }
    }
}

/// What is made of `x = alpha row_scale[i] column_scale[j] (a b)[i,j] + beta c[i,j] + bias[j]`.
#[derive(Debug)]
pub enum Epilogue<'a, T> {
    /// `d = f(x) + residual`
    Activate {
        /// `f`
        activation: Activation,
        /// `[batch, m, n]`, with contiguous rows: where `x` is saved for the backward pass.
        preactivation: Option<TensorMut<'a, T, 3>>,
    },
    /// `d = f(g) x + residual`, where `g = alpha row_scale[i] (a weights)[i,j] + bias[j]`: SwiGLU with
    /// [`Activation::Silu`], GeGLU with a gelu (Shazeer, "GLU Variants Improve Transformer", 2020).
    ///
    /// One matrix that holds the weights of both is two views of it: of its halves, or, where rows
    /// are outputs, of its even and odd rows. `c`, `column_scale`, an adapter and `column_sums` do
    /// not go with it.
    Gate {
        /// `f`
        activation: Activation,
        /// `[batch, k, n]`: the gate's weights, with the strides of `b`.
        weights: TensorRef<'a, T, 3>,
        /// `[batch or 1, n]`: the gate's bias.
        bias: Option<TensorRef<'a, T, 2>>,
        /// `[batch, m, 2 n]`, with contiguous rows: where `g` and behind it `x` are saved for the
        /// backward pass.
        preactivation: Option<TensorMut<'a, T, 3>>,
    },
    /// `d = x f'(preactivation) + residual`: the gradient of what [`Epilogue::Activate`] was given,
    /// if `x` is the gradient of what it returned.
    ActivateBackward {
        /// `f`
        activation: Activation,
        /// `[batch, m, n]`, with contiguous rows.
        preactivation: TensorRef<'a, T, 3>,
    },
    /// `d = [x u f'(g), x f(g)]`, where `[g, u]` is the preactivation: the gradient of what
    /// [`Epilogue::Gate`] was given. `d` is `[batch, m, 2 n]`. `residual` and `column_sums` do not go
    /// with it.
    GateBackward {
        /// `f`
        activation: Activation,
        /// `[batch, m, 2 n]`, with contiguous rows.
        preactivation: TensorRef<'a, T, 3>,
    },
}

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Self::Activate {
            activation: Activation::None,
            preactivation: None,
        }
    }
}

/// What is added to the product.
#[derive(Debug, Default)]
pub enum Addend<'a, D> {
    /// Nothing.
    #[default]
    None,
    /// `[batch, m, n]`, with contiguous rows.
    Tensor(TensorRef<'a, D, 3>),
    /// `d` as it is before the call: gradients are added up like this.
    InPlace,
}

/// Problems of different sizes in one call, as experts have them.
///
/// Offsets lie on the device: group `g` has the rows, or the part of `k`, from `offsets[g]` to before
/// `offsets[g + 1]`. They are clamped to what there is, and a group whose end lies before its start is
/// empty. The groups may leave out rows: those of `d` are not written.
#[derive(Debug, Default)]
pub enum Groups<'a> {
    /// A problem for each of a batch.
    #[default]
    None,
    /// Groups of rows, each with its own `b`: `a` is `[1, m, k]`, `b` `[groups, k, n]`, `d` `[1, m, n]`;
    /// the batch of `bias` and `column_scale` is `groups` or 1. The offsets are `[groups + 1]`, contiguous.
    Rows(TensorRef<'a, i32, 1>),
    /// Groups that sum over their own part of `k`, as gradients of weights do: `a` is `[1, m, k]`, `b`
    /// `[1, k, n]`, `d` `[groups, m, n]`. The offsets are `[groups + 1]`, contiguous.
    K(TensorRef<'a, i32, 1>),
}

/// A low-rank adapter: `scale (a down) up` is added to `a b` (Hu et al., "LoRA: Low-Rank Adaptation of
/// Large Language Models", 2021).
///
/// `a down` is rounded to `T` and never written to memory. It is fastest where `down` and `up` lie as `b`
/// does: along the same axis, with aligned strides.
#[derive(Clone, Debug)]
pub struct Adapter<'a, T> {
    /// `[batch, k, rank]`; ranks from 1 to 64.
    pub down: TensorRef<'a, T, 3>,
    /// `[batch, rank, n]`
    pub up: TensorRef<'a, T, 3>,
    /// What multiplies `a down`.
    pub scale: f32,
}

/// Tensors of [`Gemm::multiply`](super::Gemm::multiply).
///
/// `a` and `b` may each lie row by row or column by column: of the last two strides one is 1.
/// [`TensorRef::transposed`] turns a matrix that is stored the other way round. A batch stride of 0
/// uses one matrix for the whole batch. No size and no stride need be a multiple of anything; where
/// addresses and strides are multiples of 16 bytes, copies are faster.
#[derive(Debug)]
pub struct Multiply<'a, T, D> {
    /// `[batch, m, k]`
    pub a: TensorRef<'a, T, 3>,
    /// `[batch, k, n]`
    pub b: TensorRef<'a, T, 3>,
    /// Added to the product of `a` and `b`.
    pub adapter: Option<Adapter<'a, T>>,
    /// `[batch or 1, m]`: multiplies the rows of the product.
    pub row_scale: Option<TensorRef<'a, f32, 2>>,
    /// `[batch or 1, n]`: multiplies the columns of the product.
    pub column_scale: Option<TensorRef<'a, f32, 2>>,
    /// Added before the epilogue, times `beta`.
    pub c: Addend<'a, D>,
    /// `[batch or 1, n]`: added to each row before the epilogue.
    pub bias: Option<TensorRef<'a, T, 2>>,
    /// What is made of all this.
    pub epilogue: Epilogue<'a, T>,
    /// `[batch, m, n]`, with contiguous rows: added after the epilogue.
    pub residual: Option<TensorRef<'a, T, 3>>,
    /// `[n]`, contiguous: the sums of the columns of `d`, before rounding, over all rows of the batch: the
    /// gradient of a bias. Added in an order that depends on the plan alone.
    pub column_sums: Option<TensorMut<'a, f32, 1>>,
    /// `[1]`: the number of elements of `d` that are NaN or that overflow its type is added to it.
    pub non_finite: Option<TensorMut<'a, i32, 1>>,
    /// Whether rows or `k` are those of several problems.
    pub groups: Groups<'a>,
    /// `[batch, m, n]`, with contiguous rows; `[batch, m, 2 n]` of [`Epilogue::GateBackward`].
    pub d: TensorMut<'a, D, 3>,
}

impl<'a, T, D> Multiply<'a, T, D> {
    /// `d = alpha a b`; what else is wanted is set in the struct that it returns.
    pub fn new(a: TensorRef<'a, T, 3>, b: TensorRef<'a, T, 3>, d: TensorMut<'a, D, 3>) -> Self {
        Self {
            a,
            b,
            adapter: None,
            row_scale: None,
            column_scale: None,
            c: Addend::None,
            bias: None,
            epilogue: Epilogue::default(),
            residual: None,
            column_sums: None,
            non_finite: None,
            groups: Groups::None,
            d,
        }
    }
}
