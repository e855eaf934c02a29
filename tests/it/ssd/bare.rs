//! One problem for the forward kernel and one for that of gradients, without the library around them.

use bytemuck::Pod;
use cuda_emulator::Fault;
use half::f16;
use seqmix::abi::ssd::{ForwardParams, GradientParams};
use seqmix::reference::ssd as reference;

use super::gradients::{self, Given};
use super::{CASE, Case, Inputs, SkipKind};
use crate::bare::{Arguments, Bare, Buffers};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};
use crate::planted::Problem;

/// One head whose channels are two slices, of which the second is not full, and neither is the last chunk.
const HEADDIM: usize = 104;
const DSTATE: usize = 64;

const HEAD: Case = Case {
    batch: 1,
    heads: 1,
    headdim: HEADDIM,
    dstate: DSTATE,
    z: true,
    skip: SkipKind::PerChannel,
    ..CASE
};

/// More steps than there are: the kernel has to clamp them.
const CU_SEQLENS: [i32; 2] = [0, i32::MAX];

/// Sets what both kernels are told of a layer.
fn set_layer(arguments: &mut Arguments, buffers: &Buffers, case: Case, inputs: &Inputs<f16>) {
    let mut rows = |name: &str, at: u64, stride: usize| {
        arguments.set(&format!("layer.{name}.at"), at);
        arguments.set(&format!("layer.{name}.step_stride"), stride as i64);
    };
    rows("x", buffers.upload(&inputs.x), HEADDIM);
    rows("dt", buffers.upload(&inputs.dt), 1);
    rows("b", buffers.upload(&inputs.b), DSTATE);
    rows("c", buffers.upload(&inputs.c), DSTATE);
    rows("z", buffers.upload(&inputs.z), HEADDIM);
    arguments.set("layer.a", buffers.upload(&inputs.a));
    arguments.set("layer.dt_bias", buffers.upload(&inputs.dt_bias));
    arguments.set("layer.d", buffers.upload(&inputs.d));
    arguments.set("layer.d_channel_stride", 1_i64);
    arguments.set("layer.cu_seqlens", buffers.upload(&CU_SEQLENS));
    let sizes = [
        ("steps", case.seqlen),
        ("heads", 1),
        ("heads_per_group", 1),
        ("headdim", HEADDIM),
        ("dstate", DSTATE),
        ("segment", case.seqlen.next_multiple_of(64)),
        ("softplus", 1),
    ];
    for (name, size) in sizes {
        arguments.set(&format!("layer.{name}"), size as i32);
    }
    arguments.set("layer.dt_max", f32::INFINITY);
}

fn widen<T: Copy + Into<f64>>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

/// A layer of two chunks, with an initial and a final state.
pub(super) struct Layer {
    case: Case,
    inputs: Inputs<f16>,
    expected: reference::Output,
    bounds: [Bound; 2],
}

impl Layer {
    pub(super) fn new() -> Self {
        let case = Case {
            seqlen: 100,
            ..HEAD
        };
        let inputs = case.inputs::<f16>();
        let (expected, naive) = case.reference(&inputs, |layer| {
            let naive = layer.run_rounded(f16::round).unwrap();
            (layer.run().unwrap(), naive)
        });
        let bounds = [
            bound::<f16>(&expected.out, &naive.out, HEADDIM).unwrap(),
            bound::<f16>(&expected.final_states, &naive.final_states, DSTATE).unwrap(),
        ];
        Self {
            case,
            inputs,
            expected,
            bounds,
        }
    }
}

impl Problem for Layer {
    fn kernel(&self) -> &str {
        "ssd_forward_f16_n64"
    }

    fn grid(&self) -> [u32; 3] {
        [1, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let buffers = Buffers::new();
        let mut arguments = Arguments::new(ForwardParams::PARAMS);
        set_layer(&mut arguments, &buffers, self.case, &self.inputs);
        let (outputs, states) = (self.case.seqlen * HEADDIM, HEADDIM * DSTATE);
        let out = buffers.output::<f16>(outputs);
        let last = buffers.output::<f32>(states);
        arguments.set("out.at", out);
        arguments.set("out.step_stride", HEADDIM as i64);
        let initial = buffers.upload(&self.inputs.initial_states);
        for (name, at) in [("initial", initial), ("last", last)] {
            arguments.set(&format!("{name}.at"), at);
            arguments.set(&format!("{name}.channel_stride"), DSTATE as i64);
        }
        bare.launch(&buffers, &arguments.bytes)?;

        let found = widen(&buffers.download::<f16>(out, outputs));
        let found_states = widen(&buffers.download::<f32>(last, states));
        let expected = &self.expected;
        Ok(vec![
            Verdict::of(&found, &expected.out, HEADDIM, self.bounds[0]),
            Verdict::of(
                &found_states,
                &expected.final_states,
                DSTATE,
                self.bounds[1],
            ),
        ])
    }
}

/// One chunk, with a state before it and the gradient of the state after it, both in f16.
pub(super) struct Chunk {
    case: Case,
    inputs: Inputs<f16>,
    given: Given<f16>,
    expected: Vec<reference::Gradients>,
}

impl Chunk {
    pub(super) fn new() -> Self {
        let case = Case { seqlen: 50, ..HEAD };
        let (mut inputs, mut given) = (case.inputs::<f16>(), Given::new(case, 1.0));
        for states in [&mut inputs.initial_states, &mut given.dfinal_states] {
            states
                .iter_mut()
                .for_each(|x| *x = f16::from_f32(*x).to_f32());
        }
        Self {
            expected: gradients::expected(case, &inputs, &given).to_vec(),
            case,
            inputs,
            given,
        }
    }
}

impl Problem for Chunk {
    fn kernel(&self) -> &str {
        "ssd_gradients_f16_n64"
    }

    fn grid(&self) -> [u32; 3] {
        [1, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        const SUMS: usize = 2 + HEADDIM;
        let buffers = Buffers::new();
        let mut arguments = Arguments::new(GradientParams::PARAMS);
        set_layer(&mut arguments, &buffers, self.case, &self.inputs);
        let steps = self.case.seqlen;
        let mut rows = |name: &str, at: u64, stride: usize| {
            arguments.set(&format!("{name}.at"), at);
            arguments.set(&format!("{name}.step_stride"), stride as i64);
            at
        };
        let inputs = steps * HEADDIM;
        rows("dout", buffers.upload(&self.given.dout), HEADDIM);
        let dx = rows("dx", buffers.output::<f16>(inputs), HEADDIM);
        let dz = rows("dz", buffers.output::<f16>(inputs), HEADDIM);
        let ddt = rows("ddt", buffers.output::<f16>(steps), 1);
        let halves = |states: &[f32]| -> Vec<f16> {
            states.iter().map(|&state| f16::from_f32(state)).collect()
        };
        let (states, gradients) = (&self.inputs.initial_states, &self.given.dfinal_states);
        // a summand for 16 channels of each of two slices
        let mut dots = [0_f32; 8];
        for (at, (state, gradient)) in states.iter().zip(gradients).enumerate() {
            dots[at / DSTATE / 16] += state * gradient;
        }
        let coefficients = buffers.output::<f32>(2 * 64 * DSTATE);
        let sums = buffers.output::<f32>(SUMS);
        let addresses = [
            ("states", buffers.upload(&halves(states))),
            ("state_units", buffers.upload(&[1_f32; 2])),
            ("gradients", buffers.upload(&halves(gradients))),
            ("gradient_units", buffers.upload(&[1_f32; 2])),
            ("dots", buffers.upload(&dots)),
            ("coefficients", coefficients),
            ("sums", sums),
        ];
        for (name, address) in addresses {
            arguments.set(name, address);
        }
        arguments.set("chunk_slots", 1_i64);
        arguments.set("heads_per_part", 1_i32);
        arguments.set("sums_of_head", SUMS as i32);
        bare.launch(&buffers, &arguments.bytes)?;

        fn fetch<T: Pod + Into<f64>>(buffers: &Buffers, at: u64, count: usize) -> Vec<f64> {
            widen(&buffers.download::<T>(at, count))
        }
        let coefficients = fetch::<f32>(&buffers, coefficients, 2 * 64 * DSTATE);
        let (db, dc) = coefficients.split_at(64 * DSTATE);
        let sums = fetch::<f32>(&buffers, sums, SUMS);
        let found = [
            ("dx", fetch::<f16>(&buffers, dx, inputs), HEADDIM),
            ("dz", fetch::<f16>(&buffers, dz, inputs), HEADDIM),
            ("ddt", fetch::<f16>(&buffers, ddt, steps), 1),
            ("db", db[..steps * DSTATE].to_vec(), DSTATE),
            ("dc", dc[..steps * DSTATE].to_vec(), DSTATE),
            ("da", vec![sums[0]], 1),
            ("ddt_bias", vec![sums[1]], 1),
            ("dd", sums[2..].to_vec(), HEADDIM),
        ];
        let judge = |(which, found, row): &(&str, Vec<f64>, usize)| {
            gradients::judge::<f16>(which, found, *row, &self.expected)
        };
        Ok(found.iter().map(judge).collect())
    }
}
