//! One problem for the forward kernels, without the library around it.

use cuda_emulator::Fault;
use half::f16;
use seqmix::abi::linear_attention::DeltaParams;
use seqmix::reference::linear_attention as reference;

use super::{CASE, Case, Fades, Inputs, bound, round_in_any_range};
use crate::bare::{Arguments, Bare, Buffers};
use crate::measure::{Bound, Verdict};
use crate::naive::Number;
use crate::planted::Problem;

const DK: usize = 64;
const DV: usize = 104;

/// More steps than there are: the kernel has to clamp them.
const CU_SEQLENS: [i32; 2] = [0, i32::MAX];

/// One head whose values are two slices, of which the second is not full, and neither is the last chunk; with an initial
/// and a final state.
pub(super) struct Layer {
    case: Case,
    inputs: Inputs<f16>,
    expected: reference::Output,
    bounds: [Bound; 2],
}

impl Layer {
    pub(super) fn new(decay: Fades) -> Self {
        let case = Case {
            seqlen: 100,
            heads: 1,
            shared: [1; 3],
            dk: DK,
            dv: DV,
            decay,
            ..CASE
        };
        let inputs = case.inputs::<f16>();
        let [expected, naive] = case.reference(&inputs, |layer| {
            let naive = layer.run_rounded(round_in_any_range::<f16>);
            [layer.run(), naive].map(Result::unwrap)
        });
        let of = |expected: &[f64], naive: &[f64]| bound::<f16>(expected, &[naive], 2.0);
        Self {
            case,
            inputs,
            bounds: [
                of(&expected.out, &naive.out),
                of(&expected.final_state, &naive.final_state),
            ],
            expected,
        }
    }
}

fn widen<T: Number>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

impl Problem for Layer {
    fn kernel(&self) -> &str {
        match self.case.decay.of_channels() {
            true => "linear_attention_delta_channel_f16_n64",
            false => "linear_attention_delta_step_f16_n64",
        }
    }

    fn grid(&self) -> [u32; 3] {
        [2, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let buffers = Buffers::new();
        let mut arguments = Arguments::new(DeltaParams::PARAMS);
        let inputs = &self.inputs;
        let mut rows = |name: &str, at: u64, stride: usize| {
            arguments.set(&format!("{name}.at"), at);
            arguments.set(&format!("{name}.step_stride"), stride as i64);
            arguments.set(&format!("{name}.shared"), 1_i64);
            at
        };
        let (outputs, states) = (self.case.seqlen * DV, DK * DV);
        rows("walk.layer.q", buffers.upload(&inputs.q), DK);
        rows("walk.layer.k", buffers.upload(&inputs.k), DK);
        rows("walk.layer.v", buffers.upload(&inputs.v), DV);
        rows("beta", buffers.upload(&inputs.beta), 1);
        let out = rows("walk.out", buffers.output::<f16>(outputs), DV);
        let last = buffers.output::<f32>(states);
        let initial = buffers.upload(&inputs.initial_state);
        for (name, at) in [("initial", initial), ("last", last)] {
            arguments.set(&format!("walk.{name}.at"), at);
            arguments.set(&format!("walk.{name}.key_stride"), DV as i64);
            arguments.set(&format!("walk.{name}.value_stride"), 1_i64);
        }
        arguments.set("walk.layer.decays.at", buffers.upload(&inputs.decay));
        let (step, channel) = match self.case.decay.of_channels() {
            true => (DK as i64, 1),
            false => (1_i64, 0_i64),
        };
        arguments.set("walk.layer.decays.step_stride", step);
        arguments.set("walk.layer.decays.channel_stride", channel);
        arguments.set("walk.layer.cu_seqlens", buffers.upload(&CU_SEQLENS));
        let sizes = [
            ("steps", self.case.seqlen),
            ("heads", 1),
            ("dk", DK),
            ("dv", DV),
            ("segment", 128),
        ];
        for (name, size) in sizes {
            arguments.set(&format!("walk.layer.{name}"), size as i32);
        }
        arguments.set("walk.layer.scale", 1.0 / (DK as f32).sqrt());
        bare.launch(&buffers, &arguments.bytes)?;

        let found = widen(&buffers.download::<f16>(out, outputs));
        let found_states = widen(&buffers.download::<f32>(last, states));
        let expected = &self.expected;
        Ok(vec![
            Verdict::of(&found, &expected.out, DV, self.bounds[0]),
            Verdict::of(&found_states, &expected.final_state, DV, self.bounds[1]),
        ])
    }
}
