// A warp's part of a tile of scores, or of their gradients: 16 rows and half of the columns.
//
// warp    four lie below each other, and two side by side
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
#pragma once

#include <cstdint>

#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "gated_attention_unit/place.cuh"

namespace seqmix::gated_attention_unit {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

// A warp's place among those that share a tile.
__device__ __forceinline__ int warp_row() { return 16 * (warp_of_block() % 4); }
__device__ __forceinline__ int warp_half() { return warp_of_block() / 4; }

// The lane's place in a 16x8 product.
__device__ __forceinline__ int lane_row() { return lane_of_warp() / 4; }
__device__ __forceinline__ int lane_column() { return 2 * (lane_of_warp() % 4); }

// What the operands of each row of a tile are divided by, where f16 could not hold them: a power of two
// that is the same for all tiles so far, and grows when one does not fit. Sums over tiles have it, too,
// and are multiplied by the old one's share of the new one.
struct Units {
    float values[2][kRows];   // of a tile and of that before it, by turns
    float largest[2][kRows];  // magnitudes, in each half of the columns

    // Where units begin: small, so that small scores keep their bits.
    static constexpr float kFirst = 1.f / (1 << 20);
    // How far below the largest f16 a unit puts what made it grow: it seldom has to again.
    static constexpr float kRoom = 1 << 10;

    __device__ __forceinline__ void begin() {
        if (thread_of_block() < kRows) {
            values[0][thread_of_block()] = kFirst;
        }
    }

    // What sums are multiplied by when the tile of this turn is added.
    __device__ __forceinline__ float change(int turn, int row) const {
        return values[turn][row] * inverse(values[turn ^ 1][row]);
    }
};

// The bias of a tile of scores, by row - column.
template <int Width>
struct Bias {
    static constexpr int kCount = kRows + Width - 1;
    float values[kRows + Width];

    // For the tile from column `first` on of the rows from `row` on. 0 where there are no such steps.
    __device__ __forceinline__ void load(const Layer& layer, int row, int first) {
        if (layer.bias == nullptr) {
            return;
        }
        const int i = thread_of_block();
        if (i < kCount) {
            const int distance = row - first + i - (Width - 1);
            const int at = layer.distances - 1 + (layer.reversed ? -distance : distance);
            values[i] = at >= 0 && at < 2 * layer.distances - 1 ? layer.bias[at] : 0.f;
        }
    }

    __device__ __forceinline__ float of(int row, int column) const {
        return values[row - column + Width - 1];
    }
};

// 16 rows and Width / 2 columns.
template <typename Element, int Width>
struct Scores {
    static constexpr int kColumns = Width / 2;
    static constexpr int kParts = kColumns / 8;

    float values[kParts][4];

    __device__ __forceinline__ static int first_column() { return kColumns * warp_half(); }

    // += a b^T, of the warp's rows of `a` and rows of `b`, over 16 * Steps channels.
    template <int Steps, typename A, typename B>
    __device__ __forceinline__ void multiply(const A& a, const B& b, const Sight& sight) {
        const auto a_operand = by_rows(a, warp_row());
        const auto b_operand = by_columns(b, first_column());
        constexpr int kUnroll = sizeof(Element) == 2 ? 4 : 1;
#pragma unroll kUnroll
        for (int step = 0; step < Steps; ++step) {
            Pair<Element> left[4];
            a_operand.load(left, 0, step);
#pragma unroll
            for (int pair = 0; pair < kParts / 2; ++pair) {
                if (sight.any(warp_row(), first_column() + 16 * pair)) {
                    Pair<Element> right[4];
                    b_operand.load(right, 16 * pair, step);
                    multiply_pairs<Element>(values[2 * pair], left, right[0], right[1]);
                    multiply_pairs<Element>(values[2 * pair + 1], left, right[2], right[3]);
                }
            }
        }
    }

    // Calls with(value, row, column) for each of the lane's numbers.
    template <typename With>
    __device__ __forceinline__ void for_each(const With& with) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                with(values[part][i], warp_row() + lane_row() + i / 2 * 8,
                     first_column() + 8 * part + lane_column() + i % 2);
            }
        }
    }

    // x = max(scale x + bias, 0), and 0 where nothing is seen.
    __device__ __forceinline__ void activate(const Layer& layer, const Bias<Width>& bias,
                                             const Sight& sight) {
        const bool biased = layer.bias != nullptr;
        for_each([&](float& x, int row, int column) {
            x = fmaxf(layer.scale * x + (biased ? bias.of(row, column) : 0.f), 0.f);
        });
        if (!sight.all(Width)) {  // the same for the whole block
            for_each([&](float& x, int row, int column) {
                x = sight.sees(row, column) ? x : 0.f;
            });
        }
    }

    // Divides each row by its unit, which grows if it must.
    __device__ __forceinline__ void fit(Units& units, int turn) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float largest = 0.f;
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                largest = fmaxf(largest, fabsf(values[part][2 * half]));
                largest = fmaxf(largest, fabsf(values[part][2 * half + 1]));
            }
            largest = quad_max(largest);
            if (lane_column() == 0) {
                units.largest[warp_half()][warp_row() + lane_row() + 8 * half] = largest;
            }
        }
        __syncthreads();  // the magnitudes of both halves of a row, before they are read
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row() + lane_row() + 8 * half;
            const float largest = fmaxf(units.largest[0][row], units.largest[1][row]);
            float unit = units.values[turn][row];
            if (largest >= kLargestOperand * unit) {
                unit = fitting(largest) * Units::kRoom;
            }
            if (warp_half() == 0 && lane_column() == 0) {
                units.values[turn ^ 1][row] = unit;
            }
            const float factor = inverse(unit);
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                values[part][2 * half] *= factor;
                values[part][2 * half + 1] *= factor;
            }
        }
    }

    // Rounds to operands.
    template <typename T>
    __device__ __forceinline__ void store(T& tile) const {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const int column = first_column() + 8 * part + lane_column();
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = warp_row() + lane_row() + 8 * half;
                pair_of(tile, row, column) =
                    join<Element>(values[part][2 * half], values[part][2 * half + 1]);
            }
        }
    }
};

}  // namespace seqmix::gated_attention_unit
