//! Step 6: what attention costs over length, with the softmax and without. With it each step looks at all before it,
//! and twice the length is four times the work; without it the steps before are a state of fixed size, and twice the
//! length is twice the work.
//!
//! On a GPU the cost is time, on the emulator warp instructions. Given a file's name, draws it as SVG.
//!
//! ```sh
//! cargo run --example 06_linear_attention -- cost.svg
//! ```

#[path = "shared/device.rs"]
mod device;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use cuda_emulator::Driver;
use half::bf16;
use plotters::prelude::*;
use seqmix::attention::{self, Attention, Bias, Mask};
use seqmix::cudarc::driver::CudaStream;
use seqmix::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use seqmix::linear_attention::{self, FeatureMap, Layer, LinearAttention};
use seqmix::{Tensor, Workspace};

/// Channels of a head.
const DIM: usize = 64;
/// Calls on a GPU, of which the fastest counts.
const CALLS: usize = 10;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is compared, on one device.
struct Contest {
    stream: Arc<CudaStream>,
    driver: Driver,
    softmax: Attention,
    linear: LinearAttention,
    workspace: Workspace,
}

/// The cost of one length.
#[derive(Clone, Copy)]
struct Cost {
    steps: usize,
    softmax: f64,
    linear: f64,
}

impl Contest {
    fn new() -> Result<Self> {
        let (context, driver) = device::open()?;
        let stream = context.default_stream();
        Ok(Self {
            softmax: Attention::new(&context)?,
            linear: LinearAttention::new(&context)?,
            workspace: Workspace::new(&stream),
            stream,
            driver,
        })
    }

    /// Lengths and heads to compare: what fills a GPU, or what an emulator has the patience for.
    fn sizes(&self) -> (&'static [usize], usize) {
        match self.driver {
            Driver::Cuda => (&[512, 1024, 2048, 4096, 8192, 16384, 32768], 128),
            Driver::Emulator => (&[64, 128, 256, 512, 1024, 2048, 4096], 1),
        }
    }

    fn unit(&self) -> &'static str {
        match self.driver {
            Driver::Cuda => "milliseconds",
            Driver::Emulator => "thousands of warp instructions",
        }
    }

    /// Both over the same tensors, causal.
    fn compare(&mut self, steps: usize, heads: usize) -> Result<Cost> {
        let shape = [1, steps, heads, DIM];
        let elements: usize = shape.iter().product();
        let tensor = |step: f32| {
            let wave = (0..elements).map(|i| bf16::from_f32((i as f32 * step).sin()));
            Tensor::from_host(&self.stream, &wave.collect::<Vec<_>>(), shape)
        };
        let (q, k, v) = (tensor(0.37)?, tensor(0.73)?, tensor(0.11)?);
        let mut out = Tensor::<bf16, 4>::zeros(&self.stream, shape)?;
        let softmax = self.cost(|this| {
            let config = attention::Config {
                mask: Mask::Causal,
                ..attention::Config::default()
            };
            let tensors = attention::Forward {
                q: q.view(),
                k: k.view(),
                v: v.view(),
                out: out.view_mut(),
                lse: None,
                bias: Bias::default(),
            };
            this.softmax.forward(&this.stream, config, tensors)
        })?;
        let linear = self.cost(|this| {
            let config = linear_attention::Config {
                feature_map: FeatureMap::EluPlusOne,
                // One head would be cut into segments to fill a GPU, which costs more work.
                segment: Some(steps),
                ..linear_attention::Config::default()
            };
            let tensors = linear_attention::Forward {
                layer: Layer::new(q.view(), k.view(), v.view()),
                out: out.view_mut(),
                final_state: None,
                final_z: None,
                normalizer: None,
            };
            let plan = this.linear.plan(config, &tensors)?;
            this.workspace.reserve(plan.workspace_bytes())?;
            let (stream, workspace) = (&this.stream, &mut this.workspace);
            this.linear.forward(stream, config, tensors, workspace)
        })?;
        Ok(Cost {
            steps,
            softmax,
            linear,
        })
    }

    /// What a call costs, in [`Contest::unit`].
    fn cost(&mut self, mut call: impl FnMut(&mut Self) -> seqmix::Result<()>) -> Result<f64> {
        if self.driver == Driver::Emulator {
            cuda_emulator::take_thread_reports();
            call(self)?;
            let reports = cuda_emulator::take_thread_reports();
            let instructions: u64 = reports.iter().map(|report| report.total()).sum();
            return Ok(instructions as f64 / 1e3);
        }
        let mut fastest = f64::INFINITY;
        for _ in 0..CALLS {
            let begin = self.stream.record_event(Some(CU_EVENT_DEFAULT))?;
            call(self)?;
            let end = self.stream.record_event(Some(CU_EVENT_DEFAULT))?;
            fastest = fastest.min(f64::from(begin.elapsed_ms(&end)?));
        }
        Ok(fastest)
    }
}

/// Draws both costs over length, each axis by powers.
fn draw(file: &str, costs: &[Cost], unit: &str) -> Result<()> {
    let (Some(first), Some(last)) = (costs.first(), costs.last()) else {
        return Ok(());
    };
    let all = || costs.iter().flat_map(|cost| [cost.softmax, cost.linear]);
    let (least, most) = (
        all().fold(f64::INFINITY, f64::min),
        all().fold(0.0, f64::max),
    );
    let area = SVGBackend::new(file, (640, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .caption(
            format!("causal attention, {DIM} channels, bf16"),
            ("sans-serif", 18),
        )
        .build_cartesian_2d(
            (first.steps as f64..last.steps as f64)
                .log_scale()
                .base(2.0),
            (0.7 * least..1.5 * most).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("steps")
        .y_desc(unit)
        .x_label_formatter(&|steps| format!("{steps:.0}"))
        .draw()?;
    for (name, color) in [("softmax", RED), ("linear", BLUE)] {
        let of = |cost: &Cost| match name {
            "softmax" => cost.softmax,
            _ => cost.linear,
        };
        let points = || costs.iter().map(|cost| (cost.steps as f64, of(cost)));
        chart
            .draw_series(LineSeries::new(points(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    area.present()?;
    Ok(())
}

fn main() -> Result<ExitCode> {
    let mut contest = Contest::new()?;
    let (lengths, heads) = contest.sizes();
    println!(
        "{heads} heads of {DIM} channels, causal: {}",
        contest.unit()
    );
    println!(
        "{:>8} {:>12} {:>12} {:>8}",
        "steps", "softmax", "linear", "ratio"
    );
    let mut costs = Vec::new();
    for &steps in lengths {
        let cost = contest.compare(steps, heads)?;
        let Cost {
            softmax, linear, ..
        } = cost;
        println!(
            "{steps:8} {softmax:12.3} {linear:12.3} {:8.2}",
            softmax / linear
        );
        costs.push(cost);
    }
    if let Some(file) = std::env::args().nth(1) {
        draw(&file, &costs, contest.unit())?;
        println!("drawn to {file}");
    }
    // From one length to the next, twice as long.
    let growth = |of: fn(&Cost) -> f64| match costs.as_slice() {
        [.., before, last] => of(last) / of(before),
        _ => f64::NAN,
    };
    let (softmax, linear) = (growth(|cost| cost.softmax), growth(|cost| cost.linear));
    println!("twice the length: {softmax:.2} times the cost with the softmax, {linear:.2} without");
    // On the emulator nothing but the work counts, and it is the same in each run.
    let expected = contest.driver == Driver::Cuda || (softmax > 3.5 && linear < 2.05);
    Ok(if expected {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
