//! Bugs planted in the kernel of a step.

use cuda_emulator::{Fault, FaultKind};
use seqmix::abi::linear_attention::StepParams;
use seqmix::reference::linear_attention as reference;

use crate::bare::{Arguments, Bare, Buffers};
use crate::measure::{Bound, Verdict};
use crate::naive::normal;
use crate::planted::Caught::{By, Numbers};
use crate::planted::{
    Mutant, Problem, Ptx, assert_caught, assert_clean, half_of_each_warp, to_move, wait_alone,
};

/// Channels of keys and of values: rows that some threads lack, and two slices, of which the second is not full.
const DK: usize = 40;
const DV: usize = 40;

/// One head by the delta rule, normalised, in buffers of exact size: one block takes both slices.
struct Head {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    decay: Vec<f32>,
    beta: Vec<f32>,
    state: Vec<f32>,
    z: Vec<f32>,
}

impl Head {
    fn new() -> Self {
        let positive = |seed, scale: f32| -> Vec<f32> {
            let numbers = normal::<f32>(seed, DK, 1.0).into_iter();
            numbers.map(|x| scale * (0.5 + x.abs())).collect()
        };
        Self {
            q: positive(1, 1.0),
            k: positive(2, 0.2),
            v: normal(3, DV, 1.0),
            decay: positive(4, -0.5),
            beta: vec![0.5],
            state: normal(5, DK * DV, 1.0),
            z: positive(6, 0.2),
        }
    }

    fn expected(&self) -> reference::Output {
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
        reference::Step {
            batch: 1,
            heads: 1,
            heads_q: 1,
            heads_k: 1,
            heads_v: 1,
            dk: DK,
            dv: DV,
            q: &wide(&self.q),
            k: &wide(&self.k),
            v: &wide(&self.v),
            scale: Some(1.0),
            decay: reference::Decay::PerChannel(&wide(&self.decay)),
            rule: reference::Rule::Delta {
                beta: &wide(&self.beta),
            },
            normalize: Some(0.1),
            state: &wide(&self.state),
            z: Some(&wide(&self.z)),
            ..reference::Step::default()
        }
        .run()
        .unwrap()
    }
}

impl Problem for Head {
    fn kernel(&self) -> &str {
        "linear_attention_step_n64"
    }

    fn grid(&self) -> [u32; 3] {
        [1, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let buffers = Buffers::new();
        let mut arguments = Arguments::new(StepParams::PARAMS);
        for (name, data) in [
            ("q", &self.q),
            ("k", &self.k),
            ("v", &self.v),
            ("beta", &self.beta),
            ("decays", &self.decay),
        ] {
            arguments.set(&format!("{name}.at"), buffers.upload(data));
            if name != "decays" {
                arguments.set(&format!("{name}.shared"), 1_i64);
            }
        }
        arguments.set("decays.channel_stride", 1_i64);
        let (state, z) = (buffers.upload(&self.state), buffers.upload(&self.z));
        let out = buffers.output::<f32>(DV);
        for (name, at, stride) in [("state", state, DV), ("z", z, 1)] {
            arguments.set(&format!("{name}.at"), at);
            arguments.set(&format!("{name}.key_stride"), stride as i64);
        }
        arguments.set("out.at", out);
        arguments.set("out.shared", 1_i64);
        let sizes = [
            ("entries", 1),
            ("heads", 1),
            ("dk", DK),
            ("dv", DV),
            ("slices", 2),
            ("blocks_of_head", 1),
            ("dtype", 2),
        ];
        for (name, size) in sizes {
            arguments.set(name, size as i32);
        }
        arguments.set("scale", 1_f32);
        arguments.set("eps", 0.1_f32);
        bare.launch(&buffers, &arguments.bytes)?;

        let expected = self.expected();
        let z_after = expected.final_z.unwrap_or_default();
        let outputs = [
            (out, DV, expected.out),
            (state, DK * DV, expected.final_state),
            (z, DK, z_after),
        ];
        let verdicts = outputs.map(|(at, count, expected)| {
            let found = buffers.download::<f32>(at, count);
            let found: Vec<f64> = found.into_iter().map(f64::from).collect();
            let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            let bound = Bound {
                max_abs: 1e-5 * largest,
                rel_l2: None,
                row_rel_l2: None,
            };
            Verdict::of(&found, &expected, count, bound)
        });
        Ok(verdicts.into())
    }
}

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    // Barriers: q, k and sums of z; between slices; sums over the state.
    ("no barrier before sums of keys are added", |ptx| ptx.delete("bar.sync", 0), By(FaultKind::Uninitialised)),
    ("no barrier between slices", |ptx| ptx.delete("bar.sync", 1), By(FaultKind::Race)),
    ("no barrier before sums of the state are added", |ptx| ptx.delete("bar.sync", 2), By(FaultKind::Race)),
    ("the first warp waits for one that does not come", |ptx| ptx.edit("bar.sync", 0, wait_alone), By(FaultKind::Deadlock)),
    ("a barrier for half of each warp", |ptx| ptx.edit("bar.sync", 2, half_of_each_warp), By(FaultKind::Race)),
    // Bounds.
    ("rows that there are not are read", |ptx| ptx.delete_guard("ld.global.v4", 3), By(FaultKind::OutOfBounds)),
    ("the same of the second slice", |ptx| ptx.delete_guard("ld.global.v4", 7), By(FaultKind::OutOfBounds)),
    ("rows that there are not are written", |ptx| ptx.delete_guard("st.global.v4", 3), By(FaultKind::OutOfBounds)),
    ("a piece begins between two", |ptx| ptx.edit("ld.global.v4", 0, |line| line.replace(']', "+4]")), By(FaultKind::Misaligned)),
    // Arithmetic.
    ("lanes do not share q . k", |ptx| ptx.edit("shfl.sync.bfly", 0, to_move), Numbers),
    ("lanes do not share sums of z", |ptx| ptx.edit("shfl.sync.bfly", 5, to_move), Numbers),
    ("lanes do not share sums of the state", |ptx| ptx.edit("shfl.sync.bfly", 15, to_move), Numbers),
    ("decays are left out", forget_nothing, Numbers),
];

/// Takes logarithms of decays for their exponentials: the last ones, after those of feature maps.
fn forget_nothing(ptx: &mut Ptx) {
    let last = ptx.find("ex2.approx").len() - 1;
    ptx.edit("ex2.approx", last, to_move);
}

#[test]
fn planted_bugs_are_found() {
    assert_caught(&Head::new(), MUTANTS);
}

#[test]
fn nothing_is_found_in_the_kernel_itself() {
    assert_clean(&Head::new());
}
