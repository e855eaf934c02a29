// State space duality forward for every GPU since Ampere: a block walks over a segment of a
// sequence, for the channels of a few neighbouring slices that share B and C.
//
// grid    x: blocks of slices, group by group; y: segments; z: sequences
// block   takes kChunk steps at a time: scores = (C B^T) * decay * dt', for each slice
// warp    owns 16 steps of C B^T, and 16 * Tiles channels of one slice: their state, which stays in
//         registers, and their outputs
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
//
// Within a chunk, outputs are y = scores x + (what is left of the state before) C + D x. While the
// tiles of the next chunk are on their way, one warp of each slice computes its decays.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "ssd/gate.cuh"
#include "ssd/params.h"
#include "ssd/place.cuh"
#include "ssd/range.cuh"
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
    static_assert(16 * Slices::kWarps == kChunk, "a warp owns 16 steps of C B^T");

    // Outputs are computed for half a chunk at a time: the state and 64 steps would not leave
    // enough registers.
    static constexpr int kHalf = kChunk / 2;
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
        Steps steps[kSlices];
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
            Slices::template scan<Element>(smem.steps, layer,
                                           Slices::template inputs<Element>(layer, place, 0),
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
                Slices::template inputs<Element>(layer, place, (chunk + 1) * kChunk);
            __syncthreads();  // the scores of all warps, before each reads those of its slice
            const Steps& steps = smem.steps[Slices::of_warp()];
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
                __syncwarp();  // the outputs have been read, before z overwrites them
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
                Slices::template scan<Element>(smem.steps, layer, next, rows - kChunk);
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
        const int group = group_of_block(layer, kSlices);
        const auto coefficients = [&](const CoefficientTile& tile, const Rows& from) {
            const Element* first = row_of<const Element>(from, place.start + step, group);
            CoefficientCopy::start(tile, CoefficientCopy::source(first, from.step_stride),
                                   from.step_stride, rows, layer.dstate / 8);
        };
        coefficients(smem.b, layer.b);
        coefficients(smem.c, layer.c);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
            const Slice slice = Slices::slice(layer, i);
            const Element* first =
                row_of<const Element>(layer.x, place.start + step, slice.head) + slice.channel;
            ChannelCopy::start(smem.x[i], ChannelCopy::source(first, layer.x.step_stride),
                               layer.x.step_stride, rows, slice.channels / 8);
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
            const bool valid = step + row < place.steps && 8 * chunk < slice.channels;
            copy16_async(smem.gate[Slices::of_warp()].address(row, chunk),
                         from + row * layer.z.step_stride + 8 * chunk, valid);
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
        const int warp = warp_of_block();
        const auto c_operand = operand_by_rows(smem.c, 16 * warp);
        const auto b_operand = operand_by_columns(smem.b, 0);
        float products[kChunk / 8][4] = {};
#pragma unroll
        for (int step = 0; step < Size / 16; ++step) {
            uint32_t c[4];
            load_matrices(c, c_operand.address(0, step));
#pragma unroll
            for (int pair = 0; pair < kChunk / 16; ++pair) {
                if (pair <= warp) {  // later steps do not act on earlier ones
                    uint32_t b[4];
                    load_matrices(b, b_operand.address(16 * pair, step));
                    multiply<Element>(products[2 * pair], c, b[0], b[1]);
                    multiply<Element>(products[2 * pair + 1], c, b[2], b[3]);
                }
            }
        }
        float largest[2] = {};
        if constexpr (kNarrow<Element>) {
#pragma unroll
            for (int column = 0; column < kChunk / 8; ++column) {
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
            const Steps& steps = smem.steps[slice];
            auto* to = reinterpret_cast<unsigned char*>(smem.scores[slice].elements);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * warp + 8 * half + lane_row();
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
                for (int column = 0; column < kChunk / 8; ++column) {
                    if (column / 2 <= warp) {
                        const int first = 8 * column + lane_column();
                        const auto pair_of = [&](const float* numbers) {
                            return *reinterpret_cast<const float2*>(numbers + first);
                        };
                        const float2 highs = pair_of(steps.high);
                        const float2 lows = pair_of(steps.low);
                        const float2 sizes = pair_of(steps.size);
                        const float* product = &products[column][2 * half];
                        const float left =
                            product[0] * (sizes.x * Steps::between(high, low, highs.x, lows.x));
                        const float right =
                            product[1] * (sizes.y * Steps::between(high, low, highs.y, lows.y));
                        *reinterpret_cast<uint32_t*>(to + ScoreTile::offset(row, column) +
                                                     2 * lane_column()) =
                            pack<Element>(first <= row ? left * factor : 0.f,
                                          first + 1 <= row ? right * factor : 0.f);
                    }
                }
            }
        }
    }

    // y += C S^T, with the state as it was before the chunk.
    __device__ __forceinline__ static void multiply_state(Output& y, const Smem& smem,
                                                          const State& state, int half) {
        const auto c_operand = operand_by_rows(smem.c, kHalf * half);
#pragma unroll
        for (int step = 0; step < Size / 16; ++step) {
            uint32_t c[kRowTiles][4];
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
                load_matrices(c[tile], c_operand.address(16 * tile, step));
            }
#pragma unroll
            for (int column = 0; column < kColumns; ++column) {
                uint32_t s[2];
                state.operand(s, step, column);
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
                    multiply<Element>(y[tile][column], c[tile], s[0], s[1]);
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
        const auto score_operand = operand_by_rows(smem.scores[Slices::of_warp()], kHalf * half);
        const auto x_operand = operand_by_rows(smem.x[Slices::of_warp()], 0, Slices::warp_channel());
#pragma unroll 1
        for (int step = 0; step < kRowTiles * (half + 1); ++step) {
            uint32_t x[kColumns / 2][4];
#pragma unroll
            for (int pair = 0; pair < kColumns / 2; ++pair) {
                load_matrices_transposed(x[pair], x_operand.address(16 * step, pair));
            }
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
                if (step <= kRowTiles * half + tile) {
                    uint32_t scores[4];
                    load_matrices(scores, score_operand.address(16 * tile, step));
#pragma unroll
                    for (int pair = 0; pair < kColumns / 2; ++pair) {
                        multiply<Element>(y[tile][2 * pair], scores, x[pair][0], x[pair][1]);
                        multiply<Element>(y[tile][2 * pair + 1], scores, x[pair][2], x[pair][3]);
                    }
                }
            }
        }
    }

    // (y + D x) silu(z), packed, where z was.
    __device__ __forceinline__ static void finish(const Output& y, Smem& smem, bool gated,
                                                  int half) {
        const int slice = Slices::of_warp();
        const auto* x_bytes = reinterpret_cast<const unsigned char*>(smem.x[slice].elements);
        auto* gate_bytes = reinterpret_cast<unsigned char*>(smem.gate[slice].elements);
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; ++i) {
            const int row = 8 * i + lane_row();
            const float unit =
                kNarrow<Element> ? smem.score_units[slice][kHalf * half + row] : 1.f;
#pragma unroll
            for (int column = 0; column < kColumns; ++column) {
                const int chunk = Slices::warp_channel() / 8 + column;
                const float2 skip = *reinterpret_cast<const float2*>(
                    &smem.skip[slice][8 * chunk + lane_column()]);
                float x[2];
                unpack<Element>(x[0], x[1],
                                *reinterpret_cast<const uint32_t*>(
                                    x_bytes + ChannelTile::offset(kHalf * half + row, chunk) +
                                    2 * lane_column()));
                const float* pair = &y[i / 2][column][i % 2 * 2];
                float left = pair[0] * unit + skip.x * x[0];
                float right = pair[1] * unit + skip.y * x[1];
                auto* gate = reinterpret_cast<uint32_t*>(
                    gate_bytes + GateTile::offset(row, chunk) + 2 * lane_column());
                if (gated) {
                    float z[2];
                    unpack<Element>(z[0], z[1], *gate);
                    left *= silu(z[0]);
                    right *= silu(z[1]);
                }
                *gate = pack<Element>(left, right);
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
            if (step + row < place.steps && 8 * chunk < slice.channels) {
                *reinterpret_cast<uint4*>(to + row * params.out.step_stride + 8 * chunk) =
                    *reinterpret_cast<const uint4*>(bytes + GateTile::offset(row, chunk));
            }
        });
    }
};

}  // namespace seqmix::ssd
