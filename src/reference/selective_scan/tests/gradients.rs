//! The gradients of the scan against finite differences.

use num_complex::Complex64;

use super::{Draw, Inputs, SIZES, Sizes, assert_near};
use crate::reference::differences::{assert_gradient, noise};
use crate::reference::selective_scan::{Backward, Coefficient, Direction, Forward};

/// Confirms the gradient of every input of a problem.
fn check_gradients<S: Draw>(sizes: Sizes, change: impl Fn(&mut Forward<'_, S>)) {
    let inputs = Inputs::<S>::new(sizes);
    let mut forward = inputs.problem(sizes);
    change(&mut forward);
    let (dout, dlast_state) = (
        noise(10, inputs.u.len()),
        S::draw(11, inputs.initial_state.len()),
    );
    let backward = Backward {
        forward,
        dout: &dout,
        dlast_state: Some(&dlast_state),
    };
    let gradients = backward.run().unwrap();
    let dlast = S::parts(&dlast_state);
    let loss = |forward: Forward<'_, S>| {
        let result = forward.run().unwrap();
        let last = S::parts(&result.last_state);
        let pairs = result.out.iter().zip(&dout).chain(last.iter().zip(&dlast));
        pairs.map(|(x, dx)| x * dx).sum::<f64>()
    };
    assert_gradient("u", &inputs.u, &gradients.du, |u| {
        loss(Forward { u, ..forward })
    });
    assert_gradient("delta", &inputs.delta, &gradients.ddelta, |delta| {
        loss(Forward { delta, ..forward })
    });
    assert_gradient("D", &inputs.d, &gradients.dd, |d| {
        let d = Some(d);
        loss(Forward { d, ..forward })
    });
    assert_eq!(gradients.dz.is_some(), forward.z.is_some());
    if let Some(dz) = &gradients.dz {
        assert_gradient("z", &inputs.z, dz, |z| {
            let z = Some(z);
            loss(Forward { z, ..forward })
        });
    }
    let found = &gradients.ddelta_bias;
    assert_gradient("delta_bias", &inputs.delta_bias, found, |delta_bias| {
        let delta_bias = Some(delta_bias);
        loss(Forward {
            delta_bias,
            ..forward
        })
    });
    let assert_parts = |name, input: &[S], gradient: &[S], loss: &dyn Fn(&[S]) -> f64| {
        let (input, gradient) = (S::parts(input), S::parts(gradient));
        assert_gradient(name, &input, &gradient, |parts| loss(&S::whole(parts)));
    };
    assert_parts("A", &inputs.a, &gradients.da, &|a| {
        loss(Forward { a, ..forward })
    });
    assert_parts("B", &inputs.b, &gradients.db, &|values| {
        let b = sizes.coefficient(values);
        loss(Forward { b, ..forward })
    });
    assert_parts("C", &inputs.c, &gradients.dc, &|values| {
        let c = sizes.coefficient(values);
        loss(Forward { c, ..forward })
    });
    let found = &gradients.dinitial_state;
    assert_parts("initial_state", &inputs.initial_state, found, &|state| {
        let initial_state = Some(state);
        loss(Forward {
            initial_state,
            ..forward
        })
    });
}

const SMALL: Sizes = Sizes {
    batch: 2,
    dim: 2,
    seqlen: 3,
    dstate: 2,
    groups: 1,
    sequences: 2,
    constant: false,
};

#[test]
fn gradients_are_finite_differences() {
    for constant in [false, true] {
        let sizes = Sizes { constant, ..SMALL };
        check_gradients::<f64>(sizes, |_| ());
        check_gradients::<Complex64>(sizes, |_| ());
    }
    let groups = Sizes {
        dim: 4,
        groups: 2,
        ..SMALL
    };
    check_gradients::<f64>(groups, |problem| problem.direction = Direction::Reverse);
    check_gradients::<f64>(SMALL, |problem| {
        (problem.z, problem.delta_softplus) = (None, false);
    });
}

#[test]
fn gradients_of_packed_sequences_are_finite_differences() {
    let sizes = Sizes {
        batch: 1,
        seqlen: 5,
        sequences: 3,
        ..SMALL
    };
    for direction in [Direction::Forward, Direction::Reverse] {
        check_gradients::<f64>(sizes, |problem| {
            problem.cu_seqlens = Some(&[0, 2, 2, 5]);
            problem.direction = direction;
        });
        check_gradients::<Complex64>(sizes, |problem| {
            problem.cu_seqlens = Some(&[0, 1, 5, 5]);
            problem.direction = direction;
        });
    }
}

/// Step sizes of 100 and decays of 1e4: exponents of a million, none of them positive.
#[test]
fn extreme_numbers_stay_finite() {
    let steps = 300;
    let delta: Vec<f64> = (0..steps).map(|t| [-100.0, 100.0, 0.0][t % 3]).collect();
    let u: Vec<f64> = (0..steps).map(|t| [1e4, -1e4][t % 2]).collect();
    let ones = vec![1e4; 2 * steps];
    let forward = Forward {
        batch: 1,
        dim: 1,
        seqlen: steps,
        dstate: 2,
        groups: 1,
        u: &u,
        delta: &delta,
        a: &[-1e4, -1e-3],
        b: Coefficient::Variable(&ones),
        c: Coefficient::Variable(&ones),
        z: Some(&u),
        delta_softplus: true,
        ..Forward::default()
    };
    let backward = Backward {
        forward,
        dout: &u,
        dlast_state: None,
    };
    let (result, gradients) = (forward.run().unwrap(), backward.run().unwrap());
    assert!(result.out.iter().all(|x| x.is_finite()));
    assert!(result.out.iter().any(|x| *x != 0.0));
    for gradient in [
        &gradients.du,
        &gradients.ddelta,
        &gradients.da,
        &gradients.db,
        &gradients.dc,
    ] {
        assert!(gradient.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn rounding_applies_to_what_is_stored() {
    let coarse = |x: f64| (x * 4.0).round() / 4.0;
    let problem = Forward {
        batch: 1,
        dim: 1,
        seqlen: 1,
        dstate: 1,
        u: &[1.1],
        delta: &[1.0],
        a: &[0.0],
        b: Coefficient::Constant(&[1.0]),
        c: Coefficient::Constant(&[1.0]),
        z: Some(&[1.0]),
        ..Forward::default()
    };
    // y: 1.1 -> 1; silu(1) = 0.731 -> 0.75; the state is not rounded
    let result = problem.run_rounded(coarse).unwrap();
    assert_eq!(result.out, [0.75]);
    assert_eq!(result.last_state, [1.1]);
    let backward = Backward {
        forward: problem,
        dout: &[1.1],
        dlast_state: None,
    };
    let gradients = backward.run_rounded(coarse).unwrap();
    // dy: 1.1 * 0.75 = 0.825 -> 0.75
    assert_eq!(gradients.du, [0.75]);
    assert_near(&gradients.db, &[1.1 * 0.75]);
    assert_near(&gradients.dd, &[1.1 * 0.75]);
    // silu'(1) = 0.928, 1.1 * 1 * 0.928 = 1.02 -> 1
    assert_eq!(gradients.dz, Some(vec![1.0]));
}

#[test]
fn sizes_that_disagree_are_named() {
    let inputs = Inputs::<f64>::new(SIZES);
    let problem = inputs.problem(SIZES);
    let text = |problem: Forward<'_>| problem.run().unwrap_err().to_string();
    let groups = Forward {
        groups: 3,
        ..problem
    };
    assert_eq!(
        text(groups),
        "dim (a multiple of groups): expected 6, found 4"
    );
    let none = Forward {
        groups: 0,
        ..problem
    };
    assert_eq!(text(none), "groups: expected 1, found 0");
    let constant = Forward {
        b: Coefficient::Constant(&[0.0]),
        ..problem
    };
    assert_eq!(text(constant), "length of constant B: expected 12, found 1");
    let state = Forward {
        initial_state: Some(&[0.0]),
        ..problem
    };
    assert_eq!(text(state), "length of initial_state: expected 24, found 1");
    let backward = Backward {
        forward: problem,
        dout: &inputs.u,
        dlast_state: Some(&[0.0]),
    };
    let error = backward.run().unwrap_err().to_string();
    assert_eq!(error, "length of dlast_state: expected 24, found 1");
}
