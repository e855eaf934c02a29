//! The gradients of a layer: walks by other roles than those of the forward pass.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use super::backward_ends::{Ends, Normalized};
use super::backward_plan::{self, Asked, BackwardPlan, DecayGradient};
use super::backward_walks::Call;
use super::delta::DeltaCall;
use super::forward::{COPY_BYTES, read_beta};
use super::problem::{DecayLayout, Problem};
use super::ragged::ragged;
use super::{
    Backward, Config, Decay, DecayMut, LinearAttention, layouts, load, read_layer, read_z,
};
use crate::abi::linear_attention::{
    self as abi, BonusGradientParams, DTYPES, DecayGradientParams, Decays, GRADIENT_WALK,
    GradientWalk, GradientWalkParams, HeadDecayParams, LastChannelsParams, LastDecaysParams,
    LastStatesParams, NormalizerGradientParams, RowProductsParams, Rows, SumHeadsParams,
    SumSpansParams,
};
use crate::abi::{Dtype, Entry};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::launch::{Kernel, Launch};
use crate::tensor::Float;
use crate::workspace::Workspace;

const OP: &str = "linear_attention::backward";

/// The kernels of gradients.
#[derive(Debug)]
pub(super) struct Gradients {
    /// The rows of the table that the device can run, and their kernels.
    rows: Vec<GradientWalk>,
    pub(super) walks: Vec<Kernel<GradientWalkParams>>,
    /// In the order of [`DTYPES`].
    pub(super) sum_heads: Vec<Kernel<SumHeadsParams>>,
    /// In the order of [`DTYPES`].
    pub(super) decay_gradient: Vec<Kernel<DecayGradientParams>>,
    /// In the order of [`DTYPES`].
    pub(super) head_decay: Vec<Kernel<HeadDecayParams>>,
    /// In the order of [`DTYPES`].
    pub(super) bonus_gradient: Vec<Kernel<BonusGradientParams>>,
    pub(super) sum_spans: Kernel<SumSpansParams>,
    /// In the order of [`DTYPES`].
    pub(super) normalizer_gradient: Vec<Kernel<NormalizerGradientParams>>,
    /// In the order of [`DTYPES`].
    pub(super) row_products: Vec<Kernel<RowProductsParams>>,
    pub(super) last_decays: Kernel<LastDecaysParams>,
    /// In the order of [`DTYPES`].
    pub(super) last_channels: Vec<Kernel<LastChannelsParams>>,
    pub(super) last_states: Kernel<LastStatesParams>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for GradientWalkParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SumHeadsParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for DecayGradientParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for HeadDecayParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SumSpansParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for BonusGradientParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for NormalizerGradientParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for RowProductsParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for LastDecaysParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for LastChannelsParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for LastStatesParams {}

impl Gradients {
    pub(super) fn load(ctx: &Arc<CudaContext>, device: &Device) -> Result<Self> {
        let rows = GRADIENT_WALK.iter().copied();
        let rows: Vec<GradientWalk> = rows
            .filter(|row| row.shared_bytes() <= device.shared_bytes)
            .collect();
        let walks = rows.iter().map(|row| load(ctx, &row.entry()));
        let walks: Result<_> = walks.collect();
        Ok(Self {
            walks: walks?,
            sum_heads: of_dtypes(ctx, abi::sum_heads)?,
            decay_gradient: of_dtypes(ctx, abi::decay_gradient)?,
            head_decay: of_dtypes(ctx, abi::head_decay)?,
            bonus_gradient: of_dtypes(ctx, abi::bonus_gradient)?,
            sum_spans: load(ctx, &abi::sum_spans())?,
            normalizer_gradient: of_dtypes(ctx, abi::normalizer_gradient)?,
            row_products: of_dtypes(ctx, abi::row_products)?,
            last_decays: load(ctx, &abi::last_decays())?,
            last_channels: of_dtypes(ctx, abi::last_channels)?,
            last_states: load(ctx, &abi::last_states())?,
            rows,
        })
    }
}

/// A kernel for each of [`DTYPES`].
fn of_dtypes<P: DeviceRepr>(
    ctx: &Arc<CudaContext>,
    entry: impl Fn(Dtype) -> Entry,
) -> Result<Vec<Kernel<P>>> {
    let kernels = DTYPES.iter().map(|&dtype| load(ctx, &entry(dtype)));
    kernels.collect()
}

/// How the gradients lie.
struct Outputs {
    normalized: Option<Normalized>,
    dout: Rows,
    ends: Ends,
    dq: Rows,
    dk: Rows,
    dv: Rows,
    ddecay: Option<(DecayGradient, Decays)>,
    dbeta: Rows,
    /// The stride of the heads of the bonus's gradient.
    dbonus: Option<i64>,
}

fn describe<T: Float>(config: Config, tensors: &Backward<'_, T>) -> Result<(Problem, Outputs)> {
    let problem = Problem::new(
        OP,
        T::DTYPE,
        config,
        &layouts(&tensors.layer, tensors.dout.layout()),
    )?;
    let modified = config.normalize.is_some() || !config.causal;
    if problem.beta.is_some() && (problem.bonus || modified) {
        return Err(Error::Unsupported {
            op: OP,
            request: "the delta rule with a bonus or a normaliser, or not causal".into(),
            available: "a causal layer without bonus and normaliser".into(),
        });
    }
    let ddecay = match (&tensors.ddecay, &tensors.layer.decay) {
        (None, _) => None,
        (Some(DecayMut::PerHead(ddecay)), Decay::PerHead(_)) => {
            let layout = DecayLayout::PerHead(ddecay.layout());
            Some((DecayGradient::Head, problem.decays("ddecay", layout)?))
        }
        (Some(DecayMut::PerStep(ddecay)), Decay::PerStep(_)) => {
            let layout = DecayLayout::PerStep(ddecay.layout());
            Some((DecayGradient::Step, problem.decays("ddecay", layout)?))
        }
        (Some(DecayMut::PerChannel(ddecay)), Decay::PerChannel(_)) => {
            let layout = DecayLayout::PerChannel(ddecay.layout());
            Some((DecayGradient::Channel, problem.decays("ddecay", layout)?))
        }
        (Some(ddecay), _) => {
            return Err(Error::Argument {
                op: OP,
                argument: "ddecay",
                expected: "the form of decay, or none".into(),
                found: match ddecay {
                    DecayMut::PerHead(_) => "a number a head",
                    DecayMut::PerStep(_) => "a number a step",
                    DecayMut::PerChannel(_) => "a number a channel",
                }
                .into(),
            });
        }
    };
    let outputs = Outputs {
        normalized: Normalized::new(&problem, tensors)?,
        dout: problem.like_out("dout", tensors.dout.layout())?,
        ends: Ends::new(&problem, tensors)?,
        dq: problem.like_q("dq", tensors.dq.layout())?,
        dk: problem.like_k("dk", tensors.dk.layout())?,
        dv: problem.like_v("dv", tensors.dv.layout())?,
        ddecay,
        dbeta: match (&tensors.dbeta, problem.beta) {
            (None, _) => Rows::default(),
            (Some(dbeta), Some(_)) => problem.like_beta("dbeta", dbeta.layout())?,
            (Some(_), None) => {
                return Err(Error::Argument {
                    op: OP,
                    argument: "dbeta",
                    expected: "none by the linear rule".into(),
                    found: "a tensor".into(),
                });
            }
        },
        dbonus: match &tensors.dbonus {
            Some(dbonus) if problem.bonus => Some(problem.like_bonus("dbonus", dbonus.layout())?),
            Some(_) => {
                return Err(Error::Argument {
                    op: OP,
                    argument: "dbonus",
                    expected: "none without a bonus".into(),
                    found: "a tensor".into(),
                });
            }
            None => None,
        },
    };
    Ok((problem, outputs))
}

impl LinearAttention {
    /// How [`LinearAttention::backward`] would run: how many bytes of workspace it needs.
    ///
    /// Nothing is queued.
    ///
    /// # Errors
    /// As [`LinearAttention::backward`], for what can be known without a stream.
    pub fn backward_plan<T: Float>(
        &self,
        config: Config,
        tensors: &Backward<'_, T>,
    ) -> Result<BackwardPlan> {
        let (problem, outputs) = describe(config, tensors)?;
        self.plan_backward(&problem, &outputs)
    }

    fn plan_backward(&self, problem: &Problem, outputs: &Outputs) -> Result<BackwardPlan> {
        let asked = Asked {
            ddecay: outputs.ddecay.map(|(form, _)| form),
            dbonus: outputs.dbonus.is_some(),
        };
        let rows = backward_plan::Rows {
            gradients: &self.gradients.rows,
            walks: &self.rows,
        };
        let delta = problem.beta.map(|_| &self.delta);
        BackwardPlan::new(problem, asked, rows, delta, &self.device)
    }

    /// Queues the gradients of a layer on `stream`.
    ///
    /// States, their gradients, decays and sums are `f32`; what enters a product of tensor cores is rounded to `T`, as
    /// in [`LinearAttention::forward`]. What heads share is summed in order: the same inputs give the same bits. Of the
    /// forward pass nothing is needed but with a normaliser, and then its output and the sums that it was divided by.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`];
    /// [`Error::Workspace`] if fewer bytes are reserved than [`BackwardPlan::workspace_bytes`]. Nothing is queued then.
    pub fn backward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Backward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (problem, outputs) = describe(config, &tensors)?;
        let plan = self.plan_backward(&problem, &outputs)?;
        let mut scratch = workspace.scratch();
        let mut memory;
        let mut launch = Launch::new(OP, stream);
        launch.same_context("the operation", &self.ctx)?;
        let (layer, initial) = read_layer(&mut launch, &problem, &tensors.layer)?;
        let initial_z = read_z(&mut launch, &problem, &tensors.layer)?;
        let normalized = match &outputs.normalized {
            Some(normalized) => {
                Some(normalized.read(&mut launch, &tensors.out, &tensors.normalizer)?)
            }
            None => None,
        };
        let rows = |at, rows: Rows| Rows { at, ..rows };
        let element = size_of::<T>() as u64;
        let dout = rows(launch.read("dout", &tensors.dout, element)?, outputs.dout);
        let mut ends = Ends {
            initial,
            initial_z,
            ..outputs.ends
        };
        if let Some(states) = &tensors.dfinal_state {
            ends.dlast.at = launch.read("dfinal_state", states, 4)?;
        }
        if let Some(z) = &tensors.dfinal_z {
            ends.dlast_z.at = launch.read("dfinal_z", z, 4)?;
        }
        let gradients = [
            rows(launch.write("dq", &mut tensors.dq, element)?, outputs.dq),
            rows(launch.write("dk", &mut tensors.dk, element)?, outputs.dk),
            rows(launch.write("dv", &mut tensors.dv, element)?, outputs.dv),
        ];
        let ddecay = match &mut tensors.ddecay {
            None => 0,
            Some(DecayMut::PerHead(ddecay)) => launch.write("ddecay", ddecay, 4)?,
            Some(DecayMut::PerStep(ddecay)) => launch.write("ddecay", ddecay, 4)?,
            Some(DecayMut::PerChannel(ddecay)) => launch.write("ddecay", ddecay, 4)?,
        };
        let ddecay = outputs.ddecay.map(|(form, decays)| {
            let decays = Decays {
                at: ddecay,
                ..decays
            };
            (form, decays)
        });
        let beta = read_beta(&mut launch, &problem, &tensors.layer)?;
        let mut dbeta = outputs.dbeta;
        if let Some(tensor) = &mut tensors.dbeta {
            dbeta.at = launch.write("dbeta", tensor, element)?;
        }
        let delta = plan.delta.zip(beta);
        let delta = delta.map(|(plan, beta)| DeltaCall { plan, beta, dbeta });
        if let Some(states) = &mut tensors.dinitial_state {
            ends.dinitial.at = launch.write("dinitial_state", states, 4)?;
        }
        if let Some(z) = &mut tensors.dinitial_z {
            ends.dinitial_z.at = launch.write("dinitial_z", z, 4)?;
        }
        let dbonus = match &mut tensors.dbonus {
            Some(dbonus) => launch.write("dbonus", dbonus, 4)?,
            None => 0,
        };
        memory = scratch.take(plan.workspace_bytes())?;
        let start = match &mut memory {
            Some(memory) => launch.write("workspace", memory, COPY_BYTES)?,
            None => 0,
        };
        launch.check()?;
        let [dq, dk, dv] = gradients;
        let call = Call {
            kernels: self,
            launch: &launch,
            problem: &problem,
            plan: &plan,
            layer: abi::Layer {
                segment: plan.segment as i32, // at most the steps and a span, which fit
                ragged: ragged(problem.dtype, &layer, &[dout, dq, dk, dv]),
                ..layer
            },
            normalized,
            dout,
            ends,
            gradients,
            delta,
            ddecay,
            dbonus: outputs.dbonus.map(|stride| (dbonus, stride)),
            start,
        };
        // SAFETY: `Problem` and `describe` checked that the tensors have the sizes and strides that the
        // parameters tell the kernels, which clamp what they read from cu_seqlens to the steps; and the
        // workspace has room for all that the plan counted.
        unsafe { call.queue() }
    }
}
