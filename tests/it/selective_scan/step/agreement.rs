//! Steps against the operations that they stand for.

use half::{bf16, f16};
use seqmix::causal_conv1d::{self, Activation, Update};
use seqmix::cudarc::driver::CudaSlice;
use seqmix::selective_scan::{
    Coefficient, Config, Forward, Inputs, Step, StepConfig, StepConvolution, Weight,
};
use seqmix::ssd::{self, Layer, Skip};
use seqmix::{TensorMut, TensorRef, Workspace};

use crate::naive::{Number, normal};
use crate::support::device;

/// A scan of this length and as many steps give the same but for the order of sums.
fn scan_is_steps<T: Number>(seqlen: usize, dim: usize, dstate: usize, groups: usize) {
    let device = device();
    let stream = device.stream();
    let batch = 2;
    let upload = |seed, count| stream.clone_htod(&normal::<T>(seed, count, 1.0)).unwrap();
    let singles = |seed, count| stream.clone_htod(&normal::<f32>(seed, count, 1.0)).unwrap();
    let [u, delta, z] = [1, 2, 3].map(|seed| upload(seed, batch * dim * seqlen));
    let [b, c] = [4, 5].map(|seed| upload(seed, batch * groups * dstate * seqlen));
    let a: Vec<f32> = normal::<f32>(6, dim * dstate, 1.0)
        .iter()
        .map(|x| -x.exp())
        .collect();
    let a = stream.clone_htod(&a).unwrap();
    let [d, bias] = [7, 8].map(|seed| singles(seed, dim));
    let initial = normal::<f32>(9, batch * dim * dstate, 1.0);

    // the scan: [batch, dim, seqlen]
    let mut out = stream.alloc_zeros::<T>(batch * dim * seqlen).unwrap();
    let mut last = stream.alloc_zeros::<f32>(batch * dim * dstate).unwrap();
    let first = stream.clone_htod(&initial).unwrap();
    let rows = [batch, dim, seqlen];
    let coefficients = [batch, groups, dstate, seqlen];
    let inputs = Inputs {
        d: Some(Weight::F32(
            TensorRef::contiguous(d.as_view(), [dim]).unwrap(),
        )),
        z: Some(TensorRef::contiguous(z.as_view(), rows).unwrap()),
        delta_bias: Some(Weight::F32(
            TensorRef::contiguous(bias.as_view(), [dim]).unwrap(),
        )),
        initial_state: Some(TensorRef::contiguous(first.as_view(), [batch, dim, dstate]).unwrap()),
        ..Inputs::new(
            TensorRef::contiguous(u.as_view(), rows).unwrap(),
            TensorRef::contiguous(delta.as_view(), rows).unwrap(),
            TensorRef::contiguous(a.as_view(), [dim, dstate]).unwrap(),
            Coefficient::Variable(TensorRef::contiguous(b.as_view(), coefficients).unwrap()),
            Coefficient::Variable(TensorRef::contiguous(c.as_view(), coefficients).unwrap()),
        )
    };
    let mut forward = Forward {
        last_state: Some(TensorMut::contiguous(last.as_view_mut(), [batch, dim, dstate]).unwrap()),
        ..Forward::new(
            inputs,
            TensorMut::contiguous(out.as_view_mut(), rows).unwrap(),
        )
    };
    let config = Config {
        delta_softplus: true,
        ..Config::default()
    };
    let op = &device.selective_scan;
    let mut workspace = Workspace::new(&stream);
    let plan = op.plan(&stream, config, &mut forward).unwrap();
    workspace.reserve(plan.workspace_bytes()).unwrap();
    op.forward(&stream, config, forward, &mut workspace)
        .unwrap();

    // the steps, on views of the same tensors
    let mut state = stream.clone_htod(&initial).unwrap();
    let mut stepped = stream.alloc_zeros::<T>(batch * dim * seqlen).unwrap();
    for t in 0..seqlen {
        let coefficient = |x| {
            let strides = [groups * dstate * seqlen, dstate * seqlen, seqlen];
            TensorRef::new(x, [batch, groups, dstate], strides).unwrap()
        };
        // heads are groups, so that each has its B and C
        let per_group = dim / groups;
        let of_groups = |x| {
            let strides = [dim * seqlen, per_group * seqlen, seqlen];
            TensorRef::new(x, [batch, groups, per_group], strides).unwrap()
        };
        let step = Step {
            d: Some(Weight::F32(
                TensorRef::contiguous(d.as_view(), [groups, per_group]).unwrap(),
            )),
            z: Some(of_groups(z.slice(t..))),
            dt_bias: Some(Weight::F32(
                TensorRef::contiguous(bias.as_view(), [groups, per_group]).unwrap(),
            )),
            ..Step::new(
                TensorMut::contiguous(state.as_view_mut(), [batch, groups, per_group, dstate])
                    .unwrap(),
                (of_groups(u.slice(t..)), of_groups(delta.slice(t..))),
                TensorRef::contiguous(a.as_view(), [groups, per_group, dstate]).unwrap(),
                (coefficient(b.slice(t..)), coefficient(c.slice(t..))),
                TensorMut::new(
                    stepped.slice_mut(t..),
                    [batch, groups, per_group],
                    [dim * seqlen, per_group * seqlen, seqlen],
                )
                .unwrap(),
            )
        };
        let config = StepConfig {
            dt_softplus: true,
            ..StepConfig::default()
        };
        op.step(&stream, config, step).unwrap();
    }

    let name = format!(
        "{:?}, {seqlen} steps of {dim} channels of {dstate}",
        T::DTYPE
    );
    let close = |what: &str, found: Vec<f64>, expected: Vec<f64>, unit: f64| {
        let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (found - expected).abs();
            // sums in two orders, then one rounding
            let bound = 1e-5 * largest + 2.0 * unit * expected.abs();
            assert!(error <= bound, "{name}: {what} {i}: {found}, {expected}");
        }
    };
    let wide = |x: &CudaSlice<T>| -> Vec<f64> {
        let host = stream.clone_dtoh(x).unwrap();
        host.into_iter().map(Into::into).collect()
    };
    let wide_state = |x: &CudaSlice<f32>| -> Vec<f64> {
        let host = stream.clone_dtoh(x).unwrap();
        host.into_iter().map(Into::into).collect()
    };
    close("out", wide(&stepped), wide(&out), T::UNIT);
    close("state", wide_state(&state), wide_state(&last), 0.0);
}

#[test]
fn a_scan_is_its_steps() {
    for (seqlen, dim, dstate, groups) in [
        (1, 8, 4, 1),
        (13, 24, 16, 2),
        (70, 12, 5, 3),
        (33, 9, 130, 1),
    ] {
        scan_is_steps::<f16>(seqlen, dim, dstate, groups);
        scan_is_steps::<bf16>(seqlen, dim, dstate, groups);
        scan_is_steps::<f32>(seqlen, dim, dstate, groups);
    }
}

/// A step that convolves has the bits of the convolution's update and then a step.
fn a_convolving_step<T: Number>(activation: Activation) {
    let device = device();
    let stream = device.stream();
    let [batch, heads, headdim, groups, dstate, width, slots, tokens] = [2, 4, 24, 2, 18, 4, 5, 7];
    let (dim, bc) = (heads * headdim, groups * dstate);
    let channels = dim + 2 * bc;
    let upload = |seed, count| stream.clone_htod(&normal::<T>(seed, count, 1.0)).unwrap();
    let weight = upload(1, channels * width);
    let bias = upload(2, channels);
    let a: Vec<f32> = normal::<f32>(3, heads, 1.0)
        .iter()
        .map(|x| -x.exp())
        .collect();
    let a = stream.clone_htod(&a).unwrap();
    let mut ring = stream.alloc_zeros::<T>(batch * channels * slots).unwrap();
    let mut last = stream
        .alloc_zeros::<T>(batch * channels * (width - 1))
        .unwrap();
    let [mut fused, mut apart] =
        [(); 2].map(|()| stream.alloc_zeros::<f32>(batch * dim * dstate).unwrap());
    for token in 0..tokens {
        let inputs = upload(10 + token as u64, batch * channels);
        let dt = upload(30 + token as u64, batch * heads);
        let steps = stream.clone_htod(&vec![token as i32; batch]).unwrap();
        let mut convolved = stream.alloc_zeros::<T>(batch * channels).unwrap();
        let whole = |x| TensorRef::contiguous(x, [batch, channels]).unwrap();
        let filter = || TensorRef::contiguous(weight.as_view(), [channels, width]).unwrap();
        let biases = || TensorRef::contiguous(bias.as_view(), [channels]).unwrap();
        let update = Update {
            x: whole(inputs.as_view()),
            conv_state: TensorMut::contiguous(last.as_view_mut(), [batch, channels, width - 1])
                .unwrap(),
            weight: filter(),
            bias: Some(biases()),
            conv_state_indices: None,
            out: TensorMut::contiguous(convolved.as_view_mut(), [batch, channels]).unwrap(),
        };
        let config = causal_conv1d::Config { activation };
        device
            .causal_conv1d
            .update(&stream, config, update)
            .unwrap();

        let mut step = |from: &CudaSlice<T>, state: &mut CudaSlice<f32>, convolves: bool| {
            let x = TensorRef::new(
                from.as_view(),
                [batch, heads, headdim],
                [channels, headdim, 1],
            );
            let coefficient = |first: usize| {
                let strides = [channels, dstate, 1];
                TensorRef::new(from.slice(first..), [batch, groups, dstate], strides).unwrap()
            };
            let mut out = stream.alloc_zeros::<T>(batch * dim).unwrap();
            let step = Step {
                convolution: convolves.then(|| StepConvolution {
                    conv_state: TensorMut::contiguous(ring.as_view_mut(), [batch, channels, slots])
                        .unwrap(),
                    cache_seqlens: TensorRef::contiguous(steps.as_view(), [batch]).unwrap(),
                    weight: Weight::Same(filter()),
                    bias: Some(Weight::Same(biases())),
                    activation,
                }),
                ..Step::new(
                    TensorMut::contiguous(state.as_view_mut(), [batch, heads, headdim, dstate])
                        .unwrap(),
                    (
                        x.unwrap(),
                        TensorRef::new(dt.as_view(), [batch, heads, headdim], [heads, 1, 0])
                            .unwrap(),
                    ),
                    TensorRef::new(a.as_view(), [heads, headdim, dstate], [1, 0, 0]).unwrap(),
                    (coefficient(dim), coefficient(dim + bc)),
                    TensorMut::contiguous(out.as_view_mut(), [batch, heads, headdim]).unwrap(),
                )
            };
            let config = StepConfig {
                dt_softplus: true,
                ..StepConfig::default()
            };
            device.selective_scan.step(&stream, config, step).unwrap();
            stream.clone_dtoh(&out).unwrap()
        };
        let expected = step(&convolved, &mut apart, false);
        let found = step(&inputs, &mut fused, true);
        let name = format!("{:?} {activation:?}, token {token}", T::DTYPE);
        assert!(found == expected, "{name}: out");
        let [found, expected] = [&fused, &apart].map(|state| stream.clone_dtoh(state).unwrap());
        assert!(found == expected, "{name}: state");
    }
}

#[test]
fn a_step_that_convolves_has_the_bits_of_update_and_step() {
    for activation in [Activation::None, Activation::Silu] {
        a_convolving_step::<f16>(activation);
        a_convolving_step::<bf16>(activation);
        a_convolving_step::<f32>(activation);
    }
}

/// Mamba-2's layer over a sequence, on tensor cores, and as many steps.
fn a_layer_is_its_steps<T: Number>(seqlen: usize) {
    let device = device();
    let stream = device.stream();
    let [batch, heads, headdim, groups, dstate] = [2, 4, 32, 2, 24];
    let dim = heads * headdim;
    let upload = |seed, count| stream.clone_htod(&normal::<T>(seed, count, 1.0)).unwrap();
    let singles = |seed, count| stream.clone_htod(&normal::<f32>(seed, count, 1.0)).unwrap();
    let x = upload(1, batch * seqlen * dim);
    let dt = upload(2, batch * seqlen * heads);
    let [b, c] = [3, 4].map(|seed| upload(seed, batch * seqlen * groups * dstate));
    let a: Vec<f32> = normal::<f32>(5, heads, 1.0)
        .iter()
        .map(|x| -x.exp())
        .collect();
    let a = stream.clone_htod(&a).unwrap();
    let [d, dt_bias] = [6, 7].map(|seed| singles(seed, heads));
    let initial = normal::<f32>(8, batch * dim * dstate, 1.0);
    let first = stream.clone_htod(&initial).unwrap();
    let dt_limit = (0.01, 1.5);

    let mut out = stream.alloc_zeros::<T>(batch * seqlen * dim).unwrap();
    let mut last = stream.alloc_zeros::<f32>(batch * dim * dstate).unwrap();
    let states = [batch, heads, headdim, dstate];
    let layer = Layer {
        d: Some(Skip::PerHead(
            TensorRef::contiguous(d.as_view(), [heads]).unwrap(),
        )),
        dt_bias: Some(TensorRef::contiguous(dt_bias.as_view(), [heads]).unwrap()),
        initial_states: Some(TensorRef::contiguous(first.as_view(), states).unwrap()),
        ..Layer::new(
            TensorRef::contiguous(x.as_view(), [batch, seqlen, heads, headdim]).unwrap(),
            TensorRef::contiguous(dt.as_view(), [batch, seqlen, heads]).unwrap(),
            TensorRef::contiguous(a.as_view(), [heads]).unwrap(),
            TensorRef::contiguous(b.as_view(), [batch, seqlen, groups, dstate]).unwrap(),
            TensorRef::contiguous(c.as_view(), [batch, seqlen, groups, dstate]).unwrap(),
        )
    };
    let shape = [batch, seqlen, heads, headdim];
    let forward = ssd::Forward {
        layer,
        out: TensorMut::contiguous(out.as_view_mut(), shape).unwrap(),
        final_states: Some(TensorMut::contiguous(last.as_view_mut(), states).unwrap()),
    };
    let config = ssd::Config {
        dt_softplus: true,
        dt_limit,
        ..ssd::Config::default()
    };
    let mut workspace = Workspace::new(&stream);
    let plan = device.ssd.plan(config, &forward).unwrap();
    workspace.reserve(plan.workspace_bytes()).unwrap();
    device
        .ssd
        .forward(&stream, config, forward, &mut workspace)
        .unwrap();

    let mut state = stream.clone_htod(&initial).unwrap();
    let mut stepped = stream.alloc_zeros::<T>(batch * seqlen * dim).unwrap();
    let rows = [batch, heads, headdim];
    let config = StepConfig {
        dt_softplus: true,
        dt_limit,
        ..StepConfig::default()
    };
    for t in 0..seqlen {
        let at = t * groups * dstate;
        let [d, dt_bias] = [&d, &dt_bias].map(|weight| {
            let of_channels = TensorRef::new(weight.as_view(), [heads, headdim], [1, 0]);
            Some(Weight::F32(of_channels.unwrap()))
        });
        let strides = [seqlen * groups * dstate, dstate, 1];
        let [b, c] = [&b, &c]
            .map(|x| TensorRef::new(x.slice(at..), [batch, groups, dstate], strides).unwrap());
        let step = Step {
            d,
            dt_bias,
            ..Step::new(
                TensorMut::contiguous(state.as_view_mut(), states).unwrap(),
                (
                    TensorRef::new(x.slice(t * dim..), rows, [seqlen * dim, headdim, 1]).unwrap(),
                    TensorRef::new(dt.slice(t * heads..), rows, [seqlen * heads, 1, 0]).unwrap(),
                ),
                TensorRef::new(a.as_view(), [heads, headdim, dstate], [1, 0, 0]).unwrap(),
                (b, c),
                TensorMut::new(
                    stepped.slice_mut(t * dim..),
                    rows,
                    [seqlen * dim, headdim, 1],
                )
                .unwrap(),
            )
        };
        device.selective_scan.step(&stream, config, step).unwrap();
    }

    let name = format!("{:?}, {seqlen} steps", T::DTYPE);
    let [found, expected] = [&stepped, &out].map(|x| -> Vec<f64> {
        let host = stream.clone_dtoh(x).unwrap();
        host.into_iter().map(Into::into).collect()
    });
    // the layer rounds scores and states to T for its products, or to three bfloat16 of f32
    let unit = T::UNIT.max(1e-6);
    close_to(&format!("{name}: out"), &found, &expected, 8.0 * unit);
    let [found, expected] = [&state, &last].map(|x| -> Vec<f64> {
        let host = stream.clone_dtoh(x).unwrap();
        host.into_iter().map(Into::into).collect()
    });
    close_to(&format!("{name}: state"), &found, &expected, 8.0 * unit);
}

/// Whether two tensors agree, but for this share of their norm.
fn close_to(name: &str, found: &[f64], expected: &[f64], share: f64) {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(x, y)| x - y));
    let whole = norm(&mut expected.iter().copied());
    // also false for a NaN
    assert!(
        difference <= share * whole,
        "{name}: {difference} of {whole}"
    );
}

#[test]
fn a_layer_of_mamba_2_is_its_steps() {
    for seqlen in [1, 7, 64, 100] {
        a_layer_is_its_steps::<f16>(seqlen);
        a_layer_is_its_steps::<bf16>(seqlen);
        a_layer_is_its_steps::<f32>(seqlen);
    }
}
