// What the normaliser makes of the gradient of each step's output, before the walks.
//
// An output is a sum that is divided by n + eps, and n the same sum of values that are 1. So the
// gradient of the sum is that of the output divided by n + eps, and the gradient of n the negative
// product of that with the output.
//
// grid    x: spans of steps; y: heads; z: sequences
// warp    takes a step at a time, its lanes the channels in turn
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/warp.cuh"
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
            if (lane_of_warp() == 0) {
                const float factor =
                    1.f / (*row_at<const float>(params.normalizer, step, head) + params.eps);
                *reinterpret_cast<float2*>(row_at<float>(params.factors, step, head)) =
                    make_float2(factor, -sum * factor);
            }
        }
    }
};

}  // namespace seqmix::linear_attention
