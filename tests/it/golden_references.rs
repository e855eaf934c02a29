//! The references of convolution and scans against the golden cases: they give the expected values.

use seqmix::reference::{causal_conv1d, selective_scan, ssd};

use crate::golden::Case;
use crate::golden_cases::{cases, check_reference};

/// The tensors of a case as numbers, with their shapes.
struct Tensors<'a>(&'a Case);

impl Tensors<'_> {
    fn get(&self, name: &str) -> Option<Vec<f64>> {
        self.0.get(name).map(|stored| stored.values().unwrap())
    }

    fn need(&self, name: &str) -> Vec<f64> {
        self.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    fn shape<const N: usize>(&self, name: &str) -> [usize; N] {
        let shape = &self.0.need(name).unwrap().shape;
        shape[..].try_into().unwrap()
    }
}

/// Calls `with` with the convolution that a case asks for.
fn convolution<R>(case: &Case, with: impl Fn(causal_conv1d::Forward<'_>) -> R) -> R {
    let tensors = Tensors(case);
    let [batch, dim, seqlen] = tensors.shape("x");
    let [_, width] = tensors.shape("weight");
    with(causal_conv1d::Forward {
        batch,
        dim,
        seqlen,
        width,
        x: &tensors.need("x"),
        weight: &tensors.need("weight"),
        bias: tensors.get("bias").as_deref(),
        activation: match case.activation().unwrap() {
            "none" => causal_conv1d::Activation::None,
            "silu" => causal_conv1d::Activation::Silu,
            other => panic!("{other}"),
        },
        initial_states: tensors.get("initial_states").as_deref(),
        cu_seqlens: None,
    })
}

#[test]
fn causal_conv1d_gives_the_expected_values() {
    for (name, case) in cases("causal_conv1d_forward", 2) {
        let result = convolution(&case, |forward| forward.run().unwrap());
        check_reference(&name, &case, "expected.out", &result.out);
        let states = &result.final_states;
        check_reference(&name, &case, "expected.final_states", states);
    }
    for (name, case) in cases("causal_conv1d_backward", 1) {
        let dout = Tensors(&case).need("dout");
        let gradients = convolution(&case, |forward| {
            let backward = causal_conv1d::Backward {
                forward,
                dout: &dout,
                dfinal_states: None,
            };
            backward.run().unwrap()
        });
        check_reference(&name, &case, "expected.dx", &gradients.dx);
        check_reference(&name, &case, "expected.dweight", &gradients.dweight);
        check_reference(&name, &case, "expected.dbias", &gradients.dbias);
    }
}

/// Calls `with` with the scan that a case asks for.
fn scan<R>(case: &Case, with: impl Fn(selective_scan::Forward<'_>) -> R) -> R {
    let tensors = Tensors(case);
    let [batch, dim, seqlen] = tensors.shape("u");
    let [_, groups, dstate, _] = tensors.shape("B");
    with(selective_scan::Forward {
        batch,
        dim,
        seqlen,
        dstate,
        groups,
        u: &tensors.need("u"),
        delta: &tensors.need("delta"),
        a: &tensors.need("A"),
        b: selective_scan::Coefficient::Variable(&tensors.need("B")),
        c: selective_scan::Coefficient::Variable(&tensors.need("C")),
        d: tensors.get("D").as_deref(),
        z: tensors.get("z").as_deref(),
        delta_bias: tensors.get("delta_bias").as_deref(),
        delta_softplus: case.flag("delta_softplus").unwrap(),
        ..selective_scan::Forward::default()
    })
}

#[test]
fn selective_scan_gives_the_expected_values() {
    for (name, case) in cases("selective_scan_forward", 4) {
        let result = scan(&case, |forward| forward.run().unwrap());
        check_reference(&name, &case, "expected.out", &result.out);
        check_reference(&name, &case, "expected.last_state", &result.last_state);
    }
    for (name, case) in cases("selective_scan_backward", 2) {
        let dout = Tensors(&case).need("dout");
        let gradients = scan(&case, |forward| {
            let backward = selective_scan::Backward {
                forward,
                dout: &dout,
                dlast_state: None,
            };
            backward.run().unwrap()
        });
        let check = |tensor, found: &[f64]| check_reference(&name, &case, tensor, found);
        check("expected.du", &gradients.du);
        check("expected.ddelta", &gradients.ddelta);
        check("expected.dA", &gradients.da);
        check("expected.dB", &gradients.db);
        check("expected.dC", &gradients.dc);
        check("expected.dD", &gradients.dd);
        check("expected.dz", &gradients.dz.unwrap());
        check("expected.ddelta_bias", &gradients.ddelta_bias);
    }
}

#[test]
fn selective_scan_step_gives_the_expected_values() {
    for (name, case) in cases("selective_scan_step", 2) {
        let tensors = Tensors(&case);
        let [batch, dim, dstate] = tensors.shape("state");
        let [_, groups, _] = tensors.shape("B");
        let result = selective_scan::Step {
            batch,
            dim,
            dstate,
            groups,
            state: &tensors.need("state"),
            x: &tensors.need("x"),
            dt: &tensors.need("dt"),
            a: &tensors.need("A"),
            b: selective_scan::Coefficient::Variable(&tensors.need("B")),
            c: selective_scan::Coefficient::Variable(&tensors.need("C")),
            d: tensors.get("D").as_deref(),
            z: tensors.get("z").as_deref(),
            dt_bias: tensors.get("dt_bias").as_deref(),
            dt_softplus: case.flag("dt_softplus").unwrap(),
        }
        .run()
        .unwrap();
        check_reference(&name, &case, "expected.out", &result.out);
        check_reference(&name, &case, "expected.state", &result.last_state);
    }
}

/// Calls `with` with the layer that a case asks for.
fn layer<R>(case: &Case, with: impl Fn(ssd::Forward<'_>) -> R) -> R {
    let tensors = Tensors(case);
    let [batch, seqlen, nheads, headdim] = tensors.shape("x");
    let [_, _, groups, dstate] = tensors.shape("B");
    let d = tensors.get("D");
    with(ssd::Forward {
        batch,
        seqlen,
        nheads,
        headdim,
        groups,
        dstate,
        x: &tensors.need("x"),
        dt: &tensors.need("dt"),
        a: &tensors.need("A"),
        b: &tensors.need("B"),
        c: &tensors.need("C"),
        d: d.as_deref().map(|d| match d.len() == nheads {
            true => ssd::Skip::PerHead(d),
            false => ssd::Skip::PerChannel(d),
        }),
        z: tensors.get("z").as_deref(),
        dt_bias: tensors.get("dt_bias").as_deref(),
        dt_softplus: case.flag("dt_softplus").unwrap(),
        dt_limit: (
            case.number("dt_limit", 0).unwrap(),
            // null: no limit
            case.number("dt_limit", 1).unwrap_or(f64::INFINITY),
        ),
        initial_states: tensors.get("initial_states").as_deref(),
        cu_seqlens: None,
    })
}

#[test]
fn ssd_gives_the_expected_values() {
    for (name, case) in cases("ssd_forward", 3) {
        let result = layer(&case, |forward| forward.run().unwrap());
        check_reference(&name, &case, "expected.out", &result.out);
        let states = &result.final_states;
        check_reference(&name, &case, "expected.final_states", states);
    }
    for (name, case) in cases("ssd_backward", 1) {
        let dout = Tensors(&case).need("dout");
        let gradients = layer(&case, |forward| {
            let backward = ssd::Backward {
                forward,
                dout: &dout,
                dfinal_states: None,
            };
            backward.run().unwrap()
        });
        let check = |tensor, found: &[f64]| check_reference(&name, &case, tensor, found);
        check("expected.dx", &gradients.dx);
        check("expected.ddt", &gradients.ddt);
        check("expected.dA", &gradients.da);
        check("expected.dB", &gradients.db);
        check("expected.dC", &gradients.dc);
        check("expected.dD", &gradients.dd);
        check("expected.ddt_bias", &gradients.ddt_bias);
        check("expected.dinitial_states", &gradients.dinitial_states);
    }
}
