//! Golden cases of linear attention.

use std::sync::Arc;

use bytemuck::Pod;
use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{
    Backward, Config, Decay, DecayMut, FeatureMap, Forward, Layer, Rule,
};
use seqmix::{Float, Tensor, Workspace};

use super::{Case, Failure, Ops, Output};

/// Decays in one of their forms.
enum Gate {
    None,
    PerHead(Tensor<f32, 1>),
    PerStep(Tensor<f32, 3>),
    PerChannel(Tensor<f32, 4>),
}

impl Gate {
    fn view(&self) -> Decay<'_> {
        match self {
            Self::None => Decay::None,
            Self::PerHead(decay) => Decay::PerHead(decay.view()),
            Self::PerStep(decay) => Decay::PerStep(decay.view()),
            Self::PerChannel(decay) => Decay::PerChannel(decay.view()),
        }
    }
}

/// The inputs of a case on the device.
struct Inputs<T> {
    q: Tensor<T, 4>,
    k: Tensor<T, 4>,
    v: Tensor<T, 4>,
    gate: Gate,
    beta: Option<Tensor<T, 3>>,
    initial_state: Option<Tensor<f32, 4>>,
    initial_z: Option<Tensor<f32, 3>>,
}

impl<T: Float + Pod> Inputs<T> {
    fn new(case: &Case, stream: &Arc<CudaStream>) -> Result<Self, Failure> {
        let gate = if let Some(decay) = case.optional("log_decay", stream)? {
            Gate::PerHead(decay)
        } else if let Some(decay) = case.optional("g", stream)? {
            Gate::PerStep(decay)
        } else if let Some(decay) = case.optional("gk", stream)? {
            Gate::PerChannel(decay)
        } else {
            Gate::None
        };
        Ok(Self {
            q: case.need("q")?.upload(stream)?,
            k: case.need("k")?.upload(stream)?,
            v: case.need("v")?.upload(stream)?,
            gate,
            beta: case.optional("beta", stream)?,
            initial_state: case.optional("initial_state", stream)?,
            initial_z: case.optional("initial_z", stream)?,
        })
    }

    fn layer(&self) -> Layer<'_, T> {
        Layer {
            decay: self.gate.view(),
            rule: match &self.beta {
                None => Rule::Linear,
                Some(beta) => Rule::Delta { beta: beta.view() },
            },
            initial_state: self.initial_state.as_ref().map(Tensor::view),
            initial_z: self.initial_z.as_ref().map(Tensor::view),
            ..Layer::new(self.q.view(), self.k.view(), self.v.view())
        }
    }
}

impl Case {
    fn linear_attention_config(&self) -> Result<Config, Failure> {
        Ok(Config {
            feature_map: match self.word("feature_map")? {
                "identity" => FeatureMap::Identity,
                "elu1" => FeatureMap::EluPlusOne,
                "relu" => FeatureMap::Relu,
                other => return Err(Failure::Unsupported(format!("no feature map {other}"))),
            },
            scale: Some(self.number("scale", 0)? as f32),
            normalize: match self.flag("normalize")? {
                true => Some(self.number("eps", 0)? as f32),
                false => None,
            },
            causal: self.flag("causal")?,
            segment: None,
        })
    }

    pub(super) fn linear_attention_forward<T: Float + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let (stream, config) = (&ops.stream, self.linear_attention_config()?);
        let inputs = Inputs::<T>::new(self, stream)?;
        let ([batch, _, heads, dk], [_, _, _, dv]) = (inputs.q.shape(), inputs.v.shape());
        let mut out = Tensor::<T, 4>::zeros(stream, inputs.v.shape())?;
        let mut final_state = Tensor::zeros(stream, [batch, heads, dk, dv])?;
        let mut final_z = match config.normalize {
            Some(_) => Some(Tensor::zeros(stream, [batch, heads, dk])?),
            None => None,
        };
        let tensors = Forward {
            layer: inputs.layer(),
            out: out.view_mut(),
            final_state: Some(final_state.view_mut()),
            final_z: final_z.as_mut().map(Tensor::view_mut),
            normalizer: None,
        };
        let operation = &ops.linear_attention;
        let mut workspace = Workspace::new(stream);
        workspace.reserve(operation.plan(config, &tensors)?.workspace_bytes())?;
        operation.forward(stream, config, tensors, &mut workspace)?;
        let mut outputs = vec![
            Output::fetch("o", &out, stream)?,
            Output::fetch("final_state", &final_state, stream)?,
        ];
        if let Some(z) = &final_z {
            outputs.push(Output::fetch("final_z", z, stream)?);
        }
        Ok(outputs)
    }

    pub(super) fn linear_attention_backward<T: Float + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let (stream, config) = (&ops.stream, self.linear_attention_config()?);
        if config.normalize.is_some() {
            let message = "gradients of normalised outputs: a case does not hold the outputs";
            return Err(Failure::Unsupported(message.into()));
        }
        let inputs = Inputs::<T>::new(self, stream)?;
        let dout: Tensor<T, 4> = self.need("do")?.upload(stream)?;
        let dfinal_state: Option<Tensor<f32, 4>> = self.optional("d_final_state", stream)?;
        let mut dq = Tensor::<T, 4>::zeros(stream, inputs.q.shape())?;
        let mut dk = Tensor::<T, 4>::zeros(stream, inputs.k.shape())?;
        let mut dv = Tensor::<T, 4>::zeros(stream, inputs.v.shape())?;
        let mut dinitial_state = match &inputs.initial_state {
            Some(state) => Some(Tensor::<f32, 4>::zeros(stream, state.shape())?),
            None => None,
        };
        let mut dg = match &inputs.gate {
            Gate::PerStep(g) => Some(Tensor::<f32, 3>::zeros(stream, g.shape())?),
            _ => None,
        };
        let mut dgk = match &inputs.gate {
            Gate::PerChannel(gk) => Some(Tensor::<f32, 4>::zeros(stream, gk.shape())?),
            _ => None,
        };
        let mut dbeta = match &inputs.beta {
            Some(beta) => Some(Tensor::<T, 3>::zeros(stream, beta.shape())?),
            None => None,
        };
        let tensors = Backward {
            layer: inputs.layer(),
            out: None,
            normalizer: None,
            dout: dout.view(),
            dfinal_state: dfinal_state.as_ref().map(Tensor::view),
            dfinal_z: None,
            dq: dq.view_mut(),
            dk: dk.view_mut(),
            dv: dv.view_mut(),
            ddecay: match (&mut dg, &mut dgk) {
                (Some(dg), _) => Some(DecayMut::PerStep(dg.view_mut())),
                (_, Some(dgk)) => Some(DecayMut::PerChannel(dgk.view_mut())),
                _ => None,
            },
            dbeta: dbeta.as_mut().map(Tensor::view_mut),
            dinitial_state: dinitial_state.as_mut().map(Tensor::view_mut),
            dinitial_z: None,
            dbonus: None,
        };
        let operation = &ops.linear_attention;
        let mut workspace = Workspace::new(stream);
        workspace.reserve(operation.backward_plan(config, &tensors)?.workspace_bytes())?;
        operation.backward(stream, config, tensors, &mut workspace)?;
        let mut outputs = vec![
            Output::fetch("dq", &dq, stream)?,
            Output::fetch("dk", &dk, stream)?,
            Output::fetch("dv", &dv, stream)?,
        ];
        if let Some(dg) = &dg {
            outputs.push(Output::fetch("dg", dg, stream)?);
        }
        if let Some(dgk) = &dgk {
            outputs.push(Output::fetch("dgk", dgk, stream)?);
        }
        if let Some(dbeta) = &dbeta {
            outputs.push(Output::fetch("dbeta", dbeta, stream)?);
        }
        if let Some(state) = &dinitial_state {
            outputs.push(Output::fetch("d_initial_state", state, stream)?);
        }
        Ok(outputs)
    }
}
