//! Gradients where decays are a number of each channel of the keys, as tables: every size and option against the
//! reference.

use half::{bf16, f16};
use seqmix::linear_attention::FeatureMap;

use super::gradients::check;
use super::{Beta, CASE, Case, Fades, Layout};

const CHANNELS: Case = Case {
    decay: Fades::PerChannel(-0.1),
    ..CASE
};

#[test]
fn lengths_around_the_chunk() {
    for seqlen in [1, 7, 16, 17, 63, 65, 127, 129] {
        check::<bf16>(Case { seqlen, ..CHANNELS });
        check::<f16>(Case {
            seqlen,
            heads: 1,
            shared: [1; 3],
            ..CHANNELS
        });
    }
    for seqlen in [1, 17, 66] {
        check::<f32>(Case {
            seqlen,
            heads: 1,
            shared: [1; 3],
            ..CHANNELS
        });
    }
}

#[test]
fn every_size_of_heads() {
    for (dk, dv) in [(8, 8), (40, 40), (64, 136), (128, 72), (256, 72)] {
        let case = Case {
            seqlen: 37,
            heads: 1,
            shared: [1; 3],
            dk,
            dv,
            ..CHANNELS
        };
        check::<f16>(case);
        check::<bf16>(case);
        check::<f32>(Case { seqlen: 18, ..case });
    }
}

/// Rows that are copied by 16, 4 or 2 bytes.
#[test]
fn sizes_that_end_within_a_copy() {
    for (i, (dk, dv)) in [(1, 3), (7, 20), (20, 66), (100, 100), (16, 24)]
        .into_iter()
        .enumerate()
    {
        let case = Case {
            seqlen: 35,
            dk,
            dv,
            shared: [[2, 2, 2], [1, 2, 1]][i % 2],
            layout: match i {
                1 => Layout::Projection,
                4 => Layout::Shifted,
                _ => Layout::Contiguous,
            },
            ..CHANNELS
        };
        check::<f16>(case);
        check::<bf16>(case);
        if i != 3 {
            check::<f32>(Case { seqlen: 18, ..case });
        }
    }
}

#[test]
fn every_gate_from_weak_to_strong() {
    let gates = [-0.001, -0.01, -1.0, -5.0, -20.0].map(Fades::PerChannel);
    for decay in gates.into_iter().chain([Fades::ChannelsForget]) {
        check::<bf16>(Case { decay, ..CASE });
        check::<f16>(Case { decay, ..CASE });
        check::<f32>(Case {
            decay,
            seqlen: 33,
            dk: 16,
            ..CASE
        });
    }
}

#[test]
fn every_strength_of_updates() {
    for beta in [0.0, 1.0] {
        let beta = Beta::Always(beta);
        check::<bf16>(Case { beta, ..CHANNELS });
        check::<f16>(Case { beta, ..CHANNELS });
    }
    for alike in [0.5, 0.94] {
        let case = Case {
            alike,
            seqlen: 130,
            ..CHANNELS
        };
        check::<bf16>(case);
        check::<f16>(case);
    }
}

#[test]
fn heads_share_queries_keys_and_values() {
    for shared in [[1, 4, 4], [4, 1, 4], [4, 4, 1], [1, 1, 1]] {
        check::<bf16>(Case {
            batch: 2,
            heads: 4,
            seqlen: 19,
            shared,
            dk: 40,
            dv: 24,
            ..CHANNELS
        });
    }
}

#[test]
fn every_layout_in_memory() {
    for layout in [Layout::Projection, Layout::StepsFirst] {
        for lengths in [None, Some(&[30, 0, 41, 1][..])] {
            for states in [false, true] {
                let case = Case {
                    batch: 2,
                    seqlen: 20,
                    dk: 40,
                    dv: 24,
                    layout,
                    lengths,
                    states,
                    ..CHANNELS
                };
                check::<f16>(case);
                check::<bf16>(case);
            }
        }
    }
}

#[test]
fn segments_with_strong_decays() {
    for decay in [Fades::PerChannel(-20.0), Fades::ChannelsForget] {
        check::<f16>(Case {
            seqlen: 150,
            dk: 40,
            dv: 40,
            segment: Some(64),
            decay,
            ..CASE
        });
    }
    check::<f32>(Case {
        dk: 24,
        dv: 16,
        segment: Some(64),
        ..CHANNELS
    });
}

#[test]
fn mapped_queries_and_keys() {
    for feature_map in [FeatureMap::Relu, FeatureMap::Silu] {
        check::<bf16>(Case {
            feature_map,
            shared: [2, 1, 1],
            seqlen: 35,
            ..CHANNELS
        });
    }
}
