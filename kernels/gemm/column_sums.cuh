// Sums of columns, in an order that depends on the shape alone: the gradient of a bias.
//
// grid    x: 256 columns each; y: parts of the rows
// warp    adds every eighth row of the part
// lane    owns eight neighbouring columns
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "gemm/chunk.cuh"
#include "gemm/params.h"

namespace seqmix::gemm {

struct ColumnSums {
    static constexpr int kWarps = 8;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kColumns = 32 * kChunk;
    static_assert(kColumns == kThreads, "at the end a thread owns a column");

    struct Smem {
        float sums[kWarps][kChunk][32];  // of a warp, by place in a lane's chunk
    };

    __device__ __forceinline__ static void run(const ColumnSumsParams& params, Smem& smem) {
        const int first = static_cast<int>(blockIdx.x) * kColumns;
        const int column = first + kChunk * lane_of_warp();
        const int64_t begin = static_cast<int64_t>(blockIdx.y) * params.rows_of_part;
        const int64_t end = min(begin + params.rows_of_part, params.rows);
        float sums[kChunk] = {};
        if (column < params.columns) {
            // the matrices of a batch follow each other
            int64_t matrix = (begin + warp_of_block()) / params.rows_of_matrix;
            int64_t in_matrix = begin + warp_of_block() - matrix * params.rows_of_matrix;
            for (int64_t row = begin + warp_of_block(); row < end; row += kWarps) {
                float x[kChunk];
                load_any(x, params.x, in_row(params.x, matrix, in_matrix, column),
                         params.columns - column);
#pragma unroll
                for (int i = 0; i < kChunk; ++i) {
                    sums[i] += x[i];
                }
                in_matrix += kWarps;
                while (in_matrix >= params.rows_of_matrix) {
                    in_matrix -= params.rows_of_matrix;
                    ++matrix;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            smem.sums[warp_of_block()][i][lane_of_warp()] = sums[i];
        }
        __syncthreads();  // every warp's sums, before they are added up
        const int own = first + kChunk * lane_of_warp() + warp_of_block();
        if (own < params.columns) {
            float sum = 0.f;
            for (int warp = 0; warp < kWarps; ++warp) {
                sum += smem.sums[warp][warp_of_block()][lane_of_warp()];
            }
            params.sums[static_cast<int64_t>(blockIdx.y) * params.columns + own] = sum;
        }
    }
};

}  // namespace seqmix::gemm
