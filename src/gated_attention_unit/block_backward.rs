//! The gradients of a [`Block`].

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::block::{Pass, SPLITS_BYTES, Sizes, Weights, flat, flat_mut, matrix, read_weights};
use super::{Backward, Block, COPY_BYTES, Config, PairMut};
use crate::error::{Error, Result};
use crate::gemm::{Activation, Addend, Epilogue, Multiply};
use crate::launch::Launch;
use crate::tensor::{Float, TensorMut, TensorRef};
use crate::workspace::{Scratch, Workspace, typed};

const OP: &str = "gated_attention_unit::Block::backward";

/// Alignment of tensors in a workspace.
const ALIGNMENT: usize = 256;

/// Tensors of [`Block::backward`], of which the gradients of matrices have the type `D`. What has a row for each step
/// has evenly spaced rows of contiguous channels.
#[derive(Debug)]
pub struct BlockBackward<'a, T, D> {
    /// As in [`BlockForward`](super::BlockForward).
    pub x: TensorRef<'a, T, 3>,
    /// The weights.
    pub weights: Weights<'a, T>,
    /// As [`Unit::cu_seqlens`](super::Unit::cu_seqlens).
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
    /// As [`Block::forward`] wrote it.
    pub preactivation: TensorRef<'a, T, 3>,
    /// As [`Block::forward`] wrote it.
    pub activated: TensorRef<'a, T, 3>,
    /// As [`Block::forward`] wrote it.
    pub gated: TensorRef<'a, T, 3>,
    /// `[batch, seqlen, d]`: the gradient of `y`.
    pub dy: TensorRef<'a, T, 3>,
    /// As `x`.
    pub dx: TensorMut<'a, T, 3>,
    /// As `project`.
    pub dproject: TensorMut<'a, D, 2>,
    /// `[2 dv + dz]`, whether or not there is a `project_bias`.
    pub dproject_bias: Option<TensorMut<'a, f32, 1>>,
    /// As `out`.
    pub dout: TensorMut<'a, D, 2>,
    /// `[d]`, whether or not there is an `out_bias`.
    pub dout_bias: Option<TensorMut<'a, f32, 1>>,
    /// Of what makes queries and keys of the quadratic part.
    pub quadratic: PairMut<'a>,
    /// The same of the linear part, if and only if there is one.
    pub linear: Option<PairMut<'a>>,
    /// As `bias`, which must exist then.
    pub dbias: Option<TensorMut<'a, f32, 1>>,
}

impl Block {
    /// Bytes that [`Block::backward`] needs of its workspace.
    ///
    /// # Errors
    /// As [`Block::backward`], for what can be known without a stream.
    pub fn backward_workspace_bytes<T: Float, D: Float>(
        &self,
        config: Config,
        tensors: &BlockBackward<'_, T, D>,
    ) -> Result<usize> {
        let sizes = Sizes::new(OP, tensors.x.layout(), &tensors.weights)?;
        let parts = temporaries(&sizes, size_of::<T>());
        let rest = self.rest_bytes(config, tensors, &sizes)?;
        let sum = |sum: usize, part: usize| sum.saturating_add(part);
        Ok(parts.into_iter().fold(rest, sum))
    }

    /// Bytes that calls need one after the other.
    fn rest_bytes<T: Float, D: Float>(
        &self,
        config: Config,
        tensors: &BlockBackward<'_, T, D>,
        sizes: &Sizes,
    ) -> Result<usize> {
        let (weights, cu_seqlens) = (&tensors.weights, tensors.cu_seqlens.as_ref());
        let unit = sizes.unit(tensors.activated.clone(), weights, cu_seqlens)?;
        let with_bias = tensors.dbias.is_some();
        let unit = self.unit.backward_plan_unit(config, &unit, with_bias)?;
        let sums = |columns| {
            self.gemm
                .column_sums_workspace_bytes([1, sizes.rows(), columns])
        };
        let others = [SPLITS_BYTES, sums(sizes.d), sums(sizes.projected())];
        Ok(others.into_iter().fold(unit.workspace_bytes(), usize::max))
    }

    /// Queues the gradients of a block on `stream`.
    ///
    /// Of the forward call `preactivation`, `activated` and `gated` are needed; scores are computed again. Gradients on
    /// the way between the calls that it is made of are rounded to `T`, and those of biases and vectors are `f32`. The
    /// same inputs give the same bits.
    ///
    /// # Errors
    /// As [`GatedAttentionUnit::backward`](super::GatedAttentionUnit::backward) and
    /// [`Gemm::multiply`](crate::gemm::Gemm::multiply); [`Error::Workspace`] if fewer bytes are reserved than
    /// [`Block::backward_workspace_bytes`]. Nothing is queued then.
    pub fn backward<T: Float, D: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: BlockBackward<'_, T, D>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let needed = self.backward_workspace_bytes(config, &tensors)?;
        let reserved = workspace.bytes();
        if reserved < needed {
            return Err(Error::Workspace { needed, reserved });
        }
        tensors.check_overlap(stream)?;
        let sizes = Sizes::new(OP, tensors.x.layout(), &tensors.weights)?;
        let [gated, du, dv, dz, dpre] = temporaries(&sizes, size_of::<T>());
        let mut scratch = workspace.scratch();
        let (mut dgated, mut rest) = scratch.split(needed, gated)?;
        let (mut du, mut rest) = rest.split(du, du)?;
        let (mut dv, mut rest) = rest.split(dv, dv)?;
        let (mut dz, mut rest) = rest.split(dz, dz)?;
        let (mut dpre, mut rest) = rest.split(dpre, dpre)?;
        let Sizes { batch, seqlen, .. } = sizes;
        let rows = |channels| [batch, seqlen, channels];
        let mut temporaries = Temporaries {
            dgated: typed::<T, 3>(&mut dgated, rows(sizes.dv))?,
            du: typed::<T, 3>(&mut du, rows(sizes.dv))?,
            dv: typed::<T, 3>(&mut dv, rows(sizes.dv))?,
            dz: typed::<T, 3>(&mut dz, rows(sizes.dz))?,
            dpre: typed::<T, 3>(&mut dpre, rows(sizes.projected()))?,
        };
        // all are planned before the first is queued: nothing is queued if one of them is refused
        for pass in [Pass::Plan, Pass::Queue] {
            let mut call = Call {
                block: self,
                stream,
                config,
                sizes,
                pass,
                scratch: &mut rest,
            };
            call.run(&mut tensors, &mut temporaries)?;
        }
        Ok(())
    }
}

/// Bytes of the tensors of [`Temporaries`], in their order.
fn temporaries(sizes: &Sizes, element: usize) -> [usize; 5] {
    let Sizes { dv, dz, .. } = *sizes;
    [dv, dv, dv, dz, sizes.projected()].map(|channels| {
        let bytes = sizes
            .rows()
            .saturating_mul(channels)
            .saturating_mul(element);
        bytes.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT)
    })
}

/// Gradients on the way, each with a row for each step.
struct Temporaries<'a, T> {
    /// Of what the unit returns.
    dgated: TensorMut<'a, T, 3>,
    du: TensorMut<'a, T, 3>,
    dv: TensorMut<'a, T, 3>,
    dz: TensorMut<'a, T, 3>,
    /// Of what silu is given.
    dpre: TensorMut<'a, T, 3>,
}

/// A call that is planned or queued.
struct Call<'a, 'b> {
    block: &'a Block,
    stream: &'a Arc<CudaStream>,
    config: Config,
    sizes: Sizes,
    pass: Pass,
    scratch: &'a mut Scratch<'b>,
}

impl Call<'_, '_> {
    fn run<T: Float, D: Float>(
        &mut self,
        tensors: &mut BlockBackward<'_, T, D>,
        on_the_way: &mut Temporaries<'_, T>,
    ) -> Result<()> {
        let check = self.sizes.check;
        let weights = &tensors.weights;
        let (x, dy) = (
            flat(check, "x", tensors.x.clone())?,
            flat(check, "dy", tensors.dy.clone())?,
        );
        // y = gated out^T + out_bias
        let dgated = flat_mut(check, "dgated", on_the_way.dgated.reborrow())?;
        self.multiply(Multiply::new(dy.clone(), matrix(&weights.out)?, dgated))?;
        let gated = flat(check, "gated", tensors.gated.clone())?;
        let dout = matrix_mut(&mut tensors.dout)?;
        self.multiply(Multiply::new(dy.clone().transposed(), gated, dout))?;
        self.column_sums(dy, &mut tensors.dout_bias)?;

        self.unit(tensors, on_the_way)?;

        // [u, v, z] = silu(pre)
        let dv = self.sizes.dv;
        let parts = [
            (on_the_way.du.view(), 0),
            (on_the_way.dv.view(), dv),
            (on_the_way.dz.view(), 2 * dv),
        ];
        for (gradient, start) in parts {
            let range = start..start + gradient.shape()[2];
            let preactivation = tensors.preactivation.clone().narrow(2, range.clone())?;
            let dpre = on_the_way.dpre.narrow(2, range)?;
            self.through_silu(gradient, preactivation, dpre)?;
        }

        // pre = x project^T + project_bias
        let dpre = flat(check, "dpre", on_the_way.dpre.view())?;
        let dx = flat_mut(check, "dx", tensors.dx.reborrow())?;
        let project = matrix(&tensors.weights.project)?;
        self.multiply(Multiply::new(dpre.clone(), project, dx))?;
        let dproject = matrix_mut(&mut tensors.dproject)?;
        self.multiply(Multiply::new(dpre.clone().transposed(), x, dproject))?;
        self.column_sums(dpre, &mut tensors.dproject_bias)
    }

    fn multiply<T: Float, D: Float>(&mut self, product: Multiply<'_, T, D>) -> Result<()> {
        let (block, pass) = (self.block, (self.pass, &mut *self.scratch));
        block.multiply(self.stream, product, pass)
    }

    /// The gradient of a bias, if it is asked for.
    fn column_sums<T: Float>(
        &mut self,
        rows: TensorRef<'_, T, 3>,
        sums: &mut Option<TensorMut<'_, f32, 1>>,
    ) -> Result<()> {
        match (self.pass, sums) {
            (Pass::Queue, Some(sums)) => {
                let gemm = &self.block.gemm;
                gemm.column_sums_with(self.stream, rows, sums.reborrow(), self.scratch)
            }
            _ => Ok(()),
        }
    }

    /// The gradients of the unit.
    fn unit<T: Float, D: Float>(
        &mut self,
        tensors: &mut BlockBackward<'_, T, D>,
        on_the_way: &mut Temporaries<'_, T>,
    ) -> Result<()> {
        let (weights, cu_seqlens) = (&tensors.weights, tensors.cu_seqlens.as_ref());
        let activated = tensors.activated.clone();
        let backward = Backward {
            unit: self.sizes.unit(activated, weights, cu_seqlens)?,
            dout: on_the_way.dgated.view(),
            du: on_the_way.du.reborrow(),
            dv: on_the_way.dv.reborrow(),
            dz: on_the_way.dz.reborrow(),
            quadratic: tensors.quadratic.reborrow(),
            linear: tensors.linear.as_mut().map(PairMut::reborrow),
            dbias: tensors.dbias.as_mut().map(TensorMut::reborrow),
        };
        let unit = &self.block.unit;
        match self.pass {
            Pass::Plan => unit.backward_plan(self.config, &backward).map(drop),
            Pass::Queue => unit.backward_with(self.stream, self.config, backward, self.scratch),
        }
    }

    /// dpre = gradient silu'(preactivation): the epilogue of a product that has no terms.
    fn through_silu<T: Float>(
        &mut self,
        gradient: TensorRef<'_, T, 3>,
        preactivation: TensorRef<'_, T, 3>,
        dpre: TensorMut<'_, T, 3>,
    ) -> Result<()> {
        let check = self.sizes.check;
        let gradient = flat(check, "gradient", gradient)?;
        let [_, rows, channels] = gradient.shape();
        let left = gradient.clone().as_strided([1, rows, 0], [0, 0, 1])?;
        let right = gradient.clone().as_strided([1, 0, channels], [0, 0, 1])?;
        self.multiply(Multiply {
            c: Addend::Tensor(gradient),
            epilogue: Epilogue::ActivateBackward {
                activation: Activation::Silu,
                preactivation: flat(check, "preactivation", preactivation)?,
            },
            ..Multiply::new(left, right, flat_mut(check, "dpre", dpre)?)
        })
    }
}

impl<T: Float, D: Float> BlockBackward<'_, T, D> {
    /// Checks what no plan sees: shapes, addresses, and that no gradient overlaps another tensor of the call.
    fn check_overlap(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let sizes = Sizes::new(OP, self.x.layout(), &self.weights)?;
        let (check, projected) = (sizes.check, sizes.projected());
        let rows = |channels| [sizes.batch, sizes.seqlen, channels];
        for (name, tensor, channels) in [
            ("preactivation", &self.preactivation, projected),
            ("activated", &self.activated, projected),
            ("gated", &self.gated, sizes.dv),
            ("dy", &self.dy, sizes.d),
        ] {
            check.sizes(name, rows(channels), tensor.shape())?;
            flat(check, name, tensor.clone())?;
        }
        for (name, sums, columns) in [
            ("dproject_bias", &self.dproject_bias, projected),
            ("dout_bias", &self.dout_bias, sizes.d),
        ] {
            if let Some(sums) = sums {
                check.sizes(name, [columns], sums.shape())?;
                check.contiguous(name, &sums.layout())?;
            }
        }
        let element = size_of::<T>() as u64;
        let mut launch = Launch::new(OP, stream);
        read_weights(&mut launch, &self.weights)?;
        for (name, tensor, alignment) in [
            ("x", &self.x, element),
            ("preactivation", &self.preactivation, element),
            ("activated", &self.activated, COPY_BYTES),
            ("gated", &self.gated, element),
            ("dy", &self.dy, element),
        ] {
            launch.read(name, tensor, alignment)?;
        }
        if let Some(cu_seqlens) = &self.cu_seqlens {
            launch.read("cu_seqlens", cu_seqlens, 4)?;
        }
        launch.write("dx", &mut self.dx, element)?;
        let element = size_of::<D>() as u64;
        launch.write("dproject", &mut self.dproject, element)?;
        launch.write("dout", &mut self.dout, element)?;
        for (name, sums) in [
            ("dproject_bias", &mut self.dproject_bias),
            ("dout_bias", &mut self.dout_bias),
            ("dbias", &mut self.dbias),
        ] {
            if let Some(sums) = sums {
                launch.write(name, sums, 4)?;
            }
        }
        self.quadratic
            .write(&mut launch, super::backward::QUADRATIC)?;
        if let Some(linear) = &mut self.linear {
            linear.write(&mut launch, super::backward::LINEAR)?;
        }
        launch.check()
    }
}

/// One matrix as a batch of one.
fn matrix_mut<'a, T: Float>(x: &'a mut TensorMut<'_, T, 2>) -> Result<TensorMut<'a, T, 3>> {
    let ([rows, columns], [row, column]) = (x.shape(), x.strides());
    x.reborrow()
        .as_strided([1, rows, columns], [rows.saturating_mul(row), row, column])
}
