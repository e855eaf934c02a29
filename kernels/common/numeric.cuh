// Arithmetic of the element types, and the exponentials of the special function unit.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace seqmix {

// Two floats, rounded to nearest even, as one register of 16-bit elements; `low` has the lower
// address. cvt.rn.f16x2.f32 or cvt.rn.bf16x2.f32.
template <typename Element>
__device__ __forceinline__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// The two elements of one register, as floats.
template <typename Element>
__device__ __forceinline__ void unpack(float& low, float& high, uint32_t both);

template <>
__device__ __forceinline__ void unpack<__half>(float& low, float& high, uint32_t both) {
    low = __half2float(__ushort_as_half(static_cast<unsigned short>(both)));
    high = __half2float(__ushort_as_half(static_cast<unsigned short>(both >> 16)));
}

// A bfloat16 is the upper half of a float.
template <>
__device__ __forceinline__ void unpack<__nv_bfloat16>(float& low, float& high, uint32_t both) {
    low = __uint_as_float(both << 16);
    high = __uint_as_float(both & 0xffff0000);
}

constexpr float kLog2E = 1.44269504088896f;
constexpr float kLn2 = 0.693147180559945f;

// 2^x with a relative error of 2^-22; 0 for -inf and where the result is subnormal.
// ex2.approx.ftz.f32
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// log2(x) with an absolute error of 2^-22 near 1, a relative one elsewhere; -inf for 0.
// lg2.approx.ftz.f32
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// sin(x) with an absolute error of 2^-21 for x in [-pi, pi]. sin.approx.ftz.f32
__device__ __forceinline__ float sin_approx(float x) {
    float y;
    asm("sin.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// cos(x) with an absolute error of 2^-21 for x in [-pi, pi]. cos.approx.ftz.f32
__device__ __forceinline__ float cos_approx(float x) {
    float y;
    asm("cos.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x with a relative error of 2^-23. rcp.approx.ftz.f32
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace seqmix
