// What the normaliser makes of the gradient of each step's output, before the walks.
//
// An output is a sum that is divided by n + eps, and n the same sum of values that are 1. So the
// gradient of the sum is that of the output divided by n + eps, and the gradient of n the negative
// product of that with the output.
//
// A walk of the forward pass takes no factors (src/linear_attention/backward_channels.rs). For it the
// gradient of the output is written once more, times its factor. f16 has not the range of factors: there the
// queries, which it meets in that walk, are written as well, and have half of the factor's exponent.
//
// grid    x: spans of steps; y: heads; z: sequences
// warp    takes a step at a time, its lanes the channels in turn
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/features.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/sum_heads.cuh"

namespace seqmix::linear_attention {

template <typename Element>
struct NormalizerGradient {
    static constexpr int kThreads = 256;
    static constexpr int kWarps = kThreads / 32;
    struct Smem {};

    __device__ __forceinline__ static void run(const NormalizerGradientParams& params, Smem&) {
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, kSpan,
                                         static_cast<int>(blockIdx.z));
        const int first = static_cast<int>(blockIdx.x) * kSpan;
        const int steps = min(all.steps - first, kSpan);
        const int head = static_cast<int>(blockIdx.y);
#pragma unroll 1
        for (int i = warp_of_block(); i < steps; i += kWarps) {
            const int step = all.start + first + i;
            const Element* out = row_at<const Element>(params.out, step, head);
            const Element* dout = row_at<const Element>(params.dout, step, head);
            float sum = 0.f;
#pragma unroll 4
            for (int channel = lane_of_warp(); channel < params.channels; channel += 32) {
                sum += load(out + channel) * load(dout + channel);
            }
            sum = warp_sum(sum);
            const float factor =
                1.f / (*row_at<const float>(params.normalizer, step, head) + params.eps);
            if (lane_of_warp() == 0) {
                *reinterpret_cast<float2*>(row_at<float>(params.factors, step, head)) =
                    make_float2(factor, -sum * factor);
            }
            if (params.weighted.at != nullptr) {
                weigh(params, step, head, factor * params.scale);
            }
        }
    }

    // Writes the rows of a step that have its factor.
    __device__ __forceinline__ static void weigh(const NormalizerGradientParams& params, int step,
                                                 int head, float factor) {
        const Element* dout = row_at<const Element>(params.dout, step, head);
        Element* weighted = row_at<Element>(params.weighted, step, head);
        const float power = params.balanced.at != nullptr ? root_of_power(factor) : 1.f;
        const float rest = factor * inverse(power);
#pragma unroll 4
        for (int channel = lane_of_warp(); channel < params.channels; channel += 32) {
            put(weighted + channel, load(dout + channel) * rest);
        }
        if (params.balanced.at == nullptr) {
            return;
        }
        const auto map = static_cast<FeatureMap>(params.map);
        const Element* q = row_at<const Element>(params.q, step, head);
        Element* balanced = row_at<Element>(params.balanced, step, head);
#pragma unroll 4
        for (int channel = lane_of_warp(); channel < params.keys; channel += 32) {
            put(balanced + channel, map_of(map, load(q + channel)) * power);
        }
    }

    // A power of two with half of the exponent of x.
    __device__ __forceinline__ static float root_of_power(float x) {
        const int exponent = static_cast<int>(__float_as_uint(x) >> 23 & 0xff) - 127;
        return __uint_as_float((exponent / 2 + 127) << 23);
    }
};

}  // namespace seqmix::linear_attention
