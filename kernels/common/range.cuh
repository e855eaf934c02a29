// Powers of two that keep the operands of f16 products in range.
//
// A state, or a product that is multiplied again, is a sum in f32 that may well exceed 65504, or be so
// small that f16 has few bits for it, although what comes of it is neither. Such operands are divided
// by a power of two, and the product is multiplied by it: exact. bf16 has the range of f32 and needs
// none of this.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_fp16.h>

namespace seqmix {

// Whether operands may exceed what Element can hold.
template <typename Element>
constexpr bool kNarrow = std::is_same_v<Element, __half>;

// Operands stay below this: half of the largest f16, which rounding may not reach either.
constexpr float kLargestOperand = 32768.f;

// 1, or what numbers up to `bound` must be divided by to stay below kLargestOperand.
__device__ __forceinline__ float excess(float bound) {
    const uint32_t power = __float_as_uint(bound) & 0x7f800000;  // the next power of two below
    return bound >= kLargestOperand ? __uint_as_float(power - (14 << 23)) : 1.f;
}

// The same, where it costs nothing to divide: numbers of which the largest are near `bound` come to
// lie right below kLargestOperand, also if they are small. No less than 2^-40, so that what is divided
// by it as well stays in the range of f32.
__device__ __forceinline__ float fitting(float bound) {
    const uint32_t power = __float_as_uint(bound) & 0x7f800000;
    return __uint_as_float(max(power, 101u << 23) - (14 << 23));
}

// A power of two above x and at most 2 x, but one that has an inverse.
__device__ __forceinline__ float power_above(float x) {
    const uint32_t power = __float_as_uint(x) & 0x7f800000;
    return __uint_as_float(min(power, 252u << 23) + (1 << 23));
}

// 1 / power, of a power of two.
__device__ __forceinline__ float inverse(float power) {
    return __uint_as_float((254 << 23) - __float_as_uint(power));
}

}  // namespace seqmix
