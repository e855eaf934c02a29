// States of chunks: the sum over a chunk's steps of column value^T, for every GPU since Ampere.
//
// grid    x: kChannels value channels each; y: chunks; z: sequences
// block   takes Width steps at a time, the next ones on their way
// warp    owns some channels of z, and all or half of the block's value channels
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/mma.cuh"
#include "common/operands.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "gated_attention_unit/affine.cuh"
#include "gated_attention_unit/params.h"
#include "gated_attention_unit/place.cuh"
#include "gated_attention_unit/scores.cuh"

namespace seqmix::gated_attention_unit {

template <typename Element_, int Size, int Width>
struct States {
    using Element = Element_;
    static constexpr int kThreads = gated_attention_unit::kThreads;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    static constexpr int kChannels = 128;
    static constexpr int kWarpsDown = Size / 16 < kWarps ? Size / 16 : kWarps;
    static constexpr int kWarpsAcross = kWarps / kWarpsDown;
    static constexpr int kTiles = Size / 16 / kWarpsDown;  // of 16 rows, of a warp
    static constexpr int kParts = kChannels / kWarpsAcross / 8;

    using ColumnTile = Tile<Element, Width, Size>;
    using ValueTile = Tile<Element, Width, kChannels>;

    struct Stage {
        ColumnTile columns;
        ValueTile values;
    };

    struct Smem {
        Stage stages[2];
        Coefficients<Element, Size> by;
    };

    __device__ __forceinline__ static void run(const StatesParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Sequence sequence = sequence_of(layer, static_cast<int>(blockIdx.z));
        const int start = layer.chunk * static_cast<int>(blockIdx.y);
        if (start >= sequence.steps) {
            return;
        }
        const Chunk chunk = chunk_of(layer, sequence, start);
        // the last state on the way reaches nobody
        if (layer.causal && (layer.reversed ? chunk.first : chunk.last)) {
            return;
        }
        const int channel = kChannels * static_cast<int>(blockIdx.x);
        smem.by.template load<kThreads>(params.linear, layer.dz);
        fetch(params, sequence, chunk, channel, smem.stages[0], start);

        float sums[kTiles][kParts][4] = {};
        const int warp_row = 16 * kTiles * (warp_of_block() % kWarpsDown);
        const int warp_column = 8 * kParts * (warp_of_block() / kWarpsDown);
        int turn = 0;
#pragma unroll 1
        for (int first = start; first < chunk.end; first += Width, turn ^= 1) {
            Stage& stage = smem.stages[turn];
            wait_copies<0>();
            __syncthreads();  // z, values and coefficients, before they are read; the other stage is read
            if (first + Width < chunk.end) {
                fetch(params, sequence, chunk, channel, smem.stages[turn ^ 1], first + Width);
            }
            smem.by.template apply<kThreads>(stage.columns);
            __syncthreads();  // columns, before they are multiplied
            const auto columns = by_columns(stage.columns, 0, warp_row / 64 * 64);
            const auto values = by_rows(stage.values, 0, warp_column);
#pragma unroll 1
            for (int step = 0; step < Width / 16 && first + 16 * step < chunk.end; ++step) {
                Pair<Element> left[kTiles][4];
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    columns.load_transposed(left[tile], 16 * step, warp_row % 64 / 16 + tile);
                }
#pragma unroll
                for (int pair = 0; pair < kParts / 2; ++pair) {
                    Pair<Element> right[4];
                    values.load_transposed(right, 16 * step, pair);
#pragma unroll
                    for (int tile = 0; tile < kTiles; ++tile) {
                        multiply_pairs<Element>(sums[tile][2 * pair], left[tile], right[0],
                                                right[1]);
                        multiply_pairs<Element>(sums[tile][2 * pair + 1], left[tile], right[2],
                                                right[3]);
                    }
                }
            }
        }

        float* to = params.states + sequence.slot(layer.chunk, chunk.index) * layer.dz * layer.dv;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = warp_row + 16 * tile + 8 * half + lane_row();
#pragma unroll
                for (int part = 0; part < kParts; ++part) {
                    const int column = channel + warp_column + 8 * part + lane_column();
                    if (row < layer.dz && column < layer.dv) {
                        *reinterpret_cast<float2*>(to + static_cast<int64_t>(row) * layer.dv +
                                                   column) =
                            make_float2(sums[tile][part][2 * half], sums[tile][part][2 * half + 1]);
                    }
                }
            }
        }
    }

    // Starts the copies of z and of the values of the steps from `first` on.
    __device__ __forceinline__ static void fetch(const StatesParams& params,
                                                 const Sequence& sequence, const Chunk& chunk,
                                                 int channel, Stage& stage, int first) {
        const Layer& layer = params.layer;
        using ColumnCopy = Copy<kThreads, ColumnTile>;
        const Element* z = row_of<const Element>(layer.z, sequence, first);
        ColumnCopy::start(stage.columns, ColumnCopy::source(z, layer.z.step_stride),
                          layer.z.step_stride, chunk.end - first, layer.dz / kElements);
        using ValueCopy = Copy<kThreads, ValueTile>;
        const Element* values = row_of<const Element>(params.values, sequence, first) + channel;
        ValueCopy::start(stage.values, ValueCopy::source(values, params.values.step_stride),
                         params.values.step_stride, chunk.end - first,
                         (layer.dv - channel) / kElements);
        commit_copies();
    }
};

}  // namespace seqmix::gated_attention_unit
