//! The linear recurrent unit: both passes only move memory.

use std::error::Error;
use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::lru::{Backward, Config, Forward, Inputs, Lru};
use seqmix::num_complex::Complex64;
use seqmix::reference::lru as reference;
use seqmix::{Dtype, Tensor, Workspace};

use crate::bench::{self, Work};
use crate::measure::{Bound, Verdict};
use crate::support::numbers;

/// What thousands of products in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 1e-4;

/// Bytes of a complex number of f32.
const NUMBER: usize = 8;

/// Both passes one after the other, in f32.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    batch: usize,
    seqlen: usize,
    states: usize,
}

impl bench::Shape for Shape {
    type Op = Lru;
    const CALL: &'static str = "lru/forward_backward";

    /// As the paper has them for the long range arena: few states and long sequences, and shorter ones of larger
    /// batches.
    fn timed() -> Vec<Self> {
        let sizes = [(1, 16_384, 256), (32, 2048, 256), (64, 1024, 384)];
        let of = |(batch, seqlen, states)| Self {
            batch,
            seqlen,
            states,
        };
        sizes.map(of).into()
    }

    fn counted() -> Vec<Self> {
        vec![Self {
            batch: 1,
            seqlen: 512,
            states: 128,
        }]
    }

    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn name(&self) -> String {
        format!("b{}_t{}_n{}", self.batch, self.seqlen, self.states)
    }

    /// x, states, then x, dstates and dx.
    fn work(&self) -> Work {
        let numbers = self.batch * self.seqlen * self.states;
        Work {
            operations: (36 * numbers) as u64,
            bytes: (5 * NUMBER * numbers) as u64,
        }
    }

    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn bench::Problem<Op = Lru>>, Box<dyn Error>> {
        Ok(Box::new(Unit::new(self, stream)?))
    }
}

/// A unit on the device, and the same numbers here.
struct Unit {
    shape: Shape,
    x: Tensor<f32, 4>,
    dstates: Tensor<f32, 4>,
    a: Tensor<f32, 2>,
    states: Tensor<f32, 4>,
    dx: Tensor<f32, 4>,
    da: Tensor<f32, 2>,
    workspace: Workspace,
    plan: String,
    /// x, dstates and a.
    host: [Vec<f32>; 3],
}

impl Unit {
    fn new(shape: Shape, stream: &Arc<CudaStream>) -> Result<Self, seqmix::Error> {
        let Shape {
            batch,
            seqlen,
            states,
        } = shape;
        let sizes = [batch, seqlen, states, 2];
        let count = sizes.iter().product();
        let [x, dstates] = [1, 2].map(|seed| numbers::<f32>(seed, count));
        // absolute values from 0.9 to nearly 1, angles of up to a few turns
        let a = numbers::<f32>(3, 2 * states).into_iter().enumerate();
        let a: Vec<f32> = a
            .map(|(at, x)| match at % 2 {
                0 => -0.02 * x.exp(),
                _ => 3.0 * x,
            })
            .collect();
        Ok(Self {
            shape,
            x: Tensor::from_host(stream, &x, sizes)?,
            dstates: Tensor::from_host(stream, &dstates, sizes)?,
            a: Tensor::from_host(stream, &a, [states, 2])?,
            states: Tensor::zeros(stream, sizes)?,
            dx: Tensor::zeros(stream, sizes)?,
            da: Tensor::zeros(stream, [states, 2])?,
            workspace: Workspace::new(stream),
            plan: String::new(),
            host: [x, dstates, a],
        })
    }

    /// The numbers of one state in a row of the batch.
    fn of_state(&self, parts: &[f32], row: usize, state: usize) -> Vec<Complex64> {
        let Shape { seqlen, states, .. } = self.shape;
        let at = |step: usize| 2 * ((row * seqlen + step) * states + state);
        let number = |at: usize| Complex64::new(parts[at].into(), parts[at + 1].into());
        (0..seqlen).map(|step| number(at(step))).collect()
    }
}

impl bench::Problem for Unit {
    type Op = Lru;

    fn queue(&mut self, op: &Lru, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let config = Config::default();
        let Self {
            x,
            dstates,
            a,
            states,
            dx,
            da,
            workspace,
            plan,
            ..
        } = self;
        let inputs = || Inputs {
            x: x.view(),
            a: a.view(),
            gamma: None,
            initial_state: None,
            cu_seqlens: None,
        };
        let forward = Forward {
            inputs: inputs(),
            states: states.view_mut(),
            final_state: None,
        };
        let backward = Backward {
            inputs: inputs(),
            dstates: dstates.view(),
            dfinal_state: None,
            dx: dx.view_mut(),
            da: Some(da.view_mut()),
            dgamma: None,
            dinitial_state: None,
        };
        if plan.is_empty() {
            let plans = [
                op.plan(config, &forward)?,
                op.backward_plan(config, &backward)?,
            ];
            for plan in plans {
                workspace.reserve(plan.workspace_bytes())?;
            }
            *plan = plans.map(|plan| plan.to_string()).join("; ");
        }
        op.forward(stream, config, forward, workspace)?;
        Ok(op.backward(stream, config, backward, workspace)?)
    }

    /// Compares a few states, and what belongs to them, with the reference.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        let Shape {
            batch,
            seqlen,
            states,
        } = self.shape;
        let (out, dx) = (self.states.to_host(stream)?, self.dx.to_host(stream)?);
        let [x, dstates, a] = &self.host;
        for (row, state) in [(0, 0), (batch / 2, states / 3), (batch - 1, states - 1)] {
            let a = [Complex64::new(a[2 * state].into(), a[2 * state + 1].into())];
            let forward = reference::Forward {
                batch: 1,
                seqlen,
                dstate: 1,
                a: &a,
                x: &self.of_state(x, row, state),
                ..reference::Forward::default()
            };
            let backward = reference::Backward {
                forward,
                dstates: &self.of_state(dstates, row, state),
                dfinal_state: None,
            };
            let expected = [forward.run()?.states, backward.run()?.dx];
            for (found, expected) in [&out, &dx].into_iter().zip(expected) {
                let parts =
                    |x: &[Complex64]| -> Vec<f64> { x.iter().flat_map(|x| [x.re, x.im]).collect() };
                let (found, expected) =
                    (parts(&self.of_state(found, row, state)), parts(&expected));
                let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
                let within = Bound {
                    max_abs: ARITHMETIC * largest,
                    rel_l2: None,
                    row_rel_l2: None,
                };
                let verdict = Verdict::of(&found, &expected, found.len(), within);
                if !verdict.pass() {
                    return Err(format!("state {state} of row {row}: {verdict}").into());
                }
            }
        }
        Ok(())
    }

    fn plan(&self) -> Option<&str> {
        Some(&self.plan)
    }
}
