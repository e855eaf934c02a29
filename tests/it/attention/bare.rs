//! The attention kernel without the library around it: one problem, launched on the emulator itself, whatever the
//! driver of the run is. So a test can edit the kernel's text and choose the order in which lanes run.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cuda_emulator::{Device, Fault, Launch, Memory, Module, Options, Program, Schedule};
use half::f16;
use seqmix::reference::attention as reference;

use super::widen;
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound, lse_bound, normal};

/// The kernel of the problem.
pub(super) const KERNEL: &str = "attention_forward_f16_d64";

/// One causal sequence that fills no tile, in buffers of its exact size, so that every wrong bound
/// leaves them. Its lengths claim more rows than there are.
const ROWS_Q: usize = 140;
const ROWS_K: usize = 257;
const DIM: usize = 64;
const CU_SEQLENS_Q: [i32; 2] = [0, 1000];
const CU_SEQLENS_K: [i32; 2] = [0, i32::MAX];

/// As `attention::ForwardParams` of kernels/attention/params.h. A difference shows: the kernel that
/// nobody edited has to return the right numbers.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    lse: u64,
    cu_seqlens_q: u64,
    cu_seqlens_k: u64,
    /// Batch, row and head of q, k, v and out.
    strides: [[i64; 3]; 4],
    /// Batch and head.
    lse_strides: [i64; 2],
    rows_q: i32,
    rows_k: i32,
    head_dim: i32,
    heads_per_kv: i32,
    causal: i32,
    scale_log2: f32,
}

/// The problem, and what the reference makes of it.
pub(super) struct Bare {
    device: Device,
    inputs: [Vec<f16>; 3],
    expected: reference::Output,
    bounds: [Bound; 2],
}

impl Bare {
    pub(super) fn new(device: Device) -> Self {
        let rows = [ROWS_Q, ROWS_K, ROWS_K];
        let inputs = [0, 1, 2].map(|which| normal::<f16>(which as u64, rows[which] * DIM, 1.0));
        let [q, k, v] = inputs.each_ref().map(|x| widen(x));
        let problem = reference::Forward {
            batch: 1,
            seq_q: ROWS_Q,
            seq_k: ROWS_K,
            heads: 1,
            heads_kv: 1,
            head_dim: DIM,
            q: &q,
            k: &k,
            v: &v,
            right: Some(0),
            ..reference::Forward::default()
        };
        let expected = problem.run().unwrap();
        let naive = problem.run_rounded(f16::round).unwrap();
        let bounds = [
            bound::<f16>(&expected.out, &naive.out, DIM).unwrap(),
            lse_bound(&expected.lse),
        ];
        Self {
            device,
            inputs,
            expected,
            bounds,
        }
    }

    /// The kernel's text for the device.
    pub(super) fn ptx(&self) -> String {
        let image = seqmix::images().iter().find(|image| image.unit == KERNEL);
        let fatbin = image.expect("an image of the kernel").fatbin;
        cuda_emulator::ptx(fatbin, &self.device)
            .unwrap()
            .into_owned()
    }

    /// Runs a kernel of this text: verdicts on out and lse if nothing stopped it.
    pub(super) fn run(&self, ptx: &str, schedule: Schedule) -> Result<[Verdict; 2], Box<Fault>> {
        let memory = Memory::new(1 << 24);
        let program = Program::parse(ptx).unwrap_or_else(|error| panic!("{error}"));
        let module = Module::load(Arc::new(program), &memory).unwrap();
        let alloc = |bytes: usize| memory.alloc(bytes as u64).unwrap();
        let upload = |bytes: &[u8]| {
            let address = alloc(bytes.len());
            memory.write(address, bytes).unwrap();
            address
        };
        let [q, k, v] = self
            .inputs
            .each_ref()
            .map(|x| upload(bytemuck::cast_slice(x)));
        let (out, lse) = (alloc(2 * ROWS_Q * DIM), alloc(4 * ROWS_Q));
        let row = DIM as i64;
        let params = Params {
            q,
            k,
            v,
            out,
            lse,
            cu_seqlens_q: upload(bytemuck::cast_slice(&CU_SEQLENS_Q)),
            cu_seqlens_k: upload(bytemuck::cast_slice(&CU_SEQLENS_K)),
            strides: [[0, row, row]; 4],
            lse_strides: [0, ROWS_Q as i64],
            rows_q: ROWS_Q as i32,
            rows_k: ROWS_K as i32,
            head_dim: DIM as i32,
            heads_per_kv: 1,
            causal: 1,
            scale_log2: std::f32::consts::LOG2_E / (DIM as f32).sqrt(),
        };
        let info = seqmix::kernels()
            .iter()
            .find(|info| info.name == KERNEL)
            .unwrap();
        let launch = Launch {
            module: &module,
            kernel: KERNEL,
            // Blocks past the last row return at once: no need to know the size of a tile.
            grid: [ROWS_Q.div_ceil(16) as u32, 1, 1],
            block: [info.threads, 1, 1],
            dynamic_shared: info.shared_bytes,
            dynamic_shared_limit: info.shared_bytes,
            params: bytemuck::bytes_of(&params),
            cooperative: false,
        };
        let options = Options {
            schedule,
            ..Options::default()
        };
        cuda_emulator::launch(&launch, &self.device, &memory, &options)?;

        let (mut found, mut found_lse) = (vec![f16::ZERO; ROWS_Q * DIM], vec![0.0_f32; ROWS_Q]);
        memory
            .read(out, bytemuck::cast_slice_mut(&mut found))
            .unwrap();
        memory
            .read(lse, bytemuck::cast_slice_mut(&mut found_lse))
            .unwrap();
        let found_lse: Vec<f64> = found_lse.into_iter().map(f64::from).collect();
        Ok([
            Verdict::of(&widen(&found), &self.expected.out, DIM, self.bounds[0]),
            Verdict::of(&found_lse, &self.expected.lse, 1, self.bounds[1]),
        ])
    }
}
