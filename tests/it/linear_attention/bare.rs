//! One problem for a kernel with decays of each step and one for that of each channel, without the library around them.

use cuda_emulator::Fault;
use half::f16;
use seqmix::abi::linear_attention::WalkParams;
use seqmix::reference::linear_attention as reference;

use super::layer::{CASE, Case, Fades, Inputs, NORMALIZED, bounds};
use crate::bare::{Arguments, Bare, Buffers};
use crate::measure::{Bound, Verdict};
use crate::naive::Number;
use crate::planted::Problem;

/// More steps than there are: the kernel has to clamp them.
const CU_SEQLENS: [i32; 2] = [0, i32::MAX];

/// One head of two tiles, neither of which is full: not in its steps, nor in its channels.
pub(super) struct Layer {
    kernel: &'static str,
    case: Case,
    inputs: Inputs<f16>,
    /// Whether it walks from the last step to the first.
    reversed: bool,
    expected: reference::Output,
    bounds: [Bound; 3],
}

impl Layer {
    /// The kernel that takes decays of each step, and divides outputs.
    pub(super) fn step() -> Self {
        let case = Case {
            config: NORMALIZED,
            ..CASE
        };
        Self::new("linear_attention_walk_step_f16_n64", case, false)
    }

    /// The one that takes those of each channel.
    pub(super) fn channel() -> Self {
        let case = Case {
            decay: Fades::PerChannel,
            ..CASE
        };
        Self::new("linear_attention_walk_channel_f16_n64", case, false)
    }

    /// The same from the last step to the first, as gradients go.
    pub(super) fn reversed(self) -> Self {
        Self::new(self.kernel, self.case, true)
    }

    fn new(kernel: &'static str, case: Case, reversed: bool) -> Self {
        let case = Case {
            seqlen: 100,
            heads: 1,
            shared: [1; 3],
            dk: 64,
            dv: 40,
            ..case
        };
        let inputs = case.inputs::<f16>();
        let chunks = reference::Chunks {
            chunk: 16,
            sub_chunk: 16,
        };
        let in_order = match reversed {
            true => &backwards(case, &inputs),
            false => &inputs,
        };
        let (mut expected, naive) = case.reference(in_order, |layer| {
            let naive = layer.run_chunked_rounded(chunks, f16::round).unwrap();
            (layer.run().unwrap(), naive)
        });
        let bounds = bounds::<f16>(case, &expected, &naive);
        if reversed {
            turn(case, &inputs, &mut expected);
        }
        Self {
            kernel,
            case,
            inputs,
            reversed,
            expected,
            bounds,
        }
    }
}

/// Rows of `width`, the last one first.
fn flipped<T: Copy>(rows: &[T], width: usize) -> Vec<T> {
    rows.chunks(width).rev().flatten().copied().collect()
}

/// What a layer of one head that is walked over from its last step to its first is in the order of the walk: a step's
/// decay comes after it, so that the first one has none and each other one that of the step before.
fn backwards(case: Case, inputs: &Inputs<f16>) -> Inputs<f16> {
    let channels = inputs.decay.len() / case.seqlen;
    let mut decay = flipped(&inputs.decay, channels);
    decay.truncate(decay.len() - channels);
    Inputs {
        q: flipped(&inputs.q, case.dk),
        k: flipped(&inputs.k, case.dk),
        v: flipped(&inputs.v, case.dv),
        decay: [vec![0.0; channels], decay].concat(),
        bonus: inputs.bonus.clone(),
        initial: inputs.initial.clone(),
        initial_z: inputs.initial_z.clone(),
    }
}

/// Its results as the kernel returns them: in the order of steps, and with the decay behind the walk.
fn turn(case: Case, inputs: &Inputs<f16>, expected: &mut reference::Output) {
    let channels = inputs.decay.len() / case.seqlen;
    let decay = |key: usize| f64::from(inputs.decay[key % channels]).exp();
    expected.out = flipped(&expected.out, case.dv);
    for (key, row) in expected.final_state.chunks_mut(case.dv).enumerate() {
        row.iter_mut().for_each(|x| *x *= decay(key));
    }
    for (key, z) in expected.final_z.iter_mut().flatten().enumerate() {
        *z *= decay(key);
    }
}

impl Problem for Layer {
    fn kernel(&self) -> &str {
        self.kernel
    }

    fn grid(&self) -> [u32; 3] {
        [1, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let Case { seqlen, dk, dv, .. } = self.case;
        let buffers = Buffers::new();
        let mut arguments = Arguments::new(WalkParams::PARAMS);
        let out = buffers.output::<f16>(seqlen * dv);
        let rows = [
            ("layer.q", buffers.upload(&self.inputs.q), dk),
            ("layer.k", buffers.upload(&self.inputs.k), dk),
            ("layer.v", buffers.upload(&self.inputs.v), dv),
            ("out", out, dv),
        ];
        for (name, at, stride) in rows {
            arguments.set(&format!("{name}.at"), at);
            arguments.set(&format!("{name}.step_stride"), stride as i64);
            arguments.set(&format!("{name}.shared"), 1_i64);
        }
        let channels = self.inputs.decay.len() / seqlen;
        let decay = buffers.upload(&self.inputs.decay);
        arguments.set("layer.decays.at", decay);
        arguments.set("layer.decays.step_stride", channels as i64);
        arguments.set("layer.decays.channel_stride", i64::from(channels > 1));
        arguments.set("layer.cu_seqlens", buffers.upload(&CU_SEQLENS));
        let map = self.case.config.feature_map as i32;
        let sizes = [
            ("steps", seqlen as i32),
            ("heads", 1),
            ("dk", dk as i32),
            ("dv", dv as i32),
            ("segment", seqlen.next_multiple_of(64) as i32),
            ("query_map", map),
            ("key_map", map),
            ("reversed", self.reversed.into()),
        ];
        for (name, size) in sizes {
            arguments.set(&format!("layer.{name}"), size);
        }
        arguments.set("layer.scale", 1.0 / (dk as f32).sqrt());
        arguments.set("weight", 1.0_f32);
        let last = buffers.output::<f32>(dk * dv);
        let initial = buffers.upload(&self.inputs.initial);
        for (name, at) in [("initial", initial), ("last", last)] {
            arguments.set(&format!("{name}.at"), at);
            arguments.set(&format!("{name}.key_stride"), dv as i64);
            arguments.set(&format!("{name}.value_stride"), 1_i64);
        }
        let last_z = buffers.output::<f32>(dk);
        if let Some(eps) = self.case.config.normalize {
            let initial_z = buffers.upload(&self.inputs.initial_z);
            for (name, at) in [("initial_z", initial_z), ("last_z", last_z)] {
                arguments.set(&format!("{name}.at"), at);
                arguments.set(&format!("{name}.key_stride"), 1_i64);
            }
            arguments.set("normalize", 1_i32);
            arguments.set("eps", eps);
        }
        bare.launch(&buffers, &arguments.bytes)?;

        let widen = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<f64>>();
        let found = buffers.download::<f16>(out, seqlen * dv);
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        let state = widen(buffers.download(last, dk * dv));
        let [of_out, of_state, of_z] = self.bounds;
        let mut verdicts = vec![
            Verdict::of(&found, &self.expected.out, dv, of_out),
            Verdict::of(&state, &self.expected.final_state, dv, of_state),
        ];
        if let Some(expected) = &self.expected.final_z {
            let z = widen(buffers.download(last_z, dk));
            verdicts.push(Verdict::of(&z, expected, dk, of_z));
        }
        Ok(verdicts)
    }
}
