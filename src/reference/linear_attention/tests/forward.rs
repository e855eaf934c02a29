//! Attention against other ways to write it.

use super::{CASE, CASES, Case, Decay, Fades, FeatureMap, Inputs, Rule, Which, assert_near};
use crate::reference::linear_attention::{Backward, Forward, Step};

/// The form that gave linear attention its name: scores of each query with each key, decayed, times values.
#[test]
fn the_recurrence_is_attention_with_decay() {
    for (decay, reads) in [
        (Fades::None, Which::Updated),
        (Fades::PerHead, Which::Updated),
        (Fades::PerStep, Which::Updated),
        (Fades::PerChannel, Which::Updated),
        (Fades::PerChannel, Which::Bonus),
        (Fades::None, Which::Last),
    ] {
        let case = Case {
            heads: 4,
            shared: [2; 3],
            decay,
            reads,
            feature_map: FeatureMap::EluPlusOne,
            normalize: Some(0.25),
            initial: false,
            ..CASE
        };
        let inputs = Inputs::new(case);
        let Case {
            batch,
            seqlen,
            heads,
            dk,
            dv,
            ..
        } = case;
        let map = |x: f64| if x > 0.0 { x + 1.0 } else { x.exp() };
        let mut expected = Vec::new();
        for token in 0..batch * seqlen {
            let (b, t) = (token / seqlen, token % seqlen);
            for h in 0..heads {
                let gate = |s: usize, c: usize| match decay {
                    Fades::None => 0.0,
                    Fades::PerHead => inputs.decay[h],
                    Fades::PerStep => inputs.decay[(b * seqlen + s) * heads + h],
                    Fades::PerChannel => inputs.decay[((b * seqlen + s) * heads + h) * dk + c],
                };
                let (mut sums, mut divisor) = (vec![0.0; dv], 0.25);
                for s in 0..seqlen {
                    if reads != Which::Last && s > t {
                        continue;
                    }
                    let mut score = 0.0;
                    for c in 0..dk {
                        let factor = match reads {
                            Which::Last => 1.0,
                            Which::Bonus if s == t => inputs.bonus[h * dk + c],
                            Which::Bonus => (s + 1..t).map(|r| gate(r, c)).sum::<f64>().exp(),
                            Which::Updated => (s + 1..=t).map(|r| gate(r, c)).sum::<f64>().exp(),
                        };
                        let q = inputs.q[(token * 2 + h / 2) * dk + c];
                        let k = inputs.k[((b * seqlen + s) * 2 + h / 2) * dk + c];
                        score += 0.7 * map(q) * map(k) * factor;
                    }
                    let v = &inputs.v[((b * seqlen + s) * 2 + h / 2) * dv..];
                    for (sum, v) in sums.iter_mut().zip(v) {
                        *sum += score * v;
                    }
                    divisor += score;
                }
                expected.extend(sums.iter().map(|sum| sum / divisor));
            }
        }
        let found = inputs.forward().run().unwrap();
        assert_near(
            &format!("{decay:?}, {reads:?}"),
            &found.out,
            &expected,
            1e-13,
        );
    }
}

/// With `beta` 1, keys that are orthogonal and of length 1 hold one value each: the last that was written.
#[test]
fn the_delta_rule_replaces_what_a_key_holds() {
    let problem = Forward {
        batch: 1,
        seqlen: 4,
        heads: 1,
        heads_q: 1,
        heads_k: 1,
        heads_v: 1,
        dk: 2,
        dv: 1,
        q: &[0.6, 0.8, 0.8, -0.6, 0.6, 0.8, 0.8, -0.6],
        k: &[0.6, 0.8, 0.8, -0.6, 0.6, 0.8, 0.6, 0.8],
        v: &[5.0, 7.0, 11.0, 4.0],
        scale: Some(1.0),
        rule: Rule::Delta {
            beta: &[1.0, 1.0, 1.0, 0.25],
        },
        ..Forward::default()
    };
    // the first key holds 5, then 11; the second one 7, also after a quarter of the way from 11 to 4
    assert_near(
        "out",
        &problem.run().unwrap().out,
        &[5.0, 7.0, 11.0, 7.0],
        1e-14,
    );
    let last = problem.run().unwrap().final_state;
    let held = 0.6 * last[0] + 0.8 * last[1];
    assert_near("held", &[held], &[11.0 - 7.0 / 4.0], 1e-14);
}

/// The gated delta rule as its authors write it: `S (a (I - b k k^T)) + b v k^T`, of the transposed state.
#[test]
fn the_gated_delta_rule_is_a_product_of_matrices() {
    let inputs = Inputs::new(Case {
        batch: 1,
        heads: 1,
        shared: [1; 3],
        decay: Fades::PerStep,
        delta: true,
        ..CASE
    });
    let (dk, dv) = (CASE.dk, CASE.dv);
    let mut state = inputs.initial_state.clone();
    for t in 0..CASE.seqlen {
        let (k, v) = (&inputs.k[t * dk..][..dk], &inputs.v[t * dv..][..dv]);
        let (a, b) = (inputs.decay[t].exp(), inputs.beta[t]);
        let before = state.clone();
        for c in 0..dk {
            for e in 0..dv {
                state[c * dv + e] = b * k[c] * v[e];
                for d in 0..dk {
                    let turn = a * (f64::from(c == d) - b * k[c] * k[d]);
                    state[c * dv + e] += turn * before[d * dv + e];
                }
            }
        }
    }
    let found = inputs.forward().run().unwrap();
    assert_near("state", &found.final_state, &state, 1e-13);
}

#[test]
fn a_normaliser_is_a_channel_of_ones() {
    for case in CASES.into_iter().filter(|case| case.normalize.is_some()) {
        let inputs = Inputs::new(case);
        let found = inputs.forward().run().unwrap();
        let wide = |rows: &[f64], last: &dyn Fn(usize) -> f64| -> Vec<f64> {
            let rows = rows.chunks(case.dv).enumerate();
            rows.flat_map(|(at, row)| [row, &[last(at)]].concat())
                .collect()
        };
        let states = inputs.forward().initial_state;
        let states = states.map(|states| wide(states, &|at| inputs.initial_z[at]));
        let plain = Forward {
            dv: case.dv + 1,
            v: &wide(&inputs.v, &|_| 1.0),
            normalize: None,
            initial_state: states.as_deref(),
            initial_z: None,
            ..inputs.forward()
        };
        let expected = plain.run().unwrap();
        let mut out = Vec::new();
        for row in expected.out.chunks(case.dv + 1) {
            let divisor = row[case.dv] + case.normalize.unwrap();
            out.extend(row[..case.dv].iter().map(|x| x / divisor));
        }
        assert_near(case.name, &found.out, &out, 1e-14);
        let z: Vec<f64> = expected
            .final_state
            .chunks(case.dv + 1)
            .map(|row| row[case.dv])
            .collect();
        assert_eq!(found.final_z, Some(z), "{}", case.name);
    }
}

/// The elements of step `t` of a tensor that has the axes of batches and steps first.
fn at(tensor: &[f64], case: Case, t: usize) -> Vec<f64> {
    let width = tensor.len() / (case.batch * case.seqlen);
    let sequences = tensor.chunks(case.seqlen * width);
    let steps = sequences.flat_map(|steps| &steps[t * width..(t + 1) * width]);
    steps.copied().collect()
}

#[test]
fn steps_make_the_whole() {
    let causal = |case: &Case| case.cu_seqlens.is_none() && case.reads != Which::Last;
    for case in CASES.into_iter().filter(causal) {
        let inputs = Inputs::new(case);
        let expected = inputs.forward().run().unwrap();
        let mut state = inputs.initial_state.clone();
        let mut z = case.normalize.map(|_| inputs.initial_z.clone());
        for t in 0..case.seqlen {
            let decay = match case.decay {
                Fades::None | Fades::PerHead => inputs.decay.clone(),
                Fades::PerStep | Fades::PerChannel => at(&inputs.decay, case, t),
            };
            let beta = at(&inputs.beta, case, t);
            let step = Step {
                batch: case.batch,
                heads: case.heads,
                heads_q: case.shared[0],
                heads_k: case.shared[1],
                heads_v: case.shared[2],
                dk: case.dk,
                dv: case.dv,
                q: &at(&inputs.q, case, t),
                k: &at(&inputs.k, case, t),
                v: &at(&inputs.v, case, t),
                feature_map: case.feature_map,
                scale: Some(0.7),
                decay: inputs.decays(&decay),
                rule: match case.delta {
                    false => Rule::Linear,
                    true => Rule::Delta { beta: &beta },
                },
                readout: inputs.readout(&inputs.bonus),
                normalize: case.normalize,
                state: &state,
                z: z.as_deref(),
            };
            let step = step.run().unwrap();
            assert_eq!(
                step.out,
                at(&expected.out, case, t),
                "{}: step {t}",
                case.name
            );
            (state, z) = (step.final_state, step.final_z);
        }
        assert_eq!((state, z), (expected.final_state, expected.final_z));
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    for case in CASES {
        let Some(cu_seqlens) = case.cu_seqlens else {
            continue;
        };
        let inputs = Inputs::new(case);
        let packed = inputs.forward();
        let found = packed.run().unwrap();
        let gradients = inputs.backward().run().unwrap();
        let (mut out, mut final_state, mut dq) = (Vec::new(), Vec::new(), Vec::new());
        for (i, ends) in cu_seqlens.windows(2).enumerate() {
            let part = |tensor| {
                let tensor: &Vec<f64> = tensor;
                let width = tensor.len() / case.seqlen;
                &tensor[ends[0] * width..ends[1] * width]
            };
            let size = inputs.initial_state.len() / 3;
            let state = |states: &'_ Vec<f64>| states[i * size..(i + 1) * size].to_vec();
            let initial_state = state(&inputs.initial_state);
            let alone = Forward {
                seqlen: ends[1] - ends[0],
                q: part(&inputs.q),
                k: part(&inputs.k),
                v: part(&inputs.v),
                decay: inputs.decays(part(&inputs.decay)),
                rule: match packed.rule {
                    Rule::Linear => Rule::Linear,
                    Rule::Delta { .. } => Rule::Delta {
                        beta: part(&inputs.beta),
                    },
                },
                initial_state: Some(&initial_state),
                cu_seqlens: None,
                ..packed
            };
            let backward = Backward {
                forward: alone,
                dout: part(&inputs.dout),
                dfinal_state: Some(&state(&inputs.dfinal_state)),
                dfinal_z: None,
            };
            dq.extend(backward.run().unwrap().dq);
            let alone = alone.run().unwrap();
            out.extend(alone.out);
            final_state.extend(alone.final_state);
        }
        assert_eq!(found.out, out, "{}", case.name);
        assert_eq!(found.final_state, final_state, "{}", case.name);
        assert_eq!(gradients.dq, dq, "{}", case.name);
    }
}

#[test]
fn an_empty_sequence_keeps_its_state() {
    let inputs = Inputs::new(Case {
        seqlen: 0,
        reads: Which::Last,
        ..CASE
    });
    let result = inputs.forward().run().unwrap();
    assert_eq!(
        (result.out, result.final_state),
        (vec![], inputs.initial_state.clone())
    );
    let gradients = inputs.backward().run().unwrap();
    assert_eq!(gradients.dinitial_state, inputs.dfinal_state);
}

#[test]
fn sizes_that_disagree_are_named() {
    let inputs = Inputs::new(CASE);
    let problem = inputs.forward();
    let text = |problem: Forward<'_>| problem.run().unwrap_err().to_string();
    assert_eq!(
        text(Forward {
            heads_k: 4,
            ..problem
        }),
        "heads (a multiple of heads_k): expected 4, found 2"
    );
    assert_eq!(
        text(Forward {
            heads_v: 1,
            ..problem
        }),
        "length of v: expected 28, found 56"
    );
    assert_eq!(
        text(Forward {
            decay: Decay::PerStep(&[0.0; 2]),
            ..problem
        }),
        "length of decay: expected 28, found 2"
    );
    assert_eq!(
        text(Forward {
            rule: Rule::Delta { beta: &[] },
            ..problem
        }),
        "length of beta: expected 28, found 0"
    );
    // without a normaliser there is no z
    assert_eq!(
        text(Forward {
            initial_z: Some(&[0.0; 12]),
            ..problem
        }),
        "length of initial_z: expected 0, found 12"
    );
    assert_eq!(
        text(Forward {
            heads: usize::MAX - 1,
            ..problem
        }),
        format!("length of out: expected {0}, found {0}", usize::MAX)
    );
    let backward = Backward {
        dout: &[],
        ..inputs.backward()
    };
    let error = backward.run().unwrap_err().to_string();
    assert_eq!(error, "length of dout: expected 56, found 0");
}
