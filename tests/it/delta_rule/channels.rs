//! Decays that are a number of each channel of the keys (Kimi Delta Attention), as tables: every size and option
//! against the reference.

use half::{bf16, f16};
use seqmix::linear_attention::FeatureMap;

use super::{Beta, CASE, Case, Fades, Layout, check};

const CHANNELS: Case = Case {
    decay: Fades::PerChannel(-0.1),
    ..CASE
};

#[test]
fn lengths_around_the_chunk() {
    for seqlen in [1, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129] {
        check::<bf16>(Case { seqlen, ..CHANNELS });
        check::<f16>(Case {
            seqlen,
            heads: 1,
            shared: [1; 3],
            dk: 128,
            ..CHANNELS
        });
    }
    for seqlen in [1, 17, 33] {
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
    for (dk, dv) in [
        (8, 8),
        (40, 40),
        (64, 136),
        (128, 200),
        (136, 40),
        (256, 72),
    ] {
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
    for (i, (dk, dv)) in [(1, 3), (7, 100), (20, 5), (100, 100)]
        .into_iter()
        .enumerate()
    {
        let case = Case {
            seqlen: 35,
            dk,
            dv,
            layout: [Layout::Contiguous, Layout::Projection, Layout::Shifted][i % 3],
            ..CHANNELS
        };
        check::<f16>(case);
        check::<bf16>(case);
        if i < 3 {
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
    for beta in [0.0, 1.0, 2.0] {
        let beta = Beta::Always(beta);
        check::<bf16>(Case { beta, ..CHANNELS });
        check::<f16>(Case { beta, ..CHANNELS });
    }
    for (alike, decay) in [(0.5, -0.1), (0.94, -0.1), (0.94, -0.001)] {
        let case = Case {
            alike,
            seqlen: 130,
            decay: Fades::PerChannel(decay),
            ..CASE
        };
        check::<bf16>(case);
        check::<f16>(case);
    }
}

#[test]
fn states_beyond_the_range_of_f16() {
    for (values, initial, scale) in [(1e4, 6e4, 1e-4), (1e-4, 1e-4, 1.0)] {
        check::<f16>(Case {
            values,
            initial,
            scale: Some(scale),
            ..CHANNELS
        });
    }
}

#[test]
fn heads_share_queries_keys_and_values() {
    for shared in [[1, 4, 4], [4, 1, 4], [4, 4, 1], [2, 2, 4], [1, 1, 1]] {
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
    for layout in [Layout::Contiguous, Layout::Projection, Layout::StepsFirst] {
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
            segment: Some(64),
            decay,
            ..CASE
        });
    }
    check::<f32>(Case {
        dk: 24,
        dv: 16,
        segment: Some(32),
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
