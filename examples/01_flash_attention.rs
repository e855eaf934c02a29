//! Step 1: attention, from numbers on the host to numbers on the host.
//!
//! ```sh
//! cargo run --example 01_flash_attention
//! ```

#[path = "shared/device.rs"]
mod device;

use half::f16;
use seqmix::Tensor;
use seqmix::attention::{Attention, Bias, Config, Forward, Mask};
use seqmix::reference::attention as reference;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A GPU if one works, else the emulator. With a GPU, `seqmix::context(0)` is all it takes.
    let (context, _) = device::open()?;
    let stream = context.default_stream();

    // Loads the kernels; do it once.
    let attention = Attention::new(&context)?;

    // Two sequences of 100 positions, four heads of 64 dimensions.
    let (batch, seq, heads, head_dim) = (2, 100, 4, 64);
    let shape = [batch, seq, heads, head_dim];
    let elements: usize = shape.iter().product();
    let wave = |step: f32| (0..elements).map(move |i| f16::from_f32((i as f32 * step).sin()));
    let [q, k, v] = [0.37, 0.73, 0.11].map(|step| wave(step).collect::<Vec<_>>());

    // To the device.
    let device_q = Tensor::from_host(&stream, &q, shape)?;
    let device_k = Tensor::from_host(&stream, &k, shape)?;
    let device_v = Tensor::from_host(&stream, &v, shape)?;
    let mut out = Tensor::<f16, 4>::zeros(&stream, shape)?;

    // Each position attends to itself and to what came before. The call checks its tensors, queues
    // the kernel on the stream and returns.
    let config = Config {
        mask: Mask::Causal,
        ..Config::default()
    };
    let tensors = Forward {
        q: device_q.view(),
        k: device_k.view(),
        v: device_v.view(),
        out: out.view_mut(),
        lse: None,
        bias: Bias::default(),
    };
    attention.forward(&stream, config, tensors)?;

    // Back to the host, which waits for the kernel.
    let out = out.to_host(&stream)?;

    // The same by the formula, in f64.
    let [q, k, v] = [q, k, v].map(|x| x.iter().map(|x| x.to_f64()).collect::<Vec<_>>());
    let problem = reference::Forward {
        batch,
        seq_q: seq,
        seq_k: seq,
        heads,
        heads_kv: heads,
        head_dim,
        q: &q,
        k: &k,
        v: &v,
        right: Some(0),
        ..reference::Forward::default()
    };
    let expected = problem.run()?.out;
    let pairs = out.iter().zip(&expected);
    let largest = pairs.fold(0.0_f64, |most, (out, x)| most.max((out.to_f64() - x).abs()));
    println!("out {shape:?}: within {largest:.1e} of the f64 reference");
    // Numbers of at most 1, rounded to f16: half a thousandth each.
    assert!(largest < 1e-3, "the kernel and the reference differ");
    Ok(())
}
