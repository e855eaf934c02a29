//! Calls that cannot work: each is refused with words that say what was wrong and what would work.

use std::process::Command;
use std::sync::Arc;

use cuda_emulator::Driver;
use half::f16;
use seqmix::attention::{Bias, Config, Forward, ForwardVarlen, Mask};
use seqmix::cudarc::driver::{CudaStream, DevicePtr};
use seqmix::{Error, Tensor, TensorMut, TensorRef};

use crate::support::device;

/// Shapes and options of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    q: [usize; 4],
    k: [usize; 4],
    v: [usize; 4],
    out: [usize; 4],
    lse: [usize; 3],
    config: Config,
}

const CALL: Call = Call {
    q: [2, 5, 4, 64],
    k: [2, 7, 2, 64],
    v: [2, 7, 2, 64],
    out: [2, 5, 4, 64],
    lse: [2, 4, 5],
    config: Config {
        mask: Mask::Full,
        scale: None,
        softcap: None,
    },
};

fn zeros<const N: usize>(stream: &Arc<CudaStream>, shape: [usize; N]) -> Tensor<f16, N> {
    Tensor::zeros(stream, shape).unwrap()
}

fn queue(call: Call) -> Result<(), Error> {
    let device = device();
    let stream = device.stream();
    let (q, k, v) = (
        zeros(&stream, call.q),
        zeros(&stream, call.k),
        zeros(&stream, call.v),
    );
    let mut out = zeros(&stream, call.out);
    let mut lse = Tensor::<f32, 3>::zeros(&stream, call.lse).unwrap();
    let tensors = Forward {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        out: out.view_mut(),
        lse: Some(lse.view_mut()),
        bias: Bias::default(),
    };
    device.attention.forward(&stream, call.config, tensors)
}

#[track_caller]
fn assert_says(result: Result<(), Error>, words: &[&str]) {
    let text = result.expect_err("the call was not refused").to_string();
    for word in words {
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
                k: [3, 7, 2, 64],
                ..CALL
            },
            ["k has shape [3, 7, 2, 64]", "expected shape [2, 7, 2, 64]"],
        ),
        (
            Call {
                k: [2, 7, 2, 32],
                ..CALL
            },
            ["k has shape [2, 7, 2, 32]", "expected shape [2, 7, 2, 64]"],
        ),
        (
            Call {
                v: [2, 8, 2, 64],
                ..CALL
            },
            ["v has shape [2, 8, 2, 64]", "expected shape [2, 7, 2, 64]"],
        ),
        (
            Call {
                out: [2, 5, 2, 64],
                ..CALL
            },
            [
                "out has shape [2, 5, 2, 64]",
                "expected shape [2, 5, 4, 64]",
            ],
        ),
        (
            Call {
                lse: [2, 5, 4],
                ..CALL
            },
            ["lse has shape [2, 5, 4]", "expected shape [2, 4, 5]"],
        ),
    ];
    for (call, words) in cases {
        assert_says(queue(call), &words);
        assert_says(queue(call), &["attention::forward"]);
    }
}

#[test]
fn heads_that_do_not_divide() {
    for heads_kv in [3, 8, 0] {
        let shape = [2, 7, heads_kv, 64];
        let words = [
            &format!("k has {heads_kv} heads")[..],
            "divides the 4 heads of q",
        ];
        assert_says(
            queue(Call {
                k: shape,
                v: shape,
                ..CALL
            }),
            &words,
        );
    }
}

#[test]
fn head_dims_without_a_kernel() {
    for head_dim in [20, 4, 0, 257, 264] {
        let with = |[batch, seq, heads, _]: [usize; 4]| [batch, seq, heads, head_dim];
        let call = Call {
            q: with(CALL.q),
            k: with(CALL.k),
            v: with(CALL.v),
            out: with(CALL.out),
            ..CALL
        };
        let words = [
            &format!("no kernel for head_dim {head_dim};")[..],
            "multiple of 8 up to 256",
        ];
        assert_says(queue(call), &words);
    }
}

#[test]
fn options_without_a_kernel() {
    let softcap = Config {
        softcap: Some(30.0),
        ..Config::default()
    };
    assert_says(
        queue(Call {
            config: softcap,
            ..CALL
        }),
        &["no kernel for softcap 30"],
    );
    for (left, right) in [(Some(3), None), (None, Some(2)), (Some(3), Some(0))] {
        let config = Config {
            mask: Mask::Window { left, right },
            ..Config::default()
        };
        assert_says(
            queue(Call { config, ..CALL }),
            &["window", "Mask::Full and Mask::Causal"],
        );
    }
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let config = Config {
            scale: Some(scale),
            ..Config::default()
        };
        assert_says(queue(Call { config, ..CALL }), &["scale", "positive"]);
    }
}

/// Biases come as tensors, in both forms of the call.
#[test]
fn biases_without_a_kernel() {
    let device = device();
    let stream = device.stream();
    let (q, k) = (zeros(&stream, CALL.q), zeros(&stream, CALL.k));
    let mut out = zeros(&stream, CALL.out);
    let slopes = Tensor::<f32, 2>::zeros(&stream, [2, 4]).unwrap();
    let mask = Tensor::<u8, 3>::zeros(&stream, [2, 5, 7]).unwrap();
    let biases = [
        (
            Bias {
                alibi_slopes: Some(slopes.view()),
                ..Bias::default()
            },
            "alibi_slopes",
        ),
        (
            Bias {
                attn_mask: Some(mask.view()),
                ..Bias::default()
            },
            "attn_mask",
        ),
    ];
    for (bias, name) in biases {
        let (k, v) = (k.view(), k.view());
        let tensors = Forward {
            q: q.view(),
            k,
            v,
            out: out.view_mut(),
            lse: None,
            bias,
        };
        assert_says(
            device
                .attention
                .forward(&stream, Config::default(), tensors),
            &["no kernel for", name],
        );
    }

    let (q, k) = (zeros(&stream, [5, 4, 64]), zeros(&stream, [7, 2, 64]));
    let mut out = zeros(&stream, [5, 4, 64]);
    let cu_seqlens = Tensor::from_host(&stream, &[0, 5], [2]).unwrap();
    let tensors = ForwardVarlen {
        q: q.view(),
        k: k.view(),
        v: k.view(),
        cu_seqlens_q: cu_seqlens.view(),
        cu_seqlens_k: cu_seqlens.view(),
        max_seqlen_q: 5,
        out: out.view_mut(),
        lse: None,
        alibi_slopes: Some(slopes.view()),
    };
    let result = device
        .attention
        .forward_varlen(&stream, Config::default(), tensors);
    assert_says(
        result,
        &["attention::forward_varlen", "no kernel for", "alibi_slopes"],
    );
}

#[test]
fn sequences_that_disagree() {
    let device = device();
    let stream = device.stream();
    let (q, k) = (zeros(&stream, [5, 4, 64]), zeros(&stream, [7, 2, 64]));
    let mut out = zeros(&stream, [5, 4, 64]);
    let lengths = |values: &[i32]| Tensor::from_host(&stream, values, [values.len()]).unwrap();
    let cases = [
        (
            lengths(&[0, 5]),
            lengths(&[0, 3, 7]),
            ["cu_seqlens_k has shape [3]", "expected shape [2]"],
        ),
        (lengths(&[]), lengths(&[]), ["cu_seqlens_q", "batch + 1"]),
    ];
    for (cu_seqlens_q, cu_seqlens_k, words) in cases {
        let tensors = ForwardVarlen {
            q: q.view(),
            k: k.view(),
            v: k.view(),
            cu_seqlens_q: cu_seqlens_q.view(),
            cu_seqlens_k: cu_seqlens_k.view(),
            max_seqlen_q: 5,
            out: out.view_mut(),
            lse: None,
            alibi_slopes: None,
        };
        assert_says(
            device
                .attention
                .forward_varlen(&stream, Config::default(), tensors),
            &words,
        );
    }
}

#[test]
fn strides_that_leave_the_buffer() {
    let stream = device().stream();
    let mut buffer = stream.alloc_zeros::<f16>(2 * 5 * 4 * 64).unwrap();
    let strides = [5 * 4 * 64, 4 * 64, 64, 1];
    TensorRef::new(buffer.as_view(), CALL.q, strides).unwrap();
    let far = [5 * 4 * 64 + 8, 4 * 64, 64, 1];
    let words = [
        "[2, 5, 4, 64]",
        "[1288, 256, 64, 1]",
        "needs 2568 elements",
        "has 2560",
    ];
    assert_says(
        TensorRef::new(buffer.as_view(), CALL.q, far).map(drop),
        &words,
    );
    assert_says(
        TensorMut::new(buffer.as_view_mut(), CALL.q, far).map(drop),
        &words,
    );
    assert_says(
        TensorRef::contiguous(buffer.as_view(), [3, 5, 4, 64]).map(drop),
        &["needs 3840 elements"],
    );
    let huge = [usize::MAX, 4 * 64, 64, 1];
    assert_says(
        TensorRef::new(buffer.as_view(), CALL.q, huge).map(drop),
        &["its buffer has 2560"],
    );
}

#[test]
fn layouts_that_the_copies_cannot_use() {
    let device = device();
    let stream = device.stream();
    let buffer = stream.alloc_zeros::<f16>(10_000).unwrap();
    let k = zeros(&stream, CALL.k);
    let mut out = zeros(&stream, CALL.out);
    let mut queue = |q| {
        let (k, v) = (k.view(), k.view());
        let tensors = Forward {
            q,
            k,
            v,
            out: out.view_mut(),
            lse: None,
            bias: Bias::default(),
        };
        device
            .attention
            .forward(&stream, Config::default(), tensors)
    };
    let view = |offset, strides| TensorRef::new(buffer.slice(offset..), CALL.q, strides).unwrap();
    queue(view(8, [1280, 256, 64, 1])).unwrap();
    assert_says(queue(view(4, [1280, 256, 64, 1])), &["q", "16"]);
    assert_says(
        queue(view(0, [1300, 260, 65, 1])),
        &["q", "[1300, 260, 65, 1]", "multiples of 8"],
    );
    assert_says(
        queue(view(0, [1280, 256, 64, 2])),
        &["q", "last stride of 1"],
    );
}

#[test]
fn outputs_that_reach_an_element_twice() {
    let stream = device().stream();
    let mut buffer = stream.alloc_zeros::<f16>(2560).unwrap();
    for strides in [[0, 256, 64, 1], [1280, 256, 32, 1], [64, 64, 64, 1]] {
        let result = TensorMut::new(buffer.as_view_mut(), CALL.out, strides).map(drop);
        assert_says(
            result,
            &["may reach an element twice", &format!("{strides:?}")],
        );
    }
}

/// Safe code cannot borrow a buffer to read and to write, but views of foreign memory can.
#[test]
fn outputs_that_overlap() {
    let device = device();
    let stream = device.stream();
    let (q, k) = (zeros(&stream, CALL.q), zeros(&stream, CALL.k));
    let buffer = stream.alloc_zeros::<f16>(3 * 2560).unwrap();
    let (address, guard) = buffer.device_ptr(&stream);
    drop(guard);
    // Starts on the last row of the tensor at `address`, in the same memory.
    // SAFETY: `buffer` is alive and holds 5,120 elements from there; `leak` below keeps it from being freed twice.
    let mut alias = unsafe { stream.upgrade_device_ptr::<f16>(address + 2 * (2560 - 64), 5120) };
    let overlapped = TensorRef::contiguous(buffer.as_view(), CALL.q).unwrap();
    let out = TensorMut::contiguous(alias.as_view_mut(), CALL.out).unwrap();
    let tensors = Forward {
        q: overlapped,
        k: k.view(),
        v: k.view(),
        out,
        lse: None,
        bias: Bias::default(),
    };
    let result = device
        .attention
        .forward(&stream, Config::default(), tensors);
    assert_says(
        result,
        &[
            "attention::forward",
            "out overlaps q",
            "memory of their own",
        ],
    );

    // SAFETY: as above, for the 4-byte elements of lse.
    let mut lse = unsafe { stream.upgrade_device_ptr::<f32>(address + 2 * (2560 - 64), 40) };
    let tensors = Forward {
        q: q.view(),
        k: k.view(),
        v: k.view(),
        out: TensorMut::contiguous(alias.as_view_mut(), CALL.out).unwrap(),
        lse: Some(TensorMut::contiguous(lse.as_view_mut(), CALL.lse).unwrap()),
        bias: Bias::default(),
    };
    let result = device
        .attention
        .forward(&stream, Config::default(), tensors);
    assert_says(result, &["lse", "overlaps", "out"]);
    alias.leak();
    lse.leak();
}

const CHILD: &str = "SEQMIX_TEST_CHILD";

/// What a program without the emulator meets on this machine; does nothing unless started by the next test.
#[test]
fn child_opens_the_driver() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    match seqmix::context(0) {
        Ok(_) => println!("a driver works"),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn a_machine_without_a_driver() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "errors::child_opens_the_driver", "--nocapture"])
        .env(CHILD, "1");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let works = text.contains("a driver works");
    let refused = text.contains("refused: no CUDA driver: ")
        && (text.contains("install") || text.contains("nvidia-smi"));
    match device().driver {
        Driver::Cuda => assert!(works, "{text}"),
        // Asked for, so that a GPU may be there as well.
        Driver::Emulator if std::env::var_os("SEQMIX_DRIVER").is_some() => {
            assert!(works || refused, "{text}")
        }
        Driver::Emulator => assert!(refused, "{text}"),
    }
}
