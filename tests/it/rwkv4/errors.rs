//! Calls that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::rwkv4::{Backward, Config, Forward, Inputs, State, StateGradient, StateMut, Step};
use seqmix::{Error, Result, Tensor, TensorMut, TensorRef, Workspace};

use crate::support::device;

/// Shapes of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    k: [usize; 3],
    v: [usize; 3],
    /// Strides of v.
    strides: [usize; 3],
    decay: usize,
    bonus: usize,
    state: [usize; 2],
    /// Offsets of packed sequences, if there are any, and their stride.
    cu_seqlens: Option<(usize, usize)>,
    out: [usize; 3],
    final_state: [usize; 2],
}

const CALL: Call = Call {
    k: [2, 5, 6],
    v: [2, 5, 6],
    strides: [30, 6, 1],
    decay: 6,
    bonus: 6,
    state: [2, 6],
    cu_seqlens: None,
    out: [2, 5, 6],
    final_state: [2, 6],
};

const PACKED: Call = Call {
    k: [1, 5, 6],
    v: [1, 5, 6],
    state: [3, 6],
    cu_seqlens: Some((4, 1)),
    out: [1, 5, 6],
    final_state: [3, 6],
    ..CALL
};

fn forward(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let memory = stream.alloc_zeros::<f16>(4096).unwrap();
    let floats = stream.alloc_zeros::<f32>(4096).unwrap();
    let offsets = stream.alloc_zeros::<i32>(64).unwrap();
    let mut out = stream.alloc_zeros::<f16>(4096).unwrap();
    let mut finals = [(); 3].map(|()| stream.alloc_zeros::<f32>(256).unwrap());
    let state = || TensorRef::contiguous(floats.as_view(), call.state);
    let [numerator, denominator, exponent] = finals
        .each_mut()
        .map(|x| TensorMut::contiguous(x.as_view_mut(), call.final_state));
    let cu_seqlens = call
        .cu_seqlens
        .map(|(count, stride)| TensorRef::new(offsets.as_view(), [count], [stride]));
    let tensors = Forward {
        inputs: Inputs {
            k: TensorRef::contiguous(memory.as_view(), call.k)?,
            v: TensorRef::new(memory.as_view(), call.v, call.strides)?,
            decay: TensorRef::contiguous(floats.as_view(), [call.decay])?,
            bonus: TensorRef::contiguous(floats.as_view(), [call.bonus])?,
            initial_state: Some(State {
                numerator: state()?,
                denominator: state()?,
                exponent: state()?,
            }),
            cu_seqlens: cu_seqlens.transpose()?,
        },
        out: TensorMut::contiguous(out.as_view_mut(), call.out)?,
        final_state: Some(StateMut {
            numerator: numerator?,
            denominator: denominator?,
            exponent: exponent?,
        }),
    };
    let mut workspace = Workspace::new(&stream);
    let op = &device.rwkv4;
    op.forward(&stream, Config::default(), tensors, &mut workspace)
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
        (Call { v: [2, 6, 5], ..CALL }, "v has shape [2, 6, 5], expected shape [2, 5, 6]"),
        (Call { strides: [60, 12, 2], ..CALL }, "v has strides [60, 12, 2], expected a last stride of 1"),
        (Call { decay: 5, ..CALL }, "decay has shape [5], expected shape [6]"),
        (Call { bonus: 7, ..CALL }, "bonus has shape [7], expected shape [6]"),
        (Call { state: [3, 6], ..CALL }, "initial_state has shape [3, 6], expected shape [2, 6]"),
        (Call { out: [2, 5, 7], ..CALL }, "out has shape [2, 5, 7], expected shape [2, 5, 6]"),
        (Call { final_state: [2, 5], ..CALL }, "final_state has shape [2, 5], expected shape [2, 6]"),
        (Call { state: [1, 6], ..PACKED }, "initial_state has shape [1, 6], expected shape [3, 6]"),
        (Call { cu_seqlens: Some((3, 1)), ..CALL }, "k has a batch of 2, expected a batch of 1, whose steps cu_seqlens divides"),
        (Call { cu_seqlens: Some((0, 1)), ..PACKED }, "cu_seqlens has no elements, expected sequences + 1 elements"),
        (Call { cu_seqlens: Some((4, 2)), ..PACKED }, "cu_seqlens has shape [4] with strides [2], expected a stride of 1"),
    ];
    for (call, words) in cases {
        assert_says(forward(call), &["rwkv4::forward", words]);
    }
}

/// Gradients of shapes that those of the inputs do not have, and a workspace that is too small.
#[test]
fn gradients_that_disagree() {
    let device = device();
    let stream = device.stream();
    let signal = Tensor::<f16, 3>::zeros(&stream, [2, 5, 6]).unwrap();
    let other = Tensor::<f16, 3>::zeros(&stream, [2, 6, 6]).unwrap();
    let vector = Tensor::<f32, 1>::zeros(&stream, [6]).unwrap();
    let state = Tensor::<f32, 2>::zeros(&stream, [2, 5]).unwrap();
    let [mut dk, mut dv] = [(); 2].map(|()| Tensor::<f16, 3>::zeros(&stream, [2, 5, 6]).unwrap());
    let mut ddecay = Tensor::<f32, 1>::zeros(&stream, [7]).unwrap();
    let mut run = |which: usize, reserved: Option<usize>| {
        let tensors = Backward {
            inputs: Inputs {
                k: signal.view(),
                v: signal.view(),
                decay: vector.view(),
                bonus: vector.view(),
                initial_state: None,
                cu_seqlens: None,
            },
            dout: if which == 0 {
                other.view()
            } else {
                signal.view()
            },
            dfinal_state: (which == 1).then(|| StateGradient {
                numerator: state.view(),
                denominator: state.view(),
            }),
            dk: dk.view_mut(),
            dv: dv.view_mut(),
            ddecay: (which == 2).then(|| ddecay.view_mut()),
            dbonus: None,
            dinitial_state: None,
        };
        let op = &device.rwkv4;
        let mut workspace = Workspace::new(&stream);
        let needed = op
            .backward_plan(Config::default(), &tensors)?
            .workspace_bytes();
        workspace.reserve(reserved.unwrap_or(needed))?;
        op.backward(&stream, Config::default(), tensors, &mut workspace)
    };
    run(3, None).unwrap();
    for (which, words) in [
        "dout has shape [2, 6, 6], expected shape [2, 5, 6]",
        "dfinal_state has shape [2, 5], expected shape [2, 6]",
        "ddecay has shape [7], expected shape [6]",
    ]
    .into_iter()
    .enumerate()
    {
        assert_says(run(which, None), &["rwkv4::backward", words]);
    }
    let error = run(3, Some(100)).unwrap_err();
    assert!(
        matches!(error, Error::Workspace { reserved: 100, .. }),
        "{error}"
    );
}

#[test]
fn a_step_that_disagrees() {
    let device = device();
    let stream = device.stream();
    let row = Tensor::<f16, 2>::zeros(&stream, [2, 6]).unwrap();
    let turned = Tensor::<f16, 2>::zeros(&stream, [6, 2]).unwrap();
    let vector = Tensor::<f32, 1>::zeros(&stream, [6]).unwrap();
    let indices = Tensor::<i32, 1>::zeros(&stream, [3]).unwrap();
    let mut out = Tensor::<f16, 2>::zeros(&stream, [2, 6]).unwrap();
    let mut run = |which: usize| {
        let rows = if which == 0 { 4 } else { 2 };
        let mut state = [(); 3].map(|()| Tensor::<f32, 2>::zeros(&stream, [rows, 6]).unwrap());
        let [numerator, denominator, exponent] = state.each_mut().map(Tensor::view_mut);
        let tensors = Step {
            k: row.view(),
            v: if which == 1 {
                turned.view().transposed()
            } else {
                row.view()
            },
            decay: vector.view(),
            bonus: vector.view(),
            state: StateMut {
                numerator,
                denominator,
                exponent,
            },
            state_batch_indices: (which == 2).then(|| indices.view()),
            out: out.view_mut(),
        };
        device.rwkv4.step(&stream, tensors)
    };
    run(3).unwrap();
    for (which, words) in [
        "state has shape [4, 6], expected shape [2, 6]",
        "v has strides [1, 2], expected a last stride of 1",
        "state_batch_indices has shape [3], expected shape [2]",
    ]
    .into_iter()
    .enumerate()
    {
        assert_says(run(which), &["rwkv4::step", words]);
    }
}
