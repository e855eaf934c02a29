//! Values by hand.

use super::*;

/// `[1 2; 3 4] [5; 6] = [17; 39]`
const BY_HAND: Multiply<'_> = Multiply {
    batch: 1,
    m: 2,
    n: 1,
    k: 2,
    a: &[1.0, 2.0, 3.0, 4.0],
    b: &[5.0, 6.0],
    adapter: None,
    row_scale: None,
    column_scale: None,
    c: None,
    bias: None,
    residual: None,
    alpha: 1.0,
    beta: 1.0,
    epilogue: Epilogue::Activate {
        activation: Activation::None,
    },
};

const RELU: Epilogue<'_> = Epilogue::Activate {
    activation: Activation::Relu,
};

#[test]
fn a_product_by_hand() {
    let plain = BY_HAND.run().unwrap();
    assert_eq!(plain.d, [17.0, 39.0]);
    assert_eq!(plain.preactivation, [17.0, 39.0]);
    assert_eq!(plain.column_sums, [56.0]);
    let all = Multiply {
        c: Some(&[1.0, 2.0]),
        bias: Some(&[-100.0]),
        residual: Some(&[7.0, 8.0]),
        alpha: 2.0,
        beta: 10.0,
        epilogue: RELU,
        ..BY_HAND
    };
    // 34 + 10 - 100 < 0; 78 + 20 - 100 < 0
    let negative = all.run().unwrap();
    assert_eq!(negative.preactivation, [-56.0, -2.0]);
    assert_eq!(negative.d, [7.0, 8.0]);
    let positive = Multiply { bias: None, ..all };
    assert_eq!(positive.run().unwrap().d, [51.0, 106.0]);
    let empty = Multiply {
        k: 0,
        a: &[],
        b: &[],
        ..positive
    };
    assert_eq!(empty.run().unwrap().d, [17.0, 28.0]);
}

#[test]
fn scales_and_adapter_by_hand() {
    // [1 2; 3 4] [5; 6] = [17; 39], and ([1 2; 3 4] [1 0; 0 1]) [10; 20] = [50; 110]
    let adapter = Adapter {
        rank: 2,
        down: &[1.0, 0.0, 0.0, 1.0],
        up: &[10.0, 20.0],
        scale: 0.1,
    };
    let problem = Multiply {
        adapter: Some(adapter),
        row_scale: Some(&[1.0, 2.0]),
        column_scale: Some(&[100.0]),
        bias: Some(&[1.0]),
        alpha: 0.5,
        ..BY_HAND
    };
    // 50 (17 + 5) + 1, 100 (39 + 11) + 1
    assert_eq!(problem.run().unwrap().d, [1101.0, 5001.0]);
}

#[test]
fn each_matrix_has_its_own_vectors() {
    let problem = Multiply {
        batch: 2,
        m: 1,
        n: 1,
        k: 1,
        a: &[1.0, 2.0],
        b: &[3.0, 5.0],
        row_scale: Some(&[1.0, 10.0]),
        column_scale: Some(&[1.0, 10.0]),
        bias: Some(&[0.25, 0.5]),
        ..Multiply::default()
    };
    let result = problem.run().unwrap();
    assert_eq!(result.d, [3.25, 1000.5]);
    assert_eq!(result.column_sums, [1003.75]);
}

#[test]
fn a_gate_by_hand() {
    // x: 17 + 1, 39 + 1; g: 2 (1 - 2) + 3, 2 (3 - 4) + 3
    let gate = Multiply {
        bias: Some(&[1.0]),
        residual: Some(&[0.5, 0.25]),
        row_scale: Some(&[2.0, 2.0]),
        alpha: 0.5,
        epilogue: Epilogue::Gate {
            activation: Activation::Relu,
            weights: &[2.0, -2.0],
            bias: Some(&[3.0]),
        },
        ..BY_HAND
    };
    let result = gate.run().unwrap();
    assert_eq!(result.preactivation, [1.0, 18.0, 1.0, 40.0]);
    assert_eq!(result.d, [18.5, 40.25]);
    assert_eq!(result.column_sums, [58.75]);
    let backward = Multiply {
        epilogue: Epilogue::GateBackward {
            activation: Activation::Relu,
            preactivation: &[2.0, 3.0, -1.0, 5.0],
        },
        ..BY_HAND
    };
    // 17 (3, 2), and nothing where the gate is shut
    let result = backward.run().unwrap();
    assert_eq!(result.d, [51.0, 34.0, 0.0, 0.0]);
    assert_eq!(result.column_sums, [51.0, 34.0]);
    assert!(result.preactivation.is_empty());
}

/// To multiples of 1/4.
fn quarters(x: f64) -> f64 {
    (x * 4.0).round() / 4.0
}

#[test]
fn rounding_applies_to_every_intermediate() {
    let one = Multiply {
        batch: 1,
        m: 1,
        n: 1,
        k: 1,
        a: &[1.0],
        b: &[0.1],
        ..Multiply::default()
    };
    let d = |problem: Multiply<'_>| problem.run_rounded(quarters).unwrap().d[0];
    // the product
    assert_eq!(d(Multiply { alpha: 10.0, ..one }), 0.0);
    // a down, and (a down) up
    for (down, up) in [(0.1, 10.0), (10.0, 0.01)] {
        let adapter = Adapter {
            rank: 1,
            down: &[down],
            up: &[up],
            scale: 10.0,
        };
        let adapted = Multiply {
            adapter: Some(adapter),
            ..one
        };
        assert_eq!(d(adapted), 0.0);
    }
    // what the activation gets: 0.35 becomes 0.25; what it gives: silu(0.25) = 0.14 becomes 0.25
    let activated = Multiply {
        a: &[2.5],
        b: &[0.1],
        bias: Some(&[0.1]),
        residual: Some(&[1.0]),
        epilogue: Epilogue::Activate {
            activation: Activation::Silu,
        },
        ..one
    };
    let result = activated.run_rounded(quarters).unwrap();
    assert_eq!(result.preactivation, [0.25]);
    assert_eq!(result.d, [1.25]);
    // the result, but not what the sums are of
    let result = Multiply {
        residual: Some(&[0.3]),
        ..activated
    };
    let result = result.run_rounded(quarters).unwrap();
    assert_eq!((result.d[0], result.column_sums[0]), (0.5, 0.55));
    // g: 0.1 becomes 0, and relu(0) is 0
    let gate = Multiply {
        b: &[8.0],
        epilogue: Epilogue::Gate {
            activation: Activation::Relu,
            weights: &[0.1],
            bias: None,
        },
        ..one
    };
    assert_eq!(d(gate), 0.0);
    // a slope: silu'(1) = 0.93 becomes 1
    let backward = Multiply {
        b: &[8.0],
        epilogue: Epilogue::ActivateBackward {
            activation: Activation::Silu,
            preactivation: &[1.0],
        },
        ..one
    };
    assert_eq!(d(backward), 8.0);
}

#[test]
fn lora_gradients_are_rounded_as_every_intermediate_is() {
    let problem = LoraBackward {
        batch: 1,
        m: 1,
        n: 1,
        k: 1,
        rank: 1,
        a: &[1.0],
        b: &[0.1],
        down: &[0.1],
        up: &[0.5],
        scale: 10.0,
        dd: &[1.0],
    };
    let LoraGradients { da, ddown, dup } = problem.run_rounded(quarters).unwrap();
    // dd b becomes 0, dd up down = 0.05 becomes 0; a down becomes 0
    assert_eq!((da[0], ddown[0], dup[0]), (0.0, 5.0, 0.0));
    let LoraGradients { da, ddown, dup } = LoraBackward {
        down: &[0.9],
        scale: 0.4,
        ..problem
    }
    .run_rounded(quarters)
    .unwrap();
    // 0.4 * 0.5 = 0.2; 0.4 * 0.5 = 0.2; 0.4 * 1 = 0.4
    assert_eq!((da[0], ddown[0], dup[0]), (0.25, 0.25, 0.5));
}

#[test]
fn lengths_that_disagree_are_named() {
    const ONE: &[f64] = &[1.0];
    const TWO: &[f64] = &[1.0, 2.0];
    let right = Multiply {
        batch: 1,
        m: 1,
        n: 1,
        k: 1,
        a: ONE,
        b: ONE,
        ..Multiply::default()
    };
    right.run().unwrap();
    let adapter = |down, up| {
        Some(Adapter {
            rank: 1,
            down,
            up,
            scale: 1.0,
        })
    };
    let activation = Activation::Relu;
    let gate = |weights, bias| Epilogue::Gate {
        activation,
        weights,
        bias,
    };
    #[rustfmt::skip]
    let cases = [
        ("a", Multiply { a: TWO, ..right }),
        ("b", Multiply { b: TWO, ..right }),
        ("adapter.down", Multiply { adapter: adapter(TWO, ONE), ..right }),
        ("adapter.up", Multiply { adapter: adapter(ONE, TWO), ..right }),
        ("row_scale", Multiply { row_scale: Some(TWO), ..right }),
        ("column_scale", Multiply { column_scale: Some(TWO), ..right }),
        ("c", Multiply { c: Some(TWO), ..right }),
        ("bias", Multiply { bias: Some(TWO), ..right }),
        ("residual", Multiply { residual: Some(TWO), ..right }),
        ("weights", Multiply { epilogue: gate(TWO, None), ..right }),
        ("the gate's bias", Multiply { epilogue: gate(ONE, Some(TWO)), ..right }),
        ("preactivation", Multiply {
            epilogue: Epilogue::ActivateBackward { activation, preactivation: TWO },
            ..right
        }),
    ];
    for (name, case) in cases {
        let text = case.run().unwrap_err().to_string();
        assert_eq!(text, format!("elements of {name}: expected 1, found 2"));
    }
    let wide = Multiply {
        epilogue: Epilogue::GateBackward {
            activation,
            preactivation: ONE,
        },
        ..right
    };
    let text = wide.run().unwrap_err().to_string();
    assert_eq!(text, "elements of preactivation: expected 2, found 1");

    let right = LoraBackward {
        batch: 1,
        m: 1,
        n: 1,
        k: 1,
        rank: 1,
        a: ONE,
        b: ONE,
        down: ONE,
        up: ONE,
        scale: 1.0,
        dd: ONE,
    };
    right.run().unwrap();
    #[rustfmt::skip]
    let cases = [
        ("a", LoraBackward { a: TWO, ..right }),
        ("b", LoraBackward { b: TWO, ..right }),
        ("down", LoraBackward { down: TWO, ..right }),
        ("up", LoraBackward { up: TWO, ..right }),
        ("dd", LoraBackward { dd: TWO, ..right }),
    ];
    for (name, case) in cases {
        let text = case.run().unwrap_err().to_string();
        assert_eq!(text, format!("elements of {name}: expected 1, found 2"));
    }
}
