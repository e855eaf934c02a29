//! Golden cases of state space duality.

use std::sync::Arc;

use bytemuck::Pod;
use seqmix::cudarc::driver::CudaStream;
use seqmix::ssd::{Backward, Config, Forward, Layer, Skip, SkipMut};
use seqmix::{Float, Tensor, Workspace};

use super::{Case, Failure, Ops, Output};

/// D, or its gradient, in one of its forms.
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

    fn view_mut(&mut self) -> SkipMut<'_> {
        match self {
            Self::PerHead(d) => SkipMut::PerHead(d.view_mut()),
            Self::PerChannel(d) => SkipMut::PerChannel(d.view_mut()),
        }
    }

    /// Zeros of the same form.
    fn like(&self, stream: &Arc<CudaStream>) -> Result<Self, Failure> {
        Ok(match self {
            Self::PerHead(d) => Self::PerHead(Tensor::zeros(stream, d.shape())?),
            Self::PerChannel(d) => Self::PerChannel(Tensor::zeros(stream, d.shape())?),
        })
    }

    fn fetch(&self, name: &'static str, stream: &Arc<CudaStream>) -> Result<Output, Failure> {
        match self {
            Self::PerHead(d) => Output::fetch(name, d, stream),
            Self::PerChannel(d) => Output::fetch(name, d, stream),
        }
    }
}

/// The inputs of a case on the device.
struct Inputs<T> {
    x: Tensor<T, 4>,
    dt: Tensor<T, 3>,
    a: Tensor<f32, 1>,
    b: Tensor<T, 4>,
    c: Tensor<T, 4>,
    d: Option<Stored>,
    z: Option<Tensor<T, 4>>,
    dt_bias: Option<Tensor<f32, 1>>,
    initial_states: Option<Tensor<f32, 4>>,
}

impl<T: Float + Pod> Inputs<T> {
    fn new(case: &Case, stream: &Arc<CudaStream>) -> Result<Self, Failure> {
        let skip = |d: &super::Stored| match d.shape.len() {
            1 => d.upload(stream).map(Stored::PerHead),
            _ => d.upload(stream).map(Stored::PerChannel),
        };
        Ok(Self {
            x: case.need("x")?.upload(stream)?,
            dt: case.need("dt")?.upload(stream)?,
            a: case.need("A")?.upload(stream)?,
            b: case.need("B")?.upload(stream)?,
            c: case.need("C")?.upload(stream)?,
            d: case.get("D").map(skip).transpose()?,
            z: case.optional("z", stream)?,
            dt_bias: case.optional("dt_bias", stream)?,
            initial_states: case.optional("initial_states", stream)?,
        })
    }

    fn layer(&self) -> Layer<'_, T> {
        let Self {
            x, dt, a, b, c, z, ..
        } = self;
        Layer {
            d: self.d.as_ref().map(Stored::view),
            z: z.as_ref().map(Tensor::view),
            dt_bias: self.dt_bias.as_ref().map(Tensor::view),
            initial_states: self.initial_states.as_ref().map(Tensor::view),
            ..Layer::new(x.view(), dt.view(), a.view(), b.view(), c.view())
        }
    }

    /// Zeros of the shape of the states.
    fn states(&self, stream: &Arc<CudaStream>) -> Result<Tensor<f32, 4>, Failure> {
        let ([batch, _, heads, headdim], [_, _, _, dstate]) = (self.x.shape(), self.b.shape());
        Ok(Tensor::zeros(stream, [batch, heads, headdim, dstate])?)
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

    pub(super) fn ssd_forward<T: Float + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let (stream, config) = (&ops.stream, self.ssd_config()?);
        let inputs = Inputs::<T>::new(self, stream)?;
        let mut out = Tensor::<T, 4>::zeros(stream, inputs.x.shape())?;
        let mut final_states = inputs.states(stream)?;
        let tensors = Forward {
            layer: inputs.layer(),
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

    pub(super) fn ssd_backward<T: Float + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let (stream, config) = (&ops.stream, self.ssd_config()?);
        let inputs = Inputs::<T>::new(self, stream)?;
        let dout = self.need("dout")?.upload::<T, 4>(stream)?;
        let dfinal_states = self.optional::<f32, 4>("dfinal_states", stream)?;
        let heads = inputs.a.shape();
        let mut dx = Tensor::<T, 4>::zeros(stream, inputs.x.shape())?;
        let mut ddt = Tensor::<T, 3>::zeros(stream, inputs.dt.shape())?;
        let mut da = Tensor::<f32, 1>::zeros(stream, heads)?;
        let mut db = Tensor::<T, 4>::zeros(stream, inputs.b.shape())?;
        let mut dc = Tensor::<T, 4>::zeros(stream, inputs.c.shape())?;
        let dd = inputs.d.as_ref().map(|d| d.like(stream));
        let mut dd = dd.transpose()?;
        let dz = inputs.z.as_ref();
        let mut dz = dz
            .map(|z| Tensor::<T, 4>::zeros(stream, z.shape()))
            .transpose()?;
        let mut ddt_bias = Tensor::<f32, 1>::zeros(stream, heads)?;
        let mut dinitial_states = inputs.states(stream)?;
        let tensors = Backward {
            layer: inputs.layer(),
            dout: dout.view(),
            dfinal_states: dfinal_states.as_ref().map(Tensor::view),
            dx: dx.view_mut(),
            ddt: ddt.view_mut(),
            da: da.view_mut(),
            db: db.view_mut(),
            dc: dc.view_mut(),
            dd: dd.as_mut().map(Stored::view_mut),
            dz: dz.as_mut().map(Tensor::view_mut),
            ddt_bias: Some(ddt_bias.view_mut()),
            dinitial_states: Some(dinitial_states.view_mut()),
        };
        let mut workspace = Workspace::new(stream);
        workspace.reserve(ops.ssd.backward_plan(config, &tensors)?.workspace_bytes())?;
        ops.ssd.backward(stream, config, tensors, &mut workspace)?;
        let mut outputs = vec![
            Output::fetch("dx", &dx, stream)?,
            Output::fetch("ddt", &ddt, stream)?,
            Output::fetch("dA", &da, stream)?,
            Output::fetch("dB", &db, stream)?,
            Output::fetch("dC", &dc, stream)?,
            Output::fetch("ddt_bias", &ddt_bias, stream)?,
            Output::fetch("dinitial_states", &dinitial_states, stream)?,
        ];
        if let Some(dd) = &dd {
            outputs.push(dd.fetch("dD", stream)?);
        }
        if let Some(dz) = &dz {
            outputs.push(Output::fetch("dz", dz, stream)?);
        }
        Ok(outputs)
    }
}
