//! Steps that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::causal_conv1d::Activation;
use seqmix::selective_scan::{Numbers, Step, StepConfig, StepConvolution, Weight};
use seqmix::{Result, TensorMut, TensorRef};

use crate::support::{RacesPass, device};

/// Shapes of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    state: [usize; 4],
    indices: Option<([usize; 1], [usize; 1])>,
    x: [usize; 3],
    dt: [usize; 3],
    a: [usize; 3],
    b: [usize; 3],
    c: [usize; 3],
    d: [usize; 2],
    z: [usize; 3],
    dt_bias: [usize; 2],
    out: [usize; 3],
    convolves: bool,
    conv_state: [usize; 3],
    steps: ([usize; 1], [usize; 1]),
    weight: [usize; 2],
    bias: [usize; 1],
    config: StepConfig,
}

const CALL: Call = Call {
    state: [2, 4, 3, 5],
    indices: None,
    x: [2, 4, 3],
    dt: [2, 4, 3],
    a: [4, 3, 5],
    b: [2, 2, 5],
    c: [2, 2, 5],
    d: [4, 3],
    z: [2, 4, 3],
    dt_bias: [4, 3],
    out: [2, 4, 3],
    convolves: true,
    conv_state: [2, 32, 4],
    steps: ([2], [1]),
    weight: [32, 4],
    bias: [32],
    config: StepConfig {
        numbers: Numbers::Real,
        dt_softplus: true,
        dt_limit: (0.0, f32::INFINITY),
    },
};

fn step(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let memory = stream.alloc_zeros::<f16>(8192).unwrap();
    let floats = stream.alloc_zeros::<f32>(8192).unwrap();
    let integers = stream.alloc_zeros::<i32>(64).unwrap();
    let mut states = stream.alloc_zeros::<f32>(8192).unwrap();
    let [mut out, mut ring] = [(); 2].map(|()| stream.alloc_zeros::<f16>(8192).unwrap());
    let numbers = |shape| TensorRef::contiguous(memory.as_view(), shape);
    let indices = call
        .indices
        .map(|(shape, strides)| TensorRef::new(integers.as_view(), shape, strides));
    let (steps, strides) = call.steps;
    let convolution = StepConvolution {
        conv_state: TensorMut::contiguous(ring.as_view_mut(), call.conv_state)?,
        cache_seqlens: TensorRef::new(integers.as_view(), steps, strides)?,
        weight: Weight::Same(TensorRef::contiguous(memory.as_view(), call.weight)?),
        bias: Some(Weight::F32(TensorRef::contiguous(
            floats.as_view(),
            call.bias,
        )?)),
        activation: Activation::Silu,
    };
    let tensors = Step {
        state_batch_indices: indices.transpose()?,
        convolution: call.convolves.then_some(convolution),
        d: Some(Weight::F32(TensorRef::contiguous(
            floats.as_view(),
            call.d,
        )?)),
        z: Some(numbers(call.z)?),
        dt_bias: Some(Weight::Same(TensorRef::contiguous(
            memory.as_view(),
            call.dt_bias,
        )?)),
        ..Step::new(
            TensorMut::contiguous(states.as_view_mut(), call.state)?,
            (numbers(call.x)?, numbers(call.dt)?),
            TensorRef::contiguous(floats.as_view(), call.a)?,
            (numbers(call.b)?, numbers(call.c)?),
            TensorMut::contiguous(out.as_view_mut(), call.out)?,
        )
    };
    device.selective_scan.step(&stream, call.config, tensors)
}

#[track_caller]
fn assert_says(call: Call, words: &str) {
    let text = step(call)
        .expect_err("the call was not refused")
        .to_string();
    assert!(text.contains(words), "{text:?} does not say {words:?}");
    assert!(text.contains("selective_scan::step"), "{text:?}");
}

#[test]
fn the_call_that_the_others_vary_works() {
    // both sequences name state 0
    let _sequences_share = RacesPass::new();
    step(CALL).unwrap();
    let indices = Some(([2], [1]));
    step(Call {
        indices,
        state: [7, 4, 3, 5],
        conv_state: [7, 32, 4],
        ..CALL
    })
    .unwrap();
}

#[test]
#[rustfmt::skip]
fn shapes_that_disagree() {
    for (call, words) in [
        (Call { state: [2, 4, 3, 4], ..CALL }, "state has shape [2, 4, 3, 4], expected shape [2, 4, 3, 5]"),
        (Call { state: [3, 4, 3, 5], ..CALL }, "state has shape [3, 4, 3, 5], expected shape [2, 4, 3, 5]"),
        (Call { dt: [2, 4, 1], ..CALL }, "dt has shape [2, 4, 1], expected shape [2, 4, 3]"),
        (Call { a: [4, 1, 5], ..CALL }, "A has shape [4, 1, 5], expected shape [4, 3, 5]"),
        (Call { b: [1, 2, 5], ..CALL }, "B has shape [1, 2, 5], expected shape [2, 2, 5]"),
        (Call { c: [2, 1, 5], ..CALL }, "C has shape [2, 1, 5], expected shape [2, 2, 5]"),
        (Call { d: [4, 1], ..CALL }, "D has shape [4, 1], expected shape [4, 3]"),
        (Call { z: [2, 3, 4], ..CALL }, "z has shape [2, 3, 4], expected shape [2, 4, 3]"),
        (Call { dt_bias: [3, 4], ..CALL }, "dt_bias has shape [3, 4], expected shape [4, 3]"),
        (Call { out: [1, 4, 3], ..CALL }, "out has shape [1, 4, 3], expected shape [2, 4, 3]"),
        (Call { b: [2, 3, 5], c: [2, 3, 5], ..CALL }, "expected a divisor of 4 heads as groups"),
        (Call { b: [2, 0, 5], c: [2, 0, 5], ..CALL }, "expected a divisor of 4 heads as groups"),
        (Call { indices: Some(([3], [1])), ..CALL }, "state_batch_indices has shape [3], expected shape [2]"),
    ] {
        assert_says(call, words);
    }
}

#[test]
#[rustfmt::skip]
fn state_sizes_that_no_kernel_has() {
    let of = |states| Call { state: [2, 4, 3, states], a: [4, 3, states], b: [2, 2, states], c: [2, 2, states], convolves: false, ..CALL };
    assert_says(of(0), "expected 1 to 256 states");
    assert_says(Call { x: [1, 1, 1], dt: [1, 1, 1], a: [1, 1, 257], ..of(257) }, "257 floats of a channel");
    let config = StepConfig { numbers: Numbers::Complex, ..CALL.config };
    assert_says(Call { config, ..of(5) }, "2 floats for each of 1 to 128 states");
}

#[test]
#[rustfmt::skip]
fn convolutions_that_do_not_fit() {
    for (call, words) in [
        (Call { conv_state: [2, 31, 4], ..CALL }, "conv_state has shape [2, 31, 4], expected shape [2, 32, 4]"),
        (Call { conv_state: [1, 32, 4], ..CALL }, "conv_state has shape [1, 32, 4], expected shape [2, 32, 4]"),
        (Call { conv_state: [2, 32, 3], ..CALL }, "expected 4 slots, the filter's width"),
        (Call { weight: [31, 4], ..CALL }, "weight has shape [31, 4], expected shape [32, 4]"),
        (Call { weight: [32, 1], ..CALL }, "each width from 2 to 8"),
        (Call { weight: [32, 9], conv_state: [2, 32, 9], ..CALL }, "a filter of width 9"),
        (Call { bias: [30], ..CALL }, "bias has shape [30], expected shape [32]"),
        (Call { steps: ([3], [1]), ..CALL }, "cache_seqlens has shape [3], expected shape [2]"),
        (Call { steps: ([2], [2]), ..CALL }, "cache_seqlens"),
        (Call { indices: Some(([2], [2])), ..CALL }, "state_batch_indices"),
    ] {
        assert_says(call, words);
    }
}

#[test]
fn limits_that_leave_no_step_size() {
    for dt_limit in [(1.0, 0.5), (f32::NAN, 1.0), (0.0, f32::NAN)] {
        let config = StepConfig {
            dt_limit,
            ..CALL.config
        };
        assert_says(Call { config, ..CALL }, "dt_limit");
    }
}
