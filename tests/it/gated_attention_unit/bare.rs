//! One problem for the kernel of attention and one for that of gradients, without the library around them.

use cuda_emulator::Fault;
use half::f16;
use seqmix::abi::gated_attention_unit::{AttendParams, GradientParams};
use seqmix::reference::gated_attention_unit as reference;

use super::gradients::{self, dout};
use super::{CASE, Case, Inputs};
use crate::bare::{Arguments, Bare, Buffers};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};
use crate::planted::Problem;

const DZ: usize = 72;
const DV: usize = 40;
const STEPS: usize = 200;
const CHUNK: usize = 128;

/// The tiles of rows, of which neither the last one nor the last chunk is full.
const TILES: usize = 4;

const MIXED: Case = Case {
    seqlen: STEPS,
    dz: DZ,
    dv: DV,
    chunk: Some(CHUNK),
    ..CASE
};

/// More steps than there are: the kernels have to clamp them.
const CU_SEQLENS: [i32; 2] = [0, i32::MAX];

/// Sets what both kernels are told of a unit.
fn set_unit(arguments: &mut Arguments, buffers: &Buffers, inputs: &Inputs<f16>) {
    arguments.set("layer.z.at", buffers.upload(&inputs.z));
    arguments.set("layer.z.step_stride", DZ as i64);
    arguments.set("layer.cu_seqlens", buffers.upload(&CU_SEQLENS));
    arguments.set("layer.bias", buffers.upload(&inputs.bias));
    let sizes = [
        ("sequences", 1),
        ("steps", STEPS),
        ("dz", DZ),
        ("dv", DV),
        ("chunk", CHUNK),
        ("distances", CHUNK),
        ("causal", 1),
    ];
    for (name, size) in sizes {
        arguments.set(&format!("layer.{name}"), size as i32);
    }
    for name in ["scale", "linear_scale"] {
        arguments.set(&format!("layer.{name}"), MIXED.scale);
    }
    for (name, at) in [("rows", 0), ("columns", 2), ("linear", 4)] {
        for (vector, at) in [("gamma", at), ("beta", at + 1)] {
            let address = buffers.upload(&inputs.vectors[at]);
            arguments.set(&format!("{name}.{vector}"), address);
        }
    }
    // of the first chunk, nobody reads what it meets
    let states = [vec![f16::NAN; DZ * DV], state_of_first_chunk(inputs)].concat();
    arguments.set("states", buffers.upload(&states));
    arguments.set("units", buffers.upload(&[f32::NAN, 1.0]));
}

/// What the second chunk meets.
fn state_of_first_chunk(inputs: &Inputs<f16>) -> Vec<f16> {
    let mut state = vec![0_f64; DZ * DV];
    for step in 0..CHUNK {
        for c in 0..DZ {
            let z = inputs.z[step * DZ + c].to_f64();
            let k = f64::from(inputs.vectors[6][c]) * z + f64::from(inputs.vectors[7][c]);
            for e in 0..DV {
                state[c * DV + e] += f16::round(k) * inputs.v[step * DV + e].to_f64();
            }
        }
    }
    state.into_iter().map(f16::from_f64).collect()
}

fn set_rows(arguments: &mut Arguments, name: &str, at: u64) {
    arguments.set(&format!("{name}.at"), at);
    arguments.set(&format!("{name}.step_stride"), DV as i64);
}

fn widen<T: Copy + Into<f64>>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

/// The forward kernel: two chunks, of which the second meets the state of the first.
pub(super) struct Attention {
    inputs: Inputs<f16>,
    expected: Vec<f64>,
    bound: Bound,
}

impl Attention {
    pub(super) fn new() -> Self {
        let inputs = MIXED.inputs::<f16>();
        let (expected, naive) = MIXED.reference(&inputs, |unit| {
            let naive = unit.run_rounded(f16::round).unwrap();
            (unit.run().unwrap(), naive)
        });
        Self {
            bound: bound::<f16>(&expected, &naive, DV).unwrap(),
            inputs,
            expected,
        }
    }
}

impl Problem for Attention {
    fn kernel(&self) -> &str {
        "gated_attention_unit_attend_f16_z128_v256"
    }

    fn grid(&self) -> [u32; 3] {
        [1, TILES as u32, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let buffers = Buffers::new();
        let mut arguments = Arguments::new(AttendParams::PARAMS);
        set_unit(&mut arguments, &buffers, &self.inputs);
        let out = buffers.output::<f16>(STEPS * DV);
        set_rows(&mut arguments, "out", out);
        set_rows(&mut arguments, "values", buffers.upload(&self.inputs.v));
        set_rows(&mut arguments, "gate", buffers.upload(&self.inputs.u));
        bare.launch(&buffers, &arguments.bytes)?;
        let found = widen(&buffers.download::<f16>(out, STEPS * DV));
        Ok(vec![Verdict::of(&found, &self.expected, DV, self.bound)])
    }
}

/// The kernel of gradients, of queries: the sums of its tiles are judged, which are made of all that it computes.
pub(super) struct Queries {
    inputs: Inputs<f16>,
    da: Vec<f16>,
    expected: Vec<reference::Gradients>,
}

impl Queries {
    pub(super) fn new() -> Self {
        let inputs = MIXED.inputs::<f16>();
        let dout = dout::<f16>(MIXED, 1.0);
        let products = dout.iter().zip(&inputs.u);
        Self {
            da: products
                .map(|(dout, u)| f16::from_f32(dout.to_f32() * u.to_f32()))
                .collect(),
            expected: gradients::expected(MIXED, &inputs, &dout).to_vec(),
            inputs,
        }
    }
}

impl Problem for Queries {
    fn kernel(&self) -> &str {
        "gated_attention_unit_gradients_f16_z128"
    }

    fn grid(&self) -> [u32; 3] {
        [1, TILES as u32, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        const BIASES: usize = 2 * CHUNK - 1;
        const SUMS: usize = 8 * DZ + BIASES;
        let buffers = Buffers::new();
        let mut arguments = Arguments::new(GradientParams::PARAMS);
        set_unit(&mut arguments, &buffers, &self.inputs);
        set_rows(&mut arguments, "left", buffers.upload(&self.da));
        set_rows(&mut arguments, "right", buffers.upload(&self.inputs.v));
        // what keys leave there, which nobody judges
        arguments.set("part", buffers.upload(&vec![0_f32; STEPS * DZ]));
        arguments.set("dz.at", buffers.output::<f16>(STEPS * DZ));
        arguments.set("dz.step_stride", DZ as i64);
        let sums = buffers.output::<f32>(TILES * SUMS);
        arguments.set("sums", sums);
        arguments.set("sums_of_tile", SUMS as i64);
        arguments.set("with_bias", 1_i32);
        bare.launch(&buffers, &arguments.bytes)?;

        let total = |column: usize, count: usize| -> Vec<f64> {
            let mut total = vec![0_f64; count];
            for tile in 0..TILES {
                let at = sums + (4 * (tile * SUMS + column)) as u64;
                let part = buffers.download::<f32>(at, count);
                total
                    .iter_mut()
                    .zip(part)
                    .for_each(|(sum, x)| *sum += f64::from(x));
            }
            total
        };
        let found = [
            ("quadratic.q.dgamma", total(0, DZ), DZ),
            ("quadratic.q.dbeta", total(DZ, DZ), DZ),
            ("linear.q.dgamma", total(4 * DZ, DZ), DZ),
            ("linear.q.dbeta", total(5 * DZ, DZ), DZ),
            ("dbias", total(8 * DZ, BIASES), BIASES),
        ];
        let judge = |(which, found, row): &(&str, Vec<f64>, usize)| {
            gradients::judge::<f16>(which, found, *row, &self.expected)
        };
        Ok(found.iter().map(judge).collect())
    }
}
