//! What does not go together: tensors, strides, tiles, splits.

use super::{Call, Grouped, Kind, assert_refused, call, dense, queue, strided};

#[test]
fn what_does_not_go_together() {
    fn gate(call: &mut Call) {
        call.kind = Kind::Gate;
    }
    fn gate_backward(call: &mut Call) {
        call.kind = Kind::GateBackward;
        call.preactivation = Some(dense([2, 3, 10]));
        call.d = dense([2, 3, 10]);
    }
    fn adapter(call: &mut Call) {
        call.down = Some(dense([2, 4, 6]));
        call.up = Some(dense([2, 6, 5]));
    }
    fn groups(call: &mut Call) {
        call.groups = Grouped::Rows;
        call.a = dense([1, 3, 4]);
        call.d = dense([1, 3, 5]);
    }
    assert_refused(&[
        (
            |call| {
                gate(call);
                call.c = Some(dense([2, 3, 5]));
            },
            "no kernel for Epilogue::Gate with c; there is it without c",
        ),
        (
            |call| {
                gate(call);
                call.in_place = true;
            },
            "no kernel for Epilogue::Gate with c; there is it without c",
        ),
        (
            |call| {
                gate(call);
                call.column_scale = Some(dense([2, 5]));
            },
            "no kernel for Epilogue::Gate with column_scale",
        ),
        (
            |call| {
                gate(call);
                adapter(call);
            },
            "no kernel for Epilogue::Gate with an adapter",
        ),
        (
            |call| {
                gate(call);
                call.column_sums = Some(dense([5]));
            },
            "no kernel for column_sums of a gate; there is Gemm::column_sums",
        ),
        (
            |call| {
                gate_backward(call);
                call.column_sums = Some(dense([5]));
            },
            "no kernel for column_sums of a gate; there is Gemm::column_sums",
        ),
        (
            |call| {
                gate_backward(call);
                call.residual = Some(dense([2, 3, 5]));
            },
            "no kernel for Epilogue::GateBackward with residual",
        ),
        (
            |call| {
                gate_backward(call);
                call.in_place = true;
            },
            "no kernel for Epilogue::GateBackward in place",
        ),
        (
            |call| {
                groups(call);
                call.column_sums = Some(dense([5]));
            },
            "no kernel for column_sums of groups; there is Gemm::column_sums",
        ),
        (
            |call| {
                groups(call);
                adapter(call);
            },
            "no kernel for an adapter with groups",
        ),
    ]);
}

#[test]
fn layouts_that_no_kernel_reads() {
    assert_refused(&[
        (
            |call| call.a = strided([2, 3, 4], [24, 8, 2]),
            "a has shape [2, 3, 4] with strides [24, 8, 2], expected contiguous rows or contiguous columns",
        ),
        (
            |call| call.b = strided([2, 4, 5], [40, 10, 2]),
            "b has shape [2, 5, 4] with strides [40, 2, 10], expected contiguous rows or contiguous columns",
        ),
        (
            |call| call.c = Some(strided([2, 3, 5], [15, 1, 3])),
            "c has shape [2, 3, 5] with strides [15, 1, 3], expected contiguous rows",
        ),
        (
            |call| call.residual = Some(strided([2, 3, 5], [15, 1, 3])),
            "residual has shape [2, 3, 5] with strides [15, 1, 3], expected contiguous rows",
        ),
        (
            |call| call.d = strided([2, 3, 5], [15, 1, 3]),
            "d has shape [2, 3, 5] with strides [15, 1, 3], expected contiguous rows",
        ),
        (
            |call| call.preactivation = Some(strided([2, 3, 5], [15, 1, 3])),
            "preactivation has shape [2, 3, 5] with strides [15, 1, 3], expected contiguous rows",
        ),
        (|call| call.bias = Some(strided([2, 5], [1, 2])), "bias has"),
        (
            |call| call.row_scale = Some(strided([2, 3], [1, 2])),
            "row_scale has",
        ),
        (
            |call| call.column_scale = Some(strided([2, 5], [1, 2])),
            "column_scale has",
        ),
        (
            |call| {
                call.kind = Kind::Gate;
                call.weights = strided([2, 4, 5], [24, 6, 1]);
            },
            "gate weights has",
        ),
        (
            |call| {
                call.kind = Kind::Gate;
                call.weights = strided([2, 4, 5], [20, 1, 4]);
            },
            "expected the strides of b",
        ),
        (
            |call| {
                call.down = Some(strided([2, 4, 6], [48, 12, 2]));
                call.up = Some(dense([2, 6, 5]));
            },
            "adapter down has",
        ),
        (
            |call| {
                call.down = Some(dense([2, 4, 6]));
                call.up = Some(strided([2, 6, 5], [60, 10, 2]));
            },
            "adapter up has",
        ),
        (
            |call| call.column_sums = Some(strided([5], [2])),
            "column_sums has shape [5] with strides [2]",
        ),
        (
            |call| {
                call.groups = Grouped::K;
                call.a = dense([1, 3, 4]);
                call.b = dense([1, 4, 5]);
                call.offsets = strided([3], [2]);
            },
            "offsets has shape [3] with strides [2]",
        ),
    ]);
}

#[test]
fn more_matrices_than_a_grid_has_blocks() {
    assert_refused(&[(
        |call| {
            call.a = strided([65_536, 3, 4], [0, 4, 1]);
            call.b = strided([65_536, 4, 5], [0, 5, 1]);
            call.d = dense([65_536, 3, 5]);
        },
        "no kernel for 65536 blocks along z of the grid; there is room for 65535",
    )]);
}

#[test]
fn tiles_that_do_not_exist_or_do_not_fit() {
    assert_refused(&[
        (
            |call| call.config.tile = Some((100, 100)),
            "no kernel for tile 100x100 and these operands in f16; there is tile 64x64, 32x64, 16x128",
        ),
        // rows of 4 and 5 elements are not aligned
        (
            |call| call.config.tile = Some((128, 256)),
            "no kernel for tile 128x256",
        ),
        (
            |call| {
                call.config.tile = Some((16, 128));
                call.down = Some(dense([2, 4, 6]));
                call.up = Some(dense([2, 6, 5]));
            },
            "no kernel for tile 16x128 and these operands in f16, with an adapter; there is tile 128x128, 32x64",
        ),
    ]);
    let mut works = call();
    works.config.tile = Some((32, 64));
    queue(works).unwrap();
}

#[test]
fn numbers_of_splits() {
    assert_refused(&[
        (
            |call| call.config.splits = Some(0),
            "splits is 0, expected 1 to 65535",
        ),
        (
            |call| call.config.splits = Some(65_536),
            "splits is 65536, expected 1 to 65535",
        ),
        (
            |call| {
                call.config.splits = Some(2);
                call.kind = Kind::Gate;
            },
            "no kernel for 2 splits with a gate, column_sums, groups or an adapter; there is 1",
        ),
        (
            |call| {
                call.config.splits = Some(2);
                call.column_sums = Some(dense([5]));
            },
            "no kernel for 2 splits with a gate, column_sums, groups or an adapter; there is 1",
        ),
    ]);
    let mut works = call();
    works.config.splits = Some(1);
    works.column_sums = Some(dense([5]));
    queue(works).unwrap();
}
