//! Times on a GPU: CUDA events around each call, a cold L2, and the roofline that rates are compared with.

use std::cell::RefCell;
use std::error::Error;
use std::sync::Arc;

use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter};
use seqmix::cudarc::driver::sys::{CUdevice_attribute, CUevent_flags};
use seqmix::cudarc::driver::{CudaContext, CudaSlice, CudaStream};

use crate::bench::{Spread, Work};
use crate::naive::{Number, normal};

/// The device, and what it measured of itself.
pub(crate) struct Gpu {
    pub(crate) stream: Arc<CudaStream>,
    /// Bytes per second of a large copy, read and written.
    pub(crate) copied: f64,
    /// Operations per second of a large product; whoever can multiply measures it.
    pub(crate) multiplied: f64,
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
            stream,
            copied: 0.0,
            multiplied: f64::NAN,
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
    pub(crate) fn time(
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

    /// A call's rates, beside the roofline.
    pub(crate) fn rates(&self, work: Work, seconds: &Spread) -> String {
        let rate = |seconds: f64| work.operations as f64 / seconds;
        let bytes = work.bytes as f64 / seconds.median;
        format!(
            "median {:.1} us, {:.1} TFLOP/s ({:.1} to {:.1} in 9 of 10 runs): {:.1} % of the large product's, \
             {:.1} % of the copy's bytes per second",
            1e6 * seconds.median,
            rate(seconds.median) / 1e12,
            rate(seconds.high) / 1e12,
            rate(seconds.low) / 1e12,
            100.0 * rate(seconds.median) / self.multiplied,
            100.0 * bytes / self.copied,
        )
    }
}

/// `count` random numbers, which repeat after a prime number of them: enough that no two rows are alike, and quickly
/// drawn. Not zeros, on which a GPU draws less power and runs faster.
pub(crate) fn numbers<T: Number>(seed: u64, count: usize) -> Vec<T> {
    const PERIOD: usize = 999_983;
    let numbers = normal::<T>(seed, PERIOD.min(count), 1.0).into_iter();
    numbers.cycle().take(count).collect()
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
