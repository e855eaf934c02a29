//! Elements of the operands of wgmma: bytes to values.

use half::{bf16, f16};

use crate::ir::MatrixElement;

impl MatrixElement {
    /// The values of as many elements as `out` has.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let halves = || bytes.chunks_exact(2).map(|half| [half[0], half[1]]);
        match self {
            MatrixElement::F16 => {
                for (out, half) in out.iter_mut().zip(halves()) {
                    *out = f16::from_le_bytes(half).to_f32();
                }
            }
            MatrixElement::Bf16 => {
                for (out, half) in out.iter_mut().zip(halves()) {
                    *out = bf16::from_le_bytes(half).to_f32();
                }
            }
            _ => {
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(self.bytes())) {
                    *out = self.value(bytes);
                }
            }
        }
    }

    /// The value of an element's bytes.
    pub(super) fn value(self, bytes: &[u8]) -> f32 {
        let half = || u16::from_le_bytes([bytes[0], bytes[1]]);
        match self {
            MatrixElement::F16 => f16::from_bits(half()).to_f32(),
            MatrixElement::Bf16 => bf16::from_bits(half()).to_f32(),
            MatrixElement::Tf32 => {
                let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                // the low 13 bits are not read
                f32::from_bits(bits & !0x1fff)
            }
            MatrixElement::E4m3 => e4m3(bytes[0]),
            // the upper byte of an f16
            MatrixElement::E5m2 => f16::from_bits(u16::from(bytes[0]) << 8).to_f32(),
            MatrixElement::S8 => f32::from(bytes[0] as i8),
            MatrixElement::U8 => f32::from(bytes[0]),
        }
    }
}

/// Four bits of exponent with bias 7, three of mantissa, no infinities; all ones is NaN.
fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let value = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 != 0 { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_have_their_range() {
        for (bits, value) in [
            (0x00, 0.0),
            (0x01, 1.0 / 512.0),
            (0x08, 1.0 / 64.0),
            (0x38, 1.0),
            (0xb9, -1.125),
            (0x7e, 448.0),
        ] {
            assert_eq!(e4m3(bits), value, "{bits:#x}");
        }
        assert!(e4m3(0xff).is_nan());
        assert_eq!(MatrixElement::E5m2.value(&[0x7b]), 57344.0);
        assert_eq!(MatrixElement::E5m2.value(&[0xfc]), f32::NEG_INFINITY);
    }
}
