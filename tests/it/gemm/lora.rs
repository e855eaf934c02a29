//! Products with an adapter of low rank, and its gradients.

use half::{bf16, f16};
use seqmix::Workspace;
use seqmix::gemm::{Activation, Config, LoraBackward, Overflow};
use seqmix::reference::gemm as reference;

use super::problem::Drawn;
use super::{
    ACTIVATIONS, ALL, Addend, Case, Columns, EVERYTHING, Epilogue, Extra, LAYOUTS, Low, NOTHING,
    PLAIN, Rows, Stored, check, check_both, check_into,
};
use crate::naive::{Number, bound};
use crate::support::{Place, Placed, assert_close, device};

const RANKS: [usize; 6] = [1, 7, 8, 16, 33, 64];

/// Every tile of the kernels with an adapter.
const TILES: [(usize, usize); 2] = [(128, 128), (32, 64)];

fn adapter(rank: usize) -> Extra {
    lying(rank, Rows, Rows)
}

fn lying(rank: usize, down: Stored, up: Stored) -> Extra {
    Extra {
        adapter: Some(Low { rank, down, up }),
        ..NOTHING
    }
}

#[test]
fn every_rank() {
    for rank in RANKS {
        for tile in TILES {
            let config = Config {
                tile: Some(tile),
                ..PLAIN
            };
            for (m, n, k) in [(40, 72, 64), (130, 136, 96), (33, 35, 37)] {
                check_both(Case {
                    config,
                    extra: adapter(rank),
                    ..Case::of(m, n, k)
                });
            }
        }
    }
}

#[test]
fn every_layout() {
    for (a, b) in LAYOUTS {
        for (down, up) in LAYOUTS {
            for rank in [16, 7] {
                for tile in TILES {
                    let config = Config {
                        tile: Some(tile),
                        ..PLAIN
                    };
                    check::<f16>(Case {
                        a,
                        b,
                        config,
                        extra: lying(rank, down, up),
                        ..Case::of(40, 72, 80)
                    });
                }
            }
        }
    }
}

#[test]
fn every_tile_in_bf16() {
    let (down, up) = LAYOUTS[0];
    for (a, b) in LAYOUTS {
        for tile in TILES {
            let config = Config {
                tile: Some(tile),
                ..PLAIN
            };
            check::<bf16>(Case {
                a,
                b,
                config,
                extra: lying(16, down, up),
                ..Case::of(40, 72, 80)
            });
        }
    }
}

#[test]
fn every_epilogue_that_takes_one() {
    for epilogue in [
        Epilogue::Activate,
        Epilogue::ActivateBackward,
        Epilogue::GateBackward,
    ] {
        for activation in ACTIVATIONS {
            for (m, n) in [(36, 72), (17, 43)] {
                let extra = Extra {
                    adapter: adapter(8).adapter,
                    ..EVERYTHING
                };
                let case = Case {
                    batch: 2,
                    extra,
                    ..Case::of(m, n, 40)
                };
                check_both(case.with(epilogue, activation));
            }
        }
    }
}

#[test]
fn batches_and_alignment() {
    for (shift, padding) in [(0, 0), (1, 0), (0, 3), (8, 8)] {
        for shared_b in [false, true] {
            let case = Case {
                batch: 3,
                shift,
                padding,
                shared_b,
                extra: Extra {
                    adapter: adapter(24).adapter,
                    ..ALL
                },
                ..Case::of(20, 44, 72)
            };
            check::<f16>(case);
            check_into::<bf16, f32>(case);
        }
    }
}

/// Steps along k: none, fewer than there are stages, and many.
#[test]
fn short_and_long_k() {
    for k in [0, 1, 8, 63, 130, 700] {
        check_both(Case {
            extra: adapter(16),
            ..Case::of(20, 40, k)
        });
    }
}

#[test]
fn in_place_and_in_every_type() {
    let extra = Extra {
        adapter: adapter(33).adapter,
        c: Addend::InPlace,
        ..ALL
    };
    let case = Case {
        extra,
        activation: Activation::Silu,
        ..Case::of(40, 70, 64)
    };
    check_into::<f16, f32>(case);
    check_into::<f16, bf16>(case);
    check_into::<bf16, f16>(case);
}

/// The tensors of a backward pass.
#[derive(Clone, Copy, Debug)]
struct Backward {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    rank: usize,
    /// Of a, b, down and up.
    stored: [Stored; 4],
    padding: usize,
    shift: usize,
    /// Whether the gradient of a is wanted.
    da: bool,
}

impl Backward {
    const fn of(m: usize, n: usize, k: usize, rank: usize) -> Self {
        Self {
            batch: 1,
            m,
            n,
            k,
            rank,
            stored: [Rows; 4],
            padding: 0,
            shift: 0,
            da: true,
        }
    }

    /// Queues it, fetches the gradients and compares; they as bits.
    fn check<T: Number, D: Number>(self) -> Vec<u64> {
        let Self {
            batch,
            m,
            n,
            k,
            rank,
            ..
        } = self;
        let device = device();
        let stream = &device.stream();
        let layout = Case {
            padding: self.padding,
            shift: self.shift,
            ..Case::of(m, n, k)
        };
        let draw = |shape, stored, depth: usize, seed| {
            let deviation = 1.0 / (depth.max(1) as f64).sqrt();
            let place: Place<3> = layout.place(shape, stored);
            Drawn::<T, 3>::new(stream, place, deviation, seed, f64::NAN)
        };
        let [in_a, in_b, in_down, in_up] = self.stored;
        let a = draw([batch, m, k], in_a, 1, 1);
        let b = draw([batch, k, n], in_b, n, 2);
        let down = draw([batch, k, rank], in_down, k, 3);
        let up = draw([batch, rank, n], in_up, n, 4);
        let dd = draw([batch, m, n], Rows, m, 5);
        let scale = 0.75;
        let mut da = self.da.then(|| {
            let place = layout.place([batch, m, k], Rows);
            Placed::output(stream, place, T::narrow(f64::NAN), T::narrow(-123.0))
        });
        let output = |shape| {
            let place = layout.place(shape, Rows);
            Placed::output(stream, place, D::narrow(f64::NAN), D::narrow(-123.0))
        };
        let mut ddown = output([batch, k, rank]);
        let mut dup = output([batch, rank, n]);
        let tensors = LoraBackward {
            a: a.placed.view(),
            b: b.placed.view(),
            down: down.placed.view(),
            up: up.placed.view(),
            scale,
            dd: dd.placed.view(),
            da: da.as_mut().map(Placed::view_mut),
            ddown: ddown.view_mut(),
            dup: dup.view_mut(),
        };
        let name = format!("{:?} to {:?} {self:?}", T::DTYPE, D::DTYPE);
        let mut workspace = Workspace::new(stream);
        workspace.reserve(tensors.workspace_bytes()).unwrap();
        device
            .gemm
            .lora_backward(stream, PLAIN, tensors, &mut workspace)
            .unwrap_or_else(|error| panic!("{name}: {error}"));

        let problem = reference::LoraBackward {
            batch,
            m,
            n,
            k,
            rank,
            a: &a.host,
            b: &b.host,
            down: &down.host,
            up: &up.host,
            scale: scale.into(),
            dd: &dd.host,
        };
        let (expected, naive) = (
            problem.run().unwrap(),
            problem.run_rounded(T::round).unwrap(),
        );
        let mut bits = Vec::new();
        let mut near = |tensor: &str, found: Vec<f64>, expected: &[f64], naive: &[f64], row| {
            let within = bound::<T>(expected, naive, row).unwrap();
            assert_close(&format!("{name}: {tensor}"), &found, expected, row, within);
            bits.extend(found.into_iter().map(f64::to_bits));
        };
        let widen = |x: Vec<D>| x.into_iter().map(Into::into).collect();
        if let Some(da) = da {
            let da = da.fetch(stream, "da").into_iter().map(Into::into).collect();
            near("da", da, &expected.da, &naive.da, k);
        }
        let found = widen(ddown.fetch(stream, "ddown"));
        near("ddown", found, &expected.ddown, &naive.ddown, rank);
        let found = widen(dup.fetch(stream, "dup"));
        near("dup", found, &expected.dup, &naive.dup, n);
        bits
    }
}

#[test]
fn gradients_of_every_rank() {
    for rank in RANKS {
        for (m, n, k) in [(70, 40, 48), (33, 35, 37)] {
            let case = Backward::of(m, n, k, rank);
            case.check::<f16, f16>();
            case.check::<bf16, f32>();
            Backward { da: false, ..case }.check::<bf16, bf16>();
        }
    }
}

#[test]
fn gradients_in_every_layout() {
    for which in 0..16 {
        let stored = [1, 2, 4, 8].map(|bit| if which & bit == 0 { Rows } else { Columns });
        Backward {
            stored,
            ..Backward::of(40, 24, 56, 16)
        }
        .check::<f16, f32>();
    }
}

#[test]
fn gradients_of_batches_and_unaligned_tensors() {
    for (batch, padding, shift) in [(3, 0, 0), (2, 1, 0), (1, 0, 1), (2, 8, 8)] {
        Backward {
            batch,
            padding,
            shift,
            ..Backward::of(30, 22, 40, 8)
        }
        .check::<bf16, bf16>();
    }
}

/// Many rows are the long k of the gradients of the adapter.
#[test]
fn gradients_of_many_rows_are_the_same_bits_every_time() {
    let case = Backward::of(1500, 24, 16, 8);
    let first = case.check::<f16, f32>();
    for repeat in 1..10 {
        assert!(
            case.check::<f16, f32>() == first,
            "run {repeat} differs from the first"
        );
    }
}

#[test]
fn gradients_of_no_rows() {
    for (m, n, k) in [(0, 8, 8), (8, 0, 8), (8, 8, 0)] {
        Backward::of(m, n, k, 4).check::<f16, f16>();
    }
}

/// What `config` says of overflow holds for gradients too.
#[test]
fn gradients_saturate() {
    let device = device();
    let stream = &device.stream();
    let tensor = |x: f32| {
        let x = [f16::from_f32(x)];
        seqmix::Tensor::from_host(stream, &x, [1, 1, 1]).unwrap()
    };
    let (a, b, down, up, dd) = (
        tensor(400.0),
        tensor(1.0),
        tensor(1.0),
        tensor(1.0),
        tensor(300.0),
    );
    let [mut da, mut ddown, mut dup] = [0.0; 3].map(tensor);
    let tensors = LoraBackward {
        a: a.view(),
        b: b.view(),
        down: down.view(),
        up: up.view(),
        scale: 1.0,
        dd: dd.view(),
        da: Some(da.view_mut()),
        ddown: ddown.view_mut(),
        dup: dup.view_mut(),
    };
    let mut workspace = Workspace::new(stream);
    workspace.reserve(tensors.workspace_bytes()).unwrap();
    let config = Config {
        overflow: Overflow::Saturate,
        ..PLAIN
    };
    device
        .gemm
        .lora_backward(stream, config, tensors, &mut workspace)
        .unwrap();
    // 300 + 300; 400 * 300, twice
    assert_eq!(da.to_host(stream).unwrap()[0].to_f32(), 600.0);
    assert_eq!(ddown.to_host(stream).unwrap()[0], f16::MAX);
    assert_eq!(dup.to_host(stream).unwrap()[0], f16::MAX);
}
