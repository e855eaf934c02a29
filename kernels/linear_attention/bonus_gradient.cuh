// The gradient of the bonus, span by span: a channel's is the sum over all steps of its query times its
// key, by the product of the step's value with the gradient of its output.
//
// grid    x: spans of steps; y: heads; z: sequences
// thread  takes a channel at a time
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/warp.cuh"
#include "linear_attention/features.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/sum_heads.cuh"

namespace seqmix::linear_attention {

template <typename Element>
struct BonusGradient {
    static constexpr int kThreads = 128;
    struct Smem {};

    __device__ __forceinline__ static void run(const BonusGradientParams& params, Smem&) {
        const int sequence = static_cast<int>(blockIdx.z);
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, kSpan, sequence);
        const int first = static_cast<int>(blockIdx.x) * kSpan;
        const int count = min(all.steps - first, kSpan);
        if (count <= 0) {
            return;
        }
        const int head = static_cast<int>(blockIdx.y);
        const auto map = static_cast<FeatureMap>(params.map);
        const int64_t slot =
            span_slot(params.cu_seqlens, params.steps, kSpan, sequence) + blockIdx.x;
        float* out = params.parts + (slot * params.heads + head) * params.channels;
        for (int channel = thread_of_block(); channel < params.channels; channel += kThreads) {
            float sum = 0.f;
#pragma unroll 4
            for (int i = 0; i < count; ++i) {
                const int step = all.start + first + i;
                const auto mapped = [&](const Rows& rows) {
                    return mapped_number(row_at<const Element>(rows, step, head) + channel, map);
                };
                sum += *row_at<float>(params.own, step, head) * (mapped(params.q) * mapped(params.k));
            }
            out[channel] = sum;
        }
    }
};

}  // namespace seqmix::linear_attention
