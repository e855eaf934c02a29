//! How fast the emulator is: attention forward of f16, batch * heads 2, seq 1024, head_dim 64, with all checks on.
//!
//! This is the time of the emulator on a CPU, and says nothing about a GPU. `cargo bench --bench emulator`.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;

use criterion::Criterion;
use cuda_emulator::{Device, Launch, Memory, Module, Options, Program, Report};
use half::f16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seqmix::abi::attention::{FORWARD, ForwardParams};

const HEADS: usize = 2;
const SEQ: usize = 1024;
const DIM: usize = 64;

/// A launch that can be repeated.
struct Case {
    device: Device,
    memory: Memory,
    module: Module,
    kernel: String,
    params: ForwardParams,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
}

impl Case {
    fn new(device: Device, tensors: [&[f16]; 3]) -> Result<Self, Box<dyn Error>> {
        let row = FORWARD
            .iter()
            .find(|row| row.dtype == seqmix::Dtype::F16 && row.dim == DIM);
        let row = row.ok_or("no kernel for f16 and head_dim 64")?;
        let entry = row.entry();
        let image = seqmix::images()
            .iter()
            .find(|image| image.unit == entry.name);
        let image = image.ok_or("the kernels are not built: run `cargo xtask toolkit`")?;
        let text = cuda_emulator::ptx(image.fatbin, &device)?;
        let memory = Memory::new(1 << 30);
        let module = Module::load(Arc::new(Program::parse(&text)?), &memory)?;
        let upload = |values: &[f16]| -> Result<u64, Box<dyn Error>> {
            let address = memory.alloc(2 * values.len() as u64)?;
            memory.write(address, bytemuck::cast_slice(values))?;
            Ok(address)
        };
        let (row_stride, head_stride) = ((HEADS * DIM) as i64, DIM as i64);
        let params = ForwardParams {
            q: upload(tensors[0])?,
            k: upload(tensors[1])?,
            v: upload(tensors[2])?,
            out: memory.alloc(2 * (SEQ * HEADS * DIM) as u64)?,
            lse: memory.alloc(4 * (HEADS * SEQ) as u64)?,
            q_row_stride: row_stride,
            q_head_stride: head_stride,
            k_row_stride: row_stride,
            k_head_stride: head_stride,
            v_row_stride: row_stride,
            v_head_stride: head_stride,
            out_row_stride: row_stride,
            out_head_stride: head_stride,
            lse_head_stride: SEQ as i64,
            rows_q: SEQ as i32,
            rows_k: SEQ as i32,
            head_dim: DIM as i32,
            heads_per_kv: 1,
            scale_log2: std::f32::consts::LOG2_E / (DIM as f32).sqrt(),
            ..ForwardParams::default()
        };
        Ok(Case {
            device,
            memory,
            module,
            kernel: entry.name,
            params,
            grid: [SEQ.div_ceil(row.tile.0) as u32, HEADS as u32, 1],
            block: [entry.threads, 1, 1],
            shared: entry.shared_bytes as u32,
        })
    }

    fn run(&self, options: &Options) -> Result<Report, cuda_emulator::Fault> {
        let launch = Launch {
            module: &self.module,
            kernel: &self.kernel,
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.shared,
            dynamic_shared_limit: self.shared,
            params: unsafe {
                std::slice::from_raw_parts(
                    (&raw const self.params).cast::<u8>(),
                    size_of::<ForwardParams>(),
                )
            },
            cooperative: false,
        };
        cuda_emulator::launch(&launch, &self.device, &self.memory, options)
    }

    fn out(&self) -> Result<Vec<f16>, Box<dyn Error>> {
        let mut out = vec![f16::ZERO; SEQ * HEADS * DIM];
        self.memory
            .read(self.params.out, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut random = || -> Vec<f16> {
        (0..SEQ * HEADS * DIM)
            .map(|_| f16::from_f32(rng.random_range(-1.0..1.0)))
            .collect()
    };
    let (q, k, v) = (random(), random(), random());
    let mut criterion = Criterion::default().configure_from_args();
    for device in [Device::sm_80(), Device::sm_90()] {
        let (major, minor) = device.compute_capability;
        let case = Case::new(device, [&q, &k, &v])?;
        let options = Options {
            threads: 1,
            ..Options::default()
        };
        println!("{}", case.run(&options)?);
        let as64 = |x: &[f16]| -> Vec<f64> { x.iter().map(|v| v.to_f64()).collect() };
        let (q, k, v) = (as64(&q), as64(&k), as64(&v));
        let out = as64(&case.out()?);
        let mut worst = 0f64;
        for h in 0..HEADS {
            for i in (0..SEQ).step_by(97) {
                let row = |t: &[f64], i: usize| t[(i * HEADS + h) * DIM..][..DIM].to_vec();
                let qi = row(&q, i);
                let s: Vec<f64> = (0..SEQ)
                    .map(|j| row(&k, j).iter().zip(&qi).map(|(a, b)| a * b).sum::<f64>() / 8.0)
                    .collect();
                let m = s.iter().cloned().fold(f64::MIN, f64::max);
                let p: Vec<f64> = s.iter().map(|x| (x - m).exp()).collect();
                let l: f64 = p.iter().sum();
                for d in 0..DIM {
                    let e: f64 = (0..SEQ)
                        .map(|j| p[j] * v[(j * HEADS + h) * DIM + d])
                        .sum::<f64>()
                        / l;
                    worst = worst.max((e - row(&out, i)[d]).abs());
                }
            }
        }
        println!("worst error {worst:e}");
        let name = format!("emulator/attention/forward/f16/bh2_s1024_d64/sm_{major}{minor}");
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| black_box(case.run(&options)).is_ok())
        });
    }
    criterion.final_summary();
    Ok(())
}
