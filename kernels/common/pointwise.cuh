// Functions of one number: softplus, sigmoid, and what is made of them.
#pragma once

#include "common/numeric.cuh"

namespace seqmix {

// exp(-|x|), from which softplus and sigmoid are made without overflow.
__device__ __forceinline__ float exp_of_minus_abs(float x) {
    constexpr float kLog2ERest = 1.92596299e-8f;  // log2(e) less its nearest float
    // exp(-128) is 0 in f32; a NaN stays one
    const float size = fabsf(x) > 128.f ? 128.f : fabsf(x);
    // the product in two parts: in one, its rounding would be a relative error of the result
    const float product = -size * kLog2E;
    const float rest = fmaf(-size, kLog2ERest, fmaf(-size, kLog2E, -product));
    const float y = exp2_approx(product);
    return fmaf(y, kLn2 * rest, y);
}

// log(1 + y) for y in [0, 1], with a relative error of 2^-23: lg2.approx has an absolute one, and step
// sizes are small. The polynomial equals log(1 + y) / y at the ten Chebyshev points.
__device__ __forceinline__ float log1p_of_fraction(float y) {
    float p = -0.00317605701f;
    p = fmaf(p, y, 0.0195425265f);
    p = fmaf(p, y, -0.0563736111f);
    p = fmaf(p, y, 0.105436236f);
    p = fmaf(p, y, -0.152696669f);
    p = fmaf(p, y, 0.196632743f);
    p = fmaf(p, y, -0.249516159f);
    p = fmaf(p, y, 0.333297104f);
    p = fmaf(p, y, -0.499998927f);
    p = fmaf(p, y, 1.f);
    return p * y;
}

// log(1 + exp(x))
__device__ __forceinline__ float softplus(float x) {
    return fmaxf(x, 0.f) + log1p_of_fraction(exp_of_minus_abs(x));
}

// 1 / (1 + exp(-x)), the derivative of softplus.
__device__ __forceinline__ float sigmoid(float x) {
    const float y = exp_of_minus_abs(x);
    return (x < 0.f ? y : 1.f) * reciprocal_approx(1.f + y);
}

// x sigmoid(x)
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// The derivative of silu, whose sigmoid is `s`.
__device__ __forceinline__ float silu_derivative(float x, float s) {
    return fmaf(x * s, 1.f - s, s);
}

__device__ __forceinline__ float silu_derivative(float x) {
    return silu_derivative(x, sigmoid(x));
}

}  // namespace seqmix
