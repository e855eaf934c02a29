// From the sums of mma.sync to results: how a warp's sums come to lie by rows, and their way through
// the epilogue.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/params.h"
#include "gemm/place.cuh"

namespace seqmix::gemm {

// Where a warp's results change hands: the lanes write them as mma.sync leaves them, two
// neighbours each, and read them as whole chunks of one row.
//
// Of the chunks, 32 bytes each, number c of row r lies at place c ^ (r % 4) of the row, so that the
// four rows of a write fall on different banks; the two halves of the chunks are swapped in two of
// four groups of four, so that eight lanes that read the same half of eight chunks do too, of one
// row after the other or, with a gate, of every second chunk.
template <int Columns>
struct Exchange {
    static constexpr int kRows = 16;
    static constexpr int kChunks = Columns / kChunk;
    static_assert(kChunks == 4 || kChunks == 8, "four chunks fill the banks once");

    alignas(16) float elements[kRows * Columns];

    // Half `half`, four elements, of a chunk.
    __device__ __forceinline__ float* at(int row, int chunk, int half) {
        const int place = row * kChunks + (chunk ^ (row % 4));
        return elements + kChunk * place + 4 * (half ^ (place / 4 % 2) ^ (place / 8 % 2));
    }

    // Writes a row of results of mma.sync, 16 rows and 8 columns each.
    __device__ __forceinline__ void write(const float (&products)[kChunks][4]) {
        const int row = lane_of_warp() / 4, pair = lane_of_warp() % 4;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            auto* to = reinterpret_cast<float2*>(at(row, chunk, pair / 2)) + pair % 2;
            const float(&product)[4] = products[chunk];
            // eight rows further down the places are the same
            to[4 * Columns] = make_float2(product[2], product[3]);
            to[0] = make_float2(product[0], product[1]);
        }
    }

    __device__ __forceinline__ void read(float (&x)[kChunk], int row, int chunk) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float4 four = *reinterpret_cast<const float4*>(at(row, chunk, half));
            x[4 * half] = four.x;
            x[4 * half + 1] = four.y;
            x[4 * half + 2] = four.z;
            x[4 * half + 3] = four.w;
        }
    }
};

// A block's results: WarpsM rows of WarpsN warps, of WarpM x WarpN sums each.
template <typename Element, int WarpsM, int WarpsN, int WarpM, int WarpN>
struct Results {
    static constexpr int kRowTiles = WarpM / 16;
    static constexpr int kChunks = WarpN / kChunk;
    using Products = float[kRowTiles][kChunks][4];

    struct Smem {
        Exchange<WarpN> exchange[WarpsM * WarpsN];
        float column_sums[WarpsM][WarpsN * WarpN];
    };

    // Finishes and stores the products, 16 rows of each warp at a time. The code of the epilogue
    // exists once: the loops around it are not unrolled.
    __device__ __forceinline__ static void store(const MultiplyParams& params, Smem& smem,
                                                 const Place& place, const Products& products) {
        const int lane = lane_of_warp();
        const int first_row = place.row + warp_of_block() / WarpsN * WarpM;
        const int first_column = warp_of_block() % WarpsN * WarpN;
        const bool two = params.epilogue == kGate;  // eight columns of the gate's, eight of b's, ...
        const int chunks = two ? kChunks / 2 : kChunks;
        Exchange<WarpN>& exchange = smem.exchange[warp_of_block()];
        float sums[kChunk] = {};  // of the columns of the lane's chunks: they lie below each other
        int non_finite = 0;
#pragma unroll 1
        for (int part = 0; part < kRowTiles; ++part) {
#pragma unroll
            for (int row_tile = 0; row_tile < kRowTiles; ++row_tile) {
                if (row_tile == part) {
                    exchange.write(products[row_tile]);
                }
            }
            __syncwarp();  // the lanes have written, before others read
#pragma unroll 1
            for (int at = lane; at < 16 * chunks; at += 32) {
                // by constants: a division by a number that is not known takes registers
                const int in_part = two ? at / (kChunks / 2) : at / kChunks;
                const int chunk = at - in_part * chunks;
                const int row = first_row + 16 * part + in_part;
                const int column =
                    place.column + (two ? first_column / 2 : first_column) + kChunk * chunk;
                if (row >= place.rows_end || column >= params.n) {
                    continue;
                }
                float x[kChunk];
                exchange.read(x, in_part, two ? 2 * chunk + 1 : chunk);
                if (params.partial != nullptr) {
                    store_partial(params, x, blockIdx.y, blockIdx.z, gridDim.z, row, column);
                    continue;
                }
                float gate[kChunk];
                if (two) {
                    exchange.read(gate, in_part, 2 * chunk);
                }
                non_finite += finish_chunk<Element>(
                    params, x, gate, {place.batch, place.weights, row}, column,
                    params.n - column);
#pragma unroll
                for (int i = 0; i < kChunk; ++i) {
                    sums[i] += x[i];
                }
            }
            __syncwarp();  // the lanes have read, before others overwrite
        }
        count_non_finite(params, non_finite);
        if (params.column_sums != nullptr) {
            store_column_sums(params, smem, place, sums);
        }
    }

    // Adds the lanes' sums over the rows of the tile.
    __device__ __forceinline__ static void store_column_sums(const MultiplyParams& params,
                                                             Smem& smem, const Place& place,
                                                             float (&sums)[kChunk]) {
        const int lane = lane_of_warp();
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
#pragma unroll
            for (int distance = 16; distance >= kChunks; distance /= 2) {
                sums[i] += __shfl_xor_sync(kAllLanes, sums[i], distance);
            }
        }
        if (lane < kChunks) {
            float* to = smem.column_sums[warp_of_block() / WarpsN] +
                        warp_of_block() % WarpsN * WarpN + kChunk * lane;
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                to[i] = sums[i];
            }
        }
        add_column_sums<32 * WarpsM * WarpsN, WarpsM * WarpM>(params, smem.column_sums, place);
    }
};

}  // namespace seqmix::gemm
