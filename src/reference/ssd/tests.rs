//! The layer against other ways to write it, and its gradients against finite differences.

use super::{Backward, Forward, Skip, Step};
use crate::reference::differences::{assert_gradient, noise};
use crate::reference::selective_scan;

/// Sizes of the problems here.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    seqlen: usize,
    nheads: usize,
    headdim: usize,
    groups: usize,
    dstate: usize,
    sequences: usize,
    per_channel: bool,
}

const SIZES: Sizes = Sizes {
    batch: 2,
    seqlen: 5,
    nheads: 4,
    headdim: 3,
    groups: 2,
    dstate: 2,
    sequences: 2,
    per_channel: false,
};

/// What a problem borrows.
struct Inputs {
    x: Vec<f64>,
    dt: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
    d: Vec<f64>,
    z: Vec<f64>,
    dt_bias: Vec<f64>,
    initial_states: Vec<f64>,
}

impl Sizes {
    /// D of these numbers.
    fn skip(self, d: &[f64]) -> Option<Skip<'_>> {
        Some(match self.per_channel {
            true => Skip::PerChannel(d),
            false => Skip::PerHead(d),
        })
    }
}

impl Inputs {
    fn new(sizes: Sizes) -> Self {
        let Sizes {
            batch,
            seqlen,
            nheads,
            headdim,
            groups,
            dstate,
            sequences,
            per_channel,
        } = sizes;
        let steps = batch * seqlen;
        let channels = if per_channel { headdim } else { 1 };
        Self {
            x: noise(1, steps * nheads * headdim),
            dt: noise(2, steps * nheads),
            a: noise(3, nheads),
            b: noise(4, steps * groups * dstate),
            c: noise(5, steps * groups * dstate),
            d: noise(6, nheads * channels),
            z: noise(7, steps * nheads * headdim),
            dt_bias: noise(8, nheads),
            initial_states: noise(9, sequences * nheads * headdim * dstate),
        }
    }

    fn problem(&self, sizes: Sizes) -> Forward<'_> {
        Forward {
            batch: sizes.batch,
            seqlen: sizes.seqlen,
            nheads: sizes.nheads,
            headdim: sizes.headdim,
            groups: sizes.groups,
            dstate: sizes.dstate,
            x: &self.x,
            dt: &self.dt,
            a: &self.a,
            b: &self.b,
            c: &self.c,
            d: sizes.skip(&self.d),
            z: Some(&self.z),
            dt_bias: Some(&self.dt_bias),
            dt_softplus: true,
            dt_limit: (0.0, f64::INFINITY),
            initial_states: Some(&self.initial_states),
            cu_seqlens: None,
        }
    }
}

fn assert_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(
            difference < 1e-12 * expected.abs().max(1.0),
            "{found} is not {expected}"
        );
    }
}

/// The dual form: a masked product of scores with values, and no state.
#[test]
fn the_recurrence_is_attention_with_decay() {
    let inputs = Inputs::new(SIZES);
    let problem = Forward {
        d: None,
        z: None,
        dt_bias: None,
        initial_states: None,
        ..inputs.problem(SIZES)
    };
    let Sizes {
        batch,
        seqlen,
        nheads,
        headdim,
        groups,
        dstate,
        ..
    } = SIZES;
    let mut expected = vec![0.0; inputs.x.len()];
    for b in 0..batch {
        for h in 0..nheads {
            let at = |t: usize| (b * seqlen + t) * nheads + h;
            let size = |t: usize| (1.0 + inputs.dt[at(t)].exp()).ln();
            let row = |t: usize| ((b * seqlen + t) * groups + h / 2) * dstate;
            for t in 0..seqlen {
                for s in 0..=t {
                    let passed: f64 = (s + 1..=t).map(size).sum();
                    let products = (0..dstate).map(|n| inputs.c[row(t) + n] * inputs.b[row(s) + n]);
                    let score = products.sum::<f64>() * (inputs.a[h] * passed).exp() * size(s);
                    for p in 0..headdim {
                        expected[at(t) * headdim + p] += score * inputs.x[at(s) * headdim + p];
                    }
                }
            }
        }
    }
    assert_near(&problem.run().unwrap().out, &expected);
}

/// A tensor with the axis of `seqlen` steps, of `width` numbers each, behind all others.
fn time_last(tensor: &[f64], seqlen: usize, width: usize) -> Vec<f64> {
    let mut result = Vec::new();
    for sequence in tensor.chunks(seqlen * width) {
        for at in 0..width {
            result.extend((0..seqlen).map(|t| sequence[t * width + at]));
        }
    }
    result
}

/// Mamba-1 can do what Mamba-2 does: all channels of a head have one step size, and all states one A.
#[test]
fn it_is_a_selective_scan_with_shared_decays() {
    let sizes = Sizes {
        per_channel: true,
        ..SIZES
    };
    let inputs = Inputs::new(sizes);
    let expected = inputs.problem(sizes).run().unwrap();
    let Sizes {
        batch,
        seqlen,
        nheads,
        headdim,
        groups,
        dstate,
        ..
    } = sizes;
    let dim = nheads * headdim;
    let repeated = |values: &[f64], count: usize| -> Vec<f64> {
        let each = values.iter().map(|&x| vec![x; count]);
        each.flatten().collect()
    };
    let scan = selective_scan::Forward {
        batch,
        dim,
        seqlen,
        dstate,
        groups,
        u: &time_last(&inputs.x, seqlen, dim),
        delta: &time_last(&repeated(&inputs.dt, headdim), seqlen, dim),
        a: &repeated(&inputs.a, headdim * dstate),
        b: selective_scan::Coefficient::Variable(&time_last(&inputs.b, seqlen, groups * dstate)),
        c: selective_scan::Coefficient::Variable(&time_last(&inputs.c, seqlen, groups * dstate)),
        d: Some(&inputs.d),
        z: Some(&time_last(&inputs.z, seqlen, dim)),
        delta_bias: Some(&repeated(&inputs.dt_bias, headdim)),
        delta_softplus: true,
        initial_state: Some(&inputs.initial_states),
        ..selective_scan::Forward::default()
    };
    let found = scan.run().unwrap();
    assert_near(&found.out, &time_last(&expected.out, seqlen, dim));
    assert_near(&found.last_state, &expected.final_states);
}

#[test]
fn steps_make_the_whole() {
    for per_channel in [false, true] {
        let sizes = Sizes {
            per_channel,
            ..SIZES
        };
        let inputs = Inputs::new(sizes);
        let expected = inputs.problem(sizes).run().unwrap();
        let mut state = inputs.initial_states.clone();
        for t in 0..sizes.seqlen {
            let at = |tensor: &[f64]| {
                let width = tensor.len() / (sizes.batch * sizes.seqlen);
                let sequences = tensor.chunks(sizes.seqlen * width);
                let steps = sequences.flat_map(|steps| &steps[t * width..(t + 1) * width]);
                steps.copied().collect::<Vec<_>>()
            };
            let step = Step {
                batch: sizes.batch,
                nheads: sizes.nheads,
                headdim: sizes.headdim,
                groups: sizes.groups,
                dstate: sizes.dstate,
                state: &state,
                x: &at(&inputs.x),
                dt: &at(&inputs.dt),
                a: &inputs.a,
                b: &at(&inputs.b),
                c: &at(&inputs.c),
                d: sizes.skip(&inputs.d),
                z: Some(&at(&inputs.z)),
                dt_bias: Some(&inputs.dt_bias),
                dt_softplus: true,
                ..Step::default()
            };
            let step = step.run().unwrap();
            assert_eq!(step.out, at(&expected.out), "step {t}");
            state = step.final_states;
        }
        assert_eq!(state, expected.final_states);
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let sizes = Sizes {
        batch: 1,
        sequences: 3,
        ..SIZES
    };
    let inputs = Inputs::new(sizes);
    let cu_seqlens = [0, 2, 2, 5];
    let packed = Forward {
        cu_seqlens: Some(&cu_seqlens),
        ..inputs.problem(sizes)
    };
    let found = packed.run().unwrap();
    let (mut out, mut final_states) = (Vec::new(), Vec::new());
    for (i, ends) in cu_seqlens.windows(2).enumerate() {
        let part = |tensor| {
            let tensor: &Vec<f64> = tensor;
            let width = tensor.len() / sizes.seqlen;
            &tensor[ends[0] * width..ends[1] * width]
        };
        let states = inputs.initial_states.len() / 3;
        let alone = Forward {
            seqlen: ends[1] - ends[0],
            x: part(&inputs.x),
            dt: part(&inputs.dt),
            b: part(&inputs.b),
            c: part(&inputs.c),
            z: Some(part(&inputs.z)),
            initial_states: Some(&inputs.initial_states[i * states..(i + 1) * states]),
            cu_seqlens: None,
            ..packed
        };
        let alone = alone.run().unwrap();
        out.extend(alone.out);
        final_states.extend(alone.final_states);
    }
    assert_eq!(found.out, out);
    assert_eq!(found.final_states, final_states);
}

#[test]
fn step_sizes_keep_their_limits() {
    // integrates x: the sum of the clamped step sizes
    let problem = Forward {
        batch: 1,
        seqlen: 4,
        nheads: 1,
        headdim: 1,
        groups: 1,
        dstate: 1,
        x: &[1.0; 4],
        dt: &[-3.0, 0.25, 0.5, 7.0],
        a: &[0.0],
        b: &[1.0; 4],
        c: &[1.0; 4],
        dt_limit: (0.25, 2.0),
        ..Forward::default()
    };
    assert_eq!(problem.run().unwrap().out, [0.25, 0.5, 1.0, 3.0]);
    let gradients = Backward {
        forward: problem,
        dout: &[1.0; 4],
        dfinal_states: None,
    };
    // each step counts in all that follow; those beyond the limits have no say
    assert_eq!(gradients.run().unwrap().ddt, [0.0, 3.0, 2.0, 0.0]);
    let default = Forward {
        dt_limit: Forward::default().dt_limit,
        ..problem
    };
    assert_eq!(default.run().unwrap().out, [0.0, 0.25, 0.75, 7.75]);
}

/// Confirms the gradient of every input of a problem.
fn check_gradients(sizes: Sizes, change: impl Fn(&mut Forward<'_>)) {
    let inputs = Inputs::new(sizes);
    let mut forward = inputs.problem(sizes);
    change(&mut forward);
    let dout = noise(10, inputs.x.len());
    let dfinal_states = noise(11, inputs.initial_states.len());
    let backward = Backward {
        forward,
        dout: &dout,
        dfinal_states: Some(&dfinal_states),
    };
    let gradients = backward.run().unwrap();
    let loss = |forward: Forward<'_>| {
        let result = forward.run().unwrap();
        let outs = result.out.iter().zip(&dout);
        let finals = result.final_states.iter().zip(&dfinal_states);
        outs.chain(finals).map(|(x, dx)| x * dx).sum::<f64>()
    };
    assert_gradient("x", &inputs.x, &gradients.dx, |x| {
        loss(Forward { x, ..forward })
    });
    assert_gradient("dt", &inputs.dt, &gradients.ddt, |dt| {
        loss(Forward { dt, ..forward })
    });
    assert_gradient("A", &inputs.a, &gradients.da, |a| {
        loss(Forward { a, ..forward })
    });
    assert_gradient("B", &inputs.b, &gradients.db, |b| {
        loss(Forward { b, ..forward })
    });
    assert_gradient("C", &inputs.c, &gradients.dc, |c| {
        loss(Forward { c, ..forward })
    });
    assert_gradient("D", &inputs.d, &gradients.dd, |d| {
        let d = sizes.skip(d);
        loss(Forward { d, ..forward })
    });
    assert_eq!(gradients.dz.is_some(), forward.z.is_some());
    if let Some(dz) = &gradients.dz {
        assert_gradient("z", &inputs.z, dz, |z| {
            let z = Some(z);
            loss(Forward { z, ..forward })
        });
    }
    assert_gradient("dt_bias", &inputs.dt_bias, &gradients.ddt_bias, |dt_bias| {
        let dt_bias = Some(dt_bias);
        loss(Forward { dt_bias, ..forward })
    });
    let found = &gradients.dinitial_states;
    assert_gradient("initial_states", &inputs.initial_states, found, |states| {
        let initial_states = Some(states);
        loss(Forward {
            initial_states,
            ..forward
        })
    });
}

#[test]
fn gradients_are_finite_differences() {
    let small = Sizes {
        seqlen: 3,
        nheads: 2,
        headdim: 2,
        groups: 1,
        ..SIZES
    };
    check_gradients(small, |_| ());
    let per_channel = Sizes {
        groups: 2,
        per_channel: true,
        ..small
    };
    check_gradients(per_channel, |problem| {
        problem.z = None;
        problem.dt_softplus = false;
        problem.dt_limit = (f64::NEG_INFINITY, f64::INFINITY);
    });
    let packed = Sizes {
        batch: 1,
        seqlen: 5,
        sequences: 3,
        ..small
    };
    check_gradients(packed, |problem| problem.cu_seqlens = Some(&[0, 2, 2, 5]));
}

#[test]
fn rounding_applies_to_products_and_to_what_is_stored() {
    let coarse = |x: f64| (x * 4.0).round() / 4.0;
    let problem = Forward {
        batch: 1,
        seqlen: 1,
        nheads: 1,
        headdim: 1,
        groups: 1,
        dstate: 1,
        x: &[1.1],
        dt: &[2.0],
        a: &[0.0],
        b: &[0.6],
        c: &[1.0],
        z: Some(&[1.0]),
        ..Forward::default()
    };
    // dt' x: 2.2 -> 2.25; the state 1.35 enters the output as 1.25; silu(1) = 0.731 -> 0.75; 0.9375 -> 1
    let result = problem.run_rounded(coarse).unwrap();
    assert_eq!(result.out, [1.0]);
    assert_near(&result.final_states, &[1.35]);
    let backward = Backward {
        forward: problem,
        dout: &[1.1],
        dfinal_states: None,
    };
    let gradients = backward.run_rounded(coarse).unwrap();
    // dy: 1.1 * 0.75 = 0.825 -> 0.75; G = 0.75; S enters as 1.25
    assert_eq!(gradients.dx, [1.0]); // 2 * 0.75 * 0.6 = 0.9
    assert_eq!(gradients.db, [1.75]); // 0.75 * 2.25 = 1.69
    assert_eq!(gradients.dc, [1.0]); // 1.25 * 0.75 = 0.94
    assert_near(&gradients.dd, &[0.825]); // 0.75 * 1.1
    assert_eq!(gradients.dz, Some(vec![1.25])); // 1.1 * 1.25 * silu'(1) = 1.28
}

#[test]
fn sizes_that_disagree_are_named() {
    let inputs = Inputs::new(SIZES);
    let problem = inputs.problem(SIZES);
    let text = |problem: Forward<'_>| problem.run().unwrap_err().to_string();
    let groups = Forward {
        groups: 3,
        ..problem
    };
    assert_eq!(
        text(groups),
        "nheads (a multiple of groups): expected 6, found 4"
    );
    let skip = Forward {
        d: Some(Skip::PerChannel(&inputs.d)),
        ..problem
    };
    assert_eq!(text(skip), "length of D per channel: expected 12, found 4");
    let lengths = Forward {
        cu_seqlens: Some(&[0, 5]),
        ..problem
    };
    assert_eq!(
        text(lengths),
        "batch of packed sequences: expected 1, found 2"
    );
    let backward = Backward {
        forward: problem,
        dout: &[],
        dfinal_states: None,
    };
    let error = backward.run().unwrap_err().to_string();
    assert_eq!(error, "length of dout: expected 120, found 0");
}
