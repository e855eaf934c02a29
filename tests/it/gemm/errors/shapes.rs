//! Sizes that disagree, or that no kernel counts.

use super::{Call, Grouped, Kind, assert_refused, call, dense, queue, strided};

#[test]
fn shapes_that_disagree() {
    assert_refused(&[
        (
            |call| call.b = dense([2, 5, 5]),
            "b has shape [2, 5, 5], expected shape [2, 4, 5]",
        ),
        (
            |call| call.b = dense([1, 4, 5]),
            "b has shape [1, 4, 5], expected shape [2, 4, 5]",
        ),
        (
            |call| call.d = dense([1, 3, 5]),
            "d has shape [1, 3, 5], expected shape [2, 3, 5]",
        ),
        (
            |call| call.c = Some(dense([2, 5, 3])),
            "c has shape [2, 5, 3], expected shape [2, 3, 5]",
        ),
        (
            |call| call.residual = Some(dense([2, 3, 4])),
            "residual has shape [2, 3, 4], expected shape [2, 3, 5]",
        ),
        (
            |call| call.bias = Some(dense([3, 5])),
            "bias has shape [3, 5], expected shape [2, 5] or [1, 5]",
        ),
        (
            |call| call.bias = Some(dense([2, 3])),
            "bias has shape [2, 3], expected shape [2, 5] or [1, 5]",
        ),
        (
            |call| call.row_scale = Some(dense([2, 5])),
            "row_scale has shape [2, 5], expected shape [2, 3] or [1, 3]",
        ),
        (
            |call| call.column_scale = Some(dense([4, 5])),
            "column_scale has shape [4, 5], expected shape [2, 5] or [1, 5]",
        ),
        (
            |call| call.preactivation = Some(dense([2, 3, 10])),
            "preactivation has shape [2, 3, 10], expected shape [2, 3, 5]",
        ),
        (
            |call| {
                call.kind = Kind::ActivateBackward;
                call.preactivation = Some(dense([2, 4, 5]));
            },
            "preactivation has shape [2, 4, 5], expected shape [2, 3, 5]",
        ),
        (
            |call| call.column_sums = Some(dense([3])),
            "column_sums has shape [3], expected shape [5]",
        ),
        (
            |call| call.non_finite = Some(dense([2])),
            "non_finite has shape [2], expected shape [1]",
        ),
    ]);
}

#[test]
fn shapes_of_gates_that_disagree() {
    assert_refused(&[
        (
            |call| {
                call.kind = Kind::Gate;
                call.weights = dense([2, 4, 6]);
            },
            "gate weights has shape [2, 4, 6], expected shape [2, 4, 5]",
        ),
        (
            |call| {
                call.kind = Kind::Gate;
                call.gate_bias = Some(dense([2, 10]));
            },
            "gate bias has shape [2, 10], expected shape [2, 5] or [1, 5]",
        ),
        (
            |call| {
                call.kind = Kind::Gate;
                call.preactivation = Some(dense([2, 3, 5]));
            },
            "preactivation has shape [2, 3, 5], expected shape [2, 3, 10]",
        ),
        (
            |call| {
                call.kind = Kind::GateBackward;
                call.preactivation = Some(dense([2, 3, 5]));
                call.d = dense([2, 3, 10]);
            },
            "preactivation has shape [2, 3, 5], expected shape [2, 3, 10]",
        ),
        (
            |call| {
                call.kind = Kind::GateBackward;
                call.preactivation = Some(dense([2, 3, 10]));
            },
            "d has shape [2, 3, 5], expected shape [2, 3, 10]",
        ),
    ]);
}

#[test]
fn shapes_of_adapters_that_disagree() {
    assert_refused(&[
        (
            |call| {
                call.down = Some(dense([2, 3, 6]));
                call.up = Some(dense([2, 6, 5]));
            },
            "adapter down has shape [2, 3, 6], expected shape [2, 4, 6]",
        ),
        (
            |call| {
                call.down = Some(dense([2, 4, 6]));
                call.up = Some(dense([2, 7, 5]));
            },
            "adapter up has shape [2, 7, 5], expected shape [2, 6, 5]",
        ),
        (
            |call| {
                call.down = Some(dense([2, 4, 0]));
                call.up = Some(dense([2, 0, 5]));
            },
            "no kernel for an adapter of rank 0; there is rank 1 to 64",
        ),
        (
            |call| {
                call.down = Some(dense([2, 4, 65]));
                call.up = Some(dense([2, 65, 5]));
            },
            "no kernel for an adapter of rank 65; there is rank 1 to 64",
        ),
    ]);
}

#[test]
fn shapes_of_groups_that_disagree() {
    assert_refused(&[
        (
            |call| call.groups = Grouped::Rows,
            "a has shape [2, 3, 4], expected shape [1, 3, 4]",
        ),
        (
            |call| {
                call.groups = Grouped::Rows;
                call.a = dense([1, 3, 4]);
            },
            "d has shape [2, 3, 5], expected shape [1, 3, 5]",
        ),
        (
            |call| {
                call.groups = Grouped::K;
                call.a = dense([1, 3, 4]);
            },
            "b has shape [2, 4, 5], expected shape [1, 4, 5]",
        ),
        (
            |call| {
                call.groups = Grouped::K;
                call.a = dense([1, 3, 4]);
                call.b = dense([1, 4, 5]);
                call.offsets = dense([4]);
            },
            "offsets has shape [4], expected shape [3]",
        ),
        (
            |call| {
                call.groups = Grouped::Rows;
                call.a = dense([1, 3, 4]);
                call.b = strided([70_000, 4, 5], [0, 5, 1]);
                call.d = dense([1, 3, 5]);
                call.offsets = dense([70_001]);
            },
            "expected at most 65535 groups",
        ),
    ]);
}

#[test]
fn sizes_that_no_kernel_counts() {
    const LARGE: usize = (1 << 30) + 1;
    assert_refused(&[
        (
            |call| {
                call.a = strided([1, LARGE, 4], [0, 0, 1]);
                call.b = dense([1, 4, 5]);
            },
            "a has 1073741825, expected at most 1073741824 rows and columns",
        ),
        (
            |call| {
                call.a = strided([1, 3, LARGE], [0, 1, 0]);
                call.b = strided([1, LARGE, 5], [0, 0, 1]);
            },
            "b has 1073741825, expected at most 1073741824 rows and columns",
        ),
        (
            |call| {
                call.a = dense([1, 3, 4]);
                call.b = strided([1, 4, LARGE], [0, 1, 0]);
            },
            "b has 1073741825, expected at most 1073741824 rows and columns",
        ),
    ]);
}

/// Strides of 0, and tensors without elements, may have any size: the calls do nothing, or are refused.
#[test]
fn sizes_that_no_memory_holds() {
    let works: [fn(&mut Call); 3] = [
        |call| {
            call.a = strided([1 << 40, 1 << 30, 4], [0, 0, 1]);
            call.b = strided([1 << 40, 4, 0], [0, 0, 1]);
            call.d = strided([1 << 40, 1 << 30, 0], [0, 0, 1]);
        },
        |call| {
            call.a = strided([1 << 40, 1 << 30, 4], [0, 0, 1]);
            call.b = strided([1 << 40, 4, 0], [0, 0, 1]);
            call.d = strided([1 << 40, 1 << 30, 0], [0, 0, 1]);
            call.config.splits = Some(60_000);
        },
        |call| {
            call.a = strided([usize::MAX, 0, 4], [0, 0, 1]);
            call.b = strided([usize::MAX, 4, 5], [0, 0, 1]);
            call.d = strided([usize::MAX, 0, 5], [0, 0, 1]);
            call.column_sums = Some(dense([5]));
        },
    ];
    for change in works {
        let mut changed = call();
        change(&mut changed);
        queue(changed).unwrap();
    }
    assert_refused(&[(
        |call| {
            call.kind = Kind::Gate;
            call.a = dense([1, 3, 4]);
            call.b = strided([1, 4, usize::MAX], [0, 1, 0]);
            call.weights = call.b;
        },
        "b has 18446744073709551615, expected at most 1073741824 rows and columns",
    )]);
}
