// The product of two rows for each step: what its own value and the gradient of its output have in
// common, or its key and the gradient of that.
//
// grid    x: spans of steps; y: heads; z: sequences
// warp    takes a step at a time, its lanes the channels in turn
#pragma once

#include "common/operands.cuh"
#include "common/warp.cuh"
#include "linear_attention/features.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/sum_heads.cuh"

namespace seqmix::linear_attention {

template <typename Element>
struct RowProducts {
    static constexpr int kThreads = 256;
    static constexpr int kWarps = kThreads / 32;
    struct Smem {};

    __device__ __forceinline__ static void run(const RowProductsParams& params, Smem&) {
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, kSpan,
                                         static_cast<int>(blockIdx.z));
        const int first = static_cast<int>(blockIdx.x) * kSpan;
        const int steps = min(all.steps - first, kSpan);
        const int head = static_cast<int>(blockIdx.y);
        const auto map = static_cast<FeatureMap>(params.map);
#pragma unroll 1
        for (int i = warp_of_block(); i < steps; i += kWarps) {
            const int step = all.start + first + i;
            const Element* left = row_at<const Element>(params.left, step, head);
            const Element* right = row_at<const Element>(params.right, step, head);
            const float* wide = row_at<const float>(params.right, step, head);
            float sum = 0.f;
#pragma unroll 4
            for (int channel = lane_of_warp(); channel < params.channels; channel += 32) {
                const float other = params.wide != 0 ? wide[channel] : load(right + channel);
                sum += mapped_number(left + channel, map) * other;
            }
            sum = warp_sum(sum);
            if (lane_of_warp() == 0) {
                if (params.factors.at != nullptr) {
                    const float2 both = *reinterpret_cast<const float2*>(
                        row_at<const float>(params.factors, step, head));
                    sum = params.factor_scale * (sum * both.x + both.y);
                }
                *row_at<float>(params.products, step, head) = sum;
            }
        }
    }
};

}  // namespace seqmix::linear_attention
