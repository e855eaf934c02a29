// What outputs are divided by, if they are: what a channel of the values would give that is 1 at each
// step.
//
// The column z of the state that belongs to it is in shared memory. Each warp finds out what it is
// before the chunk that it prepares, from the sums of the keys of the chunks in between.
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/warp.cuh"
#include "linear_attention/gates.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"
#include "linear_attention/state.cuh"

namespace seqmix::linear_attention {

template <int Size, int Count>
struct alignas(16) Normalizer {
    static constexpr int kChunks = Count / kChunk;

    float z[kChunks][Size];         // before each chunk
    float behind[Size];             // behind the tile: before the next one
    float key_sums[kChunks][Size];  // of the keys as they enter the state
    float row_sums[Count];          // of scores

    // The state before the walk, 0 if `from` is null.
    template <int Threads>
    __device__ __forceinline__ void load(const float* from, int64_t stride, int dk) {
        for (int c = thread_of_block(); c < Size; c += Threads) {
            z[0][c] = from != nullptr && c < dk ? from[c * stride] : 0.f;
        }
    }

    // Stores that behind the walk, times decay(channel).
    template <int Threads, typename Decay>
    __device__ __forceinline__ void store(float* to, int64_t stride, int dk,
                                          const Decay& decay) const {
        for (int c = thread_of_block(); c < dk; c += Threads) {
            to[c * stride] = z[0][c] * decay(c);
        }
    }

    // Sums the keys of a chunk, the 16 rows of `keys` from its first on, times `weights`, or as they are
    // if these are null.
    template <typename KeyTile>
    __device__ __forceinline__ void sum_keys(const KeyTile& keys, const float* weights, int chunk) {
        using Element = typename KeyTile::Element;
        for_pairs<Size>([&](int column) {
            float2 sum = make_float2(0.f, 0.f);
#pragma unroll
            for (int row = 0; row < kChunk; ++row) {
                const float2 key = part<Element>(pair_of(keys, kChunk * chunk + row, column));
                const float weight = weights == nullptr ? 1.f : weights[row];
                sum.x += key.x * weight;
                sum.y += key.y * weight;
            }
            *reinterpret_cast<float2*>(key_sums[chunk] + column) = sum;
        });
    }

    // Keeps the sums over the columns of a chunk's scores.
    __device__ __forceinline__ void sum_rows(const float (&scores)[2][4], int chunk) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = quad_sum(scores[0][2 * half] + scores[0][2 * half + 1] +
                                       scores[1][2 * half] + scores[1][2 * half + 1]);
            if (lane_column() == 0) {
                row_sums[kChunk * chunk + lane_row() + 8 * half] = sum;
            }
        }
    }

    // Finds z before the warp's chunk, `own`; the first warp also behind the tile. `decay(chunk,
    // channel)` is what a chunk leaves of z.
    template <typename Decay>
    __device__ __forceinline__ void pass(int own, const Decay& decay) {
#pragma unroll 1
        for (int c = lane_of_warp(); c < Size; c += 32) {
            float sum = z[0][c];
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                if (chunk > 0 && chunk == own) {
                    z[chunk][c] = sum;
                }
                sum = sum * decay(chunk, c) + key_sums[chunk][c];
            }
            if (own == 0) {
                behind[c] = sum;
            }
        }
        __syncwarp();  // z of all lanes, before each reads it
    }

    // Takes z behind the tile for that before the next one; one warp.
    __device__ __forceinline__ void carry() {
#pragma unroll 1
        for (int c = lane_of_warp(); c < Size; c += 32) {
            z[0][c] = behind[c];
        }
    }

    // Calls with(row, product) for each of the 16 rows of `queries` from the chunk's first on, once, with
    // its product with z, or if `constant` with that before the tile.
    template <typename KeyTile, typename With>
    __device__ __forceinline__ void read(const KeyTile& queries, int chunk, bool constant,
                                         const With& with) const {
        const float* state = z[constant ? 0 : chunk];
        const int upper = RowLanes::row();
        const int lower = kChunk - 1 - upper;
        float sums[2] = {};
#pragma unroll 2
        for (int four = RowLanes::channels(); four < Size / 4; four += 4) {
            const float4 numbers = *reinterpret_cast<const float4*>(state + 4 * four);
            sums[0] += dot(four_of(queries, kChunk * chunk + upper, four), numbers);
            sums[1] += dot(four_of(queries, kChunk * chunk + lower, four), numbers);
        }
        sums[0] = RowLanes::sum(sums[0]);
        sums[1] = RowLanes::sum(sums[1]);
        if (RowLanes::channels() == 0) {
            with(upper, sums[0]);
            with(lower, sums[1]);
        }
    }
};

}  // namespace seqmix::linear_attention
