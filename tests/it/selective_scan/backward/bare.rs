//! Gradients by their kernel alone, without the library around it.

use cuda_emulator::Fault;
use half::f16;
use seqmix::abi::selective_scan::{BackwardParams, Coefficient, Elements, Scan, States, Vector};
use seqmix::reference::selective_scan as reference;

use crate::bare::{Bare, Buffers};
use crate::measure::Verdict;
use crate::naive::{Number, bound, normal};
use crate::planted::Problem;

/// Two blocks of channels, the second of which is not filled; two tiles of 16 steps, the last of which ends within a
/// chunk; states that fill no lane's part.
const DIM: usize = 70;
const SEQLEN: usize = 29;
const STATES: usize = 13;
/// Elements from one row to the next: of steps, and of states.
const STEP_ROW: usize = 32;
const STATE_ROW: usize = 16;
/// The one sequence claims more steps than there are.
const CU_SEQLENS: [i32; 2] = [-3, 1000];
/// Steps of a tile, where a state is kept.
const TILE: usize = 16;
/// Channels of a block.
const CHANNELS: usize = 64;

/// What arithmetic in f32 loses, as a share of the largest number.
const ARITHMETIC: f64 = 2e-5;

/// One segment of one sequence. B lies along steps, C along states.
pub(super) struct Gated {
    /// u, delta, z, dout and B by rows of steps, C by rows of states.
    u: Vec<f16>,
    delta: Vec<f16>,
    z: Vec<f16>,
    dout: Vec<f16>,
    b: Vec<f16>,
    c: Vec<f16>,
    a: Vec<f32>,
    d: Vec<f32>,
    delta_bias: Vec<f32>,
    initial_state: Vec<f32>,
    dlast_state: Vec<f32>,
    /// The state that enters each tile.
    checkpoints: Vec<f32>,
    expected: reference::Gradients,
    naive: reference::Gradients,
}

fn widen<T: Number>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// Row after row, with elements of no row between them but after the last.
fn spread(x: &[f16], of: usize, row: usize) -> Vec<f16> {
    let mut rows: Vec<f16> = x
        .chunks(of)
        .flat_map(|row_of_x| {
            let gap = std::iter::repeat_n(f16::NAN, row - of);
            row_of_x.iter().copied().chain(gap)
        })
        .collect();
    rows.truncate(rows.len() - (row - of));
    rows
}

impl Gated {
    pub(super) fn new() -> Self {
        let like_u = |seed| normal::<f16>(seed, DIM * SEQLEN, 1.0);
        let singles = |seed, count| normal::<f32>(seed, count, 1.0);
        let (u, delta, z, dout) = (like_u(1), like_u(2), like_u(3), like_u(4));
        let (b, c) = (
            normal::<f16>(5, STATES * SEQLEN, 1.0),
            normal::<f16>(6, STATES * SEQLEN, 1.0),
        );
        let a: Vec<f32> = singles(7, DIM * STATES).iter().map(|x| -x.exp()).collect();
        let (d, delta_bias) = (singles(8, DIM), singles(9, DIM));
        let initial_state = singles(10, DIM * STATES);
        let dlast_state = singles(11, DIM * STATES);
        let [u_wide, delta_wide, z_wide] = [&u, &delta, &z].map(|x| widen(x));
        let [b_wide, c_wide] = [&b, &c].map(|x| widen(x));
        let [a_wide, d_wide, bias_wide] = [&a, &d, &delta_bias].map(|x| widen(x));
        let [first, last] = [&initial_state, &dlast_state].map(|x| widen(x));
        let forward = reference::Forward {
            batch: 1,
            dim: DIM,
            seqlen: SEQLEN,
            dstate: STATES,
            groups: 1,
            u: &u_wide,
            delta: &delta_wide,
            a: &a_wide,
            b: reference::Coefficient::Variable(&b_wide),
            c: reference::Coefficient::Variable(&c_wide),
            d: Some(&d_wide),
            z: Some(&z_wide),
            delta_bias: Some(&bias_wide),
            delta_softplus: true,
            initial_state: Some(&first),
            ..reference::Forward::default()
        };
        // the first sequence of two ends where the second tile begins
        let both = [&first[..], &first[..]].concat();
        let cut = [0, TILE, SEQLEN];
        let halves = reference::Forward {
            cu_seqlens: Some(&cut),
            initial_state: Some(&both),
            ..forward
        };
        let states = halves.run().unwrap().last_state;
        let kept = states[..DIM * STATES].iter().map(|&x| x as f32);
        let unused = vec![f32::NAN; DIM * STATES];
        let checkpoints = unused.into_iter().chain(kept).collect();
        let backward = reference::Backward {
            forward,
            dout: &widen(&dout),
            dlast_state: Some(&last),
        };
        let (expected, naive) = (
            backward.run().unwrap(),
            backward.run_rounded(f16::round).unwrap(),
        );
        Self {
            c: {
                let turned = (0..SEQLEN * STATES).map(|at| c[at % STATES * SEQLEN + at / STATES]);
                spread(&turned.collect::<Vec<_>>(), STATES, STATE_ROW)
            },
            u: spread(&u, SEQLEN, STEP_ROW),
            delta: spread(&delta, SEQLEN, STEP_ROW),
            z: spread(&z, SEQLEN, STEP_ROW),
            dout: spread(&dout, SEQLEN, STEP_ROW),
            b: spread(&b, SEQLEN, STEP_ROW),
            a,
            d,
            delta_bias,
            initial_state,
            dlast_state,
            checkpoints,
            expected,
            naive,
        }
    }

    fn params(&self, buffers: &Buffers, outputs: &Outputs) -> BackwardParams {
        let elements = |at| Elements {
            at,
            batch_stride: 0,
            channel_stride: STEP_ROW as i64,
            step_stride: 1,
            vector: 1,
            dtype: 0,
        };
        let states = |at| States {
            at,
            sequence_stride: 0,
            channel_stride: STATES as i64,
            state_stride: 1,
        };
        let vector = |at| Vector { at, stride: 1 };
        let coefficient = Coefficient {
            vector: 1,
            ..Coefficient::default()
        };
        BackwardParams {
            scan: Scan {
                u: elements(buffers.upload(&self.u)),
                delta: elements(buffers.upload(&self.delta)),
                z: elements(buffers.upload(&self.z)),
                a: states(buffers.upload(&self.a)),
                b: Coefficient {
                    at: buffers.upload(&self.b),
                    state_stride: STEP_ROW as i64,
                    step_stride: 1,
                    kind: 0,
                    ..coefficient
                },
                c: Coefficient {
                    at: buffers.upload(&self.c),
                    state_stride: 1,
                    step_stride: STATE_ROW as i64,
                    kind: 1,
                    ..coefficient
                },
                skip: vector(buffers.upload(&self.d)),
                delta_bias: vector(buffers.upload(&self.delta_bias)),
                initial_state: states(buffers.upload(&self.initial_state)),
                cu_seqlens: buffers.upload(&CU_SEQLENS),
                sequences: 1,
                dim: DIM as i32,
                seqlen: SEQLEN as i32,
                states: STATES as i32,
                groups: 1,
                segments: 1,
                skip_dtype: 2,
                delta_bias_dtype: 2,
                softplus: 1,
                reverse: 0,
                along_channels: 0,
                checkpoint_bits: TILE.ilog2() as i32,
            },
            dout: elements(buffers.upload(&self.dout)),
            du: elements(outputs.du),
            ddelta: elements(outputs.ddelta),
            dz: elements(outputs.dz),
            dlast_state: states(buffers.upload(&self.dlast_state)),
            dinitial_state: states(outputs.dinitial_state),
            checkpoints: buffers.upload(&self.checkpoints),
            of_steps: outputs.of_steps,
            of_states: outputs.of_states,
            of_channels: outputs.of_channels,
            ..BackwardParams::default()
        }
    }
}

/// Addresses.
struct Outputs {
    du: u64,
    ddelta: u64,
    dz: u64,
    dinitial_state: u64,
    of_steps: u64,
    of_states: u64,
    of_channels: u64,
}

/// Floats of what the kernel leaves of dB and dC.
const OF_STEPS: usize = DIM.div_ceil(CHANNELS) * SEQLEN * 2 * STATES;
/// Elements of the rows of a result, with what lies between them.
const ROWS: usize = DIM * STEP_ROW - (STEP_ROW - SEQLEN);

impl Problem for Gated {
    fn kernel(&self) -> &str {
        "selective_scan_backward_real_16"
    }

    fn grid(&self) -> [u32; 3] {
        [DIM.div_ceil(CHANNELS) as u32, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let buffers = Buffers::new();
        // what lies between rows is written here, and must stay
        let guard = vec![f16::from_f32(-123.0); ROWS];
        let outputs = Outputs {
            du: buffers.upload(&guard),
            ddelta: buffers.upload(&guard),
            dz: buffers.upload(&guard),
            dinitial_state: buffers.output::<f32>(DIM * STATES),
            of_steps: buffers.output::<f32>(OF_STEPS),
            of_states: buffers.output::<f32>(DIM * STATES),
            of_channels: buffers.output::<f32>(2 * DIM),
        };
        let params = self.params(&buffers, &outputs);
        // SAFETY: `params` is a `repr(C)` struct of numbers without holes, as a test of src/abi asserts.
        let bytes = unsafe {
            let start = std::ptr::from_ref(&params).cast::<u8>();
            std::slice::from_raw_parts(start, size_of::<BackwardParams>())
        };
        bare.launch(&buffers, bytes)?;

        let (expected, naive) = (&self.expected, &self.naive);
        let halves = |at, expected: &[f64], naive: &[f64]| {
            let found: Vec<f16> = buffers.download(at, ROWS);
            let rows = found.chunks(STEP_ROW).flat_map(|row| &row[..SEQLEN]);
            let found: Vec<f64> = rows.map(|&x| x.into()).collect();
            let mut bound = bound::<f16>(expected, naive, SEQLEN).unwrap();
            loosen(&mut bound, expected);
            Verdict::of(&found, expected, SEQLEN, bound)
        };
        let floats = |found: Vec<f32>, expected: &[f64], naive: &[f64], row| {
            let mut bound = bound::<f32>(expected, naive, row).unwrap();
            loosen(&mut bound, expected);
            Verdict::of(&widen(&found), expected, row, bound)
        };
        let of_steps: Vec<f32> = buffers.download(outputs.of_steps, OF_STEPS);
        let sums = |side: usize| {
            let one_step = |block: usize, n: usize, t: usize| {
                of_steps[((block * SEQLEN + t) * 2 + side) * STATES + n]
            };
            let sum = |at: usize| {
                let blocks = 0..DIM.div_ceil(CHANNELS);
                blocks
                    .map(|block| one_step(block, at / SEQLEN, at % SEQLEN))
                    .sum()
            };
            (0..STATES * SEQLEN).map(sum).collect()
        };
        let of_channels: Vec<f32> = buffers.download(outputs.of_channels, 2 * DIM);
        let (dd, ddelta_bias) = of_channels.split_at(DIM);
        let of_states = buffers.download(outputs.of_states, DIM * STATES);
        let dinitial = buffers.download(outputs.dinitial_state, DIM * STATES);
        let (dz, naive_dz) = (expected.dz.as_ref().unwrap(), naive.dz.as_ref().unwrap());
        Ok(vec![
            halves(outputs.du, &expected.du, &naive.du),
            halves(outputs.ddelta, &expected.ddelta, &naive.ddelta),
            halves(outputs.dz, dz, naive_dz),
            floats(of_states, &expected.da, &naive.da, STATES),
            floats(sums(0), &expected.db, &naive.db, SEQLEN),
            floats(sums(1), &expected.dc, &naive.dc, SEQLEN),
            floats(dd.into(), &expected.dd, &naive.dd, DIM),
            floats(
                ddelta_bias.into(),
                &expected.ddelta_bias,
                &naive.ddelta_bias,
                DIM,
            ),
            floats(
                dinitial,
                &expected.dinitial_state,
                &naive.dinitial_state,
                STATES,
            ),
        ])
    }
}

/// Allows what arithmetic in f32 loses.
fn loosen(bound: &mut crate::measure::Bound, expected: &[f64]) {
    let largest = expected
        .iter()
        .fold(0.0_f64, |largest, x| largest.max(x.abs()));
    bound.max_abs += ARITHMETIC * largest;
    bound.rel_l2 = bound.rel_l2.map(|bound| bound + ARITHMETIC);
    bound.row_rel_l2 = bound.row_rel_l2.map(|bound| bound + 20.0 * ARITHMETIC);
}
