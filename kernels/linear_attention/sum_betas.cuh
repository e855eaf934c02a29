// Adds what the warps of all slices add to the gradients of beta, in order.
//
// grid    x: spans of steps; z: sequences
// thread  takes a step of a head at a time
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/warp.cuh"
#include "linear_attention/delta_params.h"
#include "linear_attention/place.cuh"

namespace seqmix::linear_attention {

template <typename Element>
struct SumBetas {
    static constexpr int kThreads = 128;
    static constexpr int kSteps = 64;  // of a block

    struct Smem {};

    __device__ __forceinline__ static void run(const SumBetasParams& params, Smem&) {
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, kSteps,
                                         static_cast<int>(blockIdx.z));
        const int first = static_cast<int>(blockIdx.x) * kSteps;
        const int count = min(all.steps - first, kSteps) * params.heads;
        const auto offset = [&](const Rows& rows, int i) {
            return blockIdx.z * rows.batch_stride +
                   (all.start + first + i / params.heads) * rows.step_stride +
                   i % params.heads * rows.head_stride;
        };
#pragma unroll 1
        for (int i = thread_of_block(); i < count; i += kThreads) {
            const float* part = static_cast<const float*>(params.parts.at) + offset(params.parts, i);
            float sum = 0.f;
            for (int j = 0; j < params.count; ++j) {
                sum += part[j * params.part_stride];
            }
            Element* to = static_cast<Element*>(params.out.at) + offset(params.out, i);
            if constexpr (sizeof(Element) == 4) {
                *to = sum;
            } else {
                *reinterpret_cast<uint16_t*>(to) =
                    static_cast<uint16_t>(pack<Element>(sum, 0.f));
            }
        }
    }
};

}  // namespace seqmix::linear_attention
