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
