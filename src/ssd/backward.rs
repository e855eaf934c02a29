//! The gradients of a layer.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::plan::BackwardPlan;
use super::problem::{Problem, SkipLayout};
use super::{
    Backward, COPY_BYTES, Config, Direction, GradientParams, Rows, SUM_COEFFICIENTS, Skip, SkipMut,
    Ssd, States, SumCoefficientsParams, SumParametersParams, SweepParams, layouts, read_layer,
};
use crate::abi::ssd::{self as abi, SUM_PARAMETERS_COLUMNS};
use crate::error::{Error, Result};
use crate::launch::Launch;
use crate::tensor::{Float, TensorMut};
use crate::workspace::Workspace;

const OP: &str = "ssd::backward";

impl Ssd {
    /// How [`Ssd::backward`] would run: how many bytes of workspace it needs.
    ///
    /// Nothing is queued.
    ///
    /// # Errors
    /// As [`Ssd::backward`], for what can be known without a stream.
    pub fn backward_plan<T: Float>(
        &self,
        config: Config,
        tensors: &Backward<'_, T>,
    ) -> Result<BackwardPlan> {
        let (problem, outputs) = describe(config, tensors)?;
        self.plan_backward(&problem, &outputs)
    }

    fn plan_backward(&self, problem: &Problem, outputs: &Outputs) -> Result<BackwardPlan> {
        BackwardPlan::new(
            problem,
            outputs.per_channel,
            &self.rows,
            &self.gradient_rows,
            &self.device,
        )
    }

    /// Queues the gradients of a layer on `stream`. Nothing of the forward call is needed but its inputs.
    ///
    /// States, decays and sums are `f32`; what enters a product of tensor cores is rounded to `T`, and `f32` is
    /// multiplied with its 24 bits. Sums over heads,
    /// chunks and sequences are added in an order that depends on the shapes and the device alone: the same inputs
    /// give the same bits. Without steps the gradients of A, D and `dt_bias` are 0.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`]; [`Error::Unsupported`] if `dstate` is more than
    /// 128 on a GPU whose blocks have less than 144 KiB of shared memory (compute capabilities 8.6, 8.9 and 12.0), or
    /// if there are more steps than one launch takes, 4 194 240, in `f32` half of that;
    /// [`Error::Workspace`] if fewer bytes are reserved than [`BackwardPlan::workspace_bytes`]. Nothing is queued
    /// then.
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
        let (mut layer, initial) = read_layer(&mut launch, &problem, &tensors.layer)?;
        layer.segment = plan.walk.segment as i32; // at most the steps and a chunk, which fit
        let rows = |at, rows: Rows| Rows { at, ..rows };
        let states = |at, states: States| States { at, ..states };
        let dout = rows(
            launch.read("dout", &tensors.dout, COPY_BYTES)?,
            outputs.dout,
        );
        let dlast = match &tensors.dfinal_states {
            Some(dlast) => launch.read("dfinal_states", dlast, COPY_BYTES)?,
            None => 0,
        };
        let dx = launch.write("dx", &mut tensors.dx, COPY_BYTES)?;
        let dz = match &mut tensors.dz {
            Some(dz) => launch.write("dz", dz, COPY_BYTES)?,
            None => 0,
        };
        let ddt = launch.write("ddt", &mut tensors.ddt, size_of::<T>() as u64)?;
        let db = launch.write("db", &mut tensors.db, COPY_BYTES)?;
        let dc = launch.write("dc", &mut tensors.dc, COPY_BYTES)?;
        let da = launch.write("da", &mut tensors.da, 4)?;
        let ddt_bias = match &mut tensors.ddt_bias {
            Some(ddt_bias) => launch.write("ddt_bias", ddt_bias, 4)?,
            None => 0,
        };
        let dd = match &mut tensors.dd {
            Some(SkipMut::PerHead(dd)) => launch.write("dd", dd, 4)?,
            Some(SkipMut::PerChannel(dd)) => launch.write("dd", dd, 4)?,
            None => 0,
        };
        let dinitial = match &mut tensors.dinitial_states {
            Some(dinitial) => launch.write("dinitial_states", dinitial, COPY_BYTES)?,
            None => 0,
        };
        memory = scratch.take(plan.workspace_bytes())?;
        let start = match &mut memory {
            Some(memory) => launch.write("workspace", memory, COPY_BYTES)?,
            None => 0,
        };
        launch.check()?;
        let at = |offset: usize| start + offset as u64;
        let chunk = abi::chunk(problem.dtype) as i32;
        let cut = plan.walk.workspace_bytes() > 0;

        if !problem.is_empty() {
            let forward = SweepParams {
                layer,
                before: initial,
                segments: if cut { at(plan.memory.segments) } else { 0 },
                decays: at(plan.memory.decays),
                chunks: at(plan.memory.states),
                units: at(plan.memory.state_units),
                phase: 1,
                ..SweepParams::default()
            };
            let mut gradient_layer = layer;
            gradient_layer.x = dout;
            gradient_layer.b = layer.c;
            let backward = SweepParams {
                layer: gradient_layer,
                before: states(dlast, outputs.dlast),
                after: states(dinitial, outputs.dinitial),
                chunks: at(plan.memory.gradients),
                units: at(plan.memory.gradient_units),
                met: at(plan.memory.states),
                met_units: at(plan.memory.state_units),
                dots: at(plan.memory.dots),
                ..forward
            };
            let walks = [
                (Direction::Forward, &self.sweep, forward),
                (Direction::Backward, &self.sweep_back, backward),
            ];
            for (way, kernels, params) in walks {
                if cut {
                    let from_zeros = SweepParams { phase: 0, ..params };
                    // SAFETY: `Problem` and `describe` checked that the tensors have the sizes and strides
                    // that the parameters tell the kernels; the workspace has room for all that the plan
                    // counted.
                    unsafe { self.pass_segments(&launch, &plan.walk, &problem, &from_zeros, way) }?;
                }
                // SAFETY: as above; the kernel clamps what it reads from cu_seqlens to the steps, so that no
                // segment and no chunk is beyond those counted.
                unsafe { launch.run(&kernels[plan.walk.row], plan.walk.grid, &params) }?;
            }
            if problem.steps > 0 {
                layer.segment = chunk; // a block takes one
                let params = GradientParams {
                    layer,
                    dout,
                    dx: rows(dx, outputs.dx),
                    dz: rows(dz, outputs.dz),
                    ddt: rows(ddt, outputs.ddt),
                    states: at(plan.memory.states),
                    state_units: at(plan.memory.state_units),
                    gradients: at(plan.memory.gradients),
                    gradient_units: at(plan.memory.gradient_units),
                    dots: at(plan.memory.dots),
                    coefficients: at(plan.memory.coefficients),
                    sums: at(plan.memory.sums),
                    chunk_slots: plan.chunk_slots as i64,
                    heads_per_part: plan.heads_per_part as i32, // at most the heads, which fit
                    sums_of_head: plan.sums_of_head as i32,     // and the channels of a head
                };
                // SAFETY: as above.
                unsafe { launch.run(&self.gradients[plan.row], plan.grid, &params) }?;
                let params = SumCoefficientsParams {
                    coefficients: at(plan.memory.coefficients),
                    db: rows(db, outputs.db),
                    dc: rows(dc, outputs.dc),
                    cu_seqlens: layer.cu_seqlens,
                    chunk_slots: plan.chunk_slots as i64,
                    steps: layer.steps,
                    groups: problem.groups as i32,
                    parts: plan.parts as i32,
                    dstate: layer.dstate,
                };
                let dtype = SUM_COEFFICIENTS.iter().position(|&dtype| dtype == T::DTYPE);
                let kernel = &self.sum_coefficients[dtype.unwrap_or(0)];
                let grid = [problem.groups, plan.grid[1], problem.sequences];
                // SAFETY: as above; it reads what the kernel before it wrote.
                unsafe { launch.run(kernel, grid, &params) }?;
            }
        }
        if problem.heads > 0 {
            let params = SumParametersParams {
                sums: at(plan.memory.sums),
                da,
                ddt_bias,
                dd,
                cu_seqlens: layer.cu_seqlens,
                dd_head_stride: outputs.dd[0],
                dd_channel_stride: outputs.dd[1],
                steps: layer.steps,
                sequences: problem.sequences as i32, // along z of the grid, if there is one
                heads: layer.heads,
                sums_of_head: plan.sums_of_head as i32,
                chunk,
            };
            let sums = problem.heads * plan.sums_of_head;
            let grid = [sums.div_ceil(SUM_PARAMETERS_COLUMNS), 1, 1];
            // SAFETY: as above; where no chunk was computed it reads no sum.
            unsafe { launch.run(&self.sum_parameters, grid, &params) }?;
        }
        Ok(())
    }
}

/// How the gradients lie.
struct Outputs {
    dout: Rows,
    dlast: States,
    dx: Rows,
    dz: Rows,
    ddt: Rows,
    db: Rows,
    dc: Rows,
    /// Strides along heads and channels.
    dd: [i64; 2],
    dinitial: States,
    /// Whether D, or else its gradient, is per channel.
    per_channel: bool,
}

fn describe<T: Float>(config: Config, tensors: &Backward<'_, T>) -> Result<(Problem, Outputs)> {
    let problem = Problem::new(OP, T::DTYPE, config, &layouts(&tensors.layer))?;
    let skip = tensors.dd.as_ref().map(|dd| match dd {
        SkipMut::PerHead(dd) => SkipLayout::PerHead(dd.layout()),
        SkipMut::PerChannel(dd) => SkipLayout::PerChannel(dd.layout()),
    });
    let per_channel = matches!(skip, Some(SkipLayout::PerChannel(_)));
    let form = |per_channel| match per_channel {
        true => "a number a channel",
        false => "a number a head",
    };
    if let (Some(d), Some(_)) = (&tensors.layer.d, &skip) {
        let expected = matches!(d, Skip::PerChannel(_));
        if expected != per_channel {
            let expected = format!("{}, as d", form(expected));
            return Err(argument("dd", expected, form(per_channel)));
        }
    }
    match (tensors.layer.z.is_some(), tensors.dz.is_some()) {
        (true, false) => return Err(argument("dz", "a tensor, as z".into(), "absent")),
        (false, true) => return Err(argument("dz", "none, as z".into(), "a tensor")),
        _ => {}
    }
    problem.like_a("da", tensors.da.layout())?;
    if let Some(ddt_bias) = &tensors.ddt_bias {
        problem.like_a("ddt_bias", ddt_bias.layout())?;
    }
    let outputs = Outputs {
        dout: problem.like_x("dout", tensors.dout.layout())?,
        dlast: match &tensors.dfinal_states {
            Some(states) => problem.states("dfinal_states", states.layout())?,
            None => States::default(),
        },
        dx: problem.like_x("dx", tensors.dx.layout())?,
        dz: match tensors.dz.as_ref().map(TensorMut::layout) {
            Some(dz) => problem.like_x("dz", dz)?,
            None => Rows::default(),
        },
        ddt: problem.like_dt("ddt", tensors.ddt.layout())?,
        db: problem.like_b("db", tensors.db.layout())?,
        dc: problem.like_b("dc", tensors.dc.layout())?,
        dd: match skip {
            Some(skip) => problem.like_d("dd", skip)?,
            None => [0, 0],
        },
        dinitial: match &tensors.dinitial_states {
            Some(states) => problem.states("dinitial_states", states.layout())?,
            None => States::default(),
        },
        per_channel,
    };
    Ok((problem, outputs))
}

fn argument(argument: &'static str, expected: String, found: &str) -> Error {
    Error::Argument {
        op: OP,
        argument,
        expected,
        found: found.into(),
    }
}
