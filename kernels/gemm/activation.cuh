// Activations and their derivatives, in f32.
#pragma once

#include "common/pointwise.cuh"
#include "gemm/params.h"

namespace seqmix::gemm {

// gelu by tanh is x sigmoid(2 u): 0.5 (1 + tanh u) = 1 / (1 + e^-2u),  u = sqrt(2/pi) (x + 0.044715 x^3)
constexpr float kTwiceRoot = 1.5957691216057308f;
constexpr float kCubic = 0.044715f;

__device__ __forceinline__ float activate(float x, int activation) {
    switch (activation) {
        case kRelu:
            return x < 0.f ? 0.f : x;  // a NaN stays
        case kGeluTanh:
            return x * sigmoid(kTwiceRoot * (x + kCubic * x * x * x));
        case kGeluErf:
            return 0.5f * x * (1.f + erff(x * 0.7071067811865476f));
        case kSilu:
            return silu(x);
        default:
            return x;
    }
}

// The derivative at x.
__device__ __forceinline__ float derivative(float x, int activation) {
    switch (activation) {
        case kRelu:
            return x > 0.f ? 1.f : x <= 0.f ? 0.f : x;  // a NaN stays
        case kGeluTanh: {
            // beyond 10 the sigmoid is 0 or 1; x itself may be so large that its square is not finite
            const float near = fminf(fmaxf(x, -10.f), 10.f);
            const float s = sigmoid(kTwiceRoot * (x + kCubic * x * x * x));
            const float slope = kTwiceRoot * (1.f + 3.f * kCubic * near * near);
            return s + near * slope * s * (1.f - s);
        }
        case kGeluErf: {
            constexpr float kDensity = 0.3989422804014327f;  // 1 / sqrt(2 pi)
            const float near = fminf(fmaxf(x, -20.f), 20.f);
            return 0.5f * (1.f + erff(x * 0.7071067811865476f)) +
                   near * kDensity * exp2_approx(-0.5f * kLog2E * near * near);
        }
        case kSilu: {
            return silu_derivative(x);
        }
        default:
            return 1.f;
    }
}

}  // namespace seqmix::gemm
