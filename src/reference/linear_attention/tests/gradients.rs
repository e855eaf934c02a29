//! The gradients of each kind of attention against finite differences.

use super::{CASE, CASES, Case, Fades, FeatureMap, Inputs, Rule, assert_near};
use crate::reference::differences::assert_gradient;
use crate::reference::linear_attention::{Backward, Forward};

/// Confirms the gradient of every input of a problem.
fn check(case: Case) {
    let inputs = Inputs::new(case);
    let forward = inputs.forward();
    let gradients = inputs.backward().run().unwrap();
    let loss = |forward: Forward<'_>| {
        let result = forward.run().unwrap();
        let z = result.final_z.unwrap_or_default();
        let parts = [
            (&result.out, &inputs.dout),
            (&result.final_state, &inputs.dfinal_state),
            (&z, &inputs.dfinal_z),
        ];
        let products = parts.into_iter().flat_map(|(x, dx)| x.iter().zip(dx));
        products.map(|(x, dx)| x * dx).sum::<f64>()
    };
    let check = |name: &str, input: &[f64], gradient: &[f64], with: &dyn Fn(&[f64]) -> f64| {
        assert_gradient(&format!("{}: {name}", case.name), input, gradient, with);
    };
    check("q", &inputs.q, &gradients.dq, &|q| {
        loss(Forward { q, ..forward })
    });
    check("k", &inputs.k, &gradients.dk, &|k| {
        loss(Forward { k, ..forward })
    });
    check("v", &inputs.v, &gradients.dv, &|v| {
        loss(Forward { v, ..forward })
    });
    let found = gradients.ddecay.unwrap_or_default();
    check("decay", &inputs.decay, &found, &|decay| {
        let decay = inputs.decays(decay);
        loss(Forward { decay, ..forward })
    });
    assert_eq!(gradients.dbeta.is_some(), case.delta);
    if let Some(dbeta) = &gradients.dbeta {
        check("beta", &inputs.beta, dbeta, &|beta| {
            let rule = Rule::Delta { beta };
            loss(Forward { rule, ..forward })
        });
    }
    if let Some(dbonus) = &gradients.dbonus {
        check("bonus", &inputs.bonus, dbonus, &|bonus| {
            let readout = inputs.readout(bonus);
            loss(Forward { readout, ..forward })
        });
    }
    // absent states count as zeros
    let zeros = vec![0.0; inputs.initial_state.len()];
    let state = forward.initial_state.unwrap_or(&zeros);
    check("state", state, &gradients.dinitial_state, &|state| {
        let initial_state = Some(state);
        loss(Forward {
            initial_state,
            ..forward
        })
    });
    assert_eq!(gradients.dinitial_z.is_some(), case.normalize.is_some());
    if let (Some(z), Some(dz)) = (forward.initial_z, &gradients.dinitial_z) {
        check("z", z, dz, &|z| {
            let initial_z = Some(z);
            loss(Forward {
                initial_z,
                ..forward
            })
        });
    }
}

#[test]
fn gradients_are_finite_differences() {
    for case in CASES {
        check(Case {
            seqlen: case
                .seqlen
                .min(5)
                .max(case.cu_seqlens.map_or(0, |ends| ends[3])),
            ..case
        });
    }
}

#[test]
fn gradients_pass_through_each_feature_map() {
    for feature_map in [
        FeatureMap::EluPlusOne,
        FeatureMap::Relu,
        FeatureMap::ReluSquared,
        FeatureMap::Silu,
        FeatureMap::Exp,
    ] {
        let name = "feature map";
        check(Case {
            name,
            feature_map,
            batch: 1,
            seqlen: 4,
            ..CASE
        });
    }
}

/// What kernels use: the gradient of a step's decay is that of the next step's, plus `q dq - k dk`; behind the last
/// step stands the product of the last state and its gradient, and before the first one that of the initial state and
/// its.
#[test]
fn gradients_of_decays_are_running_sums() {
    let case = Case {
        batch: 1,
        decay: Fades::PerChannel,
        ..CASE
    };
    let inputs = Inputs::new(case);
    let last = inputs.forward().run().unwrap().final_state;
    let gradients = inputs.backward().run().unwrap();
    let rows = |x: &[f64], dx: &[f64]| -> Vec<f64> {
        let products: Vec<f64> = x.iter().zip(dx).map(|(x, dx)| x * dx).collect();
        products
            .chunks(case.dv)
            .map(|row| row.iter().sum())
            .collect()
    };
    let mut sums = rows(&last, &inputs.dfinal_state);
    let width = case.heads * case.dk;
    let ddecay = gradients.ddecay.unwrap();
    for t in (0..case.seqlen).rev() {
        for (c, sum) in sums.iter_mut().enumerate() {
            let at = t * width + c;
            *sum += inputs.q[at] * gradients.dq[at] - inputs.k[at] * gradients.dk[at];
        }
        assert_near("decay", &sums, &ddecay[t * width..][..width], 1e-13);
    }
    let first = rows(&inputs.initial_state, &gradients.dinitial_state);
    assert_near("first", &sums, &first, 1e-13);
}

#[test]
fn the_default_scale_is_that_of_attention() {
    let inputs = Inputs::new(CASE);
    let with = |scale| {
        let forward = Forward {
            scale,
            ..inputs.forward()
        };
        let gradients = Backward {
            forward,
            ..inputs.backward()
        };
        (forward.run().unwrap(), gradients.run().unwrap())
    };
    assert_eq!(with(None), with(Some(1.0 / 3.0_f64.sqrt())));
}

/// The recurrence and its gradients once more for states of one number, with each rounding written out.
#[test]
fn rounding_applies_to_products_and_to_results() {
    let coarse = |x: f64| (x * 8.0).round() / 8.0;
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let case = Case {
        batch: 1,
        seqlen: 6,
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
    let coarse = |x: f64| (x * 8.0).round() / 8.0;
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
