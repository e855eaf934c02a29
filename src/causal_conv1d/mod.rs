//! Causal depthwise convolution: each channel is filtered by its own few taps, which reach back in time.
//!
//! `out[t] = activation(bias + sum over j < width of weight[j] x[t - (width - 1) + j])`: the last tap meets the
//! current step. It stands before the scan in Mamba (Gu and Dao, 2023, section 3.4). Names and states are those of the
//! package causal-conv1d: the state of a sequence is its last `width - 1` inputs, oldest first.
//!
//! A sequence can be computed in parts: the final states of one part are the initial states of the next, and
//! [`CausalConv1d::update`] goes on from them step by step.

mod plan;
mod problem;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::causal_conv1d::{
    self as abi, BackwardParams, CONVOLVE, ForwardParams, SumParams, UPDATE, UpdateParams,
};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{Element, Float, TensorMut, TensorRef};
use crate::workspace::Workspace;
use plan::Plan;
use problem::{Gradients, Inputs};

pub use tensors::{Activation, Backward, Config, Forward, Update};

/// The alignment of a workspace, of which the kernels need less.
const WORKSPACE_ALIGNMENT: u64 = 16;

/// The causal convolution kernels, loaded into one context.
///
/// ```no_run
/// use half::bf16;
/// use seqmix::Tensor;
/// use seqmix::causal_conv1d::{Activation, CausalConv1d, Config, Forward};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let conv = CausalConv1d::new(&context)?;
///
/// // [batch, seqlen, dim] in memory, as a linear layer leaves it
/// let x = Tensor::from_host(&stream, &vec![bf16::ONE; 2 * 100 * 64], [2, 100, 64])?;
/// let weight = Tensor::from_host(&stream, &vec![0.25_f32; 64 * 4], [64, 4])?;
/// let mut out = Tensor::<bf16, 3>::zeros(&stream, x.shape())?;
/// let mut states = Tensor::<bf16, 3>::zeros(&stream, [2, 64, 3])?;
/// let config = Config { activation: Activation::None };
/// let tensors = Forward {
///     x: x.view().transposed(),
///     weight: weight.view(),
///     bias: None,
///     initial_states: None,
///     cu_seqlens: None,
///     out: out.view_mut().transposed(),
///     final_states: Some(states.view_mut()),
/// };
/// conv.forward(&stream, config, tensors)?; // queued
/// let out = out.to_host(&stream)?;
/// assert_eq!((out[0].to_f32(), out[100 * 64 - 1].to_f32()), (0.25, 1.0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CausalConv1d {
    /// The kernels of each row of the table.
    forward: Vec<Kernel<ForwardParams>>,
    backward: Vec<Kernel<BackwardParams>>,
    /// In the order of `UPDATE`.
    update: Vec<Kernel<UpdateParams>>,
    sum: Kernel<SumParams>,
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order, for all four; the stub that build.rs writes for each kernel asserts that
// the struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for ForwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for BackwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SumParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for UpdateParams {}

impl CausalConv1d {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`] if the crate was built without nvcc; [`Error::Unsupported`] if
    /// the device is older than compute capability 8.0; [`Error::Load`] and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("causal_conv1d", ctx)?;
        let (mut forward, mut backward) = (Vec::new(), Vec::new());
        for &dtype in UPDATE {
            let forward_module = images::load(ctx, &abi::forward_unit(dtype))?;
            let backward_module = images::load(ctx, &abi::backward_unit(dtype))?;
            for (index, row) in CONVOLVE.iter().enumerate() {
                if row.dtype == dtype {
                    forward.push((index, Kernel::load(&forward_module, &row.forward())?));
                    backward.push((index, Kernel::load(&backward_module, &row.backward())?));
                }
            }
        }
        let module = images::load(ctx, abi::UPDATE_UNIT)?;
        let update: Result<_> = UPDATE
            .iter()
            .map(|&dtype| Kernel::load(&module, &abi::update(dtype)))
            .collect();
        let sum = Kernel::load(&images::load(ctx, abi::SUM_UNIT)?, &abi::sum())?;
        Ok(Self {
            forward: by_row(forward),
            backward: by_row(backward),
            update: update?,
            sum,
            device,
            ctx: ctx.clone(),
        })
    }

    /// Queues the convolution on `stream`.
    ///
    /// Sums and the activation are computed in `f32`, and the result is rounded once; states are copied. The same
    /// inputs give the same bits. `out` and `final_states` share no memory with another tensor.
    ///
    /// # Errors
    /// Shapes or layouts that do not fit, see [`Error`]; nothing is queued then.
    pub fn forward<T: Float, W: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Forward<'_, T, W>,
    ) -> Result<()> {
        let Forward {
            x,
            weight,
            bias,
            initial_states,
            cu_seqlens,
            mut out,
            mut final_states,
        } = tensors;
        let inputs = Inputs {
            x: x.layout(),
            weight: weight.layout(),
            bias: bias.as_ref().map(TensorRef::layout),
            initial_states: initial_states.as_ref().map(TensorRef::layout),
            cu_seqlens: cu_seqlens.as_ref().map(TensorRef::layout),
        };
        let final_layout = final_states.as_ref().map(TensorMut::layout);
        let mut problem = problem::Forward::new(
            (T::DTYPE, W::DTYPE),
            config,
            &inputs,
            &out.layout(),
            final_layout.as_ref(),
        )?;
        let plan = Plan::forward(&problem, CONVOLVE)?;
        let mut launch = Launch::new("causal_conv1d::forward", stream);
        let convolution = &mut problem.convolution;
        convolution.x = convolution.x.at(read(&mut launch, "x", Some(&x))?);
        convolution.filter = convolution.filter.at(
            read(&mut launch, "weight", Some(&weight))?,
            read(&mut launch, "bias", bias.as_ref())?,
        );
        let initial_states = read(&mut launch, "initial_states", initial_states.as_ref())?;
        convolution.initial_states = convolution.initial_states.at(initial_states);
        let cu_seqlens = read(&mut launch, "cu_seqlens", cu_seqlens.as_ref())?;
        problem.out = problem.out.at(write(&mut launch, "out", Some(&mut out))?);
        let final_states = write(&mut launch, "final_states", final_states.as_mut())?;
        problem.final_states = problem.final_states.at(final_states);
        launch.same_context("the operation", &self.ctx)?;
        if plan.tiles == 0 {
            return launch.check();
        }
        let params = plan.forward_params(&problem, cu_seqlens);
        // SAFETY: `problem::Forward::new` checked that the tensors have the sizes and strides that the parameters
        // tell the kernel, which clamps `cu_seqlens` and accesses no index beyond them; `Signal::at` marked as
        // aligned what is.
        unsafe { launch.run(&self.forward[plan.row], plan.grid(), &params) }
    }

    /// Queues the gradients of [`Self::forward`] on `stream`.
    ///
    /// The sums before the activation are computed again. All sums are `f32`, in an order that depends on the shapes
    /// and the device alone; those of `dweight` and `dbias` pass through `workspace`, without atomics, so that
    /// the same inputs give the same bits. Steps that belong to no sequence add nothing, and `dx` stays as it is
    /// there. What is written shares no memory with another tensor.
    ///
    /// # Errors
    /// Shapes or layouts that do not fit, or a workspace smaller than [`Self::backward_workspace_bytes`], see
    /// [`Error`]; nothing is queued then.
    pub fn backward<T: Float, W: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Backward<'_, T, W>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (mut problem, plan) = self.plan_backward(config, &tensors)?;
        let mut scratch = workspace.scratch();
        let mut partial = scratch.take(plan.workspace_bytes(&problem))?;
        let mut launch = Launch::new("causal_conv1d::backward", stream);
        let convolution = &mut problem.convolution;
        convolution.x = convolution.x.at(read(&mut launch, "x", Some(&tensors.x))?);
        convolution.filter = convolution.filter.at(
            read(&mut launch, "weight", Some(&tensors.weight))?,
            read(&mut launch, "bias", tensors.bias.as_ref())?,
        );
        let initial_states = read(
            &mut launch,
            "initial_states",
            tensors.initial_states.as_ref(),
        )?;
        convolution.initial_states = convolution.initial_states.at(initial_states);
        let cu_seqlens = read(&mut launch, "cu_seqlens", tensors.cu_seqlens.as_ref())?;
        problem.dout = problem
            .dout
            .at(read(&mut launch, "dout", Some(&tensors.dout))?);
        let dfinal_states = read(&mut launch, "dfinal_states", tensors.dfinal_states.as_ref())?;
        problem.dfinal_states = problem.dfinal_states.at(dfinal_states);
        problem.dx = problem
            .dx
            .at(write(&mut launch, "dx", tensors.dx.as_mut())?);
        let dinitial_states = write(
            &mut launch,
            "dinitial_states",
            tensors.dinitial_states.as_mut(),
        )?;
        problem.dinitial_states = problem.dinitial_states.at(dinitial_states);
        problem.gradient = problem.gradient.at(
            write(&mut launch, "dweight", tensors.dweight.as_mut())?,
            write(&mut launch, "dbias", tensors.dbias.as_mut())?,
        );
        let partial = match &mut partial {
            Some(partial) => launch.write("workspace", partial, WORKSPACE_ALIGNMENT)?,
            None => 0,
        };
        launch.same_context("the operation", &self.ctx)?;
        launch.check()?;
        if plan.tiles > 0 && problem.writes() {
            let params = plan.backward_params(&problem, cu_seqlens, partial);
            // SAFETY: `problem::Backward::new` checked that the tensors have the sizes and strides that the
            // parameters tell the kernel, which clamps `cu_seqlens` and accesses no index beyond them;
            // `Signal::at` marked as aligned what is, and `Plan::workspace_bytes` counts what is in the workspace.
            unsafe { launch.run(&self.backward[plan.row], plan.grid(), &params) }?;
        }
        if problem.sums && problem.convolution.dim > 0 {
            let (grid, params) = plan.sum(&problem, partial);
            // SAFETY: the kernel reads as many sums as the one before it writes, and writes each element of the
            // gradients, whose sizes and strides `problem::Backward::new` checked.
            unsafe { launch.run(&self.sum, grid, &params) }?;
        }
        Ok(())
    }

    /// Bytes that [`Self::backward`] needs of its workspace with these tensors.
    ///
    /// # Errors
    /// Shapes or layouts that do not fit, as the call itself.
    pub fn backward_workspace_bytes<T: Float, W: Float>(
        &self,
        tensors: &Backward<'_, T, W>,
    ) -> Result<usize> {
        let (problem, plan) = self.plan_backward(Config::default(), tensors)?;
        Ok(plan.workspace_bytes(&problem))
    }

    fn plan_backward<T: Float, W: Float>(
        &self,
        config: Config,
        tensors: &Backward<'_, T, W>,
    ) -> Result<(problem::Backward, Plan)> {
        let inputs = Inputs {
            x: tensors.x.layout(),
            weight: tensors.weight.layout(),
            bias: tensors.bias.as_ref().map(TensorRef::layout),
            initial_states: tensors.initial_states.as_ref().map(TensorRef::layout),
            cu_seqlens: tensors.cu_seqlens.as_ref().map(TensorRef::layout),
        };
        let gradients = Gradients {
            dout: tensors.dout.layout(),
            dfinal_states: tensors.dfinal_states.as_ref().map(TensorRef::layout),
            dx: tensors.dx.as_ref().map(TensorMut::layout),
            dweight: tensors.dweight.as_ref().map(TensorMut::layout),
            dbias: tensors.dbias.as_ref().map(TensorMut::layout),
            dinitial_states: tensors.dinitial_states.as_ref().map(TensorMut::layout),
        };
        let dtypes = (T::DTYPE, W::DTYPE);
        let problem = problem::Backward::new(dtypes, config, &inputs, &gradients)?;
        let plan = Plan::backward(&problem, CONVOLVE, &self.device)?;
        Ok((problem, plan))
    }

    /// Queues one step of each sequence on `stream`, and moves the states on by it.
    ///
    /// The result has the bits of [`Self::forward`] on one step whose initial states are `conv_state`.
    ///
    /// # Errors
    /// Shapes that do not fit, see [`Error`]; nothing is queued then.
    pub fn update<T: Float, W: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Update<'_, T, W>,
    ) -> Result<()> {
        let op = "causal_conv1d::update";
        let Update {
            x,
            mut conv_state,
            weight,
            bias,
            conv_state_indices,
            mut out,
        } = tensors;
        let bias_layout = bias.as_ref().map(TensorRef::layout);
        let indices_layout = conv_state_indices.as_ref().map(TensorRef::layout);
        let mut problem = problem::Update::new(
            (T::DTYPE, W::DTYPE),
            config,
            [&x.layout(), &out.layout()],
            &conv_state.layout(),
            (&weight.layout(), bias_layout.as_ref()),
            indices_layout.as_ref(),
        )?;
        let mut launch = Launch::new(op, stream);
        problem.x = problem.x.at(read(&mut launch, "x", Some(&x))?);
        problem.filter = problem.filter.at(
            read(&mut launch, "weight", Some(&weight))?,
            read(&mut launch, "bias", bias.as_ref())?,
        );
        let indices = read(
            &mut launch,
            "conv_state_indices",
            conv_state_indices.as_ref(),
        )?;
        let state = write(&mut launch, "conv_state", Some(&mut conv_state))?;
        problem.conv_state = problem.conv_state.at(state);
        problem.out = problem.out.at(write(&mut launch, "out", Some(&mut out))?);
        launch.same_context("the operation", &self.ctx)?;
        let kernel = UPDATE.iter().position(|dtype| *dtype == problem.dtype);
        let Some(kernel) = kernel else {
            return Err(Error::Unsupported {
                op,
                request: problem.dtype.name().into(),
                available: "f16, bf16 and f32".into(),
            });
        };
        if problem.is_empty() {
            return launch.check();
        }
        let (grid, params) = plan::update(&problem, indices);
        // SAFETY: `problem::Update::new` checked that the tensors have the sizes and strides that the parameters tell
        // the kernel, which skips indices of no entry and accesses no index beyond them.
        unsafe { launch.run(&self.update[kernel], grid, &params) }
    }
}

/// The kernels in the order of their rows' indices.
fn by_row<P>(mut kernels: Vec<(usize, Kernel<P>)>) -> Vec<Kernel<P>> {
    kernels.sort_by_key(|(index, _)| *index);
    kernels.into_iter().map(|(_, kernel)| kernel).collect()
}

/// The address of a tensor that may be absent; 0 then.
fn read<'a, T: Element, const N: usize>(
    launch: &mut Launch<'a>,
    name: &'static str,
    tensor: Option<&'a TensorRef<'_, T, N>>,
) -> Result<u64> {
    match tensor {
        Some(tensor) => launch.read(name, tensor, size_of::<T>() as u64),
        None => Ok(0),
    }
}

/// The same of a tensor that is written.
fn write<'a, T: Element, const N: usize>(
    launch: &mut Launch<'a>,
    name: &'static str,
    tensor: Option<&'a mut TensorMut<'_, T, N>>,
) -> Result<u64> {
    match tensor {
        Some(tensor) => launch.write(name, tensor, size_of::<T>() as u64),
        None => Ok(0),
    }
}
