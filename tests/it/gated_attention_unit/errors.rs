//! Calls that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::gated_attention_unit::{
    Affine, AffineMut, Backward, Config, Forward, Mixed, Pair, PairMut, Unit,
};
use seqmix::{Result, TensorMut, TensorRef, Workspace};

use crate::support::device;

/// Shapes and strides of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    u: [usize; 3],
    v: [usize; 3],
    z: [usize; 3],
    gamma: [usize; 1],
    linear_gamma: [usize; 1],
    bias: Option<[usize; 1]>,
    chunk: Option<usize>,
    cu_seqlens: Option<[usize; 1]>,
    out: [usize; 3],
    /// Of v.
    strides: [usize; 3],
    /// Elements that v begins after the start of a buffer.
    offset: usize,
    channels: Option<usize>,
    /// Gradients.
    dz: [usize; 3],
    dgamma: [usize; 1],
    linear: bool,
    dbias: Option<[usize; 1]>,
    /// Bytes of the workspace; `None`: as the plan says.
    workspace: Option<usize>,
}

const CALL: Call = Call {
    u: [2, 70, 40],
    v: [2, 70, 40],
    z: [2, 70, 24],
    gamma: [24],
    linear_gamma: [24],
    bias: Some([127]),
    chunk: Some(64),
    cu_seqlens: None,
    out: [2, 70, 40],
    strides: [70 * 40, 40, 1],
    offset: 0,
    channels: None,
    dz: [2, 70, 24],
    dgamma: [24],
    linear: true,
    dbias: Some([127]),
    workspace: None,
};

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Forward,
    Backward,
}

fn queue(call: Call, way: Way) -> Result<()> {
    let device = device();
    let gau = &device.gated_attention_unit;
    let stream = device.stream();
    let halves = stream.alloc_zeros::<f16>(1 << 16).unwrap();
    let floats = stream.alloc_zeros::<f32>(1 << 12).unwrap();
    let integers = stream.alloc_zeros::<i32>(64).unwrap();
    let (half, float) = (halves.as_view(), floats.as_view());
    let vector = |shape| TensorRef::contiguous(float.slice(..), shape);
    let affine = |shape| -> Result<_> {
        Ok(Affine {
            gamma: vector(shape)?,
            beta: vector([24])?,
        })
    };
    let pair = |shape| -> Result<_> {
        Ok(Pair {
            q: affine([24])?,
            k: affine(shape)?,
        })
    };
    let mut unit = Unit::new(
        TensorRef::contiguous(half.slice(..), call.u)?,
        TensorRef::new(half.slice(call.offset..), call.v, call.strides)?,
        TensorRef::contiguous(half.slice(..), call.z)?,
        pair(call.gamma)?,
    );
    if let Some(bias) = call.bias {
        unit.bias = Some(vector(bias)?);
    }
    if let Some(chunk) = call.chunk {
        unit.mixed = Some(Mixed {
            chunk,
            linear: pair(call.linear_gamma)?,
            scale: 1.0,
        });
    }
    if let Some(shape) = call.cu_seqlens {
        unit.cu_seqlens = Some(TensorRef::contiguous(integers.as_view(), shape)?);
    }
    let config = Config {
        channels: call.channels,
        ..Config::default()
    };
    let mut workspace = Workspace::new(&stream);
    let mut out = stream.alloc_zeros::<f16>(1 << 16).unwrap();
    let out = TensorMut::contiguous(out.as_view_mut(), call.out)?;
    if way == Way::Forward {
        let tensors = Forward { unit, out };
        let bytes = match call.workspace {
            Some(bytes) => bytes,
            None => gau.plan(config, &tensors)?.workspace_bytes(),
        };
        workspace.reserve(bytes)?;
        return gau.forward(&stream, config, tensors, &mut workspace);
    }
    let mut rows = [(); 2].map(|()| stream.alloc_zeros::<f16>(1 << 16).unwrap());
    let [dv, dz] = rows.each_mut();
    let mut vectors = [(); 9].map(|()| stream.alloc_zeros::<f32>(1 << 12).unwrap());
    let [a, b, c, d, e, f, g, h, i] = vectors.each_mut().map(|x| x.as_view_mut());
    let affine = |dgamma, dbeta, shape| -> Result<_> {
        Ok(AffineMut {
            dgamma: TensorMut::contiguous(dgamma, shape)?,
            dbeta: TensorMut::contiguous(dbeta, [24])?,
        })
    };
    let quadratic = PairMut {
        q: affine(a, b, call.dgamma)?,
        k: affine(c, d, [24])?,
    };
    let linear = PairMut {
        q: affine(e, f, [24])?,
        k: affine(g, h, [24])?,
    };
    let tensors = Backward {
        unit,
        dout: TensorRef::contiguous(half.slice(..), call.u)?,
        du: out,
        dv: TensorMut::contiguous(dv.as_view_mut(), call.u)?,
        dz: TensorMut::contiguous(dz.as_view_mut(), call.dz)?,
        quadratic,
        linear: call.linear.then_some(linear),
        dbias: match call.dbias {
            Some(shape) => Some(TensorMut::contiguous(i, shape)?),
            None => None,
        },
    };
    let bytes = match call.workspace {
        Some(bytes) => bytes,
        None => gau.backward_plan(config, &tensors)?.workspace_bytes(),
    };
    workspace.reserve(bytes)?;
    gau.backward(&stream, config, tensors, &mut workspace)
}

#[track_caller]
fn assert_says(call: Call, way: Way, words: &str) {
    let text = queue(call, way)
        .expect_err("the call was not refused")
        .to_string();
    let op = match way {
        Way::Forward => "gated_attention_unit::forward",
        Way::Backward => "gated_attention_unit::backward",
    };
    for word in [op, words] {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn the_call_that_the_others_vary_works() {
    queue(CALL, Way::Forward).unwrap();
    queue(CALL, Way::Backward).unwrap();
}

#[test]
#[rustfmt::skip]
fn shapes_that_disagree() {
    let forward = [
        (Call { u: [2, 70, 48], ..CALL }, "u has shape [2, 70, 48], expected shape [2, 70, 40]"),
        (Call { z: [2, 71, 24], ..CALL }, "z has shape [2, 71, 24], expected shape [2, 70, 24]"),
        (Call { gamma: [16], ..CALL }, "quadratic.k.gamma has shape [16], expected shape [24]"),
        (Call { linear_gamma: [40], ..CALL }, "linear.k.gamma has shape [40], expected shape [24]"),
        (Call { bias: Some([139]), ..CALL }, "bias has shape [139], expected shape [127]"),
        (Call { bias: Some([127]), chunk: None, ..CALL }, "bias has shape [127], expected shape [139]"),
        (Call { out: [1, 140, 40], ..CALL }, "out has shape [1, 140, 40], expected shape [2, 70, 40]"),
        (Call { cu_seqlens: Some([3]), ..CALL }, "v has a batch of 2, expected a batch of 1 with cu_seqlens"),
    ];
    for (call, words) in forward {
        assert_says(call, Way::Forward, words);
        if !words.starts_with("out") {
            assert_says(call, Way::Backward, words);
        }
    }
    let backward = [
        (Call { dz: [2, 70, 32], ..CALL }, "dz has shape [2, 70, 32], expected shape [2, 70, 24]"),
        (Call { dgamma: [16], ..CALL }, "quadratic.q.dgamma has shape [16], expected shape [24]"),
        (Call { dbias: Some([128]), ..CALL }, "dbias has shape [128], expected shape [127]"),
        (Call { bias: None, ..CALL }, "dbias is a tensor, expected none, as bias"),
        (Call { linear: false, ..CALL }, "linear is absent, expected gradients, as mixed"),
        (Call { chunk: None, bias: None, dbias: None, ..CALL }, "linear is gradients, expected none, as mixed"),
    ];
    for (call, words) in backward {
        assert_says(call, Way::Backward, words);
    }
}

#[test]
fn sizes_and_options_without_a_kernel() {
    for dz in [0, 4, 20, 264] {
        let call = Call {
            z: [2, 70, dz],
            gamma: [dz],
            ..CALL
        };
        let words = format!("no kernel for dz {dz}; there is each multiple of 8 up to 256");
        assert_says(call, Way::Forward, &words);
    }
    for dv in [0, 4, 20] {
        let v = [2, 70, dv];
        let call = Call {
            u: v,
            v,
            out: v,
            strides: [70 * dv, dv, 1],
            ..CALL
        };
        let words = format!("no kernel for dv {dv}; there is each multiple of 8 up to 1048576");
        assert_says(call, Way::Forward, &words);
    }
    for chunk in [0, 1, 32, 100] {
        let call = Call {
            chunk: Some(chunk),
            ..CALL
        };
        let words = format!("mixed.chunk is {chunk}, expected a multiple of 64 up to 1073741824");
        assert_says(call, Way::Forward, &words);
    }
    let call = Call {
        channels: Some(512),
        ..CALL
    };
    let words =
        "no kernel for f16 dz 24 in blocks of 512 channels; there is blocks of 256 channels";
    assert_says(call, Way::Forward, words);
}

#[test]
fn tensors_that_no_copy_reads() {
    let call = Call {
        strides: [71 * 40, 44, 1],
        ..CALL
    };
    assert_says(call, Way::Forward, "v has strides [2840, 44, 1]");
    let call = Call {
        strides: [70 * 80, 80, 2],
        ..CALL
    };
    assert_says(call, Way::Forward, "a last stride of 1");
    let call = Call { offset: 4, ..CALL };
    assert_says(
        call,
        Way::Forward,
        "an address that is a multiple of 16 bytes",
    );
}

#[test]
fn workspaces_that_are_too_small() {
    for way in [Way::Forward, Way::Backward] {
        let call = Call {
            workspace: Some(1 << 10),
            ..CALL
        };
        let text = queue(call, way).unwrap_err().to_string();
        assert!(text.contains("1024"), "{text}");
    }
}
