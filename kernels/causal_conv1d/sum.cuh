// The last step of dweight and dbias: adds the sums of all slots, in the order of the slots.
//
// grid    x: tiles of 32 channels; y: lags, then dbias
// warp    adds every eighth slot
// lane    has a channel
#pragma once

#include <cstdint>

#include "causal_conv1d/filter.cuh"
#include "causal_conv1d/params.h"
#include "common/warp.cuh"

namespace seqmix::causal_conv1d {

struct Sum {
    static constexpr int kThreads = causal_conv1d::kThreads;

    struct Smem {
        float of_warp[kWarps][32];
    };

    __device__ __forceinline__ static void run(const SumParams& params, Smem& smem) {
        const int width = params.gradient.width;
        const int lag = static_cast<int>(blockIdx.y);
        const int lane = lane_of_warp();
        const int64_t channel = int64_t{blockIdx.x} * 32 + lane;
        float sum = 0.f;
        if (channel < params.dim) {
#pragma unroll 1
            for (int slot = warp_of_block(); slot < params.slots; slot += kWarps) {
                sum += params.partial[(int64_t{slot} * (width + 1) + lag) * params.dim + channel];
            }
        }
        smem.of_warp[warp_of_block()][lane] = sum;
        __syncthreads();  // all warps have written their sums, before the first adds them
        if (warp_of_block() > 0 || channel >= params.dim) {
            return;
        }
#pragma unroll 1
        for (int warp = 1; warp < kWarps; ++warp) {
            sum += smem.of_warp[warp][lane];
        }
        const Filter& to = params.gradient;
        if (lag < width && to.weight != nullptr) {
            store_number(to.weight,
                         channel * to.weight_channel_stride +
                             (width - 1 - lag) * to.weight_tap_stride,
                         to.dtype, sum);
        } else if (lag == width && to.bias != nullptr) {
            store_number(to.bias, channel * to.bias_stride, to.dtype, sum);
        }
    }
};

}  // namespace seqmix::causal_conv1d
