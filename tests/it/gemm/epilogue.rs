//! What is made of the product: every epilogue with everything that goes with it.

use half::{bf16, f16};
use seqmix::gemm::{self, Activation, Config, Multiply};
use seqmix::reference::gemm as reference;
use seqmix::{Tensor, TensorRef};

use super::problem::TENSORS;
use super::{
    ACTIVATIONS, Addend, Case, EPILOGUES, EVERYTHING, Extra, LAYOUTS, NOTHING, PLAIN, TILES, check,
    check_both, check_into,
};
use crate::naive::{Number, bound, normal};
use crate::support::{assert_close, device};

const SCALED: Config = Config {
    alpha: 1.5,
    beta: -0.5,
    ..PLAIN
};

#[test]
fn every_activation_of_every_epilogue() {
    for epilogue in EPILOGUES {
        for activation in ACTIVATIONS {
            for preactivation in [false, true] {
                for (m, n) in [(40, 64), (33, 35)] {
                    let extra = Extra {
                        preactivation,
                        ..NOTHING
                    };
                    let case = Case {
                        extra,
                        ..Case::of(m, n, 48)
                    };
                    check_both(case.with(epilogue, activation));
                }
            }
        }
    }
}

/// Each tensor that may be there, alone and with all others.
#[test]
fn every_optional_tensor() {
    type Change = fn(&mut Extra, bool);
    let changes: [Change; 9] = [
        |extra, there| extra.row_scale = there,
        |extra, there| extra.column_scale = there,
        |extra, there| extra.c = if there { Addend::Tensor } else { Addend::None },
        |extra, there| extra.bias = there,
        |extra, there| extra.gate_bias = there,
        |extra, there| extra.residual = there,
        |extra, there| extra.preactivation = there,
        |extra, there| extra.column_sums = there,
        |extra, there| extra.non_finite = there,
    ];
    for epilogue in EPILOGUES {
        for change in changes {
            for there in [true, false] {
                let mut extra = if there { NOTHING } else { EVERYTHING };
                change(&mut extra, there);
                for one_vector in [false, true] {
                    let case = Case {
                        batch: 2,
                        config: SCALED,
                        extra: Extra {
                            one_vector,
                            ..extra
                        },
                        ..Case::of(19, 42, 40)
                    };
                    check::<f16>(case.with(epilogue, Activation::Silu));
                }
            }
        }
    }
}

#[test]
fn every_tile_and_layout() {
    for tile in TILES {
        for (a, b) in LAYOUTS {
            for epilogue in EPILOGUES {
                let case = Case {
                    a,
                    b,
                    config: Config {
                        tile: Some(tile),
                        ..SCALED
                    },
                    extra: EVERYTHING,
                    ..Case::of(72, 136, 40)
                };
                check::<bf16>(case.with(epilogue, Activation::GeluTanh));
            }
        }
    }
}

/// Halves that begin where no copy of 16 bytes can, and tensors that do.
#[test]
fn odd_sizes_and_unaligned_tensors() {
    for epilogue in EPILOGUES {
        for (m, n, k) in [
            (1, 1, 1),
            (5, 12, 16),
            (17, 20, 9),
            (3, 36, 24),
            (30, 63, 33),
        ] {
            for (shift, padding) in [(0, 0), (1, 0), (8, 0), (0, 1), (0, 4), (4, 12)] {
                let case = Case {
                    batch: 2,
                    shift,
                    padding,
                    config: SCALED,
                    extra: EVERYTHING,
                    ..Case::of(m, n, k)
                };
                check::<f16>(case.with(epilogue, Activation::GeluErf));
            }
        }
    }
}

/// One tensor that no copy of 16 bytes reaches, among others that they do.
#[test]
fn each_tensor_unaligned_alone() {
    for tensor in TENSORS {
        for epilogue in EPILOGUES {
            for (shift, padding) in [(1, 0), (4, 0), (0, 1)] {
                let case = Case {
                    batch: 2,
                    shift,
                    padding,
                    uneven: 1 << tensor,
                    config: SCALED,
                    extra: EVERYTHING,
                    ..Case::of(20, 40, 24)
                };
                let case = case.with(epilogue, Activation::Silu);
                check_into::<f16, f16>(case);
                check_into::<bf16, f32>(case);
            }
        }
    }
}

/// d in each type, and c in the same, as a tensor of its own or as d before the call.
#[test]
fn every_type_of_output() {
    for epilogue in EPILOGUES {
        for c in [Addend::None, Addend::Tensor, Addend::InPlace] {
            for (m, n) in [(24, 40), (21, 43)] {
                let case = Case {
                    config: SCALED,
                    extra: Extra { c, ..EVERYTHING },
                    ..Case::of(m, n, 32)
                };
                let case = case.with(epilogue, Activation::Relu);
                check_into::<f16, f16>(case);
                check_into::<f16, bf16>(case);
                check_into::<f16, f32>(case);
                check_into::<bf16, f32>(case);
                check_into::<bf16, f16>(case);
            }
        }
    }
}

#[test]
fn no_product_at_all() {
    for epilogue in EPILOGUES {
        let case = Case {
            extra: EVERYTHING,
            ..Case::of(20, 26, 0)
        };
        check_both(case.with(epilogue, Activation::Silu));
    }
}

#[test]
fn nothing_to_compute() {
    for epilogue in EPILOGUES {
        for (batch, m, n) in [(0, 4, 8), (1, 0, 8), (1, 4, 0)] {
            let case = Case {
                batch,
                extra: EVERYTHING,
                ..Case::of(m, n, 16)
            };
            check_both(case.with(epilogue, Activation::Silu));
        }
    }
}

/// One matrix of weights, of which the gate has every other output or the first half of them.
#[test]
fn gates_of_packed_weights() {
    const M: usize = 10;
    const N: usize = 24;
    const K: usize = 40;
    let device = device();
    let stream = device.stream();
    let a = normal::<f16>(1, M * K, 1.0);
    let packed = normal::<f16>(2, 2 * N * K, 1.0 / (K as f64).sqrt());
    let on_device = Tensor::from_host(&stream, &a, [1, M, K]).unwrap();
    let weights = stream.clone_htod(&packed).unwrap();
    // rows of K weights: from one row of the gate to the next, and from the gate's first to that of b
    for (step, apart) in [(2 * K, K), (K, N * K)] {
        let mut d = Tensor::<f16, 3>::zeros(&stream, [1, M, N]).unwrap();
        let part = |first: usize| {
            let strides = [0, 1, step];
            TensorRef::new(weights.slice(first..), [1, K, N], strides).unwrap()
        };
        let mut tensors = Multiply {
            epilogue: gemm::Epilogue::Gate {
                activation: Activation::Silu,
                weights: part(0),
                bias: None,
                preactivation: None,
            },
            ..Multiply::new(on_device.view(), part(apart), d.view_mut())
        };
        let plan = device.gemm.plan(&stream, PLAIN, &mut tensors).unwrap();
        assert_eq!(plan.workspace_bytes(), 0);
        let mut workspace = seqmix::Workspace::new(&stream);
        device
            .gemm
            .multiply(&stream, PLAIN, tensors, &mut workspace)
            .unwrap();
        let unpacked = |first: usize| -> Vec<f64> {
            let at = |l: usize, j: usize| packed[first + j * step + l].into();
            (0..K * N).map(|place| at(place / N, place % N)).collect()
        };
        let a: Vec<f64> = a.iter().map(|&x| x.into()).collect();
        let problem = reference::Multiply {
            batch: 1,
            m: M,
            n: N,
            k: K,
            a: &a,
            b: &unpacked(apart),
            epilogue: reference::Epilogue::Gate {
                activation: reference::Activation::Silu,
                weights: &unpacked(0),
                bias: None,
            },
            ..reference::Multiply::default()
        };
        let expected = problem.run().unwrap().d;
        let naive = problem.run_rounded(f16::round).unwrap().d;
        let found: Vec<f64> = d
            .to_host(&stream)
            .unwrap()
            .into_iter()
            .map(Into::into)
            .collect();
        let within = bound::<f16>(&expected, &naive, N).unwrap();
        assert_close(&format!("step {step}"), &found, &expected, N, within);
    }
}
