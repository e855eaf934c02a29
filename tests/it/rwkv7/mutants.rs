//! Bugs planted in each of the three walks.

use cuda_emulator::{Fault, FaultKind, Schedule};
use seqmix::abi::Params;
use seqmix::abi::rwkv7::{BackwardParams, ForwardParams};
use seqmix::reference::rwkv7 as reference;

use super::{Case, Host, largest, widen, within_largest};
use crate::bare::{self, Arguments, Bare, Buffers};
use crate::measure::Verdict;
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Problem, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

/// In all of them: a barrier comes before a tile replaces another, and one before it is used.
#[rustfmt::skip]
const ALL: &[Mutant] = &[
    ("a tile is replaced while it is used", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("lengths from the device are trusted", trust_lengths, By(FaultKind::OutOfBounds)),
    ("lanes do not share their sums", share_nothing, Numbers),
    ("logarithms are taken for decays", |ptx| ptx.edit("ex2.approx", 0, to_move), Numbers),
];

#[rustfmt::skip]
const FORWARD: &[Mutant] = &[
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 1, half_of_each_warp), By(FaultKind::Divergence)),
    ("a tile is used before it is there", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
];

#[rustfmt::skip]
const BACKWARD: &[Mutant] = &[
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 0, half_of_each_warp), By(FaultKind::Divergence)),
    ("a tile is used before it is there", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Uninitialised)),
    ("dv takes the place of values that are still read", |ptx| ptx.delete("bar.warp.sync", last_within_warp(ptx)), By(FaultKind::Race)),
];

#[rustfmt::skip]
const REPLAY: &[Mutant] = &[
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 1, half_of_each_warp), By(FaultKind::Divergence)),
    ("a tile is used before it is there", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("sums before a span are read too early", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("sums before a span are overwritten too early", |ptx| ptx.delete("bar.sync", 3), By(FaultKind::Race)),
];

/// Every minimum before the first wide read becomes its first operand: lengths are clamped there.
fn trust_lengths(ptx: &mut Ptx) {
    let first = ptx.find("ld.global.v4")[0];
    for at in ptx.find("min.s32").into_iter().filter(|&at| at < first) {
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}

/// Lanes keep their own value instead of a neighbour's.
fn share_nothing(ptx: &mut Ptx) {
    for at in ptx.find("shfl.sync") {
        ptx.lines[at] = to_move(&ptx.lines[at]);
    }
}

fn last_within_warp(ptx: &Ptx) -> usize {
    ptx.find("bar.warp.sync").len() - 1
}

/// Channels of the one head: not as many as the kernel has, but whole pieces.
const SIZE: usize = 60;

/// No whole tile; in the replay, more than a span.
const STEPS: [&[usize]; 3] = [&[20], &[20], &[68]];

const KERNELS: [&str; 3] = [
    "rwkv7_forward_n64_s1",
    "rwkv7_backward_n64",
    "rwkv7_replay_n64",
];

/// The walk that is edited; those before it run as they are.
struct Walk {
    which: usize,
    host: Host<f32>,
    output: reference::Output,
    gradients: reference::Gradients,
}

impl Walk {
    fn new(which: usize) -> Self {
        let case = Case::packed(STEPS[which], 1, SIZE);
        let host = Host::new(case);
        let [output, _] = host.forward(case, |x| x);
        let [gradients, _] = host.backward(case, |x| x);
        Self {
            which,
            host,
            output,
            gradients,
        }
    }

    fn steps(&self) -> usize {
        STEPS[self.which].iter().sum()
    }

    /// What all walks read.
    fn arguments(&self, params: Params, buffers: &Buffers) -> Arguments {
        let mut arguments = Arguments::new(params);
        let Host {
            r,
            decay,
            k,
            v,
            a,
            b,
            initial,
            ..
        } = &self.host;
        let inputs = [
            ("r", r),
            ("decay", decay),
            ("k", k),
            ("v", v),
            ("a", a),
            ("b", b),
        ];
        for (name, x) in inputs {
            rows(&mut arguments, &format!("layer.{name}"), buffers.upload(x));
        }
        let sizes = [
            ("seqlen", self.steps()),
            ("heads", 1),
            ("dk", SIZE),
            ("dv", SIZE),
        ];
        for (name, size) in sizes.into_iter().chain([("dtype", 2), ("slices", 1)]) {
            arguments.set(&format!("layer.{name}"), size as i32);
        }
        // a step more than there are: the kernels have to clamp them
        let cu_seqlens = [0, self.steps() as i32 + 1];
        arguments.set("layer.cu_seqlens", buffers.upload(&cu_seqlens));
        states(&mut arguments, "initial_state", buffers.upload(initial));
        arguments
    }

    fn verdict(buffers: &Buffers, at: u64, expected: &[f64]) -> Verdict {
        let found = widen(&buffers.download::<f32>(at, expected.len()));
        let bound = within_largest(4.0 * largest(expected));
        Verdict::of(&found, expected, SIZE, bound)
    }
}

fn rows(arguments: &mut Arguments, name: &str, at: u64) -> u64 {
    arguments.set(&format!("{name}.at"), at);
    arguments.set(&format!("{name}.step_stride"), SIZE as i64);
    at
}

fn states(arguments: &mut Arguments, name: &str, at: u64) -> u64 {
    arguments.set(&format!("{name}.at"), at);
    arguments.set(&format!("{name}.key_stride"), SIZE as i64);
    at
}

impl Problem for Walk {
    fn kernel(&self) -> &str {
        KERNELS[self.which]
    }

    fn grid(&self) -> [u32; 3] {
        [1, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let buffers = Buffers::new();
        let clean = |which: usize, bytes: &[u8]| {
            let ptx = bare::ptx(KERNELS[which], bare.device);
            let before = Bare {
                kernel: KERNELS[which],
                ptx: &ptx,
                schedule: Schedule::LowestPc,
                ..*bare
            };
            before.launch(&buffers, bytes)
        };
        let floats = || buffers.output::<f32>(self.steps() * SIZE);
        let mut forward = self.arguments(ForwardParams::PARAMS, &buffers);
        forward.set("entries", 1_i64);
        let out = rows(&mut forward, "out", floats());
        let lookups = rows(&mut forward, "lookups", floats());
        let last = buffers.output::<f32>(SIZE * SIZE);
        states(&mut forward, "final_state", last);
        if self.which == 0 {
            bare.launch(&buffers, &forward.bytes)?;
            return Ok(vec![
                Self::verdict(&buffers, out, &self.output.out),
                Self::verdict(&buffers, last, &self.output.final_state),
            ]);
        }
        clean(0, &forward.bytes)?;
        let mut backward = self.arguments(BackwardParams::PARAMS, &buffers);
        rows(&mut backward, "dout", buffers.upload(&self.host.dout));
        rows(&mut backward, "lookups", lookups);
        rows(&mut backward, "dlookups", floats());
        let [dr, dk, dv, da, db, ddecay] = ["dr", "dk", "dv", "da", "db", "ddecay"]
            .map(|name| rows(&mut backward, name, floats()));
        let dfinal = buffers.upload(&self.host.dfinal);
        states(&mut backward, "dfinal_state", dfinal);
        let dinitial = buffers.output::<f32>(SIZE * SIZE);
        states(&mut backward, "dinitial_state", dinitial);
        backward.set("spans", buffers.output::<f32>(2 * 64 * 64));
        let expected = &self.gradients;
        let judged = if self.which == 1 {
            bare.launch(&buffers, &backward.bytes)?;
            vec![
                (dk, &expected.dk),
                (dv, &expected.dv),
                (db, &expected.db),
                (dinitial, &expected.dinitial_state),
            ]
        } else {
            clean(1, &backward.bytes)?;
            bare.launch(&buffers, &backward.bytes)?;
            vec![
                (dr, &expected.dr),
                (da, &expected.da),
                (ddecay, &expected.ddecay),
            ]
        };
        let verdict = |(at, expected): (u64, &Vec<f64>)| Self::verdict(&buffers, at, expected);
        Ok(judged.into_iter().map(verdict).collect())
    }
}

#[test]
fn bugs_planted_in_the_forward_walk_are_caught() {
    assert_caught(&Walk::new(0), &[ALL, FORWARD].concat());
}

#[test]
fn bugs_planted_in_the_backward_walk_are_caught() {
    assert_caught(&Walk::new(1), &[ALL, BACKWARD].concat());
}

#[test]
fn bugs_planted_in_the_replay_are_caught() {
    assert_caught(&Walk::new(2), &[ALL, REPLAY].concat());
}

/// Without a bug, no order of the lanes makes a fault or a wrong number.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    for which in 0..3 {
        assert_clean(&Walk::new(which));
    }
}
