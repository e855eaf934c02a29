//! Golden cases of state space duality.

use std::sync::Arc;

use bytemuck::Pod;
use seqmix::cudarc::driver::CudaStream;
use seqmix::ssd::{Config, Forward, Layer, Skip};
use seqmix::{Half, Tensor, Workspace};

use super::{Case, Failure, Ops, Output};

/// D, in one of its forms.
enum Stored {
    PerHead(Tensor<f32, 1>),
    PerChannel(Tensor<f32, 2>),
}

impl Stored {
    fn view(&self) -> Skip<'_> {
        match self {
            Self::PerHead(d) => Skip::PerHead(d.view()),
            Self::PerChannel(d) => Skip::PerChannel(d.view()),
        }
    }
}

impl Case {
    /// `chunk_size` is how far apart states may go through memory.
    fn ssd_config(&self) -> Result<Config, Failure> {
        Ok(Config {
            dt_softplus: self.flag("dt_softplus")?,
            dt_limit: (
                self.number("dt_limit", 0)? as f32,
                // null: no limit
                self.number("dt_limit", 1).unwrap_or(f64::INFINITY) as f32,
            ),
            segment: Some(self.number("chunk_size", 0)? as usize),
        })
    }

    fn ssd_skip(&self, stream: &Arc<CudaStream>) -> Result<Option<Stored>, Failure> {
        let upload = |d: &super::Stored| match d.shape.len() {
            1 => d.upload(stream).map(Stored::PerHead),
            _ => d.upload(stream).map(Stored::PerChannel),
        };
        self.get("D").map(upload).transpose()
    }

    pub(super) fn ssd_forward<T: Half + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let (stream, config) = (&ops.stream, self.ssd_config()?);
        let vector = |name| {
            self.get(name)
                .map(|x| x.upload::<f32, 1>(stream))
                .transpose()
        };
        let x = self.need("x")?.upload::<T, 4>(stream)?;
        let dt = self.need("dt")?.upload::<T, 3>(stream)?;
        let a = self.need("A")?.upload::<f32, 1>(stream)?;
        let b = self.need("B")?.upload::<T, 4>(stream)?;
        let c = self.need("C")?.upload::<T, 4>(stream)?;
        let d = self.ssd_skip(stream)?;
        let z = self
            .get("z")
            .map(|z| z.upload::<T, 4>(stream))
            .transpose()?;
        let dt_bias = vector("dt_bias")?;
        let initial_states = self.get("initial_states");
        let initial_states = initial_states
            .map(|x| x.upload::<f32, 4>(stream))
            .transpose()?;
        let ([batch, _, heads, headdim], [_, _, _, dstate]) = (x.shape(), b.shape());
        let mut out = Tensor::<T, 4>::zeros(stream, x.shape())?;
        let mut final_states = Tensor::<f32, 4>::zeros(stream, [batch, heads, headdim, dstate])?;
        let tensors = Forward {
            layer: Layer {
                d: d.as_ref().map(Stored::view),
                z: z.as_ref().map(Tensor::view),
                dt_bias: dt_bias.as_ref().map(Tensor::view),
                initial_states: initial_states.as_ref().map(Tensor::view),
                ..Layer::new(x.view(), dt.view(), a.view(), b.view(), c.view())
            },
            out: out.view_mut(),
            final_states: Some(final_states.view_mut()),
        };
        let mut workspace = Workspace::new(stream);
        workspace.reserve(ops.ssd.plan(config, &tensors)?.workspace_bytes())?;
        ops.ssd.forward(stream, config, tensors, &mut workspace)?;
        Ok(vec![
            Output::fetch("out", &out, stream)?,
            Output::fetch("final_states", &final_states, stream)?,
        ])
    }
}
