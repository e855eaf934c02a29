// The triangular systems of the delta rule, one for each chunk of 16 steps.
//
// With M the products of a chunk's keys, decayed, below the diagonal, and B the diagonal matrix of
// beta, a chunk's errors E are what solves
//
//     (I + M B) E = R,   E = R + N R,   N = (I + M B)^-1 - I
//
// where R is what each error would be without the others of the chunk. N is found in f32, by forward
// substitution; of the two terms only the second one has rounded operands.
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/place.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/state.cuh"

namespace seqmix::linear_attention {

// A lower triangular matrix of one chunk and one warp, on its way to its inverse.
struct alignas(16) Triangle {
    // Pairs of four rows, as lanes hold products, lie in different banks; a row begins at 16 bytes.
    static constexpr int kStride = 24;

    float values[kChunk * kStride];

    __device__ __forceinline__ float2& pair(int half, int i) {
        const int row = lane_row() + 8 * i;
        return *reinterpret_cast<float2*>(values + row * kStride + 8 * half + lane_column());
    }

    // Makes `products`, L below the diagonal and zeros elsewhere, (I + L)^-1 - I. All lanes of a warp.
    __device__ __forceinline__ void invert(Products& products) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                pair(half, i) = make_float2(products[half][2 * i], products[half][2 * i + 1]);
            }
        }
        __syncwarp();  // L of all lanes, before each reads its rows
        // a lane has a column of the inverse: x_i = (i-th of I) - sum over j < i of L_ij x_j
        const int column = lane_of_warp() % kChunk;
        float x[kChunk];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            float sum = i == column ? 1.f : 0.f;
#pragma unroll
            for (int j = 0; j < i; j += 4) {
                const float4 row = *reinterpret_cast<const float4*>(values + i * kStride + j);
                const float four[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    if (j + k < i) {
                        sum = fmaf(-four[k], x[j + k], sum);
                    }
                }
            }
            x[i] = sum;
        }
        __syncwarp();  // all lanes have read L, before it is overwritten
        if (lane_of_warp() < kChunk) {
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                values[i * kStride + column] = i == column ? 0.f : x[i];
            }
        }
        __syncwarp();  // the columns of all lanes, before each reads parts of many
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float2 both = pair(half, i);
                products[half][2 * i] = both.x;
                products[half][2 * i + 1] = both.y;
            }
        }
    }
};

// Divides what a warp has of a chunk's columns by the power of two that makes it operands, which is
// returned.
template <typename Element, typename Outputs>
__device__ __forceinline__ float fit_columns(Outputs& outputs) {
    if constexpr (!kNarrow<Element>) {
        return 1.f;
    }
    constexpr int kNumbers = sizeof(Outputs) / sizeof(float);
    float largest = 0.f;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
        largest = fmaxf(largest, fabsf(outputs[i / 8][i / 4 % 2][i % 4]));
    }
    const float unit = excess(warp_max(largest));
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
        outputs[i / 8][i / 4 % 2][i % 4] *= inverse(unit);
    }
    return unit;
}

// Columns of a chunk, as an operand A whose columns they are.
template <typename Element, typename Outputs, typename Operands>
__device__ __forceinline__ void to_operands(Operands& operands, const Outputs& outputs) {
#pragma unroll
    for (int tile = 0; tile < static_cast<int>(sizeof(Outputs) / sizeof(outputs[0])); ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* pair = &outputs[tile][i / 2][i % 2 * 2];
            operands[tile][i] = join<Element>(pair[0], pair[1]);
        }
    }
}

// What solves the systems of a tile of `Count` steps.
template <typename Element_, int Count>
struct Inverses {
    using Element = Element_;

    Squares<Element, Count> squares;  // N
    Triangle triangles[Count / kChunk];
    float beta[Count];
    float units[Count];  // what rows of N were divided by, if kNarrow

    // Prepares the system of a chunk. `overlaps` are the products of its keys, of which those of steps
    // j < i count, with the decay in between; lanes 0 to 15 give the betas. All lanes of a warp.
    __device__ __forceinline__ void prepare(Products& overlaps, int chunk, float own_beta) {
        const int first = kChunk * chunk;
        if (lane_of_warp() < kChunk) {
            beta[first + lane_of_warp()] = own_beta;
        }
        // the betas of all lanes, before each reads them; and overlaps, if they came that way, before the
        // triangle is overwritten
        __syncwarp();
        for_each_score(overlaps, [&](float& overlap, int i, int j) {
            overlap = j < i ? overlap * beta[first + j] : 0.f;
        });
        triangles[chunk].invert(overlaps);
        float row_units[2] = {1.f, 1.f};
        fit_rows<Element>(overlaps, row_units);
        squares.store(chunk, overlaps);
        if (kNarrow<Element> && lane_column() == 0) {
            units[first + lane_row()] = row_units[0];
            units[first + lane_row() + 8] = row_units[1];
        }
    }

    // errors += N errors, of the warp's channels, in the unit that is returned.
    template <typename Outputs>
    __device__ __forceinline__ float solve(Outputs& errors, int chunk) const {
        const float unit = fit_columns<Element>(errors);
        constexpr int kTiles = sizeof(Outputs) / sizeof(errors[0]);
        Pair<Element> operands[kTiles][4];
        to_operands<Element>(operands, errors);
        if constexpr (kNarrow<Element>) {
            Outputs products = {};
            squares.multiply(products, operands, chunk);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float2 both = of_columns(units + kChunk * chunk, half);
#pragma unroll
                for (int i = 0; i < 4 * kTiles; ++i) {
                    errors[i / 4][half][i % 4] +=
                        products[i / 4][half][i % 4] * (i % 2 == 0 ? both.x : both.y);
                }
            }
        } else {
            squares.multiply(errors, operands, chunk);
        }
        return unit;
    }
};

}  // namespace seqmix::linear_attention
