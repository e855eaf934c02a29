// Adds the gradients of the heads that share a query, a key or a value, in order, with what a step's
// own key and value give; and goes back through the feature map.
//
// grid    x: spans of steps; y: heads of the tensor; z: sequences
// thread  takes two neighbouring channels of a step at a time
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/warp.cuh"
#include "linear_attention/features.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"

namespace seqmix::linear_attention {

// The address of a step's row of a head of the block's sequence.
template <typename Element>
__device__ __forceinline__ Element* row_at(const Rows& rows, int step, int head) {
    return static_cast<Element*>(rows.at) + blockIdx.z * rows.batch_stride +
           step * rows.step_stride + head / static_cast<int>(rows.shared) * rows.head_stride;
}

// Two neighbours, as the walks see them: mapped and rounded.
template <typename Element>
__device__ __forceinline__ float2 mapped_pair(const Element* at, FeatureMap map) {
    const float2 both = part<Element>(*reinterpret_cast<const Pair<Element>*>(at));
    return part<Element>(join<Element>(map_of(map, both.x), map_of(map, both.y)));
}

// A number, likewise.
template <typename Element>
__device__ __forceinline__ float mapped_number(const Element* at, FeatureMap map) {
    return part<Element>(join<Element>(map_of(map, load(at)), 0.f)).x;
}

template <typename Element>
struct SumHeads {
    static constexpr int kThreads = 256;
    struct Smem {};

    __device__ __forceinline__ static void run(const SumHeadsParams& params, Smem&) {
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, kSpan,
                                         static_cast<int>(blockIdx.z));
        const int first = static_cast<int>(blockIdx.x) * kSpan;
        const int pairs = params.channels / 2;
        const int count = min(all.steps - first, kSpan) * pairs;
        const auto map = static_cast<FeatureMap>(params.map);
        const int head = static_cast<int>(blockIdx.y);
#pragma unroll 1
        for (int i = thread_of_block(); i < count; i += kThreads) {
            const int step = all.start + first + i / pairs;
            const int channel = 2 * (i % pairs);
            float2 sum = make_float2(0.f, 0.f);
#pragma unroll 1
            for (int j = head * params.heads; j < (head + 1) * params.heads; ++j) {
                const float* part = row_at<float>(params.parts, step, j) + channel;
                const float2 both = *reinterpret_cast<const float2*>(part);
                sum.x += both.x;
                sum.y += both.y;
                if (params.more.at != nullptr) {
                    const float2 rest = *reinterpret_cast<const float2*>(
                        row_at<float>(params.more, step, j) + channel);
                    sum.x += rest.x;
                    sum.y += rest.y;
                }
                if (params.own.at != nullptr) {
                    const float own = params.scale * *row_at<float>(params.own, step, j);
                    const float2 other = mapped_pair(
                        row_at<const Element>(params.other, step, j) + channel, map);
                    float2 factor = make_float2(own, own);
                    if (params.bonus != nullptr) {
                        const float* bonus = params.bonus + j * params.bonus_stride + channel;
                        factor.x *= bonus[0];
                        factor.y *= bonus[1];
                    }
                    sum.x += factor.x * other.x;
                    sum.y += factor.y * other.y;
                }
            }
            if (params.x.at != nullptr) {
                const float2 x = seqmix::part<Element>(*reinterpret_cast<const Pair<Element>*>(
                    row_at<const Element>(params.x, step, head) + channel));
                sum.x *= slope_of(map, x.x);
                sum.y *= slope_of(map, x.y);
            }
            *reinterpret_cast<Pair<Element>*>(row_at<Element>(params.out, step, head) + channel) =
                join<Element>(sum.x, sum.y);
        }
    }
};

}  // namespace seqmix::linear_attention
