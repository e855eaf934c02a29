//! The operations beside multiplication: sums of columns, and the gradients of adapters.

use half::f16;
use seqmix::gemm::LoraBackward;
use seqmix::{Error, Result, TensorMut, TensorRef, Workspace};

use super::super::PLAIN;
use super::{View, assert_says, dense, strided, zeros};
use crate::support::device;

#[test]
fn sums_of_columns() {
    let device = device();
    let stream = device.stream();
    let x = zeros([2, 200, 6]);
    let memory = stream.alloc_zeros::<f16>(4096).unwrap();
    let mut out = stream.alloc_zeros::<f32>(64).unwrap();
    let mut workspace = Workspace::new(&stream);
    let needed = device.gemm.column_sums_workspace_bytes([2, 200, 6]);
    assert_eq!(needed, 6 * 6 * 4, "six parts of 64 rows and more");
    let mut sum = |x: TensorRef<'_, f16, 3>, sums: View<1>, workspace: &mut Workspace| {
        let sums = TensorMut::new(out.as_view_mut(), sums.shape, sums.strides).unwrap();
        device.gemm.column_sums(&stream, x, sums, workspace)
    };
    let words = "a workspace of 144 bytes is needed, 0 are reserved";
    assert_says(sum(x.view(), dense([6]), &mut workspace), &[words]);
    workspace.reserve(needed).unwrap();
    sum(x.view(), dense([6]), &mut workspace).unwrap();
    let words = "gemm::column_sums: sums has shape [5], expected shape [6]";
    assert_says(sum(x.view(), dense([5]), &mut workspace), &[words]);
    let words = "gemm::column_sums: sums has shape [6] with strides [2]";
    assert_says(sum(x.view(), strided([6], [2]), &mut workspace), &[words]);
    const MANY: usize = 1 << 40;
    let repeated = TensorRef::new(memory.as_view(), [MANY, MANY, 6], [0, 0, 1]).unwrap();
    let words = "gemm::column_sums: x has 1099511627776 matrices of 1099511627776, expected at most 4611686018427387904 rows";
    assert_says(sum(repeated, dense([6]), &mut workspace), &[words]);
    let columns = TensorRef::new(memory.as_view(), [2, 20, 6], [120, 1, 20]).unwrap();
    let words = "gemm::column_sums: x has shape [2, 20, 6] with strides [120, 1, 20], expected contiguous rows";
    assert_says(sum(columns, dense([6]), &mut workspace), &[words]);
}

#[test]
fn gradients_of_adapters() {
    struct Shapes {
        a: [usize; 3],
        b: [usize; 3],
        down: [usize; 3],
        up: [usize; 3],
        dd: [usize; 3],
        da: [usize; 3],
        ddown: [usize; 3],
        dup: [usize; 3],
        bytes: usize,
    }
    let right = || Shapes {
        a: [2, 3, 4],
        b: [2, 4, 5],
        down: [2, 4, 6],
        up: [2, 6, 5],
        dd: [2, 3, 5],
        da: [2, 3, 4],
        ddown: [2, 4, 6],
        dup: [2, 6, 5],
        bytes: usize::MAX,
    };
    let device = device();
    let stream = device.stream();
    let queue = |shapes: Shapes| -> Result<()> {
        let [a, b, down, up, dd] =
            [shapes.a, shapes.b, shapes.down, shapes.up, shapes.dd].map(zeros);
        let [mut da, mut ddown, mut dup] = [shapes.da, shapes.ddown, shapes.dup].map(zeros);
        let tensors = LoraBackward {
            a: a.view(),
            b: b.view(),
            down: down.view(),
            up: up.view(),
            scale: 1.0,
            dd: dd.view(),
            da: Some(da.view_mut()),
            ddown: ddown.view_mut(),
            dup: dup.view_mut(),
        };
        let mut workspace = Workspace::new(&stream);
        workspace.reserve(tensors.workspace_bytes().min(shapes.bytes))?;
        device
            .gemm
            .lora_backward(&stream, PLAIN, tensors, &mut workspace)
    };
    queue(right()).unwrap();
    let result = queue(Shapes {
        bytes: 1000,
        ..right()
    });
    assert!(
        matches!(result, Err(Error::Workspace { reserved: 1000, .. })),
        "{result:?}"
    );
    type Change = fn(&mut Shapes);
    let cases: [(Change, &str); 8] = [
        (
            |shapes| shapes.b = [2, 5, 5],
            "b has shape [2, 5, 5], expected shape [2, 4, 5]",
        ),
        (
            |shapes| shapes.down = [2, 5, 6],
            "down has shape [2, 5, 6], expected shape [2, 4, 6]",
        ),
        (
            |shapes| shapes.up = [2, 7, 5],
            "up has shape [2, 7, 5], expected shape [2, 6, 5]",
        ),
        (
            |shapes| shapes.dd = [2, 4, 5],
            "dd has shape [2, 4, 5], expected shape [2, 3, 5]",
        ),
        (
            |shapes| shapes.da = [2, 3, 5],
            "da has shape [2, 3, 5], expected shape [2, 3, 4]",
        ),
        (
            |shapes| shapes.ddown = [2, 4, 7],
            "ddown has shape [2, 4, 7], expected shape [2, 4, 6]",
        ),
        (
            |shapes| shapes.dup = [2, 5, 5],
            "dup has shape [2, 5, 5], expected shape [2, 6, 5]",
        ),
        (
            |shapes| shapes.down = [2, 4, 65],
            "no kernel for an adapter of rank 65; there is rank 1 to 64",
        ),
    ];
    for (change, words) in cases {
        let mut shapes = right();
        change(&mut shapes);
        assert_says(queue(shapes), &["gemm::lora_backward: ", words]);
    }
}
