//! The forward pass: walks by the linear rule, or one by the delta rule.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::delta_segments::Cut;
use super::plan::Plan;
use super::problem::Problem;
use super::ragged::ragged;
use super::{Config, Forward, LinearAttention, Rule, layouts, read_layer, read_z};
use crate::abi::linear_attention::{
    CarryParams, DeltaParams, Layer, Mode, Rows, States, WalkParams,
};
use crate::error::{Error, Result};
use crate::launch::Launch;
use crate::tensor::Float;
use crate::workspace::Workspace;

const OP: &str = "linear_attention::forward";

/// Alignment of workspaces.
pub(super) const COPY_BYTES: u64 = 16;

/// How the outputs of a forward call lie.
struct Outputs {
    out: Rows,
    normalizer: Rows,
    last: States,
    last_z: States,
}

fn describe<T: Float>(config: Config, tensors: &Forward<'_, T>) -> Result<(Problem, Outputs)> {
    let layouts = layouts(&tensors.layer, tensors.out.layout());
    let problem = Problem::new(OP, T::DTYPE, config, &layouts)?;
    let lacking = [
        (!config.causal, "that is not causal"),
        (problem.bonus, "with a bonus"),
        (config.normalize.is_some(), "with a normaliser"),
    ];
    if let (Some(_), Some((_, what))) = (problem.beta, lacking.iter().find(|(lacks, _)| *lacks)) {
        return Err(Error::Unsupported {
            op: OP,
            request: format!("the delta rule {what}"),
            available: "the linear rule".into(),
        });
    }
    let outputs = Outputs {
        out: problem.like_out("out", tensors.out.layout())?,
        last: match &tensors.final_state {
            Some(states) => problem.states("final_state", states.layout())?,
            None => States::default(),
        },
        last_z: match &tensors.final_z {
            Some(z) => problem.zs("final_z", z.layout())?,
            None => States::default(),
        },
        normalizer: match &tensors.normalizer {
            Some(sums) => problem.normalizer("normalizer", sums.layout())?,
            None => Rows::default(),
        },
    };
    Ok((problem, outputs))
}

/// beta with its address, by the delta rule.
pub(super) fn read_beta<'a, T: Float>(
    launch: &mut Launch<'a>,
    problem: &Problem,
    layer: &'a super::Layer<'_, T>,
) -> Result<Option<Rows>> {
    match (&layer.rule, problem.beta) {
        (Rule::Delta { beta }, Some(rows)) => Ok(Some(Rows {
            at: launch.read("beta", beta, size_of::<T>() as u64)?,
            ..rows
        })),
        _ => Ok(None),
    }
}

impl LinearAttention {
    /// The plan of a forward pass.
    fn plan_of(&self, problem: &Problem) -> Result<Plan> {
        let rows = match problem.beta {
            Some(_) => &self.delta.rows,
            None => &self.rows,
        };
        Plan::new(problem, rows, &self.device)
    }

    /// How [`LinearAttention::forward`] would run: which kernel, and how many bytes of workspace it needs.
    ///
    /// Nothing is queued.
    ///
    /// # Errors
    /// As [`LinearAttention::forward`], for what can be known without a stream.
    pub fn plan<T: Float>(&self, config: Config, tensors: &Forward<'_, T>) -> Result<Plan> {
        let (problem, _) = describe(config, tensors)?;
        self.plan_of(&problem)
    }

    /// Queues a layer on `stream`.
    ///
    /// States, decays and sums are `f32`; what enters a product of tensor cores is rounded to `T`, and `f32` is
    /// multiplied with its 24 bits, in six times the work. The same inputs give the same bits. A sequence without
    /// steps has its initial state as its final state.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`];
    /// [`Error::Workspace`] if fewer bytes are reserved than [`Plan::workspace_bytes`]. Nothing is queued then.
    pub fn forward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Forward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (problem, outputs) = describe(config, &tensors)?;
        let mut scratch = workspace.scratch();
        let mut memory;
        let mut launch = Launch::new(problem.op, stream);
        launch.same_context("the operation", &self.ctx)?;
        let (layer, initial) = read_layer(&mut launch, &problem, &tensors.layer)?;
        let beta = read_beta(&mut launch, &problem, &tensors.layer)?;
        let initial_z = read_z(&mut launch, &problem, &tensors.layer)?;
        let out = Rows {
            at: launch.write("out", &mut tensors.out, size_of::<T>() as u64)?,
            ..outputs.out
        };
        let last = match &mut tensors.final_state {
            Some(states) => States {
                at: launch.write("final_state", states, 4)?,
                ..outputs.last
            },
            None => States::default(),
        };
        let last_z = match &mut tensors.final_z {
            Some(z) => States {
                at: launch.write("final_z", z, 4)?,
                ..outputs.last_z
            },
            None => States::default(),
        };
        let normalizer = match &mut tensors.normalizer {
            Some(sums) => Rows {
                at: launch.write("normalizer", sums, 4)?,
                ..outputs.normalizer
            },
            None => Rows::default(),
        };
        if problem.is_empty() {
            return launch.check();
        }
        let plan = self.plan_of(&problem)?;
        memory = scratch.take(plan.workspace_bytes())?;
        let at = match &mut memory {
            Some(memory) => launch.write("workspace", memory, COPY_BYTES)?,
            None => 0,
        };
        let whole = WalkParams {
            layer: Layer {
                segment: plan.segment as i32, // at most the steps and a tile, which fit
                ragged: ragged(problem.dtype, &layer, &[out]),
                ..layer
            },
            out,
            normalizer,
            initial,
            last,
            initial_z,
            last_z,
            mode: Mode::Whole as i32,
            normalize: config.normalize.is_some().into(),
            eps: config.normalize.unwrap_or(0.0),
            weight: 1.0,
            ..WalkParams::default()
        };
        if let Some(beta) = beta {
            let params = |walk, identity| DeltaParams {
                walk,
                beta,
                errors: Rows::default(),
                identity: i32::from(identity),
                padding: 0,
            };
            let kernel = &self.delta.walks[plan.row];
            let mut walk = whole;
            if at != 0 {
                walk.segments = at + plan.memory.states as u64;
                let cut = Cut {
                    walk: &walk,
                    transitions: at + plan.memory.transitions as u64,
                    width: self.delta.rows[plan.row].width(),
                    count: plan.grid[1],
                };
                // SAFETY: `Problem` checked that the tensors have the sizes and strides that the parameters tell
                // the kernels, which clamp what they read from cu_seqlens to the steps, and the workspace has room
                // for the segments that `Problem::slots` counts.
                unsafe {
                    self.delta
                        .find_starts(&launch, &problem, kernel, cut, params)
                }?;
            }
            // SAFETY: as above.
            return unsafe { launch.run(kernel, plan.grid, &params(walk, false)) };
        }
        // SAFETY: `Problem` checked that the tensors have the sizes and strides that the parameters
        // tell the kernels, which clamp what they read from cu_seqlens to the steps, and the workspace has
        // room for the segments that `Problem::slots` counts.
        unsafe { self.pass_over(&launch, &problem, &plan, &whole, at) }
    }

    /// Queues the walks of a plan: that of `params`, and before it, with a workspace at `at`, what finds the states
    /// that it begins with.
    ///
    /// # Safety
    /// The tensors of `params` must be as it says, and the workspace as `plan` says, or `at` be 0 if it has none.
    pub(super) unsafe fn pass_over(
        &self,
        launch: &Launch<'_>,
        problem: &Problem,
        plan: &Plan,
        params: &WalkParams,
        at: u64,
    ) -> Result<()> {
        let kernel = &self.walk[plan.row];
        if at == 0 {
            // SAFETY: this function's own condition.
            return unsafe { launch.run(kernel, plan.grid, params) };
        }
        let causal = problem.config.causal;
        let whole = WalkParams {
            segments: at + plan.memory.states as u64,
            decays: at + plan.memory.decays as u64,
            z_segments: at + plan.memory.zs as u64,
            ..*params
        };
        let states = WalkParams {
            mode: if causal { Mode::States } else { Mode::All } as i32,
            ..whole
        };
        // SAFETY: as above.
        unsafe { launch.run(kernel, plan.grid, &states) }?;
        let layer = whole.layer;
        let last = |states| if causal { States::default() } else { states };
        let carry = CarryParams {
            initial: whole.initial,
            last: last(whole.last),
            cu_seqlens: layer.cu_seqlens,
            segments: whole.segments,
            decays: whole.decays,
            head_size: problem.head_size() as i64,
            steps: layer.steps,
            heads: layer.heads,
            dv: layer.dv,
            segment: layer.segment,
            decays_of_head: problem.decays_of_head() as i32, // at most dk
            all: (!causal).into(),
        };
        let grid = Plan::grid_of_carry(problem, problem.head_size());
        // SAFETY: as above; it reads what the kernel before it wrote.
        unsafe { launch.run(&self.carry, grid, &carry) }?;
        if whole.normalize != 0 {
            let carry = CarryParams {
                initial: whole.initial_z,
                last: last(whole.last_z),
                segments: whole.z_segments,
                head_size: problem.dk as i64,
                dv: 1,
                ..carry
            };
            let grid = Plan::grid_of_carry(problem, problem.dk);
            // SAFETY: as above.
            unsafe { launch.run(&self.carry, grid, &carry) }?;
        }
        let outputs = WalkParams {
            mode: if causal { Mode::Whole } else { Mode::Read } as i32,
            ..whole
        };
        // SAFETY: as above.
        unsafe { launch.run(kernel, plan.grid, &outputs) }
    }
}
