//! Bugs planted in each of the three walks.

use cuda_emulator::{Device, Fault, FaultKind, Schedule};
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

/// The walk that is edited, and what those before it have left, which ran as they are.
struct Walk {
    which: usize,
    host: Host<f32>,
    output: reference::Output,
    gradients: reference::Gradients,
    lookups: Vec<f32>,
    dlookups: Vec<f32>,
    /// What the backward walk leaves where the gradient of decays will be.
    rest: Vec<f32>,
    spans: Vec<f32>,
}

/// The numbers that a walk wrote.
type Written = Vec<(&'static str, Vec<f32>)>;

impl Walk {
    fn new(which: usize) -> Self {
        let case = Case::packed(STEPS[which], 1, SIZE);
        let host = Host::new(case);
        let [output, _] = host.forward(case, |x| x);
        let [gradients, _] = host.backward(case, |x| x);
        let mut walk = Self {
            which,
            host,
            output,
            gradients,
            lookups: Vec::new(),
            dlookups: Vec::new(),
            rest: Vec::new(),
            spans: Vec::new(),
        };
        let device = Device::sm_80();
        for (before, kernel) in KERNELS.into_iter().enumerate().take(which) {
            let bare = Bare {
                device: &device,
                kernel,
                ptx: &bare::ptx(kernel, &device),
                grid: [1; 3],
                schedule: Schedule::LowestPc,
                global_races: true,
            };
            let written = walk.launch(before, &bare);
            for (name, numbers) in written.unwrap_or_else(|fault| panic!("{fault}")) {
                match name {
                    "lookups" => walk.lookups = numbers,
                    "dlookups" => walk.dlookups = numbers,
                    "ddecay" => walk.rest = numbers,
                    "spans" => walk.spans = numbers,
                    _ => {}
                }
            }
        }
        walk
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
            ("dtype", 2),
            ("slices", 1),
        ];
        for (name, size) in sizes {
            arguments.set(&format!("layer.{name}"), size as i32);
        }
        // a step more than there are: the kernels have to clamp them
        let cu_seqlens = [0, self.steps() as i32 + 1];
        arguments.set("layer.cu_seqlens", buffers.upload(&cu_seqlens));
        states(&mut arguments, "initial_state", buffers.upload(initial));
        arguments
    }

    /// Runs one of the walks.
    fn launch(&self, which: usize, bare: &Bare<'_>) -> Result<Written, Box<Fault>> {
        let buffers = Buffers::new();
        let (row, state) = (self.steps() * SIZE, SIZE * SIZE);
        let written = if which == 0 {
            let mut forward = self.arguments(ForwardParams::PARAMS, &buffers);
            forward.set("entries", 1_i64);
            let mut written = Vec::new();
            for name in ["out", "lookups"] {
                let at = rows(&mut forward, name, buffers.output::<f32>(row));
                written.push((name, at, row));
            }
            let at = states(&mut forward, "final_state", buffers.output::<f32>(state));
            written.push(("final_state", at, state));
            bare.launch(&buffers, &forward.bytes)?;
            written
        } else {
            let mut backward = self.arguments(BackwardParams::PARAMS, &buffers);
            rows(&mut backward, "dout", buffers.upload(&self.host.dout));
            rows(&mut backward, "lookups", buffers.upload(&self.lookups));
            let dfinal = buffers.upload(&self.host.dfinal);
            states(&mut backward, "dfinal_state", dfinal);
            let dinitial = buffers.output::<f32>(state);
            states(&mut backward, "dinitial_state", dinitial);
            let spans = (self.steps() / 64 + 1) * 64 * 64;
            // the first walk writes what the second one reads
            let passed = |numbers: &[f32], count| match which {
                1 => buffers.output::<f32>(count),
                _ => buffers.upload(numbers),
            };
            let dlookups = rows(&mut backward, "dlookups", passed(&self.dlookups, row));
            let ddecay = rows(&mut backward, "ddecay", passed(&self.rest, row));
            let kept = passed(&self.spans, spans);
            backward.set("spans", kept);
            let [dr, dk, dv, da, db] = ["dr", "dk", "dv", "da", "db"]
                .map(|name| rows(&mut backward, name, buffers.output::<f32>(row)));
            bare.launch(&buffers, &backward.bytes)?;
            match which {
                1 => vec![
                    ("dk", dk, row),
                    ("dv", dv, row),
                    ("db", db, row),
                    ("dinitial_state", dinitial, state),
                    ("dlookups", dlookups, row),
                    ("ddecay", ddecay, row),
                    ("spans", kept, spans),
                ],
                _ => vec![("dr", dr, row), ("da", da, row), ("ddecay", ddecay, row)],
            }
        };
        let download = |(name, at, count)| (name, buffers.download::<f32>(at, count));
        Ok(written.into_iter().map(download).collect())
    }

    /// What a walk's result has to be, unless only the walk after it tells.
    fn expected(&self, name: &str) -> Option<&[f64]> {
        let gradients = &self.gradients;
        Some(match (name, self.which) {
            ("out", _) => &self.output.out,
            ("final_state", _) => &self.output.final_state,
            ("dr", _) => &gradients.dr,
            ("dk", _) => &gradients.dk,
            ("dv", _) => &gradients.dv,
            ("da", _) => &gradients.da,
            ("db", _) => &gradients.db,
            ("dinitial_state", _) => &gradients.dinitial_state,
            ("ddecay", 2) => &gradients.ddecay,
            _ => return None,
        })
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
        [1; 3]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let written = self.launch(self.which, bare)?;
        let verdict = |(name, found): &(&str, Vec<f32>)| {
            let expected = self.expected(name)?;
            let bound = within_largest(4.0 * largest(expected));
            Some(Verdict::of(&widen(found), expected, SIZE, bound))
        };
        Ok(written.iter().filter_map(verdict).collect())
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
