//! Calls that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::linear_attention::{Config, Decay, Forward, Layer};
use seqmix::{Error, Result, TensorMut, TensorRef, Workspace};

use super::layer::attention;
use crate::support::device;

/// Shapes and strides of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    q: [usize; 4],
    k: [usize; 4],
    v: [usize; 4],
    decay: Gates,
    bonus: Option<[usize; 2]>,
    initial_state: [usize; 4],
    initial_z: Option<[usize; 3]>,
    cu_seqlens: Option<[usize; 1]>,
    out: [usize; 4],
    normalizer: Option<[usize; 3]>,
    /// Of q.
    strides: [usize; 4],
    /// Elements that q begins after the start of a buffer.
    offset: usize,
    config: Config,
    /// Bytes of the workspace; `None`: as the plan says.
    workspace: Option<usize>,
}

#[derive(Clone, Copy)]
enum Gates {
    Heads([usize; 1]),
    Steps([usize; 3]),
    Channels([usize; 4], [usize; 4]),
}

const CALL: Call = Call {
    q: [2, 70, 2, 16],
    k: [2, 70, 4, 16],
    v: [2, 70, 1, 24],
    decay: Gates::Heads([4]),
    bonus: None,
    initial_state: [2, 4, 16, 24],
    initial_z: None,
    cu_seqlens: None,
    out: [2, 70, 4, 24],
    normalizer: None,
    strides: [70 * 32, 32, 16, 1],
    offset: 0,
    config: Config {
        feature_map: seqmix::linear_attention::FeatureMap::Identity,
        scale: None,
        normalize: None,
        causal: true,
        segment: Some(64),
    },
    workspace: None,
};

fn queue(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let halves = stream.alloc_zeros::<f16>(1 << 16).unwrap();
    let floats = stream.alloc_zeros::<f32>(1 << 16).unwrap();
    let integers = stream.alloc_zeros::<i32>(64).unwrap();
    let mut out = stream.alloc_zeros::<f16>(1 << 16).unwrap();
    let mut sums = stream.alloc_zeros::<f32>(1 << 12).unwrap();
    let (half, float) = (halves.as_view(), floats.as_view());
    let layer = Layer {
        decay: match call.decay {
            Gates::Heads(shape) => Decay::PerHead(TensorRef::contiguous(float.slice(..), shape)?),
            Gates::Steps(shape) => Decay::PerStep(TensorRef::contiguous(float.slice(..), shape)?),
            Gates::Channels(shape, strides) => {
                Decay::PerChannel(TensorRef::new(float.slice(..), shape, strides)?)
            }
        },
        bonus: match call.bonus {
            Some(shape) => Some(TensorRef::contiguous(float.slice(..), shape)?),
            None => None,
        },
        initial_state: Some(TensorRef::contiguous(float.slice(..), call.initial_state)?),
        initial_z: match call.initial_z {
            Some(shape) => Some(TensorRef::contiguous(float.slice(..), shape)?),
            None => None,
        },
        cu_seqlens: match call.cu_seqlens {
            Some(shape) => Some(TensorRef::contiguous(integers.as_view(), shape)?),
            None => None,
        },
        ..Layer::new(
            TensorRef::new(half.slice(call.offset..), call.q, call.strides)?,
            TensorRef::contiguous(half.slice(..), call.k)?,
            TensorRef::contiguous(half.slice(..), call.v)?,
        )
    };
    let tensors = Forward {
        layer,
        out: TensorMut::contiguous(out.as_view_mut(), call.out)?,
        final_state: None,
        final_z: None,
        normalizer: match call.normalizer {
            Some(shape) => Some(TensorMut::contiguous(sums.as_view_mut(), shape)?),
            None => None,
        },
    };
    let mut workspace = Workspace::new(&stream);
    let bytes = match call.workspace {
        Some(bytes) => bytes,
        None => attention().plan(call.config, &tensors)?.workspace_bytes(),
    };
    workspace.reserve(bytes)?;
    attention().forward(&stream, call.config, tensors, &mut workspace)
}

/// The message of a call that must fail.
fn refused(call: Call) -> String {
    match queue(call) {
        Err(error @ (Error::Shape { .. } | Error::Layout { .. } | Error::Argument { .. })) => {
            error.to_string()
        }
        Err(error @ (Error::Unsupported { .. } | Error::Workspace { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_default_call_works() {
    queue(CALL).unwrap();
}

/// Neither strides nor addresses need to be multiples of anything.
#[test]
fn a_call_on_part_of_a_tensor_works() {
    queue(Call {
        strides: [70 * 33, 33, 16, 1],
        offset: 1,
        ..CALL
    })
    .unwrap();
}

#[test]
fn what_does_not_fit_is_named() {
    let normalized = Config {
        normalize: Some(1e-6),
        ..CALL.config
    };
    #[rustfmt::skip]
    let cases = [
        (Call { k: [2, 69, 4, 16], ..CALL }, "k: expected shape [2, 70, 4, 16]"),
        (Call { k: [2, 70, 4, 24], ..CALL }, "k: expected shape [2, 70, 4, 16]"),
        (Call { v: [2, 70, 3, 24], ..CALL }, "v: expected a number of heads that divides the 4 heads of out"),
        (Call { k: [2, 70, 0, 16], ..CALL }, "k: expected a number of heads that divides the 4 heads of out"),
        (Call { out: [2, 70, 4, 32], ..CALL }, "out: expected shape [2, 70, 4, 24]"),
        (Call { decay: Gates::Heads([2]), ..CALL }, "decay: expected shape [4]"),
        (Call { decay: Gates::Steps([2, 70, 2]), ..CALL }, "decay: expected shape [2, 70, 4]"),
        (Call { decay: Gates::Channels([2, 70, 4, 24], [70 * 96, 96, 24, 1]), ..CALL }, "decay: expected shape [2, 70, 4, 16]"),
        (Call { decay: Gates::Channels([2, 70, 4, 16], [70 * 64, 64, 1, 4]), ..CALL }, "decay: expected a last stride of 1"),
        (Call { bonus: Some([4, 24]), ..CALL }, "bonus: expected shape [4, 16]"),
        (Call { initial_state: [2, 4, 24, 16], ..CALL }, "initial_state: expected shape [2, 4, 16, 24]"),
        (Call { initial_z: Some([2, 4, 16]), ..CALL }, "initial_z"),
        (Call { normalizer: Some([2, 70, 4]), ..CALL }, "normalizer"),
        (Call { normalizer: Some([2, 70, 2]), config: normalized, ..CALL }, "normalizer: expected shape [2, 70, 4]"),
        (Call { initial_z: Some([2, 4, 24]), config: normalized, ..CALL }, "initial_z: expected shape [2, 4, 16]"),
        (Call { cu_seqlens: Some([3]), ..CALL }, "a batch of 1 with cu_seqlens"),
        (Call { strides: [70 * 32, 32, 1, 2], ..CALL }, "q: expected a last stride of 1"),
        (Call { config: Config { segment: Some(0), ..CALL.config }, ..CALL }, "segment"),
        (Call { config: Config { normalize: Some(f32::NAN), ..CALL.config }, ..CALL }, "normalize"),
        (Call { config: Config { causal: false, ..CALL.config }, bonus: Some([4, 16]), ..CALL }, "bonus"),
    ];
    for (call, words) in cases {
        let message = refused(call);
        let (tensor, expected) = words.split_once(": ").unwrap_or(("", words));
        assert!(
            [tensor, expected, "linear_attention::forward"]
                .into_iter()
                .all(|words| message.contains(words)),
            "{words}: {message}"
        );
    }
}

#[test]
fn a_workspace_that_is_too_small_is_refused() {
    let message = refused(Call {
        workspace: Some(0),
        ..CALL
    });
    assert!(message.contains("24704 bytes"), "{message}");
}

#[test]
fn sizes_without_a_kernel_are_named() {
    let sizes = |dk: usize, dv: usize| Call {
        q: [2, 8, 2, dk],
        k: [2, 8, 4, dk],
        v: [2, 8, 1, dv],
        strides: [8 * 2 * dk, 2 * dk, dk, 1],
        initial_state: [2, 4, dk, dv],
        out: [2, 8, 4, dv],
        ..CALL
    };
    for (call, words) in [
        (sizes(257, 24), "dk 257; there is each from 1 to 256"),
        (sizes(0, 24), "dk 0; there is each from 1 to 256"),
        (sizes(16, 0), "dv 0; there is each from 1 to 32768"),
    ] {
        let message = refused(call);
        assert!(message.contains(words), "{words}: {message}");
    }
}

/// A batch without sequences has nothing to compute, whatever its steps are.
#[test]
fn nothing_is_queued_for_no_sequences() {
    let call = Call {
        q: [0, 70, 2, 16],
        k: [0, 70, 4, 16],
        v: [0, 70, 1, 24],
        out: [0, 70, 4, 24],
        initial_state: [0, 4, 16, 24],
        ..CALL
    };
    queue(call).unwrap();
}
