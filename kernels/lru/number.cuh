// Complex numbers, in f32 and as tensors hold them.
#pragma once

#include <cstdint>

#include "common/numeric.cuh"

namespace seqmix::lru {

__device__ __forceinline__ float2 added(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }

// sum + a b
__device__ __forceinline__ float2 add_product(float2 sum, float2 a, float2 b) {
    return {fmaf(a.x, b.x, fmaf(-a.y, b.y, sum.x)), fmaf(a.x, b.y, fmaf(a.y, b.x, sum.y))};
}
__device__ __forceinline__ float2 product(float2 a, float2 b) {
    return {fmaf(a.x, b.x, -a.y * b.y), fmaf(a.x, b.y, a.y * b.x)};
}
__device__ __forceinline__ float2 conjugate(float2 a) { return {a.x, -a.y}; }

// exp(a). Its angle goes through as many steps as the state remembers: it is taken in half turns, in two
// parts, so that sine and cosine are those of the f32 that was given, and not of one rounded once more.
__device__ __forceinline__ float2 exp_of(float2 a) {
    constexpr float kPi = 3.14159265358979f;
    constexpr float kInverse = 0.318309886183791f;
    constexpr float kInverseRest = 1.28412766e-8f;  // 1 / pi less its nearest float
    const float turns = a.y * kInverse;
    const float rest = kPi * fmaf(a.y, kInverseRest, fmaf(a.y, kInverse, -turns));
    float sine, cosine;
    sincospif(turns, &sine, &cosine);
    const float size = expf(a.x);
    return {size * fmaf(-sine, rest, cosine), size * fmaf(cosine, rest, sine)};
}

// Two elements that lie side by side.
template <typename Element>
struct PairOf {
    using Bits = uint32_t;
    __device__ __forceinline__ static float2 widen(Bits bits) {
        float2 number;
        unpack<Element>(number.x, number.y, bits);
        return number;
    }
    __device__ __forceinline__ static Bits narrow(float2 number) {
        return pack<Element>(number.x, number.y);
    }
};
template <>
struct PairOf<float> {
    using Bits = float2;
    __device__ __forceinline__ static float2 widen(Bits bits) { return bits; }
    __device__ __forceinline__ static Bits narrow(float2 number) { return number; }
};

}  // namespace seqmix::lru
