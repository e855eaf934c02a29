// The last sums of da and dgamma, over sequences and segments in their order.
//
// grid    x: tiles of 32 states; y: da, dgamma
// warp    adds every eighth row
// lane    has a state
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "lru/number.cuh"
#include "lru/params.h"

namespace seqmix::lru {

struct Sums {
    static constexpr int kThreads = 256;
    static constexpr int kWarps = kThreads / 32;

    struct Smem {
        float2 of_warp[kWarps][32];
    };

    __device__ __forceinline__ static void run(const SumsParams& params, Smem& smem) {
        const int which = static_cast<int>(blockIdx.y);
        const int lane = lane_of_warp();
        const int state = static_cast<int>(blockIdx.x) * 32 + lane;
        const bool exists = state < params.states;
        float2 sum = {0.f, 0.f};
        if (exists) {
#pragma unroll 4
            for (int row = warp_of_block(); row < params.rows; row += kWarps) {
                sum = added(sum, params.sums[(int64_t{row} * 2 + which) * params.states + state]);
            }
        }
        smem.of_warp[warp_of_block()][lane] = sum;
        __syncthreads();  // all warps have written their sums, before the first adds them
        if (warp_of_block() > 0 || !exists) {
            return;
        }
#pragma unroll
        for (int warp = 1; warp < kWarps; ++warp) {
            sum = added(sum, smem.of_warp[warp][lane]);
        }
        if (which == 0 && params.da != nullptr) {
            params.da[state] = sum;
        } else if (which == 1 && params.dgamma != nullptr) {
            params.dgamma[state] = sum.x;
        }
    }
};

}  // namespace seqmix::lru
