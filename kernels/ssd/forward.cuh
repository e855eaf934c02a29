// State space duality forward for every GPU since Ampere: a block walks over a segment of a
// sequence, for the channels of a few neighbouring slices that share B and C.
//
// grid    x: blocks of slices, group by group; y: segments; z: sequences
// block   takes kChunk steps at a time: scores = (C B^T) * decay * dt', for each slice
// warp    owns 16 steps of C B^T, or a part of their columns, and 16 * Tiles channels of one slice:
//         their state, which stays in registers, and their outputs
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
//
// Within a chunk, outputs are y = scores x + (what is left of the state before) C + D x. While the
// tiles of the next chunk are on their way, one warp of each slice computes its decays.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/pointwise.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "ssd/params.h"
#include "ssd/place.cuh"
#include "ssd/slices.cuh"
#include "ssd/state.cuh"
#include "ssd/steps.cuh"

namespace seqmix::ssd {

template <typename Element_, int Size, int Tiles>
struct Forward {
    using Element = Element_;
    using State = seqmix::ssd::State<Element, Size, Tiles>;

    using Slices = seqmix::ssd::Slices<State>;

    static constexpr int kThreads = Slices::kThreads;
    static constexpr int kSlices = Slices::kCount;
    static constexpr int kWarpChannels = Slices::kWarpChannels;

    static constexpr int kChunk = seqmix::ssd::kChunk<Element>;
    static constexpr int kSlice = seqmix::ssd::kSlice<Element>;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    static constexpr int kRowWarps = kChunk / 16;
    static constexpr int kColumnWarps = Slices::kWarps / kRowWarps;
    static_assert(kRowWarps * kColumnWarps == Slices::kWarps, "each warp owns as much of C B^T");
    static_assert(kColumnWarps == 1 || !kNarrow<Element>, "a warp knows the largest of a row");

    // Outputs are computed for half a chunk at a time: the state and 64 steps would not leave
    // enough registers.
    static constexpr int kHalf = kChunk / 2;
    static constexpr int kProducts = kChunk / kColumnWarps / 8;  // of 16x8, of C B^T
    static constexpr int kRowTiles = kHalf / 16;
    static constexpr int kColumns = kWarpChannels / 8;

    using CoefficientTile = Tile<Element, kChunk, Size>;
    using ChannelTile = Tile<Element, kChunk, kSlice>;
    using ScoreTile = Tile<Element, kChunk, kChunk>;
    using GateTile = Tile<Element, kHalf, kSlice>;
    using CoefficientCopy = Copy<kThreads, CoefficientTile>;
    using ChannelCopy = Copy<kThreads, ChannelTile>;

    struct Smem {
        CoefficientTile b;
        CoefficientTile c;
        ChannelTile x[kSlices];
        ScoreTile scores[kSlices];
        // z of half a chunk, and then its outputs on their way to global memory; a warp reads and
        // writes its own channels only
        GateTile gate[kSlices];
        Steps<kChunk> steps[kSlices];
        float skip[kSlices][kSlice];         // D
        float score_units[kSlices][kChunk];  // what scores were divided by, if kNarrow
    };

    using Output = float[kRowTiles][kColumns][4];

    // The first row of this lane in a 16x8 product, and its first column.
    __device__ __forceinline__ static int lane_row() { return lane_of_warp() / 4; }
    __device__ __forceinline__ static int lane_column() { return 2 * (lane_of_warp() % 4); }

    __device__ __forceinline__ static void run(const ForwardParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Place place = place_of_block(layer);
        if (!place.exists) {
            return;
        }
        const int chunks = (place.steps + kChunk - 1) / kChunk;
        if (chunks > 0) {
            fetch(layer, place, smem, 0);
            fetch_gate(layer, place, smem, 0);
            Slices::scan(smem.steps, layer,
                                           Slices::inputs(layer, place, 0),
                                           place.steps);
            load_skip(layer, smem);
        }
        State state;
        state.clear();
        load_start(params, place, state);

#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const int rows = place.steps - chunk * kChunk;
            wait_copies<0>();
            __syncthreads();  // all tiles, and decays of the steps, before they are read
            multiply_scores(smem);
            const StepInputs next =
                Slices::inputs(layer, place, (chunk + 1) * kChunk);
            __syncthreads();  // the scores of all warps, before each reads those of its slice
            const Steps<kChunk>& steps = smem.steps[Slices::of_warp()];
            const float unit = state.fit();
#pragma unroll 1
            for (int half = 0; half < 2 && half * kHalf < rows; ++half) {
                Output y = {};
                multiply_state(y, smem, state, half);
                multiply_by_inflow(y, smem, unit, half);
                multiply_inputs(y, smem, half);
                wait_copies<0>();
                __syncwarp();  // every lane's part of z, before it is read
                finish(y, smem, layer.z.at != nullptr, half);
                store(params, place, smem, chunk * kChunk + half * kHalf);
                // a lane overwrites the outputs that it has read itself
                fetch_gate(layer, place, smem, chunk * kChunk + (half + 1) * kHalf);
            }
            state.advance(smem.x[Slices::of_warp()], Slices::warp_channel(), smem.b, steps.weight,
                          steps.decay * unit);
            if (kNarrow<Element> && steps.unit != 1.f) {
                state.multiply_by(steps.unit);
            }
            __syncthreads();  // all have read the chunk's tiles and decays, before the next ones
            if (chunk + 1 < chunks) {
                fetch(layer, place, smem, (chunk + 1) * kChunk);
                Slices::scan(smem.steps, layer, next, rows - kChunk);
            }
        }
        if (place.last && params.last.at != nullptr) {
            const Slice slice = Slices::channels_of_warp(layer);
            state.store(state_of(params.last, slice), slice.channels, layer.dstate,
                        params.last.channel_stride);
        }
    }

    // The state before the segment: as the segments before it left it, or the initial one.
    __device__ __forceinline__ static void load_start(const ForwardParams& params,
                                                      const Place& place, State& state) {
        const Layer& layer = params.layer;
        const Slice slice = Slices::channels_of_warp(layer);
        if (params.starts != nullptr) {
            const float* start = params.starts +
                                 ((place.slot * layer.heads + slice.head) * layer.headdim +
                                  slice.channel) *
                                     layer.dstate;
            state.load(start, slice.channels, layer.dstate, layer.dstate);
        } else if (params.initial.at != nullptr) {
            state.load(state_of(params.initial, slice), slice.channels, layer.dstate,
                       params.initial.channel_stride);
        }
    }

    // Starts the copies of b, c and x of the chunk that begins `step` steps into the segment.
    __device__ __forceinline__ static void fetch(const Layer& layer, const Place& place, Smem& smem,
                                                 int step) {
        const int rows = place.steps - step;
        const int group = Slices::group(layer);
        const auto coefficients = [&](const CoefficientTile& tile, const Rows& from) {
            const Element* first = row_of<const Element>(from, place.start + step, group);
            CoefficientCopy::start(tile, CoefficientCopy::source(first, from.step_stride),
                                   from.step_stride, rows, layer.dstate / kElements);
        };
        coefficients(smem.b, layer.b);
        coefficients(smem.c, layer.c);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
            const Slice slice = Slices::slice(layer, i);
            const Element* first =
                row_of<const Element>(layer.x, place.start + step, slice.head) + slice.channel;
            ChannelCopy::start(smem.x[i], ChannelCopy::source(first, layer.x.step_stride),
                               layer.x.step_stride, rows, slice.channels / kElements);
        }
        commit_copies();
    }

    // Starts the copy of the warp's channels of z, of the half chunk that begins `step` steps into
    // the segment.
    __device__ __forceinline__ static void fetch_gate(const Layer& layer, const Place& place,
                                                      Smem& smem, int step) {
        if (layer.z.at == nullptr || step >= place.steps) {
            return;
        }
        const Slice slice = Slices::slice(layer, Slices::of_warp());
        const Element* from =
            row_of<const Element>(layer.z, place.start + step, slice.head) + slice.channel;
        Slices::template for_each_chunk<kHalf>([&](int row, int chunk) {
            const bool valid = step + row < place.steps && kElements * chunk < slice.channels;
            copy16_async(smem.gate[Slices::of_warp()].address(row, chunk),
                         from + row * layer.z.step_stride + kElements * chunk, valid);
        });
        commit_copies();
    }

    // D of the block's channels, 0 where there is none.
    __device__ __forceinline__ static void load_skip(const Layer& layer, Smem& smem) {
        for (int i = thread_of_block(); i < kSlices * kSlice; i += kThreads) {
            const Slice slice = Slices::slice(layer, i / kSlice);
            const bool exists = layer.d != nullptr && i % kSlice < slice.channels;
            smem.skip[i / kSlice][i % kSlice] =
                exists ? layer.d[slice.head * layer.d_head_stride +
                                 (slice.channel + i % kSlice) * layer.d_channel_stride]
                       : 0.f;
        }
    }

    // scores = (C B^T) * decay * dt', of the warp's 16 steps and all steps up to them.
    __device__ __forceinline__ static void multiply_scores(Smem& smem) {
        const int tile = warp_of_block() % kRowWarps;
        const int start = kChunk / kColumnWarps * (warp_of_block() / kRowWarps);
        const auto c_operand = by_rows(smem.c, 16 * tile);
        const auto b_operand = by_columns(smem.b, start);
        float products[kProducts][4] = {};
#pragma unroll
        for (int step = 0; step < Size / 16; ++step) {
            Pair<Element> c[4];
            c_operand.load(c, 0, step);
#pragma unroll
            for (int pair = 0; pair < kProducts / 2; ++pair) {
                if (start / 16 + pair <= tile) {  // later steps do not act on earlier ones
                    Pair<Element> b[4];
                    b_operand.load(b, 16 * pair, step);
                    multiply_pairs<Element>(products[2 * pair], c, b[0], b[1]);
                    multiply_pairs<Element>(products[2 * pair + 1], c, b[2], b[3]);
                }
            }
        }
        float largest[2] = {};
        if constexpr (kNarrow<Element>) {
#pragma unroll
            for (int column = 0; column < kProducts; ++column) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    largest[i / 2] = fmaxf(largest[i / 2], fabsf(products[column][i]));
                }
            }
            largest[0] = quad_max(largest[0]);
            largest[1] = quad_max(largest[1]);
        }
#pragma unroll 1
        for (int slice = 0; slice < kSlices; ++slice) {
            const Steps<kChunk>& steps = smem.steps[slice];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * tile + 8 * half + lane_row();
                const float high = steps.high[row];
                const float low = steps.low[row];
                float factor = 1.f;
                if constexpr (kNarrow<Element>) {
                    const float unit = fitting(largest[half] * steps.largest * steps.growth);
                    factor = inverse(unit);
                    if (lane_column() == 0) {
                        smem.score_units[slice][row] = unit;
                    }
                }
#pragma unroll
                for (int column = 0; column < kProducts; ++column) {
                    if (start / 16 + column / 2 <= tile) {
                        const int first = start + 8 * column + lane_column();
                        const auto both_of = [&](const float* numbers) {
                            return *reinterpret_cast<const float2*>(numbers + first);
                        };
                        const float2 highs = both_of(steps.high);
                        const float2 lows = both_of(steps.low);
                        const float2 sizes = both_of(steps.size);
                        const float* product = &products[column][2 * half];
                        const float left =
                            product[0] * (sizes.x * between(high, low, highs.x, lows.x));
                        const float right =
                            product[1] * (sizes.y * between(high, low, highs.y, lows.y));
                        pair_of(smem.scores[slice], row, first) =
                            join<Element>(first <= row ? left * factor : 0.f,
                                          first + 1 <= row ? right * factor : 0.f);
                    }
                }
            }
        }
    }

    // y += C S^T, with the state as it was before the chunk.
    __device__ __forceinline__ static void multiply_state(Output& y, const Smem& smem,
                                                          const State& state, int half) {
        const auto c_operand = by_rows(smem.c, kHalf * half);
#pragma unroll
        for (int step = 0; step < Size / 16; ++step) {
            Pair<Element> c[kRowTiles][4];
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
                c_operand.load(c[tile], 16 * tile, step);
            }
#pragma unroll
            for (int column = 0; column < kColumns; ++column) {
                Pair<Element> s[2];
                state.operand(s, step, column);
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
                    multiply_pairs<Element>(y[tile][column], c[tile], s[0], s[1]);
                }
            }
        }
    }

    // y *= what is left of the state at each step, in the unit of the step's scores.
    __device__ __forceinline__ static void multiply_by_inflow(Output& y, const Smem& smem,
                                                              float unit, int half) {
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; ++i) {
            const int row = kHalf * half + 8 * i + lane_row();
            float inflow = smem.steps[Slices::of_warp()].inflow[row] * unit;
            if constexpr (kNarrow<Element>) {
                inflow *= inverse(smem.score_units[Slices::of_warp()][row]);
            }
#pragma unroll
            for (int column = 0; column < kColumns; ++column) {
                y[i / 2][column][i % 2 * 2] *= inflow;
                y[i / 2][column][i % 2 * 2 + 1] *= inflow;
            }
        }
    }

    // y += scores x
    __device__ __forceinline__ static void multiply_inputs(Output& y, const Smem& smem, int half) {
        const auto score_operand = by_rows(smem.scores[Slices::of_warp()], kHalf * half);
        const auto x_operand = by_rows(smem.x[Slices::of_warp()], 0, Slices::warp_channel());
#pragma unroll 1
        for (int step = 0; step < kRowTiles * (half + 1); ++step) {
            Pair<Element> x[kColumns / 2][4];
#pragma unroll
            for (int pair = 0; pair < kColumns / 2; ++pair) {
                x_operand.load_transposed(x[pair], 16 * step, pair);
            }
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
                if (step <= kRowTiles * half + tile) {
                    Pair<Element> scores[4];
                    score_operand.load(scores, 16 * tile, step);
#pragma unroll
                    for (int pair = 0; pair < kColumns / 2; ++pair) {
                        multiply_pairs<Element>(y[tile][2 * pair], scores, x[pair][0], x[pair][1]);
                        multiply_pairs<Element>(y[tile][2 * pair + 1], scores, x[pair][2],
                                                x[pair][3]);
                    }
                }
            }
        }
    }

    // (y + D x) silu(z), packed, where z was.
    __device__ __forceinline__ static void finish(const Output& y, Smem& smem, bool gated,
                                                  int half) {
        const int slice = Slices::of_warp();
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; ++i) {
            const int row = 8 * i + lane_row();
            const float unit =
                kNarrow<Element> ? smem.score_units[slice][kHalf * half + row] : 1.f;
#pragma unroll
            for (int column = 0; column < kColumns; ++column) {
                const int channel = Slices::warp_channel() + 8 * column + lane_column();
                const float2 skip = *reinterpret_cast<const float2*>(&smem.skip[slice][channel]);
                const float2 x = part<Element>(pair_of(smem.x[slice], kHalf * half + row, channel));
                const float* pair = &y[i / 2][column][i % 2 * 2];
                float left = pair[0] * unit + skip.x * x.x;
                float right = pair[1] * unit + skip.y * x.y;
                auto& gate = pair_of(smem.gate[slice], row, channel);
                if (gated) {
                    const float2 z = part<Element>(gate);
                    left *= silu(z.x);
                    right *= silu(z.y);
                }
                gate = join<Element>(left, right);
            }
        }
    }

    // Stores the outputs of half a chunk that begins `step` steps into the segment.
    __device__ __forceinline__ static void store(const ForwardParams& params, const Place& place,
                                                 const Smem& smem, int step) {
        __syncwarp();  // the lanes have written the warp's channels, before other lanes read them
        const Slice slice = Slices::slice(params.layer, Slices::of_warp());
        const auto* bytes =
            reinterpret_cast<const unsigned char*>(smem.gate[Slices::of_warp()].elements);
        Element* to = row_of<Element>(params.out, place.start + step, slice.head) + slice.channel;
        Slices::template for_each_chunk<kHalf>([&](int row, int chunk) {
            if (step + row < place.steps && kElements * chunk < slice.channels) {
                *reinterpret_cast<uint4*>(to + row * params.out.step_stride + kElements * chunk) =
                    *reinterpret_cast<const uint4*>(bytes + GateTile::offset(row, chunk));
            }
        });
    }
};

}  // namespace seqmix::ssd
