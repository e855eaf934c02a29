//! Problems for the kernels of the scan without the library around them.

use cuda_emulator::Fault;
use half::f16;
use seqmix::abi::selective_scan::{
    Coefficient, Elements, ForwardParams, Scan, Segments, States, Vector,
};
use seqmix::reference::selective_scan as reference;

use crate::bare::{Bare, Buffers};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound, normal};
use crate::planted::Problem;

/// Channels of a block of the kernel.
const CHANNELS: usize = 64;

/// Elements between two rows.
const GAP: usize = 3;

/// A Mamba layer in f16 with all that there can be, for the kernel of 16 states. Rows lie along steps, or along
/// channels and states.
pub(super) struct Layer {
    dim: usize,
    seqlen: usize,
    states: usize,
    across: bool,
    /// Whether rows begin at multiples of 16 bytes.
    aligned: bool,
    /// Offsets of sequences as the kernel is told; none if empty.
    cu_seqlens: Vec<i32>,
    /// Of the segments of each sequence, what the kernel leaves behind is judged, instead of what it returns.
    segments: usize,
    inputs: Inputs,
    expected: Vec<(Vec<f64>, Bound)>,
}

/// u, delta and z `[dim, seqlen]`, B and C `[states, seqlen]`, A `[dim, states]`, D and delta_bias `[dim]`, and the
/// states before the scan `[sequences, dim, states]`.
struct Inputs {
    u: Vec<f16>,
    delta: Vec<f16>,
    z: Vec<f16>,
    b: Vec<f16>,
    c: Vec<f16>,
    a: Vec<f32>,
    d: Vec<f32>,
    delta_bias: Vec<f32>,
    initial_state: Vec<f32>,
}

fn widen<T: Number>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

impl Layer {
    /// One sequence.
    pub(super) fn new([dim, seqlen, states]: [usize; 3], across: bool, aligned: bool) -> Self {
        Self::of([dim, seqlen, states], across, aligned, Vec::new(), 1)
    }

    /// Sequences from `cu_seqlens`, the last of which ends with the steps, whatever its offset claims.
    pub(super) fn packed(sizes: [usize; 3], cu_seqlens: Vec<i32>) -> Self {
        Self::of(sizes, false, true, cu_seqlens, 1)
    }

    /// What each of several segments leaves behind.
    pub(super) fn ends(sizes: [usize; 3], segments: usize) -> Self {
        Self::of(sizes, false, true, Vec::new(), segments)
    }

    fn of(
        [dim, seqlen, states]: [usize; 3],
        across: bool,
        aligned: bool,
        cu_seqlens: Vec<i32>,
        segments: usize,
    ) -> Self {
        let sequences = cu_seqlens.len().saturating_sub(1).max(1);
        let halves = |seed, count| normal::<f16>(seed, count, 1.0);
        let floats = |seed, count| normal::<f32>(seed, count, 1.0);
        let a = floats(6, dim * states);
        let mut layer = Self {
            dim,
            seqlen,
            states,
            across,
            aligned,
            cu_seqlens,
            segments,
            inputs: Inputs {
                u: halves(1, dim * seqlen),
                delta: halves(2, dim * seqlen),
                z: halves(3, dim * seqlen),
                b: halves(4, states * seqlen),
                c: halves(5, states * seqlen),
                a: a.into_iter().map(|x| -x.exp()).collect(),
                d: floats(7, dim),
                delta_bias: floats(8, dim),
                initial_state: floats(9, sequences * dim * states),
            },
            expected: Vec::new(),
        };
        layer.expected = layer.expect();
        layer
    }

    /// What must come out, and how far from it a kernel may be.
    fn expect(&self) -> Vec<(Vec<f64>, Bound)> {
        let Inputs {
            u,
            delta,
            z,
            b,
            c,
            a,
            d,
            delta_bias,
            initial_state,
        } = &self.inputs;
        let steps = |x: &[f16], rows: usize, range: std::ops::Range<usize>| -> Vec<f64> {
            let row = |row: usize| widen(&x[row * self.seqlen..][range.clone()]);
            (0..rows).flat_map(row).collect()
        };
        let run = |range: std::ops::Range<usize>,
                   initial_state: Option<&[f64]>,
                   round: fn(f64) -> f64| {
            let of_u = |x| steps(x, self.dim, range.clone());
            let of_b = |x| steps(x, self.states, range.clone());
            let (u, delta, z, b, c) = (of_u(u), of_u(delta), of_u(z), of_b(b), of_b(c));
            let forward = reference::Forward {
                batch: 1,
                dim: self.dim,
                seqlen: range.len(),
                dstate: self.states,
                groups: 1,
                u: &u,
                delta: &delta,
                a: &widen(a),
                b: reference::Coefficient::Variable(&b),
                c: reference::Coefficient::Variable(&c),
                d: Some(&widen(d)),
                z: Some(&z),
                delta_bias: Some(&widen(delta_bias)),
                delta_softplus: true,
                initial_state,
                cu_seqlens: None,
                direction: reference::Direction::Forward,
            };
            forward.run_rounded(round).unwrap()
        };
        if self.segments > 1 {
            // whole tiles of 16 steps
            let tiles = self.seqlen.div_ceil(16).div_ceil(self.segments);
            let ends = (0..self.segments - 1).flat_map(|segment| {
                let range = segment * tiles * 16..(segment + 1) * tiles * 16;
                run(range, None, |x| x).last_state
            });
            let ends: Vec<f64> = ends.collect();
            return vec![(ends.clone(), within::<f32>(&ends, &ends))];
        }
        let offsets: Vec<usize> = match self.cu_seqlens.is_empty() {
            true => vec![0, self.seqlen],
            false => {
                let clamped = |&at: &i32| (at as usize).min(self.seqlen);
                self.cu_seqlens.iter().map(clamped).collect()
            }
        };
        let results = |round: fn(f64) -> f64| {
            let mut out = vec![0.0; self.dim * self.seqlen];
            let mut last_state = Vec::new();
            for (sequence, ends) in offsets.windows(2).enumerate() {
                let numbers = self.dim * self.states;
                let entering = widen(&initial_state[sequence * numbers..][..numbers]);
                let found = run(ends[0]..ends[1], Some(&entering), round);
                let steps = ends[1] - ends[0];
                for (channel, row) in found.out.chunks(steps.max(1)).enumerate() {
                    out[channel * self.seqlen + ends[0]..][..steps].copy_from_slice(row);
                }
                last_state.extend(found.last_state);
            }
            (out, last_state)
        };
        let (out, last_state) = results(|x| x);
        let (naive, _) = results(f16::round);
        vec![
            (out.clone(), within::<f16>(&out, &naive)),
            (last_state.clone(), within::<f32>(&last_state, &last_state)),
        ]
    }

    /// From one row to the next, in elements.
    fn pitch(&self, row: usize) -> usize {
        match self.aligned {
            true => (row + GAP).next_multiple_of(8),
            false => row + GAP,
        }
    }

    /// `rows` of `self.seqlen` as they lie in memory, with NaN between rows and nothing behind the last; and from one
    /// row and from one step to the next.
    fn lay(&self, x: &[f16], rows: usize) -> (Vec<f16>, i64, i64) {
        let (lines, line) = match self.across {
            true => (self.seqlen, rows),
            false => (rows, self.seqlen),
        };
        let pitch = self.pitch(line);
        let mut memory = vec![f16::NAN; (lines - 1) * pitch + line];
        for (at, &x) in x.iter().enumerate() {
            let (row, step) = (at / self.seqlen, at % self.seqlen);
            let (line, within) = if self.across {
                (step, row)
            } else {
                (row, step)
            };
            memory[line * pitch + within] = x;
        }
        match self.across {
            true => (memory, 1, pitch as i64),
            false => (memory, pitch as i64, 1),
        }
    }

    fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1).max(1)
    }

    fn elements(&self, buffers: &Buffers, x: &[f16]) -> Elements {
        let (memory, channel_stride, step_stride) = self.lay(x, self.dim);
        Elements {
            at: buffers.upload(&memory),
            batch_stride: 0,
            channel_stride,
            step_stride,
            vector: self.aligned.into(),
            dtype: 0,
        }
    }

    fn coefficient(&self, buffers: &Buffers, x: &[f16]) -> Coefficient {
        let (memory, state_stride, step_stride) = self.lay(x, self.states);
        Coefficient {
            at: buffers.upload(&memory),
            batch_stride: 0,
            group_stride: 0,
            state_stride,
            step_stride,
            vector: self.aligned.into(),
            kind: self.across.into(),
        }
    }

    fn states(&self, at: u64) -> States {
        let [dim, states] = [self.dim, self.states].map(|size| size as i64);
        States {
            at,
            sequence_stride: dim * states,
            channel_stride: states,
            state_stride: 1,
        }
    }
}

/// Twice what a naive run loses, one rounding, and what exponentials and sums in f32 do.
fn within<T: Number>(exact: &[f64], naive: &[f64]) -> Bound {
    let bound = bound::<T>(exact, naive, 1).unwrap();
    let largest = exact.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    Bound {
        max_abs: bound.max_abs + 2e-5 * largest,
        rel_l2: None,
        row_rel_l2: None,
    }
}

impl Problem for Layer {
    fn kernel(&self) -> &str {
        "selective_scan_forward_real_16"
    }

    fn grid(&self) -> [u32; 3] {
        let blocks = self.sequences() * self.dim.div_ceil(CHANNELS);
        let segments = (self.segments - 1).max(1);
        [blocks as u32, segments as u32, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let Inputs {
            u,
            delta,
            z,
            b,
            c,
            a,
            d,
            delta_bias,
            initial_state,
        } = &self.inputs;
        let buffers = Buffers::new();
        let numbers = self.sequences() * self.dim * self.states;
        let ends = self.segments > 1;
        let rows = self.segments * self.dim;
        let of_channels = |x: &[f32]| Vector {
            at: buffers.upload(x),
            stride: 1,
        };
        let cu_seqlens = match self.cu_seqlens.is_empty() {
            true => 0,
            false => buffers.upload(&self.cu_seqlens),
        };
        let unset = vec![f16::NAN; self.dim * self.seqlen];
        let out = self.elements(&buffers, &unset);
        let last_state = buffers.output::<f32>(numbers);
        let segments = Segments {
            states: buffers.output::<f32>(rows * self.states),
            deltas: buffers.output::<f32>(rows),
        };
        let params = ForwardParams {
            scan: Scan {
                u: self.elements(&buffers, u),
                delta: self.elements(&buffers, delta),
                z: self.elements(&buffers, z),
                a: self.states(buffers.upload(a)),
                b: self.coefficient(&buffers, b),
                c: self.coefficient(&buffers, c),
                skip: of_channels(d),
                delta_bias: of_channels(delta_bias),
                initial_state: self.states(buffers.upload(initial_state)),
                cu_seqlens,
                sequences: self.sequences() as i32,
                dim: self.dim as i32,
                seqlen: self.seqlen as i32,
                states: self.states as i32,
                groups: 1,
                segments: self.segments as i32,
                skip_dtype: 2,
                delta_bias_dtype: 2,
                softplus: 1,
                reverse: 0,
                along_channels: self.across.into(),
                checkpoint_bits: 0,
            },
            out: if ends { Elements::default() } else { out },
            ungated: Elements::default(),
            last_state: if ends {
                States::default()
            } else {
                self.states(last_state)
            },
            segments,
            checkpoints: 0,
            pass: ends.into(),
        };
        // SAFETY: the struct has no holes, as the tests of `seqmix::abi` check, and outlives the slice.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const params).cast::<u8>(), size_of_val(&params))
        };
        bare.launch(&buffers, bytes)?;
        let found = match ends {
            true => {
                let rows = (self.segments - 1) * self.dim;
                vec![widen(
                    &buffers.download::<f32>(segments.states, rows * self.states),
                )]
            }
            false => {
                let (memory, ..) = self.lay(&unset, self.dim);
                let memory = buffers.download::<f16>(out.at, memory.len());
                let at = |at: usize| {
                    let (channel, step) = (at / self.seqlen, at % self.seqlen);
                    channel * out.channel_stride as usize + step * out.step_stride as usize
                };
                let out = (0..self.dim * self.seqlen).map(|index| memory[at(index)].into());
                let states = buffers.download::<f32>(last_state, numbers);
                vec![out.collect(), widen(&states)]
            }
        };
        let verdicts = found.iter().zip(&self.expected);
        let verdicts =
            verdicts.map(|(found, (expected, bound))| Verdict::of(found, expected, 1, *bound));
        Ok(verdicts.collect())
    }
}
