//! Step 5: a Mamba block. It reads a prompt at once, and then goes on token by token from the states that the prompt
//! left; the same tokens read all at once give the same outputs.
//!
//! ```text
//! x, z     = tokens W_in               an in-projection
//! u        = silu(conv(x))             a causal convolution over a few tokens
//! dt, B, C = u W_x,  delta = dt W_dt   what the scan does at each step depends on the input
//! y        = scan(u, delta, A, B, C, D) silu(z)
//! out      = y W_out                   an out-projection
//! ```
//!
//! ```sh
//! cargo run --example 05_mamba_block
//! ```

#[path = "shared/device.rs"]
mod device;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use half::bf16;
use seqmix::causal_conv1d::{self, Activation, CausalConv1d, Update};
use seqmix::cudarc::driver::{CudaContext, CudaStream};
use seqmix::gemm::{self, Gemm, Multiply};
use seqmix::selective_scan::{self, Coefficient, Inputs, SelectiveScan, Step, StepConfig};
use seqmix::state_space::{StepSizes, s4d_real};
use seqmix::{Tensor, TensorRef, Workspace};

/// Features of a token.
const MODEL: usize = 64;
/// Channels of the block.
const INNER: usize = 128;
/// States of a channel.
const STATES: usize = 16;
/// Numbers that step sizes are made of.
const RANK: usize = 4;
/// Tokens that the convolution sees.
const WIDTH: usize = 4;

const BATCH: usize = 2;
const PROMPT: usize = 100;
const TOKENS: usize = 110;

/// What outputs may differ by, as a share of the largest: a few roundings to bfloat16.
const TOLERANCE: f32 = 4.0 / 256.0;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The operations and the weights of a block.
struct Block {
    stream: Arc<CudaStream>,
    gemm: Gemm,
    conv: CausalConv1d,
    scan: SelectiveScan,
    w_in: Tensor<bf16, 2>,
    filter: Tensor<bf16, 2>,
    filter_bias: Tensor<bf16, 1>,
    w_x: Tensor<bf16, 2>,
    w_dt: Tensor<bf16, 2>,
    delta_bias: Tensor<f32, 1>,
    a: Tensor<f32, 2>,
    d: Tensor<f32, 1>,
    w_out: Tensor<bf16, 2>,
}

/// What a block knows of the tokens before.
struct State {
    /// `[batch, channels, width - 1]`: the last inputs of the convolution.
    conv: Tensor<bf16, 3>,
    /// `[batch, channels, states]`
    scan: Tensor<f32, 3>,
}

impl Block {
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let stream = context.default_stream();
        let matrix = |seed: u32, [rows, columns]: [usize; 2]| {
            let deviation = 1.0 / (rows as f32).sqrt();
            Tensor::from_host(
                &stream,
                &numbers(seed, rows * columns, deviation),
                [rows, columns],
            )
        };
        // A = -1, -2, ... of each channel, and step sizes from 0.001 to 0.1: how Mamba begins its training.
        let a: Vec<f32> = s4d_real(STATES).iter().map(|&a| a as f32).collect();
        let delta_bias = StepSizes::default().biases(INNER, 0)?;
        let delta_bias: Vec<f32> = delta_bias.iter().map(|&x| x as f32).collect();
        Ok(Self {
            gemm: Gemm::new(context)?,
            conv: CausalConv1d::new(context)?,
            scan: SelectiveScan::new(context)?,
            w_in: matrix(1, [MODEL, 2 * INNER])?,
            filter: Tensor::from_host(&stream, &numbers(2, INNER * WIDTH, 0.5), [INNER, WIDTH])?,
            filter_bias: Tensor::from_host(&stream, &numbers(3, INNER, 0.1), [INNER])?,
            w_x: matrix(4, [INNER, RANK + 2 * STATES])?,
            w_dt: matrix(5, [RANK, INNER])?,
            delta_bias: Tensor::from_host(&stream, &delta_bias, [INNER])?,
            a: Tensor::from_host(&stream, &a.repeat(INNER), [INNER, STATES])?,
            d: Tensor::from_host(&stream, &[1.0; INNER], [INNER])?,
            w_out: matrix(6, [INNER, MODEL])?,
            stream,
        })
    }

    /// `tokens weights`, of any number of tokens.
    fn project(
        &self,
        tokens: TensorRef<'_, bf16, 3>,
        weights: &Tensor<bf16, 2>,
    ) -> Result<Tensor<bf16, 3>> {
        let ([batch, count, _], [k, n]) = (tokens.shape(), weights.shape());
        let mut d = Tensor::zeros(&self.stream, [batch, count, n])?;
        // one matrix for the whole batch
        let weights = weights.view().as_strided([batch, k, n], [0, n, 1])?;
        let config = gemm::Config::default();
        let mut workspace = Workspace::new(&self.stream);
        let mut tensors = Multiply::new(tokens, weights, d.view_mut());
        let plan = self.gemm.plan(&self.stream, config, &mut tensors)?;
        workspace.reserve(plan.workspace_bytes())?;
        self.gemm
            .multiply(&self.stream, config, tensors, &mut workspace)?;
        Ok(d)
    }

    /// Reads all tokens of `[batch, count, model]`; returns the outputs, and what to go on from.
    fn read(&self, tokens: &Tensor<bf16, 3>) -> Result<(Tensor<bf16, 3>, State)> {
        let stream = &self.stream;
        let [batch, count, _] = tokens.shape();
        let mut state = State {
            conv: Tensor::zeros(stream, [batch, INNER, WIDTH - 1])?,
            scan: Tensor::zeros(stream, [batch, INNER, STATES])?,
        };
        // Token after token in memory; convolution and scan see channels first, as they are in formulas.
        let xz = self.project(tokens.view(), &self.w_in)?;
        let x = xz.view().narrow(2, 0..INNER)?.transposed();
        let z = xz.view().narrow(2, INNER..2 * INNER)?.transposed();

        let mut u = Tensor::<bf16, 3>::zeros(stream, [batch, count, INNER])?;
        let convolution = causal_conv1d::Forward {
            x,
            weight: self.filter.view(),
            bias: Some(self.filter_bias.view()),
            initial_states: None,
            cu_seqlens: None,
            out: u.view_mut().transposed(),
            final_states: Some(state.conv.view_mut()),
        };
        self.conv.forward(stream, SILU, convolution)?;

        let dbc = self.project(u.view(), &self.w_x)?;
        let delta = self.project(dbc.view().narrow(2, 0..RANK)?, &self.w_dt)?;
        let coefficient = |first: usize| {
            let part = dbc.view().narrow(2, first..first + STATES)?.transposed();
            let [batch_stride, state_stride, step_stride] = part.strides();
            let shape = [batch, 1, STATES, count]; // one group
            let strides = [batch_stride, 0, state_stride, step_stride];
            Ok::<_, seqmix::Error>(Coefficient::Variable(part.as_strided(shape, strides)?))
        };
        let mut y = Tensor::<bf16, 3>::zeros(stream, [batch, count, INNER])?;
        let inputs = Inputs {
            d: Some(self.d.view().into()),
            z: Some(z),
            delta_bias: Some(self.delta_bias.view().into()),
            ..Inputs::new(
                u.view().transposed(),
                delta.view().transposed(),
                self.a.view(),
                coefficient(RANK)?,
                coefficient(RANK + STATES)?,
            )
        };
        let mut scan = selective_scan::Forward {
            last_state: Some(state.scan.view_mut()),
            ..selective_scan::Forward::new(inputs, y.view_mut().transposed())
        };
        let config = selective_scan::Config {
            delta_softplus: true,
            ..selective_scan::Config::default()
        };
        let mut workspace = Workspace::new(stream);
        let plan = self.scan.plan(stream, config, &mut scan)?;
        workspace.reserve(plan.workspace_bytes())?;
        self.scan.forward(stream, config, scan, &mut workspace)?;
        Ok((self.project(y.view(), &self.w_out)?, state))
    }

    /// Reads one more token of each sequence, `[batch, 1, model]`.
    fn step(&self, token: TensorRef<'_, bf16, 3>, state: &mut State) -> Result<Tensor<bf16, 3>> {
        let stream = &self.stream;
        let batch = token.shape()[0];
        let xz = self.project(token, &self.w_in)?;
        // rows of xz hold x and z side by side
        let row = 2 * INNER;
        let x = xz.view().as_strided([batch, INNER], [row, 1])?;
        // the channels are one head, as is the way of Mamba-2
        let heads = [batch, 1, INNER];
        let z = xz
            .view()
            .narrow(2, INNER..row)?
            .as_strided(heads, [row, INNER, 1])?;

        let mut u = Tensor::<bf16, 3>::zeros(stream, heads)?;
        let update = Update {
            x,
            conv_state: state.conv.view_mut(),
            weight: self.filter.view(),
            bias: Some(self.filter_bias.view()),
            conv_state_indices: None,
            out: u.view_mut().as_strided([batch, INNER], [INNER, 1])?,
        };
        self.conv.update(stream, SILU, update)?;

        let dbc = self.project(u.view(), &self.w_x)?;
        let delta = self.project(dbc.view().narrow(2, 0..RANK)?, &self.w_dt)?;
        let [b, c] = [RANK, RANK + STATES].map(|at| dbc.view().narrow(2, at..at + STATES));
        let mut y = Tensor::<bf16, 3>::zeros(stream, heads)?;
        let size = INNER * STATES;
        let all = state.scan.view_mut();
        let step = Step {
            d: Some(self.d.view().as_strided([1, INNER], [INNER, 1])?.into()),
            z: Some(z),
            dt_bias: Some(
                self.delta_bias
                    .view()
                    .as_strided([1, INNER], [INNER, 1])?
                    .into(),
            ),
            ..Step::new(
                all.as_strided([batch, 1, INNER, STATES], [size, size, STATES, 1])?,
                (u.view(), delta.view()),
                self.a
                    .view()
                    .as_strided([1, INNER, STATES], [size, STATES, 1])?,
                (b?, c?),
                y.view_mut(),
            )
        };
        let config = StepConfig {
            dt_softplus: true,
            ..StepConfig::default()
        };
        self.scan.step(stream, config, step)?;
        self.project(y.view(), &self.w_out)
    }
}

const SILU: causal_conv1d::Config = causal_conv1d::Config {
    activation: Activation::Silu,
};

/// Numbers without a pattern, of this standard deviation.
fn numbers(seed: u32, count: usize, deviation: f32) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        // a xorshift generator (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    // a uniform number on [-1/2, 1/2] has the variance 1/12
    (0..count)
        .map(|_| bf16::from_f32(next() * 12_f32.sqrt() * deviation))
        .collect()
}

fn main() -> Result<ExitCode> {
    let (context, _) = device::open()?;
    let block = Block::new(&context)?;
    let stream = &block.stream;
    let tokens = numbers(7, BATCH * TOKENS * MODEL, 1.0);
    let tokens = Tensor::from_host(stream, &tokens, [BATCH, TOKENS, MODEL])?;
    let (whole, _) = block.read(&tokens)?;
    let whole = whole.to_host(stream)?;
    let largest = whole.iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max);

    let host = tokens.to_host(stream)?;
    let rows = host.chunks(TOKENS * MODEL);
    let prompt: Vec<bf16> = rows
        .flat_map(|row| row[..PROMPT * MODEL].to_vec())
        .collect();
    let prompt = Tensor::from_host(stream, &prompt, [BATCH, PROMPT, MODEL])?;
    let (_, mut state) = block.read(&prompt)?;
    println!(
        "a prompt of {PROMPT} tokens, and the largest difference of the outputs of each after it:"
    );
    let mut agree = true;
    for token in PROMPT..TOKENS {
        let next = tokens.view().narrow(1, token..token + 1)?;
        let out = block.step(next, &mut state)?.to_host(stream)?;
        let mut difference = 0.0_f32;
        for (i, out) in out.iter().enumerate() {
            let (row, feature) = (i / MODEL, i % MODEL);
            let expected = whole[(row * TOKENS + token) * MODEL + feature];
            difference = difference.max((out.to_f32() - expected.to_f32()).abs());
        }
        // also false for a NaN
        agree &= difference <= TOLERANCE * largest;
        println!("  token {token}: {difference:.5} of {largest:.3}");
    }
    println!(
        "prompt and steps {}",
        if agree { "agree" } else { "DIFFER" }
    );
    Ok(if agree {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
