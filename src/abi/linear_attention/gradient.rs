//! The kernels of gradients by the linear rule.

use super::{
    BonusGradientParams, CHUNK, DecayGradientParams,
    Gate::{self, Channel, Step},
    GradientWalkParams, HeadDecayParams, LastDecaysParams, NormalizerGradientParams,
    RowProductsParams, SumHeadsParams, SumSpansParams, WARPS, squares_bytes,
};
use crate::abi::{Dtype, Dtype::BF16, Dtype::F16, Dtype::F32, Entry, Params, Unit};

/// Steps between two borders where the gradients of decays begin anew.
pub const SPAN: usize = 64;

/// A tuned variant of the walks of gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientWalk {
    /// Type of all tensors but decays and states.
    pub dtype: Dtype,
    /// Columns of the tiles of the walk's queries and keys: serves up to so many channels.
    pub size: usize,
    /// Steps of a tile, of which a warp prepares 16.
    pub count: usize,
    /// Which decays it takes; those of channels belong to the walk's values, which are the layer's queries or keys.
    pub gate: Gate,
}

const fn walk(gate: Gate, dtype: Dtype, size: usize, count: usize) -> GradientWalk {
    GradientWalk {
        dtype,
        size,
        count,
        gate,
    }
}

/// No kernel exists that is not a row here, and no row without a kernel. Of the rows that fit a problem the
/// first is used.
#[rustfmt::skip]
pub const GRADIENT_WALK: &[GradientWalk] = &[
    //   gate     dtype size count
    walk(Step,    F16,   64, 64),
    walk(Step,    F16,  128, 32),
    walk(Step,    F16,  256, 32),
    walk(Step,    BF16,  64, 64),
    walk(Step,    BF16, 128, 32),
    walk(Step,    BF16, 256, 32),
    walk(Step,    F32,   64, 32),
    walk(Step,    F32,  128, 16), // a tile of 32 steps would fill what a block may have
    walk(Step,    F32,  256, 16),
    walk(Channel, F16,   64, 64),
    walk(Channel, F16,  128, 32),
    walk(Channel, F16,  256, 32),
    walk(Channel, BF16,  64, 64),
    walk(Channel, BF16, 128, 32),
    walk(Channel, BF16, 256, 32),
    walk(Channel, F32,   64, 32),
    walk(Channel, F32,  128, 16),
    walk(Channel, F32,  256, 16),
];

impl GradientWalk {
    /// Channels of the values of one block.
    pub const WIDTH: usize = WARPS * 16;

    /// Shared memory of a block.
    pub const fn shared_bytes(&self) -> usize {
        let Self {
            dtype, size, count, ..
        } = *self;
        let mut stage = dtype.bytes() * count * (2 * size + Self::WIDTH);
        let numbers = match self.gate {
            // four numbers and a unit a step, and one a chunk
            Step => 4 * count + 4 + count,
            // a number a step, one for each second; one a channel
            Channel => count + count / 2 + Self::WIDTH,
        };
        let mut squares = squares_bytes(dtype, count);
        if let Channel = self.gate {
            stage += 4 * count * (Self::WIDTH + 4);
            // scores of f16 are sums of two numbers
            if let F16 = dtype {
                squares *= 2;
            }
        }
        // of the normaliser two numbers a step, one a chunk and one a channel
        let normalizer = 2 * count + 4 + Self::WIDTH;
        let fade = (squares + 4 * numbers).next_multiple_of(128);
        (2 * stage + fade + 4 * normalizer).next_multiple_of(128)
    }

    /// The kernel of this row.
    pub fn entry(&self) -> Entry {
        let Self {
            dtype,
            size,
            count,
            gate,
        } = *self;
        let (name, cpp) = match gate {
            Step => ("step", "Step"),
            Channel => ("channel", "Row"),
        };
        Entry {
            name: format!(
                "linear_attention_gradient_walk_{name}_{}_n{size}",
                dtype.name()
            ),
            instance: format!(
                "seqmix::linear_attention::GradientWalk<{}, {size}, 1, {count}, \
                 seqmix::linear_attention::GradientGate::{cpp}>",
                dtype.cpp()
            ),
            params: GradientWalkParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes: self.shared_bytes(),
        }
    }
}

/// The dtypes of the kernels that are not walks.
pub const DTYPES: [Dtype; 3] = [F16, BF16, F32];

/// A kernel without shared memory, named `name` in kernel symbols and `cpp` in C++; of a type, or of none.
pub(super) fn plain(
    name: &str,
    cpp: &str,
    dtype: Option<Dtype>,
    params: Params,
    threads: u32,
) -> Entry {
    let (suffix, argument) = match dtype {
        Some(dtype) => (format!("_{}", dtype.name()), format!("<{}>", dtype.cpp())),
        None => Default::default(),
    };
    Entry {
        name: format!("linear_attention_{name}{suffix}"),
        instance: format!("seqmix::linear_attention::{cpp}{argument}"),
        params,
        threads,
        blocks: 1,
        shared_bytes: 1, // an empty struct of C++
    }
}

/// The kernel that adds the gradients of heads that share a tensor, of this type.
pub fn sum_heads(dtype: Dtype) -> Entry {
    plain(
        "sum_heads",
        "SumHeads",
        Some(dtype),
        SumHeadsParams::PARAMS,
        256,
    )
}

/// The kernel that computes the gradients of decays, from tensors of this type.
pub fn decay_gradient(dtype: Dtype) -> Entry {
    let threads = 64;
    Entry {
        shared_bytes: 4 * SPAN * (2 * threads as usize + 1),
        ..plain(
            "decay_gradient",
            "DecayGradient",
            Some(dtype),
            DecayGradientParams::PARAMS,
            threads,
        )
    }
}

/// The kernel that computes the gradients of decays that a head has for all steps, from tensors of this type.
pub fn head_decay(dtype: Dtype) -> Entry {
    let chunks = SPAN / CHUNK;
    Entry {
        shared_bytes: 4 * chunks * 2 * CHUNK * CHUNK,
        ..plain(
            "head_decay",
            "HeadDecay",
            Some(dtype),
            HeadDecayParams::PARAMS,
            32 * chunks as u32,
        )
    }
}

/// The kernel that computes the gradient of the bonus, from tensors of this type.
pub fn bonus_gradient(dtype: Dtype) -> Entry {
    plain(
        "bonus_gradient",
        "BonusGradient",
        Some(dtype),
        BonusGradientParams::PARAMS,
        128,
    )
}

/// The kernel that computes what the normaliser makes of the gradient of the output, of this type.
pub fn normalizer_gradient(dtype: Dtype) -> Entry {
    let params = NormalizerGradientParams::PARAMS;
    plain(
        "normalizer_gradient",
        "NormalizerGradient",
        Some(dtype),
        params,
        256,
    )
}

/// The kernel that multiplies two rows of each step, of this type.
pub fn row_products(dtype: Dtype) -> Entry {
    plain(
        "row_products",
        "RowProducts",
        Some(dtype),
        RowProductsParams::PARAMS,
        256,
    )
}

/// The kernel that adds products of keys with their gradients up to those of decays.
pub fn last_decays() -> Entry {
    let threads = 256;
    Entry {
        shared_bytes: 4 * threads as usize / 32,
        ..plain(
            "last_decays",
            "LastDecays",
            None,
            LastDecaysParams::PARAMS,
            threads,
        )
    }
}

/// The kernel that adds the sums of spans.
pub fn sum_spans() -> Entry {
    plain("sum_spans", "SumSpans", None, SumSpansParams::PARAMS, 32)
}

pub(super) fn units() -> Vec<Unit> {
    let unit = |entry: Entry, header| Unit {
        name: entry.name.clone(),
        header,
        entries: vec![entry],
    };
    let mut units = vec![
        unit(sum_spans(), "linear_attention/sum_spans.cuh"),
        unit(last_decays(), "linear_attention/last_decays.cuh"),
    ];
    for dtype in DTYPES {
        units.push(unit(sum_heads(dtype), "linear_attention/sum_heads.cuh"));
        units.push(unit(
            bonus_gradient(dtype),
            "linear_attention/bonus_gradient.cuh",
        ));
        units.push(unit(
            normalizer_gradient(dtype),
            "linear_attention/normalizer_gradient.cuh",
        ));
        units.push(unit(
            row_products(dtype),
            "linear_attention/row_products.cuh",
        ));
        units.push(unit(
            decay_gradient(dtype),
            "linear_attention/decay_gradient.cuh",
        ));
        units.push(unit(head_decay(dtype), "linear_attention/head_decay.cuh"));
    }
    for row in GRADIENT_WALK {
        units.push(unit(row.entry(), "linear_attention/gradient_walk.cuh"));
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_every_gpu_since_ampere() {
        for row in GRADIENT_WALK {
            let entry = row.entry();
            assert!(entry.shared_bytes <= 99 << 10, "{}", entry.name);
        }
    }

    #[test]
    fn each_gate_and_dtype_has_each_size_once_and_in_order() {
        for gate in Gate::ALL {
            for dtype in DTYPES {
                let rows = GRADIENT_WALK.iter();
                let rows = rows.filter(|row| row.gate == gate && row.dtype == dtype);
                let sizes: Vec<usize> = rows.map(|row| row.size).collect();
                assert_eq!(sizes, [64, 128, 256], "{gate:?} {dtype:?}");
            }
        }
    }

    #[test]
    fn a_row_spells_its_kernel() {
        let entry = walk(Channel, BF16, 128, 32).entry();
        assert_eq!(
            entry.name,
            "linear_attention_gradient_walk_channel_bf16_n128"
        );
        assert_eq!(
            entry.instance,
            "seqmix::linear_attention::GradientWalk<__nv_bfloat16, 128, 1, 32, \
             seqmix::linear_attention::GradientGate::Row>"
        );
        assert_eq!((entry.threads, entry.shared_bytes), (128, 60_544));
    }
}
