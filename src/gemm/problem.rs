//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::{Activation, Config, Overflow};
use crate::abi::Dtype;
use crate::abi::gemm::{Axis, MAX_RANK, Matrix, MultiplyParams};
use crate::check::Check;
use crate::error::Result;
use crate::tensor::Layout;

pub(super) const CHECK: Check = Check {
    op: "gemm::multiply",
};

/// The largest m, n and k: the kernel adds a tile to them in 32 bits.
const MAX_SIZE: usize = 1 << 30;

/// The most groups: each may be a matrix of a batch, along z of the grid.
const MAX_GROUPS: usize = 65_535;

/// What the kernels copy at a time where alignment allows it.
pub(super) const VECTOR_BYTES: usize = 16;

/// Columns that one thread finishes.
const CHUNK: usize = 8;

/// One of something for each matrix of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Each<X> {
    pub(super) a: X,
    pub(super) b: X,
    pub(super) gate: X,
    pub(super) down: X,
    pub(super) up: X,
    pub(super) c: X,
    pub(super) bias: X,
    pub(super) gate_bias: X,
    pub(super) residual: X,
    pub(super) row_scale: X,
    pub(super) column_scale: X,
    pub(super) preactivation: X,
    pub(super) d: X,
}

/// Which [`super::Epilogue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Activate,
    Gate,
    ActivateBackward,
    GateBackward,
}

/// Which [`super::Groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grouping {
    None,
    Rows,
    K,
}

/// A call without its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Request {
    /// Of a, b and all that is not listed below.
    pub(super) dtype: Dtype,
    /// Of c and d.
    pub(super) out: Dtype,
    pub(super) config: Config,
    pub(super) ending: Ending,
    pub(super) activation: Activation,
    pub(super) in_place: bool,
    pub(super) grouping: Grouping,
    /// Of the offsets of groups, of the sums of columns, of the counter.
    pub(super) offsets: Option<Layout<1>>,
    pub(super) column_sums: Option<Layout<1>>,
    pub(super) non_finite: Option<Layout<1>>,
    pub(super) adapter_scale: f32,
}

/// A checked call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) request: Request,
    /// Matrices of d, and of b.
    pub(super) batch: usize,
    pub(super) weights: usize,
    pub(super) m: usize,
    /// Columns of b.
    pub(super) n: usize,
    pub(super) k: usize,
    /// Of an adapter; 0: there is none.
    pub(super) rank: usize,
    /// The contiguous axis of a, and of b.
    pub(super) axes: (Axis, Axis),
    /// Strides, and as addresses at first 16 for all that exist.
    pub(super) matrices: Each<Matrix>,
}

impl Problem {
    /// The problem of these tensors, as if their addresses were aligned.
    pub(super) fn new(request: Request, layouts: &Each<Option<Layout<3>>>) -> Result<Self> {
        let Request {
            dtype,
            out,
            ending,
            grouping,
            ..
        } = request;
        let (Some(a), Some(b), Some(d)) = (layouts.a, layouts.b, layouts.d) else {
            return Err(CHECK.shape("a", "a tensor", "none"));
        };
        let ([batch_a, m, k], [batch_b, _, n]) = (a.shape, b.shape);
        // weights: what bias and scales of columns belong to
        let (batch_a, batch_b, batch_d, weights) = match grouping {
            Grouping::None => (batch_a, batch_a, batch_a, batch_a),
            Grouping::Rows => (1, batch_b, 1, batch_b),
            Grouping::K => (1, 1, d.shape[0], d.shape[0]),
        };
        for (tensor, size) in [("a", m), ("b", k), ("b", n)] {
            if size > MAX_SIZE {
                let expected = format!("at most {MAX_SIZE} rows and columns");
                return Err(CHECK.shape(tensor, expected, format!("{size}")));
            }
        }
        let halves = matches!(ending, Ending::Gate | Ending::GateBackward);
        let saved = if halves { 2 * n } else { n };
        let written = if ending == Ending::GateBackward {
            2 * n
        } else {
            n
        };
        CHECK.sizes("a", [batch_a, m, k], a.shape)?;
        CHECK.sizes("b", [batch_b, k, n], b.shape)?;
        CHECK.sizes("d", [batch_d, m, written], d.shape)?;
        let optional = |name, layout: Option<Layout<3>>, shape: [usize; 3]| match layout {
            Some(layout) => CHECK.sizes(name, shape, layout.shape),
            None => Ok(()),
        };
        let of_d = [batch_d, m, n];
        optional("c", layouts.c, of_d)?;
        optional("residual", layouts.residual, of_d)?;
        optional("gate weights", layouts.gate, b.shape)?;
        optional("preactivation", layouts.preactivation, [batch_d, m, saved])?;
        let rank = layouts.down.map_or(0, |down| down.shape[2]);
        optional("adapter down", layouts.down, [batch_b, k, rank])?;
        optional("adapter up", layouts.up, [batch_b, rank, n])?;
        let repeated = |name, layout: Option<Layout<3>>, batch, size| match layout {
            Some(layout) => repeat(name, layout, batch, size).map(Some),
            None => Ok(None),
        };
        let bias = repeated("bias", layouts.bias, weights, n)?;
        let gate_bias = repeated("gate bias", layouts.gate_bias, weights, n)?;
        let column_scale = repeated("column_scale", layouts.column_scale, weights, n)?;
        let row_scale = repeated("row_scale", layouts.row_scale, batch_d, m)?;
        check_vectors(&request, weights, n)?;
        check_combination(&request, layouts, rank)?;

        let (axis_a, mut a) = operand("a", &a, dtype)?;
        let (axis_b, mut b) = operand("b", &swapped(&b), dtype)?;
        // a group may begin anywhere along its axis
        match grouping {
            Grouping::None => {}
            Grouping::Rows => a.vector &= i32::from(axis_a == Axis::K),
            Grouping::K => {
                a.vector &= i32::from(axis_a == Axis::Outer);
                b.vector &= i32::from(axis_b == Axis::Outer);
            }
        }
        if rank > 0 && axis_a == Axis::Outer {
            a = Matrix {
                row_stride: 1,
                column_stride: a.row_stride,
                vector: 0,
                ..a
            };
        }
        let gate = match layouts.gate {
            Some(layout) => {
                let (axis, gate) = operand("gate weights", &swapped(&layout), dtype)?;
                if (axis, gate.row_stride) != (axis_b, b.row_stride) {
                    return Err(CHECK.layout("gate weights", "the strides of b", &layout));
                }
                gate
            }
            None => Matrix::default(),
        };
        let rows = |tensor, layout: Option<Layout<3>>, dtype, halves: bool| match layout {
            Some(layout) => by_rows(tensor, &layout, dtype).map(|matrix| Matrix {
                vector: matrix.vector & i32::from(!halves || n.is_multiple_of(CHUNK)),
                ..matrix
            }),
            None => Ok(Matrix::default()),
        };
        let adapter = |tensor, layout: Option<Layout<3>>| match layout {
            Some(layout) => along(tensor, &swapped(&layout), dtype, axis_b),
            None => Ok(Matrix::default()),
        };
        let d = rows("d", layouts.d, out, ending == Ending::GateBackward)?;
        let matrices = Each {
            a,
            b,
            gate,
            down: adapter("adapter down", layouts.down)?,
            up: adapter("adapter up", layouts.up)?,
            c: if request.in_place {
                d
            } else {
                rows("c", layouts.c, out, false)?
            },
            bias: rows("bias", bias, dtype, false)?,
            gate_bias: rows("gate bias", gate_bias, dtype, false)?,
            residual: rows("residual", layouts.residual, dtype, false)?,
            // along m, and read one by one
            row_scale: rows("row_scale", row_scale, Dtype::F32, false)?,
            column_scale: rows("column_scale", column_scale, Dtype::F32, false)?,
            preactivation: rows("preactivation", layouts.preactivation, dtype, halves)?,
            d,
        };
        Ok(Self {
            request,
            batch: batch_d,
            weights,
            m,
            n,
            k,
            rank,
            axes: if rank > 0 {
                (Axis::K, axis_b)
            } else {
                (axis_a, axis_b)
            },
            matrices,
        })
    }

    /// The problem of tensors at these addresses; 0 for none.
    pub(super) fn at(self, addresses: &Each<u64>) -> Self {
        let at = |matrix: Matrix, address: u64| Matrix {
            at: address,
            vector: matrix.vector & i32::from(address.is_multiple_of(VECTOR_BYTES as u64)),
            ..matrix
        };
        let gate = at(self.matrices.gate, addresses.gate);
        let mut b = at(self.matrices.b, addresses.b);
        if self.request.ending == Ending::Gate {
            b.vector &= gate.vector; // both are copied in one go
        }
        let matrices = Each {
            a: at(self.matrices.a, addresses.a),
            b,
            gate,
            down: at(self.matrices.down, addresses.down),
            up: at(self.matrices.up, addresses.up),
            c: at(self.matrices.c, addresses.c),
            bias: at(self.matrices.bias, addresses.bias),
            gate_bias: at(self.matrices.gate_bias, addresses.gate_bias),
            residual: at(self.matrices.residual, addresses.residual),
            row_scale: at(self.matrices.row_scale, addresses.row_scale),
            column_scale: at(self.matrices.column_scale, addresses.column_scale),
            preactivation: at(self.matrices.preactivation, addresses.preactivation),
            d: at(self.matrices.d, addresses.d),
        };
        Self { matrices, ..self }
    }

    /// The kernels' parameters; what is not known here is 0.
    pub(super) fn params(&self) -> MultiplyParams {
        let Each {
            a,
            b,
            gate,
            down,
            up,
            c,
            bias,
            gate_bias,
            residual,
            row_scale,
            column_scale,
            preactivation,
            d,
        } = self.matrices;
        let Request { config, .. } = self.request;
        MultiplyParams {
            a,
            b,
            gate,
            down,
            up,
            c,
            bias,
            gate_bias,
            residual,
            row_scale,
            column_scale,
            preactivation,
            d,
            // `new` keeps sizes below 2^31
            m: self.m as i32,
            n: self.n as i32,
            k: self.k as i32,
            rank: self.rank as i32,
            splits: 1,
            groups: self.weights as i32,
            grouping: match self.request.grouping {
                Grouping::None => 0,
                Grouping::Rows => 1,
                Grouping::K => 2,
            },
            epilogue: match self.request.ending {
                Ending::Activate => 0,
                Ending::Gate => 1,
                Ending::ActivateBackward => 2,
                Ending::GateBackward => 3,
            },
            activation: match self.request.activation {
                Activation::None => 0,
                Activation::Relu => 1,
                Activation::GeluTanh => 2,
                Activation::GeluErf => 3,
                Activation::Silu => 4,
            },
            saturate: (config.overflow == Overflow::Saturate).into(),
            alpha: config.alpha,
            beta: config.beta,
            adapter_scale: self.request.adapter_scale,
            ..MultiplyParams::default()
        }
    }

    /// Whether d has no elements.
    pub(super) fn is_empty(&self) -> bool {
        self.batch == 0 || self.weights == 0 || self.m == 0 || self.n == 0
    }
}

/// Checks the tensors that are vectors.
fn check_vectors(request: &Request, weights: usize, n: usize) -> Result<()> {
    if weights > MAX_GROUPS && request.grouping != Grouping::None {
        let expected = format!("at most {MAX_GROUPS} groups");
        return Err(CHECK.shape("offsets", expected, format!("{weights}")));
    }
    let vectors = [
        ("offsets", request.offsets, weights.saturating_add(1)),
        ("column_sums", request.column_sums, n),
        ("non_finite", request.non_finite, 1),
    ];
    for (tensor, layout, expected) in vectors {
        if let Some(layout) = layout {
            CHECK.sizes(tensor, [expected], layout.shape)?;
            if expected > 1 && layout.strides != [1] {
                return Err(CHECK.layout(tensor, "contiguous elements", &layout));
            }
        }
    }
    Ok(())
}

/// Refuses what does not go together.
fn check_combination(
    request: &Request,
    layouts: &Each<Option<Layout<3>>>,
    rank: usize,
) -> Result<()> {
    let with_c = layouts.c.is_some() || request.in_place;
    let adapter = layouts.down.is_some();
    let (gate, gate_backward) = (
        request.ending == Ending::Gate,
        request.ending == Ending::GateBackward,
    );
    let grouped = request.grouping != Grouping::None;
    let unsupported = [
        (gate && with_c, "Epilogue::Gate with c", "it without c"),
        (
            gate && layouts.column_scale.is_some(),
            "Epilogue::Gate with column_scale",
            "it without column_scale",
        ),
        (
            gate && adapter,
            "Epilogue::Gate with an adapter",
            "it without an adapter",
        ),
        (
            (gate || gate_backward) && request.column_sums.is_some(),
            "column_sums of a gate",
            "Gemm::column_sums",
        ),
        (
            gate_backward && layouts.residual.is_some(),
            "Epilogue::GateBackward with residual",
            "it without residual",
        ),
        (
            gate_backward && request.in_place,
            "Epilogue::GateBackward in place",
            "it with c as a tensor of its own",
        ),
        (
            grouped && request.column_sums.is_some(),
            "column_sums of groups",
            "Gemm::column_sums",
        ),
        (
            grouped && adapter,
            "an adapter with groups",
            "a batch of adapters without groups",
        ),
    ];
    for (refused, asked, available) in unsupported {
        if refused {
            return Err(CHECK.unsupported(asked, available));
        }
    }
    if adapter && !(1..=MAX_RANK).contains(&rank) {
        let available = format!("rank 1 to {MAX_RANK}");
        return Err(CHECK.unsupported(format!("an adapter of rank {rank}"), available));
    }
    Ok(())
}

/// A vector for each of a batch, or one for all, as matrices of one row.
fn repeat(tensor: &'static str, layout: Layout<3>, batch: usize, size: usize) -> Result<Layout<3>> {
    let [found, _, columns] = layout.shape;
    if (found != batch && found != 1) || columns != size {
        let expected = format!("shape {:?} or {:?}", [batch, size], [1, size]);
        let found = format!("shape {:?}", [found, columns]);
        return Err(CHECK.shape(tensor, expected, found));
    }
    Ok(layout)
}

/// The layout with its rows and columns swapped.
fn swapped(layout: &Layout<3>) -> Layout<3> {
    let ([batch, rows, columns], [by_batch, by_row, by_column]) = (layout.shape, layout.strides);
    Layout {
        shape: [batch, columns, rows],
        strides: [by_batch, by_column, by_row],
    }
}

/// How an operand lies whose last axis is k.
fn operand(tensor: &'static str, layout: &Layout<3>, dtype: Dtype) -> Result<(Axis, Matrix)> {
    let ways = [
        (Axis::K, lines(layout, dtype)),
        (Axis::Outer, lines(&swapped(layout), dtype)),
    ];
    // Matrices of one row or column lie both ways, of which one may be aligned.
    let aligned = ways
        .iter()
        .find(|(_, lines)| lines.is_some_and(|lines| lines.vector != 0));
    let any = aligned.or_else(|| ways.iter().find(|(_, lines)| lines.is_some()));
    match any {
        Some(&(axis, Some(matrix))) => Ok((axis, matrix)),
        _ => Err(CHECK.layout(tensor, "contiguous rows or contiguous columns", layout)),
    }
}

/// How an operand lies whose last axis is k, for a kernel whose tiles lie along `axis`.
fn along(tensor: &'static str, layout: &Layout<3>, dtype: Dtype, axis: Axis) -> Result<Matrix> {
    let (wanted, other) = match axis {
        Axis::K => (lines(layout, dtype), lines(&swapped(layout), dtype)),
        Axis::Outer => (lines(&swapped(layout), dtype), lines(layout, dtype)),
    };
    match (wanted, other) {
        (Some(matrix), _) => Ok(matrix),
        (None, Some(matrix)) => Ok(Matrix {
            row_stride: 1,
            column_stride: matrix.row_stride,
            vector: 0,
            ..matrix
        }),
        (None, None) => Err(CHECK.layout(tensor, "contiguous rows or contiguous columns", layout)),
    }
}

/// How a matrix lies whose rows are contiguous.
fn by_rows(tensor: &'static str, layout: &Layout<3>, dtype: Dtype) -> Result<Matrix> {
    lines(layout, dtype).ok_or_else(|| CHECK.layout(tensor, "contiguous rows", layout))
}

/// The strides if the last axis is contiguous; 0 along axes of one element.
fn lines(layout: &Layout<3>, dtype: Dtype) -> Option<Matrix> {
    let (batch_stride, row_stride) = (layout.step(0)?, layout.step(1)?);
    let vector = (VECTOR_BYTES / dtype.bytes()) as i64;
    layout.is_contiguous_along(2).then_some(Matrix {
        at: 0,
        batch_stride,
        row_stride,
        column_stride: 1,
        vector: (batch_stride % vector == 0 && row_stride % vector == 0).into(),
        dtype: dtype.number(),
    })
}
