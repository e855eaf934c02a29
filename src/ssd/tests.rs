//! Tests of the pure steps: tensors' layouts to [`Problem`], and [`Problem`] to [`Plan`].

use super::Config;
use super::plan::{BackwardPlan, Plan};
use super::problem::{Layouts, Problem, SkipLayout};
use crate::abi::Dtype::{BF16, F16, F32};
use crate::abi::ssd::{GRADIENT, Rows, States, WALK};
use crate::driver::Device;
use crate::error::Result;
use crate::tensor::Layout;

const OP: &str = "ssd::forward";

const DEVICE: Device = Device {
    capability: 80,
    shared_bytes: 163 << 10,
    shared_bytes_of_all: 164 << 10,
    multiprocessors: 108,
};

fn contiguous<const N: usize>(shape: [usize; N]) -> Layout<N> {
    Layout::contiguous(shape).unwrap()
}

/// Contiguous tensors with everything that there can be.
fn layer(batch: usize, steps: usize, heads: usize, groups: usize) -> Layouts {
    let x = contiguous([batch, steps, heads, 72]);
    let b = contiguous([batch, steps, groups, 128]);
    let states = contiguous([batch, heads, 72, 128]);
    Layouts {
        x,
        dt: contiguous([batch, steps, heads]),
        a: contiguous([heads]),
        b,
        c: b,
        d: Some(SkipLayout::PerChannel(contiguous([heads, 72]))),
        z: Some(x),
        dt_bias: Some(contiguous([heads])),
        initial_states: Some(states),
        cu_seqlens: None,
    }
}

fn problem(layouts: &Layouts) -> Result<Problem> {
    Problem::new(OP, F16, Config::default(), layouts)
}

fn plan(layouts: &Layouts, segment: Option<usize>) -> Plan {
    let config = Config {
        segment,
        ..Config::default()
    };
    let problem = Problem::new(OP, F16, config, layouts).unwrap();
    Plan::new(&problem, WALK, &DEVICE).unwrap()
}

#[test]
fn a_problem_holds_sizes_and_strides() {
    let problem = problem(&layer(2, 5, 6, 3)).unwrap();
    let rows = |batch_stride, step_stride, head_stride| Rows {
        at: 0,
        batch_stride,
        step_stride,
        head_stride,
    };
    let layer = problem.layer;
    assert_eq!(layer.x, rows(5 * 6 * 72, 6 * 72, 72));
    assert_eq!(layer.z, layer.x);
    assert_eq!(layer.dt, rows(5 * 6, 6, 1));
    assert_eq!(layer.b, rows(5 * 3 * 128, 3 * 128, 128));
    assert_eq!(layer.c, layer.b);
    assert_eq!((layer.d_head_stride, layer.d_channel_stride), (72, 1));
    assert_eq!((layer.steps, layer.heads, layer.heads_per_group), (5, 6, 2));
    assert_eq!((layer.headdim, layer.dstate, layer.softplus), (72, 128, 0));
    assert_eq!((layer.dt_min, layer.dt_max), (0.0, f32::INFINITY));
    let states = States {
        at: 0,
        sequence_stride: 6 * 72 * 128,
        head_stride: 72 * 128,
        channel_stride: 128,
    };
    assert_eq!(problem.initial, states);
    assert!(!problem.is_empty());
}

#[test]
fn packed_sequences_have_no_batch_strides() {
    let states = contiguous([3, 6, 72, 128]);
    let layouts = Layouts {
        cu_seqlens: Some(contiguous([4])),
        initial_states: Some(states),
        ..layer(1, 50, 6, 1)
    };
    let problem = problem(&layouts).unwrap();
    assert_eq!((problem.sequences, problem.packed), (3, true));
    assert_eq!(problem.layer.x.batch_stride, 0);
    assert_eq!(problem.layer.dt.batch_stride, 0);
    assert_eq!(problem.initial.sequence_stride, 6 * 72 * 128);
    // 50 steps are 17 for each sequence: one chunk
    assert_eq!(problem.chunks(), 1);
}

#[test]
fn axes_of_one_element_may_have_any_stride() {
    let mut layouts = layer(1, 5, 1, 1);
    layouts.x.strides = [3, 72, 5, 1];
    layouts.dt.strides = [7, 9, 11];
    let layer = problem(&layouts).unwrap().layer;
    assert_eq!((layer.x.batch_stride, layer.x.head_stride), (0, 0));
    assert_eq!((layer.dt.step_stride, layer.dt.head_stride), (9, 0));
}

#[test]
fn tensors_beyond_the_kernels_integers_are_refused() {
    let steps = (1 << 30) + 1;
    let huge = |shape: [usize; 4]| Layout {
        shape,
        strides: [0, 0, 8, 1],
    };
    let layouts = Layouts {
        x: huge([1, steps, 6, 72]),
        z: None,
        dt: Layout {
            shape: [1, steps, 6],
            strides: [0, 0, 1],
        },
        b: huge([1, steps, 3, 128]),
        c: huge([1, steps, 3, 128]),
        ..layer(1, 5, 6, 3)
    };
    let text = problem(&layouts).unwrap_err().to_string();
    assert!(text.contains("at most 1073741824 steps"), "{text}");
}

#[test]
fn the_first_row_that_fits_runs_a_problem() {
    let with = |dtype, dstate| {
        let b = contiguous([1, 5, 1, dstate]);
        let layouts = Layouts {
            b,
            c: b,
            initial_states: None,
            ..layer(1, 5, 6, 1)
        };
        let problem = Problem::new(OP, dtype, Config::default(), &layouts).unwrap();
        Plan::new(&problem, WALK, &DEVICE).unwrap().kernel
    };
    for (dstate, size) in [
        (8, 64),
        (64, 64),
        (72, 128),
        (128, 128),
        (136, 256),
        (256, 256),
    ] {
        assert_eq!(with(F16, dstate), format!("ssd_forward_f16_n{size}"));
        assert_eq!(with(BF16, dstate), format!("ssd_forward_bf16_n{size}"));
        let size = size.max(128);
        assert_eq!(with(F32, dstate), format!("ssd_forward_f32_n{size}"));
    }
    let problem = problem(&layer(1, 5, 6, 1)).unwrap();
    for (rows, words) in [
        (
            &WALK[..1],
            "no kernel for f16 dstate 128; there is dstate up to 64 on this GPU",
        ),
        (&WALK[3..], "no kernel of this type that fits this GPU"),
    ] {
        let text = Plan::new(&problem, rows, &DEVICE).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn blocks_hold_slices_of_one_group() {
    // 72 channels are two slices, two of which are a block
    for (heads, groups, blocks) in [(6, 1, 6), (6, 3, 6), (1, 1, 1), (32, 4, 32)] {
        let plan = plan(&layer(3, 64, heads, groups), None);
        assert_eq!(plan.grid, [blocks, 1, 3], "{heads} heads, {groups} groups");
        assert_eq!(plan.workspace_bytes(), 0);
    }
}

#[test]
fn segments_have_slots_in_the_workspace() {
    let layouts = layer(2, 300, 6, 1);
    // steps asked for, steps of a segment, segments, slots
    for (asked, segment, segments, slots) in [
        (1, 64, 5, 600 / 64 + 2),
        (64, 64, 5, 600 / 64 + 2),
        (65, 128, 3, 600 / 128 + 2),
        (300, 320, 1, 0),
        (usize::MAX, 320, 1, 0),
    ] {
        let plan = plan(&layouts, Some(asked));
        assert_eq!(
            (plan.segment(), plan.grid[1]),
            (segment, segments),
            "{asked}"
        );
        assert_eq!(plan.workspace_bytes(), 4 * slots * 6 * (72 * 128 + 1));
    }
    assert_eq!(
        plan(&layouts, Some(64)).to_string(),
        "ssd_forward_f16_n128, 6 blocks of slices x 5 segments of 64 steps x 2, \
         2433288 bytes of workspace"
    );
}

#[test]
fn long_sequences_are_cut_where_heads_are_few() {
    assert_eq!(plan(&layer(1, 16_384, 2, 1), None).grid[1], 52);
    assert_eq!(plan(&layer(8, 16_384, 64, 1), None).grid[1], 1);
    assert_eq!(plan(&layer(1, 64, 2, 1), None).grid[1], 1);
}

fn backward_plan(
    layouts: &Layouts,
    dtype: crate::abi::Dtype,
    per_channel: bool,
) -> Result<BackwardPlan> {
    let config = Config {
        segment: Some(128),
        ..Config::default()
    };
    let problem = Problem::new("ssd::backward", dtype, config, layouts)?;
    BackwardPlan::new(&problem, per_channel, WALK, GRADIENT, &DEVICE)
}

#[test]
fn gradients_have_a_block_for_each_chunk_and_part_of_a_group() {
    let plan = backward_plan(&layer(2, 300, 6, 1), F16, true).unwrap();
    // 10 chunks: each head is a block of its own
    assert_eq!((plan.heads_per_part, plan.parts), (1, 6));
    assert_eq!(plan.grid, [6, 5, 2]);
    assert_eq!((plan.segment(), plan.walk.grid[1]), (128, 3));
    assert_eq!(
        (plan.chunk_slots, plan.sums_of_head),
        (600 / 64 + 2, 2 + 72)
    );
    // 4 blocks for each of 108 multiprocessors are 108 for each of 4 chunks: two heads each
    let plan = backward_plan(&layer(4, 64, 200, 1), F16, false).unwrap();
    assert_eq!(
        (plan.heads_per_part, plan.parts, plan.grid[0]),
        (2, 100, 100)
    );
    assert_eq!(plan.sums_of_head, 3);
    // chunks of f32 are half as long
    let plan = backward_plan(&layer(2, 300, 6, 1), F32, false).unwrap();
    assert_eq!(plan.grid, [6, 10, 2]);
    assert_eq!(plan.kernel, "ssd_gradients_f32_n128");
}

#[test]
fn the_workspace_of_gradients_has_room_for_all() {
    let plan = backward_plan(&layer(2, 300, 6, 1), F16, true).unwrap();
    let memory = plan.memory;
    let heads = (600 / 64 + 2) * 6;
    let sizes = [
        (memory.segments, 4 * (600 / 128 + 2) * 6 * 72 * 128),
        (memory.decays, 4 * (600 / 128 + 2) * 6),
        (memory.states, 2 * heads * 72 * 128),
        (memory.gradients, 2 * heads * 72 * 128),
        (memory.state_units, 4 * heads * 2),
        (memory.gradient_units, 4 * heads * 2),
        (memory.dots, 16 * heads * 2),
        (memory.coefficients, 8 * 6 * (600 / 64 + 2) * 64 * 128),
        (memory.sums, 4 * heads * 74),
    ];
    let mut at = 0;
    for (start, bytes) in sizes {
        assert_eq!(start, at);
        at += usize::next_multiple_of(bytes, 128);
    }
    assert_eq!(plan.workspace_bytes(), at);
    assert_eq!(
        plan.to_string(),
        format!(
            "3 segments of 128 steps; ssd_gradients_f16_n128, 6 parts of groups x 5 chunks x 2, {at} bytes of \
             workspace"
        )
    );
}

#[test]
fn gradients_of_too_many_steps_for_a_launch_are_refused_before_any() {
    let layouts = |steps| layer(1, steps, 1, 1);
    backward_plan(&layouts(65_535 * 64), F16, false).unwrap();
    let text = backward_plan(&layouts(65_535 * 64 + 1), F16, false).unwrap_err();
    let words = "ssd::backward: no kernel for 4194241 steps; there is up to 4194240";
    assert_eq!(text.to_string(), words);
}

/// Tensors without elements may have axes of any size, and strides of 0 as well.
#[test]
fn sizes_that_no_memory_holds_do_not_overflow() {
    let empty = |shape| Layout {
        shape,
        strides: [0, 0, 8, 1],
    };
    for (batch, steps) in [(usize::MAX, 0), (usize::MAX, 1 << 30), (1 << 62, 64)] {
        let x = empty([batch, steps, 1 << 15, 1 << 15]);
        let b = empty([batch, steps, 1, 256]);
        let layouts = Layouts {
            x,
            dt: Layout {
                shape: [batch, steps, 1 << 15],
                strides: [0, 0, 1],
            },
            a: contiguous([1 << 15]),
            b,
            c: b,
            d: None,
            z: None,
            dt_bias: None,
            initial_states: None,
            cu_seqlens: None,
        };
        for segment in [None, Some(64), Some(usize::MAX)] {
            let config = Config {
                segment,
                ..Config::default()
            };
            let problem = Problem::new(OP, F16, config, &layouts).unwrap();
            let plan = Plan::new(&problem, WALK, &DEVICE).unwrap();
            let alone = plan.grid[1] == 1;
            let expected = if alone { 0 } else { usize::MAX };
            assert_eq!(plan.workspace_bytes(), expected, "{batch}, {steps}");
            match BackwardPlan::new(&problem, true, WALK, GRADIENT, &DEVICE) {
                Ok(plan) => assert_eq!(plan.workspace_bytes(), usize::MAX),
                Err(error) => assert!(error.to_string().contains("1073741824 steps"), "{error}"),
            }
        }
    }
}
