//! The references of convolution, scans and linear attention against the golden cases: they give the expected values.

use seqmix::reference::{causal_conv1d, linear_attention, selective_scan, ssd};

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

/// Calls `with` with the attention that a case asks for.
fn attention<R>(case: &Case, with: impl Fn(linear_attention::Forward<'_>) -> R) -> R {
    let tensors = Tensors(case);
    let [batch, seqlen, heads, dk] = tensors.shape("q");
    let [_, _, _, dv] = tensors.shape("v");
    let decays = ["log_decay", "g", "gk"].map(|name| tensors.get(name));
    let beta = tensors.get("beta");
    with(linear_attention::Forward {
        batch,
        seqlen,
        heads,
        heads_q: heads,
        heads_k: heads,
        heads_v: heads,
        dk,
        dv,
        q: &tensors.need("q"),
        k: &tensors.need("k"),
        v: &tensors.need("v"),
        feature_map: match case.word("feature_map").unwrap() {
            "identity" => linear_attention::FeatureMap::Identity,
            "elu1" => linear_attention::FeatureMap::EluPlusOne,
            "relu" => linear_attention::FeatureMap::Relu,
            other => panic!("{other}"),
        },
        scale: Some(case.number("scale", 0).unwrap()),
        decay: match &decays {
            [None, None, None] => linear_attention::Decay::None,
            [Some(decay), None, None] => linear_attention::Decay::PerHead(decay),
            [None, Some(decay), None] => linear_attention::Decay::PerStep(decay),
            [None, None, Some(decay)] => linear_attention::Decay::PerChannel(decay),
            _ => panic!("more than one decay"),
        },
        rule: match (case.word("rule").unwrap(), &beta) {
            ("linear", None) => linear_attention::Rule::Linear,
            ("delta", Some(beta)) => linear_attention::Rule::Delta { beta },
            other => panic!("{other:?}"),
        },
        readout: match case.flag("causal").unwrap() {
            true => linear_attention::Readout::Updated,
            false => linear_attention::Readout::Last,
        },
        normalize: match case.flag("normalize").unwrap() {
            true => Some(case.number("eps", 0).unwrap()),
            false => None,
        },
        initial_state: tensors.get("initial_state").as_deref(),
        initial_z: tensors.get("initial_z").as_deref(),
        cu_seqlens: None,
    })
}

#[test]
fn linear_attention_gives_the_expected_values() {
    let chunks = linear_attention::Chunks::default();
    for (name, case) in cases("linear_attention_forward", 7) {
        let results = attention(&case, |forward| {
            [forward.run().unwrap(), forward.run_chunked(chunks).unwrap()]
        });
        for result in results {
            check_reference(&name, &case, "expected.o", &result.out);
            for (tensor, found) in [
                ("expected.final_state", Some(result.final_state)),
                ("expected.final_z", result.final_z),
            ] {
                // a case that is not causal has no states
                if let (Some(found), Some(_)) = (found, case.get(tensor)) {
                    check_reference(&name, &case, tensor, &found);
                }
            }
        }
    }
    for (name, case) in cases("linear_attention_backward", 3) {
        let tensors = Tensors(&case);
        let dout = tensors.need("do");
        let dfinal_state = tensors.get("d_final_state");
        let results = attention(&case, |forward| {
            let backward = linear_attention::Backward {
                forward,
                dout: &dout,
                dfinal_state: dfinal_state.as_deref(),
                dfinal_z: None,
            };
            [
                backward.run().unwrap(),
                backward.run_chunked(chunks).unwrap(),
            ]
        });
        for gradients in results {
            for (tensor, found) in [
                ("expected.dq", Some(gradients.dq)),
                ("expected.dk", Some(gradients.dk)),
                ("expected.dv", Some(gradients.dv)),
                ("expected.dgk", gradients.ddecay),
                ("expected.dbeta", gradients.dbeta),
                ("expected.d_initial_state", Some(gradients.dinitial_state)),
            ] {
                assert_eq!(
                    found.is_some(),
                    case.get(tensor).is_some(),
                    "{name}: {tensor}"
                );
                if let Some(found) = found {
                    check_reference(&name, &case, tensor, &found);
                }
            }
        }
    }
}
