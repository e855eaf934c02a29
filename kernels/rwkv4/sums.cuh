// The last sums of the gradients of decay and bonus, over sequences and segments in their order.
//
// grid    x: tiles of 32 channels; y: decay, bonus
// warp    adds every eighth row
// lane    has a channel
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "rwkv4/params.h"
#include "rwkv4/place.cuh"

namespace seqmix::rwkv4 {

struct Sums {
    static constexpr int kThreads = 256;
    static constexpr int kWarps = kThreads / 32;

    struct Smem {
        float of_warp[kWarps][32];
    };

    __device__ __forceinline__ static void run(const SumsParams& params, Smem& smem) {
        const int which = static_cast<int>(blockIdx.y);
        const int lane = lane_of_warp();
        const int channel = static_cast<int>(blockIdx.x) * 32 + lane;
        const bool exists = channel < params.dim;
        float sum = 0.f;
        if (exists) {
#pragma unroll 4
            for (int row = warp_of_block(); row < params.rows; row += kWarps) {
                sum += params.sums[(int64_t{row} * kSumFloats + which) * params.dim + channel];
            }
        }
        smem.of_warp[warp_of_block()][lane] = sum;
        __syncthreads();  // all warps have written their sums, before the first adds them
        if (warp_of_block() > 0 || !exists) {
            return;
        }
#pragma unroll
        for (int warp = 1; warp < kWarps; ++warp) {
            sum += smem.of_warp[warp][lane];
        }
        store(which == 0 ? params.ddecay : params.dbonus, 0, channel, sum);
    }
};

}  // namespace seqmix::rwkv4
