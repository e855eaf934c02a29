//! One problem for the attention kernel without the library around it.

use bytemuck::{Pod, Zeroable};
use cuda_emulator::Fault;
use half::f16;
use seqmix::reference::attention as reference;

use super::widen;
use crate::bare::{Bare, Buffers};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound, lse_bound, normal};
use crate::planted::Problem;

/// One causal sequence that fills no tile. Its lengths claim more rows than there are.
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
pub(super) struct Causal {
    inputs: [Vec<f16>; 3],
    expected: reference::Output,
    bounds: [Bound; 2],
}

impl Causal {
    pub(super) fn new() -> Self {
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
            inputs,
            expected,
            bounds,
        }
    }
}

impl Problem for Causal {
    fn kernel(&self) -> &str {
        "attention_forward_f16_d64"
    }

    fn grid(&self) -> [u32; 3] {
        // Blocks past the last row return at once: no need to know the size of a tile.
        [ROWS_Q.div_ceil(16) as u32, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let buffers = Buffers::new();
        let [q, k, v] = self.inputs.each_ref().map(|x| buffers.upload(x));
        let out = buffers.output::<f16>(ROWS_Q * DIM);
        let lse = buffers.output::<f32>(ROWS_Q);
        let row = DIM as i64;
        let params = Params {
            q,
            k,
            v,
            out,
            lse,
            cu_seqlens_q: buffers.upload(&CU_SEQLENS_Q),
            cu_seqlens_k: buffers.upload(&CU_SEQLENS_K),
            strides: [[0, row, row]; 4],
            lse_strides: [0, ROWS_Q as i64],
            rows_q: ROWS_Q as i32,
            rows_k: ROWS_K as i32,
            head_dim: DIM as i32,
            heads_per_kv: 1,
            causal: 1,
            scale_log2: std::f32::consts::LOG2_E / (DIM as f32).sqrt(),
        };
        bare.launch(&buffers, bytemuck::bytes_of(&params))?;

        let found: Vec<f16> = buffers.download(out, ROWS_Q * DIM);
        let found_lse: Vec<f32> = buffers.download(lse, ROWS_Q);
        let found_lse: Vec<f64> = found_lse.into_iter().map(f64::from).collect();
        Ok(vec![
            Verdict::of(&widen(&found), &self.expected.out, DIM, self.bounds[0]),
            Verdict::of(&found_lse, &self.expected.lse, 1, self.bounds[1]),
        ])
    }
}
