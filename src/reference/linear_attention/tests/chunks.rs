//! The chunked algorithm against the recurrence, and segments of a sequence against the whole.

use super::{CASE, CASES, Case, Chunks, Fades, FeatureMap, Inputs, Rule, Which, assert_near};
use crate::reference::linear_attention::{Decay, Forward};

/// Fails unless both ways give the same outputs, states and gradients.
fn check(case: Case, chunks: Chunks, tolerance: f64) {
    let inputs = Inputs::new(case);
    let name = |what: &str| format!("{}, {} steps, {chunks:?}: {what}", case.name, case.seqlen);
    let near = |what: &str, found: &[f64], expected: &[f64]| {
        assert_near(&name(what), found, expected, tolerance);
    };
    let forward = inputs.forward();
    let (found, expected) = (forward.run_chunked(chunks).unwrap(), forward.run().unwrap());
    near("out", &found.out, &expected.out);
    near("final_state", &found.final_state, &expected.final_state);
    let both = found.final_z.zip(expected.final_z);
    assert_eq!(both.is_some(), case.normalize.is_some());
    if let Some((found, expected)) = both {
        near("final_z", &found, &expected);
    }

    let backward = inputs.backward();
    let (found, expected) = (
        backward.run_chunked(chunks).unwrap(),
        backward.run().unwrap(),
    );
    near("dq", &found.dq, &expected.dq);
    near("dk", &found.dk, &expected.dk);
    near("dv", &found.dv, &expected.dv);
    for (what, found, expected) in [
        ("ddecay", found.ddecay, expected.ddecay),
        ("dbeta", found.dbeta, expected.dbeta),
        ("dbonus", found.dbonus, expected.dbonus),
        ("dinitial_z", found.dinitial_z, expected.dinitial_z),
    ] {
        near(
            what,
            &found.unwrap_or_default(),
            &expected.unwrap_or_default(),
        );
    }
    near(
        "dinitial_state",
        &found.dinitial_state,
        &expected.dinitial_state,
    );
}

#[test]
fn chunks_make_the_whole() {
    for case in CASES {
        for (chunk, sub_chunk) in [(1, 1), (2, 1), (3, 2), (4, 4), (5, 3), (64, 16)] {
            check(case, Chunks { chunk, sub_chunk }, 1e-12);
        }
    }
}

#[test]
fn chunks_of_kernels_make_the_whole_at_any_length() {
    for seqlen in [1, 7, 63, 64, 65, 127, 129, 150] {
        for (name, decay, delta, reads) in [
            ("no decay", Fades::None, false, Which::Updated),
            ("per step", Fades::PerStep, false, Which::Updated),
            ("per channel", Fades::PerChannel, false, Which::Updated),
            ("bonus", Fades::PerChannel, false, Which::Bonus),
            ("delta", Fades::PerStep, true, Which::Updated),
        ] {
            let case = Case {
                name,
                batch: 1,
                seqlen,
                heads: 1,
                shared: [1; 3],
                dk: 5,
                dv: 3,
                decay,
                decay_mean: -0.8,
                delta,
                reads,
                ..CASE
            };
            check(case, Chunks::default(), 1e-11);
        }
    }
}

/// Nothing overflows, and nothing is lost that a later, weaker decay would have kept.
#[test]
fn strong_decays_neither_overflow_nor_vanish() {
    for decay in [Fades::PerStep, Fades::PerChannel] {
        for (delta, reads) in [
            (false, Which::Updated),
            (false, Which::Bonus),
            (true, Which::Updated),
        ] {
            for decay_mean in [-20.0, -0.75, -1000.0] {
                let case = Case {
                    name: "strong",
                    batch: 1,
                    seqlen: 130,
                    heads: 1,
                    shared: [1; 3],
                    decay,
                    decay_mean,
                    delta,
                    reads,
                    ..CASE
                };
                check(case, Chunks::default(), 1e-11);
            }
        }
    }
}

/// A gate that forgets everything begins a new sequence.
#[test]
fn a_decay_of_minus_infinity_forgets() {
    let mut inputs = Inputs::new(Case {
        decay: Fades::PerStep,
        batch: 1,
        ..CASE
    });
    inputs.decay[3 * 2..4 * 2].fill(f64::NEG_INFINITY);
    let forward = inputs.forward();
    let from = |values: &'_ [f64], width: usize| values[3 * width..].to_vec();
    let alone = Forward {
        seqlen: 4,
        q: &from(&inputs.q, 6),
        k: &from(&inputs.k, 6),
        v: &from(&inputs.v, 4),
        decay: Decay::PerStep(&from(&inputs.decay, 2)),
        initial_state: None,
        ..forward
    };
    let expected = alone.run().unwrap();
    for found in [forward.run(), forward.run_chunked(Chunks::default())] {
        let found = found.unwrap();
        assert_near("out", &found.out[3 * 4..], &expected.out, 1e-14);
        assert_near("state", &found.final_state, &expected.final_state, 1e-14);
    }
    let backward = inputs.backward();
    let gradients = backward.run_chunked(Chunks::default()).unwrap();
    let expected = backward.run().unwrap();
    assert_near("dv", &gradients.dv, &expected.dv, 1e-13);
    assert_near(
        "decay",
        &gradients.ddecay.unwrap(),
        &expected.ddecay.unwrap(),
        1e-13,
    );
}

/// Part of a problem of one head, from step `from` to `to`.
fn part<'a>(forward: &Forward<'a>, from: usize, to: usize) -> Forward<'a> {
    let rows = |values: &'a [f64], width: usize| &values[from * width..to * width];
    Forward {
        seqlen: to - from,
        q: rows(forward.q, forward.dk),
        k: rows(forward.k, forward.dk),
        v: rows(forward.v, forward.dv),
        decay: match forward.decay {
            Decay::PerChannel(decay) => Decay::PerChannel(rows(decay, forward.dk)),
            other => other,
        },
        rule: match forward.rule {
            Rule::Linear => Rule::Linear,
            Rule::Delta { beta } => Rule::Delta {
                beta: rows(beta, 1),
            },
        },
        ..*forward
    }
}

/// A segment's end state is its own from zeros, plus what is left of the state before it: by the linear rule each row
/// times its decays, by the delta rule a matrix times it, which the segment makes of the identity if all values are 0.
#[test]
fn segments_pass_states_on() {
    for delta in [false, true] {
        let inputs = Inputs::new(Case {
            batch: 1,
            heads: 1,
            shared: [1; 3],
            dk: 3,
            dv: 3,
            decay: Fades::PerChannel,
            delta,
            ..CASE
        });
        let whole = inputs.forward();
        let expected = whole.run().unwrap();
        let mut state = inputs.initial_state.clone();
        let mut out = Vec::new();
        for (from, to) in [(0, 3), (3, 4), (4, 7)] {
            let segment = part(&whole, from, to);
            let from_zeros = Forward {
                initial_state: None,
                ..segment
            };
            let identity: Vec<f64> = (0..9).map(|at| f64::from(at % 4 == 0)).collect();
            let passes = Forward {
                v: &vec![0.0; 3 * (to - from)],
                initial_state: Some(&identity),
                ..segment
            };
            let passed = passes.run().unwrap().final_state;
            let local = from_zeros.run().unwrap().final_state;
            let start = state.clone();
            let from_start = Forward {
                initial_state: Some(&start),
                ..segment
            };
            out.extend(from_start.run().unwrap().out);
            for c in 0..3 {
                for e in 0..3 {
                    let left = (0..3).map(|b| passed[c * 3 + b] * start[b * 3 + e]);
                    state[c * 3 + e] = local[c * 3 + e] + left.sum::<f64>();
                }
            }
            let mixes = (0..9).any(|at| at % 4 != 0 && passed[at] != 0.0);
            assert_eq!(mixes, delta, "off the diagonal");
        }
        assert_near("out", &out, &expected.out, 1e-12);
        assert_near("state", &state, &expected.final_state, 1e-12);
    }
}

/// A number of 8 significant bits, as bf16 has.
fn eight_bits(x: f64) -> f64 {
    if x == 0.0 {
        return x;
    }
    let unit = (x.abs().log2().floor() - 7.0).exp2();
    (x / unit).round() * unit
}

/// Everything is rounded, and no sum over many steps makes more of it: not even for the gradients of strong decays,
/// which are small beside those of queries and keys.
#[test]
fn roundings_of_chunks_stay_small() {
    for (name, decay_mean, delta, reads) in [
        ("weak", -0.76, false, Which::Updated),
        ("strong", -2.0, false, Which::Updated),
        ("bonus", -1.0, false, Which::Bonus),
        ("delta", -1.0, true, Which::Updated),
    ] {
        let case = Case {
            name,
            batch: 1,
            seqlen: 300,
            heads: 1,
            shared: [1; 3],
            dk: 8,
            dv: 8,
            decay: Fades::PerChannel,
            decay_mean,
            delta,
            reads,
            ..CASE
        };
        let mut inputs = Inputs::new(case);
        for key in inputs.k.chunks_mut(case.dk) {
            let length = key.iter().map(|x| x * x).sum::<f64>().sqrt();
            key.iter_mut().for_each(|x| *x /= length);
        }
        let near = |what: &str, found: &[f64], expected: &[f64]| {
            let pairs = found.iter().zip(expected);
            let distance: f64 = pairs.map(|(x, y)| (x - y).powi(2)).sum();
            let length: f64 = expected.iter().map(|x| x * x).sum();
            let error = (distance / length).sqrt();
            assert!((3e-4..8e-3).contains(&error), "{name}: {what}: {error}");
        };
        let (forward, backward) = (inputs.forward(), inputs.backward());
        let chunks = Chunks::default();
        let found = forward.run_chunked_rounded(chunks, eight_bits).unwrap();
        let expected = forward.run().unwrap();
        near("out", &found.out, &expected.out);
        near("final_state", &found.final_state, &expected.final_state);
        let found = backward.run_chunked_rounded(chunks, eight_bits).unwrap();
        let expected = backward.run().unwrap();
        near("dq", &found.dq, &expected.dq);
        near("dk", &found.dk, &expected.dk);
        near("dv", &found.dv, &expected.dv);
        let both = found.ddecay.zip(expected.ddecay);
        let (found_decay, expected_decay) = both.unwrap();
        near("ddecay", &found_decay, &expected_decay);
        if let Some((found, expected)) = found.dbeta.zip(expected.dbeta) {
            near("dbeta", &found, &expected);
        }
        let (found, expected) = (found.dinitial_state, expected.dinitial_state);
        near("dinitial_state", &found, &expected);
    }
}

#[test]
fn chunks_of_no_steps_are_refused() {
    let inputs = Inputs::new(Case {
        feature_map: FeatureMap::Relu,
        ..CASE
    });
    for (chunk, sub_chunk, text) in [
        (0, 1, "steps of a chunk: expected 1, found 0"),
        (1, 0, "steps of a sub-chunk: expected 1, found 0"),
    ] {
        let chunks = Chunks { chunk, sub_chunk };
        let error = inputs.forward().run_chunked(chunks).unwrap_err();
        assert_eq!(error.to_string(), text);
        let error = inputs.backward().run_chunked(chunks).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}
