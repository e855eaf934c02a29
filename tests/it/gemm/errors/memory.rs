//! Memory that is too small, or used twice.

use half::f16;
use seqmix::cudarc::driver::DevicePtr;
use seqmix::gemm::{Activation, Config, Epilogue, Multiply};
use seqmix::{TensorMut, TensorRef, Workspace};

use super::super::PLAIN;
use super::{assert_says, zeros};
use crate::support::device;

/// One byte less than the plan asks for.
#[test]
fn a_workspace_that_is_too_small() {
    let device = device();
    let stream = device.stream();
    let (a, b) = (zeros([1, 16, 256]), zeros([1, 256, 32]));
    let mut d = zeros([1, 16, 32]);
    let config = Config {
        splits: Some(4),
        ..PLAIN
    };
    let mut workspace = Workspace::new(&stream);
    let mut tensors = Multiply::new(a.view(), b.view(), d.view_mut());
    let plan = device.gemm.plan(&stream, config, &mut tensors).unwrap();
    let needed = plan.workspace_bytes();
    assert_eq!(needed, 4 * 16 * 32 * 4);
    workspace.reserve(needed - 1).unwrap();
    let result = device
        .gemm
        .multiply(&stream, config, tensors, &mut workspace);
    let words = "a workspace of 8192 bytes is needed, 8191 are reserved";
    assert_says(result, &[words]);
    workspace.reserve(needed).unwrap();
    let tensors = Multiply::new(a.view(), b.view(), d.view_mut());
    device
        .gemm
        .multiply(&stream, config, tensors, &mut workspace)
        .unwrap();
}

/// Outputs that share memory with an input or with each other. Safe code cannot borrow a buffer twice, but views of
/// foreign memory can.
#[test]
fn outputs_that_overlap() {
    let device = device();
    let stream = device.stream();
    let buffer = stream.alloc_zeros::<f16>(4096).unwrap();
    let (address, guard) = buffer.device_ptr(&stream);
    drop(guard);
    // SAFETY: `buffer` is alive and holds as many elements from there; `leak` below keeps it from being freed twice.
    let [mut d, mut saved] =
        [(); 2].map(|()| unsafe { stream.upgrade_device_ptr::<f16>(address, 4096) });
    let matrix = |from: usize| TensorRef::contiguous(buffer.slice(from..), [1, 8, 8]).unwrap();
    // a, b, the residual, and what is saved, with nothing between them
    for (from, other) in [
        (0, "a"),
        (80, "b"),
        (127, "b"),
        (192, "residual"),
        (300, "preactivation"),
    ] {
        let tensors = Multiply {
            residual: Some(matrix(192)),
            epilogue: Epilogue::Activate {
                activation: Activation::Relu,
                preactivation: Some(
                    TensorMut::contiguous(saved.slice_mut(256..), [1, 8, 8]).unwrap(),
                ),
            },
            ..Multiply::new(
                matrix(0),
                matrix(64),
                TensorMut::contiguous(d.slice_mut(from..), [1, 8, 8]).unwrap(),
            )
        };
        let mut workspace = Workspace::new(&stream);
        let result = device
            .gemm
            .multiply(&stream, PLAIN, tensors, &mut workspace);
        let text = result.unwrap_err().to_string();
        let one = format!("gemm::multiply: d overlaps {other} in memory");
        let two = format!("gemm::multiply: {other} overlaps d in memory");
        assert!(text.contains(&one) || text.contains(&two), "{from}: {text}");
    }
    d.leak();
    saved.leak();
}
