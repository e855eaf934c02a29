//! The gated delta rule is a special case: `linear_attention` computes it in chunks on tensor cores.

use seqmix::linear_attention::{Config, Decay, Forward, Layer, Rule};
use seqmix::{Tensor, Workspace};

use super::{Case, Decays, Host, Problem, widen};
use crate::measure::Bound;
use crate::support::{assert_close, device};

/// What products of three bf16 for each f32 lose, as chunks are multiplied.
const PRODUCTS: f64 = 1e-4;

#[test]
fn the_gated_delta_rule_in_chunks() {
    let device = device();
    let stream = device.stream();
    let (steps, heads, size) = (50, 2, 64);
    let case = Case {
        decays: Decays::All(-0.2),
        ..Case::of(1, steps, heads, size)
    };
    let mut host = Host::<f32>::new(case);
    let key: Vec<f32> = host.a.iter().map(|x| -x).collect();
    let rates = crate::naive::normal::<f32>(10, steps * heads, 1.0);
    let beta: Vec<f32> = rates.iter().map(|x| 1.0 / (1.0 + x.exp())).collect();
    let times_beta = |sign: f32| -> Vec<f32> {
        let keys = key.iter().enumerate();
        keys.map(|(at, x)| sign * beta[at / size] * x).collect()
    };
    host.a = key.iter().map(|x| (-0.2_f32).exp() * x).collect();
    host.b = times_beta(-1.0);
    host.k = times_beta(1.0);

    let rows = [1, steps, heads, size];
    let upload = |data: &[f32]| Tensor::from_host(&stream, data, rows).unwrap();
    let (q, k, v) = (upload(&host.r), upload(&key), upload(&host.v));
    let beta = Tensor::from_host(&stream, &beta, [1, steps, heads]).unwrap();
    let decay = Tensor::from_host(&stream, &[-0.2_f32; 2], [heads]).unwrap();
    let states = [1, heads, size, size];
    let initial = Tensor::from_host(&stream, &host.initial, states).unwrap();
    let mut out = Tensor::<f32, 4>::zeros(&stream, rows).unwrap();
    let mut last = Tensor::<f32, 4>::zeros(&stream, states).unwrap();
    let tensors = Forward {
        layer: Layer {
            decay: Decay::PerHead(decay.view()),
            rule: Rule::Delta { beta: beta.view() },
            initial_state: Some(initial.view()),
            ..Layer::new(q.view(), k.view(), v.view())
        },
        out: out.view_mut(),
        final_state: Some(last.view_mut()),
        final_z: None,
        normalizer: None,
    };
    let config = Config {
        scale: Some(1.0),
        ..Config::default()
    };
    let op = &device.linear_attention;
    let mut workspace = Workspace::new(&stream);
    let plan = op.plan(config, &tensors).unwrap();
    workspace.reserve(plan.workspace_bytes()).unwrap();
    op.forward(&stream, config, tensors, &mut workspace)
        .unwrap();

    let mut problem = Problem::of(case, host, &stream);
    problem.queue_forward(&stream).unwrap();
    for (tensor, found, expected) in [("out", &problem.out, out), ("state", &problem.last, last)] {
        let found = widen(&found.fetch(&stream, tensor));
        let expected = widen(&expected.to_host(&stream).unwrap());
        let bound = Bound {
            max_abs: PRODUCTS * super::largest(&expected),
            rel_l2: Some(PRODUCTS),
            row_rel_l2: None,
        };
        assert_close(tensor, &found, &expected, 1, bound);
    }
}
