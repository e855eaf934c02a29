//! Calls that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::causal_conv1d::{Backward, Config, Forward, Update};
use seqmix::cudarc::driver::DevicePtr;
use seqmix::{Error, Result, Tensor, TensorMut, TensorRef, Workspace};

use crate::support::device;

/// Shapes of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    x: [usize; 3],
    /// Strides of x.
    strides: [usize; 3],
    weight: [usize; 2],
    bias: [usize; 1],
    initial_states: [usize; 3],
    /// Offsets of packed sequences, if there are any, and their stride.
    cu_seqlens: Option<(usize, usize)>,
    out: [usize; 3],
    /// Strides of out.
    out_strides: [usize; 3],
    final_states: [usize; 3],
}

const CALL: Call = Call {
    x: [2, 6, 5],
    strides: [30, 5, 1],
    weight: [6, 4],
    bias: [6],
    initial_states: [2, 6, 3],
    cu_seqlens: None,
    out: [2, 6, 5],
    out_strides: [30, 5, 1],
    final_states: [2, 6, 3],
};

const PACKED: Call = Call {
    x: [1, 6, 5],
    initial_states: [3, 6, 3],
    cu_seqlens: Some((4, 1)),
    out: [1, 6, 5],
    final_states: [3, 6, 3],
    ..CALL
};

fn forward(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let memory = stream.alloc_zeros::<f16>(4096).unwrap();
    let offsets = stream.alloc_zeros::<i32>(64).unwrap();
    let mut out = stream.alloc_zeros::<f16>(4096).unwrap();
    let mut states = stream.alloc_zeros::<f16>(4096).unwrap();
    let cu_seqlens = call
        .cu_seqlens
        .map(|(count, stride)| TensorRef::new(offsets.as_view(), [count], [stride]));
    let tensors = Forward {
        x: TensorRef::new(memory.as_view(), call.x, call.strides)?,
        weight: TensorRef::contiguous(memory.as_view(), call.weight)?,
        bias: Some(TensorRef::contiguous(memory.as_view(), call.bias)?),
        initial_states: Some(TensorRef::contiguous(
            memory.as_view(),
            call.initial_states,
        )?),
        cu_seqlens: cu_seqlens.transpose()?,
        out: TensorMut::new(out.as_view_mut(), call.out, call.out_strides)?,
        final_states: Some(TensorMut::contiguous(
            states.as_view_mut(),
            call.final_states,
        )?),
    };
    let op = &device.causal_conv1d;
    op.forward(&stream, Config::default(), tensors)
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
}

#[test]
fn shapes_that_disagree() {
    let cases = [
        (
            Call {
                weight: [5, 4],
                ..CALL
            },
            "weight has shape [5, 4], expected shape [6, 4]",
        ),
        (
            Call { bias: [5], ..CALL },
            "bias has shape [5], expected shape [6]",
        ),
        (
            Call {
                initial_states: [2, 6, 4],
                ..CALL
            },
            "initial_states has shape [2, 6, 4], expected shape [2, 6, 3]",
        ),
        (
            Call {
                out: [2, 5, 6],
                out_strides: [30, 6, 1],
                ..CALL
            },
            "out has shape [2, 5, 6], expected shape [2, 6, 5]",
        ),
        (
            Call {
                final_states: [1, 6, 3],
                ..CALL
            },
            "final_states has shape [1, 6, 3], expected shape [2, 6, 3]",
        ),
        (
            Call {
                final_states: [1, 6, 3],
                ..PACKED
            },
            "final_states has shape [1, 6, 3], expected shape [3, 6, 3]",
        ),
    ];
    for (call, words) in cases {
        assert_says(forward(call), &["causal_conv1d::forward", words]);
    }
}

#[test]
fn widths_without_a_kernel() {
    for (width, words) in [
        (1, "no kernel for width 1"),
        (9, "no kernel for width 9"),
        (0, "no kernel for width 0"),
    ] {
        let call = Call {
            weight: [6, width],
            ..CALL
        };
        let available = "there is each width from 2 to 8";
        assert_says(forward(call), &["causal_conv1d::forward", words, available]);
    }
}

#[test]
fn packed_sequences_in_several_rows() {
    let call = Call {
        cu_seqlens: Some((4, 1)),
        ..CALL
    };
    let words = "x has a batch of 2, expected a batch of 1, whose steps cu_seqlens divides";
    assert_says(forward(call), &[words]);
}

#[test]
fn offsets_that_are_none() {
    let none = Call {
        cu_seqlens: Some((0, 1)),
        ..PACKED
    };
    let words = "cu_seqlens has no elements, expected sequences + 1 elements";
    assert_says(forward(none), &[words]);
    let apart = Call {
        cu_seqlens: Some((4, 2)),
        ..PACKED
    };
    assert_says(
        forward(apart),
        &["cu_seqlens has shape [4] with strides [2], expected a stride of 1"],
    );
}

#[test]
fn tensors_that_lie_differently() {
    let neither = Call {
        strides: [100, 12, 2],
        ..CALL
    };
    let words = "expected a stride of 1 along dim or seqlen";
    assert_says(forward(neither), &["x has", "strides [100, 12, 2]", words]);
    let crossed = Call {
        out_strides: [30, 1, 6],
        ..CALL
    };
    let words = "expected a stride of 1 along seqlen";
    assert_says(forward(crossed), &["out has", "strides [30, 1, 6]", words]);
}

/// Safe code cannot borrow a buffer to read and to write, but views of foreign memory can. Of the gradients that the
/// second kernel writes too: nothing is queued, so that dx is as it was.
#[test]
fn outputs_that_overlap() {
    let device = device();
    let stream = device.stream();
    let zeros = || Tensor::<f16, 3>::zeros(&stream, [2, 6, 5]).unwrap();
    let x = zeros();
    let weight = Tensor::<f16, 2>::zeros(&stream, [6, 4]).unwrap();
    let ones = vec![f16::ONE; 60];
    let mut dx = Tensor::from_host(&stream, &ones, [2, 6, 5]).unwrap();
    let buffer = stream.alloc_zeros::<f16>(100).unwrap();
    let (address, guard) = buffer.device_ptr(&stream);
    drop(guard);
    // SAFETY: `buffer` is alive and holds 24 elements from there; `leak` below keeps it from being freed twice.
    let mut alias = unsafe { stream.upgrade_device_ptr::<f16>(address + 100, 24) };
    let tensors = Backward {
        x: x.view(),
        weight: weight.view(),
        bias: None,
        initial_states: None,
        cu_seqlens: None,
        dout: TensorRef::contiguous(buffer.as_view(), [2, 6, 5]).unwrap(),
        dfinal_states: None,
        dx: Some(dx.view_mut()),
        dweight: Some(TensorMut::contiguous(alias.as_view_mut(), [6, 4]).unwrap()),
        dbias: None,
        dinitial_states: None,
    };
    let mut workspace = Workspace::new(&stream);
    workspace.reserve(1 << 16).unwrap();
    let op = &device.causal_conv1d;
    let result = op.backward(&stream, Config::default(), tensors, &mut workspace);
    alias.leak();
    let words = "dweight overlaps dout in memory; outputs need memory of their own";
    assert_says(result, &["causal_conv1d::backward", words]);
    assert_eq!(dx.to_host(&stream).unwrap(), ones);
}

#[test]
fn a_workspace_that_is_too_small() {
    let device = device();
    let stream = device.stream();
    let x = Tensor::<f16, 3>::zeros(&stream, [2, 6, 5]).unwrap();
    let weight = Tensor::<f16, 2>::zeros(&stream, [6, 4]).unwrap();
    let mut dweight = Tensor::<f16, 2>::zeros(&stream, [6, 4]).unwrap();
    let tensors = Backward {
        x: x.view(),
        weight: weight.view(),
        bias: None,
        initial_states: None,
        cu_seqlens: None,
        dout: x.view(),
        dfinal_states: None,
        dx: None,
        dweight: Some(dweight.view_mut()),
        dbias: None,
        dinitial_states: None,
    };
    let mut workspace = Workspace::new(&stream);
    let op = &device.causal_conv1d;
    let needed = op.backward_workspace_bytes(&tensors).unwrap();
    workspace.reserve(needed - 1).unwrap();
    let result = op.backward(&stream, Config::default(), tensors, &mut workspace);
    let expected = Error::Workspace {
        needed,
        reserved: needed - 1,
    };
    assert_eq!(result, Err(expected));
}

/// Gradients of shapes that those of the inputs do not have.
#[test]
fn gradients_that_disagree() {
    let device = device();
    let stream = device.stream();
    let x = Tensor::<f16, 3>::zeros(&stream, [2, 6, 5]).unwrap();
    let weight = Tensor::<f16, 2>::zeros(&stream, [6, 4]).unwrap();
    let states = Tensor::<f16, 3>::zeros(&stream, [2, 6, 2]).unwrap();
    let turned = Tensor::<f16, 3>::zeros(&stream, [2, 5, 6]).unwrap();
    let mut dweight = Tensor::<f16, 2>::zeros(&stream, [4, 6]).unwrap();
    let mut dbias = Tensor::<f16, 1>::zeros(&stream, [5]).unwrap();
    let mut run = |which: usize| {
        let tensors = Backward {
            x: x.view(),
            weight: weight.view(),
            bias: None,
            initial_states: None,
            cu_seqlens: None,
            dout: match which {
                0 => turned.view().transposed(),
                _ => x.view(),
            },
            dfinal_states: (which == 1).then(|| states.view()),
            dx: None,
            dweight: (which == 2).then(|| dweight.view_mut()),
            dbias: (which == 3).then(|| dbias.view_mut()),
            dinitial_states: None,
        };
        let mut workspace = Workspace::new(&stream);
        let op = &device.causal_conv1d;
        op.backward(&stream, Config::default(), tensors, &mut workspace)
    };
    for (which, words) in [
        "dout has shape [2, 6, 5] with strides [30, 1, 6], expected a stride of 1 along seqlen",
        "dfinal_states has shape [2, 6, 2], expected shape [2, 6, 3]",
        "dweight has shape [4, 6], expected shape [6, 4]",
        "dbias has shape [5], expected shape [6]",
    ]
    .into_iter()
    .enumerate()
    {
        assert_says(run(which), &["causal_conv1d::backward", words]);
    }
}

#[test]
fn steps_that_disagree() {
    let device = device();
    let stream = device.stream();
    let zeros = |shape| Tensor::<f16, 2>::zeros(&stream, shape).unwrap();
    let (x, weight) = (zeros([2, 6]), zeros([6, 4]));
    let indices = Tensor::<i32, 1>::zeros(&stream, [3]).unwrap();
    let run = |out: [usize; 2], state: [usize; 3], indexed: bool| {
        let mut out = zeros(out);
        let mut conv_state = Tensor::<f16, 3>::zeros(&stream, state).unwrap();
        let tensors = Update {
            x: x.view(),
            conv_state: conv_state.view_mut(),
            weight: weight.view(),
            bias: None,
            conv_state_indices: indexed.then(|| indices.view()),
            out: out.view_mut(),
        };
        let op = &device.causal_conv1d;
        op.update(&stream, Config::default(), tensors)
    };
    run([2, 6], [2, 6, 3], false).unwrap();
    for (out, state, indexed, words) in [
        (
            [2, 5],
            [2, 6, 3],
            false,
            "out has shape [2, 5], expected shape [2, 6]",
        ),
        (
            [2, 6],
            [2, 6, 4],
            false,
            "conv_state has shape [2, 6, 4], expected shape [2, 6, 3]",
        ),
        (
            [2, 6],
            [3, 6, 3],
            false,
            "conv_state has shape [3, 6, 3], expected shape [2, 6, 3]",
        ),
        (
            [2, 6],
            [9, 6, 3],
            true,
            "conv_state_indices has shape [3], expected shape [2]",
        ),
    ] {
        assert_says(run(out, state, indexed), &["causal_conv1d::update", words]);
    }
}
