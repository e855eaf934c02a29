//! Calls that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::lru::{Backward, Config, Forward, Inputs, Step};
use seqmix::{Error, Result, Tensor, TensorMut, TensorRef, Workspace};

use crate::support::device;

/// Shapes of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    x: [usize; 4],
    /// Strides of x.
    strides: [usize; 4],
    /// Elements that x begins after an aligned address.
    shift: usize,
    a: [usize; 2],
    gamma: usize,
    initial_state: [usize; 3],
    cu_seqlens: Option<usize>,
    states: [usize; 4],
    final_state: [usize; 3],
    segments: Option<usize>,
}

const CALL: Call = Call {
    x: [2, 5, 6, 2],
    strides: [60, 12, 2, 1],
    shift: 0,
    a: [6, 2],
    gamma: 6,
    initial_state: [2, 6, 2],
    cu_seqlens: None,
    states: [2, 5, 6, 2],
    final_state: [2, 6, 2],
    segments: None,
};

fn forward(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let halves = stream.alloc_zeros::<f16>(4096).unwrap();
    let floats = stream.alloc_zeros::<f32>(4096).unwrap();
    let offsets = stream.alloc_zeros::<i32>(64).unwrap();
    let mut states = stream.alloc_zeros::<f16>(4096).unwrap();
    let mut last = stream.alloc_zeros::<f32>(4096).unwrap();
    let cu_seqlens = call
        .cu_seqlens
        .map(|count| TensorRef::contiguous(offsets.as_view(), [count]));
    let tensors = Forward {
        inputs: Inputs {
            x: TensorRef::new(halves.slice(call.shift..), call.x, call.strides)?,
            a: TensorRef::contiguous(floats.as_view(), call.a)?,
            gamma: Some(TensorRef::contiguous(floats.as_view(), [call.gamma])?),
            initial_state: Some(TensorRef::contiguous(floats.as_view(), call.initial_state)?),
            cu_seqlens: cu_seqlens.transpose()?,
        },
        states: TensorMut::contiguous(states.as_view_mut(), call.states)?,
        final_state: Some(TensorMut::contiguous(last.as_view_mut(), call.final_state)?),
    };
    let config = Config {
        segments: call.segments,
    };
    let mut workspace = Workspace::new(&stream);
    device.lru.forward(&stream, config, tensors, &mut workspace)
}

#[track_caller]
fn assert_says(result: Result<()>, words: &[&str]) {
    let text = result.expect_err("the call was not refused").to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
#[rustfmt::skip]
fn what_disagrees_is_named() {
    forward(CALL).unwrap();
    let cases = [
        (Call { strides: [120, 24, 4, 1], ..CALL }, "x has shape [2, 5, 6, 2] with strides [120, 24, 4, 1], expected states that lie contiguously"),
        (Call { strides: [61, 12, 2, 1], ..CALL }, "x has strides [61, 12, 2, 1], expected strides that are multiples of 2 elements"),
        (Call { shift: 1, ..CALL }, "expected an address that is a multiple of 4 bytes"),
        (Call { a: [5, 2], ..CALL }, "a has shape [5, 2], expected shape [6, 2]"),
        (Call { gamma: 7, ..CALL }, "gamma has shape [7], expected shape [6]"),
        (Call { initial_state: [3, 6, 2], ..CALL }, "initial_state has shape [3, 6, 2], expected shape [2, 6, 2]"),
        (Call { states: [2, 5, 6, 1], ..CALL }, "states has shape [2, 5, 6, 1], expected shape [2, 5, 6, 2]"),
        (Call { final_state: [2, 5, 2], ..CALL }, "final_state has shape [2, 5, 2], expected shape [2, 6, 2]"),
        (Call { cu_seqlens: Some(3), ..CALL }, "x has a batch of 2, expected a batch of 1, whose steps cu_seqlens divides"),
        (Call { segments: Some(65), ..CALL }, "segments is 65, expected 1 to 64"),
        (Call { segments: Some(2), ..CALL }, "a workspace of 512 bytes is needed, 0 are reserved"),
    ];
    for (call, words) in cases {
        assert_says(forward(call), &[words]);
    }
}

/// Gradients of shapes that those of the inputs do not have, and a workspace that is too small.
#[test]
fn gradients_that_disagree() {
    let device = device();
    let stream = device.stream();
    let signal = Tensor::<f16, 4>::zeros(&stream, [2, 5, 6, 2]).unwrap();
    let other = Tensor::<f16, 4>::zeros(&stream, [2, 6, 6, 2]).unwrap();
    let a = Tensor::<f32, 2>::zeros(&stream, [6, 2]).unwrap();
    let state = Tensor::<f32, 3>::zeros(&stream, [2, 5, 2]).unwrap();
    let mut dx = Tensor::<f16, 4>::zeros(&stream, [2, 5, 6, 2]).unwrap();
    let mut da = Tensor::<f32, 2>::zeros(&stream, [5, 2]).unwrap();
    let mut dgamma = Tensor::<f32, 1>::zeros(&stream, [7]).unwrap();
    let mut run = |which: usize, reserved: Option<usize>| {
        let tensors = Backward {
            inputs: Inputs {
                x: signal.view(),
                a: a.view(),
                gamma: None,
                initial_state: None,
                cu_seqlens: None,
            },
            dstates: if which == 0 {
                other.view()
            } else {
                signal.view()
            },
            dfinal_state: (which == 1).then(|| state.view()),
            dx: dx.view_mut(),
            da: (which == 2).then(|| da.view_mut()),
            dgamma: (which == 3).then(|| dgamma.view_mut()),
            dinitial_state: None,
        };
        let op = &device.lru;
        let mut workspace = Workspace::new(&stream);
        let needed = op
            .backward_plan(Config::default(), &tensors)?
            .workspace_bytes();
        workspace.reserve(reserved.unwrap_or(needed))?;
        op.backward(&stream, Config::default(), tensors, &mut workspace)
    };
    run(4, None).unwrap();
    for (which, words) in [
        "dstates has shape [2, 6, 6, 2], expected shape [2, 5, 6, 2]",
        "dfinal_state has shape [2, 5, 2], expected shape [2, 6, 2]",
        "da has shape [5, 2], expected shape [6, 2]",
        "dgamma has shape [7], expected shape [6]",
    ]
    .into_iter()
    .enumerate()
    {
        assert_says(run(which, None), &["lru::backward", words]);
    }
    let error = run(4, Some(100)).unwrap_err();
    assert!(
        matches!(error, Error::Workspace { reserved: 100, .. }),
        "{error}"
    );
}

#[test]
fn a_step_that_disagrees() {
    let device = device();
    let stream = device.stream();
    let x = Tensor::<f16, 3>::zeros(&stream, [2, 6, 2]).unwrap();
    let a = Tensor::<f32, 2>::zeros(&stream, [6, 2]).unwrap();
    let indices = Tensor::<i32, 1>::zeros(&stream, [3]).unwrap();
    let mut out = Tensor::<f16, 3>::zeros(&stream, [2, 6, 2]).unwrap();
    let mut run = |which: usize| {
        let rows = if which == 0 { 4 } else { 2 };
        let mut state = Tensor::<f32, 3>::zeros(&stream, [rows, 6, 2]).unwrap();
        let tensors = Step {
            x: x.view(),
            a: a.view(),
            gamma: None,
            state: state.view_mut(),
            state_batch_indices: (which == 1).then(|| indices.view()),
            out: out.view_mut(),
        };
        device.lru.step(&stream, tensors)
    };
    run(2).unwrap();
    for (which, words) in [
        "state has shape [4, 6, 2], expected shape [2, 6, 2]",
        "state_batch_indices has shape [3], expected shape [2]",
    ]
    .into_iter()
    .enumerate()
    {
        assert_says(run(which), &["lru::step", words]);
    }
}
