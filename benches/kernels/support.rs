//! Times on a GPU: CUDA events around each call, a cold L2, and the roofline that rates are compared with.

use std::cell::RefCell;
use std::error::Error;
use std::sync::Arc;

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{BenchmarkId, Criterion, Throughput};
use seqmix::cudarc::driver::sys::{CUdevice_attribute, CUevent_flags};
use seqmix::cudarc::driver::{CudaContext, CudaSlice, CudaStream};

use crate::naive::{Narrow, normal};

/// The device, and what it measured of itself.
pub(crate) struct Gpu {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    /// Bytes per second of a large copy, read and written.
    pub(crate) copied: f64,
    /// Twice the size of L2: to write it drives everything else out.
    flush: RefCell<CudaSlice<u8>>,
}

/// Bytes of the copy that the roofline is measured by: far larger than any L2.
const COPY_BYTES: usize = 1 << 30;

/// Copies of which the fastest counts.
const COPIES: u64 = 20;

impl Gpu {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self, Box<dyn Error>> {
        let stream = context.new_stream()?;
        let l2 = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let flush = RefCell::new(stream.alloc_zeros(2 * usize::try_from(l2)?.max(1))?);
        let mut gpu = Self {
            context: context.clone(),
            stream,
            copied: 0.0,
            flush,
        };
        let from = gpu.stream.alloc_zeros::<u8>(COPY_BYTES)?;
        let mut to = gpu.stream.alloc_zeros::<u8>(COPY_BYTES)?;
        let mut fastest = f64::INFINITY;
        for _ in 0..COPIES {
            fastest = fastest.min(gpu.time(|| Ok(gpu.stream.memcpy_dtod(&from, &mut to)?))?);
        }
        gpu.copied = 2.0 * COPY_BYTES as f64 / fastest;
        Ok(gpu)
    }

    /// Seconds that the device takes for what `queue` queues on the stream, with a cold L2.
    fn time(
        &self,
        queue: impl FnOnce() -> Result<(), Box<dyn Error>>,
    ) -> Result<f64, Box<dyn Error>> {
        self.stream
            .memset_zeros(&mut *self.flush.try_borrow_mut()?)?;
        // cudarc's own events take no times.
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let start = self.stream.record_event(flags)?;
        queue()?;
        let end = self.stream.record_event(flags)?;
        end.synchronize()?;
        Ok(f64::from(start.elapsed_ms(&end)?) / 1e3)
    }

    /// Benchmarks what `queue` queues, and prints its rates beside the roofline.
    pub(crate) fn bench(
        &self,
        criterion: &mut Criterion<CudaTime>,
        id: &str,
        work: Work,
        mut queue: impl FnMut() -> Result<(), Box<dyn Error>>,
    ) {
        let (name, parameter) = id.rsplit_once('/').unwrap_or((id, ""));
        let mut seconds = Vec::new();
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(work.operations));
        group.bench_function(BenchmarkId::from_parameter(parameter), |bencher| {
            bencher.iter_custom(|iterations| {
                let run = |_| self.time(&mut queue).expect("the call was verified before");
                let times: Vec<f64> = (0..iterations).map(run).collect();
                seconds.extend_from_slice(&times);
                times.iter().sum()
            });
        });
        group.finish();
        seconds.sort_by(f64::total_cmp);
        let Some(&median) = seconds.get(seconds.len() / 2) else {
            return;
        };
        let quantile = |part: f64| seconds[(part * (seconds.len() - 1) as f64) as usize];
        let rate = |seconds: f64| work.operations as f64 / seconds / 1e12;
        println!(
            "{id}: median {:.1} TFLOP/s ({:.1} to {:.1} in 9 of 10 runs), {:.1} % of the copy's bytes per second",
            rate(median),
            rate(quantile(0.95)),
            rate(quantile(0.05)),
            100.0 * work.bytes as f64 / median / self.copied,
        );
    }
}

/// What one call has to do at least.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// Multiplications and additions.
    pub(crate) operations: u64,
    /// Bytes of the inputs and outputs.
    pub(crate) bytes: u64,
}

/// `count` random numbers, which repeat after a prime number of them: enough that no two rows are alike, and quickly
/// drawn. Not zeros, on which a GPU draws less power and runs faster.
pub(crate) fn numbers<T: Narrow>(seed: u64, count: usize) -> Vec<T> {
    const PERIOD: usize = 999_983;
    let numbers = normal::<T>(seed, PERIOD.min(count), 1.0).into_iter();
    numbers.cycle().take(count).collect()
}

/// Prints what the launches of this thread did on the emulator.
pub(crate) fn print_counters(id: &str) {
    for report in cuda_emulator::take_thread_reports() {
        println!("\n{id}: emulator counters\n{report}");
    }
}

/// Seconds between CUDA events, for criterion.
pub(crate) struct CudaTime;

impl Measurement for CudaTime {
    type Intermediate = ();
    type Value = f64;

    /// Times come through `iter_custom` only: a clock on the host would measure how fast calls queue.
    fn start(&self) {}

    fn end(&self, (): ()) -> f64 {
        0.0
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, seconds: &f64) -> f64 {
        // Criterion plans how many runs to make as if values were nanoseconds.
        seconds * 1e9
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Rates
    }
}

/// Microseconds and TFLOP/s.
struct Rates;

impl ValueFormatter for Rates {
    fn scale_values(&self, _typical: f64, values: &mut [f64]) -> &'static str {
        values
            .iter_mut()
            .for_each(|nanoseconds| *nanoseconds /= 1e3);
        "us"
    }

    fn scale_throughputs(
        &self,
        _typical: f64,
        throughput: &Throughput,
        values: &mut [f64],
    ) -> &'static str {
        let Throughput::Elements(operations) = throughput else {
            return "ns";
        };
        values
            .iter_mut()
            .for_each(|nanoseconds| *nanoseconds = *operations as f64 / *nanoseconds / 1e3);
        "TFLOP/s"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "ns"
    }
}
