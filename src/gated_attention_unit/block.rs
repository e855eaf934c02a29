//! [`Block`]: the unit with the projections around it, forward.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::problem::{LINEAR, QUADRATIC};
use super::{COPY_BYTES, Config, Forward, GatedAttentionUnit, Mixed, Pair, Unit};
use crate::check::Check;
use crate::error::{Error, Result};
use crate::gemm::{self, Activation, Epilogue, Gemm, Multiply};
use crate::launch::Launch;
use crate::tensor::{Float, Layout, TensorMut, TensorRef};
use crate::workspace::{Scratch, Workspace};

const OP: &str = "gated_attention_unit::Block::forward";

/// What each of the multiplications may use to split its sums.
pub(super) const SPLITS_BYTES: usize = 16 << 20;

/// A gated attention unit with its projections: what takes the place of attention and of the feed-forward layer behind
/// it in a model.
///
/// ```text
/// [u, v, z] = silu(x project^T + project_bias)
/// gated     = the unit of u, v and z
/// y         = gated out^T + out_bias
/// ```
///
/// Normalisation and the residual are the model's. One multiplication makes u, v and z, with silu in its epilogue.
///
/// ```no_run
/// use half::bf16;
/// use seqmix::gated_attention_unit::{Affine, Block, BlockForward, Config, Pair, Weights};
/// use seqmix::{Tensor, Workspace};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let block = Block::new(&context)?;
///
/// // A model of 128 channels; 256 of values, 64 of queries and keys.
/// let ones = |count| vec![bf16::from_f32(1.0 / 128.0); count];
/// let x = Tensor::from_host(&stream, &ones(300 * 128), [1, 300, 128])?;
/// let project = Tensor::from_host(&stream, &ones(576 * 128), [576, 128])?;
/// let out = Tensor::from_host(&stream, &ones(128 * 256), [128, 256])?;
/// let gamma = Tensor::from_host(&stream, &[1.0; 64], [64])?;
/// let beta = Tensor::<f32, 1>::zeros(&stream, [64])?;
/// let plain = || Affine { gamma: gamma.view(), beta: beta.view() };
/// let weights = Weights {
///     project_bias: None,
///     out_bias: None,
///     bias: None,
///     mixed: None,
///     ..Weights::new(project.view(), out.view(), Pair { q: plain(), k: plain() })
/// };
/// let mut activated = Tensor::<bf16, 3>::zeros(&stream, [1, 300, 576])?;
/// let mut gated = Tensor::<bf16, 3>::zeros(&stream, [1, 300, 256])?;
/// let mut y = Tensor::<bf16, 3>::zeros(&stream, x.shape())?;
/// let tensors = BlockForward {
///     x: x.view(),
///     weights,
///     cu_seqlens: None,
///     preactivation: None, // kept for a backward pass only
///     activated: activated.view_mut(),
///     gated: gated.view_mut(),
///     y: y.view_mut(),
/// };
/// let config = Config { scale: 1.0 / 256.0, causal: true, ..Config::default() };
/// let mut workspace = Workspace::new(&stream);
/// workspace.reserve(block.workspace_bytes(config, &tensors)?)?;
/// block.forward(&stream, config, tensors, &mut workspace)?; // queued
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Block {
    pub(super) gemm: Gemm,
    pub(super) unit: GatedAttentionUnit,
}

/// The weights of a [`Block`] of `d` channels. Matrices are `[out, in]`, as models store them.
#[derive(Clone, Debug)]
pub struct Weights<'a, T> {
    /// `[2 dv + dz, d]`: rows for u, then for v, then for z.
    pub project: TensorRef<'a, T, 2>,
    /// `[2 dv + dz]`
    pub project_bias: Option<TensorRef<'a, T, 1>>,
    /// `[d, dv]`
    pub out: TensorRef<'a, T, 2>,
    /// `[d]`
    pub out_bias: Option<TensorRef<'a, T, 1>>,
    /// What makes queries and keys of the quadratic part.
    pub quadratic: Pair<'a>,
    /// As [`Unit::bias`].
    pub bias: Option<TensorRef<'a, f32, 1>>,
    /// As [`Unit::mixed`].
    pub mixed: Option<Mixed<'a>>,
}

impl<'a, T> Weights<'a, T> {
    /// Weights without what may be absent.
    pub fn new(
        project: TensorRef<'a, T, 2>,
        out: TensorRef<'a, T, 2>,
        quadratic: Pair<'a>,
    ) -> Self {
        Self {
            project,
            project_bias: None,
            out,
            out_bias: None,
            quadratic,
            bias: None,
            mixed: None,
        }
    }
}

/// Tensors of [`Block::forward`]. Those with a row for each step have evenly spaced rows of contiguous channels.
#[derive(Debug)]
pub struct BlockForward<'a, T> {
    /// `[batch, seqlen, d]`
    pub x: TensorRef<'a, T, 3>,
    /// The weights.
    pub weights: Weights<'a, T>,
    /// As [`Unit::cu_seqlens`].
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
    /// `[batch, seqlen, 2 dv + dz]`: what silu is given, for [`Block::backward`].
    pub preactivation: Option<TensorMut<'a, T, 3>>,
    /// `[batch, seqlen, 2 dv + dz]`: u, v and z side by side, for [`Block::backward`].
    pub activated: TensorMut<'a, T, 3>,
    /// `[batch, seqlen, dv]`: what the unit returns, for [`Block::backward`].
    pub gated: TensorMut<'a, T, 3>,
    /// `[batch, seqlen, d]`
    pub y: TensorMut<'a, T, 3>,
}

/// Whether calls are only checked and planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Plan,
    Queue,
}

impl Block {
    /// Loads the kernels of the unit and of multiplications.
    ///
    /// # Errors
    /// As [`GatedAttentionUnit::new`] and [`Gemm::new`].
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        Ok(Self {
            gemm: Gemm::new(ctx)?,
            unit: GatedAttentionUnit::new(ctx)?,
        })
    }

    /// Bytes that [`Block::forward`] needs of its workspace.
    ///
    /// # Errors
    /// As [`Block::forward`], for what can be known without a stream.
    pub fn workspace_bytes<T: Float>(
        &self,
        config: Config,
        tensors: &BlockForward<'_, T>,
    ) -> Result<usize> {
        let sizes = Sizes::new(OP, tensors.x.layout(), &tensors.weights)?;
        let gated = sizes.values("gated", tensors.gated.layout())?;
        let activated = tensors.activated.view();
        let unit = sizes.unit(activated, &tensors.weights, tensors.cu_seqlens.as_ref())?;
        let unit = self.unit.plan_unit(config, &unit, gated)?;
        Ok(unit.workspace_bytes().max(SPLITS_BYTES))
    }

    /// Queues a block on `stream`: two multiplications and the unit between them.
    ///
    /// For the backward pass `activated`, `gated` and `preactivation` are kept; all else is computed again.
    ///
    /// # Errors
    /// As [`GatedAttentionUnit::forward`] and [`Gemm::multiply`];
    /// [`Error::Workspace`](crate::Error::Workspace) if fewer bytes are reserved than [`Block::workspace_bytes`].
    /// Nothing is queued then.
    pub fn forward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: BlockForward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let needed = self.workspace_bytes(config, &tensors)?;
        let reserved = workspace.bytes();
        if reserved < needed {
            return Err(Error::Workspace { needed, reserved });
        }
        tensors.check_overlap(stream)?;
        // all are planned before the first is queued: nothing is queued if one of them is refused
        for pass in [Pass::Plan, Pass::Queue] {
            let mut scratch = workspace.scratch();
            self.forward_pass(stream, config, &mut tensors, (pass, &mut scratch))?;
        }
        Ok(())
    }

    fn forward_pass<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: &mut BlockForward<'_, T>,
        (pass, scratch): (Pass, &mut Scratch<'_>),
    ) -> Result<()> {
        let BlockForward {
            x,
            weights,
            cu_seqlens,
            preactivation,
            activated,
            gated,
            y,
        } = tensors;
        let sizes = Sizes::new(OP, x.layout(), weights)?;
        let preactivation = match preactivation {
            Some(saved) => Some(flat_mut(sizes.check, "preactivation", saved.reborrow())?),
            None => None,
        };
        let project = Multiply {
            bias: vector(weights.project_bias.as_ref())?,
            epilogue: Epilogue::Activate {
                activation: Activation::Silu,
                preactivation,
            },
            ..Multiply::new(
                flat(sizes.check, "x", x.clone())?,
                matrix(&weights.project)?.transposed(),
                flat_mut(sizes.check, "activated", activated.reborrow())?,
            )
        };
        self.multiply(stream, project, (pass, scratch))?;
        let forward = Forward {
            unit: sizes.unit(activated.view(), weights, cu_seqlens.as_ref())?,
            out: gated.reborrow(),
        };
        match pass {
            Pass::Plan => drop(self.unit.plan(config, &forward)?),
            Pass::Queue => self.unit.forward_with(stream, config, forward, scratch)?,
        }
        let out = Multiply {
            bias: vector(weights.out_bias.as_ref())?,
            ..Multiply::new(
                flat(sizes.check, "gated", gated.view())?,
                matrix(&weights.out)?.transposed(),
                flat_mut(sizes.check, "y", y.reborrow())?,
            )
        };
        self.multiply(stream, out, (pass, scratch))
    }

    /// Plans or queues a multiplication.
    pub(super) fn multiply<T: Float, D: Float>(
        &self,
        stream: &Arc<CudaStream>,
        mut product: Multiply<'_, T, D>,
        (pass, scratch): (Pass, &mut Scratch<'_>),
    ) -> Result<()> {
        let config = gemm::Config {
            max_workspace: SPLITS_BYTES,
            ..gemm::Config::default()
        };
        match pass {
            Pass::Plan => self.gemm.plan(stream, config, &mut product).map(drop),
            Pass::Queue => self.gemm.multiply_with(stream, config, product, scratch),
        }
    }
}

impl<T: Float> BlockForward<'_, T> {
    /// Checks what no plan sees: addresses, and that nothing that is written overlaps another tensor of the call.
    fn check_overlap(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let mut launch = Launch::new(OP, stream);
        read_weights(&mut launch, &self.weights)?;
        let element = size_of::<T>() as u64;
        launch.read("x", &self.x, element)?;
        if let Some(saved) = &mut self.preactivation {
            launch.write("preactivation", saved, element)?;
        }
        if let Some(cu_seqlens) = &self.cu_seqlens {
            launch.read("cu_seqlens", cu_seqlens, 4)?;
        }
        launch.write("activated", &mut self.activated, COPY_BYTES)?;
        launch.write("gated", &mut self.gated, COPY_BYTES)?;
        launch.write("y", &mut self.y, element)?;
        launch.check()
    }
}

/// Adds the weights to what a call reads.
pub(super) fn read_weights<'a, T: Float>(
    launch: &mut Launch<'a>,
    weights: &'a Weights<'_, T>,
) -> Result<()> {
    let element = size_of::<T>() as u64;
    launch.read("project", &weights.project, element)?;
    launch.read("out", &weights.out, element)?;
    for (name, bias) in [
        ("project_bias", &weights.project_bias),
        ("out_bias", &weights.out_bias),
    ] {
        if let Some(bias) = bias {
            launch.read(name, bias, element)?;
        }
    }
    let linear = weights.mixed.as_ref().map(|mixed| (LINEAR, &mixed.linear));
    for (names, Pair { q, k }) in [(QUADRATIC, &weights.quadratic)].into_iter().chain(linear) {
        let vectors = [&q.gamma, &q.beta, &k.gamma, &k.beta];
        for (name, vector) in names.into_iter().zip(vectors) {
            launch.read(name, vector, 4)?;
        }
    }
    if let Some(bias) = &weights.bias {
        launch.read("bias", bias, 4)?;
    }
    Ok(())
}

/// The sizes of a block whose tensors are checked against them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) check: Check,
    pub(super) batch: usize,
    pub(super) seqlen: usize,
    pub(super) d: usize,
    pub(super) dv: usize,
    pub(super) dz: usize,
}

impl Sizes {
    pub(super) fn new<T: Float>(
        op: &'static str,
        x: Layout<3>,
        weights: &Weights<'_, T>,
    ) -> Result<Self> {
        let check = Check { op };
        let [batch, seqlen, d] = x.shape;
        let [_, dv] = weights.out.shape();
        let [dz] = weights.quadratic.q.gamma.shape();
        let sizes = Self {
            check,
            batch,
            seqlen,
            d,
            dv,
            dz,
        };
        check.sizes("out", [d, dv], weights.out.shape())?;
        check.sizes("project", [sizes.projected(), d], weights.project.shape())?;
        let vectors = [
            ("project_bias", &weights.project_bias, sizes.projected()),
            ("out_bias", &weights.out_bias, d),
        ];
        for (name, vector, size) in vectors {
            if let Some(vector) = vector {
                check.sizes(name, [size], vector.shape())?;
            }
        }
        Ok(sizes)
    }

    /// Channels of u, v and z.
    pub(super) fn projected(&self) -> usize {
        2 * self.dv + self.dz
    }

    /// Rows of all tensors with a row for each step.
    pub(super) fn rows(&self) -> usize {
        self.batch.saturating_mul(self.seqlen)
    }

    /// Checks a tensor of the shape of values.
    pub(super) fn values(&self, name: &'static str, layout: Layout<3>) -> Result<Layout<3>> {
        let expected = [self.batch, self.seqlen, self.dv];
        self.check.sizes(name, expected, layout.shape)?;
        Ok(layout)
    }

    /// The unit whose u, v and z lie side by side.
    pub(super) fn unit<'a, T: Float>(
        &self,
        activated: TensorRef<'a, T, 3>,
        weights: &Weights<'a, T>,
        cu_seqlens: Option<&TensorRef<'a, i32, 1>>,
    ) -> Result<Unit<'a, T>> {
        let expected = [self.batch, self.seqlen, self.projected()];
        self.check.sizes("activated", expected, activated.shape())?;
        let part = |start: usize, size: usize| activated.clone().narrow(2, start..start + size);
        Ok(Unit {
            bias: weights.bias.clone(),
            mixed: weights.mixed.clone(),
            cu_seqlens: cu_seqlens.cloned(),
            ..Unit::new(
                part(0, self.dv)?,
                part(self.dv, self.dv)?,
                part(2 * self.dv, self.dz)?,
                weights.quadratic.clone(),
            )
        })
    }
}

/// The rows of all sequences as those of one matrix.
fn flat_layout(check: Check, name: &'static str, layout: Layout<3>) -> Result<Layout<3>> {
    let Layout {
        shape: [batch, seqlen, channels],
        strides: [of_batch, of_step, _],
    } = layout;
    let row = match (batch, seqlen) {
        (_, 2..) => of_step,
        (2.., _) => of_batch,
        _ => channels,
    };
    if batch > 1 && seqlen > 1 && of_batch != seqlen.saturating_mul(of_step) {
        return Err(check.layout(name, "evenly spaced rows", &layout));
    }
    let rows = batch.saturating_mul(seqlen);
    Ok(Layout {
        shape: [1, rows, channels],
        strides: [rows.saturating_mul(row), row, layout.strides[2]],
    })
}

pub(super) fn flat<'a, T: Float>(
    check: Check,
    name: &'static str,
    x: TensorRef<'a, T, 3>,
) -> Result<TensorRef<'a, T, 3>> {
    let Layout { shape, strides } = flat_layout(check, name, x.layout())?;
    x.as_strided(shape, strides)
}

pub(super) fn flat_mut<'a, T: Float>(
    check: Check,
    name: &'static str,
    x: TensorMut<'a, T, 3>,
) -> Result<TensorMut<'a, T, 3>> {
    let Layout { shape, strides } = flat_layout(check, name, x.layout())?;
    x.as_strided(shape, strides)
}

/// One matrix as a batch of one.
pub(super) fn matrix<'a, T: Float>(x: &TensorRef<'a, T, 2>) -> Result<TensorRef<'a, T, 3>> {
    let ([rows, columns], [row, column]) = (x.shape(), x.strides());
    x.clone()
        .as_strided([1, rows, columns], [rows.saturating_mul(row), row, column])
}

fn vector<'a, T: Float>(x: Option<&TensorRef<'a, T, 1>>) -> Result<Option<TensorRef<'a, T, 2>>> {
    let Some(x) = x else {
        return Ok(None);
    };
    let ([size], [stride]) = (x.shape(), x.strides());
    let one = x
        .clone()
        .as_strided([1, size], [size.saturating_mul(stride), stride])?;
    Ok(Some(one))
}
