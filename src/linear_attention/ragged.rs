//! By how many bytes rows can be copied. Pure.

use crate::abi::Dtype;
use crate::abi::linear_attention::{Layer, Rows};

/// Bytes of a copy of whole rows, and of the smaller one that is left where those do not fit.
const COPY: u64 = 16;
const SMALL_COPY: u64 = 4;

/// [`Layer::ragged`] of `layer` and of `others`, whose addresses are known.
pub(super) fn ragged(dtype: Dtype, layer: &Layer, others: &[Rows]) -> i32 {
    let channels = (layer.dk | layer.dv) as u64;
    // a power of two divides all of these if it divides their bits together
    let elements = [layer.q, layer.k, layer.v];
    let elements = elements.iter().chain(others);
    let rows = elements.fold(channels * dtype.bytes() as u64, |all, rows| {
        let strides = rows.batch_stride | rows.step_stride | rows.head_stride;
        all | rows.at | (strides as u64 * dtype.bytes() as u64)
    });
    let decays = &layer.decays;
    let numbers = match decays.channel_stride {
        0 => 0,
        _ => {
            let strides = decays.batch_stride | decays.step_stride | decays.head_stride;
            decays.at | ((layer.dk as u64 | strides as u64) * size_of::<f32>() as u64)
        }
    };
    match 1 << (rows | numbers).trailing_zeros().min(COPY.ilog2()) {
        COPY => 0,
        width => SMALL_COPY.min(width) as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::linear_attention::Decays;
    use Dtype::{BF16, F16, F32};

    fn rows(at: u64, head_stride: i64) -> Rows {
        Rows {
            at,
            batch_stride: 1024,
            step_stride: 256,
            head_stride,
            shared: 1,
        }
    }

    /// Of heads of 64 and 32 channels, but for what is given.
    fn layer(dk: i32, q: Rows, decays: Decays) -> Layer {
        Layer {
            q,
            k: rows(4096, 64),
            v: rows(8192, 32),
            decays,
            dk,
            dv: 32,
            ..Layer::default()
        }
    }

    #[test]
    fn rows_are_copied_by_what_divides_sizes_strides_and_addresses() {
        let none = Decays::default();
        let cases = [
            (F16, 64, rows(1024, 64), 0),
            (F16, 72, rows(1024, 72), 0),
            (F16, 100, rows(1024, 100), 4), // 200 bytes
            (BF16, 100, rows(1024, 128), 4),
            (F16, 98, rows(1024, 104), 4),
            (BF16, 64, rows(1028, 64), 4),
            (BF16, 64, rows(1026, 64), 2),
            (F16, 64, rows(1024, 65), 2),
            (F16, 7, rows(1024, 8), 2),
            (F32, 100, rows(1024, 100), 0), // 400 bytes
            (F32, 7, rows(1024, 8), 4),
            (F32, 64, rows(1028, 64), 4),
            (F32, 64, rows(1024, 66), 4),
        ];
        for (dtype, dk, q, expected) in cases {
            let found = ragged(dtype, &layer(dk, q, none), &[rows(0, 32)]);
            assert_eq!(found, expected, "{dtype:?} {dk} {q:?}");
        }
    }

    #[test]
    fn outputs_and_decays_of_channels_count_too() {
        let whole = rows(1024, 64);
        let of_channels = |at, head_stride| Decays {
            at,
            head_stride,
            channel_stride: 1,
            ..Decays::default()
        };
        for (decays, out, expected) in [
            (of_channels(16, 64), rows(16, 32), 0),
            (of_channels(20, 64), rows(16, 32), 4),
            (of_channels(16, 65), rows(16, 32), 4),
            (of_channels(16, 64), rows(18, 32), 2),
            (of_channels(16, 64), rows(16, 36), 4),
        ] {
            let found = ragged(F16, &layer(64, whole, decays), &[out]);
            assert_eq!(found, expected, "{decays:?} {out:?}");
        }
        let of_steps = Decays {
            channel_stride: 0,
            ..of_channels(20, 1)
        };
        assert_eq!(ragged(F16, &layer(64, whole, of_steps), &[]), 0);
    }
}
