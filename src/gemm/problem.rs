//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::{Activation, Config};
use crate::abi::Dtype;
use crate::abi::gemm::{Axis, MultiplyParams};
use crate::error::{Error, Result};
use crate::tensor::Layout;

const OP: &str = "gemm::multiply";

/// The largest m, n and k: the kernel adds a tile to them in 32 bits.
const MAX_SIZE: usize = 1 << 30;

/// What the kernels copy at a time where alignment allows it.
const VECTOR_BYTES: usize = 16;

/// Shapes and strides of the tensors of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layouts {
    pub(super) a: Layout<3>,
    pub(super) b: Layout<3>,
    pub(super) c: Option<Layout<3>>,
    pub(super) bias: Option<Layout<1>>,
    pub(super) residual: Option<Layout<3>>,
    pub(super) d: Layout<3>,
}

/// Addresses of the tensors of a call; 0 for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Addresses {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) c: u64,
    pub(super) bias: u64,
    pub(super) residual: u64,
    pub(super) d: u64,
}

/// How matrices lie in memory. Strides count elements and are 0 along axes of one element.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Strides {
    /// From one matrix to the next.
    pub(super) batch: i64,
    /// From one contiguous row, or column, to the next.
    pub(super) line: i64,
    /// Whether each line begins at a multiple of 16 bytes.
    pub(super) vector: bool,
}

impl Strides {
    fn at(self, address: u64) -> Self {
        let vector = self.vector && address.is_multiple_of(VECTOR_BYTES as u64);
        Self { vector, ..self }
    }
}

/// A checked call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    /// Of a, b, c, bias and residual.
    pub(super) dtype: Dtype,
    /// Of d.
    pub(super) out: Dtype,
    pub(super) config: Config,
    pub(super) batch: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// The contiguous axis of a, and of b.
    pub(super) axes: (Axis, Axis),
    pub(super) a: Strides,
    pub(super) b: Strides,
    pub(super) c: Strides,
    pub(super) bias: Strides,
    pub(super) residual: Strides,
    pub(super) d: Strides,
}

impl Problem {
    /// The problem of these tensors, as if their addresses were aligned.
    pub(super) fn new(dtype: Dtype, out: Dtype, config: Config, layouts: &Layouts) -> Result<Self> {
        let Layouts {
            a,
            b,
            c,
            bias,
            residual,
            d,
        } = layouts;
        let ([batch, m, k], [_, _, n]) = (a.shape, b.shape);
        sizes("b", [batch, k, n], b.shape)?;
        sizes("d", [batch, m, n], d.shape)?;
        if let Some(c) = c {
            sizes("c", d.shape, c.shape)?;
        }
        if let Some(bias) = bias {
            sizes("bias", [n], bias.shape)?;
        }
        if let Some(residual) = residual {
            sizes("residual", d.shape, residual.shape)?;
        }
        for (tensor, size) in [("a", m), ("b", k), ("b", n)] {
            if size > MAX_SIZE {
                return Err(Error::Shape {
                    op: OP,
                    tensor,
                    expected: format!("at most {MAX_SIZE} rows and columns"),
                    found: format!("{size}"),
                });
            }
        }
        let rows = |tensor, layout: &Option<Layout<3>>| match layout {
            Some(layout) => by_rows(tensor, layout, dtype),
            None => Ok(Strides::default()),
        };
        let (axis_a, strides_a) = operand("a", a, dtype)?;
        let (axis_b, strides_b) = operand("b", &swapped(b), dtype)?;
        Ok(Self {
            dtype,
            out,
            config,
            batch,
            m,
            n,
            k,
            axes: (axis_a, axis_b),
            a: strides_a,
            b: strides_b,
            c: rows("c", c)?,
            bias: match bias {
                Some(bias) => by_rows("bias", &one_row(bias), dtype)?,
                None => Strides::default(),
            },
            residual: rows("residual", residual)?,
            d: by_rows("d", d, out)?,
        })
    }

    /// The problem of tensors at these addresses.
    pub(super) fn at(self, addresses: &Addresses) -> Self {
        Self {
            a: self.a.at(addresses.a),
            b: self.b.at(addresses.b),
            c: self.c.at(addresses.c),
            bias: self.bias.at(addresses.bias),
            residual: self.residual.at(addresses.residual),
            d: self.d.at(addresses.d),
            ..self
        }
    }

    /// The kernel's parameters.
    pub(super) fn params(&self, addresses: &Addresses) -> MultiplyParams {
        MultiplyParams {
            a: addresses.a,
            b: addresses.b,
            c: addresses.c,
            bias: addresses.bias,
            residual: addresses.residual,
            d: addresses.d,
            a_batch_stride: self.a.batch,
            a_stride: self.a.line,
            b_batch_stride: self.b.batch,
            b_stride: self.b.line,
            c_batch_stride: self.c.batch,
            c_row_stride: self.c.line,
            residual_batch_stride: self.residual.batch,
            residual_row_stride: self.residual.line,
            d_batch_stride: self.d.batch,
            d_row_stride: self.d.line,
            // `new` keeps sizes below 2^31
            m: self.m as i32,
            n: self.n as i32,
            k: self.k as i32,
            a_vector: self.a.vector.into(),
            b_vector: self.b.vector.into(),
            c_vector: self.c.vector.into(),
            bias_vector: self.bias.vector.into(),
            residual_vector: self.residual.vector.into(),
            d_vector: self.d.vector.into(),
            d_type: match self.out {
                Dtype::F16 => 0,
                Dtype::BF16 => 1,
                _ => 2,
            },
            activation: match self.config.activation {
                Activation::None => 0,
                Activation::Relu => 1,
                Activation::GeluTanh => 2,
                Activation::GeluErf => 3,
                Activation::Silu => 4,
            },
            alpha: self.config.alpha,
            beta: self.config.beta,
        }
    }

    /// Whether there is nothing to compute at all.
    pub(super) fn is_empty(&self) -> bool {
        self.batch == 0 || self.m == 0 || self.n == 0
    }
}

fn sizes<const N: usize>(
    tensor: &'static str,
    expected: [usize; N],
    found: [usize; N],
) -> Result<()> {
    if expected != found {
        return Err(Error::Shape {
            op: OP,
            tensor,
            expected: format!("shape {expected:?}"),
            found: format!("shape {found:?}"),
        });
    }
    Ok(())
}

fn refuse<const N: usize>(tensor: &'static str, expected: &str, layout: &Layout<N>) -> Error {
    Error::Layout {
        op: OP,
        tensor,
        expected: expected.into(),
        found: format!("shape {:?} with strides {:?}", layout.shape, layout.strides),
    }
}

/// The layout with its rows and columns swapped.
fn swapped(layout: &Layout<3>) -> Layout<3> {
    let ([batch, rows, columns], [by_batch, by_row, by_column]) = (layout.shape, layout.strides);
    Layout {
        shape: [batch, columns, rows],
        strides: [by_batch, by_column, by_row],
    }
}

/// A vector as a matrix of one row.
fn one_row(layout: &Layout<1>) -> Layout<3> {
    Layout {
        shape: [1, 1, layout.shape[0]],
        strides: [0, 0, layout.strides[0]],
    }
}

/// How an operand lies whose last axis is k.
fn operand(tensor: &'static str, layout: &Layout<3>, dtype: Dtype) -> Result<(Axis, Strides)> {
    let ways = [
        (Axis::K, lines(layout, dtype)),
        (Axis::Outer, lines(&swapped(layout), dtype)),
    ];
    // Matrices of one row or column lie both ways, of which one may be aligned.
    let aligned = ways
        .iter()
        .find(|(_, lines)| lines.is_some_and(|lines| lines.vector));
    let any = aligned.or_else(|| ways.iter().find(|(_, lines)| lines.is_some()));
    match any {
        Some(&(axis, Some(strides))) => Ok((axis, strides)),
        _ => Err(refuse(
            tensor,
            "contiguous rows or contiguous columns",
            layout,
        )),
    }
}

/// How a matrix lies whose rows are contiguous.
fn by_rows(tensor: &'static str, layout: &Layout<3>, dtype: Dtype) -> Result<Strides> {
    lines(layout, dtype).ok_or_else(|| refuse(tensor, "contiguous rows", layout))
}

/// The strides if the last axis is contiguous.
fn lines(layout: &Layout<3>, dtype: Dtype) -> Option<Strides> {
    let stride = |axis: usize| match layout.shape[axis] {
        0 | 1 => Some(0),
        _ => i64::try_from(layout.strides[axis]).ok(),
    };
    let (batch, line) = (stride(0)?, stride(1)?);
    let contiguous = layout.shape[2] <= 1 || layout.strides[2] == 1;
    let vector = (VECTOR_BYTES / dtype.bytes()) as i64;
    contiguous.then_some(Strides {
        batch,
        line,
        vector: batch % vector == 0 && line % vector == 0,
    })
}
