// A tile of values, in which outputs take the place of what was read.
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"
#include "linear_attention/state.cuh"

namespace seqmix::linear_attention {

// `Count` steps of the channels of four warps.
template <typename Element_, int Tiles, int Count>
struct Values {
    using Element = Element_;
    static constexpr int kWarpChannels = 16 * Tiles;
    static constexpr int kWidth = 4 * kWarpChannels;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    using Tile = seqmix::Tile<Element, Count, kWidth>;

    Tile tile;

    // The warp's first channel.
    __device__ __forceinline__ static int warp_channel() {
        return warp_of_block() * kWarpChannels;
    }

    // Starts the copies of the tile that begins `step` steps into the walk.
    template <int Threads>
    __device__ __forceinline__ void fetch(const Layer& layer, const Place& place, int step) {
        using TileCopy = Copy<Threads, Tile>;
        const Element* first = row_of<const Element>(layer.v, place, step) + place.channel;
        const int64_t stride = stride_of(layer.v, place);
        TileCopy::start(tile, TileCopy::source(first, stride), stride, place.steps - step,
                        min(layer.dv - place.channel, kWidth) / kElements);
    }

    // The warp's channels of a chunk, as operands A whose columns are steps.
    __device__ __forceinline__ void load(Pair<Element> (&values)[Tiles][4], int chunk) const {
        const auto operand = by_columns(tile, 0, warp_channel());
#pragma unroll
        for (int i = 0; i < Tiles; ++i) {
            operand.load_transposed(values[i], kChunk * chunk, i);
        }
    }

    // Writes the outputs of the warp's channels of a chunk over their values.
    __device__ __forceinline__ void put(const float (&outputs)[Tiles][2][4], int chunk) {
        __syncwarp();  // all lanes have read the values, before they are overwritten
#pragma unroll
        for (int i = 0; i < Tiles; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int step = kChunk * chunk + 8 * half + lane_column() + j % 2;
                    const int channel = warp_channel() + 16 * i + 8 * (j / 2) + lane_row();
                    put_element(step, channel, outputs[i][half][j]);
                }
            }
        }
    }

    // Stores the rows of the warp's channels of a chunk that exist, which steps of the walk before
    // `lead` do not; `step` is the tile's first.
    __device__ __forceinline__ void store(const Rows& out, const Layer& layer, const Place& place,
                                          int step, int chunk, int lead = 0) const {
        __syncwarp();  // the lanes have written the warp's channels, before other lanes read them
        // chunks of 16 bytes of a row: eight lanes take rows whose swizzles differ as their columns do
        constexpr int kOwn = kWarpChannels / kElements;
        const auto* bytes = reinterpret_cast<const unsigned char*>(tile.elements);
        const int rows = place.steps - step - kChunk * chunk;
        const int channels = layer.dv - place.channel;
        Element* to = row_of<Element>(out, place, step + kChunk * chunk) + place.channel;
#pragma unroll
        for (int pass = 0; pass < kChunk * kOwn / 32; ++pass) {
            const int eight = 4 * pass + lane_of_warp() / 8;
            const int lane = lane_of_warp() % 8;
            const int row = eight / kOwn * 8 + eight % kOwn + lane / kOwn * kOwn;
            const int column = warp_channel() / kElements + lane % kOwn;
            if (row < rows && row >= lead - step - kChunk * chunk &&
                kElements * column < channels) {
                *reinterpret_cast<uint4*>(to + row * stride_of(out, place) + kElements * column) =
                    *reinterpret_cast<const uint4*>(bytes +
                                                    Tile::offset(kChunk * chunk + row, column));
            }
        }
    }

    // Stores outputs as f32 instead, or adds them to what is there.
    __device__ __forceinline__ static void store_parts(const float (&outputs)[Tiles][2][4],
                                                       const Rows& out, const Layer& layer,
                                                       const Place& place, int first, int chunk,
                                                       bool add, int lead = 0) {
        const int step = first + kChunk * chunk + lane_column();
        const int channel = place.channel + warp_channel() + lane_row();
        float* to = row_of<float>(out, place, step) + channel;
        const int64_t stride = stride_of(out, place);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int down = 8 * (i / 4) + i % 2;
            if (step + down < lead || step + down >= place.steps) {
                continue;
            }
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                const int right = 16 * tile + 8 * (i / 2 % 2);
                if (channel + right < layer.dv) {
                    float& sum = to[down * stride + right];
                    const float part = outputs[tile][i / 4][i % 4];
                    sum = add ? sum + part : part;
                }
            }
        }
    }

private:
    __device__ __forceinline__ void put_element(int row, int column, float number) {
        auto* bytes = reinterpret_cast<unsigned char*>(tile.elements) +
                      Tile::offset(row, column / kElements);
        if constexpr (sizeof(Element) == 4) {
            reinterpret_cast<float*>(bytes)[column % kElements] = number;
        } else {
            reinterpret_cast<uint16_t*>(bytes)[column % kElements] =
                static_cast<uint16_t>(pack<Element>(number, 0.f));
        }
    }
};

}  // namespace seqmix::linear_attention
