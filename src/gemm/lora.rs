//! The backward pass of a multiplication with a low-rank adapter.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::{Adapter, Config, Gemm, Multiply};
use crate::abi::gemm::MAX_RANK;
use crate::error::{Error, Result};
use crate::launch::Launch;
use crate::tensor::{Float, TensorMut, TensorRef};
use crate::workspace::{Scratch, Workspace, typed};

const OP: &str = "gemm::lora_backward";

/// What each of the multiplications may use to split its k.
const SPLITS_BYTES: usize = 16 << 20;

/// Tensors of [`Gemm::lora_backward`], which differentiates `d = a b + scale (a down) up`.
///
/// Operands may lie as those of [`Multiply`]. An adapter that serves several sequences has the gradient
/// of all of them if they are rows of one matrix, not a batch.
#[derive(Debug)]
pub struct LoraBackward<'a, T, D> {
    /// `[batch, m, k]`
    pub a: TensorRef<'a, T, 3>,
    /// `[batch, k, n]`
    pub b: TensorRef<'a, T, 3>,
    /// `[batch, k, rank]`; ranks from 1 to 64.
    pub down: TensorRef<'a, T, 3>,
    /// `[batch, rank, n]`
    pub up: TensorRef<'a, T, 3>,
    /// What multiplies `a down`.
    pub scale: f32,
    /// `[batch, m, n]`: the gradient of `d`.
    pub dd: TensorRef<'a, T, 3>,
    /// `[batch, m, k]`, with contiguous rows: `dd bᵀ + scale (dd upᵀ) downᵀ`, if it is wanted.
    pub da: Option<TensorMut<'a, T, 3>>,
    /// `[batch, k, rank]`, with contiguous rows: `scale aᵀ (dd upᵀ)`.
    pub ddown: TensorMut<'a, D, 3>,
    /// `[batch, rank, n]`, with contiguous rows: `scale (a down)ᵀ dd`.
    pub dup: TensorMut<'a, D, 3>,
}

impl<T: Float, D> LoraBackward<'_, T, D> {
    /// Bytes of workspace that [`Gemm::lora_backward`] needs: for `a down` and `dd upᵀ`, and to split
    /// sums over many rows.
    pub fn workspace_bytes(&self) -> usize {
        let low = self.low_bytes().saturating_mul(2);
        low.saturating_add(SPLITS_BYTES)
    }

    /// Checks that the tensors agree, so that a message names the one that does not.
    fn check(&self) -> Result<()> {
        let ([batch, m, k], [_, _, n]) = (self.a.shape(), self.b.shape());
        let [_, _, rank] = self.down.shape();
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(Error::Unsupported {
                op: OP,
                request: format!("an adapter of rank {rank}"),
                available: format!("rank 1 to {MAX_RANK}"),
            });
        }
        let da = self.da.as_ref().map(TensorMut::shape);
        let shapes = [
            ("b", self.b.shape(), [batch, k, n]),
            ("down", self.down.shape(), [batch, k, rank]),
            ("up", self.up.shape(), [batch, rank, n]),
            ("dd", self.dd.shape(), [batch, m, n]),
            ("da", da.unwrap_or([batch, m, k]), [batch, m, k]),
            ("ddown", self.ddown.shape(), [batch, k, rank]),
            ("dup", self.dup.shape(), [batch, rank, n]),
        ];
        match shapes.iter().find(|(_, found, wanted)| found != wanted) {
            Some((tensor, found, expected)) => Err(Error::Shape {
                op: OP,
                tensor,
                expected: format!("shape {expected:?}"),
                found: format!("shape {found:?}"),
            }),
            None => Ok(()),
        }
    }

    /// Bytes of `a down`, up to what the next tensor may begin at.
    fn low_bytes(&self) -> usize {
        let [batch, m, _] = self.a.shape();
        let [_, _, rank] = self.down.shape();
        let elements = batch.saturating_mul(m).saturating_mul(rank);
        elements.saturating_mul(size_of::<T>()).saturating_add(255) / 256 * 256
    }
}

impl Gemm {
    /// Queues the gradients of `d = a b + scale (a down) up` with respect to `a`, `down` and `up`.
    ///
    /// `a down` and `dd upᵀ` are computed again and rounded to `T` in the workspace; that of `a` is one
    /// multiplication with the transposed adapter. The gradient of `b` is that of any multiplication:
    /// `aᵀ dd`. Of `config`, the tile and the overflow are used.
    ///
    /// # Errors
    /// As [`Gemm::multiply`]; [`Error::Workspace`] if fewer bytes are reserved than
    /// [`LoraBackward::workspace_bytes`].
    pub fn lora_backward<T: Float, D: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: LoraBackward<'_, T, D>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let config = Config {
            overflow: config.overflow,
            tile: config.tile,
            max_workspace: SPLITS_BYTES,
            ..Config::default()
        };
        tensors.check()?;
        let (needed, low_bytes) = (tensors.workspace_bytes(), tensors.low_bytes());
        let LoraBackward {
            a,
            b,
            down,
            up,
            scale,
            dd,
            mut da,
            mut ddown,
            mut dup,
        } = tensors;
        let ([batch, m, _], [_, _, rank]) = (a.shape(), down.shape());
        let mut scratch = workspace.scratch();
        let (mut first, mut rest) = scratch.split(needed, low_bytes)?;
        let (mut second, mut rest) = rest.split(needed - low_bytes, low_bytes)?;
        let mut low = typed::<T, 3>(&mut first, [batch, m, rank])?;
        let mut dlow = typed::<T, 3>(&mut second, [batch, m, rank])?;
        self.check_overlap(
            stream,
            [&a, &b, &down, &up, &dd],
            (&mut da, &mut ddown, &mut dup),
        )?;
        // all are planned before the first is queued: nothing is queued if one of them is refused
        for pass in [Pass::Plan, Pass::Queue] {
            let mut step = Step {
                gemm: self,
                stream,
                pass,
                scratch: &mut rest,
            };
            let scaled = Config {
                alpha: scale,
                ..config
            };
            step.take(
                scaled,
                Multiply::new(a.clone(), down.clone(), low.reborrow()),
            )?;
            let up_t = up.clone().transposed();
            step.take(scaled, Multiply::new(dd.clone(), up_t, dlow.reborrow()))?;
            let a_t = a.clone().transposed();
            step.take(config, Multiply::new(a_t, dlow.view(), ddown.reborrow()))?;
            let low_t = low.view().transposed();
            step.take(config, Multiply::new(low_t, dd.clone(), dup.reborrow()))?;
            if let Some(da) = &mut da {
                let adapter = Adapter {
                    down: up.clone().transposed(),
                    up: down.clone().transposed(),
                    scale,
                };
                let product = Multiply {
                    adapter: Some(adapter),
                    ..Multiply::new(dd.clone(), b.clone().transposed(), da.reborrow())
                };
                step.take(config, product)?;
            }
        }
        Ok(())
    }

    /// Checks that no gradient overlaps another tensor of the call.
    fn check_overlap<T: Float, D: Float>(
        &self,
        stream: &Arc<CudaStream>,
        inputs: [&TensorRef<'_, T, 3>; 5],
        (da, ddown, dup): Gradients<'_, '_, T, D>,
    ) -> Result<()> {
        let mut launch = Launch::new(OP, stream);
        for (name, tensor) in ["a", "b", "down", "up", "dd"].into_iter().zip(inputs) {
            launch.read(name, tensor, size_of::<T>() as u64)?;
        }
        if let Some(da) = da {
            launch.write("da", da, size_of::<T>() as u64)?;
        }
        launch.write("ddown", ddown, size_of::<D>() as u64)?;
        launch.write("dup", dup, size_of::<D>() as u64)?;
        launch.check()
    }
}

/// What is written: the gradients of a, down and up.
type Gradients<'a, 'b, T, D> = (
    &'a mut Option<TensorMut<'b, T, 3>>,
    &'a mut TensorMut<'b, D, 3>,
    &'a mut TensorMut<'b, D, 3>,
);

/// Whether multiplications are only checked and planned.
#[derive(Clone, Copy)]
enum Pass {
    Plan,
    Queue,
}

/// Takes multiplications one after the other.
struct Step<'a, 'b> {
    gemm: &'a Gemm,
    stream: &'a Arc<CudaStream>,
    pass: Pass,
    scratch: &'a mut Scratch<'b>,
}

impl Step<'_, '_> {
    fn take<T: Float, D: Float>(
        &mut self,
        config: Config,
        mut product: Multiply<'_, T, D>,
    ) -> Result<()> {
        match self.pass {
            Pass::Plan => self
                .gemm
                .plan(self.stream, config, &mut product)
                .map(|_| ()),
            Pass::Queue => self
                .gemm
                .multiply_with(self.stream, config, product, self.scratch),
        }
    }
}
