//! Gradients that cannot be computed: each call is refused with words that say what was wrong and what would work,
//! and nothing is queued.

use half::f16;
use seqmix::cudarc::driver::{CudaSlice, DevicePtr};
use seqmix::ssd::{Backward, Config, Layer, Skip, SkipMut};
use seqmix::{Element, Error, Result, Tensor, TensorMut, TensorRef, Workspace};

use crate::support::device;

/// Shapes of a call's tensors; by default of one that works.
#[derive(Clone, Copy)]
struct Call {
    d_per_channel: bool,
    z: bool,
    dout: [usize; 4],
    dfinal_states: [usize; 4],
    dx: [usize; 4],
    ddt: [usize; 3],
    da: [usize; 1],
    db: [usize; 4],
    dc: [usize; 4],
    dd: Option<[usize; 1]>,
    dd_per_channel: Option<[usize; 2]>,
    dz: Option<[usize; 4]>,
    ddt_bias: [usize; 1],
    dinitial_states: [usize; 4],
    /// Elements that dx begins after the start of a buffer.
    offset: usize,
    /// Bytes of the workspace; `None`: as the plan says.
    workspace: Option<usize>,
}

const X: [usize; 4] = [2, 70, 4, 16];
const B: [usize; 4] = [2, 70, 2, 24];
const STATES: [usize; 4] = [2, 4, 16, 24];

const CALL: Call = Call {
    d_per_channel: false,
    z: true,
    dout: X,
    dfinal_states: STATES,
    dx: X,
    ddt: [2, 70, 4],
    da: [4],
    db: B,
    dc: B,
    dd: Some([4]),
    dd_per_channel: None,
    dz: Some(X),
    ddt_bias: [4],
    dinitial_states: STATES,
    offset: 0,
    workspace: None,
};

const CONFIG: Config = Config {
    dt_softplus: true,
    dt_limit: (0.0, f32::INFINITY),
    segment: Some(64),
};

/// More elements than any tensor here has.
const ELEMENTS: usize = 1 << 14;

fn output<T: Element, const N: usize>(
    buffer: &mut CudaSlice<T>,
    shape: [usize; N],
) -> Result<TensorMut<'_, T, N>> {
    TensorMut::contiguous(buffer.as_view_mut(), shape)
}

/// Queues a call; after a refusal, checks that nothing was written.
fn queue(call: Call) -> Result<()> {
    let device = device();
    let stream = device.stream();
    let halves = stream.alloc_zeros::<f16>(ELEMENTS).unwrap();
    let floats = stream.alloc_zeros::<f32>(ELEMENTS).unwrap();
    let half = halves.as_view();
    let float = floats.as_view();
    let x = || TensorRef::contiguous(half.slice(..), X);
    let layer = Layer {
        d: Some(match call.d_per_channel {
            true => Skip::PerChannel(TensorRef::contiguous(float.slice(..), [4, 16])?),
            false => Skip::PerHead(TensorRef::contiguous(float.slice(..), [4])?),
        }),
        z: call.z.then(x).transpose()?,
        dt_bias: Some(TensorRef::contiguous(float.slice(..), [4])?),
        initial_states: Some(TensorRef::contiguous(float.slice(..), STATES)?),
        ..Layer::new(
            x()?,
            TensorRef::contiguous(half.slice(..), [2, 70, 4])?,
            TensorRef::contiguous(float.slice(..), [4])?,
            TensorRef::contiguous(half.slice(..), B)?,
            TensorRef::contiguous(half.slice(..), B)?,
        )
    };
    let ones = vec![f16::ONE; ELEMENTS];
    let mut outputs = [0; 5].map(|_| stream.clone_htod(&ones).unwrap());
    let mut sums = [0; 4].map(|_| stream.alloc_zeros::<f32>(ELEMENTS).unwrap());
    let [dx, ddt, db, dc, dz] = &mut outputs;
    let [da, dd, ddt_bias, dinitial_states] = &mut sums;
    let tensors = Backward {
        layer,
        dout: TensorRef::contiguous(half.slice(..), call.dout)?,
        dfinal_states: Some(TensorRef::contiguous(float.slice(..), call.dfinal_states)?),
        dx: TensorMut::contiguous(dx.slice_mut(call.offset..), call.dx)?,
        ddt: output(ddt, call.ddt)?,
        da: output(da, call.da)?,
        db: output(db, call.db)?,
        dc: output(dc, call.dc)?,
        dd: match (call.dd, call.dd_per_channel) {
            (_, Some(shape)) => Some(SkipMut::PerChannel(output(dd, shape)?)),
            (Some(shape), None) => Some(SkipMut::PerHead(output(dd, shape)?)),
            (None, None) => None,
        },
        dz: call.dz.map(|shape| output(dz, shape)).transpose()?,
        ddt_bias: Some(output(ddt_bias, call.ddt_bias)?),
        dinitial_states: Some(output(dinitial_states, call.dinitial_states)?),
    };
    let mut workspace = Workspace::new(&stream);
    let bytes = match call.workspace {
        Some(bytes) => bytes,
        None => {
            let plan = device.ssd.backward_plan(CONFIG, &tensors)?;
            plan.workspace_bytes()
        }
    };
    workspace.reserve(bytes)?;
    let queued = device
        .ssd
        .backward(&stream, CONFIG, tensors, &mut workspace);
    for buffer in outputs.iter().filter(|_| queued.is_err()) {
        let untouched = stream.clone_dtoh(buffer).unwrap() == ones;
        assert!(untouched, "a refused call wrote");
    }
    queued
}

#[track_caller]
fn assert_says(call: Call, words: &[&str]) {
    let text = queue(call)
        .expect_err("the call was not refused")
        .to_string();
    for word in [&["ssd::backward"], words].concat() {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn the_call_that_the_others_vary_works() {
    queue(CALL).unwrap();
    // the gradients of absent ones
    queue(Call {
        z: false,
        dz: None,
        dd: None,
        ..CALL
    })
    .unwrap();
}

#[test]
fn shapes_that_disagree() {
    let short = [2, 69, 4, 16];
    let turned = [2, 4, 24, 16];
    let cases = [
        (
            Call {
                dout: short,
                ..CALL
            },
            "dout has shape [2, 69, 4, 16], expected shape [2, 70, 4, 16]",
        ),
        (
            Call {
                dfinal_states: turned,
                ..CALL
            },
            "dfinal_states has shape [2, 4, 24, 16], expected shape [2, 4, 16, 24]",
        ),
        (
            Call { dx: short, ..CALL },
            "dx has shape [2, 69, 4, 16], expected shape [2, 70, 4, 16]",
        ),
        (
            Call {
                ddt: [2, 70, 3],
                ..CALL
            },
            "ddt has shape [2, 70, 3], expected shape [2, 70, 4]",
        ),
        (
            Call { da: [2], ..CALL },
            "da has shape [2], expected shape [4]",
        ),
        (
            Call {
                db: [2, 70, 4, 24],
                ..CALL
            },
            "db has shape [2, 70, 4, 24], expected shape [2, 70, 2, 24]",
        ),
        (
            Call {
                dc: [2, 70, 2, 16],
                ..CALL
            },
            "dc has shape [2, 70, 2, 16], expected shape [2, 70, 2, 24]",
        ),
        (
            Call {
                dd: Some([16]),
                ..CALL
            },
            "dd has shape [16], expected shape [4]",
        ),
        (
            Call {
                d_per_channel: true,
                dd_per_channel: Some([4, 8]),
                ..CALL
            },
            "dd has shape [4, 8], expected shape [4, 16]",
        ),
        (
            Call {
                dz: Some(short),
                ..CALL
            },
            "dz has shape [2, 69, 4, 16], expected shape [2, 70, 4, 16]",
        ),
        (
            Call {
                ddt_bias: [3],
                ..CALL
            },
            "ddt_bias has shape [3], expected shape [4]",
        ),
        (
            Call {
                dinitial_states: turned,
                ..CALL
            },
            "dinitial_states has shape [2, 4, 24, 16], expected shape [2, 4, 16, 24]",
        ),
    ];
    for (call, words) in cases {
        assert_says(call, &[words]);
    }
}

#[test]
fn gradients_of_another_form_than_what_they_are_of() {
    let per_channel = Some([4, 16]);
    let cases = [
        (
            Call {
                dd_per_channel: per_channel,
                ..CALL
            },
            ["dd is a number a channel", "a number a head, as d"],
        ),
        (
            Call {
                d_per_channel: true,
                ..CALL
            },
            ["dd is a number a head", "a number a channel, as d"],
        ),
        (
            Call { dz: None, ..CALL },
            ["dz is absent", "a tensor, as z"],
        ),
        (Call { z: false, ..CALL }, ["dz is a tensor", "none, as z"]),
    ];
    for (call, words) in cases {
        assert_says(call, &words);
    }
}

#[test]
fn addresses_that_the_stores_cannot_use() {
    let call = Call { offset: 4, ..CALL };
    assert_says(call, &["dx has address", "a multiple of 16 bytes"]);
}

#[test]
fn a_workspace_that_is_too_small() {
    let Err(Error::Workspace { needed, reserved }) = queue(Call {
        workspace: Some(0),
        ..CALL
    }) else {
        panic!("the call was not refused")
    };
    assert_eq!(reserved, 0);
    let workspace = Some(needed - 1);
    let error = queue(Call { workspace, ..CALL }).expect_err("the call was not refused");
    let reserved = needed - 1;
    assert_eq!(error, Error::Workspace { needed, reserved });
    let workspace = Some(needed);
    queue(Call { workspace, ..CALL }).unwrap();
}

/// Safe code cannot borrow a buffer to read and to write, but views of foreign memory can.
#[test]
fn outputs_that_overlap() {
    let device = device();
    let stream = device.stream();
    let tensor = |shape| Tensor::<f16, 4>::zeros(&stream, shape).unwrap();
    let (x, b, mut dx, mut db) = (tensor(X), tensor(B), tensor(X), tensor(B));
    let dt = Tensor::<f16, 3>::zeros(&stream, [2, 70, 4]).unwrap();
    let mut ddt = Tensor::<f16, 3>::zeros(&stream, [2, 70, 4]).unwrap();
    let a = Tensor::<f32, 1>::zeros(&stream, [4]).unwrap();
    let mut da = Tensor::<f32, 1>::zeros(&stream, [4]).unwrap();
    let buffer = stream.alloc_zeros::<f16>(ELEMENTS).unwrap();
    let (address, guard) = buffer.device_ptr(&stream);
    drop(guard);
    let elements = B.iter().product();
    // SAFETY: `buffer` is alive and holds so many elements from there; `leak` below keeps it from being freed twice.
    let mut alias = unsafe { stream.upgrade_device_ptr::<f16>(address + 32, elements) };
    let tensors = Backward {
        layer: Layer::new(x.view(), dt.view(), a.view(), b.view(), b.view()),
        dout: TensorRef::contiguous(buffer.as_view(), X).unwrap(),
        dfinal_states: None,
        dx: dx.view_mut(),
        ddt: ddt.view_mut(),
        da: da.view_mut(),
        db: db.view_mut(),
        dc: output(&mut alias, B).unwrap(),
        dd: None,
        dz: None,
        ddt_bias: None,
        dinitial_states: None,
    };
    let mut workspace = Workspace::new(&stream);
    let plan = device.ssd.backward_plan(CONFIG, &tensors).unwrap();
    workspace.reserve(plan.workspace_bytes()).unwrap();
    let queued = device
        .ssd
        .backward(&stream, CONFIG, tensors, &mut workspace);
    alias.leak();
    let text = queued.expect_err("the call was not refused").to_string();
    let words = "dc overlaps dout in memory; outputs need memory of their own";
    assert!(text.contains(words), "{text}");
}
