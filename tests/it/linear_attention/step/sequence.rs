//! Steps in turn against whole sequences.

use half::{bf16, f16};
use seqmix::linear_attention::{Config, Decay, FeatureMap, Forward, Layer};
use seqmix::{Tensor, Workspace};

use super::problem::{Problem, check, plus, widen};
use super::{Case, PerChannel, PerHead, PerStep};
use crate::naive::bound;
use crate::support::{assert_close, device};

/// Retention, gated DeltaNet, Kimi Delta Attention, RWKV-6, and normalised linear attention: as the recurrence has them.
#[test]
fn steps_are_the_recurrence() {
    let case = Case {
        steps: 12,
        ..Case::of(2, 2, 32, 40)
    };
    let cases = [
        Case {
            decay: PerHead,
            ..case
        },
        Case {
            decay: PerStep,
            delta: true,
            ..case
        },
        Case {
            decay: PerChannel,
            delta: true,
            ..case
        },
        Case {
            decay: PerChannel,
            bonus: true,
            ..case
        },
        Case {
            decay: super::DecayKind::None,
            normalize: Some(1e-6),
            feature_map: FeatureMap::EluPlusOne,
            ..case
        },
    ];
    for case in cases {
        check::<f16>(case);
        check::<bf16>(case);
        check::<f32>(case);
    }
}

/// From zeros, what the chunks of the whole sequence give.
#[test]
fn steps_are_the_forward_pass() {
    let device = device();
    let stream = device.stream();
    let case = Case {
        steps: 20,
        decay: PerStep,
        shared: [1, 2, 2],
        ..Case::of(2, 2, 24, 16)
    };
    let mut problem = Problem::<f32>::new(case, &stream);
    problem.forget(&stream);
    for t in 0..case.steps {
        problem.queue(&stream, &device.linear_attention, t).unwrap();
    }
    let found = problem.fetch_out(&stream);
    let mut out = Tensor::<f32, 4>::zeros(&stream, [2, 20, 2, 16]).unwrap();
    let tensors = Forward {
        layer: Layer {
            decay: Decay::PerStep(problem.per_step.view()),
            ..Layer::new(problem.q.view(), problem.k.view(), problem.v.view())
        },
        out: out.view_mut(),
        final_state: None,
        final_z: None,
        normalizer: None,
    };
    let op = &device.linear_attention;
    let mut workspace = Workspace::new(&stream);
    let plan = op.plan(Config::default(), &tensors).unwrap();
    workspace.reserve(plan.workspace_bytes()).unwrap();
    op.forward(&stream, Config::default(), tensors, &mut workspace)
        .unwrap();
    let expected = widen(&out.to_host(&stream).unwrap());
    let lost = bound::<f32>(&expected, &expected, 1).unwrap();
    assert_close("steps", &found, &expected, 1, plus(lost, &expected));
}
