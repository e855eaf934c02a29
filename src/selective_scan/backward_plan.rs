//! [`BackwardPlan`]: which kernels compute the gradients of a problem, and in how much workspace. Pure.

use std::fmt;

use super::plan::{self, Plan, aligned_bytes, blocks_of_group, total};
use super::problem::Problem;
use crate::abi::selective_scan::{Backward, Forward, STEP_SUMS_SIDE, Source};
use crate::driver::Device;
use crate::error::Result;

/// How the gradients of a scan run, and the workspace that they need.
///
/// ```text
/// selective_scan_forward_real_16, 4 blocks of 64 channels x 3 segments, 52224 bytes of workspace;
/// selective_scan_backward_real_16, 4 blocks of 64 channels x 3 segments, 52224 bytes of workspace;
/// 6398976 bytes in all
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardPlan {
    /// The kernel of the gradients.
    pub(super) main: Plan,
    /// The scan that computes the states again.
    pub(super) states: Option<Plan>,
    pub(super) parts: Parts,
}

/// Bytes of the parts of a workspace, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Parts {
    pub(super) segments: usize,
    pub(super) checkpoints: usize,
    pub(super) of_steps: usize,
    pub(super) of_states: usize,
    pub(super) of_channels: usize,
}

/// What a call has, and what it wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    /// The states that the forward pass kept.
    pub(super) states: bool,
    /// Gradients of B or C that differ from step to step.
    pub(super) of_steps: bool,
}

impl BackwardPlan {
    /// Bytes that the call needs of its [`Workspace`](crate::Workspace).
    pub fn workspace_bytes(&self) -> usize {
        let Parts {
            segments,
            checkpoints,
            of_steps,
            of_states,
            of_channels,
        } = self.parts;
        total([segments, checkpoints, of_steps, of_states, of_channels])
    }

    /// Parts of each sequence whose gradients are computed side by side.
    pub fn segments(&self) -> usize {
        self.main.segments
    }

    /// Plans `problem` with the first that can run it of the rows that scan, and of those that compute gradients.
    pub(super) fn new(
        problem: &Problem,
        (rows, backward_rows): (&[Forward], &[Backward]),
        device: &Device,
        given: Given,
    ) -> Result<Self> {
        let main = Plan::backward(problem, backward_rows, device)?;
        let states = if given.states || problem.is_empty() || problem.seqlen == 0 {
            None
        } else {
            Some(Plan::forward(problem, rows, device)?)
        };
        // all are counted before one is queued
        plan::room_for(problem, main.blocks)?;
        plan::room_for(problem, step_sums_blocks(problem))?;
        let interval = plan::interval(problem, backward_rows)?;
        let blocks = blocks_of_group(problem, main.channels) * problem.groups;
        let rows = (problem.sequences * problem.dim).saturating_mul(main.segments);
        let gradients = match problem.source {
            Source::Variable => 1,
            Source::Any => 3,
        };
        let bytes_of_states = states.as_ref().map_or(0, |plan| plan.workspace);
        let parts = Parts {
            segments: bytes_of_states.max(main.workspace),
            checkpoints: match &states {
                Some(_) => bytes_of(problem.checkpoint_shape(interval)),
                None => 0,
            },
            of_steps: match given.of_steps {
                true => bytes_of([problem.batch, blocks, problem.seqlen, 2, problem.states]),
                false => 0,
            },
            of_states: bytes_of([gradients, rows, problem.states]),
            of_channels: bytes_of([2, rows]),
        };
        Ok(Self {
            main,
            states,
            parts,
        })
    }
}

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(states) = &self.states {
            write!(f, "{states}; ")?;
        }
        let bytes = self.workspace_bytes();
        write!(f, "{}; {bytes} bytes in all", self.main)
    }
}

/// Blocks of the kernel that adds dB and dC up.
pub(super) fn step_sums_blocks(problem: &Problem) -> usize {
    let [steps, states] =
        [problem.seqlen, problem.states].map(|size| size.div_ceil(STEP_SUMS_SIDE));
    product([2, steps, states, problem.groups, problem.batch])
}

/// Bytes of floats of this shape, up to where the next part may begin.
fn bytes_of<const N: usize>(shape: [usize; N]) -> usize {
    aligned_bytes(product(shape))
}

/// How many there are; the most there can be if they are more.
fn product<const N: usize>(shape: [usize; N]) -> usize {
    match shape.contains(&0) {
        true => 0,
        false => shape.into_iter().fold(1, usize::saturating_mul),
    }
}
