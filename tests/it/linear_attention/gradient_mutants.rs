//! Bugs planted in the walks of gradients.

use bytemuck::Pod;
use cuda_emulator::{Fault, FaultKind};
use half::f16;
use seqmix::abi::linear_attention::GradientWalkParams;
use seqmix::reference::linear_attention as reference;

use super::gradients::{CASE, Case, Fades, Inputs, bound, expected};
use crate::bare::{Arguments, Bare, Buffers};
use crate::measure::Verdict;
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Problem, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

const STEPS: usize = 70;

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    // Barriers of a tile: it has landed, and what warps prepare is written.
    ("no barrier before a tile is read", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Uninitialised)),
    ("no barrier before scores are read", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Uninitialised)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 1, half_of_each_warp), By(FaultKind::Divergence)),
    // Waits, and the groups that they wait for: the first tile, the next ones.
    ("no wait before a tile is read", |ptx| ptx.delete("cp.async.wait_group", 0), By(FaultKind::MissingWait)),
    ("the next tile belongs to no group", |ptx| ptx.delete("cp.async.commit_group", 1), By(FaultKind::MissingWait)),
    // Bounds.
    ("the first tile is read beyond its rows", |ptx| ptx.copy_all(0), By(FaultKind::OutOfBounds)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    // Numbers.
    ("a product is left out", |ptx| ptx.delete("mma", 0), Numbers),
    ("the last product is left out", |ptx| { let last = ptx.find("mma").len() - 1; ptx.delete("mma", last) }, Numbers),
    ("lanes do not share their decays", share_nothing, Numbers),
];

/// Every minimum before the first copy becomes its first operand: lengths are clamped there.
fn trust_lengths(ptx: &mut Ptx) {
    let first_copy = ptx.find("cp.async.cg")[0];
    for at in ptx.find("min.s32") {
        if at < first_copy {
            ptx.lines[at] = to_move(&ptx.lines[at]);
        }
    }
}

/// Lanes keep their own value instead of a neighbour's.
fn share_nothing(ptx: &mut Ptx) {
    for at in ptx.find("shfl.sync") {
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}

/// The walk that gives the gradients of keys and of the initial state: from the last step, with steps before it that
/// are not there.
struct Keys {
    dk: usize,
    dv: usize,
    /// As the kernel is told.
    ragged: i32,
    decay: Fades,
    inputs: Inputs<f16>,
    runs: Vec<reference::Gradients>,
}

impl Keys {
    fn new(decay: Fades) -> Self {
        Self::of(decay, [40, 64], 0)
    }

    fn of(decay: Fades, [dk, dv]: [usize; 2], ragged: i32) -> Self {
        let case = Case {
            seqlen: STEPS,
            heads: 1,
            shared: [1; 3],
            dk,
            dv,
            decay,
            ..CASE
        };
        let inputs = Inputs::new(case);
        Self {
            dk,
            dv,
            ragged,
            decay,
            runs: expected(case, &inputs).into(),
            inputs,
        }
    }
}

impl Problem for Keys {
    fn kernel(&self) -> &str {
        match self.decay {
            Fades::PerChannel => "linear_attention_gradient_walk_channel_f16_n64",
            _ => "linear_attention_gradient_walk_step_f16_n64",
        }
    }

    fn grid(&self) -> [u32; 3] {
        [1, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let (dk, dv) = (self.dk, self.dv);
        let buffers = Buffers::new();
        let mut arguments = Arguments::new(GradientWalkParams::PARAMS);
        let out = buffers.output::<f16>(STEPS * dk);
        let last = buffers.output::<f32>(dk * dv);
        let mut rows = |name: &str, at: u64, stride: usize| {
            arguments.set(&format!("{name}.at"), at);
            arguments.set(&format!("{name}.step_stride"), stride as i64);
            arguments.set(&format!("{name}.shared"), 1_i64);
        };
        rows("layer.q", buffers.upload(&self.inputs.v), dv);
        rows("layer.k", buffers.upload(&self.inputs.dout), dv);
        rows("layer.v", buffers.upload(&self.inputs.q), dk);
        rows("out", out, dk);
        let initial = buffers.upload(&self.inputs.dfinal_state);
        for (name, at) in [("initial", initial), ("last", last)] {
            arguments.set(&format!("{name}.at"), at);
            arguments.set(&format!("{name}.value_stride"), dv as i64);
            arguments.set(&format!("{name}.key_stride"), 1_i64);
        }
        let channels = match self.decay {
            Fades::PerChannel => dk,
            _ => 1,
        };
        // from the last step on, the decay before a step is that of the one after it in time
        let decays = buffers.upload(&self.inputs.decay) + 4 * channels as u64;
        arguments.set("layer.decays.at", decays);
        arguments.set("layer.decays.step_stride", channels as i64);
        arguments.set("layer.decays.channel_stride", i64::from(channels > 1));
        // more steps than there are: the kernel has to clamp them
        arguments.set("layer.cu_seqlens", buffers.upload(&[0, i32::MAX - 64]));
        let sizes = [
            ("layer.steps", STEPS),
            ("layer.heads", 1),
            ("layer.dk", dv),
            ("layer.dv", dk),
            ("layer.segment", 128),
            ("layer.reversed", 1),
            ("layer.ragged", self.ragged as usize),
            ("span", 64),
        ];
        for (name, size) in sizes {
            arguments.set(name, size as i32);
        }
        arguments.set("layer.scale", 1.0_f32);
        arguments.set("weight", 1.0 / (dk as f32).sqrt());
        bare.launch(&buffers, &arguments.bytes)?;

        fn widen<T: Pod + Into<f64>>(x: Vec<T>) -> Vec<f64> {
            x.into_iter().map(Into::into).collect()
        }
        let judge = |found: Vec<f64>, row, of: fn(&reference::Gradients) -> &[f64]| {
            let runs: Vec<&[f64]> = self.runs.iter().map(of).collect();
            Verdict::of(&found, runs[0], row, bound::<f16>(runs[0], &runs[1..]))
        };
        let keys = widen(buffers.download::<f16>(out, STEPS * dk));
        let dinitial = widen(buffers.download::<f32>(last, dk * dv));
        Ok(vec![
            judge(keys, dk, |run| &run.dk),
            judge(dinitial, dv, |run| &run.dinitial_state),
        ])
    }
}

#[test]
fn bugs_planted_in_walks_of_gradients_are_caught() {
    for decay in [Fades::PerStep, Fades::PerChannel] {
        assert_caught(&Keys::new(decay), MUTANTS);
    }
}

/// Without a bug, no order of the lanes makes a fault or a wrong number.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    for decay in [Fades::PerStep, Fades::PerChannel] {
        assert_clean(&Keys::new(decay));
        assert_clean(&Keys::of(decay, [38, 50], 4));
        assert_clean(&Keys::of(decay, [39, 51], 2));
    }
}
