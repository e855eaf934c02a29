//! Tests of the pure steps: tensors' layouts to [`Problem`], and [`Problem`] to [`Plan`].

use super::backward_plan::{BackwardPlan, Given, Parts};
use super::plan::{Plan, interval};
use super::problem::{CoefficientLayout, Layouts, Problem};
use super::{Config, Direction, Numbers};
use crate::abi::Dtype::{self, BF16, F16, F32};
use crate::abi::selective_scan::{BACKWARD, Elements, FORWARD, States, Vector};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::tensor::Layout;

const OP: &str = "selective_scan::forward";

/// An A100 and an H100.
const AMPERE: Device = Device {
    capability: 80,
    shared_bytes: 163 << 10,
    shared_bytes_of_all: 164 << 10,
    multiprocessors: 108,
};
const HOPPER: Device = Device {
    capability: 90,
    shared_bytes: 227 << 10,
    shared_bytes_of_all: 228 << 10,
    multiprocessors: 132,
};

fn contiguous<const N: usize>(shape: [usize; N]) -> Layout<N> {
    Layout::contiguous(shape).unwrap()
}

/// Contiguous tensors with everything that there can be.
fn layer([batch, dim, seqlen, states]: [usize; 4], groups: usize) -> Layouts {
    let u = contiguous([batch, dim, seqlen]);
    let b = CoefficientLayout::Variable(contiguous([batch, groups, states, seqlen]));
    Layouts {
        dtype: F16,
        u,
        delta: u,
        a: contiguous([dim, states]),
        b,
        c: b,
        d: Some((contiguous([dim]), F32)),
        z: Some(u),
        delta_bias: Some((contiguous([dim]), BF16)),
        initial_state: Some(contiguous([batch, dim, states])),
        cu_seqlens: None,
    }
}

/// The same with channels, or states, lying contiguously.
fn across([batch, dim, seqlen, states]: [usize; 4], groups: usize) -> Layouts {
    let turned = |[a, b, c]: [usize; 3]| Layout {
        shape: [a, b, c],
        strides: [b * c, 1, b],
    };
    let u = turned([batch, dim, seqlen]);
    let b = CoefficientLayout::Variable(Layout {
        shape: [batch, groups, states, seqlen],
        strides: [seqlen * groups * states, states, 1, groups * states],
    });
    Layouts {
        u,
        delta: u,
        z: Some(u),
        b,
        c: b,
        ..layer([batch, dim, seqlen, states], groups)
    }
}

fn problem(layouts: &Layouts) -> Problem {
    Problem::new(OP, Config::default(), layouts, &[]).unwrap()
}

fn with(layouts: &Layouts, config: Config) -> Result<Problem> {
    Problem::new(OP, config, layouts, &[])
}

fn plan(layouts: &Layouts, segments: Option<usize>, device: &Device) -> Plan {
    let config = Config {
        segments,
        ..Config::default()
    };
    Plan::forward(&with(layouts, config).unwrap(), FORWARD, device).unwrap()
}

#[test]
fn a_problem_holds_sizes_and_strides() {
    let config = Config {
        delta_softplus: true,
        direction: Direction::Reverse,
        ..Config::default()
    };
    let problem = with(&layer([2, 6, 40, 16], 3), config).unwrap();
    let scan = problem.scan;
    let elements = Elements {
        at: 0,
        batch_stride: 240,
        channel_stride: 40,
        step_stride: 1,
        vector: 1,
        dtype: 0,
    };
    assert_eq!((scan.u, scan.delta, scan.z), (elements, elements, elements));
    let states = States {
        at: 0,
        sequence_stride: 96,
        channel_stride: 16,
        state_stride: 1,
    };
    assert_eq!(scan.initial_state, states);
    let a = States {
        sequence_stride: 0,
        ..states
    };
    assert_eq!(scan.a, a);
    assert_eq!((scan.b.kind, scan.b.vector, scan.c), (0, 1, scan.b));
    assert_eq!(
        (scan.b.batch_stride, scan.b.group_stride),
        (3 * 16 * 40, 16 * 40)
    );
    assert_eq!((scan.b.state_stride, scan.b.step_stride), (40, 1));
    assert_eq!(scan.skip, Vector { at: 0, stride: 1 });
    assert_eq!((scan.skip_dtype, scan.delta_bias_dtype), (2, 1));
    assert_eq!((scan.sequences, scan.dim, scan.seqlen), (2, 6, 40));
    assert_eq!((scan.states, scan.groups, scan.segments), (16, 3, 1));
    assert_eq!(
        (scan.softplus, scan.reverse, scan.along_channels),
        (1, 1, 0)
    );
}

#[test]
fn chunks_are_copied_along_what_lies_contiguously() {
    let problem = problem(&across([2, 16, 40, 16], 1));
    assert!(problem.along_channels);
    let scan = problem.scan;
    assert_eq!((scan.u.vector, scan.u.channel_stride), (1, 1));
    assert_eq!((scan.b.kind, scan.b.vector), (1, 1));
    // most of the tensors decide: the others are copied element by element
    let mixed = Layouts {
        z: layer([2, 16, 40, 16], 1).z,
        ..across([2, 16, 40, 16], 1)
    };
    let mixed = with(&mixed, Config::default()).unwrap();
    assert!(mixed.along_channels);
    assert_eq!((mixed.scan.u.vector, mixed.scan.z.vector), (1, 0));
}

#[test]
fn rows_that_are_not_aligned_are_copied_element_by_element() {
    for (layouts, u, b) in [
        (layer([2, 6, 40, 16], 1), 1, 1),
        (layer([2, 6, 41, 16], 1), 0, 0),
        (across([2, 16, 41, 16], 1), 1, 1),
        (across([2, 17, 40, 16], 1), 0, 1),
        (across([2, 16, 40, 17], 1), 1, 0),
        // blocks begin at the first channels of groups
        (across([2, 24, 40, 16], 3), 1, 1),
        (across([2, 24, 40, 16], 2), 0, 1),
        (across([2, 24, 40, 16], 24), 0, 1),
    ] {
        let scan = problem(&layouts).scan;
        assert_eq!((scan.u.vector, scan.b.vector), (u, b), "{layouts:?}");
    }
    // an address of no multiple of 16 bytes
    let scan = problem(&layer([2, 6, 40, 16], 1)).scan;
    assert_eq!((scan.u.at(32).vector, scan.u.at(34).vector), (1, 0));
    assert_eq!((scan.b.at(32).vector, scan.b.at(40).vector), (1, 0));
}

#[test]
fn the_smallest_kernel_that_fits_is_chosen() {
    for (states, kernel) in [
        (1, "real_4"),
        (4, "real_4"),
        (5, "real_16"),
        (16, "real_16"),
        (17, "real_32"),
        (64, "real_64"),
        (65, "real_128"),
        (256, "real_256"),
    ] {
        let plan = plan(&layer([2, 128, 40, states], 1), None, &HOPPER);
        assert_eq!(plan.kernel, format!("selective_scan_forward_{kernel}"));
    }
    let constant = Layouts {
        b: CoefficientLayout::Constant(contiguous([128, 16])),
        ..layer([2, 128, 40, 16], 1)
    };
    let plan = plan(&constant, None, &HOPPER);
    assert_eq!(plan.kernel, "selective_scan_forward_real_64_any");
    let complex = Config {
        numbers: Numbers::Complex,
        ..Config::default()
    };
    let problem = with(&layer([2, 128, 40, 66], 1), complex).unwrap();
    let plan = Plan::forward(&problem, FORWARD, &HOPPER).unwrap();
    assert_eq!(plan.kernel, "selective_scan_forward_complex_256_any");
}

#[test]
fn blocks_belong_to_one_group() {
    for (dim, groups, blocks) in [
        (128, 1, 2),
        (128, 2, 2),
        (130, 1, 3),
        (130, 2, 4),
        (96, 96, 96),
    ] {
        let plan = plan(&layer([3, dim, 40, 16], groups), None, &HOPPER);
        assert_eq!(plan.blocks, 3 * blocks, "{dim} channels, {groups} groups");
        assert_eq!(plan.channels, 64);
    }
}

#[test]
fn segments_fill_a_device_that_channels_do_not() {
    for device in [AMPERE, HOPPER] {
        // few channels and many steps: the more steps, the more segments
        let segments = |shape: [usize; 4]| plan(&layer(shape, 1), None, &device).segments();
        let few = [2048, 8192, 32_768].map(|steps| segments([1, 256, steps, 16]));
        assert!(few[0] > 1 && few.is_sorted(), "{few:?}");
        // two passes cost more than one where all multiprocessors are busy
        assert_eq!(segments([8, 5120, 8192, 16]), 1);
        // and so does a second launch where there is little to do
        assert_eq!(segments([1, 64, 64, 16]), 1);
    }
}

#[test]
fn a_workspace_holds_states_and_sums_of_segments() {
    let layouts = layer([2, 128, 4096, 16], 1);
    assert_eq!(plan(&layouts, Some(1), &HOPPER).workspace_bytes(), 0);
    let rows = 2 * 3 * 128;
    let three = plan(&layouts, Some(3), &HOPPER);
    assert_eq!(three.workspace_bytes(), 4 * rows * 16 + 4 * rows);
    assert_eq!(
        three.to_string(),
        "selective_scan_forward_real_16, 4 blocks of 64 channels x 3 segments, \
         52224 bytes of workspace"
    );
}

#[test]
fn numbers_of_segments_are_limited() {
    let layouts = layer([2, 128, 4096, 16], 1);
    for segments in [0, 65_536, usize::MAX] {
        let config = Config {
            segments: Some(segments),
            ..Config::default()
        };
        let problem = with(&layouts, config).unwrap();
        let refused = Plan::forward(&problem, FORWARD, &HOPPER);
        let argument = matches!(
            refused,
            Err(Error::Argument {
                argument: "segments",
                ..
            })
        );
        assert!(argument, "{refused:?}");
    }
    assert_eq!(plan(&layouts, Some(65_535), &HOPPER).segments(), 65_535);
}

/// Views with strides of 0 can have any size: sizes that no memory holds make no product overflow.
#[test]
fn absurd_sizes_are_planned_without_overflow() {
    const MOST: usize = 1 << 30;
    fn repeated<const N: usize>(shape: [usize; N]) -> Layout<N> {
        Layout {
            shape,
            strides: [0; N],
        }
    }
    for (batch, dim, seqlen, states) in [
        (MOST, MOST, MOST, 256),
        (MOST, MOST, 0, 16),
        (1, 1, MOST, 1),
        (MOST, 1, 1, 256),
    ] {
        let u = repeated([batch, dim, seqlen]);
        let b = CoefficientLayout::Variable(repeated([batch, 1, states, seqlen]));
        let layouts = Layouts {
            dtype: F32,
            u,
            delta: u,
            a: repeated([dim, states]),
            b,
            c: b,
            d: None,
            z: None,
            delta_bias: None,
            initial_state: Some(repeated([batch, dim, states])),
            cu_seqlens: None,
        };
        for segments in [None, Some(1), Some(65_535)] {
            let plan = plan(&layouts, segments, &AMPERE);
            assert!(plan.segments() >= 1);
        }
    }
    let above = Layouts {
        u: repeated([MOST + 1, 1, 1]),
        ..layer([1, 1, 1, 16], 1)
    };
    assert!(matches!(
        with(&above, Config::default()),
        Err(Error::Shape {
            tensor: "batch",
            ..
        })
    ));
}

#[test]
fn kept_states_lie_an_interval_apart() {
    for (dtype, states, steps) in [(F16, 16, 16), (F32, 16, 8), (F16, 256, 8), (F32, 256, 4)] {
        let layouts = Layouts {
            dtype,
            ..layer([2, 6, 37, states], 1)
        };
        let problem = problem(&layouts);
        let interval = interval(&problem, BACKWARD).unwrap();
        assert_eq!(interval, steps, "{} {states}", Dtype::name(dtype));
        let shape = problem.checkpoint_shape(interval);
        assert_eq!(shape, [2, 37_usize.div_ceil(steps), 6, states]);
        let check = |layout: Layout<4>| problem.check_checkpoints(&layout, interval);
        check(contiguous(shape)).unwrap();
        let apart = Layout {
            shape,
            strides: contiguous(shape).strides.map(|stride| 2 * stride),
        };
        let refused = check(apart);
        assert!(matches!(
            refused,
            Err(Error::Layout {
                tensor: "checkpoints",
                ..
            })
        ));
    }
}

fn plan_backward(problem: &Problem, device: &Device, given: Given) -> BackwardPlan {
    BackwardPlan::new(problem, (FORWARD, BACKWARD), device, given).unwrap()
}

const NOTHING_KEPT: Given = Given {
    states: false,
    of_steps: true,
};

#[test]
fn a_workspace_of_gradients_holds_states_and_sums() {
    let layouts = layer([2, 128, 4096, 16], 1);
    let config = Config {
        segments: Some(3),
        ..Config::default()
    };
    let problem = with(&layouts, config).unwrap();
    let plan = plan_backward(&problem, &HOPPER, NOTHING_KEPT);
    let rows = 2 * 3 * 128;
    let parts = Parts {
        segments: 4 * rows * 16 + 4 * rows,
        checkpoints: 4 * 2 * (4096 / 16) * 128 * 16,
        of_steps: 4 * 2 * 2 * 4096 * 2 * 16, // two blocks of channels
        of_states: 4 * rows * 16,
        of_channels: 4 * 2 * rows,
    };
    assert_eq!(plan.parts, parts);
    let bytes = 52_224 + 4_194_304 + 2_097_152 + 49_152 + 6_144;
    assert_eq!(plan.workspace_bytes(), bytes);
    assert_eq!(
        plan.to_string(),
        "selective_scan_forward_real_16, 4 blocks of 64 channels x 3 segments, \
         52224 bytes of workspace; selective_scan_backward_real_16, 4 blocks of 64 channels x 3 \
         segments, 52224 bytes of workspace; 6398976 bytes in all"
    );
    // what the forward pass kept and what is not wanted needs no room
    let given = Given {
        states: true,
        of_steps: false,
    };
    let plan = plan_backward(&problem, &HOPPER, given);
    assert!(plan.states.is_none());
    let less = Parts {
        checkpoints: 0,
        of_steps: 0,
        ..parts
    };
    assert_eq!(plan.parts, less);
}

#[test]
fn constants_have_sums_of_their_own() {
    let variable = layer([2, 128, 64, 16], 1);
    let constant = Layouts {
        b: CoefficientLayout::Constant(contiguous([128, 16])),
        ..variable
    };
    let bytes = |layouts: &Layouts| {
        let config = Config {
            segments: Some(1),
            ..Config::default()
        };
        let problem = with(layouts, config).unwrap();
        plan_backward(&problem, &HOPPER, NOTHING_KEPT)
            .parts
            .of_states
    };
    assert_eq!(bytes(&constant), 3 * bytes(&variable));
}

#[test]
fn gradients_without_steps_scan_nothing_again() {
    for shape in [[2, 128, 0, 16], [0, 128, 64, 16], [2, 0, 64, 16]] {
        let plan = plan_backward(&problem(&layer(shape, 1)), &HOPPER, NOTHING_KEPT);
        assert!(plan.states.is_none(), "{shape:?}");
        assert_eq!(plan.parts.of_steps, 0, "{shape:?}");
    }
}

#[test]
fn absurd_gradients_are_refused_or_planned_without_overflow() {
    const MOST: usize = 1 << 30;
    let repeated = |shape: [usize; 3]| Layout {
        shape,
        strides: [0; 3],
    };
    for [batch, dim, seqlen] in [[MOST, MOST, MOST], [1, MOST, MOST], [MOST, 1, 1]] {
        let u = repeated([batch, dim, seqlen]);
        let b = CoefficientLayout::Variable(Layout {
            shape: [batch, 1, 256, seqlen],
            strides: [0; 4],
        });
        let layouts = Layouts {
            u,
            delta: u,
            a: Layout {
                shape: [dim, 256],
                strides: [0; 2],
            },
            b,
            c: b,
            d: None,
            z: None,
            delta_bias: None,
            initial_state: None,
            ..layer([1, 1, 1, 256], 1)
        };
        let problem = problem(&layouts);
        let plan = BackwardPlan::new(&problem, (FORWARD, BACKWARD), &AMPERE, NOTHING_KEPT);
        match plan {
            Ok(plan) => assert!(plan.workspace_bytes() > MOST, "{plan}"),
            Err(error) => assert!(error.to_string().contains("blocks"), "{error}"),
        }
    }
}
