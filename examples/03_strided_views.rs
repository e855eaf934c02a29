//! Step 3: q, k and v as one projection writes them, side by side in one buffer, without a copy.
//!
//! ```sh
//! cargo run --example 03_strided_views
//! ```

#[path = "shared/device.rs"]
mod device;

use half::f16;
use seqmix::attention::{Attention, Bias, Config, Forward};
use seqmix::{Tensor, TensorMut, TensorRef};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (context, _) = device::open()?;
    let stream = context.default_stream();
    let attention = Attention::new(&context)?;

    // `[batch, seq, 3, heads, head_dim]` in a buffer of cudarc's, e.g. of another crate.
    let (batch, seq, heads, head_dim) = (2, 48, 4, 32);
    let row = 3 * heads * head_dim;
    let numbers: Vec<f16> = (0..batch * seq * row)
        .map(|i| f16::from_f32((i as f32 * 0.37).sin()))
        .collect();
    let qkv = stream.clone_htod(&numbers)?;

    // A view is a slice, a shape and strides in elements; that it stays within the slice is checked here, once.
    let shape = [batch, seq, heads, head_dim];
    let strides = [seq * row, row, head_dim, 1];
    let part = |index: usize| TensorRef::new(qkv.slice(index * heads * head_dim..), shape, strides);

    // The output as `[batch, heads, seq, head_dim]` in memory, which the next step may want.
    let mut transposed = stream.alloc_zeros::<f16>(shape.iter().product())?;
    let strides = [heads * seq * head_dim, head_dim, seq * head_dim, 1];
    let tensors = Forward {
        q: part(0)?,
        k: part(1)?,
        v: part(2)?,
        out: TensorMut::new(transposed.as_view_mut(), shape, strides)?,
        lse: None,
        bias: Bias::default(),
    };
    attention.forward(&stream, Config::default(), tensors)?;
    let transposed = stream.clone_dtoh(&transposed)?;

    // The same with a contiguous copy of each.
    let copy = |index: usize| -> Result<_, seqmix::Error> {
        let of_row = |row: &[f16]| row[index * heads * head_dim..][..heads * head_dim].to_vec();
        let contiguous: Vec<f16> = numbers.chunks(row).flat_map(of_row).collect();
        Tensor::from_host(&stream, &contiguous, shape)
    };
    let (q, k, v) = (copy(0)?, copy(1)?, copy(2)?);
    let mut out = Tensor::<f16, 4>::zeros(&stream, shape)?;
    let (q, k, v) = (q.view(), k.view(), v.view());
    let tensors = Forward {
        q,
        k,
        v,
        out: out.view_mut(),
        lse: None,
        bias: Bias::default(),
    };
    attention.forward(&stream, Config::default(), tensors)?;
    let out = out.to_host(&stream)?;

    let same = (0..out.len()).all(|at| {
        let (dim, head) = (at % head_dim, at / head_dim % heads);
        let (position, sequence) = (at / head_dim / heads % seq, at / head_dim / heads / seq);
        let moved = ((sequence * heads + head) * seq + position) * head_dim + dim;
        out[at].to_bits() == transposed[moved].to_bits()
    });
    println!("{shape:?}: the same bits from views and from copies: {same}");
    assert!(same, "a view changed the result");
    Ok(())
}
