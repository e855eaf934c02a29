// Passes states from segment to segment by the delta rule, where each multiplies the state before it
// by a matrix and adds what it makes of zeros: S_{n+1} = F_n S_n + L_n, in the order of the walk.
//
// grid    x: slices of 16 channels of the values; y: heads; z: sequences
// block   has its channels of a head's state in shared memory, and walks over the segments
// thread  makes numbers of one channel of the values, in every 16th row
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "linear_attention/delta_params.h"
#include "linear_attention/place.cuh"

namespace seqmix::linear_attention {

struct DeltaCarry {
    static constexpr int kThreads = 256;
    static constexpr int kColumns = 16;  // 64 bytes of a row, and eight blocks for 128 channels
    static constexpr int kRows = kThreads / kColumns;
    static constexpr int kSize = 256;  // channels of the keys

    struct Smem {
        float states[2][kSize][kColumns];  // before a segment, and behind it
    };

    __device__ __forceinline__ static void run(const DeltaCarryParams& params, Smem& smem) {
        const int sequence = static_cast<int>(blockIdx.z);
        const Sequence all =
            sequence_of(params.cu_seqlens, params.steps, params.segment, sequence);
        const int head = static_cast<int>(blockIdx.y);
        const int column = thread_of_block() % kColumns;
        const int first = thread_of_block() / kColumns;
        const int channel = static_cast<int>(blockIdx.x) * kColumns + column;
        const bool exists = channel < params.dv;
        const auto for_each_row = [&](const auto& with) {
            for (int row = first; row < params.dk; row += kRows) {
                with(row);
            }
        };
        const States& initial = params.initial;
        for_each_row([&](int row) {
            smem.states[0][row][column] =
                exists && initial.at != nullptr
                    ? initial.at[sequence * initial.sequence_stride + head * initial.head_stride +
                                 row * initial.key_stride + channel * initial.value_stride]
                    : 0.f;
        });
        const int64_t heads = params.heads;
#pragma unroll 1
        for (int segment = 0; segment < all.segments; ++segment) {
            const auto& before = smem.states[segment % 2];
            auto& behind = smem.states[(segment + 1) % 2];
            const int64_t slot = (all.slot + segment) * heads + head;
            float* at = params.segments + slot * params.dk * params.dv + channel;
            const bool last = segment + 1 == all.segments;  // of which nothing was computed
            __syncthreads();  // the state of all threads, before each reads it
            for_each_row([&](int row) {
                float& number = at[static_cast<int64_t>(row) * params.dv];
                if (!last) {
                    const float* factors =
                        params.transitions + (slot * params.dk + row) * params.dk;
                    float sum = 0.f;
#pragma unroll 8
                    for (int i = 0; i < params.dk; ++i) {
                        sum += factors[i] * before[i][column];
                    }
                    behind[row][column] = exists ? sum + number : 0.f;
                }
                if (exists) {
                    number = before[row][column];
                }
            });
        }
    }
};

}  // namespace seqmix::linear_attention
