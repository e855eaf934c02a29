//! What the delta rule refuses.

use half::bf16;
use seqmix::linear_attention::{Backward, Config, Decay, Forward, Layer, Rule};
use seqmix::{Result, Tensor, Workspace};

use crate::support::device;

/// A layer of 5 steps, two heads and 16 channels, with one thing changed.
#[derive(Clone, Copy, Default)]
struct Call {
    config: Config,
    steps_of_beta: usize,
    bonus: bool,
    per_channel: bool,
}

const STEPS: usize = 5;

impl Call {
    fn new() -> Self {
        Self {
            steps_of_beta: STEPS,
            ..Self::default()
        }
    }

    fn forward(self) -> Result<()> {
        let device = device();
        let stream = device.stream();
        let rows = Tensor::<bf16, 4>::zeros(&stream, [1, STEPS, 2, 16])?;
        let decays = Tensor::<f32, 4>::zeros(&stream, [1, STEPS, 2, 16])?;
        let beta = Tensor::<bf16, 3>::zeros(&stream, [1, self.steps_of_beta, 2])?;
        let bonus = Tensor::<f32, 2>::zeros(&stream, [2, 16])?;
        let mut out = Tensor::<bf16, 4>::zeros(&stream, [1, STEPS, 2, 16])?;
        let tensors = Forward {
            layer: Layer {
                rule: Rule::Delta { beta: beta.view() },
                bonus: self.bonus.then(|| bonus.view()),
                decay: match self.per_channel {
                    true => Decay::PerChannel(decays.view()),
                    false => Decay::None,
                },
                ..Layer::new(rows.view(), rows.view(), rows.view())
            },
            out: out.view_mut(),
            final_state: None,
            final_z: None,
            normalizer: None,
        };
        let op = &device.linear_attention;
        op.forward(&stream, self.config, tensors, &mut Workspace::new(&stream))
    }
}

/// Gradients of beta are those of the delta rule.
#[test]
fn gradients_that_there_are_not() {
    let device = device();
    let stream = device.stream();
    let rows = Tensor::<bf16, 4>::zeros(&stream, [1, STEPS, 2, 16]).unwrap();
    let beta = Tensor::<bf16, 3>::zeros(&stream, [1, STEPS, 2]).unwrap();
    let gradient = |steps| Tensor::<bf16, 3>::zeros(&stream, [1, steps, 2]).unwrap();
    let zeros = || Tensor::<bf16, 4>::zeros(&stream, [1, STEPS, 2, 16]).unwrap();
    let (mut dq, mut dk, mut dv) = (zeros(), zeros(), zeros());
    let by_delta = || Rule::Delta { beta: beta.view() };
    let calls = [
        (Rule::Linear, STEPS, "dbeta is a tensor, expected none"),
        (
            by_delta(),
            4,
            "dbeta has shape [1, 4, 2], expected shape [1, 5, 2]",
        ),
    ];
    for (rule, steps, words) in calls {
        let mut dbeta = gradient(steps);
        let tensors = Backward {
            layer: Layer {
                rule,
                ..Layer::new(rows.view(), rows.view(), rows.view())
            },
            out: None,
            normalizer: None,
            dout: rows.view(),
            dfinal_state: None,
            dfinal_z: None,
            dq: dq.view_mut(),
            dk: dk.view_mut(),
            dv: dv.view_mut(),
            ddecay: None,
            dbeta: Some(dbeta.view_mut()),
            dinitial_state: None,
            dinitial_z: None,
            dbonus: None,
        };
        let op = &device.linear_attention;
        let mut workspace = Workspace::new(&stream);
        let result = op.backward(&stream, Config::default(), tensors, &mut workspace);
        let error = result.expect_err(words).to_string();
        assert!(error.contains("linear_attention::backward"), "{error}");
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_no_kernel_does_is_refused_by_name() {
    Call::new().forward().unwrap();
    let per_channel = Call {
        per_channel: true,
        ..Call::new()
    };
    per_channel.forward().unwrap();
    let of = |config| Call {
        config,
        ..Call::new()
    };
    let calls = [
        (
            of(Config {
                causal: false,
                ..Config::default()
            }),
            "not causal",
        ),
        (
            Call {
                config: Config {
                    causal: false,
                    ..Config::default()
                },
                ..per_channel
            },
            "not causal",
        ),
        (
            of(Config {
                normalize: Some(1e-6),
                ..Config::default()
            }),
            "normaliser",
        ),
        (
            Call {
                bonus: true,
                ..Call::new()
            },
            "bonus",
        ),
        (
            Call {
                steps_of_beta: 4,
                ..Call::new()
            },
            "beta has shape [1, 4, 2], expected shape [1, 5, 2]",
        ),
    ];
    for (call, words) in calls {
        let error = call.forward().expect_err(words).to_string();
        assert!(error.contains("linear_attention::forward"), "{error}");
        assert!(error.contains(words), "{error}");
    }
}
