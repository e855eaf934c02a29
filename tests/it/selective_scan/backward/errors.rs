//! Calls for gradients that cannot work: each is refused with words that say what was wrong and what would work.

use half::f16;
use seqmix::cudarc::driver::DevicePtr;
use seqmix::selective_scan::{
    Backward, Coefficient, CoefficientMut, Config, Gradients, Inputs, Numbers,
};
use seqmix::{Error, Result, Tensor, TensorMut, TensorRef, Workspace};

use crate::support::device;

/// Shapes of a call; by default one that works.
#[derive(Clone, Copy)]
struct Call {
    config: Config,
    u: [usize; 3],
    z: bool,
    /// A, and B if it is constant.
    a: [usize; 2],
    constant_b: bool,
    dout: [usize; 3],
    du: [usize; 3],
    da: [usize; 2],
    db: [usize; 4],
    constant_db: bool,
    dc: [usize; 4],
    dd: [usize; 1],
    dz: Option<[usize; 3]>,
    dstate: [usize; 3],
    checkpoints: Option<[usize; 4]>,
    /// Offsets of packed sequences, if there are any, and their stride.
    cu_seqlens: Option<(usize, usize)>,
    /// Bytes of workspace that are missing.
    missing: usize,
}

const CALL: Call = Call {
    config: Config {
        numbers: Numbers::Real,
        delta_softplus: true,
        direction: seqmix::selective_scan::Direction::Forward,
        segments: None,
    },
    u: [2, 6, 40],
    z: true,
    a: [6, 4],
    constant_b: false,
    dout: [2, 6, 40],
    du: [2, 6, 40],
    da: [6, 4],
    db: [2, 2, 4, 40],
    constant_db: false,
    dc: [2, 2, 4, 40],
    dd: [6],
    dz: Some([2, 6, 40]),
    dstate: [2, 6, 4],
    checkpoints: Some([2, 3, 6, 4]),
    cu_seqlens: None,
    missing: 0,
};

fn backward(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let halves = stream.alloc_zeros::<f16>(4096)?;
    let floats = stream.alloc_zeros::<f32>(4096)?;
    let offsets = stream.alloc_zeros::<i32>(64)?;
    let zeros = |shape| Tensor::<f16, 3>::zeros(&stream, shape);
    let (mut du, mut ddelta) = (zeros(call.du)?, zeros(call.u)?);
    let mut dz = zeros(call.dz.unwrap_or_default())?;
    let mut da = Tensor::<f32, 2>::zeros(&stream, call.da)?;
    let mut db = Tensor::<f16, 4>::zeros(&stream, call.db)?;
    let mut constant_db = Tensor::<f32, 2>::zeros(&stream, call.a)?;
    let mut dc = Tensor::<f16, 4>::zeros(&stream, call.dc)?;
    let mut dd = Tensor::<f32, 1>::zeros(&stream, call.dd)?;
    let mut ddelta_bias = Tensor::<f32, 1>::zeros(&stream, [6])?;
    let mut dinitial_state = Tensor::<f32, 3>::zeros(&stream, call.dstate)?;
    let like_u = |shape| TensorRef::contiguous(halves.as_view(), shape);
    let b = match call.constant_b {
        true => Coefficient::Constant(TensorRef::contiguous(floats.as_view(), call.a)?),
        false => Coefficient::Variable(TensorRef::contiguous(halves.as_view(), CALL.db)?),
    };
    let c = TensorRef::contiguous(halves.as_view(), CALL.dc)?;
    let a = TensorRef::contiguous(floats.as_view(), call.a)?;
    let mut inputs = Inputs::new(
        like_u(call.u)?,
        like_u(call.u)?,
        a,
        b,
        Coefficient::Variable(c),
    );
    if call.z {
        inputs.z = Some(like_u(call.u)?);
    }
    if let Some((count, stride)) = call.cu_seqlens {
        inputs.cu_seqlens = Some(TensorRef::new(offsets.as_view(), [count], [stride])?);
    }
    let gradients = Gradients {
        da: Some(da.view_mut()),
        db: Some(match call.constant_db {
            true => CoefficientMut::Constant(constant_db.view_mut()),
            false => CoefficientMut::Variable(db.view_mut()),
        }),
        dc: Some(CoefficientMut::Variable(dc.view_mut())),
        dd: Some(dd.view_mut()),
        dz: call.dz.map(|_| dz.view_mut()),
        ddelta_bias: Some(ddelta_bias.view_mut()),
        dinitial_state: Some(dinitial_state.view_mut()),
        ..Gradients::new(du.view_mut(), ddelta.view_mut())
    };
    let mut tensors = Backward::new(inputs, like_u(call.dout)?, gradients);
    tensors.dlast_state = Some(TensorRef::contiguous(floats.as_view(), CALL.dstate)?);
    if let Some(shape) = call.checkpoints {
        tensors.checkpoints = Some(TensorRef::contiguous(floats.as_view(), shape)?);
    }
    let op = &device.selective_scan;
    let plan = op.plan_backward(&stream, call.config, &mut tensors)?;
    let mut workspace = Workspace::new(&stream);
    workspace.reserve(plan.workspace_bytes() - call.missing)?;
    op.backward(&stream, call.config, tensors, &mut workspace)
}

#[track_caller]
fn assert_says(result: Result<()>, words: &[&str]) {
    let text = result.expect_err("the call was not refused").to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn the_call_that_the_others_vary_works() {
    backward(CALL).unwrap();
    backward(Call {
        checkpoints: None,
        ..CALL
    })
    .unwrap();
}

#[rustfmt::skip]
#[test]
fn shapes_that_disagree() {
    let cases = [
        (Call { dout: [2, 6, 39], ..CALL }, "dout has shape [2, 6, 39], expected shape [2, 6, 40]"),
        (Call { du: [2, 40, 6], ..CALL }, "du has shape [2, 40, 6], expected shape [2, 6, 40]"),
        (Call { dz: Some([1, 6, 40]), ..CALL }, "dz has shape [1, 6, 40], expected shape [2, 6, 40]"),
        (Call { da: [4, 6], ..CALL }, "dA has shape [4, 6], expected shape [6, 4]"),
        (Call { db: [2, 1, 4, 40], ..CALL }, "dB has shape [2, 1, 4, 40], expected shape [2, 2, 4, 40]"),
        (Call { dc: [2, 2, 3, 40], ..CALL }, "dC has shape [2, 2, 3, 40], expected shape [2, 2, 4, 40]"),
        (Call { dd: [5], ..CALL }, "dD has shape [5], expected shape [6]"),
        (Call { dstate: [1, 6, 4], ..CALL }, "dinitial_state has shape [1, 6, 4], expected shape [2, 6, 4]"),
        (Call { checkpoints: Some([2, 2, 6, 4]), ..CALL }, "checkpoints has shape [2, 2, 6, 4], expected shape [2, 3, 6, 4]"),
    ];
    for (call, words) in cases {
        assert_says(backward(call), &["selective_scan::backward", words]);
    }
}

#[rustfmt::skip]
#[test]
fn gradients_of_what_is_not_there() {
    let cases = [
        (Call { z: false, ..CALL }, ["dz is a tensor", "expected None without z"]),
        (Call { constant_db: true, ..CALL }, ["dB is constant", "expected variable, as what it is the gradient of"]),
        (Call { constant_b: true, ..CALL }, ["dB is variable", "expected constant, as what it is the gradient of"]),
    ];
    for (call, words) in cases {
        assert_says(backward(call), &words);
    }
}

#[test]
fn segments_that_there_cannot_be() {
    for segments in [0, 65_536] {
        let config = Config {
            segments: Some(segments),
            ..CALL.config
        };
        let found = format!("segments is {segments}");
        let words = ["selective_scan::backward", &found, "expected 1 to 65535"];
        assert_says(backward(Call { config, ..CALL }), &words);
    }
}

#[test]
fn offsets_with_gaps() {
    let call = Call {
        u: [1, 6, 40],
        cu_seqlens: Some((3, 2)),
        ..CALL
    };
    let words = "cu_seqlens has shape [3] with strides [2], expected a stride of 1";
    assert_says(backward(call), &[words]);
}

#[test]
fn a_workspace_that_is_too_small() {
    let result = backward(Call { missing: 1, ..CALL });
    let Err(Error::Workspace { needed, reserved }) = result else {
        panic!("{result:?}");
    };
    assert_eq!(needed, reserved + 1);
}

/// Safe code cannot borrow a buffer to read and to write, but views of foreign memory can. Nothing is queued: du is
/// as it was.
#[test]
fn outputs_that_overlap() {
    let device = device();
    let stream = device.stream();
    let zeros = |shape| Tensor::<f16, 3>::zeros(&stream, shape).unwrap();
    let u = zeros([2, 6, 40]);
    let a = Tensor::<f32, 2>::zeros(&stream, [6, 4]).unwrap();
    let b = Tensor::<f16, 4>::zeros(&stream, [2, 1, 4, 40]).unwrap();
    let ones = vec![f16::ONE; 480];
    let mut du = Tensor::from_host(&stream, &ones, [2, 6, 40]).unwrap();
    let mut ddelta = zeros([2, 6, 40]);
    let buffer = stream.alloc_zeros::<f32>(48).unwrap();
    let (address, guard) = buffer.device_ptr(&stream);
    drop(guard);
    // SAFETY: `buffer` is alive and holds 24 elements from there; `leak` below keeps it from being freed twice.
    let mut alias = unsafe { stream.upgrade_device_ptr::<f32>(address + 40, 24) };
    let inputs = Inputs::new(
        u.view(),
        u.view(),
        a.view(),
        Coefficient::Variable(b.view()),
        Coefficient::Variable(b.view()),
    );
    let gradients = Gradients {
        da: Some(TensorMut::contiguous(alias.as_view_mut(), [6, 4]).unwrap()),
        ..Gradients::new(du.view_mut(), ddelta.view_mut())
    };
    let tensors = Backward {
        dlast_state: Some(TensorRef::contiguous(buffer.as_view(), [2, 6, 4]).unwrap()),
        ..Backward::new(inputs, u.view(), gradients)
    };
    let mut workspace = Workspace::new(&stream);
    workspace.reserve(1 << 20).unwrap();
    let op = &device.selective_scan;
    let result = op.backward(&stream, Config::default(), tensors, &mut workspace);
    alias.leak();
    let words = "dA overlaps dlast_state in memory; outputs need memory of their own";
    assert_says(result, &["selective_scan::backward", words]);
    assert_eq!(du.to_host(&stream).unwrap(), ones);
}
