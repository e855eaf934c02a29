//! Single steps: sizes, layouts, every option, and states found by an index; steps in turn against whole sequences.

mod counters;
mod errors;
mod mutants;
mod problem;
mod sequence;

use half::{bf16, f16};
use seqmix::linear_attention::FeatureMap;

use problem::check;

/// Sizes and options of one problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    /// Steps, one after the other.
    steps: usize,
    heads: usize,
    /// Heads of q, k and v.
    shared: [usize; 3],
    dk: usize,
    dv: usize,
    feature_map: FeatureMap,
    scale: Option<f32>,
    decay: DecayKind,
    delta: bool,
    bonus: bool,
    normalize: Option<f32>,
    /// The entry of each row, of so many that there are.
    indices: Option<(&'static [i32], usize)>,
    /// Whether tensors are parts of larger ones, and heads lie outside of entries.
    strided: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum DecayKind {
    None,
    PerHead,
    PerStep,
    PerChannel,
}
use DecayKind::{PerChannel, PerHead, PerStep};

impl Case {
    /// Gated linear attention.
    fn of(batch: usize, heads: usize, dk: usize, dv: usize) -> Self {
        Self {
            batch,
            steps: 1,
            heads,
            shared: [heads; 3],
            dk,
            dv,
            feature_map: FeatureMap::Identity,
            scale: None,
            decay: PerChannel,
            delta: false,
            bonus: false,
            normalize: None,
            indices: None,
            strided: false,
        }
    }

    /// What holds states: entries, or rows.
    fn entries(&self) -> usize {
        self.indices.map_or(self.batch, |(_, entries)| entries)
    }

    /// The entry of a row, if it has one.
    fn entry(&self, row: usize) -> Option<usize> {
        let entry = match self.indices {
            Some((indices, _)) => usize::try_from(indices[row]).ok()?,
            None => row,
        };
        (entry < self.entries()).then_some(entry)
    }
}

fn check_all(case: Case) {
    check::<f16>(case);
    check::<bf16>(case);
    check::<f32>(case);
}

/// Rows that threads own whole and in part, slices of 32 channels and of fewer; both rules.
#[test]
fn any_size() {
    for (dk, dv) in [
        (8, 8),
        (16, 40),
        (64, 32),
        (72, 64),
        (128, 104),
        (136, 8),
        (256, 72),
        (1, 3),
        (20, 100),
        (131, 33),
    ] {
        for delta in [false, true] {
            check_all(Case {
                delta,
                ..Case::of(2, 2, dk, dv)
            });
        }
    }
}

#[test]
fn every_decay_with_every_rule() {
    for decay in [DecayKind::None, PerHead, PerStep, PerChannel] {
        for (delta, bonus) in [(false, false), (true, false), (false, true), (true, true)] {
            let case = Case {
                decay,
                delta,
                bonus,
                ..Case::of(2, 3, 40, 48)
            };
            check_all(case);
            check::<f32>(Case {
                normalize: Some(0.1),
                feature_map: FeatureMap::EluPlusOne,
                ..case
            });
        }
    }
}

#[test]
fn every_feature_map() {
    for feature_map in [
        FeatureMap::Identity,
        FeatureMap::EluPlusOne,
        FeatureMap::Relu,
        FeatureMap::ReluSquared,
        FeatureMap::Silu,
        FeatureMap::Exp,
    ] {
        check_all(Case {
            feature_map,
            scale: Some(0.3),
            ..Case::of(1, 2, 24, 16)
        });
    }
}

/// More channels of a key than threads, and several slices, of which one block takes all.
#[test]
fn normalized() {
    for (dk, dv) in [(32, 96), (136, 40), (256, 32)] {
        check_all(Case {
            normalize: Some(1e-3),
            feature_map: FeatureMap::Exp,
            decay: PerHead,
            ..Case::of(2, 2, dk, dv)
        });
    }
}

#[test]
fn heads_share_queries_keys_and_values() {
    for shared in [[1, 1, 1], [2, 3, 6], [6, 2, 1], [3, 1, 2]] {
        check_all(Case {
            shared,
            delta: true,
            ..Case::of(2, 6, 16, 40)
        });
    }
}

#[test]
fn parts_of_larger_tensors() {
    for delta in [false, true] {
        check_all(Case {
            strided: true,
            delta,
            normalize: delta.then_some(0.1),
            feature_map: FeatureMap::EluPlusOne,
            steps: 2,
            ..Case::of(2, 3, 24, 40)
        });
    }
}

/// Entries in any order; what names none is padding, and touches neither states nor out.
#[test]
fn states_are_found_by_their_index() {
    for indices in [
        &[4, 0, 2],
        &[1, -1, 5],
        &[6, i32::MAX, 0],
        &[i32::MIN, -1, 3],
    ] {
        for normalize in [None, Some(0.1)] {
            check_all(Case {
                indices: Some((indices, 6)),
                normalize,
                feature_map: FeatureMap::EluPlusOne,
                ..Case::of(3, 2, 16, 40)
            });
        }
    }
}

#[test]
fn empty_problems() {
    check_all(Case::of(0, 2, 16, 16));
    check_all(Case::of(2, 0, 16, 16));
    check_all(Case {
        indices: Some((&[0, 1], 0)),
        ..Case::of(2, 2, 16, 16)
    });
}
