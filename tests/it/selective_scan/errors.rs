//! Scans that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::cudarc::driver::DevicePtr;
use seqmix::selective_scan::{Coefficient, Config, Direction, Forward, Inputs, Numbers, Weight};
use seqmix::{Result, Tensor, TensorMut, TensorRef, Workspace};

use crate::support::device;

/// Shapes of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    u: [usize; 3],
    delta: [usize; 3],
    z: [usize; 3],
    a: [usize; 2],
    b: [usize; 4],
    c: [usize; 4],
    /// B is constant, of this shape.
    constant: Option<[usize; 2]>,
    d: [usize; 1],
    delta_bias: [usize; 1],
    initial_state: [usize; 3],
    /// Offsets of sequences, and their stride.
    cu_seqlens: Option<(usize, usize)>,
    out: [usize; 3],
    ungated: [usize; 3],
    last_state: [usize; 3],
    checkpoints: Option<[usize; 4]>,
    config: Config,
}

const PLAIN: Config = Config {
    numbers: Numbers::Real,
    delta_softplus: false,
    direction: Direction::Forward,
    segments: Some(1),
};

const CALL: Call = Call {
    u: [2, 6, 5],
    delta: [2, 6, 5],
    z: [2, 6, 5],
    a: [6, 4],
    b: [2, 3, 4, 5],
    c: [2, 3, 4, 5],
    constant: None,
    d: [6],
    delta_bias: [6],
    initial_state: [2, 6, 4],
    cu_seqlens: None,
    out: [2, 6, 5],
    ungated: [2, 6, 5],
    last_state: [2, 6, 4],
    checkpoints: None,
    config: PLAIN,
};

/// Three sequences in one row.
const PACKED: Call = Call {
    u: [1, 6, 5],
    delta: [1, 6, 5],
    z: [1, 6, 5],
    b: [1, 3, 4, 5],
    c: [1, 3, 4, 5],
    initial_state: [3, 6, 4],
    cu_seqlens: Some((4, 1)),
    out: [1, 6, 5],
    ungated: [1, 6, 5],
    last_state: [3, 6, 4],
    ..CALL
};

fn forward(call: Call) -> Result<()> {
    const SIZE: usize = 1 << 14;
    let stream = device().stream();
    let halves = stream.alloc_zeros::<f16>(SIZE).unwrap();
    let floats = stream.alloc_zeros::<f32>(SIZE).unwrap();
    let offsets = stream.alloc_zeros::<i32>(64).unwrap();
    let [mut out, mut ungated] = [(); 2].map(|()| stream.alloc_zeros::<f16>(SIZE).unwrap());
    let [mut state, mut kept] = [(); 2].map(|()| stream.alloc_zeros::<f32>(SIZE).unwrap());
    let cu_seqlens = call
        .cu_seqlens
        .map(|(count, stride)| TensorRef::new(offsets.as_view(), [count], [stride]));
    let b = match call.constant {
        Some(shape) => Coefficient::Constant(TensorRef::contiguous(floats.as_view(), shape)?),
        None => Coefficient::Variable(TensorRef::contiguous(halves.as_view(), call.b)?),
    };
    let like_u = |shape| TensorRef::contiguous(halves.as_view(), shape);
    let inputs = Inputs {
        z: Some(like_u(call.z)?),
        d: Some(Weight::F32(TensorRef::contiguous(
            floats.as_view(),
            call.d,
        )?)),
        delta_bias: Some(Weight::Same(TensorRef::contiguous(
            halves.as_view(),
            call.delta_bias,
        )?)),
        initial_state: Some(TensorRef::contiguous(floats.as_view(), call.initial_state)?),
        cu_seqlens: cu_seqlens.transpose()?,
        ..Inputs::new(
            like_u(call.u)?,
            like_u(call.delta)?,
            TensorRef::contiguous(floats.as_view(), call.a)?,
            b,
            Coefficient::Variable(TensorRef::contiguous(halves.as_view(), call.c)?),
        )
    };
    let checkpoints = call.checkpoints;
    let tensors = Forward {
        ungated: Some(TensorMut::contiguous(ungated.as_view_mut(), call.ungated)?),
        last_state: Some(TensorMut::contiguous(state.as_view_mut(), call.last_state)?),
        checkpoints: checkpoints
            .map(|shape| TensorMut::contiguous(kept.as_view_mut(), shape))
            .transpose()?,
        ..Forward::new(inputs, TensorMut::contiguous(out.as_view_mut(), call.out)?)
    };
    let mut workspace = Workspace::new(&stream);
    let op = &device().selective_scan;
    op.forward(&stream, call.config, tensors, &mut workspace)
}

#[track_caller]
fn assert_says(result: Result<()>, words: &[&str]) {
    let text = result.expect_err("the call was not refused").to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn the_calls_that_the_others_vary_work() {
    forward(CALL).unwrap();
    forward(PACKED).unwrap();
    let kept = Call {
        checkpoints: Some([2, 1, 6, 4]),
        ..CALL
    };
    forward(kept).unwrap();
    let constant = Call {
        constant: Some([6, 4]),
        ..CALL
    };
    forward(constant).unwrap();
}

#[test]
#[rustfmt::skip]
fn shapes_that_disagree() {
    let cases = [
        (Call { delta: [2, 5, 6], ..CALL }, "delta has shape [2, 5, 6], expected shape [2, 6, 5]"),
        (Call { z: [1, 6, 5], ..CALL }, "z has shape [1, 6, 5], expected shape [2, 6, 5]"),
        (Call { out: [2, 6, 4], ..CALL }, "out has shape [2, 6, 4], expected shape [2, 6, 5]"),
        (Call { ungated: [2, 6, 6], ..CALL }, "ungated has shape [2, 6, 6], expected shape [2, 6, 5]"),
        (Call { a: [5, 4], ..CALL }, "A has shape [5, 4], expected shape [6, 4]"),
        (Call { b: [2, 3, 5, 5], ..CALL }, "B has shape [2, 3, 5, 5], expected shape [2, 3, 4, 5]"),
        (Call { c: [2, 1, 4, 5], ..CALL }, "C has shape [2, 1, 4, 5], expected shape [2, 3, 4, 5]"),
        (Call { constant: Some([6, 5]), ..CALL }, "B has shape [6, 5], expected shape [6, 4]"),
        (Call { d: [5], ..CALL }, "D has shape [5], expected shape [6]"),
        (Call { delta_bias: [7], ..CALL }, "delta_bias has shape [7], expected shape [6]"),
        (Call { initial_state: [1, 6, 4], ..CALL }, "initial_state has shape [1, 6, 4], expected shape [2, 6, 4]"),
        (Call { last_state: [2, 6, 5], ..CALL }, "last_state has shape [2, 6, 5], expected shape [2, 6, 4]"),
        (Call { last_state: [1, 6, 4], ..PACKED }, "last_state has shape [1, 6, 4], expected shape [3, 6, 4]"),
        (Call { checkpoints: Some([2, 2, 6, 4]), ..CALL }, "checkpoints has shape [2, 2, 6, 4], expected shape [2, 1, 6, 4]"),
    ];
    for (call, words) in cases {
        assert_says(forward(call), &["selective_scan::forward", words]);
    }
}

#[test]
fn groups_that_divide_no_channels() {
    for groups in [0, 4, 5] {
        let of = [2, groups, 4, 5];
        let call = Call {
            b: of,
            c: of,
            ..CALL
        };
        let found = format!("{groups} groups");
        assert_says(forward(call), &["B", &found, "a divisor of 6 channels"]);
    }
}

#[test]
fn state_sizes_without_a_kernel() {
    let of = |states, numbers| Call {
        a: [6, states],
        config: Config { numbers, ..PLAIN },
        ..CALL
    };
    for states in [0, 257, 1000] {
        let found = format!("{states} floats of a channel");
        let words = ["A", &found, "1 to 256 states"];
        assert_says(forward(of(states, Numbers::Real)), &words);
    }
    for states in [0, 3, 258] {
        let found = format!("{states} floats of a channel");
        let words = ["A", &found, "2 floats for each of 1 to 128 states"];
        assert_says(forward(of(states, Numbers::Complex)), &words);
    }
}

#[test]
fn offsets_that_are_none() {
    let none = Call {
        cu_seqlens: Some((0, 1)),
        ..PACKED
    };
    assert_says(forward(none), &["cu_seqlens", "sequences + 1 elements"]);
    let apart = Call {
        cu_seqlens: Some((4, 2)),
        ..PACKED
    };
    assert_says(forward(apart), &["cu_seqlens", "strides [2]"]);
    let rows = Call {
        cu_seqlens: Some((4, 1)),
        ..CALL
    };
    assert_says(
        forward(rows),
        &["u", "a batch of 2", "a batch of 1, with cu_seqlens"],
    );
}

#[test]
fn numbers_of_segments() {
    for segments in [0, 65_536, usize::MAX] {
        let call = Call {
            config: Config {
                segments: Some(segments),
                ..PLAIN
            },
            ..CALL
        };
        let found = segments.to_string();
        assert_says(forward(call), &["segments", &found, "1 to 65535"]);
    }
}

/// Views with strides of 0 can have any size, and no memory holds what a scan of them would write.
#[test]
fn sizes_beyond_the_kernels() {
    let stream = device().stream();
    let op = &device().selective_scan;
    let halves = stream.alloc_zeros::<f16>(64).unwrap();
    let floats = stream.alloc_zeros::<f32>(64).unwrap();
    const HUGE: usize = 1 << 31;
    for (shape, words) in [
        ([HUGE, 1, 0], "batch has"),
        ([1, HUGE, 0], "dim has"),
        ([HUGE - 1, HUGE - 1, 0], "batch has"),
    ] {
        let u = TensorRef::new(halves.as_view(), shape, [0; 3]).unwrap();
        let a = TensorRef::new(floats.as_view(), [shape[1], 4], [0, 1]).unwrap();
        let b = TensorRef::new(halves.as_view(), [shape[0], 1, 4, 0], [0; 4]).unwrap();
        let b = Coefficient::Variable(b);
        let mut out = stream.alloc_zeros::<f16>(64).unwrap();
        let out = TensorMut::new(out.as_view_mut(), shape, [0, 0, 1]).unwrap();
        let inputs = Inputs::new(u.clone(), u, a, b.clone(), b);
        let mut workspace = Workspace::new(&stream);
        let result = op.forward(&stream, PLAIN, Forward::new(inputs, out), &mut workspace);
        assert_says(result, &[words, "at most 1073741824"]);
    }
}

/// Safe code cannot borrow a buffer to read and to write, but views of foreign memory can.
#[test]
fn outputs_that_overlap() {
    let stream = device().stream();
    let op = &device().selective_scan;
    let of = |shape: [usize; 4]| Tensor::<f16, 4>::zeros(&stream, shape).unwrap();
    let (b, c) = (of([2, 1, 4, 5]), of([2, 1, 4, 5]));
    let delta = Tensor::<f16, 3>::zeros(&stream, [2, 6, 5]).unwrap();
    let a = Tensor::<f32, 2>::zeros(&stream, [6, 4]).unwrap();
    let buffer = stream.alloc_zeros::<f16>(100).unwrap();
    let (address, guard) = buffer.device_ptr(&stream);
    drop(guard);
    // SAFETY: `buffer` is alive and holds 60 elements from there; `leak` below keeps it from being freed twice.
    let mut alias = unsafe { stream.upgrade_device_ptr::<f16>(address + 40, 60) };
    let inputs = Inputs::new(
        TensorRef::contiguous(buffer.as_view(), [2, 6, 5]).unwrap(),
        delta.view(),
        a.view(),
        Coefficient::Variable(b.view()),
        Coefficient::Variable(c.view()),
    );
    let out = TensorMut::contiguous(alias.as_view_mut(), [2, 6, 5]).unwrap();
    let mut workspace = Workspace::new(&stream);
    let result = op.forward(&stream, PLAIN, Forward::new(inputs, out), &mut workspace);
    alias.leak();
    let words = "out overlaps u in memory; outputs need memory of their own";
    assert_says(result, &["selective_scan::forward", words]);
}
