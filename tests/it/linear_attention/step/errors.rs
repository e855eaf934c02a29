//! Steps that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::linear_attention::{Config, Decay, Rule, Step};
use seqmix::{Result, TensorMut, TensorRef};

use crate::support::{RacesPass, device};

/// Shapes of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    q: [usize; 4],
    k: [usize; 4],
    v: [usize; 4],
    out: [usize; 4],
    decay: Option<[usize; 3]>,
    beta: Option<[usize; 3]>,
    bonus: Option<[usize; 2]>,
    state: [usize; 4],
    /// Floats that the state begins after an aligned address.
    shift: usize,
    /// From one row of the state to the next.
    row: usize,
    z: Option<[usize; 3]>,
    indices: Option<usize>,
    normalize: Option<f32>,
}

const CALL: Call = Call {
    q: [2, 1, 2, 16],
    k: [2, 1, 4, 16],
    v: [2, 1, 1, 8],
    out: [2, 1, 4, 8],
    decay: None,
    beta: None,
    bonus: None,
    state: [2, 4, 16, 8],
    shift: 0,
    row: 8,
    z: None,
    indices: None,
    normalize: None,
};

fn step(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let halves = stream.alloc_zeros::<f16>(8192).unwrap();
    let floats = stream.alloc_zeros::<f32>(8192).unwrap();
    let integers = stream.alloc_zeros::<i32>(64).unwrap();
    let mut out = stream.alloc_zeros::<f16>(8192).unwrap();
    let mut state = stream.alloc_zeros::<f32>(16384).unwrap();
    let mut z = stream.alloc_zeros::<f32>(8192).unwrap();
    let [_, heads, dk, _] = call.state;
    let strides = [heads * dk * call.row, dk * call.row, call.row, 1];
    let decay = |shape| TensorRef::contiguous(floats.as_view(), shape).map(Decay::PerStep);
    let rule = |shape| {
        let beta = TensorRef::contiguous(halves.as_view(), shape);
        beta.map(|beta| Rule::Delta { beta })
    };
    let bonus = |shape| TensorRef::contiguous(floats.as_view(), shape);
    let tensors = Step {
        q: TensorRef::contiguous(halves.as_view(), call.q)?,
        k: TensorRef::contiguous(halves.as_view(), call.k)?,
        v: TensorRef::contiguous(halves.as_view(), call.v)?,
        decay: call.decay.map_or(Ok(Decay::None), decay)?,
        rule: call.beta.map_or(Ok(Rule::Linear), rule)?,
        bonus: call.bonus.map(bonus).transpose()?,
        state: TensorMut::new(state.slice_mut(call.shift..), call.state, strides)?,
        z: call
            .z
            .map(|shape| TensorMut::contiguous(z.as_view_mut(), shape))
            .transpose()?,
        state_batch_indices: call
            .indices
            .map(|count| TensorRef::contiguous(integers.as_view(), [count]))
            .transpose()?,
        out: TensorMut::contiguous(out.as_view_mut(), call.out)?,
    };
    let config = Config {
        normalize: call.normalize,
        ..Config::default()
    };
    device.linear_attention.step(&stream, config, tensors)
}

#[test]
fn the_call_that_the_others_vary_works() {
    // both sequences name state 0
    let _sequences_share = RacesPass::new();
    step(CALL).unwrap();
    step(Call {
        indices: Some(2),
        state: [5, 4, 16, 8],
        ..CALL
    })
    .unwrap();
    // rows of a state at any address
    step(Call {
        shift: 1,
        row: 9,
        ..CALL
    })
    .unwrap();
}

#[test]
#[rustfmt::skip]
fn what_disagrees_is_named() {
    let cases = [
        (Call { q: [2, 1, 2, 0], ..CALL }, "no kernel for dk 0; there is each from 1 to 256"),
        (Call { q: [2, 1, 1, 257], ..CALL }, "no kernel for dk 257; there is each from 1 to 256"),
        (Call { v: [2, 1, 1, 0], ..CALL }, "no kernel for dv 0; there is each from 1 to 32768"),
        (Call { q: [2, 2, 2, 16], ..CALL }, "q has shape [2, 2, 2, 16], expected shape [2, 1, 2, 16]"),
        (Call { k: [2, 1, 4, 8], ..CALL }, "k has shape [2, 1, 4, 8], expected shape [2, 1, 4, 16]"),
        (Call { q: [2, 1, 3, 16], ..CALL }, "q has 3 heads, expected a number of heads that divides the 4 heads of out"),
        (Call { out: [3, 1, 4, 8], ..CALL }, "out has shape [3, 1, 4, 8], expected shape [2, 1, 4, 8]"),
        (Call { decay: Some([2, 1, 2]), ..CALL }, "decay has shape [2, 1, 2], expected shape [2, 1, 4]"),
        (Call { beta: Some([2, 1, 1]), ..CALL }, "beta has shape [2, 1, 1], expected shape [2, 1, 4]"),
        (Call { bonus: Some([4, 8]), ..CALL }, "bonus has shape [4, 8], expected shape [4, 16]"),
        (Call { state: [3, 4, 16, 8], ..CALL }, "state has shape [3, 4, 16, 8], expected shape [2, 4, 16, 8]"),
        (Call { indices: Some(3), ..CALL }, "state_batch_indices has shape [3], expected shape [2]"),
        (Call { z: Some([2, 4, 16]), ..CALL }, "z is a tensor, expected none without normalize"),
        (Call { normalize: Some(0.0), ..CALL }, "z is none, expected a tensor with normalize"),
        (Call { normalize: Some(0.0), z: Some([2, 4, 8]), ..CALL }, "z has shape [2, 4, 8], expected shape [2, 4, 16]"),
    ];
    for (call, words) in cases {
        let text = step(call).expect_err(words).to_string();
        for word in ["linear_attention::step", words] {
            assert!(text.contains(word), "{text:?} does not say {word:?}");
        }
    }
}
