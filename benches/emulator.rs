//! How fast the emulator is, with all checks on: `cargo bench --bench emulator`.
//!
//! The launch is attention forward of f16, 2 heads of 1024 positions and 64 dimensions, on one host thread and on two.
//! This is the time of the emulator on a CPU, and says nothing about a GPU. The least of all samples counts, so that what
//! else the machine does is left out as far as it pauses.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Million warp instructions a second on one core: the emulator runs every test of this crate, so that its speed is theirs.
const SPEED: f64 = 10.0;

/// How many times as fast two cores must be: blocks share little.
const SCALING: f64 = 1.7;

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

/// How long this thread has had a core, which other processes change little; the time of day where the system does not say.
fn on_core(begin: Instant) -> Duration {
    let words = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = words.split(' ').next().and_then(|word| word.parse().ok());
    nanoseconds.map_or_else(|| begin.elapsed(), Duration::from_nanos)
}

/// The least times of a launch.
#[derive(Clone, Copy)]
struct Least {
    /// Of the thread that launched.
    on_core: Duration,
    elapsed: Duration,
}

/// Runs launches; `None` if criterion's filter leaves them out.
fn least(criterion: &mut Criterion, problem: &mut Problem, name: &str) -> Option<Least> {
    let begin = Instant::now();
    let mut least: Option<Least> = None;
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|times| {
            let mut sum = Duration::ZERO;
            for _ in 0..times {
                let (start, start_on_core) = (begin.elapsed(), on_core(begin));
                problem.run().expect("the same launch ran before");
                let now = Least {
                    on_core: on_core(begin) - start_on_core,
                    elapsed: begin.elapsed() - start,
                };
                sum += now.elapsed;
                let before = least.unwrap_or(now);
                least = Some(Least {
                    on_core: now.on_core.min(before.on_core),
                    elapsed: now.elapsed.min(before.elapsed),
                });
            }
            cuda_emulator::take_reports();
            sum
        });
    });
    least
}

fn pose(arch: &str, threads: usize) -> Result<(), Box<dyn Error>> {
    configure(&Settings {
        arch: Some(arch.into()),
        threads: Some(threads),
        ..Settings::default()
    })?;
    Ok(())
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reaches" } else { "MISSES" }
}

fn main() -> Result<(), Box<dyn Error>> {
    select(Some("emulator"))?;
    let mut criterion = Criterion::default().configure_from_args();
    for arch in ["sm_80", "sm_90"] {
        pose(arch, 1)?;
        // an error is a fault of the kernel, which would make the time worthless
        let mut problem = Problem::new()?;
        problem.run()?;
        let report = cuda_emulator::take_reports().pop();
        let report = report.ok_or("a launch without a report")?;
        println!("{report}");
        let name = format!("emulator/attention/forward/f16/h2_s1024_d64/{arch}");
        let one = least(&mut criterion, &mut problem, &format!("{name}/1"));
        pose(arch, 2)?;
        let two = least(&mut criterion, &mut problem, &format!("{name}/2"));
        if let Some(one) = one {
            let instructions = report.total();
            let time = one.on_core;
            let speed = instructions as f64 / time.as_secs_f64() / 1e6;
            println!(
                "{arch}: {instructions} warp instructions in {time:.1?} on one core: {speed:.1} million a second, {} \
                 the goal of {SPEED}",
                verdict(speed >= SPEED)
            );
        }
        if let (Some(one), Some(two)) = (one, two) {
            let scaling = one.elapsed.as_secs_f64() / two.elapsed.as_secs_f64();
            println!(
                "{arch}: {:.1?} on two cores: {scaling:.2} times as fast as on one, {} the goal of {SCALING}",
                two.elapsed,
                verdict(scaling >= SCALING)
            );
        }
    }
    criterion.final_summary();
    Ok(())
}
