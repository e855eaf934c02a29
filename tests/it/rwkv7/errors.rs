//! Calls that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::rwkv7::{Backward, Config, Forward, Inputs, Step};
use seqmix::{Error, Result, Tensor, TensorMut, TensorRef, Workspace};

use crate::support::device;

/// Shapes of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    r: [usize; 4],
    decay: [usize; 4],
    k: [usize; 4],
    v: [usize; 4],
    /// Strides of v.
    strides: [usize; 4],
    a: [usize; 4],
    b: [usize; 4],
    state: [usize; 4],
    /// Offsets of packed sequences, if there are any, and their stride.
    cu_seqlens: Option<(usize, usize)>,
    out: [usize; 4],
    lookups: [usize; 4],
    final_state: [usize; 4],
    slices: Option<usize>,
}

const CALL: Call = Call {
    r: [2, 5, 3, 6],
    decay: [2, 5, 3, 6],
    k: [2, 5, 3, 6],
    v: [2, 5, 3, 4],
    strides: [60, 12, 4, 1],
    a: [2, 5, 3, 6],
    b: [2, 5, 3, 6],
    state: [2, 3, 6, 4],
    cu_seqlens: None,
    out: [2, 5, 3, 4],
    lookups: [2, 5, 3, 4],
    final_state: [2, 3, 6, 4],
    slices: None,
};

const PACKED: Call = Call {
    r: [1, 5, 3, 6],
    decay: [1, 5, 3, 6],
    k: [1, 5, 3, 6],
    v: [1, 5, 3, 4],
    a: [1, 5, 3, 6],
    b: [1, 5, 3, 6],
    state: [3, 3, 6, 4],
    cu_seqlens: Some((4, 1)),
    out: [1, 5, 3, 4],
    lookups: [1, 5, 3, 4],
    final_state: [3, 3, 6, 4],
    ..CALL
};

fn forward(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let memory = stream.alloc_zeros::<f16>(4096).unwrap();
    let floats = stream.alloc_zeros::<f32>(4096).unwrap();
    let offsets = stream.alloc_zeros::<i32>(64).unwrap();
    let mut out = stream.alloc_zeros::<f16>(4096).unwrap();
    let mut lookups = stream.alloc_zeros::<f32>(4096).unwrap();
    let mut last = stream.alloc_zeros::<f32>(4096).unwrap();
    let cu_seqlens = call
        .cu_seqlens
        .map(|(count, stride)| TensorRef::new(offsets.as_view(), [count], [stride]));
    let tensors = Forward {
        inputs: Inputs {
            r: TensorRef::contiguous(memory.as_view(), call.r)?,
            decay: TensorRef::contiguous(floats.as_view(), call.decay)?,
            k: TensorRef::contiguous(memory.as_view(), call.k)?,
            v: TensorRef::new(memory.as_view(), call.v, call.strides)?,
            a: TensorRef::contiguous(memory.as_view(), call.a)?,
            b: TensorRef::contiguous(memory.as_view(), call.b)?,
            initial_state: Some(TensorRef::contiguous(floats.as_view(), call.state)?),
            cu_seqlens: cu_seqlens.transpose()?,
        },
        out: TensorMut::contiguous(out.as_view_mut(), call.out)?,
        lookups: Some(TensorMut::contiguous(lookups.as_view_mut(), call.lookups)?),
        final_state: Some(TensorMut::contiguous(last.as_view_mut(), call.final_state)?),
    };
    let config = Config {
        slices: call.slices,
    };
    device.rwkv7.forward(&stream, config, tensors)
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
#[rustfmt::skip]
fn what_disagrees_is_named() {
    let cases = [
        (Call { decay: [2, 5, 3, 1], ..CALL }, "decay has shape [2, 5, 3, 1], expected shape [2, 5, 3, 6]"),
        (Call { k: [2, 5, 2, 6], ..CALL }, "k has shape [2, 5, 2, 6], expected shape [2, 5, 3, 6]"),
        (Call { v: [2, 4, 3, 4], ..CALL }, "v has shape [2, 4, 3, 4], expected shape [2, 5, 3, 4]"),
        (Call { strides: [120, 24, 8, 2], ..CALL }, "v has strides [120, 24, 8, 2], expected a last stride of 1"),
        (Call { a: [1, 5, 3, 6], ..CALL }, "a has shape [1, 5, 3, 6], expected shape [2, 5, 3, 6]"),
        (Call { b: [2, 5, 3, 5], ..CALL }, "b has shape [2, 5, 3, 5], expected shape [2, 5, 3, 6]"),
        (Call { state: [3, 3, 6, 4], ..CALL }, "initial_state has shape [3, 3, 6, 4], expected shape [2, 3, 6, 4]"),
        (Call { out: [2, 5, 3, 6], ..CALL }, "out has shape [2, 5, 3, 6], expected shape [2, 5, 3, 4]"),
        (Call { lookups: [2, 5, 3, 6], ..CALL }, "lookups has shape [2, 5, 3, 6], expected shape [2, 5, 3, 4]"),
        (Call { final_state: [2, 3, 4, 6], ..CALL }, "final_state has shape [2, 3, 4, 6], expected shape [2, 3, 6, 4]"),
        (Call { state: [1, 3, 6, 4], ..PACKED }, "initial_state has shape [1, 3, 6, 4], expected shape [3, 3, 6, 4]"),
        (Call { cu_seqlens: Some((3, 1)), ..CALL }, "r has a batch of 2, expected a batch of 1, whose steps cu_seqlens divides"),
        (Call { cu_seqlens: Some((0, 1)), ..PACKED }, "cu_seqlens has no elements, expected sequences + 1 elements"),
        (Call { cu_seqlens: Some((4, 2)), ..PACKED }, "cu_seqlens has shape [4] with strides [2], expected a stride of 1"),
        (Call { r: [1, 1, 1, 129], ..CALL }, "no kernel for dk 129; there is each from 1 to 128"),
        (Call { v: [1, 1, 1, 200], strides: [200, 200, 200, 1], ..CALL }, "no kernel for dv 200; there is each from 1 to 128"),
        (Call { slices: Some(3), ..CALL }, "slices is 3, expected 1 or 4"),
    ];
    for (call, words) in cases {
        assert_says(forward(call), &["rwkv7::forward", words]);
    }
}

/// Gradients of shapes that those of the inputs do not have, and a workspace that is too small.
#[test]
fn gradients_that_disagree() {
    let device = device();
    let stream = device.stream();
    let rows = [1, 5, 2, 4];
    let zeros = |shape| Tensor::<f16, 4>::zeros(&stream, shape).unwrap();
    let floats = |shape| Tensor::<f32, 4>::zeros(&stream, shape).unwrap();
    let (row, other) = (zeros(rows), zeros([1, 5, 4, 2]));
    let (decay, state) = (floats(rows), floats([2, 2, 4, 4]));
    let run = |which: usize, reserved: Option<usize>| {
        let shape = |of: usize| if which == of { [1, 5, 2, 3] } else { rows };
        let mut of_keys = [2, 3, 4, 5, 6].map(|of| zeros(shape(of)));
        let [dr, dk, dv, da, db] = of_keys.each_mut().map(Tensor::view_mut);
        let mut ddecay = floats(shape(7));
        let tensors = Backward {
            inputs: Inputs {
                r: row.view(),
                decay: decay.view(),
                k: row.view(),
                v: row.view(),
                a: row.view(),
                b: row.view(),
                initial_state: None,
                cu_seqlens: None,
            },
            lookups: decay.view(),
            dout: if which == 0 { other.view() } else { row.view() },
            dfinal_state: (which == 1).then(|| state.view()),
            dr,
            ddecay: ddecay.view_mut(),
            dk,
            dv,
            da,
            db,
            dinitial_state: None,
        };
        let op = &device.rwkv7;
        let mut workspace = Workspace::new(&stream);
        let needed = op.backward_plan(&tensors)?.workspace_bytes();
        workspace.reserve(reserved.unwrap_or(needed))?;
        op.backward(&stream, tensors, &mut workspace)
    };
    run(8, None).unwrap();
    for (which, words) in [
        "dout has shape [1, 5, 4, 2], expected shape [1, 5, 2, 4]",
        "dfinal_state has shape [2, 2, 4, 4], expected shape [1, 2, 4, 4]",
        "dr has shape [1, 5, 2, 3], expected shape [1, 5, 2, 4]",
        "dk has shape",
        "dv has shape",
        "da has shape",
        "db has shape",
        "ddecay has shape",
    ]
    .into_iter()
    .enumerate()
    {
        assert_says(run(which, None), &["rwkv7::backward", words]);
    }
    let error = run(8, Some(100)).unwrap_err();
    assert!(
        matches!(error, Error::Workspace { reserved: 100, .. }),
        "{error}"
    );
}

#[test]
fn a_step_that_disagrees() {
    let device = device();
    let stream = device.stream();
    let row = Tensor::<f16, 3>::zeros(&stream, [2, 3, 4]).unwrap();
    let decay = Tensor::<f32, 3>::zeros(&stream, [2, 3, 4]).unwrap();
    let turned = Tensor::<f16, 3>::zeros(&stream, [2, 4, 3]).unwrap();
    let indices = Tensor::<i32, 1>::zeros(&stream, [3]).unwrap();
    let mut out = Tensor::<f16, 3>::zeros(&stream, [2, 3, 4]).unwrap();
    let mut run = |which: usize| {
        let rows = if which == 0 { 4 } else { 2 };
        let mut state = Tensor::<f32, 4>::zeros(&stream, [rows, 3, 4, 4]).unwrap();
        let tensors = Step {
            r: row.view(),
            decay: decay.view(),
            k: if which == 1 {
                turned.view().transposed()
            } else {
                row.view()
            },
            v: row.view(),
            a: if which == 3 {
                turned.view()
            } else {
                row.view()
            },
            b: row.view(),
            state: state.view_mut(),
            state_batch_indices: (which == 2).then(|| indices.view()),
            out: out.view_mut(),
        };
        device.rwkv7.step(&stream, tensors)
    };
    run(4).unwrap();
    for (which, words) in [
        "state has shape [4, 3, 4, 4], expected shape [2, 3, 4, 4]",
        "k has strides [12, 1, 3], expected a last stride of 1",
        "state_batch_indices has shape [3], expected shape [2]",
        "a has shape [2, 4, 3], expected shape [2, 3, 4]",
    ]
    .into_iter()
    .enumerate()
    {
        assert_says(run(which), &["rwkv7::step", words]);
    }
}
