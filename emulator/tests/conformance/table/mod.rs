//! The forms, a file a chapter.

pub(crate) mod atomic;
pub(crate) mod bits;
pub(crate) mod carry;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod exchange;
pub(crate) mod float;
pub(crate) mod half;
pub(crate) mod integer;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod video;

/// The low bits of a word as a number.
pub(crate) fn number(value: u64, bits: u32, signed: bool) -> i128 {
    let value = i128::from(value) & ((1 << bits) - 1);
    if signed && value >> (bits - 1) != 0 {
        value - (1 << bits)
    } else {
        value
    }
}

/// The least and the greatest number of so many bits.
pub(crate) fn range(bits: u32, signed: bool) -> (i128, i128) {
    match signed {
        true => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        false => (0, (1 << bits) - 1),
    }
}

/// `u32`, `s16` and so on.
pub(crate) fn name(bits: u32, signed: bool) -> String {
    format!("{}{bits}", if signed { 's' } else { 'u' })
}

/// The same type so many times.
pub(crate) fn times(kind: &str, count: usize) -> String {
    vec![kind; count].join(" ")
}
