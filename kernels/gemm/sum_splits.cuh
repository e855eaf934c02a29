// The end of a multiplication whose k was split: adds the parts in order and finishes the sums.
//
// grid    x: chunks of eight columns, row by row; z: matrices of the batch
// thread  owns a chunk
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "gemm/chunk.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/params.h"

namespace seqmix::gemm {

template <typename Element>
struct SumSplits {
    static constexpr int kThreads = 64;  // few rows have few chunks: they shall reach many blocks
    struct Smem {};

    __device__ __forceinline__ static void run(const MultiplyParams& params, Smem&) {
        const int chunks = (params.n + kChunk - 1) / kChunk;
        const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + thread_of_block();
        int non_finite = 0;
        if (at < static_cast<int64_t>(params.m) * chunks) {
            const int64_t row = at / chunks;
            const int column = static_cast<int>(at % chunks) * kChunk;
            // eight columns of a split's matrix lie as chunks do: without gaps
            const int64_t matrix = static_cast<int64_t>(params.m) * chunks * kChunk;
            const float* from = params.partial + blockIdx.z * matrix + at * kChunk;
            float x[kChunk] = {};
            for (int split = 0; split < params.splits; ++split) {
                float part[kChunk];
                load_chunk(part, from + split * gridDim.z * matrix, kChunk, true);
#pragma unroll
                for (int i = 0; i < kChunk; ++i) {
                    x[i] += part[i];
                }
            }
            float gate[kChunk];
            const Row of = {blockIdx.z, blockIdx.z, row};
            non_finite = finish_chunk<Element>(params, x, gate, of, column, params.n - column);
        }
        count_non_finite(params, non_finite);
    }
};

}  // namespace seqmix::gemm
