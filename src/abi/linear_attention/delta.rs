//! The kernels of the delta rule: parameters and tables.

use super::params::{Decays, Layer, Rows, States, WalkParams};
use super::{CHUNK, WARPS, Walk, walk};
use crate::abi::Dtype::{BF16, F16, F32};
use crate::abi::{Entry, Unit, params};

params! {
    /// Parameters of the kernels that walk over sequences by the delta rule.
    pub struct DeltaParams as "seqmix::linear_attention::DeltaParams"
        with [Rows, Decays, States, Layer, WalkParams] {
        /// As by the linear rule, in one segment a sequence.
        pub walk: WalkParams,
        /// `[batch, steps, heads]`
        pub beta: Rows,
        /// `[batch, steps, heads, dv]`: what each step's value differs by from what was found for its key, written; the
        /// outputs are then the updates, which are `beta` times that. Or none.
        pub errors: Rows,
    }
}

/// As [`WALK`](super::WALK), by the delta rule.
#[rustfmt::skip]
pub const DELTA: &[Walk] = &[
    //   dtype size tiles count stages
    walk(F16,   64, 1, 64, 2),
    walk(F16,  128, 2, 32, 2),
    walk(F16,  256, 1, 32, 2),
    walk(BF16,  64, 1, 64, 2),
    walk(BF16, 128, 2, 32, 2),
    walk(BF16, 256, 1, 32, 2),
    walk(F32,   64, 1, 32, 2),
    walk(F32,  128, 1, 32, 2),
    walk(F32,  256, 1, 32, 1),
];

impl Walk {
    /// Shared memory of a block of the kernel of the delta rule.
    pub const fn delta_shared_bytes(&self) -> usize {
        // for each chunk a square matrix, and a triangular one in f32 whose rows are 96 bytes apart; two numbers
        // a step
        let triangles = self.count / CHUNK * CHUNK * 96;
        let inverses = self.squares_bytes() + triangles + 4 * 2 * self.count;
        self.shared_bytes() + inverses.next_multiple_of(128)
    }

    /// The kernel of this row of [`DELTA`].
    pub fn delta(&self) -> Entry {
        let Self {
            dtype,
            size,
            tiles,
            count,
            stages,
        } = *self;
        Entry {
            name: format!("linear_attention_delta_{}_n{size}", dtype.name()),
            instance: format!(
                "seqmix::linear_attention::Delta<{}, {size}, {tiles}, {count}, {stages}>",
                dtype.cpp()
            ),
            params: DeltaParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes: self.delta_shared_bytes(),
        }
    }
}

/// One unit a kernel, so that they compile in parallel.
pub(super) fn units() -> Vec<Unit> {
    let unit = |entry: Entry, header| Unit {
        name: entry.name.clone(),
        header,
        entries: vec![entry],
    };
    let walks = DELTA.iter().map(Walk::delta);
    walks
        .map(|entry| unit(entry, "linear_attention/delta.cuh"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_every_gpu_since_ampere() {
        for row in DELTA {
            // as the rows of WALK
            assert!(row.delta_shared_bytes() <= 99 << 10, "{}", row.delta().name);
        }
    }
}
