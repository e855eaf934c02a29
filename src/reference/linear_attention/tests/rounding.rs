//! Where numbers are rounded: the recurrence and a chunk once more for states of one number, with each rounding
//! written out.

use super::{CASE, Case, Chunks, Fades, FeatureMap, Inputs, assert_near};
use crate::reference::linear_attention::{Backward, Forward};

fn coarse(x: f64) -> f64 {
    (x * 8.0).round() / 8.0
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

#[test]
fn rounding_applies_to_products_and_to_results() {
    let case = Case {
        batch: 1,
        seqlen: 40,
        heads: 1,
        shared: [1; 3],
        dk: 1,
        dv: 1,
        feature_map: FeatureMap::Silu,
        decay: Fades::PerStep,
        delta: true,
        ..CASE
    };
    let inputs = Inputs::new(case);
    let q: Vec<f64> = inputs.q.iter().map(|&q| 0.7 * coarse(silu(q))).collect();
    let k: Vec<f64> = inputs.k.iter().map(|&k| coarse(silu(k))).collect();
    let (mut kept, mut errors, mut us, mut out) = (vec![], vec![], vec![], vec![]);
    let mut states = vec![inputs.initial_state[0]];
    for t in 0..case.seqlen {
        kept.push(inputs.decay[t].exp() * states[t]);
        errors.push(inputs.v[t] - k[t] * coarse(kept[t]));
        us.push(coarse(inputs.beta[t] * errors[t]));
        states.push(kept[t] + k[t] * us[t]);
        out.push(coarse(q[t] * coarse(states[t + 1])));
    }
    let found = inputs.forward().run_rounded(coarse).unwrap();
    assert_near("out", &found.out, &out, 1e-14);
    assert_near("state", &found.final_state, &states[case.seqlen..], 1e-14);

    let found = inputs.backward().run_rounded(coarse).unwrap();
    let slope = |x: f64| case.feature_map.derivative(x);
    let mut g = inputs.dfinal_state[0];
    for t in (0..case.seqlen).rev() {
        let near = |name: &str, found: f64, expected: f64| {
            assert_near(&format!("{name} {t}"), &[found], &[expected], 1e-14);
        };
        let dout = inputs.dout[t];
        let dq = 0.7 * coarse(states[t + 1]) * dout;
        near("dq", found.dq[t], coarse(slope(inputs.q[t]) * dq));
        g += q[t] * dout;
        let du = k[t] * coarse(g);
        let dv = coarse(inputs.beta[t] * du);
        near("dv", found.dv[t], dv);
        let dbeta = &found.dbeta.as_ref().unwrap()[t];
        near("dbeta", *dbeta, coarse(du * errors[t]));
        let dk = coarse(g) * us[t] - coarse(kept[t]) * dv;
        near("dk", found.dk[t], coarse(slope(inputs.k[t]) * dk));
        g -= k[t] * dv;
        near("ddecay", found.ddecay.as_ref().unwrap()[t], g * kept[t]);
        g *= inputs.decay[t].exp();
    }
    assert_near("dinitial_state", &found.dinitial_state, &[g], 1e-14);
}

/// The division is in `f32`, and what it makes of gradients enters products.
#[test]
fn rounding_applies_to_normalised_results() {
    let problem = Forward {
        batch: 1,
        seqlen: 1,
        heads: 1,
        heads_q: 1,
        heads_k: 1,
        heads_v: 1,
        dk: 1,
        dv: 1,
        q: &[1.0],
        k: &[0.8],
        v: &[1.5],
        scale: Some(1.0),
        normalize: Some(0.125),
        ..Forward::default()
    };
    // k: 0.75; the state 1.125 and z 0.75 are read as they are: 1.125 / 0.875 = 1.286 -> 1.25
    assert_eq!(problem.run_rounded(coarse).unwrap().out, [1.25]);
    let backward = Backward {
        forward: problem,
        dout: &[1.0],
        ..Backward::default()
    };
    let gradients = backward.run_rounded(coarse).unwrap();
    // 1 / 0.875 = 1.143 -> 1.125, and -1.125 / 0.766 = -1.469 -> -1.5
    assert_eq!(gradients.dv, [0.875]); // 0.75 * 1.125 = 0.844
    assert_eq!(gradients.dq, [0.125]); // 1.125 * 1.125 - 0.75 * 1.5 = 0.141
    assert_eq!(gradients.dk, [0.25]); // 1.125 * 1.5 - 1.5 * 1 = 0.1875 -> 0.25
}

#[test]
fn rounding_applies_to_operands_of_chunks() {
    let case = Case {
        batch: 24,
        seqlen: 2,
        heads: 1,
        shared: [1; 3],
        dk: 1,
        dv: 1,
        feature_map: FeatureMap::Silu,
        decay: Fades::PerStep,
        decay_mean: -0.75,
        delta: true,
        ..CASE
    };
    let inputs = Inputs::new(case);
    let chunks = Chunks {
        chunk: 2,
        sub_chunk: 1,
    };
    let found = inputs
        .forward()
        .run_chunked_rounded(chunks, coarse)
        .unwrap();
    let gradients = inputs
        .backward()
        .run_chunked_rounded(chunks, coarse)
        .unwrap();
    for i in 0..case.batch {
        let at = |values: &[f64]| [values[2 * i], values[2 * i + 1]];
        let near = |name: &str, found: [f64; 2], expected: [f64; 2]| {
            assert_near(&format!("{name} {i}"), &found, &expected, 1e-14);
        };
        let q = at(&inputs.q).map(|q| 0.7 * coarse(silu(q)));
        let k = at(&inputs.k).map(|k| coarse(silu(k)));
        let (v, beta) = (at(&inputs.v), at(&inputs.beta));
        let decay = at(&inputs.decay).map(f64::exp);
        let until = [decay[0], decay[0] * decay[1]];
        let state = inputs.initial_state[i];
        let read = coarse(state);
        // operands
        let q_before = [coarse(q[0] * until[0]), coarse(q[1] * until[1])];
        let k_before = [coarse(k[0] * until[0]), coarse(k[1] * until[1])];
        let k_after = [coarse(k[0] * decay[1]), k[1]];
        let (q_left, k_left, k_right) = (coarse(q[1] * decay[1]), coarse(k[1] * decay[1]), k[0]);
        let m = k_left * k_right;
        let (t, t_below) = (beta.map(coarse), coarse(-beta[1] * m * beta[0]));
        let w = [
            coarse(t[0] * k_before[0]),
            coarse(t_below * k_before[0] + t[1] * k_before[1]),
        ];
        let u = [
            coarse(t[0] * v[0] - w[0] * read),
            coarse(t_below * v[0] + t[1] * v[1] - w[1] * read),
        ];
        let (a, a_below) = (
            [coarse(q[0] * k[0]), coarse(q[1] * k[1])],
            coarse(q_left * k_right),
        );
        let out = [
            coarse(q_before[0] * read + a[0] * u[0]),
            coarse(q_before[1] * read + a_below * u[0] + a[1] * u[1]),
        ];
        near("out", at(&found.out), out);
        let last = until[1] * state + k_after[0] * u[0] + k_after[1] * u[1];
        assert_near("state", &found.final_state[i..i + 1], &[last], 1e-14);

        let (dout, g) = (at(&inputs.dout), inputs.dfinal_state[i]);
        let du = [
            a[0] * dout[0] + a_below * dout[1] + k_after[0] * coarse(g),
            a[1] * dout[1] + k_after[1] * coarse(g),
        ];
        let narrow = du.map(coarse);
        let dv = [
            coarse(t[0] * narrow[0] + t_below * narrow[1]),
            coarse(t[1] * narrow[1]),
        ];
        near("dv", at(&gradients.dv), dv);
        let errors = [
            v[0] - k_before[0] * read,
            v[1] - (k_before[1] * read + coarse(m) * u[0]),
        ];
        let dbeta = [(du[0] - coarse(m) * dv[1]) * errors[0], du[1] * errors[1]];
        near(
            "dbeta",
            at(gradients.dbeta.as_ref().unwrap()),
            dbeta.map(coarse),
        );

        let (da, da_below) = (
            [0, 1].map(|i| coarse(dout[i] * u[i])),
            coarse(dout[1] * u[0]),
        );
        let dm = coarse(-dv[1] * u[0]);
        let from_before = [0, 1].map(|i| dout[i] * read * until[i]);
        let dq = [
            from_before[0] + da[0] * k[0],
            from_before[1] + da_below * k_right * decay[1] + da[1] * k[1],
        ];
        let slope = |x: f64| case.feature_map.derivative(x);
        let raw = at(&inputs.q);
        let expected = [0, 1].map(|i| coarse(0.7 * dq[i] * slope(raw[i])));
        near("dq", at(&gradients.dq), expected);
        let to_beyond = [u[0] * coarse(g) * decay[1], u[1] * coarse(g)];
        let looked_up = [0, 1].map(|i| -dv[i] * read * until[i]);
        let dk = [
            to_beyond[0] + looked_up[0] + da[0] * q[0] + da_below * q_left + dm * k_left,
            to_beyond[1] + looked_up[1] + da[1] * q[1] + dm * k_right * decay[1],
        ];
        let raw = at(&inputs.k);
        let expected = [0, 1].map(|i| coarse(dk[i] * slope(raw[i])));
        near("dk", at(&gradients.dk), expected);

        let passing = g * until[1] * state;
        let rows = [0, 1].map(|i| q[i] * from_before[i] + k[i] * looked_up[i]);
        let between = (da_below * q_left + dm * k_left) * k_right;
        let ddecay = [
            passing + rows[0] + rows[1],
            passing + rows[1] + k[0] * to_beyond[0] + between,
        ];
        near("ddecay", at(gradients.ddecay.as_ref().unwrap()), ddecay);
        let first = until[1] * g + q_before[0] * dout[0] + q_before[1] * dout[1]
            - k_before[0] * dv[0]
            - k_before[1] * dv[1];
        assert_near(
            "dinitial_state",
            &gradients.dinitial_state[i..i + 1],
            &[first],
            1e-14,
        );
    }
}
