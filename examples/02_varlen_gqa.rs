//! Step 2: sequences of different lengths without padding, and query heads that share keys and values.
//!
//! ```sh
//! cargo run --example 02_varlen_gqa
//! ```

#[path = "shared/device.rs"]
mod device;

use half::bf16;
use seqmix::Tensor;
use seqmix::attention::{Attention, Config, ForwardVarlen, Mask};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (context, _) = device::open()?;
    let stream = context.default_stream();
    let attention = Attention::new(&context)?;

    // Three sequences one after the other: 30, 5 and 65 positions. `cu_seqlens` says where each begins.
    let cu_seqlens = [0, 30, 35, 100];
    let (total, longest) = (100, 65);
    // Eight query heads, two key and value heads: four query heads share one.
    let (heads, heads_kv, head_dim) = (8, 2, 128);

    let wave = |elements: usize, step: f32| -> Vec<bf16> {
        (0..elements)
            .map(|i| bf16::from_f32((i as f32 * step).sin()))
            .collect()
    };
    let (elements_q, elements_k) = (total * heads * head_dim, total * heads_kv * head_dim);
    let q = Tensor::from_host(&stream, &wave(elements_q, 0.37), [total, heads, head_dim])?;
    let k = Tensor::from_host(
        &stream,
        &wave(elements_k, 0.73),
        [total, heads_kv, head_dim],
    )?;
    let ones = vec![bf16::ONE; elements_k];
    let v = Tensor::from_host(&stream, &ones, [total, heads_kv, head_dim])?;
    let cu_seqlens = Tensor::from_host(&stream, &cu_seqlens, [4])?;

    let mut out = Tensor::<bf16, 3>::zeros(&stream, [total, heads, head_dim])?;
    // The logarithm of each row's sum of exponentials, which the backward pass and merges of partial
    // results need.
    let mut lse = Tensor::<f32, 2>::zeros(&stream, [heads, total])?;

    let config = Config {
        mask: Mask::Causal,
        ..Config::default()
    };
    let tensors = ForwardVarlen {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        cu_seqlens_q: cu_seqlens.view(),
        cu_seqlens_k: cu_seqlens.view(),
        max_seqlen_q: longest,
        out: out.view_mut(),
        lse: Some(lse.view_mut()),
        alibi_slopes: None,
    };
    attention.forward_varlen(&stream, config, tensors)?;
    let (out, lse) = (out.to_host(&stream)?, lse.to_host(&stream)?);

    // Probabilities sum to 1, so a mean of ones is 1.
    let largest = out
        .iter()
        .map(|x| (x.to_f32() - 1.0).abs())
        .fold(0.0, f32::max);
    println!("out [{total}, {heads}, {head_dim}]: means of ones are 1 but for {largest:.1e}");
    // The first position of each sequence sees only itself: one exponential, whose logarithm is the score.
    for start in [0, 30, 35] {
        println!(
            "position {start} sees itself alone: lse of head 0 is {:.4}",
            lse[start]
        );
    }
    assert!(largest < 0.01, "the probabilities do not sum to 1");
    Ok(())
}
