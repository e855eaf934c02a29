//! Matrix multiplication: `d = activation(alpha a b + beta c + bias) + residual` in one kernel.

mod plan;
mod problem;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::gemm::{MULTIPLY, Multiply as Row, MultiplyParams};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Float, Half, TensorMut, TensorRef};
use plan::Plan;
use problem::{Addresses, Layouts, Problem};

/// The oldest compute capability that has the kernels' instructions (cp.async, mma of bfloat16).
const OLDEST: u32 = 80;

/// What is applied to each element of `alpha a b + beta c + bias`, in `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`; a NaN stays.
    Relu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `x / 2 (1 + erf(x / sqrt(2)))`
    GeluErf,
    /// `x / (1 + exp(-x))`
    Silu,
}

/// Options of a multiplication.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// What multiplies the product; 1 by default.
    pub alpha: f32,
    /// What multiplies `c`, if there is one; 1 by default.
    pub beta: f32,
    /// What is applied before `residual` is added.
    pub activation: Activation,
    /// Rows and columns of `d` that a block computes; `None`: what the cost model finds cheapest.
    /// Tiles of 128x256, 128x128, 64x64 and 32x64 exist; the first two take operands whose
    /// addresses and strides are multiples of 16 bytes. No tile changes what is computed, but sums
    /// may round differently.
    pub tile: Option<(usize, usize)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            beta: 1.0,
            activation: Activation::None,
            tile: None,
        }
    }
}

/// Tensors of [`Gemm::multiply`].
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
    /// `[batch, m, n]`, with contiguous rows: added before the activation.
    pub c: Option<TensorRef<'a, T, 3>>,
    /// `[n]`: added to each row before the activation.
    pub bias: Option<TensorRef<'a, T, 1>>,
    /// `[batch, m, n]`, with contiguous rows: added after the activation.
    pub residual: Option<TensorRef<'a, T, 3>>,
    /// `[batch, m, n]`, with contiguous rows.
    pub d: TensorMut<'a, D, 3>,
}

/// The matrix multiplication kernels, loaded into one context.
///
/// ```no_run
/// use half::f16;
/// use seqmix::Tensor;
/// use seqmix::gemm::{Activation, Config, Gemm, Multiply};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let gemm = Gemm::new(&context)?;
///
/// // A linear layer: weights are [out, in], as models store them.
/// let x = Tensor::from_host(&stream, &vec![f16::ONE; 7 * 512], [1, 7, 512])?;
/// let weight = Tensor::from_host(&stream, &vec![f16::ONE; 256 * 512], [1, 256, 512])?;
/// let bias = Tensor::from_host(&stream, &vec![f16::ONE; 256], [256])?;
/// let mut y = Tensor::<f16, 3>::zeros(&stream, [1, 7, 256])?;
/// let config = Config { activation: Activation::Relu, ..Config::default() };
/// let tensors = Multiply {
///     a: x.view(),
///     b: weight.view().transposed(),
///     c: None,
///     bias: Some(bias.view()),
///     residual: None,
///     d: y.view_mut(),
/// };
/// gemm.multiply(&stream, config, tensors)?; // queued
/// assert_eq!(y.to_host(&stream)?[0].to_f32(), 513.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Gemm {
    /// The rows of the table that the device can run, and for each the kernels of its layouts.
    rows: Vec<Row>,
    kernels: Vec<Vec<Kernel<MultiplyParams>>>,
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for MultiplyParams {}

impl Gemm {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`] if the crate was built without nvcc; [`Error::Unsupported`] if
    /// the device is older than compute capability 8.0; [`Error::Load`] and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of(ctx)?;
        if device.capability < OLDEST {
            return Err(Error::Unsupported {
                op: "gemm",
                request: format!("a GPU of compute capability {}", device.dotted()),
                available: "support from 8.0 on".into(),
            });
        }
        let rows: Vec<Row> = MULTIPLY
            .iter()
            .filter(|row| row.shared_bytes() <= device.shared_bytes)
            .copied()
            .collect();
        let mut kernels = Vec::with_capacity(rows.len());
        for row in &rows {
            let module = images::load(ctx, &row.unit())?;
            let of_row: Result<_> = Row::layouts()
                .map(|(a, b)| Kernel::load(&module, &row.entry(a, b)))
                .collect();
            kernels.push(of_row?);
        }
        Ok(Self {
            rows,
            kernels,
            device,
            ctx: ctx.clone(),
        })
    }

    /// Queues `d = activation(alpha a b + beta c + bias) + residual` on `stream`.
    ///
    /// Products are summed in `f32`, everything after is computed in `f32`, and the result is rounded
    /// once. The same inputs give the same bits. If `k` is 0, the product is 0. `d` shares no memory
    /// with another tensor, not even with `c` or `residual`.
    ///
    /// # Errors
    /// Shapes, layouts or a tile that do not fit, see [`Error`]; nothing is queued then.
    pub fn multiply<T: Half, D: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Multiply<'_, T, D>,
    ) -> Result<()> {
        let op = "gemm::multiply";
        let Multiply {
            a,
            b,
            c,
            bias,
            residual,
            mut d,
        } = tensors;
        let layouts = Layouts {
            a: a.layout(),
            b: b.layout(),
            c: c.as_ref().map(TensorRef::layout),
            bias: bias.as_ref().map(TensorRef::layout),
            residual: residual.as_ref().map(TensorRef::layout),
            d: d.layout(),
        };
        let problem = Problem::new(T::DTYPE, D::DTYPE, config, &layouts)?;
        let mut launch = Launch::new(op, stream);
        let element = size_of::<T>() as u64;
        let addresses = Addresses {
            a: launch.read("a", &a, element)?,
            b: launch.read("b", &b, element)?,
            c: match &c {
                Some(c) => launch.read("c", c, element)?,
                None => 0,
            },
            bias: match &bias {
                Some(bias) => launch.read("bias", bias, element)?,
                None => 0,
            },
            residual: match &residual {
                Some(residual) => launch.read("residual", residual, element)?,
                None => 0,
            },
            d: launch.write("d", &mut d, size_of::<D>() as u64)?,
        };
        launch.same_context("the operation", &self.ctx)?;
        if problem.is_empty() {
            return launch.nothing();
        }
        let problem = problem.at(&addresses);
        let plan = Plan::new(op, &problem, &self.rows, &self.device)?;
        let kernel = &self.kernels[plan.row][plan.layout];
        // SAFETY: `Problem::new` checked that the tensors have the sizes and strides that the
        // parameters tell the kernel, which accesses no index beyond them; `Problem::at` marked as
        // aligned what is.
        unsafe { launch.run(kernel, plan.grid, &problem.params(&addresses)) }
    }
}
