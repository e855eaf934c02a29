// dB and dC: adds the parts of each group's heads in order.
//
// grid    x: groups; y: chunks; z: sequences
// thread  owns eight neighbouring states of a step at a time
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/warp.cuh"
#include "ssd/params.h"
#include "ssd/place.cuh"

namespace seqmix::ssd {

template <typename Element>
struct SumCoefficients {
    static constexpr int kThreads = 256;
    static constexpr int kChunk = seqmix::ssd::kChunk<Element>;
    struct Smem {};

    __device__ __forceinline__ static void run(const SumCoefficientsParams& params, Smem&) {
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, kChunk,
                                         static_cast<int>(blockIdx.z));
        const int chunk = static_cast<int>(blockIdx.y);
        if (chunk >= all.segments) {
            return;
        }
        const int rows = min(all.steps - chunk * kChunk, kChunk);
        const int eights = params.dstate / 8;
        const int64_t tile = kChunk * params.dstate;
        const int64_t part = params.chunk_slots * params.groups * tile;
        const float* first = params.coefficients +
                             ((all.slot + chunk) * params.groups + blockIdx.x) * tile;
        for (int i = thread_of_block(); i < rows * eights; i += kThreads) {
            const int row = i / eights;
            const int state = i % eights * 8;
            const float* from = first + row * params.dstate + state;
            store(params.db, all.start + chunk * kChunk + row, state, from, part, params.parts);
            store(params.dc, all.start + chunk * kChunk + row, state, from + params.parts * part,
                  part, params.parts);
        }
    }

    // The sum of so many parts, `stride` numbers apart.
    __device__ __forceinline__ static void store(const Rows& to, int step, int state,
                                                 const float* from, int64_t stride, int parts) {
        float sums[8] = {};
        for (int part = 0; part < parts; ++part) {
            const float4 low = *reinterpret_cast<const float4*>(from + part * stride);
            const float4 high = *reinterpret_cast<const float4*>(from + part * stride + 4);
            sums[0] += low.x;
            sums[1] += low.y;
            sums[2] += low.z;
            sums[3] += low.w;
            sums[4] += high.x;
            sums[5] += high.y;
            sums[6] += high.z;
            sums[7] += high.w;
        }
        Element* row = row_of<Element>(to, step, static_cast<int>(blockIdx.x)) + state;
        constexpr int kCount = Pairs<Element>::kCount;
#pragma unroll
        for (int i = 0; i < 4; i += kCount) {
            Pairs<Element> pairs;
#pragma unroll
            for (int pair = 0; pair < kCount; ++pair) {
                pairs.values[pair] = join<Element>(sums[2 * (i + pair)], sums[2 * (i + pair) + 1]);
            }
            pairs.store(row + 2 * i);
        }
    }
};

}  // namespace seqmix::ssd
