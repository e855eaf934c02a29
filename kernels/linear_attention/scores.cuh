// The scores of a tile's chunks: 16 rows of queries, or by the delta rule of keys, by 16 columns of the
// same steps, and the number that each row is divided by.
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "linear_attention/place.cuh"
#include "linear_attention/state.cuh"

namespace seqmix::linear_attention {

// A warp's scores of one chunk: 16 rows and two halves of 8 columns (common/mma.cuh).
using Products = float[2][4];

// products += rows columns^T, of the 16 rows of each tile from `row` on.
template <int Size, typename KeyTile>
__device__ __forceinline__ void multiply_rows(Products& products, const KeyTile& rows,
                                              const KeyTile& columns, int row) {
    using Element = typename KeyTile::Element;
    const auto row_operand = by_rows(rows, 0);
    const auto column_operand = by_columns(columns, 0);
    constexpr int kUnroll = sizeof(Element) == 2 ? 4 : 1;
#pragma unroll kUnroll
    for (int step = 0; step < Size / 16; ++step) {
        Pair<Element> a[4];
        Pair<Element> b[4];
        row_operand.load(a, row, step);
        column_operand.load(b, row, step);
        multiply_pairs<Element>(products[0], a, b[0], b[1]);
        multiply_pairs<Element>(products[1], a, b[2], b[3]);
    }
}

// Calls with(number, row, column) for each of the warp's.
template <typename With>
__device__ __forceinline__ void for_each_score(Products& products, const With& with) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            with(products[half][i], lane_row() + 8 * (i / 2), 8 * half + lane_column() + i % 2);
        }
    }
}

// Divides each row of scores by the power of two that makes it an operand, if kNarrow.
template <typename Element>
__device__ __forceinline__ void fit_rows(Products& scores, float (&units)[2]) {
    if constexpr (kNarrow<Element>) {
        float largest[2] = {};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], fabsf(scores[i / 4][i % 4]));
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            units[half] = fitting(quad_max(largest[half]));
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            scores[i / 4][i % 4] *= inverse(units[i / 2 % 2]);
        }
    }
}

// Square matrices, one for each chunk of a tile of `Count` steps. Those of f32 lie side by side in
// pairs: a row of a tile is 128 bytes.
template <typename Element_, int Count>
struct Squares {
    using Element = Element_;
    static constexpr int kBeside = sizeof(Element) == 4 ? 2 : 1;
    static constexpr int kRows = Count / kBeside < kChunk ? kChunk : Count / kBeside;

    Tile<Element, kRows, kBeside * kChunk> tile;

    // Stores what a warp holds of a chunk.
    __device__ __forceinline__ void store(int chunk, const Products& products) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                pair_of(tile, first_row(chunk) + lane_row() + 8 * i,
                        kChunk * (chunk % kBeside) + 8 * half + lane_column()) =
                    join<Element>(products[half][2 * i], products[half][2 * i + 1]);
            }
        }
    }

    // A number of a chunk's.
    __device__ __forceinline__ float number(int chunk, int row, int column) const {
        const float2 both = part<Element>(pair_of(tile, first_row(chunk) + row,
                                                  kChunk * (chunk % kBeside) + column / 2 * 2));
        return column % 2 == 0 ? both.x : both.y;
    }

    // A chunk's, as operands B whose columns are its rows.
    __device__ __forceinline__ void load(Pair<Element> (&b)[4], int chunk) const {
        by_columns(tile, 0).load(b, first_row(chunk), chunk % kBeside);
    }

    // outputs += u^T square^T
    template <typename Outputs, typename Values>
    __device__ __forceinline__ void multiply(Outputs& outputs, const Values& u, int chunk) const {
        Pair<Element> b[4];
        load(b, chunk);
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(Outputs) / sizeof(outputs[0])); ++i) {
            multiply_pairs<Element>(outputs[i][0], u[i], b[0], b[1]);
            multiply_pairs<Element>(outputs[i][1], u[i], b[2], b[3]);
        }
    }

private:
    __device__ __forceinline__ static int first_row(int chunk) {
        return kChunk * (chunk / kBeside);
    }
};

}  // namespace seqmix::linear_attention
