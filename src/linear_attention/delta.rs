//! The delta rule: its kernels, and what is special about its gradients. Once it is known what each step wrote, they
//! are walks by the linear rule.

use std::sync::Arc;

use cudarc::driver::{CudaContext, DeviceRepr};

use super::backward_ends::Ends;
use super::backward_walks::{Call, of_steps};
use super::delta_segments::{Cut, transitions};
use super::load;
use super::plan::first_fit;
use super::problem::Problem;
use crate::abi::linear_attention::{
    self as abi, CHUNK, DELTA, DELTA_GRADIENTS, DTYPES, DeltaCarryParams, DeltaGradientParams,
    DeltaParams, GradientWalkParams, Mode, Rows, SUM_BETAS_STEPS, States, SumBetasParams, Walk,
    WalkParams,
};
use crate::driver::Device;
use crate::error::Result;
use crate::launch::Kernel;

/// Alignment in the workspace: a line of the L2 cache.
const ALIGNMENT: usize = 128;

/// The kernels of the delta rule.
#[derive(Debug)]
pub(super) struct Delta {
    /// The rows of the table that the device can run, and their kernels.
    pub(super) rows: Vec<Walk>,
    pub(super) walks: Vec<Kernel<DeltaParams>>,
    /// The same of the walks that compute gradients.
    gradient_rows: Vec<Walk>,
    gradients: Vec<Kernel<DeltaGradientParams>>,
    pub(super) carry: Kernel<DeltaCarryParams>,
    /// In the order of [`DTYPES`].
    sum_betas: Vec<Kernel<SumBetasParams>>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for DeltaParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for DeltaGradientParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for DeltaCarryParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SumBetasParams {}

impl Delta {
    pub(super) fn load(ctx: &Arc<CudaContext>, device: &Device) -> Result<Self> {
        let fitting = |rows: &[Walk], bytes: fn(&Walk) -> usize| -> Vec<Walk> {
            let fits = |row: &&Walk| bytes(row) <= device.shared_bytes;
            rows.iter().filter(fits).copied().collect()
        };
        let rows = fitting(DELTA, Walk::delta_shared_bytes);
        let gradient_rows = fitting(DELTA_GRADIENTS, Walk::delta_gradients_shared_bytes);
        let walks: Result<_> = rows.iter().map(|row| load(ctx, &row.delta())).collect();
        let gradients = gradient_rows
            .iter()
            .map(|row| load(ctx, &row.delta_gradients()));
        let gradients: Result<_> = gradients.collect();
        let sum_betas = DTYPES
            .iter()
            .map(|&dtype| load(ctx, &abi::sum_betas(dtype)));
        let sum_betas: Result<_> = sum_betas.collect();
        Ok(Self {
            walks: walks?,
            gradients: gradients?,
            carry: load(ctx, &abi::delta_carry())?,
            sum_betas: sum_betas?,
            rows,
            gradient_rows,
        })
    }
}

/// How the walks of the delta rule run in a backward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DeltaPlan {
    /// Of the walk for what steps wrote, and of that for its gradients: indices in the rows of [`Delta`].
    rows: [usize; 2],
    /// Channels of the values of their blocks.
    widths: [usize; 2],
    /// Warps that share the channels of the values in the second walk.
    warps: usize,
    memory: DeltaMemory,
}

/// Where what the kernels tell each other lies, in bytes from the start of the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct DeltaMemory {
    /// `[batch, steps, heads, dv]`: what each step wrote, and that before it was multiplied by beta.
    updates: usize,
    errors: usize,
    /// As these: the gradient of the values, if heads share them.
    values: usize,
    /// `[batch, steps, heads, dk]` in f32: what looking up adds to the gradient of the keys.
    lookups: usize,
    /// `[batch, steps, heads]` in f32: products of a step's own that do not count.
    own: usize,
    /// `[warp, batch, steps, heads]` in f32: parts of the gradient of beta.
    betas: usize,
    /// `[slot, head, dk, dk]` in f32: what segments multiply the state before them by, or its gradient behind them.
    transitions: usize,
}

impl DeltaPlan {
    /// Plans `problem`, in a workspace of `bytes` so far, with `slots` for segments.
    pub(super) fn new(
        problem: &Problem,
        delta: &Delta,
        slots: usize,
        bytes: &mut usize,
    ) -> Result<Self> {
        let updates = first_fit(problem, &delta.rows)?;
        let gradients = first_fit(problem, &delta.gradient_rows)?;
        let (row, gradient_row) = (&delta.rows[updates], &delta.gradient_rows[gradients]);
        let warps = gradient_row.warps_of(problem.dv);
        let Problem { dk, dv, heads, .. } = *problem;
        let mut take_bytes = |size: usize| {
            let at = *bytes;
            let lines = size.div_ceil(ALIGNMENT);
            *bytes = at.saturating_add(lines.saturating_mul(ALIGNMENT));
            at
        };
        let transitions = take_bytes(transitions(problem, slots).saturating_mul(4));
        let mut take = |sizes: &[usize]| {
            let steps = problem.batch.saturating_mul(problem.steps);
            let steps = steps.saturating_mul(heads);
            take_bytes(sizes.iter().fold(steps, |n, &x| n.saturating_mul(x)))
        };
        let element = problem.dtype.bytes();
        let shared = problem.heads_v != heads;
        Ok(Self {
            rows: [updates, gradients],
            widths: [row.width(), gradient_row.width()],
            warps,
            memory: DeltaMemory {
                updates: take(&[element, dv]),
                errors: take(&[element, dv]),
                values: if shared { take(&[element, dv]) } else { 0 },
                lookups: take(&[4, dk]),
                own: take(&[4]),
                betas: take(&[4, warps]),
                transitions,
            },
        })
    }
}

/// What a backward pass has beside that of the linear rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeltaCall {
    pub(super) plan: DeltaPlan,
    /// `[batch, steps, heads]`
    pub(super) beta: Rows,
    /// As `beta`, or none.
    pub(super) dbeta: Rows,
}

impl Call<'_> {
    /// What looking up adds to the gradient of the keys, in f32; or none by the linear rule.
    pub(super) fn lookups(&self) -> Rows {
        match &self.delta {
            Some(delta) => {
                let at = self.at(delta.plan.memory.lookups);
                of_steps(self.problem, at, self.problem.dk)
            }
            None => Rows::default(),
        }
    }

    /// By what looking up multiplies the keys of a chunk, for decays of heads; or none by the linear rule.
    pub(super) fn lookup_pairs(&self) -> Rows {
        match &self.delta {
            Some(_) => of_steps(self.problem, self.at(self.plan.memory.pairs[1]), CHUNK),
            None => Rows::default(),
        }
    }

    /// Queues all walks of the delta rule.
    ///
    /// # Safety
    /// As [`Call::queue`].
    pub(super) unsafe fn walk_by_delta(&self, delta: &DeltaCall) -> Result<()> {
        let Ends {
            initial,
            dlast,
            dinitial,
            ..
        } = self.ends;
        let (problem, memory) = (self.problem, &delta.plan.memory);
        let of_values = |offset: usize| of_steps(problem, self.at(offset), problem.dv);
        let (updates, errors) = (of_values(memory.updates), of_values(memory.errors));
        let dv = match self.plan.parts[2] {
            true => of_values(memory.values),
            false => self.gradients[2],
        };
        // SAFETY: this function's own condition, here and below.
        unsafe { self.write_updates(delta, initial, updates, errors) }?;
        // SAFETY: as above.
        unsafe { self.gradients_of_updates(delta, errors, dv, [dlast, dinitial]) }?;

        let [of_q, of_k, _] = self.walks(&Ends {
            dinitial: States::default(),
            ..self.ends
        });
        let dq = GradientWalkParams {
            layer: abi::Layer {
                k: updates,
                ..of_q.layer
            },
            ..of_q
        };
        let dk = GradientWalkParams {
            layer: abi::Layer {
                q: updates,
                ..of_k.layer
            },
            ..of_k
        };
        // a look-up finds nothing of its own step
        let own = of_steps(problem, self.at(memory.own), 1);
        // what steps took off the values of later ones
        let taken = GradientWalkParams {
            layer: abi::Layer {
                k: dv,
                v: self.layer.k,
                ..dk.layer
            },
            own,
            initial: States::default(),
            // the other walk begins with all that later segments make
            segments: States::default(),
            parts: 2,
            weight: -1.0,
            ..dk
        };
        // what each step looked up
        let found = GradientWalkParams {
            layer: abi::Layer {
                q: dv,
                scale: -1.0,
                ..dq.layer
            },
            out: self.lookups(),
            own,
            pairs: match dq.pairs.at {
                0 => dq.pairs,
                _ => self.lookup_pairs(),
            },
            spans: 0,
            span_units: 0,
            parts: 1,
            ..dq
        };
        let kernel = &self.kernels.gradients.walks[self.plan.rows[0]];
        for walk in [dq, dk, taken, found] {
            // SAFETY: as above; it reads what the kernels before it wrote.
            unsafe { self.launch.run(kernel, self.plan.grids[0], &walk) }?;
        }
        Ok(())
    }

    /// Queues the walk that finds what each step wrote.
    ///
    /// # Safety
    /// As [`Call::queue`].
    unsafe fn write_updates(
        &self,
        delta: &DeltaCall,
        initial: States,
        updates: Rows,
        errors: Rows,
    ) -> Result<()> {
        let params = |walk, errors, identity| DeltaParams {
            walk,
            beta: delta.beta,
            errors,
            identity: i32::from(identity),
            padding: 0,
        };
        let walk = WalkParams {
            layer: self.layer,
            out: updates,
            initial,
            segments: self.segments(0),
            mode: Mode::Whole as i32,
            ..WalkParams::default()
        };
        let kernels = &self.kernels.delta;
        let kernel = &kernels.walks[delta.plan.rows[0]];
        let none = Rows::default();
        // SAFETY: this function's own condition, here and below.
        unsafe {
            self.find_starts(delta, 0, kernel, &walk, |walk, identity| {
                params(walk, none, identity)
            })
        }?;
        let grid = self.grid_of_delta(delta, 0);
        // SAFETY: as above.
        unsafe { self.launch.run(kernel, grid, &params(walk, errors, false)) }
    }

    /// The grid of the walk for what steps wrote (0), or of that for its gradients (1).
    fn grid_of_delta(&self, delta: &DeltaCall, which: usize) -> [usize; 3] {
        let Problem {
            heads,
            sequences,
            dv,
            ..
        } = *self.problem;
        let slices = dv.div_ceil(delta.plan.widths[which]);
        let [_, count, _] = self.plan.grids[0];
        [heads * slices, count, sequences]
    }

    /// Address of the states (0) or gradients of states (1) that segments begin with, or 0.
    fn segments(&self, which: usize) -> u64 {
        match self.plan.passes_states() {
            true => self.at(self.plan.memory.states[which]),
            false => 0,
        }
    }

    /// Queues what finds the states that the segments of one of these walks begin with, if sequences are cut.
    ///
    /// # Safety
    /// As [`Call::queue`].
    unsafe fn find_starts<P: DeviceRepr>(
        &self,
        delta: &DeltaCall,
        which: usize,
        kernel: &Kernel<P>,
        walk: &WalkParams,
        params: impl Fn(WalkParams, bool) -> P,
    ) -> Result<()> {
        if walk.segments == 0 {
            return Ok(());
        }
        let [_, count, _] = self.plan.grids[0];
        let cut = Cut {
            walk,
            transitions: self.at(delta.plan.memory.transitions),
            width: delta.plan.widths[which],
            count,
        };
        let kernels = &self.kernels.delta;
        // SAFETY: this function's own condition.
        unsafe { kernels.find_starts(self.launch, self.problem, kernel, cut, params) }
    }

    /// Queues the gradients of what each step wrote: those of the values, of beta and of the initial states.
    ///
    /// # Safety
    /// As [`Call::queue`], after [`Call::write_updates`].
    unsafe fn gradients_of_updates(
        &self,
        delta: &DeltaCall,
        errors: Rows,
        dv: Rows,
        [dlast, dinitial]: [States; 2],
    ) -> Result<()> {
        let (problem, layer) = (self.problem, self.layer);
        let DeltaPlan {
            rows: [_, row],
            warps,
            memory,
            ..
        } = delta.plan;
        let betas = of_steps(problem, self.at(memory.betas), 1);
        let betas_stride = (problem.batch * problem.steps * problem.heads) as i64; // in the workspace
        let params = |walk, errors, identity| DeltaGradientParams {
            delta: DeltaParams {
                walk,
                beta: delta.beta,
                errors,
                identity: i32::from(identity),
                padding: 0,
            },
            parts: match self.plan.parts[2] {
                true => of_steps(problem, self.at(self.plan.memory.parts[2]), problem.dv),
                false => Rows::default(),
            },
            betas,
            betas_stride,
        };
        let walk = WalkParams {
            layer: abi::Layer {
                q: layer.k,
                k: layer.q,
                v: self.dout,
                reversed: 1,
                ..layer
            },
            out: dv,
            initial: dlast,
            last: dinitial,
            segments: self.segments(1),
            mode: Mode::Whole as i32,
            ..WalkParams::default()
        };
        let kernels = &self.kernels.delta;
        let kernel = &kernels.gradients[row];
        let none = Rows::default();
        // SAFETY: this function's own condition, here and below.
        unsafe {
            self.find_starts(delta, 1, kernel, &walk, |walk, identity| {
                params(walk, none, identity)
            })
        }?;
        let grid = self.grid_of_delta(delta, 1);
        // SAFETY: as above.
        unsafe { self.launch.run(kernel, grid, &params(walk, errors, false)) }?;
        if delta.dbeta.at == 0 || problem.steps == 0 {
            return Ok(());
        }
        let params = SumBetasParams {
            parts: betas,
            out: delta.dbeta,
            part_stride: betas_stride,
            cu_seqlens: layer.cu_seqlens,
            steps: layer.steps,
            heads: layer.heads,
            count: warps as i32, // of channels, which fit
            padding: 0,
        };
        let grid = [
            problem.steps.div_ceil(SUM_BETAS_STEPS),
            1,
            problem.sequences,
        ];
        // SAFETY: as above; it reads what the kernel before it wrote.
        unsafe {
            self.launch
                .run(&kernels.sum_betas[self.dtype()], grid, &params)
        }
    }
}
