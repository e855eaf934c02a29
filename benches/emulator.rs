//! How fast the emulator is, on one core and with all checks on: `cargo bench --bench emulator`.
//!
//! The launch is attention forward of f16, 2 heads of 1024 positions and 64 dimensions. This is the time of the emulator
//! on a CPU, and says nothing about a GPU.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use cuda_emulator::{Settings, configure, select};
use half::f16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seqmix::Tensor;
use seqmix::attention::{Attention, Bias, Config, Forward};
use seqmix::cudarc::driver::CudaStream;

/// `[batch, seq, heads, head_dim]`
const SHAPE: [usize; 4] = [1, 1024, 2, 64];

/// What a launch may take: the emulator runs every test of this crate, so that its speed is theirs.
const LIMIT: Duration = Duration::from_millis(250);

/// A problem whose tensors lie on the emulated device.
struct Problem {
    stream: Arc<CudaStream>,
    attention: Attention,
    inputs: [Tensor<f16, 4>; 3],
    out: Tensor<f16, 4>,
}

impl Problem {
    fn new() -> Result<Self, Box<dyn Error>> {
        let context = seqmix::context(0)?;
        let stream = context.default_stream();
        let mut rng = StdRng::seed_from_u64(1);
        let mut random = || {
            let elements = SHAPE.iter().product();
            let values = (0..elements).map(|_| f16::from_f32(rng.random_range(-1.0..1.0)));
            Tensor::from_host(&stream, &values.collect::<Vec<_>>(), SHAPE)
        };
        Ok(Problem {
            inputs: [random()?, random()?, random()?],
            out: Tensor::zeros(&stream, SHAPE)?,
            attention: Attention::new(&context)?,
            stream,
        })
    }

    /// The launch is over when this returns: the emulator does all work at once.
    fn run(&mut self) -> seqmix::Result<()> {
        let [q, k, v] = &self.inputs;
        let tensors = Forward {
            q: q.view(),
            k: k.view(),
            v: v.view(),
            out: self.out.view_mut(),
            lse: None,
            bias: Bias::default(),
        };
        self.attention
            .forward(&self.stream, Config::default(), tensors)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    select(Some("emulator"))?;
    let mut criterion = Criterion::default().configure_from_args();
    for arch in ["sm_80", "sm_90"] {
        configure(&Settings {
            arch: Some(arch.into()),
            threads: Some(1),
            ..Settings::default()
        })?;
        // an error is a fault of the kernel, which would make the time worthless
        let mut problem = Problem::new()?;
        problem.run()?;
        for report in cuda_emulator::take_reports() {
            println!("{report}");
        }
        let mut least = Duration::MAX;
        criterion.bench_function(
            &format!("emulator/attention/forward/f16/h2_s1024_d64/{arch}"),
            |bencher| {
                bencher.iter_custom(|times| {
                    let start = std::time::Instant::now();
                    for _ in 0..times {
                        problem.run().expect("the same launch ran before");
                    }
                    let spent = start.elapsed();
                    least = least.min(spent / u32::try_from(times).unwrap_or(u32::MAX).max(1));
                    spent
                });
            },
        );
        if least < Duration::MAX {
            let verdict = if least <= LIMIT { "within" } else { "OVER" };
            println!("{arch}: {least:.1?} a launch, {verdict} the {LIMIT:?} it may take");
        }
    }
    criterion.final_summary();
    Ok(())
}
