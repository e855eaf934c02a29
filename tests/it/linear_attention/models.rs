//! Layers of models, against their own recurrences.

use half::bf16;
use seqmix::linear_attention::{Config, Forward, Layer};
use seqmix::{Tensor, Workspace};

use crate::naive::normal;
use crate::support::device;

/// As the paper writes it: `out_t = r_t (S_{t-1} + diag(u) k_t v_t^T)`, then `S_t = diag(exp(-exp(w_t))) S_{t-1} + k_t v_t^T`.
#[test]
fn rwkv6() {
    const SEQLEN: usize = 37;
    const HEADS: usize = 2;
    const D: usize = 64;
    let shape = [1, SEQLEN, HEADS, D];
    let count = shape.iter().product();
    let [r, k, v] = [1, 2, 3].map(|seed| normal::<bf16>(seed, count, 1.0));
    let w: Vec<f32> = normal::<f32>(4, count, 2.0)
        .iter()
        .map(|x| -x.exp())
        .collect();
    let u = normal::<f32>(5, HEADS * D, 1.0);

    let device = device();
    let stream = device.stream();
    let tensor = |x: &[bf16]| Tensor::from_host(&stream, x, shape).unwrap();
    let [r_tensor, k_tensor, v_tensor] = [&r, &k, &v].map(|x| tensor(x));
    let decay = Tensor::from_host(&stream, &w, shape).unwrap();
    let bonus = Tensor::from_host(&stream, &u, [HEADS, D]).unwrap();
    let mut out = Tensor::<bf16, 4>::zeros(&stream, shape).unwrap();
    let tensors = Forward {
        layer: Layer::rwkv6(
            r_tensor.view(),
            k_tensor.view(),
            v_tensor.view(),
            decay.view(),
            bonus.view(),
        ),
        out: out.view_mut(),
        final_state: None,
        final_z: None,
        normalizer: None,
    };
    let op = &device.linear_attention;
    let config = Config::rwkv6();
    let mut workspace = Workspace::new(&stream);
    let bytes = op.plan(config, &tensors).unwrap().workspace_bytes();
    workspace.reserve(bytes).unwrap();
    op.forward(&stream, config, tensors, &mut workspace)
        .unwrap();
    let found = out.to_host(&stream).unwrap();

    let (mut missed, mut size) = (0.0_f64, 0.0_f64);
    for h in 0..HEADS {
        let mut state = vec![[0.0_f64; D]; D];
        for t in 0..SEQLEN {
            let at = (t * HEADS + h) * D;
            for j in 0..D {
                let value = f64::from(v[at + j]);
                let mut expected = 0.0;
                for i in 0..D {
                    let added = f64::from(k[at + i]) * value;
                    let read = state[i][j] + f64::from(u[h * D + i]) * added;
                    expected += f64::from(r[at + i]) * read;
                    state[i][j] = f64::from(w[at + i]).exp() * state[i][j] + added;
                }
                missed += (f64::from(found[at + j]) - expected).powi(2);
                size += expected.powi(2);
            }
        }
    }
    let error = (missed / size).sqrt();
    assert!(error < 4e-3, "relative L2 error {error:.1e}"); // bf16 rounds by up to 2e-3
}
