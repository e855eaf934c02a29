// Attention of the gated attention unit for every GPU since Ampere: the squares of a tile of scores,
// times values, and what the rows meet of other chunks' states.
//
// grid    x: Channels value channels each; y: tiles of kRows rows; z: sequences
// block   walks over the columns of its rows' chunk, Width at a time
// warp    owns 16 rows and half of the columns of a tile of scores; of the outputs, all rows and
//         Channels / 8 channels
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
//
// Scores pass through shared memory once, and serve all channels of the block. While they are computed,
// the values are on their way; while those are multiplied, the next columns are.
//
// Forward, rows are queries and columns keys, and the gate is u. With the gradient of the output for a
// gate it gives that of u; with keys for rows, and the gradient of `a` for values, that of v.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "gated_attention_unit/affine.cuh"
#include "gated_attention_unit/params.h"
#include "gated_attention_unit/place.cuh"
#include "gated_attention_unit/scores.cuh"

namespace seqmix::gated_attention_unit {

template <typename Element_, int Size, int Width, int Channels>
struct Attend {
    using Element = Element_;
    static constexpr int kThreads = gated_attention_unit::kThreads;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    static constexpr int kWarpChannels = Channels / kWarps;
    static constexpr int kParts = kWarpChannels / 8;  // of 16x8, of a warp's channels
    static constexpr int kRowTiles = kRows / 16;
    static constexpr int kSteps = Width / 16;
    static_assert(kParts % 2 == 0, "two parts are one operand");
    static_assert(kSlice % kWarpChannels == 0, "a warp's channels share a unit");
    static_assert(kRows % Width == 0, "chunks are whole tiles");

    using RowTile = Tile<Element, kRows, Size>;
    using ColumnTile = Tile<Element, Width, Size>;
    using ValueTile = Tile<Element, Width, Channels>;
    using ScoreTile = Tile<Element, kRows, Width>;
    using Scores = gated_attention_unit::Scores<Element, Width>;
    using By = Coefficients<Element, Size>;

    struct Smem {
        RowTile rows;
        ColumnTile columns;
        ValueTile values;  // or states, or at the end the gate and the outputs
        ScoreTile scores;
        By row_by;
        By column_by;
        Bias<Width> bias;
        Units units;
    };

    // The outputs of a warp.
    struct Output {
        float values[kRowTiles][kParts][4];
    };

    // The block's place.
    struct Place {
        Sequence sequence;
        Chunk chunk;
        int row;
        int channel;  // of this warp, the first one
        int channels;  // that this warp has, none behind the last one
    };

    __device__ __forceinline__ static void run(const AttendParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        Place place;
        place.sequence = sequence_of(layer, static_cast<int>(blockIdx.z));
        // the rows that see most are the first ones
        const bool descending = layer.causal && !layer.reversed;
        place.row = kRows * static_cast<int>(descending ? gridDim.y - 1 - blockIdx.y : blockIdx.y);
        if (place.row >= place.sequence.steps) {
            return;
        }
        place.chunk = chunk_of(layer, place.sequence, place.row);
        place.channel =
            static_cast<int>(blockIdx.x) * Channels + kWarpChannels * warp_of_block();
        place.channels = min(layer.dv - place.channel, kWarpChannels);

        Output out = {};
        if (params.states != nullptr && meets_states(layer, place.chunk)) {
            multiply_states(params, place, smem, out);
        }
        const int turn = multiply_scores(params, place, smem, out);
        finish(params, place, smem, out, turn);
    }

    // out = linear_scale (rows S), where S is divided by its unit.
    __device__ __forceinline__ static void multiply_states(const AttendParams& params,
                                                           const Place& place, Smem& smem,
                                                           Output& out) {
        const Layer& layer = params.layer;
        const int64_t slot = slot_met(layer, place.sequence, place.chunk);
        const auto fetch_states = [&](int first) {
            const Element* from = static_cast<const Element*>(params.states) +
                                  (slot * layer.dz + first) * layer.dv + block_channel();
            using ValueCopy = Copy<kThreads, ValueTile>;
            ValueCopy::start(smem.values, ValueCopy::source(from, layer.dv), layer.dv,
                             layer.dz - first, (layer.dv - block_channel()) / kElements);
            commit_copies();
        };
        fetch_rows(layer, place, smem);
        fetch_states(0);
        smem.row_by.template load<kThreads>(params.linear, layer.dz);
        wait_copies<1>();
        __syncthreads();  // z and the coefficients, before rows are made of them
        smem.row_by.template apply<kThreads>(smem.rows);
        const auto rows = by_rows(smem.rows, 0);
        for (int first = 0; first < layer.dz; first += Width) {
            wait_copies<0>();
            __syncthreads();  // rows and states, before they are multiplied
            const Sight all = {layer.dz - first, -kRows - Width, kRows + Width};
            multiply(out, rows, first / 16, smem, place, all);
            __syncthreads();  // rows and states are read, before the next ones come
            if (first + Width < layer.dz) {
                fetch_states(first + Width);
            }
        }
        float factor = layer.linear_scale;
        if constexpr (kNarrow<Element>) {
            if (place.channels > 0) {
                const int slices = (layer.dv + kSlice - 1) / kSlice;
                factor *= params.units[slot * slices + place.channel / kSlice];
            }
            factor *= inverse(Units::kFirst);
        }
        for_each(out, [&](float& x, int) { x *= factor; });
    }

    // out += squares of scores times values, over all columns that the rows see; returns whose turn of
    // units it is.
    __device__ __forceinline__ static int multiply_scores(const AttendParams& params,
                                                          const Place& place, Smem& smem,
                                                          Output& out) {
        const Layer& layer = params.layer;
        const Columns columns = columns_of(layer, place.chunk, place.row);
        fetch_rows(layer, place, smem);
        fetch_columns(layer, place, smem, columns.first);
        fetch_values(params, place, smem, columns.first);
        smem.row_by.template load<kThreads>(params.rows, layer.dz);
        smem.column_by.template load<kThreads>(params.columns, layer.dz);
        if constexpr (kNarrow<Element>) {
            smem.units.begin();
        }
        wait_copies<2>();
        __syncthreads();  // z of rows and the coefficients, before rows are made of them
        smem.row_by.template apply<kThreads>(smem.rows);

        int turn = 0;
#pragma unroll 1
        for (int first = columns.first; first < columns.end; first += Width) {
            const Sight sight = Sight::of(layer, place.row, first, columns.end);
            wait_copies<1>();
            __syncthreads();  // z of columns, before columns are made of it; rows, before they are read
            smem.column_by.template apply<kThreads>(smem.columns);
            smem.bias.load(layer, place.row, first);
            __syncthreads();  // columns and bias, before they are read
            Scores scores = {};
            scores.template multiply<Size / 16>(smem.rows, smem.columns, sight);
            scores.activate(layer, smem.bias, sight);
            scores.for_each([](float& x, int, int) { x *= x; });
            if constexpr (kNarrow<Element>) {
                scores.fit(smem.units, turn);
            }
            scores.store(smem.scores);
            wait_copies<0>();
            __syncthreads();  // scores and values, before they are multiplied; columns are read
            if (first + Width < columns.end) {
                fetch_columns(layer, place, smem, first + Width);
            }
            if constexpr (kNarrow<Element>) {
                follow_units(smem, out, turn);
                turn ^= 1;
            }
            multiply(out, by_rows(smem.scores, 0), 0, smem, place, sight);
            __syncthreads();  // scores and values are read, before the next ones come
            if (first + Width < columns.end) {
                fetch_values(params, place, smem, first + Width);
            }
        }
        return turn;
    }

    // The first channel of the block.
    __device__ __forceinline__ static int block_channel() {
        return static_cast<int>(blockIdx.x) * Channels;
    }

    template <typename T>
    __device__ __forceinline__ static void fetch_z(const Layer& layer, const Place& place, T& tile,
                                                   int step, int steps) {
        const Element* from = row_of<const Element>(layer.z, place.sequence, step);
        Copy<kThreads, T>::start(tile, Copy<kThreads, T>::source(from, layer.z.step_stride),
                                 layer.z.step_stride, steps, layer.dz / kElements);
        commit_copies();
    }

    // Starts the copy of z of the block's rows.
    __device__ __forceinline__ static void fetch_rows(const Layer& layer, const Place& place,
                                                      Smem& smem) {
        fetch_z(layer, place, smem.rows, place.row, place.sequence.steps - place.row);
    }

    // Starts the copy of z of the columns from `first` on.
    __device__ __forceinline__ static void fetch_columns(const Layer& layer, const Place& place,
                                                         Smem& smem, int first) {
        fetch_z(layer, place, smem.columns, first, place.sequence.steps - first);
    }

    // Starts the copy of the values of the columns from `first` on.
    __device__ __forceinline__ static void fetch_values(const AttendParams& params,
                                                        const Place& place, Smem& smem, int first) {
        using ValueCopy = Copy<kThreads, ValueTile>;
        const Rows& values = params.values;
        const Element* from =
            row_of<const Element>(values, place.sequence, first) + block_channel();
        ValueCopy::start(smem.values, ValueCopy::source(from, values.step_stride),
                         values.step_stride, place.sequence.steps - first,
                         (params.layer.dv - block_channel()) / kElements);
        commit_copies();
    }

    // out += a values, of the columns of `a` from 16 * `step` on.
    template <typename A>
    __device__ __forceinline__ static void multiply(Output& out, const A& a, int step, Smem& smem,
                                                    const Place& place, const Sight& sight) {
        if (place.channels <= 0) {  // the same for the whole warp
            return;
        }
        const auto values = by_rows(smem.values, 0, kWarpChannels * warp_of_block());
#pragma unroll 1
        for (int k = 0; k < kSteps; ++k) {
            if (16 * k >= sight.columns) {
                break;
            }
            Pair<Element> left[kRowTiles][4];
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
                a.load(left[tile], 16 * tile, step + k);
            }
#pragma unroll
            for (int pair = 0; pair < kParts / 2; ++pair) {
                Pair<Element> right[4];
                values.load_transposed(right, 16 * k, pair);
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
                    if (sight.any(16 * tile, 16 * k)) {
                        float(&sums)[kParts][4] = out.values[tile];
                        multiply_pairs<Element>(sums[2 * pair], left[tile], right[0], right[1]);
                        multiply_pairs<Element>(sums[2 * pair + 1], left[tile], right[2], right[3]);
                    }
                }
            }
        }
    }

    // Calls with(value, row) for each of the lane's outputs.
    template <typename With>
    __device__ __forceinline__ static void for_each(Output& out, const With& with) {
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    with(out.values[tile][part][i], 16 * tile + 8 * (i / 2) + lane_row());
                }
            }
        }
    }

    // Brings the outputs to the units of the tile of this turn.
    __device__ __forceinline__ static void follow_units(const Smem& smem, Output& out, int turn) {
        float changes[2 * kRowTiles];
        bool changed = false;
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; ++i) {
            changes[i] = smem.units.change(turn, 8 * i + lane_row());
            changed |= changes[i] != 1.f;
        }
        if (__any_sync(kAllLanes, changed)) {  // seldom
#pragma unroll
            for (int i = 0; i < 2 * kRowTiles; ++i) {
#pragma unroll
                for (int part = 0; part < kParts; ++part) {
                    out.values[i / 2][part][i % 2 * 2] *= changes[i];
                    out.values[i / 2][part][i % 2 * 2 + 1] *= changes[i];
                }
            }
        }
    }

    // Calls with(row, chunk) for the chunks of 16 bytes of the warp's channels in Width rows of the tile
    // of values, each in one lane. The rows that eight neighbouring lanes take differ in their swizzles
    // as much as in their columns, so that their accesses have no bank conflicts.
    template <typename With>
    __device__ __forceinline__ static void for_each_chunk(const With& with) {
        constexpr int kOwn = kWarpChannels / kElements;  // chunks of a row
        static_assert(kOwn <= 8 && 8 % kOwn == 0, "eight lanes take whole rows");
#pragma unroll
        for (int pass = 0; pass < Width * kOwn / 32; ++pass) {
            const int eight = 4 * pass + lane_of_warp() / 8;
            const int lane = lane_of_warp() % 8;
            const int row = eight / kOwn * 8 + eight % kOwn + lane / kOwn * kOwn;
            with(row, lane % kOwn);
        }
    }

    // Stores the outputs, times the gate if there is one.
    __device__ __forceinline__ static void finish(const AttendParams& params, const Place& place,
                                                  Smem& smem, Output& out, int turn) {
        if (place.channels <= 0) {
            return;
        }
        if constexpr (kNarrow<Element>) {
            for_each(out, [&](float& x, int row) { x *= smem.units.values[turn][row]; });
        }
        const int rows = min(place.sequence.steps - place.row, kRows);
        const int chunk_of_warp = kWarpChannels / kElements * warp_of_block();
        const auto at = [&](const Rows& tensor, int row, int chunk) {
            return row_of<Element>(tensor, place.sequence, place.row + row) + place.channel +
                   kElements * chunk;
        };
        // the tile of values has room for Width rows
#pragma unroll
        for (int above = 0; above < kRows; above += Width) {
            const auto exists = [&](int row, int chunk) {
                return above + row < rows && kElements * chunk < place.channels;
            };
            if (params.gate.at != nullptr) {
                for_each_chunk([&](int row, int chunk) {
                    const bool valid = exists(row, chunk);
                    copy16_async(smem.values.address(row, chunk_of_warp + chunk),
                                 at(params.gate, valid ? above + row : 0, valid ? chunk : 0), valid);
                });
                commit_copies();
                wait_copies<0>();
                __syncwarp();  // every lane's part of the gate, before it is read
            }
#pragma unroll
            for (int i = 0; i < Width / 8; ++i) {
                const int tile = above / 16 + i / 2;
#pragma unroll
                for (int part = 0; part < kParts; ++part) {
                    const float* pair = &out.values[tile][part][i % 2 * 2];
                    auto& to = pair_of(smem.values, 8 * i + lane_row(),
                                       kWarpChannels * warp_of_block() + 8 * part + lane_column());
                    float2 gate = make_float2(1.f, 1.f);
                    if (params.gate.at != nullptr) {
                        gate = seqmix::part<Element>(to);
                    }
                    to = join<Element>(pair[0] * gate.x, pair[1] * gate.y);
                }
            }
            __syncwarp();  // the lanes have written the warp's channels, before other lanes read them
            for_each_chunk([&](int row, int chunk) {
                if (exists(row, chunk)) {
                    const auto* bytes = reinterpret_cast<const unsigned char*>(smem.values.elements);
                    *reinterpret_cast<uint4*>(at(params.out, above + row, chunk)) =
                        *reinterpret_cast<const uint4*>(
                            bytes + ValueTile::offset(row, chunk_of_warp + chunk));
                    if (params.other.at != nullptr) {
                        multiply_gate(at(params.gate, above + row, chunk),
                                      at(params.other, above + row, chunk),
                                      at(params.product, above + row, chunk));
                    }
                }
            });
            __syncwarp();  // the outputs are read, before the next ones come
        }
    }

    // product = gate other, of 16 bytes.
    __device__ __forceinline__ static void multiply_gate(const Element* gate, const Element* other,
                                                         Element* product) {
        auto pairs = Pairs<Element>::load(gate);
        const auto factors = Pairs<Element>::load(other);
#pragma unroll
        for (int i = 0; i < Pairs<Element>::kCount; ++i) {
            const float2 x = part<Element>(pairs.values[i]);
            const float2 y = part<Element>(factors.values[i]);
            pairs.values[i] = join<Element>(x.x * y.x, x.y * y.y);
        }
        pairs.store(product);
    }
};

}  // namespace seqmix::gated_attention_unit
