//! The references of convolution and scans against the golden cases: they give the expected values.

use seqmix::reference::causal_conv1d;

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
