//! The golden cases of causal convolution.

use bytemuck::Pod;
use seqmix::causal_conv1d::{Activation, Backward, Config, Forward};
use seqmix::{Float, Tensor, Workspace};

use super::{Case, Failure, Ops, Output};

impl Case {
    fn causal_conv1d_config(&self) -> Result<Config, Failure> {
        let activation = match self.activation()? {
            "none" => Activation::None,
            "silu" => Activation::Silu,
            other => return Err(Failure::Unsupported(format!("no activation {other}"))),
        };
        Ok(Config { activation })
    }

    pub(super) fn causal_conv1d_forward<T: Float + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let stream = &ops.stream;
        let x = self.need("x")?.upload::<T, 3>(stream)?;
        let weight = self.need("weight")?.upload::<T, 2>(stream)?;
        let bias = self.optional::<T, 1>("bias", stream)?;
        let initial_states = self.optional::<T, 3>("initial_states", stream)?;
        let ([batch, dim, _], [_, width]) = (x.shape(), weight.shape());
        let mut out = Tensor::<T, 3>::zeros(stream, x.shape())?;
        let states = [batch, dim, width.saturating_sub(1)];
        let mut final_states = Tensor::<T, 3>::zeros(stream, states)?;
        let tensors = Forward {
            x: x.view(),
            weight: weight.view(),
            bias: bias.as_ref().map(Tensor::view),
            initial_states: initial_states.as_ref().map(Tensor::view),
            cu_seqlens: None,
            out: out.view_mut(),
            final_states: Some(final_states.view_mut()),
        };
        let config = self.causal_conv1d_config()?;
        ops.causal_conv1d.forward(stream, config, tensors)?;
        Ok(vec![
            Output::fetch("out", &out, stream)?,
            Output::fetch("final_states", &final_states, stream)?,
        ])
    }

    pub(super) fn causal_conv1d_backward<T: Float + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let stream = &ops.stream;
        let x = self.need("x")?.upload::<T, 3>(stream)?;
        let dout = self.need("dout")?.upload::<T, 3>(stream)?;
        let weight = self.need("weight")?.upload::<T, 2>(stream)?;
        let bias = self.optional::<T, 1>("bias", stream)?;
        let initial_states = self.optional::<T, 3>("initial_states", stream)?;
        let ([batch, dim, _], [_, width]) = (x.shape(), weight.shape());
        let states = [batch, dim, width.saturating_sub(1)];
        let mut dx = Tensor::<T, 3>::zeros(stream, x.shape())?;
        let mut dweight = Tensor::<T, 2>::zeros(stream, weight.shape())?;
        let mut dbias = Tensor::<T, 1>::zeros(stream, [dim])?;
        let mut dinitial_states = Tensor::<T, 3>::zeros(stream, states)?;
        let tensors = Backward {
            x: x.view(),
            weight: weight.view(),
            bias: bias.as_ref().map(Tensor::view),
            initial_states: initial_states.as_ref().map(Tensor::view),
            cu_seqlens: None,
            dout: dout.view(),
            dfinal_states: None,
            dx: Some(dx.view_mut()),
            dweight: Some(dweight.view_mut()),
            dbias: Some(dbias.view_mut()),
            dinitial_states: Some(dinitial_states.view_mut()),
        };
        let mut workspace = Workspace::new(stream);
        workspace.reserve(ops.causal_conv1d.backward_workspace_bytes(&tensors)?)?;
        let config = self.causal_conv1d_config()?;
        let op = &ops.causal_conv1d;
        op.backward(stream, config, tensors, &mut workspace)?;
        Ok(vec![
            Output::fetch("dx", &dx, stream)?,
            Output::fetch("dweight", &dweight, stream)?,
            Output::fetch("dbias", &dbias, stream)?,
            Output::fetch("dinitial_states", &dinitial_states, stream)?,
        ])
    }
}
