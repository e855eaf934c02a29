//! Calls that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::gemm::{Activation, Config, Multiply};
use seqmix::{Result, TensorMut, TensorRef};

use crate::support::device;

/// Shapes of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    a: [usize; 3],
    b: [usize; 3],
    c: [usize; 3],
    bias: [usize; 1],
    d: [usize; 3],
    /// Strides of a.
    strides: [usize; 3],
    config: Config,
}

const CALL: Call = Call {
    a: [2, 3, 4],
    b: [2, 4, 5],
    c: [2, 3, 5],
    bias: [5],
    d: [2, 3, 5],
    strides: [12, 4, 1],
    config: Config {
        alpha: 1.0,
        beta: 1.0,
        activation: Activation::None,
        tile: None,
    },
};

fn queue(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let memory = stream.alloc_zeros::<f16>(4096).unwrap();
    let mut out = stream.alloc_zeros::<f16>(4096).unwrap();
    let tensors = Multiply {
        a: TensorRef::new(memory.as_view(), call.a, call.strides)?,
        b: TensorRef::contiguous(memory.as_view(), call.b)?,
        c: Some(TensorRef::contiguous(memory.as_view(), call.c)?),
        bias: Some(TensorRef::contiguous(memory.as_view(), call.bias)?),
        residual: None,
        d: TensorMut::contiguous(out.as_view_mut(), call.d)?,
    };
    device.gemm.multiply(&stream, call.config, tensors)
}

#[track_caller]
fn assert_says(result: Result<()>, words: &[&str]) {
    let text = result.expect_err("the call was not refused").to_string();
    for word in [&["gemm::multiply"], words].concat() {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn the_call_that_the_others_vary_works() {
    queue(CALL).unwrap();
}

#[test]
fn shapes_that_disagree() {
    let (b, c, bias, d) = ([2, 5, 5], [2, 5, 3], [3], [1, 3, 5]);
    let cases = [
        (
            Call { b, ..CALL },
            "b has shape [2, 5, 5], expected shape [2, 4, 5]",
        ),
        (
            Call { c, ..CALL },
            "c has shape [2, 5, 3], expected shape [2, 3, 5]",
        ),
        (
            Call { bias, ..CALL },
            "bias has shape [3], expected shape [5]",
        ),
        (
            Call { d, ..CALL },
            "d has shape [1, 3, 5], expected shape [2, 3, 5]",
        ),
    ];
    for (call, words) in cases {
        assert_says(queue(call), &[words]);
    }
}

#[test]
fn operands_without_a_contiguous_axis() {
    let strides = [24, 8, 2];
    let words = [
        "a has",
        "strides [24, 8, 2]",
        "contiguous rows or contiguous columns",
    ];
    assert_says(queue(Call { strides, ..CALL }), &words);
}

#[test]
fn tiles_that_do_not_exist_or_do_not_fit() {
    let tile = |tile| {
        queue(Call {
            config: Config {
                tile: Some(tile),
                ..Config::default()
            },
            ..CALL
        })
    };
    let words = [
        "no kernel for tile 100x100",
        "in f16",
        "there is tile 64x64, 32x64",
    ];
    assert_says(tile((100, 100)), &words);
    // rows of 4 and 5 elements are not aligned
    assert_says(tile((128, 256)), &["no kernel for tile 128x256"]);
    tile((32, 64)).unwrap();
}
