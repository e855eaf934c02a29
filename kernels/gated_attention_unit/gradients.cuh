// The gradients of queries, or of keys, for every GPU since Ampere, and what becomes of them: those of z,
// gamma, beta and bias.
//
// grid    x: 1; y: tiles of kRows rows; z: sequences
// block   walks over the columns of its rows' chunk, Width at a time, and for each over the value
//         channels, kSlice at a time
// warp    owns 16 rows and half of the columns of a tile of scores; of its rows' gradients half of the
//         channels of z
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
//
// With `left` of rows and `right` of columns, the gradient of scores is dx = 2 x (left right^T), that of
// rows is scale dx columns, and in the linear part linear_scale left S^T. Rows are queries if `left` is
// the gradient of `a` and `right` the values, and keys if it is the other way round.
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
#include "gated_attention_unit/diagonals.cuh"
#include "gated_attention_unit/params.h"
#include "gated_attention_unit/place.cuh"
#include "gated_attention_unit/scores.cuh"

namespace seqmix::gated_attention_unit {

template <typename Element_, int Size, int Width>
struct Gradients {
    using Element = Element_;
    static constexpr int kThreads = gated_attention_unit::kThreads;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    static constexpr int kSliceChannels = 128 / sizeof(Element);
    static constexpr int kSliceSteps = kSliceChannels / 16;
    static constexpr int kHalf = Size / 2;      // channels of z of one warp
    static constexpr int kParts = kHalf / 8;

    using RowTile = Tile<Element, kRows, Size>;
    using ColumnTile = Tile<Element, Width, Size>;
    using LeftTile = Tile<Element, kRows, kSliceChannels>;
    using RightTile = Tile<Element, Width, kSliceChannels>;
    using StateTile = Tile<Element, Size, kSliceChannels>;
    using ScoreTile = Tile<Element, kRows, Width>;
    using Scores = gated_attention_unit::Scores<Element, Width>;
    using By = Coefficients<Element, Size>;

    struct Quadratic {
        ColumnTile columns;
        RightTile right[2];
        ScoreTile scores;
    };

    struct Smem {
        RowTile rows;
        LeftTile left[2];
        union {
            Quadratic quadratic;
            StateTile states[2];
        };
        By row_by;
        By column_by;
        Bias<Width> bias;
        Units units;
        Diagonals<Width> diagonals;
        float sums[4][2][Size + 8];  // of each 16 rows; their ends keep dgamma and dbeta in other banks
    };

    // The gradients of a warp's rows.
    struct Output {
        float values[kParts][4];
    };

    struct Place {
        Sequence sequence;
        Chunk chunk;
        int row;
        int rows;  // of the tile that exist
    };

    __device__ __forceinline__ static void run(const GradientParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        Place place;
        place.sequence = sequence_of(layer, static_cast<int>(blockIdx.z));
        const bool descending = layer.causal && !layer.reversed;
        const int tile = static_cast<int>(descending ? gridDim.y - 1 - blockIdx.y : blockIdx.y);
        place.row = kRows * tile;
        place.rows = min(place.sequence.steps - place.row, kRows);
        if (place.rows <= 0) {
            return;
        }
        place.chunk = chunk_of(layer, place.sequence, place.row);
        float* sums = params.sums + place.sequence.slot(kRows, tile) * params.sums_of_tile;
        float* own = sums + (layer.reversed ? 2 * layer.dz : 0);
        bool first = params.first;
        if (params.linear.gamma != nullptr) {
            Output linear = {};
            if (meets_states(layer, place.chunk)) {
                multiply_states(params, place, smem, linear);
                finish(params, place, smem, linear, params.linear.gamma, layer.linear_scale, first,
                       false);
                first = false;
            }
            sum_rows(place, layer, smem, linear, layer.linear_scale, own + 4 * layer.dz);
        }
        Output out = {};
        float* dbias = params.with_bias ? sums + params.sums_of_tile - (2 * layer.distances - 1)
                                        : nullptr;
        multiply_scores(params, place, smem, out, dbias);
        finish(params, place, smem, out, params.rows.gamma, layer.scale, first,
               params.dz.at != nullptr);
        sum_rows(place, layer, smem, out, layer.scale, own);
    }

    // out = left S^T. Other tiles may come in the place of these after the next barrier.
    __device__ __forceinline__ static void multiply_states(const GradientParams& params,
                                                           const Place& place, Smem& smem,
                                                           Output& out) {
        const Layer& layer = params.layer;
        const int64_t slot = slot_met(layer, place.sequence, place.chunk);
        const auto fetch = [&](int channel, int turn) {
            fetch_slice(params.left, place.sequence, place.row, layer.dv, channel, smem.left[turn]);
            const Element* from =
                static_cast<const Element*>(params.states) + slot * layer.dz * layer.dv + channel;
            using StateCopy = Copy<kThreads, StateTile>;
            StateCopy::start(smem.states[turn], StateCopy::source(from, layer.dv), layer.dv,
                             layer.dz, (layer.dv - channel) / kElements);
            commit_copies();
        };
        fetch(0, 0);
        int turn = 0;
#pragma unroll 1
        for (int channel = 0; channel < layer.dv; channel += kSliceChannels, turn ^= 1) {
            wait_copies<0>();
            __syncthreads();  // both tiles, before they are multiplied; those of the other turn are read
            if (channel + kSliceChannels < layer.dv) {
                fetch(channel + kSliceChannels, turn ^ 1);
            }
            const auto left = by_rows(smem.left[turn], warp_row());
            const auto states = by_columns(smem.states[turn], kHalf * warp_half());
            const float unit = state_unit(params, slot, channel);
            Output slice = {};
            Output& to = kNarrow<Element> ? slice : out;
#pragma unroll 1
            for (int step = 0; step < kSliceSteps; ++step) {
                Pair<Element> a[4];
                left.load(a, 0, step);
#pragma unroll
                for (int pair = 0; pair < kParts / 2; ++pair) {
                    Pair<Element> b[4];
                    states.load(b, 16 * pair, step);
                    multiply_pairs<Element>(to.values[2 * pair], a, b[0], b[1]);
                    multiply_pairs<Element>(to.values[2 * pair + 1], a, b[2], b[3]);
                }
            }
            if constexpr (kNarrow<Element>) {
#pragma unroll
                for (int part = 0; part < kParts; ++part) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        out.values[part][i] += unit * slice.values[part][i];
                    }
                }
            }
        }
    }

    // What the states of a slice were divided by.
    __device__ __forceinline__ static float state_unit(const GradientParams& params, int64_t slot,
                                                       int channel) {
        if constexpr (kNarrow<Element>) {
            const int slices = (params.layer.dv + kSlice - 1) / kSlice;
            return params.units[slot * slices + channel / kSlice];
        } else {
            return 1.f;
        }
    }

    // out = dx columns, over all columns that the rows see; the sums of dx by distance go to `dbias`.
    __device__ __forceinline__ static void multiply_scores(const GradientParams& params,
                                                           const Place& place, Smem& smem,
                                                           Output& out, float* dbias) {
        const Layer& layer = params.layer;
        const Columns columns = columns_of(layer, place.chunk, place.row);
        auto& tiles = smem.quadratic;
        const auto fetch = [&](int first, int channel, int stage) {
            fetch_slice(params.left, place.sequence, place.row, layer.dv, channel,
                        smem.left[stage]);
            fetch_slice(params.right, place.sequence, first, layer.dv, channel,
                        tiles.right[stage]);
            commit_copies();
        };
        fetch_z(layer, place.sequence, place.row, smem.rows);
        fetch(columns.first, 0, 0);
        smem.row_by.template load<kThreads>(params.rows, layer.dz);
        smem.column_by.template load<kThreads>(params.columns, layer.dz);
        smem.diagonals.begin();
        if constexpr (kNarrow<Element>) {
            smem.units.begin();
        }
        wait_copies<1>();
        __syncthreads();  // z of rows and the coefficients, before rows are made of them
        smem.row_by.template apply<kThreads>(smem.rows);

        int stage = 0;
        int turn = 0;
#pragma unroll 1
        for (int first = columns.first; first < columns.end; first += Width, turn ^= 1) {
            const Sight sight = Sight::of(layer, place.row, first, columns.end);
            Scores products = {};
#pragma unroll 1
            for (int channel = 0; channel < layer.dv; channel += kSliceChannels, stage ^= 1) {
                wait_copies<0>();
                // both slices, before they are multiplied; those of the other stage are read, and so
                // are the columns before these
                __syncthreads();
                if (channel == 0) {
                    fetch_z(layer, place.sequence, first, tiles.columns);
                    smem.bias.load(layer, place.row, first);
                }
                if (channel + kSliceChannels < layer.dv) {
                    fetch(first, channel + kSliceChannels, stage ^ 1);
                } else if (first + Width < columns.end) {
                    fetch(first + Width, 0, stage ^ 1);
                }
                products.template multiply<kSliceSteps>(smem.left[stage], tiles.right[stage],
                                                        sight);
            }
            wait_copies<0>();
            __syncthreads();  // z of columns, before columns are made of it
            smem.column_by.template apply<kThreads>(tiles.columns);
            __syncthreads();  // columns and bias, before they are read
            Scores scores = {};
            scores.template multiply<Size / 16>(smem.rows, tiles.columns, sight);
            scores.activate(layer, smem.bias, sight);
#pragma unroll
            for (int part = 0; part < Scores::kParts; ++part) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    scores.values[part][i] *= 2.f * products.values[part][i];
                }
            }
            if constexpr (kNarrow<Element>) {
                scores.fit(smem.units, turn);
            }
            scores.store(tiles.scores);
            __syncthreads();  // gradients of scores, before they are multiplied
            if constexpr (kNarrow<Element>) {
                multiply_rows(out, [&](int row) { return smem.units.change(turn, row); });
            }
            multiply(out, tiles, sight);
            if (dbias != nullptr) {
                smem.diagonals.add(tiles.scores, kNarrow<Element> ? &smem.units : nullptr,
                                   turn ^ 1, dbias, layer.distances, place.row - first);
            }
        }
        if (dbias != nullptr) {
            smem.diagonals.finish(dbias, layer.distances, place.row - columns.first,
                                  (columns.end - columns.first + Width - 1) / Width);
        }
        if constexpr (kNarrow<Element>) {
            multiply_rows(out, [&](int row) { return smem.units.values[turn][row]; });
        }
    }

    // out += scores columns, of the warp's rows and channels.
    __device__ __forceinline__ static void multiply(Output& out, const Quadratic& tiles,
                                                    const Sight& sight) {
        const auto scores = by_rows(tiles.scores, warp_row());
        const auto columns = by_rows(tiles.columns, 0, kHalf * warp_half());
#pragma unroll 1
        for (int step = 0; step < Width / 16; ++step) {
            if (!sight.any(warp_row(), 16 * step)) {
                continue;
            }
            Pair<Element> a[4];
            scores.load(a, 0, step);
#pragma unroll
            for (int pair = 0; pair < kParts / 2; ++pair) {
                Pair<Element> b[4];
                columns.load_transposed(b, 16 * step, pair);
                multiply_pairs<Element>(out.values[2 * pair], a, b[0], b[1]);
                multiply_pairs<Element>(out.values[2 * pair + 1], a, b[2], b[3]);
            }
        }
    }

    template <typename Factor>
    __device__ __forceinline__ static void multiply_rows(Output& out, const Factor& factor) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float x = factor(warp_row() + lane_row() + 8 * half);
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                out.values[part][2 * half] *= x;
                out.values[part][2 * half + 1] *= x;
            }
        }
    }

    // Starts the copy of kSliceChannels channels of the steps from `step` on.
    template <typename T>
    __device__ __forceinline__ static void fetch_slice(const Rows& rows, const Sequence& sequence,
                                                       int step, int dv, int channel, T& tile) {
        const Element* from = row_of<const Element>(rows, sequence, step) + channel;
        Copy<kThreads, T>::start(tile, Copy<kThreads, T>::source(from, rows.step_stride),
                                 rows.step_stride, sequence.steps - step,
                                 (dv - channel) / kElements);
    }

    // Starts the copy of z of the steps from `step` on.
    template <typename T>
    __device__ __forceinline__ static void fetch_z(const Layer& layer, const Sequence& sequence,
                                                   int step, T& tile) {
        const Element* from = row_of<const Element>(layer.z, sequence, step);
        Copy<kThreads, T>::start(tile, Copy<kThreads, T>::source(from, layer.z.step_stride),
                                 layer.z.step_stride, sequence.steps - step, layer.dz / kElements);
        commit_copies();
    }

    // Calls with(part, half, row, channel) for each pair of the lane's that exists; the row is in the
    // tile.
    template <typename With>
    __device__ __forceinline__ static void for_each_pair(const Place& place, const Layer& layer,
                                                         const With& with) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const int channel = kHalf * warp_half() + 8 * part + lane_column();
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = warp_row() + lane_row() + 8 * half;
                if (row < place.rows && channel < layer.dz) {
                    with(part, half, row, channel);
                }
            }
        }
    }

    // Adds gamma scale out to what there is of the gradient of z, or begins it, or ends it.
    __device__ __forceinline__ static void finish(const GradientParams& params, const Place& place,
                                                  const Smem& smem, const Output& out,
                                                  const float* gamma, float scale, bool begin,
                                                  bool end) {
        const Layer& layer = params.layer;
        for_each_pair(place, layer, [&](int part, int half, int row, int channel) {
            float2 sum = make_float2(gamma[channel] * (scale * out.values[part][2 * half]),
                                     gamma[channel + 1] * (scale * out.values[part][2 * half + 1]));
            auto* way = reinterpret_cast<float2*>(
                params.part + (place.sequence.before + place.row + row) * layer.dz + channel);
            if (!begin) {
                sum.x += way->x;
                sum.y += way->y;
            }
            if (end) {
                *reinterpret_cast<Pair<Element>*>(
                    row_of<Element>(params.dz, place.sequence, place.row + row) + channel) =
                    join<Element>(sum.x, sum.y);
            } else {
                *way = sum;
            }
        });
    }

    // The sums over the tile's rows of z scale out, and of scale out: to[0][dz] and to[1][dz].
    __device__ __forceinline__ static void sum_rows(const Place& place, const Layer& layer,
                                                    Smem& smem, const Output& out, float scale,
                                                    float* to) {
        const int lane = lane_of_warp();
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            float sums[4] = {};  // of two channels: with z, and without
            const int channel = kHalf * warp_half() + 8 * part + lane_column();
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = warp_row() + lane_row() + 8 * half;
                if (row < place.rows && channel < layer.dz) {
                    const float2 z = seqmix::part<Element>(*reinterpret_cast<const Pair<Element>*>(
                        row_of<const Element>(layer.z, place.sequence, place.row + row) + channel));
                    const float2 d = make_float2(scale * out.values[part][2 * half],
                                                 scale * out.values[part][2 * half + 1]);
                    sums[0] += z.x * d.x;
                    sums[1] += z.y * d.y;
                    sums[2] += d.x;
                    sums[3] += d.y;
                }
            }
            sum_lanes<16, 4>(sums, lane);
            if ((lane & 4) == 0) {
                const int which = lane / 8;
                smem.sums[warp_of_block() % 4][which / 2][channel + which % 2] = sums[0];
            }
        }
        __syncthreads();  // the sums of all warps, before they are added
        for (int i = thread_of_block(); i < 2 * Size; i += kThreads) {
            const int channel = i % Size;
            if (channel < layer.dz) {
                float sum = 0.f;
#pragma unroll
                for (int four = 0; four < 4; ++four) {
                    sum += smem.sums[four][i / Size][channel];
                }
                to[i / Size * layer.dz + channel] = sum;
            }
        }
        __syncthreads();  // the sums are read, before the next ones come
    }
};

}  // namespace seqmix::gated_attention_unit
