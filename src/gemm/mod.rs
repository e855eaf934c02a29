//! Matrix multiplication with all that is done to a product in the same kernel.
//!
//! ```text
//! x = alpha row_scale[i] column_scale[j] (a b + scale (a down) up)[i,j] + beta c[i,j] + bias[j]
//! d = epilogue(x) + residual
//! ```

mod column_sums;
mod lora;
mod plan;
mod problem;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::gemm::{
    COLUMN_SUMS_UNIT, ColumnSumsParams, MULTIPLY, Matrix, Multiply as Row, MultiplyParams,
    SUM_SPLITS, SUM_SPLITS_UNIT, column_sums, sum_splits,
};
use crate::driver::Device;
use crate::error::Result;
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Float, Layout, TensorMut, TensorRef};
use crate::workspace::{Scratch, Workspace};
use problem::{Each, Ending, Grouping, Problem, Request};

pub use lora::LoraBackward;
pub use plan::Plan;
pub use tensors::{Activation, Adapter, Addend, Config, Epilogue, Groups, Multiply, Overflow};

/// The matrix multiplication kernels, loaded into one context.
///
/// ```no_run
/// use half::f16;
/// use seqmix::gemm::{Activation, Config, Epilogue, Gemm, Multiply};
/// use seqmix::{Tensor, Workspace};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let gemm = Gemm::new(&context)?;
///
/// // A linear layer: weights are [out, in], as models store them.
/// let x = Tensor::from_host(&stream, &vec![f16::ONE; 7 * 512], [1, 7, 512])?;
/// let weight = Tensor::from_host(&stream, &vec![f16::ONE; 256 * 512], [1, 256, 512])?;
/// let bias = Tensor::from_host(&stream, &vec![f16::ONE; 256], [1, 256])?;
/// let mut y = Tensor::<f16, 3>::zeros(&stream, [1, 7, 256])?;
/// let mut layer = Multiply {
///     bias: Some(bias.view()),
///     epilogue: Epilogue::Activate { activation: Activation::Relu, preactivation: None },
///     ..Multiply::new(x.view(), weight.view().transposed(), y.view_mut())
/// };
///
/// let plan = gemm.plan(&stream, Config::default(), &mut layer)?;
/// println!("{plan}");
/// let mut workspace = Workspace::new(&stream);
/// workspace.reserve(plan.workspace_bytes())?;
/// gemm.multiply(&stream, Config::default(), layer, &mut workspace)?; // queued
/// assert_eq!(y.to_host(&stream)?[0].to_f32(), 513.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Gemm {
    /// The rows of the table that the device can run, and for each the kernels of its layouts.
    rows: Vec<Row>,
    kernels: Vec<Vec<Kernel<MultiplyParams>>>,
    /// In the order of [`SUM_SPLITS`].
    sum_splits: Vec<Kernel<MultiplyParams>>,
    column_sums: Kernel<ColumnSumsParams>,
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for MultiplyParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for ColumnSumsParams {}

impl Gemm {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`](crate::Error::KernelsNotBuilt) if the crate was built without nvcc;
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the device is older than compute capability
    /// 8.0; [`Error::Load`](crate::Error::Load) and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("gemm", ctx)?;
        let rows: Vec<Row> = MULTIPLY
            .iter()
            .filter(|row| row.shared_bytes() <= device.shared_bytes)
            .copied()
            .collect();
        let mut kernels = Vec::with_capacity(rows.len());
        for row in &rows {
            let module = images::load(ctx, &row.unit())?;
            let layouts = row.layouts().iter();
            let of_row: Result<_> = layouts
                .map(|&(a, b)| Kernel::load(&module, &row.entry(a, b)))
                .collect();
            kernels.push(of_row?);
        }
        let module = images::load(ctx, SUM_SPLITS_UNIT)?;
        let sum_splits: Result<_> = SUM_SPLITS
            .iter()
            .map(|&dtype| Kernel::load(&module, &sum_splits(dtype)))
            .collect();
        let module = images::load(ctx, COLUMN_SUMS_UNIT)?;
        Ok(Self {
            rows,
            kernels,
            sum_splits: sum_splits?,
            column_sums: Kernel::load(&module, &column_sums())?,
            device,
            ctx: ctx.clone(),
        })
    }

    /// How [`Gemm::multiply`] would run: which kernel, and how many bytes of workspace it needs.
    ///
    /// Nothing is queued.
    ///
    /// # Errors
    /// As [`Gemm::multiply`].
    pub fn plan<T: Float, D: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: &mut Multiply<'_, T, D>,
    ) -> Result<Plan> {
        let call = Call::new(stream, config, tensors)?;
        Plan::new(&call.problem, &self.rows, &self.device)
    }

    /// Queues a multiplication on `stream`.
    ///
    /// Products are summed in `f32`, everything after is computed in `f32`, and the result is rounded
    /// once. The same inputs give the same bits. If `k` is 0, the product is 0. Tensors that are
    /// written share no memory with another. Operands of `f16` and `bf16` are multiplied by tensor
    /// cores, those of `f32` in full precision by ordinary multiply-adds, each sum in the order of `k`.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit or do not go together, see [`Error`](crate::Error);
    /// [`Error::Workspace`](crate::Error::Workspace) if fewer bytes are reserved than
    /// [`Plan::workspace_bytes`]. Nothing is queued then.
    pub fn multiply<T: Float, D: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Multiply<'_, T, D>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.multiply_with(stream, config, tensors, &mut workspace.scratch())
    }

    /// [`Gemm::multiply`] in a part of a workspace.
    pub(crate) fn multiply_with<T: Float, D: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Multiply<'_, T, D>,
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let mut memory;
        let Call {
            problem,
            mut launch,
            offsets,
            sums,
            non_finite,
        } = Call::new(stream, config, &mut tensors)?;
        launch.same_context("the operation", &self.ctx)?;
        let plan = Plan::new(&problem, &self.rows, &self.device);
        if problem.is_empty() {
            return match sums {
                // SAFETY: no rows are read; `Problem::new` checked that there is a sum for each column.
                Some(sums) => unsafe { self.no_column_sums(&launch, problem.n, sums) },
                None => Ok(()),
            };
        }
        let plan = plan?;
        memory = scratch.take(plan.workspace)?;
        let memory = match &mut memory {
            Some(memory) => launch.write("workspace", memory, 16)?,
            None => 0,
        };
        let split = plan.splits > 1;
        let params = MultiplyParams {
            splits: plan.splits as i32, // `Plan::new` keeps it below 2^16
            partial: if split { memory } else { 0 },
            column_sums: if split { 0 } else { memory },
            offsets,
            non_finite,
            ..problem.params()
        };
        let kernel = &self.kernels[plan.row][plan.layout];
        // SAFETY: `Problem::new` checked that the tensors have the sizes and strides that the
        // parameters tell the kernel, which accesses no index beyond them; `Problem::at` marked as
        // aligned what is; the workspace has as many bytes as the plan counted.
        unsafe { launch.run(kernel, plan.grid, &params) }?;
        if split {
            let dtype = SUM_SPLITS.iter().position(|&dtype| dtype == T::DTYPE);
            let kernel = &self.sum_splits[dtype.unwrap_or(0)];
            // SAFETY: as above; it reads the parts that the kernel before it wrote.
            unsafe { launch.run(kernel, plan.grid_of_sum_splits(&problem), &params) }?;
        }
        if let Some(sums) = sums {
            let tiles = problem.batch * problem.m.div_ceil(plan.tile.0);
            // SAFETY: the workspace holds a row of sums for each tile; `Problem::new` checked that
            // there is one sum for each column.
            unsafe { self.add_tiles(&launch, memory, tiles, problem.n, sums) }?;
        }
        Ok(())
    }
}

/// A call whose tensors are checked.
struct Call<'a> {
    problem: Problem,
    launch: Launch<'a>,
    /// Addresses; 0 for none.
    offsets: u64,
    sums: Option<u64>,
    non_finite: u64,
}

impl<'a> Call<'a> {
    fn new<T: Float, D: Float>(
        stream: &'a Arc<CudaStream>,
        config: Config,
        tensors: &'a mut Multiply<'_, T, D>,
    ) -> Result<Self> {
        let (request, layouts) = describe(config, tensors);
        let problem = Problem::new(request, &layouts)?;
        let mut launch = Launch::new(problem::CHECK.op, stream);
        let element = size_of::<T>() as u64;
        let Multiply {
            a,
            b,
            adapter,
            row_scale,
            column_scale,
            c,
            bias,
            epilogue,
            residual,
            column_sums,
            non_finite,
            groups,
            d,
        } = tensors;
        let mut addresses = Each {
            a: launch.read("a", a, element)?,
            b: launch.read("b", b, element)?,
            ..Each::default()
        };
        if let Some(adapter) = adapter {
            addresses.down = launch.read("adapter down", &adapter.down, element)?;
            addresses.up = launch.read("adapter up", &adapter.up, element)?;
        }
        if let Some(scale) = row_scale {
            addresses.row_scale = launch.read("row_scale", scale, 4)?;
        }
        if let Some(scale) = column_scale {
            addresses.column_scale = launch.read("column_scale", scale, 4)?;
        }
        if let Some(bias) = bias {
            addresses.bias = launch.read("bias", bias, element)?;
        }
        if let Some(residual) = residual {
            addresses.residual = launch.read("residual", residual, element)?;
        }
        match epilogue {
            Epilogue::Activate { preactivation, .. } => {
                if let Some(saved) = preactivation {
                    addresses.preactivation = launch.write("preactivation", saved, element)?;
                }
            }
            Epilogue::Gate {
                weights,
                bias,
                preactivation,
                ..
            } => {
                addresses.gate = launch.read("gate weights", weights, element)?;
                if let Some(bias) = bias {
                    addresses.gate_bias = launch.read("gate bias", bias, element)?;
                }
                if let Some(saved) = preactivation {
                    addresses.preactivation = launch.write("preactivation", saved, element)?;
                }
            }
            Epilogue::ActivateBackward { preactivation, .. }
            | Epilogue::GateBackward { preactivation, .. } => {
                addresses.preactivation = launch.read("preactivation", preactivation, element)?;
            }
        }
        addresses.d = launch.write("d", d, size_of::<D>() as u64)?;
        match c {
            Addend::None => {}
            Addend::Tensor(c) => addresses.c = launch.read("c", c, size_of::<D>() as u64)?,
            Addend::InPlace => addresses.c = addresses.d,
        }
        let offsets = match groups {
            Groups::None => 0,
            Groups::Rows(offsets) | Groups::K(offsets) => launch.read("offsets", offsets, 4)?,
        };
        let sums = match column_sums {
            Some(sums) => Some(launch.write("column_sums", sums, 4)?),
            None => None,
        };
        let non_finite = match non_finite {
            Some(counter) => launch.write("non_finite", counter, 4)?,
            None => 0,
        };
        launch.check()?;
        Ok(Self {
            problem: problem.at(&addresses),
            launch,
            offsets,
            sums,
            non_finite,
        })
    }
}

/// A call without its tensors, and their layouts.
fn describe<T: Float, D: Float>(
    config: Config,
    tensors: &Multiply<'_, T, D>,
) -> (Request, Each<Option<Layout<3>>>) {
    let reference = TensorRef::<T, 3>::layout;
    let bias = |bias: &Option<TensorRef<'_, T, 2>>| bias.as_ref().map(|bias| rows(bias.layout()));
    let scale = |scale: &Option<TensorRef<'_, f32, 2>>| scale.as_ref().map(|x| rows(x.layout()));
    let mut layouts = Each {
        a: Some(tensors.a.layout()),
        b: Some(tensors.b.layout()),
        down: tensors
            .adapter
            .as_ref()
            .map(|adapter| adapter.down.layout()),
        up: tensors.adapter.as_ref().map(|adapter| adapter.up.layout()),
        c: match &tensors.c {
            Addend::Tensor(c) => Some(c.layout()),
            Addend::None | Addend::InPlace => None,
        },
        bias: bias(&tensors.bias),
        residual: tensors.residual.as_ref().map(reference),
        row_scale: scale(&tensors.row_scale),
        column_scale: scale(&tensors.column_scale),
        d: Some(tensors.d.layout()),
        ..Each::default()
    };
    let (ending, activation) = match &tensors.epilogue {
        Epilogue::Activate {
            activation,
            preactivation,
        } => {
            layouts.preactivation = preactivation.as_ref().map(TensorMut::layout);
            (Ending::Activate, *activation)
        }
        Epilogue::Gate {
            activation,
            weights,
            bias: gate_bias,
            preactivation,
        } => {
            layouts.gate = Some(weights.layout());
            layouts.gate_bias = bias(gate_bias);
            layouts.preactivation = preactivation.as_ref().map(TensorMut::layout);
            (Ending::Gate, *activation)
        }
        Epilogue::ActivateBackward {
            activation,
            preactivation,
        } => {
            layouts.preactivation = Some(preactivation.layout());
            (Ending::ActivateBackward, *activation)
        }
        Epilogue::GateBackward {
            activation,
            preactivation,
        } => {
            layouts.preactivation = Some(preactivation.layout());
            (Ending::GateBackward, *activation)
        }
    };
    let (grouping, offsets) = match &tensors.groups {
        Groups::None => (Grouping::None, None),
        Groups::Rows(offsets) => (Grouping::Rows, Some(offsets.layout())),
        Groups::K(offsets) => (Grouping::K, Some(offsets.layout())),
    };
    let request = Request {
        dtype: T::DTYPE,
        out: D::DTYPE,
        config,
        ending,
        activation,
        in_place: matches!(tensors.c, Addend::InPlace),
        grouping,
        offsets,
        column_sums: tensors.column_sums.as_ref().map(TensorMut::layout),
        non_finite: tensors.non_finite.as_ref().map(TensorMut::layout),
        adapter_scale: tensors
            .adapter
            .as_ref()
            .map_or(0.0, |adapter| adapter.scale),
    };
    (request, layouts)
}

/// A vector for each of a batch as matrices of one row.
fn rows(layout: Layout<2>) -> Layout<3> {
    let ([batch, size], [by_batch, by_element]) = (layout.shape, layout.strides);
    Layout {
        shape: [batch, 1, size],
        strides: [by_batch, 0, by_element],
    }
}
