//! Golden cases of the selective scan.

use std::sync::Arc;

use bytemuck::Pod;
use seqmix::cudarc::driver::CudaStream;
use seqmix::selective_scan::{
    Backward, Coefficient, CoefficientMut, Config, Forward, Gradients, Inputs, Step, StepConfig,
    Weight,
};
use seqmix::{Float, Tensor, TensorRef, Workspace};

use super::{Case, Failure, Ops, Output};

/// What a scan reads, on the device.
struct Stored<T> {
    u: Tensor<T, 3>,
    delta: Tensor<T, 3>,
    a: Tensor<f32, 2>,
    b: Tensor<T, 4>,
    c: Tensor<T, 4>,
    d: Option<Tensor<f32, 1>>,
    z: Option<Tensor<T, 3>>,
    delta_bias: Option<Tensor<f32, 1>>,
}

impl<T: Float + Pod> Stored<T> {
    fn upload(case: &Case, stream: &Arc<CudaStream>) -> Result<Self, Failure> {
        Ok(Self {
            u: case.need("u")?.upload(stream)?,
            delta: case.need("delta")?.upload(stream)?,
            a: case.need("A")?.upload(stream)?,
            b: case.need("B")?.upload(stream)?,
            c: case.need("C")?.upload(stream)?,
            d: case.optional("D", stream)?,
            z: case.optional("z", stream)?,
            delta_bias: case.optional("delta_bias", stream)?,
        })
    }

    fn views(&self) -> Inputs<'_, T> {
        Inputs {
            d: self.d.as_ref().map(|d| d.view().into()),
            z: self.z.as_ref().map(Tensor::view),
            delta_bias: self.delta_bias.as_ref().map(|bias| bias.view().into()),
            ..Inputs::new(
                self.u.view(),
                self.delta.view(),
                self.a.view(),
                Coefficient::Variable(self.b.view()),
                Coefficient::Variable(self.c.view()),
            )
        }
    }
}

impl Case {
    fn selective_scan_config(&self) -> Result<Config, Failure> {
        Ok(Config {
            delta_softplus: self.flag("delta_softplus")?,
            ..Config::default()
        })
    }

    pub(super) fn selective_scan_forward<T: Float + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let (stream, op) = (&ops.stream, &ops.selective_scan);
        let config = self.selective_scan_config()?;
        let inputs = Stored::<T>::upload(self, stream)?;
        let ([batch, _, _], [dim, dstate]) = (inputs.u.shape(), inputs.a.shape());
        let mut out = Tensor::<T, 3>::zeros(stream, inputs.u.shape())?;
        let mut last_state = Tensor::<f32, 3>::zeros(stream, [batch, dim, dstate])?;
        let mut forward = Forward {
            last_state: Some(last_state.view_mut()),
            ..Forward::new(inputs.views(), out.view_mut())
        };
        let mut workspace = Workspace::new(stream);
        workspace.reserve(op.plan(stream, config, &mut forward)?.workspace_bytes())?;
        op.forward(stream, config, forward, &mut workspace)?;
        Ok(vec![
            Output::fetch("out", &out, stream)?,
            Output::fetch("last_state", &last_state, stream)?,
        ])
    }

    pub(super) fn selective_scan_backward<T: Float + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let (stream, op) = (&ops.stream, &ops.selective_scan);
        let config = self.selective_scan_config()?;
        let inputs = Stored::<T>::upload(self, stream)?;
        let dout = self.need("dout")?.upload::<T, 3>(stream)?;
        let like_u = || Tensor::<T, 3>::zeros(stream, inputs.u.shape());
        let (mut du, mut ddelta, mut dz) = (like_u()?, like_u()?, like_u()?);
        let mut da = Tensor::<f32, 2>::zeros(stream, inputs.a.shape())?;
        let mut db = Tensor::<T, 4>::zeros(stream, inputs.b.shape())?;
        let mut dc = Tensor::<T, 4>::zeros(stream, inputs.c.shape())?;
        let [dim, _] = inputs.a.shape();
        let mut dd = Tensor::<f32, 1>::zeros(stream, [dim])?;
        let mut ddelta_bias = Tensor::<f32, 1>::zeros(stream, [dim])?;
        let gradients = Gradients {
            da: Some(da.view_mut()),
            db: Some(CoefficientMut::Variable(db.view_mut())),
            dc: Some(CoefficientMut::Variable(dc.view_mut())),
            dd: Some(dd.view_mut()),
            dz: inputs.z.as_ref().map(|_| dz.view_mut()),
            ddelta_bias: Some(ddelta_bias.view_mut()),
            ..Gradients::new(du.view_mut(), ddelta.view_mut())
        };
        let mut backward = Backward::new(inputs.views(), dout.view(), gradients);
        let mut workspace = Workspace::new(stream);
        let plan = op.plan_backward(stream, config, &mut backward)?;
        workspace.reserve(plan.workspace_bytes())?;
        op.backward(stream, config, backward, &mut workspace)?;
        Ok(vec![
            Output::fetch("du", &du, stream)?,
            Output::fetch("ddelta", &ddelta, stream)?,
            Output::fetch("dA", &da, stream)?,
            Output::fetch("dB", &db, stream)?,
            Output::fetch("dC", &dc, stream)?,
            Output::fetch("dD", &dd, stream)?,
            Output::fetch("dz", &dz, stream)?,
            Output::fetch("ddelta_bias", &ddelta_bias, stream)?,
        ])
    }

    pub(super) fn selective_scan_step<T: Float + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let stream = &ops.stream;
        let mut state: Tensor<f32, 3> = self.need("state")?.upload(stream)?;
        let x: Tensor<T, 2> = self.need("x")?.upload(stream)?;
        let dt: Tensor<T, 2> = self.need("dt")?.upload(stream)?;
        let a: Tensor<f32, 2> = self.need("A")?.upload(stream)?;
        let b: Tensor<T, 3> = self.need("B")?.upload(stream)?;
        let c: Tensor<T, 3> = self.need("C")?.upload(stream)?;
        let d: Option<Tensor<f32, 1>> = self.optional("D", stream)?;
        let z: Option<Tensor<T, 2>> = self.optional("z", stream)?;
        let dt_bias: Option<Tensor<f32, 1>> = self.optional("dt_bias", stream)?;
        let mut out = Tensor::<T, 2>::zeros(stream, x.shape())?;

        // the channels of a group are a head
        let ([batch, dim, states], [_, groups, _]) = (state.shape(), b.shape());
        let width = dim / groups.max(1);
        let (rows, row_strides) = ([batch, groups, width], [dim, width, 1]);
        let row = strided::<T, 2, 3>(rows, row_strides);
        let vector = strided::<f32, 1, 2>([groups, width], [width, 1]);
        let step = Step {
            d: d.as_ref()
                .map(Tensor::view)
                .map(vector)
                .transpose()?
                .map(Weight::F32),
            z: z.as_ref().map(Tensor::view).map(row).transpose()?,
            dt_bias: dt_bias
                .as_ref()
                .map(Tensor::view)
                .map(vector)
                .transpose()?
                .map(Weight::F32),
            ..Step::new(
                state.view_mut().as_strided(
                    [batch, groups, width, states],
                    [dim * states, width * states, states, 1],
                )?,
                (row(x.view())?, row(dt.view())?),
                a.view()
                    .as_strided([groups, width, states], [width * states, states, 1])?,
                (b.view(), c.view()),
                out.view_mut().as_strided(rows, row_strides)?,
            )
        };
        let config = StepConfig {
            dt_softplus: self.flag("dt_softplus")?,
            ..StepConfig::default()
        };
        ops.selective_scan.step(stream, config, step)?;
        Ok(vec![
            Output::fetch("out", &out, stream)?,
            Output::fetch("state", &state, stream)?,
        ])
    }
}

/// Views tensors with these sizes and strides.
fn strided<T, const N: usize, const M: usize>(
    shape: [usize; M],
    strides: [usize; M],
) -> impl Copy + for<'a> Fn(TensorRef<'a, T, N>) -> seqmix::Result<TensorRef<'a, T, M>> {
    move |tensor| tensor.as_strided(shape, strides)
}
