//! What is done with the problems of every op: on a GPU each is verified and timed, on the emulator verified and
//! counted.

use std::error::Error;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use cuda_emulator::Gpu;
use seqmix::Dtype;
use seqmix::cudarc::driver::CudaStream;
use serde_json::json;

use crate::support::{self, CudaTime};

/// Sizes and options of one call.
pub(crate) trait Shape: Copy {
    /// The op on the device.
    type Op;
    /// The op and the call, as ids begin: `attention/forward`.
    const CALL: &'static str;

    /// What is timed on a GPU.
    fn timed() -> Vec<Self>;

    /// What is counted on the emulator: small, and of every kernel.
    fn counted() -> Vec<Self>;

    /// Of the operands.
    fn dtype(&self) -> Dtype;

    /// How ids end.
    fn name(&self) -> String;

    fn work(&self) -> Work;

    /// The call with its tensors.
    fn problem(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<Box<dyn Problem<Op = Self::Op>>, Box<dyn Error>>;
}

/// A call with tensors on the device.
pub(crate) trait Problem {
    type Op;

    fn queue(&mut self, op: &Self::Op, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>>;

    /// Compares what the call wrote with the reference.
    fn verify(&self, stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>>;

    /// How the call runs, once it was queued; `None` if there is only one way.
    fn plan(&self) -> Option<&str> {
        None
    }

    /// Queues the same to another library, which writes elsewhere; `None` if there is none.
    fn queue_rival(
        &mut self,
        _op: &Self::Op,
        _stream: &Arc<CudaStream>,
    ) -> Result<Option<Rival>, Box<dyn Error>> {
        Ok(None)
    }

    /// Checks what the other library wrote.
    fn verify_rival(&self, _stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
        Ok(())
    }
}

/// Another library, and what it does for a problem.
#[derive(Clone, Copy)]
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
}

/// What one call has to do at least.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// Multiplications and additions.
    pub(crate) operations: u64,
    /// Bytes of the inputs and outputs.
    pub(crate) bytes: u64,
}

/// Times the calls of an op that criterion was asked for.
pub(crate) fn time<S: Shape>(criterion: &mut Criterion<CudaTime>, gpu: &support::Gpu, op: &S::Op) {
    for shape in S::timed() {
        time_one(criterion, gpu, op, shape);
    }
}

fn time_one<S: Shape>(
    criterion: &mut Criterion<CudaTime>,
    gpu: &support::Gpu,
    op: &S::Op,
    shape: S,
) {
    let (id, work) = (id(shape), shape.work());
    let mut ready = None;
    let (mut seconds, mut seconds_rival) = (Vec::new(), Vec::new());
    let mut group = criterion.benchmark_group(format!("{}/{}", S::CALL, shape.dtype().name()));
    group.throughput(Throughput::Elements(work.operations));
    group.bench_function(BenchmarkId::from_parameter(shape.name()), |bencher| {
        // Criterion alone knows whether this one was asked for: until then it costs nothing.
        let Ready { problem, rival } = ready.get_or_insert_with(|| {
            shape
                .problem(&gpu.stream)
                .and_then(|problem| Ready::new(problem, op, &gpu.stream))
                .unwrap_or_else(|why| panic!("{id}: {why}"))
        });
        // Ours and theirs in turn, so that clocks drift for both alike.
        let mut run = || -> Result<f64, Box<dyn Error>> {
            let ours = gpu.time(|| problem.queue(op, &gpu.stream))?;
            seconds.push(ours);
            if rival.is_some() {
                let queue = || problem.queue_rival(op, &gpu.stream).map(drop);
                seconds_rival.push(gpu.time(queue)?);
            }
            Ok(ours)
        };
        bencher.iter_custom(|iterations| {
            let times = (0..iterations).map(|_| run().expect("the call was verified before"));
            times.sum()
        });
    });
    group.finish();
    let pairs = seconds_rival.iter().zip(&seconds);
    let ratios = pairs.map(|(theirs, ours)| theirs / ours).collect();
    let (Some(ready), Some(spread)) = (ready, Spread::of(seconds)) else {
        return;
    };
    println!("{id}: {}", gpu.rates(work, &spread));
    if let Some(plan) = ready.problem.plan() {
        println!("{id}: {plan}");
    }
    if let (Some(Rival { name, work }), Some(spread), Some(ratio)) =
        (ready.rival, Spread::of(seconds_rival), Spread::of(ratios))
    {
        println!("{id}: {name}: {}", gpu.rates(work, &spread));
        println!("{id}: {:.3} times the speed of {name}", ratio.median);
    }
}

/// How counters are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// An object a launch, a line each.
    Json,
}

/// Runs the small calls of an op once on the emulator, and prints for each launch its counters and what they cost: of
/// those calls whose id contains `filter`.
pub(crate) fn count<S: Shape>(
    stream: &Arc<CudaStream>,
    filter: &str,
    format: Format,
    op: &S::Op,
) -> Result<(), Box<dyn Error>> {
    for shape in S::counted() {
        let id = id(shape);
        if !id.contains(filter) {
            continue;
        }
        let ready = Ready::new(shape.problem(stream)?, op, stream);
        let ready = ready.map_err(|why| format!("{id}: {why}"))?;
        let plan = ready.problem.plan();
        if let (Some(plan), Format::Text) = (plan, format) {
            println!("\n{id}: {plan}");
        }
        for report in cuda_emulator::take_thread_reports() {
            let cost = Gpu::posed_as(&report.device).map(|gpu| report.cost(gpu));
            match format {
                Format::Text => {
                    println!("\n{id}: emulator counters\n{report}");
                    cost.iter().for_each(|cost| println!("{cost}"));
                }
                Format::Json => {
                    let line = json!({ "id": id, "plan": plan, "report": report, "cost": cost });
                    println!("{line}");
                }
            }
        }
    }
    Ok(())
}

/// As criterion joins group and parameter.
fn id<S: Shape>(shape: S) -> String {
    format!("{}/{}/{}", S::CALL, shape.dtype().name(), shape.name())
}

/// A problem that ran once and returned the right numbers.
struct Ready<Op> {
    problem: Box<dyn Problem<Op = Op>>,
    /// Who else did.
    rival: Option<Rival>,
}

impl<Op> Ready<Op> {
    fn new(
        mut problem: Box<dyn Problem<Op = Op>>,
        op: &Op,
        stream: &Arc<CudaStream>,
    ) -> Result<Self, Box<dyn Error>> {
        problem.queue(op, stream)?;
        problem.verify(stream)?;
        let rival = problem.queue_rival(op, stream)?;
        if let Some(Rival { name, .. }) = rival {
            let verdict = problem.verify_rival(stream);
            verdict.map_err(|why| format!("{name} returned other numbers: {why}"))?;
        }
        Ok(Self { problem, rival })
    }
}

/// Where the middle of many numbers lies.
pub(crate) struct Spread {
    pub(crate) median: f64,
    /// Nine of ten numbers lie between these.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    pub(crate) fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let last = numbers.len().checked_sub(1)?;
        let quantile = |part: f64| numbers[(part * last as f64).round() as usize];
        Some(Self {
            median: quantile(0.5),
            low: quantile(0.05),
            high: quantile(0.95),
        })
    }
}
