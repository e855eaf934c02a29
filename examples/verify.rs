//! Verifies the kernels on this machine: prints the device and a table of errors, and exits with 1 if one exceeds
//! its bound. This is what `cargo xtask demo` runs.

#[path = "shared/device.rs"]
mod device;
#[path = "shared/golden.rs"]
mod golden;
#[path = "shared/measure.rs"]
mod measure;
#[path = "shared/naive.rs"]
mod naive;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use half::{bf16, f16};
use seqmix::Tensor;
use seqmix::attention::{Attention, Bias, Config, Forward, Mask};
use seqmix::cudarc::driver::CudaContext;
use seqmix::reference::attention as reference;

use measure::Verdict;
use naive::Narrow;

/// One line of the table: what was computed, in which dtype, and a verdict for each output.
type Row = (String, String, String, Vec<(String, Verdict)>);

fn main() -> ExitCode {
    let rows = match verify() {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "{:<34} {:<32} {:<5} {:<4} error against the f64 reference, bound, verdict",
        "op", "shape", "dtype", "of"
    );
    for (op, shape, dtype, verdicts) in &rows {
        for (name, verdict) in verdicts {
            println!("{op:<34} {shape:<32} {dtype:<5} {name:<4} {verdict}");
        }
    }
    let failed = rows
        .iter()
        .flat_map(|row| &row.3)
        .filter(|(_, verdict)| !verdict.pass())
        .count();
    println!(
        "{}",
        if failed == 0 {
            "all within their bounds".into()
        } else {
            format!("{failed} out of bounds")
        }
    );
    ExitCode::from(u8::from(failed > 0))
}

fn verify() -> Result<Vec<Row>, Box<dyn Error>> {
    let (context, _) = device::open()?;
    let ops = golden::Ops::new(&context)?;
    let mut rows = Vec::new();
    // Queries, keys and values that a sentence-embedding model computes on eight English sentences.
    for layer in ["minilm_layer0", "minilm_layer5"] {
        let path = golden::folder().join(format!(
            "cases/attention_forward__{layer}_real_text.safetensors"
        ));
        let case = golden::Case::read(&path).map_err(|failure| failure.to_string())?;
        let outputs = case.run(&ops).map_err(|failure| failure.to_string())?;
        let verdicts = case
            .judge(&outputs, false)
            .map_err(|failure| failure.to_string())?;
        let q = case.need("q").map_err(|failure| failure.to_string())?;
        let dtype = format!("{:?}", q.dtype).to_lowercase();
        rows.push((
            format!("attention forward, {layer}"),
            format!("varlen {:?}", q.shape),
            dtype,
            verdicts,
        ));
    }
    rows.push(causal_gqa::<f16>(&context)?);
    rows.push(causal_gqa::<bf16>(&context)?);
    Ok(rows)
}

/// 200 positions, 8 query heads that share 2 key heads, each position sees what came before.
fn causal_gqa<T: Narrow>(context: &Arc<CudaContext>) -> Result<Row, Box<dyn Error>> {
    let (batch, seq, heads, heads_kv, head_dim) = (1, 200, 8, 2, 128);
    let (shape_q, shape_k) = (
        [batch, seq, heads, head_dim],
        [batch, seq, heads_kv, head_dim],
    );
    let numbers = |seed, shape: [usize; 4]| naive::normal::<T>(seed, shape.iter().product(), 1.0);
    let host = [
        numbers(1, shape_q),
        numbers(2, shape_k),
        numbers(3, shape_k),
    ];

    let stream = context.default_stream();
    let attention = Attention::new(context)?;
    let q = Tensor::from_host(&stream, &host[0], shape_q)?;
    let (k, v) = (
        Tensor::from_host(&stream, &host[1], shape_k)?,
        Tensor::from_host(&stream, &host[2], shape_k)?,
    );
    let mut out = Tensor::<T, 4>::zeros(&stream, shape_q)?;
    let mut lse = Tensor::<f32, 3>::zeros(&stream, [batch, heads, seq])?;
    let config = Config {
        mask: Mask::Causal,
        ..Config::default()
    };
    let tensors = Forward {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        out: out.view_mut(),
        lse: Some(lse.view_mut()),
        bias: Bias::default(),
    };
    attention.forward(&stream, config, tensors)?;
    let (out, lse) = (out.to_host(&stream)?, lse.to_host(&stream)?);

    let [q, k, v] = host.map(|x| x.into_iter().map(Into::into).collect::<Vec<f64>>());
    let problem = reference::Forward {
        batch,
        seq_q: seq,
        seq_k: seq,
        heads,
        heads_kv,
        head_dim,
        q: &q,
        k: &k,
        v: &v,
        right: Some(0),
        ..reference::Forward::default()
    };
    let (expected, naive) = (problem.run()?, problem.run_rounded(T::round)?);
    let out: Vec<f64> = out.into_iter().map(Into::into).collect();
    let lse: Vec<f64> = lse.into_iter().map(f64::from).collect();
    let bound = naive::bound::<T>(&expected.out, &naive.out, head_dim)?;
    let verdicts = vec![
        (
            "o".into(),
            Verdict::of(&out, &expected.out, head_dim, bound),
        ),
        (
            "lse".into(),
            Verdict::of(&lse, &expected.lse, 1, naive::lse_bound(&expected.lse)),
        ),
    ];
    let shape = format!("{shape_q:?}, {heads_kv} kv heads");
    Ok((
        "attention forward, causal GQA".into(),
        shape,
        T::DTYPE.name().into(),
        verdicts,
    ))
}
