//! The kernels of the delta rule: parameters and tables.

use super::Gate::{Channel, Step};
use super::params::{Decays, Layer, Rows, States, WalkParams};
use super::{CHUNK, WARPS, Walk, squares_bytes, walk};
use crate::abi::Dtype::{BF16, F16, F32};
use crate::abi::{Dtype, Entry, Unit, params};

params! {
    /// Parameters of the kernels that walk over sequences by the delta rule.
    pub struct DeltaParams as "seqmix::linear_attention::DeltaParams"
        with [Rows, Decays, States, Layer, WalkParams] {
        /// As by the linear rule.
        pub walk: WalkParams,
        /// `[batch, steps, heads]`
        pub beta: Rows,
        /// `[batch, steps, heads, dv]`: what each step's value differs by from what was found for its key, written; the
        /// outputs are then the updates, which are `beta` times that. Or none.
        pub errors: Rows,
        /// 1: segments begin with the identity, and there are no values; by [`Mode::States`](super::Mode).
        pub identity: i32,
        /// To a multiple of 8 bytes.
        pub padding: i32,
    }
}

params! {
    /// Parameters of the walks that compute the gradients of what the delta rule writes, from the last step to the
    /// first.
    pub struct DeltaGradientParams as "seqmix::linear_attention::DeltaGradientParams"
        with [Rows, Decays, States, Layer, WalkParams, DeltaParams] {
        /// Queries are the layer's keys, keys its queries, values the gradient of its output, and states the gradients
        /// of its states. `errors` is read, and `out` the gradient of the values.
        pub delta: DeltaParams,
        /// `[batch, steps, heads, dv]` in f32, written: the gradient of the values once more; or none.
        pub parts: Rows,
        /// `[part, batch, steps, heads]` in f32, written: what each warp of channels adds to the gradients of beta.
        pub betas: Rows,
        /// Numbers from one part to the next.
        pub betas_stride: i64,
    }
}

params! {
    /// Parameters of the kernel that passes states from segment to segment by the delta rule.
    pub struct DeltaCarryParams as "seqmix::linear_attention::DeltaCarryParams" with [States] {
        /// Before each sequence, or none: zeros.
        pub initial: States,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// Address of `[slot, head, dk, dv]` in f32: the states after segments that begin with zeros; afterwards those
        /// before each segment.
        pub segments: u64,
        /// Address of `[slot, head, dk, dk]` in f32: what segments multiply the state before them by.
        pub transitions: u64,
        /// As in [`Layer`].
        pub steps: i32,
        /// Heads.
        pub heads: i32,
        /// Channels of the keys.
        pub dk: i32,
        /// Channels of the values.
        pub dv: i32,
        /// Steps of a segment.
        pub segment: i32,
        /// To a multiple of 8 bytes.
        pub padding: i32,
    }
}

params! {
    /// Parameters of the kernel that adds the parts of the gradients of beta.
    pub struct SumBetasParams as "seqmix::linear_attention::SumBetasParams" with [Rows] {
        /// `[part, batch, steps, heads]` in f32
        pub parts: Rows,
        /// `[batch, steps, heads]`, written.
        pub out: Rows,
        /// Numbers from one part to the next.
        pub part_stride: i64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Heads.
        pub heads: i32,
        /// Parts.
        pub count: i32,
        /// To a multiple of 8 bytes.
        pub padding: i32,
    }
}

/// Numbers that the scores of a chunk pass through where they are sums by pairs of steps.
const SCORES: usize = 22 * CHUNK;

/// As [`WALK`](super::WALK), by the delta rule.
#[rustfmt::skip]
pub const DELTA: &[Walk] = &[
    //   gate   dtype size tiles count stages
    walk(Step,    F16,   64, 1, 64, 2),
    walk(Step,    F16,  128, 2, 32, 2),
    walk(Step,    F16,  256, 1, 32, 2),
    walk(Step,    BF16,  64, 1, 64, 2),
    walk(Step,    BF16, 128, 2, 32, 2),
    walk(Step,    BF16, 256, 1, 32, 2),
    walk(Step,    F32,   64, 1, 32, 2),
    walk(Step,    F32,  128, 1, 32, 2),
    walk(Step,    F32,  256, 1, 32, 1),
    // two of the four warps prepare a chunk
    walk(Channel, F16,   64, 1, 32, 2),
    walk(Channel, F16,  128, 2, 32, 1),
    walk(Channel, F16,  256, 1, 32, 1),
    walk(Channel, BF16,  64, 1, 32, 2),
    walk(Channel, BF16, 128, 2, 32, 1),
    walk(Channel, BF16, 256, 1, 32, 1),
    walk(Channel, F32,   64, 1, 32, 1),
    walk(Channel, F32,  128, 1, 32, 1),
    walk(Channel, F32,  256, 1, 16, 1),
];

/// As [`DELTA`], of the walks that compute gradients.
#[rustfmt::skip]
pub const DELTA_GRADIENTS: &[Walk] = &[
    //   gate   dtype size tiles count stages
    walk(Step,    F16,   64, 1, 64, 2),
    walk(Step,    F16,  128, 1, 32, 2), // two tiles of channels would spill
    walk(Step,    F16,  256, 1, 32, 2),
    walk(Step,    BF16,  64, 1, 64, 2),
    walk(Step,    BF16, 128, 1, 32, 2),
    walk(Step,    BF16, 256, 1, 32, 2),
    walk(Step,    F32,   64, 1, 32, 2),
    walk(Step,    F32,  128, 1, 32, 1),
    walk(Step,    F32,  256, 1, 32, 1),
    walk(Channel, F16,   64, 1, 32, 2),
    walk(Channel, F16,  128, 1, 32, 1),
    walk(Channel, F16,  256, 1, 32, 1),
    walk(Channel, BF16,  64, 1, 32, 2),
    walk(Channel, BF16, 128, 1, 32, 1),
    walk(Channel, BF16, 256, 1, 32, 1),
    walk(Channel, F32,   64, 1, 32, 1),
    walk(Channel, F32,  128, 1, 32, 1),
    walk(Channel, F32,  256, 1, 16, 1),
];

impl Walk {
    /// Shared memory of a block of the kernel of the delta rule.
    pub const fn delta_shared_bytes(&self) -> usize {
        let Self { size, count, .. } = *self;
        let bytes = self.dtype.bytes();
        let squares = squares_bytes(self.dtype, count);
        // for each chunk a square matrix, and a triangular one in f32 whose rows are 96 bytes apart; two numbers
        // a step
        let inverses = (squares + 96 * count + 4 * 2 * count).next_multiple_of(128);
        match self.gate {
            Step => self.shared_bytes() + inverses,
            Channel => {
                let row = bytes * (2 * size + self.width()) + 4 * size;
                // decays of chunks, and room for the scores of each; a factor and a unit a step
                let numbers = count / CHUNK * (size + SCORES) + 2 * count;
                // keys with the decays before them
                let lookups = bytes * count * size;
                let prepared = squares + inverses + lookups + 4 * numbers;
                self.stages * count * row + prepared.next_multiple_of(128)
            }
        }
    }

    /// The end of the names of the row's kernels, and their arguments in C++.
    fn delta_names(&self) -> (String, String) {
        let Self {
            dtype,
            size,
            tiles,
            count,
            stages,
            gate,
        } = *self;
        let (name, kind) = gate.names();
        let arguments = format!(
            "{}, {size}, {tiles}, {count}, {stages}, seqmix::linear_attention::Gate::{kind}",
            dtype.cpp()
        );
        (format!("{name}_{}_n{size}", dtype.name()), arguments)
    }

    /// The kernel of this row of [`DELTA`].
    pub fn delta(&self) -> Entry {
        let (name, arguments) = self.delta_names();
        Entry {
            name: format!("linear_attention_delta_{name}"),
            instance: format!("seqmix::linear_attention::Delta<{arguments}>"),
            params: DeltaParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes: self.delta_shared_bytes(),
        }
    }
}

impl Walk {
    /// Shared memory of a block of the kernel of gradients by the delta rule.
    pub const fn delta_gradients_shared_bytes(&self) -> usize {
        // E of a tile
        let errors = self.stages * self.dtype.bytes() * self.count * self.width();
        (self.delta_shared_bytes() + errors).next_multiple_of(128)
    }

    /// The kernel of this row of [`DELTA_GRADIENTS`].
    pub fn delta_gradients(&self) -> Entry {
        let (name, arguments) = self.delta_names();
        Entry {
            name: format!("linear_attention_delta_gradients_{name}"),
            instance: format!("seqmix::linear_attention::DeltaGradients<{arguments}>"),
            params: DeltaGradientParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes: self.delta_gradients_shared_bytes(),
        }
    }

    /// Warps that share the channels of `dv` in the kernels of this row.
    pub fn warps_of(&self, dv: usize) -> usize {
        dv.div_ceil(self.width()) * WARPS
    }
}

/// Steps of a block of [`sum_betas`].
pub const SUM_BETAS_STEPS: usize = 64;

/// The kernel that adds the parts of the gradients of beta, of this type.
pub fn sum_betas(dtype: Dtype) -> Entry {
    Entry {
        name: format!("linear_attention_delta_sum_betas_{}", dtype.name()),
        instance: format!("seqmix::linear_attention::SumBetas<{}>", dtype.cpp()),
        params: SumBetasParams::PARAMS,
        threads: 128,
        blocks: 1,
        shared_bytes: 1, // an empty struct of C++
    }
}

/// Channels of the values of a block of [`delta_carry`].
pub const DELTA_CARRY_COLUMNS: usize = 16;

/// The kernel that passes states from segment to segment.
pub fn delta_carry() -> Entry {
    let rows = 256; // the most channels of the keys
    Entry {
        name: "linear_attention_delta_carry".into(),
        instance: "seqmix::linear_attention::DeltaCarry".into(),
        params: DeltaCarryParams::PARAMS,
        threads: 256,
        blocks: 1,
        shared_bytes: 4 * 2 * rows * DELTA_CARRY_COLUMNS,
    }
}

/// One unit a kernel, so that they compile in parallel.
pub(super) fn units() -> Vec<Unit> {
    let unit = |entry: Entry, header| Unit {
        name: entry.name.clone(),
        header,
        entries: vec![entry],
    };
    let mut units = Vec::new();
    for row in DELTA {
        units.push(unit(row.delta(), "linear_attention/delta.cuh"));
    }
    for row in DELTA_GRADIENTS {
        units.push(unit(
            row.delta_gradients(),
            "linear_attention/delta_gradients.cuh",
        ));
    }
    units.push(unit(delta_carry(), "linear_attention/delta_carry.cuh"));
    for dtype in [F16, BF16, F32] {
        units.push(unit(sum_betas(dtype), "linear_attention/sum_betas.cuh"));
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::linear_attention::Gate;

    #[test]
    fn each_dtype_and_gate_has_each_size_once_and_in_order() {
        for dtype in [F16, BF16, F32] {
            for gate in Gate::ALL {
                for rows in [DELTA, DELTA_GRADIENTS] {
                    let rows = rows.iter();
                    let rows = rows.filter(|row| row.dtype == dtype && row.gate == gate);
                    let sizes: Vec<usize> = rows.map(|row| row.size).collect();
                    assert_eq!(sizes, [64, 128, 256], "{dtype:?} {gate:?}");
                }
            }
        }
    }

    #[test]
    fn rows_fit_every_gpu_since_ampere() {
        for row in DELTA {
            // as the rows of WALK
            assert!(row.delta_shared_bytes() <= 99 << 10, "{}", row.delta().name);
        }
        for row in DELTA_GRADIENTS {
            let entry = row.delta_gradients();
            assert!(entry.shared_bytes <= 99 << 10, "{}", entry.name);
        }
    }
}
