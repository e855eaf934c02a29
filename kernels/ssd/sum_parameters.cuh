// dA, ddt_bias and dD: adds the sums of all chunks, in an order that depends on the shape alone.
//
// grid    x: 32 sums each
// warp    adds every 32nd chunk
// lane    owns a sum
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "ssd/params.h"
#include "ssd/place.cuh"

namespace seqmix::ssd {

struct SumParameters {
    static constexpr int kWarps = 32;
    static constexpr int kThreads = 32 * kWarps;

    struct Smem {
        float sums[kWarps][32];
    };

    __device__ __forceinline__ static void run(const SumParametersParams& params, Smem& smem) {
        const int columns = params.heads * params.sums_of_head;
        const int column = static_cast<int>(blockIdx.x) * 32 + lane_of_warp();
        const int warp = warp_of_block();
        float sum = 0.f;
        if (column < columns) {
            int before = 0;  // chunks of the sequences before this one, modulo kWarps
            for (int i = 0; i < params.sequences; ++i) {
                const Sequence all = sequence_of(params.cu_seqlens, params.steps, params.chunk, i);
                const int chunks = (all.steps + params.chunk - 1) / params.chunk;
                for (int chunk = (warp - before + kWarps) % kWarps; chunk < chunks;
                     chunk += kWarps) {
                    sum += params.sums[(all.slot + chunk) * columns + column];
                }
                before = (before + chunks) % kWarps;
            }
        }
        smem.sums[warp][lane_of_warp()] = sum;
        __syncthreads();  // the sums of all warps, before they are added up
        if (warp == 0 && column < columns) {
            float total = 0.f;
            for (int i = 0; i < kWarps; ++i) {
                total += smem.sums[i][lane_of_warp()];
            }
            store(params, column / params.sums_of_head, column % params.sums_of_head, total);
        }
    }

    __device__ __forceinline__ static void store(const SumParametersParams& params, int head,
                                                 int which, float sum) {
        if (which == 0) {
            params.da[head] = sum;
        } else if (which == 1) {
            if (params.ddt_bias != nullptr) {
                params.ddt_bias[head] = sum;
            }
        } else if (params.dd != nullptr) {
            params.dd[head * params.dd_head_stride + (which - 2) * params.dd_channel_stride] = sum;
        }
    }
};

}  // namespace seqmix::ssd
