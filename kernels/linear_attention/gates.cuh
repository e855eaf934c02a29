// The decays of a tile of steps where they are a number for each channel of the keys, and scores with
// them.
//
// Nothing is divided, and no exponent is a difference: all factors are products of decays between two
// steps, none of which exceeds 1.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/steps.cuh"

namespace seqmix::linear_attention {

// Starts the copies of the logarithms of decays of the tile that begins `first` steps into the walk;
// writes them where all channels share one.
template <int Threads, typename GateTile>
__device__ __forceinline__ void fetch_gates(GateTile& tile, const Layer& layer, const Place& place,
                                            int first) {
    constexpr int kChunks = GateTile::kChunks;
    constexpr int kElements = GateTile::kChunkElements;
    auto* bytes = reinterpret_cast<unsigned char*>(tile.elements);
#pragma unroll 4
    for (int i = thread_of_block(); i < GateTile::kRows * kChunks; i += Threads) {
        const int row = i / kChunks;
        const int chunk = i % kChunks;
        const float* from = decays_of(layer, place, first + row);
        if (layer.decays.channel_stride == 0) {
            const float decay = from == nullptr ? 0.f : *from;
            *reinterpret_cast<float4*>(bytes + GateTile::offset(row, chunk)) =
                make_float4(decay, decay, decay, decay);
        } else {
            copy16_async(tile.address(row, chunk), from + kElements * chunk,
                         from != nullptr && kElements * chunk < layer.dk);
        }
    }
}

// Calls with(column) for the pairs of channels that this lane has of a row.
template <int Size, typename With>
__device__ __forceinline__ void for_pairs(const With& with) {
#pragma unroll 1
    for (int column = 2 * lane_of_warp(); column < Size; column += 64) {
        with(column);
    }
}

// Turns logarithms of decays of the chunk of 16 rows from `first` on into decays. `products` are those
// of all steps.
template <int Size, typename GateTile>
__device__ __forceinline__ void exponentiate(GateTile& gates, float (&products)[Size], int first) {
    for_pairs<Size>([&](int column) {
        float2 sum = make_float2(0.f, 0.f);
#pragma unroll 4
        for (int row = 0; row < kChunk; ++row) {
            float2& gate = pair_of(gates, first + row, column);
            const float2 exponents = make_float2(gate.x * kLog2E, gate.y * kLog2E);
            sum.x += exponents.x;
            sum.y += exponents.y;
            gate = make_float2(exp2_approx(exponents.x), exp2_approx(exponents.y));
        }
        *reinterpret_cast<float2*>(products + column) =
            make_float2(exp2_approx(sum.x), exp2_approx(sum.y));
    });
}

// Multiplies the 16 rows of queries from `first` on by all decays since before the chunk: those up to
// their own step, or with a bonus up to the one before.
template <int Size, typename KeyTile, typename GateTile>
__device__ __forceinline__ void fade_queries(KeyTile& queries, const GateTile& gates, int first,
                                             bool bonus) {
    using Element = typename KeyTile::Element;
    for_pairs<Size>([&](int column) {
        float2 product = make_float2(1.f, 1.f);
#pragma unroll 4
        for (int row = 0; row < kChunk; ++row) {
            const float2 gate = pair_of(gates, first + row, column);
            const float2 next = make_float2(product.x * gate.x, product.y * gate.y);
            const float2 factor = bonus ? product : next;
            auto& pair = pair_of(queries, first + row, column);
            const float2 query = part<Element>(pair);
            pair = join<Element>(query.x * factor.x, query.y * factor.y);
            product = next;
        }
    });
}

// Multiplies the 16 rows of keys from `first` on by a weight, and by all decays behind them in the chunk.
template <int Size, typename KeyTile, typename GateTile>
__device__ __forceinline__ void fade_keys(KeyTile& keys, const GateTile& gates, int first,
                                          float weight) {
    using Element = typename KeyTile::Element;
    for_pairs<Size>([&](int column) {
        float2 product = make_float2(weight, weight);
#pragma unroll 4
        for (int row = kChunk - 1; row >= 0; --row) {
            const float2 gate = pair_of(gates, first + row, column);
            auto& pair = pair_of(keys, first + row, column);
            const float2 key = part<Element>(pair);
            pair = join<Element>(key.x * product.x, key.y * product.y);
            product.x *= gate.x;
            product.y *= gate.y;
        }
    });
}

// Four neighbours of a row, of which `index` counts.
template <typename T>
__device__ __forceinline__ float4 four_of(const T& tile, int row, int index) {
    using Element = typename T::Element;
    constexpr int kFours = T::kChunkElements / 4;
    const auto* at = reinterpret_cast<const unsigned char*>(tile.elements) +
                     T::offset(row, index / kFours) + 8 * (index % kFours);
    if constexpr (kFours == 1) {
        return *reinterpret_cast<const float4*>(at);
    } else {
        const uint2 pairs = *reinterpret_cast<const uint2*>(at);
        const float2 low = part<Element>(pairs.x);
        const float2 high = part<Element>(pairs.y);
        return make_float4(low.x, low.y, high.x, high.y);
    }
}

__device__ __forceinline__ float dot(const float4& a, const float4& b) {
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

__device__ __forceinline__ float4 product(const float4& a, const float4& b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

// How a warp's lanes share what is summed over channels for each of 16 rows: a lane has row() and
// 15 - row(), and every fourth group of four channels from channels() on.
//
// Eight neighbouring lanes have four rows of one parity, which differ in their swizzles, and two
// neighbouring groups: no access has bank conflicts, in tiles of either width.
struct RowLanes {
    __device__ __forceinline__ static int row() {
        return lane_of_warp() / 2 % 4 * 2 + lane_of_warp() / 8 % 2;
    }
    __device__ __forceinline__ static int channels() {
        return lane_of_warp() % 2 + lane_of_warp() / 16 * 2;
    }
    // The sum over the lanes of a row.
    __device__ __forceinline__ static float sum(float x) {
        x += __shfl_xor_sync(kAllLanes, x, 1);
        return x + __shfl_xor_sync(kAllLanes, x, 16);
    }
};

// The scores of a chunk in f32, computed by pairs of steps: with decays of each channel they are no
// product of matrices.
//
//     x = q_i,  A[i,i] = x . k_i,  x *= d_i,  A[i,i-1] = x . k_{i-1},  x *= d_{i-1}, ...
//
// Rows i and 15 - i have 17 steps together, whatever i is, and a lane takes one after the other: the
// sums are counted by steps, so that registers are. With a bonus rows end a step earlier, their own
// step being another sum. Where i is odd a lane waits a step before its second row, and with a bonus
// every lane one more: the steps that lanes are at then differ in their swizzles.
template <int Size, bool Bonus>
struct PairScores {
    static constexpr int kSteps = kChunk + (Bonus ? 1 : 2);
    static constexpr int kOwn = Bonus ? 2 : 0;  // sums of own steps

    float sums[kSteps + kOwn];

    // Steps of the lane's first row, and the first one of its second row.
    __device__ __forceinline__ static int turn() { return RowLanes::row() + (Bonus ? 0 : 1); }
    __device__ __forceinline__ static int second() {
        return RowLanes::row() + RowLanes::row() % 2 + 1;
    }
    __device__ __forceinline__ static bool waits(int step) {
        return (step >= turn() && step < second()) || column(step) < 0;
    }

    // The column of step `step`, and its row.
    __device__ __forceinline__ static int column(int step) {
        return step < turn() ? turn() - 1 - step
                             : kChunk - (Bonus ? 1 : 0) + RowLanes::row() % 2 - step;
    }
    __device__ __forceinline__ static int row(int step) {
        return step < turn() ? RowLanes::row() : kChunk - 1 - RowLanes::row();
    }

    // Of the 16 rows of each tile from `first` on.
    template <typename KeyTile, typename GateTile>
    __device__ __forceinline__ void compute(const KeyTile& rows, const KeyTile& keys,
                                            const GateTile& gates, int first,
                                            const float* bonus) {
#pragma unroll
        for (float& sum : sums) {
            sum = 0.f;
        }
        const int upper = first + RowLanes::row();
        const int lower = first + kChunk - 1 - RowLanes::row();
#pragma unroll 1
        for (int four = RowLanes::channels(); four < Size / 4; four += 4) {
            float4 x = four_of(rows, upper, four);
            if constexpr (Bonus) {
                const float4 factor = *reinterpret_cast<const float4*>(bonus + 4 * four);
                const float4 other = four_of(rows, lower, four);
                sums[kSteps] += dot(product(x, factor), four_of(keys, upper, four));
                sums[kSteps + 1] += dot(product(other, factor), four_of(keys, lower, four));
            }
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (step <= kChunk / 2 + 1 && step == second()) {
                    x = four_of(rows, lower, four);
                }
                const int at = first + max(column(step), 0);
                if (sizeof(typename KeyTile::Element) == 4 && step % 4 == 3) {
                    __syncwarp();  // keeps loads from being made before registers are free for them
                }
                sums[step] += dot(x, four_of(keys, at, four));
                if (step + 1 < kSteps) {
                    x = product(x, four_of(gates, at, four));
                }
            }
        }
#pragma unroll
        for (float& sum : sums) {
            sum = RowLanes::sum(sum);
        }
    }

    // Numbers that `exchange` takes.
    static constexpr int kScratch = 22 * kChunk;

    // Where a score lies there: written row by row in different orders and read in pairs, both
    // without bank conflicts.
    __device__ __forceinline__ static int place(int row, int column) {
        return 22 * row + column + 2 * (row % 4);
    }

    // Gives the scores to the lanes that have them in a product of matrices; those behind a row's own
    // step are 0.
    __device__ __forceinline__ void exchange(Products& products, float* scratch) const {
        if (RowLanes::channels() == 0) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (!waits(step)) {
                    scratch[place(row(step), column(step))] = sums[step];
                }
            }
            if constexpr (Bonus) {
                const int upper = RowLanes::row();
                scratch[place(upper, upper)] = sums[kSteps];
                const int lower = kChunk - 1 - upper;
                scratch[place(lower, lower)] = sums[kSteps + 1];
            }
        }
        __syncwarp();  // the scores of all lanes, before each reads them
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int row = lane_row() + 8 * i;
                const int column = 8 * half + lane_column();
                const float2 pair = *reinterpret_cast<const float2*>(scratch + place(row, column));
                products[half][2 * i] = column <= row ? pair.x : 0.f;
                products[half][2 * i + 1] = column + 1 <= row ? pair.y : 0.f;
            }
        }
    }
};

}  // namespace seqmix::linear_attention
