// The gradients of gamma, beta and bias: adds the sums of all tiles, in an order that depends on the
// shapes alone.
//
// grid    x: 32 sums each
// warp    adds every 32nd tile
// lane    owns a sum
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "gated_attention_unit/params.h"
#include "gated_attention_unit/place.cuh"

namespace seqmix::gated_attention_unit {

struct Sums {
    static constexpr int kWarps = 32;
    static constexpr int kThreads = 32 * kWarps;

    struct Smem {
        float sums[kWarps][32];
    };

    __device__ __forceinline__ static void run(const SumsParams& params, Smem& smem) {
        const int column = static_cast<int>(blockIdx.x) * 32 + lane_of_warp();
        const int warp = warp_of_block();
        float sum = 0.f;
        if (column < params.sums_of_tile) {
            int before = 0;  // tiles of the sequences before this one, modulo kWarps
            for (int i = 0; i < params.layer.sequences; ++i) {
                const Sequence sequence = sequence_of(params.layer, i);
                const int tiles = (sequence.steps + kRows - 1) / kRows;
                for (int tile = (warp - before + kWarps) % kWarps; tile < tiles; tile += kWarps) {
                    sum += params.sums[sequence.slot(kRows, tile) * params.sums_of_tile + column];
                }
                before = (before + tiles) % kWarps;
            }
        }
        smem.sums[warp][lane_of_warp()] = sum;
        __syncthreads();  // the sums of all warps, before they are added up
        if (warp == 0 && column < params.sums_of_tile) {
            float total = 0.f;
            for (int i = 0; i < kWarps; ++i) {
                total += smem.sums[i][lane_of_warp()];
            }
            store(params, column, total);
        }
    }

    __device__ __forceinline__ static void store(const SumsParams& params, int column, float sum) {
        const int dz = params.layer.dz;
        const int which = column / dz;
        if (which >= params.affines) {
            params.dbias[column - params.affines * dz] = sum;
            return;
        }
        const AffineGradient& to = which < 2   ? params.quadratic_q
                                   : which < 4 ? params.quadratic_k
                                   : which < 6 ? params.linear_q
                                               : params.linear_k;
        (which % 2 == 0 ? to.dgamma : to.dbeta)[column % dz] = sum;
    }
};

}  // namespace seqmix::gated_attention_unit
