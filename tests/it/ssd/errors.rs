//! Calls that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::ssd::{Config, Forward, Layer, Skip};
use seqmix::{Error, Result, TensorMut, TensorRef, Workspace};

use crate::support::device;

/// Shapes and strides of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    x: [usize; 4],
    dt: [usize; 3],
    a: [usize; 1],
    b: [usize; 4],
    c: [usize; 4],
    d: [usize; 1],
    d_per_channel: Option<[usize; 2]>,
    z: [usize; 4],
    dt_bias: [usize; 1],
    initial_states: [usize; 4],
    cu_seqlens: Option<[usize; 1]>,
    out: [usize; 4],
    final_states: [usize; 4],
    /// Of x.
    strides: [usize; 4],
    /// Of the initial states.
    state_strides: [usize; 4],
    /// Elements that x begins after the start of a buffer.
    offset: usize,
    config: Config,
    /// Bytes of the workspace; `None`: as the plan says.
    workspace: Option<usize>,
}

const CALL: Call = Call {
    x: [2, 70, 4, 16],
    dt: [2, 70, 4],
    a: [4],
    b: [2, 70, 2, 24],
    c: [2, 70, 2, 24],
    d: [4],
    d_per_channel: None,
    z: [2, 70, 4, 16],
    dt_bias: [4],
    initial_states: [2, 4, 16, 24],
    cu_seqlens: None,
    out: [2, 70, 4, 16],
    final_states: [2, 4, 16, 24],
    strides: [70 * 64, 64, 16, 1],
    state_strides: [4 * 16 * 24, 16 * 24, 24, 1],
    offset: 0,
    config: Config {
        dt_softplus: true,
        dt_limit: (0.0, f32::INFINITY),
        segment: Some(64),
    },
    workspace: None,
};

fn queue(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let halves = stream.alloc_zeros::<f16>(1 << 15).unwrap();
    let floats = stream.alloc_zeros::<f32>(1 << 15).unwrap();
    let integers = stream.alloc_zeros::<i32>(64).unwrap();
    let mut out = stream.alloc_zeros::<f16>(1 << 15).unwrap();
    let mut final_states = stream.alloc_zeros::<f32>(1 << 15).unwrap();
    let half = halves.as_view();
    let float = floats.as_view();
    let layer = Layer {
        x: TensorRef::new(half.slice(call.offset..), call.x, call.strides)?,
        dt: TensorRef::contiguous(half.slice(..), call.dt)?,
        a: TensorRef::contiguous(float.slice(..), call.a)?,
        b: TensorRef::contiguous(half.slice(..), call.b)?,
        c: TensorRef::contiguous(half.slice(..), call.c)?,
        d: Some(match call.d_per_channel {
            Some(shape) => Skip::PerChannel(TensorRef::contiguous(float.slice(..), shape)?),
            None => Skip::PerHead(TensorRef::contiguous(float.slice(..), call.d)?),
        }),
        z: Some(TensorRef::contiguous(half.slice(..), call.z)?),
        dt_bias: Some(TensorRef::contiguous(float.slice(..), call.dt_bias)?),
        initial_states: Some(TensorRef::new(
            float.slice(..),
            call.initial_states,
            call.state_strides,
        )?),
        cu_seqlens: match call.cu_seqlens {
            Some(shape) => Some(TensorRef::contiguous(integers.as_view(), shape)?),
            None => None,
        },
    };
    let tensors = Forward {
        layer,
        out: TensorMut::contiguous(out.as_view_mut(), call.out)?,
        final_states: Some(TensorMut::contiguous(
            final_states.as_view_mut(),
            call.final_states,
        )?),
    };
    let mut workspace = Workspace::new(&stream);
    let bytes = match call.workspace {
        Some(bytes) => bytes,
        None => device.ssd.plan(call.config, &tensors)?.workspace_bytes(),
    };
    workspace.reserve(bytes)?;
    device
        .ssd
        .forward(&stream, call.config, tensors, &mut workspace)
}

#[track_caller]
fn assert_says(call: Call, words: &[&str]) {
    let text = queue(call)
        .expect_err("the call was not refused")
        .to_string();
    for word in [&["ssd::forward"], words].concat() {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn the_call_that_the_others_vary_works() {
    queue(CALL).unwrap();
}

#[test]
fn shapes_that_disagree() {
    let cases = [
        (
            Call {
                dt: [2, 70, 3],
                ..CALL
            },
            "dt has shape [2, 70, 3], expected shape [2, 70, 4]",
        ),
        (
            Call { a: [3], ..CALL },
            "a has shape [3], expected shape [4]",
        ),
        (
            Call {
                b: [2, 71, 2, 24],
                ..CALL
            },
            "b has shape [2, 71, 2, 24], expected shape [2, 70, 2, 24]",
        ),
        (
            Call {
                c: [2, 70, 2, 16],
                ..CALL
            },
            "c has shape [2, 70, 2, 16], expected shape [2, 70, 2, 24]",
        ),
        (
            Call { d: [16], ..CALL },
            "d has shape [16], expected shape [4]",
        ),
        (
            Call {
                d_per_channel: Some([4, 8]),
                ..CALL
            },
            "d has shape [4, 8], expected shape [4, 16]",
        ),
        (
            Call {
                z: [2, 70, 4, 8],
                ..CALL
            },
            "z has shape [2, 70, 4, 8], expected shape [2, 70, 4, 16]",
        ),
        (
            Call {
                dt_bias: [2],
                ..CALL
            },
            "dt_bias has shape [2], expected shape [4]",
        ),
        (
            Call {
                initial_states: [1, 4, 16, 24],
                ..CALL
            },
            "initial_states has shape [1, 4, 16, 24], expected shape [2, 4, 16, 24]",
        ),
        (
            Call {
                out: [2, 69, 4, 16],
                ..CALL
            },
            "out has shape [2, 69, 4, 16], expected shape [2, 70, 4, 16]",
        ),
        (
            Call {
                final_states: [2, 4, 24, 16],
                ..CALL
            },
            "final_states has shape [2, 4, 24, 16], expected shape [2, 4, 16, 24]",
        ),
    ];
    for (call, words) in cases {
        assert_says(call, &[words]);
    }
}

#[test]
fn groups_that_do_not_divide() {
    for groups in [3, 8, 0] {
        let b = [2, 70, groups, 24];
        let found = format!("b has {groups} groups");
        assert_says(
            Call { b, c: b, ..CALL },
            &[&found, "divides the 4 heads of x"],
        );
    }
}

#[test]
fn sequences_that_disagree() {
    let cu_seqlens = Some([3]);
    let words = ["x has a batch of 2", "a batch of 1 with cu_seqlens"];
    assert_says(Call { cu_seqlens, ..CALL }, &words);
    let one = Call {
        x: [1, 70, 4, 16],
        dt: [1, 70, 4],
        b: [1, 70, 2, 24],
        c: [1, 70, 2, 24],
        z: [1, 70, 4, 16],
        out: [1, 70, 4, 16],
        ..CALL
    };
    queue(Call { cu_seqlens, ..one }).unwrap();
    let none = Call {
        cu_seqlens: Some([0]),
        ..one
    };
    assert_says(none, &["cu_seqlens has no elements", "sequences + 1"]);
}

#[test]
fn sizes_without_a_kernel() {
    for headdim in [0, 4, 12, 20] {
        let x = [2, 70, 4, headdim];
        let (states, strides) = ([2, 4, headdim, 24], [70 * 64, 64, 16, 1]);
        let call = Call {
            x,
            z: x,
            out: x,
            initial_states: states,
            final_states: states,
            strides,
            ..CALL
        };
        let words = [
            &format!("no kernel for headdim {headdim};")[..],
            "each multiple of 8 up to",
        ];
        assert_says(call, &words);
    }
    for dstate in [0, 4, 20, 264] {
        let b = [2, 10, 2, dstate];
        let (x, states) = ([2, 10, 4, 8], [2, 4, 8, dstate]);
        let call = Call {
            x,
            dt: [2, 10, 4],
            b,
            c: b,
            z: x,
            out: x,
            initial_states: states,
            final_states: states,
            state_strides: [4 * 8 * dstate, 8 * dstate, dstate, 1],
            ..CALL
        };
        let words = [
            &format!("no kernel for dstate {dstate};")[..],
            "each multiple of 8 up to 256",
        ];
        assert_says(call, &words);
    }
}

#[test]
fn options_out_of_range() {
    for dt_limit in [(-0.1, 1.0), (1.0, 0.5), (f32::NAN, 1.0), (0.0, f32::NAN)] {
        let config = Config {
            dt_limit,
            ..CALL.config
        };
        assert_says(
            Call { config, ..CALL },
            &["dt_limit is", "neither negative"],
        );
    }
    let config = Config {
        segment: Some(0),
        ..CALL.config
    };
    assert_says(
        Call { config, ..CALL },
        &["segment is 0", "at least one step"],
    );
}

#[test]
fn layouts_that_the_copies_cannot_use() {
    let cases = [
        (
            Call {
                strides: [70 * 64, 64, 16, 2],
                x: [2, 70, 4, 8],
                z: [2, 70, 4, 8],
                out: [2, 70, 4, 8],
                initial_states: [2, 4, 8, 24],
                final_states: [2, 4, 8, 24],
                ..CALL
            },
            ["x has strides [4480, 64, 16, 2]", "a last stride of 1"],
        ),
        (
            Call {
                strides: [70 * 68, 68, 16, 1],
                ..CALL
            },
            ["x has strides [4760, 68, 16, 1]", "multiples of 8 elements"],
        ),
        (
            Call {
                state_strides: [4 * 16 * 26, 16 * 26, 26, 1],
                ..CALL
            },
            [
                "initial_states has strides [1664, 416, 26, 1]",
                "multiples of 4 elements",
            ],
        ),
        (
            Call { offset: 4, ..CALL },
            ["x has address", "a multiple of 16 bytes"],
        ),
    ];
    for (call, words) in cases {
        assert_says(call, &words);
    }
}

#[test]
fn a_workspace_that_is_too_small() {
    let needed = 4 * 4 * (16 * 24 + 1) * (2 * 70 / 64 + 2);
    for reserved in [0, needed - 1] {
        let call = Call {
            workspace: Some(reserved),
            ..CALL
        };
        let Err(error) = queue(call) else {
            panic!("the call was not refused")
        };
        assert_eq!(error, Error::Workspace { needed, reserved });
    }
}
