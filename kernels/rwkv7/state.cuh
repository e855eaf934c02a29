// A head's state, or its gradient, in registers: which elements a lane owns, and sums along both axes.
//
// warp   16 columns of four a lane, or 4 of one: channels of the values, with all channels of the keys
// lane   lane / 8 chooses among the warp's columns, lane % 8 among the rows: pieces of four neighbouring
//        ones, 32 rows apart, so that eight lanes read 128 bytes of a row in shared memory
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "common/warp.cuh"
#include "rwkv7/params.h"
#include "rwkv7/place.cuh"

namespace seqmix::rwkv7 {

constexpr int kRowLanes = 8;
constexpr int kColumnLanes = 32 / kRowLanes;

template <int Size, int Columns>
struct State {
    static_assert(Size % (kRowLanes * kPiece) == 0, "lanes own equally many pieces of a column");
    static constexpr int kRows = Size / kRowLanes;
    static constexpr int kThreads = 2 * Size;  // so that each has one piece of a row in a tile
    static constexpr int kWarps = kThreads / 32;
    static constexpr int kWidth = kWarps * kColumnLanes * Columns;  // columns of a block
    static_assert(kSteps * Size / kPiece == kThreads, "a thread moves one piece of each tile");

    float x[kRows][Columns];
    // Of the thread, once for all: reading its number takes as long as some of the sums.
    int lane;
    int warp;
    int first_row;
    int first_column;  // among those of the block

    __device__ __forceinline__ State()
        : lane(lane_of_warp()),
          warp(warp_of_block()),
          first_row(lane % kRowLanes * kPiece),
          first_column(thread_of_block() / kRowLanes * Columns) {}

    // The row of the thread's i-th element of a column.
    __device__ __forceinline__ int row(int i) const {
        return i / kPiece * (kRowLanes * kPiece) + first_row + i % kPiece;
    }

    // Reads the block's columns from `first` on; what does not exist is 0.
    __device__ __forceinline__ void load(const States& states, const Place& place, int64_t entry,
                                         int first) {
        const Layer& layer = place.layer;
        const int at = first + first_column;
        const float* from = address(states, place, entry) + at;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < Columns; ++j) {
                x[i][j] = 0.f;
            }
        }
        if (states.at == nullptr || at >= layer.dv) {
            return;
        }
        if (Columns == 4 && layer.ragged_states == 0) {
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                if (row(i) < layer.dk) {
                    set(i, floats_of(load_global16(from + row(i) * states.key_stride)));
                }
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < Columns; ++j) {
                if (row(i) < layer.dk && at + j < layer.dv) {
                    x[i][j] = from[row(i) * states.key_stride + j];
                }
            }
        }
    }

    __device__ __forceinline__ void store(const States& states, const Place& place, int64_t entry,
                                          int first) const {
        const Layer& layer = place.layer;
        const int at = first + first_column;
        if (states.at == nullptr || at >= layer.dv) {
            return;
        }
        float* to = address(states, place, entry) + at;
        if (Columns == 4 && layer.ragged_states == 0) {
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                if (row(i) < layer.dk) {
                    store_global16(to + row(i) * states.key_stride, bits_of(get(i)));
                }
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < Columns; ++j) {
                if (row(i) < layer.dk && at + j < layer.dv) {
                    to[row(i) * states.key_stride + j] = x[i][j];
                }
            }
        }
    }

    __device__ __forceinline__ static float* address(const States& states, const Place& place,
                                                     int64_t entry) {
        return states.at + entry * states.entry_stride + place.head * states.head_stride;
    }

    // Four columns of a row.
    __device__ __forceinline__ float4 get(int i) const {
        static_assert(Columns <= 4, "a row's columns fit a register of four");
        return make_float4(x[i][0], x[i][1 % Columns], x[i][2 % Columns], x[i][3 % Columns]);
    }
    __device__ __forceinline__ void set(int i, const float4& four) {
        const float of[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < Columns; ++j) {
            x[i][j] = of[j];
        }
    }

    // Reads what a step has for the thread's rows from the `first` on.
    template <int Count>
    __device__ __forceinline__ void load_rows(float (&to)[Count], const float (&row_of_tile)[Size],
                                              int first = 0) const {
#pragma unroll
        for (int i = 0; i < Count; i += kPiece) {
            const float4 four = *reinterpret_cast<const float4*>(&row_of_tile[row(first + i)]);
            to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
        }
    }

    // Reads what a step has for the thread's columns.
    __device__ __forceinline__ void load_columns(float (&to)[Columns],
                                                 const float (&row_of_tile)[kWidth]) const {
        if constexpr (Columns == 4) {
            const float4 four = *reinterpret_cast<const float4*>(&row_of_tile[first_column]);
            to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
        } else {
#pragma unroll
            for (int j = 0; j < Columns; ++j) {
                to[j] = row_of_tile[first_column + j];
            }
        }
    }

    // Sums over all rows, of which each lane has its own share. The lanes of a column share out what there is
    // to add: afterwards a lane has the sum number `sum_of_lane` in x[0], as others may.
    template <int Count>
    __device__ __forceinline__ void sum_rows(float (&sums)[Count]) const {
        static_assert(kRowLanes % Count == 0, "lanes share sums equally");
        sum_lanes<kRowLanes / 2, 1>(sums, lane);
    }

    template <int Count>
    __device__ __forceinline__ int sum_of_lane() const {
        return lane % kRowLanes / (kRowLanes / Count);
    }

    // Whether the lane is the first one that has its sum.
    template <int Count>
    __device__ __forceinline__ bool first_with_sum() const {
        return lane % (kRowLanes / Count) == 0;
    }

    // A sum that another lane of the same columns has.
    template <int Count>
    __device__ __forceinline__ float sum_from(float own, int sum) const {
        return __shfl_sync(kAllLanes, own, lane / kRowLanes * kRowLanes + sum * (kRowLanes / Count));
    }

    // Sums over the columns of a warp, of several kinds of numbers for each of a lane's rows from `first` on,
    // and writes them: those of a kind by row to `to`, those of the next kind `Size` further on.
    template <int Kinds, int Count>
    __device__ __forceinline__ void sum_columns(float* to, float (&sums)[Count], int first) const {
        constexpr int kOfKind = Count / Kinds;
        constexpr int kShare = Count / kColumnLanes;  // of a lane
        constexpr int kTogether = kShare < kPiece ? kShare : kPiece;
        static_assert(kOfKind % kShare == 0, "a lane's sums are of one kind");
        sum_lanes<16, kRowLanes>(sums, lane);
        const int share = lane / kRowLanes * kShare;
#pragma unroll
        for (int n = 0; n < kShare; n += kTogether) {
            const int at = share + n;
            float* place = to + at / kOfKind * Size + row(first + at % kOfKind);
            if constexpr (kTogether == 4) {
                store_shared4(place, make_float4(sums[n], sums[n + 1], sums[n + 2], sums[n + 3]));
            } else if constexpr (kTogether == 2) {
                store_shared2(place, make_float2(sums[n], sums[n + 1]));
            } else {
                *place = sums[n];
            }
        }
    }
};

// The thread's piece of what all warps have written by `sum_columns`, added in their order. Each warp's
// numbers lie `stride` floats from those of the one before.
template <int Warps>
__device__ __forceinline__ float4 sum_of_warps(const float* from, int stride) {
    float4 sum = load_shared4(from);
#pragma unroll
    for (int warp = 1; warp < Warps; ++warp) {
        const float4 next = load_shared4(from + warp * stride);
        sum.x += next.x, sum.y += next.y, sum.z += next.z, sum.w += next.w;
    }
    return sum;
}

}  // namespace seqmix::rwkv7
