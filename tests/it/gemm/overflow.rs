//! Results that d cannot hold: what they become, and how many there were.

use half::{bf16, f16};
use seqmix::gemm::{Activation, Config, Epilogue, Multiply, Overflow};
use seqmix::{Tensor, Workspace};

use super::{PLAIN, TILES};
use crate::naive::Number;
use crate::support::{Device, device};

/// Around the ends of every type's range.
const VALUES: [f32; 24] = [
    0.0,
    -1.5,
    65_504.0, // the largest f16
    -65_504.0,
    65_519.996, // rounds to it
    65_520.0,   // rounds beyond it
    -65_520.0,
    65_536.0,
    1e6,
    -1e30,
    3.389_531_4e38, // the largest bf16
    -3.389_531_4e38,
    3.396_177_3e38, // rounds to it
    3.396_177_5e38, // rounds beyond it
    -3.396_177_5e38,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    1e-40,
    -1e-7,
    2.0,
    65_503.0,
];

/// What `x` becomes in `D`, and whether that counts.
fn rounded<D: Number>(x: f32, overflow: Overflow) -> (f64, bool) {
    let largest = match D::UNIT {
        unit if unit == f16::UNIT => f16::MAX.to_f64(),
        unit if unit == bf16::UNIT => bf16::MAX.to_f64(),
        _ => f64::from(f32::MAX),
    };
    let nearest = D::round(x.into());
    let value = match overflow {
        Overflow::Saturate if nearest.is_infinite() => largest.copysign(nearest),
        _ => nearest,
    };
    (value, !nearest.is_finite())
}

/// Rows whose results are `VALUES`: 1 times 1, scaled. `columns` of them, and as many again of a backward gate.
struct Rows<T> {
    a: Tensor<T, 3>,
    b: Tensor<T, 3>,
    scale: Tensor<f32, 2>,
    columns: usize,
    k: usize,
}

impl<T: Number> Rows<T> {
    fn new(device: &Device, columns: usize, k: usize) -> Self {
        let stream = &device.stream();
        let (m, one, zero) = (VALUES.len(), T::narrow(1.0), T::narrow(0.0));
        // only the first of k counts
        let mut a = vec![zero; m * k];
        a.iter_mut().step_by(k).for_each(|a| *a = one);
        Self {
            a: Tensor::from_host(stream, &a, [1, m, k]).unwrap(),
            b: Tensor::from_host(stream, &vec![one; k * columns], [1, k, columns]).unwrap(),
            scale: Tensor::from_host(stream, &VALUES, [1, m]).unwrap(),
            columns,
            k,
        }
    }

    /// Multiplies into `D`, twice into one counter, and compares.
    fn check<D: Number>(&self, device: &Device, config: Config, gated: bool) {
        let stream = &device.stream();
        let (m, n) = (VALUES.len(), self.columns);
        let width = if gated { 2 * n } else { n };
        let pairs = vec![T::narrow(1.0); m * 2 * n];
        let pairs = Tensor::from_host(stream, &pairs, [1, m, 2 * n]).unwrap();
        let mut d = Tensor::<D, 3>::zeros(stream, [1, m, width]).unwrap();
        let mut counter = Tensor::<i32, 1>::from_host(stream, &[7], [1]).unwrap();
        for _ in 0..2 {
            let mut tensors = Multiply {
                row_scale: Some(self.scale.view()),
                non_finite: Some(counter.view_mut()),
                ..Multiply::new(self.a.view(), self.b.view(), d.view_mut())
            };
            if gated {
                // both factors are 1, and so is the derivative
                tensors.epilogue = Epilogue::GateBackward {
                    activation: Activation::None,
                    preactivation: pairs.view(),
                };
            }
            let plan = device.gemm.plan(stream, config, &mut tensors).unwrap();
            let mut workspace = Workspace::new(stream);
            workspace.reserve(plan.workspace_bytes()).unwrap();
            device
                .gemm
                .multiply(stream, config, tensors, &mut workspace)
                .unwrap();
        }
        let name = format!(
            "{:?} to {:?} k {} n {n} {config:?} {gated}",
            T::DTYPE,
            D::DTYPE,
            self.k
        );
        let found = d.to_host(stream).unwrap();
        let mut count = 0;
        for (row, &x) in VALUES.iter().enumerate() {
            let (expected, counts) = rounded::<D>(x, config.overflow);
            count += if counts { width as i32 } else { 0 };
            for (column, &found) in found[row * width..][..width].iter().enumerate() {
                let found: f64 = found.into();
                assert!(
                    found == expected || (found.is_nan() && expected.is_nan()),
                    "{name}: {x:e} became {found:e} in column {column}, expected {expected:e}"
                );
            }
        }
        let counted = counter.to_host(stream).unwrap()[0];
        assert_eq!(counted, 7 + 2 * count, "{name}");
    }
}

fn check_all<T: Number>(columns: usize, k: usize, config: Config) {
    let device = device();
    let rows = Rows::<T>::new(device, columns, k);
    for overflow in [Overflow::Infinity, Overflow::Saturate] {
        for gated in [false, true] {
            let config = Config { overflow, ..config };
            rows.check::<f16>(device, config, gated);
            rows.check::<bf16>(device, config, gated);
            rows.check::<f32>(device, config, gated);
        }
    }
}

#[test]
fn in_every_type_of_output() {
    for columns in [1, 8, 20, 67] {
        check_all::<f16>(columns, 1, PLAIN);
        check_all::<bf16>(columns, 1, PLAIN);
        check_all::<f32>(columns, 1, PLAIN);
    }
}

#[test]
fn in_every_tile() {
    for tile in TILES {
        let config = Config {
            tile: Some(tile),
            ..PLAIN
        };
        check_all::<bf16>(136, 8, config);
    }
}

#[test]
fn of_a_split_k() {
    let config = Config {
        splits: Some(3),
        ..PLAIN
    };
    check_all::<f16>(20, 200, config);
}

/// A saturated result is what is added to next: sums are those of what would have been stored without rounding.
#[test]
fn a_residual_and_an_activation_come_first() {
    let device = device();
    let stream = &device.stream();
    let one = |x: f32| Tensor::from_host(stream, &[f16::from_f32(x)], [1, 1, 1]).unwrap();
    let (a, b, residual) = (one(60_000.0), one(2.0), one(-60_000.0));
    let mut d = Tensor::<f16, 3>::zeros(stream, [1, 1, 1]).unwrap();
    let config = Config {
        overflow: Overflow::Saturate,
        ..PLAIN
    };
    let tensors = Multiply {
        epilogue: Epilogue::Activate {
            activation: Activation::Relu,
            preactivation: None,
        },
        residual: Some(residual.view()),
        ..Multiply::new(a.view(), b.view(), d.view_mut())
    };
    let mut workspace = Workspace::new(stream);
    device
        .gemm
        .multiply(stream, config, tensors, &mut workspace)
        .unwrap();
    // 120000, which only the sum brings back into range
    assert_eq!(d.to_host(stream).unwrap()[0].to_f32(), 60_000.0);
}
