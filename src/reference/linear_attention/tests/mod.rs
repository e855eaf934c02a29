//! Attention against other ways to write it, its chunked algorithm against its recurrence, and its gradients against
//! finite differences.

mod chunks;
mod forward;
mod gradients;
mod rounding;

use super::{Backward, Chunks, Decay, FeatureMap, Forward, Readout, Rule};
use crate::reference::differences::noise;

/// A problem without its numbers.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    batch: usize,
    seqlen: usize,
    heads: usize,
    /// Of q, k and v.
    shared: [usize; 3],
    dk: usize,
    dv: usize,
    feature_map: FeatureMap,
    decay: Fades,
    /// What is added to the logarithms of decays, which are noise between -1.5 and 1.5.
    decay_mean: f64,
    delta: bool,
    reads: Which,
    normalize: Option<f64>,
    initial: bool,
    cu_seqlens: Option<&'static [usize]>,
}

/// [`Decay`] without its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fades {
    None,
    PerHead,
    PerStep,
    PerChannel,
}

/// [`Readout`] without its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    Updated,
    Bonus,
    Last,
}

const CASE: Case = Case {
    name: "plain",
    batch: 2,
    seqlen: 7,
    heads: 2,
    shared: [2, 2, 2],
    dk: 3,
    dv: 2,
    feature_map: FeatureMap::Identity,
    decay: Fades::None,
    decay_mean: -1.0,
    delta: false,
    reads: Which::Updated,
    normalize: None,
    initial: true,
    cu_seqlens: None,
};

/// All kinds of attention.
const CASES: [Case; 17] = [
    CASE,
    Case {
        name: "elu + 1, normalised",
        feature_map: FeatureMap::EluPlusOne,
        normalize: Some(1e-3),
        ..CASE
    },
    Case {
        name: "exp, normalised, shared keys and values",
        feature_map: FeatureMap::Exp,
        heads: 4,
        shared: [4, 2, 2],
        normalize: Some(0.0),
        decay: Fades::PerChannel,
        ..CASE
    },
    Case {
        name: "silu, shared queries and keys",
        feature_map: FeatureMap::Silu,
        heads: 6,
        shared: [2, 3, 6],
        decay: Fades::PerStep,
        ..CASE
    },
    Case {
        name: "not causal",
        feature_map: FeatureMap::ReluSquared,
        reads: Which::Last,
        initial: false,
        ..CASE
    },
    Case {
        name: "not causal, normalised, with decays",
        feature_map: FeatureMap::EluPlusOne,
        reads: Which::Last,
        decay: Fades::PerChannel,
        normalize: Some(0.5),
        ..CASE
    },
    Case {
        name: "retention",
        decay: Fades::PerHead,
        ..CASE
    },
    Case {
        name: "gated per step",
        decay: Fades::PerStep,
        ..CASE
    },
    Case {
        name: "gated per channel",
        decay: Fades::PerChannel,
        ..CASE
    },
    Case {
        name: "gated per channel, packed",
        batch: 1,
        seqlen: 11,
        decay: Fades::PerChannel,
        cu_seqlens: Some(&[0, 4, 4, 11]),
        ..CASE
    },
    Case {
        name: "bonus",
        decay: Fades::PerChannel,
        reads: Which::Bonus,
        ..CASE
    },
    Case {
        name: "bonus, normalised, retention",
        feature_map: FeatureMap::Exp,
        decay: Fades::PerHead,
        reads: Which::Bonus,
        normalize: Some(4.0),
        ..CASE
    },
    Case {
        name: "delta rule",
        delta: true,
        ..CASE
    },
    Case {
        name: "gated delta rule",
        delta: true,
        decay: Fades::PerStep,
        shared: [1, 1, 2],
        ..CASE
    },
    Case {
        name: "delta rule, gated per channel, packed",
        batch: 1,
        seqlen: 12,
        delta: true,
        decay: Fades::PerChannel,
        cu_seqlens: Some(&[0, 5, 5, 12]),
        ..CASE
    },
    Case {
        name: "delta rule with bonus",
        delta: true,
        decay: Fades::PerChannel,
        reads: Which::Bonus,
        ..CASE
    },
    Case {
        name: "delta rule, not causal, normalised",
        delta: true,
        feature_map: FeatureMap::EluPlusOne,
        reads: Which::Last,
        normalize: Some(8.0),
        decay: Fades::PerHead,
        ..CASE
    },
];

/// What a problem borrows.
struct Inputs {
    case: Case,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    decay: Vec<f64>,
    beta: Vec<f64>,
    bonus: Vec<f64>,
    initial_state: Vec<f64>,
    initial_z: Vec<f64>,
    dout: Vec<f64>,
    dfinal_state: Vec<f64>,
    dfinal_z: Vec<f64>,
}

impl Case {
    fn sequences(self) -> usize {
        self.cu_seqlens.map_or(self.batch, |ends| ends.len() - 1)
    }
}

impl Inputs {
    fn new(case: Case) -> Self {
        let Case {
            batch,
            seqlen,
            heads,
            shared,
            dk,
            dv,
            ..
        } = case;
        let steps = batch * seqlen;
        let states = case.sequences() * heads * dk;
        let decays = match case.decay {
            Fades::None => 0,
            Fades::PerHead => heads,
            Fades::PerStep => steps * heads,
            Fades::PerChannel => steps * heads * dk,
        };
        let z = if case.normalize.is_some() { states } else { 0 };
        let moved = |values: Vec<f64>, factor, by| -> Vec<f64> {
            values.iter().map(|x| factor * x + by).collect()
        };
        Self {
            case,
            q: noise(1, steps * shared[0] * dk),
            k: moved(noise(2, steps * shared[1] * dk), 0.6, 0.0),
            v: noise(3, steps * shared[2] * dv),
            decay: moved(noise(4, decays), 0.5, case.decay_mean),
            beta: moved(noise(5, steps * heads), 0.5, 0.5),
            bonus: noise(6, heads * dk),
            initial_state: noise(7, states * dv),
            // positive, as sums of positive features are
            initial_z: moved(noise(8, z), 1.0, 3.0),
            dout: noise(9, steps * heads * dv),
            dfinal_state: noise(10, states * dv),
            dfinal_z: noise(11, z),
        }
    }

    fn forward(&self) -> Forward<'_> {
        let case = self.case;
        Forward {
            batch: case.batch,
            seqlen: case.seqlen,
            heads: case.heads,
            heads_q: case.shared[0],
            heads_k: case.shared[1],
            heads_v: case.shared[2],
            dk: case.dk,
            dv: case.dv,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            feature_map: case.feature_map,
            scale: Some(0.7),
            decay: self.decays(&self.decay),
            rule: match case.delta {
                false => Rule::Linear,
                true => Rule::Delta { beta: &self.beta },
            },
            readout: self.readout(&self.bonus),
            normalize: case.normalize,
            initial_state: case.initial.then_some(&self.initial_state[..]),
            initial_z: (case.initial && case.normalize.is_some()).then_some(&self.initial_z[..]),
            cu_seqlens: case.cu_seqlens,
        }
    }

    fn backward(&self) -> Backward<'_> {
        Backward {
            forward: self.forward(),
            dout: &self.dout,
            dfinal_state: Some(&self.dfinal_state),
            dfinal_z: self.case.normalize.map(|_| &self.dfinal_z[..]),
        }
    }

    fn decays<'a>(&self, values: &'a [f64]) -> Decay<'a> {
        match self.case.decay {
            Fades::None => Decay::None,
            Fades::PerHead => Decay::PerHead(values),
            Fades::PerStep => Decay::PerStep(values),
            Fades::PerChannel => Decay::PerChannel(values),
        }
    }

    fn readout<'a>(&self, bonus: &'a [f64]) -> Readout<'a> {
        match self.case.reads {
            Which::Updated => Readout::Updated,
            Which::Bonus => Readout::Bonus(bonus),
            Which::Last => Readout::Last,
        }
    }
}

/// Fails unless all numbers agree to `tolerance` times the largest of them, or 1.
fn assert_near(name: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance * largest,
            "{name}[{at}]: {found} is not {expected}"
        );
    }
}
