// Adds the gradients of the heads that share a query, a key or a value, in order, with what a step's
// own key and value, or those of its neighbour, give; and goes back through the feature map.
//
// grid    x: spans of steps; y: heads of the tensor; z: sequences
// thread  takes two neighbouring channels of a step at a time, or one where pairs would not be aligned
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

// Two neighbours; or if `Width` is 1 the number itself, and 0.
template <int Width, typename Element>
__device__ __forceinline__ float2 neighbours(const Element* at) {
    if constexpr (Width == 2) {
        return part<Element>(*reinterpret_cast<const Pair<Element>*>(at));
    } else {
        return make_float2(load(at), 0.f);
    }
}

// The same as the walks see them: mapped and rounded.
template <int Width, typename Element>
__device__ __forceinline__ float2 mapped_neighbours(const Element* at, FeatureMap map) {
    const float2 both = neighbours<Width>(at);
    return part<Element>(join<Element>(map_of(map, both.x), map_of(map, both.y)));
}

// A number, likewise.
template <typename Element>
__device__ __forceinline__ float mapped_number(const Element* at, FeatureMap map) {
    return part<Element>(join<Element>(map_of(map, load(at)), 0.f)).x;
}

// Writes a number, rounded.
template <typename Element>
__device__ __forceinline__ void put(Element* to, float number) {
    if constexpr (sizeof(Element) == 4) {
        *to = number;
    } else {
        *reinterpret_cast<uint16_t*>(to) =
            static_cast<uint16_t>(pack<Element>(number, 0.f));
    }
}

template <typename Element>
struct SumHeads {
    static constexpr int kThreads = 256;
    struct Smem {};

    __device__ __forceinline__ static void run(const SumHeadsParams& params, Smem&) {
        if (params.single != 0) {
            add<1>(params);
        } else {
            add<2>(params);
        }
    }

    // `Width` channels at a time.
    template <int Width>
    __device__ __forceinline__ static void add(const SumHeadsParams& params) {
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, kSpan,
                                         static_cast<int>(blockIdx.z));
        const int first = static_cast<int>(blockIdx.x) * kSpan;
        const int of_row = params.channels / Width;
        const int count = min(all.steps - first, kSpan) * of_row;
        const auto map = static_cast<FeatureMap>(params.map);
        const int head = static_cast<int>(blockIdx.y);
#pragma unroll 1
        for (int i = thread_of_block(); i < count; i += kThreads) {
            const int step = all.start + first + i / of_row;
            const int channel = Width * (i % of_row);
            float2 sum = make_float2(0.f, 0.f);
#pragma unroll 1
            for (int j = head * params.heads; j < (head + 1) * params.heads; ++j) {
                const float2 both =
                    neighbours<Width>(row_at<const float>(params.parts, step, j) + channel);
                sum.x += both.x;
                sum.y += both.y;
                if (params.more.at != nullptr) {
                    const float2 rest =
                        neighbours<Width>(row_at<const float>(params.more, step, j) + channel);
                    sum.x += rest.x;
                    sum.y += rest.y;
                }
                const auto add_product = [&](const Rows& scores, int of, int with,
                                             const float* bonus) {
                    const float score = params.scale * *row_at<float>(scores, of, j);
                    const float2 other = mapped_neighbours<Width>(
                        row_at<const Element>(params.other, with, j) + channel, map);
                    sum.x += score * (bonus == nullptr ? 1.f : bonus[0]) * other.x;
                    sum.y += score * (bonus == nullptr ? 1.f : bonus[Width - 1]) * other.y;
                };
                if (params.own.at != nullptr) {
                    add_product(params.own, step, step,
                                params.bonus == nullptr
                                    ? nullptr
                                    : params.bonus + j * params.bonus_stride + channel);
                }
                const int neighbour = step + params.neighbour;
                if (params.near.at != nullptr && neighbour >= all.start &&
                    neighbour < all.start + all.steps) {
                    add_product(params.near, max(step, neighbour), neighbour, nullptr);
                }
            }
            if (params.x.at != nullptr) {
                const float2 x =
                    neighbours<Width>(row_at<const Element>(params.x, step, head) + channel);
                sum.x *= slope_of(map, x.x);
                sum.y *= slope_of(map, x.y);
            }
            Element* to = row_at<Element>(params.out, step, head) + channel;
            if constexpr (Width == 2) {
                *reinterpret_cast<Pair<Element>*>(to) = join<Element>(sum.x, sum.y);
            } else {
                put(to, sum.x);
            }
        }
    }
};

}  // namespace seqmix::linear_attention
