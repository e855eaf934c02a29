//! Sums of columns: alone, and of the tiles of a multiplication.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::plan::grid_of_column_sums;
use super::{ColumnSumsParams, Gemm, Matrix};
use crate::abi::gemm::COLUMN_SUMS_COLUMNS;
use crate::error::{Error, Result};
use crate::launch::Launch;
use crate::tensor::{Float, Layout, TensorMut, TensorRef};
use crate::workspace::{Scratch, Workspace};

const OP: &str = "gemm::column_sums";

/// The most rows: the kernel adds a block's to them in 64 bits.
const MAX_ROWS: usize = 1 << 62;

/// Rows below which a part is not worth a block.
const ROWS_OF_PART: usize = 64;

/// Blocks of each multiprocessor that keep its loads busy.
const BLOCKS: usize = 4;

impl Gemm {
    /// Queues the sums of the columns of `x`, over all rows of all matrices: the gradient of a bias.
    ///
    /// `x` is `[batch, m, n]`, with contiguous rows; `sums` `[n]`, contiguous. Sums are `f32`, added in an order
    /// that depends on the shape and the device alone. Without rows they are 0.
    ///
    /// # Errors
    /// Shapes and layouts that do not fit; [`Error::Workspace`] if fewer bytes are reserved than
    /// [`Gemm::column_sums_workspace_bytes`]. Nothing is queued then.
    pub fn column_sums<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        x: TensorRef<'_, T, 3>,
        sums: TensorMut<'_, f32, 1>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.column_sums_with(stream, x, sums, &mut workspace.scratch())
    }

    /// [`Gemm::column_sums`] in a part of a workspace.
    pub(crate) fn column_sums_with<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        x: TensorRef<'_, T, 3>,
        mut sums: TensorMut<'_, f32, 1>,
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let matrix = matrix(&x)?;
        let [batch, m, n] = x.shape();
        if sums.shape() != [n] {
            return Err(Error::Shape {
                op: OP,
                tensor: "sums",
                expected: format!("shape {:?}", [n]),
                found: format!("shape {:?}", sums.shape()),
            });
        }
        if n > 1 && sums.strides() != [1] {
            return Err(Error::Layout {
                op: OP,
                tensor: "sums",
                expected: "contiguous elements".into(),
                found: format!("shape {:?} with strides {:?}", [n], sums.strides()),
            });
        }
        // strides of 0 make any number of rows
        let rows = batch.checked_mul(m).filter(|&rows| rows <= MAX_ROWS);
        let rows = rows.ok_or_else(|| Error::Shape {
            op: OP,
            tensor: "x",
            expected: format!("at most {MAX_ROWS} rows"),
            found: format!("{batch} matrices of {m}"),
        })?;
        let parts = self.parts(rows, n);
        let mut memory = scratch.take(self.column_sums_workspace_bytes(x.shape()))?;
        let mut launch = Launch::new(OP, stream);
        let at = launch.read("x", &x, size_of::<T>() as u64)?;
        let to = launch.write("sums", &mut sums, 4)?;
        let memory = match &mut memory {
            Some(memory) => launch.write("workspace", memory, 16)?,
            None => to,
        };
        launch.same_context("the operation", &self.ctx)?;
        if n == 0 {
            return launch.check();
        }
        let params = ColumnSumsParams {
            x: Matrix {
                at,
                vector: matrix.vector & i32::from(at.is_multiple_of(16)),
                ..matrix
            },
            sums: memory,
            rows: rows as i64, // at most MAX_ROWS
            rows_of_matrix: m.max(1) as i64,
            rows_of_part: rows.div_ceil(parts) as i64,
            columns: columns(OP, n)?,
        };
        let grid = grid_of_column_sums(n, parts);
        // SAFETY: `matrix` describes the tensor, `sums` was found to have n elements, and the
        // workspace holds a row of them for each part.
        unsafe { launch.run(&self.column_sums, grid, &params) }?;
        if parts > 1 {
            // SAFETY: as above.
            unsafe { self.add_tiles(&launch, memory, parts, n, to) }?;
        }
        Ok(())
    }

    /// Bytes of workspace that [`Gemm::column_sums`] needs for `x` of this shape.
    pub fn column_sums_workspace_bytes(&self, [batch, m, n]: [usize; 3]) -> usize {
        match self.parts(batch.saturating_mul(m), n) {
            1 => 0,
            parts => parts * n * size_of::<f32>(),
        }
    }

    /// How many blocks share the rows.
    fn parts(&self, rows: usize, n: usize) -> usize {
        let blocks = n.div_ceil(COLUMN_SUMS_COLUMNS).max(1);
        let wanted = BLOCKS * self.device.multiprocessors / blocks;
        wanted.min(rows / ROWS_OF_PART).max(1)
    }

    /// Adds `tiles` rows of `n` sums that lie at `from`.
    ///
    /// # Safety
    /// There must be so many at `from`, and n at `to`.
    pub(super) unsafe fn add_tiles(
        &self,
        launch: &Launch<'_>,
        from: u64,
        tiles: usize,
        n: usize,
        to: u64,
    ) -> Result<()> {
        let params = ColumnSumsParams {
            x: Matrix {
                at: from,
                row_stride: n as i64,
                column_stride: 1,
                vector: n.is_multiple_of(4).into(),
                dtype: 2,
                ..Matrix::default()
            },
            sums: to,
            rows: tiles as i64,
            rows_of_matrix: tiles.max(1) as i64,
            rows_of_part: tiles as i64,
            columns: columns(OP, n)?,
        };
        // SAFETY: this function's own condition.
        unsafe { launch.run(&self.column_sums, grid_of_column_sums(n, 1), &params) }
    }

    /// Writes the sums of no rows.
    ///
    /// # Safety
    /// There must be n sums at `to`.
    pub(super) unsafe fn no_column_sums(
        &self,
        launch: &Launch<'_>,
        n: usize,
        to: u64,
    ) -> Result<()> {
        if n == 0 {
            return launch.check();
        }
        // SAFETY: without rows nothing is read; the rest is this function's own condition.
        unsafe { self.add_tiles(launch, 0, 0, n, to) }
    }
}

fn columns(op: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Shape {
        op,
        tensor: "x",
        expected: format!("at most {} columns", i32::MAX),
        found: format!("{n}"),
    })
}

/// How `x` lies, if its rows are contiguous.
fn matrix<T: Float>(x: &TensorRef<'_, T, 3>) -> Result<Matrix> {
    let Layout { shape, strides } = x.layout();
    let stride = |axis: usize| if shape[axis] > 1 { strides[axis] } else { 0 };
    let vector = 16 / size_of::<T>();
    let aligned = stride(0).is_multiple_of(vector) && stride(1).is_multiple_of(vector);
    let (Ok(batch_stride), Ok(row_stride)) = (i64::try_from(stride(0)), i64::try_from(stride(1)))
    else {
        return Err(refuse(shape, strides));
    };
    if shape[2] > 1 && strides[2] != 1 {
        return Err(refuse(shape, strides));
    }
    Ok(Matrix {
        at: 0,
        batch_stride,
        row_stride,
        column_stride: 1,
        vector: aligned.into(),
        dtype: T::DTYPE.number(),
    })
}

fn refuse(shape: [usize; 3], strides: [usize; 3]) -> Error {
    Error::Layout {
        op: OP,
        tensor: "x",
        expected: "contiguous rows".into(),
        found: format!("shape {shape:?} with strides {strides:?}"),
    }
}
