// The gate: silu(z) = z / (1 + exp(-z)), and its derivative.
#pragma once

#include "common/numeric.cuh"

namespace seqmix::ssd {

__device__ __forceinline__ float sigmoid(float x) {
    constexpr float kLog2e = 1.44269504088896f;
    return reciprocal_approx(1.f + exp2_approx(-kLog2e * x));
}

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// The derivative of silu, given s = sigmoid(x).
__device__ __forceinline__ float silu_derivative(float x, float s) {
    return s * (1.f + x * (1.f - s));
}

}  // namespace seqmix::ssd
