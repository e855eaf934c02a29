//! Sums of columns: of a result, in the call that makes it, and alone.

use half::{bf16, f16};
use seqmix::Workspace;
use seqmix::gemm::Activation;

use super::problem::Drawn;
use super::{
    ALL, Addend, Case, Epilogue, Extra, NOTHING, PLAIN, Rows, TILES, check_both, check_into,
};
use crate::measure::Bound;
use crate::naive::Number;
use crate::support::{Place, Placed, assert_close, device};
use seqmix::gemm::Config;

const SUMS: Extra = Extra {
    column_sums: true,
    ..NOTHING
};

/// Sums of what is in f32, not of what d holds: the strict bound would show it.
#[test]
fn of_a_result() {
    for tile in TILES {
        let config = Config {
            tile: Some(tile),
            ..PLAIN
        };
        for (m, n) in [(1, 8), (15, 64), (130, 136), (300, 40)] {
            check_both(Case {
                config,
                extra: SUMS,
                ..Case::of(m, n, 32)
            });
        }
    }
    for (batch, m, n) in [(3, 33, 65), (2, 129, 7), (5, 1, 1)] {
        let extra = Extra {
            column_sums: true,
            ..ALL
        };
        let case = Case {
            batch,
            extra,
            ..Case::of(m, n, 30)
        };
        check_both(case.with(Epilogue::Activate, Activation::Relu));
        check_into::<f16, f32>(case.with(Epilogue::ActivateBackward, Activation::Silu));
    }
}

/// Gradients that add up: the sums are of what d holds afterwards.
#[test]
fn of_a_result_in_place() {
    check_both(Case {
        extra: Extra {
            c: Addend::InPlace,
            ..SUMS
        },
        ..Case::of(70, 50, 40)
    });
}

/// There are sums of no rows: zeros.
#[test]
fn of_nothing() {
    for (batch, m) in [(0, 5), (2, 0)] {
        check_both(Case {
            batch,
            extra: SUMS,
            ..Case::of(m, 12, 16)
        });
    }
}

fn check_alone<T: Number>(batch: usize, rows: usize, columns: usize, padding: usize, shift: usize) {
    let device = device();
    let stream = device.stream();
    let case = Case {
        padding,
        shift,
        ..Case::of(rows, columns, 1)
    };
    let place = case.place([batch, rows, columns], Rows);
    let x = Drawn::<T, 3>::new(&stream, place, 1.0, 1, f64::NAN);
    let run = || {
        let mut sums = Placed::output(&stream, Place::contiguous([columns]), f32::NAN, -123.0);
        let mut workspace = Workspace::new(&stream);
        let bytes = device
            .gemm
            .column_sums_workspace_bytes([batch, rows, columns]);
        workspace.reserve(bytes).unwrap();
        device
            .gemm
            .column_sums(&stream, x.placed.view(), sums.view_mut(), &mut workspace)
            .unwrap();
        sums.fetch(&stream, "sums")
    };
    let found = run();
    let mut expected = vec![0.0; columns];
    for (at, x) in x.host.iter().enumerate() {
        expected[at % columns] += x;
    }
    let name = format!("{batch} x {rows} x {columns} of {:?}", T::DTYPE);
    let all = (batch * rows) as f64;
    // a sum of numbers of size 1 is of the size of the root of their number, and so is what it loses
    let within = Bound {
        max_abs: all * f64::from(f32::EPSILON),
        rel_l2: None,
        row_rel_l2: None,
    };
    let widened: Vec<f64> = found.iter().map(|&x| x.into()).collect();
    assert_close(&name, &widened, &expected, columns.max(1), within);
    let repeats = if padding == 0 { 10 } else { 2 };
    for repeat in 1..repeats {
        assert!(
            run() == found,
            "{name}: run {repeat} differs from the first"
        );
    }
}

#[test]
fn alone() {
    for (batch, rows, columns) in [
        (1, 1, 1),
        (1, 9, 256),
        (3, 100, 70),
        (2, 7, 300),
        (1, 1000, 12),
    ] {
        for (padding, shift) in [(0, 0), (3, 0), (8, 1)] {
            check_alone::<f16>(batch, rows, columns, padding, shift);
            check_alone::<bf16>(batch, rows, columns, padding, shift);
            check_alone::<f32>(batch, rows, columns, padding, shift);
        }
    }
    for (batch, rows, columns) in [(0, 3, 5), (2, 0, 5), (1, 3, 0)] {
        check_alone::<f16>(batch, rows, columns, 0, 0);
    }
}
