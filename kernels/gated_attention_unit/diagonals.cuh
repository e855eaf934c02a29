// The sums of a block's gradients of scores by distance: those of the diagonals of its tiles.
//
// A row of tiles is walked from its first columns on. The diagonals of a tile and of the next one
// overlap: what the next one adds to is kept in shared memory, and the rest is stored.
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/warp.cuh"
#include "gated_attention_unit/place.cuh"
#include "gated_attention_unit/scores.cuh"

namespace seqmix::gated_attention_unit {

template <int Width>
struct Diagonals {
    static constexpr int kCount = kRows + Width - 1;
    static constexpr int kKept = kRows - 1;  // of a tile, which the next one adds to

    float kept[2][kRows];  // of the tile before, by turns; by row - column less 1 in this one

    __device__ __forceinline__ void begin() {
        if (thread_of_block() < kKept) {
            kept[0][thread_of_block()] = 0.f;
        }
    }

    // Adds a tile whose rows begin `ahead` steps behind its columns. `turn` alternates, from 1 on; units
    // are those of the rows, by the same turn.
    template <typename T>
    __device__ __forceinline__ void add(const T& tile, const Units* units, int turn, float* dbias,
                                        int distances, int ahead) {
        using Element = typename T::Element;
        const int i = thread_of_block();
        if (i >= kCount) {
            return;
        }
        const int distance = kRows - 1 - i;  // row - column, in the tile
        float sum = distance > 0 ? kept[turn ^ 1][distance - 1] : 0.f;
        for (int row = 0; row < kRows; ++row) {
            const int column = row - distance;
            if (column >= 0 && column < Width) {
                const auto* bytes = reinterpret_cast<const unsigned char*>(tile.elements);
                const auto* element = reinterpret_cast<const Element*>(
                    bytes + T::offset(row, column / T::kChunkElements)) + column % T::kChunkElements;
                const float x = load(element);
                sum += units != nullptr ? x * units->values[turn][row] : x;
            }
        }
        if (i >= Width) {
            kept[turn][distance + Width - 1] = sum;
        } else {
            store(dbias, distances, distance + ahead, sum);
        }
    }

    // Stores what the last tile left behind, and zeros for the distances that no tile has; `ahead` is
    // that of the first of `tiles` tiles.
    __device__ __forceinline__ void finish(float* dbias, int distances, int ahead, int tiles) {
        __syncthreads();  // what the last tile left behind, before it is read
        const int last = ahead - tiles * Width;  // of a tile that there is not
        const int i = thread_of_block();
        if (i < kKept) {
            store(dbias, distances, 1 + i + last, kept[tiles % 2][i]);
        }
        const int count = 2 * distances - 1;
        const int lowest = distances - 1 + 1 + last;
        const int highest = distances - 1 + kRows - 1 + ahead;
        for (int at = i; at < count; at += kThreads) {
            if (at < lowest || at > highest) {
                dbias[at] = 0.f;
            }
        }
    }

private:
    // Stores the sum of a distance, unless no two steps have it.
    __device__ __forceinline__ static void store(float* dbias, int distances, int distance,
                                                 float sum) {
        const int at = distances - 1 + distance;
        if (at >= 0 && at < 2 * distances - 1) {
            dbias[at] = sum;
        }
    }
};

}  // namespace seqmix::gated_attention_unit
