//! The tensor-core product with AVX2: what `matrix.rs` says in plain loops, eight columns at a time.

use std::arch::x86_64::{
    __m128, __m256, _mm_loadu_ps, _mm_loadu_si128, _mm_storeu_ps, _mm256_broadcast_ss,
    _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_permute2f128_ps, _mm256_set_m128,
    _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps,
};

use super::registers::{LANES, Registers};
use crate::ir::{Mma, Scalar};

const TILE: usize = 8;

/// Row `index` of the 8x8 tile that a register holds.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn row(words: &[u32; LANES], index: usize, kind: Scalar) -> __m256 {
    let four = &words[4 * index..4 * index + 4];
    // SAFETY: `four` is 16 bytes long.
    let halves = unsafe { _mm_loadu_si128(four.as_ptr().cast()) };
    match kind {
        Scalar::Bf16 => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))),
        _ => _mm256_cvtph_ps(halves),
    }
}

/// Rows to columns: pairs, then fours, then halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose(rows: [__m256; TILE]) -> [__m256; TILE] {
    let [a, b, c, d, e, f, g, h] = rows;
    let pairs = |x, y| (_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y));
    let ((ab, ab2), (cd, cd2), (ef, ef2), (gh, gh2)) =
        (pairs(a, b), pairs(c, d), pairs(e, f), pairs(g, h));
    let fours = |x, y| {
        (
            _mm256_shuffle_ps::<0x44>(x, y),
            _mm256_shuffle_ps::<0xee>(x, y),
        )
    };
    let ((l0, l1), (l2, l3)) = (fours(ab, cd), fours(ab2, cd2));
    let ((h0, h1), (h2, h3)) = (fours(ef, gh), fours(ef2, gh2));
    let low = |x, y| _mm256_permute2f128_ps::<0x20>(x, y);
    let high = |x, y| _mm256_permute2f128_ps::<0x31>(x, y);
    [
        low(l0, h0),
        low(l1, h1),
        low(l2, h2),
        low(l3, h3),
        high(l0, h0),
        high(l1, h1),
        high(l2, h2),
        high(l3, h3),
    ]
}

/// [`super::matrix::multiply`] for f32 accumulators.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply(r: &mut Registers, mma: &Mma) {
    // even columns, then odd columns: the order in which accumulators lie in their registers
    const ORDER: [usize; TILE] = [0, 2, 4, 6, 1, 3, 5, 7];
    let steps = usize::from(mma.k) / TILE;
    let mut b = [[_mm256_setzero_ps(); TILE]; 2];
    for (step, columns) in b.iter_mut().enumerate().take(steps) {
        let words = r.row(mma.b[step]);
        *columns = transpose(ORDER.map(|n| row(words, n, mma.kind)));
    }
    // D may lie in registers of A, B or C
    let mut out = [[0u32; LANES]; 4];
    for half in 0..2 {
        let mut a = [[0f32; TILE * TILE]; 2];
        for (step, tile) in a.iter_mut().enumerate().take(steps) {
            let words = r.row(mma.a[2 * step + half]);
            for index in 0..TILE {
                // SAFETY: the slice is eight floats long.
                unsafe {
                    _mm256_storeu_ps(
                        tile[TILE * index..TILE * (index + 1)].as_mut_ptr(),
                        row(words, index, mma.kind),
                    )
                };
            }
        }
        let (even, odd) = (2 * half, 2 * half + 1);
        let (c_even, c_odd) = (r.row(mma.c[even]), r.row(mma.c[odd]));
        let mut sums = [_mm256_setzero_ps(); TILE];
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_set_m128(four(c_odd, index), four(c_even, index));
        }
        // all rows at once: the host adds several while one waits for its last sum
        for (a, b) in a.iter().zip(&b).take(steps) {
            for (k, &column) in b.iter().enumerate() {
                for (index, sum) in sums.iter_mut().enumerate() {
                    let element = _mm256_broadcast_ss(&a[TILE * index + k]);
                    *sum = _mm256_fmadd_ps(element, column, *sum);
                }
            }
        }
        for (index, &sum) in sums.iter().enumerate() {
            let low = _mm256_castps256_ps128(sum);
            set_four(&mut out[even], index, low);
            let high = _mm256_extractf128_ps::<1>(sum);
            set_four(&mut out[odd], index, high);
        }
    }
    for (&slot, words) in mma.d.iter().zip(&out) {
        *r.row_mut(slot) = *words;
    }
}

/// Words 4 i to 4 i + 3 of a row, as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn four(words: &[u32; LANES], index: usize) -> __m128 {
    let four = &words[4 * index..4 * index + 4];
    // SAFETY: `four` is four words long, and any bits are a float.
    unsafe { _mm_loadu_ps(four.as_ptr().cast()) }
}

/// Sets words 4 i to 4 i + 3 of a row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn set_four(words: &mut [u32; LANES], index: usize, values: __m128) {
    let four = &mut words[4 * index..4 * index + 4];
    // SAFETY: `four` is four words long.
    unsafe { _mm_storeu_ps(four.as_mut_ptr().cast(), values) };
}
