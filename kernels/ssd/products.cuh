// Parts of matrix products that one warp holds: 16 rows of sums in f32.
//
// Which operand is transposed decides how it is loaded: `rows` of a tile are multiplied along its
// columns, `columns` along its rows.
#pragma once

#include <cstdint>

#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"

namespace seqmix::ssd {

// Multiplies the columns of an operand A, of which there are 16, by weights, and by a factor.
template <typename Element>
__device__ __forceinline__ void weigh_columns(Pair<Element> (&a)[4], const float* weights,
                                              float factor = 1.f) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float2 weight =
            *reinterpret_cast<const float2*>(weights + 8 * half + 2 * (lane_of_warp() % 4));
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
            const float2 pair = part<Element>(a[i]);
            a[i] = join<Element>(pair.x * (weight.x * factor), pair.y * (weight.y * factor));
        }
    }
}

// A number for each of the lane's two rows: those of half 1 are 8 rows below those of half 0.
struct RowPair {
    float values[2];

    __device__ __forceinline__ float operator[](int half) const { return values[half]; }
};

// with(row) for each of the lane's rows, of 16 that begin at `first`.
template <typename With>
__device__ __forceinline__ RowPair for_rows(int first, const With& with) {
    const int row = first + lane_of_warp() / 4;
    return {with(row), with(row + 8)};
}

// Which steps of 16 along a product count for the 16 rows of a warp, the others being zeros.
enum class Band {
    All,
    UpTo,  // those up to its own: the rest is above the diagonal
    From,  // its own and later ones
};

template <Band Which>
__device__ __forceinline__ bool in_band(int step, int own) {
    return Which == Band::All || (Which == Band::UpTo ? step <= own : step >= own);
}

// 16 rows and 8 * Parts columns.
template <int Parts>
struct Products {
    float values[Parts][4];

    __device__ __forceinline__ float largest() const {
        float x = 0.f;
#pragma unroll
        for (int part = 0; part < Parts; ++part) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x = fmaxf(x, fabsf(values[part][i]));
            }
        }
        return warp_max(x);
    }

    __device__ __forceinline__ void multiply_rows(const RowPair& factors) {
#pragma unroll
        for (int part = 0; part < Parts; ++part) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                values[part][i] *= factors[i / 2];
            }
        }
    }

    __device__ __forceinline__ void add(const Products& other) {
#pragma unroll
        for (int part = 0; part < Parts; ++part) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                values[part][i] += other.values[part][i];
            }
        }
    }

    // += a b^T, of the 16 rows of `a` from `row` on and the rows of `b` from `column` on. With a
    // Band that is not All, columns behind the rows count as zeros.
    template <int Steps, Band Which = Band::All, typename A, typename B>
    __device__ __forceinline__ void add_rows_by_rows(const A& a, int row, const B& b, int column) {
        using Element = typename A::Element;
        const auto a_operand = by_rows(a, row);
        const auto b_operand = by_columns(b, column);
        // not all of many steps at once: their operands would take too many registers
        constexpr int kUnroll = sizeof(Element) == 2 ? 4 : 1;
#pragma unroll kUnroll
        for (int step = 0; step < Steps; ++step) {
            Pair<Element> left[4];
            a_operand.load(left, 0, step);
#pragma unroll
            for (int pair = 0; pair < Parts / 2; ++pair) {
                if (in_band<Which>(column / 16 + pair, row / 16)) {
                    Pair<Element> right[4];
                    b_operand.load(right, 16 * pair, step);
                    multiply_pairs<Element>(values[2 * pair], left, right[0], right[1]);
                    multiply_pairs<Element>(values[2 * pair + 1], left, right[2], right[3]);
                }
            }
        }
    }

    // += factors (a b), of the 16 rows of `a` from `row` on and the columns of `b` from `column` on;
    // `weigh(operand, step)` may change the operands of `a`.
    template <int Steps, Band Which = Band::All, typename A, typename B, typename Weigh>
    __device__ __forceinline__ void add_rows_by_columns(const RowPair& factors, const A& a, int row,
                                                        const B& b, int column,
                                                        const Weigh& weigh) {
        const auto a_operand = by_rows(a, row);
        Pair<typename A::Element> left[Steps][4];
#pragma unroll
        for (int step = 0; step < Steps; ++step) {
            if (in_band<Which>(step, row / 16)) {
                a_operand.load(left[step], 0, step);
                weigh(left[step], step);
            }
        }
        add_by_columns<Steps, Which>(factors, left, row, b, column);
    }

    template <int Steps, Band Which = Band::All, typename A, typename B>
    __device__ __forceinline__ void add_rows_by_columns(const RowPair& factors, const A& a, int row,
                                                        const B& b, int column) {
        add_rows_by_columns<Steps, Which>(factors, a, row, b, column,
                                          [](Pair<typename A::Element> (&)[4], int) {});
    }

    // += factors (a^T b), of the 16 columns of `a` from `row` on.
    template <int Steps, Band Which = Band::All, typename A, typename B>
    __device__ __forceinline__ void add_columns_by_columns(const RowPair& factors, const A& a,
                                                           int row, const B& b, int column) {
        const auto a_operand = by_columns(a, 0);
        Pair<typename A::Element> left[Steps][4];
#pragma unroll
        for (int step = 0; step < Steps; ++step) {
            if (in_band<Which>(step, row / 16)) {
                a_operand.load_transposed(left[step], 16 * step, row / 16);
            }
        }
        add_by_columns<Steps, Which>(factors, left, row, b, column);
    }

    // For each row, the sum of products with the elements of `tile` in the same places.
    template <typename T>
    __device__ __forceinline__ RowPair rows_dot(const T& tile, int row, int column) const {
        using Element = typename T::Element;
        RowPair sums = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int at = row + 8 * half + lane_of_warp() / 4;
#pragma unroll
            for (int part = 0; part < Parts; ++part) {
                const float2 other = seqmix::part<Element>(
                    pair_of(tile, at, column + 8 * part + 2 * (lane_of_warp() % 4)));
                sums.values[half] +=
                    values[part][2 * half] * other.x + values[part][2 * half + 1] * other.y;
            }
            sums.values[half] = quad_sum(sums.values[half]);
        }
        return sums;
    }

private:
    template <int Steps, Band Which, typename B>
    __device__ __forceinline__ void add_by_columns(
        const RowPair& factors, const Pair<typename B::Element> (&left)[Steps][4], int row,
        const B& b, int column) {
        using Element = typename B::Element;
        const auto b_operand = by_rows(b, 0, column);
#pragma unroll
        for (int pair = 0; pair < Parts / 2; ++pair) {
            float sums[2][4] = {};
#pragma unroll
            for (int step = 0; step < Steps; ++step) {
                if (in_band<Which>(step, row / 16)) {
                    Pair<Element> right[4];
                    b_operand.load_transposed(right, 16 * step, pair);
                    multiply_pairs<Element>(sums[0], left[step], right[0], right[1]);
                    multiply_pairs<Element>(sums[1], left[step], right[2], right[3]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                values[2 * pair][i] += factors[i / 2] * sums[0][i];
                values[2 * pair + 1][i] += factors[i / 2] * sums[1][i];
            }
        }
    }
};

}  // namespace seqmix::ssd
