//! Calls that cannot work: each is refused with words that say what was wrong and what would work. The files here are
//! tables of calls.

mod memory;
mod options;
mod others;
mod shapes;

use half::f16;
use seqmix::gemm::{Activation, Adapter, Addend, Config, Epilogue, Groups, Multiply};
use seqmix::{Result, Tensor, TensorMut, TensorRef, Workspace};

use super::PLAIN;
use crate::support::device;

/// Shape and strides of a tensor.
#[derive(Clone, Copy)]
struct View<const N: usize> {
    shape: [usize; N],
    strides: [usize; N],
}

/// Row by row.
fn dense<const N: usize>(shape: [usize; N]) -> View<N> {
    let mut strides = [1; N];
    for axis in (1..N).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    View { shape, strides }
}

fn strided<const N: usize>(shape: [usize; N], strides: [usize; N]) -> View<N> {
    View { shape, strides }
}

/// Which epilogue, and which groups.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Activate,
    Gate,
    ActivateBackward,
    GateBackward,
}
#[derive(Clone, Copy)]
enum Grouped {
    No,
    Rows,
    K,
}

/// A call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    a: View<3>,
    b: View<3>,
    down: Option<View<3>>,
    up: Option<View<3>>,
    row_scale: Option<View<2>>,
    column_scale: Option<View<2>>,
    c: Option<View<3>>,
    in_place: bool,
    bias: Option<View<2>>,
    kind: Kind,
    weights: View<3>,
    gate_bias: Option<View<2>>,
    preactivation: Option<View<3>>,
    residual: Option<View<3>>,
    column_sums: Option<View<1>>,
    non_finite: Option<View<1>>,
    groups: Grouped,
    offsets: View<1>,
    d: View<3>,
    config: Config,
}

fn call() -> Call {
    Call {
        a: dense([2, 3, 4]),
        b: dense([2, 4, 5]),
        down: None,
        up: None,
        row_scale: None,
        column_scale: None,
        c: None,
        in_place: false,
        bias: None,
        kind: Kind::Activate,
        weights: dense([2, 4, 5]),
        gate_bias: None,
        preactivation: None,
        residual: None,
        column_sums: None,
        non_finite: None,
        groups: Grouped::No,
        offsets: dense([3]),
        d: dense([2, 3, 5]),
        config: PLAIN,
    }
}

fn queue(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let halves = stream.alloc_zeros::<f16>(4096).unwrap();
    let singles = stream.alloc_zeros::<f32>(4096).unwrap();
    let whole = stream.alloc_zeros::<i32>(1 << 17).unwrap();
    let mut d = stream.alloc_zeros::<f16>(1 << 20).unwrap();
    let mut saved_memory = stream.alloc_zeros::<f16>(4096).unwrap();
    let mut sums = stream.alloc_zeros::<f32>(4096).unwrap();
    let mut counter = stream.alloc_zeros::<i32>(4096).unwrap();
    let matrix = |view: View<3>| TensorRef::new(halves.as_view(), view.shape, view.strides);
    let optional = |view: Option<View<3>>| view.map(matrix).transpose();
    let vector = |view: Option<View<2>>| {
        let vector = |view: View<2>| TensorRef::new(halves.as_view(), view.shape, view.strides);
        view.map(vector).transpose()
    };
    let scale = |view: Option<View<2>>| {
        let scale = |view: View<2>| TensorRef::new(singles.as_view(), view.shape, view.strides);
        view.map(scale).transpose()
    };
    let activation = Activation::Silu;
    let forward = matches!(call.kind, Kind::Activate | Kind::Gate);
    let saved = call.preactivation.filter(|_| forward);
    let saved = saved
        .map(|view| TensorMut::new(saved_memory.as_view_mut(), view.shape, view.strides))
        .transpose()?;
    let read = optional(call.preactivation.filter(|_| !forward))?;
    let epilogue = match (call.kind, read) {
        (Kind::ActivateBackward, Some(preactivation)) => Epilogue::ActivateBackward {
            activation,
            preactivation,
        },
        (Kind::GateBackward, Some(preactivation)) => Epilogue::GateBackward {
            activation,
            preactivation,
        },
        (Kind::Gate, _) => Epilogue::Gate {
            activation,
            weights: matrix(call.weights)?,
            bias: vector(call.gate_bias)?,
            preactivation: saved,
        },
        _ => Epilogue::Activate {
            activation,
            preactivation: saved,
        },
    };
    let offsets = TensorRef::new(whole.as_view(), call.offsets.shape, call.offsets.strides)?;
    let adapter = optional(call.down)?.zip(optional(call.up)?);
    let tensors = Multiply {
        a: matrix(call.a)?,
        b: matrix(call.b)?,
        adapter: adapter.map(|(down, up)| Adapter {
            down,
            up,
            scale: 1.0,
        }),
        row_scale: scale(call.row_scale)?,
        column_scale: scale(call.column_scale)?,
        c: match (call.in_place, optional(call.c)?) {
            (true, _) => Addend::InPlace,
            (false, Some(c)) => Addend::Tensor(c),
            (false, None) => Addend::None,
        },
        bias: vector(call.bias)?,
        epilogue,
        residual: optional(call.residual)?,
        column_sums: call
            .column_sums
            .map(|view| TensorMut::new(sums.as_view_mut(), view.shape, view.strides))
            .transpose()?,
        non_finite: call
            .non_finite
            .map(|view| TensorMut::new(counter.as_view_mut(), view.shape, view.strides))
            .transpose()?,
        groups: match call.groups {
            Grouped::No => Groups::None,
            Grouped::Rows => Groups::Rows(offsets),
            Grouped::K => Groups::K(offsets),
        },
        d: TensorMut::new(d.as_view_mut(), call.d.shape, call.d.strides)?,
    };
    let mut workspace = Workspace::new(&stream);
    workspace.reserve(1 << 16)?;
    device
        .gemm
        .multiply(&stream, call.config, tensors, &mut workspace)
}

#[track_caller]
fn assert_says(result: Result<()>, words: &[&str]) {
    let text = result.expect_err("the call was not refused").to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

type Change = fn(&mut Call);

/// Changes the call that works, and fails unless it is refused in these words.
#[track_caller]
fn assert_refused(cases: &[(Change, &str)]) {
    for (change, words) in cases {
        let mut changed = call();
        change(&mut changed);
        assert_says(queue(changed), &["gemm::multiply: ", words]);
    }
}

#[test]
fn the_calls_that_the_others_vary_work() {
    queue(call()).unwrap();
    let works: [Change; 5] = [
        |call| {
            call.preactivation = Some(dense([2, 3, 5]));
            call.bias = Some(dense([1, 5]));
            call.column_sums = Some(dense([5]));
        },
        |call| {
            call.kind = Kind::Gate;
            call.preactivation = Some(dense([2, 3, 10]));
        },
        |call| {
            call.kind = Kind::GateBackward;
            call.preactivation = Some(dense([2, 3, 10]));
            call.d = dense([2, 3, 10]);
        },
        |call| {
            call.down = Some(dense([2, 4, 6]));
            call.up = Some(dense([2, 6, 5]));
        },
        |call| {
            call.groups = Grouped::Rows;
            call.a = dense([1, 6, 4]);
            call.d = dense([1, 6, 5]);
        },
    ];
    for change in works {
        let mut changed = call();
        change(&mut changed);
        queue(changed).unwrap();
    }
}

fn zeros<const N: usize>(shape: [usize; N]) -> Tensor<f16, N> {
    Tensor::zeros(&device().stream(), shape).unwrap()
}
