//! Benchmarks of every kernel, in one binary: `cargo bench`, or `cargo bench -- attention/forward/f16`.
//!
//! On a GPU each problem is verified, then timed by CUDA events with a cold L2. Without a GPU each runs once, small,
//! on the emulator, which counts what the kernel does, and what that takes of the GPU it poses as at least; that is no
//! time. `cargo bench --bench kernels -- --json` prints an object a launch instead.

#[path = "../../examples/shared/device.rs"]
mod device;
#[path = "../../examples/shared/measure.rs"]
mod measure;
#[path = "../../examples/shared/naive.rs"]
mod naive;

mod attention;
mod bench;
mod causal_conv1d;
mod cublas;
mod delta_rule;
mod gated_attention_unit;
mod gemm;
mod linear_attention;
mod lru;
mod rwkv4;
mod rwkv7;
mod selective_scan;
mod ssd;
mod support;

use std::error::Error;
use std::time::Duration;

use cuda_emulator::Driver;
use seqmix::attention::Attention;
use seqmix::causal_conv1d::CausalConv1d;
use seqmix::gated_attention_unit::GatedAttentionUnit;
use seqmix::linear_attention::LinearAttention;
use seqmix::lru::Lru;
use seqmix::rwkv4::Rwkv4;
use seqmix::rwkv7::Rwkv7;
use seqmix::selective_scan::SelectiveScan;
use seqmix::ssd::Ssd;

use bench::Format;
use cublas::Cublas;

fn main() -> Result<(), Box<dyn Error>> {
    let (context, driver) = device::open()?;
    let attention = Attention::new(&context)?;
    let conv = CausalConv1d::new(&context)?;
    let gau = GatedAttentionUnit::new(&context)?;
    let ssd = Ssd::new(&context)?;
    let mut gemm = gemm::Ops::new(&context)?;
    let linear = LinearAttention::new(&context)?;
    let lru = Lru::new(&context)?;
    let rwkv4 = Rwkv4::new(&context)?;
    let rwkv7 = Rwkv7::new(&context)?;
    let scan = SelectiveScan::new(&context)?;
    match driver {
        Driver::Cuda => {
            let mut gpu = support::Gpu::new(&context)?;
            println!("{}", gemm.compare_with(Cublas::open(&gpu.stream)));
            gpu.multiplied = gemm.roofline(&gpu)?;
            println!(
                "roofline of this run: {:.0} GB/s copied, read and written; {:.0} TFLOP/s in a large product",
                gpu.copied / 1e9,
                gpu.multiplied / 1e12,
            );
            // A GPU repeats itself: two seconds of calls tell as much as five.
            let mut criterion = criterion::Criterion::default()
                .with_measurement(support::CudaTime)
                .sample_size(50)
                .warm_up_time(Duration::from_secs(1))
                .measurement_time(Duration::from_secs(2))
                .configure_from_args();
            bench::time::<attention::Shape>(&mut criterion, &gpu, &attention);
            bench::time::<causal_conv1d::Shape>(&mut criterion, &gpu, &conv);
            bench::time::<delta_rule::Shape>(&mut criterion, &gpu, &linear);
            bench::time::<gated_attention_unit::Shape>(&mut criterion, &gpu, &gau);
            bench::time::<gemm::Shape>(&mut criterion, &gpu, &gemm);
            bench::time::<linear_attention::ForwardShape>(&mut criterion, &gpu, &linear);
            bench::time::<linear_attention::BackwardShape>(&mut criterion, &gpu, &linear);
            bench::time::<linear_attention::StepShape>(&mut criterion, &gpu, &linear);
            bench::time::<lru::Shape>(&mut criterion, &gpu, &lru);
            bench::time::<rwkv4::ForwardShape>(&mut criterion, &gpu, &rwkv4);
            bench::time::<rwkv4::BackwardShape>(&mut criterion, &gpu, &rwkv4);
            bench::time::<rwkv4::StepShape>(&mut criterion, &gpu, &rwkv4);
            bench::time::<rwkv7::ForwardShape>(&mut criterion, &gpu, &rwkv7);
            bench::time::<rwkv7::BackwardShape>(&mut criterion, &gpu, &rwkv7);
            bench::time::<rwkv7::StepShape>(&mut criterion, &gpu, &rwkv7);
            bench::time::<selective_scan::ForwardShape>(&mut criterion, &gpu, &scan);
            bench::time::<selective_scan::BackwardShape>(&mut criterion, &gpu, &scan);
            bench::time::<selective_scan::StepShape>(&mut criterion, &gpu, &scan);
            bench::time::<ssd::Shape>(&mut criterion, &gpu, &ssd);
            criterion.final_summary();
        }
        Driver::Emulator => {
            let arguments: Vec<String> = std::env::args().skip(1).collect();
            let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
            let filter = filter.cloned().unwrap_or_default();
            let json = arguments.iter().any(|argument| argument == "--json");
            let format = if json { Format::Json } else { Format::Text };
            if !json {
                println!("no GPU: counters of the emulator follow, no times");
            }
            let stream = context.default_stream();
            bench::count::<attention::Shape>(&stream, &filter, format, &attention)?;
            bench::count::<causal_conv1d::Shape>(&stream, &filter, format, &conv)?;
            bench::count::<delta_rule::Shape>(&stream, &filter, format, &linear)?;
            bench::count::<gated_attention_unit::Shape>(&stream, &filter, format, &gau)?;
            bench::count::<gemm::Shape>(&stream, &filter, format, &gemm)?;
            bench::count::<linear_attention::ForwardShape>(&stream, &filter, format, &linear)?;
            bench::count::<linear_attention::BackwardShape>(&stream, &filter, format, &linear)?;
            bench::count::<linear_attention::StepShape>(&stream, &filter, format, &linear)?;
            bench::count::<lru::Shape>(&stream, &filter, format, &lru)?;
            bench::count::<rwkv4::ForwardShape>(&stream, &filter, format, &rwkv4)?;
            bench::count::<rwkv4::BackwardShape>(&stream, &filter, format, &rwkv4)?;
            bench::count::<rwkv4::StepShape>(&stream, &filter, format, &rwkv4)?;
            bench::count::<rwkv7::ForwardShape>(&stream, &filter, format, &rwkv7)?;
            bench::count::<rwkv7::BackwardShape>(&stream, &filter, format, &rwkv7)?;
            bench::count::<rwkv7::StepShape>(&stream, &filter, format, &rwkv7)?;
            bench::count::<selective_scan::ForwardShape>(&stream, &filter, format, &scan)?;
            bench::count::<selective_scan::BackwardShape>(&stream, &filter, format, &scan)?;
            bench::count::<selective_scan::StepShape>(&stream, &filter, format, &scan)?;
            bench::count::<ssd::Shape>(&stream, &filter, format, &ssd)?;
        }
    }
    Ok(())
}
